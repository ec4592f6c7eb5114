"""Runs commands of this project once, with the arguments that were asked for."""

import pathlib
import time
from typing import Any

from absl import logging

from odin_jax.experimenting.tables import Stage
from odin_jax.shared import errors, files, subcommand


def earlier_run(path: pathlib.Path, keys: list[str]) -> dict[str, Any] | None:
  """What an earlier run wrote there for itself; None where nothing is whole.

  Args:
    path: of JSON that is written again, so that damage costs work alone.
    keys: that it has.
  """
  if not path.is_file():
    return None
  try:
    return files.read_json(path, 'what an earlier run wrote', keys)
  except errors.UserError:
    logging.warning('%s: is damaged; what it is of is done again', path)
    return None


def run(stage: Stage, root: pathlib.Path) -> dict[str, Any]:
  """Runs a stage, unless it is done already; what is noted of it.

  Raises:
    errors.UserError: it failed and has told why, or its folder was made with
      other arguments.
    errors.Unfinished: it was stopped.
  """
  note = root / 'stages' / f'{stage.folder.replace("/", "__")}.json'
  command = [stage.module, *stage.arguments]
  if earlier := earlier_run(note, ['command', 'seconds']):
    if earlier['command'] != command:
      changed = set(command) ^ set(earlier['command'])
      raise errors.UserError(
        f'{root / stage.folder}: was made with other arguments '
        f'({", ".join(sorted(changed))}); give the same flags, or another '
        '--output'
      )
    if earlier['seconds'] is not None and (root / stage.folder).is_dir():
      return earlier
  note.parent.mkdir(exist_ok=True)
  # Written before the work, so that a run with other flags is told.
  content = {'command': command, 'seconds': None}
  files.write_json(note, content)
  (root / stage.folder).parent.mkdir(parents=True, exist_ok=True)
  start = time.monotonic()
  flag = 'workdir' if stage.module == 'odin_jax.train' else 'output'
  subcommand.run(
    *command, f'--{flag}={root / stage.folder}', makes=stage.folder
  )
  content['seconds'] = round(time.monotonic() - start, 1)
  files.write_json(note, content)
  return content
