"""What the source shows, at every distance, as the target's camera sees it.

One picture does not say how far away things are, but what it shows tells much.
A network looks at the source and gives, for every ray of a grid, the
probabilities p_i that its first surface lies at distance r_i, of a few that
span the scene (`distances`). A ray that got as far as r_i ends there with

  h_i = p_i / (p_i + p_{i+1} + ...).

Seen from the target's camera this is a multisphere image (MatryODShka, Attal et
al. 2008.06534; of planes: Zhou et al. 1805.09817): a point of its k-th sphere
is as opaque as the source has it, alpha_k = h at the pixel and the distance
where the source sees it, and 0 where it does not. From front to back (Max 1995)

  w_k = alpha_k prod_{j<k} (1 - alpha_j),     rest = prod_j (1 - alpha_j),

where `rest` is what the source says nothing about. The denoiser is given these
weights, corrects them, moves every ray's distances by up to half a step, and
makes up the rest: its picture is

  x0 = sum_k w'_k colour_k + rest' colour,  (w', rest') = softmax(log w + delta),

colour_k being what the source shows at distance r_k q^shift of the ray (q: the
ratio of one distance to the one before), looked up at full resolution, so that
textures stay as sharp as they are there. Density from one view with colours
sampled from it is Wimbauer et al.'s (Behind the Scenes, 2301.07668); that
distances have a head start in the network's input MVSplat's (2403.14627).
"""

import math
from typing import Any, Mapping, NamedTuple, Sequence

from einops import rearrange, reduce
from flax import nnx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float
import numpy as np

from odin_jax.models import conditioning, encoders, rays, sweep, unet
from odin_jax.shared import posed_pair

Config = Mapping[str, Any]
# Rays of the grid per latent pixel and axis.
_FINER = 2
# Added to weights under a logarithm.
_LEAST_WEIGHT = 1e-3
_MOST_OPAQUE = 0.999
# The denoiser's corrections come from a layer whose outputs are about one.
_DELTA_SCALE = 4.0
# How far depths may differ, as a share, where both views show one surface.
_SAME_SURFACE = 0.1


class Blend(NamedTuple):
  """What a picture is blended of.

  Attributes:
    log_weights: [b g g k + 1], log of w_k and, last, of the rest; g is the side
      of the grid.
    image: [b s s 3], the source, values in [0, 1].
    target2source, fov_deg: see `posed_pair.PosedPair`.
    source_logits: [b g g k], of the distances along the source's rays.
  """

  log_weights: Array
  image: Array
  target2source: Array
  fov_deg: Array
  source_logits: Array


class Blended(NamedTuple):
  """What became of it.

  Attributes:
    picture: [b s s 3], values in [0, 1] but for what is made up beyond them.
    logits: [b g g k + 1], of the weights that it was blended by.
    shift: [b g g], of the distances of every ray, in steps, -0.5 to 0.5.
  """

  picture: Array
  logits: Array
  shift: Array


def distances(config: Config) -> tuple[float, ...]:
  """Radii of the spheres, scene units."""
  settings = config['model']['spheres']
  radii = np.geomspace(settings['near'], settings['far'], settings['count'])
  return tuple(radii.tolist())


def grid_size(config: Config) -> int:
  """Side of the grid of rays."""
  return _FINER * encoders.latent_size(config)


def channel_names(config: Config) -> tuple[str, ...]:
  """Of the denoiser's input: weights, rest and colour per ray, features."""
  settings = config['model']['spheres']
  radii = [f'{radius:.4g}' for radius in distances(config)]
  cells = range(_FINER**2)
  return (
    *(f'weight{cell}.{radius}' for cell in cells for radius in radii),
    *(f'rest{cell}' for cell in cells),
    *(f'colour{cell}.{i}' for cell in cells for i in range(3)),
    *(f'feature{i}' for i in range(settings['features'])),
  )


def output_channels(config: Config) -> int:
  """Of the denoiser: a colour per pixel; corrections and shift per ray."""
  count = len(distances(config))
  return encoders.latent_channels(config) + _FINER**2 * (count + 2)


def composite(
  opacity: Float[Array, 'b k *n'],
) -> tuple[Float[Array, 'b k *n'], Float[Array, 'b *n']]:
  """Weights of the spheres from front to back, and what passes all of them."""
  passed = jnp.cumprod(1 - opacity, axis=1)
  before = jnp.concatenate([jnp.ones_like(passed[:, :1]), passed[:, :-1]], 1)
  return before * opacity, passed[:, -1]


def hazard(logits: Float[Array, '*b k']) -> Float[Array, '*b k']:
  """h_i of the module's docstring."""
  probabilities = jax.nn.softmax(logits, axis=-1)
  remaining = jnp.cumsum(probabilities[..., ::-1], axis=-1)[..., ::-1]
  return probabilities / jnp.maximum(remaining, 1e-6)


def _step(radii: Sequence[float]) -> float:
  """Logarithm of the ratio of one distance to the one before."""
  return math.log(radii[1] / radii[0])


def _cells(x: Float[Array, 'b y x c']) -> Float[Array, 'b i j d']:
  """Rays of a latent pixel as its channels."""
  return rearrange(x, 'b (i y) (j x) c -> b i j (y x c)', y=_FINER, x=_FINER)


def _rays(x: Float[Array, 'b i j d']) -> Float[Array, 'b y x c']:
  """The inverse of `_cells`."""
  return rearrange(x, 'b i j (y x c) -> b (i y) (j x) c', y=_FINER, x=_FINER)


def target_weights(
  source_logits: Float[Array, 'b g g k'],
  places: sweep.Projection,
  radii: Sequence[float],
) -> tuple[Float[Array, 'b k n'], Float[Array, 'b n']]:
  """What the source's distances are to the target's rays.

  Args:
    source_logits: of the distances along the source's rays.
    places: [b k n], of the target's rays on their spheres.
    radii: the distances, and the radii of the spheres.

  Returns:
    weights of the spheres, and the rest, of which the source says nothing.
  """
  index = jnp.log(jnp.maximum(places.distance, 1e-6) / radii[0]) / _step(radii)
  opacity = sweep.trilinear(hazard(source_logits), places.u, places.v, index)
  opacity = jnp.where(places.visible, opacity, 0.0)
  return composite(jnp.minimum(opacity, _MOST_OPAQUE))


class Multisphere(nnx.Module):
  """The source's distances, and what the denoiser is told of them.

  Args:
    config: a whole training config; read are `image_size_px`, `dtype`,
      `autoencoder` and `model.spheres`: `near`, `far`, `count`, `features`,
      and `network`, a U-Net's settings.
    rngs: of the initial parameters.
  """

  def __init__(self, config: Config, *, rngs: nnx.Rngs):
    settings = config['model']['spheres']
    self.distances = distances(config)
    self.grid = grid_size(config)
    self.features = settings['features']
    self.context_dim = settings['network']['context_dim']
    self.network = unet.UNet(
      # Latent, numbers and ray.
      in_channels=encoders.latent_channels(config)
      + len(conditioning.VIEW_NUMBERS)
      + 3,
      out_channels=_FINER**2 * len(self.distances) + self.features,
      dtype=config['dtype'],
      rngs=rngs,
      **settings['network'],
    )

  def __call__(
    self,
    source: Float[Array, 'b n n c'],
    image: Float[Array, 'b s s 3'],
    target2source: Float[Array, 'b 3 4'],
    fov_deg: Float[Array, 'b'],
    median_depth: Float[Array, 'b'],
  ) -> tuple[Float[Array, 'b n n e'], Blend]:
    """Channels for the denoiser, a channel for each name; and the blend.

    Args:
      source: its latent.
      image: the source, values in [0, 1].
      target2source, fov_deg, median_depth: see `posed_pair.PosedPair`.
    """
    logits, features = self._look_at(source, fov_deg, median_depth)
    places = sweep.project_spheres(
      target2source, fov_deg, self.grid, jnp.asarray(self.distances)
    )
    weights, rest = target_weights(logits, places, self.distances)
    grid, side = self.grid, source.shape[1]
    coarse = reduce(image, 'b (i y) (j x) c -> b i j c', 'mean', i=grid, j=grid)
    colour = jnp.einsum(
      'bkn,bknc->bnc', weights, sweep.bilinear(coarse, places.u, places.v)
    )
    colour = colour + rest[..., None] * image.mean(axis=(1, 2))[:, None]
    of_latents = sweep.project_spheres(
      target2source, fov_deg, side, jnp.asarray(self.distances)
    )
    shares = reduce(
      weights, 'b k (i y j x) -> b k (i j)', 'mean', i=side, y=_FINER, x=_FINER
    )
    features = jnp.einsum(
      'bkn,bknc->bnc',
      shares,
      sweep.bilinear(features, of_latents.u, of_latents.v),
    )
    weights = rearrange(weights, 'b k (i j) -> b i j k', i=grid)
    rest = rearrange(rest, 'b (i j) -> b i j 1', i=grid)
    colour = rearrange(colour, 'b (i j) c -> b i j c', i=grid)
    log_weights = jnp.log(
      jnp.concatenate([weights, rest], axis=-1) + _LEAST_WEIGHT
    )
    channels = jnp.concatenate(
      [
        _cells(log_weights[..., :-1] / _DELTA_SCALE),
        _cells(rest),
        _cells(colour * 2 - 1),
        rearrange(features, 'b (i j) c -> b i j c', i=side),
      ],
      axis=-1,
    )
    return channels, Blend(log_weights, image, target2source, fov_deg, logits)

  def _look_at(
    self,
    source: Float[Array, 'b n n c'],
    fov_deg: Float[Array, 'b'],
    median_depth: Float[Array, 'b'],
  ) -> tuple[Float[Array, 'b g g k'], Float[Array, 'b n n f']]:
    """Logits of the distances along the source's rays; features."""
    batch, side = source.shape[:2]
    numbers = conditioning.view_numbers(fov_deg, median_depth)
    numbers = jnp.broadcast_to(
      numbers[:, None, None], (batch, side, side, numbers.shape[-1])
    )
    directions = rearrange(
      rays.camera_rays(fov_deg, side), 'b (i j) d -> b i j d', i=side
    )
    output, _ = self.network(
      jnp.concatenate([source, numbers, directions], axis=-1),
      # It knows of no noise, and has no context.
      jnp.zeros(batch),
      jnp.zeros((batch, 1, self.context_dim), source.dtype),
    )
    return _rays(output[..., : -self.features]), output[..., -self.features :]


def blend(
  output: Float[Array, 'b n n d'],
  parts: Blend,
  radii: Sequence[float],
  patch_px: int,
) -> Blended:
  """Blends the picture as the denoiser says.

  Args:
    output: of the denoiser: the rest's colour less the source's mean, then the
      corrections and the shift of every ray.
    parts: of `Multisphere`.
    radii: of the spheres.
    patch_px: side of a latent pixel.
  """
  size = parts.image.shape[1]
  pixels = 3 * patch_px**2
  of_rays = _rays(output[..., pixels:])
  logits = parts.log_weights + _DELTA_SCALE * of_rays[..., :-1]
  shift = jnp.tanh(of_rays[..., -1]) / 2
  both = jnp.concatenate([logits, shift[..., None]], axis=-1)
  fine = jax.image.resize(
    both, (len(both), size, size, both.shape[-1]), 'linear'
  )
  weights = jax.nn.softmax(fine[..., :-1], axis=-1)
  steps = rearrange(fine[..., -1], 'b y x -> b 1 (y x)') * _step(radii)
  places = sweep.project_spheres(
    parts.target2source,
    parts.fov_deg,
    size,
    jnp.asarray(radii)[:, None] * jnp.exp(steps),
  )
  mean = parts.image.mean(axis=(1, 2))
  colour = rearrange(
    output[..., :pixels],
    'b i j (y x c) -> b (i y) (j x) c',
    y=patch_px,
    x=patch_px,
  )
  seen = jnp.einsum(
    'bnk,bknc->bnc',
    rearrange(weights[..., :-1], 'b y x k -> b (y x) k'),
    sweep.colours_at(parts.image, places),
  )
  seen = rearrange(seen, 'b (y x) c -> b y x c', y=size)
  rest = weights[..., -1:] * (colour + mean[:, None, None])
  return Blended(seen + rest, logits, shift)


# -- Learning from depth -------------------------------------------------------


def _at_rays(depth: Float[Array, 'b d d'], grid: int) -> Float[Array, 'b g g']:
  """Depths at the rays of a grid: those of the nearest pixel."""
  size = depth.shape[1]
  index = (jnp.arange(grid) * 2 + 1) * size // (2 * grid)
  return depth[:, index][:, :, index]


def _place(
  distance: Float[Array, '*b'], radii: Sequence[float]
) -> Float[Array, '*b']:
  """Of a distance among the radii: 0 is the first, 0.5 half a step farther."""
  place = jnp.log(jnp.maximum(distance, 1e-6) / radii[0]) / _step(radii)
  return jnp.clip(place, 0, len(radii) - 1)


def _two_hot(
  distance: Float[Array, '*b'], radii: Sequence[float]
) -> Float[Array, '*b k']:
  """Shares of the two radii around a distance, linear in its logarithm."""
  place = _place(distance, radii)
  return jnp.maximum(1 - jnp.abs(place[..., None] - jnp.arange(len(radii))), 0)


def _mean_where(values: Array, where: Array) -> Float[Array, 'b']:
  """Of every example; 0 where there is none."""
  where = where.astype(values.dtype)
  return (values * where).sum((1, 2)) / jnp.maximum(where.sum((1, 2)), 1)


def depth_losses(
  config: Config,
  pairs: posed_pair.PosedPair,
  source_logits: Float[Array, 'b g g k'],
  blended: Blended,
) -> tuple[Float[Array, 'b'], Float[Array, 'b']]:
  """Errors of the distances, where depth is known.

  The first is the cross-entropy of the source's rays. The second is that of the
  target's weights, and how far the shift is off, in steps: a surface is to be
  on the sphere next to it, moved by the remainder, if the source shows it, and
  in the rest if not. The source shows what lies in its picture at the depth
  that it has there, or where that is not known.

  Args:
    config: a whole training config.
    pairs: with depths, 0 where they are not known.
    source_logits: of `Blend`.
    blended: from `blend`.
  """
  radii, grid = distances(config), grid_size(config)
  directions = rays.camera_rays(pairs.fov_deg, grid)
  along = rearrange(directions[..., 2], 'b (i j) -> b i j', i=grid)
  source = _at_rays(pairs.source_depth, grid)
  target = _at_rays(pairs.target_depth, grid)
  first = -(
    _two_hot(source / along, radii) * jax.nn.log_softmax(source_logits)
  ).sum(-1)

  places = sweep.project_spheres(
    pairs.target2source,
    pairs.fov_deg,
    grid,
    rearrange(target / along, 'b i j -> b 1 (i j)'),
  )
  u, v, shown, _, z = (x[:, 0] for x in places)
  size = pairs.source_depth.shape[1]
  column, row = (
    jnp.clip(jnp.floor(x * size), 0, size - 1).astype(jnp.int32) for x in (u, v)
  )
  there = jnp.take_along_axis(
    rearrange(pairs.source_depth, 'b y x -> b (y x)'),
    row * size + column,
    axis=1,
  )
  shown &= (there == 0) | (jnp.abs(z - there) < _SAME_SURFACE * there)
  shown = rearrange(shown, 'b (i j) -> b i j', i=grid)
  place = _place(target / along, radii)
  nearest = jnp.round(place).astype(jnp.int32)
  wanted = jnp.where(shown, nearest, len(radii))
  second = -jnp.take_along_axis(
    jax.nn.log_softmax(blended.logits), wanted[..., None], axis=-1
  )[..., 0]
  second += shown * jnp.abs(blended.shift - (place - nearest))
  return _mean_where(first, source > 0), _mean_where(second, target > 0)


def sharding_rules() -> dict[str, tuple[str | None, ...]]:
  """By its path in a `Multisphere`, the mesh axes of every parameter."""
  return {f'network/(?:{name})': axes for name, axes in unet.SHARDING.items()}
