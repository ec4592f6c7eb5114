"""The protocols of published tables, one file each, and what they may say.

A protocol is data: which scenes, which views are given and which are scored,
at what size, in what unit the model is told how far the camera moved, and what
the scores are. Each file cites where its facts stand; what was not found is
not said. What an evaluation here does otherwise than the table is listed with
its figures, see `departures`.
"""

import dataclasses
import math
import os
import pathlib
import tomllib
from typing import Any, Callable, Mapping, Sequence

from odin_jax.shared import errors, files, quantities

_FOLDER = pathlib.Path(__file__).parent
NAMES = tuple(sorted(path.stem for path in _FOLDER.glob('*.toml')))


def _is_number(value: Any) -> bool:
  """Of a view."""
  return type(value) is int and value >= 0


def _are_numbers(value: Any) -> bool:
  return (
    isinstance(value, list)
    and all(map(_is_number, value))
    and len(set(value)) == len(value)
  )


def _is_figure(value: Any) -> bool:
  return type(value) in (int, float) and math.isfinite(value)


def _are_positive(value: Any) -> bool:
  return (
    isinstance(value, list)
    and all(map(_is_figure, value))
    and all(x > 0 for x in value)
  )


def _are_angles(value: Any) -> bool:
  return (
    isinstance(value, list)
    and all(map(_is_figure, value))
    and len(set(value)) == len(value)
  )


def _is_count(value: Any) -> bool:
  return _is_number(value) and value > 0


def _are_names(value: Any) -> bool:
  return (
    isinstance(value, list)
    and all(isinstance(name, str) and name for name in value)
    and len(set(value)) == len(value)
  )


def _is_name(value: Any) -> bool:
  return isinstance(value, str) and bool(value)


def _are_published(value: Any) -> bool:
  return isinstance(value, Mapping) and all(
    isinstance(figures, Mapping)
    and figures.keys() <= {*quantities.SCORES, _SOURCE}
    and all(_is_figure(figures[key]) for key in figures if key != _SOURCE)
    and isinstance(figures.get(_SOURCE, ''), str)
    for figures in value.values()
  )


# What a key may be: one of some words, or in words and as a test.
_Kind = tuple[str, ...] | tuple[str, Callable[[Any], bool]]
# Of published figures, where they stand.
_SOURCE = 'source'
_NUMBERS = ('list of different numbers from 0', _are_numbers)
_POSITIVE = (
  'list of positive numbers, not empty',
  lambda value: bool(value) and _are_positive(value),
)

_COUNT = ('number from 1', _is_count)
_ANGLES = (
  'list of different numbers, not empty',
  lambda value: bool(value) and _are_angles(value),
)
_LENGTH = ('positive number', lambda value: _is_figure(value) and value > 0)
_BOOL = ('bool', lambda value: isinstance(value, bool))
_SEED = ('number from 0', _is_number)

# Every key that a table may have, and what it may be.
_KEYS: dict[str, dict[str, _Kind]] = {
  'views': {
    'sources': (
      'list of lists of numbers of views, none of them empty',
      lambda value: (
        isinstance(value, list)
        and bool(value)
        and all(row and _are_numbers(row) for row in value)
      ),
    ),
    'targets': _NUMBERS,
    'count': _COUNT,
    'excluded': _NUMBERS,
    'look_at_order': (
      'list of numbers from 0',
      lambda value: isinstance(value, list) and all(map(_is_number, value)),
    ),
    'split': ('name of a file', _is_name),
    'source_is_scored': _BOOL,
    'seed': _SEED,
  },
  'rendering': {
    'elevations_deg': _ANGLES,
    'azimuths_deg': _ANGLES,
    # No corner of the unit box is further from its centre, however turned.
    'distance': (
      'number above 0.87, outside of the unit box',
      lambda value: _is_figure(value) and value > 0.87,
    ),
    'fov_deg': (
      'number between 0 and 180',
      lambda value: _is_figure(value) and 0 < value < 180,
    ),
    'background': (
      'colour, red, green and blue from 0 to 255',
      lambda value: (
        isinstance(value, list)
        and len(value) == 3
        and all(_is_number(level) and level < 256 for level in value)
      ),
    ),
    'shading': ('path traced', 'unlit'),
    # One for each scene, of which there may be none.
    'turns_deg': (
      'list of numbers',
      lambda value: isinstance(value, list) and all(map(_is_figure, value)),
    ),
  },
  'image': {
    'size_px': (
      'list of a width and a height',
      lambda value: (
        _are_positive(value) and [type(side) for side in value] == [int, int]
      ),
    ),
    'crop': ('none', 'square'),
    'filter': ('none', 'area', 'lanczos'),
  },
  'scale': {
    'policy': ('fixed', 'resolved', 'searched'),
    'unit': ('scene', 'focus'),
    # One for each scene, of which there may be none.
    'divisors': ('list of positive numbers', _are_positive),
    'factors': _POSITIVE,
  },
  'metrics': {
    'lpips': ('alex', 'vgg'),
    'ssim': ('gaussian11', 'uniform7'),
    'quantised': _BOOL,
    'mean': ('pairs', 'views, then scenes'),
  },
  'sampling': {
    # Those of odin_jax.diffusion.sampler, which is none of a table's business.
    'sampler': ('ddim', 'dpm++2m', 'euler'),
    'steps': _COUNT,
    'guidance': ('number', _is_figure),
    'ema': _BOOL,
    'seed': _SEED,
  },
  # Scores of meshes, see odin_jax.geometry.shape_metrics.
  'geometry': {
    'size_px': _COUNT,
    'voxel': _LENGTH,
    'grid': _COUNT,
    'f_score_threshold': _LENGTH,
  },
}
_TOP: dict[str, _Kind] = {
  'name': ('str', _is_name),
  'benchmark': ('str', _is_name),
  'scenes': ('list of different names', _are_names),
}
# What says which views are given.
_SOURCES = ('sources', 'look_at_order', 'split')
# The benchmark that has pairs of its own, and the one whose views are rendered.
_OF_PAIRS, _OF_MESHES = 'records', 'gso'
_CAMERAS = ('elevations_deg', 'azimuths_deg', 'distance', 'fov_deg')


@dataclasses.dataclass(frozen=True, kw_only=True)
class Protocol:
  """The lines of a table's protocol.

  Attributes:
    name: of the file.
    benchmark: layout of the data, a key of `odin_jax.benchmarks.LAYOUTS`, or
      'records'.
    scenes: folders under the data; none: all that are there.
    views: numbers of views. `sources`: sets that are given, one for each row
      of the table; `targets`, or all `count` but `excluded`; `look_at_order`:
      place of the source in `focus.look_at_order`, one per scene; `split`: a
      file in each scene; `source_is_scored`: with a target of its own;
      `seed`: of the choice among all pairs.
    rendering: of the views of meshes in the unit box, z up: rings of cameras
      that look at its centre, one for each elevation; `turns_deg`: of each
      scene, about z.
    image: of the scored pictures.
    scale: of translations. `divisors`: one per scene, what a translation in
      the scene's unit (or in that of the focus point) is divided by;
      `factors`: what is tried.
    metrics: which scores, and their mean.
    sampling: of the model whose figures were published: `sampler`, `steps`,
      `guidance`, whether parameters are averages (`ema`), `seed`.
    geometry: how predicted meshes are scored, see `shape_metrics.scores`; by
      views of `size_px` from the same cameras.
    published: figures by system, and the `source` that has them.
  """

  name: str
  benchmark: str
  scenes: Sequence[str]
  views: Mapping[str, Any]
  rendering: Mapping[str, Any]
  image: Mapping[str, Any]
  scale: Mapping[str, Any]
  metrics: Mapping[str, Any]
  sampling: Mapping[str, Any]
  geometry: Mapping[str, Any]
  published: Mapping[str, Mapping[str, Any]]

  def to_dict(self) -> dict[str, Any]:
    """As JSON."""
    return dataclasses.asdict(self)


def load(name: str | os.PathLike[str]) -> Protocol:
  """A protocol by its name, or a file of another.

  Raises:
    errors.UserError: there is no such protocol, or it says what none may.
  """
  path = pathlib.Path(name)
  if str(name) in NAMES:
    path = _FOLDER / f'{name}.toml'
  files.require_file(path, f'a protocol ({", ".join(NAMES)}, or a file)')
  try:
    content = tomllib.loads(path.read_text())
  except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
    raise errors.UserError(f'{path}: no TOML: {error}') from error
  try:
    return parse(content)
  except ValueError as error:
    raise errors.UserError(f'{path}: {error}') from error


def parse(content: Mapping[str, Any]) -> Protocol:
  """A protocol of what its file holds.

  Raises:
    ValueError: an unknown key, or a value that it cannot have.
  """
  for name, kind in _TOP.items():
    if name not in content:
      raise ValueError(f'{name}: a {kind[0]} is needed')
    _check(name, content[name], kind)
  tables = {key: x for key, x in content.items() if key not in _TOP}
  published = tables.pop('published', {})
  if not _are_published(published):
    raise ValueError(
      f'published: needs tables of numbers, of {", ".join(quantities.SCORES)}, and '
      f'{_SOURCE}, a text'
    )
  for table, values in tables.items():
    if table not in _KEYS or not isinstance(values, dict):
      raise ValueError(f'{table}: unknown; there are {", ".join(_KEYS)}')
    for key, value in values.items():
      _check(f'{table}.{key}', value, _KEYS[table].get(key))
  _check_together(content)
  return Protocol(
    **{name: content[name] for name in _TOP},
    **{table: tables.get(table, {}) for table in _KEYS},
    published=published,
  )


def _check(name: str, value: Any, allowed: _Kind | None) -> None:
  if allowed is None:
    raise ValueError(f'{name}: unknown')
  if callable(allowed[-1]):
    if not allowed[1](value):
      raise ValueError(f'{name}: {value!r} is no {allowed[0]}')
  elif value not in allowed:
    raise ValueError(f'{name}: {value!r} is none of {", ".join(allowed)}')


def _check_together(content: Mapping[str, Any]) -> None:
  """What one line asks of another."""
  count = len(content['scenes'])
  for table, key in (
    ('scale', 'divisors'),
    ('views', 'look_at_order'),
    ('rendering', 'turns_deg'),
  ):
    values = content.get(table, {}).get(key)
    if values is not None and len(values) != count:
      raise ValueError(f'{table}.{key}: {len(values)} for {count} scenes')
  views, scale = content.get('views', {}), content.get('scale', {})
  if content['benchmark'] != _OF_PAIRS and not views.keys() & set(_SOURCES):
    raise ValueError(f'views: needs one of {", ".join(_SOURCES)}')
  _check_rendering(content)
  if scale.get('policy') == 'searched' and 'factors' not in scale:
    raise ValueError('scale.factors: not there, but the policy is searched')


def _check_rendering(content: Mapping[str, Any]) -> None:
  """That views which are rendered have their cameras, and no others."""
  rendering, geometry = (
    content.get('rendering', {}),
    content.get('geometry', {}),
  )
  if content['benchmark'] != _OF_MESHES:
    if rendering or geometry:
      raise ValueError(f'rendering, geometry: are of {_OF_MESHES} alone')
    return
  needed = [
    *(('rendering', key) for key in (*_CAMERAS, 'background')),
    ('image', 'size_px'),
    *(('geometry', key) for key in _KEYS['geometry'] if geometry),
  ]
  for table, key in needed:
    if key not in content.get(table, {}):
      raise ValueError(f'{table}.{key}: a {_KEYS[table][key][0]} is needed')
  width, height = content['image']['size_px']
  if width != height:
    raise ValueError('image.size_px: views that are rendered are square')


def departures(
  protocol: Protocol, here: Mapping[str, Any]
) -> list[dict[str, Any]]:
  """The lines of a table that an evaluation does not follow.

  Args:
    protocol: of the table.
    here: by `TABLE.KEY`, what was done.

  Returns:
    `line`, `published`, `here` of each.
  """
  lines = {'scenes': list(protocol.scenes)} if protocol.scenes else {}
  for table in _KEYS:
    for key, value in getattr(protocol, table).items():
      lines[f'{table}.{key}'] = value
  return [
    {'line': line, 'published': lines[line], 'here': value}
    for line, value in here.items()
    if line in lines and lines[line] != value
  ]
