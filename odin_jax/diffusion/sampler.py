"""Deterministic samplers, guidance, and the timesteps they visit.

With alpha = sqrt(alpha_bar), sigma = sqrt(1 - alpha_bar), half the log of the
signal-to-noise ratio lambda = log(alpha / sigma), and h = lambda' - lambda, a
step from x at one timestep to x' at the next, less noisy one is

  x' = (sigma' / sigma) x + (alpha' - alpha sigma' / sigma) D
  D  = x0 + w (x0 - x0 of the step before)

for every method here. They differ in the slope w and in the first x:

  ddim     w = 0; x = noise. Song et al. 2010.02502, equation 12 with eta = 0.
  euler    w = 0; x = sigma noise. Karras et al. 2206.00364, algorithm 1 without
           its correction: Euler's step of x / alpha along sigma / alpha is the
           step above, so that this is ddim from another start.
  dpm++2m  w = h / (2 h of the step before); x = noise. DPM-Solver++(2M), Lu et
           al. 2211.01095, algorithm 2. The first step has w = 0, and so has
           the last one if it ends without noise (h is infinite there) or if
           there are fewer than 15 steps, where the extrapolation is unstable
           (`lower_order_final` of the authors' code and of diffusers).

The form above never divides by alpha: where a schedule of zero terminal SNR
starts with alpha = 0, each method takes the limit of its step. Nothing is
clipped (diffusers puts alpha_bar = 2^-24 there for Euler and DPM-Solver++). In
the limit h of the first step is infinite, so the second step of dpm++2m has
w = 0 too.

Our own, since those of diffusers are torch: here all steps are one scan of a
compiled function, on whatever devices the model is on. That the samples are the
same is tested (tests/odin_jax/diffusion/test_sampler.py).
"""

from typing import Any, Callable, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int
import numpy as np

from odin_jax.diffusion import schedule

Latent = Float[Array, 'b h w c']
DenoiseFn = Callable[[Latent, Float[Array, 'b']], Latent]
# Shorter trajectories of dpm++2m end with a step of first order.
_FEW_STEPS = 15


def _trailing(num_steps: int, num_timesteps: int) -> np.ndarray:
  ends = np.arange(num_steps, 0, -1) * (num_timesteps / num_steps)
  return np.round(ends) - 1


def _leading(num_steps: int, num_timesteps: int) -> np.ndarray:
  steps = np.arange(num_steps)[::-1] * (num_timesteps // num_steps)
  return steps + min(1, num_timesteps - 1 - steps[0])


def _zero123(num_steps: int, num_timesteps: int) -> np.ndarray:
  steps = np.arange(0, num_timesteps, num_timesteps // num_steps) + 1
  return steps[:-1][::-1]


def _linspace(num_steps: int, num_timesteps: int) -> np.ndarray:
  return np.round(np.linspace(0, num_timesteps - 1, num_steps + 1))[:0:-1]


SPACINGS: dict[str, Callable[[int, int], np.ndarray]] = {
  'trailing': _trailing,
  'leading': _leading,
  'zero123': _zero123,
  'linspace': _linspace,
}


def timesteps(
  num_steps: int, num_timesteps: int, *, spacing: str
) -> Int[np.ndarray, 'n']:
  """Timesteps of a trajectory, noisiest first.

  Args:
    num_steps: steps of the sampler, at most `num_timesteps`.
    num_timesteps: T.
    spacing: `trailing` starts at T - 1, where training saw pure noise;
      `leading` is 1, 1 + T // n, ... as Stable Diffusion's DDIM has it (n = T
      starts at 0); `zero123` is that without its noisiest step, which the
      DDIM loop of Zero-1-to-3 drops (`ddim_sampling` with `t_start=-1` in
      https://github.com/cvlab-columbia/zero123, ldm/models/diffusion/ddim.py):
      n - 1 steps, or as many more as 1 + T // n, ... has where n does not
      divide T; `linspace` is n + 1 equal parts of 0..T - 1 without 0, rounded,
      as DPM-Solver++ has it.

  Raises:
    ValueError: an unknown spacing, or one without that many different steps.
  """
  if spacing not in SPACINGS:
    raise ValueError(f'spacing {spacing!r} is none of {tuple(SPACINGS)}')
  if not 1 <= num_steps <= num_timesteps:
    raise ValueError(f'num_steps {num_steps} is outside 1..{num_timesteps}')
  steps = SPACINGS[spacing](num_steps, num_timesteps).astype(np.int32)
  if not len(steps) or np.any(np.diff(steps) >= 0):
    raise ValueError(
      f'spacing {spacing!r} has no {num_steps} different steps out of '
      f'{num_timesteps}'
    )
  return steps


def _interleave(first: Any, second: Any) -> Any:
  """Rows of two trees in turn: a device keeps the rows of its examples."""
  return jax.tree.map(
    lambda a, b: jnp.stack([a, b], axis=1).reshape(2 * len(a), *a.shape[1:]),
    first,
    second,
  )


def guided(
  denoise_fn: Callable[[Latent, Float[Array, 'b'], Any], Latent],
  condition: Any,
  null: Any,
  *,
  guidance: float,
  rescale: float = 0.0,
) -> DenoiseFn:
  """Classifier-free guidance (Ho and Salimans 2207.12598) by one call.

  The network sees a batch of 2 b, in which each example with its condition is
  followed by the same example with the null condition. Guidance acts on what
  the network outputs, whether eps, v or x0.

  Args:
    denoise_fn: (x, timestep, condition) -> the network's output, each with
      the same number of rows.
    condition: a tree of arrays with b rows.
    null: the same tree of the null condition.
    guidance: scale; 1 is none, and leaves out `null`.
    rescale: share of the output that gets the standard deviation, per example,
      of the conditional output (Lin et al. 2305.08891, equations 14 to 16).
  """
  if guidance == 1.0:
    return lambda x, timestep: denoise_fn(x, timestep, condition)
  both = _interleave(condition, null)

  def denoise(x: Latent, timestep: Float[Array, 'b']) -> Latent:
    inputs = _interleave((x, timestep), (x, timestep))
    output = denoise_fn(*inputs, both).astype(jnp.float32)
    pairs = output.reshape(len(x), 2, *x.shape[1:])
    conditional, unconditional = pairs[:, 0], pairs[:, 1]
    mixed = unconditional + guidance * (conditional - unconditional)
    if rescale:
      spread = _spread(conditional) / _spread(mixed)
      mixed *= rescale * spread + (1 - rescale)
    return mixed

  return denoise


def _spread(x: Latent) -> Float[Array, 'b 1 1 1']:
  return jnp.std(x, axis=(1, 2, 3), keepdims=True)


def _no_slope(alpha_bar: Float[np.ndarray, 'm']) -> Float[np.ndarray, 'n']:
  return np.zeros(len(alpha_bar) - 1)


def _two_step_slope(
  alpha_bar: Float[np.ndarray, 'm'],
) -> Float[np.ndarray, 'n']:
  # Infinite where there is no signal or no noise; undefined ratios are of a
  # last step that ends without noise.
  with np.errstate(divide='ignore', invalid='ignore'):
    h = np.diff(np.log(alpha_bar) - np.log1p(-alpha_bar)) / 2
    slope = np.append(0, h[1:] / h[:-1] / 2)
  if alpha_bar[-1] == 1 or len(slope) < _FEW_STEPS:
    slope[-1] = 0
  return slope


class Method(NamedTuple):
  """What sets a sampler apart: see the top of this file.

  Attributes:
    start: alpha_bar of the first timestep -> scale of the noise.
    slope: alpha_bar of a trajectory, its end included -> w of every step.
  """

  start: Callable[[float], float]
  slope: Callable[[np.ndarray], np.ndarray]


SAMPLERS = {
  'ddim': Method(start=lambda alpha_bar: 1.0, slope=_no_slope),
  'dpm++2m': Method(start=lambda alpha_bar: 1.0, slope=_two_step_slope),
  'euler': Method(
    start=lambda alpha_bar: np.sqrt(1 - alpha_bar), slope=_no_slope
  ),
}


class _Step(NamedTuple):
  """Factors of a step; fields are scalars or, of a trajectory, [n]."""

  timestep: Array  # what the network is told
  x_in_x0: Array
  output_in_x0: Array
  x_in_next: Array
  x0_in_next: Array
  slope: Array


def _trajectory(
  method: Method,
  alpha_bar: Float[np.ndarray, 't'],
  steps: Int[np.ndarray, 'n'],
  prediction: str,
  final_alpha_bar: float,
) -> _Step:
  """Factors of every step, worked out in float64."""
  path = np.append(alpha_bar[steps], final_alpha_bar)
  signal, sigma = np.sqrt(path), np.sqrt(1 - path)
  shrink = sigma[1:] / sigma[:-1]
  factors = _Step(
    steps,
    *schedule.x0_weights(prediction, path[:-1]),
    shrink,
    signal[1:] - signal[:-1] * shrink,
    method.slope(path),
  )
  return _Step(*(np.asarray(factor, np.float32) for factor in factors))


def sample(
  kind: str,
  denoise_fn: DenoiseFn,
  noise: Latent,
  *,
  alpha_bar: Float[np.ndarray, 't'],
  steps: Int[np.ndarray, 'n'],
  prediction: str,
  final_alpha_bar: float = 1.0,
) -> Latent:
  """The sample that `noise` leads to; deterministic, in float32.

  Args:
    kind: a key of `SAMPLERS`.
    denoise_fn: (x_t, timestep per example) -> the network's output.
    noise: standard normal; the method scales it.
    alpha_bar: of every training timestep.
    steps: from `timesteps`.
    prediction: what the network outputs: `eps`, `v` or `x0`.
    final_alpha_bar: of the result; 1 returns x0 of the last step (diffusers'
      `final_sigmas_type='zero'`), `alpha_bar[0]` is what Stable Diffusion's
      DDIM has (`set_alpha_to_one=False`, `final_sigmas_type='sigma_min'`).

  Raises:
    ValueError: an unknown kind or prediction; steps that do not descend; eps
      where `alpha_bar` of the first step is 0.
  """
  if kind not in SAMPLERS:
    raise ValueError(f'sampler {kind!r} is none of {tuple(SAMPLERS)}')
  if not len(steps) or np.any(np.diff(steps) >= 0):
    raise ValueError(f'steps {steps} do not go from much noise to little')
  method = SAMPLERS[kind]
  start = np.float32(method.start(alpha_bar[steps[0]]))

  def advance(carry: tuple[Latent, Latent], step: _Step):
    x, before = carry
    output = denoise_fn(x, jnp.full(x.shape[0], step.timestep))
    x0 = step.x_in_x0 * x + step.output_in_x0 * output
    direction = x0 + step.slope * (x0 - before)
    return (step.x_in_next * x + step.x0_in_next * direction, x0), None

  x = start * noise.astype(jnp.float32)
  (x, _), _ = jax.lax.scan(
    advance,
    (x, jnp.zeros_like(x)),
    _trajectory(method, alpha_bar, steps, prediction, final_alpha_bar),
  )
  return x
