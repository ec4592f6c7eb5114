"""Which views of two panoramas are compared."""

from hypothesis import given, settings
from hypothesis import strategies as st
import numpy as np
import pytest

from preprocessing.matchers import view_pairs


@pytest.mark.parametrize('num_views', [1, 4, 7, 8])
def test_unguided_candidates_take_turns(num_views):
  shown = np.ones((4, num_views), bool)
  pairs = view_pairs.yaw_candidates(shown, max_pairs=100)
  assert len(set(pairs)) == len(pairs) == num_views**2
  for start in range(0, len(pairs), num_views):
    batch = pairs[start : start + num_views]
    assert len({(b - a) % num_views for a, b in batch}) == num_views
    assert len({a for a, _ in batch}) == num_views
  assert view_pairs.yaw_candidates(shown, max_pairs=3) == pairs[:3]


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 10_000), max_pairs=st.integers(1, 12))
def test_guided_candidates_are_greedy(seed, max_pairs):
  rng = np.random.default_rng(seed)
  in_source, in_target = (rng.uniform(size=(40, 5)) < 0.3 for _ in range(2))
  chosen = view_pairs.yaw_candidates(
    in_source, in_target, max_pairs=max_pairs, min_gain=2
  )
  assert len(chosen) <= max_pairs
  left = set(range(40))

  def gain(pair):
    return {
      point
      for point in left
      if in_source[point, pair[0]] and in_target[point, pair[1]]
    }

  all_pairs = [(a, b) for a in range(5) for b in range(5)]
  for pair in chosen:
    assert len(gain(pair)) == max(map(len, map(gain, all_pairs))) >= 2
    left -= gain(pair)
  if len(chosen) < max_pairs:
    assert max(map(len, map(gain, all_pairs))) < 2


def test_guided_candidates_look_where_the_camera_turned_to():
  ring = np.deg2rad(np.arange(0, 360, 3.0))

  def shown(turn_rad):
    yaw = np.deg2rad(45 * np.arange(8))
    return np.cos(ring[:, None] + turn_rad - yaw) > np.cos(np.deg2rad(45))

  chosen = view_pairs.yaw_candidates(
    shown(0.0), shown(np.deg2rad(90)), max_pairs=8
  )
  assert len(chosen) >= 4
  assert {(b - a) % 8 for a, b in chosen[:4]} == {2}
