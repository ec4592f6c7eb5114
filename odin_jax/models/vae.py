"""The KL-regularised autoencoder of latent diffusion.

Rombach et al. 2022, arXiv 2112.10752, section 3.1; the network is that of
CompVis/latent-diffusion `ldm/modules/diffusionmodules/model.py` with widths
and depths as arguments; configs/train.py has those of Stable Diffusion.

The encoder gives the posterior N(mean, exp(log variance)) of a latent z; the
diffusion model sees scale * z, which has unit variance or so.
"""

import functools
import math
from typing import Any, Mapping, Sequence

from einops import rearrange
from flax import nnx
import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float
import numpy as np

from odin_jax.models import layers, ops

Image = Float[Array, 'b h w c']
# The arguments of `AutoencoderKL` and `scale`.
Settings = Mapping[str, Any]

_EPSILON = 1e-6
_LOG_VARIANCE_RANGE = (-30.0, 20.0)


def downsampling(channel_mult: Sequence[int]) -> int:
  """Pixels per latent along one side."""
  return 2 ** (len(channel_mult) - 1)


class ResBlock(nnx.Module):
  """Two 3x3 convolutions and a skip connection."""

  def __init__(self, inputs: int, outputs: int, *, groups: int, rngs: nnx.Rngs):
    self.norm1 = layers.GroupNorm(inputs, groups=groups, epsilon=_EPSILON)
    self.conv1 = layers.Conv(inputs, outputs, rngs=rngs)
    self.norm2 = layers.GroupNorm(outputs, groups=groups, epsilon=_EPSILON)
    self.conv2 = layers.Conv(outputs, outputs, rngs=rngs)
    self.skip = (
      None
      if inputs == outputs
      else layers.Conv(inputs, outputs, size=1, rngs=rngs)
    )

  def __call__(self, x: Image) -> Float[Array, 'b h w outputs']:
    y = self.conv1(nnx.silu(self.norm1(x)))
    y = self.conv2(nnx.silu(self.norm2(y)))
    return (x if self.skip is None else self.skip(x)) + y


class Attention(nnx.Module):
  """Single-head self-attention over the pixels, with a residual."""

  def __init__(self, channels: int, *, groups: int, rngs: nnx.Rngs):
    self.norm = layers.GroupNorm(channels, groups=groups, epsilon=_EPSILON)
    self.to_q = layers.Linear(channels, channels, rngs=rngs)
    self.to_k = layers.Linear(channels, channels, rngs=rngs)
    self.to_v = layers.Linear(channels, channels, rngs=rngs)
    self.to_out = layers.Linear(channels, channels, rngs=rngs)

  def __call__(self, x: Image) -> Image:
    tokens = rearrange(self.norm(x), 'b h w c -> b (h w) 1 c')
    y = ops.attention(self.to_q(tokens), self.to_k(tokens), self.to_v(tokens))
    y = rearrange(self.to_out(y), 'b (h w) 1 c -> b h w c', h=x.shape[1])
    return x + y


class Middle(nnx.Module):
  """Residual block, attention, residual block at the lowest resolution."""

  def __init__(self, channels: int, *, groups: int, rngs: nnx.Rngs):
    shared = dict(groups=groups, rngs=rngs)
    self.residual = nnx.List(
      ResBlock(channels, channels, **shared) for _ in range(2)
    )
    self.attention = Attention(channels, **shared)

  def __call__(self, x: Image) -> Image:
    first, second = self.residual
    return second(self.attention(first(x)))


def _levels(
  widths: Sequence[int], blocks: int, *, groups: int, rngs: nnx.Rngs
) -> nnx.List:
  """Residual blocks by level; `widths` are the input's and the levels'."""
  return nnx.List(
    nnx.List(
      ResBlock(width if block else inputs, width, groups=groups, rngs=rngs)
      for block in range(blocks)
    )
    for inputs, width in zip(widths, widths[1:])
  )


class Encoder(nnx.Module):
  """Images to twice the latent's channels, at a lower resolution."""

  def __init__(
    self,
    *,
    base_channels: int,
    channel_mult: Sequence[int],
    num_res_blocks: int,
    latent_channels: int,
    num_groups: int,
    rngs: nnx.Rngs,
  ):
    widths = [base_channels * mult for mult in channel_mult]
    shared = dict(groups=num_groups, rngs=rngs)
    self.conv_in = layers.Conv(3, base_channels, rngs=rngs)
    self.down = _levels([base_channels, *widths], num_res_blocks, **shared)
    # One more row and column is read at the far sides only.
    self.downsample = nnx.List(
      layers.Conv(width, width, stride=2, padding=(0, 1), rngs=rngs)
      for width in widths[:-1]
    )
    self.middle = Middle(widths[-1], **shared)
    self.norm_out = layers.GroupNorm(
      widths[-1], groups=num_groups, epsilon=_EPSILON
    )
    self.conv_out = layers.Conv(widths[-1], 2 * latent_channels, rngs=rngs)

  def __call__(self, x: Float[Array, 'b h w 3']) -> Float[Array, 'b y x c']:
    x = self.conv_in(x)
    for level, blocks in enumerate(self.down):
      for block in blocks:
        x = block(x)
      if level < len(self.downsample):
        x = self.downsample[level](x)
    return self.conv_out(nnx.silu(self.norm_out(self.middle(x))))


class Decoder(nnx.Module):
  """Latents to images; one residual block per level more than the encoder."""

  def __init__(
    self,
    *,
    base_channels: int,
    channel_mult: Sequence[int],
    num_res_blocks: int,
    latent_channels: int,
    num_groups: int,
    rngs: nnx.Rngs,
  ):
    widths = [base_channels * mult for mult in reversed(channel_mult)]
    shared = dict(groups=num_groups, rngs=rngs)
    self.conv_in = layers.Conv(latent_channels, widths[0], rngs=rngs)
    self.middle = Middle(widths[0], **shared)
    self.up = _levels([widths[0], *widths], num_res_blocks + 1, **shared)
    self.upsample = nnx.List(
      layers.Conv(width, width, rngs=rngs) for width in widths[:-1]
    )
    self.norm_out = layers.GroupNorm(
      widths[-1], groups=num_groups, epsilon=_EPSILON
    )
    self.conv_out = layers.Conv(widths[-1], 3, rngs=rngs)

  def __call__(self, x: Image) -> Float[Array, 'b y x 3']:
    x = self.middle(self.conv_in(x))
    for level, blocks in enumerate(self.up):
      for block in blocks:
        x = block(x)
      if level < len(self.upsample):
        b, h, w, c = x.shape
        x = jax.image.resize(x, (b, 2 * h, 2 * w, c), 'nearest')
        x = self.upsample[level](x)
    return self.conv_out(nnx.silu(self.norm_out(x)))


class AutoencoderKL(nnx.Module):
  """Encoder, decoder and the 1x1 convolutions on either side of the latent.

  Args:
    base_channels: width of the first layer.
    channel_mult: widths of the levels, in units of `base_channels`; each level
      has half the resolution of the one before.
    num_res_blocks: residual blocks per level of the encoder; the decoder has
      one more.
    latent_channels: of a latent.
    num_groups: groups of every group normalisation.
    rngs: of the initial parameters.
  """

  def __init__(
    self,
    *,
    base_channels: int,
    channel_mult: Sequence[int],
    num_res_blocks: int,
    latent_channels: int,
    num_groups: int,
    rngs: nnx.Rngs,
  ):
    shared = dict(
      base_channels=base_channels,
      channel_mult=channel_mult,
      num_res_blocks=num_res_blocks,
      latent_channels=latent_channels,
      num_groups=num_groups,
      rngs=rngs,
    )
    z = latent_channels
    self.encoder = Encoder(**shared)
    self.decoder = Decoder(**shared)
    self.quant_conv = layers.Conv(2 * z, 2 * z, size=1, rngs=rngs)
    self.post_quant_conv = layers.Conv(z, z, size=1, rngs=rngs)

  def moments(
    self, images: Float[Array, 'b h w 3']
  ) -> tuple[Float[Array, 'b y x c'], Float[Array, 'b y x c']]:
    """Mean and log variance of the latents of images, values in [-1, 1].

    Args:
      images: h and w are divisible by `downsampling(channel_mult)`.
    """
    moments = self.quant_conv(self.encoder(images))
    mean, log_variance = jnp.split(moments, 2, axis=-1)
    return mean, jnp.clip(log_variance, *_LOG_VARIANCE_RANGE)

  def decode(self, latents: Image) -> Float[Array, 'b y x 3']:
    """Images, values in [-1, 1] or a little beyond, of unscaled latents."""
    return self.decoder(self.post_quant_conv(latents))


# Settings as a hashable value.
_Frozen = tuple[tuple[str, Any], ...]


@functools.cache
def _skeleton(settings: _Frozen) -> tuple[nnx.GraphDef, nnx.State]:
  """The network's graph and the shapes of its parameters."""
  return nnx.split(
    nnx.eval_shape(lambda: AutoencoderKL(**dict(settings), rngs=nnx.Rngs(0)))
  )


@flax.struct.dataclass
class KlAutoencoder:
  """The autoencoder as a pytree, so that a jitted function can be given it.

  Attributes:
    params: of `AutoencoderKL`, nested dicts of float32 arrays.
    settings: the arguments of `AutoencoderKL`, as pairs.
    scale: of the latents that `encode` gives, times the autoencoder's own.
    dtype: that the network computes in; images and latents are float32.
  """

  params: Any
  settings: _Frozen = flax.struct.field(pytree_node=False)
  scale: float = flax.struct.field(pytree_node=False)
  dtype: str = flax.struct.field(pytree_node=False)

  @property
  def downsampling(self) -> int:
    """Pixels per latent along one side."""
    return downsampling(dict(self.settings)['channel_mult'])

  def _model(self) -> AutoencoderKL:
    return nnx.merge(_skeleton(self.settings)[0], self.params)

  def encode(
    self,
    images: Float[Array, 'b h w 3'],
    noise: Float[Array, 'b y x c'] | None = None,
  ) -> Float[Array, 'b y x c']:
    """Scaled latents of sRGB images, values in [0, 1].

    Args:
      images: h and w are divisible by `downsampling`.
      noise: standard normal, of a sample of the posterior, on which latent
        diffusion is trained; None gives the posterior's mode.
    """
    return self.sample(self.moments(images), noise)

  def moments(
    self, images: Float[Array, 'b h w 3']
  ) -> Float[Array, 'b y x two_c']:
    """Mean and log variance of unscaled latents, in `dtype`."""
    x = (images * 2 - 1).astype(self.dtype)
    return jnp.concatenate(self._model().moments(x), axis=-1)

  def sample(
    self,
    moments: Float[Array, 'b y x two_c'],
    noise: Float[Array, 'b y x c'] | None = None,
  ) -> Float[Array, 'b y x c']:
    """Scaled latents of their moments; see `encode`."""
    mean, log_variance = jnp.split(moments.astype(jnp.float32), 2, axis=-1)
    if noise is None:
      return self.scale * mean
    return self.scale * (mean + jnp.exp(log_variance / 2) * noise)

  def decode(self, latents: Float[Array, 'b y x c']) -> Float[Array, 'b h w 3']:
    """Images in [0, 1] of scaled latents."""
    z = (latents / self.scale).astype(self.dtype)
    images = self._model().decode(z).astype(jnp.float32)
    return jnp.clip(images / 2 + 0.5, 0, 1)


def _freeze(settings: Settings) -> tuple[_Frozen, float]:
  """The arguments of `AutoencoderKL`, hashable, and the scale."""
  rest = dict(settings, channel_mult=tuple(settings['channel_mult']))
  scale = float(rest.pop('scale'))
  return tuple(sorted(rest.items())), scale


def abstract(settings: Settings, *, dtype: str = 'float32') -> KlAutoencoder:
  """The shapes of an autoencoder's parameters, to restore them into.

  Args:
    settings: `base_channels`, `channel_mult`, `num_res_blocks`,
      `latent_channels`, `num_groups` and `scale`.
    dtype: that the network computes in.
  """
  frozen, scale = _freeze(settings)
  params = nnx.to_pure_dict(_skeleton(frozen)[1])
  return KlAutoencoder(params, frozen, scale, dtype)


def random(
  settings: Settings, seed: int, *, dtype: str = 'float32'
) -> KlAutoencoder:
  """An untrained autoencoder: of use to try a program, not to see images.

  Args:
    settings: as in `abstract`.
    seed: of the parameters.
    dtype: that the network computes in.
  """
  generator = np.random.default_rng(seed)

  # On the host, since compiling a random draw per array takes far longer.
  def draw(path: Any, leaf: jax.ShapeDtypeStruct) -> Array:
    if path[-1].key == 'kernel':
      values = generator.standard_normal(leaf.shape, np.float32)
      values *= math.prod(leaf.shape[:-1]) ** -0.5
    else:
      values = np.full(leaf.shape, path[-1].key == 'scale', np.float32)
    return jnp.asarray(values)

  empty = abstract(settings, dtype=dtype)
  params = jax.tree_util.tree_map_with_path(draw, empty.params)
  return empty.replace(params=params)
