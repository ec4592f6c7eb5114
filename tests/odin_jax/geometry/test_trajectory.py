"""Named camera paths: where they go and what they look at."""

import hypothesis
from hypothesis import strategies
import numpy as np
import pytest

from odin_jax.geometry import trajectory
from odin_jax.shared import camera

NAMES = sorted(trajectory.PATHS)
STRAIGHT = {
  'forward': [0, 0, 1],
  'backward': [0, 0, -1],
  'left': [-1, 0, 0],
  'right': [1, 0, 0],
  'up': [0, -1, 0],
  'down': [0, 1, 0],
}


@hypothesis.given(
  name=strategies.sampled_from(NAMES),
  num_frames=strategies.integers(1, 30),
  step=strategies.floats(1e-3, 0.5),
)
@hypothesis.settings(max_examples=60, deadline=None)
def test_every_path_is_rigid_and_starts_at_the_input(name, num_frames, step):
  path = trajectory.camera_path(name, num_frames, step)
  assert path.shape == (num_frames, 3, 4) and path.dtype == np.float64
  np.testing.assert_array_equal(path[0], camera.identity_pose())
  rotation = path[:, :, :3]
  np.testing.assert_allclose(
    rotation @ np.swapaxes(rotation, 1, 2),
    np.broadcast_to(np.eye(3), rotation.shape),
    atol=1e-12,
  )
  np.testing.assert_allclose(np.linalg.det(rotation), 1)


@pytest.mark.parametrize('name', STRAIGHT)
def test_straight_paths_go_where_they_say_in_equal_steps(name):
  path = trajectory.camera_path(name, 5, 0.1)
  expected = np.outer(0.1 * np.arange(5), STRAIGHT[name])
  np.testing.assert_allclose(path[:, :, 3], expected)
  np.testing.assert_allclose(
    path[:, :, :3], np.broadcast_to(np.eye(3), (5, 3, 3))
  )


@pytest.mark.parametrize('name, sign', [('orbit_right', 1), ('orbit_left', -1)])
def test_orbits_keep_the_pivot_in_the_middle_at_its_distance(name, sign):
  path = trajectory.camera_path(name, 6, 0.1)
  pivot = np.broadcast_to([[0.0, 0.0, 1.0]], (6, 1, 3))
  in_cameras = camera.transform(camera.inverse(path), pivot)
  np.testing.assert_allclose(in_cameras, pivot, atol=1e-12)
  assert np.all(sign * path[1:, 0, 3] > 0)
  # Chords of equal length, a little shorter than the arc.
  chords = np.linalg.norm(np.diff(path[:, :, 3], axis=0), axis=1)
  np.testing.assert_allclose(chords, 2 * np.sin(0.05))


@pytest.mark.parametrize('name, sign', [('pan_right', 1), ('pan_left', -1)])
def test_pans_turn_on_the_spot(name, sign):
  path = trajectory.camera_path(name, 4, 0.2)
  np.testing.assert_array_equal(path[:, :, 3], np.zeros((4, 3)))
  yaws = [camera.yaw_pitch_deg(pose[:, 2])[0] for pose in path]
  np.testing.assert_allclose(yaws, sign * np.rad2deg(0.2) * np.arange(4))


@pytest.mark.parametrize('count, places', [(5, '01210'), (6, '012210')])
def test_a_loop_comes_back_the_way_it_went(count, places):
  path = trajectory.camera_path('loop', count, 0.1)
  there = trajectory.camera_path('forward', count, 0.1)
  np.testing.assert_array_equal(path, there[list(map(int, places))])


TO_AND_FRO = {'orbit': 'orbit_right', 'dolly': 'forward'}


@pytest.mark.parametrize('name', TO_AND_FRO)
def test_to_and_fro_goes_as_far_to_either_side_and_comes_back(name):
  path = trajectory.camera_path(name, 9, 0.1)
  there = trajectory.camera_path(TO_AND_FRO[name], 3, 0.1)
  np.testing.assert_allclose(path[:3], there, atol=1e-15)
  np.testing.assert_allclose(path[[4, 8]], path[[0, 0]], atol=1e-15)
  # To the other side it is the inverse motion of the first.
  sign = -1 if name == 'dolly' else np.array([-1, 1, 1])
  np.testing.assert_allclose(path[6, :, 3], sign * path[2, :, 3], atol=1e-15)
  lengths = np.linalg.norm(np.diff(path[:, :, 3], axis=0), axis=1)
  np.testing.assert_allclose(lengths, lengths[0])


def test_looking_around_turns_to_all_four_sides_on_the_spot():
  path = trajectory.camera_path('look_around', 17, 0.1)
  assert not path[:, :, 3].any()
  angles = np.deg2rad([camera.yaw_pitch_deg(pose[:, 2]) for pose in path])
  yaw = [0, 0.1, 0.2, 0.1, 0, -0.1, -0.2, -0.1, 0] + [0] * 8
  pitch = [0] * 9 + [0.1, 0.2, 0.1, 0, -0.1, -0.2, -0.1, 0]
  np.testing.assert_allclose(angles, np.stack([yaw, pitch], -1), atol=1e-12)


@pytest.mark.parametrize('count', [2, 5, 13])
def test_a_turn_goes_once_round_whatever_the_step(count):
  path = trajectory.camera_path('turn_360', count, 0.1)
  np.testing.assert_array_equal(
    path, trajectory.camera_path('turn_360', count, 2.0)
  )
  np.testing.assert_array_equal(path[0], path[-1])
  steps = camera.rotation_angle_deg(
    camera.relative(path[:-1], path[1:])[:, :, :3]
  )
  expected = 360 / (count - 1)
  np.testing.assert_allclose(steps, min(expected, 360 - expected), atol=1e-9)


def test_a_spiral_looks_at_the_pivot_and_grows_in_about_equal_steps():
  path = trajectory.camera_path('spiral', 40, 0.05)
  pivot = np.broadcast_to([[0.0, 0.0, 1.0]], (40, 1, 3))
  in_cameras = camera.transform(camera.inverse(path), pivot)
  np.testing.assert_allclose(in_cameras[..., :2], 0, atol=1e-12)
  assert np.all(np.diff(np.hypot(path[:, 0, 3], path[:, 1, 3])) > 0)
  # It goes round more than once.
  assert set(np.sign(path[5:, 0, 3])) == set(np.sign(path[5:, 1, 3])) == {-1, 1}
  lengths = np.linalg.norm(np.diff(path[:, :, 3], axis=0), axis=1)
  assert np.all((lengths > 0.03) & (lengths < 0.06))


def test_weaving_moves_sideways_as_well_as_forward():
  path = trajectory.camera_path('weave', 32, 0.05)
  assert np.all(np.diff(path[:, 2, 3]) > 0)
  assert path[:, 0, 3].min() < -0.1 and path[:, 0, 3].max() > 0.1
  lengths = np.linalg.norm(np.diff(path[:, :, 3], axis=0), axis=1)
  assert np.all((lengths > 0.02) & (lengths < 0.05))


@pytest.mark.parametrize(
  'arguments, message',
  [
    (('sideways', 4, 0.1), 'sideways'),
    (('forward', 0, 0.1), '0 frames'),
    (('forward', 4, 0.0), 'step 0.0'),
    (('forward', 4, float('nan')), 'step nan'),
  ],
)
def test_bad_paths_are_refused(arguments, message):
  with pytest.raises(ValueError, match=message):
    trajectory.camera_path(*arguments)
