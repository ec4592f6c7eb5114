"""Gaussians that nobody sees, put where others are.

Kheradmand et al., "3D Gaussian splatting as Markov chain Monte Carlo", 2024
(https://arxiv.org/abs/2404.09591), section 3.2. A Gaussian of opacity o and
standard deviation s that becomes N of them at one place has

  o_N = 1 - (1 - o)^(1/N)
  s_N = s o / sum_{k=1..N} C(N, k) (-1)^(k-1) o_N^k / sqrt(k)

so that its centre is as opaque as before, and so is a line through it on the
whole. (Equation 9 there has a double sum over C(i-1, k), which is this one.)
"""

import math

import jax
import jax.numpy as jnp
from jaxtyping import Float, Int
import numpy as np

from odin_jax.splatting import gaussians as gaussian

# Below this opacity a Gaussian is put elsewhere.
DEAD = 0.005
# More copies share as these do; binomials lose digits.
_MOST_COPIES = 51
_K = np.arange(1, _MOST_COPIES + 1)
_TERMS = np.array(
  [
    [math.comb(n, k) * (-1) ** (k - 1) / math.sqrt(k) for k in _K]
    for n in range(_MOST_COPIES + 1)
  ]
)


def shared(
  opacity: Float[np.ndarray, 'n'], copies: Int[np.ndarray, 'n']
) -> tuple[Float[np.ndarray, 'n'], Float[np.ndarray, 'n']]:
  """Opacity of each of the copies, and by what their deviations shrink."""
  copies = np.minimum(copies, _MOST_COPIES)
  of_each = 1 - (1 - opacity) ** (1 / copies)
  total = np.sum(_TERMS[copies] * of_each[:, None] ** _K, axis=1)
  return of_each, opacity / total


def relocate(
  scene: gaussian.Gaussians,
  moments: object,
  rng: np.random.Generator,
) -> tuple[gaussian.Gaussians, object, int]:
  """Puts dead Gaussians where live ones are, opaque ones more often.

  Args:
    scene: all of them.
    moments: a tree of arrays whose first axis is that of the Gaussians, and of
      numbers; the rows of those that change become 0.
    rng: the only source of randomness.

  Returns:
    the scene, the moments, and how many were moved; none where all are dead.
  """
  opacity = np.asarray(gaussian.opacities(scene), np.float64)
  is_dead = opacity < DEAD
  dead, live = np.flatnonzero(is_dead), np.flatnonzero(~is_dead)
  if not len(dead) or not len(live):
    return scene, moments, 0
  chance = opacity[live] / opacity[live].sum()
  origin = rng.choice(live, len(dead), p=chance)
  split, copies = np.unique(origin, return_counts=True)
  of_each, shrink = shared(opacity[split], copies + 1)
  of_each = np.clip(of_each, DEAD, 1 - 1e-6)
  parts = gaussian.Gaussians(*(np.array(part) for part in scene))
  parts.opacity_logits[split] = np.log(of_each / (1 - of_each))
  parts.log_scales[split] += np.log(shrink)[:, None]
  for part in parts:
    part[dead] = part[origin]
  changed = np.concatenate([dead, split])

  def forget(part: object) -> object:
    return part.at[changed].set(0) if jnp.ndim(part) else part

  return (
    jax.tree.map(jnp.asarray, parts),
    jax.tree.map(forget, moments),
    len(dead),
  )
