"""What the views along a path are best made from, on procedural worlds.

    python -m tests.benchmarks.path_modes --output=runs/modes [--worlds=8]

Every way of `odin_jax.generate --condition_on` and `--order`, with the
checkpoint that comes with the project, from one view of each of some worlds
that it never saw, along two paths: `right`, which uncovers a side, and `loop`,
to and fro `--step_length` at a time. Against the true views of the world: PSNR
of all views; of the views one with another: TSED, median epipolar distance, and
PSNR of views where the path was before. Prints and writes a row for each:
`modes.json`.
"""

import itertools
from typing import Any

from absl import flags
import numpy as np

from odin_jax import predictors
from odin_jax.generating import given, imagining, order
from odin_jax.geometry import consistency, trajectory
from odin_jax.shared import camera, command, files, psnr
from preprocessing.procedural import footage, true_path

_TOOL = 'tests.benchmarks.path_modes'
_OUTPUT = flags.DEFINE_string('output', None, 'Folder to write.', required=True)
_WORKDIR = flags.DEFINE_string('workdir', 'pretrained', 'The model.')
_WORLDS = flags.DEFINE_integer('worlds', 8, 'How many worlds.', 1)
_NUM_STEPS = flags.DEFINE_integer('num_steps', 2, 'Steps of the sampler.', 1)
_STEP_LENGTH = flags.DEFINE_float('step_length', 0.05, 'Scene units.')
_NUM_FRAMES = flags.DEFINE_integer('num_frames', 16, 'Views of a path.', 3)
# Neither the checkpoint's nor the tests'.
_SEED = 1000
_KINDS_OF_WORLD = ('unique_room', 'unique_corridor', 'unique_outdoor')
_FOV_DEG, _TIME_S = 90.0, 6.0
_PATHS = ('right', 'loop')


def _world(index: int, size_px: int) -> Any:
  focal_px = camera.intrinsics(_FOV_DEG, size_px)[0, 0]
  return footage.make_world(
    _KINDS_OF_WORLD,
    index,
    seed=_SEED,
    seconds=24.0,
    px_per_rad=float(focal_px),
    movers=None,
  )


def _score(
  frames: np.ndarray,
  truth: list[np.ndarray | None],
  camera2scene: np.ndarray,
) -> dict[str, Any]:
  """Figures of the views of one path; None where there are none."""
  size = frames.shape[1]
  views = [
    consistency.View(
      name=str(index),
      read=lambda frame=frame: frame,
      size=(size, size),
      intrinsics=camera.intrinsics(_FOV_DEG, size),
      camera2scene=pose,
    )
    for index, (frame, pose) in enumerate(zip(frames, camera2scene))
  ]
  rule = consistency.Rule()
  seen = [consistency.look(view, rule.size_px) for view in views]
  pairs = consistency.pairs(seen, rule, 1)
  medians = [pair.median_px for pair in pairs if pair.median_px is not None]
  returns = [found.psnr for found in consistency.returns(views)]
  return {
    'psnr': [
      psnr.psnr_db(there, frame)
      for there, frame in list(zip(truth, frames))[1:]
      if there is not None
    ],
    'tsed': [consistency.tsed(pairs)],
    'median_px': medians,
    'return_psnr': returns,
  }


def _mean(values: list[float | None]) -> float | None:
  known = [value for value in values if value is not None]
  return round(float(np.mean(known)), 3) if known else None


def main() -> None:
  """Makes and scores all of them."""
  output = files.claim_output(_OUTPUT.value, _TOOL)
  models = {
    is_in_turn: predictors.load_model(
      _WORKDIR.value,
      sampling=predictors.Sampling(
        sampler='ddim',
        num_steps=_NUM_STEPS.value,
        guidance=1.0,
        guidance_rescale=0.0,
        spacing='',
      ),
      batch_size=16,
      ema=True,
      is_in_turn=is_in_turn,
    )
    for is_in_turn in (False, True)
  }
  size = models[False].image_size_px
  starts = []
  for index in range(_WORLDS.value):
    world = _world(index, size)
    first2world = world.walk.frame2world(_TIME_S)
    truths = {
      name: true_path.render(
        world,
        _TIME_S,
        first2world,
        trajectory.camera_path(name, _NUM_FRAMES.value, _STEP_LENGTH.value),
        fov_deg=_FOV_DEG,
        size_px=size,
      ).images
      for name in _PATHS
    }
    first = truths[_PATHS[0]][0]
    starts.append((given.Given(first, _FOV_DEG, 'flag', False), truths))
  rows = []
  for kind, order_name in itertools.product(order.KINDS, order.ORDERS):
    if kind == 'input' and order_name != order.ORDERS[0]:
      continue
    model = models[kind == 'in_turn']
    most = model.num_sources if kind == 'all' else order.MOST_IN_TURN
    totals: dict[str, list[float | None]] = {}
    for name in _PATHS:
      camera2scene = trajectory.camera_path(
        name, _NUM_FRAMES.value, _STEP_LENGTH.value
      )
      sources = order.sources(
        kind,
        camera2scene,
        order.order(order_name, len(camera2scene)),
        seed=0,
        num_sources=most,
        turns_along=False,
      )
      walks = [
        imagining.Walk(
          start=start,
          camera2scene=camera2scene,
          sources=sources,
          seeds=order.noise_seeds('own', len(camera2scene), seed),
        )
        for seed, (start, _) in enumerate(starts)
      ]
      frames_of_walks = imagining.imagine(
        model, walks, most if kind in order.OF_SEVERAL else 1
      )
      for frames, (_, truths) in zip(frames_of_walks, starts, strict=True):
        for key, values in _score(frames, truths[name], camera2scene).items():
          if key != 'return_psnr' or name == 'loop':
            totals.setdefault(f'{name}/{key}', []).extend(values)
    rows.append(
      {'condition_on': kind, 'order': order_name}
      | {key: _mean(values) for key, values in totals.items()}
    )
    command.say([str(rows[-1])])
    files.write_json(output / 'modes.json', {'rows': rows})


if __name__ == '__main__':
  command.run(main)
