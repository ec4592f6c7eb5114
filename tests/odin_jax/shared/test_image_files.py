"""Views in files: decoded reduced or whole, refused, written."""

import errno
import os
import resource

import cv2
import numpy as np
import pytest

from odin_jax.shared import command, image_files
from tests.helpers.posed_records import jpeg


@pytest.mark.parametrize('stored_px', [32, 96, 130, 256])
def test_reduced_decoding_is_area_averaging(stored_px):
  coarse = np.random.default_rng(0).integers(0, 256, (6, 6, 3), np.uint8)
  image = cv2.resize(coarse, (stored_px,) * 2, interpolation=cv2.INTER_CUBIC)
  full = cv2.imdecode(np.frombuffer(jpeg(image), np.uint8), cv2.IMREAD_COLOR)
  expected = cv2.resize(full, (32, 32), interpolation=cv2.INTER_AREA)[..., ::-1]
  decoded = image_files.decode_square_jpeg(jpeg(image), 32, stored_px=stored_px)
  assert decoded.shape == (32, 32, 3)
  assert np.abs(decoded.astype(int) - expected).mean() < 1.5
  whole = image_files.decode_square_jpeg(jpeg(image), 32)
  np.testing.assert_array_equal(whole, expected)


def test_what_is_no_view_of_that_size_is_refused():
  image = np.zeros((16, 16, 3), np.uint8)
  with pytest.raises(image_files.TooSmallError, match='16 px is below 32 px'):
    image_files.decode_square_jpeg(jpeg(image), 32)
  with pytest.raises(ValueError, match='no square JPEG'):
    image_files.decode_square_jpeg(jpeg(image[:8]), 8)
  with pytest.raises(ValueError, match='no square JPEG'):
    image_files.decode_square_jpeg(b'no picture', 8)


def test_an_image_is_written_in_rgb_or_the_path_is_named(tmp_path):
  image = np.random.default_rng(0).integers(0, 256, (4, 6, 3), np.uint8)
  image_files.write(tmp_path / 'image.png', image)
  read = cv2.imread(str(tmp_path / 'image.png'))[..., ::-1]
  np.testing.assert_array_equal(read, image)
  with pytest.raises(OSError, match='no_folder/image.png'):
    image_files.write(tmp_path / 'no_folder' / 'image.png', image)
  assert len(list(tmp_path.iterdir())) == 1


def test_a_disk_that_is_full_is_told_and_leaves_no_part_of_an_image(tmp_path):
  """OpenCV's own writer says that all is well."""
  image = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
  limits = resource.getrlimit(resource.RLIMIT_FSIZE)
  resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limits[1]))
  try:
    with pytest.raises(OSError) as raised:
      image_files.write(tmp_path / 'image.png', image)
  finally:
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)
  assert list(tmp_path.iterdir()) == []
  assert command.ending(raised.value) == (
    2,
    f'{tmp_path / "image.png"}: {os.strerror(errno.EFBIG)}',
  )
