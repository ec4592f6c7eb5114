"""The figures of an evaluation as a table, beside those that were published."""

import re
from typing import Any, Iterator, Mapping, NamedTuple

_DIGITS = {'psnr': 2, 'ssim': 3, 'lpips': 3, 'psnr_seen': 2, 'psnr_unseen': 2}
_HEADINGS = {
  'psnr': 'PSNR dB',
  'ssim': 'SSIM',
  'lpips': 'LPIPS',
  # Where the true depth of the pairs is known.
  'psnr_seen': 'PSNR dB, seen',
  'psnr_unseen': 'PSNR dB, unseen',
}
# Those that have a column though nothing has them.
_ALWAYS = ('psnr', 'ssim', 'lpips')


class Row(NamedTuple):
  """One line of a table.

  Attributes:
    name: what was scored.
    mean: scores by name; None where there is none.
    interval_95: their bounds; None where there are none.
  """

  name: str
  mean: Mapping[str, float | None]
  interval_95: Mapping[str, list[float] | None]


def rows(content: Mapping[str, Any]) -> Iterator[Row]:
  """The lines of what `metrics.json` holds."""
  protocol = content['protocol']
  name = protocol['predictor']
  if protocol['shuffle_poses']:
    name += ', poses shuffled'
  yield Row(name, content['mean'], content['interval_95'])
  for key, figures in content.items():
    if re.fullmatch(r'(mean|best)_of_\d+', key):
      label = f'{name}, {key.replace("_", " ")}'
      yield Row(label, figures['mean'], figures['interval_95'])
  if 'searched' in content:
    count = len(content['searched']['factors'])
    label = f'{name}, best of {count} scales'
    yield Row(label, content['searched']['mean'], {})
  for system, figures in protocol['table']['published'].items():
    yield Row(f'{system} (published)', figures, {})


def _cell(row: Row, score: str) -> str:
  value, digits = row.mean.get(score), _DIGITS[score]
  if value is None:
    return '-'
  text = f'{value:.{digits}f}'
  if bounds := row.interval_95.get(score):
    low, high = (f'{bound:.{digits}f}' for bound in bounds)
    text += f' ({low} to {high})'
  return text


def text_rows(content: Mapping[str, Any]) -> list[list[str]]:
  """The lines of the table as text, its head first."""
  lines = list(rows(content))
  scores = [
    score
    for score in _HEADINGS
    if score in _ALWAYS or any(row.mean.get(score) is not None for row in lines)
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


def _caption(content: Mapping[str, Any]) -> str:
  """What the table is of, and whether it is that of its protocol."""
  text = f'{scope(content)}; 95 % intervals over scenes.'
  if lines := [row['line'] for row in content['protocol']['departures']]:
    text += (
      f' Not that table: it differs in {", ".join(lines)} (metrics.json, '
      'departures).'
    )
  return text


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
