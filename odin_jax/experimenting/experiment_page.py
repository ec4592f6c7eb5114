"""The page and the table of an experiment."""

import pathlib
from typing import Any, Sequence

from odin_jax.experimenting import comparison
from odin_jax.experimenting.tables import Experiment
from odin_jax.shared import page, provenance

_TEMPLATE = pathlib.Path(__file__).with_name('experiment_page.html')


def _is_number(text: str) -> bool:
  try:
    float(text)
  except ValueError:
    return False
  return True


def render(
  experiment: Experiment,
  cells: Sequence[dict[str, Any]],
  findings: Sequence[page.Finding],
) -> str:
  """The page as HTML.

  Args:
    experiment: what was varied.
    cells: as `odin_jax.experiments` writes them, with baselines.
    findings: what they say.
  """
  rows = comparison.rows(cells)
  values = [row['value'] for row in rows if row['width'] is not None]
  return page.render(
    _TEMPLATE,
    {
      'title': experiment.title,
      'question': experiment.question,
      'made': provenance.line(),
      'verdict': page.verdict(list(findings)),
      'next': 'every cell has its figures in cells/, and its model in training/.',
      'ordered': all(_is_number(value) for value in values),
      'rows': rows,
      'table': comparison.table(experiment.axis, rows),
    },
  )


def markdown(
  experiment: Experiment,
  cells: Sequence[dict[str, Any]],
  findings: Sequence[page.Finding],
) -> str:
  """Title, table and findings as Markdown."""
  head, *rows = comparison.table(experiment.axis, comparison.rows(cells))
  lines = [f'# {experiment.title}', '', experiment.question, '']
  lines += [f'| {" | ".join(row)} |' for row in (head, ['---'] * len(head))]
  lines += [f'| {" | ".join(row)} |' for row in rows]
  lines += ['', ' '.join(finding.text for finding in findings), '']
  return '\n'.join(lines)
