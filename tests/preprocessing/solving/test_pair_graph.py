"""Cycles, components and long-range pairs, on graphs whose truth is known."""

import dataclasses
import itertools

from hypothesis import given, settings
from hypothesis import strategies as st
import numpy as np
import pytest

from odin_jax.shared import camera
from preprocessing.solving import (
  bundle_adjustment,
  pair_graph,
  relative_pose,
  tracks,
  verification,
)
from preprocessing.writing import rejections
from tests.helpers import default_rules, point_worlds

_RULES = default_rules.graph_rules()


def exact_fit(truth, pair, inliers=100, still=False):
  """What a perfect robust fit of a pair says."""
  pose = camera.relative(truth[pair[0]], truth[pair[1]])
  length = np.linalg.norm(pose[:, 3])
  pose = camera.rescale(pose, 0.0 if still else float(1 / length))
  return relative_pose.PairFit(
    target2source=pose,
    inliers=np.ones(inliers, bool),
    parallax_rad=0.1,
    depths=np.ones((2, inliers)),
  )


def exact_fits(truth, max_gap=3):
  return {
    pair: exact_fit(truth, pair)
    for pair in tracks.window_pairs(len(truth), max_gap)
  }


def spoil(fit, how):
  """A fit that is turned by 20 degrees, or goes the other way."""
  pose = fit.target2source.copy()
  if how == 'turned':
    pose[:, :3] = pose[:, :3] @ camera.rotation_y(np.deg2rad(20))
  else:
    pose[:, 3] *= -1
  return dataclasses.replace(fit, target2source=pose)


@settings(max_examples=25, deadline=None)
@given(
  seed=st.integers(0, 1000),
  wrong=st.lists(
    st.tuples(st.integers(0, 32), st.sampled_from(['turned', 'reversed'])),
    max_size=3,
    unique_by=lambda item: item[0],
  ),
)
def test_cycles_vote_out_the_wrong_edges_whatever_their_order(seed, wrong):
  rng = np.random.default_rng(seed)
  fits = exact_fits(point_worlds.walk(13, rng))
  spoilt = {sorted(fits)[index]: how for index, how in wrong}
  # A single step that goes the wrong way may still be a part of its bridge.
  spoilt = {
    pair: 'turned' if pair[1] - pair[0] == 1 else how
    for pair, how in spoilt.items()
  }
  # Side by side they may outvote a right one.
  for first, second in itertools.combinations(spoilt, 2):
    if max(*first, *second) - min(*first, *second) <= 5:
      return
  fits |= {pair: spoil(fits[pair], how) for pair, how in spoilt.items()}
  # Near the ends of the path there are ties, and inliers decide.
  fits |= {
    pair: dataclasses.replace(fits[pair], inliers=np.arange(100) < 50)
    for pair in spoilt
    if pair[0] <= 2 or pair[1] >= 10
  }
  assert pair_graph.inconsistent(fits, _RULES) == sorted(spoilt)
  order = rng.permutation(len(fits))
  shuffled = {list(fits)[index]: fits[list(fits)[index]] for index in order}
  assert pair_graph.inconsistent(shuffled, _RULES) == sorted(spoilt)


def test_of_a_lone_cycle_the_weakest_edge_goes():
  truth = point_worlds.walk(3, np.random.default_rng(0))
  fits = exact_fits(truth)
  fits[0, 2] = spoil(fits[0, 2], 'turned')
  fits[1, 2] = dataclasses.replace(fits[1, 2], inliers=np.arange(100) < 40)
  assert pair_graph.inconsistent(fits, _RULES) == [(1, 2)]
  # An edge in no cycle cannot be judged.
  del fits[0, 1]
  assert pair_graph.inconsistent(fits, _RULES) == []


@pytest.mark.parametrize(
  'places, still',
  [
    ([0, 0, 1], [(0, 1)]),
    ([0, 1, 1], [(1, 2)]),
    ([0, 1, 0], [(0, 2)]),
    ([0, 0, 0], [(0, 1), (1, 2), (0, 2)]),
  ],
)
def test_cycles_with_frames_that_only_turned(places, still):
  rng = np.random.default_rng(1)
  truth = point_worlds.walk(3, rng)
  truth[:, :, 3] = np.array(places)[:, None] * [0.5, 0.1, 1.0]
  with np.errstate(invalid='ignore', divide='ignore'):
    fits = {
      pair: exact_fit(truth, pair, still=pair in still)
      for pair in tracks.window_pairs(3, 2)
    }
  for pair in still:
    fits[pair].target2source[:, 3] = 0
  assert pair_graph.inconsistent(fits, _RULES) == []
  moving = [pair for pair in fits if pair not in still]
  for pair in moving:
    wrong = fits | {pair: spoil(fits[pair], 'reversed')}
    assert pair_graph.inconsistent(wrong, _RULES)


def test_components_are_numbered_by_first_frame():
  edges = [(4, 5), (1, 3), (3, 6)]
  assert pair_graph.components(8, edges).tolist() == [-1, 0, -1, 0, 1, 1, 0, -1]
  assert pair_graph.components(2, []).tolist() == [-1, -1]


@dataclasses.dataclass
class Solved:
  """A solution that is the truth."""

  component: np.ndarray
  frame2scene: np.ndarray
  points: np.ndarray
  observations: bundle_adjustment.Observations
  verifications: dict


def solved_world(num_frames=24, window=3, seed=0):
  rng = np.random.default_rng(seed)
  truth = point_worlds.walk(num_frames, rng)
  points = point_worlds.corridor(rng, num_frames + 8, per_metre=20)
  looks = point_worlds.descriptors(rng, len(points), 4)
  world = point_worlds.observe(rng, truth, points, looks, clutter=0.0)
  frame = np.repeat(np.arange(num_frames), [len(ids) for ids in world.point])
  return Solved(
    component=np.zeros(num_frames, np.int64),
    frame2scene=truth,
    points=points,
    observations=bundle_adjustment.Observations(
      frame=frame,
      point=np.concatenate(world.point),
      ray=np.concatenate(
        [frame_features.rays for frame_features in world.features]
      ),
      noise_rad=np.full(len(frame), 1e-3),
    ),
    verifications={
      pair: verification.Verification(
        reason=None, confidence=float(rng.uniform(0.7, 1.0)), matches=100
      )
      for pair in tracks.window_pairs(num_frames, window)
    },
  )


@pytest.fixture(scope='module')
def world():
  return solved_world()


def test_frame_depths_are_medians(world):
  depths = pair_graph.frame_depths(
    world.frame2scene, world.points, world.observations
  )
  for frame in (0, 7, 23):
    points = world.observations.point[world.observations.frame == frame]
    away = world.points[points] - world.frame2scene[frame, :, 3]
    expected = np.sort(np.linalg.norm(away, axis=1))[len(points) // 2]
    assert depths[frame] == pytest.approx(expected)
  none = world.observations.subset(world.observations.frame > 0)
  assert np.isnan(
    pair_graph.frame_depths(world.frame2scene, world.points, none)[0]
  )


def best_products(world):
  """Oracle: largest product of confidences, by Floyd and Warshall."""
  count = len(world.frame2scene)
  best = np.zeros((count, count))
  for (a, b), check in world.verifications.items():
    if check.is_kept:
      best[a, b] = best[b, a] = check.confidence
  for middle in range(count):
    best = np.maximum(best, best[:, [middle]] * best[middle])
  return best


def test_long_pairs_have_the_confidence_of_their_best_path(world):
  long_pairs = pair_graph.long_range_pairs(world, _RULES)
  best = best_products(world)
  assert len(long_pairs) > 20
  for pair in long_pairs:
    assert (pair.source, pair.target) not in world.verifications
    assert pair.hops >= -(-(pair.target - pair.source) // 3)
    assert pair.confidence == pytest.approx(best[pair.source, pair.target])
    assert pair.confidence >= _RULES.min_path_confidence
  ends = [(pair.source, pair.target) for pair in long_pairs]
  assert ends == sorted(set(ends))
  assert long_pairs == pair_graph.long_range_pairs(world, _RULES)


def test_long_pairs_are_near_and_share_points(world):
  centres = world.frame2scene[:, :, 3]
  depths = pair_graph.frame_depths(
    world.frame2scene, world.points, world.observations
  )
  points_of = [
    set(world.observations.point[world.observations.frame == frame].tolist())
    for frame in range(24)
  ]
  for pair in pair_graph.long_range_pairs(world, _RULES):
    apart = np.linalg.norm(centres[pair.source] - centres[pair.target])
    ends = [pair.source, pair.target]
    assert apart <= _RULES.max_baseline * depths[ends].max()
    for frame, far_frame in (
      (pair.source, pair.target),
      (pair.target, pair.source),
    ):
      away = np.linalg.norm(centres - centres[far_frame], axis=1)
      around = np.flatnonzero(away <= depths[far_frame] / 2)
      common = points_of[frame] & set().union(
        *(points_of[near] for near in around)
      )
      assert len(common) >= _RULES.min_shared * len(points_of[frame])
  # Nothing is in sight of both.
  assert not pair_graph.long_range_pairs(
    world, dataclasses.replace(_RULES, min_shared=1.01)
  )
  assert not pair_graph.long_range_pairs(
    world, dataclasses.replace(_RULES, max_baseline=0.1)
  )


@pytest.mark.parametrize('limit', [0, 1, 3])
def test_long_pairs_are_bounded_and_spread_over_gaps(world, limit):
  rules = dataclasses.replace(_RULES, max_long_pairs_per_frame=limit)
  long_pairs = pair_graph.long_range_pairs(world, rules)
  counts = np.bincount([pair.source for pair in long_pairs], minlength=24)
  assert counts.max(initial=0) == limit
  if limit:
    gaps = np.bincount([pair.target - pair.source for pair in long_pairs])[4:]
    unlimited = pair_graph.long_range_pairs(
      world, dataclasses.replace(_RULES, max_long_pairs_per_frame=99)
    )
    possible = np.bincount([pair.target - pair.source for pair in unlimited])[
      4:
    ]
    even = min(possible.min(), len(long_pairs) // len(possible) - 1)
    assert np.all(gaps >= min(even, 1))


def test_no_long_pair_over_a_cut(world):
  kept = {
    pair: check
    if not pair[0] <= 11 < pair[1]
    else verification.unmatched(rejections.Reason.FEW_MATCHES)
    for pair, check in world.verifications.items()
  }
  long_pairs = pair_graph.long_range_pairs(
    dataclasses.replace(world, verifications=kept), _RULES
  )
  assert long_pairs
  assert not any(pair.source <= 11 < pair.target for pair in long_pairs)
  parts = dataclasses.replace(world, component=np.repeat([0, 1], 12))
  long_pairs = pair_graph.long_range_pairs(parts, _RULES)
  assert long_pairs
  assert not any(pair.source <= 11 < pair.target for pair in long_pairs)


def test_gaps_take_turns_where_all_pairs_share_everything(world):
  still = world.frame2scene.copy()
  still[:, :, 3] *= 1e-3
  points = world.points * 10
  room = dataclasses.replace(world, frame2scene=still, points=points)
  long_pairs = pair_graph.long_range_pairs(room, _RULES)
  gaps = np.array([pair.target - pair.source for pair in long_pairs])
  assert len(np.unique(gaps)) > 8
