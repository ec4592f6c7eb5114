"""The evaluation of one predictor: its samples, their scores, the protocol."""

import collections
import functools
import itertools
import platform
from typing import Any, NamedTuple

import cv2
import flax
import jax
from jaxtyping import Int
import numpy as np

from odin_jax import (
  distribution_distance,
  hosts,
  metrics,
  predictors,
  scoring,
)
from odin_jax.benchmarks import RECORDS, kept, protocols, request
from odin_jax.benchmarks.pairs import scene_of
from odin_jax.evaluating import inputs
from odin_jax.geometry import visibility
from odin_jax.models import lpips
from odin_jax.shared import (
  digests,
  posed_pair,
  provenance,
)

# What is written of every pair.
VIEWS = ('source', 'truth', 'sample')


class Evaluation(NamedTuple):
  """What came of it.

  Attributes:
    content: of `metrics.json`.
    samples: one per pair, values in [0, 1].
  """

  content: dict[str, Any]
  samples: scoring.Images


class Perceptual(NamedTuple):
  """LPIPS of an evaluation, see `scoring.load_lpips`.

  Attributes:
    distance: None where it is not measured.
    net: name of its network; None where it is not asked for.
  """

  distance: lpips.Lpips | None
  net: str | None


class Distribution(NamedTuple):
  """FID and KID of an evaluation.

  Attributes:
    network: of the user.
    of_truth: its features of the true views.
  """

  network: distribution_distance.FeatureNetwork
  of_truth: distribution_distance.Features

  def distances(self, samples: scoring.Images) -> dict[str, float | int]:
    """Of predictions, as the pictures that are written."""
    return distribution_distance.distances(
      self.network(scoring.as_pictures(samples)), self.of_truth
    )


def software() -> dict[str, str | int]:
  """Versions and devices that figures can depend on."""
  return {
    **_versions(),
    'num_devices': jax.device_count(),
    'num_processes': jax.process_count(),
  }


def decisive(
  asked: request.Request, source: predictors.Predictor
) -> dict[str, Any]:
  """What decides what is predicted, besides what each batch is given.

  How many processes there are does not: each predicts whole batches.
  """
  return {
    'model': source.protocol,
    'batch_size': asked.config['batch_size'],
    'code_sha256': digests.of_code(),
    'software': {**_versions(), 'num_devices': jax.local_device_count()},
  }


def _versions() -> dict[str, str | int]:
  return {
    'python': platform.python_version(),
    'jax': jax.__version__,
    'flax': flax.__version__,
    'numpy': np.__version__,
    'opencv': cv2.__version__,
    'device': jax.devices()[0].device_kind,
  }


def _file_names(index: int, count: int) -> dict[str, str]:
  """The pictures of a pair, under the folder of the evaluation."""
  number = f'{index:0{scoring.name_digits(count)}d}'
  return {name: f'pairs/{number}_{name}.png' for name in VIEWS}


def _true_depth(data: inputs.Data) -> dict[str, Any]:
  """What the masks are of, where there are any."""
  if data.pair_set.truth is None:
    return {}
  return {
    'true_depth': {
      'sha256': digests.of_arrays(data.pair_set.truth),
      'depth_tolerance': visibility.DEPTH_TOLERANCE,
    }
  }


def _training_seeds(
  source: predictors.Predictor | scoring.Given, data: inputs.Data
) -> dict[str, Any]:
  """Worlds that are no unseen ones, where there are any."""
  names = inputs.worlds_of_training_seeds(source, data)
  return {'worlds_of_training_seeds': names} if names else {}


def _done(asked: request.Request, of_source: dict[str, Any]) -> dict[str, Any]:
  """What was done, by lines of a table, for `protocols.departures`."""
  config = asked.config
  done = {
    f'sampling.{key}': of_source[name]
    for name, (part, key) in request.LINES.items()
    if part == 'sampling' and name in of_source
  }
  # Nothing else is drawn at random.
  if done or asked.shuffle_poses:
    done['sampling.seed'] = config['seed']
  if asked.table.benchmark == RECORDS:
    done['views.seed'] = config['pairs_seed']
  return done


def _protocol(
  asked: request.Request,
  data: inputs.Data,
  source: predictors.Predictor | scoring.Given,
  perceptual: Perceptual,
  distribution: Distribution | None,
) -> dict[str, Any]:
  """Everything that can move the figures."""
  rules = scoring.rules(asked.table)
  here = {**data.here, **_done(asked, source.protocol)}
  here['metrics.lpips'] = perceptual.net
  return {
    'benchmark': asked.table.benchmark,
    **data.pair_set.protocol,
    **asked.to_dict(),
    'departures': protocols.departures(asked.table, here),
    'data_sha256': digests.of_arrays(data.pair_set.pairs),
    **_true_depth(data),
    'code_sha256': digests.of_code(),
    'code_commit': provenance.commit(),
    'samples_per_pair': asked.config['num_samples'],
    'model': source.protocol,
    **_training_seeds(source, data),
    'rules': {**rules, 'lpips': perceptual.net},
    'metrics': {
      **metrics.definitions(
        perceptual.distance, rules['ssim'], masked=data.masks is not None
      ),
      **(distribution.network.protocol if distribution else {}),
      'images': 'scores are of the 8-bit images in pairs/'
      if rules['quantised']
      else 'scores are of predictions that were not rounded to 8 bits',
      'mean': f'over {rules["mean"]}',
      'interval_95': 'bootstrap over scenes: 10,000 draws of all their pairs, '
      'percentiles; null of one scene',
    },
    'software': software(),
  }


def evaluate(
  asked: request.Request,
  source: predictors.Predictor | scoring.Given,
  data: inputs.Data,
  order: Int[np.ndarray, 'n'],
  perceptual: Perceptual,
  distribution: Distribution | None,
  *,
  group: hosts.Group = hosts.ALONE,
  store: kept.Kept | None = None,
) -> Evaluation | None:
  """Predicts all pairs and scores what is predicted.

  Args:
    asked: what for.
    source: of the predictions.
    data: the pairs.
    order: whose pose each pair gets.
    perceptual: LPIPS.
    distribution: FID and KID; None where no features are given.
    group: the processes that predict together.
    store: of the first of them, for batches that are predicted.

  Returns:
    what came of it, in the first process alone.
  """
  config, rules = asked.config, scoring.rules(asked.table)
  facts, pairs = data.pair_set.facts, data.pair_set.pairs
  count, distance = len(facts), perceptual.distance
  given = posed_pair.aimed(pairs, pairs.target2source[order])
  seeds = np.random.default_rng(config['seed']).integers(
    2**31 - 1, size=(config['num_samples'], count)
  )

  # -- Predictions, one after the other in all processes -----------------------
  is_searched = asked.table.scale.get('policy') == 'searched'
  if isinstance(source, scoring.Given):
    is_searched, predictions = False, iter([source.images])
  else:
    wanted = [(given, seeds[0])]
    if is_searched:
      wanted += [(x, seeds[0]) for x in scoring.scaled(asked.table, given)]
    wanted += [(given, row) for row in seeds[1:]]
    predictions = (
      scoring.predict_all(
        source,
        *of_one,
        config['batch_size'],
        truth=data.pair_set.truth,
        group=group,
        store=store,
      )
      for of_one in wanted
    )
  if not group.is_first:
    collections.deque(predictions, maxlen=0)
    return None

  # -- Scores -----------------------------------------------------------------
  samples = next(predictions)
  scores = scoring.score(
    asked.table, samples, pairs.target, distance, data.masks
  )
  of_pair = [scene_of(of_facts) for of_facts in facts]
  searched = None
  if is_searched:
    of_scales = itertools.islice(predictions, len(asked.table.scale['factors']))
    searched = scoring.best_scale(
      asked.table, of_scales, data.pair_set, distance
    )
  several = {}
  if config['num_samples'] > 1:
    several = scoring.score_several(
      asked.table,
      itertools.chain([samples], predictions),
      pairs.target,
      distance,
      data.masks,
    )
  summarise = functools.partial(
    metrics.summary, scenes=of_pair, over_pairs=rules['mean'] == 'pairs'
  )

  # -- What metrics.json holds ------------------------------------------------
  rows = [
    {
      'index': index,
      **facts[index],
      'target2source': pairs.target2source[index].ravel().tolist(),
      'pose_of_pair': int(order[index]),
      'seed': int(seeds[0, index]),
      **scores[index],
      'files': _file_names(index, count),
    }
    for index in range(count)
  ]
  content = {
    'protocol': _protocol(asked, data, source, perceptual, distribution),
    **summarise(scores),
    **(distribution.distances(samples) if distribution else {}),
    **{name: summarise(of_name) for name, of_name in several.items()},
    'scenes': metrics.mean_by_scene(scores, of_pair),
    **({'searched': searched} if searched else {}),
    'pairs': rows,
  }
  return Evaluation(content, samples)
