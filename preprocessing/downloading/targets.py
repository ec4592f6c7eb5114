"""Where finished files go: a local folder, or one that fsspec knows."""

import contextlib
import hashlib
import json
import os
import pathlib
import posixpath
import tempfile
from typing import Iterator, Protocol, runtime_checkable

from odin_jax.shared import errors, files, storage

_TOOL = 'preprocessing.download'
_STAGING_TOOL = f'{_TOOL} --staging'


@runtime_checkable
class Target(Protocol):
  """Where the files of a run go; a file is there in one piece or not at all.

  Attributes:
    staging: a local folder for files that are not whole.
  """

  staging: pathlib.Path

  def names(self) -> list[str]:
    """What is there."""

  def read(self, name: str) -> str:
    """The text of a file."""

  def write(self, name: str, text: str) -> None:
    """Writes a small file."""

  def move_in(self, path: pathlib.Path, name: str) -> None:
    """Takes a local file over; returns when it is safe to remove it."""


def open_target(output: str) -> Target:
  """The target of an address, or of the path of a folder.

  Raises:
    errors.UserError: it is not of this command, or cannot be used.
  """
  output = output.removeprefix('file://')
  return Remote(output) if '://' in output else Folder(output)


def claim_staging(target: Target, path: str | None) -> pathlib.Path:
  """The folder for files that are not whole, by default the target's own.

  Raises:
    errors.UserError: it is not of this command, or on another disk than a
      local target, so that files could not be moved in one piece.
  """
  staging = files.claim_output(path or target.staging, _STAGING_TOOL)
  if isinstance(target, Folder):
    if staging.stat().st_dev != target.root.stat().st_dev:
      raise errors.UserError(
        f'--staging={staging}: not on the disk of {target.root}; give another'
      )
  return staging.resolve()


class Folder:
  """A local folder, which also has the staging folder in it.

  Raises:
    errors.UserError: the folder is not of this command.
  """

  def __init__(self, path: str):
    self.root = files.claim_output(path, _TOOL)
    self.staging = self.root / '.staging'

  def names(self) -> list[str]:
    return os.listdir(self.root)

  def read(self, name: str) -> str:
    return (self.root / name).read_text()

  def write(self, name: str, text: str) -> None:
    with files.atomic_path(self.root / name) as temporary:
      temporary.write_text(text)

  def move_in(self, path: pathlib.Path, name: str) -> None:
    with open(path, 'rb') as file:
      os.fsync(file.fileno())
    os.replace(path, self.root / name)


class Remote:
  """A folder of any file system that fsspec knows.

  Raises:
    errors.UserError: no driver for it, or the folder is not of this command.
  """

  def __init__(self, url: str):
    self.url = url
    self._files, self._root = storage.file_system(url)
    digest = hashlib.sha256(url.encode()).hexdigest()[:16]
    self.staging = pathlib.Path(
      tempfile.gettempdir(), f'odin-download-{digest}'
    )
    # It stands for the address: one run of this machine at a time.
    files.claim_output(self.staging, _STAGING_TOOL)
    with self._user_errors(''):
      self._claim()

  def _claim(self) -> None:
    names = self.names()
    if files.MARKER not in names:
      if strangers := set(names) - {files.TEMPORARY + files.MARKER}:
        raise errors.UserError(
          f'{self.url}: not made by {_TOOL} (holds {min(strangers)!r}); '
          'give an empty or a new address'
        )
      self.write(files.MARKER, json.dumps({'tool': _TOOL}))
    owner = json.loads(self.read(files.MARKER)).get('tool')
    if owner != _TOOL:
      raise errors.UserError(
        f'{self.url}: made by {owner}, not by {_TOOL}; give another address'
      )
    for name in names:
      if name.startswith(files.TEMPORARY):
        self._files.rm_file(self._path(name))

  @contextlib.contextmanager
  def _user_errors(self, name: str) -> Iterator[None]:
    """Makes errors of the file system errors that the user can mend."""
    try:
      yield
    except (OSError, ValueError) as error:
      raise errors.UserError(
        f'{self.url}/{name}: cannot be used as output: {error}; mend it, or '
        'give another address, and run again'
      ) from error

  def _path(self, name: str) -> str:
    return posixpath.join(self._root, name)

  def names(self) -> list[str]:
    self._files.invalidate_cache()
    try:
      paths = self._files.ls(self._root, detail=False)
    except FileNotFoundError:
      return []
    # A store may list the folder itself, as a name that ends in a slash.
    return [name for path in paths if (name := posixpath.basename(path))]

  def read(self, name: str) -> str:
    return self._files.cat_file(self._path(name)).decode()

  def write(self, name: str, text: str) -> None:
    temporary = self._path(files.TEMPORARY + name)
    with self._user_errors(name):
      self._files.pipe_file(temporary, text.encode())
      self._files.mv(temporary, self._path(name))

  def move_in(self, path: pathlib.Path, name: str) -> None:
    temporary = self._path(files.TEMPORARY + name)
    size = path.stat().st_size
    with self._user_errors(name):
      self._files.put_file(str(path), temporary)
      self._files.invalidate_cache()
      arrived = self._files.info(temporary)['size']
      if arrived != size:
        raise OSError(f'{arrived} of {size} bytes arrived, {path} is kept')
      self._files.mv(temporary, self._path(name))
