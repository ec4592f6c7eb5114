"""The records of a finished preprocessing run, by split and position."""

import bisect
import json
import os
import pathlib
import re
from typing import Collection, Iterator

from absl import logging
import numpy as np

from odin_jax.shared import (
  depth_png,
  errors,
  panorama_schema,
  record_filters,
  record_index,
  schema,
  storage,
  tfrecord,
)

# What the run that made a folder says of it.
MANIFEST = 'manifest.json'
# Of a video that is a procedural world, where that is known.
SEED = 'world_seed'
KINDS = (schema.PAIRS, panorama_schema.PANORAMAS)
_WHAT = 'a folder of records'


def kind(path: str | os.PathLike[str]) -> schema.Schema:
  """Of what kind the records of a folder are; pairs where there are none.

  Raises:
    errors.UserError: no such folder, or one that holds records of both kinds.
  """
  names = storage.Folder(path, _WHAT).names()
  kinds = [
    kind
    for kind in KINDS
    if any(re.match(rf'{kind.name}-.*\.tfrecord-', name) for name in names)
  ]
  if len(kinds) > 1:
    raise errors.UserError(
      f'{path}: holds both pairs of views and panoramas; give each a folder of '
      'its own'
    )
  return kinds[0] if kinds else schema.PAIRS


class RecordFolder:
  """A sequence of records: `folder[i]` is the i-th record of its split.

  Records are read, checked and decoded on access. Safe to use from threads and,
  after pickling, from other processes.

  Args:
    path: the output folder of `preprocessing.run` or `preprocessing.worlds`, or
      its address.
    split: `train` or `test`.
    schema_of: the kind of its records.
    filters: records that do not pass are left out; of pairs alone.

  Attributes:
    path: of the folder; an address as text.
    split: see above.

  Raises:
    errors.UserError: no such folder, records of another kind, no shard of this
      split, a missing shard, one that is not as the folder's manifest has it,
      where there is one, or nothing that passes the filters; its subclass
      `tfrecord.CorruptRecordError`: a damaged shard.
  """

  def __init__(
    self,
    path: str | os.PathLike[str],
    split: str,
    schema_of: schema.Schema = schema.PAIRS,
    *,
    filters: record_filters.Filters = record_filters.NONE,
  ):
    self._folder = storage.Folder(path, _WHAT)
    self.path = self._folder.path
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
    names = [name for name in self._folder.names() if pattern.fullmatch(name)]
    if not names:
      raise errors.UserError(
        f'{path}: no {split} records here; make them with preprocessing.run'
      )
    count = int(pattern.fullmatch(names[0])[2])
    expected = [schema_of.shard_name(split, i, count) for i in range(count)]
    if names != expected:
      raise errors.UserError(
        f'{path}: {len(names)} of {count} {split} shards are here; '
        'copy or make the folder again'
      )
    self._names = names
    self._files = [
      tfrecord.RecordFile(
        self._folder.file(name), record_index.read_frames(self._folder, name)
      )
      for name in names
    ]
    _check_manifest(self._folder, dict(zip(names, self._files, strict=True)))
    # Of the first record of each shard, among all.
    self._starts = np.cumsum([0, *map(len, self._files)]).tolist()
    self._num_records = self._starts[-1]
    self._chosen = None
    if filters.limits:
      where = f'{path}: {split}'
      self._chosen = np.flatnonzero(
        filters.passing(self._whole_index().rows, where)
      )
      logging.info(
        '%s: %d of %d records pass config.filters',
        where,
        len(self),
        self._num_records,
      )

  def __len__(self) -> int:
    return self._num_records if self._chosen is None else len(self._chosen)

  def _find(self, index: int) -> tuple[int, int]:
    """The number of the shard that holds a record, and its position there."""
    # As of a list: this ends loops over a folder.
    if not -len(self) <= index < len(self):
      raise IndexError(index)
    index = range(len(self))[index]
    row = index if self._chosen is None else int(self._chosen[index])
    shard = bisect.bisect_right(self._starts, row) - 1
    return shard, row - self._starts[shard]

  @property
  def shards(self) -> dict[str, tfrecord.RecordFile]:
    """The files by their names, in their order."""
    return dict(zip(self._names, self._files, strict=True))

  def place(self, index: int) -> tuple[pathlib.Path | str, int]:
    """The shard that holds a record, and its position there."""
    shard, position = self._find(index)
    return self._files[shard].path, position

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
    shard, position = self._find(index)
    try:
      record = self._schema.decode(self._files[shard][position], names)
      if record['split'] != self.split:
        raise schema.SchemaError(f'split: {record["split"]}, not {self.split}')
      return record
    except schema.SchemaError as error:
      raise tfrecord.CorruptRecordError(
        f'{self._files[shard].path}: record {position} is not of schema '
        f'{schema.SCHEMA_VERSION} ({error}); make the records again with '
        'preprocessing.run'
      ) from error

  def world_seeds(self) -> dict[str, int]:
    """Seeds of the worlds that were filmed, by `video_id`, where known."""
    content = self._folder.read(MANIFEST)
    videos = json.loads(content).get('videos', []) if content else []
    return {video['video_id']: video[SEED] for video in videos if SEED in video}

  def first(self) -> schema.Record:
    """The first record that is not damaged.

    Raises:
      tfrecord.CorruptRecordError: all are.
    """
    for index in range(len(self)):
      try:
        return self[index]
      except tfrecord.CorruptRecordError:
        if index == len(self) - 1:
          raise
    raise IndexError('no records')

  def index(self) -> record_index.Index:
    """What the records say beside their pictures; made where there is none."""
    whole = self._whole_index()
    return whole if self._chosen is None else whole.select(self._chosen)

  def _whole_index(self) -> record_index.Index:
    indices = []
    for name, file in zip(self._names, self._files, strict=True):
      index = record_index.read(self._folder, name, self._schema)
      if index is None:
        index = record_index.make(self._folder, name, file, self._schema)
      if len(index.rows) != len(file):
        raise errors.UserError(
          f'{file.path}: has changed since it was opened; start again'
        )
      indices.append(index)
    return record_index.joined(indices)

  def depth_px(self) -> int | None:
    """Side of the first map of depth of pairs; None where there is none."""
    columns = [f'{side}/depth' for side in ('source', 'target')]
    # Most folders say so in their first record.
    first = self.first()
    for name in columns:
      if name in first:
        return depth_png.side_px(first[name])
    rows = self.index().rows
    sides = np.stack([rows[name] for name in columns], axis=-1)
    known = sides[(sides > 0) & rows['is_read'][:, None]]
    return int(known[0]) if len(known) else None

  def __iter__(self) -> Iterator[schema.Record]:
    return (self[index] for index in range(len(self)))


def _check_manifest(
  folder: storage.Folder, shards: dict[str, tfrecord.RecordFile]
) -> None:
  """Raises unless shards have as many records as the manifest says.

  A shard that was cut between two records is sound by itself.
  """
  path = folder.place(MANIFEST)
  content = folder.read(MANIFEST)
  if content is None:
    return
  try:
    manifest = json.loads(content)
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
      f'{schema.SCHEMA_VERSION}; make the records again, or use the code that '
      'made them'
    )
  for name, shard in shards.items():
    count = counts.get(name)
    if count != len(shard):
      raise errors.UserError(
        f'{shard.path}: {len(shard)} records, {count or 0} in {MANIFEST}; copy '
        'the folder again, or run again what made it'
      )
