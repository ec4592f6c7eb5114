"""One of several conditions at every step of a sampler, drawn anew each time.

Stochastic conditioning of Watson et al. (3DiM, 2210.04628, section 3.2): a
network that looks at one view at a time makes a sample that agrees with many.
"""

from typing import Any, Callable, NamedTuple, Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int


class InTurn(NamedTuple):
  """Conditions that take turns; trees of arrays with b rows.

  Attributes:
    conditions: each array [b v ...] of v conditions.
    seed: [b], of the drawing.
    count: [b], how many of the v there are: the first ones.
  """

  conditions: Any
  seed: Int[Array, 'b']
  count: Int[Array, 'b']


def stack(
  conditions: Sequence[Any], seed: Int[Array, 'b'], count: Int[Array, 'b']
) -> InTurn:
  """Conditions of equal shapes, which take turns."""
  stacked = jax.tree.map(lambda *x: jnp.stack(x, axis=1), *conditions)
  return InTurn(stacked, seed, count)


def draw(
  seed: Int[Array, 'b'], timestep: Float[Array, 'b'], count: Int[Array, 'b']
) -> Int[Array, 'b']:
  """Which condition each example has at a timestep, 0 to count - 1."""

  def one(seed: Array, timestep: Array, count: Array) -> Array:
    key = jax.random.fold_in(jax.random.key(seed), timestep.astype(jnp.int32))
    return jax.random.randint(key, (), 0, count)

  return jax.vmap(one)(seed, timestep, count)


def denoising(
  denoise_fn: Callable[[Array, Float[Array, 'b'], Any], Array],
) -> Callable[[Array, Float[Array, 'b'], InTurn], Array]:
  """A function of one condition as one of several."""

  def denoise(x: Array, timestep: Float[Array, 'b'], given: InTurn) -> Array:
    place = draw(given.seed, timestep, given.count)
    condition = jax.tree.map(
      lambda leaf: jax.vmap(lambda values, i: values[i])(leaf, place),
      given.conditions,
    )
    return denoise_fn(x, timestep, condition)

  return denoise
