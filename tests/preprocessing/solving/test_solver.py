"""From matches to one joint solution, on scenes of points with known poses."""

import dataclasses

from hypothesis import given, settings
from hypothesis import strategies as st
import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from odin_jax.shared import camera
from preprocessing.matchers import sphere
from preprocessing.solving import (
  bundle_adjustment,
  masks,
  relative_pose,
  scene_scale,
  solver,
  tracks,
  verification,
)
from preprocessing.writing import rejections
from tests.helpers import default_rules, point_worlds

_PIXEL_RAD = 2 * np.pi / 768


def solve(world, max_gap=5, mask=None, **changes):
  return solver.Solver(
    world.features,
    world.tracked_rays,
    sphere.make(sphere.OPTIONS),
    rules=default_rules.pose_rules(**changes),
    max_gap=max_gap,
    pixel_rad=_PIXEL_RAD,
    mask=mask,
  ).solve()


def relative(frame2scene, pair):
  source, target = pair
  return camera.relative(frame2scene[source], frame2scene[target])


def pose_errors(solution, truth):
  """Rotation and direction errors (degrees), length ratios of kept pairs."""
  rows = []
  for pair, check in solution.verifications.items():
    if check.is_kept:
      solved, true = relative(solution.frame2scene, pair), relative(truth, pair)
      rows.append(
        (
          camera.rotation_angle_deg(solved[:, :3] @ true[:, :3].T),
          camera.angle_between_deg(solved[:, 3], true[:, 3]),
          np.linalg.norm(solved[:, 3]) / np.linalg.norm(true[:, 3]),
        )
      )
  return np.array(rows).T


def check(solution, truth):
  rotation_deg, direction_deg, ratio = pose_errors(solution, truth)
  assert np.median(rotation_deg) < 0.05
  assert np.max(direction_deg) < 1.0
  assert np.max(np.abs(ratio / np.median(ratio) - 1)) < 0.01


@pytest.fixture(scope='module')
def unique():
  rng = np.random.default_rng(0)
  points = point_worlds.corridor(rng, 20)
  looks = point_worlds.descriptors(rng, len(points))
  return point_worlds.observe(rng, point_worlds.walk(12, rng), points, looks)


@pytest.fixture(scope='module')
def solved(unique):
  return solve(unique)


def test_unique_scene_is_solved(unique, solved):
  assert np.all(solved.component == 0)
  assert all(check.is_kept for check in solved.verifications.values())
  assert len(solved.verifications) == 11 + 10 + 9 + 8 + 7
  check(solved, unique.frame2world)


def test_points_are_where_they_are(unique, solved):
  _, _, ratio = pose_errors(solved, unique.frame2world)
  away = (
    solved.points[solved.observations.point]
    - (solved.frame2scene[solved.observations.frame][:, :, 3])
  )
  assert scene_scale.median_distance(
    solved.frame2scene, solved.points, solved.observations
  ) == pytest.approx(1.0)
  # The corridor is about 2 m to the walls, and is seen up to 7 m away.
  assert 1.5 < np.median(np.linalg.norm(away, axis=1)) / np.median(ratio) < 4


def test_points_in_both_frames_are_those_that_both_observe(solved):
  frames_of = {}
  for frame, point in zip(
    solved.observations.frame.tolist(), solved.observations.point.tolist()
  ):
    frames_of.setdefault(point, set()).add(frame)
  for pair in ((0, 1), (1, 3), (4, 2)):
    for min_frames in (2, 3):
      expected = [
        point
        for point, frames in sorted(frames_of.items())
        if frames.issuperset(pair) and len(frames) >= min_frames
      ]
      assert len(expected) > 5
      np.testing.assert_array_equal(
        solved.points_in_both(*pair, min_frames=min_frames),
        solved.points[expected],
      )
  either = solved.points_of_pair(0, 1)
  assert len(solved.points_in_both(0, 1, min_frames=2)) < len(either)


def test_solution_is_deterministic(unique, solved):
  again = solve(unique)
  np.testing.assert_array_equal(solved.frame2scene, again.frame2scene)
  assert solved.verifications == again.verifications


def test_identical_bays_turn_unguided_pairs_round_but_not_the_solution():
  """The trap of the corridor: wrong fits have more inliers than the truth."""
  rng = np.random.default_rng(2)
  step_m = 0.9
  points, looks = point_worlds.repeated_corridor(rng, 26, 2.0)
  truth = point_worlds.walk(10, rng, step=step_m)
  world = point_worlds.observe(rng, truth, points, looks)
  matcher = sphere.make(sphere.OPTIONS)
  flips = 0
  for first in range(8):
    pair = first, first + 2
    in_source, in_target = matcher.match(
      *(world.features[frame] for frame in pair)
    ).T
    fit = relative_pose.fit_pair(
      world.features[pair[0]].rays[in_source],
      world.features[pair[1]].rays[in_target],
      max_error_rad=1.5 * _PIXEL_RAD,
      min_inliers=30,
      min_parallax_rad=np.deg2rad(0.5),
      seed=0,
    )
    true = relative(truth, pair)
    if fit is not None and fit.moves:
      apart = camera.angle_between_deg(fit.target2source[:, 3], true[:, 3])
      flips += apart > 90
  # 1.8 m further, the nearest bay of the same look is 0.2 m back.
  assert flips >= 6
  solution = solve(world)
  assert np.all(solution.component == 0)
  kept = [
    pair for pair, check in solution.verifications.items() if check.is_kept
  ]
  for gap in range(1, 6):
    of_gap = [pair for pair in kept if pair[1] - pair[0] == gap]
    assert len(of_gap) >= 0.7 * (10 - gap)
  check(solution, truth)


def test_a_pair_whose_own_fit_disagrees_is_rejected(unique):
  verifier = verification.Verifier(default_rules.pose_rules(), _PIXEL_RAD)
  pair = 3, 6
  shown = [unique.point[frame] for frame in pair]
  shared = np.intersect1d(*(points[points >= 0] for points in shown))
  matched = np.stack(
    [
      [np.flatnonzero(points == point)[0] for point in shared]
      for points in shown
    ],
    axis=1,
  )
  truth = unique.frame2world
  verifications = verifier.compare(unique.features, truth, {pair: matched})
  assert verifications[pair].is_kept
  assert verifier.verify(unique.features, truth, pair, matched).is_kept
  # The composed pose now says that the camera went the other way.
  backwards = truth.copy()
  backwards[[3, 6], :, 3] = truth[[6, 3], :, 3]
  verifications = verifier.compare(unique.features, backwards, {pair: matched})
  assert verifications[pair].reason is rejections.Reason.OTHER_DIRECTION
  # Or that it turned by 5 degrees more.
  turned = truth.copy()
  turned[6, :, :3] = truth[6, :, :3] @ camera.rotation_y(np.deg2rad(5))
  verifications = verifier.compare(unique.features, turned, {pair: matched})
  assert verifications[pair].reason is rejections.Reason.OTHER_ROTATION
  assert not verifier.verify(unique.features, backwards, pair, matched).is_kept


def test_moving_things_and_the_holder_are_left_out():
  rng = np.random.default_rng(3)
  truth = point_worlds.walk(8, rng)
  still = point_worlds.corridor(rng, 16)
  # A crowd that overtakes the camera, and a hand that goes with it.
  crowd = point_worlds.corridor(rng, 6) * [0.3, 0.5, 0.5] + [0.5, 0.4, 1.0]
  hand = rng.uniform([-0.3, 0.35, -0.3], [0.3, 0.5, 0.3], (150, 3))
  points = np.stack(
    [
      np.concatenate(
        [
          still,
          crowd + [0, 0, 1.3 * index],
          camera.transform(pose, hand),
        ]
      )
      for index, pose in enumerate(truth)
    ]
  )
  looks = point_worlds.descriptors(rng, points.shape[1])
  world = point_worlds.observe(rng, truth, points, looks)
  solution = solve(world)
  check(solution, truth)
  assert np.mean(solution.mask.holds(unit(hand))) > 0.6
  rays = np.concatenate([frame.rays for frame in world.features])
  assert np.mean(solution.mask.holds(rays[rays[:, 1] < 0.3])) < 0.02
  assert 0.01 < solution.mask.share < 0.25


def test_standing_still_gives_poses_but_no_pairs():
  rng = np.random.default_rng(4)
  truth = point_worlds.walk(11, rng)
  # Frames 4 to 6 are taken from one place, with the camera turning.
  truth[5:, :, 3] -= truth[5, :, 3] - truth[4, :, 3]
  truth[6:, :, 3] -= truth[6, :, 3] - truth[5, :, 3]
  points = point_worlds.corridor(rng, 18)
  looks = point_worlds.descriptors(rng, len(points))
  solution = solve(point_worlds.observe(rng, truth, points, looks))
  assert np.all(solution.component == 0)
  for pair in ((4, 5), (5, 6), (4, 6)):
    reason = solution.verifications[pair].reason
    assert reason is rejections.Reason.NO_PARALLAX
  check(solution, truth)
  places = solution.frame2scene[4:7, :, 3]
  assert np.max(np.linalg.norm(places - places[0], axis=1)) < 0.01


def test_a_slow_camera_moves_although_no_two_neighbours_do():
  rng = np.random.default_rng(0)
  truth = point_worlds.walk(24, rng, step=0.03)
  truth[:, :2, 3] = 0
  points = point_worlds.corridor(rng, 14)
  looks = point_worlds.descriptors(rng, len(points))
  solution = solve(point_worlds.observe(rng, truth, points, looks))
  assert np.all(solution.component == 0)
  kept = [
    pair for pair, check in solution.verifications.items() if check.is_kept
  ]
  assert len(kept) > 60 and min(b - a for a, b in kept) > 1
  off_deg, direction_deg, ratio = pose_errors(solution, truth)
  assert np.median(off_deg) < 0.1 and np.median(direction_deg) < 5
  assert np.std(np.log(ratio)) < 0.1


def test_a_broken_track_splits_the_component():
  rng = np.random.default_rng(5)
  truth = point_worlds.walk(12, rng)
  points = point_worlds.corridor(rng, 20)
  looks = point_worlds.descriptors(rng, len(points))
  world = point_worlds.observe(rng, truth, points, looks)
  world.tracked_rays[5][:] = np.nan
  solution = solve(world)
  assert solution.component.tolist() == [0] * 6 + [1] * 6
  for (source, target), check_of_pair in solution.verifications.items():
    apart = source <= 5 < target
    reason = check_of_pair.reason
    assert (reason is rejections.Reason.OTHER_COMPONENT) == apart
  check_half = dataclasses.replace(
    solution,
    verifications={
      p: v for p, v in solution.verifications.items() if p[1] <= 5
    },
  )
  check(check_half, truth)


def test_what_falls_apart_is_solved_in_parts(unique, monkeypatch):
  """Pairs over one gap all fail the last check: two scales, not one."""
  verify = verification.Verifier.verify

  def fail_over_the_gap(self, features, frame2scene, pair, *args):
    if pair[0] <= 5 < pair[1] or 11 in pair:
      return verification.unmatched(rejections.Reason.FEW_INLIERS)
    return verify(self, features, frame2scene, pair, *args)

  monkeypatch.setattr(verification.Verifier, 'verify', fail_over_the_gap)
  solution = solve(unique)
  assert solution.component.tolist() == [0] * 6 + [1] * 5 + [-1]
  for part in range(2):
    frames = np.flatnonzero(solution.component == part)
    of_part = solution.observations.subset(
      np.isin(solution.observations.frame, frames)
    )
    depth = scene_scale.median_distance(
      solution.frame2scene, solution.points, of_part
    )
    assert depth == pytest.approx(1.0)
    inside = {
      pair: check_of_pair
      for pair, check_of_pair in solution.verifications.items()
      if set(pair) <= set(frames.tolist())
    }
    check(
      dataclasses.replace(solution, verifications=inside), unique.frame2world
    )


def test_nothing_to_match_gives_no_pose():
  rng = np.random.default_rng(6)
  truth = point_worlds.walk(4, rng)
  points = point_worlds.corridor(rng, 1, per_metre=10)
  looks = point_worlds.descriptors(rng, len(points))
  solution = solve(point_worlds.observe(rng, truth, points, looks))
  assert np.all(solution.component == -1)
  assert {v.reason for v in solution.verifications.values()} == {
    rejections.Reason.NO_POSE
  }


def test_what_is_known_not_to_be_scene_shows_no_points():
  rng = np.random.default_rng(6)
  points = point_worlds.corridor(rng, 12)
  looks = point_worlds.descriptors(rng, len(points))
  world = point_worlds.observe(rng, point_worlds.walk(3, rng), points, looks)
  assert np.any(solve(world).observations.ray[:, 1] > 0.5)
  solution = solve(world, mask=masks.below(25.0))
  assert np.max(solution.observations.ray[:, 1]) <= 0.5
  assert solution.mask.share > 0.2
  check(solution, world.frame2world)


def test_one_frame_gives_one_frame():
  rng = np.random.default_rng(6)
  points = point_worlds.corridor(rng, 10)
  looks = point_worlds.descriptors(rng, len(points))
  world = point_worlds.observe(rng, point_worlds.walk(1, rng), points, looks)
  solution = solve(world)
  assert solution.component.tolist() == [-1] and not solution.verifications


def random_pair(seed, count=120):
  rng = np.random.default_rng(seed)
  rotation = Rotation.from_rotvec(rng.normal(size=3) * 0.3).as_matrix()
  direction = rng.normal(size=3)
  pose = camera.make_pose(rotation, direction / np.linalg.norm(direction))
  target = rng.normal(size=(count, 3)) * 4
  source = camera.transform(pose, target)
  return pose, source, target, rng


def unit(vectors):
  return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def with_wrong_matches(target, rng):
  """Rays to points, a third of which is to others; and which."""
  wrong = rng.uniform(size=len(target)) < 0.33
  rays = unit(target)
  rays[wrong] = unit(rng.normal(size=(wrong.sum(), 3)))
  return rays, wrong


def fit_rays(source, rays, *, min_inliers):
  return relative_pose.fit_pair(
    unit(source),
    rays,
    max_error_rad=1e-3,
    min_inliers=min_inliers,
    min_parallax_rad=1e-3,
    seed=0,
  )


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10_000))
def test_fit_and_depths_are_exact_without_noise(seed):
  pose, source, target, rng = random_pair(seed)
  exact = fit_rays(source, target, min_inliers=30)
  np.testing.assert_allclose(exact.target2source, pose, atol=1e-6)
  rays, wrong = with_wrong_matches(target, rng)
  fit = fit_rays(source, rays, min_inliers=30)
  # A wrong match that happens to obey the geometry to within the limit, at any
  # stage of the fit, pulls by about the limit.
  np.testing.assert_allclose(fit.target2source, pose, atol=2e-3)
  assert np.mean(fit.inliers[~wrong]) > 0.98
  assert np.mean(fit.inliers[wrong]) < 0.05
  depths = relative_pose.pair_depths(pose, unit(source), unit(target))
  np.testing.assert_allclose(
    depths,
    [np.linalg.norm(source, axis=1), np.linalg.norm(target, axis=1)],
    rtol=1e-5,
  )


def test_a_fit_of_many_matches_judges_each_of_them():
  pose, source, target, rng = random_pair(4, count=2000)
  rays, wrong = with_wrong_matches(target, rng)
  fit = fit_rays(source, rays, min_inliers=1000)
  np.testing.assert_allclose(fit.target2source, pose, atol=1e-3)
  assert len(fit.inliers) == len(fit.depths[0]) == len(source)
  assert np.mean(fit.inliers[~wrong]) > 0.98
  assert np.mean(fit.inliers[wrong]) < 0.05


def test_a_mere_rotation_has_no_direction():
  _, _, target, rng = random_pair(1)
  rotation = Rotation.from_rotvec([0.1, 0.4, 0.0]).as_matrix()
  source = point_worlds.shaken(rng, unit(target) @ rotation.T, 5e-4)
  fit = relative_pose.fit_pair(
    source,
    unit(target),
    max_error_rad=5e-3,
    min_inliers=30,
    min_parallax_rad=np.deg2rad(0.5),
    seed=0,
  )
  assert not fit.moves
  turned = fit.target2source[:, :3] @ rotation.T
  assert camera.rotation_angle_deg(turned) < 0.05


def test_a_proposed_pose_wins_where_more_matches_obey_it():
  pose, source, target, rng = random_pair(5, count=300)
  source, target = unit(source), unit(target)
  # 87 % are wrong: too many for a few minimal samples.
  target[:260] = unit(rng.normal(size=(260, 3)))

  def fit(proposed, first=0):
    return relative_pose.fit_pair(
      source[first:],
      target[first:],
      max_error_rad=1e-3,
      min_inliers=30,
      min_parallax_rad=1e-3,
      seed=0,
      proposed=proposed,
    )

  def is_true(estimate):
    return estimate is not None and np.allclose(
      estimate.target2source, pose, atol=1e-3
    )

  assert not is_true(fit(None)) and is_true(fit(pose))
  # Where the matches suffice, a wrong word does no harm.
  assert is_true(fit(camera.inverse(pose), first=240))


def test_too_few_matches_make_no_fit():
  _, source, target, _ = random_pair(2, count=12)
  fit = relative_pose.fit_pair(
    unit(source),
    unit(target),
    max_error_rad=1e-3,
    min_inliers=30,
    min_parallax_rad=1e-3,
    seed=0,
  )
  assert fit is None


def test_epipolar_error_is_the_smallest_turn_that_mends_a_match():
  pose, source, target, rng = random_pair(3, count=6)
  source_rays, target_rays = (
    point_worlds.shaken(rng, unit(source), 4e-3),
    unit(target),
  )
  errors = relative_pose.epipolar_error_rad(pose, source_rays, target_rays)
  essential = camera.essential_matrix(pose)
  # Oracle: both rays may turn; to first order the cheapest turn shares the
  # error as a pseudo-inverse does. Minimised here by many small trials.
  for index in range(len(source_rays)):
    turns = rng.normal(size=(200_000, 2, 3)) * errors[index] / 1.5
    tried = [
      unit(ray + turn)
      for ray, turn in zip(
        (source_rays[index], target_rays[index]), np.swapaxes(turns, 0, 1)
      )
    ]
    algebraic = np.einsum('ni,ij,nj->n', tried[0], essential, tried[1])
    turn = np.sqrt(
      np.sum((tried[0] - source_rays[index]) ** 2, axis=1)
      + np.sum((tried[1] - target_rays[index]) ** 2, axis=1)
    )
    start = abs(source_rays[index] @ essential @ target_rays[index])
    mended = np.abs(algebraic) < 0.03 * start
    assert turn[mended].min() == pytest.approx(errors[index], rel=0.25)


def bundle_problem(rng, noise_rad):
  truth = point_worlds.walk(5, rng)
  points = point_worlds.corridor(rng, 6, per_metre=15)
  frame, point = np.divmod(np.arange(5 * len(points)), len(points))
  local = np.concatenate(
    [camera.transform(camera.inverse(pose), points) for pose in truth]
  )
  observations = bundle_adjustment.Observations(
    frame=frame,
    point=point,
    ray=point_worlds.shaken(rng, unit(local), noise_rad),
    noise_rad=np.full(len(frame), 1e-3),
  )
  return truth, points, observations


def test_bundle_adjustment_recovers_exact_geometry():
  rng = np.random.default_rng(8)
  truth, points, observations = bundle_problem(rng, 0.0)
  # The first frame and the scale are free to choose: keep the true ones.
  start = truth.copy()
  start[1:, :, 3] += 0.05 * rng.normal(size=(4, 3))
  start[1:, :, :3] = (
    start[1:, :, :3]
    @ Rotation.from_rotvec(0.03 * rng.normal(size=(4, 3))).as_matrix()
  )
  first = bundle_adjustment.triangulate(start, observations, len(points))
  poses, moved = bundle_adjustment.adjust(
    start, first, observations, max_iterations=50, tolerance=0.0
  )
  np.testing.assert_array_equal(poses[0], truth[0])
  errors = bundle_adjustment.errors_rad(poses, moved, observations)
  assert np.max(errors) < 1e-6
  scale = np.linalg.norm(poses[4, :, 3] - poses[0, :, 3]) / np.linalg.norm(
    truth[4, :, 3] - truth[0, :, 3]
  )
  np.testing.assert_allclose(poses[:, :, :3], truth[:, :, :3], atol=1e-5)
  np.testing.assert_allclose(
    poses[:, :, 3] - poses[0, :, 3],
    scale * (truth[:, :, 3] - truth[0, :, 3]),
    atol=1e-4,
  )


def test_the_normal_equations_are_those_of_numerical_derivatives():
  rng = np.random.default_rng(10)
  poses, points, observations = bundle_problem(rng, 1e-2)
  # Not every point in every frame.
  few = np.zeros(len(observations.frame), bool)
  few[rng.permutation(len(few))[:40]] = True
  ids, point = np.unique(observations.point[few], return_inverse=True)
  observations = dataclasses.replace(
    observations.subset(few), point=point, noise_rad=np.full(40, 0.02)
  )
  points = points[ids]
  size = 6 * len(poses), 3 * len(points)

  def residuals(step):
    moved, shifted = bundle_adjustment._step(
      poses,
      points,
      step[: size[0]].reshape(-1, 6),
      step[size[0] :].reshape(-1, 3),
    )
    frame2scene = moved[observations.frame]
    local = np.einsum(
      'nji,nj->ni',
      frame2scene[:, :, :3],
      shifted[observations.point] - frame2scene[:, :, 3],
    )
    # In the axes of the frame; the equations do not depend on the axes.
    return unit(local) - observations.ray

  here = residuals(np.zeros(sum(size)))
  slopes = np.stack(
    [
      (residuals(step) - residuals(-step)).ravel() / 2e-6
      for step in 1e-6 * np.eye(sum(size))
    ],
    axis=1,
  )
  weight = 1 / ((2 * 0.02) ** 2 + np.sum(here**2, axis=1))
  normal = slopes.T @ (np.repeat(weight, 3)[:, None] * slopes)
  gradient = slopes.T @ (weight[:, None] * here).ravel()
  system = bundle_adjustment._linearise(poses, points, observations, 2.0)
  coupling = system.coupling.toarray()
  for index, block in enumerate(system.poses):
    inside = np.s_[6 * index : 6 * index + 6]
    np.testing.assert_allclose(block, normal[inside, inside], atol=1e-3)
  for index, block in enumerate(system.points):
    inside = np.s_[size[0] + 3 * index : size[0] + 3 * index + 3]
    np.testing.assert_allclose(block, normal[inside, inside], atol=1e-3)
  np.testing.assert_allclose(coupling, normal[: size[0], size[0] :], atol=1e-3)
  assert np.abs(coupling).max() > 10
  np.testing.assert_allclose(
    np.concatenate(
      [system.pose_gradient.ravel(), system.point_gradient.ravel()]
    ),
    gradient,
    atol=1e-4,
  )


def test_bundle_adjustment_shrugs_off_outliers():
  rng = np.random.default_rng(9)
  truth, points, observations = bundle_problem(rng, 1e-3)
  ray = observations.ray.copy()
  wrong = rng.uniform(size=len(ray)) < 0.1
  ray[wrong] = unit(ray[wrong] + 0.2 * rng.normal(size=(wrong.sum(), 3)))
  spoilt = dataclasses.replace(observations, ray=ray)
  poses, _ = bundle_adjustment.adjust(truth, points, spoilt, max_iterations=20)
  apart = camera.rotation_angle_deg(
    poses[:, :, :3] @ np.swapaxes(truth[:, :, :3], 1, 2)
  )
  assert np.max(apart) < 0.06


def test_triangulation_is_exact_and_knows_what_it_cannot_do():
  rng = np.random.default_rng(10)
  truth, points, observations = bundle_problem(rng, 0.0)
  triangulated = bundle_adjustment.triangulate(
    truth, observations, len(points) + 1
  )
  np.testing.assert_allclose(triangulated[:-1], points, atol=1e-6)
  assert np.all(np.isnan(triangulated[-1]))
  alone = observations.subset(observations.frame == 0)
  assert np.all(
    np.isnan(bundle_adjustment.triangulate(truth, alone, len(points)))
  )


def test_tracks_join_matches_and_refuse_contradictions():
  matches = {
    (0, 1): np.array([[0, 0], [1, 1]]),
    (1, 2): np.array([[0, 0], [1, 1]]),
    # Would join both points, and give frame 2 two features of one.
    (0, 2): np.array([[0, 1], [1, 1]]),
  }
  joined = tracks.Tracks(matches, [3, 3, 3])
  assert joined.num_points == 2 and joined.num_refused == 1
  members = [
    set(
      zip(
        joined.frame[joined.point == point].tolist(),
        joined.feature[joined.point == point].tolist(),
      )
    )
    for point in range(2)
  ]
  assert {(0, 0), (1, 0), (2, 0)} in members
  assert {(0, 1), (1, 1), (2, 1)} in members
  assert joined.point_ids()[1][2] == -1


def test_window_pairs_are_all_pairs_of_the_window():
  pairs = tracks.window_pairs(6, 2)
  assert len(pairs) == len(set(pairs)) == 5 + 4
  assert all(0 < target - source <= 2 for source, target in pairs)
  assert tracks.window_pairs(1, 5) == []


def test_latitude_mask_covers_the_cap_below():
  mask = masks.below(60.0)
  cap = (1 - np.sin(np.deg2rad(60))) / 2
  assert mask.share == pytest.approx(cap, abs=0.005)
  assert mask.holds(np.array([[0.0, 1.0, 0.0], [0.0, -1.0, 0.0]])).tolist() == [
    True,
    False,
  ]
