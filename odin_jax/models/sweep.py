"""The source view as the target camera would see it on spheres around it.

For a pixel of the target with unit ray d and a distance r, the scene point
would be x = r d in the target's axes and R x + t in the source's: what the
source shows there is the colour that the target would have if its surface
were r away. A few distances span the scene, because scene units make its
median distance 1; the network has to find out which of them is right, and to
imagine what the source does not show. This is the plane sweep of multi-view
stereo (Collins 1996), with spheres.

Every look-up is one gather: the neighbours that it needs stand side by side in
one row of a table (`python -m tests.benchmarks.sweep` compares its time with
that of `torch.nn.functional.grid_sample`).
"""

from typing import NamedTuple, Sequence

from einops import rearrange
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from odin_jax.models import rays

Pose = Float[Array, 'b 3 4']
# Nearer to the plane of the camera nothing is seen; scene units.
_NEAREST = 1e-6


class Projection(NamedTuple):
  """Where a view shows points.

  Attributes:
    u: in units of the picture's side, 0 to 1 from left to right, clipped.
    v: likewise from top to bottom.
    visible: whether the point is in front of the camera and in its picture.
    distance: from the camera.
    depth: along its optical axis.
  """

  u: Float[Array, '*b']
  v: Float[Array, '*b']
  visible: Bool[Array, '*b']
  distance: Float[Array, '*b']
  depth: Float[Array, '*b']


def project_spheres(
  target2source: Pose,
  fov_deg: Float[Array, 'b'],
  size: int,
  distances: Float[Array, '*k'],
) -> Projection:
  """Where the source shows the points of spheres around the target's camera.

  Args:
    target2source: relative pose, scene units.
    fov_deg: full field of view of both views.
    size: of the target's picture, whose pixels point to the spheres.
    distances: k radii, scene units; or of every ray its own, [b k n].

  Returns:
    arrays [b k n], n = size^2 pixels row by row.
  """
  directions = rays.camera_rays(fov_deg, size)
  directions = directions @ target2source[..., :3].swapaxes(-1, -2)
  if distances.ndim == 1:
    distances = distances[:, None]
  points = directions[:, None] * distances[..., None]
  points = points + target2source[:, None, None, :, 3]
  z = points[..., 2]
  scale = 0.5 / jnp.tan(jnp.deg2rad(fov_deg) / 2)[:, None, None]
  in_front = jnp.maximum(z, _NEAREST)
  u = scale * points[..., 0] / in_front + 0.5
  v = scale * points[..., 1] / in_front + 0.5
  visible = (z > _NEAREST) & (u >= 0) & (u <= 1) & (v >= 0) & (v <= 1)
  distance = jnp.linalg.norm(points, axis=-1)
  return Projection(
    jnp.clip(u, 0, 1), jnp.clip(v, 0, 1), visible, distance, depth=z
  )


def _cell(
  x: Float[Array, '*b'], size: int
) -> tuple[Float[Array, '*b'], Float[Array, '*b']]:
  """The lower of two neighbours on an axis, and the weight of the upper one.

  Args:
    x: 0 is the centre of the first and size - 1 that of the last; beyond, these
      go on.
    size: number of centres.
  """
  x = jnp.clip(x, 0, size - 1)
  lower = jnp.minimum(jnp.floor(x), max(size - 2, 0))
  return lower, x - lower


def _neighbours(table: Float[Array, 'b *d c'], axis: int) -> Array:
  """Channels of each entry and those of the next along an axis, side by side.

  The last one is followed by itself.
  """
  last = jnp.take(table, jnp.array([table.shape[axis] - 1]), axis=axis)
  rest = jnp.take(table, jnp.arange(1, table.shape[axis]), axis=axis)
  following = jnp.concatenate([rest, last], axis=axis)
  return jnp.concatenate([table, following], axis=-1)


def _gather(
  table: Float[Array, 'b m c'], index: Float[Array, 'b n']
) -> Float[Array, 'b n c']:
  """Rows of a table, which are there."""
  return jnp.take_along_axis(
    table,
    index.astype(jnp.int32)[..., None],
    axis=1,
    mode='promise_in_bounds',
  )


def _lerp(row: Float[Array, '*b c'], weight: Float[Array, '*b']) -> Array:
  """Between the first half of the channels and the second."""
  first, second = jnp.split(row, 2, axis=-1)
  return first + weight[..., None] * (second - first)


def bilinear(
  images: Float[Array, 'b s s c'],
  u: Float[Array, 'b *n'],
  v: Float[Array, 'b *n'],
) -> Float[Array, 'b *n c']:
  """Colours at places (0 to 1 over the picture), edges repeated."""
  size = images.shape[1]
  shape = u.shape
  u, v = (x.reshape(len(x), -1) for x in (u, v))
  left, right_weight = _cell(u * size - 0.5, size)
  top, bottom_weight = _cell(v * size - 0.5, size)
  table = _neighbours(_neighbours(images, 2), 1)
  row = _gather(rearrange(table, 'b y x c -> b (y x) c'), top * size + left)
  colours = _lerp(_lerp(row, bottom_weight), right_weight)
  return colours.reshape(*shape, images.shape[-1])


def trilinear(
  volume: Float[Array, 'b s s d'],
  u: Float[Array, 'b *n'],
  v: Float[Array, 'b *n'],
  w: Float[Array, 'b *n'],
) -> Float[Array, 'b *n']:
  """Values at places of a picture (0 to 1) and of its last axis, 0 to d - 1."""
  size, depth = volume.shape[2:]
  shape = u.shape
  u, v, w = (x.reshape(len(x), -1) for x in (u, v, w))
  left, right_weight = _cell(u * size - 0.5, size)
  top, bottom_weight = _cell(v * size - 0.5, size)
  near, far_weight = _cell(w, depth)
  table = volume[..., None]
  for axis in (3, 2, 1):
    table = _neighbours(table, axis)
  row = _gather(
    rearrange(table, 'b y x d c -> b (y x d) c'),
    (top * size + left) * depth + near,
  )
  row = _lerp(_lerp(row, bottom_weight), right_weight)
  return _lerp(row, far_weight).reshape(shape)


def colours_at(
  images: Float[Array, 'b s s c'], places: Projection
) -> Float[Array, 'b k n c']:
  """What a view shows at places [b k n]; its mean colour where it sees none.

  That is the best guess there is.
  """
  mean = images.mean(axis=(1, 2))[:, None, None]
  visible = places.visible.astype(images.dtype)[..., None]
  return mean + (bilinear(images, places.u, places.v) - mean) * visible


def sweep(
  images: Float[Array, 'b s s c'],
  target2source: Pose,
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
  places = project_spheres(
    target2source, fov_deg, size, jnp.asarray(distances, jnp.float32)
  )
  visible = places.visible.astype(images.dtype)
  return (
    rearrange(colours_at(images, places), 'b k (y x) c -> b k y x c', y=size),
    rearrange(visible, 'b k (y x) -> b k y x', y=size),
  )
