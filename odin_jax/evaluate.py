"""Scores a predictor on the held-out pairs of a benchmark.

  python -m odin_jax.evaluate --config=configs/evaluate.py --benchmark=records \
      --data=runs/demo/records --predictor=model --workdir=runs/demo/train \
      --output=runs/demo/evaluate/model

Every pair gets one prediction, never the best of several. `--predictor=copy`
and `--predictor=mean` need no `--workdir`: they are what a model has to beat.
`--shuffle_poses` gives each pair the pose of another one and leaves all else
as it was: a model that uses the pose gets worse.

Output: `metrics.json` (the whole protocol, mean scores, one row per pair) and
`pairs/000_source.png`, `000_truth.png`, `000_sample.png`, ...
"""

import sys

# As a file it finds none of the packages below.
if __name__ == '__main__' and not __package__:
  sys.stderr.write('error: type: python -m odin_jax.evaluate\n')
  sys.exit(2)

import pathlib
import platform
from typing import Any

from absl import flags, logging
import cv2
import flax
import jax
from jaxtyping import Int, UInt8
import numpy as np

from odin_jax import metrics, predictors, sharding
from odin_jax.benchmarks import BENCHMARKS
from odin_jax.benchmarks.pairs import PairSet
from odin_jax.models import lpips
from odin_jax.porting import lpips_package
from odin_jax.shared import command, errors, files, image_files, posed_pair

_TOOL = 'odin_jax.evaluate'
_MODEL = predictors.Model.name
_CONFIG = command.define_config('configs/evaluate.py')
_BENCHMARK = flags.DEFINE_enum(
  'benchmark', 'records', sorted(BENCHMARKS), 'Layout of --data.'
)
_DATA = command.define_path(
  'data', 'Folder of the benchmark, e.g. the output of preprocessing.'
)
_PREDICTOR = flags.DEFINE_enum(
  'predictor',
  _MODEL,
  [_MODEL, *predictors.BASELINES],
  'model: samples of a trained model; copy: the source view itself; mean: its '
  'mean colour.',
)
_WORKDIR = command.define_model()
_OUTPUT = command.define_output('Folder for metrics.json and pairs/')
_SHUFFLE_POSES = flags.DEFINE_bool(
  'shuffle_poses', False, "Give each pair another pair's pose, as a control."
)
flags.mark_flags_as_required(['data', 'output'])


def derangement(count: int, seed: int) -> Int[np.ndarray, 'n']:
  """A seeded permutation that leaves nothing in its place: one random cycle.

  Raises:
    ValueError: fewer than two items.
  """
  if count < 2:
    raise ValueError(f'{count} items cannot change places')
  cycle = np.random.default_rng(seed).permutation(count)
  order = np.empty(count, np.int64)
  order[cycle] = np.roll(cycle, 1)
  return order


def predict_all(
  predictor: predictors.Predictor,
  pairs: posed_pair.PosedPair,
  seeds: Int[np.ndarray, 'n'],
  batch_size: int,
) -> UInt8[np.ndarray, 'n s s 3']:
  """One 8-bit prediction per pair."""
  predictions = []
  starts = range(0, len(seeds), batch_size)
  for start in progress.each(starts, 'batch', desc='predict'):
    rows = slice(start, start + batch_size)
    batch = posed_pair.select(pairs, rows)
    predictions.extend(predictor.predict(batch, seeds[rows]))
  return np.round(np.clip(predictions, 0, 1) * 255).astype(np.uint8)


def _load_predictor(config: Any) -> predictors.Predictor:
  if _PREDICTOR.value != _MODEL:
    return predictors.BASELINES[_PREDICTOR.value]()
  if not _WORKDIR.value:
    raise errors.UserError(
      '--workdir: not given; --predictor=model needs the training run'
    )
  predictor = predictors.load_model(
    files.require_folder(_WORKDIR.value, 'a training run'),
    sampling=predictors.Sampling(
      sampler=config.sampler,
      num_steps=config.num_steps,
      guidance=config.guidance,
      guidance_rescale=config.guidance_rescale,
      spacing=config.spacing,
    ),
    batch_size=config.batch_size,
    ema=config.ema,
  )
  if predictor.image_size_px != config.image_size_px:
    raise errors.UserError(
      f'{_WORKDIR.value}: its model makes {predictor.image_size_px} px images '
      f'and the protocol asks for {config.image_size_px} px; give '
      f'--config.image_size_px={predictor.image_size_px}'
    )
  logging.info(sharding.devices_text())
  return predictor


def _software() -> dict[str, str]:
  return {
    'python': platform.python_version(),
    'jax': jax.__version__,
    'flax': flax.__version__,
    'numpy': np.__version__,
    'opencv': cv2.__version__,
    'device': jax.devices()[0].device_kind,
  }


def _write_images(
  output: pathlib.Path, index: str, views: dict[str, np.ndarray]
) -> dict[str, str]:
  """Writes pairs/INDEX_NAME.png; returns their names under `output`."""
  names = {}
  for name, image in views.items():
    names[name] = f'pairs/{index}_{name}.png'
    image_files.write(output / names[name], image)
  return names


def _fresh_output() -> pathlib.Path:
  """The output folder without the results of an earlier run of this tool."""
  output = files.claim_output(_OUTPUT.value, _TOOL)
  (output / 'metrics.json').unlink(missing_ok=True)
  (output / 'pairs').mkdir(exist_ok=True)
  for image in (output / 'pairs').glob('*.png'):
    image.unlink()
  return output


def _load_lpips(config: Any) -> lpips.Lpips | None:
  """None where it is not asked for, or the package with its weights is not."""
  if not config.lpips:
    return None
  perceptual, net = None, config.lpips
  if net not in lpips.NETS:
    perceptual = lpips.load(files.local_path(config.lpips))
    net = perceptual.net
  elif path := lpips_package.find(net):
    _, _, params = lpips_package.read(path)
    perceptual = lpips.Lpips(params, net)
  smallest = lpips.NETS[net].min_px
  if config.image_size_px < smallest:
    raise errors.UserError(
      f'image_size_px={config.image_size_px}: LPIPS with {net} needs at least '
      f'{smallest} px; --config.lpips= goes without'
    )
  return perceptual


def _check(config: Any) -> None:
  if min(config.num_pairs, config.batch_size) < 1:
    raise errors.UserError('num_pairs and batch_size must be at least 1')
  if config.image_size_px < metrics.SSIM_WINDOW_PX:
    raise errors.UserError(
      f'image_size_px={config.image_size_px}: SSIM needs at least '
      f'{metrics.SSIM_WINDOW_PX} px'
    )


def _pose_order(count: int, seed: int) -> Int[np.ndarray, 'n']:
  """Whose pose each pair gets."""
  if not _SHUFFLE_POSES.value:
    return np.arange(count)
  if count < 2:
    raise errors.UserError(
      f'{_DATA.value}: {count} held-out pair; shuffling poses needs two'
    )
  return derangement(count, seed)


def _protocol(
  config: Any,
  pair_set: PairSet,
  predictor: predictors.Predictor,
  perceptual: lpips.Lpips | None,
) -> dict[str, Any]:
  """Everything that can move the figures."""
  return {
    'benchmark': _BENCHMARK.value,
    'data': _DATA.value,
    **pair_set.protocol,
    'predictor': _PREDICTOR.value,
    'workdir': _WORKDIR.value if _PREDICTOR.value == _MODEL else None,
    'shuffle_poses': _SHUFFLE_POSES.value,
    'samples_per_pair': 1,
    'config': config.to_dict(),
    'model': predictor.protocol,
    'metrics': {
      **metrics.definitions(perceptual),
      'images': 'scores are of the 8-bit images in pairs/',
    },
    'software': _software(),
  }


def _step_of(protocol: dict[str, Any]) -> str:
  """Which checkpoint it was; '' for a baseline or a ported model."""
  if not protocol.get('training_steps'):
    return ''
  return (
    f' (step {protocol["checkpoint_step"]} of {protocol["training_steps"]})'
  )


def _finish(
  mean: dict[str, float | None],
  rows: list[dict[str, Any]],
  protocol: dict[str, Any],
) -> None:
  distance = 'none' if mean['lpips'] is None else f'{mean["lpips"]:.3f}'
  made = (
    f'{_PREDICTOR.value}{_step_of(protocol)}'
    f'{" with shuffled poses" if _SHUFFLE_POSES.value else ""}, {len(rows)} pairs: '
    f'PSNR {mean["psnr"]:.2f} dB, SSIM {mean["ssim"]:.3f}, LPIPS {distance}'
  )
  then = None
  if _PREDICTOR.value == _MODEL:
    given = {
      'workdir': _WORKDIR.value,
      'image': pathlib.Path(_OUTPUT.value) / rows[0]['files']['source'],
      'output': command.beside(_OUTPUT.value, 'views'),
    }
    then = ('imagine more views', 'odin_jax.generate', given)
  command.finish(_OUTPUT.value, made, look_at='pairs', then=then)


def main() -> None:
  watch = command.Stopwatch()
  config = _CONFIG.value
  _check(config)
  perceptual = _load_lpips(config)
  predictor = _load_predictor(config)
  pair_set = BENCHMARKS[_BENCHMARK.value](
    _DATA.value,
    image_size_px=config.image_size_px,
    num_pairs=config.num_pairs,
    seed=config.pairs_seed,
  )
  pairs, count = pair_set.pairs, len(pair_set.facts)
  order = _pose_order(count, config.seed)
  output = _fresh_output()

  # -- One sample per pair ----------------------------------------------------
  inputs = pairs._replace(target=None, target2source=pairs.target2source[order])
  seeds = np.random.default_rng(config.seed).integers(2**31 - 1, size=count)
  samples = predict_all(predictor, inputs, seeds, config.batch_size)

  # -- Scores -----------------------------------------------------------------
  scores = metrics.score(samples / 255, pairs.target / 255, perceptual)
  mean = metrics.mean_score(scores)

  # -- Files ------------------------------------------------------------------
  digits = max(3, len(str(count - 1)))
  rows = []
  for index, facts in enumerate(pair_set.facts):
    views = {
      'source': pairs.source[index],
      'truth': pairs.target[index],
      'sample': samples[index],
    }
    rows.append(
      {
        'index': index,
        **facts,
        'target2source': pairs.target2source[index].ravel().tolist(),
        'pose_of_pair': int(order[index]),
        'seed': int(seeds[index]),
        **scores[index],
        'files': _write_images(output, f'{index:0{digits}d}', views),
      }
    )
  files.write_json(
    output / 'metrics.json',
    {
      'protocol': _protocol(config, pair_set, predictor, perceptual),
      'mean': mean,
      'pairs': rows,
    },
  )
  files.write_json(output / 'evaluate.json', watch.figures())
  _log(mean, count, predictor.protocol)
  if config.lpips and perceptual is None:
    logging.warning(
      'LPIPS is null: its weights are not here; %s', lpips_package.INSTALL
    )


if __name__ == '__main__':
  command.run(main)
