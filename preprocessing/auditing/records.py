"""A finished folder of records, as its judges read it."""

import os
from typing import Any, Collection, Iterable, Iterator, NamedTuple

from odin_jax.shared import files, record_folder, schema
from preprocessing.writing import shards


class Place(NamedTuple):
  """Where a record is."""

  split: str
  index: int


class Records:
  """The records of a folder, without those of some videos.

  Args:
    path: the folder.
    excluded: ids of videos that are passed over.

  Attributes:
    path: the folder.
    manifest: its manifest; `videos` without the excluded ones.
    ledger: the rows of its ledger, likewise.

  Raises:
    errors.UserError: no such folder, or its manifest or ledger is missing or
      damaged.
  """

  def __init__(
    self, path: str | os.PathLike[str], excluded: Collection[str] = ()
  ):
    self.path = files.require_folder(path, 'a folder of records')
    self._excluded = frozenset(excluded)
    self.manifest = shards.read_manifest(self.path)
    self.manifest['videos'] = self._kept(self.manifest['videos'])
    self.ledger = self._kept(shards.read_ledger(self.path))
    self._folders = {
      split: record_folder.RecordFolder(self.path, split)
      for split in schema.SPLITS
      if self.manifest['counts'][split]
    }

  def _kept(self, rows: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    return [row for row in rows if row.get('video_id') not in self._excluded]

  def places(self) -> Iterator[tuple[Place, schema.Record]]:
    """All records with their places, split by split."""
    for split, folder in self._folders.items():
      for index, record in enumerate(folder):
        if record['video_id'] not in self._excluded:
          yield Place(split, index), record

  def __iter__(self) -> Iterator[schema.Record]:
    return (record for _, record in self.places())

  def __getitem__(self, place: Place) -> schema.Record:
    return self._folders[place.split][place.index]
