"""Any layout of a 360-degree frame -> an equirectangular image.

Pixel coordinates are those of `odin_jax.shared.camera`: centres at integer
+ 0.5, so OpenCV's are half a pixel less.

Equi-angular cubemaps (EAC) have six faces in two rows of three,

    left   front   right
    down   back    up        (each turned by a quarter, so that they join)

in which equal steps are equal angles: u = 2/pi atan(x) + 1/2 in [0, 1]
(https://blog.google/products/google-ar-vr/bringing-pixels-front-and-center-vr-video).
Within a row the faces join; rows carry two pixels of padding at their borders,
as in FFmpeg's v360 filter.

Of stereo frames the first eye is used, in the top or left half; it is the left
eye unless the file swaps them.
"""

import dataclasses
import functools
import math
from typing import Any

import cv2
from jaxtyping import Bool, Float, Float32, UInt8
import numpy as np

from odin_jax.shared import camera, equirect
from preprocessing import panorama

Image = UInt8[np.ndarray, 'h w 3']

# A panorama is twice as wide as high; encoders pad it to whole blocks.
_ASPECT_RANGE = (1.9, 2.1)
_EAC_PADDING_PX = 2
# Stereo mode -> parts of the frame's height and width that one eye fills.
_EYE_SHARE = {'mono': (1, 1), 'top-bottom': (2, 1), 'left-right': (1, 2)}
_SUFFIXES = {'mono': '', 'top-bottom': '-tb', 'left-right': '-sbs'}
_EPSILON = 1e-9


def _faces(*rows: str) -> Float[np.ndarray, '2 3 3 3']:
  """Axes from words such as `+x+y+z`: right, down and outward of a face."""
  unit = {'x': (1.0, 0.0, 0.0), 'y': (0.0, 1.0, 0.0), 'z': (0.0, 0.0, 1.0)}
  signs = {'+': 1.0, '-': -1.0}
  return np.array(
    [
      [
        [signs[word[i]] * np.array(unit[word[i + 1]]) for i in (0, 2, 4)]
        for word in row.split()
      ]
      for row in rows
    ]
  )


# [2, 3, 3, 3]; row, column, then right, down and outward axis of the face.
_EAC_FACES = _faces('+z+y-x +x+y+z -z+y+x', '-z-x+y -y-x-z +z-x-y')


@dataclasses.dataclass(frozen=True, kw_only=True)
class Layout:
  """How the frames of a video show the sphere.

  Attributes:
    projection: `equirectangular` or `eac`.
    stereo: `mono`, `top-bottom` or `left-right`.
    left: share of the sphere's width that an equirectangular frame lacks on
      its left; VR180 lacks a quarter on either side.
    right: the same on its right.
    top: share of the sphere's height that it lacks above.
    bottom: the same below.
    black_back: the frame has room for the back half, and it is black.
    yaw_deg: with pitch and roll the rotation R_y(yaw) R_x(pitch) R_z(roll)
      from the frame's axes to level ones, as FFmpeg's AVSphericalMapping: what
      is in front moves right, up, and tilts to the right.
    pitch_deg: see `yaw_deg`.
    roll_deg: see `yaw_deg`.
  """

  projection: str = 'equirectangular'
  stereo: str = 'mono'
  left: float = 0.0
  right: float = 0.0
  top: float = 0.0
  bottom: float = 0.0
  black_back: bool = False
  yaw_deg: float = 0.0
  pitch_deg: float = 0.0
  roll_deg: float = 0.0

  def __post_init__(self) -> None:
    if self.projection not in ('equirectangular', 'eac'):
      raise ValueError(f'unknown projection {self.projection!r}')
    if self.stereo not in _EYE_SHARE:
      raise ValueError(f'unknown stereo mode {self.stereo!r}')
    borders = (self.left, self.right, self.top, self.bottom)
    if min(borders) < 0 or not (
      self.left + self.right < 1 and self.top + self.bottom < 1
    ):
      raise ValueError(f'borders {borders} leave nothing of the sphere')

  @property
  def name(self) -> str:
    """The name that `--projection` knows it by, whatever its pose and size."""
    kind = self.projection
    if self.black_back:
      kind = 'vr180-padded'
    elif min(self.left, self.right) > 0.2:
      kind = 'vr180'
    return kind + _SUFFIXES[self.stereo]

  @property
  def full_sphere(self) -> bool:
    """Whether the camera saw every direction."""
    return not (
      self.left or self.right or self.top or self.bottom or self.black_back
    )

  @property
  def as_it_is(self) -> bool:
    """Whether a frame (or its first eye) is the panorama, with no warp."""
    return (
      self.projection == 'equirectangular'
      and not (self.left or self.right or self.top or self.bottom)
      and not (self.yaw_deg or self.pitch_deg or self.roll_deg)
    )

  def to_dict(self) -> dict[str, Any]:
    """For the manifest."""
    return {
      'name': self.name,
      **dataclasses.asdict(self),
      'full_sphere': self.full_sphere,
    }

  def eye(self, image: Image) -> UInt8[np.ndarray, 'H W 3']:
    """The first eye's part of a frame; the frame itself where it is mono."""
    if self.stereo == 'mono':
      return image
    rows, columns = _EYE_SHARE[self.stereo]
    height, width = image.shape[:2]
    return image[: height // rows, : width // columns]

  def sees(
    self, directions: Float[np.ndarray, '*b 3']
  ) -> Bool[np.ndarray, '*b']:
    """Which directions of the panorama's axes the camera saw."""
    if self.full_sphere:
      return np.ones(directions.shape[:-1], bool)
    u, v = camera.direction_to_equirect(directions @ self._frame2level(), 1, 1)
    shown = (u >= self.left) & (u <= 1 - self.right)
    shown &= (v >= self.top) & (v <= 1 - self.bottom)
    if self.black_back:
      shown &= np.abs(u - 0.5) <= 0.25
    return shown

  def pixels(
    self, directions: Float[np.ndarray, '*b 3'], width: int, height: int
  ) -> tuple[Float[np.ndarray, '*b'], Float[np.ndarray, '*b']]:
    """(u, v) of directions of the panorama's axes, in the image of one eye.

    Args:
      directions: of any length.
      width: of the eye's image.
      height: of the eye's image.
    """
    directions = directions @ self._frame2level()
    if self.projection == 'equirectangular':
      u, v = camera.direction_to_equirect(directions, 1, 1)
      return (
        (u - self.left) / (1 - self.left - self.right) * width,
        (v - self.top) / (1 - self.top - self.bottom) * height,
      )
    return _eac_pixels(directions, width, height)

  def width_px(self, eye_width: int) -> int:
    """Even width of a panorama that is as fine as an eye of this width."""
    if self.projection == 'equirectangular':
      width = eye_width / (1 - self.left - self.right)
    else:
      # Three faces of a quarter turn fill the width.
      width = eye_width * 4 / 3
    return 2 * math.ceil(width / 2 - _EPSILON)

  def _frame2level(self) -> Float[np.ndarray, '3 3']:
    """Rotation from the frame's axes to level ones."""
    c, s = np.cos(np.deg2rad(self.roll_deg)), np.sin(np.deg2rad(self.roll_deg))
    roll = np.array([[c, -s, 0.0], [s, c, 0.0], [0.0, 0.0, 1.0]])
    return camera.view2frame_rotation(self.yaw_deg, self.pitch_deg) @ roll


def _eac_pixels(
  directions: Float[np.ndarray, '*b 3'], width: int, height: int
) -> tuple[Float[np.ndarray, '*b'], Float[np.ndarray, '*b']]:
  faces = _EAC_FACES.reshape(6, 3, 3)
  face = np.argmax(directions @ faces[:, 2].T, axis=-1)
  right, down, outward = np.moveaxis(
    (faces[face] @ directions[..., None])[..., 0], -1, 0
  )
  across = 2 / np.pi * np.arctan2(right, outward) + 0.5
  along = 2 / np.pi * np.arctan2(down, outward) + 0.5
  row, column = np.divmod(face, 3)
  pad = _EAC_PADDING_PX
  return (
    pad + (column + across) * (width - 2 * pad) / 3,
    row * height / 2 + pad + along * (height / 2 - 2 * pad),
  )


_KINDS = {
  'equirectangular': {},
  'eac': {'projection': 'eac'},
  'vr180': {'left': 0.25, 'right': 0.25},
  'vr180-padded': {'black_back': True},
}
# What `--projection` may name, apart from `auto`.
NAMES = {
  kind + suffix: Layout(stereo=stereo, **fields)
  for kind, fields in _KINDS.items()
  for stereo, suffix in _SUFFIXES.items()
}


def to_equirectangular(
  image: Image, layout: Layout, width_px: int | None = None
) -> UInt8[np.ndarray, 'H W 3']:
  """The panorama that a frame shows, black where the camera saw nothing.

  An equirectangular frame of about 2:1 without pose is returned as it is.
  Everything else becomes exactly 2:1. Where that shrinks the picture, it is
  sampled at a multiple of the width and averaged down.

  Args:
    image: a frame of the video.
    layout: of the frame.
    width_px: even width of the panorama; as fine as the frame if None.
  """
  eye = layout.eye(image)
  height, width = eye.shape[:2]
  native_px = layout.width_px(width)
  width_px = native_px if width_px is None else width_px
  if layout.as_it_is:
    return _resized(eye, width_px)
  factor = max(1, round(native_px / width_px))
  u, v, is_filmed = _maps(layout, width, height, width_px * factor)
  if layout.full_sphere and layout.projection == 'equirectangular':
    padded = equirect.pad(eye, panorama.MARGIN_PX)
  else:
    padded = cv2.copyMakeBorder(
      eye, *(panorama.MARGIN_PX,) * 4, borderType=cv2.BORDER_REPLICATE
    )
  output = cv2.remap(padded, u, v, cv2.INTER_CUBIC)
  if not layout.full_sphere:
    output[~is_filmed] = 0
  if factor > 1:
    output = cv2.resize(
      output, (width_px, width_px // 2), interpolation=cv2.INTER_AREA
    )
  return output


def _resized(eye: Image, width_px: int) -> UInt8[np.ndarray, 'H W 3']:
  """A panorama at another width; 2:1 unless it was about that already."""
  height, width = eye.shape[:2]
  low, high = _ASPECT_RANGE
  is_usual = low <= width / height <= high
  if is_usual and width_px == width:
    return np.ascontiguousarray(eye)
  new_height = round(height * width_px / width) if is_usual else width_px // 2
  shrinks = width_px <= width and new_height <= height
  interpolation = cv2.INTER_AREA if shrinks else cv2.INTER_CUBIC
  return cv2.resize(eye, (width_px, new_height), interpolation=interpolation)


@functools.lru_cache(maxsize=2)
def _maps(
  layout: Layout, width: int, height: int, width_px: int
) -> tuple[
  Float32[np.ndarray, 'H W'],
  Float32[np.ndarray, 'H W'],
  Bool[np.ndarray, 'H W'],
]:
  u, v = camera.pixel_centres(width_px, width_px // 2)
  directions = camera.equirect_to_direction(u, v, width_px, width_px // 2)
  u, v = layout.pixels(directions, width, height)
  shift = panorama.MARGIN_PX - 0.5
  return (
    (u + shift).astype(np.float32),
    (v + shift).astype(np.float32),
    layout.sees(directions),
  )
