"""Schedules against diffusers; optimum and gradients of the masked loss."""

import diffusers
from diffusers import training_utils
import hypothesis
from hypothesis import strategies
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from odin_jax.diffusion import loss, schedule

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
  'kind, diffusers_kind',
  [('scaled_linear',) * 2, ('cosine', 'squaredcos_cap_v2')],
)
def test_schedule_is_that_of_diffusers(kind, diffusers_kind):
  reference = diffusers.DDIMScheduler(
    **STABLE_DIFFUSION | {'beta_schedule': diffusers_kind}
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
  alpha_bar = schedule.alpha_bars('scaled_linear', 1000, zero_terminal_snr=True)
  np.testing.assert_allclose(
    alpha_bar[:-1], reference.alphas_cumprod.numpy()[:-1], atol=1e-6
  )
  assert alpha_bar[-1] == 0


def test_stable_diffusion_keeps_some_signal_to_the_end():
  alpha_bar = schedule.alpha_bars(
    'scaled_linear', 1000, zero_terminal_snr=False
  )
  assert alpha_bar[-1] == pytest.approx(0.00466, abs=5e-6)
  assert alpha_bar[0] == pytest.approx(1 - 0.00085, abs=1e-12)


@hypothesis.given(
  prediction=strategies.sampled_from(schedule.PREDICTIONS),
  alpha_bar=strategies.floats(0.01, 0.999),
)
@hypothesis.settings(deadline=None, max_examples=30)
def test_prediction_gives_the_signal_back(prediction, alpha_bar):
  x0, noise = jax.random.normal(jax.random.key(0), (2, 3, 4, 4, 2))
  level = jnp.full(3, alpha_bar, jnp.float32)
  x_t = schedule.diffuse(x0, noise, level)
  output = schedule.target(prediction, x0, noise, level)
  of_x, of_output = schedule.x0_weights(prediction, np.array([alpha_bar]))
  again = of_x * x_t + of_output * output
  np.testing.assert_allclose(again, x0, atol=1e-4)


def test_eps_and_zero_terminal_snr_exclude_each_other():
  for prediction in schedule.PREDICTIONS:
    schedule.check(prediction, zero_terminal_snr=False)
  schedule.check('v', zero_terminal_snr=True)
  schedule.check('x0', zero_terminal_snr=True)
  with pytest.raises(ValueError, match='predict v or x0'):
    schedule.check('eps', zero_terminal_snr=True)
  with pytest.raises(ValueError, match='predict v or x0'):
    schedule.x0_weights('eps', np.array([0.5, 0.0]))


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


@pytest.mark.parametrize('zero_terminal_snr', [False, True])
@pytest.mark.parametrize('prediction', schedule.PREDICTIONS)
def test_min_snr_is_that_of_diffusers(prediction, zero_terminal_snr):
  """The weights of diffusers' examples/text_to_image/train_text_to_image.py."""
  if prediction == 'eps' and zero_terminal_snr:
    pytest.skip('no such training')
  reference = diffusers_ddim(rescale_betas_zero_snr=zero_terminal_snr)
  # diffusers leaves 2^-24, in float32 and hence not quite.
  reference.alphas_cumprod = torch.tensor(
    schedule.alpha_bars(
      'scaled_linear', 1000, zero_terminal_snr=zero_terminal_snr
    )
  )
  snr = training_utils.compute_snr(reference, torch.arange(1000)).numpy()
  divisor = {'eps': snr, 'v': snr + 1, 'x0': 1}[prediction]
  np.testing.assert_allclose(
    schedule.min_snr_weight(
      prediction, jnp.asarray(reference.alphas_cumprod.numpy()), 5.0
    ),
    np.minimum(snr, 5.0) / divisor,
    rtol=1e-3,
    atol=1e-7,
  )


def test_min_snr_is_finite_where_no_signal_is_left():
  nothing = jnp.zeros(1)
  for prediction, weight in [('eps', 1.0), ('v', 0.0), ('x0', 0.0)]:
    assert schedule.min_snr_weight(prediction, nothing, 5.0)[0] == weight


@pytest.mark.parametrize('power', [1.0, 2.0])
def test_timesteps_follow_their_density(power):
  timesteps = np.asarray(
    schedule.sample_timesteps(jax.random.key(0), 4000, 1000, power=power)
  )
  assert timesteps.min() >= 0 and timesteps.max() == 999
  for quantile in (0.1, 0.5, 0.9):
    share = np.mean(timesteps < 1000 * quantile ** (1 / power))
    assert abs(share - quantile) < 0.002


@pytest.mark.parametrize(
  'call',
  [
    lambda: schedule.betas('linear', 10),
    lambda: schedule.check('noise', zero_terminal_snr=False),
    lambda: schedule.x0_weights('noise', np.ones(1)),
    lambda: schedule.min_snr_weight('noise', jnp.ones(1), 5.0),
    lambda: schedule.target('noise', jnp.ones(1), jnp.ones(1), jnp.ones(1)),
    lambda: loss.masked_loss(
      jnp.ones((1, 1, 1)),
      jnp.ones((1, 1, 1)),
      mask_lambda=1.0,
      auxiliary='cube',
    ),
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
  losses = loss.masked_loss(error, logits, mask_lambda=0.5, auxiliary='log')
  np.testing.assert_allclose(losses, [1.0, 100.0], rtol=1e-5)


def _pixel_loss(auxiliary):
  """(error, logit, lambda) of one pixel -> its loss."""
  return lambda error, logit, mask_lambda: loss.masked_loss(
    jnp.reshape(error, (1, 1, 1)),
    jnp.reshape(logit, (1, 1, 1)),
    mask_lambda=mask_lambda,
    auxiliary=auxiliary,
  )[0]


_GRADIENTS = {
  auxiliary: jax.jit(
    jax.value_and_grad(_pixel_loss(auxiliary), (0, 1)), static_argnums=2
  )
  for auxiliary in loss.AUXILIARIES
}


def _by_hand(auxiliary, error, logit, mask_lambda):
  """Value and gradients of one pixel's loss, in float64."""
  mask, rest = 1 / (1 + np.exp(-logit)), 1 / (1 + np.exp(logit))
  if auxiliary == 'none':
    return error, (1.0, 0.0)
  if auxiliary == 'log':
    penalty, slope = np.log1p(np.exp(-logit)), -rest
  else:
    penalty, slope = rest**2, -2 * rest * mask * rest
  return (
    mask * error + mask_lambda * penalty,
    (mask, mask * rest * error + mask_lambda * slope),
  )


@hypothesis.given(
  auxiliary=strategies.sampled_from(loss.AUXILIARIES),
  error=strategies.floats(0, 100),
  logit=strategies.floats(-30, 30),
  mask_lambda=strategies.sampled_from([0.0, 0.5, 10.0]),
)
@hypothesis.settings(deadline=None, max_examples=100)
def test_gradients_are_the_closed_form(auxiliary, error, logit, mask_lambda):
  value, gradients = _GRADIENTS[auxiliary](error, logit, mask_lambda)
  expected, slopes = _by_hand(auxiliary, error, logit, mask_lambda)
  scale = 1 + error + mask_lambda
  assert float(value) == pytest.approx(expected, rel=1e-5, abs=1e-6 * scale)
  np.testing.assert_allclose(gradients, slopes, rtol=1e-4, atol=1e-6 * scale)


@hypothesis.given(
  error=strategies.floats(0.01, 100),
  mask_lambda=strategies.sampled_from([0.1, 0.5, 10.0]),
)
@hypothesis.settings(deadline=None, max_examples=50)
def test_no_mask_beats_lambda_over_error(error, mask_lambda):
  """The least loss of a pixel is lambda (1 + log(e / lambda)), or e."""
  best = min(1 - 1e-6, mask_lambda / error)
  at_best = _GRADIENTS['log'](error, np.log(best / (1 - best)), mask_lambda)[0]
  if error > mask_lambda:
    least = mask_lambda * (1 + np.log(error / mask_lambda))
  else:
    least = error
  # The mask above stops at 1 - 1e-6.
  slack = 1e-5 * mask_lambda
  assert float(at_best) == pytest.approx(least, rel=1e-4, abs=slack)
  for logit in np.linspace(-12, 12, 25):
    value = _GRADIENTS['log'](error, logit, mask_lambda)[0]
    assert float(value) >= least * (1 - 1e-5)


@pytest.mark.parametrize('auxiliary', ['log', 'square'])
def test_mask_descends_to_its_ends(auxiliary):
  """Gradient descent on the logits alone, for large and for small lambda."""
  error = jnp.linspace(0.1, 2, 16).reshape(1, 4, 4)

  def descend(mask_lambda):
    slope = jax.grad(
      lambda logit: loss.masked_loss(
        error, logit, mask_lambda=mask_lambda, auxiliary=auxiliary
      ).sum()
    )
    logit = jax.lax.fori_loop(
      0, 2000, lambda _, z: z - 5.0 * slope(z), jnp.zeros_like(error)
    )
    return jax.nn.sigmoid(logit)

  inert, collapsed = descend(50.0), descend(1e-4)
  assert float(inert.min()) > 0.9
  # A pixel with e < lambda would keep its mask; here none has.
  assert float(collapsed.max()) < 0.05


@pytest.mark.parametrize('auxiliary', loss.AUXILIARIES)
def test_inert_mask_trains_as_the_plain_squared_error(auxiliary):
  x, target = jax.random.normal(jax.random.key(0), (2, 2, 4, 4, 3))
  weights = jax.random.normal(jax.random.key(1), (3, 3))
  inert = jnp.full((2, 4, 4), 40.0)

  def masked(weights):
    error = loss.squared_error(jnp.tanh(x @ weights), target)
    return loss.masked_loss(
      error, inert, mask_lambda=0.5, auxiliary=auxiliary
    ).mean()

  def plain(weights):
    return jnp.mean((jnp.tanh(x @ weights) - target) ** 2)

  results, expected = (
    jax.jit(jax.value_and_grad(f))(weights) for f in (masked, plain)
  )
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7),
    results,
    expected,
  )


def test_without_a_mask_its_logit_has_no_part():
  error = jnp.array([[[1.0, 3.0]]])
  value, slope = jax.value_and_grad(
    lambda logit: loss.masked_loss(
      error, logit, mask_lambda=0.5, auxiliary='none'
    )[0]
  )(jnp.array([[[-5.0, jnp.nan]]]))
  assert float(value) == 2.0
  np.testing.assert_array_equal(slope, 0)


@pytest.mark.parametrize('dtype', [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize('auxiliary', loss.AUXILIARIES)
@pytest.mark.parametrize('logit', [-1e4, -200.0, 0.0, 200.0, 1e4])
def test_extreme_logits_give_finite_losses(dtype, auxiliary, logit):
  value, gradients = jax.value_and_grad(
    lambda error, logit: loss.masked_loss(
      error, logit, mask_lambda=0.5, auxiliary=auxiliary
    ).sum(),
    (0, 1),
  )(jnp.full((1, 2, 2), 3.0, dtype), jnp.full((1, 2, 2), logit, dtype))
  assert value.dtype == jnp.float32
  for array in (value, *gradients):
    assert np.all(np.isfinite(np.asarray(array, np.float32)))


def test_error_of_half_precision_is_summed_in_full():
  output = jnp.full((1, 1, 1, 1000), 1.0, jnp.bfloat16)
  target = jnp.full((1, 1, 1, 1000), 0.1, jnp.float32)
  error = loss.squared_error(output, target)
  assert error.dtype == jnp.float32
  np.testing.assert_allclose(error, 0.81, rtol=1e-5)
