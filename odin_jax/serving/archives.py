"""The files of a job as a ZIP that is made while it is sent."""

import io
import pathlib
from typing import Iterator
import zipfile

_CHUNK_BYTES = 1 << 20


class _Pipe(io.RawIOBase):
  """What is written, until it is taken."""

  def __init__(self) -> None:
    self._parts: list[bytes] = []

  def writable(self) -> bool:
    """It is for nothing else."""
    return True

  def write(self, data: bytes) -> int:
    """See `io.RawIOBase`."""
    self._parts.append(bytes(data))
    return len(data)

  def take(self) -> bytes:
    """All since it was last asked."""
    parts, self._parts = self._parts, []
    return b''.join(parts)


def names(folder: pathlib.Path, inside: list[str]) -> list[str]:
  """The files of a job that are for others, by their names under its folder.

  Args:
    folder: of the job.
    inside: names of files and of folders in it; of these all files are taken,
      but for hidden ones and links.
  """
  found = []
  for name in inside:
    path = folder / name
    for file in sorted(path.rglob('*')) if path.is_dir() else [path]:
      parts = file.relative_to(folder).parts
      is_hidden = any(part.startswith('.') for part in parts)
      if file.is_file() and not file.is_symlink() and not is_hidden:
        found.append('/'.join(parts))
  return found


def stream(
  folder: pathlib.Path, files: list[str], prefix: str
) -> Iterator[bytes]:
  """The bytes of a ZIP, not compressed: pictures and videos are already.

  Args:
    folder: of the job.
    files: names under it.
    prefix: folder in the ZIP that they go into.
  """
  pipe = _Pipe()
  with zipfile.ZipFile(pipe, 'w', zipfile.ZIP_STORED) as archive:
    for name in files:
      info = zipfile.ZipInfo.from_file(folder / name, f'{prefix}/{name}')
      with open(folder / name, 'rb') as source:
        with archive.open(info, 'w') as target:
          while chunk := source.read(_CHUNK_BYTES):
            target.write(chunk)
            yield pipe.take()
  yield pipe.take()
