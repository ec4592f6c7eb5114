"""The conventions, against hand-written values and properties."""

from hypothesis import given
from hypothesis import strategies as st
import numpy as np
from scipy.spatial import transform

from odin_jax.shared import camera

angles = st.floats(-180, 180)
pitches = st.floats(-89, 89)
seeds = st.integers(0, 2**32 - 1)


def random_pose(rng: np.random.Generator) -> np.ndarray:
  rotation = transform.Rotation.random(rng=rng).as_matrix()
  return camera.make_pose(rotation, rng.normal(size=3))


def test_equirectangular_centre_looks_forward_and_right_is_positive():
  def ray(u, v):
    return camera.equirect_to_direction(np.array(u), np.array(v), 8, 4)

  np.testing.assert_allclose(ray(4.0, 2.0), [0, 0, 1], atol=1e-12)
  np.testing.assert_allclose(ray(6.0, 2.0), [1, 0, 0], atol=1e-12)
  np.testing.assert_allclose(ray(4.0, 4.0), [0, 1, 0], atol=1e-12)
  np.testing.assert_allclose(ray(0.0, 2.0), [0, 0, -1], atol=1e-12)


@given(st.floats(0.01, 99.99), st.floats(0.01, 49.99))
def test_equirectangular_round_trip(u, v):
  direction = camera.equirect_to_direction(np.array(u), np.array(v), 100, 50)
  back = camera.direction_to_equirect(3.7 * direction, 100, 50)
  np.testing.assert_allclose(back, (u, v), atol=1e-9)


@given(angles, pitches)
def test_yaw_turns_right_and_pitch_turns_up(yaw_deg, pitch_deg):
  axis = camera.view2frame_rotation(yaw_deg, pitch_deg) @ [0.0, 0.0, 1.0]
  yaw, pitch = np.deg2rad([yaw_deg, pitch_deg])
  expected = [
    np.sin(yaw) * np.cos(pitch),
    -np.sin(pitch),
    np.cos(yaw) * np.cos(pitch),
  ]
  np.testing.assert_allclose(axis, expected, atol=1e-12)
  yaw_back, pitch_back = camera.yaw_pitch_deg(axis)
  assert abs((yaw_back - yaw_deg + 180) % 360 - 180) < 1e-6
  assert abs(pitch_back - pitch_deg) < 1e-6


@given(seeds)
def test_poses_form_a_group(seed):
  rng = np.random.default_rng(seed)
  a2b, b2c = random_pose(rng), random_pose(rng)
  points = rng.normal(size=(5, 3))
  np.testing.assert_allclose(
    camera.transform(camera.compose(b2c, a2b), points),
    camera.transform(b2c, camera.transform(a2b, points)),
    atol=1e-12,
  )
  np.testing.assert_allclose(
    camera.compose(a2b, camera.inverse(a2b)), camera.identity_pose(), atol=1e-12
  )
  # Through both cameras a point of the scene has one place.
  np.testing.assert_allclose(
    camera.transform(a2b, camera.transform(camera.relative(a2b, b2c), points)),
    camera.transform(b2c, points),
    atol=1e-12,
  )


@given(seeds, st.tuples(angles, pitches), st.tuples(angles, pitches))
def test_target2source_follows_a_point_the_long_way(
  seed, source_angles, target_angles
):
  rng = np.random.default_rng(seed)
  source2scene, target2scene = random_pose(rng), random_pose(rng)
  target2source = camera.relative_view_pose(
    source2scene, target2scene, source_angles, target_angles
  )
  point = rng.normal(size=3)
  in_frame = camera.view2frame_rotation(*target_angles) @ point
  in_scene = target2scene[:, :3] @ in_frame + target2scene[:, 3]
  in_frame = source2scene[:, :3].T @ (in_scene - source2scene[:, 3])
  expected = camera.view2frame_rotation(*source_angles).T @ in_frame
  transformed = camera.transform(target2source, point[None])[0]
  np.testing.assert_allclose(transformed, expected, atol=1e-9)


def test_the_translation_of_target2source_is_the_target_camera_s_centre():
  target2source = random_pose(np.random.default_rng(0))
  centre = camera.transform(target2source, np.zeros((1, 3)))[0]
  np.testing.assert_allclose(centre, target2source[:, 3])


@given(st.floats(0, 180), seeds)
def test_rotation_angle(angle_deg, seed):
  axis = np.random.default_rng(seed).normal(size=3)
  vector = axis / np.linalg.norm(axis) * np.deg2rad(angle_deg)
  rotation = transform.Rotation.from_rotvec(vector).as_matrix()
  assert abs(camera.rotation_angle_deg(rotation) - angle_deg) < 1e-6


def test_a_square_view_spans_its_field_of_view():
  rays = camera.view_rays(90.0, 4)
  np.testing.assert_allclose(rays[0, 0], [-0.75, -0.75, 1])
  pixels, depth = camera.project(rays, camera.intrinsics(90.0, 4))
  u, v = camera.pixel_centres(4, 4)
  np.testing.assert_allclose(pixels, np.stack([u, v], -1), atol=1e-12)
  np.testing.assert_allclose(depth, 1)


@given(seeds)
def test_essential_matrix_annihilates_true_matches(seed):
  rng = np.random.default_rng(seed)
  target2source = random_pose(rng)
  in_target = rng.normal(size=(20, 3))
  in_source = camera.transform(target2source, in_target)
  essential = camera.essential_matrix(target2source)
  residual = np.einsum('ni,ij,nj->n', in_source, essential, in_target)
  np.testing.assert_allclose(residual, 0, atol=1e-9)
