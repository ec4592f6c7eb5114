"""Files that are only read: of a local folder, or behind an address.

An address is anything that fsspec knows, such as gs://bucket/folder, for which
gcsfs has to be installed.
"""

import contextlib
import hashlib
import os
import pathlib
from typing import Any, Iterator, Protocol, runtime_checkable

from odin_jax.shared import errors, files

_DRIVERS = {'gs': 'gcsfs', 'gcs': 'gcsfs', 's3': 's3fs', 's3a': 's3fs'}
_MEND = 'mend it, or copy what is there to this machine'
# Read ahead where a remote file is read in order.
_BLOCK_BYTES = 8 * 2**20


def is_address(path: str | os.PathLike[str]) -> bool:
  """Whether a path is an address, of which pathlib would make a path."""
  return '://' in str(path)


def file_system(url: str) -> tuple[Any, str]:
  """The file system of fsspec that has an address, and the path in it.

  Raises:
    errors.UserError: nothing is installed for it, or it is of no kind that is
      known.
  """
  # Here, for most commands read no address.
  import fsspec

  try:
    return fsspec.core.url_to_fs(url)
  except ImportError as error:
    driver = _DRIVERS.get(url.partition('://')[0], 'the driver it names')
    raise errors.UserError(
      f'{url}: {error}; pip install {driver}=={fsspec.__version__}'
    ) from error
  except ValueError as error:
    raise errors.UserError(
      f'{url}: {error}; give a folder, gs://... or s3://...'
    ) from error


@runtime_checkable
class File(Protocol):
  """A file that does not change as long as its stamp does not.

  Attributes:
    path: or address.
  """

  path: pathlib.Path | str

  def size(self) -> int:
    """In bytes."""

  def stamp(self) -> str:
    """What changes when the file does."""

  def read(self, start: int, length: int) -> bytes:
    """Some of its bytes, fewer at its end; from any thread."""

  def in_order(self) -> Any:
    """The file opened in binary, read ahead."""


class LocalFile:
  """A file of this machine; after pickling it is opened anew."""

  def __init__(self, path: str | os.PathLike[str]):
    self.path = pathlib.Path(path)
    self._fd: int | None = None

  def size(self) -> int:
    return self.path.stat().st_size

  def stamp(self) -> str:
    status = self.path.stat()
    return f'{status.st_size} bytes of {status.st_mtime_ns}'

  def read(self, start: int, length: int) -> bytes:
    if self._fd is None:
      self._fd = os.open(self.path, os.O_RDONLY)
    return os.pread(self._fd, length, start)

  def in_order(self) -> Any:
    return open(self.path, 'rb')

  def __getstate__(self) -> dict[str, Any]:
    return {**self.__dict__, '_fd': None}

  def __del__(self, close=os.close) -> None:
    # Bound early: at interpreter shutdown the module's names are gone.
    if getattr(self, '_fd', None) is not None:
      close(self._fd)


class RemoteFile:
  """A file behind an address; each read asks for its range alone."""

  def __init__(self, system: Any, inside: str, url: str):
    self.path = url
    self._system = system
    self._inside = inside

  def size(self) -> int:
    return self._ask('size', self._inside)

  def stamp(self) -> str:
    return self._ask('ukey', self._inside)

  def read(self, start: int, length: int) -> bytes:
    return self._ask('cat_file', self._inside, start=start, end=start + length)

  def in_order(self) -> Any:
    return self._ask(
      'open',
      self._inside,
      'rb',
      block_size=_BLOCK_BYTES,
      cache_type='readahead',
    )

  def _ask(self, what: str, *given: Any, **named: Any) -> Any:
    with faults_named(self.path, 'cannot be read', _MEND):
      return getattr(self._system, what)(*given, **named)


class Folder:
  """The files of a folder.

  Args:
    path: of the folder, or its address.
    what: it is, should there be none.

  Attributes:
    path: the same; an address as text.

  Raises:
    errors.UserError: there is none, or it cannot be read.
  """

  path: pathlib.Path | str

  def __init__(self, path: str | os.PathLike[str], what: str):
    self._system: Any = None
    if not is_address(path):
      self.path = files.require_folder(path, what)
      return
    self.path = str(path).rstrip('/')
    self._system, self._inside = file_system(self.path)
    if not self.names():
      raise errors.UserError(
        f'{path}: no such folder, or an empty one; {what} is needed here'
      )

  def names(self) -> list[str]:
    """Of the files, sorted."""
    if self._system is None:
      return sorted(entry.name for entry in self.path.iterdir())
    found = []
    with (
      faults_named(self.path, 'cannot be read', _MEND),
      contextlib.suppress(FileNotFoundError),
    ):
      found = self._system.ls(self._inside, detail=False)
    # A store may list the folder itself, as a name that ends in a slash.
    names = {path.rpartition('/')[2] for path in found}
    return sorted(names - {''})

  def place(self, name: str) -> pathlib.Path | str:
    """Path or address of a file."""
    if self._system is None:
      return self.path / name
    return f'{self.path}/{name}'

  def file(self, name: str) -> File:
    if self._system is None:
      return LocalFile(self.path / name)
    return RemoteFile(
      self._system, f'{self._inside}/{name}', f'{self.path}/{name}'
    )

  def read(self, name: str) -> bytes | None:
    """The content of a small file; None where there is none."""
    if name not in self.names():
      return None
    file = self.file(name)
    return file.read(0, file.size())

  def digest(self) -> str:
    """Of where it is, for names of files that tell folders apart."""
    place = self.path if self._system else str(self.path.resolve())
    return hashlib.sha256(place.encode()).hexdigest()[:16]


@contextlib.contextmanager
def faults_named(
  place: pathlib.Path | str, what: str, then: str
) -> Iterator[None]:
  """Makes whatever the driver of a store raises inside errors.UserError.

  Args:
    place: the address.
    what: does not work, such as `cannot be read`.
    then: what to do.
  """
  try:
    yield
  except errors.UserError:
    raise
  except Exception as error:
    # Drivers raise whatever they like.
    raise errors.UserError(
      f'{place}: {what} ({type(error).__name__}: {error}); {then}'
    ) from error
