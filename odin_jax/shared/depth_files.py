"""Files of the true depth of records, where it is known.

`preprocessing.true_depth` writes them and `odin_jax.evaluate` reads them: one
per shard and size, with the digest of the shard, so that depths of other
records are not taken for those of these. Depths of another size are never made
of them: nearest sampling would shift them by a part of a pixel, and averages
across an edge are of no surface.
"""

import hashlib
import pathlib
from typing import NamedTuple, Sequence

from jaxtyping import Bool, Float
import numpy as np

from odin_jax.shared import errors, files, record_folder, tfrecord

# Rounds by up to 0.05 %, and takes a third of the space of float32.
_STORED = np.float16


class Depths(NamedTuple):
  """What some records show.

  Attributes:
    source_depth: along the optical axis at pixel centres, scene units; inf
      where there is no surface.
    target_depth: likewise.
    target_moving: whether what the target shows there moves between the two
      times.
  """

  source_depth: Float[np.ndarray, '*n s s']
  target_depth: Float[np.ndarray, '*n s s']
  target_moving: Bool[np.ndarray, '*n s s']


def path(
  folder: pathlib.Path, shard: pathlib.Path, size_px: int
) -> pathlib.Path:
  """Where the depths of the records of a shard are."""
  return folder / f'{shard.name}.{size_px}px.npz'


def shard_sha256(shard: pathlib.Path) -> str:
  """What a shard is known by."""
  with open(shard, 'rb') as file:
    return hashlib.file_digest(file, 'sha256').hexdigest()


def write(
  folder: pathlib.Path, shard: pathlib.Path, records: Sequence[Depths]
) -> None:
  """Writes the depths of all records of a shard, which are of one size."""
  depths = Depths(*map(np.stack, zip(*records, strict=True)))
  place = path(folder, shard, depths.source_depth.shape[-1])
  with files.atomic_path(place) as temporary:
    np.savez_compressed(
      temporary,
      source_depth=depths.source_depth.astype(_STORED),
      target_depth=depths.target_depth.astype(_STORED),
      target_moving=depths.target_moving,
      shard_sha256=np.array(shard_sha256(shard)),
    )


def is_written(folder: pathlib.Path, shard: pathlib.Path, size_px: int) -> bool:
  """Whether depths of these very records are there, and whole."""
  try:
    _read(path(folder, shard, size_px), shard, size_px)
  except errors.UserError:
    return False
  return True


def read(
  folder: pathlib.Path,
  records: record_folder.RecordFolder,
  positions: Sequence[int],
  size_px: int,
) -> Depths:
  """The depths of some records.

  Args:
    folder: that `preprocessing.true_depth` wrote.
    records: the folder of records.
    positions: of records in it.
    size_px: of the maps.

  Returns:
    maps in the order of `positions`, depths as float32.

  Raises:
    errors.UserError: no such folder, or it has none of this size or of these
      records, or a file is damaged.
  """
  files.require_folder(folder, 'the true depth of records')
  of_shard: dict[pathlib.Path, Depths] = {}
  rows = []
  for position in positions:
    shard, row = records.place(position)
    if shard not in of_shard:
      of_shard[shard] = _read(path(folder, shard, size_px), shard, size_px)
    rows.append(Depths(*(values[row] for values in of_shard[shard])))
  source, target, moving = map(np.stack, zip(*rows, strict=True))
  return Depths(
    source.astype(np.float32), target.astype(np.float32), moving.astype(bool)
  )


def _read(place: pathlib.Path, shard: pathlib.Path, size_px: int) -> Depths:
  remedy = (
    f'python -m preprocessing.true_depth --records={shard.parent} '
    f'--image_size_px={size_px}'
  )
  files.require_file(place, f'what {remedy} writes')
  try:
    with np.load(place) as archive:
      depths = Depths(*(archive[name] for name in Depths._fields))
      sha256 = str(archive['shard_sha256'])
  # Damaged archives raise BadZipFile, ValueError, EOFError, zlib.error ...
  except Exception as error:  # noqa: BLE001
    raise errors.UserError(
      f'{place}: cannot be read ({error}); write it again: {remedy}'
    ) from error
  if sha256 != shard_sha256(shard):
    raise errors.UserError(
      f'{place}: is not of {shard}, but of other records; give the folder that '
      f'was made of these: {remedy}'
    )
  if fault := _fault(depths, size_px, len(tfrecord.RecordFile(shard))):
    raise errors.UserError(f'{place}: {fault}; write it again: {remedy}')
  return depths


def _fault(depths: Depths, size_px: int, count: int) -> str | None:
  """What is wrong with maps that could be read."""
  if any(maps.shape != (count, size_px, size_px) for maps in depths):
    return f'is not of {count} records and {size_px} px'
  # Also of NaN.
  if not all(np.all(maps > 0) for maps in depths[:2]):
    return 'has depths that are no distances'
  return None
