"""Samples of a model are those of diffusers; what cannot be sampled is told."""

import inspect
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from odin_jax import predictors
from odin_jax.diffusion import schedule
from odin_jax.models import odin
from odin_jax.shared import errors
from tests.helpers import default_sampling
from tests.odin_jax.diffusion import test_sampler

SHAPE = (3, 3, 4)
ALPHA_BAR = schedule.alpha_bars('scaled_linear', 1000, zero_terminal_snr=False)


def make_config(*, image_encoder='clip', conditioning='clip', **diffusion):
  return {
    'autoencoder': {'kind': 'kl'},
    'image_encoder': {'kind': image_encoder},
    'model': {'conditioning': conditioning},
    'diffusion': {
      'schedule': 'scaled_linear',
      'num_timesteps': 1000,
      'zero_terminal_snr': False,
      'prediction': 'eps',
      'condition_dropout': 0.05,
      **diffusion,
    },
  }


@pytest.mark.parametrize('prediction', ['eps', 'v'])
@pytest.mark.parametrize(
  'kind, spacing, final_alpha_bar',
  [
    ('ddim', 'leading', float(ALPHA_BAR[0])),
    ('ddim', 'trailing', 1.0),
    ('dpm++2m', 'leading', 1.0),
    ('dpm++2m', 'linspace', 1.0),
    ('dpm++2m', 'trailing', 1.0),
    ('euler', 'leading', 1.0),
    ('euler', 'linspace', 1.0),
    ('euler', 'trailing', 1.0),
  ],
)
def test_samples_are_those_of_diffusers_with_its_defaults(
  monkeypatch, kind, spacing, final_alpha_bar, prediction
):
  weights = np.random.default_rng(0).normal(0, 0.3, (4, 4)).astype(np.float32)
  monkeypatch.setattr(
    odin, 'condition', lambda *_: {'source': np.zeros((2, *SHAPE))}
  )
  model = types.SimpleNamespace(
    conditioning=lambda condition, drop: (
      jnp.zeros((2, *SHAPE)),
      jnp.zeros((2, 1, 1)),
    ),
    denoise=lambda x, t, cond: (
      jnp.tanh(x @ weights) * (1 + t[:, None, None, None] / 1000),
      None,
    ),
  )
  decode = types.SimpleNamespace(decode=lambda latents: latents)
  seeds = np.array([3, 4])
  # Without the check of types, which stand-ins fail.
  samples = inspect.unwrap(predictors.sample)(
    model,
    types.SimpleNamespace(autoencoder=decode),
    make_config(prediction=prediction),
    types.SimpleNamespace(source=np.zeros(2)),
    seeds,
    sampling=default_sampling.sampling(
      sampler=kind, spacing=spacing, num_steps=20, guidance=1.0
    ),
  )
  noise = np.stack([jax.random.normal(jax.random.key(s), SHAPE) for s in seeds])
  reference = test_sampler.reference_of(
    kind,
    spacing=spacing,
    final_alpha_bar=final_alpha_bar,
    prediction=prediction,
  )
  reference.set_timesteps(20)
  expected = test_sampler.sample_of(
    reference,
    lambda x, t: torch.tanh(x @ torch.tensor(weights)) * (1 + t / 1000),
    noise,
    scale=float(reference.init_noise_sigma),
  )
  test_sampler.assert_close(samples, expected)


@pytest.mark.parametrize('kind', ['ddim', 'dpm++2m', 'euler'])
def test_eps_is_not_sampled_from_where_nothing_is_left(kind):
  config = make_config(zero_terminal_snr=True)

  def check(spacing):
    sampling = default_sampling.sampling(
      sampler=kind, spacing=spacing, num_steps=20
    )
    predictors._check('run', sampling, config)

  with pytest.raises(errors.UserError, match='run: spacing=trailing.*predict'):
    check('trailing')
  check('leading')


def test_a_model_without_its_image_encoder_is_not_sampled_from():
  sampling = default_sampling.sampling(num_steps=10, spacing='leading')
  with pytest.raises(
    errors.UserError, match='without its image.* for zero123;'
  ):
    predictors._check(
      'run',
      sampling,
      make_config(image_encoder='none', conditioning='se3+zero123'),
    )
  config = make_config(image_encoder='none', conditioning='se3')
  predictors._check('run', sampling, config)
