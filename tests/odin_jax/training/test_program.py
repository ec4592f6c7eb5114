"""What of the step is not what it computes: its parts, its memory, its state."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import train as recipes
from odin_jax import sharding
from odin_jax.checkpoints import checkpoint
from odin_jax.shared import errors
from odin_jax.training import program, settings, step


def config_of(**fields):
  config = recipes.get_config('world,runlocal=True')
  config.update_from_flattened_dict(fields)
  return checkpoint.plain(config.to_dict())


def test_a_batch_is_cut_into_equal_parts():
  settings.check(config_of(accumulate_steps=4))
  with pytest.raises(errors.UserError, match='accumulate_steps=3'):
    settings.check(config_of(accumulate_steps=3))
  mesh = sharding.make_mesh({'data': -1, 'fsdp': 1, 'tensor': 1})
  with pytest.raises(errors.UserError, match='1 devices .*accumulate_steps=3'):
    sharding.batch_sharding(mesh, 8, 3)


def test_a_batch_has_times_where_a_part_looks_at_them():
  assert program.abstract_batch(config_of()).times_s is None
  config = config_of(**{'model.conditioning': 'se3+time'})
  times_s = program.abstract_batch(config).times_s
  assert times_s.shape == (config['batch_size'], 2)
  # They are not of pixels, so that views may be encoded already.
  settings.check_latents(config | {'autoencoder': {'kind': 'kl'}})


def test_parts_are_those_of_the_whole_batch():
  drawn = jnp.arange(12)
  parts = [step.Part(index, 3).rows(drawn).tolist() for index in range(3)]
  # Every device has its own of each: the first of two has the first six.
  assert parts == [[0, 3, 6, 9], [1, 4, 7, 10], [2, 5, 8, 11]]
  assert step.Part(0, 1).rows(drawn) is drawn


def test_adafactor_keeps_rows_and_columns_alone():
  config = config_of(**{'optimizer.kind': 'adafactor'})
  kernel = np.random.default_rng(0).normal(size=(256, 384))
  params = {'unet': {'kernel': jnp.asarray(kernel, jnp.float32)}}
  optimizer = step.optimizer(config)
  state = jax.jit(optimizer.init)(params)
  update = jax.jit(optimizer.update)
  kept = sum(leaf.size for leaf in jax.tree.leaves(state))
  assert kept < 0.01 * kernel.size
  for _ in range(10):
    # Of the sum of squares.
    updates, state = update(params, state, params)
    params = jax.tree.map(jnp.add, params, updates)
  norm = float(jnp.linalg.norm(params['unet']['kernel']))
  assert norm < np.linalg.norm(kernel)
