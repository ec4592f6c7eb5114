"""Convolution and attention, of every implementation, against torch."""

import os
import subprocess
import sys
from unittest import mock

from hypothesis import given, settings
from hypothesis import strategies as st
import jax
from jax._src.cudnn import fused_attention_stablehlo
from jax.experimental.pallas import tpu as pltpu
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from odin_jax import sharding
from odin_jax.models import ops
from tests.helpers import commands

# Compiled for eight devices of which each has one example.
SHARDED = """
import jax
import jax.numpy as jnp
from odin_jax import sharding
from odin_jax.models import ops

mesh = jax.make_mesh((8,), ('data',))
split, whole = (
  jax.NamedSharding(mesh, jax.P(*axes)) for axes in (['data'], [])
)


def array(*shape):
  return jax.ShapeDtypeStruct(shape, jnp.float32)


def conv(x, kernel):
  return jnp.sum(jnp.sin(ops.conv2d(x, kernel)))


def attention(q, k, v):
  assert ops.implementation('cpu', q, k) == 'blockwise'
  return jnp.sum(jnp.sin(ops.attention(q, k, v)))


tokens = array(8, 512, 2, 4)
for function, arguments, shardings in (
  (conv, (array(8, 8, 8, 3), array(3, 3, 3, 5)), (split, whole)),
  (attention, (tokens, tokens, tokens), (split, split, split)),
):
  gradients = jax.grad(function, tuple(range(len(arguments))))
  compiled = jax.jit(gradients, in_shardings=shardings, out_shardings=shardings)
  text = compiled.lower(*arguments).compile().as_text()
  print(function.__name__, 'all-reduce(' in text)
  for name in ('all-gather', 'all-to-all', 'collective-permute'):
    assert name not in text, (function.__name__, name)

# The TPU's kernel gets the examples and heads that each device has.
sharding.platform = lambda: 'tpu'
mesh = sharding.make_mesh(dict(data=2, fsdp=2, tensor=2))
tokens = jax.ShapeDtypeStruct((4, 1024, 2, 40), jnp.bfloat16)
where = jax.NamedSharding(mesh, jax.P(('data', 'fsdp')))
function = sharding.traced_for(
  mesh, jax.grad(lambda *x: jnp.sum(ops.attention(*x).astype(jnp.float32)))
)
traced = jax.jit(function, in_shardings=where).trace(tokens, tokens, tokens)
text = traced.lower(lowering_platforms=('tpu',)).as_text()
kernels = [line for line in text.splitlines() if 'tpu_custom_call' in line]
print('kernels', len(kernels), all('tensor<1x1x1024x' in k for k in kernels))
"""


def random(*shape, seed=0, dtype=jnp.float32):
  values = np.random.default_rng(seed).standard_normal(shape, np.float32)
  return jnp.asarray(values, dtype)


def to_torch(x, order):
  return torch.tensor(np.asarray(x, np.float32)).permute(*order).contiguous()


def gradients(function, arguments, dy):
  """The output, then the gradients of sum(output * dy)."""
  y, backward = jax.jit(lambda *x: jax.vjp(function, *x))(*arguments)
  return [y, *backward(dy)]


def torch_gradients(function, arguments, dy):
  for x in arguments:
    x.requires_grad_()
  y = function(*arguments)
  return [y.detach(), *torch.autograd.grad(y, arguments, dy)]


@pytest.mark.parametrize(
  'size,stride,padding',
  [
    (3, 1, (1, 1)),
    (3, 2, (1, 1)),
    (3, 2, (0, 1)),
    (3, 1, (0, 0)),
    (1, 1, (0, 0)),
    (1, 2, (0, 0)),
  ],
)
def test_conv2d_is_that_of_torch(size, stride, padding):
  x, kernel = random(2, 6, 9, 3), random(size, size, 3, 4, seed=1)

  def jax_conv(x, kernel):
    return ops.conv2d(x, kernel, stride=stride, padding=(padding, padding))

  def torch_conv(x, kernel):
    x = torch.nn.functional.pad(x, (*padding, *padding))
    return torch.nn.functional.conv2d(x, kernel, stride=stride)

  dy = random(*jax.eval_shape(jax_conv, x, kernel).shape, seed=2)
  with jax.default_matmul_precision('highest'):
    results = gradients(jax_conv, (x, kernel), dy)
  expected = torch_gradients(
    torch_conv,
    (to_torch(x, (0, 3, 1, 2)), to_torch(kernel, (3, 2, 0, 1))),
    to_torch(dy, (0, 3, 1, 2)),
  )
  orders = (0, 2, 3, 1), (0, 2, 3, 1), (2, 3, 1, 0)
  for a, b, order in zip(results, expected, orders, strict=True):
    np.testing.assert_allclose(a, b.permute(*order), atol=2e-5)


def test_conv2d_in_bfloat16_stays_there():
  x = random(2, 5, 4, 3, dtype=jnp.bfloat16)
  kernel = random(3, 3, 3, 4, seed=1, dtype=jnp.bfloat16)
  y = ops.conv2d(x, kernel)
  assert y.dtype == jnp.bfloat16
  exact = ops.conv2d(x.astype(jnp.float32), kernel.astype(jnp.float32))
  np.testing.assert_allclose(
    y.astype(jnp.float32), exact, atol=2**-7 * float(jnp.abs(exact).max())
  )


def tokens(n, m, heads, d, *, batch=2, dtype=jnp.float32):
  """Queries, keys, values and the gradient of the output."""
  return [
    random(batch, length, heads, d, seed=seed, dtype=dtype)
    for seed, length in enumerate((n, m, m, n))
  ]


def torch_attention(q, k, v, dy):
  """Output and gradients; [b n h d] like ours."""
  order = (0, 2, 1, 3)
  return [
    x.permute(*order).numpy()
    for x in torch_gradients(
      torch.nn.functional.scaled_dot_product_attention,
      [to_torch(x, order) for x in (q, k, v)],
      to_torch(dy, order),
    )
  ]


@pytest.mark.parametrize('name', ['plain', 'blockwise'])
@pytest.mark.parametrize('lengths', [(128, 77), (192, 64), (64, 1)])
def test_attention_is_that_of_torch(name, lengths):
  q, k, v, dy = tokens(*lengths, 2, 40)
  with jax.default_matmul_precision('highest'):
    results = gradients(ops.IMPLEMENTATIONS[name], (q, k, v), dy)
  for a, b in zip(results, torch_attention(q, k, v, dy), strict=True):
    np.testing.assert_allclose(a, b, atol=2e-5)


@pytest.fixture(scope='module')
def blockwise():
  """Its output and gradients, for one shape."""

  def run(q, k, v, dy):
    y, backward = jax.vjp(ops.IMPLEMENTATIONS['blockwise'], q, k, v)
    return [y, *backward(dy)]

  return jax.jit(run)


@given(st.floats(-1e3, 1e3), st.integers(0, 6), st.integers(0, 127))
@settings(max_examples=20, deadline=None)
def test_what_attention_does_not_depend_on(blockwise, shift, roll, turn):
  q, k, v, dy = tokens(128, 7, 2, 5)
  y, dq, dk, dv = blockwise(q, k, v, dy)
  # What all keys have in common (the exponential of the largest logits would
  # overflow), the order of keys, the order of queries.
  q, dy = (jnp.roll(x, turn, 1) for x in (q, dy))
  k, v = (jnp.roll(x, roll, 1) for x in (k, v))
  results = blockwise(q, k + shift / 5, v, dy)
  expected = (
    *(jnp.roll(x, turn, 1) for x in (y, dq)),
    *(jnp.roll(x, roll, 1) for x in (dk, dv)),
  )
  for a, b in zip(results, expected, strict=True):
    np.testing.assert_allclose(a, b, atol=2e-3)


@pytest.mark.parametrize('name', ['plain', 'blockwise'])
def test_softmax_is_float32_in_a_bfloat16_network(name):
  q, k, v, dy = tokens(64, 4096, 1, 16, batch=1, dtype=jnp.bfloat16)
  k = 8 * k  # Large logits, which bfloat16 would round by several per cent.
  y = ops.IMPLEMENTATIONS[name](q, k, v)
  assert y.dtype == jnp.bfloat16
  # Sums of 4096 weights: in bfloat16 they would be off by several per cent.
  ones = ops.IMPLEMENTATIONS[name](q, k, jnp.ones_like(v))
  np.testing.assert_allclose(ones.astype(jnp.float32), 1, atol=2**-7)
  exact, *_ = torch_attention(q, k, v, dy)
  np.testing.assert_allclose(
    y.astype(jnp.float32), exact, atol=2**-7 * np.abs(exact).max()
  )


def test_kernel_of_the_tpu_is_torch_attention():
  q, k, v, _ = tokens(128, 256, 1, 40, batch=1)
  expected, *_ = torch_attention(q, k, v, q)
  with (
    pltpu.force_tpu_interpret_mode(),
    jax.default_matmul_precision('highest'),
  ):
    results = ops.IMPLEMENTATIONS['pallas'](q, k, v)
  np.testing.assert_allclose(results, expected, atol=1e-4)


def shape(n, d, dtype):
  return jax.ShapeDtypeStruct((2, n, 8, d), dtype)


@pytest.mark.parametrize(
  'platform,n,m,d,dtype,name',
  [
    ('cpu', 1024, 1024, 40, jnp.float32, 'blockwise'),
    ('cpu', 1024, 77, 40, jnp.float32, 'plain'),
    ('cpu', 64, 64, 160, jnp.float32, 'plain'),
    ('cpu', 1000, 1024, 40, jnp.float32, 'plain'),
    ('gpu', 1024, 1024, 40, jnp.bfloat16, 'cudnn'),
    ('gpu', 256, 77, 80, jnp.float16, 'cudnn'),
    ('gpu', 64, 64, 160, jnp.bfloat16, 'plain'),
    ('gpu', 64, 64, 36, jnp.bfloat16, 'plain'),
    ('gpu', 1024, 1024, 40, jnp.float32, 'plain'),
    ('tpu', 1024, 1024, 40, jnp.bfloat16, 'pallas'),
    ('tpu', 4096, 4096, 40, jnp.float32, 'pallas'),
    ('tpu', 1024, 77, 40, jnp.bfloat16, 'plain'),
    ('tpu', 256, 256, 80, jnp.bfloat16, 'plain'),
    ('tpu', 1024, 1024, 160, jnp.bfloat16, 'plain'),
    ('tpu', 1600, 1600, 40, jnp.bfloat16, 'plain'),
  ],
)
def test_implementation(platform, n, m, d, dtype, name):
  q, k = shape(n, d, dtype), shape(m, d, dtype)
  assert ops.implementation(platform, q, k) == name


@pytest.mark.parametrize(
  'platform,lowered_for,call',
  [('gpu', 'cuda', '__cudnn$fmha'), ('tpu', 'tpu', 'tpu_custom_call')],
)
def test_kernels_are_in_the_program(monkeypatch, platform, lowered_for, call):
  # What is traced for says it, not what is here.
  device = mock.Mock(platform=platform)
  mesh = mock.Mock(spec=jax.sharding.Mesh, devices=np.array([device]), size=1)
  # Asked at tracing, of a library that only machines with a card have.
  monkeypatch.setattr(
    fused_attention_stablehlo, 'check_cudnn_version', lambda: 91100
  )

  def total(q, k, v):
    return jnp.sum(ops.attention(q, k, v).astype(jnp.float32))

  def program(n):
    q = shape(n, 40, jnp.bfloat16)
    function = sharding.traced_for(mesh, jax.grad(total))
    traced = jax.jit(function).trace(q, q, q)
    return traced.lower(lowering_platforms=(lowered_for,)).as_text()

  assert program(1024).count(call) > 1


def test_batches_stay_split():
  done = subprocess.run(
    [sys.executable, '-c', SHARDED],
    env=os.environ | {'XLA_FLAGS': commands.with_devices(8)},
    capture_output=True,
    text=True,
  )
  assert done.returncode == 0, done.stderr
  # The kernel's gradient is a sum over examples; attention has no such.
  lines = done.stdout.splitlines()
  assert lines[:2] == ['conv True', 'attention False']
  assert lines[2] == 'kernels 3 True'


@pytest.mark.parametrize('stride,padding', [(1, (1, 1)), (2, (0, 1))])
def test_gradients_are_summed_in_float32_where_that_is_asked(stride, padding):
  x = random(64, 6, 8, 3, dtype=jnp.bfloat16)
  parameters = random(3, 3, 3, 4, seed=1), random(4, 5, seed=2), random(5)

  def layers(x, kernel, matrix, bias):
    y = ops.conv2d(x, kernel, stride=stride, padding=(padding, padding))
    return ops.add_bias(ops.matmul(y, matrix), bias)

  dy = random(*jax.eval_shape(layers, x, *parameters).shape, seed=3)
  dy = dy.astype(x.dtype)
  y, dx, *narrow, narrow_bias = gradients(layers, (x, *parameters), dy)
  with ops.gradients_summed_in('float32'):
    wide_y, wide_dx, *wide, bias = gradients(layers, (x, *parameters), dy)
  np.testing.assert_array_equal(y, wide_y)
  np.testing.assert_array_equal(dx, wide_dx)
  # Of biases gradients are always summed so.
  np.testing.assert_array_equal(narrow_bias, bias)
  exact = np.asarray(dy, np.float64).sum((0, 1, 2))
  np.testing.assert_allclose(bias, exact, rtol=1e-4)

  def fits(values):
    rounded = values.astype(jnp.bfloat16).astype(jnp.float32)
    return bool((rounded == values).all())

  for a, b in zip(narrow, wide, strict=True):
    assert a.dtype == b.dtype == jnp.float32
    np.testing.assert_allclose(a, b, atol=2**-6 * float(jnp.abs(b).max()))
    # What is summed in bfloat16 is a number of bfloat16.
    assert fits(a) and not fits(b)
