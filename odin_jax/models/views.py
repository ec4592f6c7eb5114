"""All views that a batch gives of its scenes, the source being the first.

What is done to every one of them alone is done to a batch of all: `flat` makes
it, `unflat` gives every example its views back.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Shaped

from odin_jax.shared import posed_pair


class Views(NamedTuple):
  """v views of every scene.

  Attributes:
    image: [b v s s 3], values in [0, 1].
    target2view: [b v 3 4], scene units.
    fov_deg: [b v], full field of view.
    median_depth: [b v], scene units; 0 where not known.
    is_there: [b v]; the first always is.
  """

  image: Array
  target2view: Array
  fov_deg: Array
  median_depth: Array
  is_there: Array


def given(pairs: posed_pair.PosedPair) -> Views:
  """The views of a batch."""
  first = Views(
    image=pairs.source[:, None] / 255.0,
    target2view=pairs.target2source[:, None],
    fov_deg=pairs.fov_deg[:, None],
    median_depth=pairs.median_depth[:, None],
    is_there=jnp.ones((len(pairs.source), 1), bool),
  )
  if pairs.more is None:
    return first
  others = Views(
    image=pairs.more.image / 255.0,
    target2view=pairs.more.target2view,
    fov_deg=pairs.more.fov_deg,
    median_depth=jnp.zeros_like(pairs.more.fov_deg),
    is_there=pairs.more.is_there,
  )
  return jax.tree.map(lambda *x: jnp.concatenate(x, axis=1), first, others)


def flat(x: Shaped[Array, 'b v *n']) -> Shaped[Array, 'bv *n']:
  """The views of all examples, one after the other."""
  return x.reshape(-1, *x.shape[2:])


def unflat(x: Shaped[Array, 'bv *n'], count: int) -> Shaped[Array, 'b v *n']:
  """The inverse of `flat`, of `count` views an example."""
  return x.reshape(-1, count, *x.shape[1:])
