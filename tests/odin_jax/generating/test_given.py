"""Views of what is given: a photo's middle, a panorama in any direction."""

import dataclasses

import cv2
import numpy as np
import pytest

from odin_jax.generating import given
from odin_jax.geometry import vanishing_points
from odin_jax.shared import camera, errors
from tests.odin_jax.shared.test_photo_header import photo

WHITE = (255, 255, 255)


def read(path, **flags):
  flags = {'background': WHITE, 'fov_deg': None, 'is_panorama': None, **flags}
  return given.read(path, **flags)


def directions_as_colours(width):
  """A panorama whose colours are its directions, -1 to 1 as 0 to 255."""
  u, v = camera.pixel_centres(width, width // 2)
  rays = camera.equirect_to_direction(u, v, width, width // 2)
  return np.round((rays + 1) * 127.5).astype(np.uint8)


@pytest.mark.parametrize('width', [256, 2048])
@pytest.mark.parametrize(
  'yaw, pitch', [(0.0, 0.0), (170.0, -30.0), (-90.0, 80.0)]
)
def test_a_view_of_a_panorama_shows_the_directions_of_its_rays(
  width, yaw, pitch
):
  start = given.Given(directions_as_colours(width), 90.0, 'assumed', True)
  rotation = camera.view2frame_rotation(yaw, pitch)
  pose = camera.make_pose(rotation, np.array([0.3, 0.0, -0.2]))
  view, own = start.views(24)(pose)
  np.testing.assert_array_equal(own, camera.make_pose(rotation, np.zeros(3)))
  rays = camera.view_rays(90.0, 24) @ rotation.T
  rays /= np.linalg.norm(rays, axis=-1, keepdims=True)
  # Two levels, and what a pixel averages.
  assert np.abs(view / 127.5 - 1 - rays).max() < 0.04


def test_a_photo_is_cut_to_its_middle_wherever_the_camera_goes():
  image = np.zeros((40, 100, 3), np.uint8)
  image[:, 30:70] = 200
  start = given.Given(image, 60.0, 'flag', False)
  pose = camera.make_pose(camera.rotation_y(1.0), np.ones(3))
  view, own = start.views(8)(pose)
  assert (view == 200).all()
  np.testing.assert_array_equal(own, camera.identity_pose())


def test_the_field_of_view_is_a_flag_s_or_a_header_s_or_assumed(tmp_path):
  known = photo(tmp_path / 'known.jpg', (60, 40), focal_mm=24)
  silent = photo(tmp_path / 'silent.jpg', (60, 40))
  found = [
    (start.fov_from, round(start.fov_deg, 1))
    for start in (read(known, fov_deg=70.0), read(known), read(silent))
  ]
  assert found == [('flag', 70.0), ('header', 53.1), ('assumed', 90.0)]


def test_a_silent_photo_s_lines_tell_its_field_of_view(tmp_path, monkeypatch):
  silent = photo(tmp_path / 'silent.jpg', (60, 40))
  sure = vanishing_points.Estimate(
    fov_deg=61.0, sigma_deg=0.3, share=0.9, rival=0.8, counts=(9, 9, 9)
  )
  for found, expected in (
    (sure, ('lines', 61.0)),
    (dataclasses.replace(sure, rival=0.97), ('assumed', 90.0)),
    (None, ('assumed', 90.0)),
  ):
    monkeypatch.setattr(vanishing_points, 'estimate', lambda _, x=found: x)
    start = read(silent)
    assert (start.fov_from, start.fov_deg) == expected
  # Lines count on the middle of the camera's picture.
  monkeypatch.setattr(vanishing_points, 'estimate', lambda _: sure)
  cropped = photo(
    tmp_path / 'cropped.jpg', (40, 40), focal_mm=24, taken=(60, 40)
  )
  assert read(cropped).fov_from == 'assumed'
  # What is told goes before.
  monkeypatch.setattr(vanishing_points, 'estimate', lambda _: sure)
  known = photo(tmp_path / 'known.jpg', (60, 40), focal_mm=24)
  assert read(known).fov_from == 'header'
  assert read(silent, fov_deg=70.0).fov_from == 'flag'


def test_a_panorama_is_one_by_its_header_or_by_word(tmp_path):
  tagged = photo(
    tmp_path / 'tagged.jpg',
    (64, 32),
    xmp=b'<x GPano:ProjectionType="equirectangular"/>',
  )
  plain = photo(tmp_path / 'plain.jpg', (64, 32))
  assert read(tagged).is_panorama and not read(plain).is_panorama
  assert read(plain, is_panorama=True).is_panorama
  assert not read(tagged, is_panorama=False).is_panorama


def test_a_part_of_a_sphere_is_refused(tmp_path):
  path = tmp_path / 'part.png'
  cv2.imwrite(str(path), np.zeros((20, 64, 3), np.uint8))
  with pytest.raises(errors.UserError, match='64x20 px; a panorama is'):
    read(path, is_panorama=True)


def test_a_panorama_that_says_it_is_cropped_is_refused(tmp_path):
  tags = (
    b'<x GPano:ProjectionType="equirectangular" '
    b'GPano:CroppedAreaImageWidthPixels="%d" GPano:FullPanoWidthPixels="64"/>'
  )
  # A piece of the sphere may be twice as wide as high, too.
  piece = photo(tmp_path / 'piece.jpg', (64, 32), xmp=tags % 32)
  whole = photo(tmp_path / 'whole.jpg', (64, 32), xmp=tags % 64)
  assert read(whole).is_panorama
  with pytest.raises(errors.UserError, match='all of the sphere'):
    read(piece)
