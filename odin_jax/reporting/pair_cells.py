"""What pages show of an evaluation's pairs: pictures, orders, filters.

Pictures are inside the page, so their number is limited: where there are more
pairs, those that are shown lie evenly on the ranking by PSNR, the worst and the
best among them.
"""

import pathlib
from typing import Any, Mapping, Sequence

import cv2
from jaxtyping import UInt8
import numpy as np

from odin_jax.benchmarks.pairs import scene_of
from odin_jax.shared import page

MAX_PAIRS = 96
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


def read(path: pathlib.Path) -> Image:
  """A picture that an evaluation wrote, BGR."""
  return cv2.imread(str(path), cv2.IMREAD_COLOR)


def error_map(predicted: Image, truth: Image) -> Image:
  """Mean difference of the channels: dark is none, bright `BRIGHTEST`; BGR."""
  difference = np.abs(predicted.astype(float) - truth).mean(axis=-1)
  level = (255 * difference / BRIGHTEST).clip(max=255).astype(np.uint8)
  return cv2.applyColorMap(level, cv2.COLORMAP_INFERNO)


def uri(image: Image) -> str:
  """A picture as a data URI, of a size that a page bears."""
  side = max(image.shape[:2])
  if side <= _MAX_PNG_PX:
    return page.data_uri(cv2.imencode('.png', image)[1].tobytes(), 'image/png')
  if side > _MAX_PX:
    image = cv2.resize(image, (_MAX_PX, _MAX_PX), interpolation=cv2.INTER_AREA)
  jpeg = cv2.imencode('.jpg', image, [cv2.IMWRITE_JPEG_QUALITY, _JPEG_QUALITY])
  return page.data_uri(jpeg[1].tobytes(), 'image/jpeg')


# -- Pairs ---------------------------------------------------------------------


def shown(psnr: Sequence[float]) -> list[int]:
  """Positions of the pairs that are shown, of the PSNR of each."""
  ranking = np.argsort(psnr, kind='stable')
  count = min(MAX_PAIRS, len(psnr))
  places = np.linspace(0, len(psnr) - 1, count).round().astype(int)
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


def filters(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
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
    {'words': title, 'options': options, 'labels': labels}
    for title, labels, values in found
    if len(options := _options(labels, values)) > 1
  ]


def words(row: Mapping[str, Any]) -> str:
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


def orders(
  lowest_first: str, highest_first: str, values: Sequence[float | None]
) -> list[dict[str, Any]]:
  """Two orders of pairs: `words`, and `values` that ascend.

  Args:
    lowest_first: words of the one.
    highest_first: words of the other.
    values: of each pair; where one is not known there are no orders.
  """
  if None in values:
    return []
  return [
    {'words': lowest_first, 'values': list(values)},
    {'words': highest_first, 'values': [-value for value in values]},
  ]


def by_number(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
  """The order in which the pairs stand in the benchmark."""
  return {'words': 'number', 'values': [row['index'] for row in rows]}
