"""What is solved of a video so far: poses of frames, and points they show."""

import dataclasses
from typing import Sequence

from jaxtyping import Float, Int
import numpy as np

from preprocessing.solving import bundle_adjustment


@dataclasses.dataclass(frozen=True, kw_only=True)
class Reconstruction:
  """Poses, points and what the points rest on; never changed, but replaced.

  Attributes:
    component: of each frame; -1 for none.
    frame2scene: pose of each frame in its component.
    points: in scene coordinates; NaN where not used.
    observations: of the points.
    point_ids: for each frame, the point of each of its n features [n]; -1 for
      none.
  """

  component: Int[np.ndarray, 'f']
  frame2scene: Float[np.ndarray, 'f 3 4']
  points: Float[np.ndarray, 'p 3']
  observations: bundle_adjustment.Observations
  point_ids: Sequence[np.ndarray]


def number_components(label: Int[np.ndarray, 'f']) -> Int[np.ndarray, 'f']:
  """Components numbered 0, 1, ... by their first frames; -1 stays."""
  order = list(dict.fromkeys(label[label >= 0].tolist()))
  return np.array(
    [order.index(index) if index >= 0 else -1 for index in label.tolist()],
    np.int64,
  )


def shared_points(
  source_ids: Int[np.ndarray, 'n'], target_ids: Int[np.ndarray, 'm']
) -> tuple[Int[np.ndarray, 'k'], Int[np.ndarray, 'k'], Int[np.ndarray, 'k']]:
  """Points that two frames have in common, and their features in either.

  Args:
    source_ids: the point of each feature of a frame; -1 for none.
    target_ids: and of each feature of another.
  """
  point_ids, in_source, in_target = np.intersect1d(
    source_ids, target_ids, return_indices=True
  )
  real = point_ids >= 0
  return point_ids[real], in_source[real], in_target[real]
