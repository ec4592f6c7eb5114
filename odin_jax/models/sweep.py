"""The source view as the target camera would see it on spheres around it.

For a pixel of the target with unit ray d and a distance r, the scene point
would be x = r d in the target's axes and R x + t in the source's: what the
source shows there is the colour that the target would have if its surface
were r away. A few distances span the scene, because scene units make its
median distance 1; the network has to find out which of them is right, and to
imagine what the source does not show. This is the plane sweep of multi-view
stereo (Collins 1996), with spheres, at a resolution that costs little.
"""

from typing import Sequence

from einops import rearrange
import jax.numpy as jnp
from jaxtyping import Array, Float

from odin_jax.models import rays


def _bilinear(
  images: Float[Array, 'b s s c'],
  u: Float[Array, 'b n'],
  v: Float[Array, 'b n'],
) -> Float[Array, 'b n c']:
  """Colours at pixel coordinates (centres at + 0.5), edges repeated."""
  size = images.shape[1]
  pixels = rearrange(images, 'b y x c -> b (y x) c')
  left, top = jnp.floor(u - 0.5), jnp.floor(v - 0.5)
  right_weight, bottom_weight = u - 0.5 - left, v - 0.5 - top
  total = jnp.zeros((*u.shape, images.shape[-1]))
  for dy, row_weight in ((0, 1 - bottom_weight), (1, bottom_weight)):
    for dx, column_weight in ((0, 1 - right_weight), (1, right_weight)):
      x = jnp.clip(left + dx, 0, size - 1).astype(jnp.int32)
      y = jnp.clip(top + dy, 0, size - 1).astype(jnp.int32)
      colours = jnp.take_along_axis(pixels, (y * size + x)[..., None], axis=1)
      total += (row_weight * column_weight)[..., None] * colours
  return total


def sweep(
  images: Float[Array, 'b s s c'],
  target2source: Float[Array, 'b 3 4'],
  fov_deg: Float[Array, 'b'],
  distances: Sequence[float],
) -> tuple[Float[Array, 'b k s s c'], Float[Array, 'b k s s']]:
  """The source on spheres around the target's camera.

  Args:
    images: of the source.
    target2source: relative pose, scene units.
    fov_deg: full field of view of both views.
    distances: k radii, scene units.

  Returns:
    images, of the source's mean colour where it does not see the sphere; and 1
    where it does, 0 where not.
  """
  size = images.shape[1]
  directions = rays.camera_rays(fov_deg, size)
  radii = jnp.asarray(distances)[:, None, None]
  points = rearrange(directions[:, None] * radii, 'b k n d -> b (k n) d')
  points = points @ target2source[..., :3].swapaxes(-1, -2)
  points = points + target2source[:, None, :, 3]
  depth = jnp.maximum(points[..., 2], 1e-6)
  focal_px = size / 2 / jnp.tan(jnp.deg2rad(fov_deg) / 2)[:, None]
  u = focal_px * points[..., 0] / depth + size / 2
  v = focal_px * points[..., 1] / depth + size / 2
  visible = (
    (points[..., 2] > 1e-6) & (u >= 0) & (u <= size) & (v >= 0) & (v <= size)
  )
  visible = visible.astype(images.dtype)
  u, v = jnp.clip(u, 0, size), jnp.clip(v, 0, size)
  # What the source does not see gets its mean colour, the best guess there is.
  mean = images.mean(axis=(1, 2))[:, None]
  colours = mean + (_bilinear(images, u, v) - mean) * visible[..., None]
  shape = dict(k=len(distances), y=size)
  return (
    rearrange(colours, 'b (k y x) c -> b k y x c', **shape),
    rearrange(visible, 'b (k y x) -> b k y x', **shape),
  )
