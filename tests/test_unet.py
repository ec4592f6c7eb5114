"""The U-Net: Stable Diffusion's count of parameters, layers, gradients."""

from diffusers.models import embeddings
from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from odin_jax.models import layers, unet

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


@pytest.fixture(scope='module')
def tiny():
  """A tiny U-Net with every parameter random: zeros would hide errors."""
  graph, shapes = abstract(**TINY)
  generator = np.random.default_rng(1)
  return graph, jax.tree.map(
    lambda leaf: generator.normal(0, 0.3, leaf.shape).astype(np.float32), shapes
  )


def run(graph, state, *arguments):
  return jax.jit(lambda s, *x: nnx.merge(graph, s)(*x))(state, *arguments)


def inputs(batch=2):
  keys = jax.random.split(jax.random.key(2), 2)
  return (
    jax.random.normal(keys[0], (batch, 4, 4, 5)),
    jnp.arange(batch) * 100.0,
    jax.random.normal(keys[1], (batch, 7, 6)),
  )


def test_stable_diffusion_is_a_config_away():
  _, parameters = abstract(
    in_channels=8,
    out_channels=4,
    model_channels=320,
    channel_mult=(1, 2, 4, 4),
    num_res_blocks=2,
    attention_levels=(0, 1, 2),
    transformer_depth=1,
    num_heads=8,
    context_dim=768,
    num_groups=32,
    feedforward_factor=4,
  )
  leaves = jax.tree.leaves(parameters)
  mask_channel = 320 * 3 * 3 + 1
  assert len(leaves) == 686
  assert sum(leaf.size for leaf in leaves) == 859_532_484 + mask_channel


def test_output_has_a_mask_channel_more(tiny):
  output, mask_logit = run(*tiny, *inputs())
  assert output.shape == (2, 4, 4, 3)
  assert mask_logit.shape == (2, 4, 4)


def test_examples_do_not_see_each_other(tiny):
  whole = run(*tiny, *inputs())
  alone = run(*tiny, *(x[1:] for x in inputs()))
  for a, b in zip(whole, alone, strict=True):
    np.testing.assert_allclose(a[1:], b, atol=1e-4)


def test_every_input_and_parameter_matters(tiny):
  graph, state = tiny

  def total(state, x, timestep, context):
    output, mask_logit = nnx.merge(graph, state)(x, timestep, context)
    return jnp.sum(jnp.sin(output)) + jnp.sum(jnp.sin(mask_logit))

  gradients = jax.jit(jax.grad(total, argnums=(0, 1, 2, 3)))(state, *inputs())
  for path, gradient in jax.tree_util.tree_leaves_with_path(gradients):
    assert np.abs(gradient).max() > 0, path


def test_new_network_starts_from_zero_output():
  output, mask_logit = jax.jit(
    lambda *x: unet.UNet(**TINY, rngs=nnx.Rngs(0))(*x)
  )(*inputs())
  assert not np.any(output) and not np.any(mask_logit)


def test_timestep_embedding_is_that_of_diffusers():
  timesteps = np.array([0.0, 1.0, 37.0, 999.0])
  theirs = embeddings.get_timestep_embedding(
    torch.tensor(timesteps), 32, flip_sin_to_cos=True, downscale_freq_shift=0
  )
  ours = layers.timestep_embedding(jnp.asarray(timesteps), 32)
  np.testing.assert_allclose(ours, theirs.numpy(), atol=2e-4)


def test_group_norm_is_that_of_torch():
  x = np.random.default_rng(0).normal(3, 2, (2, 4, 5, 12)).astype(np.float32)
  ours = layers.GroupNorm(12, groups=3, epsilon=1e-5)
  ours.scale[...] = jnp.linspace(0.5, 2, 12)
  ours.bias[...] = jnp.linspace(-1, 1, 12)
  theirs = torch.nn.functional.group_norm(
    torch.tensor(x).permute(0, 3, 1, 2),
    3,
    torch.linspace(0.5, 2, 12),
    torch.linspace(-1, 1, 12),
  )
  np.testing.assert_allclose(
    ours(jnp.asarray(x)), theirs.permute(0, 2, 3, 1), atol=1e-5
  )


def test_attention_is_that_of_torch():
  ours = layers.Attention(8, 6, heads=2, rngs=nnx.Rngs(3))
  keys = jax.random.split(jax.random.key(4), 2)
  x = jax.random.normal(keys[0], (2, 5, 8))
  context = jax.random.normal(keys[1], (2, 7, 6))

  def heads(y):
    y = torch.tensor(np.asarray(y))
    return y.reshape(*y.shape[:2], 2, 4).transpose(1, 2)

  theirs = torch.nn.functional.scaled_dot_product_attention(
    heads(ours.to_q(x)), heads(ours.to_k(context)), heads(ours.to_v(context))
  )
  theirs = theirs.transpose(1, 2).reshape(2, 5, 8).numpy()
  np.testing.assert_allclose(
    ours(x, context), ours.to_out(jnp.asarray(theirs)), atol=1e-5
  )
