"""What an evaluation was asked for, so that it can be asked for again."""

import dataclasses
import json
import os
import pathlib
from typing import Any, Collection, Iterator, Mapping

from odin_jax.benchmarks import protocols
from odin_jax.shared import errors, files

# Characters of a value that a message shows.
_SHOWN = 40
# Where the inputs lie; what they hold is known by digests.
_PLACES = ('data', 'workdir', 'predictions', 'truth', 'features')
# What JSON may hold of a request; the table is checked by itself.
_KINDS = {
  'data': str,
  'predictor': str,
  'workdir': (str, type(None)),
  'predictions': (str, type(None)),
  'shuffle_poses': bool,
  'config': dict,
  'truth': (str, type(None)),
  'features': (str, type(None)),
  'checkpoint_step': (int, type(None)),
}
# Fields of the config, and the lines of a table that may say them.
LINES = {
  'pairs_seed': ('views', 'seed'),
  'sampler': ('sampling', 'sampler'),
  'num_steps': ('sampling', 'steps'),
  'guidance': ('sampling', 'guidance'),
  'ema': ('sampling', 'ema'),
  'seed': ('sampling', 'seed'),
}
# What only some are asked with; a file that has none says nothing of it.
_OPTIONAL = ('truth', 'features', 'checkpoint_step')


@dataclasses.dataclass(frozen=True, kw_only=True)
class Request:
  """One evaluation.

  Attributes:
    table: the protocol.
    data: folder of the benchmark.
    predictor: its name.
    workdir: of the model; None for the others.
    predictions: folder of pictures that were predicted elsewhere; None where
      something is predicted here.
    shuffle_poses: give each pair another pair's pose.
    config: fields of configs/evaluate.py.
    truth: folder of the true depth of records; None where none was given.
    features: FILE.py:FUNCTION for FID and KID; None goes without.
    checkpoint_step: of the model; None: the newest.
  """

  table: protocols.Protocol
  data: str
  predictor: str
  workdir: str | None
  predictions: str | None
  shuffle_poses: bool
  config: dict[str, Any]
  truth: str | None = None
  features: str | None = None
  checkpoint_step: int | None = None

  def to_dict(self) -> dict[str, Any]:
    """As JSON."""
    fields = {
      field.name: getattr(self, field.name)
      for field in dataclasses.fields(self)
      if field.name not in _OPTIONAL or getattr(self, field.name) is not None
    }
    return {**fields, 'table': self.table.to_dict()}


def without_places(asked: Request) -> dict[str, Any]:
  """A request as JSON, but for where things lie, which is its own everywhere."""
  return {
    name: value
    for name, value in asked.to_dict().items()
    if name not in _PLACES
  }


def follow(
  config: Mapping[str, Any], table: protocols.Protocol, given: Collection[str]
) -> dict[str, Any]:
  """A config as its table has it, but for what the user gave.

  Args:
    config: fields of configs/evaluate.py.
    table: which may say some of them, see `LINES`.
    given: the fields that the user gave.
  """
  of_table = {
    name: getattr(table, part)[key]
    for name, (part, key) in LINES.items()
    if name not in given and key in getattr(table, part)
  }
  return {**config, **of_table}


def read_metrics(path: str | os.PathLike[str]) -> dict[str, Any]:
  """A `metrics.json`.

  Raises:
    errors.UserError: there is no such file, or it cannot be asked for again.
  """
  path = files.require_file(path, 'the metrics.json of an evaluation')
  try:
    content = json.loads(pathlib.Path(path).read_text())
    if 'predictors' in content:
      raise errors.UserError(
        f'{path}: is of several predictors; repeat one of them: '
        f'{", ".join(content["predictors"])}, each with a metrics.json in its '
        'folder'
      )
    of_json(content['protocol'])
    _figures(content)
  except (ValueError, KeyError, TypeError, AttributeError) as error:
    raise errors.UserError(
      f'{path}: no metrics.json that can be repeated ({type(error).__name__}: '
      f'{error}); evaluate again'
    ) from error
  return content


def of_json(protocol: Mapping[str, Any]) -> Request:
  """The request of an evaluation, of what `metrics.json` has as `protocol`.

  Raises:
    KeyError, ValueError, TypeError: it says too little, or otherwise.
  """
  fields = {
    field.name: protocol[field.name]
    for field in dataclasses.fields(Request)
    if field.name not in _OPTIONAL or field.name in protocol
  }
  table = protocols.parse(protocol['table'])
  for name, kinds in _KINDS.items():
    if name in fields and not isinstance(fields[name], kinds):
      raise TypeError(f'{name} is {fields[name]!r}')
  return Request(**{**fields, 'table': table})


def _flat(
  values: Mapping[str, Any], prefix: str = ''
) -> Iterator[tuple[str, Any]]:
  for key, value in values.items():
    if isinstance(value, Mapping):
      yield from _flat(value, f'{prefix}{key}.')
    else:
      yield prefix + key, value


def _short(values: Mapping[str, Any], line: str) -> str:
  """A value, so that many fit into a message."""
  text = repr(values[line]) if line in values else 'nothing'
  return text if len(text) <= _SHOWN else f'{text[:_SHOWN]}...'


def differing_lines(
  old: Mapping[str, Any], new: Mapping[str, Any]
) -> list[str]:
  """`line (old -> new)` where two protocols are not the same."""
  olds, news = dict(_flat(old)), dict(_flat(new))
  return [
    f'{line} ({_short(olds, line)} -> {_short(news, line)})'
    for line in dict.fromkeys([*olds, *news])
    if line not in _PLACES and olds.get(line) != news.get(line)
  ]


def _figures(content: Mapping[str, Any]) -> dict[str, Any]:
  """All that an evaluation says besides its protocol, by a name."""
  # These two come first, and none goes without them.
  rows = {'mean': content['mean']}
  rows |= {f'pair {i}': row for i, row in enumerate(content['pairs'])}
  rows |= {
    name: value
    for name, value in content.items()
    if name not in ('protocol', 'pairs')
  }
  figures = {}
  for line, value in _flat(rows):
    of, _, name = line.rpartition('.')
    figures[f'{name} of {of}' if of else name] = value
  return figures


def differing_figures(
  old: Mapping[str, Any], new: Mapping[str, Any]
) -> list[str]:
  """`figure (old -> new)` where two evaluations are not the same, to the bit."""
  olds, news = _figures(old), _figures(new)
  return [
    f'{name} ({olds.get(name)} -> {news.get(name)})'
    for name in dict.fromkeys([*olds, *news])
    if olds.get(name) != news.get(name)
  ]
