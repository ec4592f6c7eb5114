"""What the header of an image file tells of the camera that took it."""

import io
import os
import pathlib
import re
from typing import Any, Mapping

import numpy as np
from PIL import Image

from odin_jax.shared import camera

# EXIF (CIPA DC-008), in the folder of EXIF's own tags.
_EXIF = 0x8769
_FOCAL_LENGTH_35MM = 0xA405
_WIDTH, _HEIGHT = 0xA002, 0xA003
# Diagonal of a frame of 35 mm film, 36 x 24 mm, by which CIPA DC-008 defines
# that focal length.
_DIAGONAL_MM = float(np.hypot(36, 24))
# By which the sides' ratio may differ from that of the camera's picture.
_SAME_RATIO = 0.02
# https://developers.google.com/streetview/spherical-metadata
_EQUIRECTANGULAR = re.compile(
  rb'GPano:ProjectionType(?:=["\']|>)\s*equirectangular'
)
_WIDTHS = {
  name: re.compile(rb'GPano:' + name + rb'(?:=["\']|>)\s*(\d+)')
  for name in (b'CroppedAreaImageWidthPixels', b'FullPanoWidthPixels')
}
# XMP stands before the picture.
_HEADER_BYTES = 1 << 18


def fov_deg(path: str | os.PathLike[str]) -> float | None:
  """Field of view of an image's square middle, full, in degrees.

  By the focal length that EXIF gives for 35 mm film. None where it gives none,
  and where the image was cropped to other proportions since.

  Args:
    path: of an image that can be read.
  """
  tags, size = _exif(path)
  focal_mm = _positive(tags.get(_FOCAL_LENGTH_35MM))
  if focal_mm is None or _has_other_proportions(tags, size):
    return None
  focal_px = focal_mm / _DIAGONAL_MM * np.hypot(*size)
  return camera.square_fov_deg((focal_px, focal_px), size)


def was_cropped(path: str | os.PathLike[str]) -> bool:
  """Whether an image has other proportions than its camera gave it.

  Its middle is not that of the camera's picture then. Args as of `fov_deg`.
  """
  return _has_other_proportions(*_exif(path))


def _has_other_proportions(
  tags: Mapping[int, Any], size: tuple[int, int]
) -> bool:
  taken = [_positive(tags.get(tag)) for tag in (_WIDTH, _HEIGHT)]
  if None in taken:
    return False
  ratios = [max(sides) / min(sides) for sides in (taken, size)]
  return abs(ratios[0] / ratios[1] - 1) > _SAME_RATIO


def _exif(
  path: str | os.PathLike[str],
) -> tuple[Mapping[int, Any], tuple[int, int]]:
  """Its tags, and the size of the picture."""
  with Image.open(path) as image:
    return image.getexif().get_ifd(_EXIF), image.size


def _positive(value: object) -> float | None:
  """A number as EXIF has it; 0 says that it is not known."""
  try:
    number = float(value)
  except (TypeError, ValueError, ZeroDivisionError):
    return None
  return number if 0 < number < float('inf') else None


def is_equirectangular(path: str | os.PathLike[str]) -> bool:
  """Whether XMP says that an image is a panorama of this projection."""
  return _EQUIRECTANGULAR.search(_start(path)) is not None


def is_cropped(path: str | os.PathLike[str]) -> bool:
  """Whether XMP says that a panorama is a part of the sphere."""
  header = _start(path)
  found = [pattern.search(header) for pattern in _WIDTHS.values()]
  if not all(found):
    return False
  cropped, full = (int(match[1]) for match in found)
  return cropped < full


def _start(path: str | os.PathLike[str]) -> bytes:
  with io.FileIO(pathlib.Path(path)) as file:
    return file.read(_HEADER_BYTES)
