"""Layouts: against FFmpeg, against exact directions, and what is not seen."""

import json
import pickle

from hypothesis import given, settings
from hypothesis import strategies as st
import numpy as np
import pytest

from odin_jax.shared import camera
from preprocessing.reading import projections
from tests.helpers import layouts

_MONO = projections.Layout()


def psnr(a, b):
  return 10 * np.log10(255**2 / np.mean((a.astype(float) - b) ** 2))


def directions(width):
  centres = camera.pixel_centres(width, width // 2)
  return camera.equirect_to_direction(*centres, width, width // 2)


def test_eac_is_that_of_ffmpeg():
  truth = layouts.panorama()
  cube = layouts.eac(truth)
  panorama = projections.to_equirectangular(cube, projections.NAMES['eac'], 512)
  ffmpeg_panorama = layouts.v360(cube, 'eac:e:interp=cubic:w=512:h=256')
  assert psnr(panorama, ffmpeg_panorama) > 42
  assert psnr(panorama, truth) > psnr(ffmpeg_panorama, truth) - 0.5


@pytest.mark.parametrize('size', [(960, 540), (640, 360), (960, 640)])
def test_every_face_of_eac_is_where_it_belongs(size):
  cube = layouts.eac(layouts.direction_image(1024), *size)
  output = projections.to_equirectangular(cube, projections.NAMES['eac'], 512)
  error = camera.angle_between_deg(
    layouts.shown_directions(output), directions(512)
  )
  # Colours have steps of half a degree.
  assert error.mean() < 0.4 and error.max() < 1.2


@given(st.floats(-0.999, 0.999), st.floats(-0.999, 0.999))
def test_steps_in_eac_are_equal_angles(across, down):
  angles = np.array([across, down]) * np.pi / 4
  direction = np.array([[*np.tan(angles), 1.0]])
  u, v = projections.NAMES['eac'].pixels(direction, 1204, 808)
  # Two pixels of padding, three faces of 400, and as many rows of each.
  assert u == pytest.approx(2 + 400 + 200 * (across + 1))
  assert v == pytest.approx(2 + 200 * (down + 1))


def test_rows_of_eac_faces_do_not_bleed_into_each_other():
  cube = np.zeros((540, 960, 3), np.uint8)
  cube[270:] = 255
  output = projections.to_equirectangular(cube, projections.NAMES['eac'])
  assert set(np.unique(output)) == {0, 255}


def test_a_plain_panorama_is_returned_as_it_is():
  image = np.zeros((322, 640, 3), np.uint8)
  assert projections.to_equirectangular(image, _MONO) is image


@pytest.mark.parametrize('height', [512, 288])
def test_a_stretched_panorama_becomes_two_to_one(height):
  truth = layouts.direction_image(512)
  stretched = layouts.v360(truth, f'e:e:interp=cubic:w=512:h={height}')
  output = projections.to_equirectangular(stretched, _MONO)
  assert output.shape == truth.shape
  assert np.abs(output.astype(int) - truth).mean() < 1.0


@pytest.mark.parametrize('stereo,axis', [('top-bottom', 0), ('left-right', 1)])
def test_the_first_eye_is_used(stereo, axis):
  left = layouts.panorama()
  packed = np.concatenate([left, 255 - left], axis=axis)
  layout = projections.Layout(stereo=stereo)
  output = projections.to_equirectangular(packed, layout)
  np.testing.assert_array_equal(output, left)


def test_vr180_lies_in_front_and_the_rest_is_black():
  truth = layouts.panorama()
  layout = projections.NAMES['vr180']
  output = projections.to_equirectangular(layouts.front(truth), layout)
  np.testing.assert_array_equal(layouts.front(output), layouts.front(truth))
  is_filmed = layout.sees(directions(512))
  assert is_filmed.mean() == 0.5
  assert not output[~is_filmed].any()


@given(
  st.floats(-np.pi, np.pi), st.floats(-1.5, 1.5), st.sampled_from([0.0, 90.0])
)
def test_vr180_sees_the_front_half_wherever_it_is_turned(lon, lat, yaw_deg):
  layout = projections.Layout(left=0.25, right=0.25, yaw_deg=yaw_deg)
  direction = np.array(
    [np.sin(lon) * np.cos(lat), np.sin(lat), np.cos(lon) * np.cos(lat)]
  )
  towards = direction @ camera.rotation_y(np.deg2rad(yaw_deg))[:, 2]
  if abs(towards) > 1e-6:
    assert layout.sees(direction[None])[0] == (towards > 0)
  assert projections.NAMES['eac'].sees(direction[None])[0]


def test_black_back_sees_what_vr180_does():
  rays = directions(64)
  np.testing.assert_array_equal(
    projections.NAMES['vr180-padded'].sees(rays),
    projections.NAMES['vr180'].sees(rays),
  )


@pytest.mark.parametrize(
  'pose,direction,moved',
  [
    ({'yaw_deg': 90.0}, (0, 0, 1), (1, 0, 0)),
    ({'pitch_deg': 90.0}, (0, 0, 1), (0, -1, 0)),
    ({'roll_deg': 90.0}, (0, -1, 0), (1, 0, 0)),
  ],
)
def test_a_pose_turns_as_ffmpeg_defines_it(pose, direction, moved):
  """In front moves right, in front moves up, the top tilts to the right."""
  layout = projections.Layout(**pose)
  output = projections.to_equirectangular(layouts.direction_image(512), layout)
  u, v = camera.direction_to_equirect(np.array(moved, float), 512, 256)
  shown = layouts.shown_directions(output)
  shown_direction = shown[min(int(v), 255), int(u) % 512]
  assert (
    camera.angle_between_deg(shown_direction, np.array(direction, float)) < 1.5
  )


@settings(max_examples=10, deadline=None)
@given(st.floats(-180, 180), st.floats(-90, 90), st.floats(-180, 180))
def test_a_pose_is_undone_by_its_rotation(yaw_deg, pitch_deg, roll_deg):
  layout = projections.Layout(
    yaw_deg=yaw_deg, pitch_deg=pitch_deg, roll_deg=roll_deg
  )
  output = projections.to_equirectangular(layouts.direction_image(256), layout)
  shown = layouts.shown_directions(output).reshape(-1, 3)
  level = directions(256).reshape(-1, 3)
  rotation, _, _, _ = np.linalg.lstsq(shown, level, rcond=None)
  np.testing.assert_allclose(rotation @ rotation.T, np.eye(3), atol=0.02)
  assert np.linalg.det(rotation) > 0
  assert np.abs(shown @ rotation - level).max() < 0.05


def test_a_smaller_panorama_does_not_alias():
  rng = np.random.default_rng(0)
  noise = rng.integers(0, 256, (540, 960, 3), dtype=np.uint8)
  layout = projections.NAMES['eac']
  native = projections.to_equirectangular(noise, layout)
  small = projections.to_equirectangular(noise, layout, 160)
  assert small.shape == (80, 160, 3)
  # Eight by eight pixels become one.
  assert small.std() < 0.25 * native.std()


@pytest.mark.parametrize('name', projections.NAMES)
def test_a_layout_can_be_named_stored_and_sent(name):
  layout = projections.NAMES[name]
  assert layout.name == name
  assert pickle.loads(pickle.dumps(layout)) == layout
  stored = json.loads(json.dumps(layout.to_dict()))
  assert stored['name'] == name
  assert stored['full_sphere'] == ('vr180' not in name)


@pytest.mark.parametrize(
  'fields',
  [
    {'projection': 'fisheye'},
    {'stereo': 'checkerboard'},
    {'left': 0.5, 'right': 0.5},
    {'top': -0.1},
    {'bottom': float('nan')},
  ],
)
def test_an_impossible_layout_is_refused(fields):
  with pytest.raises(ValueError):
    projections.Layout(**fields)
