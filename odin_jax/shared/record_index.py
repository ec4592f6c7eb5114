"""What the records of a shard say beside their pictures, in one small file.

Who chooses among records, or looks for those of one scene, would have to read
all pictures for it. The index of a shard is made once, when it is first asked
for, and kept in a folder `.records_index` beside it, or in the user's cache
where nothing can be written there. It holds

    stamp      of the shard that it is of: its size, and when it was written
    frames     [n 2], where in the shard each record begins, and its length
    rows       [n], of the columns below
    video_ids  [v], which `rows['video_id']` counts

A column is a feature of the schema: numbers as they are (float32, NaN where a
record lacks an optional one; int64), of PNG the side in pixels (0: none).
An index of another shard, of another code or with a wrong checksum (those of
its zip file) is made again. Several processes may do so at once: each writes a
file of its own and renames it.
"""

import contextlib
import math
import os
import pathlib
import socket
from typing import Any, Callable, NamedTuple, Sequence
import zipfile

from absl import logging
from jaxtyping import Shaped, UInt64
import numpy as np

from odin_jax.shared import files, png, schema, storage, tfrecord

FOLDER = '.records_index'
# Of what is written here; another one is made again.
_VERSION = 1


class Index(NamedTuple):
  """What is known of the records of a shard, or of several.

  Attributes:
    rows: a structured array; `is_read` is False of damaged records, whose other
      columns mean nothing.
    video_ids: see `rows['video_id']`.
  """

  rows: Shaped[np.ndarray, 'n']
  video_ids: Shaped[np.ndarray, 'v']

  def select(self, chosen: Shaped[np.ndarray, 'm']) -> 'Index':
    """Of some of the records."""
    return self._replace(rows=self.rows[chosen])


def joined(indices: Sequence[Index]) -> Index:
  """The index of several shards, in their order."""
  video_ids, numbers = np.unique(
    np.concatenate([index.video_ids for index in indices]), return_inverse=True
  )
  rows = np.concatenate([index.rows for index in indices])
  start = position = 0
  for index in indices:
    own = rows[position : position + len(index.rows)]
    own['video_id'] = numbers[start : start + len(index.video_ids)][
      own['video_id']
    ]
    start += len(index.video_ids)
    position += len(index.rows)
  return Index(rows, video_ids)


def read_frames(
  folder: storage.Folder, name: str
) -> UInt64[np.ndarray, 'n 2'] | None:
  """Where the records of a shard are; None where no index says it.

  Args:
    folder: that has the shard.
    name: of the shard.
  """
  return _read(folder, name, lambda kept: kept['frames'])


def read(
  folder: storage.Folder, name: str, schema_of: schema.Schema
) -> Index | None:
  """The index of a shard; None where there is none.

  Args:
    folder: that has the shard.
    name: of the shard.
    schema_of: the kind of its records.
  """
  index = _read(
    folder, name, lambda kept: Index(kept['rows'], kept['video_ids'])
  )
  is_of_kind = index and index.rows.dtype == _columns(schema_of)
  return index if is_of_kind else None


def _read(
  folder: storage.Folder, name: str, take: Callable[[Any], Any]
) -> Any | None:
  """What is taken of the file of a shard; None where none is of the shard."""
  stamp = None
  for place in _places(folder):
    path = place / f'{name}.npz'
    if not os.path.isfile(path):
      continue
    stamp = stamp or _stamp(folder.file(name))
    try:
      with np.load(path) as kept:
        if str(kept['stamp']) == stamp:
          return take(kept)
    # What is cut or damaged, or not of this code.
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
      continue
  return None


def make(
  folder: storage.Folder,
  name: str,
  records: tfrecord.RecordFile,
  schema_of: schema.Schema,
) -> Index:
  """Reads all records of a shard, and keeps their index."""
  # Before: what is written meanwhile makes it another shard.
  stamp = _stamp(records.file)
  rows = np.zeros(len(records), _columns(schema_of))
  numbers: dict[str, int] = {}
  for row, data in zip(rows, records.in_order(), strict=True):
    try:
      values = None if data is None else tfrecord.decode_example(data)
      if values is not None:
        _fill(row, values, schema_of, numbers)
        row['is_read'] = True
    # No record of this schema: whoever reads it says so.
    except (ValueError, KeyError, TypeError, IndexError, AttributeError):
      pass
  index = Index(rows, np.array(list(numbers), str))
  content = {'stamp': stamp, 'frames': records.frames, **index._asdict()}
  for place in _places(folder):
    if _write(place / f'{name}.npz', content):
      break
  return index


def _fill(
  row: Any,
  values: dict[str, list[Any]],
  schema_of: schema.Schema,
  numbers: dict[str, int],
) -> None:
  """Sets a row to what an example says.

  Raises:
    ValueError, KeyError, TypeError, IndexError or AttributeError: it is no
      record of this schema.
  """
  for name, feature in schema_of.features.items():
    if name == 'video_id':
      video_id = values[name][0].decode()
      row[name] = numbers.setdefault(video_id, len(numbers))
    elif _is_map(feature):
      row[name] = 0
      if name in values:
        row[name] = png.check_header(
          values[name][0], bits=feature.bits, aspect=feature.aspect
        )
    elif feature.kind in ('float', 'int'):
      if feature.optional and name not in values:
        row[name] = np.nan
        continue
      if not all(map(math.isfinite, values[name])):
        raise ValueError(f'{name}: not finite')
      if feature.shape:
        row[name] = np.reshape(values[name], feature.shape)
      else:
        (row[name],) = values[name]


def _is_map(feature: schema.Feature) -> bool:
  return feature.kind == 'bytes' and feature.encoding == 'png'


def _columns(schema_of: schema.Schema) -> np.dtype:
  columns: list[tuple[Any, ...]] = [('is_read', '?'), ('video_id', 'i8')]
  for name, feature in schema_of.features.items():
    if feature.kind in ('float', 'int'):
      columns.append(
        (name, 'f4' if feature.kind == 'float' else 'i8', feature.shape)
      )
    elif _is_map(feature):
      columns.append((name, 'i4'))
  return np.dtype(columns)


def _stamp(file: storage.File) -> str:
  return f'{_VERSION}: {file.stamp()}'


def _places(folder: storage.Folder) -> list[pathlib.Path]:
  """Where the indices of a folder may be kept, the best first."""
  cache = files.cache_folder() / FOLDER[1:] / folder.digest()
  if storage.is_address(folder.path):
    return [cache]
  return [folder.path / FOLDER, cache]


def _write(path: pathlib.Path, content: dict[str, Any]) -> bool:
  """Whether a file could be written."""
  temporary = path.with_name(
    f'{files.TEMPORARY}{socket.gethostname()}.{os.getpid()}.{path.name}'
  )
  try:
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez(temporary, **content)
    os.replace(temporary, path)
  except OSError as error:
    logging.info('%s: not kept (%s)', path, error.strerror)
    return False
  finally:
    with contextlib.suppress(OSError):
      temporary.unlink()
  return True
