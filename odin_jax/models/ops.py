"""Convolution and attention, in the form that is fastest on the device."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


def conv2d(
  x: Float[Array, 'b h w c'],
  kernel: Float[Array, 'kh kw c d'],
  *,
  stride: int = 1,
  padding: tuple[tuple[int, int], tuple[int, int]] = ((1, 1), (1, 1)),
) -> Float[Array, 'b y x d']:
  """Cross-correlation of images with a kernel, zeros outside.

  Args:
    x: images.
    kernel: HWIO.
    stride: in both directions.
    padding: zeros before and after, rows then columns.
  """
  return jax.lax.conv_general_dilated(
    x,
    kernel,
    window_strides=(stride, stride),
    padding=padding,
    dimension_numbers=('NHWC', 'HWIO', 'NHWC'),
  )


def attention(
  q: Float[Array, 'b n h d'],
  k: Float[Array, 'b m h d'],
  v: Float[Array, 'b m h d'],
) -> Float[Array, 'b n h d']:
  """softmax(q k^T / sqrt(d)) v of every head; the softmax in float32."""
  # Written out because jax.nn.dot_product_attention lowers to transposed
  # contractions which take 1.5 times as long on CPU.
  q, k, v = (x.swapaxes(1, 2) for x in (q, k, v))
  logits = (q @ k.swapaxes(-1, -2) * q.shape[-1] ** -0.5).astype(jnp.float32)
  weights = jax.nn.softmax(logits, axis=-1).astype(v.dtype)
  return (weights @ v).swapaxes(1, 2)
