"""What an evaluation reads: the pairs of a benchmark, and what predicts them."""

import functools
from typing import Any, Mapping, NamedTuple

from absl import logging
from jaxtyping import Int
import numpy as np

from odin_jax import metrics, predictors, scoring, sharding
from odin_jax.benchmarks import LAYOUTS, RECORDS, records, request, scenes
from odin_jax.benchmarks.pairs import PairSet
from odin_jax.geometry import visibility
from odin_jax.shared import errors, record_folder, workdirs

MODEL = predictors.Model.name


class Data(NamedTuple):
  """What every predictor of an evaluation is asked for.

  Attributes:
    pair_set: the pairs.
    here: by lines of the table, what was done to have them.
    masks: kinds of pixels of the targets; None where no truth is known.
  """

  pair_set: PairSet
  here: dict[str, Any]
  masks: metrics.Masks | None


def check(config: dict[str, Any]) -> None:
  """Refuses what can be refused at once.

  Raises:
    errors.UserError: a field has a value that no evaluation can have.
  """
  counts = ('num_pairs', 'num_samples', 'batch_size')
  if min(config[name] for name in counts) < 1:
    raise errors.UserError(f'{", ".join(counts)} must be at least 1')
  if config['num_sources'] < 0:
    raise errors.UserError(
      f'num_sources={config["num_sources"]} must not be below 0'
    )
  seeds = ('seed', 'pairs_seed')
  if min(config[name] for name in seeds) < 0:
    raise errors.UserError(f'{", ".join(seeds)} must not be below 0')
  if config['image_size_px'] < metrics.SSIM_WINDOW_PX:
    raise errors.UserError(
      f'image_size_px={config["image_size_px"]}: SSIM needs at least '
      f'{metrics.SSIM_WINDOW_PX} px'
    )


def load_pairs(asked: request.Request) -> Data:
  """The pairs of a request.

  Raises:
    errors.UserError: they are not there, or not as the table needs them.
  """
  config, table = asked.config, asked.table
  if table.benchmark == RECORDS:
    pair_set = records.held_out_pairs(
      asked.data,
      image_size_px=config['image_size_px'],
      num_pairs=config['num_pairs'],
      seed=config['pairs_seed'],
      truth=asked.truth,
      num_sources=config['num_sources'] or 1,
    )
    return Data(pair_set, {}, _masks(pair_set))
  if asked.truth:
    raise errors.UserError(
      f'--truth: is of records, and {table.name} is of {table.benchmark}'
    )
  if table.benchmark not in LAYOUTS:
    raise errors.UserError(
      f'{table.name}: its benchmark {table.benchmark!r} is none of '
      f'{", ".join([RECORDS, *LAYOUTS])}'
    )
  read = LAYOUTS[table.benchmark]
  if table.benchmark == 'mipnerf360':
    read = functools.partial(read, factor=config['images_factor'])
  sizes = {
    'image_size_px': config['image_size_px'],
    'num_sources': config['num_sources'],
  }
  pair_set = scenes.posed_pairs(
    asked.data, read, table, scale=config['scale'], **sizes
  )
  here = scenes.done_here(table, pair_set, **sizes)
  return Data(pair_set, here, _masks(pair_set))


def _masks(pair_set: PairSet) -> metrics.Masks | None:
  pairs, truth = pair_set.pairs, pair_set.truth
  if truth is None:
    return None
  return visibility.masks(pairs.target2source, pairs.fov_deg, *truth)


def require_truth(asked: request.Request, data: Data) -> None:
  """Refuses a predictor that needs the truth where none is known.

  Raises:
    errors.UserError: so it is.
  """
  if asked.predictor == predictors.Warp.name and data.pair_set.truth is None:
    raise errors.UserError(
      '--predictor=warp: needs the true depth of the pairs; of records of '
      'procedural worlds preprocessing.true_depth writes it, for --truth='
    )


def is_guided(workdir: str | None, step: int | None) -> bool:
  """Whether there is a model that can do what a table says of guidance.

  Args:
    workdir: of the model; None where there is none.
    step: of its checkpoint; None: the newest.

  Raises:
    errors.UserError: no training run there.
  """
  return workdir is not None and predictors.takes_guidance(
    workdirs.require(workdir, 'a training run', step), step
  )


def load_predictors(
  asked: Mapping[str, request.Request],
) -> dict[str, predictors.Predictor | None]:
  """What predicts, by name; None where predictions are given.

  A model is read once, in however many ways it is sampled: a training that goes
  on beside leaves another one there.

  Args:
    asked: by the name of each predictor; all models among them are of one
      folder.

  Raises:
    errors.UserError: there is no such model, or it is of another size.
  """
  sources: dict[str, predictors.Predictor | None] = {}
  model = None
  for name, of_one in asked.items():
    if of_one.predictions:
      sources[name] = None
    elif of_one.predictor != MODEL:
      sources[name] = predictors.BASELINES[of_one.predictor]()
    elif model is None:
      sources[name] = model = _load_model(of_one)
    else:
      sources[name] = model.resampled(_sampling(of_one.config))
  return sources


def _sampling(config: dict[str, Any]) -> predictors.Sampling:
  return predictors.Sampling(
    sampler=config['sampler'],
    num_steps=config['num_steps'],
    guidance=config['guidance'],
    guidance_rescale=config['guidance_rescale'],
    spacing=config['spacing'],
  )


def _load_model(asked: request.Request) -> predictors.Predictor:
  if not asked.workdir:
    raise errors.UserError(
      '--workdir: not given; --predictor=model needs the training run'
    )
  config = asked.config
  predictor = predictors.load_model(
    workdirs.require(asked.workdir, 'a training run', asked.checkpoint_step),
    sampling=_sampling(config),
    batch_size=config['batch_size'],
    ema=config['ema'],
    step=asked.checkpoint_step,
  )
  if predictor.image_size_px != config['image_size_px']:
    raise errors.UserError(
      f'{asked.workdir}: its model makes {predictor.image_size_px} px images '
      f'and the protocol asks for {config["image_size_px"]} px; give '
      f'--config.image_size_px={predictor.image_size_px}'
    )
  if asked.table.benchmark == RECORDS and config['num_sources'] > 1:
    if predictor.num_sources == 1:
      raise errors.UserError(
        f'{asked.workdir}: its model takes one source (config.model.sources), '
        f'and num_sources={config["num_sources"]}; give 1'
      )
  logging.info(sharding.devices_text())
  return predictor


def worlds_of_training_seeds(
  source: predictors.Predictor | scoring.Given, data: Data
) -> list[str]:
  """Which of the scored worlds are of seeds that a model was trained on."""
  seeds = source.protocol.get('pretraining_seeds', ())
  return sorted(
    {
      facts['video_id']
      for facts in data.pair_set.facts
      if facts.get(record_folder.SEED) in seeds
    }
  )


def warn_of_training_seeds(
  sources: Mapping[str, predictors.Predictor | scoring.Given], data: Data
) -> None:
  """Says that figures are not of unseen worlds, where that is known."""
  seen = {
    name
    for source in sources.values()
    for name in worlds_of_training_seeds(source, data)
  }
  if seen:
    logging.warning(
      '%d of the worlds are of a seed that the model was trained on, such as '
      '%s: scores on them are not those on unseen worlds',
      len(seen),
      min(seen),
    )


def pose_order(asked: request.Request, count: int) -> Int[np.ndarray, 'n']:
  """Whose pose each pair gets.

  Raises:
    errors.UserError: poses are to be shuffled, and there is one alone.
  """
  if not asked.shuffle_poses:
    return np.arange(count)
  if count < 2:
    raise errors.UserError(
      f'{asked.data}: {count} held-out pair; shuffling poses needs two'
    )
  return scoring.derangement(count, asked.config['seed'])
