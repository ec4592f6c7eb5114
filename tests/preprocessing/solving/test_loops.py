"""Loop closure: found where it is true, never where things repeat."""

import dataclasses

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from odin_jax.shared import camera
from preprocessing.matchers import sphere
from preprocessing.procedural import footage
from preprocessing.solving import (
  bundle_adjustment,
  initialization,
  loop_closing,
  loop_detection,
  pair_graph,
  pose_graph,
  reconstruction,
  retrieval,
  solver,
  verification,
)
from preprocessing.writing import rejections
from tests.helpers import default_rules, point_worlds

_PIXEL_RAD = 2 * np.pi / 768
_RULES = default_rules.graph_rules()


def solve(world, max_gap=3, **changes):
  solution = solver.Solver(
    world.features,
    world.tracked_rays,
    sphere.make(sphere.OPTIONS),
    rules=default_rules.pose_rules(**changes),
    max_gap=max_gap,
    pixel_rad=_PIXEL_RAD,
    graph_rules=_RULES,
  ).solve()
  figures = solution.figures
  assert figures['matcher_calls'] <= figures['matcher_calls_bound']
  assert figures['loops_tried'] == figures['loops_closed'] + sum(
    rejection.stage is rejections.Stage.LOOPS for rejection in solution.rejected
  )
  return solution


def relative(frame2scene, pair):
  return camera.relative(frame2scene[pair[0]], frame2scene[pair[1]])


def worst_direction_deg(solution, truth):
  """Of all kept pairs; 180 for one that is turned round."""
  return max(
    camera.angle_between_deg(
      relative(solution.frame2scene, pair)[:, 3], relative(truth, pair)[:, 3]
    )
    for pair, check in solution.verifications.items()
    if check.is_kept
  )


def there_and_back(rng, steps):
  """A walk that turns round and comes back beside its own path."""
  out = point_worlds.walk(steps, rng)
  back = point_worlds.walk(steps, rng)[::-1].copy()
  back[:, :, 3] += [0.25, 0.05, -0.4]
  back[:, :, :3] = camera.rotation_y(np.pi) @ back[:, :, :3]
  turns = np.linspace(0, np.pi, 5)[1:-1]
  turning = [
    camera.make_pose(
      camera.rotation_y(turn) @ out[-1, :, :3],
      out[-1, :, 3] + index * np.array([0.06, 0.0, 0.1]),
    )
    for index, turn in enumerate(turns, 1)
  ]
  return np.concatenate([out, turning, back])


def unique_world(rng, truth, per_metre=60):
  points = point_worlds.corridor(rng, truth[:, 2, 3].max() + 8, per_metre)
  looks = point_worlds.descriptors(rng, len(points))
  return point_worlds.observe(rng, truth, points, looks), points


def repeated_world(rng, truth):
  length = truth[:, 2, 3].max() + 14
  points, looks = point_worlds.repeated_corridor(rng, length, 2.0)
  return point_worlds.observe(rng, truth, points, looks), points


def true_scene(world, points, frame2scene=None):
  """A scene that is solved without an error."""
  frame2scene = world.frame2world if frame2scene is None else frame2scene
  frame = np.repeat(
    np.arange(len(frame2scene)), [len(ids) for ids in world.point]
  )
  point_ids = np.concatenate(world.point)
  rays = np.concatenate(
    [frame_features.rays for frame_features in world.features]
  )
  shown = point_ids >= 0
  return reconstruction.Reconstruction(
    component=np.zeros(len(frame2scene), np.int64),
    frame2scene=frame2scene,
    points=points,
    observations=bundle_adjustment.Observations(
      frame=frame[shown],
      point=point_ids[shown],
      ray=rays[shown],
      noise_rad=np.full(shown.sum(), point_worlds.NOISE_RAD),
    ),
    point_ids=world.point,
  )


def finder(world, scene, rules=_RULES, max_gap=3):
  return loop_detection.Finder(
    world.features,
    scene,
    sphere.make(sphere.OPTIONS).match,
    verification.Verifier(default_rules.pose_rules(), _PIXEL_RAD),
    rules,
    max_gap,
  )


def test_a_returning_path_loses_its_drift(monkeypatch):
  """60 frames, 1.1 laps, a turn of 0.8 % too much and 5 % of scale per lap."""
  world = point_worlds.ring(
    np.random.default_rng(0), 60, per_metre=20, turn_share=0.008, growth=0.05
  )
  before = []

  def close(scene, *args):
    before.append(scene.frame2scene)
    return original(scene, *args)

  original = loop_closing.close
  monkeypatch.setattr(loop_closing, 'close', close)
  solution = solve(world)
  assert np.all(solution.component == 0)
  rms_before, end_before = point_worlds.drift(before[0], world.frame2world)
  rms, end = point_worlds.drift(solution.frame2scene, world.frame2world)
  assert rms_before > 2e-3 and end_before > 7e-3
  assert rms < rms_before / 4
  assert end < end_before / 8
  # The path overlaps itself by five frames.
  good = [
    closure.pair
    for closure in solution.closures
    if solution.verifications[closure.pair].is_kept
  ]
  assert len(good) >= 4
  for closure in solution.closures:
    assert closure.target - closure.source >= 48
    assert closure.log_scale == pytest.approx(-0.05, abs=0.01)


def test_identical_bays_give_no_closure_and_no_flip():
  rng = np.random.default_rng(2)
  truth = there_and_back(rng, 7)
  world, _ = repeated_world(rng, truth)
  solution = solve(world)
  assert np.all(solution.component == 0)
  assert solution.figures['loops_tried'] >= 4
  assert not solution.closures
  assert {rejection.reason for rejection in solution.rejected} == {
    rejections.Reason.AMBIGUOUS
  }
  assert worst_direction_deg(solution, truth) < 2


def test_the_same_walk_among_unique_things_is_closed():
  rng = np.random.default_rng(2)
  truth = there_and_back(rng, 8)
  world, points = unique_world(rng, truth)
  search = finder(world, true_scene(world, points)).find()
  assert len(search.closures) == search.tried >= 5
  for closure in search.closures:
    check_closure(closure, truth)


def check_closure(closure, truth):
  true = relative(truth, closure.pair)
  off = closure.target2source[:, :3].T @ true[:, :3]
  assert camera.rotation_angle_deg(off) < 0.2
  apart = np.linalg.norm(closure.target2source[:, 3] - true[:, 3])
  assert apart < 0.02
  assert abs(closure.log_scale) < 0.01


def test_no_pair_of_a_repeated_corridor_is_verified(monkeypatch):
  """All frame pairs are forced on it; alone, most would be fitted wrongly."""
  rng = np.random.default_rng(3)
  truth = point_worlds.walk(12, rng)
  world, points = repeated_world(rng, truth)
  search = finder(world, true_scene(world, points))
  pairs = [(a, b) for a in range(12) for b in range(a + 3, 12)]
  monkeypatch.setattr(search, '_loop_candidates', lambda: pairs)
  outcome = search.find()
  assert outcome.tried == len(pairs) and not outcome.closures
  verifier = verification.Verifier(default_rules.pose_rules(), _PIXEL_RAD)
  wrong = 0
  for a, b in pairs:
    in_source, in_target = (
      sphere.make(sphere.OPTIONS).match(world.features[a], world.features[b]).T
    )
    fit = verifier.fit(
      world.features[a].rays[in_source], world.features[b].rays[in_target]
    )
    way = relative(truth, (a, b))[:, 3]
    wrong += fit is not None and (
      not fit.moves
      or camera.angle_between_deg(fit.target2source[:, 3], way) > 30
    )
  assert wrong > len(pairs) / 4


def rendered(kind, count, width=384):
  """Features of pictures one second apart; tracked by the true depth."""
  rng = np.random.default_rng(0)
  height = width // 2
  world = footage.make_world(
    (kind,), 1, seed=0, seconds=float(count), px_per_rad=height / np.pi
  )
  truth = footage.truth(
    world, np.arange(count, dtype=float), width=width, height=height
  )
  pose = truth['frame2world']
  features, tracked_rays = [], []
  for frame in range(count):
    picture = footage.render_panorama(
      world, float(frame), width=width, height=height
    )
    features.append(sphere.make(sphere.OPTIONS).describe(picture))
    if frame + 1 < count:
      rays = features[-1].rays
      u, v = camera.direction_to_equirect(rays, width, height)
      depth = truth['depth'][frame][
        np.minimum(v.astype(int), height - 1), u.astype(int) % width
      ]
      there = camera.transform(
        camera.relative(pose[frame + 1], pose[frame]),
        rays * depth[:, None].astype(float),
      )
      there /= np.linalg.norm(there, axis=1, keepdims=True)
      tracked_rays.append(point_worlds.shaken(rng, there, 5e-3))
  return point_worlds.PointWorld(features, tracked_rays, pose, [])


def test_a_rendered_repeated_corridor_has_no_closure_and_no_flip(monkeypatch):
  """Again all frame pairs are forced on it."""
  world = rendered('repeated_corridor', 6)
  pairs = [(a, b) for a in range(6) for b in range(a + 2, 6)]
  monkeypatch.setattr(
    loop_detection.Finder, '_loop_candidates', lambda self: pairs
  )
  monkeypatch.setattr(loop_detection, 'max_tries', lambda *_: len(pairs))
  solution = solve(world)
  assert solution.figures['loops_tried'] == len(pairs)
  assert not solution.closures
  assert np.all(solution.component == 0)
  assert worst_direction_deg(solution, world.frame2world) < 1


def test_a_break_is_bridged_where_things_are_unique():
  rng = np.random.default_rng(5)
  truth = point_worlds.walk(8, rng)
  world, _ = unique_world(rng, truth)
  world.tracked_rays[3][:] = np.nan
  solution = solve(world)
  assert np.all(solution.component == 0)
  assert worst_direction_deg(solution, truth) < 1
  rms, end = point_worlds.drift(solution.frame2scene, truth)
  assert rms < 1e-3 and end < 2e-3
  assert solution.verifications[3, 4].is_kept
  again = solve(world)
  np.testing.assert_array_equal(solution.frame2scene, again.frame2scene)
  assert solution.long_pairs == again.long_pairs
  assert solution.verifications == again.verifications


def test_a_break_among_identical_bays_stays():
  rng = np.random.default_rng(5)
  truth = point_worlds.walk(8, rng)
  world, _ = repeated_world(rng, truth)
  world.tracked_rays[3][:] = np.nan
  solution = solve(world)
  assert solution.component.tolist() == [0] * 4 + [1] * 4
  assert not solution.closures and solution.figures['loops_tried'] >= 8


def test_a_cut_edge_is_reported_and_left_out_of_the_start(monkeypatch):
  rng = np.random.default_rng(6)
  world, _ = unique_world(rng, point_worlds.walk(4, rng))
  started = []

  def start(num_frames, fits, *args, **kwargs):
    started.extend(fits)
    return original(num_frames, fits, *args, **kwargs)

  original = initialization.initialize
  monkeypatch.setattr(initialization, 'initialize', start)
  monkeypatch.setattr(pair_graph, 'inconsistent', lambda *_: [(1, 3)])
  solution = solve(world)
  assert sorted(started) == [(0, 1), (0, 2), (0, 3), (1, 2), (2, 3)]
  assert solution.rejected == [
    rejections.Rejection(
      stage=rejections.Stage.GRAPH,
      reason=rejections.Reason.CYCLES,
      frames=(1, 3),
    )
  ]
  assert solution.figures['cut_edges'] == 1
  # Near the poses of the others it gets another chance.
  assert solution.verifications[1, 3].is_kept


def closures_of(truth, ends, shift=0.0, turn_deg=0.0):
  """True closures, all moved by the same if asked."""
  made = []
  for pair in ends:
    pose = relative(truth, pair)
    pose[:, :3] = pose[:, :3] @ camera.rotation_y(np.deg2rad(turn_deg))
    pose[:, 3] += truth[pair[0], :, :3].T @ [0, 0, shift]
    made.append(
      loop_detection.Closure(
        source=pair[0],
        target=pair[1],
        target2source=pose,
        log_scale=0.0,
        inliers=100,
      )
    )
  return made


def test_components_are_joined_in_the_unit_of_the_first():
  """Three parts; the second is linked to the third only."""
  rng = np.random.default_rng(12)
  truth = point_worlds.walk(15, rng)
  world, points = unique_world(rng, truth, per_metre=10)
  component = np.repeat([0, 1, 2], 5)
  log_scale = np.array([0.0, 0.4, -0.3])[component]
  parts = truth.copy()
  for index in (1, 2):
    frames = component == index
    shift = camera.make_pose(
      Rotation.from_rotvec(rng.normal(size=3)).as_matrix(), rng.normal(size=3)
    )
    for frame in np.flatnonzero(frames):
      moved = camera.compose(shift, truth[frame])
      parts[frame] = camera.rescale(moved, float(np.exp(log_scale[frame])))
  scene = dataclasses.replace(
    true_scene(world, points, parts), component=component
  )
  closures = [
    dataclasses.replace(
      closure,
      target2source=camera.rescale(
        closure.target2source, float(np.exp(log_scale[closure.source]))
      ),
      log_scale=float(log_scale[closure.source] - log_scale[closure.target]),
    )
    for closure in closures_of(truth, [(2, 12), (7, 13), (6, 11)])
  ]
  joined = loop_closing.close(scene, closures, _RULES)
  assert not joined.component.any()
  np.testing.assert_allclose(joined.frame2scene, truth, atol=1e-6)
  # Without the link of the second, it keeps its place and its number.
  joined = loop_closing.close(scene, closures[:1], _RULES)
  assert joined.component.tolist() == [0] * 5 + [1] * 5 + [0] * 5
  np.testing.assert_array_equal(joined.frame2scene[5:10], parts[5:10])


@pytest.fixture(scope='module')
def returned():
  rng = np.random.default_rng(7)
  truth = there_and_back(rng, 8)
  world, points = unique_world(rng, truth, per_metre=20)
  return truth, finder(world, true_scene(world, points))


def test_one_closure_alone_is_not_believed(returned):
  truth, search = returned
  alone = closures_of(truth, [(0, 18)])
  assert search.outvoted(alone) == {(0, 18): rejections.Reason.FEW_AGREE}
  # Two that share a frame are not independent.
  fan = closures_of(truth, [(0, 18), (0, 17)])
  assert len(search.outvoted(fan)) == 2
  assert not search.outvoted(closures_of(truth, [(0, 18), (1, 17)]))


def test_what_drift_does_not_explain_needs_more_votes(returned):
  truth, search = returned
  ends = [(0, 18), (1, 17), (2, 16), (3, 15)]
  wrong = closures_of(truth, ends[:3], shift=3.0)
  assert set(search.outvoted(wrong).values()) == {rejections.Reason.OTHER_POSE}
  assert not search.outvoted(closures_of(truth, ends, shift=3.0))


def test_the_majority_decides(returned):
  truth, search = returned
  right = closures_of(truth, [(0, 18), (1, 17), (2, 16), (3, 15)])
  for wrong in (
    closures_of(truth, [(1, 16)], shift=0.8),
    closures_of(truth, [(1, 16)], turn_deg=8.0),
  ):
    assert search.outvoted(wrong + right) == {
      (1, 16): rejections.Reason.OUTVOTED
    }


def test_a_frame_at_the_same_place_has_a_closure_too():
  rng = np.random.default_rng(8)
  truth = point_worlds.walk(12, rng)
  truth[11, :, 3] = truth[1, :, 3]
  truth[10, :, 3] = truth[2, :, 3]
  world, points = unique_world(rng, truth)
  search = finder(world, true_scene(world, points)).find()
  by_pair = {closure.pair: closure for closure in search.closures}
  assert {(1, 11), (2, 10)} <= set(by_pair)
  for pair in ((1, 11), (2, 10)):
    check_closure(by_pair[pair], truth)
    assert np.linalg.norm(by_pair[pair].target2source[:, 3]) < 0.02


def test_tries_are_bounded(returned):
  truth, search = returned
  tight = dataclasses.replace(_RULES, max_tries=4)
  rng = np.random.default_rng(7)
  world, points = unique_world(rng, there_and_back(rng, 8), per_metre=20)
  scene = true_scene(world, points)
  assert finder(world, scene, tight).find().tried == 4
  off = dataclasses.replace(_RULES, tries_per_frame=0)
  assert finder(world, scene, off).find() == loop_detection.Search(
    closures=[], tried=0, rejected=[]
  )
  assert loop_detection.max_tries(600, _RULES) == 400
  assert loop_detection.max_tries(24, _RULES) == 48


def test_of_too_many_loop_candidates_runs_are_tried():
  """Tries that lie apart could not agree, however many there are."""
  rng = np.random.default_rng(7)
  world, points = unique_world(rng, there_and_back(rng, 40), per_metre=20)
  few = dataclasses.replace(_RULES, max_tries=6)
  search = finder(world, true_scene(world, points), few).find()
  assert search.tried == 6 and len(search.closures) == 6


def test_location_is_exact_and_robust():
  rng = np.random.default_rng(9)
  points = rng.normal(size=(200, 3)) * 3
  for centre in (np.zeros(3), np.array([0.5, -0.2, 1.0])):
    away = points - centre
    rays = away / np.linalg.norm(away, axis=1, keepdims=True)
    np.testing.assert_allclose(
      loop_detection.locate(points, rays), centre, atol=1e-9
    )
    rays[:40] = point_worlds.shaken(rng, rays[:40], 0.5)
    place = loop_detection.locate(points, rays)
    assert np.linalg.norm(place - centre) < 0.02


def test_looks_are_alike_where_the_place_is_the_same():
  rng = np.random.default_rng(10)
  truth = there_and_back(rng, 8)
  world, _ = unique_world(rng, truth)
  alike = retrieval.similarities(world.features)
  np.testing.assert_allclose(np.diag(alike), 1, atol=1e-5)
  # Frame k comes back as frame 18 - k, and between lies another place.
  for frame in range(4):
    assert alike[frame, 18 - frame] > alike[frame, 9] + 0.02
  empty = world.features[0].subset(np.zeros(0, np.int64))
  assert np.all(retrieval.similarities([empty, empty]) == 0)
  mixed = retrieval.similarities([world.features[0], empty])
  np.testing.assert_allclose(mixed, [[1, 0], [0, 0]], atol=1e-5)


def spiral(count, turn, growth):
  """Similarities along a path that turns and grows by the same each step."""
  step = camera.make_pose(camera.rotation_y(turn), np.array([0.02, 0.0, 1.0]))
  pose, made = camera.identity_pose(), []
  for index in range(count):
    made.append(pose)
    pose = camera.compose(
      pose, camera.rescale(step, float(np.exp(growth * index)))
    )
  return np.stack(made), growth * np.arange(count)


def step_constraints(pose, scale, sigma=0.05):
  return [
    pose_graph.Constraint(
      source=index,
      target=index + 1,
      target2source=camera.rescale(
        relative(pose, (index, index + 1)), float(np.exp(-scale[index]))
      ),
      log_scale=float(scale[index + 1] - scale[index]),
      turn_rad=0.01,
      shift=sigma,
      stretch=0.01,
    )
    for index in range(len(pose) - 1)
  ]


def test_relaxation_takes_drift_out_of_a_closed_path():
  count = 49
  truth, _ = spiral(count, 2 * np.pi / 48, 0.0)
  # A degree and a half a percent per step too much.
  drifted, _ = spiral(count, 2 * np.pi / 48 + np.deg2rad(1.0), 0.005)
  # Each step is measured in its frame's own unit.
  steps = step_constraints(
    *spiral(count, 2 * np.pi / 48 + np.deg2rad(1), 0.005)
  )
  steps = [dataclasses.replace(step, log_scale=0.0) for step in steps]
  closure = pose_graph.Constraint(
    source=0,
    target=48,
    target2source=relative(truth, (0, 48)),
    log_scale=0.0,
    turn_rad=1e-4,
    shift=1e-3,
    stretch=1e-4,
  )
  relaxed, scale = pose_graph.relax(drifted, np.zeros(count), [*steps, closure])
  np.testing.assert_array_equal(relaxed[0], drifted[0])
  rms_before, end_before = point_worlds.drift(drifted, truth)
  rms, end = point_worlds.drift(relaxed, truth)
  assert end_before > 0.05
  assert rms < rms_before / 10 and end < end_before / 50
  assert np.max(np.abs(scale)) < 1e-2


def test_relaxation_solves_what_can_be_solved_exactly():
  rng = np.random.default_rng(11)
  pose, scale = spiral(12, 0.3, 0.02)
  exact = step_constraints(pose, scale)
  exact.append(
    dataclasses.replace(
      exact[0],
      target=9,
      target2source=relative(pose, (0, 9)),
      log_scale=float(scale[9]),
    )
  )
  noise = rng.normal(scale=0.1, size=(12, 3))
  noise[0] = 0
  start = camera.make_pose(
    pose[:, :, :3] @ Rotation.from_rotvec(noise).as_matrix(),
    pose[:, :, 3] + 3 * noise,
  )
  relaxed, stretch = pose_graph.relax(start, np.zeros(12), exact)
  np.testing.assert_allclose(relaxed, pose, atol=1e-5)
  np.testing.assert_allclose(stretch, scale, atol=1e-5)
