"""The figures of an evaluation as a table, beside those that were published."""

import re
from typing import Any, Iterator, Mapping, NamedTuple

_DIGITS = {'psnr': 2, 'ssim': 3, 'lpips': 3}
_HEADINGS = ('PSNR dB', 'SSIM', 'LPIPS')


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
  return [['', *_HEADINGS]] + [
    [row.name, *(_cell(row, score) for score in _DIGITS)]
    for row in rows(content)
  ]


def scope(content: Mapping[str, Any]) -> str:
  """What the table is of."""
  scenes = len(content['scenes'])
  return (
    f'{len(content["pairs"])} pairs of {scenes} '
    f'{"scene" if scenes == 1 else "scenes"}, '
    f'protocol {content["protocol"]["table"]["name"]}'
  )


def distribution(content: Mapping[str, Any]) -> list[str]:
  """FID and KID in words; none where they were not measured."""
  if 'fid' not in content:
    return []
  features = content['protocol']['metrics']['features']
  return [
    # Of any size: features have units of their own.
    f'FID {content["fid"]:.4g}',
    f'KID {content["kid"]:.3g} +- {content["kid_std"]:.1g} by {features}',
  ]


def _caption(content: Mapping[str, Any]) -> str:
  """What the table is of, and whether it is that of its protocol."""
  text = f'{scope(content)}; 95 % intervals over scenes.'
  if figures := distribution(content):
    text += f' {", ".join(figures)}.'
  if lines := [row['line'] for row in content['protocol']['departures']]:
    text += (
      f' Not that table: it differs in {", ".join(lines)} (metrics.json, '
      'departures).'
    )
  return text


def markdown(content: Mapping[str, Any]) -> str:
  """The table for a README."""
  head, *body = (
    f'| {" | ".join(cells).lstrip()} |' for cells in text_rows(content)
  )
  lines = [head, '|---|---|---|---|', *body]
  return '\n'.join([*lines, '', _caption(content), ''])


def latex(content: Mapping[str, Any]) -> str:
  """The table for a paper."""
  head, *body = (
    _escaped(' & '.join(cells)) + r' \\' for cells in text_rows(content)
  )
  lines = [r'\begin{tabular}{lrrr}', head + r' \hline', *body]
  return '\n'.join([*lines, r'\end{tabular}', '% ' + _caption(content), ''])


def _escaped(text: str) -> str:
  return text.replace('_', r'\_').replace('%', r'\%')
