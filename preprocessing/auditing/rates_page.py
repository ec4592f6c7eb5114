"""The page of an experiment with several frame rates."""

import pathlib
from typing import Any

from odin_jax.shared import page, provenance, quantities

_TEMPLATE = pathlib.Path(__file__).with_name('rates_page.html')


def findings(rows: list[dict[str, Any]]) -> list[page.Finding]:
  """What the rows say: which rate finds most, and whether it is as good."""
  most = max(rows, key=lambda row: row['frame_pairs'])
  found = [
    page.Finding(
      f'{most["fps"]:g} frames per second find the most pairs of frames: '
      f'{most["frame_pairs"]}, in {most["seconds"]:.0f} s of one core.'
    )
  ]
  judged = [row for row in rows if row['consistent_share'] is not None]
  if len(judged) > 1:
    best = max(judged, key=lambda row: row['consistent_share'])
    text = (
      f'Records of {best["fps"]:g} frames per second obey their pose most often: '
      f'{quantities.text("consistent_share", best["consistent_share"])}'
    )
    lowest = min(row['interval_95'][1] for row in judged)
    if lowest >= best['interval_95'][0]:
      text += (
        '; the 95 % intervals of all rates overlap, so none is proven better'
      )
    found.append(page.Finding(f'{text}.'))
  return found


def _table(rows: list[dict[str, Any]]) -> list[list[str]]:
  """Figures as rows of text, a column for each rate."""
  columns = {}
  for row in rows:
    figures = {
      key: row[key]
      for key in (
        'frames',
        'frame_pairs',
        'long_frame_pairs',
        'records',
        'matcher_calls_per_pair',
        'seconds',
        'consistent_share',
        'sampson_px',
      )
    }
    columns[f'{row["fps"]:g} fps'] = figures
  table = quantities.table(columns)
  intervals = [
    f'{quantities.number("consistent_share", row["interval_95"][0])} to '
    f'{quantities.text("consistent_share", row["interval_95"][1])}'
    for row in rows
  ]
  table.append(['their 95 % interval', *intervals])
  kinds = dict.fromkeys(kind for row in rows for kind in row['pose'] or {})
  for kind in kinds:
    for key in ('rotation_deg', 'direction_deg', 'scale_error'):
      values = [((row['pose'] or {}).get(kind) or {}).get(key) for row in rows]
      table.append(
        [
          f'{kind} texture: {quantities.QUANTITIES[key].words}',
          *(quantities.text(key, value) for value in values),
        ]
      )
  return table


def render(title: str, rows: list[dict[str, Any]]) -> str:
  """The page as HTML.

  Args:
    title: its heading.
    rows: one per rate, as `preprocessing.fps_experiment` writes them.
  """
  return page.render(
    _TEMPLATE,
    {
      'title': title,
      'made': provenance.line(),
      'verdict': page.verdict(findings(rows)),
      'next': 'give the rate to preprocessing.run as --config.fps=RATE.',
      'table': _table(rows),
      'rows': rows,
    },
  )
