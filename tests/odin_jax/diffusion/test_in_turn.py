"""Conditions that take turns while a sample is drawn."""

import jax.numpy as jnp
import numpy as np

from odin_jax.diffusion import in_turn, sampler


def conditions(count, rows):
  """Condition v of row r says 10 r + v."""
  says = 10.0 * np.arange(rows)
  return [{'says': jnp.asarray(says + v)} for v in range(count)]


def told(given, timestep):
  """What a network is told at a timestep."""
  rows = len(given.seed)
  denoise = in_turn.denoising(lambda x, t, condition: condition['says'])
  at = jnp.full(rows, float(timestep))
  return np.asarray(denoise(jnp.zeros(rows), at, given))


def test_every_step_draws_one_of_those_that_are_there():
  seed, count = jnp.arange(4), jnp.asarray([1, 2, 3, 3])
  given = in_turn.stack(conditions(4, 4), seed, count)
  drawn = np.stack([told(given, t) for t in range(60)]) - 10 * np.arange(4)
  assert [sorted(set(row)) for row in drawn.T.astype(int).tolist()] == [
    [0],
    [0, 1],
    [0, 1, 2],
    [0, 1, 2],
  ]
  # The same each time, of each seed its own.
  np.testing.assert_array_equal(told(given, 7), told(given, 7))
  assert (drawn[:, 2] != drawn[:, 3]).any()
  # About as often each.
  share = np.bincount(drawn[:, 3].astype(int)) / 60
  assert share.min() > 0.15


def test_guidance_draws_the_same_for_a_condition_and_its_null():
  given = in_turn.stack(conditions(3, 2), jnp.arange(2), jnp.asarray([3, 3]))
  null = in_turn.stack(
    [{'says': c['says'] + 100} for c in conditions(3, 2)],
    jnp.arange(2),
    jnp.asarray([3, 3]),
  )
  seen = []

  def network(x, timestep, condition):
    seen.append(np.asarray(condition['says']))
    return x

  denoise = sampler.guided(
    in_turn.denoising(network), given, null, guidance=2.0
  )
  denoise(jnp.zeros((2, 1, 1, 1)), jnp.full(2, 5.0))
  np.testing.assert_array_equal(seen[0][1::2] - seen[0][::2], [100, 100])
