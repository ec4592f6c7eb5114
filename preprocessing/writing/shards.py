"""A finished folder of records: its shards, its manifest and its ledger.

    odin_pairs-train.tfrecord-...     shards per split
    features.json, dataset_info.json  for `tfds.builder_from_directory`
    manifest.json                     config, versions, counts, checksums
    ledger.jsonl                      what was dropped, where and why

`merging` makes them of the parts of videos, `dropping` takes videos out.
"""

import array
import itertools
import json
import math
import os
import pathlib
import re
import shutil
from typing import Any, Collection, Iterable, Iterator, Mapping

from odin_jax.shared import (
  errors,
  files,
  record_folder,
  record_index,
  schema,
  tfrecord,
)
from preprocessing.writing import parts

# Known to whoever reads records, too.
MANIFEST = record_folder.MANIFEST
LEDGER = 'ledger.jsonl'
_SHARD_BYTES = 64 * 2**20
_MAX_SHARDS = 1024


def read_manifest(output: str | os.PathLike[str]) -> dict[str, Any]:
  """The manifest of a folder of records.

  Raises:
    errors.UserError: there is none, or it is damaged.
  """
  path = files.require_file(
    pathlib.Path(output) / MANIFEST, 'the manifest of a finished run'
  )
  try:
    return json.loads(path.read_text())
  except ValueError as error:
    raise _damaged(path, error) from error


def _damaged(path: pathlib.Path, error: object) -> errors.UserError:
  return errors.UserError(f'{path}: damaged ({error}); run the pipeline again')


def read_ledger(output: str | os.PathLike[str]) -> list[dict[str, Any]]:
  """The rows of a folder's ledger.

  Raises:
    errors.UserError: there is none, or it is damaged.
  """
  path = files.require_file(
    pathlib.Path(output) / LEDGER, 'the ledger of a finished run'
  )
  try:
    return [json.loads(line) for line in path.read_text().splitlines()]
  except ValueError as error:
    raise _damaged(path, error) from error


def write_ledger(
  output: pathlib.Path, rows: Iterable[Mapping[str, Any]]
) -> None:
  """Writes the ledger that `read_ledger` reads."""
  with files.atomic_path(output / LEDGER) as temporary:
    lines = (json.dumps(row, sort_keys=True) + '\n' for row in rows)
    temporary.write_text(''.join(lines))


class SplitRecords:
  """The records of one split in their final order; one file open at a time.

  Attributes:
    bytes: length of all records.
  """

  def __init__(self) -> None:
    self.bytes = 0
    self._files: list[tuple[pathlib.Path, array.array]] = []

  def add(self, path: pathlib.Path, position: int, size: int) -> None:
    if not self._files or self._files[-1][0] != path:
      # Four bytes per record, for there may be many millions.
      self._files.append((path, array.array('I')))
    self._files[-1][1].append(position)
    self.bytes += size

  def __len__(self) -> int:
    return sum(len(positions) for _, positions in self._files)

  def __iter__(self) -> Iterator[bytes]:
    for path, positions in self._files:
      file = tfrecord.RecordFile(path)
      for position in positions:
        yield file[position]


def by_split(
  paths: Iterable[pathlib.Path], without: Collection[str] = ()
) -> dict[str, SplitRecords]:
  """The records of all files, less those of some videos."""
  records_of = {split: SplitRecords() for split in schema.SPLITS}
  for path in paths:
    file = tfrecord.RecordFile(path)
    for position in range(len(file)):
      record = file[position]
      features = tfrecord.decode_example(record)
      (video_id,), (split,) = features['video_id'], features['split']
      if video_id.decode() not in without:
        records_of[split.decode()].add(path, position, len(record))
  return records_of


def write(
  output: pathlib.Path,
  records_of: Mapping[str, SplitRecords],
  num_shards: int | None = None,
  schema_of: schema.Schema = schema.PAIRS,
) -> dict[str, dict[str, Any]]:
  """Writes the shards of all splits.

  Args:
    output: the folder.
    records_of: the records of every split.
    num_shards: per split; by default so many that none is large.
    schema_of: the kind of the records.

  Returns:
    for the manifest, `split`, `records`, `bytes` and `sha256` of each shard.
  """
  shards = {}
  for split in schema.SPLITS:
    shards.update(
      _write_split(output, split, records_of[split], num_shards, schema_of)
    )
  return shards


def _write_split(
  output: pathlib.Path,
  split: str,
  split_records: SplitRecords,
  num_shards: int | None,
  schema_of: schema.Schema,
) -> dict[str, dict[str, Any]]:
  """Contiguous, equally long shards; a shard that is the same stays."""
  total = len(split_records)
  if not total:
    return {}
  if num_shards is None:
    num_shards = min(math.ceil(split_records.bytes / _SHARD_BYTES), _MAX_SHARDS)
  count = max(1, min(num_shards, total))
  limits = [total * shard // count for shard in range(count + 1)]
  records = iter(split_records)
  shards = {}
  for shard, (low, high) in enumerate(zip(limits, limits[1:])):
    path = output / schema_of.shard_name(split, shard, count)
    # Named unlike a shard while it is written: readers count the shards.
    temporary = output / '.tmp-shard'
    tfrecord.write_file(temporary, itertools.islice(records, high - low))
    digest = parts.sha256(temporary)
    if path.is_file() and parts.sha256(path) == digest:
      temporary.unlink()
    else:
      os.replace(temporary, path)
    shards[path.name] = {
      'split': split,
      'records': high - low,
      'bytes': path.stat().st_size,
      'sha256': digest,
    }
  return shards


def optional_features(
  records_of: Mapping[str, SplitRecords],
  schema_of: schema.Schema = schema.PAIRS,
) -> frozenset[str]:
  """Names of the optional features, which all records have or none has."""
  records = itertools.chain.from_iterable(records_of.values())
  first = next(records, None)
  if first is None:
    return frozenset()
  return schema_of.optional_in(tfrecord.decode_example(first))


def remove(output: pathlib.Path, *, keep: Collection[str]) -> None:
  """Removes the shards that are not to be kept, and what readers know of any."""
  shutil.rmtree(output / record_index.FOLDER, ignore_errors=True)
  names = '|'.join(kind.name for kind in record_folder.KINDS)
  pattern = re.compile(rf'({names})-\w+\.tfrecord-\d{{5}}-of-\d{{5}}')
  for path in output.iterdir():
    if pattern.fullmatch(path.name) and path.name not in keep:
      path.unlink()
