"""Cameras that depth is searched with: perspective or equirectangular.

What the two have in common is what the rest needs: the ray of a pixel, the
pixel of a point, and how far two pixels are apart. Depth is what a ray is
multiplied with: along the optical axis for a perspective view, whose rays have
z = 1; the distance for a panorama, whose rays have length 1. Axes and pixels
are those of `odin_jax.shared.camera`. Both have

    width_px, height_px  of the picture
    goes_on              whether it goes on beyond its edges, at the other side
    pixel_rad            angle of a pixel in the middle of the picture
    rays                 of pixels, at depth 1
    project              pixels and depths of points in camera axes; what has no
                         depth above 0 is not seen
    is_inside            whether pixels lie in the picture
    apart_px             how far pixels lie apart, in pixels of the middle
    continued            a picture with what lies beyond its edges, where known
"""

import dataclasses

from jaxtyping import Bool, Float, Shaped
import numpy as np

from odin_jax.shared import camera, equirect

Pixels = Float[np.ndarray, '*b 2']
Rays = Float[np.ndarray, '*b 3']
Depths = Float[np.ndarray, '*b']


@dataclasses.dataclass(frozen=True)
class Perspective:
  """A square, centred view."""

  fov_deg: float
  size_px: int
  goes_on = False

  @property
  def width_px(self) -> int:
    return self.size_px

  @property
  def height_px(self) -> int:
    return self.size_px

  @property
  def intrinsics(self) -> Float[np.ndarray, '3 3']:
    return camera.intrinsics(self.fov_deg, self.size_px)

  @property
  def pixel_rad(self) -> float:
    return float(1 / self.intrinsics[0, 0])

  def rays(self, pixels: Pixels) -> Rays:
    local = (pixels - self.size_px / 2) * self.pixel_rad
    return np.concatenate([local, np.ones_like(local[..., :1])], axis=-1)

  def project(self, points: Rays) -> tuple[Pixels, Depths]:
    # In the precision of the points: half of the time where that is enough.
    return camera.project(points, self.intrinsics.astype(points.dtype))

  def is_inside(self, pixels: Pixels) -> Bool[np.ndarray, '*b']:
    # A reduction over an axis of two takes several times as long.
    u, v = np.moveaxis(pixels, -1, 0)
    return (u > 0) & (u < self.size_px) & (v > 0) & (v < self.size_px)

  def apart_px(self, a: Pixels, b: Pixels) -> Depths:
    return np.linalg.norm(a - b, axis=-1)

  def continued(
    self, picture: Shaped[np.ndarray, 'h w *c'], margin_px: int
  ) -> Shaped[np.ndarray, 'h w *c']:
    del margin_px  # Nobody knows what lies beyond.
    return picture


@dataclasses.dataclass(frozen=True)
class Equirectangular:
  """The whole sphere; its height spans 180 degrees whatever its aspect."""

  width_px: int
  height_px: int
  goes_on = True

  @property
  def pixel_rad(self) -> float:
    return 2 * np.pi / self.width_px

  def rays(self, pixels: Pixels) -> Rays:
    u, v = np.moveaxis(pixels, -1, 0)
    return camera.equirect_to_direction(u, v, self.width_px, self.height_px)

  def project(self, points: Rays) -> tuple[Pixels, Depths]:
    pixels = camera.direction_to_equirect(points, self.width_px, self.height_px)
    return np.stack(pixels, axis=-1), np.linalg.norm(points, axis=-1)

  def is_inside(self, pixels: Pixels) -> Bool[np.ndarray, '*b']:
    return np.ones(pixels.shape[:-1], bool)

  def apart_px(self, a: Pixels, b: Pixels) -> Depths:
    angle_deg = camera.angle_between_deg(self.rays(a), self.rays(b))
    return np.deg2rad(angle_deg) / self.pixel_rad

  def continued(
    self, picture: Shaped[np.ndarray, 'h w *c'], margin_px: int
  ) -> Shaped[np.ndarray, 'H W *c']:
    return equirect.pad(picture, margin_px)


Lens = Perspective | Equirectangular


def grid(lens: Lens, margin_px: int = 0) -> Float[np.ndarray, 'h w 2']:
  """Pixel centres of a picture and of what `continued` adds to it."""
  margin_px *= lens.goes_on
  u, v = camera.pixel_centres(
    lens.width_px + 2 * margin_px, lens.height_px + 2 * margin_px
  )
  return np.stack([u, v], axis=-1) - margin_px
