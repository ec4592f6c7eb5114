"""Starts a command of this project, in a process that ends with this one."""

import subprocess
import sys

from odin_jax.shared import config_files, errors


def run(module: str, *arguments: str, makes: str) -> None:
  """Runs `python -m module` to its end.

  Args:
    module: of the command.
    arguments: its flags; paths absolute, for it runs in the repository.
    makes: what it is to make, for messages.

  Raises:
    errors.UserError: it failed, and has told why.
    errors.Unfinished: it was stopped, and can go on.
  """
  status = _status([sys.executable, '-m', module, *arguments])
  if status == errors.Unfinished.exit_status:
    raise errors.Unfinished(
      f'{makes}: {module} was stopped; the same command goes on from there'
    )
  if status:
    raise errors.UserError(
      f'{makes}: {module} ended with status {status}, see what it says above'
    )


def _status(command: list[str]) -> int:
  """The exit status of a process, which is stopped where this one is."""
  # A group of its own: a terminal's interrupt comes once, from here.
  process = subprocess.Popen(
    command, cwd=config_files.REPOSITORY, start_new_session=True
  )
  try:
    return process.wait()
  except KeyboardInterrupt:
    process.terminate()
    process.wait()
    raise
