"""How well fitted Gaussians know views that they did not see, on true views.

    python -m tests.benchmarks.splats --output=runs/splats [--size_px=96]

Of one procedural world of each kind 28 true views: square ones of 90 degrees
along a path that weaves forward, and panoramas along the walk (twice as wide as
high). Every seventh is held out, Gaussians are fitted to the other 24 by
`odin_jax.splatting`, from random depths, and for square views also from the
points of a plane sweep of the 24. Against the truth: PSNR and SSIM of the four
held out, next to those of the nearest of the 24 shown in their place. Prints and
writes a row for each: `splats.json`.
"""

import json
import time
from typing import Any

from absl import flags
import numpy as np

from odin_jax import metrics
from odin_jax.geometry import fusion, stereo, trajectory
from odin_jax.shared import camera, command, files
from odin_jax.splatting import fitting, initial
from preprocessing.procedural import footage, true_path

_TOOL = 'tests.benchmarks.splats'
_OUTPUT = flags.DEFINE_string('output', None, 'Folder to write.', required=True)
_SIZE_PX = flags.DEFINE_integer('size_px', 96, 'Height of the views.', 32)
_NUM_GAUSSIANS = flags.DEFINE_integer('num_gaussians', 4000, 'Gaussians.', 4)
_STEPS = flags.DEFINE_integer('steps', 2000, 'Steps of Adam.', 1)
_SEED = flags.DEFINE_integer('seed', 7, 'Of the worlds.', 0)
_KINDS = ('unique_room', 'unique_corridor', 'unique_outdoor')
_NUM_VIEWS, _EVERY = 28, 7
_STEP_LENGTH, _FOV_DEG, _TIME_S = 0.04, 90.0, 6.0
_TILE_PX = 8


def _world(kind: str, px_per_rad: float) -> Any:
  # Nothing moves: the walk takes time.
  movers = None if kind == 'unique_corridor' else 0
  return footage.make_world(
    [kind], 0, seed=_SEED.value, seconds=24.0, px_per_rad=px_per_rad,
    movers=movers,
  )  # fmt: skip


def _square(kind: str) -> tuple[np.ndarray, np.ndarray, float]:
  """Pictures, camera2scene and focal length in pixels."""
  size = _SIZE_PX.value
  focal_px = float(camera.intrinsics(_FOV_DEG, size)[0, 0])
  world = _world(kind, focal_px)
  path = trajectory.camera_path('weave', _NUM_VIEWS, _STEP_LENGTH)
  images = true_path.render(
    world,
    _TIME_S,
    world.walk.frame2world(_TIME_S),
    path,
    fov_deg=_FOV_DEG,
    size_px=size,
  ).images
  # Behind a surface there are none.
  shown = [image for image in images if image is not None]
  return np.stack(shown), path[: len(shown)], focal_px


def _panoramas(kind: str) -> tuple[np.ndarray, np.ndarray, None]:
  height = _SIZE_PX.value
  world = _world(kind, height / np.pi)
  times_s = np.arange(_NUM_VIEWS) / footage.RENDERED_FPS
  images = [
    footage.render_panorama(world, time_s, width=2 * height, height=height)
    for time_s in times_s
  ]
  depth = footage.truth(world, times_s[:1])['depth']
  unit_m = float(np.median(depth[np.isfinite(depth)]))
  poses = [
    camera.rescale(world.walk.frame2world(time_s), 1 / unit_m)
    for time_s in times_s
  ]
  return np.stack(images), np.stack(poses), None


def _sweep(views: fitting.Views) -> initial.Points:
  """Points of square views by a plane sweep."""
  cloud = fusion.reconstruct(
    stereo.Views(
      images=views.images,
      camera2scene=camera.inverse(views.scene2camera),
      fov_deg=_FOV_DEG,
    ),
    stereo.SWEEP,
    fusion.AGREEMENT,
  ).cloud
  return cloud.points.astype(np.float64), cloud.colours / 255


def _mean_scores(truth: np.ndarray, shown: np.ndarray) -> dict[str, float]:
  pair = shown / 255, truth / 255
  return {
    'psnr': round(float(metrics.psnr(*pair).mean()), 2),
    'psnr_worst': round(float(metrics.psnr(*pair).min()), 2),
    'ssim': round(float(metrics.ssim(*pair).mean()), 3),
  }


def _row(views: fitting.Views, points: initial.Points | None) -> dict[str, Any]:
  count = len(views.images)
  held_out = list(range(_EVERY // 2, count, _EVERY))
  seen = [index for index in range(count) if index not in held_out]
  wall_s, cpu_s = time.monotonic(), time.process_time()
  start, _ = initial.start(
    points,
    views.subset(seen),
    _NUM_GAUSSIANS.value,
    stereo.SWEEP.min_depth,
    stereo.SWEEP.max_depth,
    np.random.default_rng(0),
  )
  result = fitting.fit(
    initial.gaussians(start),
    views.subset(seen),
    fitting.Settings(steps=_STEPS.value),
    tile_px=_TILE_PX,
    seed=0,
  )
  shown = fitting.pictures(result.scene, views.subset(held_out), result.limits)
  wall_s, cpu_s = time.monotonic() - wall_s, time.process_time() - cpu_s
  truth = views.images[held_out]
  # The path is one: neighbours along it are the nearest.
  nearest = views.images[[index - 1 for index in held_out]]
  return {
    'views': len(seen),
    'held_out': len(held_out),
    **_mean_scores(truth, shown),
    'nearest': _mean_scores(truth, nearest),
    'wall_s': round(wall_s, 1),
    'cpu_s': round(cpu_s, 1),
  }


def main() -> None:
  output = files.claim_output(_OUTPUT.value, _TOOL)
  rows = []
  for kind in _KINDS:
    for camera_kind, made in (('square', _square), ('panorama', _panoramas)):
      images, poses, focal_px = made(kind)
      views = fitting.Views(
        images=images,
        counts=np.ones(images.shape[:3], np.uint8),
        scene2camera=camera.inverse(poses),
        focal_px=focal_px,
      )
      starts = {'random': None}
      if focal_px is not None:
        seen = np.arange(len(images)) % _EVERY != _EVERY // 2
        starts['sweep'] = _sweep(views.subset(np.flatnonzero(seen).tolist()))
      for start, points in starts.items():
        row = {'world': kind, 'camera': camera_kind, 'start': start}
        row |= _row(views, points)
        print(json.dumps(row), flush=True)
        rows.append(row)
        files.write_json(
          output / 'splats.json',
          {
            'size_px': _SIZE_PX.value,
            'num_gaussians': _NUM_GAUSSIANS.value,
            'steps': _STEPS.value,
            'rows': rows,
          },
        )


if __name__ == '__main__':
  command.run(main)
