"""Which share of the records is geometrically consistent? A random sample.

A record is judged by features that are matched afresh between its two pictures,
without the code that found its pose: consistent where a quarter of them have a
small Sampson distance. Not more than a quarter, since fresh matches of things
that look alike are wrong in any number, and no more than a pixel: on procedural
records with true poses 86 % passed so (and 79 % where half had to lie within
two pixels), with a pose that is 2 degrees off 30 % (40 %). So the share is a
lower bound. A record whose pictures share too few features is undecided and
counts on neither side. As a control every sampled record is judged again with
the pose of another one: what passes then passes by chance.
"""

import dataclasses
from typing import Any, Mapping, Sequence

import numpy as np
from scipy import stats

from odin_jax.shared import schema
from preprocessing.auditing import epipolar, held_out
from preprocessing.writing import jpeg

# 1 px at 256 px.
MAX_ERROR_SHARE = 1 / 256
_QUANTILE = 0.25


@dataclasses.dataclass(frozen=True, kw_only=True)
class Assessment:
  """What is found of one record of the sample.

  Attributes:
    record: the record itself.
    matches: number of fresh matches.
    error_px: Sampson distance that a quarter of them do not exceed; None where
      they are too few.
    consistent: whether that is small; None where undecided.
  """

  record: schema.Record
  matches: int
  error_px: float | None
  consistent: bool | None


def draw(
  rows: Sequence[Mapping[str, Any]], size: int, seed: int
) -> list[Mapping[str, Any]]:
  """A random sample without repetition, in order."""
  rng = np.random.default_rng(seed)
  chosen = rng.choice(len(rows), min(size, len(rows)), replace=False)
  return [rows[index] for index in sorted(chosen.tolist())]


def assess(record: schema.Record) -> Assessment:
  """Matches one record afresh."""
  errors = epipolar.fresh_errors_px(record)
  error_px, consistent = None, None
  if len(errors) >= epipolar.MIN_MATCHES:
    error_px = float(np.quantile(errors, _QUANTILE))
    consistent = error_px <= MAX_ERROR_SHARE * _size_px(record)
  return Assessment(
    record=record,
    matches=len(errors),
    error_px=error_px,
    consistent=consistent,
  )


def _size_px(record: Mapping[str, Any]) -> int:
  return jpeg.decode_grey(record['source/image']).shape[0]


def wilson_interval(successes: int, trials: int) -> tuple[float, float]:
  """95 % interval of a share. E. B. Wilson, JASA 22, 1927.

  Args:
    successes: 0 .. trials.
    trials: 0 leaves everything open: (0, 1).
  """
  if not trials:
    return 0.0, 1.0
  interval = stats.binomtest(successes, trials).proportion_ci(
    confidence_level=0.95, method='wilson'
  )
  return float(interval.low), float(interval.high)


def figures(sample: Sequence[Assessment]) -> dict[str, Any]:
  """The share of consistent records, its interval, and what chance gives.

  Returns:
    counts, `share` and `interval_95`; the same of the records that were matched
    directly and of those whose pose is composed; `chance_share`.
  """
  direct = [item for item in sample if item.record['hops'] == 1]
  composed = [item for item in sample if item.record['hops'] > 1]
  return {
    **_share(sample),
    'direct': _share(direct),
    'composed': _share(composed),
    'chance_share': _with_other_poses(_decided(sample)),
    'max_error_px_at_256': MAX_ERROR_SHARE * 256,
  }


def measured(sample: Sequence[Assessment]) -> list[held_out.Measured]:
  """Whether the records that could be judged are consistent, 1 or 0."""
  return [
    held_out.Measured(
      item.record['split'],
      (item.record['video_id'], item.record['scene_id']),
      round(
        abs(item.record['source/time_s'] - item.record['target/time_s']), 1
      ),
      float(bool(item.consistent)),
    )
    for item in _decided(sample)
  ]


def _decided(sample: Sequence[Assessment]) -> list[Assessment]:
  return [item for item in sample if item.consistent is not None]


def _share(sample: Sequence[Assessment]) -> dict[str, Any]:
  decided = _decided(sample)
  consistent = sum(bool(item.consistent) for item in decided)
  return {
    'size': len(sample),
    'decided': len(decided),
    'consistent': consistent,
    'share': consistent / len(decided) if decided else None,
    'interval_95': list(wilson_interval(consistent, len(decided))),
  }


def _with_other_poses(decided: Sequence[Assessment]) -> float | None:
  """Share that passes with the pose of a record from far off in the sample."""
  if len(decided) < 2:
    return None
  passed = 0
  for place, item in enumerate(decided):
    far_off = decided[(place + len(decided) // 2) % len(decided)]
    pose = far_off.record['target2source']
    control = assess({**item.record, 'target2source': pose})
    passed += bool(control.consistent)
  return passed / len(decided)
