"""Standard errors of poses, on scenes of points whose errors are known."""

import dataclasses

import numpy as np
import pytest

from odin_jax.shared import camera
from preprocessing import matchers
from preprocessing.solving import covariance, refinement, tracks
from tests.helpers import point_worlds

_FRAMES = 4
_PAIRS = [(0, 1), (1, 0), (1, 3), (0, 3)]
_SAID_RAD = 1e-3


def path():
  return point_worlds.walk(_FRAMES, np.random.default_rng(0))


def solved(rng, noise_rad, *, freedom=None, doubled=False):
  """A corridor as it is solved from rays with noise.

  Args:
    rng: of the noise.
    noise_rad: standard deviation of the noise along each axis.
    freedom: where given, noise is Student's with so many degrees of it.
    doubled: whether each point is found twice, in the same places.
  """
  points = point_worlds.corridor(np.random.default_rng(1), 5, per_metre=12)
  features = []
  for pose in path():
    local = camera.transform(camera.inverse(pose), points)
    rays = local / np.linalg.norm(local, axis=1, keepdims=True)
    size = np.full((len(rays), 1), noise_rad)
    if freedom:
      size *= np.sqrt(freedom / rng.chisquare(freedom, size.shape))
    rays = np.repeat(point_worlds.shaken(rng, rays, size), 1 + doubled, axis=0)
    features.append(
      matchers.Features(
        rays=rays,
        noise_rad=np.full(len(rays), _SAID_RAD),
        descriptors=np.zeros((len(rays), 1), np.float32),
      )
    )
  same = np.repeat(np.arange(len(features[0]))[:, None], 2, axis=1)
  window = tracks.window_pairs(_FRAMES, _FRAMES - 1)
  point_tracks = tracks.Tracks(
    dict.fromkeys(window, same), [len(frame) for frame in features]
  )
  return refinement.refine(
    np.zeros(_FRAMES, int), path(), features, point_tracks, max_iterations=10
  )


def squared_errors_deg(truth, frame2scene, pair):
  """Of rotation and direction, the mean over their three and two axes."""
  found, true = (
    camera.relative(poses[pair[0]], poses[pair[1]])
    for poses in (frame2scene, truth)
  )
  rotation = camera.rotation_angle_deg(found[:, :3].T @ true[:, :3])
  direction = camera.angle_between_deg(found[:, 3], true[:, 3])
  return np.array([rotation**2 / 3, direction**2 / 2])


@pytest.mark.parametrize(
  'noise, freedom, doubled, least',
  [
    # In standard errors as the matcher says them.
    (0.5, None, False, 0.7),
    # Points that are there twice and know no more than once.
    (0.5, None, True, 0.7),
    # Outliers, for which more is stated than need be where they are
    # independent of each other.
    (1.0, 2, False, 0.55),
  ],
)
def test_poses_are_off_by_what_is_said(noise, freedom, doubled, least):
  rng = np.random.default_rng(2)
  off = []
  for _ in range(24):
    scene = solved(rng, noise * _SAID_RAD, freedom=freedom, doubled=doubled)
    errors = covariance.pose_errors(scene, _PAIRS)
    off += [
      squared_errors_deg(path(), scene.frame2scene, pair)
      / np.square(errors[pair])
      for pair in _PAIRS
    ]
  ratio = np.sqrt(np.mean(off, axis=0))
  # Not one: a tenth is added for what residuals do not tell.
  assert np.all((least < ratio) & (ratio < 1.05)), ratio


@pytest.fixture(scope='module')
def scene():
  return solved(np.random.default_rng(3), _SAID_RAD)


def test_errors_are_the_same_in_any_gauge(scene):
  other = camera.make_pose(
    camera.view2frame_rotation(40.0, 20.0), np.array([3.0, -1.0, 2.0])
  )
  moved = dataclasses.replace(
    scene,
    frame2scene=np.stack(
      [camera.compose(other, camera.rescale(p, 5.0)) for p in scene.frame2scene]
    ),
    points=camera.transform(other, 5.0 * scene.points),
  )
  errors = covariance.pose_errors(scene, _PAIRS)
  for pair, error in covariance.pose_errors(moved, _PAIRS).items():
    np.testing.assert_allclose(error, errors[pair], rtol=1e-4)
  # The rotation of a pair is as good either way round.
  assert errors[0, 1].rotation_deg == pytest.approx(errors[1, 0].rotation_deg)


def test_what_nothing_joins_is_unknown(scene):
  observations = scene.observations
  # The last two frames see other points than the first two: each half is known.
  far = observations.frame >= 2
  apart = dataclasses.replace(
    scene,
    points=np.concatenate([scene.points, scene.points]),
    observations=dataclasses.replace(
      observations,
      point=np.where(far, observations.point + len(scene.points), 0)
      + np.where(far, 0, observations.point),
    ),
  )
  keep = np.bincount(apart.observations.point)[apart.observations.point] > 1
  apart = dataclasses.replace(
    apart, observations=apart.observations.subset(keep)
  )
  errors = covariance.pose_errors(apart, [(0, 1), (2, 3), (1, 2)])
  assert errors[1, 2] == (covariance.UNKNOWN_DEG, covariance.UNKNOWN_DEG)
  assert max(errors[0, 1].rotation_deg, errors[2, 3].rotation_deg) < 0.2
  none = np.zeros(len(far), bool)
  blind = dataclasses.replace(scene, observations=observations.subset(none))
  assert covariance.pose_errors(blind, [(0, 1)])[0, 1] == errors[1, 2]
  # Frame 3 shows nothing.
  less = dataclasses.replace(
    scene, observations=observations.subset(observations.frame != 3)
  )
  errors = covariance.pose_errors(less, [(0, 1), (0, 3)])
  assert errors[0, 3].rotation_deg == covariance.UNKNOWN_DEG
  assert errors[0, 1].rotation_deg < 0.2


def test_a_hinge_of_one_point_leaves_the_pose_unknown(scene):
  observations = scene.observations
  hinge = observations.point[observations.frame == 3][:1]
  keep = (observations.frame != 3) | (observations.point == hinge)
  hinged = dataclasses.replace(scene, observations=observations.subset(keep))
  errors = covariance.pose_errors(hinged, [(0, 3), (0, 1)])
  assert errors[0, 3].rotation_deg == covariance.UNKNOWN_DEG
  assert errors[0, 1].rotation_deg < 0.2


def test_where_the_camera_stood_still_there_is_no_direction(scene):
  still = scene.frame2scene.copy()
  still[1, :, 3] = still[0, :, 3]
  errors = covariance.pose_errors(
    dataclasses.replace(scene, frame2scene=still), [(0, 1)]
  )
  assert errors[0, 1].direction_deg == covariance.UNKNOWN_DEG
