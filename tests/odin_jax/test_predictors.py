"""Samples of a model are those of diffusers; what cannot be sampled is told."""

import inspect
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from configs import train as recipes
from odin_jax import predictors
from odin_jax.diffusion import schedule
from odin_jax.models import odin
from odin_jax.shared import camera, errors, posed_pair
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
    cond=lambda condition, drop: odin.Cond(
      jnp.zeros((2, *SHAPE)), jnp.zeros((2, 1, 1))
    ),
    denoise=lambda x, t, cond: odin.Denoised(
      jnp.tanh(x @ weights) * (1 + t[:, None, None, None] / 1000),
      jnp.zeros(x.shape[:3]),
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


def swept(pose, median_depth=1.0):
  """The source, and what the sweep predicts of it for a target's pose."""
  source = np.random.default_rng(0).integers(0, 256, (2, 16, 16, 3), np.uint8)
  pairs = posed_pair.PosedPair(
    source=source,
    target=None,
    target2source=np.stack([pose, pose]),
    fov_deg=np.full(2, 60.0),
    median_depth=np.full(2, median_depth),
  )
  prediction = predictors.Sweep().predict(pairs, np.arange(2))
  return source / 255, prediction


@pytest.mark.parametrize('recipe,expected', [('world', 10), ('multisphere', 2)])
def test_steps_and_spacing_that_nobody_gives_suit_the_model(recipe, expected):
  config = recipes.get_config(recipe).to_dict()
  asked = default_sampling.sampling(num_steps=0, spacing='')
  completed = predictors.completed(asked, config)
  assert completed.num_steps == expected
  assert completed.spacing == config['diffusion']['spacing']
  given = default_sampling.sampling(num_steps=7, spacing='leading')
  assert predictors.completed(given, config) == given


def test_a_sweep_without_motion_is_the_source():
  source, prediction = swept(camera.identity_pose())
  np.testing.assert_allclose(prediction, source, atol=1e-5)


def test_a_sweep_of_what_nobody_sees_is_the_mean_colour():
  back = camera.make_pose(camera.rotation_y(np.pi), np.zeros(3))
  source, prediction = swept(back)
  colours = source.mean(axis=(1, 2), keepdims=True)
  np.testing.assert_allclose(
    prediction, np.broadcast_to(colours, prediction.shape), atol=1e-5
  )


def test_a_sweep_is_the_mean_over_distances_of_the_moved_source():
  """A step to the side moves what is d away by focal length / d pixels."""
  step = np.array([2.0, 0.0, 0.0])
  pose = camera.make_pose(np.eye(3), step)
  source, prediction = swept(pose, median_depth=20.0)
  # A plane is at one depth all over; here the middle rows of a narrow view.
  k = camera.intrinsics(60.0, 16)
  expected = np.zeros((16, 3))
  for distance in predictors.Sweep.distances:
    rays = camera.view_rays(60.0, 16)[8]
    points = rays / np.linalg.norm(rays, axis=-1, keepdims=True) * distance
    pixels, _ = camera.project(points + step / 20, k)
    for column, (u, v) in enumerate(pixels):
      seen = 0 <= u <= 16 and 0 <= v <= 16
      colour = source[0].mean(axis=(0, 1))
      if seen:
        x, y = u - 0.5, v - 0.5
        left, top = int(np.floor(x)), int(np.floor(y))
        colour = sum(
          (1 - abs(x - i))
          * (1 - abs(y - j))
          * source[0][np.clip(j, 0, 15), np.clip(i, 0, 15)]
          for i in (left, left + 1)
          for j in (top, top + 1)
        )
      expected[column] += colour / len(predictors.Sweep.distances)
  np.testing.assert_allclose(prediction[0, 8], expected, atol=1e-4)


def test_what_is_looked_at_in_turn_is_of_the_moment_of_the_target():
  """When further views were taken nobody says."""
  poses = jnp.tile(jnp.eye(3, 4), (2, 1, 1))
  pairs = posed_pair.PosedPair(
    source=jnp.zeros((2, 4, 4, 3), jnp.uint8),
    target=None,
    target2source=poses,
    fov_deg=jnp.ones(2),
    median_depth=jnp.ones(2),
    more=posed_pair.MoreViews(
      image=jnp.ones((2, 1, 4, 4, 3), jnp.uint8),
      target2view=poses[:, None],
      fov_deg=jnp.ones((2, 1)),
      is_there=jnp.ones((2, 1), bool),
    ),
    times_s=jnp.array([[1.0, 2.0], [3.0, 4.0]]),
  )
  first, second = predictors._one_by_one(pairs)
  np.testing.assert_array_equal(first.times_s, pairs.times_s)
  np.testing.assert_array_equal(second.times_s, [[2, 2], [4, 4]])
  _, second = predictors._one_by_one(pairs._replace(times_s=None))
  assert second.times_s is None and second.source.all()


def test_a_model_that_gives_no_numbers_is_told_and_not_scored():
  model = object.__new__(predictors.Model)
  model._arrays, model._placed = (), jax.devices()[0]
  model._devices, model._batch_size, model.num_sources = 1, 2, 1
  values = np.zeros((2, 4, 4, 3), np.float32)
  values[1, 2] = np.nan
  model._sample = lambda pairs, seeds: values
  pairs = posed_pair.PosedPair(
    source=np.zeros((2, 4, 4, 3), np.uint8),
    target=None,
    target2source=np.zeros((2, 3, 4)),
    fov_deg=np.full(2, 90.0),
    median_depth=np.ones(2),
  )
  with pytest.raises(errors.UserError, match='no numbers'):
    model.predict(pairs, np.arange(2))
  values[:] = 0.5
  assert model.predict(pairs, np.arange(2)).shape == values.shape
