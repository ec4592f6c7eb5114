"""Lists of video ids: to download, to leave out, to take out.

A list is a parquet file with a column `id`, as 360-1M has it, or a text file
with one entry per line; blank lines and lines that begin with # are skipped.
"""

import os
import pathlib
import re
from typing import Iterable, Iterator, NamedTuple
import unicodedata

import pyarrow as pa
import pyarrow.parquet as pq

from odin_jax.shared import errors, files

# 64 bits in base64url (RFC 4648, section 5): ten characters of six bits, and
# one of which only the upper four bits are used.
_ID = re.compile(r'[A-Za-z0-9_-]{10}[AEIMQUYcgkosw048]')
_URL = re.compile(
  r'https?://(?:(?:www|m|music)\.)?(?:youtu\.be/|youtube(?:-nocookie)?\.com/'
  r'(?:watch\?(?:[^#\s]*&)?v=|(?:shorts|embed|live|v)/))'
  r'(?P<id>[\w-]+)(?:[?&#/]\S*)?',
  re.ASCII,
)
_COLUMN = 'id'
_MAGIC = b'PAR1'
_BATCH = 65536
_DROPPED = 'dropped_ids.txt'
# Files are named after a video's id: `.tmp-ID.part` is the longest name, and
# file systems take 255 bytes.
_MAX_BYTES = 255 - len(f'{files.TEMPORARY}.part')
Path = str | os.PathLike[str]


class IdList(NamedTuple):
  """A list of YouTube ids, without duplicates and in its order.

  Attributes:
    valid: ids that `check` accepts.
    invalid: the other entries as they are; not for paths or addresses.
  """

  valid: list[str]
  invalid: list[str]


def check(text: str) -> str:
  """The YouTube id that `text` is, or that it is the address of.

  Raises:
    ValueError: it is neither.
  """
  video_id = _reduced(text)
  if not _ID.fullmatch(video_id):
    raise ValueError(f'{text!r} is no YouTube id')
  return video_id


def _reduced(text: str) -> str:
  """An address of a YouTube video as its id, anything else as it is."""
  address = _URL.fullmatch(text)
  return address['id'] if address else text


def problem(stem: str) -> str:
  """Why no video may have this id, and what to do; '' where it may.

  An id is the stem of the video's file. Files of the output are named after it,
  records hold it as UTF-8, and it is a line of lists such as `dropped_ids.txt`.
  """
  name = os.fsencode(stem)
  try:
    name.decode()
  except UnicodeDecodeError:
    return 'its name is not UTF-8; rename it'
  if len(name) > _MAX_BYTES:
    return (
      f'its name is too long; give it one of at most {_MAX_BYTES} bytes before '
      f'the suffix, it has {len(name)}'
    )
  if any(unicodedata.category(character) == 'Cc' for character in stem):
    return 'its name has a line break or another control character; rename it'
  if stem.startswith('.'):
    return 'its name begins with a dot; rename it'
  if stem != stem.strip() or stem.startswith('#'):
    return (
      'its name begins with # or has a blank at an end, which no list of ids '
      'can tell; rename it'
    )
  return ''


def printable(text: str) -> str:
  """A text in which bytes that are not UTF-8 are written out as `\\xNN`."""
  return os.fsencode(text).decode('utf-8', 'backslashreplace')


def read_ids(path: Path) -> IdList:
  """Reads the ids of videos to download.

  Args:
    path: a list of ids or of addresses.

  Raises:
    errors.UserError: the file is missing or damaged, or has no such column.
  """
  # Dictionaries, unlike sets, keep the order.
  valid: dict[str, None] = {}
  invalid: dict[str, None] = {}
  for entry in _entries(path):
    try:
      valid[check(entry)] = None
    except ValueError:
      invalid[entry] = None
  return IdList(list(valid), list(invalid))


def read_excluded(path: Path | None) -> frozenset[str]:
  """Reads the ids of videos that are not to be used.

  Args:
    path: a list of `video_id`, which is the stem of any video file, or of
      YouTube addresses; None: nothing is excluded.

  Raises:
    errors.UserError: the file is missing or damaged, or has no such column,
      or an entry has several lines.
  """
  if path is None:
    return frozenset()
  entries = frozenset(_reduced(entry) for entry in _entries(path) if entry)
  for entry in entries:
    if '\n' in entry:
      raise errors.UserError(
        f'{path}: {entry!r} has several lines; give one id per entry'
      )
  return entries


def read_dropped(output: Path) -> frozenset[str]:
  """Ids of the videos that were taken out of a folder of records.

  Raises:
    errors.UserError: their list is damaged.
  """
  path = pathlib.Path(output) / _DROPPED
  if not path.is_file():
    return frozenset()
  return frozenset(line.removesuffix('\n') for line in _lines(path))


def write_dropped(output: Path, video_ids: Iterable[str]) -> None:
  """Writes the list that `read_dropped` reads."""
  with files.atomic_path(pathlib.Path(output) / _DROPPED) as temporary:
    text = ''.join(f'{name}\n' for name in sorted(video_ids))
    temporary.write_text(text, encoding='utf-8')


def _entries(path: Path) -> Iterator[str]:
  path = files.require_file(path, 'a list of video ids')
  with open(path, 'rb') as file:
    is_parquet = file.read(len(_MAGIC)) == _MAGIC
  if is_parquet or path.suffix == '.parquet':
    yield from _column(path)
    return
  for line in _lines(path):
    entry = line.strip()
    if entry and not entry.startswith('#'):
      yield entry


def _lines(path: pathlib.Path) -> Iterator[str]:
  try:
    with open(path, encoding='utf-8-sig', newline='\n') as file:
      yield from file
  except UnicodeDecodeError as error:
    raise errors.UserError(
      f'{path}: no text ({error}); give a parquet file or a text file in '
      'UTF-8 with one id per line'
    ) from error


def _column(path: pathlib.Path) -> Iterator[str]:
  """The ids of a parquet file, some at a time: it may have millions."""
  try:
    with pq.ParquetFile(path, page_checksum_verification=True) as file:
      names = file.schema_arrow.names
      if _COLUMN not in names:
        raise errors.UserError(
          f'{path}: no column {_COLUMN!r} in it, only {", ".join(names)}; '
          'give one whose ids have this name'
        )
      for batch in file.iter_batches(_BATCH, columns=[_COLUMN]):
        for value in batch.column(0).cast(pa.string()).to_pylist():
          yield value or ''
  except (pa.ArrowException, OSError) as error:
    raise errors.UserError(
      f'{path}: no parquet file, or damaged ({error}); get the file again'
    ) from error
