"""The denoising U-Net, with a motion-mask head.

The network of Stable Diffusion with every width a parameter. Its last layer
has one channel more than the prediction: the logit of the motion mask M.
"""

from functools import partial
from typing import Callable, Sequence

from einops import repeat
from flax import nnx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from odin_jax.models import layers

# By its path in the network (a regular expression for the whole of it), the
# mesh axis that splits each dimension of a parameter; without any, (), every
# device holds all of it. Pairs of layers share the hidden dimension out over
# `tensor`: the first its outputs, the second its inputs, so that one reduction
# serves both.
SHARDING: dict[str, tuple[str | None, ...]] = {
  r'time1/kernel': ('fsdp', 'tensor'),
  r'time2/kernel': ('tensor', 'fsdp'),
  r'.*/(to_q|to_k|to_v|project|project_in|embed)/kernel': ('fsdp', 'tensor'),
  r'.*/(to_out|out|project_out)/kernel': ('tensor', 'fsdp'),
  r'.*/(conv1|skip)/kernel': (None, None, 'fsdp', 'tensor'),
  r'.*/conv2/kernel': (None, None, 'tensor', 'fsdp'),
  r'(downsample|upsample)/\d+/kernel': (None, None, 'fsdp'),
  # The noisy latent's channels are few, and so are those of the output.
  r'(conv_in|conv_out)/kernel': (),
  # Biases, and scales of norms.
  r'.*/(bias|scale)': (),
}


class Block(nnx.Module):
  """A residual block, and a transformer after it if it attends."""

  def __init__(
    self,
    inputs: int,
    outputs: int,
    *,
    attend: bool,
    embedding: int,
    context: int,
    depth: int,
    heads: int,
    groups: int,
    feedforward_factor: int,
    rngs: nnx.Rngs,
  ):
    self.residual = layers.ResBlock(
      inputs, outputs, embedding=embedding, groups=groups, rngs=rngs
    )
    self.attention = (
      layers.SpatialTransformer(
        outputs,
        context,
        depth=depth,
        heads=heads,
        groups=groups,
        feedforward_factor=feedforward_factor,
        rngs=rngs,
      )
      if attend
      else None
    )

  def __call__(
    self,
    x: Float[Array, 'b h w inputs'],
    embedding: Float[Array, 'b e'],
    context: Float[Array, 'b n d'],
  ) -> Float[Array, 'b h w outputs']:
    x = self.residual(x, embedding)
    return x if self.attention is None else self.attention(x, context)


def _saving(*names: str) -> Callable[..., Array]:
  """Applies a block of which the backward pass keeps these outputs only."""
  policy = jax.checkpoint_policies.save_only_these_names(*names)

  def apply(block: Block, *inputs: Array) -> Array:
    # A pure function of its parameters: nnx.remat would write them back, which
    # a model that a loop's body closes over does not allow.
    graph, params = nnx.split(block)

    def applied(params: nnx.State, *inputs: Array) -> Array:
      return nnx.merge(graph, params)(*inputs)

    return jax.checkpoint(applied, policy=policy)(params, *inputs)

  return apply


# How a block is applied, that is, what of it is kept for the backward pass.
REMAT = {
  'none': Block.__call__,
  'layers': _saving(layers.CONV, layers.LINEAR),
  'convs': _saving(layers.CONV),
  'full': _saving(),
}


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
    remat: what the backward pass keeps of a block beside its input; the rest
      is computed again.
        none    everything; nothing is computed again;
        layers  outputs of convolutions and linear layers: norms,
                activations and attention are computed again;
        convs   outputs of convolutions: also the linear layers are;
        full    nothing: one forward pass more.
      The last three are 127, 34 and 19 MB per example of Stable Diffusion's
      network in bfloat16 at 32x32 latents; `none` is several times the first.
    dtype: of the computation; parameters, moments of norms, the softmax of
      attention and the outputs are float32 whatever it is.

  Raises:
    ValueError: `remat` is none of the above.

  configs/train.py has those of Stable Diffusion.
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
    remat: str = 'none',
    dtype: str = 'float32',
  ):
    if remat not in REMAT:
      raise ValueError(f'remat {remat!r} is none of {tuple(REMAT)}')
    self.model_channels = model_channels
    self.remat = remat
    self.dtype = dtype
    embedding = 4 * model_channels
    block = partial(
      Block,
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
    self.down, self.downsample = nnx.List(), nnx.List()
    for level, width in enumerate(widths):
      blocks = nnx.List()
      for _ in range(num_res_blocks):
        blocks.append(block(skips[-1], width, attend=level in attention_levels))
        skips.append(width)
      self.down.append(blocks)
      if level < last:
        self.downsample.append(layers.Conv(width, width, stride=2, rngs=rngs))
        skips.append(width)

    current = widths[-1]
    self.middle = nnx.List(
      block(current, current, attend=attend) for attend in (True, False)
    )

    self.up, self.upsample = nnx.List(), nnx.List()
    for level in range(last, -1, -1):
      blocks = nnx.List()
      for _ in range(num_res_blocks + 1):
        blocks.append(
          block(
            current + skips.pop(),
            widths[level],
            attend=level in attention_levels,
          )
        )
        current = widths[level]
      self.up.append(blocks)
      if level > 0:
        self.upsample.append(layers.Conv(current, current, rngs=rngs))

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
    apply = REMAT[self.remat]
    x, context = x.astype(self.dtype), context.astype(self.dtype)
    embedding = layers.timestep_embedding(
      timestep.astype(jnp.float32), self.model_channels
    ).astype(self.dtype)
    embedding = self.time2(nnx.silu(self.time1(embedding)))

    x = self.conv_in(x)
    skips = [x]
    for index, blocks in enumerate(self.down):
      for block in blocks:
        x = apply(block, x, embedding, context)
        skips.append(x)
      if index < len(self.downsample):
        x = self.downsample[index](x)
        skips.append(x)

    for block in self.middle:
      x = apply(block, x, embedding, context)

    for index, blocks in enumerate(self.up):
      for block in blocks:
        x = jnp.concatenate([x, skips.pop()], axis=-1)
        x = apply(block, x, embedding, context)
      if index < len(self.upsample):
        x = repeat(x, 'b h w c -> b (h i) (w j) c', i=2, j=2)
        x = self.upsample[index](x)

    x = self.conv_out(nnx.silu(self.norm_out(x))).astype(jnp.float32)
    return x[..., :-1], x[..., -1]
