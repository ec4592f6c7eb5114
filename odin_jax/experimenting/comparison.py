"""What the cells of an experiment say: means, and differences with intervals.

The cells see the same pairs, so that their differences are of pairs. Intervals
(`odin_jax.shared.bootstrap`) say how far other scenes would move a figure, not
how far another seed of training would.
"""

from typing import Any, NamedTuple, Sequence

from jaxtyping import Float
import numpy as np

from odin_jax.shared import bootstrap, errors, page, quantities


class Estimate(NamedTuple):
  """A mean over pairs and its interval; None: of one scene there is none."""

  mean: float
  interval: list[float] | None


def estimate(values: Float[np.ndarray, 'n'], scenes: Sequence[str]) -> Estimate:
  """The mean of values, one of each pair, and its interval.

  Args:
    values: one per pair.
    scenes: whose pair each is.
  """
  return Estimate(float(values.mean()), bootstrap.interval(values, scenes))


def mean_of_seeds(
  cells: Sequence[dict[str, Any]], key: str, score: str
) -> tuple[Float[np.ndarray, 'n'], list[str]] | None:
  """A score of every pair, mean over seeds, and the pairs' scenes.

  Args:
    cells: of one value and width, one per seed.
    key: of an evaluation, `SET/WHAT`.
    score: one of `quantities.SCORES`.

  Returns:
    None where the score was not taken.

  Raises:
    errors.UserError: the cells were evaluated on different pairs.
  """
  evaluations = [cell['evaluations'][key] for cell in cells]
  if any(
    evaluation['data_sha256'] != evaluations[0]['data_sha256']
    for evaluation in evaluations
  ):
    raise errors.UserError(
      f'{key}: the cells were evaluated on different pairs; give another '
      '--output'
    )
  if any(evaluation[score][0] is None for evaluation in evaluations):
    return None
  values = np.mean([evaluation[score] for evaluation in evaluations], axis=0)
  return values, evaluations[0]['scenes']


def rows(cells: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
  """A row for every value, width and evaluation, in the order of the cells."""
  groups: dict[tuple[str, int | None], list[dict[str, Any]]] = {}
  for cell in cells:
    groups.setdefault((cell['value'], cell['width']), []).append(cell)
  table = []
  for (value, width), members in groups.items():
    for key in members[0]['evaluations']:
      part, what = key.split('/')
      row = {'value': value, 'width': width, 'set': part, 'what': what}
      row['seeds'] = len(members)
      row['parameters'] = members[0]['parameters']
      for score in quantities.SCORES:
        taken = mean_of_seeds(members, key, score)
        row[score] = estimate(*taken)._asdict() if taken else None
      table.append(row)
  return table


def difference(
  cells: Sequence[dict[str, Any]],
  others: Sequence[dict[str, Any]],
  key: str,
) -> Estimate:
  """How much more PSNR the cells have than the others, in dB, pair by pair."""
  mean_of_seeds([*cells, *others], key, 'psnr')  # The pairs are the same.
  values, scenes = mean_of_seeds(cells, key, 'psnr')
  of_others, _ = mean_of_seeds(others, key, 'psnr')
  return estimate(values - of_others, scenes)


_SETS = {'held_out': 'held-out frames', 'unseen': 'unseen worlds'}
# One step of sampling gives about the conditional mean.
_WHAT = {'sample': 'one sample', 'one_step': 'conditional mean'}
_OTHERS = {
  'shuffled': 'poses shuffled',
  'copy': 'copy of the source',
  'mean': "source's mean colour",
  'sweep': 'source swept, averaged',
}


def _sentence(
  subject: str, other: str, where: str, found: Estimate
) -> page.Finding:
  text = f'{where}: {subject} against {other}: {found.mean:+.2f} dB'
  if found.interval is None:
    return page.Finding(f'{text}; of one scene there is no interval.')
  low, high = found.interval
  text += f' ({low:+.2f} to {high:+.2f})'
  if low <= 0 <= high:
    return page.Finding(f'{text}: no difference beyond the interval.')
  return page.Finding(f'{text}: {"better" if low > 0 else "worse"}.', low > 0)


def findings(
  axis: str, cells: Sequence[dict[str, Any]], num_cells: int
) -> list[page.Finding]:
  """What differs by more than its interval, and what does not.

  Args:
    axis: what the values are.
    cells: those that are done, with baselines.
    num_cells: models that there will be.
  """
  models = [cell for cell in cells if cell['width'] is not None]
  found = []
  if len(models) < num_cells:
    found.append(
      page.Finding(f'{len(models)} of {num_cells} models are done so far.')
    )
  groups: dict[tuple[int, str], list[dict[str, Any]]] = {}
  for cell in models:
    groups.setdefault((cell['width'], cell['value']), []).append(cell)
  widths = list(dict.fromkeys(width for width, _ in groups))
  for width in widths:
    values = [value for other, value in groups if other == width]
    of_width = f', {width} channels' if len(widths) > 1 else ''
    for key in models[0]['evaluations']:
      part, what = key.split('/')
      if what not in _WHAT:
        continue
      where = f'{_SETS[part]}, {_WHAT[what]}{of_width}'
      for value in values[1:]:
        if not all(_has(groups[width, x], key) for x in (value, values[0])):
          continue
        found.append(
          _sentence(
            f'{axis} {value}',
            values[0],
            where,
            difference(groups[width, value], groups[width, values[0]], key),
          )
        )
  found += _of_widths(axis, groups, widths)
  if len({cell['code_commit'] for cell in cells}) > 1:
    found.append(
      page.Finding('Not all cells were made by the same code.', False)
    )
  seeds = {cell['seed'] for cell in models}
  if len(seeds) == 1:
    found.append(
      page.Finding(
        'One seed each: intervals are over scenes, and another seed of '
        'training moves figures, too.'
      )
    )
  return found


def _has(cells: list[dict[str, Any]], key: str) -> bool:
  """Whether it was evaluated: not all models give a conditional mean."""
  return all(key in cell['evaluations'] for cell in cells)


def _of_widths(
  axis: str,
  groups: dict[tuple[int, str], list[dict[str, Any]]],
  widths: list[int],
) -> list[page.Finding]:
  """The larger models against the smallest, at every value that both have."""
  return [
    _sentence(
      f'{width} channels',
      f'{widths[0]}',
      f'{_SETS[key.split("/")[0]]}, {_WHAT[key.split("/")[1]]}, {axis} {value}',
      difference(members, groups[widths[0], value], key),
    )
    for (width, value), members in groups.items()
    if width != widths[0] and (widths[0], value) in groups
    for key in members[0]['evaluations']
    if key.split('/')[1] in _WHAT
  ]


def table(axis: str, table_rows: Sequence[dict[str, Any]]) -> list[list[str]]:
  """Rows of text with a head, for a page and for Markdown."""

  def text(found: dict[str, Any] | None, digits: int) -> str:
    if found is None:
      return '–'
    shown = f'{found["mean"]:.{digits}f}'
    if found['interval'] is None:
      return shown
    low, high = found['interval']
    return f'{shown} ({low:.{digits}f} to {high:.{digits}f})'

  scores = map(quantities.heading, quantities.SCORES)
  head = [axis, 'channels', 'on', 'of', *scores, 'seeds']
  return [
    head,
    *(
      [
        row['value'],
        str(row['width'] or '–'),
        _SETS[row['set']],
        {**_WHAT, **_OTHERS}[row['what']],
        text(row['psnr'], 2),
        text(row['ssim'], 3),
        text(row['lpips'], 3),
        str(row['seeds']),
      ]
      for row in table_rows
    ),
  ]
