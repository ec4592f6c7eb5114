"""What the motion mask learns, against the true motion of procedural pairs.

    python -m tests.benchmarks.motion_mask --output=runs/mask [--steps=600] \\
        [--lambdas=0.1,0.2,0.5,1] [--eps_lambdas=0.02,0.1,0.5] \\
        [--timed_lambdas=none,0.2]

makes outdoor worlds full of things that move, trains the `world` recipe for
each lambda and without a mask, all with one budget and seed, and measures on
held-out pairs of the same worlds. A run that was killed is continued. Output:
`motion_mask.json`, the picture `motion_mask.png` and, on stdout, a table.

True motion is what `true_motion` calls so: pixels of the target that show a
thing that was elsewhere at the source's time, or a static place that such a
thing hid from the source. A cell of the latent grid, on which the mask lives,
moves if at least half of it does.

Detectors of cells that move, each by its score averaged over noise draws:
1 - M; the squared error e of the same network, which unlike M knows the truth;
and the contrast of the target within the cell. IoU and average precision pool
all cells of all pairs; chance is the share of cells that move.

PSNR is of the squared error pooled over pairs, on pixels none of which moves
and on those that move by half or more; differences from the run without a mask
are of the same pairs and noise, with a 95 % bootstrap interval over pairs. It
leaves out what another training seed changes: see the row of the second seed.

Where the mask has learned its optimum M = min(1, lambda / E[e | input]), cells
of like M < 1 have a mean e of lambda / M. So `calibration`, the mean of e times
the mean of M over lambda, is 1 in every tenth of the cells by M.
`..._between_timesteps` is the share of the variance of log e and log M that
lies between timesteps, where it says nothing of motion. All of it takes about
15 minutes of one core.
"""

import dataclasses
import json
import pathlib
import subprocess
import sys
from typing import Any, Callable

from absl import flags
import cv2
from einops import rearrange
from flax import nnx
import jax
import jax.numpy as jnp
from jaxtyping import Float, UInt8
import numpy as np

from odin_jax import predictors
from odin_jax.benchmarks import records
from odin_jax.checkpoints import checkpoint
from odin_jax.diffusion import loss, schedule
from odin_jax.models import conditioning, encoders, odin
from odin_jax.shared import command, files, image_files, posed_pair
from tests.benchmarks import true_motion
from tests.helpers import default_sampling, restored

_TOOL = 'tests.benchmarks.motion_mask'
_OUTPUT = flags.DEFINE_string('output', None, 'Folder to write.', required=True)
_STEPS = flags.DEFINE_integer('steps', 600, 'Of every training run.', 1)
_LAMBDAS = flags.DEFINE_list(
  'lambdas', ['0.1', '0.2', '0.5', '1'], 'With v prediction.'
)
_EPS_LAMBDAS = flags.DEFINE_list(
  'eps_lambdas', ['0.02', '0.1', '0.5'], 'With eps prediction; may be empty.'
)
_TIMED_LAMBDAS = flags.DEFINE_list(
  'timed_lambdas',
  [],
  'With v prediction and the times of both views for a condition; none: without '
  'a mask, with two seeds.',
)
_IMAGE_SIZE_PX = flags.DEFINE_integer('image_size_px', 32, 'Of the model.', 16)

_TEST_PAIRS, _BATCH = 160, 32
_TIMESTEPS, _SHOWN_TIMESTEP, _DRAWS = (100, 300, 500, 800, 950), 500, 4
# A run takes about a minute of one core.
_SMALLER = (
  '--config.batch_size=16',
  '--config.model.unet.model_channels=64',
  '--config.model.unet.context_dim=64',
  '--config.model.unet.num_groups=16',
)
# Of 1 - M, fixed before anything was measured.
_THRESHOLD = 0.5
_SAMPLING = default_sampling.sampling()
_BOOTSTRAP = 2000
# Of `true_motion.KINDS`, RGB, in the picture.
_COLOURS = np.array([[60, 60, 60], [70, 90, 150], [255, 170, 0], [230, 30, 30]])
_SHOWN_PAIRS, _TILE_PX, _HEADER_PX = 8, 96, 24

Figures = dict[str, Any]
Cells = Float[np.ndarray, 'pairs n n']
Images = Float[np.ndarray, 'pairs s s 3']


@dataclasses.dataclass(frozen=True, kw_only=True)
class Run:
  """One training run.

  Attributes:
    prediction: what the network predicts.
    mask_lambda: None trains without a mask.
    seed: of parameters, noise and order.
    is_timed: whether the times of both views are a condition.
  """

  prediction: str = 'v'
  mask_lambda: float | None = None
  seed: int = 0
  is_timed: bool = False

  @property
  def name(self) -> str:
    """Of its folder and its rows."""
    mask = 'none' if self.mask_lambda is None else f'{self.mask_lambda:g}'
    timed = '_timed' * self.is_timed
    seed = f'_seed{self.seed}' * bool(self.seed)
    return f'{self.prediction}_{mask}{timed}{seed}'


# -- Training and looking ------------------------------------------------------


def train(run: Run, data: pathlib.Path, folder: pathlib.Path) -> pathlib.Path:
  """The workdir of a run, trained as far as asked for."""
  workdir = folder / run.name
  done = workdir / 'final.json'
  if done.is_file() and json.loads(done.read_text())['step'] == _STEPS.value:
    return workdir
  mask = (
    ['--config.diffusion.mask_auxiliary=none']
    if run.mask_lambda is None
    else [f'--config.diffusion.mask_lambda={run.mask_lambda}']
  )
  recipe = f'prediction={run.prediction},image_size_px={_IMAGE_SIZE_PX.value}'
  if run.is_timed:
    recipe += ',conditioning=se3+rays+sweep+time'
  arguments = [
    sys.executable,
    '-m',
    'odin_jax.train',
    f'--config=configs/train.py:world,{recipe}',
    f'--records={data}',
    f'--workdir={workdir}',
    f'--config.steps={_STEPS.value}',
    f'--config.seed={run.seed}',
    '--config.checkpoint_every=200',
    *_SMALLER,
    *mask,
  ]
  subprocess.run(arguments, check=True, cwd=command.REPOSITORY)
  return workdir


def make_probe(config: Figures) -> Callable:
  """(params, encoders, pairs, timestep) -> e and M of every cell."""
  graph, alpha_bars = (
    odin.graph(config),
    schedule.alpha_bars(
      config['diffusion']['schedule'],
      config['diffusion']['num_timesteps'],
      zero_terminal_snr=config['diffusion']['zero_terminal_snr'],
    ),
  )
  prediction = config['diffusion']['prediction']

  @jax.jit
  def probe(params, frozen, pairs, timestep):
    model = nnx.merge(graph, params)
    condition = odin.condition(frozen, config, pairs)
    kept = jnp.zeros(len(pairs.target), bool)
    cond = model.cond(condition, conditioning.Drop(kept, kept))
    x0 = frozen.autoencoder.encode(pairs.target / 255.0)
    alpha_bar = jnp.asarray(alpha_bars, jnp.float32)[timestep]
    alpha_bar = jnp.full(len(x0), alpha_bar)

    def draw(key):
      noise = jax.random.normal(key, x0.shape)
      output, logit, _ = model.denoise(
        schedule.diffuse(x0, noise, alpha_bar),
        jnp.full(len(x0), timestep, jnp.float32),
        cond,
      )
      target = schedule.target(prediction, x0, noise, alpha_bar)
      return loss.squared_error(output, target), jax.nn.sigmoid(logit)

    drawn = jax.lax.map(draw, jax.random.split(jax.random.key(0), _DRAWS))
    return jax.tree.map(lambda x: x.mean(axis=0), drawn)

  return probe


def make_sampler(config: Figures, sampling: predictors.Sampling) -> Callable:
  """(params, encoders, pairs, seeds) -> samples."""
  graph = odin.graph(config)
  sampling = predictors.completed(sampling, config)

  @jax.jit
  def sample(params, frozen, pairs, seeds):
    return predictors.sample(
      nnx.merge(graph, params),
      frozen,
      config,
      pairs,
      seeds,
      sampling=sampling,
    )

  return sample


@dataclasses.dataclass(frozen=True)
class Look:
  """What a run makes of the held-out pairs.

  Attributes:
    error: e by timestep, mean over noise draws.
    mask: M, likewise.
    samples: target views, values in [0, 1].
    means: what one step makes of them, of v about the conditional mean.
  """

  error: dict[int, Cells]
  mask: dict[int, Cells]
  samples: Images
  means: Images


class Looker:
  """Shows the held-out pairs to runs; compiles once per prediction."""

  def __init__(self, pairs: posed_pair.PosedPair):
    self._pairs = pairs._replace(
      target2source=pairs.target2source.astype(np.float32),
      fov_deg=pairs.fov_deg.astype(np.float32),
      median_depth=pairs.median_depth.astype(np.float32),
      times_s=pairs.times_s.astype(np.float32),
    )
    self._functions: dict[str, tuple[Callable, ...]] = {}

  def look(self, workdir: pathlib.Path) -> Look:
    """What the run of a workdir makes of the pairs."""
    params, frozen, config = restored.restore(workdir)
    kind = config['diffusion']['prediction'] + config['model']['conditioning']
    if kind not in self._functions:
      self._functions[kind] = (
        make_probe(config),
        make_sampler(config, _SAMPLING),
        make_sampler(config, dataclasses.replace(_SAMPLING, num_steps=1)),
      )
    probe, sample, one_step = self._functions[kind]
    maps, samples, means = [], [], []
    for start in range(0, len(self._pairs.source), _BATCH):
      pairs = posed_pair.select(self._pairs, slice(start, start + _BATCH))
      maps.append([probe(params, frozen, pairs, t) for t in _TIMESTEPS])
      seeds = np.arange(start, start + len(pairs.source), dtype=np.int32)
      asked = params, frozen, pairs._replace(target=None), seeds
      samples.append(sample(*asked))
      means.append(one_step(*asked))
    error, mask = (
      {
        t: np.concatenate([np.asarray(batch[k][i]) for batch in maps])
        for k, t in enumerate(_TIMESTEPS)
      }
      for i in range(2)
    )
    samples, means = (
      np.clip(np.concatenate(x), 0, 1) for x in (samples, means)
    )
    return Look(error, mask, samples, means)


# -- Figures -------------------------------------------------------------------


def _rounded(value: float, digits: int = 3) -> float:
  return round(float(value), digits)


def correlation(a: np.ndarray, b: np.ndarray) -> float | None:
  """Pearson's; None where either is constant, as the mask of a large lambda."""
  if min(a.std(), b.std()) == 0:
    return None
  return _rounded(np.corrcoef(a.ravel(), b.ravel())[0, 1])


def calibration(error: Cells, mask: Cells, mask_lambda: float) -> Figures:
  """M against min(1, lambda / e)."""
  ideal = np.minimum(1, mask_lambda / error)
  order = np.argsort(mask, axis=None)
  tenths = [
    error.ravel()[part].mean() * mask.ravel()[part].mean() / mask_lambda
    for part in np.array_split(order, 10)
    if mask.ravel()[part].mean() < 0.95
  ]
  return {
    'correlation': correlation(mask, ideal),
    'median_ratio': _rounded(np.median(mask / ideal)),
    'calibration': [_rounded(value, 2) for value in tenths],
  }


def between_timesteps(maps: Float[np.ndarray, 'timesteps *shape']) -> float:
  """Share of the variance of the logarithm."""
  logs = np.log(maps).reshape(len(maps), -1)
  return _rounded(1 - logs.var(axis=1).mean() / logs.var())


def by_kind(values: Cells, truth: true_motion.Truth) -> dict[str, float]:
  """Mean over the cells of which a kind has at least half."""
  chosen = truth.cells >= 0.5
  return {
    kind: _rounded(values[chosen[..., k]].mean())
    for k, kind in enumerate(true_motion.KINDS)
    if chosen[..., k].any()
  }


def mask_figures(
  run: Run, look: Look, truth: true_motion.Truth, contrast: Cells
) -> Figures:
  """Everything about M and e, by timestep and over all."""
  moving = truth.moving
  moving_at_all = np.stack([moving] * len(_TIMESTEPS))
  errors, masks = (
    np.stack([maps[t] for t in _TIMESTEPS]) for maps in (look.error, look.mask)
  )
  mask_lambda = run.mask_lambda
  # The error at which the optimal M is 1 - threshold.
  limit = mask_lambda and mask_lambda / (1 - _THRESHOLD)
  rows: Figures = {
    'all': {
      'error': true_motion.detection(errors, moving_at_all, limit),
      'error_between_timesteps': between_timesteps(errors),
    }
  }
  if mask_lambda is not None:
    rows['all'] |= {
      'mask': true_motion.detection(1 - masks, moving_at_all, _THRESHOLD),
      'mask_between_timesteps': between_timesteps(masks),
    }
  for t in _TIMESTEPS:
    error, mask = look.error[t], look.mask[t]
    row = {
      'error': true_motion.detection(error, moving, limit),
      'mean_error': _rounded(error.mean()),
      'mean_error_of': by_kind(error, truth),
    }
    if mask_lambda is not None:
      still = ~moving
      row |= {
        'mask': true_motion.detection(1 - mask, moving, _THRESHOLD),
        'mean_mask_moving': _rounded(mask[moving].mean()),
        'mean_mask_static': _rounded(mask[still].mean()),
        'mean_mask_of': by_kind(mask, truth),
        'contrast_correlation_on_static': correlation(
          1 - mask[still], contrast[still]
        ),
        **calibration(error, mask, mask_lambda),
      }
    rows[str(t)] = row
  return rows


def _pooled_psnr(
  square: np.ndarray, count: np.ndarray
) -> Float[np.ndarray, '*shape']:
  return -10 * np.log10(square.sum(-1) / count.sum(-1))


def psnr_figures(
  samples: Images, baseline: Images, images: Images, truth: true_motion.Truth
) -> Figures:
  """PSNR on what is static and what moves, and the gain over the baseline."""
  moving = truth.pixels[..., 2:].sum(-1)
  drawn = np.random.default_rng(0).integers(
    len(images), size=(_BOOTSTRAP, len(images))
  )
  rows = {}
  for name, chosen in (('static', moving == 0), ('moving', moving >= 0.5)):
    count = chosen.sum((1, 2))
    square, reference = (
      (np.square(x - images).mean(-1) * chosen).sum((1, 2))
      for x in (samples, baseline)
    )
    gains = _pooled_psnr(square[drawn], count[drawn]) - _pooled_psnr(
      reference[drawn], count[drawn]
    )
    psnr = _pooled_psnr(square, count)
    rows[name] = {
      'psnr_db': _rounded(psnr, 2),
      'gain_db': _rounded(psnr - _pooled_psnr(reference, count), 2),
      'interval_db': np.round(np.percentile(gains, [2.5, 97.5]), 2).tolist(),
    }
  return rows


# -- What a reader sees --------------------------------------------------------


def table(rows: dict[str, Figures], runs: list[Run], chance: float) -> str:
  """Markdown."""
  t = str(_SHOWN_TIMESTEP)
  lines = [
    f'At t = {t} of 1000; {chance:.1%} of the cells move.',
    '',
    '| prediction, lambda | M, moving / static | '
    f'IoU of 1 - M > {_THRESHOLD:g} | best IoU, 1 - M / e | '
    'average precision, 1 - M / e | PSNR static, gain dB | '
    'PSNR moving, gain dB | one step: static | one step: moving |',
    '|---|---|---|---|---|---|---|---|---|',
  ]
  for run in runs:
    columns = [
      run.name.replace('_', ', '),
      *_detection_columns(rows[run.name]['mask'][t]),
      *(
        _psnr_column(psnr)
        for views in ('psnr', 'psnr_mean')
        for psnr in rows[run.name][views].values()
      ),
    ]
    lines.append(f'| {" | ".join(columns)} |')
  return '\n'.join(lines)


def _detection_columns(row: Figures) -> list[str]:
  pairs = [
    f'{row["mask"][name] if "mask" in row else "-"} / {row["error"][name]}'
    for name in ('best_iou', 'average_precision')
  ]
  if 'mask' not in row:
    return ['-', '-', *pairs]
  means = f'{row["mean_mask_moving"]:.2f} / {row["mean_mask_static"]:.2f}'
  return [means, str(row['mask']['iou']), *pairs]


def _psnr_column(psnr: Figures) -> str:
  low, high = psnr['interval_db']
  gain = f', {psnr["gain_db"]:+.2f} ({low:+.2f} to {high:+.2f})'
  return f'{psnr["psnr_db"]:.2f}' + gain * bool(low or high)


def _tiles(images: np.ndarray) -> UInt8[np.ndarray, 'b p p 3']:
  """Squares of one size with a white border, from values 0..255."""
  if images.ndim == 3:
    images = np.repeat(images[..., None], 3, axis=-1)
  size = (_TILE_PX - 2, _TILE_PX - 2)
  enlarged = [
    cv2.resize(image, size, interpolation=cv2.INTER_NEAREST)
    for image in np.clip(images, 0, 255).astype(np.uint8)
  ]
  border = ((0, 0), (1, 1), (1, 1), (0, 0))
  return np.pad(enlarged, border, constant_values=255)


def draw_picture(
  path: pathlib.Path,
  pairs: posed_pair.PosedPair,
  truth: true_motion.Truth,
  runs: list[Run],
  looks: dict[str, Look],
) -> None:
  """Pairs that move much, one per row: truth, e, masks, samples."""
  share = truth.moving.mean((1, 2))
  chosen = np.argsort(-share, kind='stable')[: 4 * _SHOWN_PAIRS : 4]
  error = looks[runs[0].name].error[_SHOWN_TIMESTEP]
  columns = {
    'source': pairs.source[chosen],
    'target': pairs.target[chosen],
    'truth': truth.pixels[chosen] @ _COLOURS,
    'truth, cells': truth.moving[chosen] * 255,
    'e, no mask': error[chosen] / np.percentile(error, 99) * 255,
  }
  for run in runs:
    name = run.name.replace('_', ' ')
    if run.mask_lambda is not None:
      mask = looks[run.name].mask[_SHOWN_TIMESTEP]
      columns[f'M {name}'] = mask[chosen] * 255
    columns[name] = looks[run.name].samples[chosen] * 255
  sheet = rearrange(
    np.stack([_tiles(images) for images in columns.values()]),
    'c r y x k -> (r y) (c x) k',
  )
  header = np.full((_HEADER_PX, sheet.shape[1], 3), 255, np.uint8)
  for k, name in enumerate(columns):
    place = (k * _TILE_PX + 3, _HEADER_PX - 8)
    cv2.putText(header, name, place, cv2.FONT_HERSHEY_SIMPLEX, 0.38, (0, 0, 0))
  sheet = np.concatenate([header, sheet])
  image_files.write(path, sheet)


def plan() -> list[Run]:
  """All runs; the baseline of each prediction goes before its lambdas."""
  runs = [Run(), *(Run(mask_lambda=float(x)) for x in _LAMBDAS.value)]
  runs.append(Run(seed=1))
  for mask_lambda in _TIMED_LAMBDAS.value:
    if mask_lambda == 'none':
      runs += [Run(is_timed=True), Run(is_timed=True, seed=1)]
    else:
      runs.append(Run(is_timed=True, mask_lambda=float(mask_lambda)))
  if _EPS_LAMBDAS.value:
    runs.append(Run(prediction='eps'))
  return runs + [
    Run(prediction='eps', mask_lambda=float(x)) for x in _EPS_LAMBDAS.value
  ]


def main() -> None:
  watch = command.Stopwatch()
  output = files.claim_output(_OUTPUT.value, _TOOL).absolute()
  data, size_px = output / 'records', _IMAGE_SIZE_PX.value
  true_motion.make_records(data)
  runs = plan()
  workdirs = {
    run.name: train(run, data, output / f'runs_{size_px}px') for run in runs
  }

  # -- Truth ------------------------------------------------------------------
  pair_set = records.held_out_pairs(
    data, image_size_px=size_px, num_pairs=_TEST_PAIRS, seed=0
  )
  pairs = pair_set.pairs
  images = pairs.target / 255
  _, _, config = checkpoint.open_step(workdirs[runs[0].name])
  cells = encoders.latent_size(config)
  truth = true_motion.find_truth(pair_set, size_px, cells)
  contrast = (
    rearrange(images, 'b (i y) (j x) c -> b i j (y x) c', i=cells, j=cells)
    .std(axis=-2)
    .mean(-1)
  )

  # -- Figures ----------------------------------------------------------------
  looker = Looker(pairs)
  looks = {name: looker.look(workdir) for name, workdir in workdirs.items()}
  rows = {
    run.name: {
      'mask': mask_figures(run, looks[run.name], truth, contrast),
      **{
        name: psnr_figures(
          getattr(looks[run.name], views),
          getattr(looks[Run(prediction=run.prediction).name], views),
          images,
          truth,
        )
        for name, views in (('psnr', 'samples'), ('psnr_mean', 'means'))
      },
    }
    for run in runs
  }
  report = {
    'steps': _STEPS.value,
    'image_size_px': size_px,
    'cells': cells,
    'held_out_pairs': len(pair_set.facts),
    'noise_draws': _DRAWS,
    'threshold': _THRESHOLD,
    'share_of_moving_cells': _rounded(truth.moving.mean(), 4),
    'share_of_pixels': {
      kind: _rounded(share, 4)
      for kind, share in zip(true_motion.KINDS, truth.pixels.mean((0, 1, 2)))
    },
    'contrast': true_motion.detection(contrast, truth.moving, None),
    'runs': rows,
    **watch.figures(),
  }
  files.write_json(output / 'motion_mask.json', report)
  draw_picture(output / 'motion_mask.png', pairs, truth, runs, looks)
  print(table(rows, runs, truth.moving.mean()))


if __name__ == '__main__':
  command.run(main)
