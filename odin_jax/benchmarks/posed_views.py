"""Photographs whose cameras are known: what a folder of a benchmark holds.

Whatever a layout calls its axes and pixels, here they are those of
`odin_jax.shared.camera`, and pictures are those of a pinhole camera.
"""

import dataclasses
import functools
import pathlib
from typing import Any, Mapping

import cv2
from jaxtyping import Float, UInt8
import numpy as np
from PIL import Image

from odin_jax.shared import camera, errors, median_depth, user_images

Matrix = Float[np.ndarray, '3 3']
Size = tuple[int, int]

# From pixels whose first has its centre at (0, 0) to ours, or back.
_HALF_PX = np.array([[0.0, 0.0, 0.5], [0.0, 0.0, 0.5], [0.0, 0.0, 0.0]])

# Of rotations that were written with few digits.
_ROTATION_TOLERANCE = 1e-3
# Of the picture's size: OpenCV inverts a lens by a few iterations.
_LENS_TOLERANCE = 0.02
# How far from the centre a principal point may lie, of the picture's size,
# where nothing else tells that camera and picture belong together.
OFF_CENTRE = 0.2
# By how many pixels the sides of a picture may differ in how they were reduced.
_ROUNDING_PX = 1.0


def from_integer_centres(intrinsics: Matrix) -> Matrix:
  """In our pixels, of intrinsics that put (0, 0) into the first one's centre."""
  return intrinsics + _HALF_PX


def to_integer_centres(intrinsics: Matrix) -> Matrix:
  """The other way, which is how OpenCV has it."""
  return intrinsics - _HALF_PX


@dataclasses.dataclass(frozen=True, kw_only=True)
class Undistortion:
  """A lens of OpenCV's model, and the pinhole camera that takes its place.

  The pinhole camera shows the part of the picture in which every pixel was
  seen. nerfstudio does the same, see `_undistort_image` in
  https://github.com/nerfstudio-project/nerfstudio/blob/main/nerfstudio/data/datamanagers/full_images_datamanager.py.

  Attributes:
    lens: intrinsics of the distorted picture.
    coefficients: k1 k2 p1 p2, or with k3 k4 k5 k6 after them, see
      https://docs.opencv.org/4.x/d9/d0c/group__calib3d.html.
    size: width and height of the distorted picture.
  """

  lens: Matrix
  coefficients: tuple[float, ...]
  size: Size

  def __post_init__(self) -> None:
    """Raises ValueError unless every ray of the picture has one pixel."""
    coefficients = np.array(self.coefficients)
    lens = to_integer_centres(self.lens)
    width, height = self.size
    u, v = np.linspace(0, width - 1, 9), np.linspace(0, height - 1, 9)
    pixels = np.stack(np.meshgrid(u, v), axis=-1).reshape(-1, 1, 2)
    rays = cv2.undistortPoints(pixels, lens, coefficients)
    again, _ = cv2.projectPoints(
      cv2.convertPointsToHomogeneous(rays.reshape(-1, 2)),
      np.zeros(3),
      np.zeros(3),
      lens,
      coefficients,
    )
    # Also of what is not finite.
    if not np.abs(again - pixels).max() < _LENS_TOLERANCE * max(self.size):
      raise ValueError(
        f'its distortion {self.coefficients} folds pictures of {width}x{height} '
        'pixels: no lens does so'
      )

  @functools.cached_property
  def _pinhole(self) -> tuple[Matrix, tuple[int, int, int, int]]:
    """Intrinsics in OpenCV's pixels before cropping; x, y, width, height."""
    matrix, crop = cv2.getOptimalNewCameraMatrix(
      to_integer_centres(self.lens), np.array(self.coefficients), self.size, 0
    )
    if not (np.isfinite(matrix).all() and min(crop[2:]) > 0):
      raise errors.UserError(
        f'a lens with distortion {self.coefficients} leaves nothing of pictures '
        f'of {self.size[0]}x{self.size[1]} pixels'
      )
    return matrix, crop

  @property
  def intrinsics(self) -> Matrix:
    """Of the pinhole camera."""
    matrix, (left, top, _, _) = self._pinhole
    return from_integer_centres(matrix) - [[0, 0, left], [0, 0, top], [0, 0, 0]]

  @property
  def new_size(self) -> Size:
    """Width and height of the picture of the pinhole camera."""
    return self._pinhole[1][2:]

  def apply(self, image: UInt8[np.ndarray, 'h w *c']) -> np.ndarray:
    """The picture of the pinhole camera."""
    matrix, (left, top, width, height) = self._pinhole
    undistorted = cv2.undistort(
      image,
      to_integer_centres(self.lens),
      np.array(self.coefficients),
      None,
      matrix,
    )
    return undistorted[top : top + height, left : left + width]


@dataclasses.dataclass(frozen=True)
class Lens:
  """How a camera sees, where nothing but its pose can be used.

  Attributes:
    fov_deg: full field of view of the square middle of its picture; None where
      it is not told, or the lens is no pinhole's but for a distortion.
    is_pinhole: whether it neither distorts nor is a fisheye or a panorama.
  """

  fov_deg: float | None = None
  is_pinhole: bool = True


def lens(
  focal_px: tuple[float, float],
  size_px: tuple[float, float],
  *,
  is_pinhole: bool = True,
) -> Lens:
  """Of focal lengths and picture, which tell nothing unless they are positive."""
  if all(0 < length < np.inf for length in (*focal_px, *size_px)):
    return Lens(camera.square_fov_deg(focal_px, size_px), is_pinhole)
  return Lens(None, is_pinhole)


@dataclasses.dataclass(frozen=True, kw_only=True)
class PosedView:
  """A photograph and its camera.

  Attributes:
    name: of the picture in its data set.
    number: by which protocols call it; its place where it has none.
    path: of the picture.
    intrinsics: [3 3], of what `read` gives.
    camera2scene: [3 4].
    size: width and height of what `read` gives, in pixels.
    depth: its `median_depth`, in the scene's unit; None if not known, or told by
      `points`.
    points: [n 3], of surfaces that it shows, in the scene; None without.
    mask_path: of a picture that is not 0 where the object is; None without.
    undistortion: what makes a pinhole camera's picture of the file.
    background: what shines through where the picture is transparent.
    facts: what else is known of it, ready for JSON.
  """

  name: str
  number: int
  path: pathlib.Path
  intrinsics: Matrix
  camera2scene: Float[np.ndarray, '3 4']
  size: Size
  depth: float | None = None
  points: Float[np.ndarray, 'n 3'] | None = None
  mask_path: pathlib.Path | None = None
  undistortion: Undistortion | None = None
  background: tuple[int, int, int] = user_images.WHITE
  facts: Mapping[str, float] = dataclasses.field(default_factory=dict)

  def read(self) -> UInt8[np.ndarray, 'h w 3']:
    """The picture, sRGB; over the background where it is transparent.

    Raises:
      errors.UserError: it is damaged or has another size than its camera.
    """
    # Cameras belong to the pixels as they are stored.
    image = user_images.composite(
      user_images.read_stored(self.path, 'a view', upright=False),
      self.background,
    )
    undistorted = self.undistortion.apply(image) if self.undistortion else image
    if undistorted.shape[1::-1] != self.size:
      raise errors.UserError(
        f'{self.path}: has {image.shape[1]}x{image.shape[0]} pixels, which is '
        'not what it had; read the folder again'
      )
    return undistorted

  @property
  def square_fov_deg(self) -> float:
    """Of the largest square around the principal point.

    Raises:
      errors.UserError: that point lies outside of the picture.
    """
    k, (width, height) = self.intrinsics, self.size
    # Twice from the principal point to the nearest border.
    around = (
      2 * min(k[0, 2], width - k[0, 2]),
      2 * min(k[1, 2], height - k[1, 2]),
    )
    if not min(around) > 0:
      raise errors.UserError(
        f'{self.path}: its principal point lies outside of it, so it has no '
        'centred view'
      )
    return camera.square_fov_deg((k[0, 0], k[1, 1]), around)

  def median_depth(self, fov_deg: float) -> float | None:
    """That of the square view around the principal point; None: not known."""
    if self.points is None:
      return self.depth
    local = camera.transform(camera.inverse(self.camera2scene), self.points)
    return median_depth.of_points(local, fov_deg) or None

  def depths(
    self, fov_deg: float, size_px: int
  ) -> Float[np.ndarray, 's s'] | None:
    """z at the pixel centres of the square view around the principal point.

    In the scene's unit, inf where there is no surface; None where it is not
    known, as of a photograph.

    Args:
      fov_deg: of the square view.
      size_px: its side.
    """
    del fov_deg, size_px


@dataclasses.dataclass(frozen=True, kw_only=True)
class PosedViews:
  """The views of one scene.

  Attributes:
    layout: what was read of the folder, for the protocol.
    unit: what a length of 1 is, in words.
    views: in the order of their numbers.
    here: by lines of the protocol, what was done to have them.
  """

  layout: str
  unit: str
  views: tuple[PosedView, ...]
  here: Mapping[str, Any] = dataclasses.field(default_factory=dict)

  def numbered(self, number: int) -> PosedView:
    """The view of a number.

    Raises:
      errors.UserError: there is none.
    """
    for view in self.views:
      if view.number == number:
        return view
    raise errors.UserError(
      f'{self.views[0].path.parent}: has no view {number}; there are '
      f'{", ".join(str(view.number) for view in self.views)}'
    )


def picture_size(path: pathlib.Path, what: str) -> Size:
  """Width and height of a picture, from its header.

  Args:
    path: of the picture.
    what: it is, should there be none.

  Raises:
    errors.UserError: there is no such file, or it is no picture.
  """
  try:
    with Image.open(path) as image:
      return image.size
  except FileNotFoundError as error:
    raise errors.UserError(
      f'{path}: no such file; {what} is needed here'
    ) from error
  except OSError as error:
    raise errors.UserError(f'{path}: is no picture; copy it again') from error


def off_centre(intrinsics: Matrix, size: Size) -> float:
  """How far the principal point lies from the centre, of the size."""
  return float(np.abs(intrinsics[:2, 2] / size - 0.5).max())


def misfit(where: str, size: Size) -> errors.UserError:
  """A camera whose principal point is not near the centre of its picture."""
  return errors.UserError(
    f'{where}: its principal point is not near the centre of pictures of '
    f'{size[0]}x{size[1]} pixels: it is of pictures of another size; take '
    'those that came with it'
  )


def rescaled(intrinsics: Matrix, old: Size, new: Size, where: str) -> Matrix:
  """Intrinsics of a picture that was made larger or smaller.

  Args:
    intrinsics: for a picture of size `old`, in our pixels.
    old: width and height.
    new: width and height of the picture that is there.
    where: the picture, for messages.

  Raises:
    errors.UserError: it was cropped or turned.
  """
  factors = np.divide(new, old)
  if abs(factors[0] - factors[1]) * max(new) > _ROUNDING_PX:
    raise errors.UserError(
      f'{where}: has {new[0]}x{new[1]} pixels, its camera {old[0]}x{old[1]}: '
      'it was cropped or turned, not only resized; take the original pictures'
    )
  return intrinsics * np.append(factors, 1.0)[:, None]


def rigid(
  matrix: Float[np.ndarray, '...'], where: str
) -> Float[np.ndarray, '3 4']:
  """A pose as a file has it, its rotation made exact.

  Args:
    matrix: [3 4] or [4 4].
    where: it stands, for messages.

  Raises:
    errors.UserError: it is no rotation and translation.
  """
  matrix = np.asarray(matrix, np.float64)
  fault = None
  if matrix.shape not in ((3, 4), (4, 4)) or not np.isfinite(matrix).all():
    fault = 'no 3x4 or 4x4 matrix of numbers'
  elif not np.allclose(matrix[3:], [0, 0, 0, 1]):
    fault = 'its last row is not 0 0 0 1'
  else:
    left, _, right = np.linalg.svd(matrix[:3, :3])
    rotation = left @ right
    error = np.abs(rotation - matrix[:3, :3]).max()
    if error > _ROTATION_TOLERANCE or np.linalg.det(rotation) < 0:
      fault = 'it is no rotation and translation'
  if fault:
    raise errors.UserError(f'{where}: not a pose: {fault}')
  return camera.make_pose(rotation, matrix[:3, 3])
