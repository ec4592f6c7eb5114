"""Posed pairs to TFRecord shards, with TFDS metadata, manifest and ledger.

Each video's records go to a part of their own as soon as they are known, so
that a run that was stopped goes on where it was. At the end the parts are
merged into shards, in the order of the videos, which depends on nothing but
the records:

    parts/VIDEO_ID.part, .json        records of a video; its figures
    odin_pairs-train.tfrecord-...     shards per split
    features.json, dataset_info.json  for `tfds.builder_from_directory`
    manifest.json                     config, versions, counts, checksums
    ledger.jsonl                      what was dropped, where and why
"""

import hashlib
import importlib.metadata
import json
import math
import os
import pathlib
import re
from typing import Any, Iterable, Iterator, Mapping, Sequence

import cv2
from jaxtyping import UInt8
import numpy as np

from odin_jax.shared import binary, schema, tfrecord
from preprocessing import tfds_metadata

_JPEG_QUALITY = 95
_SHARD_BYTES = 64 * 2**20
_MAX_SHARDS = 1024
_VERSIONS_OF = ('numpy', 'opencv-python-headless', 'av', 'pycolmap', 'torch')
SPLIT_BY = ('video', 'time')
Path = str | os.PathLike[str]


def encode_jpeg(image: UInt8[np.ndarray, 'h w 3']) -> bytes:
  """An RGB image as JPEG, quality 95."""
  options = [cv2.IMWRITE_JPEG_QUALITY, _JPEG_QUALITY]
  _, data = cv2.imencode('.jpg', image[..., ::-1], options)
  return data.tobytes()


def _uniform(text: str) -> float:
  """A number in [0, 1) that depends on the text alone."""
  digest = hashlib.sha256(text.encode()).digest()
  return int.from_bytes(digest[:6], 'big') / 2**48


def split_frames(
  video_id: str, num_frames: int, *, split_by: str, test_fraction: float
) -> list[str]:
  """The split of every frame of a video.

  Frame pairs whose frames differ in split belong to neither: they have to be
  dropped, so that no test record shares a frame with training.

  Args:
    video_id: its hash decides, so that other videos change nothing.
    num_frames: frames of the video, in order of time.
    split_by: `video`: all frames alike; `time`: one contiguous block of test
      frames, at a place that the hash decides.
    test_fraction: expected share of test videos, or share of test frames.

  Raises:
    binary.UserError: an unknown `split_by`, or a share outside 0..1.
  """
  if split_by not in SPLIT_BY or not 0 <= test_fraction <= 1:
    raise binary.UserError(
      f'split_by={split_by!r}, test_fraction={test_fraction}: give one of '
      f'{SPLIT_BY} and a share in 0..1'
    )
  position = _uniform(f'split of {video_id}')
  if split_by == 'video':
    return ['test' if position < test_fraction else 'train'] * num_frames
  # Less a little: 0.1 * 30 may exceed 3 by a rounding error.
  test = math.ceil(test_fraction * num_frames - 1e-9)
  first = int(position * (num_frames - test + 1))
  return [
    'test' if first <= index < first + test else 'train'
    for index in range(num_frames)
  ]


def _part_paths(
  output: Path, video_id: str
) -> tuple[pathlib.Path, pathlib.Path]:
  folder = pathlib.Path(output) / 'parts'
  return folder / f'{video_id}.part', folder / f'{video_id}.json'


def _sha256(path: pathlib.Path) -> str:
  with open(path, 'rb') as file:
    return hashlib.file_digest(file, 'sha256').hexdigest()


def write_part(
  output: Path,
  video_id: str,
  *,
  records: Iterable[Mapping[str, Any]],
  summary: Mapping[str, Any],
  dropped: Sequence[Mapping[str, Any]],
  fingerprint: str,
) -> None:
  """Writes all that is known of one video, in one piece.

  Args:
    output: the run's output folder.
    video_id: the video's stem.
    records: its records (`odin_jax.shared.schema`).
    summary: its figures, for the manifest.
    dropped: rows for the ledger, with at least `stage` and `reason`.
    fingerprint: digest of all that the records depend on.

  Raises:
    schema.SchemaError: a record that does not follow the schema, or that
      belongs to another video.
  """
  part, note = _part_paths(output, video_id)
  part.parent.mkdir(parents=True, exist_ok=True)
  with binary.atomic_path(part) as temporary:
    count = tfrecord.write_file(temporary, _encoded(records, video_id))
  # The note comes last: with it the part is done.
  binary.write_json(
    note,
    {
      'fingerprint': fingerprint,
      'records': count,
      'sha256': _sha256(part),
      'summary': dict(summary),
      'dropped': [_ledger_row(video_id, row) for row in dropped],
    },
  )


def _encoded(
  records: Iterable[Mapping[str, Any]], video_id: str
) -> Iterator[bytes]:
  for record in records:
    encoded = schema.encode(record)
    if record['video_id'] != video_id:
      raise schema.SchemaError(
        f'video_id: {record["video_id"]!r} in the part of {video_id!r}'
      )
    yield encoded


def _ledger_row(video_id: str, row: Mapping[str, Any]) -> dict[str, Any]:
  missing = {'stage', 'reason'} - row.keys()
  if missing:
    raise ValueError(f'ledger row {dict(row)} lacks {sorted(missing)}')
  return {'video_id': video_id, **row}


def part_is_done(output: Path, video_id: str, fingerprint: str) -> bool:
  """Whether the part is there, whole, and of this fingerprint."""
  part, note = _part_paths(output, video_id)
  if not (part.is_file() and note.is_file()):
    return False
  try:
    content = json.loads(note.read_text())
  except ValueError:
    return False
  if content['fingerprint'] != fingerprint:
    return False
  return content['sha256'] == _sha256(part)


def part_size(output: Path, video_id: str) -> int:
  """Number of records in a part that is done."""
  _, note = _part_paths(output, video_id)
  return json.loads(note.read_text())['records']


def merge_parts(
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
  notes = {video_id: _read_note(output, video_id) for video_id in video_ids}
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


def _read_note(output: pathlib.Path, video_id: str) -> dict[str, Any]:
  part, note = _part_paths(output, video_id)
  binary.require_file(part, 'the records of this video')
  binary.require_file(note, 'the note on these records')
  try:
    content = json.loads(note.read_text())
  except ValueError as error:
    raise tfrecord.CorruptRecordError(
      f'{note}: damaged ({error}); delete it and run again'
    ) from error
  if content['sha256'] != _sha256(part):
    raise tfrecord.CorruptRecordError(
      f'{part}: its checksum differs; delete it and run again'
    )
  return content


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
      part, _ = _part_paths(self._output, video_id)
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
    file = tfrecord.RecordFile(_part_paths(output, video_id)[0])
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
    digest = _sha256(temporary)
    if path.is_file() and _sha256(path) == digest:
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
