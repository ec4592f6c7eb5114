"""The figures of an evaluation as a table, beside those that were published."""

import re
from typing import Any, Iterator, Mapping, NamedTuple

from odin_jax.shared import quantities

_FORMATS = {
  'psnr': '.2f',
  'ssim': '.3f',
  'lpips': '.3f',
  'psnr_seen': '.2f',
  'psnr_unseen': '.2f',
  # Of any size: features have units of their own.
  'fid': '.4g',
  'kid': '.3g',
}
_HEADINGS = {
  'psnr': 'PSNR dB',
  'ssim': 'SSIM',
  'lpips': 'LPIPS',
  # Where the true depth of the pairs is known.
  'psnr_seen': 'PSNR dB, seen',
  'psnr_unseen': 'PSNR dB, unseen',
  # Where features are given.
  'fid': 'FID',
  'kid': 'KID',
}
# Scores of all pictures as one set, which are no means over pairs.
_OF_SETS = ('fid', 'kid')


class Row(NamedTuple):
  """One line of a table.

  Attributes:
    name: what was scored.
    mean: scores by name, those of sets among them; None where there is none.
    interval_95: their bounds; None where there are none.
    is_difference: whether they are differences, which have signs.
  """

  name: str
  mean: Mapping[str, float | None]
  interval_95: Mapping[str, list[float] | None]
  is_difference: bool = False


def _rows_of(name: str, figures: Mapping[str, Any]) -> Iterator[Row]:
  """The lines of one predictor."""
  of_sets = {score: figures[score] for score in _OF_SETS if score in figures}
  yield Row(name, {**figures['mean'], **of_sets}, figures['interval_95'])
  for key, of_several in figures.items():
    if re.fullmatch(r'(mean|best)_of_\d+', key):
      label = f'{name}, {key.replace("_", " ")}'
      yield Row(label, of_several['mean'], of_several['interval_95'])
  if 'searched' in figures:
    searched = figures['searched']
    label = f'{name}, best of {len(searched["factors"])} scales'
    yield Row(label, searched['mean'], searched.get('interval_95', {}))


def _differences(predictors: Mapping[str, Any]) -> Iterator[Row]:
  first = next(iter(predictors))
  for name, figures in predictors.items():
    if name != first:
      difference = figures['difference_to_first']
      yield Row(
        f'{name} minus {first}',
        difference['mean'],
        difference['interval_95'],
        is_difference=True,
      )


def rows(content: Mapping[str, Any]) -> Iterator[Row]:
  """The lines of what `metrics.json` holds, of one predictor or of several."""
  protocol = content['protocol']
  shuffled = ', poses shuffled' if protocol['shuffle_poses'] else ''
  if 'predictors' in content:
    for name, figures in content['predictors'].items():
      yield from _rows_of(name + shuffled, figures)
    yield from _differences(content['predictors'])
  else:
    yield from _rows_of(protocol['predictor'] + shuffled, content)
  for system, figures in protocol['table']['published'].items():
    yield Row(f'{system} (published)', figures, {})


def _cell(row: Row, score: str) -> str:
  value, form = row.mean.get(score), _FORMATS[score]
  if value is None:
    return '-'
  sign = '+' if row.is_difference else ''
  text = f'{value:{sign}{form}}'
  if bounds := row.interval_95.get(score):
    low, high = (f'{bound:{sign}{form}}' for bound in bounds)
    text += f' ({low} to {high})'
  return text


def text_rows(content: Mapping[str, Any]) -> list[list[str]]:
  """The lines of the table as text, its head first."""
  lines = list(rows(content))
  scores = [
    score
    for score in _HEADINGS
    # Some have a column though nothing has them.
    if score in quantities.SCORES
    or any(row.mean.get(score) is not None for row in lines)
  ]
  return [['', *(_HEADINGS[score] for score in scores)]] + [
    [row.name, *(_cell(row, score) for score in scores)] for row in lines
  ]


def scope(content: Mapping[str, Any]) -> str:
  """What the table is of."""
  scenes = len(content['scenes'])
  return (
    f'{len(content["pairs"])} pairs of {scenes} '
    f'{"scene" if scenes == 1 else "scenes"}, '
    f'protocol {content["protocol"]["table"]["name"]}'
  )


def distribution(figures: Mapping[str, Any]) -> str:
  """FID and KID of a predictor in words; '' where they were not measured."""
  if 'fid' not in figures:
    return ''
  fid, kid = (f'{figures[name]:{_FORMATS[name]}}' for name in _OF_SETS)
  return f'FID {fid}, KID {kid} +- {figures["kid_std"]:.1g}'


def features(content: Mapping[str, Any]) -> str:
  """By which features FID and KID are; '' where they were not measured."""
  definitions = content['protocol'].get('metrics', {})
  if 'features' not in definitions:
    return ''
  return f'FID and KID by {definitions["features"]}'


def _caption(content: Mapping[str, Any]) -> str:
  """What the table is of, and whether it is that of its protocol."""
  text = f'{scope(content)}; 95 % intervals over scenes.'
  if words := features(content):
    text += f' {words}.'
  if 'predictors' in content:
    text += ' Differences are of the same pairs.'
  if lines := departing_lines(content):
    text += (
      f' Not that table: it differs in {", ".join(lines)} (metrics.json, '
      'departures).'
    )
  return text


def departing_lines(content: Mapping[str, Any]) -> list[str]:
  """The lines of the table that were not followed, each with who did not."""
  return [
    row['line'] + (f' ({", ".join(row["of"])})' if 'of' in row else '')
    for row in content['protocol']['departures']
  ]


def markdown(content: Mapping[str, Any]) -> str:
  """The table for a README."""
  cells = text_rows(content)
  head, *body = (f'| {" | ".join(row).lstrip()} |' for row in cells)
  lines = [head, '|' + '---|' * len(cells[0]), *body]
  return '\n'.join([*lines, '', _caption(content), ''])


def latex(content: Mapping[str, Any]) -> str:
  """The table for a paper."""
  cells = text_rows(content)
  head, *body = (_escaped(' & '.join(row)) + r' \\' for row in cells)
  columns = 'l' + 'r' * (len(cells[0]) - 1)
  lines = [rf'\begin{{tabular}}{{{columns}}}', head + r' \hline', *body]
  return '\n'.join([*lines, r'\end{tabular}', '% ' + _caption(content), ''])


def _escaped(text: str) -> str:
  return text.replace('_', r'\_').replace('%', r'\%')
