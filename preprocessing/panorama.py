"""Views of equirectangular images.

Pixel coordinates are those of `odin_jax.shared.camera`: centres at integer
+ 0.5. OpenCV counts centres from 0, hence the shifts by half a pixel before its
`remap`, here and wherever else it is called.
"""

import functools

import cv2
from jaxtyping import Float, Float32, UInt8
import numpy as np

from odin_jax.shared import camera, equirect

# Bicubic interpolation reads two pixels to each side of a sample.
MARGIN_PX = 3


def view_directions(
  *,
  yaw_deg: float,
  pitch_deg: float,
  fov_deg: float,
  size_px: int,
  dtype: type[np.floating] = np.float64,
) -> Float[np.ndarray, 's s 3']:
  """Rays of a view's pixel centres in the panorama's axes, not normalised."""
  right, down, forward = camera.view2frame_rotation(yaw_deg, pitch_deg).T
  centres = (np.arange(size_px) + 0.5) * (2 / size_px) - 1
  across = centres * np.tan(np.deg2rad(fov_deg) / 2)
  # A ray is a sum of what its column and what its row gives.
  columns = np.multiply.outer(right, across).astype(dtype)
  rows = (np.multiply.outer(down, across) + forward[:, None]).astype(dtype)
  return np.moveaxis(rows[:, :, None] + columns[:, None, :], 0, -1)


# For views that all frames have: cube faces, a matcher's, an export's. More
# would only keep the maps of chosen views, megabytes each that nothing asks for
# again.
@functools.lru_cache(maxsize=16)
def _view_maps(
  width: int,
  height: int,
  yaw_deg: float,
  pitch_deg: float,
  fov_deg: float,
  size_px: int,
) -> tuple[Float32[np.ndarray, 's s'], Float32[np.ndarray, 's s']]:
  # Single precision is good for 1e-4 pixels, and three times as fast.
  directions = view_directions(
    yaw_deg=yaw_deg,
    pitch_deg=pitch_deg,
    fov_deg=fov_deg,
    size_px=size_px,
    dtype=np.float32,
  )
  u, v = camera.direction_to_equirect(directions, width, height)
  shift = MARGIN_PX - 0.5
  return u + np.float32(shift), v + np.float32(shift)


class Views:
  """Cuts views of one panorama, which is padded once for all of them.

  Args:
    panorama: an equirectangular image of even width; height spans 180 degrees
      whatever the aspect ratio.
    interpolation: between pixels, an OpenCV constant.
  """

  def __init__(
    self,
    panorama: UInt8[np.ndarray, 'h w *c'],
    interpolation: int = cv2.INTER_CUBIC,
  ):
    self._height, self._width = panorama.shape[:2]
    # OpenCV interpolates floats faster than bytes, and to the same bytes.
    self._padded = equirect.pad(panorama, MARGIN_PX).astype(np.float32)
    self._interpolation = interpolation

  def cut(
    self, *, yaw_deg: float, pitch_deg: float, fov_deg: float, size_px: int
  ) -> UInt8[np.ndarray, 's s *c']:
    """A square perspective view.

    Where the panorama is finer than the view, the view is sampled at a
    multiple of its size and averaged down, so that it does not alias.

    Args:
      yaw_deg: optical axis, positive to the right.
      pitch_deg: optical axis, positive up.
      fov_deg: full field of view, horizontal = vertical, below 180.
      size_px: width = height of the view.
    """
    panorama_px_per_rad = self._width / (2 * np.pi)
    view_px_per_rad = camera.intrinsics(fov_deg, size_px)[0, 0]
    factor = max(1, round(panorama_px_per_rad / view_px_per_rad))
    maps = _view_maps(
      self._width, self._height, yaw_deg, pitch_deg, fov_deg, size_px * factor
    )
    view = cv2.remap(self._padded, *maps, self._interpolation)
    # Rounds, and limits what overshoots.
    view = cv2.add(view, (0.0, 0.0, 0.0, 0.0), dtype=cv2.CV_8U)
    if factor > 1:
      size = (size_px, size_px)
      view = cv2.resize(view, size, interpolation=cv2.INTER_AREA)
    return view


def cut_view(
  panorama: UInt8[np.ndarray, 'h w 3'],
  *,
  yaw_deg: float,
  pitch_deg: float,
  fov_deg: float,
  size_px: int,
) -> UInt8[np.ndarray, 's s 3']:
  """A square perspective view of a panorama; for several see `Views`."""
  return Views(panorama).cut(
    yaw_deg=yaw_deg, pitch_deg=pitch_deg, fov_deg=fov_deg, size_px=size_px
  )
