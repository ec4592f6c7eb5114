"""The scale resolver against pairs whose scale is known."""

from hypothesis import given, settings
from hypothesis import strategies as st
import numpy as np

from preprocessing import scale


def make_pairs(rng, num_frames, gaps, noise=0.0, num_points=80):
  """Depths of random points from frames in a row; each pair in its gauge."""
  places = np.cumsum(rng.normal(size=(num_frames, 3)), axis=0)
  points = rng.normal(size=(num_points, 3)) * 6
  distance = np.linalg.norm(points[None] - places[:, None], axis=2)
  pairs, true = [], []
  for gap in gaps:
    for first in range(num_frames - gap):
      seen = np.sort(rng.choice(num_points, num_points * 2 // 3, False))
      length = np.exp(rng.normal())
      ends = (first, first + gap)
      depths = distance[list(ends)][:, seen] / length
      depths *= np.exp(noise * rng.normal(size=depths.shape))
      pairs.append(scale.PairDepths(places=ends, points=seen, depths=depths))
      true.append(np.log(length))
  return pairs, np.array(true)


@settings(max_examples=30, deadline=None)
@given(
  seed=st.integers(0, 10_000),
  num_frames=st.integers(4, 9),
  gaps=st.sampled_from([(1,), (1, 2), (1, 2, 3)]),
)
def test_exact_depths_give_exact_scales(seed, num_frames, gaps):
  pairs, true = make_pairs(np.random.default_rng(seed), num_frames, gaps)
  found, label = scale.resolve(len(pairs), scale.links(pairs, min_shared=10))
  assert np.all(label == 0)
  np.testing.assert_allclose(found, true - true[0], atol=1e-4)


def test_noise_and_moving_points_cost_little():
  rng = np.random.default_rng(4)
  pairs, true = make_pairs(rng, 12, (1, 2), noise=0.05, num_points=150)
  for pair in pairs:
    # A third of the points moved: their depths say nothing.
    moved = rng.uniform(size=len(pair.points)) < 0.33
    pair.depths[:, moved] *= np.exp(rng.uniform(-1, 1, (2, moved.sum())))
  found, _ = scale.resolve(len(pairs), scale.links(pairs, min_shared=10))
  assert np.max(np.abs(found - (true - true[0]))) < 0.06


def test_a_wrong_equation_is_outvoted():
  pairs, true = make_pairs(np.random.default_rng(5), 8, (1, 2))
  links = scale.links(pairs, min_shared=10)
  wrong = scale.Link(
    first=links[3].first,
    second=links[3].second,
    log_ratio=links[3].log_ratio + 2.0,
    weight=links[3].weight,
  )
  found, _ = scale.resolve(len(pairs), [*links[:3], wrong, *links[4:]])
  np.testing.assert_allclose(found, true - true[0], atol=0.01)


def test_pairs_that_share_no_points_are_components_of_their_own():
  rng = np.random.default_rng(6)
  one, true_one = make_pairs(rng, 4, (1, 2))
  two, true_two = make_pairs(rng, 3, (1, 2))
  apart = [
    scale.PairDepths(
      places=(pair.places[0] + 3, pair.places[1] + 3),
      points=pair.points + 1000,
      depths=pair.depths,
    )
    for pair in two
  ]
  pairs = one + apart
  found, label = scale.resolve(len(pairs), scale.links(pairs, min_shared=10))
  assert label.tolist() == [0] * len(one) + [1] * len(two)
  true = np.concatenate([true_one - true_one[0], true_two - true_two[0]])
  np.testing.assert_allclose(found, true, atol=1e-4)


def test_nothing_shared_resolves_to_nothing():
  scales, label = scale.resolve(2, [])
  assert scales.tolist() == [0, 0] and label.tolist() == [0, 1]
  assert scale.resolve(0, [])[0].shape == (0,)


def test_too_few_shared_points_make_no_equation():
  pairs, _ = make_pairs(np.random.default_rng(7), 3, (1,), num_points=9)
  assert scale.links(pairs, min_shared=10) == []
