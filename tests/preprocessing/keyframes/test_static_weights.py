"""Weights of what stands still, against worlds whose movers are known."""

import dataclasses
import functools

import cv2
from hypothesis import given, settings
from hypothesis import strategies as st
import numpy as np
import pytest

from odin_jax.shared import camera
from preprocessing import panorama
from preprocessing.keyframes import ego_motion, static_weights
from preprocessing.procedural import footage, walks
from tests.helpers import default_rules

# A weight below it says that something moves.
_THRESHOLD = 96
_RULES = default_rules.motion_rules()
_AREA = np.repeat(
  np.cos((np.arange(96) + 0.5) / 96 * np.pi - np.pi / 2)[:, None], 192, axis=1
)


class Path(walks.Walk):
  """A camera that stays in its place and turns evenly."""

  def __init__(self, place, turn_rad_per_s):
    self._place = place
    self._turn = np.array(turn_rad_per_s)

  def frame2world(self, time_s):
    rotation = cv2.Rodrigues(self._turn * time_s)[0]
    return camera.make_pose(rotation, self._place)


@functools.cache
def make_world(kind, index, seed):
  return footage.make_world(
    [kind] * (index + 1), index, seed=seed, seconds=12.0, px_per_rad=384 / np.pi
  )


def in_place(world, start_s, turn_rad_per_s=(0.0, 0.0, 0.0)):
  place = world.walk.frame2world(start_s)[:, 3]
  return dataclasses.replace(world, walk=Path(place, turn_rad_per_s))


def weigh(world, times_s, *, width=512, keyframe_every=5):
  """Weights and truth of the key frames among some moments."""
  estimator = static_weights.MotionEstimator(_RULES)
  for index, time_s in enumerate(times_s):
    image = footage.render_panorama(
      world, time_s, width=width, height=width // 2
    )
    if index % keyframe_every:
      estimator.step(image)
    else:
      estimator.keyframe(image)
  truth = footage.truth(world, np.asarray(times_s)[::keyframe_every])
  return np.stack(estimator.weights()), truth['moving']


def shares(weights, moving):
  """(recall, precision, share of the sphere called moving in error)."""
  area = np.broadcast_to(_AREA, weights.shape)
  called = weights < _THRESHOLD
  hit = area[called & moving].sum()
  return (
    hit / max(area[moving].sum(), 1e-9),
    hit / max(area[called].sum(), 1e-9),
    area[called & ~moving].sum() / area.sum(),
  )


def test_things_in_motion_are_found_from_a_walk():
  # This world has movers close to the path.
  world = make_world('unique_outdoor', 2, 3)
  weights, moving = weigh(world, np.arange(2.0, 5.1, 0.2))
  recall, precision, error = shares(weights, moving)
  assert moving.mean() > 0.01
  # The others move slowly, or in line with the camera.
  assert recall > 0.3
  assert precision > 0.7
  assert error < 0.004


def test_nothing_is_found_in_a_static_world():
  world = make_world('unique_corridor', 3, 1)
  weights, moving = weigh(world, np.arange(1.0, 3.1, 0.2))
  assert not moving.any()
  assert shares(weights, moving)[2] < 0.002
  # And most of what can be judged is called static.
  judged = weights != static_weights.UNKNOWN
  assert judged[:, 16:80].mean() > 0.6
  assert np.median(weights[judged]) > 240


@pytest.mark.parametrize(
  ('turn', 'limit'), [((0.0, 0.5, 0.0), 0.001), ((0.15, -0.2, 0.1), 0.008)]
)
def test_a_turning_camera_is_no_motion(turn, limit):
  world = make_world('unique_room', 0, 4)
  turning = in_place(world, 2.0, turn)
  weights, moving = weigh(turning, np.arange(0.0, 2.1, 0.2))
  assert not moving.any()
  assert shares(weights, moving)[2] < limit


def test_a_camera_at_rest_sees_what_moves():
  world = make_world('unique_room', 0, 2)
  weights, moving = weigh(in_place(world, 1.0), np.arange(0.0, 3.1, 0.2))
  assert moving.mean() > 0.005
  assert shares(weights, moving)[0] > 0.85
  # What is called moving beside it lies within reach of a patch of the flow.
  around = np.stack(
    [cv2.dilate(mask.astype(np.uint8), np.ones((13, 13))) for mask in moving]
  )
  assert shares(weights, around > 0)[1] > 0.9


def test_the_same_frames_give_the_same_weights():
  world = make_world('unique_room', 0, 2)
  times_s = np.arange(0.0, 1.3, 0.2)
  first, second = (weigh(world, times_s, width=256)[0] for _ in range(2))
  np.testing.assert_array_equal(first, second)


def test_short_videos_say_nothing_they_cannot_know():
  grey = np.full((64, 128, 3), 90, np.uint8)
  estimator = static_weights.MotionEstimator(_RULES)
  assert estimator.weights() == []
  estimator.keyframe(grey)
  (alone,) = estimator.weights()
  assert (alone == static_weights.UNKNOWN).all()
  # Frames without texture are no evidence either.
  estimator = static_weights.MotionEstimator(_RULES)
  for _ in range(3):
    estimator.keyframe(grey)
  for weight in estimator.weights():
    assert weight.shape == (96, 192)
    assert (weight == static_weights.UNKNOWN).all()


def test_a_view_of_the_weight_shows_its_directions():
  u, v = camera.pixel_centres(192, 96)
  rays = camera.equirect_to_direction(u, v, 192, 96)
  weight = np.where(rays[..., 0] > 0, 255, 0).astype(np.uint8)
  angles = dict(yaw_deg=20.0, pitch_deg=-10.0, fov_deg=90.0, size_px=64)
  view = static_weights.cut(weight, **angles)
  rays = panorama.view_directions(**angles)
  clear = np.abs(rays[..., 0]) > 0.05
  np.testing.assert_array_equal(
    view[clear], np.where(rays[..., 0] > 0, 255, 0)[clear]
  )


def test_png_keeps_every_level():
  view = np.arange(256, dtype=np.uint8).reshape(16, 16)
  png = np.frombuffer(static_weights.encode_png(view), np.uint8)
  np.testing.assert_array_equal(cv2.imdecode(png, cv2.IMREAD_UNCHANGED), view)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 2**31))
def test_the_camera_s_motion_is_found_among_things_that_move(seed):
  rng = np.random.default_rng(seed)
  points = ego_motion.unit(rng.normal(size=(600, 3)))
  points *= rng.uniform(2, 20, (600, 1))
  rays = ego_motion.unit(points)
  poses = {}
  for step in (1, 3):
    vector = step * np.deg2rad(rng.uniform(-4, 4, 3))
    # Of less the noise leaves no direction: at 5 cm two in ten thousand fail.
    place = step * rng.uniform(0.1, 0.4) * ego_motion.unit(rng.normal(size=3))
    poses[step] = cv2.Rodrigues(vector)[0], place
  moving = rng.uniform(size=600) < 0.2
  drift = rng.normal(size=(600, 3)) * moving[:, None]
  observed = {
    step: ego_motion.unit((points + 0.3 * step * drift - place) @ rotation)
    for step, (rotation, place) in poses.items()
  }
  observed = {
    step: ego_motion.unit(y + rng.normal(size=y.shape) * 5e-4)
    for step, y in observed.items()
  }
  trust = np.ones(600)
  start = ego_motion.rotation_between(rays, observed[1], trust)
  cameras = {1: ego_motion.two_frames(rays, observed[1], trust, start)}
  trusts = {step: trust for step in observed}
  depth = ego_motion.inverse_depth(rays, observed, trusts, cameras)
  rotation, place = poses[3]
  cameras[3] = ego_motion.resect(
    rays,
    depth,
    observed[3],
    trust,
    *ego_motion.extrapolate(cameras, 3),
    rounds=12,
  )
  unit_m = np.linalg.norm(poses[1][1])
  for step, (rotation, place) in poses.items():
    found_rotation, found_place = cameras[step]
    assert camera.rotation_angle_deg(found_rotation.T @ rotation) < 0.15
    assert np.linalg.norm(found_place * unit_m - place) < 0.1 * np.linalg.norm(
      place
    )
