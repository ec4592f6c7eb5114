"""3D Gaussians that show what posed views show, in plain XLA.

  python -m odin_jax.splat --views=runs/demo/truth --output=runs/splats
  python -m odin_jax.splat --cameras=runs/records/cameras/VIDEO \
      --output=runs/splats

`--views` is a folder as `odin_jax.generate` writes it (`poses.json` and square
images), `--cameras` one that `preprocessing.run --export=nerfstudio` writes:
panoramas, whose masked pixels do not count. One view of every
`--holdout_every` is held out, and tells how well the scene is known from a
place that the fit did not see. The renderer is `odin_jax/splatting/`: it needs
nothing but jax, so CPUs, GPUs and TPUs run it alike.

Gaussians start at the points of `--points` (`points.ply` of
`odin_jax.reconstruct`) or of `--cameras`, at most three in four of them, and the
others at random depths of random pixels. Points, as poses, come from all views,
also from those that are held out here, as those of other programs do.

Output: `index.html` (a page to fly through them), `splats.ply` (opens in viewers
of 3D Gaussian splatting; scene axes and units), `splats.json` (PSNR and SSIM of every view that was held out, settings,
seconds) and `views/000.png`: each such view, truth left, rendering right.
"""

import sys

# As a file it finds none of the packages below.
if __name__ == '__main__' and not __package__:
  sys.stderr.write('error: type: python -m odin_jax.splat\n')
  sys.exit(2)

import dataclasses
import functools
import pathlib
import time
from typing import Any

from absl import flags, logging
import jax
from jaxtyping import UInt8
import numpy as np

from odin_jax import metrics, sharding
from odin_jax.geometry import lenses, stereo
from odin_jax.reporting import scene_page
from odin_jax.shared import (
  camera,
  command,
  errors,
  files,
  image_files,
  page,
  progress,
  provenance,
  psnr,
)
from odin_jax.splatting import fitting, initial, inputs, ply_files
from odin_jax.splatting import gaussians as gaussian

_TOOL = 'odin_jax.splat'
_VIEWS = command.define_path(
  'views', 'Folder with poses.json and the images that it names.'
)
_CAMERAS = command.define_path(
  'cameras',
  'Folder cameras/VIDEO of preprocessing.run --export=nerfstudio: panoramas.',
)
_OUTPUT = command.define_output(
  'Folder for index.html, splats.ply, splats.json and views/'
)
_COMPONENT = flags.DEFINE_integer(
  'component',
  None,
  'Which component of --cameras; default: the largest.',
  lower_bound=0,
)
_POINTS = command.define_path(
  'points', 'A .ply in scene axes at whose points Gaussians start.'
)
_NUM_GAUSSIANS = flags.DEFINE_integer(
  'num_gaussians', 4000, 'How many Gaussians.', lower_bound=4
)
_STEPS = flags.DEFINE_integer(
  'steps', fitting.Settings.steps, 'Steps of Adam, a view each.', lower_bound=1
)
_HOLDOUT_EVERY = flags.DEFINE_integer(
  'holdout_every',
  8,
  'One view of so many is held out, the middle one; 0: none.',
  lower_bound=0,
)
_MAX_SIZE_PX = flags.DEFINE_integer(
  'max_size_px',
  128,
  'Higher views are reduced to this height.',
  lower_bound=fitting.LEAST_SIZE_PX,
)
_MIN_DEPTH = flags.DEFINE_float(
  'min_depth',
  stereo.SWEEP.min_depth,
  'Nearest depth at which a Gaussian starts, scene units.',
  lower_bound=1e-6,
)
_MAX_DEPTH = flags.DEFINE_float(
  'max_depth', stereo.SWEEP.max_depth, 'Farthest such depth.', lower_bound=1e-6
)
_SEED = flags.DEFINE_integer('seed', 0, 'Of all that is random.', lower_bound=0)
flags.mark_flags_as_required(['output'])
# Small tiles waste fewer pixels, and accelerators want wide ones.
_TILE_PX = {'cpu': 8}
_TILE_PX_ELSE = 16
# What the page shows of a panorama where it was taken.
_AHEAD_DEG = 90.0
_LINKS = {'Gaussians (PLY)': 'splats.ply', 'Figures (JSON)': 'splats.json'}


def _read() -> inputs.Inputs:
  if (_VIEWS.value is None) == (_CAMERAS.value is None):
    raise errors.UserError('give either --views or --cameras')
  if _COMPONENT.value is not None and _CAMERAS.value is None:
    raise errors.UserError('--component goes with --cameras')
  if _VIEWS.value is not None:
    folder = files.require_folder(_VIEWS.value, 'a folder of posed views')
    given = inputs.of_views(folder, _MAX_SIZE_PX.value)
  else:
    folder = files.require_folder(_CAMERAS.value, 'a folder of panoramas')
    given = inputs.of_cameras(folder, _COMPONENT.value, _MAX_SIZE_PX.value)
  if _POINTS.value is not None:
    points = inputs.of_file(pathlib.Path(_POINTS.value))
    given = dataclasses.replace(given, points=points)
  views = given.views
  if min(views.images.shape[1:3]) < fitting.LEAST_SIZE_PX:
    raise errors.UserError(
      f'{folder}: its views have less than {fitting.LEAST_SIZE_PX} px, too few '
      'for SSIM; give larger ones'
    )
  if not views.counts.any(axis=(1, 2)).all():
    raise errors.UserError(f'{folder}: a view is masked wholly; export again')
  return given


def _held_out(count: int) -> list[int]:
  every = _HOLDOUT_EVERY.value
  return [i for i in range(count) if every and i % every == every // 2]


def _score(
  truth: UInt8[np.ndarray, 'n h w 3'],
  shown: UInt8[np.ndarray, 'n h w 3'],
  counts: UInt8[np.ndarray, 'n h w'],
) -> list[dict[str, float]]:
  """PSNR over the pixels that count; SSIM with the others black."""
  weight = counts[..., None]
  ssim = metrics.ssim(shown * weight / 255, truth * weight / 255)
  rows = []
  for index, similarity in enumerate(ssim):
    counted = counts[index] > 0
    # A row of pixels is a picture, too.
    db = psnr.psnr_db(truth[index][counted][None], shown[index][counted][None])
    rows.append({'psnr': db, 'ssim': float(similarity)})
  return rows


def _write_views(
  folder: pathlib.Path,
  indices: list[int],
  truth: UInt8[np.ndarray, 'n h w 3'],
  shown: UInt8[np.ndarray, 'n h w 3'],
) -> list[str]:
  """Writes views/000.png, ..., truth left; returns their names."""
  folder.mkdir(exist_ok=True)
  for old in folder.glob('*.png'):
    old.unlink()
  names = []
  for index, left, right in zip(indices, truth, shown):
    names.append(f'{folder.name}/{index:03d}.png')
    image_files.write(folder.parent / names[-1], np.hstack([left, right]))
  return names


def _mean(rows: list[dict[str, Any]], name: str) -> float | None:
  return float(np.mean([row[name] for row in rows])) if rows else None


def _write_page(
  output: pathlib.Path,
  given: inputs.Inputs,
  scene: gaussian.Gaussians,
  known: str,
) -> None:
  """Writes index.html, with all that it shows inside."""
  views = given.views
  places = np.asarray(scene.means)
  colours = np.clip(np.asarray(gaussian.colours(scene)), 0, 1) * 255
  height = views.images.shape[1]
  if views.focal_px is None:
    fov_deg, pixel_rad = _AHEAD_DEG, np.pi / height
    ahead = lenses.Perspective(
      _AHEAD_DEG, max(1, round(height * _AHEAD_DEG / 180))
    )
    pictures = stereo.ahead(views.images, ahead)
  else:
    fov_deg = camera.square_fov_deg((views.focal_px,) * 2, (height, height))
    pixel_rad, pictures = 1 / views.focal_px, views.images
  text = scene_page.render(
    title='Gaussians fitted to views',
    made=f'{time.strftime("%Y-%m-%d")}, {len(given.names)} views of '
    f'{_VIEWS.value or _CAMERAS.value}',
    next_step='open splats.ply in a viewer of 3D Gaussian splatting',
    findings=[page.Finding(f'{known[0].upper()}{known[1:]}.')],
    fov_deg=fov_deg,
    views=[
      scene_page.view(name, picture, pose)
      for name, picture, pose in zip(
        given.names, pictures, camera.inverse(views.scene2camera)
      )
    ],
    places=places,
    splats=scene_page.splats(
      places,
      np.asarray(gaussian.covariances(scene)),
      np.rint(colours).astype(np.uint8),
      np.asarray(gaussian.opacities(scene)),
      float(pixel_rad),
    ),
  )
  text = page.links(text, output, _LINKS)
  with files.atomic_path(output / 'index.html') as temporary:
    temporary.write_text(text)


def main() -> None:
  watch = command.Stopwatch()
  if _MIN_DEPTH.value >= _MAX_DEPTH.value:
    raise errors.UserError('--min_depth must be smaller than --max_depth')
  given = _read()
  views, count = given.views, len(given.names)
  held_out = _held_out(count)
  seen = [index for index in range(count) if index not in held_out]
  if not seen:
    raise errors.UserError(
      f'--holdout_every={_HOLDOUT_EVERY.value} leaves none of {count} views'
    )
  if not held_out:
    logging.warning('no view is held out, so nothing tells how good the fit is')
  output = files.claim_output(_OUTPUT.value, _TOOL)
  logging.info(sharding.devices_text())
  rng = np.random.default_rng(_SEED.value)
  points, num_given = initial.start(
    given.points,
    views.subset(seen),
    _NUM_GAUSSIANS.value,
    _MIN_DEPTH.value,
    _MAX_DEPTH.value,
    rng,
  )
  settings = fitting.Settings(steps=_STEPS.value)
  result = fitting.fit(
    initial.gaussians(points),
    views.subset(seen),
    settings,
    tile_px=_TILE_PX.get(jax.default_backend(), _TILE_PX_ELSE),
    seed=_SEED.value,
    progress=functools.partial(progress.each, unit='step', desc='fit'),
  )
  with files.atomic_path(output / 'splats.ply') as temporary:
    ply_files.write(temporary, result.scene)
  rows: list[dict[str, Any]] = []
  tests = views.subset(held_out)
  shown = fitting.pictures(result.scene, tests, result.limits)
  pictures = _write_views(output / 'views', held_out, tests.images, shown)
  scores = _score(tests.images, shown, tests.counts) if held_out else []
  for index, picture, score in zip(held_out, pictures, scores):
    rows.append({'file': given.names[index], 'picture': picture, **score})
  height, width = views.images.shape[1:3]
  files.write_json(
    output / 'splats.json',
    {
      'views': _VIEWS.value,
      'cameras': _CAMERAS.value,
      'component': given.component,
      'points': _POINTS.value,
      'num_views': count,
      'width': width,
      'height': height,
      'num_gaussians': len(result.scene.means),
      'from_points': num_given,
      'held_out': rows,
      'psnr': _mean(rows, 'psnr'),
      'ssim': _mean(rows, 'ssim'),
      'first_loss': result.first_loss,
      'last_loss': result.last_loss,
      'relocated': result.relocated,
      'limits': dataclasses.asdict(result.limits),
      'settings': dataclasses.asdict(settings),
      'seed': _SEED.value,
      'software': {
        'commit': provenance.commit(),
        'jax': jax.__version__,
        'device': jax.devices()[0].device_kind,
      },
      **watch.figures(),
    },
  )
  known = 'no view held out'
  if rows:
    known = (
      f'{len(rows)} views held out: PSNR {_mean(rows, "psnr"):.2f} dB, '
      f'SSIM {_mean(rows, "ssim"):.3f}'
    )
  _write_page(output, given, result.scene, known)
  command.finish(
    _OUTPUT.value,
    f'{len(result.scene.means)} Gaussians from {len(seen)} views; {known}',
    look_at='index.html',
  )


if __name__ == '__main__':
  command.run(main)
