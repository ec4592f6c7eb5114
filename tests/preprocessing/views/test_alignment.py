"""Views chosen from scene points: overlap, bounds, exact poses, descent."""

import dataclasses

from hypothesis import given, settings
from hypothesis import strategies as st
import numpy as np
import pytest

from odin_jax.shared import camera
from preprocessing.reading import projections
from preprocessing.solving import masks
from preprocessing.views import alignment, visibility
from preprocessing.writing import rejections
from tests.benchmarks import alignment as benchmark
from tests.helpers import default_rules


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
    rules=default_rules.view_rules(**rules),
    rng=np.random.default_rng(seed),
  )


def shown(points, frame2scene, angles, fov_deg):
  """Which scene points a view shows, by projecting them to its pixels."""
  local = camera.transform(camera.inverse(frame2scene), points)
  view = local @ camera.view2frame_rotation(*angles)
  pixels, depth = camera.project(view, camera.intrinsics(fov_deg, 100))
  return (depth > 0) & np.all((pixels >= 0) & (pixels <= 100), axis=1)


@settings(max_examples=12, deadline=None)
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
  end = alignment._turn_towards(axis, goal, limit)
  apart = camera.angle_between_deg(axis, goal)
  turned = camera.angle_between_deg(axis, end)
  assert turned == pytest.approx(min(apart, limit), abs=1e-6)
  rest = camera.angle_between_deg(end, goal)
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
  assert not kept and set(reasons) == {rejections.Reason.FEW_POINTS}
  far = [poses[0], poses[1] + np.array([[0, 0, 0, 3.9], [0] * 4, [0] * 4])]
  once = dict(num_views=12, num_tries=1)
  _, reasons = choose(far, points, goal_overlap=0.0, **once)
  assert rejections.Reason.LITTLE_OVERLAP in reasons
  # The descent finds what the first try did not.
  assert len(choose(far, points, **once)[1]) < len(reasons)
  assert not choose(poses, np.zeros((0, 3)))[0]


def proposals(rng, count, step=0.8, apart_deg=60.0):
  """Pairs of views, their axes some way from the same direction."""
  starts = []
  for _ in range(count):
    poses, points = frames(rng, step), room_points(rng, 1500)
    rotation = poses[0][:, :3].T @ poses[1][:, :3]
    yaw, pitch = rng.uniform(-180, 180), rng.uniform(-8, 8)
    axis = rotation.T @ camera.view2frame_rotation(yaw, pitch)[:, 2]
    target_yaw, target_pitch = camera.yaw_pitch_deg(axis)
    starts.append(
      alignment.ViewProposal(
        points_source=camera.transform(camera.inverse(poses[0]), points),
        points_target=camera.transform(camera.inverse(poses[1]), points),
        weights=rng.uniform(0.5, 1.5, len(points)),
        target2source=rotation,
        source=alignment.Angles(yaw, pitch),
        target=alignment.Angles(
          target_yaw + rng.choice([-1, 1]) * rng.uniform(0.4, 1) * apart_deg,
          target_pitch,
        ),
        fov_deg=90.0,
      )
    )
  return starts


def worst(views):
  return np.array([min(view.shares) for view in views])


RULES = default_rules.view_rules()


@pytest.fixture(scope='module')
def turned():
  """Proposals before and after the descent."""
  before = proposals(np.random.default_rng(11), 60)
  return before, alignment.align(before, RULES)


def test_descent_raises_what_views_share_and_never_lowers_it(turned):
  before, after = (worst(views) for views in turned)
  poor = before < 0.5
  assert poor.sum() > 20
  assert np.all(after >= before)
  assert np.median(after[poor]) > np.median(before[poor]) + 0.2
  assert np.mean(after > 0.6) > 0.7


def test_descent_stops_at_the_goal(turned):
  before, after = turned
  moved = worst(before) < 0.5
  # No copies: what the views share stays about the goal.
  assert np.median(worst(after)[moved]) < RULES.goal_overlap + 0.1
  for start, end in zip(before, after, strict=True):
    if min(start.shares) >= RULES.goal_overlap:
      assert end is start


def test_descent_keeps_the_limits(turned):
  steep, wide = 0, 0
  for start, end in zip(*turned, strict=True):
    assert abs(end.source.pitch_deg) <= RULES.max_pitch_deg + 1e-4
    limit = max(abs(start.target.pitch_deg), 16.0)
    assert abs(end.target.pitch_deg) <= limit + 1e-4
    assert end.turn_deg <= max(RULES.max_turn_deg, start.turn_deg) + 1e-3
    for angle in (*end.source, *end.target):
      assert end is start or angle == np.float32(angle)
    steep += abs(end.source.pitch_deg) > RULES.max_pitch_deg - 0.1
    wide += end.turn_deg > 30
  # The limits were met, and views of different directions remain.
  assert steep and wide


def test_turns_stay_below_their_limit():
  rng = np.random.default_rng(13)
  # Side by side with a wall near: what one sees lies beside the other.
  before = proposals(rng, 20, step=1.4, apart_deg=20.0)
  tight = dataclasses.replace(RULES, max_turn_deg=15.0, goal_overlap=0.95)
  free = dataclasses.replace(tight, max_turn_deg=120.0)

  def beyond(rules):
    after = alignment.align(before, rules)
    limits = np.array([max(15.0, view.turn_deg) for view in before])
    return np.array([view.turn_deg for view in after]) - limits

  assert np.max(beyond(tight)) <= 1e-3
  assert np.max(beyond(free)) > 5


def test_same_directions_are_found_without_translation():
  # Nothing but a turn: with a goal of 1 both views end up alike.
  before = proposals(np.random.default_rng(12), 10, step=0.0, apart_deg=40.0)
  after = alignment.align(
    before, dataclasses.replace(RULES, goal_overlap=0.999)
  )
  for start, end in zip(before, after, strict=True):
    assert start.turn_deg > 15 and end.turn_deg < 4


def test_descent_of_one_does_not_depend_on_the_others(turned):
  before, after = turned
  for index in (0, 7, 31):
    (alone,) = alignment.align([before[index]], RULES)
    assert (alone.source, alone.target) == (
      after[index].source,
      after[index].target,
    )
  backwards = alignment.align(before[::-1], RULES)[::-1]
  assert [view.target for view in backwards] == [view.target for view in after]


def test_points_without_weight_count_for_nothing(turned):
  start, end = turned[0][3], turned[1][3]
  rng = np.random.default_rng(14)
  order = rng.permutation(len(start.weights) + 900)
  junk = rng.normal(size=(900, 3))
  padded = dataclasses.replace(
    start,
    points_source=np.concatenate([junk, start.points_source]),
    points_target=np.concatenate([-junk, start.points_target]),
    weights=np.concatenate([np.zeros(900), start.weights]),
  )
  (aligned,) = alignment.align([padded], RULES)
  assert (aligned.source, aligned.target) == (end.source, end.target)
  shuffled = dataclasses.replace(
    padded,
    points_source=padded.points_source[order],
    points_target=padded.points_target[order],
    weights=padded.weights[order],
  )
  # Another sample of the same points.
  (aligned,) = alignment.align([shuffled], RULES)
  assert min(aligned.shares) == pytest.approx(min(end.shares), abs=0.1)


def test_many_frame_pairs_at_once_are_as_one_by_one():
  rng = np.random.default_rng(15)
  places = [(frames(rng), room_points(rng, 800)) for _ in range(4)]
  asked = [
    alignment.PosedFrames(
      source_frame2scene=poses[0],
      target_frame2scene=poses[1],
      points=points,
      weights=np.ones(len(points)),
      num_views=RULES.num_views,
      rng=np.random.default_rng(index),
    )
    for index, (poses, points) in enumerate(places)
  ]
  together = alignment.choose_all(asked, rules=RULES)
  for index, (poses, points) in enumerate(places):
    kept, reasons = choose(poses, points, seed=index)
    assert reasons == together[index][1]
    for alone, other in zip(kept, together[index][0], strict=True):
      assert (alone.source, alone.target) == (other.source, other.target)
      assert (alone.overlap, alone.coverage) == (other.overlap, other.coverage)


def test_views_beyond_what_the_camera_saw_are_refused():
  rng = np.random.default_rng(16)
  points = room_points(rng)
  poses = [camera.make_pose(np.eye(3), rng.uniform(-0.6, 0.6, 3)) for _ in '12']

  def pairs(refuse, **rules):
    return alignment.choose_view_pairs(
      *poses,
      points,
      np.ones(len(points)),
      rules=default_rules.view_rules(fov_deg=60.0, num_tries=20, **rules),
      rng=np.random.default_rng(0),
      refuse=refuse,
    )

  def ahead(angles):
    return abs(angles.yaw_deg) <= 60

  def refuse(angles):
    return None if ahead(angles) else rejections.Reason.NOT_SEEN

  kept, _ = pairs(refuse, num_views=12)
  assert len(kept) > 6
  assert all(ahead(pair.source) and ahead(pair.target) for pair in kept)
  assert not all(
    ahead(pair.source) and ahead(pair.target)
    for pair in pairs(None, num_views=12)[0]
  )
  kept, reasons = pairs(lambda _: rejections.Reason.NOT_SEEN)
  assert not kept
  assert set(reasons) == {rejections.Reason.NOT_SEEN}


def around(pairs):
  return [angles for pair in pairs for angles in (pair.source, pair.target)]


def test_views_are_turned_away_from_what_is_masked():
  rng = np.random.default_rng(18)
  points = room_points(rng)
  poses = [camera.make_pose(np.eye(3), rng.uniform(-0.6, 0.6, 3)) for _ in '12']
  mask = masks.Mask(cells=np.zeros((180, 360), bool))
  # Behind the camera: a sixth of the circle.
  mask.cells[60:, :30] = mask.cells[60:, -30:] = True

  def choose_with(mask, **rules):
    rules = default_rules.view_rules(num_views=12, **rules)
    sight = visibility.Sight(projections.NAMES['equirectangular'], mask, rules)
    return sight, alignment.choose_view_pairs(
      *poses,
      points,
      np.ones(len(points)),
      rules=rules,
      rng=np.random.default_rng(0),
      refuse=sight.refuse,
    )

  sight, (free, reasons) = choose_with(mask, max_masked_share=1.0)
  assert len(free) == 12 and not reasons
  shares = [1 - sight.unmasked_share(angles) for angles in around(free)]
  assert max(shares) > 0.3
  for limit in (0.2, 0.05):
    sight, (kept, reasons) = choose_with(mask, max_masked_share=limit)
    # Others take the place of all that are refused.
    assert len(kept) == 12 and not reasons
    shares = [1 - sight.unmasked_share(angles) for angles in around(kept)]
    assert max(shares) <= limit
  # Where nothing is over the limit nothing changes.
  nothing = masks.Mask(cells=np.zeros((180, 360), bool))
  _, (without, _) = choose_with(nothing, max_masked_share=0.0)
  assert around(without) == around(free)
  everything = masks.Mask(cells=np.ones((180, 360), bool))
  _, (kept, reasons) = choose_with(everything, max_masked_share=0.9)
  assert not kept and set(reasons) == {rejections.Reason.MASKED}


def test_a_share_that_is_none_is_refused():
  with pytest.raises(ValueError, match='max_masked_share=1.5'):
    default_rules.view_rules(max_masked_share=1.5)


def test_threads_are_as_before():
  import torch

  before = torch.get_num_threads()
  try:
    torch.set_num_threads(2)
    alignment.align(proposals(np.random.default_rng(17), 1), RULES)
    assert torch.get_num_threads() == 2
  finally:
    torch.set_num_threads(before)


def test_poses_of_views_matched_alone_are_better_after_the_descent():
  walks = [benchmark.walk(0, 4)]
  figures = benchmark.pose_errors(walks, RULES, pointmaps=True, per_pair=3)
  before, after = figures['before'], figures['after']
  assert before['view_pairs'] == after['view_pairs'] >= 15
  assert after['share'][2] > before['share'][2] + 0.15
  assert after['good'] > before['good'] + 0.15
  assert after['rotation_median_deg'] < before['rotation_median_deg']
  assert after['direction_median_deg'] < before['direction_median_deg']
