"""Depth of posed views by a DUSt3R network: a stand-in that knows the truth."""

import dataclasses

import numpy as np
import pytest

from odin_jax.geometry import trajectory
from odin_jax.shared import camera
from preprocessing.matchers import dust3r_network, pointmaps, posed_depth
from tests.helpers import fake_dust3r
from tests.helpers.room_views import Room

FOV_DEG = 80.0
# As many pixels of these views as 5 of 512.
RULES = posed_depth.Rules(size_px=64, height_px=48, max_error_px=0.625)
ROWS = slice(8, 56)
COUNT = 4


@pytest.fixture(scope='module')
def room():
  path = trajectory.camera_path('right', COUNT, 0.1)
  return path, *Room(waves=8).views(path, FOV_DEG, RULES.size_px)


def found(room, poses=None, others=None, **faults):
  path, images, depths = room
  oracle = fake_dust3r.OracleNetwork(**faults)
  oracle.add_views(
    np.ascontiguousarray(images[:, ROWS]), path, depths[:, ROWS], FOV_DEG
  )
  network = dust3r_network.Network(
    oracle, device='cpu', precision='fp32', attention='stock', batch_size=3
  )
  if others is None:
    others = [[j for j in range(COUNT) if j != i] for i in range(COUNT)]
  return posed_depth.depths(
    network,
    images,
    path if poses is None else poses,
    FOV_DEG,
    others,
    RULES,
  )


def test_depth_is_true_whatever_the_unit_of_each_pair(room):
  for of_view, truth in zip(found(room), room[2], strict=True):
    assert of_view.num_pairs == COUNT - 1
    np.testing.assert_allclose(of_view.depth[ROWS], truth[ROWS], rtol=1e-4)
    # What the network does not look at.
    assert not of_view.depth[:8].any() and not of_view.depth[56:].any()


def test_depth_is_in_the_unit_of_the_poses(room):
  poses = room[0].copy()
  poses[:, :, 3] *= 3
  for of_view, truth in zip(found(room, poses), room[2], strict=True):
    np.testing.assert_allclose(of_view.depth[ROWS], 3 * truth[ROWS], rtol=1e-4)


def test_the_median_over_pairs_is_nearer_than_one_of_them(room):
  truth = room[2][0, ROWS]

  def error(others):
    (first, *_) = found(room, others=[others, [], [], []], noise=0.03)
    return np.median(np.abs(first.depth[ROWS] / truth - 1))

  assert error([1, 2, 3]) < 0.8 * error([1]) < 0.03


def test_a_pair_that_fits_no_unit_is_not_believed(room):
  of_views = found(room, lies={(0, 1)})
  assert [of_view.num_pairs for of_view in of_views] == [2, 3, 3, 3]
  np.testing.assert_allclose(
    of_views[0].depth[ROWS], room[2][0, ROWS], rtol=1e-4
  )


@pytest.mark.parametrize('change', ['turned', 'one_place', 'nobody'])
def test_no_depth_where_no_pair_tells_any(room, change):
  poses, others = room[0].copy(), None
  if change == 'turned':
    # Poses that are not those of the views.
    turn = np.array([[0.0, 0, 1], [0, 1, 0], [-1, 0, 0]])
    poses[1:, :, :3] = turn @ poses[1:, :, :3]
    others = [[1, 2, 3], [], [], []]
  elif change == 'one_place':
    poses[:, :, 3] = 0
  else:
    others = [[]] * COUNT
  for of_view in found(room, poses, others):
    assert of_view.num_pairs == 0 and not of_view.depth.any()


def seen_by_two(baseline, depths, noise_px, seed=0):
  """Pointmaps of two views side by side, wrong across the rays, too."""
  rng = np.random.default_rng(seed)
  height, width = 48, 64
  matrix = pointmaps.intrinsics(FOV_DEG, width, height)
  u, v = camera.pixel_centres(width, height)
  rays = np.stack([u, v, np.ones_like(u)], -1) @ np.linalg.inv(matrix).T
  depth = np.exp(rng.uniform(*np.log(depths), (height, width)))[..., None]
  one2two = np.eye(3, 4)
  one2two[0, 3] = -baseline
  points = rays * depth - one2two[:, 3]
  noise = rng.normal(size=points.shape) * depth * noise_px / matrix[0, 0]
  points = (points + noise).astype(np.float32)
  sure = np.full((height, width), 5, np.float32)
  return dust3r_network.PairMaps(points, sure, points, sure), one2two


@pytest.mark.parametrize(
  'baseline, depths, noise_px',
  [
    (0.5, (1, 3), 0.0),
    (0.1, (0.5, 3), 0.2),
    (0.2, (0.5, 20), 0.2),
    (0.2, (0.5, 5), 0.4),
  ],
)
def test_the_scale_is_not_biased_by_noise(baseline, depths, noise_px):
  maps, one2two = seen_by_two(baseline, depths, noise_px)
  scale = posed_depth.scale_of_pair(maps, one2two, FOV_DEG, RULES)
  assert scale == pytest.approx(1, abs=0.02 if noise_px else 1e-5)


def test_a_pair_that_hardly_moves_tells_no_scale():
  maps, one2two = seen_by_two(0.01, (1, 3), 0.0)
  assert posed_depth.scale_of_pair(maps, one2two, FOV_DEG, RULES) is None


def test_few_points_tell_no_scale():
  maps, one2two = seen_by_two(0.5, (1, 3), 0.0)
  few = np.ones_like(maps.confidence_two)
  few[0, :19] = 5
  maps = dataclasses.replace(maps, confidence_two=few)
  assert posed_depth.scale_of_pair(maps, one2two, FOV_DEG, RULES) is None
