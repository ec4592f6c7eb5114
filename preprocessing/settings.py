"""The config of a run, checked before any work is done: one part per wing."""

import dataclasses
import math
import pathlib
from typing import Any, Callable, Mapping, TypeVar

import ml_collections

from odin_jax.shared import errors, files
from preprocessing import matchers
from preprocessing.exporting import exports
from preprocessing.keyframes import frame_quality, keyframes, static_weights
from preprocessing.reading import frames, projections
from preprocessing.solving import masks, pair_graph, solver, verification
from preprocessing.views import alignment, cutting
from preprocessing.writing import parts, splits

_MIN_WIDTH_PX = 64
# Where the values hold the digests of the files that the config names.
_DIGESTS = 'files_sha256'
# Fields that change nothing in what is made of a video; the mask's digest does.
_WITHOUT_EFFECT = ('max_bad_share', 'mask')


def _one_of(*names: str) -> tuple[Callable[[Any], bool], str]:
  return names.__contains__, f'give one of {", ".join(names)}'


_POSITIVE = (lambda value: 0 < value < math.inf, 'must be above 0')
_COUNT = (lambda value: value >= 1, 'must be at least 1')
_SHARE = (lambda value: 0 <= value <= 1, 'must be in 0..1')
# Field -> whether a value can be used, and what to say if not.
_LIMITS: dict[str, tuple[Callable[[Any], bool], str]] = {
  'fps': _POSITIVE,
  'window_s': _POSITIVE,
  'substeps': _COUNT,
  'view_size_px': _COUNT,
  'depth_px': (lambda value: 0 <= value <= 1024, 'must be in 0..1024'),
  'views_per_pair': _COUNT,
  'fov_deg': (lambda value: 0 < value < 180, 'must be between 0 and 180'),
  'max_panorama_width_px': (
    lambda value: value >= _MIN_WIDTH_PX and value % 2 == 0,
    f'must be even and at least {_MIN_WIDTH_PX}',
  ),
  'test_fraction': _SHARE,
  'max_bad_share': _SHARE,
  'projection': _one_of('auto', *projections.NAMES),
  'split_by': _one_of(*splits.SPLIT_BY),
  'export_formats': (
    lambda value: set(value) <= set(exports.FORMATS),
    f'give some of {", ".join(exports.FORMATS)}',
  ),
}
_Rules = TypeVar('_Rules')


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
  """The config of a run as the wings take it.

  Attributes:
    reading: of videos.
    keyframes: which, and what is found of them.
    matching: the matcher and its options.
    solving: of poses.
    views: which are cut.
    exporting: of camera paths.
    panorama_records: keyframes are kept as records, too.
    splits: which frames are for testing.
    examples_per_reason: pictures kept of rejected frame pairs, of each video.
    max_bad_share: of the videos; where more give no records, the run fails.
    values: the whole config in the terms of JSON, with digests of the files
      that it names; for the manifest.
    unused: those of `values` that change nothing in what is made of a video.
  """

  reading: frames.Settings
  keyframes: keyframes.Settings
  matching: matchers.Settings
  solving: solver.Settings
  views: cutting.Settings
  exporting: exports.Settings
  panorama_records: bool
  splits: splits.Settings
  examples_per_reason: int
  max_bad_share: float
  values: Mapping[str, Any]
  unused: frozenset[str]

  def part_values(self) -> dict[str, Any]:
    """The values that what is made of a video depends on."""
    used = self.values.keys() - self.unused
    return {name: self.values[name] for name in used}


def checked(config: ml_collections.ConfigDict) -> Settings:
  """The settings that a config asks for.

  Raises:
    errors.UserError: a value or file that no video could be made records with.
  """
  _check_limits(config)
  values = config.to_dict()
  values['export_formats'] = sorted(set(config.export_formats))
  rules = _all_rules(values)
  values['mask'] = _mask_path(config.mask)
  matching = matchers.checked(config.matcher, values.get(config.matcher, {}))
  values[matching.name] = dict(matching.options)
  if digests := _digests(values['mask'], matching):
    values[_DIGESTS] = digests
  return Settings(
    reading=frames.Settings(
      projection=config.projection,
      trust_projection=config.trust_projection,
      max_width_px=config.max_panorama_width_px,
    ),
    keyframes=keyframes.Settings(
      fps=config.fps,
      substeps=config.substeps,
      frames=rules['frames'],
      motion=rules['motion'] if config.static_weights else None,
    ),
    matching=matching,
    solving=solver.Settings(
      poses=rules['poses'],
      graph=rules['graph'],
      max_gap=int(config.window_s * config.fps + 1e-6),
      mask=values['mask'],
    ),
    views=cutting.Settings(
      rules=rules['views'],
      size_px=config.view_size_px,
      depth_px=config.depth_px,
      seed=config.seed,
    ),
    exporting=exports.Settings(
      formats=tuple(values['export_formats']), rules=rules['export']
    ),
    panorama_records=config.panorama_records,
    splits=splits.Settings(
      split_by=config.split_by, test_fraction=config.test_fraction
    ),
    examples_per_reason=config.examples_per_reason,
    max_bad_share=config.max_bad_share,
    values=values,
    unused=frozenset(_WITHOUT_EFFECT).union(matchers.MODULES)
    - {config.matcher},
  )


def _check_limits(config: ml_collections.ConfigDict) -> None:
  for name, (is_good, words) in _LIMITS.items():
    if not is_good(config[name]):
      raise errors.UserError(f'config.{name}={config[name]!r}: {words}')
  if config.trust_projection and config.projection == 'auto':
    raise errors.UserError(
      'config.trust_projection: there is none to trust; name it, '
      '--projection=NAME'
    )
  if config.window_s * config.fps < 1 - 1e-6:
    raise errors.UserError(
      f'config.window_s={config.window_s}: shorter than one frame at '
      f'config.fps={config.fps}; no two frames lie inside it'
    )


def _mask_path(path: str) -> str:
  """The mask, checked, for processes that start in another folder."""
  if not path:
    return ''
  path = files.local_path(path)
  masks.read_mask(path)
  return str(pathlib.Path(path).absolute())


def _digests(mask: str, matching: matchers.Settings) -> dict[str, str]:
  """Digests of the files that the config names, by the names of its fields."""
  paths = {'mask': mask} if mask else {}
  for option in matching.files:
    paths[f'{matching.name}.{option}'] = matching.options[option]
  return {name: parts.sha256(pathlib.Path(paths[name])) for name in paths}


def _all_rules(values: Mapping[str, Any]) -> dict[str, Any]:
  """The rules that the config's tables hold, by the table's name."""
  return {
    'frames': _rules(frame_quality.FrameRules, 'frames', values),
    'motion': _rules(static_weights.MotionRules, 'motion', values),
    'poses': _rules(verification.PoseRules, 'poses', values),
    'graph': _rules(pair_graph.GraphRules, 'graph', values),
    'views': _rules(
      alignment.ViewRules,
      'views',
      values,
      num_views=values['views_per_pair'],
      fov_deg=values['fov_deg'],
    ),
    'export': _rules(exports.Rules, 'export', values),
  }


def _rules(
  kind: type[_Rules], name: str, values: Mapping[str, Any], **elsewhere: Any
) -> _Rules:
  """What is made of a table, and of the fields that come from elsewhere."""
  table = values[name]
  fields = {field.name for field in dataclasses.fields(kind)}
  fields -= elsewhere.keys()
  if set(table) != fields:
    raise errors.UserError(
      f'config.{name}: has other fields than {kind.__name__}: '
      f'{sorted(set(table) ^ fields)}'
    )
  try:
    return kind(**table, **elsewhere)
  except (TypeError, ValueError) as error:
    raise errors.UserError(f'config.{name}: {error}') from error
