"""A line that is drawn from above -> cameras along it.

The line lies in the plane of the first camera's x (right) and z (forward), in
scene units, and begins at that camera; nothing rises or sinks.
"""

from typing import Sequence

from jaxtyping import Float
import numpy as np

from odin_jax.shared import camera

Path = Float[np.ndarray, 'n 3 4']
# Where cameras look: as the first one does; to where the line goes; to the
# point at depth 1 in the middle of the image.
LOOKS = ('ahead', 'along', 'centre')
_CENTRE = np.array([0.0, 1.0])
# Share of the line over which `along` turns from ahead into it.
_TURN_IN = 0.2


def camera_path(
  line: Sequence[Sequence[float]], num_frames: int, look: str
) -> Path:
  """`camera2scene` of views at equal distances along a line.

  Args:
    line: (x, z) of its corners, of which there is one or more; (0, 0) comes
      before them.
    num_frames: how many views, the first one included; two or more.
    look: one of `LOOKS`.

  Raises:
    ValueError: the line has no length.
  """
  corners = np.array([(0.0, 0.0), *line], np.float64)
  lengths = np.linalg.norm(np.diff(corners, axis=0), axis=1)
  corners = corners[np.concatenate([[True], lengths > 0])]
  ends = np.concatenate([[0.0], np.cumsum(lengths[lengths > 0])])
  if not 0 < ends[-1] < np.inf:
    raise ValueError('the line has no length')
  places = _at(np.linspace(0, ends[-1], num_frames), ends, corners)
  yaws = {
    'ahead': lambda: np.zeros(num_frames),
    'along': lambda: _along(places, ends[-1]),
    'centre': lambda: _angles(_CENTRE - places),
  }[look]()
  poses = np.stack(
    [
      camera.make_pose(camera.rotation_y(yaw), np.array([x, 0.0, z]))
      for yaw, (x, z) in zip(yaws, places)
    ]
  )
  poses[0] = camera.identity_pose()
  return poses


def _at(
  distances: Float[np.ndarray, 'n'],
  ends: Float[np.ndarray, 'm'],
  corners: Float[np.ndarray, 'm 2'],
) -> Float[np.ndarray, 'n 2']:
  """Places at distances along the line."""
  return np.stack(
    [np.interp(distances, ends, corners[:, axis]) for axis in (0, 1)], axis=-1
  )


def _along(
  places: Float[np.ndarray, 'n 2'], length: float
) -> Float[np.ndarray, 'n']:
  """Yaws to the next place; the first view looks ahead, as the image does."""
  # Between the neighbours of each, so that corners are rounded.
  steps = np.gradient(places, axis=0)
  share = np.linspace(0, 1, len(places))
  return _angles(steps) * np.minimum(share / _TURN_IN, 1.0)


def _angles(directions: Float[np.ndarray, 'n 2']) -> Float[np.ndarray, 'n']:
  """Yaws of directions, without jumps of a whole turn.

  A direction without a length takes the one before it.
  """
  is_known = np.linalg.norm(directions, axis=1) > 1e-9
  known = np.maximum.accumulate(np.where(is_known, np.arange(len(is_known)), 0))
  x, z = directions[known].T
  return np.unwrap(np.arctan2(x, z))
