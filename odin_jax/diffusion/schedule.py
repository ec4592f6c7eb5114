"""Noise schedules and what a network may be asked to predict.

With alpha_bar_t the share of signal power left at timestep t = 0..T-1,

  x_t = sqrt(alpha_bar_t) x_0 + sqrt(1 - alpha_bar_t) eps        (diffusion)
  v_t = sqrt(alpha_bar_t) eps - sqrt(1 - alpha_bar_t) x_0        (velocity)

so that any one of x_0, eps, v together with x_t gives the other two. Sources:
Ho et al. 2006.11239, Nichol and Dhariwal 2102.09672 (cosine), Salimans and Ho
2202.00512 (velocity), Lin et al. 2305.08891 (zero terminal SNR).
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int
import numpy as np

PREDICTIONS = ('eps', 'v', 'x0')
SCHEDULES = ('scaled_linear', 'cosine')
Latent = Float[Array, 'b *shape']
_NO_SIGNAL = (
  'eps says nothing about x0 where alpha_bar is 0 (zero terminal SNR); '
  'predict v or x0'
)


def _unknown(prediction: str) -> str:
  return f'prediction {prediction!r} is none of {PREDICTIONS}'


def check(prediction: str, *, zero_terminal_snr: bool) -> None:
  """Checks that the schedule leaves what the prediction needs.

  Raises:
    ValueError: an unknown prediction; eps with zero terminal SNR, of which
      2305.08891, section 3.2, says why: its last timestep has nothing to learn
      and no step can start there.
  """
  if prediction not in PREDICTIONS:
    raise ValueError(_unknown(prediction))
  if prediction == 'eps' and zero_terminal_snr:
    raise ValueError(_NO_SIGNAL)


def betas(kind: str, num_timesteps: int) -> Float[np.ndarray, 't']:
  """Variances added at every timestep, in float64.

  Args:
    kind: `scaled_linear` (linear in sqrt(beta) from 0.00085 to 0.012, as
      Stable Diffusion) or `cosine`.
    num_timesteps: T.
  """
  if kind == 'scaled_linear':
    return np.linspace(0.00085**0.5, 0.012**0.5, num_timesteps) ** 2
  if kind == 'cosine':
    steps = np.arange(num_timesteps + 1) / num_timesteps
    alpha_bar = np.cos((steps + 0.008) / 1.008 * np.pi / 2) ** 2
    return np.minimum(1 - alpha_bar[1:] / alpha_bar[:-1], 0.999)
  raise ValueError(f'schedule {kind!r} is none of {SCHEDULES}')


def alpha_bars(
  kind: str, num_timesteps: int, *, zero_terminal_snr: bool
) -> Float[np.ndarray, 't']:
  """alpha_bar of every timestep, in float64.

  Args:
    kind: see `betas`.
    num_timesteps: T.
    zero_terminal_snr: shift and scale sqrt(alpha_bar) so that nothing of the
      signal is left at the last timestep (2305.08891, algorithm 1). Not for
      eps: see `check`.
  """
  alpha_bar = np.cumprod(1 - betas(kind, num_timesteps))
  if zero_terminal_snr:
    root = np.sqrt(alpha_bar)
    alpha_bar = ((root - root[-1]) * root[0] / (root[0] - root[-1])) ** 2
  return alpha_bar


def _like(values: Array, x: Array) -> Array:
  return jnp.reshape(values, values.shape + (1,) * (x.ndim - values.ndim))


def diffuse(x0: Latent, noise: Latent, alpha_bar: Float[Array, 'b']) -> Latent:
  """`x_t`."""
  a = _like(alpha_bar, x0)
  return jnp.sqrt(a) * x0 + jnp.sqrt(1 - a) * noise


def target(
  prediction: str, x0: Latent, noise: Latent, alpha_bar: Float[Array, 'b']
) -> Latent:
  """What the network should output: eps, v or x0."""
  a = _like(alpha_bar, x0)
  if prediction == 'eps':
    return noise
  if prediction == 'v':
    return jnp.sqrt(a) * noise - jnp.sqrt(1 - a) * x0
  if prediction == 'x0':
    return x0
  raise ValueError(_unknown(prediction))


def x0_weights(
  prediction: str, alpha_bar: Float[np.ndarray, '*n']
) -> tuple[Float[np.ndarray, '*n'], Float[np.ndarray, '*n']]:
  """The p and q of `x_0 = p x_t + q output`, in float64.

  Raises:
    ValueError: eps, and an alpha_bar of zero: all of x_t is noise then, and
      eps says nothing about x_0.
  """
  signal, sigma = np.sqrt(alpha_bar), np.sqrt(1 - alpha_bar)
  if prediction == 'eps':
    if np.any(alpha_bar == 0):
      raise ValueError(_NO_SIGNAL)
    return 1 / signal, -sigma / signal
  if prediction == 'v':
    return signal, -sigma
  if prediction == 'x0':
    return np.zeros_like(signal), np.ones_like(signal)
  raise ValueError(_unknown(prediction))


def min_snr_weight(
  prediction: str, alpha_bar: Float[Array, 'b'], gamma: float
) -> Float[Array, 'b']:
  """Weight of squared errors that caps their weight in x_0 at `gamma`.

  Hang et al. 2303.09556: min(SNR, gamma) on the error of x_0, written for the
  error of what is predicted. Where nothing is left of the signal (SNR = 0)
  that is 1 for eps and 0 for v and x_0: under a schedule of zero terminal SNR
  the last timestep is then not trained.
  """
  snr = alpha_bar / (1 - alpha_bar)
  if prediction == 'eps':
    return gamma / jnp.maximum(snr, gamma)
  if prediction == 'v':
    return jnp.minimum(snr, gamma) / (snr + 1)
  if prediction == 'x0':
    return jnp.minimum(snr, gamma)
  raise ValueError(_unknown(prediction))


def v_weight(alpha_bar: Float[Array, 'b'], most: float) -> Float[Array, 'b']:
  """Weight that makes squared errors of x_0 those of v, up to `most`.

  v = (sqrt(alpha_bar) x_t - x_0) / sqrt(1 - alpha_bar), so that the weight is
  SNR + 1 (Salimans and Ho 2202.00512, section 4): 1 where all is noise, and
  more where details are what is left to be found.
  """
  return jnp.minimum(1 / (1 - alpha_bar), most)


def sample_timesteps(
  key: Array,
  batch: int,
  num_timesteps: int,
  *,
  power: float,
  terminal_share: float = 0.0,
) -> Int[Array, 'b']:
  """Timesteps of a batch, one in each of `batch` equally likely intervals.

  Stratification lowers the variance of the loss (Kingma et al. 2107.00630).

  Args:
    key: random key.
    batch: number of timesteps.
    num_timesteps: T.
    power: the density grows as `t ** (power - 1)`: 1 is uniform, more favours
      high noise.
    terminal_share: of the batch at T - 1, where the network's best answer is
      the conditional mean; the others are drawn as said.
  """
  quantiles = (jnp.arange(batch) + jax.random.uniform(key)) / batch
  others = jnp.minimum(quantiles / max(1 - terminal_share, 1e-6), 1.0)
  timesteps = num_timesteps * others ** (1 / power)
  return jnp.clip(timesteps.astype(jnp.int32), 0, num_timesteps - 1)
