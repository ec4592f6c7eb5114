"""Views chosen from scene points: overlap, bounds, exact poses."""

from hypothesis import given, settings
from hypothesis import strategies as st
import numpy as np
import pytest

from odin_jax.shared import camera
from preprocessing import alignment


def room_points(rng, count=4000):
  """Points on the walls of a box about the origin."""
  directions = rng.normal(size=(count, 3))
  half = np.array([4.0, 1.5, 5.0])
  return directions * (half / np.abs(directions)).min(1, keepdims=True)


def frames(rng, step=0.6):
  poses = []
  for _ in range(2):
    turn = camera.view2frame_rotation(
      rng.uniform(-180, 180), rng.uniform(-3, 3)
    )
    poses.append(camera.make_pose(turn, rng.uniform(-step, step, 3)))
  return poses


def choose(poses, points, seed=0, **rules):
  return alignment.choose_view_pairs(
    *poses,
    points,
    np.ones(len(points)),
    rules=alignment.ViewRules(**rules),
    rng=np.random.default_rng(seed),
  )


def shown(points, frame2scene, angles, fov_deg):
  """Which scene points a view shows, by projecting them to its pixels."""
  local = camera.transform(camera.inverse(frame2scene), points)
  view = local @ camera.view2frame_rotation(*angles)
  pixels, depth = camera.project(view, camera.intrinsics(fov_deg, 100))
  return (depth > 0) & np.all((pixels >= 0) & (pixels <= 100), axis=1)


@settings(max_examples=30, deadline=None)
@given(
  values=st.lists(
    st.tuples(st.floats(-1e3, 1e3), st.integers(1, 6)), min_size=1, max_size=40
  )
)
def test_weighted_median_is_that_of_repeated_values(values):
  number, weight = (np.array(column) for column in zip(*values))
  repeated = np.sort(np.repeat(number, weight))
  found = alignment.weighted_median(
    number.astype(np.float64), weight.astype(np.float64)
  )
  # The lower of the two middle values where the count is even.
  assert found == repeated[(len(repeated) - 1) // 2]


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**31), fov=st.floats(50, 110))
def test_view_pairs_are_what_they_say(seed, fov):
  rng = np.random.default_rng(seed)
  poses, points = frames(rng), room_points(rng)
  kept, reasons = choose(poses, points, seed, num_views=5, fov_deg=fov)
  assert len(kept) + len(reasons) == 5
  for pair in kept:
    in_source = shown(points, poses[0], pair.source, fov)
    in_target = shown(points, poses[1], pair.target, fov)
    both = (in_source & in_target).sum()
    assert pair.overlap == pytest.approx(both / in_source.sum(), abs=0.01)
    assert pair.coverage == pytest.approx(both / in_target.sum(), abs=0.01)
    assert pair.overlap >= 0.2 and pair.coverage >= 0.5
    away = np.linalg.norm(points[in_source] - poses[0][:, 3], axis=1)
    assert pair.median_depth == pytest.approx(np.median(away), rel=0.02)
    assert abs(pair.source.pitch_deg) <= 10
    implied = camera.relative_view_pose(*poses, pair.source, pair.target)
    assert np.array_equal(implied, pair.target2source)
    for angle in (*pair.source, *pair.target):
      assert angle == np.float32(angle)


def test_source_views_look_around_the_circle():
  rng = np.random.default_rng(0)
  kept, reasons = choose(frames(rng, 0.1), room_points(rng), num_views=6)
  assert not reasons
  yaws = np.sort([pair.source.yaw_deg % 360 for pair in kept])
  assert np.allclose(np.diff(yaws), 60, atol=1e-3)


def test_without_translation_and_jitter_both_views_look_alike():
  rng = np.random.default_rng(1)
  poses = frames(rng, 0.0)
  kept, _ = choose(
    poses, room_points(rng), jitter_yaw_deg=0.0, jitter_pitch_deg=0.0
  )
  assert len(kept) == 4
  for pair in kept:
    axis = pair.target2source[:, 2]
    assert camera.angle_between_deg(axis, np.array([0, 0, 1.0])) < 6
    assert pair.overlap > 0.85


def test_jitter_is_bounded_and_used():
  rng = np.random.default_rng(2)
  poses, points = frames(rng, 0.0), room_points(rng)
  still = dict(jitter_yaw_deg=0.0, jitter_pitch_deg=0.0, min_overlap=0.1)
  turned = []
  for seed in range(20):
    base, _ = choose(poses, points, seed, **still)
    other, _ = choose(poses, points, seed, min_overlap=0.1)
    for a, b in zip(base, other, strict=True):
      assert a.source == b.source
      yaw = (b.target.yaw_deg - a.target.yaw_deg + 180) % 360 - 180
      assert abs(yaw) < 20 + 1e-3
      assert abs(b.target.pitch_deg - a.target.pitch_deg) < 6 + 1e-3
      turned.append(abs(yaw))
  assert np.mean(turned) == pytest.approx(10, abs=1.5)


def corridor_points(rng, count=6000):
  """Points on the walls, floor and ceiling of a long corridor along z."""
  directions = rng.normal(size=(count, 3))
  half = np.array([1.4, 1.5, 40.0])
  return directions * (half / np.abs(directions)).min(1, keepdims=True)


def test_frames_far_apart_still_have_views_and_none_from_behind():
  rng = np.random.default_rng(6)
  points = np.concatenate(
    [corridor_points(rng), corridor_points(rng) + (0, 0, 5.0)]
  )
  behind, ahead = (
    camera.make_pose(np.eye(3), np.array([0, 0, z])) for z in (0.0, 5.0)
  )
  for poses in ((behind, ahead), (ahead, behind)):
    kept, _ = choose(poses, points, num_views=8)
    few, _ = choose(poses, points, num_views=8, num_tries=1)
    assert len(kept) > len(few)
    for pair in kept:
      turn = camera.rotation_angle_deg(pair.target2source[:, :3])
      # The largest turn, the jitter, and the pitch of the two views.
      assert turn < 60 + np.hypot(20, 6) + 10


def test_views_that_share_more_are_preferred():
  rng = np.random.default_rng(7)
  points = corridor_points(rng)
  poses = [camera.make_pose(np.eye(3), np.array([0, 0, z])) for z in (0.0, 2.0)]

  def shared(**rules):
    kept, _ = choose(poses, points, num_views=20, **rules)
    return np.mean([min(p.overlap, p.coverage) for p in kept])

  assert shared() > shared(preferred_overlap=0.0) + 0.03
  assert shared(num_tries=20) > 0.5


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**31), limit=st.floats(1, 179))
def test_a_turn_ends_at_the_goal_or_at_its_limit(seed, limit):
  axis, goal = np.random.default_rng(seed).normal(size=(2, 3))
  axis, goal = axis / np.linalg.norm(axis), goal / np.linalg.norm(goal)
  found = alignment._turn_towards(axis, goal, limit)
  apart = camera.angle_between_deg(axis, goal)
  turned = camera.angle_between_deg(axis, found)
  assert turned == pytest.approx(min(apart, limit), abs=1e-6)
  rest = camera.angle_between_deg(found, goal)
  assert rest == pytest.approx(max(apart - limit, 0), abs=1e-5)


def test_same_seed_same_views_and_another_seed_others():
  rng = np.random.default_rng(3)
  poses, points = frames(rng), room_points(rng)
  first, again = choose(poses, points, 5), choose(poses, points, 5)
  assert [p.source for p in first[0]] == [p.source for p in again[0]]
  assert [p.target for p in first[0]] == [p.target for p in again[0]]
  assert first[0][0].source != choose(poses, points, 6)[0][0].source


def test_outliers_do_not_turn_the_view_away():
  rng = np.random.default_rng(4)
  poses, points = frames(rng, 0.3), room_points(rng)
  far = points.copy()
  wrong = rng.uniform(size=len(points)) < 0.2
  far[wrong] *= rng.uniform(1, 50, (wrong.sum(), 1))
  clean, _ = choose(poses, points)
  noisy, _ = choose(poses, far)
  for a, b in zip(clean, noisy, strict=True):
    assert abs((a.target.yaw_deg - b.target.yaw_deg + 180) % 360 - 180) < 5


def test_refused_views_have_a_reason():
  rng = np.random.default_rng(5)
  poses, points = frames(rng), room_points(rng)
  kept, reasons = choose(poses, points[:20])
  assert not kept and set(reasons) == {'too few points in the source view'}
  far = [poses[0], poses[1] + np.array([[0, 0, 0, 3.9], [0] * 4, [0] * 4])]
  kept, reasons = choose(far, points, num_views=12, num_tries=1)
  assert 'views overlap too little' in reasons
  assert not choose(poses, np.zeros((0, 3)))[0]
