"""Are the held-out pairs as true as those that are trained on?

A score on held-out pairs means what it says only where their poses are as good.
Each measure is compared between the splits; the interval of the difference is
from a bootstrap over scenes, since pairs of one scene tell little more than one
of them. B. Efron and R. Tibshirani, An Introduction to the Bootstrap, 1993.
"""

from typing import Any, Callable, Mapping, NamedTuple, Sequence

import numpy as np

from odin_jax.shared import schema

_DRAWS = 1000
_SEED = 0
# Fewer values of a split scatter by more than draws of them tell.
_MIN_COUNT = 20
# Shares, of values that are 0 or 1; of the others medians are compared.
_MEANS = ('consistent_share',)
TRAINED, HELD_OUT = schema.SPLITS
_Scene = Mapping[str, Sequence[float]]


class Measured(NamedTuple):
  """One value, where it comes from.

  Attributes:
    split: `train` or `test`.
    scene: video and component.
    value: of a record, or of a pair of frames.
  """

  split: str
  scene: tuple[str, int]
  value: float


def compare(
  measures: Mapping[str, Sequence[Measured]],
) -> dict[str, dict[str, Any]]:
  """Each measure in either split, and their difference.

  Args:
    measures: values by the name of what is measured.

  Returns:
    by the same names, `train` and `test`, each with `value`, `count` and
    `scenes`; `difference`, of test from train; its `interval_95`, or None where
    there are too few values, or one scene alone. Without what is measured in one split only.
  """
  compared = {}
  for name, measured in measures.items():
    middle = np.mean if name in _MEANS else np.median
    of_scene: dict[tuple[str, int], dict[str, list[float]]] = {}
    for split, scene, value in measured:
      splits = of_scene.setdefault(scene, {TRAINED: [], HELD_OUT: []})
      splits[split].append(value)
    scenes = [of_scene[scene] for scene in sorted(of_scene)]
    if not all(
      any(scene[split] for scene in scenes) for split in schema.SPLITS
    ):
      continue
    whole = {split: _gather(scenes, split) for split in schema.SPLITS}
    difference = middle(whole[HELD_OUT]) - middle(whole[TRAINED])
    compared[name] = {
      **{
        split: {
          'value': float(middle(whole[split])),
          'count': len(whole[split]),
          'scenes': sum(bool(scene[split]) for scene in scenes),
        }
        for split in schema.SPLITS
      },
      'difference': float(difference),
      'interval_95': _interval(scenes, middle),
    }
  return compared


def _gather(scenes: Sequence[_Scene], split: str) -> np.ndarray:
  """All values of a split."""
  return np.concatenate([scene[split] for scene in scenes])


def _interval(
  scenes: Sequence[_Scene], middle: Callable[[np.ndarray], float]
) -> list[float] | None:
  """Percentiles of the difference over scenes drawn with replacement.

  Draws that hold nothing of one split are left out.
  """
  counts = (len(_gather(scenes, split)) for split in schema.SPLITS)
  if len(scenes) < 2 or min(counts) < _MIN_COUNT:
    return None
  rng = np.random.default_rng(_SEED)
  differences = []
  for drawn in rng.integers(len(scenes), size=(_DRAWS, len(scenes))):
    chosen = [scenes[index] for index in drawn]
    trained, held_out = (_gather(chosen, split) for split in schema.SPLITS)
    if len(trained) and len(held_out):
      differences.append(middle(held_out) - middle(trained))
  return np.percentile(differences, [2.5, 97.5]).tolist()
