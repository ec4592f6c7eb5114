"""The denoising U-Net, with a motion-mask head.

The network of Stable Diffusion with every width a parameter. Its last layer
has one channel more than the prediction: the logit of the motion mask M.
"""

from typing import Sequence

from flax import nnx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from odin_jax.models import layers


class Level(nnx.Module):
  """Residual blocks at one resolution, each with a transformer or without."""

  def __init__(
    self,
    inputs: Sequence[int],
    outputs: int,
    *,
    embedding: int,
    context: int,
    attend: bool,
    depth: int,
    heads: int,
    groups: int,
    feedforward_factor: int,
    rngs: nnx.Rngs,
  ):
    self.residual = nnx.List(
      layers.ResBlock(
        channels, outputs, embedding=embedding, groups=groups, rngs=rngs
      )
      for channels in inputs
    )
    self.attention = nnx.List(
      layers.SpatialTransformer(
        outputs,
        context,
        depth=depth,
        heads=heads,
        groups=groups,
        feedforward_factor=feedforward_factor,
        rngs=rngs,
      )
      for _ in (inputs if attend else ())
    )

  def block(
    self, index: int, x: Array, embedding: Array, context: Array
  ) -> Array:
    """Applies the `index`-th residual block and its transformer."""
    x = self.residual[index](x, embedding)
    return self.attention[index](x, context) if self.attention else x


class UNet(nnx.Module):
  """Predicts from a noisy latent, its timestep and a context.

  Args:
    in_channels: of the input: noisy latent and whatever is concatenated.
    out_channels: of the prediction, without the mask's channel.
    model_channels: width of the first level.
    channel_mult: widths of the levels, in units of `model_channels`; each
      level has half the resolution of the one before.
    num_res_blocks: residual blocks per level on the way down; one more on the
      way up.
    attention_levels: levels that have transformers; the middle always does.
    transformer_depth: blocks per transformer.
    num_heads: heads of every attention.
    context_dim: width of the context's tokens.
    num_groups: groups of every group normalisation.
    feedforward_factor: hidden width of feed-forward layers over their width.

  Stable Diffusion's is model_channels=320, channel_mult=(1, 2, 4, 4),
  num_res_blocks=2, attention_levels=(0, 1, 2), transformer_depth=1,
  num_heads=8, context_dim=768, num_groups=32, feedforward_factor=4.
  """

  def __init__(
    self,
    *,
    in_channels: int,
    out_channels: int,
    model_channels: int,
    channel_mult: Sequence[int],
    num_res_blocks: int,
    attention_levels: Sequence[int],
    transformer_depth: int,
    num_heads: int,
    context_dim: int,
    num_groups: int,
    feedforward_factor: int,
    rngs: nnx.Rngs,
  ):
    self.model_channels = model_channels
    embedding = 4 * model_channels
    shared = dict(
      embedding=embedding,
      context=context_dim,
      depth=transformer_depth,
      heads=num_heads,
      groups=num_groups,
      feedforward_factor=feedforward_factor,
      rngs=rngs,
    )
    self.time1 = layers.Linear(model_channels, embedding, rngs=rngs)
    self.time2 = layers.Linear(embedding, embedding, rngs=rngs)

    self.conv_in = layers.Conv(in_channels, model_channels, rngs=rngs)
    widths = [model_channels * mult for mult in channel_mult]
    last = len(widths) - 1
    skips = [model_channels]
    down, downsample = [], []
    for level, width in enumerate(widths):
      inputs = [skips[-1]] + [width] * (num_res_blocks - 1)
      down.append(
        Level(inputs, width, attend=level in attention_levels, **shared)
      )
      skips += [width] * num_res_blocks
      if level < last:
        downsample.append(layers.Conv(width, width, stride=2, rngs=rngs))
        skips.append(width)
    self.down, self.downsample = nnx.List(down), nnx.List(downsample)

    self.middle = Level([widths[-1]], widths[-1], attend=True, **shared)
    self.middle_out = Level([widths[-1]], widths[-1], attend=False, **shared)

    up, upsample = [], []
    current = widths[-1]
    for level in range(last, -1, -1):
      inputs = []
      for _ in range(num_res_blocks + 1):
        inputs.append(current + skips.pop())
        current = widths[level]
      up.append(
        Level(inputs, current, attend=level in attention_levels, **shared)
      )
      if level > 0:
        upsample.append(layers.Conv(current, current, rngs=rngs))
    self.up, self.upsample = nnx.List(up), nnx.List(upsample)

    self.norm_out = layers.GroupNorm(
      model_channels, groups=num_groups, epsilon=1e-5
    )
    self.conv_out = layers.Conv(
      model_channels, out_channels + 1, zero=True, rngs=rngs
    )

  def __call__(
    self,
    x: Float[Array, 'b h w in'],
    timestep: Float[Array, 'b'],
    context: Float[Array, 'b n context'],
  ) -> tuple[Float[Array, 'b h w out'], Float[Array, 'b h w']]:
    """The prediction and the logit of the motion mask.

    Args:
      x: noisy latent and concatenated conditions; h and w are divisible by
        2 to the number of levels less one.
      timestep: 0..T-1.
      context: tokens that cross-attention reads.
    """
    embedding = layers.timestep_embedding(timestep, self.model_channels)
    embedding = self.time2(nnx.silu(self.time1(embedding)))

    x = self.conv_in(x)
    skips = [x]
    for index, level in enumerate(self.down):
      for block in range(len(level.residual)):
        x = level.block(block, x, embedding, context)
        skips.append(x)
      if index < len(self.downsample):
        x = self.downsample[index](x)
        skips.append(x)

    x = self.middle.block(0, x, embedding, context)
    x = self.middle_out.block(0, x, embedding, context)

    for index, level in enumerate(self.up):
      for block in range(len(level.residual)):
        x = jnp.concatenate([x, skips.pop()], axis=-1)
        x = level.block(block, x, embedding, context)
      if index < len(self.upsample):
        b, h, w, c = x.shape
        x = jax.image.resize(x, (b, 2 * h, 2 * w, c), 'nearest')
        x = self.upsample[index](x)

    x = self.conv_out(nnx.silu(self.norm_out(x)))
    return x[..., :-1], x[..., -1]
