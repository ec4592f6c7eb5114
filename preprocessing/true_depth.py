"""The true depth of what held-out records of procedural worlds show.

    python -m preprocessing.true_depth --records=runs/demo/records \\
        --worlds=runs/demo/worlds --output=runs/demo/true_depth

builds the worlds of the test records again and renders what both views of each
record show: depth along the optical axis at pixel centres in the record's scene
units, and which pixels of the target show something that moves between the two
times. `odin_jax.evaluate --truth=` then scores what the source sees and what it
does not apart, and has the predictor `warp`.

--worlds is the folder of the videos that preprocessing.worlds made; records
that it made itself (--pairs) need none. Real videos have no true depth. The
pictures of each world's first record have to look like the world at its pose,
and the poses of every component have to be those of the walk.

Output: one file per shard and size, `SHARD.32px.npz` (see
odin_jax/shared/depth_files.py). Depths at another size are rendered, by the
same command with another --image_size_px, into the same folder. What is there
is not made again.
"""

import sys

# As a file it finds none of the packages below.
if __name__ == '__main__' and not __package__:
  sys.stderr.write('error: type: python -m preprocessing.true_depth\n')
  sys.exit(2)

import collections
import functools
import pathlib

from absl import flags

from odin_jax.shared import (
  command,
  depth_files,
  errors,
  files,
  progress,
  record_folder,
  schema,
  world_names,
)
from preprocessing.procedural import footage, scenes, true_depth, true_pairs

_TOOL = 'preprocessing.true_depth'
_SPLIT = 'test'
_RECORDS = command.define_records('to render the depth of')
_WORLDS = command.define_path(
  'worlds',
  'Folder of the videos that preprocessing.worlds made; not given: the records '
  'are its own, of --pairs.',
)
_IMAGE_SIZE_PX = flags.DEFINE_integer(
  'image_size_px',
  32,
  'Side of the maps: config.image_size_px of odin_jax.evaluate.',
  1,
  1024,
)
_OUTPUT = command.define_output('Folder for the maps')
flags.mark_flags_as_required(['records', 'output'])
# Video compression and the cutting of a small view leave more than this;
# another view of the same world is below.
_MIN_PSNR_DB = 20.0


def _worlds_folder() -> pathlib.Path:
  """What tells how the worlds were made.

  Raises:
    errors.UserError: nothing does.
  """
  given = _WORLDS.value or _RECORDS.value
  folder = files.require_folder(given, 'the worlds of the records')
  if not (folder / world_names.NOTE).is_file():
    raise errors.UserError(
      f'{folder}: not made by preprocessing.worlds; give the folder of its '
      'videos as --worlds. Real videos have no true depth'
    )
  return folder


def _world(folder: pathlib.Path, video_id: str) -> scenes.World:
  if _WORLDS.value:
    return footage.rebuild_world(folder, video_id)
  return true_pairs.rebuild_world(folder, video_id)


def _check(world: scenes.World, record: schema.Record, where: str) -> None:
  """Raises unless a record's pictures are views of the world."""
  try:
    psnr_db = true_depth.likeness_db(world, record)
  except ValueError as error:
    raise errors.UserError(f'{where}: its image is no square JPEG') from error
  if psnr_db < _MIN_PSNR_DB:
    raise errors.UserError(
      f'{where}: does not show the world of {record["video_id"]} as its pose '
      f'has it ({psnr_db:.1f} dB); give the --worlds that it was made of'
    )


class _Worlds:
  """The worlds of records, each checked against them when it is built.

  Args:
    folder: how they were made.
    records: of them.
  """

  def __init__(self, folder: pathlib.Path, records: record_folder.RecordFolder):
    self._folder = folder
    self._records = records
    self._first: dict[str, int] = {}
    self._poses: dict[str, dict[int, true_depth.Poses]] = {}
    for index, record in enumerate(records):
      video_id = record['video_id']
      self._first.setdefault(video_id, index)
      of_video = self._poses.setdefault(video_id, {})
      of_component = of_video.setdefault(record['scene_id'], {})
      of_component.update(true_depth.poses(record))
    # Records of one world stand together, so each is built once.
    self._build = functools.lru_cache(2)(self._built)

  def _built(self, video_id: str) -> tuple[scenes.World, dict[int, float]]:
    """A world, and metres per scene unit by component."""
    world = _world(self._folder, video_id)
    first = self._first[video_id]
    where = f'{self._records.path}: {self._records.split} record {first}'
    _check(world, self._records[first], where)
    units = {}
    for component, poses in self._poses[video_id].items():
      try:
        units[component] = true_depth.metres_per_unit(world, poses)
      except ValueError as error:
        raise errors.UserError(
          f'{self._records.path}: {video_id}, component {component}: {error}; '
          'its poses are wrong, so its records have no true depth'
        ) from error
    return world, units

  def depths(self, index: int) -> depth_files.Depths:
    """What a record shows.

    Raises:
      errors.UserError: it is not of these worlds.
    """
    record = self._records[index]
    world, units = self._build(record['video_id'])
    return true_depth.depths(
      world, record, units[record['scene_id']], _IMAGE_SIZE_PX.value
    )


def main() -> None:
  """Reads the flags and renders the depths."""
  size_px = _IMAGE_SIZE_PX.value
  records = record_folder.RecordFolder(_RECORDS.value, _SPLIT)
  worlds = _Worlds(_worlds_folder(), records)
  # Before a folder is made: whether they belong together at all.
  worlds.depths(0)
  output = files.claim_output(_OUTPUT.value, _TOOL)
  of_shard = collections.defaultdict(list)
  for index in range(len(records)):
    of_shard[records.place(index)[0]].append(index)
  for shard, indices in of_shard.items():
    if not depth_files.is_written(output, shard, size_px):
      shown = progress.each(indices, 'record', desc='depth')
      depth_files.write(output, shard, [worlds.depths(i) for i in shown])
  given = {
    'data': _RECORDS.value,
    'truth': _OUTPUT.value,
    'predictor': 'warp',
    'config.image_size_px': size_px,
    'output': command.beside(_OUTPUT.value, 'warp'),
  }
  command.finish(
    _OUTPUT.value,
    f'true depth of {len(records)} {_SPLIT} records, {size_px} px',
    then=('score what geometry alone gives', 'odin_jax.evaluate', given),
  )


if __name__ == '__main__':
  command.run(main)
