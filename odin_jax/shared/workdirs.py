"""What can stand for a workdir that is read: a folder, its address, or a word.

The word `pretrained` is the checkpoint that comes with the project; a folder of
that name is `./pretrained`. Where both are there, the word alone is refused.
"""

import os
import pathlib

from odin_jax.shared import errors, files, mirror, storage

PRETRAINED = 'pretrained'


def is_pretrained(workdir: str | os.PathLike[str]) -> bool:
  """Whether it is the word for the checkpoint that comes with the project.

  Raises:
    errors.UserError: it is, and a folder of that name is here, too.
  """
  if os.fspath(workdir) != PRETRAINED:
    return False
  if os.path.isdir(PRETRAINED):
    raise errors.UserError(
      f'{PRETRAINED}: is the checkpoint that comes with the project, and a '
      f'folder of that name is here, too; write ./{PRETRAINED} for the folder, '
      'or go to another one for the checkpoint'
    )
  return True


def require(
  workdir: str | os.PathLike[str], what: str, step: int | None = None
) -> pathlib.Path:
  """`workdir`, which `is_pretrained` says the same of, as a path.

  Args:
    workdir: as the user gave it; of an address a copy is made.
    what: it is, should there be none.
    step: of its checkpoint; None: the newest.

  Raises:
    errors.UserError: it is neither the word nor a folder, nor the address of
      one with that checkpoint.
  """
  if is_pretrained(workdir):
    return pathlib.Path(workdir)
  if storage.is_address(workdir):
    return mirror.copied(os.fspath(workdir), step)
  path = files.require_folder(workdir, what)
  # pathlib takes ./NAME for NAME.
  return path.absolute() if os.fspath(path) == PRETRAINED else path
