"""Named camera paths, in scene units, that start at the input view.

A path is a float64 array `camera2scene [n 3 4]` whose first pose is the
identity: the scene's axes are those of the input camera (x right, y down,
z forward). `step` is the length of one step in scene units, where the median
depth of the scene is 1; a turn on the spot moves what lies at depth 1 by the
same length, so it turns by `step` radians.
"""

from typing import Callable

from jaxtyping import Float
import numpy as np

from odin_jax.shared import camera

Path = Float[np.ndarray, 'n 3 4']
_PIVOT = np.array([0.0, 0.0, 1.0])


def _straight(*direction: int) -> Callable[[float], np.ndarray]:
  def pose(distance: float) -> np.ndarray:
    return camera.make_pose(np.eye(3), distance * np.array(direction))

  return pose


def _turn(sign: int) -> Callable[[float], np.ndarray]:
  def pose(distance: float) -> np.ndarray:
    return camera.make_pose(camera.rotation_y(sign * distance), np.zeros(3))

  return pose


def _orbit(sign: int) -> Callable[[float], np.ndarray]:
  """Around the point at depth 1 straight ahead, always looking at it."""

  def pose(distance: float) -> np.ndarray:
    rotation = camera.rotation_y(-sign * distance)
    return camera.make_pose(rotation, _PIVOT - rotation @ _PIVOT)

  return pose


def _weave(distance: float) -> np.ndarray:
  """Forward in a slalom, at 0.6 to 0.85 of the step.

  A straight walk has no parallax in the middle of the image; this one has.
  """
  x = 0.15 * np.sin(4 * distance)
  return camera.make_pose(np.eye(3), np.array([x, 0.0, 0.6 * distance]))


PATHS: dict[str, Callable[[float], np.ndarray]] = {
  'forward': _straight(0, 0, 1),
  'backward': _straight(0, 0, -1),
  'left': _straight(-1, 0, 0),
  'right': _straight(1, 0, 0),
  'up': _straight(0, -1, 0),
  'down': _straight(0, 1, 0),
  'pan_left': _turn(-1),
  'pan_right': _turn(1),
  'orbit_left': _orbit(-1),
  'orbit_right': _orbit(1),
  'weave': _weave,
  # Forward, and back to where it started.
  'loop': _straight(0, 0, 1),
}
# Half-way they go back the way that they came.
_RETURNING = ('loop',)


def camera_path(name: str, num_frames: int, step: float) -> Path:
  """`camera2scene` of every view along a named path.

  Args:
    name: a key of `PATHS`.
    num_frames: how many views, the input view included.
    step: length of one step in scene units.

  Raises:
    ValueError: an unknown path, no frame, or a step that is not positive.
  """
  if name not in PATHS:
    raise ValueError(f'trajectory {name!r} is none of {sorted(PATHS)}')
  if num_frames < 1 or not step > 0:
    raise ValueError(
      f'a path needs at least one frame and a positive step, got '
      f'{num_frames} frames of step {step}'
    )
  indices = np.arange(num_frames)
  if name in _RETURNING:
    indices = np.minimum(indices, indices[::-1])
  return np.stack([PATHS[name](index * step) for index in indices])
