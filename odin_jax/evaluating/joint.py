"""Several predictors of the same pairs, side by side."""

import json
from typing import Any, Mapping

from odin_jax import metrics, scoring
from odin_jax.benchmarks import protocols
from odin_jax.benchmarks.pairs import scene_of
from odin_jax.evaluating import single

# Of a pair's row, what is of its prediction and not of the pair, with the scores.
_OF_PREDICTION = ('files', 'pose_of_pair')


def _difference(
  figures: Mapping[str, Any], first: Mapping[str, Any], over_pairs: bool
) -> dict[str, Any]:
  """Mean and interval of what a predictor scores more than the first.

  Args:
    figures: what `metrics.json` holds of the predictor.
    first: likewise, of the first.
    over_pairs: whether means are over pairs, or over scenes' means.
  """
  rows = list(zip(figures['pairs'], first['pairs'], strict=True))
  differences = [
    {
      score: None
      if None in (row[score], other[score])
      else row[score] - other[score]
      for score in figures['mean']
    }
    for row, other in rows
  ]
  scenes = [scene_of(row) for row, _ in rows]
  return metrics.summary(differences, scenes, over_pairs=over_pairs)


def _figures(content: Mapping[str, Any]) -> dict[str, Any]:
  """What `metrics.json` holds, but for what has as many rows as pairs."""
  apart = ('protocol', 'pairs', 'scenes')
  return {key: x for key, x in content.items() if key not in apart}


def _departures(protocols: Mapping[str, Any]) -> list[dict[str, Any]]:
  """Those of all, each once; with `of`, whose it is, where not of all."""
  of: dict[str, list[str]] = {}
  for name, protocol in protocols.items():
    for row in protocol['departures']:
      of.setdefault(json.dumps(row), []).append(name)
  return [
    {
      **json.loads(row),
      **({} if len(names) == len(protocols) else {'of': names}),
    }
    for row, names in of.items()
  ]


def _common(every: list[dict[str, Any]]) -> dict[str, Any]:
  """What is the same in all."""
  return {
    key: value
    for key, value in every[0].items()
    if all(key in other and other[key] == value for other in every)
  }


def _without(values: dict[str, Any], known: dict[str, Any]) -> dict[str, Any]:
  return {key: value for key, value in values.items() if key not in known}


def content(
  evaluations: Mapping[str, single.Evaluation], table: protocols.Protocol
) -> dict[str, Any]:
  """What the `metrics.json` of several predictors holds.

  Args:
    evaluations: by name, which is also that of a folder with the files of the
      evaluation; all of the same pairs. The others are compared with the first.
    table: whose scores.

  Returns:
    `protocol`, what all have in common, with the `departures` of any (`of`
    says whose they are, where not of all);
    `predictors`, by name `mean`, `interval_95`, the same of several samples,
    `difference_to_first`, and the `protocol` that is its own; `scenes`, by name
    the mean of each predictor; `pairs`, with the scores of each.
  """
  contents = {name: x.content for name, x in evaluations.items()}
  first_name, first = next(iter(contents.items()))
  over_pairs = scoring.rules(table)['mean'] == 'pairs'
  every = [x['protocol'] for x in contents.values()]
  common = _common(every)
  # Of fields, what all have is said once, too.
  common['config'] = _common([protocol['config'] for protocol in every])
  departures = _departures(
    {name: x['protocol'] for name, x in contents.items()}
  )
  predictors = {}
  for name, figures in contents.items():
    predictors[name] = _figures(figures)
    if name != first_name:
      predictors[name]['difference_to_first'] = _difference(
        figures, first, over_pairs
      )
    own = figures['protocol']
    predictors[name]['protocol'] = {
      **_without(own, common),
      'config': _without(own['config'], common['config']),
    }
  pairs = [
    {
      **{
        key: x
        for key, x in row.items()
        if key not in (*_OF_PREDICTION, *first['mean'])
      },
      'scores': {
        name: {score: x['pairs'][place][score] for score in x['mean']}
        for name, x in contents.items()
      },
      'files': {
        **{
          kind: f'{first_name}/{row["files"][kind]}'
          for kind in ('source', 'truth')
        },
        'samples': {
          name: f'{name}/{x["pairs"][place]["files"]["sample"]}'
          for name, x in contents.items()
        },
      },
    }
    for place, row in enumerate(first['pairs'])
  ]
  return {
    'protocol': {**common, 'departures': departures},
    'predictors': predictors,
    'scenes': {
      scene: {name: x['scenes'][scene] for name, x in contents.items()}
      for scene in first['scenes']
    },
    'pairs': pairs,
  }
