"""The config of a run, checked before any work is done."""

import dataclasses
import hashlib
import math
import os
import pathlib
from typing import Any, Callable

import ml_collections

from odin_jax.shared import errors, files
from preprocessing import matchers
from preprocessing.exporting import exports
from preprocessing.keyframes import frame_quality, static_weights
from preprocessing.matchers import dust3r
from preprocessing.reading import projections
from preprocessing.solving import masks, pair_graph, verification
from preprocessing.views import alignment
from preprocessing.writing import splits

_MIN_WIDTH_PX = 64


def _one_of(*names: str) -> tuple[Callable[[Any], bool], str]:
  return names.__contains__, f'give one of {", ".join(names)}'


_POSITIVE = (lambda value: 0 < value < math.inf, 'must be above 0')
_COUNT = (lambda value: value >= 1, 'must be at least 1')
# Field -> whether a value can be used, and what to say if not.
_LIMITS: dict[str, tuple[Callable[[Any], bool], str]] = {
  'fps': _POSITIVE,
  'window_s': _POSITIVE,
  'substeps': _COUNT,
  'view_size_px': _COUNT,
  'views_per_pair': _COUNT,
  'fov_deg': (lambda value: 0 < value < 180, 'must be between 0 and 180'),
  'max_panorama_width_px': (
    lambda value: value >= _MIN_WIDTH_PX and value % 2 == 0,
    f'must be even and at least {_MIN_WIDTH_PX}',
  ),
  'test_fraction': (lambda value: 0 <= value <= 1, 'must be in 0..1'),
  'matcher': _one_of(*matchers.NAMES),
  'projection': _one_of('auto', *projections.NAMES),
  'split_by': _one_of(*splits.SPLIT_BY),
  'export_formats': (
    lambda value: set(value) <= set(exports.FORMATS),
    f'give some of {", ".join(exports.FORMATS)}',
  ),
}
# Table -> what is made of it, and the fields that it gets from elsewhere.
_RULES = {
  'frames': (frame_quality.FrameRules, ()),
  'motion': (static_weights.MotionRules, ()),
  'poses': (verification.PoseRules, ()),
  'graph': (pair_graph.GraphRules, ()),
  'views': (alignment.ViewRules, ('num_views', 'fov_deg')),
  'export': (exports.Rules, ()),
}


def checked(config: ml_collections.ConfigDict) -> dict[str, Any]:
  """The config as a dictionary, with digests of the files that it names.

  Raises:
    errors.UserError: a value or file that no video could be made records with.
  """
  for name, (is_good, words) in _LIMITS.items():
    if not is_good(config[name]):
      raise errors.UserError(f'config.{name}={config[name]!r}: {words}')
  if config.window_s * config.fps < 1 - 1e-6:
    raise errors.UserError(
      f'config.window_s={config.window_s}: shorter than one frame at '
      f'config.fps={config.fps}; no two frames lie inside it'
    )
  for name, (rules, elsewhere) in _RULES.items():
    _check_table(name, config[name], rules, elsewhere)
  values = config.to_dict()
  values['export_formats'] = sorted(set(config.export_formats))
  if config.mask:
    masks.read_mask(config.mask)
    values['mask'], values['mask_sha256'] = _file(config.mask)
  if config.matcher == 'dust3r':
    home, checkpoint = dust3r.files(config.dust3r)
    files.require_file(checkpoint, 'the checkpoint of config.dust3r')
    values['dust3r']['home'] = str(home.absolute())
    values['dust3r']['checkpoint'], values['checkpoint_sha256'] = _file(
      checkpoint
    )
  return values


def _check_table(
  name: str,
  table: ml_collections.ConfigDict,
  rules: type[Any],
  elsewhere: tuple[str, ...],
) -> None:
  fields = {field.name for field in dataclasses.fields(rules)} - {*elsewhere}
  if set(table) != fields:
    raise errors.UserError(
      f'config.{name}: has other fields than {rules.__name__}: '
      f'{sorted(set(table) ^ fields)}'
    )
  try:
    rules(**table, **dict.fromkeys(elsewhere))
  except (TypeError, ValueError) as error:
    raise errors.UserError(f'config.{name}: {error}') from error


def _file(path: str | os.PathLike[str]) -> tuple[str, str]:
  """Absolute path and digest, for processes that start elsewhere."""
  file = pathlib.Path(path).absolute()
  with open(file, 'rb') as opened:
    return str(file), hashlib.file_digest(opened, 'sha256').hexdigest()
