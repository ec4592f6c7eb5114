"""Standard errors of poses, on scenes of points whose errors are known."""

import dataclasses

import numpy as np
import pytest

from odin_jax.shared import camera
from preprocessing.solving import (
  bundle_adjustment,
  covariance,
  reconstruction,
  refinement,
)
from tests.helpers import point_worlds

_FRAMES = 4
_PAIRS = [(0, 1), (1, 0), (1, 3), (0, 3)]
_SAID_RAD = 1e-3


def seen(rng, noise_rad, freedom=None):
  """A path, points of a corridor, and rays to these with noise.

  With `freedom` the noise is Student's with so many degrees of it, not normal.
  """
  truth = point_worlds.walk(_FRAMES, np.random.default_rng(0))
  points = point_worlds.corridor(np.random.default_rng(1), 5, per_metre=12)
  local = np.concatenate(
    [camera.transform(camera.inverse(pose), points) for pose in truth]
  )
  rays = local / np.linalg.norm(local, axis=1, keepdims=True)
  if freedom:
    noise_rad = noise_rad * np.sqrt(freedom / rng.chisquare(freedom, len(rays)))
    noise_rad = noise_rad[:, None]
  frame, point = np.divmod(np.arange(len(rays)), len(points))
  observations = bundle_adjustment.Observations(
    frame=frame,
    point=point,
    ray=point_worlds.shaken(rng, rays, noise_rad),
    noise_rad=np.full(len(rays), _SAID_RAD),
  )
  return truth, points, observations


def twice(truth, points, observations):
  """The same, where each point is two in the same places."""
  fields = dataclasses.asdict(observations)
  doubled = {name: np.concatenate([fields[name]] * 2) for name in fields}
  doubled['point'][len(fields['point']) :] += len(points)
  return (
    truth,
    np.concatenate([points, points]),
    bundle_adjustment.Observations(**doubled),
  )


def solved(truth, points, observations):
  """Adjusted twice, as `refinement` does, with what is far off left out."""
  poses = truth
  for _ in range(2):
    points = bundle_adjustment.triangulate(poses, observations, len(points))
    errors = bundle_adjustment.errors_rad(poses, points, observations)
    observations = observations.subset(
      errors < refinement.INLIER_SIGMA * observations.noise_rad
    )
    counts = np.bincount(observations.point, minlength=len(points))
    observations = observations.subset(counts[observations.point] >= 2)
    used, point = np.unique(observations.point, return_inverse=True)
    observations = dataclasses.replace(observations, point=point)
    poses, points = bundle_adjustment.adjust(
      poses, points[used], observations, max_iterations=10
    )
  return reconstruction.Reconstruction(
    component=np.zeros(len(poses), int),
    frame2scene=poses,
    points=points,
    observations=observations,
    point_ids=[],
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
  'noise, freedom, doubled',
  [
    # In standard errors as the matcher says them.
    (0.7, None, False),
    # Outliers; points that are there twice and know no more than once.
    (0.5, 2, False),
    (0.7, None, True),
  ],
)
def test_poses_are_off_by_what_is_said(noise, freedom, doubled):
  rng = np.random.default_rng(2)
  off = []
  for _ in range(14):
    truth, *scene = seen(rng, noise * _SAID_RAD, freedom)
    scene = solved(*(twice(truth, *scene) if doubled else (truth, *scene)))
    errors = covariance.pose_errors(scene, _PAIRS)
    off += [
      squared_errors_deg(truth, scene.frame2scene, pair)
      / np.square(errors[pair])
      for pair in _PAIRS
    ]
  ratio = np.sqrt(np.mean(off, axis=0))
  # Below one: a tenth is added for what residuals do not tell.
  assert np.all((0.65 < ratio) & (ratio < 1.1)), ratio


@pytest.fixture(scope='module')
def scene():
  return solved(*seen(np.random.default_rng(3), _SAID_RAD))


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
