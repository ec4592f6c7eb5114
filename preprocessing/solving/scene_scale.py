"""The scale of a component's scene is such that its median depth is 1."""

from jaxtyping import Float, Int
import numpy as np

from odin_jax.shared import camera
from preprocessing.solving import bundle_adjustment

# Cells of 10 degrees.
_GRID = (36, 18)


def normalise(
  component: Int[np.ndarray, 'f'],
  frame2scene: Float[np.ndarray, 'f 3 4'],
  points: Float[np.ndarray, 'p 3'],
  observations: bundle_adjustment.Observations,
) -> tuple[Float[np.ndarray, 'f 3 4'], Float[np.ndarray, 'p 3']]:
  """Scales every component so that the median depth of its points is 1.

  Args:
    component: of each frame; -1 for none.
    frame2scene: poses of the frames in their component.
    points: in the scene of the component that sees them.
    observations: none of them joins two components.
  """
  frame2scene, points = frame2scene.copy(), points.copy()
  for index in range(component.max(initial=-1) + 1):
    inside = observations.subset(component[observations.frame] == index)
    if not len(inside.frame):
      continue
    depth = median_distance(frame2scene, points, inside)
    frame2scene[component == index, :, 3] /= depth
    points[np.unique(inside.point)] /= depth
  return frame2scene, points


def median_distance(
  frame2scene: Float[np.ndarray, 'f 3 4'],
  points: Float[np.ndarray, 'p 3'],
  observations: bundle_adjustment.Observations,
) -> float:
  """Median distance of what the frames see, over directions."""
  order = np.argsort(observations.frame, kind='stable')
  frame = observations.frame[order]
  away = points[observations.point[order]] - frame2scene[frame, :, 3]
  weights = [
    direction_weights(away[frame == index]) for index in np.unique(frame)
  ]
  median = np.quantile(
    np.linalg.norm(away, axis=1),
    0.5,
    weights=np.concatenate(weights),
    method='inverted_cdf',
  )
  return float(median)


def direction_weights(
  away: Float[np.ndarray, 'n 3'],
) -> Float[np.ndarray, 'n']:
  """The solid angle that each point stands for, seen from the origin.

  Points crowd where texture is. So each gets the solid angle of its cell of
  10 degrees, shared with the other points in it.
  """
  away = away / np.linalg.norm(away, axis=1, keepdims=True)
  u, v = camera.direction_to_equirect(away, *_GRID)
  _, cell, counts = np.unique(
    v.astype(int) * (_GRID[0] + 1) + u.astype(int),
    return_inverse=True,
    return_counts=True,
  )
  height = np.hypot(away[:, 0], away[:, 2])
  return np.maximum(height, 1e-3) / counts[cell]
