"""The scale resolver against pairs whose scale is known."""

import dataclasses

from hypothesis import given, settings
from hypothesis import strategies as st
import numpy as np
import pytest
from scipy import optimize

from odin_jax.shared import camera
from preprocessing.solving import initialization, relative_pose, scale_averaging


def make_pairs(rng, num_frames, gaps, noise=0.0, num_points=80):
  """Depths of random points from frames in a row; each pair in its unit."""
  places = np.cumsum(rng.normal(size=(num_frames, 3)), axis=0)
  points = rng.normal(size=(num_points, 3)) * 6
  distance = np.linalg.norm(points[None] - places[:, None], axis=2)
  pairs, true = [], []
  for gap in gaps:
    for first in range(num_frames - gap):
      shown = np.sort(rng.choice(num_points, num_points * 2 // 3, False))
      length = np.exp(rng.normal())
      ends = (first, first + gap)
      depths = distance[list(ends)][:, shown] / length
      depths *= np.exp(noise * rng.normal(size=depths.shape))
      pairs.append(
        scale_averaging.PairDepths(places=ends, points=shown, depths=depths)
      )
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
  scales = scale_averaging.resolve(
    len(pairs), scale_averaging.links(pairs, min_shared=10)
  )
  assert np.all(scales.component == 0) and not scales.outliers
  np.testing.assert_allclose(scales.log_scale, true - true[0], atol=1e-4)


def test_noise_and_moving_points_cost_little():
  rng = np.random.default_rng(4)
  pairs, true = make_pairs(rng, 12, (1, 2), noise=0.05, num_points=150)
  for pair in pairs:
    # A third of the points moved: their depths say nothing.
    moved = rng.uniform(size=len(pair.points)) < 0.33
    pair.depths[:, moved] *= np.exp(rng.uniform(-1, 1, (2, moved.sum())))
  scales = scale_averaging.resolve(
    len(pairs), scale_averaging.links(pairs, min_shared=10)
  )
  assert np.max(np.abs(scales.log_scale - (true - true[0]))) < 0.06


def test_a_wrong_equation_is_outvoted():
  pairs, true = make_pairs(np.random.default_rng(5), 8, (1, 2))
  links = scale_averaging.links(pairs, min_shared=10)
  wrong = scale_averaging.Link(
    first=links[3].first,
    second=links[3].second,
    log_ratio=links[3].log_ratio + 2.0,
    error=links[3].error,
  )
  scales = scale_averaging.resolve(len(pairs), [*links[:3], wrong, *links[4:]])
  np.testing.assert_allclose(scales.log_scale, true - true[0], atol=1e-4)
  (outlier,) = scales.outliers
  assert outlier[:2] == (wrong.first, wrong.second)
  assert outlier.residual == pytest.approx(-2.0, abs=1e-3)
  assert outlier.error == wrong.error


def test_pairs_that_share_no_points_are_components_of_their_own():
  rng = np.random.default_rng(6)
  near, true_near = make_pairs(rng, 4, (1, 2))
  far, true_far = make_pairs(rng, 3, (1, 2))
  apart = [
    scale_averaging.PairDepths(
      places=(pair.places[0] + 3, pair.places[1] + 3),
      points=pair.points + 1000,
      depths=pair.depths,
    )
    for pair in far
  ]
  pairs = near + apart
  scales = scale_averaging.resolve(
    len(pairs), scale_averaging.links(pairs, min_shared=10)
  )
  assert scales.component.tolist() == [0] * len(near) + [1] * len(far)
  true = np.concatenate([true_near - true_near[0], true_far - true_far[0]])
  np.testing.assert_allclose(scales.log_scale, true, atol=1e-4)


def test_nothing_shared_resolves_to_nothing():
  scales = scale_averaging.resolve(2, [])
  assert scales.log_scale.tolist() == [0, 0]
  assert scales.component.tolist() == [0, 1] and not scales.outliers
  assert scale_averaging.resolve(0, []).log_scale.shape == (0,)


def test_too_few_shared_points_make_no_equation():
  pairs, _ = make_pairs(np.random.default_rng(7), 3, (1,), num_points=9)
  assert scale_averaging.links(pairs, min_shared=10) == []


def window_graph(rng, count, window, loops):
  """Ends of equations: neighbours in a row, and some far apart."""
  near = [
    (first, second)
    for first in range(count)
    for second in range(first + 1, min(first + window + 1, count))
  ]
  far = [tuple(sorted(rng.choice(count, 2, False))) for _ in range(loops)]
  return np.unique(near + far, axis=0)


def is_told(ends, bad, count, limit):
  """Whether few equations of each pair, and across each moment, are wrong."""
  degree, wrong = np.zeros((2, count))
  np.add.at(degree, ends, 1)
  np.add.at(wrong, ends[bad], 1)
  moments = np.arange(1, count)[:, None]
  across = (ends[:, 0] < moments) & (ends[:, 1] >= moments)
  share = (across & bad).sum(1) / across.sum(1)
  return np.all(wrong <= limit * degree) and np.all(share <= limit)


def corrupted(ends, count, order, limit):
  """30 percent of the equations, in this order, where others tell the truth."""
  bad = np.zeros(len(ends), bool)
  for index in order:
    bad[index] = True
    if not is_told(ends, bad, count, limit):
      bad[index] = False
    if bad.mean() >= 0.3:
      break
  return bad


def by_node(rng, ends, count):
  """Equations of one pair after the other."""
  return np.concatenate(
    [
      rng.permutation(np.flatnonzero((ends == pair).any(1)))
      for pair in rng.permutation(count)
    ]
  )


OFFSETS = {
  'large': lambda rng, n: rng.choice([-1, 1], n) * rng.uniform(0.5, 4, n),
  'small': lambda rng, n: rng.choice([-1, 1], n) * rng.uniform(0.05, 0.3, n),
  'mixed': lambda rng, n: rng.choice([-1, 1], n) * rng.uniform(0.03, 3, n),
  'one direction': lambda rng, n: np.full(n, 0.5),
  'clustered': lambda rng, n: rng.choice([-1, 1], n) * rng.uniform(0.05, 3, n),
}


def problem(seed, kind, window, count=40, loops=10):
  """Equations, the truth, and which of the equations are wrong."""
  rng = np.random.default_rng(seed)
  ends = window_graph(rng, count, window, loops)
  true = np.append(0.0, rng.normal(size=count - 1))
  error = rng.uniform(0.001, 0.004, len(ends))
  order = (
    by_node(rng, ends, count)
    if kind == 'clustered'
    else rng.permutation(len(ends))
  )
  # Errors that agree with each other win where they are as many as the truth.
  bad = corrupted(ends, count, order, 0.34 if kind == 'one direction' else 0.45)
  ratio = (
    true[ends[:, 0]] - true[ends[:, 1]] + error * rng.normal(size=len(bad))
  )
  ratio[bad] += OFFSETS[kind](rng, bad.sum())
  equations = [
    scale_averaging.Link(
      first=int(a), second=int(b), log_ratio=float(r), error=float(e)
    )
    for (a, b), r, e in zip(ends, ratio, error)
  ]
  return equations, true, bad


# Six equations cross a moment where each pair meets three later ones: two wrong
# ones that agree come too near a majority.
@pytest.mark.parametrize(
  ('kind', 'window'),
  [
    (kind, window)
    for kind in OFFSETS
    for window in (3, 4, 5)
    if (kind, window) != ('one direction', 3)
  ],
)
def test_a_third_of_wrong_equations_is_found_and_does_no_harm(kind, window):
  flagged, right, wrong, off = 0, 0, 0, []
  for seed in range(8):
    equations, true, bad = problem(seed, kind, window)
    assert 0.2 < bad.mean() < 0.31
    scales = scale_averaging.resolve(len(true), equations)
    off.append(np.max(np.abs(scales.log_scale - true)))
    reported = {(outlier.first, outlier.second) for outlier in scales.outliers}
    flags = np.array(
      [(link.first, link.second) in reported for link in equations]
    )
    flagged += flags.sum()
    right += (flags & bad).sum()
    wrong += bad.sum()
  assert max(off) < 0.01
  assert right / flagged > 0.98 and right / wrong > 0.98


def total_loss(log_scale, equations):
  off = np.array(
    [
      (log_scale[link.first] - log_scale[link.second] - link.log_ratio)
      / link.error
      for link in equations
    ]
  )
  return np.sum(np.log1p((off / 2.385) ** 2))


@pytest.mark.parametrize('kind', ['large', 'small', 'clustered'])
def test_no_start_leads_scipy_to_a_lower_loss(kind):
  rng = np.random.default_rng(3)
  for seed in range(3):
    equations, true, _ = problem(seed, kind, 3, count=10, loops=4)
    scales = scale_averaging.resolve(len(true), equations).log_scale

    def residuals(free):
      log_scale = np.append(0.0, free)
      return [
        (log_scale[link.first] - log_scale[link.second] - link.log_ratio)
        / link.error
        for link in equations
      ]

    starts = [true, scales, *(true + rng.normal(size=(6, len(true))))]
    solved = [
      optimize.least_squares(
        residuals, start[1:], loss='cauchy', f_scale=2.385, x_scale=0.01
      ).x
      for start in starts
    ]
    losses = [total_loss(np.append(0.0, free), equations) for free in solved]
    best = np.append(0.0, solved[int(np.argmin(losses))])
    assert total_loss(scales, equations) <= min(losses) + 1e-3
    np.testing.assert_allclose(scales, best, atol=1e-4)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10_000), window=st.integers(1, 4))
def test_scales_do_not_depend_on_how_equations_are_written(seed, window):
  rng = np.random.default_rng(seed)
  equations, true, _ = problem(seed, 'mixed', window + 1, count=12, loops=3)
  scales = scale_averaging.resolve(len(true), equations)
  turned = [
    scale_averaging.Link(
      first=link.second,
      second=link.first,
      log_ratio=-link.log_ratio,
      error=link.error,
    )
    if rng.uniform() < 0.5
    else link
    for link in equations
  ]
  turned = [turned[index] for index in rng.permutation(len(turned))]
  again = scale_averaging.resolve(len(true), turned)
  np.testing.assert_allclose(again.log_scale, scales.log_scale, atol=1e-6)
  ends = [
    sorted(sorted(outlier[:2]) for outlier in resolved.outliers)
    for resolved in (scales, again)
  ]
  assert ends[0] == ends[1]


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10_000), unit=st.floats(-3, 3))
def test_scales_follow_the_units_of_the_pairs(seed, unit):
  equations, true, _ = problem(seed, 'large', 4, count=12, loops=3)
  scales = scale_averaging.resolve(len(true), equations)
  rng = np.random.default_rng(seed)
  units = unit * rng.normal(size=len(true))
  changed = [
    dataclasses.replace(
      link,
      log_ratio=float(link.log_ratio + units[link.first] - units[link.second]),
    )
    for link in equations
  ]
  again = scale_averaging.resolve(len(true), changed)
  np.testing.assert_allclose(
    again.log_scale, scales.log_scale + units - units[0], atol=1e-6
  )
  assert [outlier[:2] for outlier in again.outliers] == [
    outlier[:2] for outlier in scales.outliers
  ]


def row_of_fits(rng, num_frames, wrong=None):
  """Places and exact fits; of one pair the second frame's depths are off."""
  places = np.cumsum(rng.normal(size=(num_frames, 3)), axis=0)
  points = rng.normal(size=(60, 3)) * 6
  distance = np.linalg.norm(points[None] - places[:, None], axis=2)
  fits = {}
  for gap in (1, 2, 3):
    for first in range(num_frames - gap):
      pair = first, first + gap
      step = places[pair[1]] - places[pair[0]]
      length = np.linalg.norm(step)
      depths = distance[list(pair)] / length
      depths[1] *= 1.5 if pair == wrong else 1.0
      fits[pair] = relative_pose.PairFit(
        target2source=camera.make_pose(np.eye(3), step / length),
        inliers=np.ones(len(points), bool),
        parallax_rad=0.1,
        depths=depths,
      )
  return places, fits, {pair: np.arange(len(points)) for pair in fits}


def initialized(rng, num_frames, wrong=None):
  places, fits, point_ids = row_of_fits(rng, num_frames, wrong)
  return places, initialization.initialize(
    num_frames, fits, point_ids, min_shared=10
  )


def test_initialization_reports_pairs_that_contradict_the_others():
  rng = np.random.default_rng(8)
  places, initial = initialized(rng, 10)
  assert initial.outliers == []
  places, initial = initialized(rng, 10, wrong=(4, 6))
  assert initial.outliers
  for outlier in initial.outliers:
    assert (4, 6) in (outlier.first, outlier.second)
    # One end of the pair lies; both pairs were seen from there.
    assert set(outlier.first) & set(outlier.second)
    assert abs(outlier.residual) == pytest.approx(np.log(1.5), abs=0.01)
    assert abs(outlier.residual) > 4 * outlier.error
  true = np.linalg.norm(places - places[0], axis=1)
  length = np.linalg.norm(initial.frame2scene[:, :, 3], axis=1)
  np.testing.assert_allclose(length * true[1] / length[1], true, rtol=0.01)


def test_depths_that_the_matcher_says_tie_pairs_without_their_own():
  rng = np.random.default_rng(3)
  places, fits, point_ids = row_of_fits(rng, 8)
  matcher_depths = {
    pair: (point_ids[pair][fit.inliers], fit.depths[:, fit.inliers])
    for pair, fit in fits.items()
  }
  # Too few points of the fits themselves are shared.
  bare = {
    pair: dataclasses.replace(
      fit, inliers=fit.inliers & (np.arange(len(fit.inliers)) % 40 == 0)
    )
    for pair, fit in fits.items()
  }
  alone = initialization.initialize(8, bare, point_ids, min_shared=15)
  tied = initialization.initialize(
    8, bare, point_ids, min_shared=15, matcher_depths=matcher_depths
  )
  assert np.any(alone.component != 0) and np.all(tied.component == 0)
  true = np.linalg.norm(places - places[0], axis=1)
  length = np.linalg.norm(tied.frame2scene[:, :, 3], axis=1)
  np.testing.assert_allclose(length * true[1] / length[1], true, rtol=1e-6)
