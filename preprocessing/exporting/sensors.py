"""What a panorama is exported as: itself, or perspective views cut from it.

A sensor is fixed to the panorama, as a camera is to a rig, and shares its
centre: `sensor2frame` is a rotation alone.
"""

import dataclasses
from typing import ClassVar, Sequence

from jaxtyping import Bool, Float, UInt8
import numpy as np

from odin_jax.shared import camera
from preprocessing import panorama
from preprocessing.solving import masks

_FREE, _MASKED = np.uint8(255), np.uint8(0)

Projected = tuple[Float[np.ndarray, 'n 2'], Bool[np.ndarray, 'n']]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Panorama:
  """The whole sphere, equirectangular.

  Attributes:
    width: in pixels; spans 360 degrees.
    height: in pixels; spans 180 degrees whatever the aspect ratio.
  """

  width: int
  height: int
  suffix: ClassVar[str] = ''

  @property
  def sensor2frame(self) -> Float[np.ndarray, '3 3']:
    return np.eye(3)

  def directions(self) -> Float[np.ndarray, 'h w 3']:
    """Directions of the pixel centres in the axes of the frame."""
    u, v = camera.pixel_centres(self.width, self.height)
    return camera.equirect_to_direction(u, v, self.width, self.height)

  def project(self, rays: Float[np.ndarray, 'n 3']) -> Projected:
    """Pixels of directions in the axes of the frame, and which are inside."""
    pixels = camera.direction_to_equirect(rays, self.width, self.height)
    return np.stack(pixels, axis=-1), np.ones(len(rays), bool)

  def picture(
    self, image: UInt8[np.ndarray, 'h w 3']
  ) -> UInt8[np.ndarray, 'h w 3']:
    """What the sensor sees of a panorama."""
    return image


@dataclasses.dataclass(frozen=True, kw_only=True)
class View:
  """A square perspective view.

  Attributes:
    index: of the view among its panorama's.
    yaw_deg: optical axis, positive to the right.
    pitch_deg: optical axis, positive up.
    fov_deg: full field of view, horizontal = vertical.
    size_px: width = height.
  """

  index: int
  yaw_deg: float
  pitch_deg: float
  fov_deg: float
  size_px: int

  @property
  def suffix(self) -> str:
    return f'_{self.index:02d}'

  @property
  def width(self) -> int:
    return self.size_px

  @property
  def height(self) -> int:
    return self.size_px

  @property
  def intrinsics(self) -> Float[np.ndarray, '3 3']:
    return camera.intrinsics(self.fov_deg, self.size_px)

  @property
  def sensor2frame(self) -> Float[np.ndarray, '3 3']:
    return camera.view2frame_rotation(self.yaw_deg, self.pitch_deg)

  def directions(self) -> Float[np.ndarray, 's s 3']:
    """Directions of the pixel centres in the axes of the frame."""
    return panorama.view_directions(**self._geometry())

  def project(self, rays: Float[np.ndarray, 'n 3']) -> Projected:
    """Pixels of directions in the axes of the frame, and which are inside."""
    pixels, depth = camera.project(rays @ self.sensor2frame, self.intrinsics)
    inside = np.all((pixels > 0) & (pixels < self.size_px), axis=1)
    return pixels, inside & (depth > 0)

  def picture(
    self, image: UInt8[np.ndarray, 'h w 3']
  ) -> UInt8[np.ndarray, 's s 3']:
    """What the sensor sees of a panorama."""
    return panorama.cut_view(image, **self._geometry())

  def _geometry(self) -> dict[str, float | int]:
    return {
      'yaw_deg': self.yaw_deg,
      'pitch_deg': self.pitch_deg,
      'fov_deg': self.fov_deg,
      'size_px': self.size_px,
    }


Sensor = Panorama | View


def views(
  panorama_width: int,
  *,
  size_px: int,
  fov_deg: float,
  num_yaws: int,
  pitches_deg: Sequence[float],
) -> list[View]:
  """Views in rows of equal pitch, evenly all around.

  Args:
    panorama_width: of the panoramas that they are cut from.
    size_px: 0 for as many pixels as make the centre of a view as fine as the
      panorama's equator.
    fov_deg: full field of view.
    num_yaws: views in a row. Every other row is turned by half a step, so
      that its views cover the corners between those of its neighbours.
    pitches_deg: of the rows.
  """
  if not size_px:
    # The size of a view whose focal length is one pixel, seen the other way.
    per_focal_px = 2 * np.tan(np.deg2rad(fov_deg) / 2)
    size_px = max(1, round(panorama_width / (2 * np.pi) * per_focal_px))
  step_deg = 360 / num_yaws
  return [
    View(
      index=row * num_yaws + column,
      yaw_deg=step_deg * (column + row % 2 / 2),
      pitch_deg=float(pitch_deg),
      fov_deg=fov_deg,
      size_px=size_px,
    )
    for row, pitch_deg in enumerate(sorted(pitches_deg))
    for column in range(num_yaws)
  ]


def mask_picture(sensor: Sensor, mask: masks.Mask) -> UInt8[np.ndarray, 'h w']:
  """A mask as a sensor sees it: 0 is masked, 255 is not.

  COLMAP (https://colmap.github.io/faq.html, "Mask image regions") and
  nerfstudio (`get_image_mask_tensor_from_path` in
  https://github.com/nerfstudio-project/nerfstudio/blob/main/nerfstudio/data/utils/data_utils.py)
  read it alike.
  """
  return np.where(mask.holds(sensor.directions()), _MASKED, _FREE)
