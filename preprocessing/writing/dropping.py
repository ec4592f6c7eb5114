"""Videos taken out of finished records, because someone asked for it.

They leave the files of the folder as if they had never been in, but for their
row in the ledger. They stay in dropped_ids.txt, so that no later merge brings
them back:

    .tmp-drop/  the folder's new files, while they are written
    .drop/      the same when all are there; they then replace the old ones

Until the second name is there nothing has changed; from then on all that is
left to do can be done, and done again, from what is in it.
"""

import os
import pathlib
import shutil
from typing import Any, Collection, Iterable, Mapping, Sequence

from odin_jax.shared import (
  errors,
  files,
  panorama_schema,
  progress,
  record_folder,
  schema,
  tfrecord,
)
from preprocessing import ids
from preprocessing.writing import (
  panorama_index,
  parts,
  shards,
  tfds_metadata,
)

# Stage and reason of the ledger row that stays of a video.
STAGE, REASON = 'request', 'dropped on request'
_STAGED = '.tmp-drop'
_READY = '.drop'


def drop(
  output: str | os.PathLike[str], video_ids: Collection[str]
) -> dict[str, Any]:
  """Takes videos out of a folder of records.

  The shards become those of a run that never had these videos. For a time
  they take twice their space. The panoramas that the folder keeps of them
  go first, as if this had been asked of their folder.

  Args:
    output: the folder; its parts need not be there.
    video_ids: which videos; those that are not there are counted.

  Returns:
    the new manifest; `dropped_on_request` are the videos that were there, on
    this or an earlier request, and `absent_on_request` counts the others.

  Raises:
    errors.UserError: no record would be left, or the folder is damaged; then
      nothing has changed.
  """
  output = pathlib.Path(output)
  finish_drop(output)
  old = shards.read_manifest(output)
  drop_ids = ids.read_dropped(output) | frozenset(video_ids)
  videos = [
    video for video in old['videos'] if video['video_id'] not in drop_ids
  ]
  if not any(video['records'] for video in videos):
    raise errors.UserError(
      f'{output}: no record would be left without these videos; '
      'remove the whole folder'
    )
  panoramas = output / panorama_schema.FOLDER
  if panoramas.is_dir():
    drop(panoramas, video_ids)
  staged = output / _STAGED
  staged.mkdir()
  try:
    manifest = _write_staged(output, staged, old, videos, drop_ids)
    staged.rename(output / _READY)
  finally:
    if staged.is_dir():
      shutil.rmtree(staged)
  finish_drop(output)
  return manifest


def _write_staged(
  output: pathlib.Path,
  staged: pathlib.Path,
  old: Mapping[str, Any],
  videos: Sequence[Mapping[str, Any]],
  drop_ids: frozenset[str],
) -> dict[str, Any]:
  """Writes all files of a folder that change without some videos.

  Args:
    output: the folder of records.
    staged: where to write.
    old: the manifest.
    videos: its entries of the videos that stay.
    drop_ids: the videos that go.

  Returns:
    the new manifest.
  """
  present = [video['video_id'] for video in old['videos']]
  rows, removed = ledger_without(
    shards.read_ledger(output), drop_ids, present=present
  )
  entries, counts = old['shards'], {}
  if len(videos) < len(present):
    paths = [_checked(output, name, entry) for name, entry in entries.items()]
    records_of = shards.by_split(
      progress.each(paths, 'shard', desc='reading'), without=drop_ids
    )
    schema_of = record_folder.kind(output)
    entries = shards.write(staged, records_of, schema_of=schema_of)
    counts = {split: len(records_of[split]) for split in schema.SPLITS}
    optional = shards.optional_features(records_of, schema_of)
    tfds_metadata.write(staged, entries, optional, schema_of)
    if schema_of is panorama_schema.PANORAMAS:
      panorama_index.write(staged, records_of)
  counts |= {'videos': len(videos), 'dropped': len(rows)}
  manifest = {
    **old,
    'counts': {**old['counts'], **counts},
    'videos': videos,
    'shards': entries,
    'dropped_on_request': removed,
    'absent_on_request': len(drop_ids) - len(removed),
  }
  shards.write_ledger(staged, rows)
  ids.write_dropped(staged, drop_ids)
  files.write_json(staged / shards.MANIFEST, manifest)
  return manifest


def finish_drop(output: str | os.PathLike[str]) -> None:
  """Finishes what a `drop` that was killed had begun, or undoes it."""
  output = pathlib.Path(output)
  parts.remove_scratch(output)
  if (output / _STAGED).is_dir():
    shutil.rmtree(output / _STAGED)
  ready = output / _READY
  if not ready.is_dir():
    return
  names = {path.name for path in ready.iterdir()}
  # The manifest goes last: without it here all has been done.
  if shards.MANIFEST in names:
    entries = shards.read_manifest(ready)['shards']
    # Old shards go before new ones come, so that nobody reads a mixture.
    shards.remove(output, keep=entries.keys() - names)
    # Where this list has moved already, this had been done.
    parts.remove(output, ids.read_dropped(ready))
    for name in (*sorted(names - {shards.MANIFEST}), shards.MANIFEST):
      os.replace(ready / name, output / name)
  ready.rmdir()


def ledger_without(
  rows: Iterable[Mapping[str, Any]],
  drop_ids: Collection[str],
  *,
  present: Iterable[str],
) -> tuple[list[Mapping[str, Any]], list[str]]:
  """Ledger rows with one for each video that was taken out.

  Args:
    rows: of the ledger.
    drop_ids: which videos are to go.
    present: videos that may have no row.

  Returns:
    the rows, and which of the videos have been here.
  """
  rows = list(rows)
  known = {row['video_id'] for row in rows}.union(present)
  removed = sorted(known.intersection(drop_ids))
  rows = [row for row in rows if row['video_id'] not in drop_ids]
  row = {'stage': STAGE, 'reason': REASON}
  return rows + [{'video_id': name, **row} for name in removed], removed


def _checked(
  output: pathlib.Path, name: str, entry: Mapping[str, Any]
) -> pathlib.Path:
  """The path of a shard that is as long as the manifest says."""
  path = files.require_file(output / name, 'a shard of the manifest')
  if path.stat().st_size != entry['bytes']:
    raise tfrecord.CorruptRecordError(
      f'{path}: {path.stat().st_size} bytes, the manifest says '
      f'{entry["bytes"]}; make or copy the records again'
    )
  return path
