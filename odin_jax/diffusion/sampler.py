"""DDIM sampling (Song et al. 2010.02502) as one `lax.scan`.

With eta = 0, from timestep t to the next one s < t:

  x_s = sqrt(alpha_bar_s) x0_hat + sqrt(1 - alpha_bar_s) eps_hat
"""

from typing import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int
import numpy as np

from odin_jax.diffusion import schedule

Latent = Float[Array, 'b h w c']
DenoiseFn = Callable[[Latent, Float[Array, 'b']], Latent]
SPACINGS = ('leading', 'trailing')


def timesteps(
  num_steps: int, num_timesteps: int, *, spacing: str
) -> Int[np.ndarray, 'n']:
  """Timesteps of a trajectory, noisiest first.

  Args:
    num_steps: steps of the sampler, at most `num_timesteps`.
    num_timesteps: T.
    spacing: `trailing` starts at T - 1, where training saw pure noise;
      `leading` is 1, 1 + T // n, ... as Stable Diffusion's samplers have it.
  """
  if not 1 <= num_steps <= num_timesteps:
    raise ValueError(f'num_steps {num_steps} is outside 1..{num_timesteps}')
  if spacing == 'trailing':
    ends = np.arange(num_steps, 0, -1) * (num_timesteps / num_steps)
    return np.round(ends).astype(np.int32) - 1
  if spacing == 'leading':
    steps = np.arange(num_steps)[::-1] * (num_timesteps // num_steps) + 1
    return np.minimum(steps, num_timesteps - 1).astype(np.int32)
  raise ValueError(f'spacing {spacing!r} is none of {SPACINGS}')


def guided(
  conditional: DenoiseFn, unconditional: DenoiseFn, guidance: float
) -> DenoiseFn:
  """Classifier-free guidance (Ho and Salimans 2207.12598); 1 is none."""
  if guidance == 1.0:
    return conditional

  def denoise(x: Latent, timestep: Float[Array, 'b']) -> Latent:
    without = unconditional(x, timestep)
    return without + guidance * (conditional(x, timestep) - without)

  return denoise


def ddim(
  denoise_fn: DenoiseFn,
  noise: Latent,
  *,
  alpha_bar: Float[np.ndarray, 't'],
  steps: Int[np.ndarray, 'n'],
  prediction: str,
  final_alpha_bar: float = 1.0,
) -> Latent:
  """The sample that `noise` leads to; deterministic.

  Args:
    denoise_fn: (x_t, timestep per example) -> the network's output.
    noise: x at the first of `steps`, standard normal.
    alpha_bar: of every training timestep.
    steps: from `timesteps`.
    prediction: what the network outputs: `eps`, `v` or `x0`.
    final_alpha_bar: of the result; 1 returns x0_hat of the last step,
      `alpha_bar[0]` is Stable Diffusion's (`set_alpha_to_one=False`).
  """
  here = alpha_bar[steps].astype(np.float32)
  there = np.append(here[1:], np.float32(final_alpha_bar))

  def step(x: Latent, inputs: tuple[Array, Array, Array]):
    timestep, now, then = (jnp.full(x.shape[0], value) for value in inputs)
    output = denoise_fn(x, timestep)
    x0, eps = schedule.x0_and_noise(prediction, output, x, now)
    return schedule.diffuse(x0, eps, then), None

  inputs = (steps.astype(np.float32), here, there)
  sample, _ = jax.lax.scan(step, noise, inputs)
  return sample
