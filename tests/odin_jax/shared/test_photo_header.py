"""What headers of photos tell: focal length, kind of picture."""

import numpy as np
from PIL import Image
import pytest

from odin_jax.shared import photo_header


def photo(path, size, *, focal_mm=None, taken=None, orientation=1, **options):
  """A JPEG as a camera with this focal length (35 mm film) writes it."""
  image = Image.new('RGB', size)
  exif = image.getexif()
  exif[0x0112] = orientation
  tags = exif.get_ifd(0x8769)
  if focal_mm is not None:
    tags[0xA405] = focal_mm
  if taken:
    tags[0xA002], tags[0xA003] = taken
  image.save(path, exif=exif, **options)
  return path


@pytest.mark.parametrize('size', [(60, 40), (40, 60)])
@pytest.mark.parametrize('focal_mm', [18, 24, 50])
def test_the_square_middle_of_film_is_24_mm_wide(tmp_path, size, focal_mm):
  path = photo(tmp_path / 'a.jpg', size, focal_mm=focal_mm)
  expected = 2 * np.rad2deg(np.arctan(12 / focal_mm))
  assert photo_header.fov_deg(path) == pytest.approx(expected)


def test_other_proportions_have_the_same_diagonal(tmp_path):
  # A phone's main camera: 4:3, 26 mm; its shorter side is 3/5 of the diagonal.
  path = photo(tmp_path / 'a.jpg', (80, 60), focal_mm=26, orientation=6)
  half = 0.6 * np.hypot(36, 24) / 2 / 26
  expected = 2 * np.rad2deg(np.arctan(half))
  assert photo_header.fov_deg(path) == pytest.approx(expected)


@pytest.mark.parametrize(
  'given, is_known',
  [
    ({}, False),
    ({'focal_mm': 0}, False),
    ({'focal_mm': 24, 'taken': (600, 400)}, True),
    # Reduced and turned, but whole; cropped to a square.
    ({'focal_mm': 24, 'taken': (4000, 6000)}, True),
    ({'focal_mm': 24, 'taken': (400, 400)}, False),
  ],
)
def test_what_is_not_told_is_not_known(tmp_path, given, is_known):
  path = photo(tmp_path / 'a.jpg', (60, 40), **given)
  assert (photo_header.fov_deg(path) is not None) == is_known


def test_a_file_without_a_header_tells_nothing(tmp_path):
  path = tmp_path / 'a.png'
  Image.new('L', (3, 2)).save(path)
  assert photo_header.fov_deg(path) is None
  assert not photo_header.is_equirectangular(path)


@pytest.mark.parametrize(
  'xmp, expected',
  [
    (b'<x GPano:ProjectionType="equirectangular"/>', True),
    (b'<GPano:ProjectionType>equirectangular</GPano:ProjectionType>', True),
    (b'<x GPano:ProjectionType="cylindrical"/>', False),
  ],
)
def test_a_panorama_says_so(tmp_path, xmp, expected):
  path = photo(tmp_path / 'a.jpg', (64, 32), xmp=xmp)
  assert photo_header.is_equirectangular(path) == expected
