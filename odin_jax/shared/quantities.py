"""What figures are called and how they are written where people read them.

JSON files have keys that programs read; pages have their words, unit and
number of digits, which stand here once.
"""

import dataclasses
from typing import Any, Mapping

Value = int | float | None
MISSING = '–'
# Of a predicted picture, the keys of what every evaluation measures.
SCORES = ('psnr', 'ssim', 'lpips')
# Between thousands; narrow, and no line is broken at it.
_THOUSANDS = '\u202f'


@dataclasses.dataclass(frozen=True)
class Quantity:
  """How one figure is shown.

  Attributes:
    words: what it is.
    unit: `°`, `px`, `%`, ...; '' for counts and plain numbers.
    digits: after the point.
    factor: what the stored value is multiplied by for that unit.
    interval_digits: of the bounds of its intervals; None: as of the value.
  """

  words: str
  unit: str = ''
  digits: int = 0
  factor: float = 1.0
  interval_digits: int | None = None


def _share(words: str) -> Quantity:
  return Quantity(words, '%', 1, 100.0)


QUANTITIES = {
  # Poses.
  'rotation_deg': Quantity('rotation error, median', '°', 3),
  'direction_deg': Quantity('error of the direction moved, median', '°', 3),
  'scale_error': Quantity('error of the distance moved, median', '%', 2, 100.0),
  'flips': Quantity('pairs that move the wrong way'),
  'rotation_sigma_deg': Quantity(
    'rotation error that records state, sigma about an axis, median', '°', 3
  ),
  'rotation_sigma_90_deg': Quantity(
    'the same, 90 % of the pairs below', '°', 3
  ),
  'rotation_coverage': _share('rotations inside the stated 95 % interval'),
  'unstated_share': _share('pairs of frames whose records state no error'),
  'direction_sigma_deg': Quantity(
    'error of the direction that records state, sigma along an axis, median',
    '°',
    3,
  ),
  'direction_sigma_90_deg': Quantity(
    'the same, 90 % of the pairs below', '°', 3
  ),
  'direction_coverage': _share('directions inside the stated 95 % interval'),
  'max_rotation_deg': Quantity(
    'poses that disagree by rotation, at most', '°', 6
  ),
  'max_translation': Quantity(
    'poses that disagree by position in scene units, at most', '', 7
  ),
  # Frames, pairs of frames, records.
  'videos': Quantity('videos'),
  'frames': Quantity('frames used'),
  'frame_pairs': Quantity('pairs of frames with records, matched directly'),
  'long_frame_pairs': Quantity(
    'further pairs of frames, with poses composed of several'
  ),
  'frame_pairs_per_gap': Quantity('pairs of frames, matched directly'),
  'frame_pair_candidates': Quantity('pairs of frames that were tried'),
  'records': Quantity('records (pairs of views)'),
  'components': Quantity('pieces without a common scale'),
  'max_components': Quantity('pieces without a common scale, at most'),
  'poses_per_frame': Quantity('poses per frame in a piece, at most'),
  'max_poses_per_frame': Quantity('poses per frame in a piece, at most'),
  'median_depth': Quantity('median depth in scene units', '', 2),
  'kept_share': _share('pairs of frames that were kept'),
  'kept_share_per_gap': _share('pairs of frames that were kept'),
  'min_kept_share_per_gap': _share('the same, the worst time apart of a video'),
  'behind': Quantity('frames that step back along the path'),
  'straightness': _share("the path's variance along its main direction"),
  'unmasked_share': _share('what of the views is scene, not a mask'),
  'min_unmasked_share': _share('the same, of the view with the least'),
  # Fresh matches.
  'close_records': Quantity('records of close frames and much overlap'),
  'tried': Quantity('of them, matched afresh'),
  'matched': Quantity('of them, with enough matches'),
  'sampson_px': Quantity('distance to the epipolar line, median', 'px', 2),
  'sampson_px_per_gap': Quantity(
    'distance to the epipolar line, median', 'px', 2
  ),
  'consistent_share': _share('records that obey their pose'),
  'matcher_calls_per_pair': Quantity('matcher calls per pair of frames', '', 1),
  # Pictures.
  'psnr': Quantity('PSNR', 'dB', 2, interval_digits=1),
  'psnr_seen': Quantity('PSNR, seen by the source', 'dB', 2),
  'psnr_unseen': Quantity('PSNR, not seen by it', 'dB', 2),
  'ssim': Quantity('SSIM', '', 3),
  'lpips': Quantity('LPIPS', '', 3),
  'pairs': Quantity('pairs of views'),
  'points': Quantity('points'),
  # Cost.
  'fps': Quantity('frames per second', '', 1),
  'seconds': Quantity('time', 's', 1),
  'peak_rss_mb': Quantity('peak memory', 'MB'),
}
# Figures that come one per time between two frames, which is their key.
_PER_GAP = '_per_gap'


def heading(key: str) -> str:
  """Words and unit, for the head of a column.

  Raises:
    KeyError: there are no words for this key.
  """
  quantity = QUANTITIES[key]
  return (
    f'{quantity.words}, {quantity.unit}' if quantity.unit else quantity.words
  )


def number(key: str, value: Value) -> str:
  """A value without its unit; a dash where there is none.

  Raises:
    KeyError: there are no words for this key.
  """
  return _written(QUANTITIES[key], value, QUANTITIES[key].digits)


def with_interval(
  key: str, value: Value, bounds: tuple[float, float] | list[float] | None
) -> str:
  """A value without its unit and its bounds, such as `18.00 (17.6 to 18.4)`.

  Args:
    key: of the quantity.
    value: its value.
    bounds: of its interval; None where there is none.

  Raises:
    KeyError: there are no words for this key.
  """
  text, quantity = number(key, value), QUANTITIES[key]
  if value is None or bounds is None:
    return text
  digits = quantity.interval_digits
  digits = quantity.digits if digits is None else digits
  low, high = (_written(quantity, bound, digits) for bound in bounds)
  return f'{text} ({low} to {high})'


def _written(quantity: Quantity, value: Value, digits: int) -> str:
  if value is None:
    return MISSING
  text = f'{value * quantity.factor:,.{digits}f}'
  return text.replace(',', _THOUSANDS)


def text(key: str, value: Value) -> str:
  """A value with its unit.

  Raises:
    KeyError: there are no words for this key.
  """
  unit = QUANTITIES[key].unit
  if value is None or not unit:
    return number(key, value)
  return f'{number(key, value)}{"" if unit == "°" else " "}{unit}'


def flat(figures: Mapping[str, Any]) -> dict[tuple[str, str], Value]:
  """Figures one by one.

  Args:
    figures: values by key; those of a key that ends in `_per_gap` are values by
      the seconds between two frames.

  Returns:
    values by key and by that time, which is '' for the others.

  Raises:
    KeyError: there are no words for a key.
  """
  values: dict[tuple[str, str], Value] = {}
  for key, value in figures.items():
    QUANTITIES[key]  # An unknown one is not shown raw.
    if key.endswith(_PER_GAP) and isinstance(value, Mapping):
      values.update({(key, gap): value[gap] for gap in value})
    else:
      values[key, ''] = value
  return values


def table(columns: Mapping[str, Mapping[str, Any]]) -> list[list[str]]:
  """Figures as rows of text, one column for each of several things.

  Args:
    columns: figures by the name of the thing.

  Returns:
    the head, then a row per figure: its words, its value for each thing.

  Raises:
    KeyError: there are no words for a key.
  """
  flattened = [flat(figures) for figures in columns.values()]
  named: dict[str, set[str]] = {}
  for figures in flattened:
    for key, gap in figures:
      named.setdefault(key, set()).add(gap)
  entries = [
    (key, gap)
    for key, gaps in named.items()
    for gap in sorted(gaps, key=lambda gap: float(gap or 0))
  ]
  return [['', *columns]] + [
    [
      QUANTITIES[key].words + (f', {gap} s apart' if gap else ''),
      *(
        text(key, figures[key, gap]) if (key, gap) in figures else MISSING
        for figures in flattened
      ),
    ]
    for key, gap in entries
  ]
