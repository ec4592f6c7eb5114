"""Predictions of all pairs, and their scores by the rules of a table."""

import pathlib
import re
from typing import Any, Iterable, Iterator

from jaxtyping import Float32, Int, UInt8
import numpy as np

from odin_jax import hosts, metrics, predictors
from odin_jax.benchmarks import kept, protocols
from odin_jax.benchmarks.pairs import PairSet, PairTruth, select_truth
from odin_jax.models import lpips
from odin_jax.porting import lpips_package
from odin_jax.shared import (
  digests,
  errors,
  files,
  posed_pair,
  progress,
  user_images,
)

Images = Float32[np.ndarray, 'n s s 3']
Scores = list[dict[str, float | None]]

# Images that are scored at a time: scores are computed in float64.
_BATCH = 64

# How predictions that come from elsewhere may be called.
_GIVEN_NAMES = ('{:0{digits}d}_sample.png', '{:0{digits}d}.png')
_GIVEN_NAME = re.compile(r'\d+(_sample)?\.png')

# Where a table does not say.
_RULES = {
  'lpips': 'alex',
  'ssim': 'gaussian11',
  'quantised': True,
  'mean': 'views, then scenes',
}


def rules(table: protocols.Protocol) -> dict[str, Any]:
  """Which scores a table has: its `metrics`, and what is usual here."""
  return {**_RULES, **table.metrics}


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
  *,
  truth: PairTruth | None = None,
  group: hosts.Group = hosts.ALONE,
  store: kept.Kept | None = None,
) -> Images:
  """One prediction per pair, values in [0, 1].

  Every process predicts whole batches of its own, which the others get from it;
  so pictures do not depend on how many processes there are.

  Args:
    predictor: of the views.
    pairs: all of them.
    seeds: of each pair.
    batch_size: of the predictor.
    truth: of the pairs; for `Warp` alone.
    group: the processes that share the work.
    store: of the first process, has batches that were predicted before, and
      gets those that are now.
  """
  count = len(seeds)
  parts = [
    slice(start, start + batch_size) for start in range(0, count, batch_size)
  ]
  batches = [(posed_pair.select(pairs, rows), seeds[rows]) for rows in parts]
  views = np.zeros(pairs.source.shape, np.float32)
  # The first knows what is left to do.
  is_left = np.ones(len(batches), bool)
  if store:
    for place, batch in enumerate(batches):
      if (found := store.find(*batch)) is not None:
        views[place * batch_size :][: len(found)] = found
        is_left[place] = False
  left = np.flatnonzero(group.gather(is_left)[0])
  rounds = range(0, len(left), group.of)
  if group.is_first:
    rounds = progress.each(rounds, 'batch', desc='predict')
  for start in rounds:
    places = left[start : start + group.of]
    own = np.zeros((min(batch_size, count), *views.shape[1:]), np.float32)
    if group.process < len(places):
      place = places[group.process]
      known = ()
      if isinstance(predictor, predictors.Warp):
        known = (select_truth(truth, parts[place]),)
      predicted = predictor.predict(*batches[place], *known)
      own[: len(predicted)] = predicted
    for place, of_process in zip(places, group.gather(own)):
      batch = batches[place]
      predicted = of_process[: len(batch[1])]
      views[place * batch_size :][: len(predicted)] = predicted
      if store:
        store.keep(*batch, predicted)
  return np.clip(views, 0, 1)


def name_digits(count: int) -> int:
  """How many digits the number of a pair has in the names of its files."""
  return max(3, len(str(count - 1)))


def _given_files(folder: pathlib.Path, count: int) -> list[pathlib.Path]:
  """The one picture of each pair.

  Raises:
    errors.UserError: a pair has none or two, or a picture is of no pair: then
      they were made for other pairs.
  """
  paths = []
  for index in range(count):
    names = [
      name.format(index, digits=name_digits(count)) for name in _GIVEN_NAMES
    ]
    there = [name for name in names if (folder / name).is_file()]
    if not there:
      raise errors.UserError(
        f'{folder}: has neither {names[0]} nor {names[1]}; there are {count} '
        'pairs'
      )
    if len(there) > 1:
      raise errors.UserError(
        f'{folder}: has both {there[0]} and {there[1]}; leave the one to score'
      )
    paths.append(folder / there[0])
  for path in sorted(folder.iterdir()):
    number = _GIVEN_NAME.fullmatch(path.name)
    if number and path not in paths:
      raise errors.UserError(
        f'{path}: is of no pair, of which there are {count}; predict the pairs '
        'of this evaluation, or remove it'
      )
  return paths


def _opaque(path: pathlib.Path) -> UInt8[np.ndarray, 'h w 3']:
  """A predicted picture; what is transparent has no colour to score."""
  stored = user_images.read_stored(path, 'a predicted view')
  if stored.shape[2] == 4 and stored[..., 3].min() < np.iinfo(stored.dtype).max:
    raise errors.UserError(f'{path}: is transparent in places; write it as RGB')
  return user_images.composite(stored, user_images.WHITE)


def _check_pairs(folder: pathlib.Path, pairs: posed_pair.PosedPair) -> None:
  """Refuses predictions of other pairs, by the views that lie beside them.

  Evaluate writes `000_source.png`, `000_truth.png`, ...; others need not.
  """
  views = {'source': pairs.source, 'truth': pairs.target}
  digits = name_digits(len(pairs.source))
  for kind, of_kind in views.items():
    for index, view in enumerate(of_kind):
      path = folder / f'{index:0{digits}d}_{kind}.png'
      if path.is_file() and not np.array_equal(_opaque(path), view):
        raise errors.UserError(
          f'{path}: is not the {kind} of pair {index}, so what is predicted '
          'there is of other pairs; give the same --data and seeds, or predict '
          'the pairs of this evaluation'
        )


class Given:
  """Predictions that come from elsewhere, one picture per pair.

  Args:
    folder: with `000.png`, `001.png`, ..., or `000_sample.png`, ... as
      evaluate itself writes them.
    pairs: that were predicted.

  Raises:
    errors.UserError: no such folder, or a picture is missing, there twice,
      damaged, transparent or of another size, or is of no pair or of others.
  """

  name = 'predictions'

  def __init__(self, folder: str, pairs: posed_pair.PosedPair):
    place = files.require_folder(folder, 'predicted views')
    count, size_px = pairs.source.shape[:2]
    images = []
    for path in _given_files(place, count):
      image = _opaque(path)
      if image.shape != (size_px, size_px, 3):
        raise errors.UserError(
          f'{path}: has {image.shape[1]}x{image.shape[0]} pixels, '
          f'not {size_px}x{size_px}'
        )
      images.append(image)
    _check_pairs(place, pairs)
    stacked = np.stack(images)
    self.images: Images = stacked.astype(np.float32) / 255
    self.protocol = {
      'predictor': self.name,
      'predictions_sha256': digests.of_arrays([stacked]),
    }


def load_lpips(
  name: str, table: protocols.Protocol, image_size_px: int
) -> tuple[lpips.Lpips | None, str | None]:
  """LPIPS and the name of its network.

  LPIPS is None where it is not asked for, and where the package with its
  weights is not; the name is None in the first case alone.

  Args:
    name: of a network, 'protocol' for that of the table, a file of weights, or
      '' for none.
    table: whose scores.
    image_size_px: of the images that will be compared.

  Raises:
    errors.UserError: the weights are not those that were published, or the
      images are too small for the network.
  """
  if not name:
    return None, None
  perceptual = None
  net = rules(table)['lpips'] if name == 'protocol' else name
  if net not in lpips.NETS:
    perceptual = lpips.load(files.local_path(net))
    net = perceptual.net
  else:
    perceptual = lpips_package.load(net)
  smallest = lpips.NETS[net].min_px
  if image_size_px < smallest:
    raise errors.UserError(
      f'image_size_px={image_size_px}: LPIPS with {net} needs at '
      f'least {smallest} px; --config.lpips= goes without'
    )
  return perceptual, net


def as_pictures(samples: Images) -> UInt8[np.ndarray, 'n s s 3']:
  """Predictions as they are written."""
  return np.round(samples * 255).astype(np.uint8)


def score(
  table: protocols.Protocol,
  samples: Images,
  truth: UInt8[np.ndarray, 'n s s 3'],
  perceptual: lpips.Lpips | None,
  masks: metrics.Masks | None = None,
) -> Scores:
  """Scores of each pair, as the table has them, and of kinds of pixels."""
  of_table = rules(table)
  scores: Scores = []
  for start in range(0, len(truth), _BATCH):
    rows = slice(start, start + _BATCH)
    predicted = samples[rows].astype(np.float64)
    if of_table['quantised']:
      # To the bit those that are written: rounded once, in float32.
      predicted = as_pictures(samples[rows]) / 255
    of_rows = masks and {kind: mask[rows] for kind, mask in masks.items()}
    scores += metrics.score(
      predicted, truth[rows] / 255, perceptual, of_table['ssim'], of_rows
    )
  return scores


def score_several(
  table: protocols.Protocol,
  samples: Iterable[Images],
  truth: UInt8[np.ndarray, 'n s s 3'],
  perceptual: lpips.Lpips | None,
  masks: metrics.Masks | None = None,
) -> dict[str, Scores]:
  """Scores of the mean of k samples of each pair, and of the best of them.

  Args:
    table: whose scores.
    samples: k times a sample of each pair.
    truth: what they should be.
    perceptual: LPIPS.
    masks: kinds of pixels.

  Returns:
    `mean_of_k`, near the conditional mean, which a perfect sample is 3 dB
    below; `best_of_k` by PSNR, which takes the truth to know.
  """
  total, best, count = np.zeros(truth.shape, np.float32), None, 0
  for images in samples:
    total += images
    count += 1
    scores = score(table, images, truth, perceptual, masks)
    best = [
      max(rows, key=lambda row: row['psnr'])
      for rows in zip(best or scores, scores, strict=True)
    ]
  mean = score(table, total / count, truth, perceptual, masks)
  return {f'mean_of_{count}': mean, f'best_of_{count}': best}


def scaled(
  table: protocols.Protocol, inputs: posed_pair.PosedPair
) -> Iterator[posed_pair.PosedPair]:
  """What a predictor is given at each scale that the table tries."""
  for factor in table.scale['factors']:
    yield posed_pair.rescaled(inputs, factor)


def best_scale(
  table: protocols.Protocol,
  samples: Iterable[Images],
  pair_set: PairSet,
  perceptual: lpips.Lpips | None,
) -> dict[str, Any]:
  """The best of several scales per scene, by PSNR, which knows the truth.

  Args:
    table: which scales, and which scores.
    samples: of each scale in turn.
    pair_set: with the truth.
    perceptual: LPIPS.

  Returns:
    `factors` that were tried, `scenes` with the best one and its scores, their
    `mean` and its `interval_95`.
  """
  of_pair = [facts['scene'] for facts in pair_set.facts]
  best: dict[str, dict[str, Any]] = {}
  for factor, images in zip(table.scale['factors'], samples, strict=True):
    scores = score(table, images, pair_set.pairs.target, perceptual)
    for scene, mean in metrics.mean_by_scene(scores, of_pair).items():
      if scene not in best or mean['psnr'] > best[scene]['psnr']:
        best[scene] = {**mean, 'factor': factor}
  means = [
    {name: x for name, x in row.items() if name != 'factor'}
    for row in best.values()
  ]
  return {
    'meaning': 'translations times the factor that is best for the scene',
    'factors': list(table.scale['factors']),
    'scenes': best,
    **metrics.summary(means, list(best), over_pairs=False),
  }
