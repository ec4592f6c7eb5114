"""Pictures of Gaussians: sorted by depth, in tiles, blended front to back.

  picture(r) = sum_i colour_i alpha_i(r) prod_{j < i} (1 - alpha_j(r))

with alpha of `odin_jax.splatting.projection`, at most `MOST_ALPHA`, and 0 where
it is below `LEAST_ALPHA`, as in 3DGS. A Gaussian is looked at only in the tiles
that the bounds of its visible part meet, which changes nothing.

All shapes are fixed, as XLA needs them, by one number: how many pairs of a tile
and a Gaussian there is room for. The pairs, sorted, are cut into chunks of one
tile each. What a chunk adds to its tile is (C, T), its colour and how much
shines through, and two chunks, one before the other, are one:

  (C_1, T_1) (C_2, T_2) = (C_1 + T_1 C_2, T_1 T_2)

So all chunks are blended at the same time, and a scan joins them. No tile has a
limit of its own. Pairs that there is no room for, those of the farthest
Gaussians, are left out and counted.
"""

import dataclasses
import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from odin_jax.shared import errors
from odin_jax.splatting import gaussians as gaussian
from odin_jax.splatting import projection

MOST_ALPHA = 0.99
# Gaussians of a chunk.
_CHUNK = 8
# Chunks whose pixels are in memory at the same time.
_GROUP = 256
# Of a picture; far less than what int32 counts.
_MOST_PAIRS = 2**28


@dataclasses.dataclass(frozen=True, kw_only=True)
class Limits:
  """How a picture is cut, and how much room there is.

  Attributes:
    tile_px: width and height of a tile.
    pairs: of a tile and a Gaussian that it shows.
  """

  tile_px: int
  pairs: int


class Rendering(NamedTuple):
  """A picture, and whether it is whole.

  Attributes:
    image: sRGB before a black background; may exceed 1.
    transmittance: of the background, 1 where there is no Gaussian.
    pairs: of a tile and a Gaussian, that there are.
    dropped: of them, that there was no room for.
  """

  image: Float[Array, 'h w 3']
  transmittance: Float[Array, 'h w']
  pairs: Int[Array, '']
  dropped: Int[Array, '']


class _Chunks(NamedTuple):
  """The sorted pairs, cut.

  Attributes:
    numbers: Gaussians of each chunk, near ones first; -1 for none.
    tiles: of the chunks, which ascend; those without use come last.
    are_first: whether a chunk is the nearest of its tile.
    used: how many chunks are of use.
    pairs: that there are.
  """

  numbers: Int[Array, 'w c']
  tiles: Int[Array, 'w']
  are_first: Bool[Array, 'w']
  used: Int[Array, '']
  pairs: Int[Array, '']


@functools.partial(jax.jit, static_argnames='limits')
def render(
  scene: gaussian.Gaussians, view: projection.Camera, limits: Limits
) -> Rendering:
  """The picture of a camera; differentiable in the Gaussians."""
  footprints = projection.project(scene, view)
  chunks = _chunks(jax.lax.stop_gradient(footprints), view, limits)
  features = jnp.concatenate(
    [
      footprints.forms.reshape(-1, 9),
      gaussian.opacities(scene)[:, None],
      gaussian.colours(scene),
    ],
    axis=-1,
  )
  rays = _in_tiles(jnp.asarray(view.rays(), features.dtype), limits.tile_px)
  colour, transmittance = _blend(features, rays, chunks, view.is_panorama)
  shape = view.height, view.width
  return Rendering(
    _from_tiles(colour, shape, limits.tile_px),
    _from_tiles(transmittance[:, None], shape, limits.tile_px)[..., 0],
    chunks.pairs,
    jnp.maximum(chunks.pairs - limits.pairs, 0),
  )


def grown(limits: Limits, pairs: int) -> Limits:
  """Limits that hold so many pairs, and some more.

  Raises:
    errors.UserError: there are more than there can be room for.
  """
  if pairs > _MOST_PAIRS:
    raise errors.UserError(
      f'a picture takes {pairs} pairs of a tile and a Gaussian, and there is '
      f'room for {_MOST_PAIRS}; give smaller pictures or fewer Gaussians'
    )
  return dataclasses.replace(limits, pairs=2 ** math.ceil(math.log2(pairs + 1)))


def render_whole(
  scene: gaussian.Gaussians, view: projection.Camera, limits: Limits
) -> tuple[Rendering, Limits]:
  """A picture with nothing left out, and limits that hold it."""
  while True:
    made = render(scene, view, limits)
    if not made.dropped:
      return made, limits
    limits = grown(limits, int(made.pairs))


def _chunks(
  footprints: projection.Footprints, view: projection.Camera, limits: Limits
) -> _Chunks:
  tile = limits.tile_px
  columns, rows = math.ceil(view.width / tile), math.ceil(view.height / tile)
  order = jnp.argsort(
    jnp.where(footprints.is_drawn, footprints.depth, jnp.inf)
  ).astype(jnp.int32)
  low, high = footprints.low[order], footprints.high[order]
  top = jnp.clip(low[:, 1] // tile, 0, rows - 1).astype(jnp.int32)
  bottom = jnp.clip(high[:, 1] // tile, 0, rows - 1).astype(jnp.int32)
  left, across = _columns(low[:, 0], high[:, 0], view, tile)
  counts = jnp.where(footprints.is_drawn[order], across * (bottom - top + 1), 0)
  ends = jnp.cumsum(counts)
  # Which may have overflowed.
  pairs = jnp.where(
    jnp.sum(counts, dtype=jnp.float32) > _MOST_PAIRS, 2 * _MOST_PAIRS, ends[-1]
  )
  # The pairs, those of near Gaussians first.
  number = jnp.arange(limits.pairs, dtype=jnp.int32)
  rank = jnp.repeat(
    jnp.arange(len(order), dtype=jnp.int32),
    counts,
    total_repeat_length=limits.pairs,
  )
  within = number - (ends - counts)[rank]
  row = top[rank] + within // across[rank]
  column = (left[rank] + within % across[rank]) % columns
  no_tile = columns * rows
  tiles = jnp.where(number < ends[-1], row * columns + column, no_tile)
  # Stable: within a tile they stay in the order of depth.
  tiles, rank = jax.lax.sort((tiles, rank), num_keys=1, is_stable=True)
  bounds = jnp.searchsorted(tiles, jnp.arange(no_tile + 1, dtype=jnp.int32))
  # The chunks: of every tile as many as it takes.
  held = jnp.diff(bounds)
  needed = -(-held // _CHUNK)
  chunk_ends = jnp.cumsum(needed)
  room = -(-(limits.pairs // _CHUNK + no_tile) // _GROUP) * _GROUP
  chunk = jnp.arange(room, dtype=jnp.int32)
  used = chunk_ends[-1]
  of_tile = jnp.searchsorted(chunk_ends, chunk, side='right').astype(jnp.int32)
  safe = jnp.minimum(of_tile, no_tile - 1)
  nth = chunk - (chunk_ends - needed)[safe]
  place = (bounds[safe] + nth * _CHUNK)[:, None] + jnp.arange(_CHUNK)
  is_there = (place < bounds[safe + 1][:, None]) & (chunk < used)[:, None]
  numbers = order[rank[jnp.minimum(place, limits.pairs - 1)]]
  return _Chunks(
    jnp.where(is_there, numbers, -1),
    jnp.where(chunk < used, of_tile, no_tile),
    nth == 0,
    used,
    pairs,
  )


def _columns(
  low: Float[Array, 'n'],
  high: Float[Array, 'n'],
  view: projection.Camera,
  tile: int,
) -> tuple[Int[Array, 'n'], Int[Array, 'n']]:
  """First column of tiles, and how many; they wrap around in a panorama."""
  columns = math.ceil(view.width / tile)
  if not view.is_panorama:
    first = jnp.clip(low // tile, 0, columns - 1).astype(jnp.int32)
    last = jnp.clip(high // tile, 0, columns - 1).astype(jnp.int32)
    return first, last - first + 1
  start = jnp.mod(low, view.width)
  end = start + (high - low)
  first = jnp.minimum(start // tile, columns - 1)
  # The last column may be narrower than the others.
  count = jnp.where(
    end < view.width,
    end // tile - first + 1,
    columns - first + (end - view.width) // tile + 1,
  )
  return (
    first.astype(jnp.int32),
    jnp.clip(count, 1, columns).astype(jnp.int32),
  )


def _in_tiles(
  picture: Float[Array, 'h w c'], tile: int
) -> Float[Array, 't c p']:
  height, width, channels = picture.shape
  padded = jnp.pad(
    picture, ((0, -height % tile), (0, -width % tile), (0, 0)), mode='edge'
  )
  rows, columns = padded.shape[0] // tile, padded.shape[1] // tile
  blocks = padded.reshape(rows, tile, columns, tile, channels)
  return blocks.transpose(0, 2, 4, 1, 3).reshape(
    rows * columns, channels, tile * tile
  )


def _from_tiles(
  tiles: Float[Array, 't c p'], shape: tuple[int, int], tile: int
) -> Float[Array, 'h w c']:
  rows, columns = (math.ceil(size / tile) for size in shape)
  blocks = tiles.reshape(rows, columns, -1, tile, tile)
  picture = blocks.transpose(0, 3, 1, 4, 2).reshape(
    rows * tile, columns * tile, -1
  )
  return picture[: shape[0], : shape[1]]


def _blend(
  features: Float[Array, 'n f'],
  rays: Float[Array, 't 3 p'],
  chunks: _Chunks,
  is_panorama: bool,
) -> tuple[Float[Array, 't 3 p'], Float[Array, 't p']]:
  """Colour and transmittance of every tile."""
  count, _, pixels = rays.shape

  # Gathered here: what a group takes from elsewhere is kept for every group.
  parts = features[jnp.maximum(chunks.numbers, 0)]
  rays = rays[jnp.minimum(chunks.tiles, count - 1)]

  @jax.checkpoint
  def of_group(
    part: Float[Array, 'g c f'],
    is_there: Bool[Array, 'g c'],
    ray: Float[Array, 'g 3 p'],
  ) -> tuple[Float[Array, 'g 3 p'], Float[Array, 'g p']]:
    alpha = _alpha(part, is_there, ray, is_panorama)
    colour = jnp.zeros_like(ray)
    through = jnp.ones_like(ray[:, 0])
    for index in range(_CHUNK):
      weight = through * alpha[:, index]
      colour += part[:, index, 10:, None] * weight[:, None]
      through = through * (1 - alpha[:, index])
    return colour, through

  def nothing(
    part: Float[Array, 'g c f'],
    is_there: Bool[Array, 'g c'],
    ray: Float[Array, 'g 3 p'],
  ) -> tuple[Float[Array, 'g 3 p'], Float[Array, 'g p']]:
    del part, is_there
    return jnp.zeros_like(ray), jnp.ones_like(ray[:, 0])

  def step(number: Int[Array, ''], group: tuple[Array, Array, Array]):
    made = jax.lax.cond(
      number * _GROUP < chunks.used, of_group, nothing, *group
    )
    return number + 1, made

  groups = tuple(
    array.reshape(-1, _GROUP, *array.shape[1:])
    for array in (parts, chunks.numbers >= 0, rays)
  )
  _, (colour, through) = jax.lax.scan(step, 0, groups)
  colour = colour.reshape(-1, 3, pixels)
  before, after = _through_tiles(through.reshape(-1, pixels), chunks.are_first)
  of_tiles = jax.ops.segment_sum(
    before[:, None] * colour,
    chunks.tiles,
    count + 1,
    indices_are_sorted=True,
  )[:count]
  last = jnp.searchsorted(chunks.tiles, jnp.arange(count), side='right') - 1
  is_empty = chunks.tiles[jnp.maximum(last, 0)] != jnp.arange(count)
  return of_tiles, jnp.where(is_empty[:, None], 1.0, after[last])


def _through_tiles(
  through: Float[Array, 'w p'], are_first: Bool[Array, 'w']
) -> tuple[Float[Array, 'w p'], Float[Array, 'w p']]:
  """What of a tile's light is left before every chunk, and after it."""

  def join(first, second):
    is_new_1, product_1 = first
    is_new_2, product_2 = second
    return (
      is_new_1 | is_new_2,
      jnp.where(is_new_2, product_2, product_1 * product_2),
    )

  _, after = jax.lax.associative_scan(join, (are_first[:, None], through))
  before = jnp.where(are_first[:, None], 1.0, jnp.roll(after, 1, axis=0))
  return before, after


def _alpha(
  part: Float[Array, 'g c f'],
  is_there: Bool[Array, 'g c'],
  rays: Float[Array, 'g 3 p'],
  is_panorama: bool,
) -> Float[Array, 'g c p']:
  """How opaque each Gaussian is along each ray."""

  def form(start: int) -> Float[Array, 'g c p']:
    # Sums of three, in place of a product of matrices: nothing is stored.
    return sum(
      part[:, :, start + axis, None] * rays[:, None, axis] for axis in range(3)
    )

  a, b = form(0), form(3)
  square = a * a + b * b
  is_shown = is_there[..., None]
  if is_panorama:
    cosine = form(6)
    is_shown = is_shown & (cosine > projection.LEAST_COSINE)
    square = square / jnp.where(is_shown, cosine, 1.0) ** 2
  alpha = part[:, :, 9, None] * jnp.exp(-0.5 * square)
  is_shown = is_shown & (alpha >= projection.LEAST_ALPHA)
  return jnp.where(is_shown, jnp.minimum(alpha, MOST_ALPHA), 0.0)
