"""Lines drawn from above, as cameras."""

import numpy as np
import pytest

from odin_jax.serving import drawn_paths
from odin_jax.shared import camera

CORNER = [(0.0, 1.0), (1.0, 1.0)]


def yaws_deg(poses):
  return np.rad2deg(np.arctan2(poses[:, 0, 2], poses[:, 2, 2]))


@pytest.mark.parametrize('look', drawn_paths.LOOKS)
def test_cameras_stand_at_equal_distances_from_the_first_to_the_end(look):
  poses = drawn_paths.camera_path(CORNER, 9, look)
  np.testing.assert_array_equal(poses[0], camera.identity_pose())
  places = poses[:, :, 3]
  assert (places[:, 1] == 0).all()
  np.testing.assert_allclose(places[4], [0, 0, 1], atol=1e-12)
  np.testing.assert_allclose(places[-1], [1, 0, 1], atol=1e-12)
  steps = np.linalg.norm(np.diff(places, axis=0), axis=1)
  np.testing.assert_allclose(steps, 0.25, atol=1e-12)
  for pose in poses:
    assert camera.is_rotation(pose[:, :3], tolerance=1e-12)


def test_a_camera_looks_where_it_is_asked_to():
  def yaws(line, look, count=9):
    return yaws_deg(drawn_paths.camera_path(line, count, look))

  assert not yaws(CORNER, 'ahead').any()
  along = yaws(CORNER, 'along')
  np.testing.assert_allclose(along[:4], 0, atol=1e-9)
  np.testing.assert_allclose(along[4:], [45, 90, 90, 90, 90], atol=1e-9)
  # The first view is the image, whatever the line does at once.
  np.testing.assert_allclose(
    yaws([(1.0, 0.0)], 'along', 11)[:4], [0, 45, 90, 90], atol=1e-9
  )
  # A full turn to the left goes on without a jump.
  angles = np.linspace(0, 2 * np.pi, 60)[1:]
  circle = np.stack([np.cos(angles) - 1, np.sin(angles)], -1).tolist()
  turned = np.unwrap(np.deg2rad(yaws(circle, 'along', 40)))
  assert turned[-1] == pytest.approx(-2 * np.pi, abs=0.1)
  centre = yaws([(1.0, 0.0)], 'centre', 2)
  np.testing.assert_allclose(centre, [0, -45], atol=1e-9)
  # Through the point that it looks at.
  assert np.isfinite(yaws([(0.0, 2.0)], 'centre', 3)).all()


def test_corners_that_are_given_twice_make_no_difference():
  twice = [(0.0, 0.0), CORNER[0], CORNER[0], CORNER[1], CORNER[1]]
  for look in drawn_paths.LOOKS:
    np.testing.assert_array_equal(
      drawn_paths.camera_path(twice, 7, look),
      drawn_paths.camera_path(CORNER, 7, look),
    )


@pytest.mark.parametrize('line', [[], [(0.0, 0.0)]])
def test_a_line_without_a_length_is_refused(line):
  with pytest.raises(ValueError, match='no length'):
    drawn_paths.camera_path(line, 4, 'ahead')
