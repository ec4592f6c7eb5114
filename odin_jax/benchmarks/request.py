"""What an evaluation was asked for, so that it can be asked for again."""

import dataclasses
import json
import os
import pathlib
from typing import Any, Iterator, Mapping

from odin_jax.benchmarks import protocols
from odin_jax.shared import errors, files

# Characters of a value that a message shows.
_SHOWN = 40
# Where the inputs lie; what they hold is known by digests.
_PLACES = ('data', 'workdir', 'predictions', 'features')
# What JSON may hold of a request; the table is checked by itself.
_KINDS = {
  'data': str,
  'predictor': str,
  'workdir': (str, type(None)),
  'predictions': (str, type(None)),
  'features': (str, type(None)),
  'shuffle_poses': bool,
  'config': dict,
}


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
    features: FILE.py:FUNCTION for FID and KID; None goes without.
    config: fields of configs/evaluate.py.
  """

  table: protocols.Protocol
  data: str
  predictor: str
  workdir: str | None
  predictions: str | None
  shuffle_poses: bool
  features: str | None
  config: dict[str, Any]

  def to_dict(self) -> dict[str, Any]:
    """As JSON."""
    fields = {
      field.name: getattr(self, field.name)
      for field in dataclasses.fields(self)
    }
    return {**fields, 'table': self.table.to_dict()}


def read_metrics(path: str | os.PathLike[str]) -> dict[str, Any]:
  """A `metrics.json`.

  Raises:
    errors.UserError: there is no such file, or it cannot be asked for again.
  """
  path = files.require_file(path, 'the metrics.json of an evaluation')
  try:
    content = json.loads(pathlib.Path(path).read_text())
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
  # Older ones know of no features.
  protocol = {'features': None, **protocol}
  fields = {
    field.name: protocol[field.name] for field in dataclasses.fields(Request)
  }
  table = protocols.parse(protocol['table'])
  for name, kinds in _KINDS.items():
    if not isinstance(fields[name], kinds):
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


def _figures(content: Mapping[str, Any]) -> dict[str, float | None]:
  """Every score of an evaluation, by a name."""
  rows = {'mean': content['mean']}
  rows |= {f'pair {row["index"]}': row for row in content['pairs']}
  figures = {
    f'{name} of {row_name}': row[name]
    for row_name, row in rows.items()
    for name in content['mean']
  }
  return figures | {name: content.get(name) for name in ('fid', 'kid')}


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
