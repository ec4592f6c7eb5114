"""The page of an evaluation: its figures, and its pairs with their errors.

Everything is taken from the folder that `odin_jax.evaluate` writes. Pictures
are inside the page, so their number is limited: where there are more pairs,
those that are shown lie evenly on the ranking by PSNR, the worst and the best
among them.
"""

import pathlib
from typing import Any, Mapping, Sequence

import cv2
from jaxtyping import UInt8
import numpy as np

from odin_jax.benchmarks import tables
from odin_jax.benchmarks.pairs import scene_of
from odin_jax.shared import page, provenance, quantities

TEMPLATE = pathlib.Path(__file__).with_name('evaluation_page.html')
MAX_PAIRS = 96
_SCORES = ('psnr', 'ssim', 'lpips')
_KINDS = ('source', 'truth', 'sample')
_FILES = ('metrics.json', 'table.md', 'table.tex')
# Larger pictures are made smaller, and JPEGs.
_MAX_PNG_PX = 48
_MAX_PX = 128
_JPEG_QUALITY = 90
# Mean difference of the channels, of 255, that is brightest in an error map.
BRIGHTEST = 128
# Of more different times there are ranges.
_MAX_GAPS = 8
_OVERLAPS = ((0.25, 'below 25 %'), (0.5, '25 to 50 %'), (0.75, '50 to 75 %'))
_MOST_OVERLAP = '75 % or more'

Image = UInt8[np.ndarray, 's s 3']


# -- Pictures ------------------------------------------------------------------


def _read(path: pathlib.Path) -> Image:
  """A picture that an evaluation wrote, BGR."""
  return cv2.imread(str(path), cv2.IMREAD_COLOR)


def error_map(predicted: Image, truth: Image) -> Image:
  """Mean difference of the channels: dark is none, bright `BRIGHTEST`; BGR."""
  difference = np.abs(predicted.astype(float) - truth).mean(axis=-1)
  level = (255 * difference / BRIGHTEST).clip(max=255).astype(np.uint8)
  return cv2.applyColorMap(level, cv2.COLORMAP_INFERNO)


def _uri(image: Image) -> str:
  side = max(image.shape[:2])
  if side <= _MAX_PNG_PX:
    return page.data_uri(cv2.imencode('.png', image)[1].tobytes(), 'image/png')
  if side > _MAX_PX:
    image = cv2.resize(image, (_MAX_PX, _MAX_PX), interpolation=cv2.INTER_AREA)
  jpeg = cv2.imencode('.jpg', image, [cv2.IMWRITE_JPEG_QUALITY, _JPEG_QUALITY])
  return page.data_uri(jpeg[1].tobytes(), 'image/jpeg')


# -- Pairs ---------------------------------------------------------------------


def _shown(rows: Sequence[Mapping[str, Any]]) -> list[int]:
  """Positions of the pairs that are shown."""
  ranking = np.argsort([row['psnr'] for row in rows], kind='stable')
  count = min(MAX_PAIRS, len(rows))
  places = np.linspace(0, len(rows) - 1, count).round().astype(int)
  return sorted(ranking[places].tolist())


def _gap_s(row: Mapping[str, Any]) -> float | None:
  """Seconds between the two views; None where that is not known."""
  if 'source_time_s' not in row:
    return None
  return round(abs(row['target_time_s'] - row['source_time_s']), 1)


def _gap_labels(rows: Sequence[Mapping[str, Any]]) -> list[str | None]:
  gaps = [_gap_s(row) for row in rows]
  known = [gap for gap in gaps if gap is not None]
  if len(set(known)) <= _MAX_GAPS:
    return [None if gap is None else f'{gap:g} s' for gap in gaps]
  low, high = np.quantile(known, [1 / 3, 2 / 3]).round(1)
  return [
    None
    if gap is None
    else f'up to {low:g} s'
    if gap <= low
    else f'{low:g} to {high:g} s'
    if gap <= high
    else f'more than {high:g} s'
    for gap in gaps
  ]


def _overlap_label(overlap: float | None) -> str | None:
  if overlap is None:
    return None
  return next(
    (words for end, words in _OVERLAPS if overlap < end), _MOST_OVERLAP
  )


def _options(labels: Sequence[str | None], values: Sequence[Any]) -> list[str]:
  """The labels in the order of the values that they stand for."""
  lowest: dict[str, Any] = {}
  for label, value in zip(labels, values, strict=True):
    if label is not None:
      lowest[label] = min(value, lowest.get(label, value))
  return sorted(lowest, key=lambda label: lowest[label])


def _filters(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
  """What pairs can be chosen by: `words`, `options`, `labels` of each pair."""
  scenes = [scene_of(row) for row in rows]
  overlaps = [row.get('overlap') for row in rows]
  found = [
    ('Scene', scenes, scenes),
    (
      'Time between the views',
      _gap_labels(rows),
      [_gap_s(row) for row in rows],
    ),
    ('Overlap', [_overlap_label(overlap) for overlap in overlaps], overlaps),
  ]
  return [
    {'words': words, 'options': options, 'labels': labels}
    for words, labels, values in found
    if len(options := _options(labels, values)) > 1
  ]


def _words(row: Mapping[str, Any]) -> str:
  """Which pair it is, and what is between its views."""
  facts = [scene_of(row)]
  if (gap_s := _gap_s(row)) is not None:
    facts.append(f'{gap_s:g} s apart')
  if row.get('overlap') is not None:
    facts.append(f'overlap {100 * row["overlap"]:.0f} %')
  facts.append(f'turned {row["rotation_deg"]:.0f}°')
  if row.get('pose_of_pair', row['index']) != row['index']:
    facts.append(f'with the pose of pair {row["pose_of_pair"]}')
  return ', '.join(facts)


def _cell(folder: pathlib.Path, row: Mapping[str, Any]) -> dict[str, Any]:
  views = {kind: _read(folder / row['files'][kind]) for kind in _KINDS}
  views['error'] = error_map(views['sample'], views['truth'])
  return {
    'index': row['index'],
    'words': _words(row),
    **{score: row[score] for score in _SCORES},
    **{kind: _uri(view) for kind, view in views.items()},
  }


def _closer(folder: pathlib.Path, rows: Sequence[Mapping[str, Any]]) -> int:
  """In how many pairs the prediction is nearer to the truth than the source."""
  count = 0
  for row in rows:
    source, truth, sample = (
      _read(folder / row['files'][kind]).astype(float) for kind in _KINDS
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
  of_table, model = protocol['table'], protocol['model']
  name = next(tables.rows(content)).name
  figures = ', '.join(
    f'{quantities.QUANTITIES[score].words} '
    f'{quantities.text(score, content["mean"][score])}'
    for score in _SCORES
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
  if protocol['departures']:
    count = len(protocol['departures'])
    found.append(
      page.Finding(
        f'This is not the table of {of_table["name"]}: {count} of its lines '
        f'{"was" if count == 1 else "were"} not followed, see below.',
        False if of_table['published'] else None,
      )
    )
  return found


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


def _departures(content: Mapping[str, Any]) -> list[str]:
  return [
    f'{_plain(row["line"])}: {_value(row["published"])}; here '
    f'{_value(row["here"])}'
    for row in content['protocol']['departures']
  ]


def _scenes(content: Mapping[str, Any]) -> list[list[str]]:
  """Rows of text: the figures of every scene, where there are several."""
  if len(content['scenes']) < 2:
    return []
  return [['scene', *map(quantities.heading, _SCORES)]] + [
    [name, *(quantities.number(score, figures[score]) for score in _SCORES)]
    for name, figures in content['scenes'].items()
  ]


def _sources(content: Mapping[str, Any]) -> list[str]:
  """Where the published figures stand."""
  published = content['protocol']['table']['published']
  return [
    f'{system}: {figures["source"]}.'
    for system, figures in published.items()
    if 'source' in figures
  ]


def _made(protocol: Mapping[str, Any]) -> str:
  """By which code, on what, with what model the figures came about."""
  software, model = protocol['software'], protocol['model']
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
      '--data and --predictor=copy, mean, sweep.'
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
  shown = [content['pairs'][place] for place in _shown(content['pairs'])]
  return {
    'title': f'Evaluation of {protocol["predictor"]}',
    'made': _made(protocol),
    'verdict': page.verdict(_findings(folder, content)),
    'next': _next(protocol),
    'scores': tables.text_rows(content),
    'caption': 'In brackets 95 % intervals over scenes.'
    if any(content['interval_95'].values())
    else '',
    'sources': _sources(content),
    'scenes': _scenes(content),
    'departures': _departures(content),
    'count': len(content['pairs']),
    'cells': [_cell(folder, row) for row in shown],
    'filters': _filters(shown),
  }


def render(folder: pathlib.Path, content: Mapping[str, Any]) -> str:
  """The page of an evaluation; see `gather`."""
  html = page.render(TEMPLATE, gather(folder, content))
  for name in _FILES:
    html = page.link(html, folder, name, folder / name)
  return html
