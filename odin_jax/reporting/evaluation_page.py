"""The page of an evaluation: its figures, and its pairs with their errors.

Everything is taken from the folder that `odin_jax.evaluate` writes.
"""

import pathlib
from typing import Any, Mapping, Sequence

import numpy as np

from odin_jax.benchmarks import tables
from odin_jax.reporting import pair_cells
from odin_jax.shared import page, provenance, quantities

TEMPLATE = pathlib.Path(__file__).with_name('evaluation_page.html')
_LESS_IS_BETTER = ('lpips',)
_KINDS = ('source', 'truth', 'sample')
_SHOWN_AS = ('given', 'true', 'predicted', 'error')
_EXPLANATION = (
  'The view that is given, the true one, the predicted one, and where these '
  'two differ: dark is nowhere, bright by half of the range or more.'
)
_FILES = ('metrics.json', 'table.md', 'table.tex')


# -- Pairs ---------------------------------------------------------------------


def _cell(folder: pathlib.Path, row: Mapping[str, Any]) -> dict[str, Any]:
  views = {
    kind: pair_cells.read(folder / row['files'][kind]) for kind in _KINDS
  }
  views['error'] = pair_cells.error_map(views['sample'], views['truth'])
  shown = zip(_SHOWN_AS, views.values(), strict=True)
  others = ', '.join(
    f'{quantities.QUANTITIES[score].words} '
    f'{quantities.number(score, row[score])}'
    for score in quantities.SCORES[1:]
  )
  return {
    'pictures': {words: pair_cells.uri(view) for words, view in shown},
    'figure': quantities.text('psnr', row['psnr']),
    'words': f'{others}. Pair {row["index"]}: {pair_cells.words(row)}',
  }


def _orders(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
  """How pairs can be sorted."""
  found = []
  for score in quantities.SCORES:
    sign = -1 if score in _LESS_IS_BETTER else 1
    words = quantities.QUANTITIES[score].words
    found += pair_cells.orders(
      f'{words}, worst first',
      f'{words}, best first',
      [None if row[score] is None else sign * row[score] for row in rows],
    )
  return [*found, pair_cells.by_number(rows)]


def _closer(folder: pathlib.Path, rows: Sequence[Mapping[str, Any]]) -> int:
  """In how many pairs the prediction is nearer to the truth than the source."""
  count = 0
  for row in rows:
    source, truth, sample = (
      pair_cells.read(folder / row['files'][kind]).astype(float)
      for kind in _KINDS
    )
    count += np.square(sample - truth).mean() < np.square(source - truth).mean()
  return int(count)


# -- Words ---------------------------------------------------------------------


def _on_seen(mean: Mapping[str, float | None]) -> list[page.Finding]:
  """What geometry knows of the pairs, where their true depth is known."""
  if mean.get('seen_share') is None:
    return []
  seen, unseen = (
    quantities.text(score, mean[score])
    for score in ('psnr_seen', 'psnr_unseen')
  )
  return [
    page.Finding(
      f'The source sees {100 * mean["seen_share"]:.0f} % of what targets show: '
      f'there PSNR is {seen}, and {unseen} where it does not.'
    )
  ]


def _findings(
  folder: pathlib.Path, content: Mapping[str, Any]
) -> list[page.Finding]:
  """What the figures say, the most important first."""
  protocol, rows = content['protocol'], content['pairs']
  model = protocol['model']
  name = next(tables.rows(content)).name
  figures = ', '.join(
    f'{quantities.QUANTITIES[score].words} '
    f'{quantities.text(score, content["mean"][score])}'
    for score in quantities.SCORES
    if content['mean'][score] is not None
  )
  found = [page.Finding(f'{name}: {figures}; {tables.scope(content)}.')]
  found += _on_seen(content['mean'])
  if protocol['predictor'] != 'copy':
    closer = _closer(folder, rows)
    found.append(
      page.Finding(
        'The prediction is closer to the truth than the source itself, by '
        f'PSNR, in {closer} of {len(rows)} pairs.',
        2 * closer > len(rows),
      )
    )
  step, steps = (
    model.get(key) for key in ('checkpoint_step', 'training_steps')
  )
  if step and steps and step < steps:
    found.append(
      page.Finding(
        f'The model is not finished: step {step} of {steps} was evaluated. '
        'Finish the training, then evaluate again.',
        False,
      )
    )
  return found + on_departures(content)


def on_departures(content: Mapping[str, Any]) -> list[page.Finding]:
  """That it is not the table of its protocol, where it is not."""
  table, departures = (
    content['protocol'][key] for key in ('table', 'departures')
  )
  if not departures:
    return []
  count = len(departures)
  return [
    page.Finding(
      f'This is not the table of {table["name"]}: {count} of its lines '
      f'{"was" if count == 1 else "were"} not followed, see below.',
      False if table['published'] else None,
    )
  ]


def _plain(line: str) -> str:
  """A line of a protocol as words."""
  return line.replace('.', ': ').replace('_', ' ')


def _value(value: Any) -> str:
  """A value of a protocol as words."""
  if isinstance(value, list):
    return ', '.join(map(_value, value))
  if isinstance(value, Mapping):
    return ', '.join(f'{key} {_value(of_key)}' for key, of_key in value.items())
  return 'none' if value is None else str(value)


def departures(content: Mapping[str, Any]) -> list[str]:
  """The lines of the table that were not followed, as words."""
  return [
    f'{_plain(row["line"])}: {_value(row["published"])}; here '
    f'{_value(row["here"])}'
    # Of several predictors only some may do otherwise.
    + (f' ({_value(row["of"])})' if 'of' in row else '')
    for row in content['protocol']['departures']
  ]


def _scenes(content: Mapping[str, Any]) -> list[list[str]]:
  """Rows of text: the figures of every scene, where there are several."""
  if len(content['scenes']) < 2:
    return []
  return [['scene', *map(quantities.heading, quantities.SCORES)]] + [
    [
      name,
      *(
        quantities.number(score, figures[score]) for score in quantities.SCORES
      ),
    ]
    for name, figures in content['scenes'].items()
  ]


def sources(content: Mapping[str, Any]) -> list[str]:
  """Sentences that say where the published figures stand."""
  published = content['protocol']['table']['published']
  return [
    f'{system}: {figures["source"]}.'
    for system, figures in published.items()
    if 'source' in figures
  ]


def caption(content: Mapping[str, Any], text: str) -> str:
  """What stands below the scores, with the features of FID and KID."""
  features = tables.features(content)
  return f'{text} {features}.'.lstrip() if features else text


def made(protocol: Mapping[str, Any], model: Mapping[str, Any]) -> str:
  """By which code, on what, with what model the figures came about.

  Args:
    protocol: of an evaluation.
    model: likewise, of what predicts.
  """
  software = protocol['software']
  facts = [provenance.line(), f'jax {software["jax"]} on {software["device"]}']
  if model.get('parameters'):
    facts.append(f'model of {model["parameters"] / 1e6:.1f} M parameters')
  facts.append(f'views of {protocol["config"]["image_size_px"]} px')
  if model.get('training_steps'):
    facts.append(
      f'step {model["checkpoint_step"]} of {model["training_steps"]}'
    )
  return ' · '.join(facts)


def _next(protocol: Mapping[str, Any]) -> str:
  if protocol['predictor'] == 'model':
    return (
      'score what it has to beat: python -m odin_jax.evaluate with the same '
      '--data and --predictor=model,copy,mean,sweep.'
    )
  return (
    'score a model beside it: python -m odin_jax.evaluate with the same --data, '
    '--predictor=model and --workdir.'
  )


def gather(folder: pathlib.Path, content: Mapping[str, Any]) -> dict[str, Any]:
  """Everything that the page shows, as JSON.

  Args:
    folder: of the evaluation, with the pictures of its pairs.
    content: of its `metrics.json`.
  """
  protocol = content['protocol']
  psnr = [row['psnr'] for row in content['pairs']]
  shown = [content['pairs'][place] for place in pair_cells.shown(psnr)]
  return {
    'title': f'Evaluation of {protocol["predictor"]}',
    'made': made(protocol, protocol['model']),
    'verdict': page.verdict(_findings(folder, content)),
    'next': _next(protocol),
    'scores': tables.text_rows(content),
    'caption': caption(
      content,
      'In brackets 95 % intervals over scenes.'
      if any(content['interval_95'].values())
      else '',
    ),
    'sources': sources(content),
    'scenes': _scenes(content),
    'departures': departures(content),
    'count': len(content['pairs']),
    'explanation': _EXPLANATION,
    'cells': [_cell(folder, row) for row in shown],
    'orders': _orders(shown),
    'filters': pair_cells.filters(shown),
  }


def render(folder: pathlib.Path, content: Mapping[str, Any]) -> str:
  """The page of an evaluation; see `gather`."""
  return rendered(folder, gather(folder, content))


def rendered(folder: pathlib.Path, data: Mapping[str, Any]) -> str:
  """A page of what `gather` has, which leads to the files of its folder."""
  html = page.render(TEMPLATE, data)
  for name in _FILES:
    html = page.link(html, folder, name, folder / name)
  return html
