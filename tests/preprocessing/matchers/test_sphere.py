"""The sphere matcher against a turned panorama and against brute force."""

import cv2
from hypothesis import given, settings
from hypothesis import strategies as st
import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from odin_jax.shared import camera
from preprocessing import matchers
from preprocessing.keyframes import flow_tracker
from preprocessing.matchers import sphere

_OPTIONS = dict(
  features_per_face=400,
  contrast_threshold=0.015,
  min_similarity=0.75,
  max_ratio=0.9,
)
_WIDTH, _HEIGHT = 512, 256


def make_matcher(**options):
  return sphere.make(_OPTIONS | options)


def blobs(seed=0, count=1500):
  """Centres, radii and colours of soft blobs all over the sphere."""
  rng = np.random.default_rng(seed)
  centres = rng.normal(size=(count, 3))
  return (
    centres / np.linalg.norm(centres, axis=1, keepdims=True),
    rng.uniform(0.02, 0.07, count),
    rng.uniform(-110, 110, count),
  )


def paint(rotation):
  """The panorama of the blobs in a frame; rotation maps frame to world."""
  u, v = camera.pixel_centres(_WIDTH, _HEIGHT)
  rays = camera.equirect_to_direction(u, v, _WIDTH, _HEIGHT) @ rotation.T
  rays = rays.astype(np.float32)
  image = np.full(u.shape, 128, np.float32)
  for centre, radius, colour in zip(*blobs()):
    chord2 = 2 - 2 * (rays @ centre.astype(np.float32))
    image += colour * np.exp(-chord2 / (2 * radius**2))
  grey = np.clip(image, 0, 255).astype(np.uint8)
  return np.repeat(grey[..., None], 3, axis=2)


@pytest.fixture(scope='module')
def turned():
  """Two panoramas of the same blobs, and the rotation target to source."""
  rotation = Rotation.from_euler('yxz', [70, 25, 10], degrees=True).as_matrix()
  matcher = make_matcher()
  source, target = paint(np.eye(3)), paint(rotation)
  return matcher, matcher.describe(source), matcher.describe(target), rotation


def test_features_follow_a_rotation_over_seam_and_poles(turned):
  matcher, source, target, rotation = turned
  pairs = matcher.match(source, target)
  assert len(pairs) > 0.4 * min(len(source), len(target))
  rays = target.rays[pairs[:, 1]] @ rotation.T
  error_deg = camera.angle_between_deg(source.rays[pairs[:, 0]], rays)
  # A pixel is 0.7 degrees wide.
  assert np.median(error_deg) < 0.2
  assert np.mean(error_deg < 1.0) > 0.97
  # Matches lie everywhere: beyond both seams and around both poles.
  for axis in np.concatenate([np.eye(3), -np.eye(3)]):
    near = source.rays[pairs[:, 0]] @ axis > 0.8
    assert near.sum() > 5
    assert np.median(error_deg[near]) < 0.3
  # Half a pixel of offset anywhere would turn the best rotation.
  good = error_deg < 1.0
  aligned, _ = Rotation.align_vectors(
    source.rays[pairs[good, 0]], target.rays[pairs[good, 1]]
  )
  assert camera.rotation_angle_deg(aligned.as_matrix() @ rotation.T) < 0.03


def test_features_are_unit_vectors_and_found_once(turned):
  _, source, _, _ = turned
  np.testing.assert_allclose(np.linalg.norm(source.rays, axis=1), 1)
  np.testing.assert_allclose(
    np.linalg.norm(source.descriptors, axis=1), 1, atol=1e-5
  )
  assert np.all(source.noise_rad > 0)
  # Cube faces overlap; yet a point is described by one face. (SIFT itself
  # gives a point several orientations: those share the exact ray.)
  rays = np.unique(source.rays.round(9), axis=0)
  cosine = rays @ rays.T - 2 * np.eye(len(rays))
  assert np.mean(cosine.max(axis=1) > np.cos(0.1 * 2 * np.pi / _WIDTH)) < 0.02


def test_noise_estimate_is_of_the_size_of_the_error(turned):
  matcher, source, target, rotation = turned
  source_index, target_index = matcher.match(source, target).T
  error = np.linalg.norm(
    source.rays[source_index] - target.rays[target_index] @ rotation.T, axis=1
  )
  noise = np.hypot(
    source.noise_rad[source_index], target.noise_rad[target_index]
  )
  assert 0.1 < np.median(error / noise) < 2.0


def test_describing_is_deterministic():
  image = paint(np.eye(3))
  first, second = make_matcher().describe(image), make_matcher().describe(image)
  np.testing.assert_array_equal(first.rays, second.rays)
  np.testing.assert_array_equal(first.descriptors, second.descriptors)


def test_a_blank_panorama_has_no_features():
  blank = np.full((64, 128, 3), 90, np.uint8)
  features = make_matcher().describe(blank)
  assert len(features) == 0
  assert make_matcher().match(features, features).shape == (0, 2)


def random_features(rng, count, dimension=8):
  rays = rng.normal(size=(count, 3))
  descriptors = rng.uniform(size=(count, dimension)).astype(np.float32)
  return matchers.Features(
    rays=rays / np.linalg.norm(rays, axis=1, keepdims=True),
    noise_rad=np.full(count, 1e-3),
    descriptors=descriptors
    / np.linalg.norm(descriptors, axis=1, keepdims=True),
  )


def brute_force(source, target, expected, gate_rad, min_similarity, max_ratio):
  """Mutual nearest neighbours with ratio test, point by point."""
  similarity = source.descriptors @ target.descriptors.T
  allowed = np.ones_like(similarity, bool)
  if expected is not None:
    with np.errstate(invalid='ignore'):
      chord = np.linalg.norm(expected[:, None] - target.rays[None], axis=2)
      allowed = chord < 2 * np.sin(gate_rad / 2)
  similarity = np.where(allowed, similarity, -1.0)
  matches = []
  for source_index, row in enumerate(similarity):
    target_index = int(row.argmax())
    rest = np.delete(row, target_index).max(initial=-1.0)
    if (
      row[target_index] >= min_similarity
      and int(similarity[:, target_index].argmax()) == source_index
      and max(1 - row[target_index], 1e-6) <= max_ratio**2 * max(1 - rest, 1e-6)
    ):
      matches.append((source_index, target_index))
  return np.array(matches, int).reshape(-1, 2)


@settings(max_examples=40, deadline=None)
@given(
  seed=st.integers(0, 10_000),
  counts=st.tuples(st.integers(1, 40), st.integers(1, 40)),
  gate_deg=st.sampled_from([None, 20.0, 60.0]),
)
def test_match_equals_brute_force(seed, counts, gate_deg):
  rng = np.random.default_rng(seed)
  source, target = (random_features(rng, count) for count in counts)
  expected = None
  if gate_deg is not None:
    expected = random_features(rng, counts[0]).rays
    expected[rng.uniform(size=counts[0]) < 0.2] = np.nan
  gate_rad = np.deg2rad(gate_deg or 0.0)
  matches = make_matcher().match(
    source, target, expected=expected, gate_rad=gate_rad
  )
  wanted = brute_force(source, target, expected, gate_rad, 0.75, 0.9)
  np.testing.assert_array_equal(matches, wanted)


def test_the_gate_tells_identical_things_apart():
  rng = np.random.default_rng(1)
  scene = random_features(rng, 60, dimension=64)
  # Everything twice, the same to look at, in opposite directions.
  both = matchers.Features(
    rays=np.concatenate([scene.rays, -scene.rays]),
    noise_rad=np.tile(scene.noise_rad, 2),
    descriptors=np.tile(scene.descriptors, (2, 1)),
  )
  matcher = make_matcher()
  assert len(matcher.match(both, both)) == 0
  pairs = matcher.match(both, both, expected=both.rays, gate_rad=0.05)
  assert len(pairs) == 120
  np.testing.assert_array_equal(pairs[:, 0], pairs[:, 1])


def test_flow_follows_a_turn_across_the_seam():
  matcher = make_matcher()
  image = paint(np.eye(3))
  features = matcher.describe(image)
  tracker = flow_tracker.FlowTracker(image, features.rays)
  shift_px = 6
  for step in range(1, 4):
    tracker.step(np.roll(image, step * shift_px, axis=1))
  turn = camera.rotation_y(3 * shift_px / _WIDTH * 2 * np.pi)
  arrived = tracker.rays()
  known = np.isfinite(arrived[:, 0])
  low = np.abs(features.rays[:, 1]) < np.sin(np.deg2rad(60))
  assert known[low].mean() > 0.9
  error_deg = camera.angle_between_deg(
    arrived[known], features.rays[known] @ turn.T
  )
  assert np.median(error_deg) < 0.1
  # Points that crossed the seam are among them.
  crossed = features.rays[known] @ turn.T
  beyond = (crossed[:, 0] < 0) & (features.rays[known][:, 0] > 0)
  assert np.median(error_deg[beyond & (crossed[:, 2] < 0)]) < 0.2


def test_flow_takes_points_at_one_place_to_one_place():
  image = paint(np.eye(3))
  rays = make_matcher().describe(image).rays[:40]
  singly = flow_tracker.FlowTracker(image, rays)
  twice = flow_tracker.FlowTracker(image, np.repeat(rays, 2, axis=0)[::-1])
  for tracker in (singly, twice):
    tracker.step(np.roll(image, 4, axis=1))
  followed = singly.rays()
  assert np.isfinite(followed).any()
  np.testing.assert_array_equal(
    twice.rays(), np.repeat(followed, 2, axis=0)[::-1]
  )


def test_flow_loses_what_is_gone():
  image = paint(np.eye(3))
  features = make_matcher().describe(image)
  tracker = flow_tracker.FlowTracker(image, features.rays)
  tracker.step(cv2.GaussianBlur(paint(-np.eye(3)), (0, 0), 2))
  assert np.isnan(tracker.rays()[:, 0]).mean() > 0.7
