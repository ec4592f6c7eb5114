"""The frozen encoders with kernels in the dtype that they compute in."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import train as recipes
from odin_jax.checkpoints import checkpoint
from odin_jax.models import encoders


@pytest.fixture(scope='module')
def config():
  config = recipes.get_config('odin,runlocal=True')
  assert config.dtype == 'bfloat16'
  return checkpoint.plain(config.to_dict())


@pytest.fixture(scope='module')
def frozen(config):
  return encoders.random(config)


def test_kernels_in_bfloat16_change_no_bit_of_a_bfloat16_network(
  config, frozen
):
  held = encoders.held(frozen, config)

  @jax.jit
  def encode(frozen, images):
    return frozen.autoencoder.encode(images), frozen.image.encode(images)

  images = np.random.default_rng(0).uniform(0, 1, (2, 32, 32, 3))
  for a, b in zip(encode(frozen, images), encode(held, images), strict=True):
    assert np.std(a) > 0
    np.testing.assert_array_equal(a, b)


def test_shapes_to_restore_are_those_that_are_held(config, frozen):
  shapes = encoders.abstract(config)
  given = jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype),
    encoders.held(frozen, config),
  )
  assert shapes == given
  dtypes = {leaf.dtype for leaf in jax.tree.leaves(shapes)}
  # Norms compute in float32.
  assert dtypes == {jnp.dtype('bfloat16'), jnp.dtype('float32')}
  # A ported checkpoint has them as they came.
  ported = {k: v for k, v in config.items() if k != 'encoders_dtype'}
  assert encoders.held_dtype(ported) == 'float32'
