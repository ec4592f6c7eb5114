"""Deterministic samplers, guidance, and the timesteps they visit.

With alpha = sqrt(alpha_bar), sigma = sqrt(1 - alpha_bar), half the log of the
signal-to-noise ratio lambda = log(alpha / sigma), and h = lambda' - lambda, a
step from x at one timestep to x' at the next, less noisy one is

  x' = (sigma' / sigma) x + (alpha' - alpha sigma' / sigma) D
  D  = x0 + w (x0 - x0 of the step before)

for every method here. They differ in the slope w and in the first x:

  ddim     w = 0; x = noise. Song et al. 2010.02502, equation 12 with eta = 0.
  euler    w = 0; x = sigma noise, but noise where the first timestep is not the
           last one of training (diffusers' `init_noise_sigma`). Karras et al.
           2206.00364, algorithm 1 without its correction: Euler's step of
           x / alpha along sigma / alpha is the step above, so that this is ddim
           from another start.
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

Which timesteps a spacing has, and where it ends, is the method's as well: what
diffusers' DDIMScheduler, DPMSolverMultistepScheduler and EulerDiscreteScheduler
have with Stable Diffusion's settings. Timesteps between two of training (those
of euler with `linspace`) have the sigma / alpha between theirs.
"""

from typing import Any, Callable, Mapping, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int
import numpy as np

from odin_jax.diffusion import schedule

Latent = Float[Array, 'b h w c']
DenoiseFn = Callable[[Latent, Float[Array, 'b']], Latent]
Timesteps = Int[np.ndarray, 'n'] | Float[np.ndarray, 'n']
# (number of steps, T) -> timesteps, noisiest first.
Spacing = Callable[[int, int], np.ndarray]
# Shorter trajectories of dpm++2m end with a step of first order.
_FEW_STEPS = 15


def _trailing(num_steps: int, num_timesteps: int) -> np.ndarray:
  ends = np.arange(num_steps, 0, -1) * (num_timesteps / num_steps)
  return np.round(ends) - 1


def _leading(num_steps: int, num_timesteps: int) -> np.ndarray:
  steps = np.arange(num_steps)[::-1] * (num_timesteps // num_steps)
  return steps + min(1, num_timesteps - 1 - steps[0])


def _leading_from_0(num_steps: int, num_timesteps: int) -> np.ndarray:
  return np.arange(num_steps)[::-1] * (num_timesteps // num_steps)


def _zero123(num_steps: int, num_timesteps: int) -> np.ndarray:
  steps = np.arange(0, num_timesteps, num_timesteps // num_steps) + 1
  return steps[:-1][::-1]


def _linspace(num_steps: int, num_timesteps: int) -> np.ndarray:
  return np.round(np.linspace(0, num_timesteps - 1, num_steps + 1))[:0:-1]


def _leading_inside(num_steps: int, num_timesteps: int) -> np.ndarray:
  return _leading(num_steps + 1, num_timesteps)[:-1]


def _leading_inside_from_0(num_steps: int, num_timesteps: int) -> np.ndarray:
  return _leading_from_0(num_steps + 1, num_timesteps)[:-1]


def _linspace_to_zero(num_steps: int, num_timesteps: int) -> np.ndarray:
  # diffusers rounds them to float32, which is what the network is told.
  ends = np.linspace(0, num_timesteps - 1, num_steps, dtype=np.float32)
  return ends[::-1] if num_steps > 1 else ends[:0]


SPACINGS: dict[str, Spacing] = {
  'trailing': _trailing,
  'leading': _leading,
  'leading-from-0': _leading_from_0,
  'zero123': _zero123,
  'linspace': _linspace,
}


def timesteps(
  num_steps: int, num_timesteps: int, *, spacing: str, kind: str = 'ddim'
) -> Timesteps:
  """Timesteps of a trajectory, noisiest first.

  Args:
    num_steps: steps of the sampler, at most `num_timesteps`.
    num_timesteps: T.
    spacing: `trailing` starts at T - 1, where training saw pure noise;
      `leading` is 1, 1 + T // n, ... as Stable Diffusion's DDIM has it (n = T
      starts at 0), and `leading-from-0` one less; `zero123` is that without its noisiest step, which the
      DDIM loop of Zero-1-to-3 drops (`ddim_sampling` with `t_start=-1` in
      https://github.com/cvlab-columbia/zero123, ldm/models/diffusion/ddim.py):
      n - 1 steps, or as many more as 1 + T // n, ... has where n does not
      divide T; `linspace` is n + 1 equal parts of 0..T - 1 without 0, rounded,
      as DPM-Solver++ has it.
    kind: of the sampler: dpm++2m has the `leading` steps of n + 1 without 1,
      euler has `linspace` as n numbers from T - 1 to 0, not rounded.

  Raises:
    ValueError: an unknown spacing, or one without that many different steps.
  """
  if spacing not in SPACINGS:
    raise ValueError(f'spacing {spacing!r} is none of {tuple(SPACINGS)}')
  if not 1 <= num_steps <= num_timesteps:
    raise ValueError(f'num_steps {num_steps} is outside 1..{num_timesteps}')
  own = SAMPLERS[kind].spacings if kind in SAMPLERS else {}
  steps = own.get(spacing, SPACINGS[spacing])(num_steps, num_timesteps)
  whole = np.all(steps == np.round(steps))
  steps = steps.astype(np.int32 if whole else np.float64)
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
    slope: alpha_bar of a trajectory, its end included -> w of every step.
    starts_at_sigma: the spacings whose noise is scaled by sigma at first.
    ends_with_noise: the spacings that end at the noise of the first timestep
      of training; the others end without noise.
    spacings: its own in place of those of `SPACINGS`.
  """

  slope: Callable[[np.ndarray], np.ndarray]
  starts_at_sigma: tuple[str, ...] = ()
  ends_with_noise: tuple[str, ...] = ()
  spacings: Mapping[str, Spacing] = {}


SAMPLERS = {
  # Stable Diffusion's DDIM has `set_alpha_to_one=False`.
  'ddim': Method(
    _no_slope, ends_with_noise=('leading', 'leading-from-0', 'zero123')
  ),
  'dpm++2m': Method(
    _two_step_slope,
    spacings={
      'leading': _leading_inside,
      'leading-from-0': _leading_inside_from_0,
    },
  ),
  'euler': Method(
    _no_slope,
    starts_at_sigma=('trailing', 'linspace'),
    spacings={'linspace': _linspace_to_zero},
  ),
}


def final_alpha_bar(
  kind: str,
  spacing: str,
  alpha_bar: Float[np.ndarray, 't'],
  *,
  set_alpha_to_one: bool | None = None,
) -> float:
  """alpha_bar of the result of a sampler with a spacing.

  Args:
    kind: of the sampler.
    spacing: of its timesteps.
    alpha_bar: of every training timestep.
    set_alpha_to_one: what diffusers' DDIM calls so, whatever the spacing; None:
      as the spacing has it.
  """
  noisy = spacing in SAMPLERS[kind].ends_with_noise
  if kind == 'ddim' and set_alpha_to_one is not None:
    noisy = not set_alpha_to_one
  return float(alpha_bar[0]) if noisy else 1.0


class _Step(NamedTuple):
  """Factors of a step; fields are scalars or, of a trajectory, [n]."""

  timestep: Array  # what the network is told
  x_in_x0: Array
  output_in_x0: Array
  x_in_next: Array
  x0_in_next: Array
  slope: Array


def _alpha_bar_at(
  alpha_bar: Float[np.ndarray, 't'], steps: Timesteps
) -> Float[np.ndarray, 'n']:
  """alpha_bar of timesteps, which may lie between those of training."""
  if np.issubdtype(steps.dtype, np.integer):
    return alpha_bar[steps]
  before = np.floor(steps).astype(int)
  after = np.ceil(steps).astype(int)
  with np.errstate(divide='ignore'):
    spread = np.sqrt((1 - alpha_bar) / alpha_bar)
  share = steps - before
  # Infinite where nothing of the signal is left; there only whole steps go.
  between = np.where(share > 0, spread[after] - spread[before], 0)
  return 1 / (1 + np.square(spread[before] + share * between))


def _trajectory(
  method: Method,
  alpha_bar: Float[np.ndarray, 't'],
  steps: Timesteps,
  prediction: str,
  final_alpha_bar: float,
) -> _Step:
  """Factors of every step, worked out in float64."""
  path = np.append(_alpha_bar_at(alpha_bar, steps), final_alpha_bar)
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
  steps: Timesteps,
  prediction: str,
  final_alpha_bar: float = 1.0,
  spacing: str = 'trailing',
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
    spacing: of the steps, by which euler scales the noise.

  Raises:
    ValueError: an unknown kind or prediction; steps that do not descend; eps
      where `alpha_bar` of the first step is 0.
  """
  if kind not in SAMPLERS:
    raise ValueError(f'sampler {kind!r} is none of {tuple(SAMPLERS)}')
  if not len(steps) or np.any(np.diff(steps) >= 0):
    raise ValueError(f'steps {steps} do not go from much noise to little')
  method = SAMPLERS[kind]
  first = _alpha_bar_at(alpha_bar, steps[:1])[0]
  scaled = spacing in method.starts_at_sigma
  start = np.float32(np.sqrt(1 - first) if scaled else 1)

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
