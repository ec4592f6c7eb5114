"""What a perfect sampler scores: a Gaussian whose posterior is known.

The source c is standard normal, the target x given c is N(m(c), S) with m
linear and S of many different variances. Its denoiser is known in closed form
and takes the place of the network; all else is the code that evaluation runs.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from odin_jax import predictors, scoring
from odin_jax.benchmarks import protocols
from odin_jax.diffusion import sampler, schedule
from odin_jax.shared import camera, posed_pair

SIDE_PX, NUM_PAIRS, NUM_TIMESTEPS = 12, 64, 1000
NUM_PIXELS = SIDE_PX * SIDE_PX * 3
# As the recipe of the demo has it.
ALPHA_BAR = schedule.alpha_bars('cosine', NUM_TIMESTEPS, zero_terminal_snr=True)
# In [-1, 1], as models see images; far enough from the ends to never clip.
DEVIATIONS = np.geomspace(0.06, 0.2, NUM_PIXELS)
TABLE = protocols.load('records')


@functools.cache
def directions():
  """An orthonormal basis of images: S is not diagonal in pixels."""
  generator = np.random.default_rng(0)
  return np.linalg.qr(generator.normal(size=(NUM_PIXELS, NUM_PIXELS)))[0]


def conditional_mean(source):
  """m of sources in [0, 1], in [-1, 1]: each pixel from its mirror image."""
  return 0.4 * (2 * source - 1)[:, :, ::-1]


class PerfectModel:
  """A predictor that samples with the exact denoiser.

  Args:
    num_steps: of the sampler.
    kind: of the sampler.
    prediction: what the denoiser gives.
  """

  protocol = {'predictor': 'perfect'}

  def __init__(self, num_steps, kind='ddim', prediction='v'):
    self._prediction = prediction
    steps = sampler.timesteps(
      num_steps, NUM_TIMESTEPS, spacing='trailing', kind=kind
    )
    self._sample = jax.jit(
      lambda mean, noise: sampler.sample(
        kind,
        functools.partial(self._denoise, mean),
        noise,
        alpha_bar=ALPHA_BAR,
        steps=steps,
        prediction=prediction,
      )
    )

  def predict(self, pairs, seeds):
    mean = conditional_mean(pairs.source / 255)
    noise = np.stack(
      [
        np.random.default_rng(seed).normal(size=mean.shape[1:])
        for seed in seeds
      ]
    )
    sampled = self._sample(
      jnp.asarray(mean, jnp.float32), jnp.asarray(noise, jnp.float32)
    )
    return (np.asarray(sampled) + 1) / 2

  def _denoise(self, mean, x, timestep):
    """E[x0 | x_t, c] = m + S sqrt(a) (a S + 1 - a)^-1 (x_t - sqrt(a) m)."""
    share = jnp.asarray(ALPHA_BAR, jnp.float32)[timestep.astype(int)]
    share = share[:, None]
    signal, basis = jnp.sqrt(share), jnp.asarray(directions(), jnp.float32)
    variance = jnp.asarray(DEVIATIONS, jnp.float32) ** 2
    flat_mean, flat = (a.reshape(len(a), -1) for a in (mean, x))
    gain = variance * signal / (share * variance + 1 - share)
    offset = ((flat - signal * flat_mean) @ basis) * gain
    x0 = flat_mean + offset @ basis.T
    eps = (flat - signal * x0) / jnp.sqrt(1 - share)
    output = {'x0': x0, 'v': signal * eps - jnp.sqrt(1 - share) * x0}
    return output[self._prediction].reshape(x.shape)


@pytest.fixture(scope='module')
def pairs():
  """Sources, and targets drawn from what is true of them."""
  generator = np.random.default_rng(1)
  shape = (NUM_PAIRS, SIDE_PX, SIDE_PX, 3)
  source = generator.normal(0.5, 0.1, shape).clip(0.1, 0.9)
  source = np.round(source * 255).astype(np.uint8)
  drawn = (generator.normal(size=(NUM_PAIRS, NUM_PIXELS)) * DEVIATIONS) @ (
    directions().T
  )
  target = conditional_mean(source / 255) + drawn.reshape(shape)
  assert np.abs(target).max() < 1
  return posed_pair.PosedPair(
    source=source,
    target=np.round((target + 1) / 2 * 255).astype(np.uint8),
    target2source=np.stack([camera.identity_pose()] * NUM_PAIRS),
    fov_deg=np.full(NUM_PAIRS, 90.0),
    median_depth=np.ones(NUM_PAIRS),
  )


def predicted(pairs, model, seed=2):
  seeds = np.random.default_rng(seed).integers(2**31 - 1, size=NUM_PAIRS)
  inputs = pairs._replace(target=None)
  return scoring.predict_all(model, inputs, seeds, batch_size=NUM_PAIRS)


def mean_psnr(scores):
  return np.mean([row['psnr'] for row in scores])


def error_db(images, pairs):
  """10 log10 of the mean squared error of all pairs together."""
  return 10 * np.log10(np.mean((images - pairs.target / 255) ** 2))


@pytest.fixture(scope='module')
def best(pairs):
  """Of the conditional mean itself."""
  return (conditional_mean(pairs.source / 255) + 1) / 2


# Of 64 pairs of 432 values, and of 500 steps, which lose 4 % of the variance.
TOLERANCE_DB = 0.15


@pytest.mark.parametrize(
  'kind, prediction', [('ddim', 'v'), ('ddim', 'x0'), ('dpm++2m', 'v')]
)
def test_a_sample_is_3_01_db_below_the_conditional_mean(
  pairs, best, kind, prediction
):
  samples = predicted(pairs, PerfectModel(500, kind, prediction))
  scores = [
    scoring.score(TABLE, images.astype(np.float32), pairs.target, None)
    for images in (samples, best)
  ]
  gap = mean_psnr(scores[1]) - mean_psnr(scores[0])
  assert gap == pytest.approx(10 * np.log10(2), abs=TOLERANCE_DB)
  assert error_db(samples, pairs) - error_db(best, pairs) == pytest.approx(
    3.01, abs=TOLERANCE_DB
  )
  # They are samples of N(m, S), not of something else as far from the truth.
  offset = 2 * (samples - best).reshape(NUM_PAIRS, -1) @ directions()
  ratio = np.mean(offset**2, axis=0) / DEVIATIONS**2
  thirds = [part.mean() for part in np.array_split(ratio, 3)]
  np.testing.assert_allclose(thirds, 1, atol=0.05)


@pytest.fixture(scope='module')
def four_samples(pairs):
  model = PerfectModel(500)
  return [predicted(pairs, model, seed) for seed in range(4)]


@pytest.mark.parametrize('count', [2, 4])
def test_the_mean_of_k_samples_errs_by_1_and_1_in_k(
  pairs, best, four_samples, count
):
  samples = four_samples[:count]
  scores = scoring.score_several(TABLE, samples, pairs.target, None)
  (one, *_) = each = [
    scoring.score(TABLE, images, pairs.target, None) for images in samples
  ]
  exact = scoring.score(TABLE, best.astype(np.float32), pairs.target, None)
  mean = mean_psnr(scores[f'mean_of_{count}'])
  assert mean_psnr(exact) - mean == pytest.approx(
    10 * np.log10(1 + 1 / count), abs=TOLERANCE_DB
  )
  assert mean - mean_psnr(one) == pytest.approx(
    10 * np.log10(2 / (1 + 1 / count)), abs=TOLERANCE_DB
  )
  # The best of k is the best of each pair, and a sample still.
  of_best = [row['psnr'] for row in scores[f'best_of_{count}']]
  psnr = np.array([[row['psnr'] for row in rows] for rows in each])
  np.testing.assert_array_equal(of_best, psnr.max(axis=0))
  assert mean_psnr(one) < np.mean(of_best) < mean


@pytest.mark.parametrize('prediction', ['v', 'x0'])
def test_one_step_is_the_conditional_mean(pairs, best, prediction):
  """With zero terminal SNR, where the first step sees nothing but noise."""
  model = PerfectModel(1, prediction=prediction)
  np.testing.assert_allclose(predicted(pairs, model), best, atol=1e-5)


def test_few_steps_are_between_a_mean_and_a_sample(pairs, best):
  """Ten steps of DDIM, as in the demo, lose much of the variance."""
  samples = predicted(pairs, PerfectModel(10))
  gap = error_db(samples, pairs) - error_db(best, pairs)
  # Measured: 1.33 dB.
  assert 0.8 < gap < 2.0


def test_trivial_predictors_are_further_off(pairs, best):
  scores = {
    name: mean_psnr(
      scoring.score(TABLE, predicted(pairs, baseline()), pairs.target, None)
    )
    for name, baseline in predictors.BASELINES.items()
    # They take more than pictures: poses and depth.
    if name not in ('sweep', 'warp')
  }
  exact = scoring.score(TABLE, best.astype(np.float32), pairs.target, None)
  assert max(scores.values()) < mean_psnr(exact)
