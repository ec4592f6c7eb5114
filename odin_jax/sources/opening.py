"""The folders that a config is trained on, opened as one source."""

import functools
import math
import os
from typing import Any, Callable, NamedTuple, Sequence

from absl import logging

from odin_jax import batches, latents
from odin_jax.panoramas import choice
from odin_jax.panoramas import source as panoramas
from odin_jax.shared import (
  errors,
  record_filters,
  record_folder,
  schema,
  storage,
)
from odin_jax.sources import mixture, skipping

# Of the config, what is of effect on some folders alone.
FIELDS = ('panoramas', 'filters', 'mixture')


class Opened(NamedTuple):
  """What is trained on.

  Attributes:
    source: of the examples.
    made_of: how many pairs and panoramas, in words.
    allowance: counts the damaged records that were skipped.
    read: of the `FIELDS` of the config, what was read.
    encoded: latents that are read in place of images, if any.
  """

  source: batches.Source
  made_of: str
  allowance: skipping.Allowance
  read: dict[str, Any]
  encoded: list[latents.LatentFolder]


def open_sources(
  paths: Sequence[str],
  config: dict[str, Any],
  *,
  split: str = 'train',
  depth: bool,
  num_sources: int,
  latents_paths: Sequence[str] = (),
  times: bool = False,
) -> Opened:
  """Opens folders of records.

  Args:
    paths: of the folders, or their addresses.
    config: of the training; read, not changed.
    split: `train` or `test`.
    depth: give the depth of the views.
    num_sources: views given of each scene.
    latents_paths: of the latents of each folder, or none of any.
    times: give the times of the views.

  Raises:
    errors.UserError: see `odin_jax.batches.PairSource` and
      `odin_jax.panoramas.source.PanoramaSource`; a folder given twice; fields
      of the config that do not fit the folders or each other; no pair of any
      folder has a further view, where they are asked for.
  """
  _check_different(paths)
  weights = _weights(config['mixture'], paths)
  filters = record_filters.Filters(config['filters'])
  kinds = [record_folder.kind(path) for path in paths]
  are_pairs = [kind is schema.PAIRS for kind in kinds]
  read = _read_of(paths, are_pairs, config, filters, weights)
  rules = None
  if 'panoramas' in read:
    try:
      rules = choice.Rules(**read['panoramas'])
    except (TypeError, ValueError) as error:
      raise errors.UserError(f'config.panoramas: {error}') from error
  given = {
    'split': split,
    'image_size_px': config['image_size_px'],
    'cache': config['cache_records'],
    'depth': depth,
    'num_sources': num_sources,
    'times': times,
  }
  encoded = {}
  if latents_paths:
    _check_latents(latents_paths, paths, are_pairs)
    for path, of_path in zip(paths, latents_paths, strict=True):
      encoded[path] = functools.partial(
        latents.LatentFolder, of_path, config=config
      )
  sources = _opened(paths, are_pairs, given, filters, rules, encoded)
  of_views = [source.latents for source in sources] if encoded else []
  if num_sources > 1:
    _check_more(paths, sources)
  counts = [
    f'{sum(counted)} {name}'
    for name, kind in (('pairs', True), ('panoramas', False))
    if (
      counted := [
        len(source)
        for source, is_pairs in zip(sources, are_pairs, strict=True)
        if is_pairs is kind
      ]
    )
  ]
  allowance = skipping.Allowance(config['max_corrupt_records'])
  if allowance.limit:
    sources = [skipping.Skipping(source, allowance) for source in sources]
  source = sources[0]
  if len(sources) > 1:
    source = mixture.Mixture(sources, weights or None)
  return Opened(source, ' and '.join(counts), allowance, read, of_views)


def _read_of(
  paths: Sequence[str],
  are_pairs: Sequence[bool],
  config: dict[str, Any],
  filters: record_filters.Filters,
  weights: list[float | int],
) -> dict[str, Any]:
  """What is read of the `FIELDS` of the config."""
  read: dict[str, Any] = {}
  if filters.limits:
    for path, is_pairs in zip(paths, are_pairs, strict=True):
      if not is_pairs:
        raise errors.UserError(
          f'{path}: holds panoramas, and config.filters.{min(filters.limits)} '
          'is of records of pairs; leave it out: config.panoramas says what is '
          'cut'
        )
    read['filters'] = filters.limits
  if weights:
    read['mixture'] = {'weights': weights}
  if not all(are_pairs):
    read['panoramas'] = config['panoramas']
  return read


def _check_latents(
  latents_paths: Sequence[str],
  paths: Sequence[str],
  are_pairs: Sequence[bool],
) -> None:
  if len(latents_paths) != len(paths):
    raise errors.UserError(
      f'--latents: {len(latents_paths)} for {len(paths)} folders of records; '
      'give those of each --records, in their order, or none'
    )
  for path, is_pairs in zip(paths, are_pairs, strict=True):
    if not is_pairs:
      raise errors.UserError(
        f'--latents: {path} holds panoramas, whose views are cut as it trains; '
        'give folders of pairs, or train without latents'
      )


def _check_different(paths: Sequence[str]) -> None:
  places = set()
  for path in paths:
    place = path if storage.is_address(path) else os.path.realpath(path)
    if place in places:
      raise errors.UserError(
        f'--records={path}: is given twice; config.mixture.weights says how '
        'often records are taken'
      )
    places.add(place)


def _weights(config: dict[str, Any], paths: Sequence[str]) -> list[float | int]:
  """Those of the folders; none where there are none, or one folder."""
  weights = list(config['weights'])
  if weights and len(weights) != len(paths):
    raise errors.UserError(
      f'config.mixture.weights={_typed(weights)}: {len(weights)} for '
      f'{len(paths)} folders; give one for each --records'
    )
  for weight in weights:
    is_number = isinstance(weight, (int, float)) and weight is not True
    if not (is_number and 0 < weight < math.inf):
      raise errors.UserError(
        f'config.mixture.weights={_typed(weights)}: {weight} must be a number '
        'above 0; a folder that is not to be read is left out'
      )
  return weights if len(paths) > 1 else []


def _typed(weights: Sequence[Any]) -> str:
  return f'({",".join(map(str, weights))})'


def _opened(
  paths: Sequence[str],
  are_pairs: Sequence[bool],
  given: dict[str, Any],
  filters: record_filters.Filters,
  rules: choice.Rules | None,
  encoded: dict[str, Callable[..., latents.LatentFolder]],
) -> list[batches.Source]:
  """All folders, with maps of depth of one side, if any."""

  def of_pairs(path: str, **more: Any) -> batches.PairSource:
    return batches.PairSource(
      path, filters=filters, encoded=encoded.get(path), **given, **more
    )

  opened: dict[str, Any] = {}
  sides: dict[str, int] = {}
  for path, is_pairs in zip(paths, are_pairs, strict=True):
    if is_pairs:
      opened[path] = of_pairs(path)
      if opened[path].known_depth_px:
        sides[path] = opened[path].known_depth_px
  if len(set(sides.values())) > 1:
    found = ', '.join(f'{path} {side} px' for path, side in sides.items())
    raise errors.UserError(
      f'--records: their maps of depth have several sides ({found}); make them '
      'again with one, or leave one out'
    )
  # The rest takes that of those which have some: views are cut of panoramas at
  # any, and maps of nothing have any.
  side = next(iter(sides.values()), None)
  for path, is_pairs in zip(paths, are_pairs, strict=True):
    if not is_pairs:
      opened[path] = panoramas.PanoramaSource(
        path, rules=rules, depth_px=side, **given
      )
      side = side or opened[path].depth_px
  for path, is_pairs in zip(paths, are_pairs, strict=True):
    if is_pairs and side and path not in sides:
      opened[path] = of_pairs(path, empty_depth_px=side)
  return [opened[path] for path in paths]


def _check_more(paths: Sequence[str], sources: Sequence[Any]) -> None:
  """Raises unless further views can be given of some pair."""
  without = [
    path
    for path, source in zip(paths, sources, strict=True)
    if not source.has_more()
  ]
  if len(without) == len(paths):
    raise errors.UserError(
      f'{", ".join(without)}: no pair has a view of another panorama that shows '
      'what its target shows, for config.model.sources above 1; give '
      'config.model.sources=1, or other records'
    )
  for path in without:
    logging.warning(
      '%s: no pair has a further view; its examples have one source', path
    )
