"""Depth of points in the cells of a view."""

import math

import numpy as np
import pytest

from odin_jax.shared import camera
from preprocessing.views import alignment, sparse_depth


def oracle(points, angles, fov_deg, size_px):
  """Point by point, with sines and cosines."""
  yaw, pitch = math.radians(angles.yaw_deg), math.radians(angles.pitch_deg)
  reach = math.tan(math.radians(fov_deg) / 2)
  nearest = np.full((size_px, size_px), np.inf)
  for x, y, z in points.tolist():
    # Back by the yaw about y, then by the pitch about x.
    x, z = (
      x * math.cos(yaw) - z * math.sin(yaw),
      x * math.sin(yaw) + z * math.cos(yaw),
    )
    y, z = (
      y * math.cos(pitch) + z * math.sin(pitch),
      z * math.cos(pitch) - y * math.sin(pitch),
    )
    column = math.floor((x / z / reach + 1) / 2 * size_px)
    row = math.floor((y / z / reach + 1) / 2 * size_px)
    if z > 0 and 0 <= column < size_px and 0 <= row < size_px:
      nearest[row, column] = min(nearest[row, column], z)
  return nearest


@pytest.mark.parametrize(
  'yaw_deg, pitch_deg, fov_deg',
  [(0.0, 0.0, 90.0), (170.0, 8.0, 70.0), (-95.0, -16.0, 120.0)],
)
def test_each_cell_has_its_nearest_point(yaw_deg, pitch_deg, fov_deg):
  rng = np.random.default_rng(0)
  points = rng.normal(size=(600, 3)) * rng.uniform(0.3, 4, (600, 1))
  angles = alignment.Angles(yaw_deg, pitch_deg)
  found = sparse_depth.rasterise(points, angles, fov_deg=fov_deg, size_px=6)
  expected = oracle(points, angles, fov_deg, 6)
  np.testing.assert_allclose(found, expected, rtol=1e-9)
  assert 10 < np.isfinite(expected).sum()
  # More points than cells, and many behind.
  in_view = alignment.points_in_view(points, angles, fov_deg).sum()
  assert in_view > np.isfinite(expected).sum()


def test_a_point_lands_on_the_ray_of_its_cell():
  angles = alignment.Angles(40.0, -7.0)
  rays = camera.view_rays(80.0, 9)
  depth = np.linspace(1, 3, 81).reshape(9, 9)
  points = (rays * depth[..., None]).reshape(-1, 3)
  points = points @ camera.view2frame_rotation(*angles).T
  found = sparse_depth.rasterise(points, angles, fov_deg=80.0, size_px=9)
  np.testing.assert_allclose(found, depth)


def test_a_view_without_points_has_no_depth():
  angles = alignment.Angles(0.0, 0.0)
  for points in (np.zeros((0, 3)), np.array([[0.0, 0.0, -1.0]])):
    found = sparse_depth.rasterise(points, angles, fov_deg=90.0, size_px=4)
    assert found.shape == (4, 4) and np.isinf(found).all()
