"""What a camera sees of every Gaussian: a 2D Gaussian, and where it is.

Elliptical weighted average (Zwicker, Pfister, van Baar, Gross, "EWA splatting",
2002): the projection is replaced by its derivative J at the Gaussian's centre,
so that its image is a Gaussian with the covariance J S J^T, S in the axes of
the camera. A low-pass filter adds `LOW_PASS` square pixels, as in 3DGS.

  perspective       J of (x, y, z) -> (f x / z, f y / z), in the image
  equirectangular   J of x -> E x / (m . x), in the plane that touches the unit
                    sphere at the centre's direction m; the rows of E span it

On the sphere there is no seam and no pole: the picture's columns and rows only
say along which rays one looks. The image plane of a perspective camera is the
one that touches the sphere at its optical axis; the one at m is that in which
the replacement by J errs least (Huang et al., "On the error analysis of 3D
Gaussian splatting and an optimal projection strategy", 2024).

Both are three linear forms a, b, c of the ray r of a pixel, so that what comes
after need not know the kind of camera:

  opacity at r = opacity * exp(-((a . r)^2 + (b . r)^2) / (2 (c . r)^2))
"""

import dataclasses
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float
import numpy as np

from odin_jax.shared import camera
from odin_jax.splatting import gaussians as gaussian

# Variance of the low-pass filter, square pixels.
LOW_PASS = 0.3
# What is more transparent is not drawn; the renderers of others do the same.
LEAST_ALPHA = 1 / 255
# By which bounds are drawn wider than they are, lest rounding cut a pixel off.
_ROUNDING = 1.001
# Nearer centres are not drawn, scene units (the median depth is about 1).
NEAR = 0.05
# Beyond this multiple of the field of view J is that of its edge, lest
# Gaussians beside the camera cover the picture.
_WIDEST = 1.3
# A Gaussian ends at this cosine from its centre's direction (78 degrees).
LEAST_COSINE = 0.2


@functools.partial(
  jax.tree_util.register_dataclass,
  data_fields=('scene2camera',),
  meta_fields=('width', 'height', 'focal_px'),
)
@dataclasses.dataclass(frozen=True, kw_only=True)
class Camera:
  """A centred camera with square pixels, or a panorama.

  Attributes:
    scene2camera: its pose.
    width: in pixels.
    height: in pixels.
    focal_px: focal length; None of an equirectangular panorama.
  """

  scene2camera: Float[Array, '3 4']
  width: int
  height: int
  focal_px: float | None

  @property
  def is_panorama(self) -> bool:
    return self.focal_px is None

  def rays(self) -> Float[np.ndarray, 'h w 3']:
    """Of the pixel centres: (u, v, 1) from the principal point, in pixels; of a
    panorama unit directions.
    """
    u, v = camera.pixel_centres(self.width, self.height)
    if self.is_panorama:
      return camera.equirect_to_direction(u, v, self.width, self.height)
    return np.stack(
      [u - self.width / 2, v - self.height / 2, np.ones_like(u)], axis=-1
    )


class Footprints(NamedTuple):
  """The Gaussians in one picture.

  Attributes:
    forms: a, b, c of each.
    depth: by which they are drawn, near first: z, or distance of a panorama.
    is_drawn: whether it can be seen at all.
    low: least u and v of what can be seen of it, pixels; of a panorama u may
      lie outside of the picture and wraps around.
    high: largest u and v.
  """

  forms: Float[Array, 'n 3 3']
  depth: Float[Array, 'n']
  is_drawn: Bool[Array, 'n']
  low: Float[Array, 'n 2']
  high: Float[Array, 'n 2']


def project(scene: gaussian.Gaussians, view: Camera) -> Footprints:
  """What a camera sees of every Gaussian."""
  turn, shift = view.scene2camera[:, :3], view.scene2camera[:, 3]
  precise = functools.partial(jnp.matmul, precision=jax.lax.Precision.HIGHEST)
  means = precise(scene.means, turn.T) + shift
  # Columns are the standard deviations along the axes of each.
  spread = precise(turn, gaussian.rotations(scene.quaternions))
  spread = spread * jnp.exp(scene.log_scales)[:, None, :]
  # Squared distance from the centre, in deviations, up to which it is drawn.
  reach = (2 * _ROUNDING) * jnp.log(
    jnp.maximum(gaussian.opacities(scene) / LEAST_ALPHA, 1e-9)
  )
  kind = _on_sphere if view.is_panorama else _in_image
  return kind(view, means, spread, reach)


def _rows(*rows: list[Float[Array, 'n']]) -> Float[Array, 'n r 3']:
  """Matrices of their rows."""
  return jnp.stack([jnp.stack(row, -1) for row in rows], -2)


def _whitened(
  jacobian: Float[Array, 'n 2 3'],
  spread: Float[Array, 'n 3 3'],
  low_pass: float,
) -> tuple[Float[Array, 'n 3'], Float[Array, 'n 3']]:
  """The 2D covariance, and the inverse of its Cholesky factor.

  Returns:
    (variance of the first, covariance, variance of the second coordinate), and
    (p, q, s) with p x and q x + s y independent and of variance 1.
  """
  flat = jnp.einsum(
    'nij,njk->nik', jacobian, spread, precision=jax.lax.Precision.HIGHEST
  )
  xx = jnp.sum(flat[:, 0] * flat[:, 0], -1) + low_pass
  xy = jnp.sum(flat[:, 0] * flat[:, 1], -1)
  yy = jnp.sum(flat[:, 1] * flat[:, 1], -1) + low_pass
  # What x does not tell of y; rounding must not take it below the filter.
  rest = jnp.maximum(yy - xy * xy / xx, low_pass)
  p, s = jax.lax.rsqrt(xx), jax.lax.rsqrt(rest)
  return jnp.stack([xx, xy, yy], -1), jnp.stack([p, -s * xy / xx, s], -1)


def _in_image(
  view: Camera,
  means: Float[Array, 'n 3'],
  spread: Float[Array, 'n 3 3'],
  reach: Float[Array, 'n'],
) -> Footprints:
  focal = view.focal_px
  size = np.array([view.width, view.height], np.float32)
  depth = means[:, 2]
  is_drawn = (depth > NEAR) & (reach > 0)
  z = jnp.where(depth > NEAR, depth, 1.0)
  slope = means[:, :2] / z[:, None]
  edge = _WIDEST * size / 2 / focal
  bounded = jnp.clip(slope, -edge, edge)
  one, zero = focal / z, jnp.zeros_like(z)
  jacobian = _rows(
    [one, zero, -one * bounded[:, 0]],
    [zero, one, -one * bounded[:, 1]],
  )
  covariance, white = _whitened(jacobian, spread, LOW_PASS)
  p, q, s = jnp.moveaxis(white, -1, 0)
  x, y = jnp.moveaxis(focal * slope, -1, 0)
  forms = _rows(
    [p, zero, -p * x],
    [q, s, -q * x - s * y],
    [zero, zero, jnp.ones_like(z)],
  )
  half = jnp.sqrt(jnp.maximum(reach, 0)[:, None] * covariance[:, ::2])
  centre = focal * slope + size / 2
  low, high = centre - half, centre + half
  is_drawn &= jnp.all((high > 0) & (low < size), -1)
  return Footprints(forms, depth, is_drawn, low, high)


def _on_sphere(
  view: Camera,
  means: Float[Array, 'n 3'],
  spread: Float[Array, 'n 3 3'],
  reach: Float[Array, 'n'],
) -> Footprints:
  pixel_rad = max(2 * np.pi / view.width, np.pi / view.height)
  square = jnp.sum(means * means, -1)
  is_drawn = (square > NEAR**2) & (reach > 0)
  ahead = jnp.array([0.0, 0.0, 1.0], means.dtype)
  safe = jnp.where(is_drawn[:, None], means, ahead)
  distance = jnp.linalg.norm(safe, axis=-1)
  direction = safe / distance[:, None]
  tangents = _tangents(direction)
  covariance, white = _whitened(
    tangents / distance[:, None, None], spread, LOW_PASS * pixel_rad**2
  )
  p, q, s = (column[:, None] for column in jnp.moveaxis(white, -1, 0))
  forms = jnp.stack(
    [
      p * tangents[:, 0],
      q * tangents[:, 0] + s * tangents[:, 1],
      direction,
    ],
    -2,
  )
  low, high = _cap(view, direction, covariance, reach)
  return Footprints(forms, distance, is_drawn, low, high)


def _tangents(direction: Float[Array, 'n 3']) -> Float[Array, 'n 2 3']:
  """Two unit vectors at right angles to a unit vector and to each other.

  Without a pole: Duff et al., "Building an orthonormal basis, revisited", 2017.
  Which two they are does not matter to what they are used for.
  """
  x, y, z = jnp.moveaxis(direction, -1, 0)
  sign = jnp.where(z < 0, -1.0, 1.0).astype(z.dtype)
  a = -1 / (sign + z)
  b = x * y * a
  return _rows(
    [1 + sign * x * x * a, sign * b, -sign * x], [b, sign + y * y * a, -y]
  )


def _cap(
  view: Camera,
  direction: Float[Array, 'n 3'],
  covariance: Float[Array, 'n 3'],
  reach: Float[Array, 'n'],
) -> tuple[Float[Array, 'n 2'], Float[Array, 'n 2']]:
  """Pixels around the circle on the sphere that holds a Gaussian."""
  xx, xy, yy = jnp.moveaxis(covariance, -1, 0)
  largest = (xx + yy) / 2 + jnp.hypot((xx - yy) / 2, xy)
  radius = jnp.minimum(
    jnp.arctan(jnp.sqrt(jnp.maximum(reach, 0) * largest)),
    np.arccos(LEAST_COSINE),
  )
  x, y, z = jnp.moveaxis(direction, -1, 0)
  longitude, latitude = jnp.arctan2(x, z), jnp.arctan2(y, jnp.hypot(x, z))
  # A circle around a pole holds every longitude.
  ratio = jnp.sin(radius) / jnp.maximum(jnp.cos(latitude), 1e-6)
  has_pole = jnp.abs(latitude) + radius >= np.pi / 2
  half = jnp.where(
    has_pole | (ratio >= 1), np.pi, jnp.arcsin(jnp.minimum(ratio, 1.0))
  )
  per_rad = np.array([view.width / 2, view.height], np.float32) / np.pi
  centre = jnp.stack([longitude + np.pi, latitude + np.pi / 2], -1) * per_rad
  half = jnp.stack([half, radius], -1) * per_rad
  return centre - half, centre + half
