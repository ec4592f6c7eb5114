"""Schedules and sampler against diffusers; optimum of the masked loss."""

import warnings

import diffusers
import hypothesis
from hypothesis import strategies
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from odin_jax.diffusion import loss, sampler, schedule

STABLE_DIFFUSION = dict(
  num_train_timesteps=1000,
  beta_start=0.00085,
  beta_end=0.012,
  beta_schedule='scaled_linear',
)


def diffusers_ddim(**settings):
  settings = (
    dict(clip_sample=False, set_alpha_to_one=False, steps_offset=1) | settings
  )
  return diffusers.DDIMScheduler(**STABLE_DIFFUSION, **settings)


@pytest.mark.parametrize(
  'kind, theirs', [('scaled_linear',) * 2, ('cosine', 'squaredcos_cap_v2')]
)
def test_schedule_is_that_of_diffusers(kind, theirs):
  reference = diffusers.DDIMScheduler(
    **STABLE_DIFFUSION | {'beta_schedule': theirs}
  )
  np.testing.assert_allclose(
    schedule.betas(kind, 1000), reference.betas.numpy(), atol=1e-6
  )
  np.testing.assert_allclose(
    schedule.alpha_bars(kind, 1000, zero_terminal_snr=False),
    reference.alphas_cumprod.numpy(),
    atol=1e-6,
  )


def test_zero_terminal_snr_is_that_of_diffusers():
  reference = diffusers_ddim(rescale_betas_zero_snr=True)
  ours = schedule.alpha_bars('scaled_linear', 1000, zero_terminal_snr=True)
  np.testing.assert_allclose(
    ours[:-1], reference.alphas_cumprod.numpy()[:-1], atol=1e-6
  )
  assert ours[-1] == 0


@hypothesis.given(
  prediction=strategies.sampled_from(schedule.PREDICTIONS),
  alpha_bar=strategies.floats(0.05, 0.95),
)
@hypothesis.settings(deadline=None, max_examples=30)
def test_prediction_gives_signal_and_noise_back(prediction, alpha_bar):
  x0, noise = jax.random.normal(jax.random.key(0), (2, 3, 4, 4, 2))
  level = jnp.full(3, alpha_bar, jnp.float32)
  x_t = schedule.diffuse(x0, noise, level)
  output = schedule.target(prediction, x0, noise, level)
  again = schedule.x0_and_noise(prediction, output, x_t, level)
  np.testing.assert_allclose(again[0], x0, atol=1e-4)
  np.testing.assert_allclose(again[1], noise, atol=1e-4)


@hypothesis.given(
  snr=strategies.floats(0.01, 100), gamma=strategies.floats(0.5, 10)
)
@hypothesis.settings(deadline=None, max_examples=30)
def test_min_snr_weighs_the_same_error_of_x0(snr, gamma):
  alpha_bar = jnp.array([snr / (1 + snr)], jnp.float32)
  x0, noise = jnp.zeros((1, 2)), jnp.ones((1, 2))
  x_t = schedule.diffuse(x0, noise, alpha_bar)
  weighted = []
  for prediction in schedule.PREDICTIONS:
    right = schedule.target(prediction, x0, noise, alpha_bar)
    # The output of each kind that implies x0 = 0.1 with the same x_t.
    sigma = jnp.sqrt(1 - alpha_bar)
    wrong_noise = (x_t - jnp.sqrt(alpha_bar) * 0.1) / sigma
    wrong = schedule.target(
      prediction, jnp.full((1, 2), 0.1), wrong_noise, alpha_bar
    )
    error = jnp.mean((wrong - right) ** 2)
    weight = schedule.min_snr_weight(prediction, alpha_bar, gamma)[0]
    weighted.append(float(weight * error))
  expected = min(snr, gamma) * 0.01
  np.testing.assert_allclose(weighted, expected, rtol=2e-3)


@pytest.mark.parametrize('power', [1.0, 2.0])
def test_timesteps_follow_their_density(power):
  timesteps = np.asarray(
    schedule.sample_timesteps(jax.random.key(0), 4000, 1000, power=power)
  )
  assert timesteps.min() >= 0 and timesteps.max() == 999
  for quantile in (0.1, 0.5, 0.9):
    share = np.mean(timesteps < 1000 * quantile ** (1 / power))
    assert abs(share - quantile) < 0.002


@pytest.mark.parametrize('prediction', schedule.PREDICTIONS)
@pytest.mark.parametrize('num_steps', [1, 7, 50])
def test_ddim_trajectory_is_that_of_diffusers(prediction, num_steps):
  weights = np.random.default_rng(0).normal(0, 0.3, (4, 4)).astype(np.float32)
  noise = np.random.default_rng(1).normal(size=(2, 3, 3, 4)).astype(np.float32)

  scheduler = diffusers_ddim(
    prediction_type={'eps': 'epsilon', 'v': 'v_prediction', 'x0': 'sample'}[
      prediction
    ]
  )
  scheduler.set_timesteps(num_steps)
  x = torch.tensor(noise)
  for t in scheduler.timesteps:
    output = torch.tanh(x @ torch.tensor(weights)) * (1 + float(t) / 1000)
    with warnings.catch_warnings():
      warnings.simplefilter('ignore')
      x = scheduler.step(output, t, x, eta=0.0).prev_sample

  alpha_bar = schedule.alpha_bars(
    'scaled_linear', 1000, zero_terminal_snr=False
  )
  steps = sampler.timesteps(num_steps, 1000, spacing='leading')
  np.testing.assert_array_equal(steps, scheduler.timesteps.numpy())
  ours = sampler.ddim(
    lambda x, t: jnp.tanh(x @ weights) * (1 + t[:, None, None, None] / 1000),
    jnp.asarray(noise),
    alpha_bar=alpha_bar,
    steps=steps,
    prediction=prediction,
    final_alpha_bar=float(alpha_bar[0]),
  )
  np.testing.assert_allclose(ours, x.numpy(), rtol=1e-4, atol=1e-4)


def test_trailing_steps_start_where_nothing_is_left():
  steps = sampler.timesteps(10, 1000, spacing='trailing')
  np.testing.assert_array_equal(steps, np.arange(999, 0, -100))


@pytest.mark.parametrize('prediction', ['v', 'x0'])
@pytest.mark.parametrize('num_steps', [1, 10])
def test_perfect_denoiser_samples_the_truth(prediction, num_steps):
  alpha_bar = schedule.alpha_bars('cosine', 1000, zero_terminal_snr=True)
  truth = jax.random.normal(jax.random.key(0), (2, 4, 4, 3))

  def denoise(x, timestep):
    level = jnp.asarray(alpha_bar, jnp.float32)[timestep.astype(int)]
    spread = level[:, None, None, None]
    noise = (x - jnp.sqrt(spread) * truth) / jnp.sqrt(1 - spread)
    return schedule.target(prediction, truth, noise, level)

  sample = sampler.ddim(
    denoise,
    jax.random.normal(jax.random.key(1), truth.shape),
    alpha_bar=alpha_bar,
    steps=sampler.timesteps(num_steps, 1000, spacing='trailing'),
    prediction=prediction,
  )
  np.testing.assert_allclose(sample, truth, atol=1e-4)


def test_gaussian_is_sampled_with_its_own_spread():
  """The exact denoiser of N(1, 0.5^2) leads noise to N(1, 0.5^2)."""
  alpha_bar = schedule.alpha_bars('cosine', 1000, zero_terminal_snr=True)

  def denoise(x, timestep):
    level = jnp.asarray(alpha_bar, jnp.float32)[timestep.astype(int)]
    a = level[:, None, None, None]
    gain = jnp.sqrt(a) * 0.25 / (a * 0.25 + 1 - a)
    return 1.0 + gain * (x - jnp.sqrt(a))

  sample = sampler.ddim(
    denoise,
    jax.random.normal(jax.random.key(0), (1, 100, 100, 1)),
    alpha_bar=alpha_bar,
    steps=sampler.timesteps(200, 1000, spacing='trailing'),
    prediction='x0',
  )
  assert abs(float(sample.mean()) - 1) < 0.03
  assert abs(float(sample.std()) - 0.5) < 0.02


def test_guidance_extrapolates_from_the_unconditional():
  guided = sampler.guided(lambda x, t: 3 * x, lambda x, t: x, 2.0)
  x = jnp.ones((1, 1, 1, 1))
  assert float(guided(x, jnp.zeros(1))[0, 0, 0, 0]) == 5.0

  def never(x, t):
    raise AssertionError('guidance 1 needs no unconditional prediction')

  conditional = sampler.guided(lambda x, t: 3 * x, never, 1.0)
  assert float(conditional(x, jnp.zeros(1))[0, 0, 0, 0]) == 3.0


@pytest.mark.parametrize(
  'call',
  [
    lambda: schedule.betas('linear', 10),
    lambda: sampler.timesteps(11, 10, spacing='leading'),
    lambda: sampler.timesteps(5, 10, spacing='middle'),
  ],
)
def test_unknown_names_are_errors(call):
  with pytest.raises(ValueError):
    call()


def _optimal_mask(error, mask_lambda, auxiliary):
  """M that minimises the loss of one pixel, by search."""
  logits = jnp.linspace(-15, 15, 60_001)
  losses = jax.vmap(
    lambda logit: loss.masked_loss(
      jnp.full((1, 1, 1), error),
      jnp.full((1, 1, 1), logit),
      mask_lambda=mask_lambda,
      auxiliary=auxiliary,
    )[0]
  )(logits)
  return float(jax.nn.sigmoid(logits[jnp.argmin(losses)]))


@pytest.mark.parametrize('error', [0.1, 0.9, 1.0, 2.0, 30.0])
@pytest.mark.parametrize('mask_lambda', [0.5, 1.0])
def test_best_mask_is_lambda_over_error(error, mask_lambda):
  best = _optimal_mask(error, mask_lambda, 'log')
  assert best == pytest.approx(min(1.0, mask_lambda / error), abs=2e-3)


def test_best_mask_of_the_square_form():
  # d/dM (M e + lambda (1 - M)^2) = 0 at M = 1 - e / (2 lambda).
  assert _optimal_mask(0.4, 1.0, 'square') == pytest.approx(0.8, abs=1e-3)
  assert _optimal_mask(3.0, 1.0, 'square') < 1e-3


def test_mask_is_inert_for_large_lambda_and_collapses_for_small():
  assert _optimal_mask(1.0, 100.0, 'log') > 0.999
  assert _optimal_mask(1.0, 1e-3, 'log') < 2e-3


def test_loss_is_per_example_and_finite_at_both_ends():
  error = jnp.ones((2, 4, 4))
  logits = jnp.stack([jnp.full((4, 4), 200.0), jnp.full((4, 4), -200.0)])
  losses = loss.masked_loss(error, logits, mask_lambda=0.5)
  np.testing.assert_allclose(losses, [1.0, 100.0], rtol=1e-5)
