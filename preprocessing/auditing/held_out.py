"""Are the held-out pairs as true as those that are trained on?

A score on held-out pairs means what it says only where their poses are as good.
Each measure is compared between the splits: pairs of frames equally far apart
with each other, since a held-out block of time has fewer wide ones, and errors
depend on that; weighted as the held-out ones are. The interval of the
difference is from a bootstrap over scenes, since pairs of one scene tell little
more than one of them. B. Efron and R. Tibshirani, An Introduction to the
Bootstrap, 1993.
"""

from typing import Any, Callable, Mapping, NamedTuple, Sequence

from jaxtyping import Float, Int
import numpy as np

from odin_jax.shared import schema

_DRAWS = 1000
_SEED = 0
# Fewer values of a split scatter by more than draws of them tell.
_MIN_COUNT = 20
# Shares, of values that are 0 or 1; of the others medians are compared.
_MEANS = ('consistent_share',)
TRAINED, HELD_OUT = schema.SPLITS


class Measured(NamedTuple):
  """One value, and where it comes from.

  Attributes:
    split: `train` or `test`.
    scene: video and component.
    gap_s: time between the frames.
    value: of a record, or of a pair of frames.
  """

  split: str
  scene: tuple[str, int]
  gap_s: float
  value: float


class _Values(NamedTuple):
  """Values of one measure, as arrays."""

  is_held_out: Int[np.ndarray, 'n']
  scene: Int[np.ndarray, 'n']
  gap: Int[np.ndarray, 'n']
  value: Float[np.ndarray, 'n']


def compare(
  measures: Mapping[str, Sequence[Measured]],
) -> dict[str, dict[str, Any]]:
  """Each measure in either split, and their difference.

  Args:
    measures: values by the name of what is measured.

  Returns:
    by the same names, `train` and `test`, each with `value`, and the `count` of
    values and `scenes`; `difference`, of test from train; its `interval_95`, or
    None where there are too few values, or one scene alone. Without measures
    that the splits have at no common time between frames.
  """
  compared = {}
  for name, measured in measures.items():
    values = _comparable(measured)
    if not len(values.value):
      continue
    middle = np.mean if name in _MEANS else np.median
    everything = np.arange(len(values.value))
    trained, held_out = _in_either(values, everything, middle)
    compared[name] = {
      TRAINED: _of_split(values, 0, trained),
      HELD_OUT: _of_split(values, 1, held_out),
      'difference': held_out - trained,
      'interval_95': _interval(values, middle),
    }
  return compared


def _comparable(measured: Sequence[Measured]) -> _Values:
  """What is measured at times between frames that both splits have."""
  gaps = [
    {item.gap_s for item in measured if item.split == split}
    for split in schema.SPLITS
  ]
  common = sorted(gaps[0] & gaps[1])
  kept = [item for item in measured if item.gap_s in common]
  scenes = sorted({item.scene for item in kept})
  return _Values(
    np.array([item.split == HELD_OUT for item in kept], int),
    np.array([scenes.index(item.scene) for item in kept], int),
    np.array([common.index(item.gap_s) for item in kept], int),
    np.array([item.value for item in kept], np.float64),
  )


def _of_split(values: _Values, split: int, value: float) -> dict[str, Any]:
  inside = values.is_held_out == split
  return {
    'value': value,
    'count': int(inside.sum()),
    'scenes': len(np.unique(values.scene[inside])),
  }


def _in_either(
  values: _Values,
  chosen: Int[np.ndarray, 'm'],
  middle: Callable[[np.ndarray], float],
) -> tuple[float, float] | None:
  """The middle value of train and of test, over those chosen; None of none."""
  split, gap = values.is_held_out[chosen], values.gap[chosen]
  value = values.value[chosen]
  sums, total = np.zeros(2), 0
  for index in np.unique(gap):
    sides = [value[(gap == index) & (split == side)] for side in (0, 1)]
    if len(sides[0]) and len(sides[1]):
      sums += len(sides[1]) * np.array([middle(side) for side in sides])
      total += len(sides[1])
  if not total:
    return None
  trained, held_out = (sums / total).tolist()
  return trained, held_out


def _interval(
  values: _Values, middle: Callable[[np.ndarray], float]
) -> list[float] | None:
  """Percentiles of the difference over scenes drawn with replacement."""
  scenes = [
    np.flatnonzero(values.scene == scene) for scene in np.unique(values.scene)
  ]
  counts = np.bincount(values.is_held_out, minlength=2)
  if len(scenes) < 2 or counts.min() < _MIN_COUNT:
    return None
  rng = np.random.default_rng(_SEED)
  differences = []
  for drawn in rng.integers(len(scenes), size=(_DRAWS, len(scenes))):
    chosen = np.concatenate([scenes[index] for index in drawn])
    both = _in_either(values, chosen, middle)
    if both:
      differences.append(both[1] - both[0])
  return np.percentile(differences, [2.5, 97.5]).tolist()
