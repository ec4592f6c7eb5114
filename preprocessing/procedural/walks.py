"""Camera paths: a person who walks at a steady pace, with hand shake.

A walk follows a plane curve at eye height. World axes: y down, floor at y = 0.
"""

import dataclasses

from jaxtyping import Float
import numpy as np

from odin_jax.shared import camera

_SAMPLES = 4000


@dataclasses.dataclass(frozen=True)
class Shake:
  """Smooth, zero-mean disturbance of position (m) and rotation (rad).

  Attributes:
    amplitude: of x, y, z, yaw, pitch, roll for each of the sinusoids.
    hz: frequencies.
    phase_rad: phases.
  """

  amplitude: Float[np.ndarray, 'waves 6']
  hz: Float[np.ndarray, 'waves 6']
  phase_rad: Float[np.ndarray, 'waves 6']

  def at(self, time_s: float) -> Float[np.ndarray, '6']:
    """Its six components at a time."""
    angle = 2 * np.pi * self.hz * time_s + self.phase_rad
    return (self.amplitude * np.sin(angle)).sum(0)


def random_shake(rng: np.random.Generator) -> Shake:
  """A few centimetres, and one to two degrees."""
  waves = 3
  hz = np.array([0.3, 0.8, 1.7])[:, None] * rng.uniform(0.8, 1.2, (waves, 6))
  scale = np.array([0.015, 0.012, 0.015, *[np.deg2rad(0.8)] * 3])
  amplitude = scale * rng.uniform(0.5, 1.2, (waves, 6))
  return Shake(amplitude, hz, rng.uniform(0, 2 * np.pi, (waves, 6)))


class Walk:
  """Where the camera is at every moment.

  Args:
    curve: (x, z) of the path in order, densely sampled, in metres.
    closed: whether the path is a loop.
    speed_m_per_s: pace along it.
    start_m: arc length at time 0.
    gaze_rad: where the panorama's centre points, from the direction of
      travel; positive to the right.
    gaze_sway_rad: how far the gaze wanders to either side.
    eye_height_m: above the floor.
    shake: disturbance of the hand that holds the camera.
  """

  def __init__(
    self,
    curve: Float[np.ndarray, 'n 2'],
    *,
    closed: bool,
    speed_m_per_s: float,
    start_m: float,
    gaze_rad: float,
    gaze_sway_rad: float,
    eye_height_m: float,
    shake: Shake,
  ):
    if closed:
      curve = np.concatenate([curve, curve[:1]])
    step = np.linalg.norm(np.diff(curve, axis=0), axis=1)
    self._arc_m = np.concatenate([[0], np.cumsum(step)])
    self.curve = curve
    self._heading = np.unwrap(np.arctan2(*np.gradient(curve, axis=0).T))
    self._closed = closed
    self._speed = speed_m_per_s
    self._start = start_m
    self._gaze = gaze_rad
    self._gaze_sway = gaze_sway_rad
    self._eye_height = eye_height_m
    self._shake = shake

  def frame2world(self, time_s: float) -> Float[np.ndarray, '3 4']:
    """Pose of the panorama at a time."""
    arc = self._start + self._speed * time_s
    if self._closed:
      arc %= self._arc_m[-1]
    x, z = (np.interp(arc, self._arc_m, self.curve[:, i]) for i in range(2))
    heading = np.interp(arc, self._arc_m, self._heading)
    heading += self._gaze + self._gaze_sway * np.sin(0.35 * time_s)
    shake = self._shake.at(time_s)
    rotation = (
      camera.rotation_y(heading + shake[3])
      @ camera.rotation_x(shake[4])
      @ _roll(shake[5])
    )
    position = np.array([x, -self._eye_height, z]) + shake[:3]
    return camera.make_pose(rotation, position)


def _roll(angle_rad: float) -> Float[np.ndarray, '3 3']:
  c, s = np.cos(angle_rad), np.sin(angle_rad)
  return np.array([[c, -s, 0.0], [s, c, 0.0], [0.0, 0.0, 1.0]])


def random_walk(
  rng: np.random.Generator,
  curve: Float[np.ndarray, 'n 2'],
  *,
  closed: bool,
  start_m: float = 0.0,
) -> Walk:
  """A walk along a curve with random pace, gaze and shake."""
  return Walk(
    curve,
    closed=closed,
    speed_m_per_s=rng.uniform(1.0, 1.4),
    start_m=start_m,
    gaze_rad=rng.uniform(-np.pi, np.pi),
    gaze_sway_rad=np.deg2rad(rng.uniform(5, 25)),
    eye_height_m=rng.uniform(1.5, 1.7),
    shake=random_shake(rng),
  )


def loop(
  rng: np.random.Generator, half_x_m: float, half_z_m: float
) -> Float[np.ndarray, 'n 2']:
  """A smooth closed curve about the origin, inside a rectangle."""
  angle = np.linspace(0, 2 * np.pi, _SAMPLES, endpoint=False)
  if rng.uniform() < 0.5:
    angle = angle[::-1]
  radius = np.ones_like(angle)
  for harmonic, limit in ((2, 0.1), (3, 0.05)):
    phase = rng.uniform(0, 2 * np.pi)
    radius += rng.uniform(0, limit) * np.cos(harmonic * angle + phase)
  radius /= radius.max()
  curve = radius[:, None] * np.stack([np.cos(angle), np.sin(angle)], axis=1)
  return np.roll(curve, rng.integers(_SAMPLES), axis=0) * (half_x_m, half_z_m)


def winding(
  rng: np.random.Generator, length_m: float, sway_m: float
) -> Float[np.ndarray, 'n 2']:
  """A gently winding curve along +z, from z = 0 to z = length_m."""
  z = np.linspace(0, length_m, _SAMPLES)
  wave = 2 * np.pi / rng.uniform(8, 14)
  return np.stack([sway_m * np.sin(wave * z + rng.uniform(0, 6.28)), z], axis=1)
