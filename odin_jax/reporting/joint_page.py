"""The page of several predictors: their figures, and their views of each pair.

Everything is taken from the folder that `odin_jax.evaluate` writes.
"""

import pathlib
from typing import Any, Mapping, Sequence

from odin_jax.benchmarks import tables
from odin_jax.reporting import evaluation_page, pair_cells
from odin_jax.shared import page, quantities

_EXPLANATION = (
  'The view that is given, the true one, and what each predicts, with its PSNR '
  'in dB.'
)


def _compared(name: str, first: str, difference: Mapping[str, Any]) -> str:
  """How a predictor stands to the first, by PSNR."""
  mean, bounds = (difference[key]['psnr'] for key in ('mean', 'interval_95'))
  if bounds is None:
    interval = ''
  else:
    interval = ' ({:+.2f} to {:+.2f})'.format(*bounds)
    if bounds[0] <= 0 <= bounds[1]:
      interval += ', which may be chance'
  where = 'above' if mean > 0 else 'below'
  return f'{name} is {abs(mean):.2f} dB {where} {first}{interval}.'


def _findings(content: Mapping[str, Any]) -> list[page.Finding]:
  """What the figures say, the most important first."""
  predictors = content['predictors']
  first, *others = predictors
  best = max(predictors, key=lambda name: predictors[name]['mean']['psnr'])
  found = [
    page.Finding(
      f'Of {len(predictors)} predictors {best} has the highest PSNR, '
      f'{quantities.text("psnr", predictors[best]["mean"]["psnr"])}; '
      f'{tables.scope(content)}.'
    )
  ]
  found += [
    page.Finding(
      _compared(name, first, predictors[name]['difference_to_first'])
    )
    for name in others
  ]
  return found + evaluation_page.on_departures(content)


def _cell(folder: pathlib.Path, row: Mapping[str, Any]) -> dict[str, Any]:
  files = {'given': row['files']['source'], 'true': row['files']['truth']}
  for name, file in row['files']['samples'].items():
    psnr = quantities.number('psnr', row['scores'][name]['psnr'])
    files[f'{name} {psnr}'] = file
  return {
    'pictures': {
      words: pair_cells.uri(pair_cells.read(folder / file))
      for words, file in files.items()
    },
    'figure': f'Pair {row["index"]}',
    'words': pair_cells.words(row),
  }


def _orders(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
  """How pairs can be sorted."""
  first, *others = rows[0]['scores']
  psnr = {
    name: [row['scores'][name]['psnr'] for row in rows]
    for name in (first, *others)
  }
  found = pair_cells.orders(
    f'{first}, worst first', f'{first}, best first', psnr[first]
  )
  for name in others:
    found += pair_cells.orders(
      f'{name} most behind {first}',
      f'{name} most ahead of {first}',
      [a - b for a, b in zip(psnr[name], psnr[first], strict=True)],
    )
  return [*found, pair_cells.by_number(rows)]


def _scenes(content: Mapping[str, Any]) -> list[list[str]]:
  """Rows of text: PSNR in every scene, where there are several."""
  if len(content['scenes']) < 2:
    return []
  return [['scene, PSNR in dB', *content['predictors']]] + [
    [
      scene,
      *(quantities.number('psnr', mean['psnr']) for mean in of_scene.values()),
    ]
    for scene, of_scene in content['scenes'].items()
  ]


def gather(folder: pathlib.Path, content: Mapping[str, Any]) -> dict[str, Any]:
  """Everything that the page shows, as JSON.

  Args:
    folder: of the evaluation, in which each predictor has a folder.
    content: of its `metrics.json`.
  """
  protocol, predictors = content['protocol'], content['predictors']
  first = next(iter(predictors))
  psnr = [row['scores'][first]['psnr'] for row in content['pairs']]
  shown = [content['pairs'][place] for place in pair_cells.shown(psnr)]
  model = predictors[first]['protocol'].get('model') or protocol.get('model')
  return {
    'title': f'Evaluation of {", ".join(predictors)}',
    'made': evaluation_page.made(protocol, model),
    'verdict': page.verdict(_findings(content)),
    'next': 'look at the errors of one predictor: the page in its folder.',
    'scores': tables.text_rows(content),
    'caption': evaluation_page.caption(
      content,
      'In brackets 95 % intervals over scenes; differences are of the same '
      'pairs.',
    ),
    'sources': evaluation_page.sources(content),
    'scenes': _scenes(content),
    'departures': evaluation_page.departures(content),
    'count': len(content['pairs']),
    'explanation': _EXPLANATION,
    'cells': [_cell(folder, row) for row in shown],
    'orders': _orders(shown),
    'filters': pair_cells.filters(shown),
  }


def render(folder: pathlib.Path, content: Mapping[str, Any]) -> str:
  """The page of several predictors, which leads to that of each."""
  html = evaluation_page.rendered(folder, gather(folder, content))
  for name in content['predictors']:
    html = page.link(html, folder, name, folder / name / 'index.html')
  return html
