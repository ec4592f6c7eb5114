"""Where the points of a keyframe go until the next one, by small steps.

Between two keyframes identical things (the bays of a corridor) can change
places; within a sub-step of 0.2 s they cannot. So each point of a keyframe is
followed through the sub-steps by pyramidal Lucas-Kanade flow on the
equirectangular image, and matching later looks only near the place where it
arrived. J.-Y. Bouguet, "Pyramidal implementation of the Lucas Kanade feature
tracker", Intel 2000.
"""

import cv2
from jaxtyping import Bool, Float, UInt8
import numpy as np

from odin_jax.shared import camera, equirect

# What is repeated beyond the seam and the poles, as a share of the height: 30
# degrees. A point moves less in a step.
_PAD_SHARE = 1 / 6
_FLOW = dict(
  winSize=(15, 15),
  maxLevel=3,
  criteria=(cv2.TERM_CRITERIA_EPS | cv2.TERM_CRITERIA_COUNT, 20, 0.01),
)
# Forward and back again must end where it began.
_MAX_RETURN_PX = 0.7
# Beyond this latitude the image is stretched too much for a square window.
_MAX_LATITUDE_DEG = 65.0


class FlowTracker:
  """Follows the points of one keyframe from frame to frame.

  Args:
    image: the keyframe, [h, w, 3].
    rays: its points as unit bearing vectors.
  """

  def __init__(
    self, image: UInt8[np.ndarray, 'h w 3'], rays: Float[np.ndarray, 'n 3']
  ):
    self._height, self._width = image.shape[:2]
    self._pad_px = int(self._height * _PAD_SHARE)
    self._image = self._padded_grey(image)
    pixels = np.stack(
      camera.direction_to_equirect(rays, self._width, self._height), axis=-1
    )
    # A corner with several orientations is described as often, at one place.
    self._pixels, self._place = np.unique(pixels, axis=0, return_inverse=True)
    self._alive = self._inside()

  def _padded_grey(self, image: UInt8[np.ndarray, 'h w 3']) -> np.ndarray:
    grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
    return equirect.pad(grey, self._pad_px)

  def _inside(self) -> Bool[np.ndarray, 'n']:
    latitude_deg = (self._pixels[:, 1] / self._height - 0.5) * 180
    return np.abs(latitude_deg) < _MAX_LATITUDE_DEG

  def step(self, image: UInt8[np.ndarray, 'h w 3']) -> None:
    """Follows the living points into the next frame."""
    following = self._padded_grey(image)
    living = np.flatnonzero(self._alive)
    if len(living):
      # OpenCV counts pixels from their centres.
      start = (self._pixels[living] - 0.5 + self._pad_px).astype(np.float32)
      end, is_tracked, _ = cv2.calcOpticalFlowPyrLK(
        self._image, following, start[:, None], None, **_FLOW
      )
      back, is_tracked_back, _ = cv2.calcOpticalFlowPyrLK(
        following, self._image, end, None, **_FLOW
      )
      returned = np.linalg.norm(back[:, 0] - start, axis=1) < _MAX_RETURN_PX
      self._alive[living] = (
        returned & (is_tracked[:, 0] > 0) & (is_tracked_back[:, 0] > 0)
      )
      self._pixels[living] = end[:, 0] + (0.5 - self._pad_px)
      self._pixels[:, 0] %= self._width
      self._alive &= self._inside()
    self._image = following

  def rays(self) -> Float[np.ndarray, 'n 3']:
    """Where the points are now; NaN for those that were lost."""
    rays = camera.equirect_to_direction(
      self._pixels[:, 0], self._pixels[:, 1], self._width, self._height
    )
    rays[~self._alive] = np.nan
    return rays[self._place]
