"""Imagines the views along a camera path from one image or panorama.

  python -m odin_jax.generate --workdir=runs/demo/train --image=photo.jpg \
      --trajectory=forward --output=runs/demo/generate

A photo becomes the first view (its square middle, at the size of the model;
white, or `--background`, where it is transparent). Its field of view is that of
`--fov_deg`, of the focal length in its header, what straight lines at right
angles tell (`odin_jax/geometry/vanishing_points.py`), or taken to be 90 degrees;
the command says which. Of a panorama (`--panorama`, or its header says so) the
first view lies in its middle, and whatever is given is its view in the direction
in which the new camera looks: only that it moved is left to imagine.

The path has a name (`odin_jax/geometry/trajectory.py`) or comes from a file:
poses.json of another run, transforms.json or camera_path.json of nerfstudio, a
folder with a model of COLMAP. Of a file the first camera is that of the image,
and `--scale` says how many scene units its unit is (1 is the median distance
of what the image shows). Its poses alone are taken: a line warns of another field
of view than that of the views, of distortion, and of a path that leaves what the
image shows. `--preview` draws the cameras, without a model.

Each view is conditioned on a view that exists already (`--condition_on`):

* `input`, the default: always the given image. The model looks at one source,
  and this is the only one free of its own mistakes, so they do not pile up.
* `previous`: the view made before. It reaches farther than one image can show,
  but every view inherits the blur and the drift of all before it.
* `random`: any view that exists, drawn with the seed;
* `nearest`: the view whose camera is nearest;
* `all`: the given image, and of the views that exist those whose cameras are
  nearest, as many at once as the model was trained on
  (`config.model.sources`);
* `in_turn`: the given image and up to three nearest ones, of which every step
  of the sampler looks at one, drawn anew (stochastic conditioning of Watson et
  al., "Novel view synthesis with diffusion models", 2022).

Views are made in the order of the path, or with `--order=anchors` some that are
spread over it first, then those between.

Every view has noise of its own. `--noise=shared` starts all of them from the
same: a calmer video, for what is made up then hardly changes from view to view,
but it sticks to the screen and not to the scene, and matching sees that (a
short run, 16 views to the right, points where depth is believed: 19 % of the
pixels against 45 %).

Several images (`--image` given several times) and several paths (`--trajectory`
likewise) are sampled together, in batches that all devices share; each run has
a folder of its own in the output, named by the image, the path, or both, and is
what it would be alone.

A line warns of an image that is unlike those that the model was trained on
(`odin_jax/familiarity.py`), where that is known of the model.

Output: `frames/000.png` (the first view), `frames/001.png`, ...; `poses.json`
with `fov_deg`, `width`, `height` and `frames` (`file` and `camera2scene`, 12
numbers row-major: x_scene = R @ x_camera + t, in the axes of the first view;
the median distance of what it shows is 1); the same cameras as `transforms.json` for
nerfstudio and as `sparse/0` for COLMAP; `video.mp4`; `path.png`;
`generate.json`.
"""

import sys

# As a file it finds none of the packages below.
if __name__ == '__main__' and not __package__:
  sys.stderr.write('error: type: python -m odin_jax.generate\n')
  sys.exit(2)

import collections
import dataclasses
import itertools
import os
import pathlib
from typing import Any

from absl import flags, logging
from jaxtyping import Float, UInt8
import numpy as np

from odin_jax import familiarity, predictors, sharding
from odin_jax.diffusion import sampler
from odin_jax.generating import (
  given,
  imagining,
  order,
  outputs,
  paths,
  preview,
)
from odin_jax.geometry import trajectory, view_folder
from odin_jax.shared import (
  command,
  errors,
  files,
  user_images,
  workdirs,
)

_TOOL = 'odin_jax.generate'
# Views are sampled as evaluation samples them, unless flags say otherwise.
_PROTOCOL = command.load_config('configs/evaluate.py')
_USUAL_PATH = 'forward'
_PREVIEWED = 'path.json'
_WORKDIR = command.define_model()
_CHECKPOINT_STEP = command.define_checkpoint_step(
  otherwise='the length of a step along the path is --step_length'
)
_IMAGE = command.define_paths_of_many(
  'image',
  'The image to start from: a photo, of which the square middle is used, or a '
  'panorama. Given several times: from each of them.',
)
_BACKGROUND = flags.DEFINE_string(
  'background',
  'white',
  'What shines through where the image is transparent: R,G,B of 0 to 255, or '
  'the name of a colour.',
)
_PANORAMA = flags.DEFINE_bool(
  'panorama',
  None,
  'Whether the image is a panorama: equirectangular, all of the sphere. By '
  'default as its header says.',
)
_TRAJECTORY = command.define_paths_of_many(
  'trajectory',
  f'The camera path: {", ".join(sorted(trajectory.PATHS))}; or a file of poses, '
  f'or a folder of them; by default {_USUAL_PATH}. Given several times: along '
  'each of them.',
)
_SCALE = flags.DEFINE_float(
  'scale',
  1.0,
  'Scene units (1 is the median distance of what the image shows) per unit of '
  'a file.',
  lower_bound=1e-9,
)
_PREVIEW = flags.DEFINE_bool(
  'preview',
  False,
  f'Only draw the cameras of the path ({preview.NAME}) and write their poses '
  '(path.json, which --trajectory takes).',
)
_OUTPUT = command.define_output(
  'Folder for frames/, the cameras, video.mp4, generate.json'
)
_NUM_FRAMES = flags.DEFINE_integer(
  'num_frames',
  16,
  'Views in all, the first one included, of a path by name.',
  lower_bound=2,
)
_STEP_LENGTH = flags.DEFINE_float(
  'step_length',
  0.05,
  'Length of one step of a path by name, in scene units (1 is the median '
  'distance of what the image shows).',
  lower_bound=1e-6,
)
_FOV_DEG = flags.DEFINE_float(
  'fov_deg',
  None,
  'Field of view of the square middle of a photo, of the views of a panorama, '
  'degrees. By default as the header says, or what straight lines tell, or else '
  f'{given.USUAL_FOV_DEG:g}.',
  lower_bound=1.0,
  upper_bound=170.0,
)
_CONDITION_ON = flags.DEFINE_enum(
  'condition_on',
  'input',
  order.KINDS,
  'Which existing views each new one is made from.',
)
_ORDER = flags.DEFINE_enum(
  'order',
  'path',
  order.ORDERS,
  'In which order views are made: along the path, or some of it first.',
)
_SEED = flags.DEFINE_integer(
  'seed',
  _PROTOCOL.seed,
  'Seed of the sampler and of --condition_on=random.',
  lower_bound=0,
  upper_bound=2**31 - 1,
)
_NOISE = flags.DEFINE_enum(
  'noise',
  'own',
  ['own', 'shared'],
  'Whether every view starts from noise of its own or all from the same.',
)
_SAMPLER = flags.DEFINE_enum(
  'sampler',
  _PROTOCOL.sampler,
  sorted(sampler.SAMPLERS),
  'How views are sampled.',
)
_NUM_STEPS = flags.DEFINE_integer(
  'num_steps',
  _PROTOCOL.num_steps,
  'Steps of the sampler per view; 0: 2 of a model with spheres, 10 of others.',
  lower_bound=0,
)
_SPACING = flags.DEFINE_enum(
  'spacing',
  _PROTOCOL.spacing,
  ['', *sampler.SPACINGS],
  'Spacing of the timesteps; by default that of the training config.',
)
_GUIDANCE = flags.DEFINE_float(
  'guidance',
  _PROTOCOL.guidance,
  'Weight of classifier-free guidance; 1 is none.',
)
_GUIDANCE_RESCALE = flags.DEFINE_float(
  'guidance_rescale',
  _PROTOCOL.guidance_rescale,
  'Share of the deviation that guidance adds to be taken back; 0 is none.',
  lower_bound=0.0,
  upper_bound=1.0,
)
_BATCH_SIZE = flags.DEFINE_integer(
  'batch_size',
  _PROTOCOL.batch_size,
  'Most views that are sampled at a time.',
  lower_bound=1,
)
_EMA = flags.DEFINE_bool(
  'ema', _PROTOCOL.ema, 'Sample with averaged parameters.'
)
_FRAMES_PER_S = flags.DEFINE_integer(
  'frames_per_s', 8, 'Frame rate of video.mp4.', lower_bound=1
)
flags.mark_flags_as_required(['workdir', 'image', 'output'])


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Run:
  """One image along one path.

  Attributes:
    image: as the user named it.
    start: what it shows.
    trajectory: as the user named it.
    camera2scene: its poses.
    folder: of what is written.
  """

  image: str
  start: given.Given
  trajectory: str
  camera2scene: Float[np.ndarray, 'n 3 4']
  folder: pathlib.Path

  @property
  def has_name(self) -> bool:
    """Whether its path is one by name."""
    return self.trajectory in trajectory.PATHS


def _check_of_use(names: list[str]) -> None:
  """Refuses flags that none of the paths reads."""
  of_use = {
    'num_frames': lambda name: name in trajectory.PATHS,
    'step_length': lambda name: (
      name in trajectory.PATHS and name not in trajectory.STEPLESS
    ),
    'scale': lambda name: name not in trajectory.PATHS,
  }
  for flag, is_of_use in of_use.items():
    if flags.FLAGS[flag].present and not any(map(is_of_use, names)):
      raise errors.UserError(
        f'--{flag}: makes no difference to --trajectory={", ".join(names)}; '
        'leave it out'
      )


def _path(name: str) -> paths.CameraPath:
  """The path of a name, or that of a file, as the flags ask for it.

  Raises:
    errors.UserError: no such path or file.
  """
  if name in trajectory.PATHS:
    return paths.CameraPath(
      trajectory.camera_path(name, _NUM_FRAMES.value, _STEP_LENGTH.value)
    )
  if not os.path.exists(name):
    raise errors.UserError(
      f'--trajectory={name}: no such file, and none of the paths '
      f'{", ".join(sorted(trajectory.PATHS))}'
    )
  return paths.read(name, _SCALE.value)


def _warn_of_lenses(
  name: str, path: paths.CameraPath, image: str, fov_deg: float
) -> None:
  """Says what a file tells of its cameras that the views do not have."""
  left_out = path.left_out(fov_deg)
  if left_out:
    logging.warning(
      '--trajectory=%s: of its cameras only the poses are taken, the rest is '
      'that of %s: %s',
      name,
      image,
      left_out,
    )


def _warn_of_reach(name: str, path: paths.CameraPath) -> None:
  """Says that a path leaves what the image shows."""
  reach = np.abs(path.camera2scene[..., 3]).max()
  if reach > trajectory.MOST_UNITS:
    logging.warning(
      '--trajectory=%s: goes %.4g scene units away, where nothing of the image '
      'is seen (1 is the median distance of what it shows; up to %g make '
      'sense): give a smaller %s',
      name,
      reach,
      trajectory.MOST_UNITS,
      '--step_length' if name in trajectory.PATHS else '--scale',
    )


def _runs() -> list[_Run]:
  """Every image along every path.

  Raises:
    errors.UserError: an image or a path that is none; flags that are not of
      them; two that would be written into one folder.
  """
  names = _TRAJECTORY.value or [_USUAL_PATH]
  _check_of_use(names)
  taken = [_path(name) for name in names]
  for name, path in zip(names, taken, strict=True):
    _warn_of_reach(name, path)
  starts = [
    given.read(
      image,
      background=user_images.parse_colour(_BACKGROUND.value),
      fov_deg=_FOV_DEG.value,
      is_panorama=_PANORAMA.value,
    )
    for image in _IMAGE.value
  ]
  runs = []
  for (image, start), (name, path) in itertools.product(
    zip(_IMAGE.value, starts, strict=True), zip(names, taken, strict=True)
  ):
    _warn_of_lenses(name, path, image, start.fov_deg)
    # By what tells it from the others.
    parts = [pathlib.Path(image).stem] if len(starts) > 1 else []
    parts += [pathlib.Path(name).stem] if len(names) > 1 else []
    runs.append(
      _Run(
        image=image,
        start=start,
        trajectory=name,
        camera2scene=path.camera2scene,
        folder=pathlib.Path(
          _OUTPUT.value, *(['-'.join(parts)] if parts else [])
        ),
      )
    )
  counts = collections.Counter(run.folder for run in runs)
  folder, count = counts.most_common(1)[0]
  if count > 1:
    raise errors.UserError(
      f'{folder}: is where the views of {count} of the given images and paths '
      'would go; give each --image and --trajectory once, and files names of '
      'their own'
    )
  return runs


def _claim(runs: list[_Run]) -> list[pathlib.Path]:
  """Makes the output and the folders of all runs, which may be the same."""
  folders = [pathlib.Path(_OUTPUT.value), *(run.folder for run in runs)]
  return [
    files.claim_output(folder, _TOOL) for folder in dict.fromkeys(folders)
  ]


def _preview(runs: list[_Run]) -> None:
  """Writes what --preview promises, and says what comes next."""
  _claim(runs)
  for run in runs:
    if (run.folder / view_folder.POSES).exists():
      raise errors.UserError(
        f'{run.folder}: holds the views of a run, which may have another path; '
        'give the preview a folder of its own'
      )
  for run in runs:
    preview.write(run.folder, run.camera2scene, run.start.fov_deg)
    files.write_json(
      run.folder / _PREVIEWED,
      {
        'fov_deg': run.start.fov_deg,
        'frames': [
          {'camera2scene': pose.ravel().tolist()} for pose in run.camera2scene
        ],
      },
    )
  first = runs[0]
  command.finish(
    _OUTPUT.value,
    f'{len(first.camera2scene)} cameras along the path {first.trajectory}'
    f'{_and_others(runs)}; without --preview their views are imagined',
    look_at=os.path.relpath(first.folder / preview.NAME, _OUTPUT.value),
  )


def _and_others(runs: list[_Run]) -> str:
  if len(runs) == 1:
    return ''
  folders = ', '.join(run.folder.name for run in runs)
  return f', and so on: {len(runs)} folders ({folders})'


def _familiar(
  run: _Run, size_px: int, workdir: pathlib.Path
) -> dict[str, Any] | None:
  """How far the image is from those of the model's training; None: not known.

  Says so where it is farther than nearly all of them, or of another lens.
  """
  known = familiarity.read(workdir)
  if known is None:
    return None
  view, _ = run.start.views(size_px)(run.camera2scene[0])
  distance = known.distance(view)
  if distance > known.limit:
    logging.warning(
      '%s: unlike what the model was trained on (distance %.2f; nearly all of '
      'those images are within %.2f): expect worse views than it gives of its '
      'own kind; training on images of this kind helps',
      run.image,
      distance,
      known.limit,
    )
  if not known.is_of_lens(run.start.fov_deg):
    logging.warning(
      '%s: its views are %.0f degrees wide, those that the model was trained on '
      '%.0f to %.0f: expect worse ones than it gives of its own kind; training '
      'on views as wide helps',
      run.image,
      run.start.fov_deg,
      *known.fov_deg,
    )
  return {'distance': distance, 'limit': known.limit, 'fov_deg': known.fov_deg}


def _load(workdir: pathlib.Path) -> predictors.Model:
  """The model, as the flags ask for it."""
  predictor = predictors.load_model(
    workdir,
    sampling=predictors.Sampling(
      sampler=_SAMPLER.value,
      num_steps=_NUM_STEPS.value,
      guidance=_GUIDANCE.value,
      guidance_rescale=_GUIDANCE_RESCALE.value,
      spacing=_SPACING.value,
    ),
    batch_size=_BATCH_SIZE.value,
    ema=_EMA.value,
    step=_CHECKPOINT_STEP.value,
    is_in_turn=_CONDITION_ON.value == 'in_turn',
  )
  if _CONDITION_ON.value == 'all' and predictor.num_sources == 1:
    raise errors.UserError(
      f'--condition_on=all: {_WORKDIR.value} was trained on one source at a '
      'time (config.model.sources); in_turn looks at several in turn'
    )
  return predictor


def _walk(run: _Run, most_sources: int) -> imagining.Walk:
  """A run as it is to be sampled."""
  count = len(run.camera2scene)
  return imagining.Walk(
    start=run.start,
    camera2scene=run.camera2scene,
    sources=order.sources(
      _CONDITION_ON.value,
      run.camera2scene,
      order.order(_ORDER.value, count),
      seed=_SEED.value,
      num_sources=most_sources,
      turns_along=run.start.is_panorama,
    ),
    seeds=order.noise_seeds(_NOISE.value, count, _SEED.value),
  )


def _write(
  run: _Run,
  walk: imagining.Walk,
  frames: UInt8[np.ndarray, 'n s s 3'],
  names: list[str],
  facts: dict[str, Any],
  watch: command.Stopwatch,
) -> None:
  """Writes the video of a run, its cameras, and how the views came about."""
  output, poses, fov_deg = run.folder, run.camera2scene, run.start.fov_deg
  outputs.write_video(output, frames, _FRAMES_PER_S.value)
  preview.write(output, poses, fov_deg)
  outputs.write_cameras(output, names, poses, fov_deg, frames.shape[1])
  # A number where it is one view, a list where there may be several.
  conditioned_on = [
    walk.sources[index]
    if _CONDITION_ON.value in order.OF_SEVERAL
    else walk.sources[index][0]
    for index in range(1, len(frames))
  ]
  files.write_json(
    output / 'generate.json',
    {
      'image': str(run.image),
      'background': _BACKGROUND.value,
      'panorama': run.start.is_panorama,
      'fov_from': run.start.fov_from,
      'workdir': str(_WORKDIR.value),
      'trajectory': str(run.trajectory),
      'num_frames': len(frames),
      'step': _STEP_LENGTH.value
      if run.has_name and run.trajectory not in trajectory.STEPLESS
      else None,
      'scale': None if run.has_name else _SCALE.value,
      'seed': _SEED.value,
      'noise': _NOISE.value,
      'condition_on': _CONDITION_ON.value,
      'order': _ORDER.value,
      'conditioned_on': [None, *conditioned_on],
      **facts,
      **watch.figures(),
    },
  )


def main() -> None:
  watch = command.Stopwatch()
  # Before the model, which takes long to load.
  runs = _runs()
  if _PREVIEW.value:
    _preview(runs)
    return
  workdir = workdirs.require(
    _WORKDIR.value, 'a training run', _CHECKPOINT_STEP.value
  )
  predictor = _load(workdir)
  size_px = predictor.image_size_px
  of_images = {run.image: run for run in runs}
  familiar = {
    image: _familiar(run, size_px, workdir) for image, run in of_images.items()
  }
  logging.info(sharding.devices_text())
  for folder in _claim(runs):
    outputs.forget_cameras(folder)
    (folder / _PREVIEWED).unlink(missing_ok=True)
  most_sources = (
    predictor.num_sources
    if _CONDITION_ON.value == 'all'
    else order.MOST_IN_TURN
  )
  walks = [_walk(run, most_sources) for run in runs]
  folders = [
    outputs.FrameFolder(run.folder, len(run.camera2scene)) for run in runs
  ]
  made = imagining.imagine(
    predictor,
    walks,
    most_sources if _CONDITION_ON.value in order.OF_SEVERAL else 1,
    at_once=_BATCH_SIZE.value,
    show=lambda number, index, view: folders[number].write(index, view),
  )
  for run, walk, frames, folder in zip(runs, walks, made, folders, strict=True):
    facts = {
      'familiarity': familiar[run.image],
      'model': predictor.protocol,
    }
    _write(run, walk, frames, folder.names, facts, watch)
  first = runs[0]
  then = {
    'views': first.folder,
    'output': command.beside(_OUTPUT.value, 'points'),
  }
  command.finish(
    _OUTPUT.value,
    f'{len(made[0])} views along the path {first.trajectory}{_and_others(runs)}',
    look_at=os.path.relpath(first.folder / outputs.VIDEO, _OUTPUT.value),
    then=('make points of them', 'odin_jax.reconstruct', then),
  )


if __name__ == '__main__':
  command.run(main)
