"""Rays and the sweep against the project's camera, on exact scenes."""

import hypothesis
from hypothesis import strategies
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from odin_jax.models import rays, sweep
from odin_jax.shared import camera

DEGREES = strategies.floats(-60, 60)
METRES = strategies.floats(-0.6, 0.6)
sweep_views = jax.jit(sweep.sweep, static_argnums=3)


def make_pose(yaw_deg, pitch_deg, x, y, z):
  rotation = camera.view2frame_rotation(yaw_deg, pitch_deg)
  return camera.make_pose(rotation, np.array([x, y, z]))


def batch(pose):
  return jnp.asarray(pose[None], jnp.float32)


@pytest.mark.parametrize('fov_deg', [60.0, 90.0])
def test_camera_rays_are_those_of_the_project(fov_deg):
  expected = camera.view_rays(fov_deg, 6).reshape(-1, 3)
  expected /= np.linalg.norm(expected, axis=-1, keepdims=True)
  directions = rays.camera_rays(jnp.array([fov_deg]), 6)[0]
  np.testing.assert_allclose(directions, expected, atol=1e-6)


@hypothesis.given(DEGREES, DEGREES, METRES, METRES, METRES)
@hypothesis.settings(deadline=None, max_examples=30)
def test_inverse_is_that_of_the_project(yaw_deg, pitch_deg, x, y, z):
  pose = make_pose(yaw_deg, pitch_deg, x, y, z)
  np.testing.assert_allclose(
    rays.inverse(batch(pose))[0], camera.inverse(pose), atol=1e-5
  )


@hypothesis.given(
  DEGREES, DEGREES, METRES, METRES, METRES, strategies.floats(0.5, 5)
)
@hypothesis.settings(deadline=None, max_examples=30)
def test_rays_of_one_point_meet(yaw_deg, pitch_deg, x, y, z, distance):
  """d1 . m2 + d2 . m1 = 0 for two cameras that see the same point."""
  source2target = make_pose(yaw_deg, pitch_deg, x, y, z)
  point = np.array([[0.3, -0.2, distance]])
  in_source = camera.transform(camera.inverse(source2target), point)

  def unit(vectors):
    vectors = vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)
    return jnp.asarray(vectors[None], jnp.float32)

  target = rays.plucker(unit(point), batch(camera.identity_pose()))[0, 0]
  source = rays.plucker(unit(in_source), batch(source2target))[0, 0]
  product = target[:3] @ source[3:] + source[:3] @ target[3:]
  assert abs(float(product)) < 1e-5


@hypothesis.given(DEGREES, DEGREES, METRES, METRES, METRES, METRES)
@hypothesis.settings(deadline=None, max_examples=30)
def test_a_ray_that_two_cameras_see_has_the_same_coordinates(
  yaw_deg, pitch_deg, x, y, z, distance
):
  """A camera turned anyhow, elsewhere on the ray, gives the same numbers."""
  ray = np.array([x, y, 1.0])
  ray /= np.linalg.norm(ray)
  first = make_pose(0.0, 0.0, x, z, y)
  second = make_pose(yaw_deg, pitch_deg, *(first[:, 3] + distance * ray))
  rows = []
  for camera2frame in (first, second):
    direction = jnp.asarray((ray @ camera2frame[:, :3])[None, None], 'float32')
    rows.append(rays.plucker(direction, batch(camera2frame))[0, 0])
  np.testing.assert_allclose(rows[0], rows[1], atol=1e-5)


def test_a_camera_s_own_rays_are_those_in_its_own_axes():
  directions = rays.camera_rays(jnp.array([60.0]), 3)
  np.testing.assert_allclose(
    rays.own_plucker(directions),
    rays.plucker(directions, batch(camera.identity_pose())),
    atol=1e-7,
  )


def test_fourier_features_are_what_their_names_say():
  names = rays.fourier_names(['a', 'b'], 3)
  numbers = jnp.array([[[0.3, -0.7]]])
  features = rays.fourier_features(numbers, 3)
  assert features.shape == (1, 1, len(names))
  by_name = dict(zip(names, np.asarray(features[0, 0]), strict=True))
  assert by_name.keys() >= {'a', 'b', 'a.sin0', 'b.cos2'}
  for name, feature in by_name.items():
    number, _, wave = name.partition('.')
    expected = {'a': 0.3, 'b': -0.7}[number]
    if wave:
      angle = expected * np.pi / 2 * 2 ** int(wave[3:])
      expected = {'sin': np.sin, 'cos': np.cos}[wave[:3]](angle)
    assert feature == pytest.approx(expected, abs=1e-6), name


def colours_of(points):
  """A smooth colour for every direction from the centre of the world."""
  points = points / np.linalg.norm(points, axis=-1, keepdims=True)
  return 0.5 + 0.4 * np.sin(points * np.array([2.0, 3.0, 2.5]) + 1.0)


def sphere_view(camera2world, radius, size):
  """Exact picture of a coloured sphere around the world's origin."""
  directions = camera.view_rays(90.0, size).reshape(-1, 3)
  directions /= np.linalg.norm(directions, axis=-1, keepdims=True)
  directions = directions @ camera2world[:, :3].T
  centre = camera2world[:, 3]
  along = directions @ centre
  distance = -along + np.sqrt(along**2 - centre @ centre + radius**2)
  points = centre + distance[:, None] * directions
  return colours_of(points).reshape(1, size, size, 3)


@pytest.mark.parametrize('radius', [0.8, 2.0])
def test_sweep_at_the_true_distance_is_the_target(radius):
  """In a sphere around the target, the sweep at its radius is exact."""
  size = 48
  source2world = make_pose(12.0, -7.0, 0.15, -0.1, 0.2)
  target2world = camera.identity_pose()
  target2source = camera.relative(source2world, target2world)
  views, visible = sweep_views(
    jnp.asarray(sphere_view(source2world, radius, size), jnp.float32),
    batch(target2source),
    jnp.array([90.0]),
    (0.5 * radius, radius),
  )
  truth = sphere_view(target2world, radius, size)[0]
  error = np.abs(np.asarray(views[0, 1]) - truth).max(-1)
  inside = np.asarray(visible[0, 1]) > 0
  assert 0.3 < inside.mean() < 1
  # Bilinear interpolation of a smooth picture; edge pixels are repeated.
  assert error[inside].max() < 0.02
  wrong = np.abs(np.asarray(views[0, 0]) - truth).max(-1)
  assert wrong[inside].mean() > 5 * error[inside].mean()


def test_sweep_with_the_same_camera_is_the_source_at_any_distance():
  image = jax.random.uniform(jax.random.key(0), (1, 8, 8, 3))
  views, visible = sweep_views(
    image, batch(camera.identity_pose()), jnp.array([90.0]), (0.3, 1.0, 9.0)
  )
  for view in views[0]:
    np.testing.assert_allclose(view, image[0], atol=1e-4)
  assert np.all(visible == 1)


def test_sweep_of_what_the_source_cannot_see_is_its_mean_colour():
  image = jax.random.uniform(jax.random.key(0), (1, 8, 8, 3))
  behind = make_pose(180.0, 0.0, 0.0, 0.0, 0.0)
  views, visible = sweep_views(image, batch(behind), jnp.array([90.0]), (1.0,))
  assert np.all(visible == 0)
  np.testing.assert_allclose(
    views[0, 0], jnp.broadcast_to(image.mean((1, 2)), (8, 8, 3)), atol=1e-5
  )
