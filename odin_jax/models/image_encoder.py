"""CLIP's image encoder: images to one embedding each.

The vision tower of CLIP (Radford et al. 2021, 2103.00020) with its projection,
and the preprocessing that Zero-1-to-3 feeds it with. A Zero-1-to-3 or Stable
Diffusion image-variations model was trained on its embeddings, which are not
normalised to length 1.
"""

import functools
from typing import Any, Mapping

from einops import rearrange
from flax import nnx
import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float
import numpy as np

from odin_jax.models import layers, ops

# Of sRGB values in [0, 1]; github.com/openai/CLIP `clip/clip.py`.
MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)
# The free coefficient of cubic convolution (Keys 1981) as torch has it.
_CUBIC = -0.75


@functools.cache
def interpolation_matrix(
  inputs: int, outputs: int
) -> Float[np.ndarray, 'outputs inputs']:
  """Bicubic interpolation of a row of pixels, first and last pixel kept.

  The same as `torch.nn.functional.interpolate(mode='bicubic',
  align_corners=True)` without a low-pass filter: pixels beyond the border are
  those of the border.
  """
  position = np.arange(outputs) * (inputs - 1) / max(outputs - 1, 1)
  first = np.floor(position).astype(int)
  matrix = np.zeros((outputs, inputs))
  for tap in range(-1, 3):
    pixel = first + tap
    weight = _cubic_kernel(np.abs(position - pixel))
    np.add.at(
      matrix, (np.arange(outputs), np.clip(pixel, 0, inputs - 1)), weight
    )
  return matrix.astype(np.float32)


def _cubic_kernel(distance: np.ndarray) -> np.ndarray:
  """Keys' kernel for distances of 0 to 2 pixels."""
  a, x = _CUBIC, distance
  near = (a + 2) * x**3 - (a + 3) * x**2 + 1
  far = a * (x**3 - 5 * x**2 + 8 * x - 4)
  return np.where(x <= 1, near, far)


def resize(
  images: Float[Array, 'b h w c'], size_px: int
) -> Float[Array, 'b size_px size_px c']:
  """Bicubic interpolation, the corners' pixels kept; values may overshoot."""
  rows, columns = (
    interpolation_matrix(side, size_px) for side in images.shape[1:3]
  )
  # Matrix units would round the pixels to bfloat16 otherwise.
  images = jnp.einsum('yh,bhwc->bywc', rows, images, precision='highest')
  return jnp.einsum('xw,bywc->byxc', columns, images, precision='highest')


def preprocess(
  images: Float[Array, 'b s s 3'], size_px: int
) -> Float[Array, 'b size_px size_px 3']:
  """What the network is given for sRGB images, values in [0, 1].

  The same as `FrozenCLIPImageEmbedder.preprocess` in `ldm/modules/encoders/
  modules.py` of github.com/cvlab-columbia/zero123, which takes values in
  [-1, 1]: it interpolates without a low-pass filter and does not clip.
  """
  resized = resize(images, size_px)
  return (resized - jnp.asarray(MEAN)) / jnp.asarray(STD)


class Attention(nnx.Module):
  """Multi-head self-attention with biases."""

  def __init__(self, width: int, *, heads: int, rngs: nnx.Rngs):
    self.heads = heads
    self.to_q = layers.Linear(width, width, rngs=rngs)
    self.to_k = layers.Linear(width, width, rngs=rngs)
    self.to_v = layers.Linear(width, width, rngs=rngs)
    self.to_out = layers.Linear(width, width, rngs=rngs)

  def __call__(self, x: Float[Array, 'b n c']) -> Float[Array, 'b n c']:
    q, k, v = (
      rearrange(project(x), 'b n (h d) -> b n h d', h=self.heads)
      for project in (self.to_q, self.to_k, self.to_v)
    )
    return self.to_out(
      rearrange(ops.attention(q, k, v), 'b n h d -> b n (h d)')
    )


class Block(nnx.Module):
  """Self-attention and a feed-forward layer, each normed before, residual."""

  def __init__(self, width: int, *, heads: int, hidden: int, rngs: nnx.Rngs):
    self.norm1 = layers.LayerNorm(width)
    self.attention = Attention(width, heads=heads, rngs=rngs)
    self.norm2 = layers.LayerNorm(width)
    self.expand = layers.Linear(width, hidden, rngs=rngs)
    self.contract = layers.Linear(hidden, width, rngs=rngs)

  def __call__(self, x: Float[Array, 'b n c']) -> Float[Array, 'b n c']:
    x = x + self.attention(self.norm1(x))
    y = self.expand(self.norm2(x))
    # OpenAI's "quick" GELU: the weights were trained with it.
    return x + self.contract(y * nnx.sigmoid(1.702 * y))


class ClipVision(nnx.Module):
  """A vision transformer; its class token, projected, is the embedding.

  Args:
    width: of the tokens.
    num_layers: number of transformer blocks.
    num_heads: heads of every attention.
    patch_px: side of the patch that a token is made of.
    image_size_px: side of the images.
    projection: width of the embedding.
    hidden: width of the hidden layer of the feed-forward layers.

  configs/train.py has those of CLIP ViT-L/14.
  """

  def __init__(
    self,
    *,
    width: int,
    num_layers: int,
    num_heads: int,
    patch_px: int,
    image_size_px: int,
    projection: int,
    hidden: int,
    rngs: nnx.Rngs,
  ):
    def normal(*shape: int) -> nnx.Param:
      init = nnx.initializers.normal(width**-0.5)
      return nnx.Param(init(rngs.params(), shape))

    self.patch = layers.Conv(
      3,
      width,
      size=patch_px,
      stride=patch_px,
      padding=(0, 0),
      use_bias=False,
      rngs=rngs,
    )
    self.class_token = normal(width)
    self.position = normal((image_size_px // patch_px) ** 2 + 1, width)
    self.norm_in = layers.LayerNorm(width)
    self.blocks = nnx.List(
      Block(width, heads=num_heads, hidden=hidden, rngs=rngs)
      for _ in range(num_layers)
    )
    self.norm_out = layers.LayerNorm(width)
    self.projection = layers.Linear(
      width, projection, use_bias=False, rngs=rngs
    )

  def __call__(
    self, images: Float[Array, 'b s s 3']
  ) -> Float[Array, 'b projection']:
    """Embeddings of what `preprocess` makes of images."""
    patches = rearrange(self.patch(images), 'b i j c -> b (i j) c')
    first = self.class_token[...].astype(patches.dtype)
    first = jnp.broadcast_to(first, (len(patches), 1, first.size))
    x = jnp.concatenate([first, patches], axis=1)
    x = self.norm_in(x + self.position[...].astype(x.dtype))
    for block in self.blocks:
      x = block(x)
    return self.projection(self.norm_out(x[:, 0]))


# Settings as a hashable value.
_Frozen = tuple[tuple[str, int], ...]


@functools.cache
def _skeleton(settings: _Frozen) -> tuple[nnx.GraphDef, nnx.State]:
  """The network's graph and the shapes of its parameters."""
  return nnx.split(
    nnx.eval_shape(lambda: ClipVision(**dict(settings), rngs=nnx.Rngs(0)))
  )


@flax.struct.dataclass
class ImageEncoder:
  """The encoder as a pytree, so that a jitted function can be given it.

  Attributes:
    params: of `ClipVision`, nested dicts of float32 arrays.
    settings: the arguments of `ClipVision`, as pairs.
    dtype: that the network computes in; images and embeddings are float32.
  """

  params: Any
  settings: _Frozen = flax.struct.field(pytree_node=False)
  dtype: str = flax.struct.field(pytree_node=False)

  def encode(
    self, images: Float[Array, 'b s s 3']
  ) -> Float[Array, 'b projection']:
    """Embeddings of sRGB images of any size, values in [0, 1]."""
    model = nnx.merge(_skeleton(self.settings)[0], self.params)
    x = preprocess(images, dict(self.settings)['image_size_px'])
    return model(x.astype(self.dtype)).astype(jnp.float32)


def _freeze(settings: Mapping[str, int]) -> _Frozen:
  return tuple(sorted(settings.items()))


def abstract(
  settings: Mapping[str, int], *, dtype: str = 'float32'
) -> ImageEncoder:
  """The shapes of an encoder's parameters, to restore them into.

  Args:
    settings: the arguments of `ClipVision`.
    dtype: that the network computes in.
  """
  frozen = _freeze(settings)
  return ImageEncoder(nnx.to_pure_dict(_skeleton(frozen)[1]), frozen, dtype)


def random(
  settings: Mapping[str, int], seed: int, *, dtype: str = 'float32'
) -> ImageEncoder:
  """An untrained encoder: of use to try a program, not to see images.

  Args:
    settings: the arguments of `ClipVision`.
    seed: of the parameters.
    dtype: that the network computes in.
  """
  frozen = _freeze(settings)

  @jax.jit
  def init() -> Any:
    model = ClipVision(**dict(frozen), rngs=nnx.Rngs(seed))
    return nnx.to_pure_dict(nnx.state(model, nnx.Param))

  return ImageEncoder(init(), frozen, dtype)
