"""The U-Net: Stable Diffusion's count of parameters, layers, gradients."""

from diffusers.models import embeddings
from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from odin_jax.models import layers, unet
from tests.helpers import stable_diffusion

TINY = dict(
  in_channels=5,
  out_channels=3,
  model_channels=8,
  channel_mult=(1, 2),
  num_res_blocks=1,
  attention_levels=(1,),
  transformer_depth=1,
  num_heads=2,
  context_dim=6,
  num_groups=4,
  feedforward_factor=2,
)


def abstract(**settings):
  """A U-Net's graph and the shapes of its parameters; makes no arrays."""
  return nnx.split(
    nnx.eval_shape(lambda: unet.UNet(**settings, rngs=nnx.Rngs(0)))
  )


def random_state(shapes, seed=1):
  """Every parameter random: zeros would hide errors."""
  generator = np.random.default_rng(seed)
  return jax.tree.map(
    lambda leaf: generator.normal(0, 0.3, leaf.shape).astype(np.float32), shapes
  )


def inputs(batch=2):
  keys = jax.random.split(jax.random.key(2), 2)
  return (
    jax.random.normal(keys[0], (batch, 4, 4, 5)),
    jnp.arange(batch) * 100.0,
    jax.random.normal(keys[1], (batch, 7, 6)),
  )


@pytest.fixture(scope='module')
def tiny():
  """A tiny U-Net's function of parameters and inputs, and its parameters.

  The function gives the outputs, and the gradients of a sum over them.
  """
  graph, shapes = abstract(**TINY)

  def total(state, x, timestep, context):
    outputs = nnx.merge(graph, state)(x, timestep, context)
    return sum(jnp.sum(jnp.sin(output)) for output in outputs), outputs

  step = jax.jit(jax.grad(total, argnums=(0, 1, 2, 3), has_aux=True))
  return step, random_state(shapes)


def test_stable_diffusion_is_a_config_away():
  _, parameters = abstract(**stable_diffusion.UNET)
  leaves = jax.tree.leaves(parameters)
  mask_channel = 320 * 3 * 3 + 1
  assert len(leaves) == 686
  assert sum(leaf.size for leaf in leaves) == 859_532_484 + mask_channel


def test_output_has_a_mask_channel_more(tiny):
  step, state = tiny
  _, (output, mask_logit) = step(state, *inputs())
  assert output.shape == (2, 4, 4, 3)
  assert mask_logit.shape == (2, 4, 4)


def test_examples_do_not_see_each_other(tiny):
  step, state = tiny
  _, before = step(state, *inputs())
  _, after = step(state, *(x.at[0].add(1.0) for x in inputs()))
  for a, b in zip(before, after, strict=True):
    assert np.abs(a[0] - b[0]).max() > 1e-3
    np.testing.assert_array_equal(a[1], b[1])


def test_every_input_and_parameter_matters(tiny):
  step, state = tiny
  gradients, _ = step(state, *inputs())
  for path, gradient in jax.tree_util.tree_leaves_with_path(gradients):
    assert np.abs(gradient).max() > 0, path


def test_new_network_starts_from_zero_output():
  # The last layer alone: all of the network would be compiled for nothing.
  last = jax.jit(
    lambda: jax.tree.leaves(
      nnx.state(unet.UNet(**TINY, rngs=nnx.Rngs(0)).conv_out)
    )
  )()
  assert len(last) == 2 and not any(np.any(leaf) for leaf in last)


@pytest.fixture(scope='module')
def block():
  """A block with a transformer, split, and random inputs to it."""
  graph, shapes = nnx.split(
    nnx.eval_shape(
      lambda: unet.Block(
        8,
        16,
        attend=True,
        embedding=12,
        context=6,
        depth=1,
        heads=2,
        groups=4,
        feedforward_factor=2,
        rngs=nnx.Rngs(0),
      )
    )
  )
  keys = jax.random.split(jax.random.key(5), 3)
  arguments = (
    jax.random.normal(keys[0], (2, 4, 4, 8)),
    jax.random.normal(keys[1], (2, 12)),
    jax.random.normal(keys[2], (2, 3, 6)),
  )
  return graph, random_state(shapes), arguments


def block_step(block, remat):
  """The block's output and all of its gradients."""
  graph, state, arguments = block

  def total(state, *arguments):
    y = unet.REMAT[remat](nnx.merge(graph, state), *arguments)
    return jnp.sum(jnp.sin(y)), y

  return jax.jit(jax.grad(total, argnums=(0, 1, 2, 3), has_aux=True))(
    state, *arguments
  )


@pytest.fixture(scope='module')
def block_without_remat(block):
  return block_step(block, 'none')


@pytest.mark.parametrize('remat', sorted(set(unet.REMAT) - {'none'}))
def test_remat_changes_no_output_and_no_gradient(
  remat, block, block_without_remat
):
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4),
    block_step(block, remat),
    block_without_remat,
  )


def kept_bytes(function, state, *arguments):
  """What its backward pass needs, but for what has no batch axis."""

  def backward(state, *arguments):
    return jax.vjp(lambda s: function(s, *arguments), state)[1]

  return sum(
    leaf.size * leaf.dtype.itemsize
    for leaf in jax.tree.leaves(jax.eval_shape(backward, state, *arguments))
    if leaf.shape[:1] == arguments[0].shape[:1]
  )


def test_each_remat_keeps_less_than_the_one_before(block):
  graph, state, arguments = block
  kept = [
    kept_bytes(
      lambda s, *x: unet.REMAT[remat](nnx.merge(graph, s), *x),
      state,
      *arguments,
    )
    for remat in ('none', 'layers', 'convs', 'full')
  ]
  assert all(a > 1.3 * b for a, b in zip(kept, kept[1:])), kept
  assert kept[-1] == sum(x.nbytes for x in arguments)


def test_network_applies_remat_to_its_blocks():
  kept = {}
  for remat in ('none', 'full'):
    graph, shapes = abstract(**TINY, remat=remat)
    kept[remat] = kept_bytes(
      lambda s, *x: nnx.merge(graph, s)(*x), shapes, *inputs(batch=3)
    )
  assert kept['none'] > 2 * kept['full'], kept


def test_remat_reads_parameters_that_changed(block):
  graph, state, arguments = block
  module = nnx.merge(graph, state)
  apply = unet.REMAT['full']
  before = apply(module, *arguments)
  module.residual.conv2.bias[...] += 1.0
  assert np.abs(apply(module, *arguments) - before).max() > 0.1


def test_a_loop_may_close_over_a_block(block):
  """As a sampler's does over the network."""
  graph, state, arguments = block
  x, *rest = arguments

  def loop(state, remat):
    module = nnx.merge(graph, state)

    def body(x, _):
      y = unet.REMAT[remat](module, x, *rest)
      return x + y.mean(-1, keepdims=True), None

    return jax.lax.scan(body, x, None, length=2)[0]

  looped = [jax.jit(loop, static_argnums=1)(state, r) for r in ('none', 'full')]
  np.testing.assert_allclose(*looped, rtol=1e-4, atol=1e-4)


def test_unknown_remat_is_named():
  with pytest.raises(ValueError, match="'some' is none of .*'layers'"):
    unet.UNet(**TINY, remat='some', rngs=nnx.Rngs(0))


def equations(jaxpr):
  """All of a program, those inside others too."""
  for equation in jaxpr.eqns:
    yield equation
    for value in equation.params.values():
      for item in value if isinstance(value, (tuple, list)) else (value,):
        inner = getattr(item, 'jaxpr', item)
        if hasattr(inner, 'eqns'):
          yield from equations(inner)


@pytest.fixture(scope='module')
def bfloat16_equations():
  """The forward, and the backward pass of a network in bfloat16."""
  graph, shapes = abstract(**TINY, dtype='bfloat16')

  def forward(state, *arguments):
    output, mask_logit = nnx.merge(graph, state)(*arguments)
    return jnp.sum(output) + jnp.sum(mask_logit)

  return tuple(
    list(equations(jax.make_jaxpr(f)(shapes, *inputs()).jaxpr))
    for f in (forward, jax.grad(forward))
  )


def operands(program, *primitives):
  """Dtypes of the inputs of each use of the primitives."""
  return [
    (equation, {str(x.aval.dtype) for x in equation.invars})
    for equation in program
    if equation.primitive.name in primitives
  ]


def test_products_of_a_bfloat16_network_are_bfloat16(bfloat16_equations):
  equations = operands(
    bfloat16_equations[0], 'dot_general', 'conv_general_dilated'
  )
  assert len(equations) > 40
  assert all(dtypes == {'bfloat16'} for _, dtypes in equations), equations


def test_products_of_its_backward_pass_are_bfloat16(bfloat16_equations):
  # Those of attention, the only ones with a batch axis, pass the softmax.
  equations = [
    dtypes
    for equation, dtypes in operands(
      bfloat16_equations[1], 'dot_general', 'conv_general_dilated'
    )
    if equation.primitive.name == 'conv_general_dilated'
    or equation.params['dimension_numbers'][1] == ((), ())
  ]
  assert len(equations) > 100
  assert all(dtypes == {'bfloat16'} for dtypes in equations), equations


@pytest.mark.parametrize('primitive', ['exp', 'rsqrt', 'cos', 'sin'])
def test_functions_that_need_float32_get_it(primitive, bfloat16_equations):
  equations = operands(bfloat16_equations[0], primitive)
  assert equations and all(dtypes == {'float32'} for _, dtypes in equations), (
    equations
  )


def test_bfloat16_network_gives_almost_the_same(tiny):
  step, state = tiny
  graph, _ = abstract(**TINY, dtype='bfloat16')
  outputs = jax.jit(lambda s, *x: nnx.merge(graph, s)(*x))(state, *inputs())
  for output, exact in zip(outputs, step(state, *inputs())[1], strict=True):
    assert output.dtype == np.float32
    error = np.linalg.norm(output - exact) / np.linalg.norm(exact)
    # 0.0 would mean that the cast is missing.
    assert 1e-4 < error < 0.03, error


@pytest.mark.parametrize('norm', ['group', 'layer'])
def test_moments_of_bfloat16_are_float32(norm):
  # Exact in bfloat16, whose step is 2 here; a bfloat16 mean is off by up to 1.
  steps = np.random.default_rng(0).integers(-8, 8, (2, 9, 11, 12))
  x = (256 + 2 * steps).astype(np.float32)
  module, axes = {
    'group': (layers.GroupNorm(12, groups=1, epsilon=1e-5), (1, 2, 3)),
    'layer': (layers.LayerNorm(12), (3,)),
  }[norm]
  exact = (x - x.mean(axes, keepdims=True)) / x.std(axes, keepdims=True)
  output = module(jnp.asarray(x, jnp.bfloat16))
  assert output.dtype == jnp.bfloat16
  np.testing.assert_allclose(
    output.astype(np.float32), exact, rtol=5e-3, atol=2e-3
  )


def test_timestep_embedding_is_that_of_diffusers():
  timesteps = np.array([0.0, 1.0, 37.0, 999.0])
  reference = embeddings.get_timestep_embedding(
    torch.tensor(timesteps), 32, flip_sin_to_cos=True, downscale_freq_shift=0
  )
  output = layers.timestep_embedding(jnp.asarray(timesteps), 32)
  np.testing.assert_allclose(output, reference.numpy(), atol=2e-4)


def test_group_norm_is_that_of_torch():
  x = np.random.default_rng(0).normal(3, 2, (2, 4, 5, 12)).astype(np.float32)
  norm = layers.GroupNorm(12, groups=3, epsilon=1e-5)
  norm.scale[...] = jnp.linspace(0.5, 2, 12)
  norm.bias[...] = jnp.linspace(-1, 1, 12)
  reference = torch.nn.functional.group_norm(
    torch.tensor(x).permute(0, 3, 1, 2),
    3,
    torch.linspace(0.5, 2, 12),
    torch.linspace(-1, 1, 12),
  )
  np.testing.assert_allclose(
    norm(jnp.asarray(x)), reference.permute(0, 2, 3, 1), atol=1e-5
  )


def test_attention_is_that_of_torch():
  attention = layers.Attention(8, 6, heads=2, rngs=nnx.Rngs(3))
  keys = jax.random.split(jax.random.key(4), 2)
  x = jax.random.normal(keys[0], (2, 5, 8))
  context = jax.random.normal(keys[1], (2, 7, 6))

  def heads(y):
    y = torch.tensor(np.asarray(y))
    return y.reshape(*y.shape[:2], 2, 4).transpose(1, 2)

  reference = torch.nn.functional.scaled_dot_product_attention(
    heads(attention.to_q(x)),
    heads(attention.to_k(context)),
    heads(attention.to_v(context)),
  )
  reference = reference.transpose(1, 2).reshape(2, 5, 8).numpy()
  np.testing.assert_allclose(
    attention(x, context), attention.to_out(jnp.asarray(reference)), atol=1e-5
  )
