"""What an evaluation costs: pairs per second, CPU seconds per pair.

    python -m tests.benchmarks.evaluate --pairs=256

prints a JSON line for sampling and one for each score, apart, of pairs of noise
at the size and with the network of a recipe, its weights drawn at random: cost
does not depend on what they are. Compiling is timed apart, as the first call.
"""

import json
import resource
import time
from typing import Any, Callable

from absl import flags
import jax
import numpy as np
import tqdm

from configs import evaluate, train
from odin_jax import metrics, predictors, scoring, sharding
from odin_jax.checkpoints import checkpoint
from odin_jax.models import encoders, lpips, odin
from odin_jax.porting import lpips_package
from odin_jax.shared import command, errors, posed_pair

_PAIRS = flags.DEFINE_integer('pairs', 256, 'Pairs to predict.', 1)
_RECIPE = flags.DEFINE_string('recipe', 'world', 'Of configs/train.py.')


def _draw(count: int, size_px: int) -> posed_pair.PosedPair:
  """Pairs of noise."""
  generator = np.random.default_rng(0)
  shape = (2, count, size_px, size_px, 3)
  pixels = generator.integers(0, 256, shape, np.uint8)
  poses = np.tile(np.eye(3, 4), (count, 1, 1))
  poses[:, :, 3] = generator.normal(0, 0.2, (count, 3))
  return posed_pair.PosedPair(
    source=pixels[0],
    target=pixels[1],
    target2source=poses,
    fov_deg=np.full(count, 90.0),
    median_depth=np.ones(count),
  )


def _model(pairs: posed_pair.PosedPair) -> predictors.Model:
  config = checkpoint.plain(train.get_config(_RECIPE.value).to_dict())
  mesh = sharding.make_mesh({'data': -1, 'fsdp': 1, 'tensor': 1})
  everywhere = sharding.replicated(mesh)
  protocol = evaluate.get_config()
  names = ('sampler', 'num_steps', 'spacing', 'guidance', 'guidance_rescale')
  return predictors.Model(
    jax.jit(lambda: odin.init_params(config), out_shardings=everywhere)(),
    jax.device_put(encoders.fit(config, pairs.source), everywhere),
    config,
    mesh=mesh,
    sampling=predictors.completed(
      predictors.Sampling(**{name: protocol[name] for name in names}), config
    ),
    batch_size=protocol.batch_size,
    protocol={},
  )


def _cpu_s() -> float:
  used = resource.getrusage(resource.RUSAGE_SELF)
  return used.ru_utime + used.ru_stime


def _timed(what: str, count: int, work: Callable[[], Any]) -> Any:
  """Does `work` twice and prints what each time took; gives its result."""
  seconds, cpu_s = [], []
  for _ in range(2):
    start, cpu_start = time.monotonic(), _cpu_s()
    result = work()
    seconds.append(time.monotonic() - start)
    cpu_s.append(_cpu_s() - cpu_start)
  figures = {
    'what': what,
    'pairs': count,
    'pairs_per_s': round(count / seconds[1], 1),
    'cpu_s_per_pair': round(cpu_s[1] / count, 5),
    'first_call_s': round(seconds[0], 1),
  }
  tqdm.tqdm.write(json.dumps(figures))
  return result


def main() -> None:
  config = train.get_config(_RECIPE.value)
  count, size_px = _PAIRS.value, config.image_size_px
  tqdm.tqdm.write(
    json.dumps({'devices': sharding.devices_text(), 'size_px': size_px})
  )
  pairs = _draw(count, size_px)
  model, seeds = _model(pairs), np.arange(count)
  inputs = pairs._replace(target=None)
  batch_size = evaluate.get_config().batch_size
  samples = _timed(
    'sampling',
    count,
    lambda: scoring.predict_all(model, inputs, seeds, batch_size),
  )
  if not np.isfinite(samples).all():
    raise errors.UserError('samples are not finite')
  predicted, truth = samples.astype(np.float64), pairs.target / 255
  for window in ('gaussian11', 'uniform7'):
    _timed(
      f'SSIM {window}', count, lambda: metrics.ssim(predicted, truth, window)
    )
  for net in lpips.NETS:
    if path := lpips_package.find(net):
      perceptual = lpips.Lpips(lpips_package.read(path)[2], net)
      _timed(
        f'PSNR, SSIM and LPIPS {net}',
        count,
        lambda: metrics.score(predicted, truth, perceptual),
      )


if __name__ == '__main__':
  command.run(main)
