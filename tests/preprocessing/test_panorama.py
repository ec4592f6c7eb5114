"""Views and padding of panoramas whose colour is a function of direction."""

import functools

from hypothesis import given, settings
from hypothesis import strategies as st
import numpy as np
import pytest

from odin_jax.shared import camera, equirect
from preprocessing import panorama
from tests.helpers import exact_views

# Wave vectors of four plane waves for each of three channels.
_WAVES = 2 * np.random.default_rng(0).normal(size=(4, 3, 3))


def colour(directions):
  """A smooth colour in 20..235 of every direction, in float64."""
  unit = directions / np.linalg.norm(directions, axis=-1, keepdims=True)
  waves = np.sin(np.einsum('kci,...i->...kc', _WAVES, unit))
  return 127.5 + 107.5 * waves.mean(-2)


@functools.lru_cache
def make_panorama(width, height):
  u, v = camera.pixel_centres(width, height)
  directions = camera.equirect_to_direction(u, v, width, height)
  return np.rint(colour(directions)).astype(np.uint8)


@pytest.fixture(scope='module')
def smooth():
  return make_panorama(512, 256)


@settings(max_examples=25, deadline=None)
@given(
  yaw=st.floats(-400, 400),
  pitch=st.floats(-90, 90),
  fov=st.floats(30, 120),
  size=st.integers(8, 70),
)
def test_a_view_shows_the_colour_of_its_directions(yaw, pitch, fov, size):
  image = make_panorama(256, 128)
  view = panorama.cut_view(
    image, yaw_deg=yaw, pitch_deg=pitch, fov_deg=fov, size_px=size
  )
  rays = camera.view_rays(fov, size)
  truth = colour(rays @ camera.view2frame_rotation(yaw, pitch).T)
  assert view.shape == (size, size, 3)
  # Where the view is coarse, a pixel is the mean over its area.
  focal_px = camera.intrinsics(fov, size)[0, 0]
  assert np.abs(view - truth).max() < 2.5 + 4000 / focal_px**2


@pytest.mark.parametrize(
  ('yaw', 'pitch'),
  [(180.0, 0.0), (-180.0, 30.0), (0.0, 90.0), (77.0, -90.0), (179.9, 89.0)],
)
def test_seam_and_poles_leave_no_trace(smooth, yaw, pitch):
  view = panorama.cut_view(
    smooth, yaw_deg=yaw, pitch_deg=pitch, fov_deg=90.0, size_px=128
  )
  rays = camera.view_rays(90.0, 128) @ camera.view2frame_rotation(yaw, pitch).T
  assert np.abs(view - colour(rays)).max() < 2


def test_height_spans_half_a_turn_whatever_the_aspect():
  # As in the real video of 640x322.
  image = make_panorama(640, 322)
  view = panorama.cut_view(
    image, yaw_deg=30.0, pitch_deg=-20.0, fov_deg=80.0, size_px=128
  )
  rays = camera.view_rays(80.0, 128) @ camera.view2frame_rotation(30.0, -20.0).T
  assert np.abs(view - colour(rays)).max() < 2


@settings(max_examples=20, deadline=None)
@given(
  half_width=st.integers(8, 40),
  height=st.integers(8, 40),
  margin=st.integers(1, 8),
)
def test_padding_goes_on_over_the_sphere(half_width, height, margin):
  width = 2 * half_width
  padded = equirect.pad(make_panorama(width, height), margin)
  u, v = np.meshgrid(
    np.arange(-margin, width + margin) + 0.5,
    np.arange(-margin, height + margin) + 0.5,
  )
  # The formula of directions holds beyond the poles: cos(latitude) < 0 is
  # the other side of the sphere.
  truth = colour(camera.equirect_to_direction(u, v, width, height))
  assert np.abs(padded - truth).max() <= 0.501


def test_a_coarse_view_of_a_fine_panorama_does_not_alias():
  checker = np.indices((512, 1024)).sum(0) % 2 * 255
  image = np.repeat(checker[..., None], 3, -1).astype(np.uint8)
  view = panorama.cut_view(
    image, yaw_deg=0.0, pitch_deg=0.0, fov_deg=90.0, size_px=32
  )
  assert np.abs(view.astype(float) - 127.5).max() < 30


def test_single_channel_masks_can_be_padded():
  mask = np.zeros((8, 16, 1), np.uint8)
  mask[0, 0] = 1
  padded = equirect.pad(mask, 2)
  assert padded.shape == (12, 20, 1)
  # Above the first row lies the row itself, half a turn away.
  assert padded[1, 2 + 8] == 1


@pytest.mark.parametrize(
  ('yaw', 'pitch'), [(0.0, 0.0), (180.0, 30.0), (-75.0, -90.0), (33.3, 71.7)]
)
def test_a_view_is_the_float64_bicubic_one_rounded(yaw, pitch):
  # Noise: an error of the coordinates shows in full.
  noise = np.random.default_rng(1).integers(0, 256, (128, 256, 3), np.uint8)
  angles = dict(pitch_deg=pitch, fov_deg=90.0, size_px=96)
  view = panorama.cut_view(noise, yaw_deg=yaw, **angles)
  reference = exact_views.view(noise, yaw, **angles)
  assert np.abs(view - reference).max() < 1.0


def test_views_of_a_padded_panorama_are_those_cut_alone(smooth):
  views = panorama.Views(smooth)
  for yaw in (0.0, 120.0):
    angles = dict(yaw_deg=yaw, pitch_deg=5.0, fov_deg=80.0, size_px=40)
    np.testing.assert_array_equal(
      views.cut(**angles), panorama.cut_view(smooth, **angles)
    )
