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

Where several views are given, each is looked at alone. A point of a sphere is
then as opaque as they have it on average, those that see it; colour_k is their
mean, weighted by how opaque each has it; and the denoiser is also told how well
their colours agree there, which is the cost volume of multi-view stereo.
"""

import functools
import math
from typing import Any, Mapping, NamedTuple, Sequence

from einops import rearrange, reduce
from flax import nnx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float
import numpy as np

from odin_jax.models import (
  conditioning,
  encoders,
  layers,
  rays,
  sweep,
  unet,
  views,
)
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
    given: the sources, v of each example.
    fov_deg: [b], of the target.
    shares: [b v g g k], what each source is worth on the spheres; 0 where it
      does not see them.
    source_logits: [b v g g k], of the distances along the sources' rays.
  """

  log_weights: Array
  given: views.Views
  fov_deg: Array
  shares: Array
  source_logits: Array


class Blended(NamedTuple):
  """What became of it.

  Attributes:
    picture: [b s s 3], values in [0, 1] but for what is made up beyond them.
    logits: [b g g k + 1], of the weights that it was blended by.
    shift: [b g g], of the distances of every ray, in steps, -0.5 to 0.5.
    made_up: [b s s 1], the weight of the rest.
    spread: [b s s 1], how far apart the distances are that a pixel is blended
      of, one sigma in steps, see `_spread`.
  """

  picture: Array
  logits: Array
  shift: Array
  made_up: Array
  spread: Array


def check(config: Config) -> None:
  """Raises ValueError where spheres are those of an earlier version."""
  settings = config['model'].get('spheres')
  if settings is not None and 'noisy_cells' not in settings:
    raise ValueError(
      'its model is of an earlier version of the recipe multisphere; train it '
      'again, or use the code that trained it'
    )


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
    # Last, so that those of one source are the first of those of several.
    *(
      f'agreement{cell}.{radius}'
      for cell in cells
      for radius in radii
      if conditioning.num_sources(config) > 1
    ),
  )


def noisy_channels(config: Config) -> int:
  """Of the noisy latent, as `noisy_cells` has them."""
  return 3 * config['model']['spheres']['noisy_cells'] ** 2


def noisy_cells(
  latent: Float[Array, 'b n n c'], cells: int, patch_px: int
) -> Float[Array, 'b n n d']:
  """Mean of the latent over cells of every patch, which is all that noise adds.

  The denoiser sees nothing else of it, so that these few numbers alone are
  drawn, and what is finer is their conditional mean: sharp where the source
  shows it. The rest of a patch would be grain where it does not.

  Args:
    latent: of pixels.
    cells: along a side of a patch.
    patch_px: the side of a patch.
  """
  return reduce(
    latent,
    'b i j (y h x w c) -> b i j (y x c)',
    'mean',
    y=cells,
    x=cells,
    h=patch_px // cells,
    w=patch_px // cells,
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


def opacity(
  source_logits: Float[Array, 'b g g k'],
  places: sweep.Projection,
  radii: Sequence[float],
) -> Float[Array, 'b k n']:
  """How opaque the source has the points of the target's spheres.

  Args:
    source_logits: of the distances along the source's rays.
    places: [b k n], of the target's rays on their spheres.
    radii: the distances, and the radii of the spheres.

  Returns:
    alpha of the module's docstring, less than 1.
  """
  index = jnp.log(jnp.maximum(places.distance, 1e-6) / radii[0]) / _step(radii)
  alpha = sweep.trilinear(hazard(source_logits), places.u, places.v, index)
  return jnp.where(places.visible, jnp.minimum(alpha, _MOST_OPAQUE), 0.0)


def _project(
  given: views.Views,
  fov_deg: Float[Array, 'b'],
  size: int,
  radii: Float[Array, '*k'],
) -> sweep.Projection:
  """Where every view shows the target's spheres, [b v k n]."""
  count = given.image.shape[1]
  places = sweep.project_spheres(
    views.flat(given.target2view),
    jnp.repeat(fov_deg, count),
    size,
    jnp.repeat(radii, count, axis=0) if radii.ndim == 3 else radii,
    source_fov_deg=views.flat(given.fov_deg),
  )
  return sweep.Projection(*(views.unflat(x, count) for x in places))


def _look_up(
  images: Float[Array, 'b v s s c'], places: sweep.Projection
) -> Float[Array, 'b v k n c']:
  """What every view shows at places [b v k n]."""
  found = sweep.bilinear(
    views.flat(images), views.flat(places.u), views.flat(places.v)
  )
  return views.unflat(found, images.shape[1])


def _mix(
  values: Float[Array, 'b v k n c'], shares: Float[Array, 'b v k n']
) -> Float[Array, 'b k n c']:
  """Mean over the views by their shares; 0 where all of them are 0."""
  if values.shape[1] == 1:
    return values[:, 0] * (shares[:, 0, ..., None] > 0)
  total = jnp.maximum(shares.sum(1), 1e-12)
  return jnp.einsum('bvknc,bvkn->bknc', values, shares / total[:, None])


class Multisphere(nnx.Module):
  """The source's distances, and what the denoiser is told of them.

  Args:
    config: a whole training config; read are `image_size_px`, `dtype`,
      `autoencoder`, `model.fourier_bands`, `model.unet.context_dim` and
      `model.spheres`: `near`, `far`, `count`, `features`, and `network`, a
      U-Net's settings.
    rngs: of the initial parameters.
  """

  def __init__(self, config: Config, *, rngs: nnx.Rngs):
    settings = config['model']['spheres']
    self.distances = distances(config)
    self.grid = grid_size(config)
    self.features = settings['features']
    self.compares = conditioning.num_sources(config) > 1
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
    self.bands = config['model']['fourier_bands']
    rays_of_tokens = len(rays.PLUCKER) * (2 * self.bands + 1)
    width = config['model']['unet']['context_dim']
    self.token1 = layers.Linear(
      self.features + rays_of_tokens, width, rngs=rngs
    )
    self.token2 = layers.Linear(width, width, rngs=rngs)

  def __call__(
    self,
    given: views.Views,
    latents: Float[Array, 'b v n n c'],
    fov_deg: Float[Array, 'b'],
  ) -> tuple[Float[Array, 'b n n e'], Float[Array, 'b m d'], Blend]:
    """Channels for the denoiser, a channel for each name; tokens; the blend.

    There is a token for every latent pixel of the sources, of what was seen
    there and of its ray in the target's axes, so that attention compares like
    with like.

    Args:
      given: the sources.
      latents: of them.
      fov_deg: of the target.
    """
    grid, side = self.grid, latents.shape[2]
    radii = jnp.asarray(self.distances)
    logits, features = self._look_at(
      views.flat(latents),
      views.flat(given.fov_deg),
      views.flat(given.median_depth),
    )
    places = _project(given, fov_deg, grid, radii)
    shown = places.visible & given.is_there[..., None, None]
    places = places._replace(visible=shown)
    of_views = views.unflat(
      opacity(
        logits, sweep.Projection(*map(views.flat, places)), self.distances
      ),
      shown.shape[1],
    )
    weights, rest = composite(of_views.sum(1) / jnp.maximum(shown.sum(1), 1))
    shares = shown * (of_views + _LEAST_WEIGHT)
    coarse = reduce(
      given.image, 'b v (i y) (j x) c -> b v i j c', 'mean', i=grid, j=grid
    )
    colours = _look_up(coarse, places)
    colour = jnp.einsum('bkn,bknc->bnc', weights, _mix(colours, shares))
    mean = given.image[:, 0].mean(axis=(1, 2))
    colour = colour + rest[..., None] * mean[:, None]
    features = views.unflat(features, shown.shape[1])
    coarser = functools.partial(
      reduce, reduction='mean', i=side, y=_FINER, x=_FINER
    )
    swept = jnp.einsum(
      'bkn,bknc->bnc',
      coarser(weights, 'b k (i y j x) -> b k (i j)'),
      _mix(
        _look_up(features, _project(given, fov_deg, side, radii)),
        coarser(shares, 'b v k (i y j x) -> b v k (i j)'),
      ),
    )
    as_grid = functools.partial(rearrange, i=grid)
    log_weights = jnp.log(
      jnp.concatenate(
        [
          as_grid(weights, 'b k (i j) -> b i j k'),
          as_grid(rest, 'b (i j) -> b i j 1'),
        ],
        axis=-1,
      )
      + _LEAST_WEIGHT
    )
    channels = [
      _cells(log_weights[..., :-1] / _DELTA_SCALE),
      _cells(as_grid(rest, 'b (i j) -> b i j 1')),
      _cells(as_grid(colour, 'b (i j) c -> b i j c') * 2 - 1),
      rearrange(swept, 'b (i j) c -> b i j c', i=side),
    ]
    if self.compares:
      agrees = sweep.agreement(colours, shown)
      channels.append(_cells(as_grid(agrees, 'b k (i j) -> b i j k')))
    parts = Blend(
      log_weights,
      given,
      fov_deg,
      as_grid(shares, 'b v k (i j) -> b v i j k'),
      views.unflat(logits, shown.shape[1]),
    )
    return (
      jnp.concatenate(channels, axis=-1),
      self._tokens(features, given),
      parts,
    )

  def _tokens(
    self, features: Float[Array, 'b v n n f'], given: views.Views
  ) -> Float[Array, 'b m d']:
    """Those of a view that is not there are the first one's again."""
    directions = rays.camera_rays(views.flat(given.fov_deg), features.shape[2])
    plucker = rays.plucker(
      directions, rays.inverse(views.flat(given.target2view))
    )
    tokens = jnp.concatenate(
      [
        rearrange(features, 'b v i j f -> (b v) (i j) f'),
        rays.fourier_features(plucker, self.bands),
      ],
      axis=-1,
    )
    tokens = self.token2(nnx.silu(self.token1(tokens)))
    tokens = views.unflat(tokens, features.shape[1])
    tokens = jnp.where(given.is_there[..., None, None], tokens, tokens[:, :1])
    return rearrange(tokens, 'b v m d -> b (v m) d')

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
  size = parts.given.image.shape[2]
  pixels = 3 * patch_px**2
  of_rays = _rays(output[..., pixels:])
  logits = parts.log_weights + _DELTA_SCALE * of_rays[..., :-1]
  shift = jnp.tanh(of_rays[..., -1]) / 2
  both = _enlarged(jnp.concatenate([logits, shift[..., None]], axis=-1), size)
  weights = jax.nn.softmax(both[..., :-1], axis=-1)
  steps = rearrange(both[..., -1], 'b y x -> b 1 (y x)') * _step(radii)
  places = _project(
    parts.given,
    parts.fov_deg,
    size,
    jnp.asarray(radii)[:, None] * jnp.exp(steps),
  )
  mean = parts.given.image[:, 0].mean(axis=(1, 2))
  colour = rearrange(
    output[..., :pixels],
    'b i j (y x c) -> b (i y) (j x) c',
    y=patch_px,
    x=patch_px,
  )
  seen = jnp.einsum(
    'bnk,bknc->bnc',
    rearrange(weights[..., :-1], 'b y x k -> b (y x) k'),
    _colours(parts, places, mean),
  )
  seen = rearrange(seen, 'b (y x) c -> b y x c', y=size)
  made_up = weights[..., -1:]
  rest = made_up * (colour + mean[:, None, None])
  return Blended(
    seen + rest, logits, shift, made_up, _spread(weights[..., :-1])
  )


def _spread(weights: Float[Array, 'b s s k']) -> Float[Array, 'b s s 1']:
  """Deviation of the index that weights have.

  The first has `_LEAST_WEIGHT` more, so that there is one where all is made up:
  of a share p that is all at index i it is about i sqrt(`_LEAST_WEIGHT` / p).
  """
  index = jnp.arange(weights.shape[-1], dtype=weights.dtype)
  total = weights.sum(-1) + _LEAST_WEIGHT
  # No matrix product, which accelerators round: the difference of the squares
  # is small beside them.
  mean, square = ((weights * index**power).sum(-1) / total for power in (1, 2))
  # The gradient of a root at nothing is not finite.
  return jnp.sqrt(jnp.maximum(square - mean**2, 0) + _LEAST_WEIGHT)[..., None]


def _enlarged(x: Float[Array, 'b g g c'], size: int) -> Float[Array, 'b s s c']:
  return jax.image.resize(x, (len(x), size, size, x.shape[-1]), 'linear')


def _colours(
  parts: Blend, places: sweep.Projection, mean: Float[Array, 'b 3']
) -> Float[Array, 'b k n 3']:
  """What the sources show on the spheres; the mean where none shows it."""
  count, size = parts.shares.shape[1], parts.given.image.shape[2]
  shares = rearrange(
    views.unflat(_enlarged(views.flat(parts.shares), size), count),
    'b v y x k -> b v k (y x)',
  )
  if count == 1:
    shares = jnp.ones_like(shares)
  shares = shares * places.visible
  mean = mean[:, None, None]
  lacks = jnp.where(shares.sum(1) > 0, 0.0, 1.0)[..., None]
  return _mix(_look_up(parts.given.image, places), shares) + lacks * mean


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
  parts: Blend,
  blended: Blended,
) -> tuple[Float[Array, 'b'], Float[Array, 'b']]:
  """Errors of the distances, where depth is known.

  The first is the cross-entropy of the sources' rays. The second is that of the
  target's weights, and how far the shift is off, in steps: a surface is to be
  on the sphere next to it, moved by the remainder, if a source shows it, and in
  the rest if not. A source shows what lies in its picture at the depth that it
  has there, or where that is not known.

  Args:
    config: a whole training config.
    pairs: with depths, 0 where they are not known.
    parts: of `Multisphere`.
    blended: from `blend`.
  """
  radii, grid = distances(config), grid_size(config)
  depths = pairs.source_depth[:, None]
  if pairs.more is not None:
    depths = jnp.concatenate([depths, pairs.more.depth], axis=1)
  count = depths.shape[1]
  there = views.flat(parts.given.is_there)[:, None, None]
  of_views = _at_rays(views.flat(depths), grid)
  first = -(
    _two_hot(of_views / _along(views.flat(parts.given.fov_deg), grid), radii)
    * jax.nn.log_softmax(views.flat(parts.source_logits))
  ).sum(-1)
  # Of all rays of an example's sources alike.
  first, known = (
    rearrange(x, '(b v) i j -> b (v i) j', v=count)
    for x in (first, (of_views > 0) & there)
  )

  target = _at_rays(pairs.target_depth, grid)
  distance = target / _along(pairs.fov_deg, grid)
  places = _project(
    parts.given,
    pairs.fov_deg,
    grid,
    rearrange(distance, 'b i j -> b 1 (i j)'),
  )
  shown = _is_shown(
    views.flat(depths), sweep.Projection(*map(views.flat, places))
  )
  shown = views.unflat(shown & there[..., 0], count).any(axis=1)
  shown = rearrange(shown, 'b (i j) -> b i j', i=grid)
  place = _place(distance, radii)
  nearest = jnp.round(place).astype(jnp.int32)
  wanted = jnp.where(shown, nearest, len(radii))
  second = -jnp.take_along_axis(
    jax.nn.log_softmax(blended.logits), wanted[..., None], axis=-1
  )[..., 0]
  second += shown * jnp.abs(blended.shift - (place - nearest))
  return _mean_where(first, known), _mean_where(second, target > 0)


def _along(fov_deg: Float[Array, 'b'], grid: int) -> Float[Array, 'b g g']:
  """Depth of points at distance 1 on the rays of a grid."""
  directions = rays.camera_rays(fov_deg, grid)
  return rearrange(directions[..., 2], 'b (i j) -> b i j', i=grid)


def _is_shown(
  depth: Float[Array, 'b d d'], places: sweep.Projection
) -> Bool[Array, 'b n']:
  """Whether a view shows points, at places [b 1 n], and nothing before them."""
  u, v, shown, _, z = (x[:, 0] for x in places)
  size = depth.shape[1]
  column, row = (
    jnp.clip(jnp.floor(x * size), 0, size - 1).astype(jnp.int32) for x in (u, v)
  )
  there = jnp.take_along_axis(
    rearrange(depth, 'b y x -> b (y x)'), row * size + column, axis=1
  )
  return shown & ((there == 0) | (jnp.abs(z - there) < _SAME_SURFACE * there))


def sharding_rules() -> dict[str, tuple[str | None, ...]]:
  """By its path in a `Multisphere`, the mesh axes of every parameter."""
  return {
    **{f'network/(?:{name})': axes for name, axes in unet.SHARDING.items()},
    'token1/kernel': ('fsdp', 'tensor'),
    'token2/kernel': ('tensor', 'fsdp'),
    r'token[12]/bias': (),
  }
