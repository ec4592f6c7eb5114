"""How good poses are that structure from motion found, against the truth.

The area under the curve (AUC) is that of COLMAP's benchmark (colmap/colmap,
benchmark/reconstruction/evaluation/utils.py: compute_grouped_rel_errors,
compute_auc): over all ordered pairs of frames, the larger of the angle of the
relative rotation and that between the directions of the translations, 180 for
a pair whose frames are in no common model.
"""

import itertools
from typing import Any, Mapping, Sequence

from jaxtyping import Float
import numpy as np

from odin_jax.shared import camera
from preprocessing.auditing import quality

THRESHOLDS_DEG = (0.5, 1.0, 2.0, 5.0, 10.0)
# How exact TartanAir's truth is: frames nearer than this, in metres, have no
# direction, and no error counts as smaller, in degrees.
_ACCURACY = 0.001
# Frame pairs of `pair_figures` are at most so many frames apart.
MAX_GAP = 5

# Poses, frame2scene, by number of the frame.
Model = Mapping[int, Float[np.ndarray, '3 4']]


def auc(
  errors_deg: Float[np.ndarray, 'n'], thresholds_deg: Sequence[float]
) -> list[float]:
  """Share of errors below a threshold, averaged over all up to each, in %."""
  errors_deg = np.maximum(np.sort(errors_deg), _ACCURACY)
  recall = np.arange(1, len(errors_deg) + 1) / len(errors_deg)
  areas = []
  for threshold in thresholds_deg:
    below = errors_deg <= threshold
    count = int(below.sum())
    if not count:
      areas.append(0.0)
      continue
    # The recall at the least error that is told apart holds down to 0; above
    # it, the recall is joined by straight lines.
    least = recall[errors_deg <= _ACCURACY].max(initial=0.0)
    x = np.concatenate([[0, _ACCURACY], errors_deg[:count], [threshold]])
    y = np.concatenate([[least, least], recall[:count], [recall[count - 1]]])
    apart = np.concatenate([[True, True], errors_deg[:count] > _ACCURACY, [1]])
    x, y = x[apart.astype(bool)], y[apart.astype(bool)]
    areas.append(100 * float(np.trapezoid(y, x)) / threshold)
  return areas


def _pair_error_deg(
  estimated: Float[np.ndarray, '3 4'], true: Float[np.ndarray, '3 4']
) -> float:
  off = estimated[:, :3].T @ true[:, :3]
  rotation = float(camera.rotation_angle_deg(off))
  if np.linalg.norm(true[:, 3]) < _ACCURACY:
    return rotation
  apart = camera.angle_between_deg(estimated[:, 3], true[:, 3])
  return max(rotation, float(apart))


def errors_deg(
  models: Sequence[Model], truth: Float[np.ndarray, 'n 3 4']
) -> Float[np.ndarray, 'm']:
  """The error of every ordered pair of frames in every model that has it."""
  found = []
  for source, target in itertools.permutations(range(len(truth)), 2):
    true = camera.relative(truth[source], truth[target])
    of_pair = [
      _pair_error_deg(camera.relative(model[source], model[target]), true)
      for model in models
      if source in model and target in model
    ]
    found += of_pair or [180.0]
  return np.array(found)


def scores(
  models: Sequence[Model], truth: Float[np.ndarray, 'n 3 4']
) -> dict[str, Any]:
  """The figures of one scene.

  Args:
    models: what was found.
    truth: frame2world of all frames, in metres.

  Returns:
    `frames`, and `registered` ones; `models`, and the frames of the `largest`;
    `auc`, in % by threshold in degrees; and of the frame pairs at most MAX_GAP
    apart whose frames are in one model: `pairs`, the median `rotation_deg`,
    `direction_deg` and `scale_error`, and how many directions are
    `turned_round`, more than 90 degrees off.
  """
  areas = auc(errors_deg(models, truth), THRESHOLDS_DEG)
  return {
    'frames': len(truth),
    'registered': len(set().union(*models)),
    'models': len(models),
    'largest': max(map(len, models), default=0),
    'auc': {
      f'{threshold:g}': round(area, 2)
      for threshold, area in zip(THRESHOLDS_DEG, areas, strict=True)
    },
    **pair_figures(models, truth),
  }


def pair_figures(
  models: Sequence[Model], truth: Float[np.ndarray, 'n 3 4']
) -> dict[str, Any]:
  """Those of `scores` that are of frame pairs near each other."""
  true = {'time_s': np.arange(len(truth)) * 1.0, 'frame2world': truth}
  measured = []
  for number, model in enumerate(models):
    # A frame's number takes the place of its time.
    poses = {float(frame): pose for frame, pose in model.items()}
    pairs = {
      pair
      for pair in itertools.combinations(sorted(poses), 2)
      if pair[1] - pair[0] <= MAX_GAP
    }
    component = quality.Component(
      video_id='', scene_id=number, poses=poses, frame_pairs=pairs
    )
    measured.append(quality.pose_errors(component, true))
  joined = {
    name: np.concatenate([np.zeros(0), *(errors[name] for errors in measured)])
    for name in ('rotation_deg', 'direction_deg', 'scale')
  }
  if not len(joined['rotation_deg']):
    none = dict.fromkeys(('rotation_deg', 'direction_deg', 'scale_error'))
    return {'pairs': 0, **none, 'turned_round': 0}
  return {
    'pairs': len(joined['rotation_deg']),
    'rotation_deg': _median(joined['rotation_deg']),
    'direction_deg': _median(joined['direction_deg']),
    'scale_error': _median(np.abs(joined['scale'])),
    'turned_round': int(np.sum(joined['direction_deg'] > 90)),
  }


def _median(values: Float[np.ndarray, 'n']) -> float | None:
  known = values[np.isfinite(values)]
  return round(float(np.median(known)), 5) if known.size else None
