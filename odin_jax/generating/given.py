"""What is given: a photo, or a panorama, of which a view is cut at will."""

import dataclasses
import os
import pathlib
from typing import Callable

from absl import logging
import cv2
from jaxtyping import Float, UInt8
import numpy as np

from odin_jax.geometry import vanishing_points
from odin_jax.panoramas import cutting
from odin_jax.shared import camera, errors, photo_header, user_images

Image = UInt8[np.ndarray, 's s 3']
Pose = Float[np.ndarray, '3 4']
# Of the camera to be imagined -> a view, and where it was taken.
View = Callable[[Pose], tuple[Image, Pose]]

# Of photos that say nothing and panoramas: that of the views of records.
USUAL_FOV_DEG = 90.0
# How far the sides of a panorama may be from 2:1.
_RATIO_TOLERANCE = 0.01


@dataclasses.dataclass(frozen=True)
class Given:
  """The image to start from.

  Attributes:
    image: as it is, upright, RGB.
    fov_deg: full field of view of the views of it.
    fov_from: `flag`, `header`, `lines` or `assumed`.
    is_panorama: equirectangular, all of the sphere; its middle lies ahead.
  """

  image: UInt8[np.ndarray, 'h w 3']
  fov_deg: float
  fov_from: str
  is_panorama: bool

  def views(self, size_px: int) -> View:
    """Gives the view that a camera is best imagined from, and its own pose.

    Of a photo its square middle. Of a panorama what it shows in the direction
    in which that camera looks: what is left to imagine is that it moved.

    Args:
      size_px: side of the views.
    """
    if not self.is_panorama:
      middle = square_middle(self.image, size_px), camera.identity_pose()
      return lambda camera2scene: middle
    # Averaged down first: of a large panorama a small view takes seconds.
    view_px_per_rad = camera.intrinsics(self.fov_deg, size_px)[0, 0]
    width = 2 * int(np.ceil(2 * np.pi * view_px_per_rad))
    image = self.image
    if width < image.shape[1]:
      size = (width, width // 2)
      image = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
    panorama = cutting.Panorama(image)

    def cut(camera2scene: Pose) -> tuple[Image, Pose]:
      rotation = camera2scene[:, :3]
      view = panorama.cut(cutting.View(rotation, self.fov_deg), size_px)
      return view, camera.make_pose(rotation, np.zeros(3))

    return cut


def read(
  path: str | os.PathLike[str],
  *,
  background: tuple[int, int, int],
  fov_deg: float | None,
  is_panorama: bool | None,
) -> Given:
  """Reads the image to start from.

  Args:
    path: of the file.
    background: what shines through where it is transparent.
    fov_deg: of the views; None: as its header says, or else its straight lines.
    is_panorama: None: as its header says.

  Raises:
    errors.UserError: no image, a damaged one, or a panorama that is not all of
      the sphere.
  """
  path = pathlib.Path(path)
  image = user_images.read(
    path, 'the image to start from', background=background
  )
  height, width = image.shape[:2]
  if is_panorama is None:
    is_panorama = photo_header.is_equirectangular(path)
    if not is_panorama and width == 2 * height:
      logging.warning(
        '%s: is twice as wide as high: taken for a photo; --panorama if it is '
        'a 360-degree panorama, --nopanorama if not',
        path,
      )
  if is_panorama and (
    abs(width / height / 2 - 1) > _RATIO_TOLERANCE
    or width % 2
    or photo_header.is_cropped(path)
  ):
    raise errors.UserError(
      f'{path}: has {width}x{height} px; a panorama is equirectangular, all of '
      'the sphere, twice as wide as high; --nopanorama takes it for a photo'
    )
  fov_from = 'flag'
  if fov_deg is None:
    fov_deg, fov_from = USUAL_FOV_DEG, 'assumed'
    if not is_panorama:
      fov_deg, fov_from = _fov_of_photo(path, image)
  return Given(image, float(fov_deg), fov_from, is_panorama)


def _fov_of_photo(
  path: pathlib.Path, image: UInt8[np.ndarray, 'h w 3']
) -> tuple[float, str]:
  """The field of view of a photo's square middle, and what says so."""
  fov_deg = photo_header.fov_deg(path)
  if fov_deg is not None:
    logging.info('%s: %.1f degrees wide, by its header', path, fov_deg)
    return fov_deg, 'header'
  why = 'no focal length in its header'
  found = None
  if photo_header.was_cropped(path):
    # Lines count on the camera's middle, as the focal length does.
    why = 'cropped since it was taken'
  else:
    found = vanishing_points.estimate(image)
  if found is not None and found.is_sure:
    logging.info(
      '%s: %s; its straight lines, if they are at right angles and it was not '
      'cropped, say that its square middle is %.1f degrees wide, and --fov_deg '
      'says otherwise',
      path,
      why,
      found.fov_deg,
    )
    return found.fov_deg, 'lines'
  logging.info(
    '%s: %s; its square middle is taken to be %g degrees wide, and --fov_deg '
    'says otherwise',
    path,
    why,
    USUAL_FOV_DEG,
  )
  return USUAL_FOV_DEG, 'assumed'


def square_middle(
  image: UInt8[np.ndarray, 'h w 3'], size_px: int
) -> UInt8[np.ndarray, 's s 3']:
  """The square middle of an image, area-averaged to `size_px`."""
  height, width = image.shape[:2]
  side = min(height, width)
  top, left = (height - side) // 2, (width - side) // 2
  image = image[top : top + side, left : left + side]
  interpolation = cv2.INTER_AREA if side > size_px else cv2.INTER_CUBIC
  return cv2.resize(image, (size_px, size_px), interpolation=interpolation)
