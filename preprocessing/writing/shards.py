"""Parts of videos to TFRecord shards, with all that describes them.

The parts are merged in the order of the videos, which depends on nothing but
the records:

    odin_pairs-train.tfrecord-...     shards per split
    features.json, dataset_info.json  for `tfds.builder_from_directory`
    manifest.json                     config, versions, counts, checksums
    ledger.jsonl                      what was dropped, where and why

Videos that are taken out later, because someone asked for it, leave these
files as if they had never been in, but for their row in the ledger. They stay
in dropped_ids.txt, so that no later merge brings them back:

    .tmp-drop/  the folder's new files, while they are written
    .drop/      the same when all are there; they then replace the old ones

Until the second name is there nothing has changed; from then on all that is
left to do can be done, and done again, from what is in it.
"""

import array
import importlib.metadata
import itertools
import json
import math
import os
import pathlib
import re
import shutil
from typing import Any, Collection, Iterable, Iterator, Mapping, Sequence

from tqdm import tqdm

from odin_jax.shared import errors, files, schema, tfrecord
from preprocessing import ids
from preprocessing.writing import parts, tfds_metadata

_SHARD_BYTES = 64 * 2**20
_MAX_SHARDS = 1024
_STAGED = '.tmp-drop'
_READY = '.drop'
_MANIFEST = 'manifest.json'
_LEDGER = 'ledger.jsonl'
_VERSIONS_OF = ('numpy', 'opencv-python-headless', 'av', 'pycolmap', 'torch')
Path = str | os.PathLike[str]


def merge(
  output: Path,
  *,
  video_ids: Sequence[str],
  config: Mapping[str, Any],
  tool: str,
  extra_dropped: Sequence[Mapping[str, Any]] = (),
  num_shards: int | None = None,
) -> dict[str, Any]:
  """Merges parts into shards and writes everything that describes them.

  Args:
    output: the run's output folder.
    video_ids: whose parts to merge, in this order; those that were taken out
      of this folder stay out.
    config: goes into the manifest.
    tool: the command that made the records.
    extra_dropped: ledger rows of what has no part, with `video_id`.
    num_shards: per split; by default so many that none is large.

  Returns:
    the manifest.

  Raises:
    errors.UserError: a part is missing or damaged.
  """
  output = pathlib.Path(output)
  finish_drop(output)
  asked = ids.read_dropped(output)
  notes = {
    video_id: parts.read_note(output, video_id)
    for video_id in video_ids
    if video_id not in asked
  }
  # A file without records has no frame to index.
  merged = _by_split(
    parts.paths(output, video_id)[0]
    for video_id, note in notes.items()
    if note['records']
  )
  shards = _write_all(output, merged, num_shards)
  _remove_shards(output, keep=shards)
  parts.remove(output, asked)
  tfds_metadata.write(output, shards, _optional(merged))
  rows = [row for note in notes.values() for row in note['dropped']]
  rows, gone = _without((*rows, *extra_dropped), asked, present=video_ids)
  _write_ledger(output, rows)
  manifest = {
    'tool': tool,
    'schema_version': schema.SCHEMA_VERSION,
    'versions': _versions(),
    'config': dict(config),
    'counts': {
      'videos': len(notes),
      'dropped': len(rows),
      **{split: len(merged[split]) for split in schema.SPLITS},
    },
    'videos': [
      {'video_id': video_id, **note['summary'], 'records': note['records']}
      for video_id, note in notes.items()
    ],
    'shards': shards,
    'dropped_on_request': gone,
    'absent_on_request': len(asked) - len(gone),
  }
  files.write_json(output / _MANIFEST, manifest)
  return manifest


def drop(output: Path, video_ids: Collection[str]) -> dict[str, Any]:
  """Takes videos out of a folder of records.

  The shards become those of a run that never had these videos. For a time
  they take twice their space.

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
  old = read_manifest(output)
  asked = ids.read_dropped(output) | frozenset(video_ids)
  videos = [video for video in old['videos'] if video['video_id'] not in asked]
  if not any(video['records'] for video in videos):
    raise errors.UserError(
      f'{output}: no record would be left without these videos; '
      'remove the whole folder'
    )
  staged = output / _STAGED
  staged.mkdir()
  try:
    manifest = _stage(output, staged, old, videos, asked)
    staged.rename(output / _READY)
  finally:
    if staged.is_dir():
      shutil.rmtree(staged)
  finish_drop(output)
  return manifest


def _stage(
  output: pathlib.Path,
  staged: pathlib.Path,
  old: Mapping[str, Any],
  videos: Sequence[Mapping[str, Any]],
  asked: frozenset[str],
) -> dict[str, Any]:
  """Writes all files of a folder that change without some videos.

  Args:
    output: the folder of records.
    staged: where to write.
    old: the manifest.
    videos: its entries of the videos that stay.
    asked: the videos that go.

  Returns:
    the new manifest.
  """
  present = [video['video_id'] for video in old['videos']]
  rows, gone = _without(read_ledger(output), asked, present=present)
  shards, counts = old['shards'], {}
  if len(videos) < len(present):
    whole = [_checked(output, name, shard) for name, shard in shards.items()]
    merged = _by_split(tqdm(whole, desc='reading', unit='shard'), without=asked)
    shards = _write_all(staged, merged)
    counts = {split: len(merged[split]) for split in schema.SPLITS}
    tfds_metadata.write(staged, shards, _optional(merged))
  counts |= {'videos': len(videos), 'dropped': len(rows)}
  manifest = {
    **old,
    'counts': {**old['counts'], **counts},
    'videos': videos,
    'shards': shards,
    'dropped_on_request': gone,
    'absent_on_request': len(asked) - len(gone),
  }
  _write_ledger(staged, rows)
  ids.write_dropped(staged, asked)
  files.write_json(staged / _MANIFEST, manifest)
  return manifest


def finish_drop(output: Path) -> None:
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
  if _MANIFEST in names:
    shards = read_manifest(ready)['shards']
    # Old shards go before new ones come, so that nobody reads a mixture.
    _remove_shards(output, keep=shards.keys() - names)
    # Where this list has moved already, this had been done.
    parts.remove(output, ids.read_dropped(ready))
    for name in (*sorted(names - {_MANIFEST}), _MANIFEST):
      os.replace(ready / name, output / name)
  ready.rmdir()


def read_manifest(output: Path) -> dict[str, Any]:
  """The manifest of a folder of records.

  Raises:
    errors.UserError: there is none, or it is damaged.
  """
  path = files.require_file(
    pathlib.Path(output) / _MANIFEST, 'the manifest of a finished run'
  )
  try:
    return json.loads(path.read_text())
  except ValueError as error:
    raise _damaged(path, error) from error


def _damaged(path: pathlib.Path, error: object) -> errors.UserError:
  return errors.UserError(f'{path}: damaged ({error}); run the pipeline again')


def read_ledger(output: Path) -> list[dict[str, Any]]:
  """The rows of a folder's ledger.

  Raises:
    errors.UserError: there is none, or it is damaged.
  """
  path = files.require_file(
    pathlib.Path(output) / _LEDGER, 'the ledger of a finished run'
  )
  try:
    return [json.loads(line) for line in path.read_text().splitlines()]
  except ValueError as error:
    raise _damaged(path, error) from error


def _write_ledger(
  output: pathlib.Path, rows: Iterable[Mapping[str, Any]]
) -> None:
  with files.atomic_path(output / _LEDGER) as temporary:
    lines = (json.dumps(row, sort_keys=True) + '\n' for row in rows)
    temporary.write_text(''.join(lines))


def _without(
  rows: Iterable[Mapping[str, Any]],
  asked: Collection[str],
  *,
  present: Iterable[str],
) -> tuple[list[Mapping[str, Any]], list[str]]:
  """Ledger rows with one for each video that was taken out.

  Args:
    rows: of the ledger.
    asked: which videos are to go.
    present: videos that may have no row.

  Returns:
    the rows, and which of the videos have been here.
  """
  rows = list(rows)
  known = {row['video_id'] for row in rows}.union(present)
  gone = sorted(known.intersection(asked))
  rows = [row for row in rows if row['video_id'] not in asked]
  reason = {'stage': 'request', 'reason': 'dropped on request'}
  return rows + [{'video_id': name, **reason} for name in gone], gone


def _checked(
  output: pathlib.Path, name: str, shard: Mapping[str, Any]
) -> pathlib.Path:
  path = files.require_file(output / name, 'a shard of the manifest')
  if path.stat().st_size != shard['bytes']:
    raise tfrecord.CorruptRecordError(
      f'{path}: {path.stat().st_size} bytes, the manifest says '
      f'{shard["bytes"]}; make or copy the records again'
    )
  return path


class _Merged:
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


def _by_split(
  files: Iterable[pathlib.Path], without: Collection[str] = ()
) -> dict[str, _Merged]:
  """The records of all files, less those of some videos."""
  merged = {split: _Merged() for split in schema.SPLITS}
  for path in files:
    file = tfrecord.RecordFile(path)
    for position in range(len(file)):
      record = file[position]
      features = tfrecord.decode_example(record)
      (video_id,), (split,) = features['video_id'], features['split']
      if video_id.decode() not in without:
        merged[split.decode()].add(path, position, len(record))
  return merged


def _optional(merged: Mapping[str, _Merged]) -> frozenset[str]:
  """Names of the optional features, which all records have or none has."""
  records = itertools.chain.from_iterable(merged.values())
  first = next(records, None)
  if first is None:
    return frozenset()
  return schema.optional_in(tfrecord.decode_example(first))


def _write_all(
  output: pathlib.Path,
  merged: Mapping[str, _Merged],
  num_shards: int | None = None,
) -> dict[str, dict[str, Any]]:
  shards = {}
  for split in schema.SPLITS:
    shards.update(_write_shards(output, split, merged[split], num_shards))
  return shards


def _write_shards(
  output: pathlib.Path,
  split: str,
  merged: _Merged,
  num_shards: int | None,
) -> dict[str, dict[str, Any]]:
  """Contiguous, equally long shards; a shard that is the same stays."""
  total = len(merged)
  if not total:
    return {}
  if num_shards is None:
    num_shards = min(math.ceil(merged.bytes / _SHARD_BYTES), _MAX_SHARDS)
  count = max(1, min(num_shards, total))
  limits = [total * shard // count for shard in range(count + 1)]
  records = iter(merged)
  shards = {}
  for shard, (low, high) in enumerate(zip(limits, limits[1:])):
    path = output / schema.shard_name(split, shard, count)
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


def _remove_shards(output: pathlib.Path, *, keep: Collection[str]) -> None:
  """Removes the shards that are not to be kept."""
  pattern = re.compile(
    rf'{schema.DATASET_NAME}-\w+\.tfrecord-\d{{5}}-of-\d{{5}}'
  )
  for path in output.iterdir():
    if pattern.fullmatch(path.name) and path.name not in keep:
      path.unlink()


def _versions() -> dict[str, str]:
  versions = {}
  for package in _VERSIONS_OF:
    try:
      versions[package] = importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
      versions[package] = 'absent'
  return versions
