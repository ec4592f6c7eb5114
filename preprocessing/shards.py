"""Parts of videos to TFRecord shards, with all that describes them.

The parts are merged in the order of the videos, which depends on nothing but
the records:

    odin_pairs-train.tfrecord-...     shards per split
    features.json, dataset_info.json  for `tfds.builder_from_directory`
    manifest.json                     config, versions, counts, checksums
    ledger.jsonl                      what was dropped, where and why
"""

import importlib.metadata
import json
import math
import os
import pathlib
import re
from typing import Any, Iterable, Mapping, Sequence

from odin_jax.shared import binary, schema, tfrecord
from preprocessing import parts, tfds_metadata

_SHARD_BYTES = 64 * 2**20
_MAX_SHARDS = 1024
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
    video_ids: whose parts to merge, in this order.
    config: goes into the manifest.
    tool: the command that made the records.
    extra_dropped: ledger rows of what has no part, with `video_id`.
    num_shards: per split; by default so many that none is large.

  Returns:
    the manifest.

  Raises:
    binary.UserError: a part is missing or damaged.
  """
  output = pathlib.Path(output)
  notes = {
    video_id: parts.read_note(output, video_id) for video_id in video_ids
  }
  merged = _by_split(output, notes)
  shards = {}
  for split in schema.SPLITS:
    shards.update(_write_shards(output, split, merged[split], num_shards))
  _remove_leftovers(output, keep=shards.keys())
  tfds_metadata.write(output, shards)
  ledger = [row for note in notes.values() for row in note['dropped']]
  ledger += extra_dropped
  with binary.atomic_path(output / 'ledger.jsonl') as temporary:
    rows = (json.dumps(row, sort_keys=True) + '\n' for row in ledger)
    temporary.write_text(''.join(rows))
  manifest = {
    'tool': tool,
    'schema_version': schema.SCHEMA_VERSION,
    'versions': _versions(),
    'config': dict(config),
    'counts': {
      'videos': len(notes),
      'dropped': len(ledger),
      **{split: len(merged[split]) for split in schema.SPLITS},
    },
    'videos': [
      {'video_id': video_id, **note['summary'], 'records': note['records']}
      for video_id, note in notes.items()
    ],
    'shards': shards,
  }
  binary.write_json(output / 'manifest.json', manifest)
  return manifest


class _Merged(Sequence[bytes]):
  """The records of one split in their final order; one part open at a time."""

  def __init__(self, output: pathlib.Path):
    self._output = output
    self._places: list[tuple[str, int]] = []
    self._open: tuple[str, tfrecord.RecordFile] | None = None

  def add(self, video_id: str, position: int) -> None:
    self._places.append((video_id, position))

  def __len__(self) -> int:
    return len(self._places)

  def __getitem__(self, index: int) -> bytes:
    video_id, position = self._places[index]
    if self._open is None or self._open[0] != video_id:
      part, _ = parts.paths(self._output, video_id)
      self._open = video_id, tfrecord.RecordFile(part)
    return self._open[1][position]


def _by_split(
  output: pathlib.Path, notes: Mapping[str, Mapping[str, Any]]
) -> dict[str, _Merged]:
  merged = {split: _Merged(output) for split in schema.SPLITS}
  for video_id, note in notes.items():
    # A file without records has no frame to index.
    if not note['records']:
      continue
    file = tfrecord.RecordFile(parts.paths(output, video_id)[0])
    for position in range(len(file)):
      (split,) = tfrecord.decode_example(file[position])['split']
      merged[split.decode()].add(video_id, position)
  return merged


def _write_shards(
  output: pathlib.Path,
  split: str,
  merged: _Merged,
  num_shards: int | None,
) -> dict[str, dict[str, Any]]:
  """Contiguous, equally long shards; a shard that is the same stays."""
  if not merged:
    return {}
  if num_shards is None:
    size = sum(len(record) for record in merged)
    num_shards = min(math.ceil(size / _SHARD_BYTES), _MAX_SHARDS)
  count = max(1, min(num_shards, len(merged)))
  limits = [len(merged) * shard // count for shard in range(count + 1)]
  shards = {}
  for shard, (low, high) in enumerate(zip(limits, limits[1:])):
    path = output / schema.shard_name(split, shard, count)
    # Named unlike a shard while it is written: readers count the shards.
    temporary = output / '.tmp-shard'
    tfrecord.write_file(temporary, (merged[at] for at in range(low, high)))
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


def _remove_leftovers(output: pathlib.Path, *, keep: Iterable[str]) -> None:
  """Removes shards of an earlier merge that are not of this one."""
  pattern = re.compile(
    rf'{schema.DATASET_NAME}-\w+\.tfrecord-\d{{5}}-of-\d{{5}}'
  )
  keep = set(keep)
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
