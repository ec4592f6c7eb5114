"""Imagines the views along a camera path from one image.

  python -m odin_jax.generate --workdir=runs/demo/train --image=photo.jpg \
      --trajectory=forward --output=runs/demo/generate

The image becomes the first view (its square middle, at the size of the model;
white, or `--background`, where it is transparent).
The other views follow one after another, each conditioned on a view that
exists already (`--condition_on`):

* `input`, the default: always the given image. The model looks at one source,
  and this is the only one free of its own mistakes, so they do not pile up.
* `previous`: the view before. It reaches farther than one image can show, but
  every view inherits the blur and the drift of all before it.
* `random`: any view that exists, drawn with the seed (as Watson et al., "Novel
  view synthesis with diffusion models", 2022, do per denoising step);
* `all`: the given image, and of the views that exist those whose cameras are
  nearest, as many at once as the model was trained on
  (`config.model.sources`).

Every view has noise of its own. `--noise=shared` starts all of them from the
same: a calmer video, for what is made up then hardly changes from view to view,
but it sticks to the screen and not to the scene, and matching sees that (a
short run, 16 views to the right, points where depth is believed: 19 % of the
pixels against 45 %).

Output: `frames/000.png` (the input image), `frames/001.png`, ...; `poses.json`
with `fov_deg`, `width`, `height` and `frames` (`file` and `camera2scene`, 12
numbers row-major: x_scene = R @ x_camera + t, in the axes of the first view;
the median depth of the scene is 1); `video.mp4`; `generate.json`.
"""

import sys

# As a file it finds none of the packages below.
if __name__ == '__main__' and not __package__:
  sys.stderr.write('error: type: python -m odin_jax.generate\n')
  sys.exit(2)

import pathlib

from absl import flags, logging
import av
import cv2
from jaxtyping import Float, Int, UInt8
import numpy as np

from odin_jax import predictors, sharding
from odin_jax.diffusion import sampler
from odin_jax.geometry import trajectory
from odin_jax.shared import (
  camera,
  command,
  errors,
  files,
  image_files,
  posed_pair,
  progress,
  user_images,
  workdirs,
)

_TOOL = 'odin_jax.generate'
# Views are sampled as evaluation samples them, unless flags say otherwise.
_PROTOCOL = command.load_config('configs/evaluate.py')
_WORKDIR = command.define_model()
_CHECKPOINT_STEP = command.define_checkpoint_step(
  otherwise='the length of a step along the path is --step_length'
)
_IMAGE = command.define_path(
  'image', 'The image to start from; its square middle is used.'
)
_BACKGROUND = flags.DEFINE_string(
  'background',
  'white',
  'What shines through where the image is transparent: R,G,B of 0 to 255, or '
  'the name of a colour.',
)
_TRAJECTORY = flags.DEFINE_enum(
  'trajectory', 'forward', sorted(trajectory.PATHS), 'The camera path.'
)
_OUTPUT = command.define_output(
  'Folder for frames/, poses.json, video.mp4, generate.json'
)
_NUM_FRAMES = flags.DEFINE_integer(
  'num_frames', 16, 'Views in all, the input image included.', lower_bound=2
)
_STEP_LENGTH = flags.DEFINE_float(
  'step_length',
  0.05,
  'Length of a step along the path in scene units (1 is the median depth of '
  'the scene).',
  lower_bound=1e-6,
)
_FOV_DEG = flags.DEFINE_float(
  'fov_deg',
  90.0,
  "Field of view of the image's square middle, degrees.",
  lower_bound=1.0,
  upper_bound=170.0,
)
_CONDITION_ON = flags.DEFINE_enum(
  'condition_on',
  'input',
  ['input', 'previous', 'random', 'all'],
  'Which existing views each new one is made from.',
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
  'Steps of the sampler per view.',
  lower_bound=1,
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
# Small views are enlarged in the video (not in frames/) for people to see.
_MIN_VIDEO_PX = 256


def square_middle(
  image: UInt8[np.ndarray, 'h w 3'], size_px: int
) -> UInt8[np.ndarray, 's s 3']:
  """The square middle of an image, area-averaged to `size_px`."""
  height, width = image.shape[:2]
  side = min(height, width)
  top, left = (height - side) // 2, (width - side) // 2
  image = image[top : top + side, left : left + side]
  interpolation = cv2.INTER_AREA if side > size_px else cv2.INTER_CUBIC
  return cv2.resize(image, (size_px, size_px), interpolation=interpolation)


def sources(
  kind: str,
  camera2scene: Float[np.ndarray, 'n 3 4'],
  seed: int,
  num_sources: int,
) -> list[list[int]]:
  """Which views each view after the first is conditioned on.

  Args:
    kind: a value of `--condition_on`.
    camera2scene: poses of all views.
    seed: of `random`.
    num_sources: the most views of `all`.
  """
  generator = np.random.default_rng(seed)
  positions = camera2scene[:, :, 3]

  def nearest(index: int) -> list[int]:
    distance = np.linalg.norm(positions[1:index] - positions[index], axis=-1)
    order = np.argsort(distance, kind='stable')[: num_sources - 1]
    return [0, *(order + 1).tolist()]

  choices = {
    'input': lambda index: [0],
    'previous': lambda index: [index - 1],
    'random': lambda index: [int(generator.integers(index))],
    'all': nearest,
  }
  return [choices[kind](index) for index in range(1, len(camera2scene))]


def noise_seeds(kind: str, num_frames: int, seed: int) -> Int[np.ndarray, 'n']:
  """Seed of the noise of every view; the first one's is not used."""
  if kind == 'shared':
    return np.full(num_frames, seed)
  return np.random.default_rng(seed).integers(2**31 - 1, size=num_frames)


def imagine(
  predictor: predictors.Predictor,
  image: UInt8[np.ndarray, 's s 3'],
  camera2scene: Float[np.ndarray, 'n 3 4'],
  fov_deg: float,
  conditioned_on: list[list[int]],
  seeds: Int[np.ndarray, 'n'],
) -> UInt8[np.ndarray, 'n s s 3']:
  """The views at all poses; the first is the image itself.

  Views whose sources exist are made together, in one batch.
  """
  frames = {0: image}
  sources_of = dict(enumerate(conditioned_on, start=1))

  def pair(index: int, first: int, *others: int) -> posed_pair.PosedPair:
    given = camera2scene[[first, *others]]
    target = np.broadcast_to(camera2scene[index], given.shape)
    poses = camera.relative(given, target)
    count = len(others)
    return posed_pair.PosedPair(
      source=frames[first],
      target=None,
      target2source=poses[0],
      fov_deg=np.float64(fov_deg),
      # The given image's median depth is the unit; that of others depends on
      # what was imagined.
      median_depth=np.float64(first == 0),
      more=posed_pair.MoreViews(
        image=np.stack([frames[other] for other in others]),
        target2view=poses[1:],
        fov_deg=np.full(count, fov_deg),
        is_there=np.ones(count, bool),
      )
      if others
      else None,
    )

  with progress.bar(len(sources_of), 'view', desc='generate') as bar:
    while waiting := [index for index in sources_of if index not in frames]:
      ready = [
        index for index in waiting if frames.keys() >= {*sources_of[index]}
      ]
      pairs = posed_pair.alike(
        [pair(index, *sources_of[index]) for index in ready]
      )
      samples = predictor.predict(posed_pair.stack(pairs), seeds[ready])
      samples = np.round(np.clip(samples, 0, 1) * 255).astype(np.uint8)
      frames.update(zip(ready, samples))
      bar.update(len(ready))
  return np.stack([frames[index] for index in range(len(frames))])


def write_video(
  path: pathlib.Path, frames: UInt8[np.ndarray, 'n s s 3'], frames_per_s: int
) -> None:
  """H.264 in yuv420p, which every browser plays; even sides, enlarged whole."""
  size = frames.shape[1]
  scale = -(-_MIN_VIDEO_PX // size)
  side = size * scale + size * scale % 2
  with av.open(str(path), 'w', options={'movflags': '+faststart'}) as container:
    stream = container.add_stream(
      'libx264', rate=frames_per_s, options={'crf': '16'}
    )
    stream.width = stream.height = side
    stream.pix_fmt = 'yuv420p'
    for frame in frames:
      if side != size:
        frame = cv2.resize(
          frame, (side, side), interpolation=cv2.INTER_LANCZOS4
        )
      picture = av.VideoFrame.from_ndarray(frame, format='rgb24')
      container.mux(stream.encode(picture))
    container.mux(stream.encode())


def _write_frames(
  output: pathlib.Path, frames: UInt8[np.ndarray, 'n s s 3']
) -> list[str]:
  """Writes frames/000.png ...; returns their names under `output`."""
  folder = output / 'frames'
  folder.mkdir(exist_ok=True)
  for old in folder.glob('*.png'):
    old.unlink()
  digits = max(3, len(str(len(frames) - 1)))
  names = [f'frames/{index:0{digits}d}.png' for index in range(len(frames))]
  for name, frame in zip(names, frames):
    image_files.write(output / name, frame)
  return names


def main() -> None:
  watch = command.Stopwatch()
  # Before the model, which takes long to load.
  photo = user_images.read(
    _IMAGE.value,
    'the image to start from',
    background=user_images.parse_colour(_BACKGROUND.value),
  )
  predictor = predictors.load_model(
    workdirs.require(_WORKDIR.value, 'a training run'),
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
  )
  logging.info(sharding.devices_text())
  size = predictor.image_size_px
  image = square_middle(photo, size)
  output = files.claim_output(_OUTPUT.value, _TOOL)
  # Readers take poses.json for a finished run; it is written last but one.
  (output / 'poses.json').unlink(missing_ok=True)
  camera2scene = trajectory.camera_path(
    _TRAJECTORY.value, _NUM_FRAMES.value, _STEP_LENGTH.value
  )
  if _CONDITION_ON.value == 'all' and predictor.num_sources == 1:
    raise errors.UserError(
      f'--condition_on=all: {_WORKDIR.value} was trained on one source at a '
      'time (config.model.sources); give input, previous or random'
    )
  conditioned_on = sources(
    _CONDITION_ON.value, camera2scene, _SEED.value, predictor.num_sources
  )
  seeds = noise_seeds(_NOISE.value, len(camera2scene), _SEED.value)
  frames = imagine(
    predictor, image, camera2scene, _FOV_DEG.value, conditioned_on, seeds
  )
  names = _write_frames(output, frames)
  with files.atomic_path(output / 'video.mp4') as temporary:
    write_video(temporary, frames, _FRAMES_PER_S.value)
  files.write_json(
    output / 'poses.json',
    {
      'fov_deg': _FOV_DEG.value,
      'width': size,
      'height': size,
      'frames': [
        {'file': name, 'camera2scene': pose.ravel().tolist()}
        for name, pose in zip(names, camera2scene)
      ],
    },
  )
  files.write_json(
    output / 'generate.json',
    {
      'image': str(_IMAGE.value),
      'background': _BACKGROUND.value,
      'workdir': str(_WORKDIR.value),
      'trajectory': _TRAJECTORY.value,
      'num_frames': len(frames),
      'step_length': _STEP_LENGTH.value,
      'seed': _SEED.value,
      'noise': _NOISE.value,
      'condition_on': _CONDITION_ON.value,
      # A number where it is one view, a list where there may be several.
      'conditioned_on': [
        None,
        *(
          conditioned_on
          if _CONDITION_ON.value == 'all'
          else (views[0] for views in conditioned_on)
        ),
      ],
      'model': predictor.protocol,
      **watch.figures(),
    },
  )
  given = {'views': output, 'output': command.beside(output, 'points')}
  command.finish(
    output,
    f'{len(frames)} views along the path {_TRAJECTORY.value}',
    look_at='video.mp4',
    then=('make points of them', 'odin_jax.reconstruct', given),
  )


if __name__ == '__main__':
  command.run(main)
