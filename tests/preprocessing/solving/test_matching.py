"""What a matcher is asked about frame pairs, and what is kept of it."""

import numpy as np
import pytest

from odin_jax.shared import camera
from preprocessing import matchers
from preprocessing.solving import bundle_adjustment, matching, reconstruction
from tests.helpers import point_worlds

_GATE_RAD = 0.035


class Nearest:
  """Matches each feature to the one that is nearest to its expected place."""

  name = 'nearest'

  def __init__(self):
    self.asked = []

  def describe(self, panorama):
    raise NotImplementedError

  def match(self, source, target, *, expected=None, gate_rad=0.0):
    self.asked.append((expected, gate_rad))
    off = np.linalg.norm(expected[:, None] - target.rays, axis=2)
    off = np.where(np.isnan(off), np.inf, off)
    best = off.argmin(axis=1)
    good = np.flatnonzero(off.min(axis=1) < gate_rad)
    _, first = np.unique(best[good], return_index=True)
    return np.stack([good[first], best[good[first]]], axis=1)


class Saying(Nearest):
  """Says a pose of every second pair, too."""

  def match_and_pose(self, source, target, **how):
    matched = self.match(source, target, **how)
    if len(self.asked) % 2:
      return matched, None
    pose = matchers.PairPose(
      target2source=camera.identity_pose(),
      confidence=0.5,
      depths=np.ones((2, len(matched))),
    )
    return matched, pose


class Counting(Nearest):
  """Every request costs two calls."""

  @property
  def calls(self):
    return 100 + 2 * len(self.asked)

  def calls_bound(self, num_pairs, num_requests):
    return 10 * num_pairs + num_requests


@pytest.fixture(scope='module')
def points():
  return point_worlds.corridor(np.random.default_rng(0), 12)


@pytest.fixture(scope='module')
def world(points):
  rng = np.random.default_rng(1)
  looks = point_worlds.descriptors(rng, len(points))
  return point_worlds.observe(rng, point_worlds.walk(4, rng), points, looks)


def pair_matcher(world, matcher):
  return matching.PairMatcher(
    matcher, world.features, world.tracked_rays, gate_rad=_GATE_RAD
  )


def true_scene(world, points, component):
  """The truth; points are numbered as the world does."""
  nothing = np.zeros(0, np.int64)
  return reconstruction.Reconstruction(
    component=np.array(component),
    frame2scene=world.frame2world,
    points=points,
    observations=bundle_adjustment.Observations(
      frame=nothing,
      point=nothing,
      ray=np.zeros((0, 3)),
      noise_rad=np.zeros(0),
    ),
    point_ids=world.point,
  )


def right_share(world, pair, matched):
  in_source, in_target = matched.T
  source = world.point[pair[0]][in_source]
  return np.mean((source == world.point[pair[1]][in_target]) & (source >= 0))


def test_neighbours_are_matched_near_where_their_points_were_tracked(world):
  matcher = Nearest()
  pair_matches = pair_matcher(world, matcher).match_neighbours()
  assert list(pair_matches.matches) == [(0, 1), (1, 2), (2, 3)]
  for (expected, gate_rad), tracked in zip(matcher.asked, world.tracked_rays):
    np.testing.assert_array_equal(expected, tracked)
    assert gate_rad == _GATE_RAD
  assert not pair_matches.matcher_poses


def test_pairs_are_matched_near_the_poses_within_components(world, points):
  pairs = [(0, 1), (0, 2), (1, 3), (0, 3), (2, 3)]
  scene = true_scene(world, points, component=(0, 0, 0, -1))
  matcher = Nearest()
  pair_matches = pair_matcher(world, matcher).match_near_poses(pairs, scene)
  assert list(pair_matches.matches) == [(0, 1), (0, 2)]
  assert len(matcher.asked) == 2
  # Of far pairs only points of the scene have an expected place.
  unknown = np.isnan(matcher.asked[1][0][:, 0])
  np.testing.assert_array_equal(unknown, world.point[0] < 0)
  assert right_share(world, (0, 2), pair_matches.matches[0, 2]) > 0.8
  # All points that both frames show are matched, whatever the matcher says.
  shared, in_source, in_target = reconstruction.shared_points(
    world.point[0], world.point[2]
  )
  assert len(shared) > 50
  by_tracks = set(zip(in_source.tolist(), in_target.tolist()))
  assert by_tracks <= set(map(tuple, pair_matches.matches[0, 2].tolist()))


def test_what_the_matcher_says_of_poses_is_kept_by_pair(world):
  pair_matches = pair_matcher(world, Saying()).match_neighbours()
  assert set(pair_matches.matcher_poses) == {(1, 2)}
  of_pairs = matching.depths_of_points(pair_matches, world.point)
  points, depths = of_pairs[1, 2]
  assert set(of_pairs) == {(1, 2)} and depths.shape == (2, len(points))
  in_source, in_target = pair_matches.matches[1, 2].T
  same = world.point[1][in_source] == world.point[2][in_target]
  same &= world.point[1][in_source] >= 0
  assert sorted(points) == sorted(world.point[1][in_source[same]])


def test_the_cost_is_counted_by_the_matcher_or_by_requests(world):
  plain = pair_matcher(world, Nearest())
  plain.match_neighbours()
  assert plain.cost(num_pairs=7, num_requests=9) == {
    'matcher_calls': 3,
    'matcher_calls_bound': 9,
  }
  counting = pair_matcher(world, Counting())
  counting.match_neighbours()
  assert counting.cost(num_pairs=7, num_requests=9) == {
    'matcher_calls': 6,
    'matcher_calls_bound': 79,
  }


def test_components_are_numbered_by_their_first_frames():
  label = np.array([7, -1, 3, 7, 3, 9])
  assert reconstruction.number_components(label).tolist() == [0, -1, 1, 0, 1, 2]
  assert reconstruction.number_components(np.array([-1, -1])).tolist() == [
    -1,
    -1,
  ]
