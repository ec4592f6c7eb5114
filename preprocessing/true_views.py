"""The true views along a path that odin_jax.generate imagined.

    python -m preprocessing.true_views --worlds=runs/demo/worlds \\
        --views=runs/demo/generate --evaluation=runs/demo/evaluate/model \\
        --output=runs/demo/truth

For a path that starts at the source view of an evaluated pair of a procedural
world: the world is built again, and its caster renders what a camera sees at
the poses of `--views`. Real videos have no such truth. `--worlds` has its video
or, of `--pairs`, its records. Writes

    frames/000.png, ...  the true views, as large as those of --views
    poses.json           their poses, as odin_jax.generate has them
    depth.npz            with --depth: `depth` [views s s] of the true views, in
                         their order, along the optical axis at pixel centres,
                         scene units; inf where there is no surface
    truth.json           where and when the path starts, metres per scene unit,
                         PSNR of the first view against its truth, every view's
                         file, null from where the path runs into a surface on,
                         and the digest of poses.json and the first view
"""

import sys

# As a file it finds none of the packages below.
if __name__ == '__main__' and not __package__:
  sys.stderr.write('error: type: python -m preprocessing.true_views\n')
  sys.exit(2)

import pathlib
from typing import Any

from absl import flags
from jaxtyping import Float
import numpy as np

from odin_jax.shared import (
  camera,
  command,
  digests,
  errors,
  files,
  image_files,
  psnr,
  user_images,
)
from preprocessing.procedural import footage, scenes, true_pairs, true_path

_TOOL = 'preprocessing.true_views'
_WORLDS = command.define_path(
  'worlds',
  'Folder of videos, or of records (--pairs), that preprocessing.worlds made.',
  required=True,
)
_VIEWS = command.define_path(
  'views', 'Folder that odin_jax.generate wrote.', required=True
)
_EVALUATION = command.define_path(
  'evaluation',
  'Folder that odin_jax.evaluate wrote, with the pair that the path starts at.',
  required=True,
)
_PAIR = flags.DEFINE_integer('pair', 0, 'Number of that pair.', lower_bound=0)
_DEPTH = flags.DEFINE_bool(
  'depth', False, 'Whether to write the true depth of each view, too.'
)
_OUTPUT = command.define_output('Folder for frames/ and truth.json')
flags.mark_flags_as_required(['output'])
# Video compression and the cutting of a small view leave more than this;
# another view of the same world is below.
_MIN_PSNR_DB = 20.0


# What is read of a pair.
_OF_PAIR = ('source_time_s', 'source_yaw_deg', 'source_pitch_deg')


def _pair(evaluation: pathlib.Path) -> dict[str, Any]:
  path = evaluation / 'metrics.json'
  pairs = files.read_json(path, 'an evaluation', ('pairs',))['pairs']
  has_pair = isinstance(pairs, list) and _PAIR.value < len(pairs)
  pair = pairs[_PAIR.value] if has_pair else None
  if not isinstance(pair, dict) or 'video_id' not in pair:
    raise errors.UserError(
      f'{path}: has no pair {_PAIR.value} of records; give another --pair'
    )
  if not all(
    type(pair.get(name)) in (int, float) and np.isfinite(pair[name])
    for name in _OF_PAIR
  ):
    raise errors.UserError(
      f'{path}: pair {_PAIR.value} lacks numbers as {", ".join(_OF_PAIR)}; '
      'evaluate again'
    )
  return pair


def _world(folder: pathlib.Path, video_id: str) -> scenes.World:
  """The world of a video, or of records that were made without one."""
  # Records have one, videos have none.
  if (folder / 'manifest.json').is_file():
    return true_pairs.rebuild_world(folder, video_id)
  return footage.rebuild_world(folder, video_id)


def _first_pose(
  world: scenes.World, pair: dict[str, Any], time_s: float
) -> Float[np.ndarray, '3 4']:
  """Pose of a pair's source view, metres."""
  turn = camera.view2frame_rotation(
    pair['source_yaw_deg'], pair['source_pitch_deg']
  )
  view2frame = camera.make_pose(turn, np.zeros(3))
  return camera.compose(world.walk.frame2world(time_s), view2frame)


def _write_frames(
  output: pathlib.Path, images: list[np.ndarray | None], names: list[str]
) -> list[dict[str, Any]]:
  """Writes frames/000.png, ...; returns the name of each or None."""
  (output / 'frames').mkdir(exist_ok=True)
  for stale in (output / 'frames').glob('*.png'):
    stale.unlink()
  frames = []
  for name, image in zip(names, images):
    if image is not None:
      image_files.write(output / 'frames' / name, image)
    frames.append({'file': None if image is None else f'frames/{name}'})
  return frames


def _write_depths(
  output: pathlib.Path, depths: list[np.ndarray | None]
) -> None:
  """Writes depth.npz, of the views that there are; or removes an old one."""
  path = output / 'depth.npz'
  path.unlink(missing_ok=True)
  if _DEPTH.value:
    there = [depth for depth in depths if depth is not None]
    with files.atomic_path(path) as temporary:
      np.savez_compressed(temporary, depth=np.stack(there))


def main() -> None:
  """Reads the flags and renders the path."""
  views = pathlib.Path(_VIEWS.value)
  poses = files.read_json(
    views / 'poses.json',
    'the poses of the views',
    ('frames', 'fov_deg', 'width'),
  )
  pair = _pair(pathlib.Path(_EVALUATION.value))
  world = _world(pathlib.Path(_WORLDS.value), pair['video_id'])
  # Each rendered picture is held until the next.
  time_s = footage.picture_time_s(pair['source_time_s'])
  try:
    path = true_path.render(
      world,
      time_s,
      _first_pose(world, pair, time_s),
      np.array([view['camera2scene'] for view in poses['frames']]).reshape(
        -1, 3, 4
      ),
      fov_deg=poses['fov_deg'],
      size_px=poses['width'],
    )
  except ValueError as error:
    raise errors.UserError(f'{views}: {error}; give another path') from error
  first = user_images.read(
    views / poses['frames'][0]['file'], 'the first view of the path'
  )
  psnr_db = psnr.psnr_db(path.images[0], first)
  if psnr_db < _MIN_PSNR_DB:
    raise errors.UserError(
      f'{views}: does not start at the source of pair {_PAIR.value} of '
      f'{_EVALUATION.value} ({psnr_db:.1f} dB); give the --pair and '
      '--evaluation that it was made from'
    )
  output = files.claim_output(_OUTPUT.value, _TOOL)
  names = [pathlib.PurePath(view['file']).name for view in poses['frames']]
  frames = _write_frames(output, path.images, names)
  _write_depths(output, path.depths)
  files.write_json(
    output / 'poses.json',
    {
      **poses,
      'frames': [
        {**view, 'file': frame['file']}
        for view, frame in zip(poses['frames'], frames)
        if frame['file']
      ],
    },
  )
  files.write_json(
    output / 'truth.json',
    {
      'views_sha256': digests.of_views(views, first),
      'video_id': pair['video_id'],
      'time_s': time_s,
      'metres_per_scene_unit': path.unit_m,
      'first_view_psnr_db': psnr_db,
      'frames': frames,
    },
  )
  shown = sum(frame['file'] is not None for frame in frames)
  given = {'run': command.beside(_OUTPUT.value, '')}
  command.finish(
    _OUTPUT.value,
    f'{shown} true views of {len(frames)}; behind a surface there is none',
    look_at='frames',
    then=('make the page of a run with them', 'odin_jax.report', given),
  )


if __name__ == '__main__':
  command.run(main)
