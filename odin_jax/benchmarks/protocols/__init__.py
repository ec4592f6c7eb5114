"""The protocols of published tables, one file each, and what they may say.

A protocol is data: which scenes, which views are given and which are scored,
at what size, in what unit the model is told how far the camera moved, and what
the scores are. Each file cites where its facts stand; what was not found is
not said. What an evaluation here does otherwise than the table is listed with
its figures, see `departures`.
"""

import dataclasses
import os
import pathlib
import tomllib
from typing import Any, Mapping, Sequence

from odin_jax.shared import errors, files

_FOLDER = pathlib.Path(__file__).parent
NAMES = tuple(sorted(path.stem for path in _FOLDER.glob('*.toml')))

# Every key that a table may have, and what it may be.
_KEYS: dict[str, dict[str, Any]] = {
  'views': {
    'sources': list,
    'targets': list,
    'count': int,
    'excluded': list,
    'look_at_order': list,
    'split': str,
  },
  'image': {
    'size_px': list,
    'crop': ('none', 'square'),
    'filter': ('none', 'area', 'lanczos'),
  },
  'scale': {
    'policy': ('fixed', 'resolved', 'searched'),
    'unit': ('scene', 'focus'),
    'divisors': list,
    'factors': list,
  },
  'metrics': {
    'lpips': ('alex', 'vgg'),
    'ssim': ('gaussian11', 'uniform7'),
    'quantised': bool,
    'mean': ('pairs', 'views, then scenes'),
  },
  'sampling': {'guidance': float},
}
_TOP = {'name': str, 'benchmark': str, 'scenes': list}


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
      file in each scene.
    image: of the scored pictures.
    scale: of translations. `divisors`: one per scene, what a translation in
      the scene's unit (or in that of the focus point) is divided by;
      `factors`: what is tried.
    metrics: which scores, and their mean.
    sampling: of the model whose figures were published.
    published: figures by system.
  """

  name: str
  benchmark: str
  scenes: Sequence[str]
  views: Mapping[str, Any]
  image: Mapping[str, Any]
  scale: Mapping[str, Any]
  metrics: Mapping[str, Any]
  sampling: Mapping[str, Any]
  published: Mapping[str, Mapping[str, float]]

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
    if not isinstance(content.get(name), kind):
      raise ValueError(f'{name}: a {kind.__name__} is needed')
  tables = {key: x for key, x in content.items() if key not in _TOP}
  published = tables.pop('published', {})
  for table, values in tables.items():
    if table not in _KEYS or not isinstance(values, dict):
      raise ValueError(f'{table}: unknown; there are {", ".join(_KEYS)}')
    for key, value in values.items():
      _check(f'{table}.{key}', value, _KEYS[table].get(key))
  count = len(content['scenes'])
  for table, key in (('scale', 'divisors'), ('views', 'look_at_order')):
    values = tables.get(table, {}).get(key)
    if values is not None and len(values) != count:
      raise ValueError(f'{table}.{key}: {len(values)} for {count} scenes')
  return Protocol(
    **{name: content[name] for name in _TOP},
    **{table: tables.get(table, {}) for table in _KEYS},
    published=published,
  )


def _check(name: str, value: Any, allowed: Any) -> None:
  if allowed is None:
    raise ValueError(f'{name}: unknown')
  if isinstance(allowed, tuple):
    if value not in allowed:
      raise ValueError(f'{name}: {value!r} is none of {", ".join(allowed)}')
  elif not isinstance(value, allowed):
    raise ValueError(f'{name}: {value!r} is no {allowed.__name__}')


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
