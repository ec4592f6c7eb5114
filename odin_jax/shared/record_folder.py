"""The records of a finished preprocessing run, by split and position."""

import json
import os
import pathlib
import re
from typing import Collection, Iterator

from odin_jax.shared import errors, files, panorama_schema, schema, tfrecord

# What the run that made a folder says of it.
MANIFEST = 'manifest.json'
KINDS = (schema.PAIRS, panorama_schema.PANORAMAS)


def kind(path: str | os.PathLike[str]) -> schema.Schema:
  """Of what kind the records of a folder are; pairs where there are none.

  Raises:
    errors.UserError: no such folder, or one that holds records of both kinds.
  """
  folder = files.require_folder(path, 'a folder of records')
  kinds = [
    kind for kind in KINDS if any(folder.glob(f'{kind.name}-*.tfrecord-*'))
  ]
  if len(kinds) > 1:
    raise errors.UserError(
      f'{path}: holds both pairs of views and panoramas; give each a folder of '
      'its own'
    )
  return kinds[0] if kinds else schema.PAIRS


class RecordFolder:
  """A sequence of records: `folder[i]` is the i-th record of its split.

  Shards are indexed once; records are read, checked and decoded on access.
  Safe to use from threads and, after pickling, from other processes.

  Args:
    path: the output folder of `preprocessing.run` or `preprocessing.worlds`.
    split: `train` or `test`.
    schema_of: the kind of its records.

  Raises:
    errors.UserError: no such folder, records of another kind, no shard of this
      split, a missing shard, or one that is not as the folder's manifest has
      it, where there is one; its subclass `tfrecord.CorruptRecordError`: a
      damaged shard.
  """

  def __init__(
    self,
    path: str | os.PathLike[str],
    split: str,
    schema_of: schema.Schema = schema.PAIRS,
  ):
    self.path = files.require_folder(path, 'a folder of records')
    self.split = split
    self._schema = schema_of
    if kind(path) is not schema_of and schema_of is schema.PAIRS:
      raise errors.UserError(
        f'{path}: holds panoramas, of which views are cut only in training; '
        'give a folder of pairs, such as the one that it lies in'
      )
    pattern = re.compile(
      rf'{schema_of.name}-{split}\.tfrecord-(\d{{5}})-of-(\d{{5}})'
    )
    shards = sorted(
      (entry for entry in self.path.iterdir() if pattern.fullmatch(entry.name)),
      key=lambda entry: entry.name,
    )
    if not shards:
      raise errors.UserError(
        f'{path}: no {split} records here; make them with preprocessing.run'
      )
    count = int(pattern.fullmatch(shards[0].name)[2])
    expected = [schema_of.shard_name(split, i, count) for i in range(count)]
    if [shard.name for shard in shards] != expected:
      raise errors.UserError(
        f'{path}: {len(shards)} of {count} {split} shards are here; '
        'copy or make the folder again'
      )
    self._files = [tfrecord.RecordFile(shard) for shard in shards]
    _check_manifest(self.path, self._files)
    self._index = [
      (file, position)
      for file, records in enumerate(self._files)
      for position in range(len(records))
    ]

  def __len__(self) -> int:
    return len(self._index)

  @property
  def shards(self) -> list[tfrecord.RecordFile]:
    """The files, in their order."""
    return self._files

  def place(self, index: int) -> tuple[pathlib.Path, int]:
    """The shard that holds a record, and its position there."""
    file, position = self._index[index]
    return self._files[file].path, position

  def __getitem__(self, index: int) -> schema.Record:
    return self.read(index)

  def read(
    self, index: int, names: Collection[str] | None = None
  ) -> schema.Record:
    """A record, or what it has of some features; `split` is to be one of them.

    Args:
      index: of the record.
      names: of the features; see `schema.Schema.decode`.
    """
    file, position = self._index[index]
    try:
      record = self._schema.decode(self._files[file][position], names)
      if record['split'] != self.split:
        raise schema.SchemaError(f'split: {record["split"]}, not {self.split}')
      return record
    except schema.SchemaError as error:
      raise errors.UserError(
        f'{self._files[file].path}: record {position} is not of schema '
        f'{schema.SCHEMA_VERSION} ({error}); make the records again with '
        'preprocessing.run'
      ) from error

  def __iter__(self) -> Iterator[schema.Record]:
    return (self[index] for index in range(len(self)))


def _check_manifest(
  folder: pathlib.Path, shards: list[tfrecord.RecordFile]
) -> None:
  """Raises unless shards have as many records as the manifest says.

  A shard that was cut between two records is sound by itself.
  """
  path = folder / MANIFEST
  if not path.is_file():
    return
  try:
    manifest = json.loads(path.read_text())
    version, entries = manifest['schema_version'], manifest['shards']
    counts = {name: entry['records'] for name, entry in entries.items()}
  except (ValueError, KeyError, TypeError, AttributeError) as error:
    raise errors.UserError(
      f'{path}: damaged ({type(error).__name__}: {error}); copy or make the '
      'folder again'
    ) from error
  if version != schema.SCHEMA_VERSION:
    raise errors.UserError(
      f'{path}: records of schema {version}, and this code reads '
      f'{schema.SCHEMA_VERSION}; use the code that made them'
    )
  for shard in shards:
    count = counts.get(shard.path.name)
    if count != len(shard):
      raise errors.UserError(
        f'{shard.path}: {len(shard)} records, {count or 0} in {MANIFEST}; copy '
        'the folder again, or run again what made it'
      )
