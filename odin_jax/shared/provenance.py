"""By which code, and when, something was made."""

import datetime
import pathlib
import subprocess

from odin_jax.shared import config_files

UNKNOWN = 'unknown'


def _git(*arguments: str) -> str | None:
  """What git says of this repository; None without git."""
  try:
    done = subprocess.run(
      ['git', '-C', str(config_files.REPOSITORY), *arguments],
      capture_output=True,
      text=True,
      check=True,
      timeout=10,
    )
  except (OSError, subprocess.SubprocessError):
    return None
  return done.stdout.strip()


def commit() -> str:
  """Of this code, `unknown` where it is no checkout; says if it was changed."""
  top = _git('rev-parse', '--show-toplevel')
  # A copy of the code inside of another repository is not of its commit.
  if not top or pathlib.Path(top).resolve() != config_files.REPOSITORY:
    return UNKNOWN
  name = _git('rev-parse', '--short=10', 'HEAD')
  if not name:
    return UNKNOWN
  changes = _git('status', '--porcelain', '--untracked-files=no')
  return f'{name} with changes' if changes else name


def line() -> str:
  """Date, time and commit, for a page that is made now."""
  now = datetime.datetime.now(datetime.timezone.utc)
  return f'Made {now:%Y-%m-%d %H:%M} UTC by code at commit {commit()}'
