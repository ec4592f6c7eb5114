"""Views of a panorama in any direction, without jaggies, in a millisecond.

A view's pixel is the average of the panorama over the pixel's square. That is
had in three steps, each of them fast: the JPEG decoder halves the panorama as
often as it stays at least twice as fine as the view; the view is sampled a few
times finer than asked for, between neighbouring pixels; and averaged down.
"""

import dataclasses

import cv2
from jaxtyping import Float, Float32, UInt8
import numpy as np

from odin_jax.shared import camera, equirect

_REDUCTIONS = (
  (8, cv2.IMREAD_REDUCED_COLOR_8),
  (4, cv2.IMREAD_REDUCED_COLOR_4),
  (2, cv2.IMREAD_REDUCED_COLOR_2),
  (1, cv2.IMREAD_COLOR),
)
# A panorama stays so many times as fine as the view in its middle.
_MIN_RATIO = 2.0
# Bilinear interpolation reads half a pixel beyond the edge.
_MARGIN_PX = 1


@dataclasses.dataclass(frozen=True)
class View:
  """A square perspective view of a panorama.

  Attributes:
    view2frame: its rotation, into the axes of the panorama.
    fov_deg: full field of view, horizontal = vertical, below 180.
  """

  view2frame: Float[np.ndarray, '3 3']
  fov_deg: float

  def rays(self, size_px: int) -> Float32[np.ndarray, 's s 3']:
    """Rays of its pixel centres, z = 1, turned into the panorama's axes."""
    right, down, forward = self.view2frame.T
    centres = (np.arange(size_px) + 0.5) * (2 / size_px) - 1
    across = centres * np.tan(np.deg2rad(self.fov_deg) / 2)
    # A ray is a sum of what its column and what its row gives.
    columns = np.multiply.outer(across, right).astype(np.float32)
    rows = (np.multiply.outer(across, down) + forward).astype(np.float32)
    return rows[:, None] + columns


def reduction(width_px: int, height_px: int, view_px_per_rad: float) -> int:
  """By how much a panorama is made smaller as it is decoded for such views.

  Args:
    width_px: of the panorama.
    height_px: of the panorama.
    view_px_per_rad: of the finest view, in its middle.
  """
  px_per_rad = width_px / (2 * np.pi)
  return next(
    divisor
    for divisor, _ in _REDUCTIONS
    if divisor == 1
    # Else the decoder rounds the size up, and the picture is not all of it.
    or width_px % (2 * divisor) == height_px % divisor == 0
    and px_per_rad / divisor >= _MIN_RATIO * view_px_per_rad
  )


class Panorama:
  """A panorama, ready for views to be cut of it.

  Args:
    image: equirectangular, of even width; its height spans 180 degrees.
  """

  def __init__(self, image: UInt8[np.ndarray, 'h w 3']):
    self._height, self._width = image.shape[:2]
    self._padded = equirect.pad(image, _MARGIN_PX)

  def cut(self, view: View, size_px: int) -> UInt8[np.ndarray, 's s 3']:
    """The view, `size_px` wide and high."""
    view_px_per_rad = camera.intrinsics(view.fov_deg, size_px)[0, 0]
    factor = max(
      1, int(np.ceil(self._width / (2 * np.pi) / view_px_per_rad - 1e-6))
    )
    u, v = camera.direction_to_equirect(
      view.rays(size_px * factor), self._width, self._height
    )
    # OpenCV counts pixel centres from 0.
    shift = np.float32(_MARGIN_PX - 0.5)
    image = cv2.remap(self._padded, u + shift, v + shift, cv2.INTER_LINEAR)
    if factor == 1:
      return image
    return cv2.resize(image, (size_px, size_px), interpolation=cv2.INTER_AREA)


def decode(
  jpeg: bytes, width_px: int, height_px: int, divisor: int
) -> Panorama:
  """The panorama of a JPEG.

  Args:
    jpeg: as `Panorama` has it.
    width_px: that it should have, even.
    height_px: that it should have.
    divisor: from `reduction`.

  Raises:
    ValueError: it is no decodable JPEG of this size.
  """
  flag = dict(_REDUCTIONS)[divisor]
  image = cv2.imdecode(np.frombuffer(jpeg, np.uint8), flag)
  if image is None or image.shape[:2] != (
    height_px // divisor,
    width_px // divisor,
  ):
    shape = 'none' if image is None else f'{image.shape[1]} x {image.shape[0]}'
    raise ValueError(
      f'its image is no JPEG of {width_px} x {height_px} px '
      f'(decoded by {divisor}: {shape})'
    )
  return Panorama(cv2.cvtColor(image, cv2.COLOR_BGR2RGB))
