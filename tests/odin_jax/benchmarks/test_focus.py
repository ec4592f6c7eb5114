"""Where cameras look."""

import numpy as np

from odin_jax.benchmarks import focus
from odin_jax.shared import camera

FOCUS = np.array([0.5, -0.2, 3.0])


def ring(rolls_deg, tilts_deg):
  """Cameras on a ring around `FOCUS` that look at it; then rolled and tilted.

  The ring lies across the axis y, which is down.
  """
  poses = []
  angles = np.linspace(0, 2 * np.pi, len(rolls_deg), endpoint=False)
  for angle, roll, tilt in zip(angles, rolls_deg, tilts_deg):
    turn = camera.rotation_y(angle)
    roll = np.deg2rad(roll)
    rolled = np.array(
      [
        [np.cos(roll), -np.sin(roll), 0],
        [np.sin(roll), np.cos(roll), 0],
        [0, 0, 1],
      ]
    )
    centre = FOCUS - turn @ np.array([0, 0, 2.0])
    rotation = turn @ camera.rotation_x(np.deg2rad(tilt)) @ rolled
    poses.append(camera.make_pose(rotation, centre))
  return np.stack(poses)


def test_the_focus_point_is_where_axes_meet():
  poses = ring([0, 40, -10, 5, 60], [0] * 5)
  np.testing.assert_allclose(focus.focus_point(poses), FOCUS, atol=1e-9)
  np.testing.assert_allclose(focus.mean_distance(poses), 2)


def test_views_are_ordered_by_how_much_they_are_turned():
  rolls = [9, 0.5, 30, 4, 20, 2]
  poses = ring(rolls, [0] * 6)
  assert focus.look_at_order(poses).tolist() == np.argsort(rolls).tolist()
  # Wherever the world's axes point.
  turn = camera.make_pose(
    camera.rotation_x(0.7) @ camera.rotation_y(2.0), np.array([4.0, 5, 6])
  )
  turned = camera.compose(np.broadcast_to(turn, poses.shape), poses)
  assert focus.look_at_order(turned).tolist() == np.argsort(rolls).tolist()
