"""Inputs that must be there, and outputs that appear whole or not at all."""

import contextlib
import json
import os
import pathlib
import re
from typing import Any, Iterator, Sequence

from odin_jax.shared import errors, locks

# In every output folder: which command made it.
MARKER = '.odin_output.json'
# How the name of what is not whole yet begins.
TEMPORARY = '.tmp-'


# gs://bucket, s3://..., https://...; and what pathlib makes of it, gs:/bucket.
_ADDRESS = re.compile(r'[A-Za-z][\w+.-]+:/')


def expand_user(path: str) -> str:
  """`path` with `~` or `~name` at its start as that user's home.

  A shell does so only where a word begins, not in `--output=~/run`.

  Raises:
    errors.UserError: there is no such user.
  """
  expanded = os.path.expanduser(path)
  if expanded.startswith('~'):
    raise errors.UserError(
      f'{path}: there is no user {expanded.split("/")[0][1:]!r}; write '
      f'./{path} for a path of that name'
    )
  return expanded


def local_path(path: str) -> str:
  """A path as a person gives it, its `~` expanded.

  Raises:
    errors.UserError: it is empty, an address such as gs://bucket, or names a
      user that there is not.
  """
  if not path.strip():
    raise errors.UserError('the path is empty; name a file or folder')
  if _ADDRESS.match(path):
    raise errors.UserError(
      f'{path}: is an address, and only local paths work here; copy what is '
      'there to this machine, or mount it'
    )
  return expand_user(path)


def path_or_address(path: str) -> str:
  """An address as it is, or a path as `local_path` has it.

  Raises:
    errors.UserError: it is neither.
  """
  if '://' in path:
    return path
  if _ADDRESS.match(path):
    scheme, rest = path.split(':/', 1)
    raise errors.UserError(f'{path}: write {scheme}://{rest.lstrip("/")}')
  return local_path(path)


def cache_folder() -> pathlib.Path:
  """Where this project keeps what it can make or fetch again."""
  root = pathlib.Path(os.environ.get('XDG_CACHE_HOME') or '~/.cache')
  return root.expanduser() / 'odin_jax'


def require_file(path: str | os.PathLike[str], what: str) -> pathlib.Path:
  """`path`, or errors.UserError when there is no such file."""
  path = pathlib.Path(path)
  # Unlike pathlib, says no of a name that is too long.
  if not os.path.isfile(path):
    raise errors.UserError(f'{path}: no such file; {what} is needed here')
  return path


def read_json(
  path: str | os.PathLike[str], what: str, keys: Sequence[str] = ()
) -> dict[str, Any]:
  """The object in a JSON file that another command wrote.

  Args:
    path: of the file.
    what: it is, should there be none.
    keys: that it has.

  Raises:
    errors.UserError: there is no such file, or it is cut or of another kind.
  """
  return _json_object(require_file(path, what).read_bytes(), str(path), keys)


def read_json_lines(
  path: str | os.PathLike[str], what: str, keys: Sequence[str] = ()
) -> list[dict[str, Any]]:
  """As `read_json`, of a file with an object in each line, at least one."""
  lines = require_file(path, what).read_bytes().splitlines()
  return [
    _json_object(line, f'{path}: line {number}', keys)
    for number, line in enumerate(lines or [b''], 1)
  ]


def _json_object(
  text: bytes, where: str, keys: Sequence[str]
) -> dict[str, Any]:
  try:
    content = json.loads(text)
    fault = None if isinstance(content, dict) else 'no JSON object'
  except ValueError as error:
    fault = f'no whole JSON ({error})'
  if not fault and (missing := [key for key in keys if key not in content]):
    fault = f'has no {missing[0]!r}'
  if fault:
    raise errors.UserError(f'{where}: {fault}; run again what writes it')
  return content


def require_folder(path: str | os.PathLike[str], what: str) -> pathlib.Path:
  """`path`, or errors.UserError when there is no such folder."""
  path = pathlib.Path(path)
  if not os.path.isdir(path):
    raise errors.UserError(f'{path}: no such folder; {what} is needed here')
  return path


def claim_output(
  path: str | os.PathLike[str], tool: str, holder_pid: int | None = None
) -> pathlib.Path:
  """Makes the output folder of `tool`, or continues one that it made.

  It then belongs to one process until its end (`odin_jax.shared.locks`).

  Args:
    path: the folder; made with its parents where it is absent.
    tool: name of the command, such as `preprocessing.run`.
    holder_pid: of that process; None: this one.

  Raises:
    errors.UserError: the folder holds something that `tool` did not make, or it
      cannot be written, or another process is writing there.
  """
  path = pathlib.Path(path)
  try:
    path.mkdir(parents=True, exist_ok=True)
    # Before the lock, so that nothing is written into a folder of others.
    _is_marked(path, tool)
    locks.acquire(path, holder_pid)
    # And after it: another command may have taken the folder meanwhile.
    if not _is_marked(path, tool):
      write_json(path / MARKER, {'tool': tool})
  except (OSError, ValueError) as error:
    raise errors.UserError(
      f'{path}: cannot be used as output: {error}; give another folder'
    ) from error
  return path


def _is_marked(path: pathlib.Path, tool: str) -> bool:
  """Whether a folder is of `tool`; False where it is of nobody and empty.

  Raises:
    errors.UserError: it is of another command, or of a person.
  """
  marker = path / MARKER
  if marker.is_file():
    owner = json.loads(marker.read_text()).get('tool')
    if owner != tool:
      raise errors.UserError(
        f'{path}: this folder was made by {owner}, not by {tool}; '
        'give another output folder'
      )
    return True
  strangers = [
    entry.name for entry in path.iterdir() if not _is_ours(entry.name)
  ]
  if strangers:
    raise errors.UserError(
      f'{path}: not made by {tool} (holds {sorted(strangers)[0]!r}); '
      'give an empty or a new output folder'
    )
  return False


def _is_ours(name: str) -> bool:
  """Whether this module leaves such a file in a folder that is not marked."""
  return name in (TEMPORARY + MARKER, locks.NAME) or name.startswith(
    locks.TEMPORARY
  )


@contextlib.contextmanager
def atomic_path(path: str | os.PathLike[str]) -> Iterator[pathlib.Path]:
  """A temporary path beside `path`, renamed onto it when the block succeeds.

  The temporary name ends like the final one, so that writers which look at
  the extension work, and is always the same, so that a rerun after a kill
  leaves no orphan.

  Raises:
    OSError: it cannot be written; names the path.
  """
  path = pathlib.Path(path)
  temporary = path.with_name(TEMPORARY + path.name)
  try:
    yield temporary
    os.replace(temporary, path)
  except OSError as error:
    # A write knows none where the disk is full, and nobody the temporary one.
    if error.filename is None or str(error.filename) == str(temporary):
      error.filename = str(path)
    raise
  finally:
    temporary.unlink(missing_ok=True)


def write_json(path: str | os.PathLike[str], content: Any) -> None:
  """Writes indented JSON in one piece; NaN and infinity are errors."""
  text = json.dumps(content, indent=2, allow_nan=False) + '\n'
  with atomic_path(path) as temporary, open(temporary, 'w') as file:
    file.write(text)
    file.flush()
    os.fsync(file.fileno())
