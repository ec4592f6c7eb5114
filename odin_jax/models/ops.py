"""Convolution and attention, in the form that is fastest on the device."""

import contextlib
import contextvars
import functools
from typing import Callable, Iterator

from einops import rearrange
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from odin_jax import sharding

Queries = Float[Array, 'b n h d']
Keys = Float[Array, 'b m h d']
Values = Float[Array, 'b m h d']

# Queries that `_blockwise` takes at a time: their weights stay in the cache.
_BLOCK = 64
# Rows and columns of the tiles of the TPU's kernel.
_TILE = 128
_LONG = 1024


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
    kernel: HWIO; it is cast to the dtype of the images.
    stride: in both directions.
    padding: zeros before and after, rows then columns.
  """
  if _is_summed_wider(x, kernel):
    return _wide_conv2d(x, kernel, stride, padding)
  return _conv2d(x, kernel.astype(x.dtype), stride, padding)


def matmul(
  x: Float[Array, '*b c'], kernel: Float[Array, 'c d']
) -> Float[Array, '*b d']:
  """x @ kernel; the kernel is cast to the dtype of x."""
  if _is_summed_wider(x, kernel):
    return _wide_matmul(x, kernel)
  return x @ kernel.astype(x.dtype)


def add_bias(
  x: Float[Array, '*b c'], bias: Float[Array, 'c']
) -> Float[Array, '*b c']:
  """x + bias; the bias is cast to the dtype of x.

  It is cast where it is as large as x, so that its gradient, a sum over all
  positions, is one of its own dtype.
  """
  return x + jnp.broadcast_to(bias, x.shape).astype(x.dtype)


# -- What gradients are summed in ----------------------------------------------

_SUM_DTYPE: contextvars.ContextVar[str] = contextvars.ContextVar(
  'sum_dtype', default='compute'
)


@contextlib.contextmanager
def gradients_summed_in(dtype: str) -> Iterator[None]:
  """Functions that are traced inside sum the gradients of parameters so.

  Args:
    dtype: `float32`; or `compute`: as the network computes, so that chips sum
      theirs in it too.
  """
  token = _SUM_DTYPE.set(dtype)
  try:
    yield
  finally:
    _SUM_DTYPE.reset(token)


def _is_summed_wider(x: Array, parameter: Array) -> bool:
  return parameter.dtype != x.dtype and _SUM_DTYPE.get() == 'float32'


def _conv2d(
  x: Array, kernel: Array, stride: int, padding: tuple[tuple[int, int], ...]
) -> Array:
  return jax.lax.conv_general_dilated(
    x,
    kernel,
    window_strides=(stride, stride),
    padding=padding,
    dimension_numbers=('NHWC', 'HWIO', 'NHWC'),
  )


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _wide_conv2d(
  x: Array, kernel: Array, stride: int, padding: tuple[tuple[int, int], ...]
) -> Array:
  return _conv2d(x, kernel.astype(x.dtype), stride, padding)


def _wide_conv2d_forward(
  x: Array, kernel: Array, stride: int, padding: tuple[tuple[int, int], ...]
) -> tuple[Array, tuple]:
  return _wide_conv2d(x, kernel, stride, padding), (x, kernel)


def _wide_conv2d_backward(
  stride: int, padding: tuple[tuple[int, int], ...], saved: tuple, dy: Array
) -> tuple[Array, Array]:
  x, kernel = saved
  narrow = kernel.astype(x.dtype)
  (dx,) = jax.linear_transpose(
    lambda x: _conv2d(x, narrow, stride, padding), x
  )(dy)
  # Examples are summed over, as channels are forwards; outputs lie `stride`
  # apart on the images.
  after = [
    size + (outputs - 1) * stride - inputs - before
    for size, outputs, inputs, (before, _) in zip(
      kernel.shape, dy.shape[1:], x.shape[1:], padding
    )
  ]
  dkernel = jax.lax.conv_general_dilated(
    x,
    dy,
    window_strides=(1, 1),
    padding=[
      (before, end) for (before, _), end in zip(padding, after, strict=True)
    ],
    rhs_dilation=(stride, stride),
    dimension_numbers=('CHWN', 'IHWO', 'HWNC'),
    preferred_element_type=kernel.dtype,
  )
  return dx, dkernel


_wide_conv2d.defvjp(_wide_conv2d_forward, _wide_conv2d_backward)


@jax.custom_vjp
def _wide_matmul(x: Array, kernel: Array) -> Array:
  return x @ kernel.astype(x.dtype)


def _wide_matmul_forward(x: Array, kernel: Array) -> tuple[Array, tuple]:
  return _wide_matmul(x, kernel), (x, kernel)


def _wide_matmul_backward(saved: tuple, dy: Array) -> tuple[Array, Array]:
  x, kernel = saved
  dkernel = jnp.einsum(
    '...c,...d->cd', x, dy, preferred_element_type=kernel.dtype
  )
  return dy @ kernel.astype(x.dtype).T, dkernel


_wide_matmul.defvjp(_wide_matmul_forward, _wide_matmul_backward)


# -- Attention -----------------------------------------------------------------


def attention(q: Queries, k: Keys, v: Values) -> Queries:
  """softmax(q k^T / sqrt(d)) v of every head; the softmax in float32.

  The way is chosen by `implementation`, for the mesh that is traced for.
  """
  name = implementation(sharding.platform(), q, k)
  if name == 'pallas' and sharding.target() is None and jax.device_count() > 1:
    # It may be asked of any of them; see `_pallas`.
    name = 'plain'
  return IMPLEMENTATIONS[name](q, k, v)


def implementation(
  platform: str,
  q: Array | jax.ShapeDtypeStruct,
  k: Array | jax.ShapeDtypeStruct,
) -> str:
  """The key of `IMPLEMENTATIONS` that is fastest.

  Args:
    platform: cpu, gpu (NVIDIA's) or tpu.
    q: queries [b n h d], or their shape and dtype.
    k: keys [b m h d], likewise.
  """
  (_, n, _, d), m = q.shape, k.shape[1]
  half = q.dtype in (jnp.bfloat16, jnp.float16)
  allowed = {
    # What cuDNN's flash attention takes on every card since Ampere
    # (jax/_src/cudnn/fused_attention_stablehlo.py, check_is_flash_attention).
    'gpu': ('cudnn', half and d <= 128 and d % 8 == 0),
    # XLA pads heads to 128 too; what the kernel saves is the weights' way
    # through memory.
    'tpu': (
      'pallas',
      min(n, m) >= _LONG and n % _TILE == m % _TILE == 0 and d <= _TILE,
    ),
    'cpu': ('blockwise', n * m >= _LONG * _LONG // 4 and n % _BLOCK == 0),
  }
  name, fits = allowed[platform]
  return name if fits else 'plain'


def _plain(q: Queries, k: Keys, v: Values) -> Queries:
  # Written out because jax.nn.dot_product_attention lowers to transposed
  # contractions which take 1.5 times as long on CPU.
  q, k, v = (x.swapaxes(1, 2) for x in (q, k, v))
  logits = jnp.matmul(
    q * q.shape[-1] ** -0.5,
    k.swapaxes(-1, -2),
    preferred_element_type=jnp.float32,
  )
  weights = jax.nn.softmax(logits, axis=-1).astype(v.dtype)
  return (weights @ v).swapaxes(1, 2)


def _pallas(q: Queries, k: Keys, v: Values) -> Queries:
  """The kernel on the examples, and heads, that each device has.

  XLA cannot split it between devices: it would gather them all on each.
  """
  mesh = sharding.target()
  if mesh is None or mesh.size == 1:
    return _flash(q, k, v)
  spec = sharding.heads_spec(q.shape)
  return jax.shard_map(
    _flash, mesh=mesh, in_specs=spec, out_specs=spec, check_vma=False
  )(q, k, v)


def _flash(q: Queries, k: Keys, v: Values) -> Queries:
  # Here, for a command reads its flags before what is slow to load.
  from jax.experimental.pallas.ops.tpu import flash_attention

  d = q.shape[-1]
  q, k, v = (
    jnp.pad(x.swapaxes(1, 2), ((0, 0), (0, 0), (0, 0), (0, _TILE - d)))
    for x in (q, k, v)
  )
  y = flash_attention.flash_attention(q, k, v, sm_scale=d**-0.5)
  return y[..., :d].swapaxes(1, 2)


def _blockwise(q: Queries, k: Keys, v: Values) -> Queries:
  dtype = q.dtype
  q, k, v = (x.astype(jnp.float32).swapaxes(1, 2) for x in (q, k, v))
  y = _attend_blocks(q * q.shape[-1] ** -0.5, k, v)
  return y.swapaxes(1, 2).astype(dtype)


@jax.custom_vjp
def _attend_blocks(
  q: Float[Array, 'b h n d'],
  k: Float[Array, 'b h m d'],
  v: Float[Array, 'b h m d'],
) -> Float[Array, 'b h n d']:
  """softmax(q k^T) v by blocks of queries.

  Weights are made again for the gradient, from the logarithm of their
  normaliser (Dao et al. 2022, arXiv 2205.14135, section 3): no array of n x m
  goes through memory.
  """
  return _attend_forward(q, k, v)[0]


def _split(x: Array) -> Array:
  return rearrange(x, 'b h (i n) d -> i b h n d', n=_BLOCK)


def _join(x: Array) -> Array:
  return rearrange(x, 'i b h n d -> b h (i n) d')


def _attend_forward(q: Array, k: Array, v: Array) -> tuple[Array, tuple]:
  keys = k.swapaxes(-1, -2)

  def attend(block: Array) -> tuple[Array, Array]:
    logits = block @ keys
    peak = logits.max(-1, keepdims=True)
    weights = jnp.exp(logits - peak)
    total = weights.sum(-1, keepdims=True)
    return weights @ v / total, peak + jnp.log(total)

  y, log_total = map(_join, jax.lax.map(attend, _split(q)))
  return y, (q, k, v, y, log_total)


def _attend_backward(saved: tuple, dy: Array) -> tuple[Array, Array, Array]:
  q, k, v, y, log_total = saved
  # Weights are made transposed, [m n], which spares the products that sum over
  # queries a transposition that is slow on CPU.
  mean = (dy * y).sum(-1, keepdims=True)
  rows = [_split(x).swapaxes(-1, -2) for x in (log_total, mean)]

  def step(sums: tuple[Array, Array], block: tuple) -> tuple[tuple, Array]:
    q, dy, log_total, mean = block
    weights = jnp.exp(k @ q.swapaxes(-1, -2) - log_total)
    dlogits = weights * (v @ dy.swapaxes(-1, -2) - mean)
    dq = jnp.einsum('bhmn,bhmd->bhnd', dlogits, k)
    return (sums[0] + dlogits @ q, sums[1] + weights @ dy), dq

  zeros = jnp.zeros_like(k), jnp.zeros_like(v)
  (dk, dv), dq = jax.lax.scan(step, zeros, (_split(q), _split(dy), *rows))
  return _join(dq), dk, dv


_attend_blocks.defvjp(_attend_forward, _attend_backward)

IMPLEMENTATIONS: dict[str, Callable[[Queries, Keys, Values], Queries]] = {
  'plain': _plain,
  'blockwise': _blockwise,
  'cudnn': functools.partial(
    jax.nn.dot_product_attention, implementation='cudnn'
  ),
  'pallas': _pallas,
}
