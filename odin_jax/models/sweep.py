"""The source view as the target camera would see it on spheres around it.

For a pixel of the target with unit ray d and a distance r, the scene point
would be x = r d in the target's axes and R x + t in the source's: what the
source shows there is the colour that the target would have if its surface
were r away. A few distances span the scene, because scene units make its
median distance 1; the network has to find out which of them is right, and to
imagine what the source does not show. This is the plane sweep of multi-view
stereo (Collins 1996), with spheres.

Every look-up is one gather, of the row of what it needs; its gradient is the
same gather for the places and one scatter of windows for the picture (`python
-m tests.benchmarks.sweep` compares their times with those of
`torch.nn.functional.grid_sample`).
"""

import math
from typing import Any, NamedTuple, Sequence

from einops import rearrange
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int
import numpy as np

from odin_jax.models import rays

Pose = Float[Array, 'b 3 4']
# Of two neighbours the place of the lower and the weight of the upper, by axis.
Lower = tuple[Int[Array, 'b n'], ...]
Weights = tuple[Float[Array, 'b n'], ...]
# Nearer to the plane of the camera nothing is seen; scene units.
_NEAREST = 1e-6
# Of colours of one point, at which views do not agree any more.
_VARIANCE_APART = 0.01


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
  source_fov_deg: Float[Array, 'b'] | None = None,
) -> Projection:
  """Where the source shows the points of spheres around the target's camera.

  Args:
    target2source: relative pose, scene units.
    fov_deg: full field of view of the target.
    size: of the target's picture, whose pixels point to the spheres.
    distances: k radii, scene units; or of every ray its own, [b k n].
    source_fov_deg: of the source, where it is not that of the target.

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
  if source_fov_deg is None:
    source_fov_deg = fov_deg
  scale = 0.5 / jnp.tan(jnp.deg2rad(source_fov_deg) / 2)[:, None, None]
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
) -> tuple[Int[Array, '*b'], Float[Array, '*b']]:
  """The lower of two neighbours on an axis, and the weight of the upper one.

  Args:
    x: 0 is the centre of the first and size - 1 that of the last; beyond, these
      go on.
    size: number of centres.
  """
  x = jnp.clip(x, 0, size - 1)
  lower = x.astype(jnp.int32)
  return lower, x - lower


def _coefficients(
  table: Float[Array, 'b *d c'], lower: Lower
) -> list[Float[Array, 'b n c']]:
  """Of the polynomial of the weights that is linear in each of them.

  The first half is that of the lower neighbours on the first axis, the second
  what the upper ones have more, which is 0 beyond the last place; so on for the
  other axes. All of a place are one row: looked up one by one they cost several
  times as much.
  """
  *sizes, channels = table.shape[1:]
  beside = [table]
  for axis in range(1, len(sizes) + 1):
    after = [(0, 0)] * table.ndim
    after[axis] = (0, 1)
    beside = [
      x
      for values in beside
      for x in (values, jnp.pad(jnp.diff(values, axis=axis), after))
    ]
  rows = jnp.concatenate(beside, axis=-1)
  strides = [math.prod(sizes[axis + 1 :]) for axis in range(len(sizes))]
  index = sum(place * stride for place, stride in zip(lower, strides))
  found = jnp.take_along_axis(
    rows.reshape(len(table), -1, rows.shape[-1]),
    index[..., None],
    axis=1,
    mode='promise_in_bounds',
  )
  return [
    found[..., first : first + channels]
    for first in range(0, found.shape[-1], channels)
  ]


def _add_windows(
  windows: Float[Array, 'b n *w c'],
  lower: Int[Array, 'b n a'],
  table: Float[Array, 'b *d c'],
) -> Float[Array, 'b *d c']:
  """Sums of windows at their places, shaped as a table."""
  return jax.lax.scatter_add(
    jnp.zeros_like(table),
    lower,
    windows,
    jax.lax.ScatterDimensionNumbers(
      update_window_dims=tuple(range(2, table.ndim + 1)),
      inserted_window_dims=(),
      scatter_dims_to_operand_dims=tuple(range(1, table.ndim - 1)),
      operand_batching_dims=(0,),
      scatter_indices_batching_dims=(0,),
    ),
    mode='promise_in_bounds',
  )


def _polynomial(
  coefficients: Sequence[Float[Array, '*b']],
  weights: Sequence[Float[Array, '*#b']],
) -> Float[Array, '*b']:
  """Of the weights, axis by axis; see `_coefficients`."""
  for weight in weights:
    half = len(coefficients) // 2
    coefficients = [
      first + weight * more
      for first, more in zip(coefficients[:half], coefficients[half:])
    ]
  return coefficients[0]


@jax.custom_vjp
def _between(
  table: Float[Array, 'b *d c'],
  lower: Lower,
  weights: Weights,
) -> Float[Array, 'b n c']:
  """Linear between neighbours.

  Args:
    table: values at the whole places.
    lower: of two neighbours on each axis.
    weights: of the upper one.
  """
  return _polynomial(
    _coefficients(table, lower), [weight[..., None] for weight in weights]
  )


def _between_forward(table: Array, lower: Lower, weights: Weights) -> Any:
  return _between(table, lower, weights), (table, lower, weights)


def _between_backward(
  residuals: tuple[Array, Lower, Weights], gradient: Float[Array, 'b n c']
) -> tuple[Array, None, Weights]:
  """What derivation by rule gives, in less time and memory.

  The shares of a window's corners are added in one go; channel by channel
  nothing is stored for the gradients of the weights.
  """
  table, lower, weights = residuals
  sizes = table.shape[1:-1]
  shape = tuple(min(2, size) for size in sizes)
  axes = range(2, 2 + len(shape))
  shares = jnp.expand_dims(gradient, axes)
  # Of windows that lie inside of the table.
  inside = [jnp.minimum(place, max(n - 2, 0)) for place, n in zip(lower, sizes)]
  for weight, place, first, is_upper in zip(
    weights, lower, inside, np.indices((*shape, 1))
  ):
    weight = jnp.expand_dims(weight + (place - first), (*axes, -1))
    shares = shares * jnp.where(is_upper, weight, 1 - weight)

  coefficients = _coefficients(table, lower)

  def total(*weights: Array) -> Float[Array, 'b n']:
    return sum(
      gradient[..., i] * _polynomial([x[..., i] for x in coefficients], weights)
      for i in range(table.shape[-1])
    )

  _, turned = jax.vjp(total, *weights)
  of_weights = turned(jnp.ones(weights[0].shape, gradient.dtype))
  of_table = _add_windows(shares, jnp.stack(inside, axis=-1), table)
  return of_table, None, of_weights


_between.defvjp(_between_forward, _between_backward)


def _look_up(
  table: Float[Array, 'b *d c'], *places: Float[Array, 'b n']
) -> Float[Array, 'b n c']:
  """Values at places, which count centres: by axis, 0 is the first one."""
  cells = [_cell(x, size) for x, size in zip(places, table.shape[1:-1])]
  return _between(table, *zip(*cells))


def bilinear(
  images: Float[Array, 'b s s c'],
  u: Float[Array, 'b *n'],
  v: Float[Array, 'b *n'],
) -> Float[Array, 'b *n c']:
  """Colours at places (0 to 1 over the picture), edges repeated."""
  size = images.shape[1]
  across, down = (x.reshape(len(x), -1) * size - 0.5 for x in (u, v))
  colours = _look_up(images, down, across)
  return colours.reshape(*u.shape, images.shape[-1])


def trilinear(
  volume: Float[Array, 'b s s d'],
  u: Float[Array, 'b *n'],
  v: Float[Array, 'b *n'],
  w: Float[Array, 'b *n'],
) -> Float[Array, 'b *n']:
  """Values at places of a picture (0 to 1) and of its last axis, 0 to d - 1."""
  size = volume.shape[1]
  across, down = (x.reshape(len(x), -1) * size - 0.5 for x in (u, v))
  values = _look_up(volume[..., None], down, across, w.reshape(len(w), -1))
  return values.reshape(u.shape)


def colours_at(
  images: Float[Array, 'b s s c'], places: Projection
) -> Float[Array, 'b k n c']:
  """What a view shows at places [b k n]; its mean colour where it sees none.

  That is the best guess there is.
  """
  mean = images.mean(axis=(1, 2))[:, None, None]
  visible = places.visible.astype(images.dtype)[..., None]
  return mean + (bilinear(images, places.u, places.v) - mean) * visible


def agreement(
  colours: Float[Array, 'b v k n 3'], shown: Bool[Array, 'b v k n']
) -> Float[Array, 'b k n']:
  """How well the views that show a point agree on its colour.

  1: they are equal; -1: far apart; 0: not two views show it.
  """
  shown = shown.astype(colours.dtype)[..., None]
  count = jnp.maximum(shown.sum(1), 1)
  mean = (colours * shown).sum(1) / count
  variance = (jnp.square(colours - mean[:, None]) * shown).sum(1) / count
  close = jnp.exp(-variance.mean(-1) / _VARIANCE_APART)
  return jnp.where(shown.sum(1)[..., 0] >= 2, 2 * close - 1, 0.0)


def sweep(
  images: Float[Array, 'b s s c'],
  target2source: Pose,
  fov_deg: Float[Array, 'b'],
  distances: Sequence[float],
  source_fov_deg: Float[Array, 'b'] | None = None,
) -> tuple[Float[Array, 'b k s s c'], Float[Array, 'b k s s']]:
  """The source on spheres around the target's camera.

  Args:
    images: of the source.
    target2source: relative pose, scene units.
    fov_deg: full field of view of the target.
    distances: k radii, scene units.
    source_fov_deg: of the source, where it is not that of the target.

  Returns:
    images, of the source's mean colour where it does not see the sphere; and 1
    where it does, 0 where not.
  """
  size = images.shape[1]
  places = project_spheres(
    target2source,
    fov_deg,
    size,
    jnp.asarray(distances, jnp.float32),
    source_fov_deg,
  )
  visible = places.visible.astype(images.dtype)
  return (
    rearrange(colours_at(images, places), 'b k (y x) c -> b k y x c', y=size),
    rearrange(visible, 'b k (y x) -> b k y x', y=size),
  )
