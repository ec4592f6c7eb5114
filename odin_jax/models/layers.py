"""Building blocks of the U-Net; shapes are BHWC for images, BNC for tokens.

The blocks are those of latent diffusion (Rombach et al. 2022, arXiv
2112.10752; names as in CompVis/latent-diffusion `openaimodel.py` and
`attention.py`), with widths and depths as arguments.

Every layer computes in the dtype of its input and casts its float32 parameters
to it; moments of norms and the softmax of attention are float32 always. So a
network runs in bfloat16 if its input is cast, and nothing else says so.
"""

from einops import rearrange
from flax import nnx
import jax
from jax.ad_checkpoint import checkpoint_name
import jax.numpy as jnp
from jaxtyping import Array, Float

from odin_jax import sharding
from odin_jax.models import ops

Image = Float[Array, 'b h w c']
Tokens = Float[Array, 'b n c']

# Names of outputs, for the policies of `jax.checkpoint`.
CONV = 'conv'
LINEAR = 'linear'


def timestep_embedding(
  timestep: Float[Array, 'b'], width: int
) -> Float[Array, 'b width']:
  """Cosines, then sines, of the timestep at geometric frequencies 1..1e-4."""
  half = width // 2
  frequencies = jnp.exp(-jnp.log(10_000.0) * jnp.arange(half) / half)
  angles = timestep[:, None] * frequencies
  return jnp.concatenate([jnp.cos(angles), jnp.sin(angles)], axis=-1)


class Linear(nnx.Module):
  """y = x @ kernel + bias."""

  def __init__(
    self,
    inputs: int,
    outputs: int,
    *,
    rngs: nnx.Rngs,
    use_bias: bool = True,
    zero: bool = False,
  ):
    init = nnx.initializers.zeros if zero else nnx.initializers.lecun_normal()
    self.kernel = nnx.Param(init(rngs.params(), (inputs, outputs)))
    self.bias = nnx.Param(jnp.zeros(outputs)) if use_bias else None

  def __call__(
    self, x: Float[Array, '*b inputs']
  ) -> Float[Array, '*b outputs']:
    x = sharding.by_example(x)
    y = ops.matmul(x, self.kernel[...])
    if self.bias is not None:
      y = ops.add_bias(y, self.bias[...])
    return checkpoint_name(sharding.by_example(y), LINEAR)


class Conv(nnx.Module):
  """A square convolution; by default `size // 2` zeros on every side."""

  def __init__(
    self,
    inputs: int,
    outputs: int,
    *,
    rngs: nnx.Rngs,
    size: int = 3,
    stride: int = 1,
    padding: tuple[int, int] | None = None,
    use_bias: bool = True,
    zero: bool = False,
  ):
    init = nnx.initializers.zeros if zero else nnx.initializers.lecun_normal()
    self.kernel = nnx.Param(init(rngs.params(), (size, size, inputs, outputs)))
    self.bias = nnx.Param(jnp.zeros(outputs)) if use_bias else None
    self.stride = stride
    self.padding = padding or (size // 2, size // 2)

  def __call__(self, x: Image) -> Float[Array, 'b y x outputs']:
    x = sharding.by_example(x)
    y = ops.conv2d(
      x,
      self.kernel[...],
      stride=self.stride,
      padding=(self.padding, self.padding),
    )
    if self.bias is not None:
      y = ops.add_bias(y, self.bias[...])
    return checkpoint_name(sharding.by_example(y), CONV)


class LayerNorm(nnx.Module):
  """Normalisation over the channels of a token."""

  def __init__(self, channels: int, *, epsilon: float = 1e-5):
    self.scale = nnx.Param(jnp.ones(channels))
    self.bias = nnx.Param(jnp.zeros(channels))
    self.epsilon = epsilon

  def __call__(self, x: Float[Array, '*b c']) -> Float[Array, '*b c']:
    x32 = x.astype(jnp.float32)
    centred = x32 - x32.mean(-1, keepdims=True)
    variance = jnp.square(centred).mean(-1, keepdims=True)
    y = centred * jax.lax.rsqrt(variance + self.epsilon)
    return (y * self.scale[...] + self.bias[...]).astype(x.dtype)


class GroupNorm(nnx.Module):
  """Group normalisation over space and the channels of a group.

  Moments are first taken over space and then over channels: on CPU this is
  several times faster than one reduction over both.
  """

  def __init__(self, channels: int, *, groups: int, epsilon: float):
    self.scale = nnx.Param(jnp.ones(channels))
    self.bias = nnx.Param(jnp.zeros(channels))
    self.groups = groups
    self.epsilon = epsilon

  def _over_group(self, moment: Float[Array, 'b c']) -> Float[Array, 'b c']:
    grouped = rearrange(moment, 'b (g k) -> b g k', g=self.groups)
    mean = jnp.broadcast_to(grouped.mean(-1, keepdims=True), grouped.shape)
    return rearrange(mean, 'b g k -> b (g k)')

  def __call__(self, x: Image) -> Image:
    x32 = x.astype(jnp.float32)
    mean = self._over_group(x32.mean((1, 2)))
    centred = x32 - mean[:, None, None]
    variance = self._over_group(jnp.square(centred).mean((1, 2)))
    scale = self.scale[...] * jax.lax.rsqrt(variance + self.epsilon)
    y = centred * scale[:, None, None] + self.bias[...]
    return y.astype(x.dtype)


class ResBlock(nnx.Module):
  """Two 3x3 convolutions, the timestep's embedding added between them."""

  def __init__(
    self,
    inputs: int,
    outputs: int,
    *,
    embedding: int,
    groups: int,
    rngs: nnx.Rngs,
  ):
    self.norm1 = GroupNorm(inputs, groups=groups, epsilon=1e-5)
    self.conv1 = Conv(inputs, outputs, rngs=rngs)
    self.embed = Linear(embedding, outputs, rngs=rngs)
    self.norm2 = GroupNorm(outputs, groups=groups, epsilon=1e-5)
    self.conv2 = Conv(outputs, outputs, zero=True, rngs=rngs)
    self.skip = (
      None if inputs == outputs else Conv(inputs, outputs, size=1, rngs=rngs)
    )

  def __call__(
    self, x: Image, embedding: Float[Array, 'b e']
  ) -> Float[Array, 'b h w outputs']:
    y = self.conv1(nnx.silu(self.norm1(x)))
    y = y + self.embed(nnx.silu(embedding))[:, None, None]
    y = self.conv2(nnx.silu(self.norm2(y)))
    return (x if self.skip is None else self.skip(x)) + y


class Attention(nnx.Module):
  """Multi-head attention of tokens to a context (or to themselves)."""

  def __init__(
    self, channels: int, context: int, *, heads: int, rngs: nnx.Rngs
  ):
    self.heads = heads
    self.to_q = Linear(channels, channels, use_bias=False, rngs=rngs)
    self.to_k = Linear(context, channels, use_bias=False, rngs=rngs)
    self.to_v = Linear(context, channels, use_bias=False, rngs=rngs)
    self.to_out = Linear(channels, channels, rngs=rngs)

  def __call__(self, x: Tokens, context: Float[Array, 'b m d']) -> Tokens:
    def split(y: Array) -> Array:
      return rearrange(y, 'b n (h d) -> b n h d', h=self.heads)

    y = ops.attention(
      split(self.to_q(x)), split(self.to_k(context)), split(self.to_v(context))
    )
    return self.to_out(rearrange(y, 'b n h d -> b n (h d)'))


class FeedForward(nnx.Module):
  """Gated feed-forward layer with the exact GELU (Shazeer, 2002.05202)."""

  def __init__(self, channels: int, *, factor: int, rngs: nnx.Rngs):
    hidden = channels * factor
    self.project = Linear(channels, 2 * hidden, rngs=rngs)
    self.out = Linear(hidden, channels, rngs=rngs)

  def __call__(self, x: Tokens) -> Tokens:
    value, gate = jnp.split(self.project(x), 2, axis=-1)
    return self.out(value * jax.nn.gelu(gate, approximate=False))


class TransformerBlock(nnx.Module):
  """Self-attention, cross-attention and feed-forward layer, each residual."""

  def __init__(
    self,
    channels: int,
    context: int,
    *,
    heads: int,
    feedforward_factor: int,
    rngs: nnx.Rngs,
  ):
    self.norm1 = LayerNorm(channels)
    self.self_attention = Attention(channels, channels, heads=heads, rngs=rngs)
    self.norm2 = LayerNorm(channels)
    self.cross_attention = Attention(channels, context, heads=heads, rngs=rngs)
    self.norm3 = LayerNorm(channels)
    self.feedforward = FeedForward(
      channels, factor=feedforward_factor, rngs=rngs
    )

  def __call__(self, x: Tokens, context: Float[Array, 'b m d']) -> Tokens:
    y = self.norm1(x)
    x = x + self.self_attention(y, y)
    x = x + self.cross_attention(self.norm2(x), context)
    return x + self.feedforward(self.norm3(x))


class SpatialTransformer(nnx.Module):
  """Transformer blocks over the pixels of a feature map, with a residual."""

  def __init__(
    self,
    channels: int,
    context: int,
    *,
    depth: int,
    heads: int,
    groups: int,
    feedforward_factor: int,
    rngs: nnx.Rngs,
  ):
    self.norm = GroupNorm(channels, groups=groups, epsilon=1e-6)
    self.project_in = Linear(channels, channels, rngs=rngs)
    self.blocks = nnx.List(
      TransformerBlock(
        channels,
        context,
        heads=heads,
        feedforward_factor=feedforward_factor,
        rngs=rngs,
      )
      for _ in range(depth)
    )
    self.project_out = Linear(channels, channels, zero=True, rngs=rngs)

  def __call__(self, x: Image, context: Float[Array, 'b m d']) -> Image:
    height = x.shape[1]
    tokens = rearrange(self.norm(x), 'b h w c -> b (h w) c')
    tokens = self.project_in(tokens)
    for block in self.blocks:
      tokens = block(tokens, context)
    tokens = self.project_out(tokens)
    return x + rearrange(tokens, 'b (h w) c -> b h w c', h=height)
