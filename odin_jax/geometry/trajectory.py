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
Pose = Float[np.ndarray, '3 4']
# A camera that is farther away, along any axis, sees nothing of what the image
# shows.
MOST_UNITS = 20.0
# What the camera's place follows from: how far it has come.
_ByDistance = Callable[[float], Pose]
# The pose of view `index` of `last`, of steps of a length.
_ByIndex = Callable[[int, int, float], Pose]
_PIVOT = np.array([0.0, 0.0, 1.0])
# Radius that a spiral gains per radian, scene units.
_SPIRAL_GAIN = 0.03


def _straight(*direction: int) -> _ByDistance:
  def pose(distance: float) -> Pose:
    return camera.make_pose(np.eye(3), distance * np.array(direction))

  return pose


def _turn(sign: int) -> _ByDistance:
  def pose(distance: float) -> Pose:
    return camera.make_pose(camera.rotation_y(sign * distance), np.zeros(3))

  return pose


def _tilt(distance: float) -> Pose:
  return camera.make_pose(camera.rotation_x(distance), np.zeros(3))


def _orbit(sign: int) -> _ByDistance:
  """Around the point at depth 1 straight ahead, always looking at it."""

  def pose(distance: float) -> Pose:
    rotation = camera.rotation_y(-sign * distance)
    return camera.make_pose(rotation, _PIVOT - rotation @ _PIVOT)

  return pose


def _weave(distance: float) -> Pose:
  """Forward in a slalom, at 0.6 to 0.85 of the step.

  A straight walk has no parallax in the middle of the image; this one has.
  """
  x = 0.15 * np.sin(4 * distance)
  return camera.make_pose(np.eye(3), np.array([x, 0.0, 0.6 * distance]))


def _spiral(distance: float) -> Pose:
  """Around the line of sight, wider and wider, looking at the pivot.

  Archimedes' spiral; of many windings its length is gain * angle^2 / 2.
  """
  angle = np.sqrt(2 * distance / _SPIRAL_GAIN)
  radius = _SPIRAL_GAIN * angle
  place = radius * np.array([np.cos(angle), np.sin(angle), 0.0])
  facing = camera.view2frame_rotation(*camera.yaw_pitch_deg(_PIVOT - place))
  return camera.make_pose(facing, place)


def _onwards(pose: _ByDistance) -> _ByIndex:
  return lambda index, last, step: pose(index * step)


def _returning(pose: _ByDistance) -> _ByIndex:
  """Half-way it goes back the way that it came."""
  return lambda index, last, step: pose(min(index, last - index) * step)


def _fro(index: float, last: float) -> float:
  """From 0 to a quarter of the way, to minus a quarter of it, to 0."""
  quarter = last / 4
  if index <= quarter:
    return index
  return 2 * quarter - index if index <= 3 * quarter else index - last


def _to_and_fro(pose: _ByDistance) -> _ByIndex:
  """A quarter of the way to one side, as far to the other, and back."""
  return lambda index, last, step: pose(_fro(float(index), float(last)) * step)


def _around(index: int, last: int, step: float) -> Pose:
  """To the right and the left, then up and down, on the spot."""
  half = last / 2
  if index <= half:
    return _turn(1)(_fro(float(index), half) * step)
  return _tilt(_fro(index - half, half) * step)


def _once_round(index: int, last: int, step: float) -> Pose:
  """One turn to the right, which ends where it began, whatever the step."""
  del step
  return _turn(1)(2 * np.pi * (index / max(last, 1) % 1))


PATHS: dict[str, _ByIndex] = {
  'forward': _onwards(_straight(0, 0, 1)),
  'backward': _onwards(_straight(0, 0, -1)),
  'left': _onwards(_straight(-1, 0, 0)),
  'right': _onwards(_straight(1, 0, 0)),
  'up': _onwards(_straight(0, -1, 0)),
  'down': _onwards(_straight(0, 1, 0)),
  'pan_left': _onwards(_turn(-1)),
  'pan_right': _onwards(_turn(1)),
  'orbit_left': _onwards(_orbit(-1)),
  'orbit_right': _onwards(_orbit(1)),
  'weave': _onwards(_weave),
  'spiral': _onwards(_spiral),
  # Those below end where they began: forward and back; around the pivot, and
  # towards it and away, to both sides; without moving.
  'loop': _returning(_straight(0, 0, 1)),
  'orbit': _to_and_fro(_orbit(1)),
  'dolly': _to_and_fro(_straight(0, 0, 1)),
  'look_around': _around,
  'turn_360': _once_round,
}
# Whose views lie where they lie whatever the step.
STEPLESS = ('turn_360',)


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
  return np.stack(
    [PATHS[name](index, num_frames - 1, step) for index in range(num_frames)]
  )
