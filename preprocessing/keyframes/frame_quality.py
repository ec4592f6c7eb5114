"""Which frames of a video are no use as keyframes, and why.

All is measured on one grey picture, at most 768 pixels wide:

* black: even its bright parts are dark;
* static overlay: nearly all of it is of one tone, as a title's background, or
  nearly all of it stays the same while time passes, as any title or logo does;
* near-duplicate: it differs from the last accepted frame by next to nothing;
* blurred: in one direction, differences between neighbours have become small
  against those between pixels four apart. That ratio hardly depends on what is
  seen, and it is compared with that of the video's own recent frames, so that a
  soft video is as good as a sharp one.
"""

import collections
import dataclasses

import cv2
from jaxtyping import Float, Float32, UInt8
import numpy as np

from preprocessing.writing import rejections

_WIDTH_PX = 768
_THUMBNAIL_SIZE = (96, 48)
# Levels that a pixel of the thumbnail may change by and count as unchanged.
_STILL_LEVELS = 1.0
# Blocks whose standard deviation is below this many levels are of one tone.
_PLAIN_LEVELS = 1.5
_BLOCK_PX = 8
_BLOCKS = (24, 48)
# Pixels between which differences are taken: neighbours, and the reference.
_NEAR_PX, _FAR_PX = 1, 4


@dataclasses.dataclass(frozen=True, kw_only=True)
class FrameRules:
  """Limits on keyframes; the fields of `config.frames`.

  Measured at 5 frames per second on a real hand-held video and four procedural
  ones: bright parts at 130 and more; at most 0.05 plain; at most 0.19
  unchanged; a change of 12 and more in a second; sharpness 0.94..1.07 of the
  median, and 0.83 and less with a Gaussian blur of one pixel or a motion blur
  of five.

  Attributes:
    min_bright_level: least 95th percentile of the grey levels.
    max_plain_share: largest share of blocks of one tone.
    max_still_share: largest share of pixels that stay as they were.
    min_change_levels: least mean difference from the last accepted frame.
    min_sharpness: least share of the sharpness of the video's recent frames,
      taken as their upper quartile.
    history: number of frames that are recent.
    max_damaged_share: a video of which more frames show damage of the file is
      refused.
  """

  min_bright_level: float
  max_plain_share: float
  max_still_share: float
  min_change_levels: float
  min_sharpness: float
  history: int
  max_damaged_share: float


class FrameFilter:
  """Judges the frames of one video, one after the other."""

  def __init__(self, rules: FrameRules):
    self._rules = rules
    # Thumbnails of the last accepted frame and the last judged one.
    self._accepted: Float32[np.ndarray, 't u'] | None = None
    self._judged: Float32[np.ndarray, 't u'] | None = None
    self._sharpness: collections.deque[Float[np.ndarray, '2']] = (
      collections.deque(maxlen=rules.history)
    )

  def judge(
    self,
    image: UInt8[np.ndarray, 'h w 3'],
    following: UInt8[np.ndarray, 'H W 3'] | None = None,
  ) -> rejections.Reason | None:
    """Why a frame is no use as the next keyframe; None if it is one.

    Args:
      image: a panorama; later than those judged before.
      following: the frame a fraction of a second later, if it is at hand. It
        finds the first frame of a title on a picture, which without it is
        taken for a new scene. No other frame of a title needs it.
    """
    grey = _grey(image)
    thumbnail = _thumbnail(grey)
    neighbours = [self._judged]
    if following is not None:
      neighbours.append(_thumbnail(_grey(following)))
    reason = self._reason(grey, thumbnail, neighbours)
    self._judged = thumbnail
    if reason is None:
      self._accepted = thumbnail
    return reason

  def _reason(
    self,
    grey: UInt8[np.ndarray, 'h w'],
    thumbnail: Float32[np.ndarray, 't u'],
    neighbours: list[Float32[np.ndarray, 't u'] | None],
  ) -> rejections.Reason | None:
    rules = self._rules
    if np.percentile(thumbnail, 95) < rules.min_bright_level:
      return rejections.Reason.BLACK
    if _plain_share(grey) > rules.max_plain_share:
      return rejections.Reason.STATIC
    change = _change(thumbnail, self._accepted)
    if change.mean() < rules.min_change_levels:
      return rejections.Reason.DUPLICATE
    for neighbour in neighbours:
      is_still = _change(thumbnail, neighbour) < _STILL_LEVELS
      if is_still.mean() > rules.max_still_share:
        return rejections.Reason.STATIC
    if self._is_blurred(_sharpness(grey)):
      return rejections.Reason.BLURRED
    return None

  def _is_blurred(self, sharpness: Float[np.ndarray, '2']) -> bool:
    # Blurred frames count as recent too: what stays soft is the new normal.
    self._sharpness.append(sharpness)
    usual = np.percentile(self._sharpness, 75, axis=0)
    return bool(np.any(sharpness < self._rules.min_sharpness * usual))


def _grey(image: UInt8[np.ndarray, 'h w 3']) -> UInt8[np.ndarray, 'H W']:
  height, width = image.shape[:2]
  if width > _WIDTH_PX:
    size = (_WIDTH_PX, round(height * _WIDTH_PX / width))
    image = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
  return cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)


def _thumbnail(grey: UInt8[np.ndarray, 'h w']) -> Float32[np.ndarray, 't u']:
  small = cv2.resize(grey, _THUMBNAIL_SIZE, interpolation=cv2.INTER_AREA)
  return small.astype(np.float32)


def _change(
  thumbnail: Float32[np.ndarray, 't u'],
  earlier: Float32[np.ndarray, 't u'] | None,
) -> Float32[np.ndarray, '...']:
  """Differences in grey levels; endless from a frame that there is not."""
  if earlier is None:
    return np.full(1, np.inf, np.float32)
  return np.abs(thumbnail - earlier)


def _plain_share(grey: UInt8[np.ndarray, 'h w']) -> float:
  """Share of blocks of one tone."""
  rows, columns = _BLOCKS
  size = (columns * _BLOCK_PX, rows * _BLOCK_PX)
  small = cv2.resize(grey, size, interpolation=cv2.INTER_AREA)
  small = small.astype(np.float32)
  means = cv2.resize(small, _BLOCKS[::-1], interpolation=cv2.INTER_AREA)
  squares = cv2.resize(small**2, _BLOCKS[::-1], interpolation=cv2.INTER_AREA)
  return float(np.mean(squares - means**2 < _PLAIN_LEVELS**2))


def _sharpness(grey: UInt8[np.ndarray, 'h w']) -> Float[np.ndarray, '2']:
  """Differences of neighbours against those further apart; down, across."""

  def ratio(lines: UInt8[np.ndarray, 'm n']) -> float:
    near = cv2.absdiff(lines[_NEAR_PX:], lines[:-_NEAR_PX])
    far = cv2.absdiff(lines[_FAR_PX:], lines[:-_FAR_PX])
    # The sum keeps a picture of one tone from a division by zero.
    return cv2.mean(near)[0] / (cv2.mean(far)[0] + 1e-3)

  return np.array([ratio(grey), ratio(cv2.transpose(grey))])
