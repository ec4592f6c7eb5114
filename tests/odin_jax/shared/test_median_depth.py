"""The number that says how large a scene is in its unit."""

import numpy as np
import pytest

from odin_jax.shared import camera, median_depth


def points_of(depth, fov_deg):
  """What a map of depth shows, in the view's axes."""
  rays = camera.view_rays(fov_deg, len(depth))
  return (rays / rays[..., 2:] * depth[..., None]).reshape(-1, 3)


def test_of_a_dense_map_it_is_the_median_over_pixels():
  rng = np.random.default_rng(0)
  # A floor that rises to the horizon, and a box before it.
  depth = 2 / (0.2 + np.linspace(0, 1, 64))[:, None] * np.ones(64)
  depth[20:50, 30:55] = 1.3
  points = points_of(depth, 80.0)
  distance = np.linalg.norm(points, axis=1)
  found = median_depth.of_points(rng.permutation(points), 80.0)
  assert found == pytest.approx(np.median(distance), rel=0.01)
  # It is a length.
  twice = median_depth.of_points(2 * points, 80.0)
  assert twice == pytest.approx(2 * found)


def test_where_points_crowd_makes_no_difference():
  """Nine tenths of the points lie on a twentieth of the picture."""
  rng = np.random.default_rng(1)
  depth = np.where(np.arange(64) < 32, 1.0, 5.0) * np.ones((64, 1))
  depth[:, 32:36] = 1.2
  points = points_of(depth, 60.0)
  sparse = points[rng.random(len(points)) < 0.05]
  crowd = np.repeat(points_of(depth, 60.0)[5 * 64 + 40 :][:8], 500, axis=0)
  crowded = np.concatenate([sparse, crowd])
  assert np.median(np.linalg.norm(crowded, axis=1)) > 5
  assert median_depth.of_points(crowded, 60.0) < 1.6


def test_what_is_not_in_the_view_does_not_count():
  inside = points_of(np.full((8, 8), 2.0), 90.0)
  outside = np.array([[0, 0, -9.0], [5.0, 0, 1], [0, -5.0, 4], [0, 0, 0]])
  both = np.concatenate([inside, np.repeat(outside, 100, axis=0)])
  assert median_depth.of_points(both, 90.0) == (
    median_depth.of_points(inside, 90.0)
  )
  assert median_depth.of_points(outside, 90.0) == 0
  assert median_depth.of_points(np.empty((0, 3)), 90.0) == 0
