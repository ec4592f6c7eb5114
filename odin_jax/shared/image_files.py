"""Views in files: a record's square JPEGs are read, PNGs are written."""

import functools
import pathlib

import cv2
from jaxtyping import UInt8, UInt16
import numpy as np

from odin_jax.shared import files

# What the JPEG decoder can divide the side by, several times as fast as
# decoding all of the image.
_REDUCTIONS = (
  (8, cv2.IMREAD_REDUCED_COLOR_8),
  (4, cv2.IMREAD_REDUCED_COLOR_4),
  (2, cv2.IMREAD_REDUCED_COLOR_2),
)


class TooSmallError(ValueError):
  """The image is smaller than the view that it should become.

  Attributes:
    side_px: of the image.
  """

  def __init__(self, side_px: int, size_px: int):
    super().__init__(f'an image of {side_px} px is below {size_px} px')
    self.side_px = side_px


@functools.cache
def _reduction(stored_px: int, size_px: int) -> int:
  """Flag of the strongest reduction that leaves `size_px`."""
  for divisor, flag in _REDUCTIONS:
    if stored_px % divisor == 0 and stored_px // divisor >= size_px:
      return flag
  return cv2.IMREAD_COLOR_RGB


def decode_square_jpeg(
  jpeg: bytes, size_px: int, *, stored_px: int | None = None
) -> UInt8[np.ndarray, 's s 3']:
  """A square JPEG at `size_px`, RGB, made smaller by area averaging.

  Args:
    jpeg: the image.
    size_px: side of the result.
    stored_px: side of the image; the decoder itself then reduces it as far as
      it can, which is fast and not to the bit the area average. None: all of
      the image is decoded.

  Raises:
    TooSmallError: the image is smaller than that.
    ValueError: no decodable square image.
  """
  flag = cv2.IMREAD_COLOR_RGB
  if stored_px is not None:
    flag = _reduction(stored_px, size_px)
  image = cv2.imdecode(np.frombuffer(jpeg, np.uint8), flag)
  if image is None or image.shape[0] != image.shape[1]:
    shape = None if image is None else image.shape
    raise ValueError(f'an image is no square JPEG (shape {shape})')
  if image.shape[0] < size_px:
    raise TooSmallError(image.shape[0], size_px)
  if image.shape[0] > size_px:
    image = cv2.resize(image, (size_px, size_px), interpolation=cv2.INTER_AREA)
  # The decoder has no flag for both, red first and a reduction.
  if flag == cv2.IMREAD_COLOR_RGB:
    return image
  return cv2.cvtColor(image, cv2.COLOR_BGR2RGB)


def write(
  path: pathlib.Path,
  image: UInt8[np.ndarray, 'h w 3'] | UInt16[np.ndarray, 'h w'],
) -> None:
  """Writes an image, under another name until it is whole.

  Args:
    path: its suffix says the format.
    image: sRGB, or one number of 16 bits per pixel, which PNG holds.

  Raises:
    OSError: it cannot be written; names the path.
  """
  if image.ndim == 3:
    image = image[..., ::-1]
  # cv2.imwrite says yes where the disk is full.
  _, data = cv2.imencode(path.suffix, image)
  with files.atomic_path(path) as temporary:
    temporary.write_bytes(data)
