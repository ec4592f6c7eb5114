"""Samplers against diffusers and against the exact solution of a Gaussian."""

import json
import os
import subprocess
import sys
import warnings

import diffusers
from diffusers.pipelines.stable_diffusion import pipeline_stable_diffusion
import hypothesis
from hypothesis import strategies
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from odin_jax.diffusion import sampler, schedule
from tests.helpers import commands

STABLE_DIFFUSION = dict(
  num_train_timesteps=1000,
  beta_start=0.00085,
  beta_end=0.012,
  beta_schedule='scaled_linear',
)
PREDICTION_TYPES = {'eps': 'epsilon', 'v': 'v_prediction', 'x0': 'sample'}
ALPHA_BAR = schedule.alpha_bars('scaled_linear', 1000, zero_terminal_snr=False)
# (sampler, spacing, alpha_bar of the result)
PATHS = [
  ('ddim', 'leading', float(ALPHA_BAR[0])),
  ('ddim', 'trailing', 1.0),
  ('dpm++2m', 'leading', 1.0),
  ('dpm++2m', 'linspace', 1.0),
  ('dpm++2m', 'trailing', 1.0),
  ('dpm++2m', 'trailing', float(ALPHA_BAR[0])),
  ('euler', 'leading', 1.0),
  ('euler', 'leading', float(ALPHA_BAR[0])),
  ('euler', 'linspace', 1.0),
  ('euler', 'trailing', 1.0),
]


def reference_of(kind, *, spacing, final_alpha_bar, prediction, **settings):
  """diffusers' scheduler of the same method, end and prediction."""
  ends = final_alpha_bar == 1.0
  settings = (
    STABLE_DIFFUSION
    | dict(
      timestep_spacing=spacing,
      steps_offset=1,
      prediction_type=PREDICTION_TYPES[prediction],
    )
    | settings
  )
  if kind == 'ddim':
    return diffusers.DDIMScheduler(
      clip_sample=False, set_alpha_to_one=ends, **settings
    )
  settings['final_sigmas_type'] = 'zero' if ends else 'sigma_min'
  if kind == 'euler':
    return diffusers.EulerDiscreteScheduler(**settings)
  return diffusers.DPMSolverMultistepScheduler(
    algorithm_type='dpmsolver++', solver_order=2, **settings
  )


def sample_of(scheduler, denoise_fn, noise, *, scale):
  """The trajectory of diffusers' pipelines from `scale` times the noise."""
  x = scale * torch.tensor(noise)
  for t in scheduler.timesteps:
    output = denoise_fn(scheduler.scale_model_input(x, t), float(t))
    with warnings.catch_warnings():
      warnings.simplefilter('ignore')
      x = scheduler.step(output, t, x).prev_sample
  return x.numpy()


def assert_close(output, reference, relative=1e-4):
  difference = np.abs(np.asarray(output) - reference).max()
  assert difference <= relative * np.abs(reference).max()


@pytest.fixture(scope='module')
def toy():
  """A nonlinear denoiser, in JAX and in torch, and noise."""
  generator = np.random.default_rng(0)
  weights = generator.normal(0, 0.3, (4, 4)).astype(np.float32)
  noise = generator.normal(size=(2, 3, 3, 4)).astype(np.float32)
  return (
    lambda x, t: jnp.tanh(x @ weights) * (1 + t[:, None, None, None] / 1000),
    lambda x, t: torch.tanh(x @ torch.tensor(weights)) * (1 + t / 1000),
    noise,
  )


@pytest.mark.parametrize('prediction', schedule.PREDICTIONS)
@pytest.mark.parametrize('num_steps', [1, 7, 25])
@pytest.mark.parametrize('kind, spacing, final_alpha_bar', PATHS)
def test_trajectory_is_that_of_diffusers(
  kind, spacing, final_alpha_bar, num_steps, prediction, toy
):
  denoise_fn, torch_denoise_fn, noise = toy
  if (kind, spacing) == ('ddim', 'trailing') and 1000 % num_steps:
    # diffusers' DDIM then steps to alpha_bar of t - T // n, which is not its
    # next timestep.
    num_steps += 1
  scheduler = reference_of(
    kind,
    spacing=spacing,
    final_alpha_bar=final_alpha_bar,
    prediction=prediction,
  )
  if (kind, spacing) == ('euler', 'linspace'):
    num_steps = max(num_steps, 2)  # one step would start at t = 0
  steps = sampler.timesteps(num_steps, 1000, spacing=spacing, kind=kind)
  scheduler.set_timesteps(num_steps)
  np.testing.assert_array_equal(steps, scheduler.timesteps.numpy())
  expected = sample_of(
    scheduler,
    torch_denoise_fn,
    noise,
    scale=float(scheduler.init_noise_sigma),
  )
  if kind == 'euler':
    expected *= final_alpha_bar**0.5  # diffusers returns x / alpha
  assert_close(
    sampler.sample(
      kind,
      denoise_fn,
      jnp.asarray(noise),
      alpha_bar=ALPHA_BAR,
      steps=steps,
      prediction=prediction,
      final_alpha_bar=final_alpha_bar,
      spacing=spacing,
    ),
    expected,
  )


@pytest.mark.parametrize('num_steps', [1, 7, 50])
@pytest.mark.parametrize('kind', sampler.SAMPLERS)
def test_leading_steps_without_an_offset(kind, num_steps):
  reference = reference_of(
    kind,
    spacing='leading',
    final_alpha_bar=1.0,
    prediction='v',
    steps_offset=0,
  )
  reference.set_timesteps(num_steps)
  np.testing.assert_array_equal(
    sampler.timesteps(num_steps, 1000, spacing='leading-from-0', kind=kind),
    reference.timesteps.numpy(),
  )


@pytest.mark.parametrize('spacing', sampler.SPACINGS)
@pytest.mark.parametrize('to_one', [True, False])
def test_ddim_can_be_told_where_it_ends(spacing, to_one):
  end = sampler.final_alpha_bar(
    'ddim', spacing, ALPHA_BAR, set_alpha_to_one=to_one
  )
  assert end == (1 if to_one else ALPHA_BAR[0])


@pytest.mark.parametrize(
  'kind, spacing, noisy',
  [
    ('ddim', 'leading', True),
    ('ddim', 'zero123', True),
    ('ddim', 'trailing', False),
    # The defaults of diffusers: `final_sigmas_type='zero'`.
    ('dpm++2m', 'leading', False),
    ('euler', 'leading', False),
    ('euler', 'linspace', False),
  ],
)
def test_where_a_trajectory_ends(kind, spacing, noisy):
  expected = ALPHA_BAR[0] if noisy else 1
  assert sampler.final_alpha_bar(kind, spacing, ALPHA_BAR) == expected


@pytest.mark.parametrize('kind', sampler.SAMPLERS)
def test_nearly_zero_snr_is_that_of_diffusers(kind, toy):
  """diffusers puts 2^-24 in place of zero: given that, the same samples."""
  denoise_fn, torch_denoise_fn, noise = toy
  scheduler = reference_of(
    kind,
    spacing='trailing',
    final_alpha_bar=1.0,
    prediction='v',
    rescale_betas_zero_snr=True,
  )
  scheduler.set_timesteps(20)
  alpha_bar = schedule.alpha_bars('scaled_linear', 1000, zero_terminal_snr=True)
  if kind != 'ddim':
    alpha_bar[-1] = 2.0**-24
  assert_close(
    sampler.sample(
      kind,
      denoise_fn,
      jnp.asarray(noise),
      alpha_bar=alpha_bar,
      steps=sampler.timesteps(20, 1000, spacing='trailing'),
      prediction='v',
    ),
    sample_of(
      scheduler,
      torch_denoise_fn,
      noise,
      scale=float(scheduler.init_noise_sigma),
    ),
  )


@pytest.mark.parametrize('kind', sampler.SAMPLERS)
@pytest.mark.parametrize('num_steps', [1, 2, 20])
def test_zero_snr_is_a_limit(kind, num_steps, toy):
  denoise_fn, _, noise = toy
  samples = []
  for last in (0.0, 1e-290):
    alpha_bar = schedule.alpha_bars(
      'scaled_linear', 1000, zero_terminal_snr=True
    )
    alpha_bar[-1] = last
    samples.append(
      sampler.sample(
        kind,
        denoise_fn,
        jnp.asarray(noise),
        alpha_bar=alpha_bar,
        steps=sampler.timesteps(num_steps, 1000, spacing='trailing'),
        prediction='v',
      )
    )
  # The slope of the second step of dpm++2m falls as 1 / log(alpha_bar).
  assert_close(*samples, relative=2e-2)
  assert np.all(np.isfinite(samples[0]))


def test_eps_cannot_start_without_signal(toy):
  with pytest.raises(ValueError, match='predict v or x0'):
    sampler.sample(
      'ddim',
      toy[0],
      jnp.asarray(toy[2]),
      alpha_bar=np.array([0.9, 0.0]),
      steps=np.array([1, 0]),
      prediction='eps',
    )


@pytest.mark.parametrize('prediction', ['v', 'x0'])
@pytest.mark.parametrize('num_steps', [1, 10])
@pytest.mark.parametrize('kind', sampler.SAMPLERS)
def test_perfect_denoiser_samples_the_truth(kind, prediction, num_steps):
  alpha_bar = schedule.alpha_bars('cosine', 1000, zero_terminal_snr=True)
  truth = jax.random.normal(jax.random.key(0), (2, 4, 4, 3))

  def denoise(x, timestep):
    level = jnp.asarray(alpha_bar, jnp.float32)[timestep.astype(int)]
    spread = level[:, None, None, None]
    noise = (x - jnp.sqrt(spread) * truth) / jnp.sqrt(1 - spread)
    return schedule.target(prediction, truth, noise, level)

  sample = sampler.sample(
    kind,
    denoise,
    jax.random.normal(jax.random.key(1), truth.shape),
    alpha_bar=alpha_bar,
    steps=sampler.timesteps(num_steps, 1000, spacing='trailing'),
    prediction=prediction,
  )
  np.testing.assert_allclose(sample, truth, atol=1e-4)


MEAN, SPREAD = 1.0, 0.5


def gaussian_denoiser(alpha_bar):
  """x0 that N(MEAN, SPREAD^2) leads to expect, given x_t."""

  def denoise(x, timestep):
    level = jnp.asarray(alpha_bar, jnp.float32)[timestep.astype(int)]
    a = level[:, None, None, None]
    gain = jnp.sqrt(a) * SPREAD**2 / (a * SPREAD**2 + 1 - a)
    return MEAN + gain * (x - jnp.sqrt(a) * MEAN)

  return denoise


def gaussian_flow(x, here, there):
  """x at alpha_bar `there` on the exact trajectory through x at `here`.

  Of a Gaussian the flow keeps (x - mean of x_t) / spread of x_t.
  """
  spread_here, spread_there = (
    np.sqrt(a * SPREAD**2 + 1 - a) for a in (here, there)
  )
  z = (x - np.sqrt(here) * MEAN) / spread_here
  return np.sqrt(there) * MEAN + spread_there * z


@pytest.mark.parametrize('kind', sampler.SAMPLERS)
def test_gaussian_is_sampled_with_its_own_spread(kind):
  alpha_bar = schedule.alpha_bars('cosine', 1000, zero_terminal_snr=True)
  sample = sampler.sample(
    kind,
    gaussian_denoiser(alpha_bar),
    jax.random.normal(jax.random.key(0), (1, 100, 100, 1)),
    alpha_bar=alpha_bar,
    steps=sampler.timesteps(200, 1000, spacing='trailing'),
    prediction='x0',
  )
  assert abs(float(sample.mean()) - MEAN) < 0.03
  assert abs(float(sample.std()) - SPREAD) < 0.02


def _order_errors(kind, counts):
  """Distance from the exact flow after every number of steps."""
  # Timesteps are integers: a fine grid keeps the steps even.
  alpha_bar = schedule.alpha_bars('cosine', 8000, zero_terminal_snr=False)
  noise = np.random.default_rng(0).normal(size=(1, 4, 4, 1))
  first, last = 7000, 1000
  errors = []
  for count in counts:
    steps = np.linspace(first, last, count + 1).round().astype(np.int32)
    end = float(alpha_bar[last])
    sample = sampler.sample(
      kind,
      gaussian_denoiser(alpha_bar),
      jnp.asarray(noise, jnp.float32),
      alpha_bar=alpha_bar,
      steps=steps[:-1],
      prediction='x0',
      final_alpha_bar=end,
    )
    start = float(alpha_bar[first])
    x = noise * (np.sqrt(1 - start) if kind == 'euler' else 1)
    errors.append(np.abs(sample - gaussian_flow(x, start, end)).max())
  return np.array(errors)


def test_orders_of_convergence():
  counts = [20, 40, 80]
  errors = {kind: _order_errors(kind, counts) for kind in sampler.SAMPLERS}
  orders = {
    kind: np.log2(error[:-1] / error[1:]) for kind, error in errors.items()
  }
  np.testing.assert_allclose(orders['ddim'], 1, atol=0.15)
  np.testing.assert_allclose(orders['euler'], 1, atol=0.15)
  np.testing.assert_allclose(orders['dpm++2m'], 2, atol=0.4)
  assert np.all(errors['dpm++2m'] < errors['ddim'] / 3)


def test_second_order_is_nearer_with_few_steps():
  counts = [5, 10]
  assert np.all(
    _order_errors('dpm++2m', counts) < _order_errors('ddim', counts)
  )


def test_trailing_steps_start_where_nothing_is_left():
  steps = sampler.timesteps(10, 1000, spacing='trailing')
  np.testing.assert_array_equal(steps, np.arange(999, 0, -100))


@pytest.mark.parametrize('num_steps', [1, 7, 25, 50, 300, 999])
def test_linspace_is_that_of_dpm_solver(num_steps):
  scheduler = diffusers.DPMSolverMultistepScheduler(
    **STABLE_DIFFUSION, timestep_spacing='linspace'
  )
  scheduler.set_timesteps(num_steps)
  steps = sampler.timesteps(num_steps, 1000, spacing='linspace')
  np.testing.assert_array_equal(steps, scheduler.timesteps.numpy())


@pytest.mark.parametrize('num_steps', [2, 30, 50, 75, 200])
def test_zero123_drops_the_noisiest_step(num_steps):
  """`make_ddim_timesteps`, `timesteps[:t_start]` and `np.flip` of its loop."""
  stride = 1000 // num_steps
  expected = np.asarray(list(range(0, 1000, stride))) + 1
  expected = np.flip(expected[:-1])
  steps = sampler.timesteps(num_steps, 1000, spacing='zero123')
  np.testing.assert_array_equal(steps, expected)
  if 1000 % num_steps == 0:
    leading = sampler.timesteps(num_steps, 1000, spacing='leading')
    np.testing.assert_array_equal(steps, leading[1:])


def test_golden_timesteps_of_zero123():
  steps = sampler.timesteps(50, 1000, spacing='zero123')
  assert (len(steps), steps[0], steps[1], steps[-1]) == (49, 961, 941, 1)


@hypothesis.given(
  spacing=strategies.sampled_from(tuple(sampler.SPACINGS)),
  num_steps=strategies.integers(2, 999),
  kind=strategies.sampled_from(tuple(sampler.SAMPLERS)),
)
@hypothesis.settings(deadline=None)
def test_timesteps_descend_within_the_schedule(spacing, num_steps, kind):
  steps = sampler.timesteps(num_steps, 1000, spacing=spacing, kind=kind)
  if (kind, spacing) != ('euler', 'linspace'):
    assert steps.dtype == np.int32
  assert np.all(np.diff(steps) < 0)
  assert 0 <= steps[-1] and steps[0] <= 999


def test_every_timestep_can_be_visited():
  for spacing in ('leading', 'trailing'):
    np.testing.assert_array_equal(
      sampler.timesteps(1000, 1000, spacing=spacing), np.arange(1000)[::-1]
    )


def both_ways(cond, uncond, x):
  """A denoise_fn that returns one of two outputs by its condition."""

  def denoise(inputs, timestep, condition):
    del timestep
    assert len(inputs) == len(condition)
    outputs = jnp.where(
      condition[:, None, None, None],
      jnp.repeat(cond, len(inputs) // len(x), axis=0),
      jnp.repeat(uncond, len(inputs) // len(x), axis=0),
    )
    return outputs + inputs

  return denoise


@pytest.fixture(scope='module')
def outputs():
  """x and a conditional and an unconditional output, spreads per example."""
  generator = np.random.default_rng(0)
  x, cond, uncond = generator.normal(size=(3, 2, 4, 5, 3)).astype(np.float32)
  cond[1] *= 3
  return x, cond, uncond


def guide(x, cond, uncond, **settings):
  denoise = sampler.guided(
    both_ways(cond, uncond, x),
    jnp.ones(2, bool),
    jnp.zeros(2, bool),
    **settings,
  )
  return denoise(jnp.asarray(x), jnp.zeros(2))


def test_guidance_extrapolates_from_the_unconditional(outputs):
  x, cond, uncond = outputs
  np.testing.assert_allclose(
    guide(x, cond, uncond, guidance=3.0),
    x + uncond + 3 * (cond - uncond),
    rtol=1e-5,
    atol=1e-5,
  )


@pytest.mark.parametrize('rescale', [0.0, 0.7, 1.0])
def test_rescaled_guidance_is_that_of_diffusers(outputs, rescale):
  x, cond, uncond = outputs
  mixed = x + uncond + 7.5 * (cond - uncond)
  reference = pipeline_stable_diffusion.rescale_noise_cfg(
    torch.tensor(mixed), torch.tensor(x + cond), guidance_rescale=rescale
  )
  output = guide(x, cond, uncond, guidance=7.5, rescale=rescale)
  assert_close(output, reference.numpy(), relative=1e-5)
  if rescale == 1.0:
    spreads = np.asarray(output).std(axis=(1, 2, 3))
    expected = (x + cond).std(axis=(1, 2, 3))
    np.testing.assert_allclose(spreads, expected, rtol=1e-4)


def test_guidance_of_one_never_sees_the_null_condition(outputs):
  x, cond, _ = outputs
  nothing = np.full_like(cond, np.nan)
  output = guide(x, cond, nothing, guidance=1.0, rescale=0.7)
  np.testing.assert_array_equal(output, x + cond)


def test_guidance_calls_the_network_once_with_pairs_of_rows():
  calls = []

  def denoise(x, timestep, condition):
    calls.append((x, timestep, condition))
    return x

  x = jnp.arange(2.0).reshape(2, 1, 1, 1)
  sampler.guided(
    denoise,
    {'pose': jnp.array([[1.0], [2.0]]), 'none': jnp.zeros((2, 0))},
    {'pose': jnp.array([[0.0], [0.0]]), 'none': jnp.zeros((2, 0))},
    guidance=2.0,
  )(x, jnp.array([5.0, 6.0]))
  ((inputs, timestep, condition),) = calls
  np.testing.assert_array_equal(inputs.ravel(), [0, 0, 1, 1])
  np.testing.assert_array_equal(timestep, [5, 5, 6, 6])
  np.testing.assert_array_equal(condition['pose'].ravel(), [1, 0, 2, 0])
  assert condition['none'].shape == (4, 0)


def _sample_badly(**changes):
  settings = dict(
    kind='ddim', steps=np.array([1, 0]), prediction='v', alpha_bar=ALPHA_BAR
  )
  return sampler.sample(
    denoise_fn=lambda x, t: x,
    noise=jnp.ones((1, 2, 2, 1)),
    **settings | changes,
  )


@pytest.mark.parametrize(
  'call, message',
  [
    (lambda: sampler.timesteps(11, 10, spacing='leading'), 'outside'),
    (lambda: sampler.timesteps(0, 10, spacing='leading'), 'outside'),
    (lambda: sampler.timesteps(5, 10, spacing='middle'), 'middle'),
    (lambda: sampler.timesteps(1, 10, spacing='zero123'), 'different steps'),
    (lambda: sampler.timesteps(10, 10, spacing='linspace'), 'different steps'),
    (
      lambda: sampler.timesteps(1, 10, spacing='linspace', kind='euler'),
      'different steps',
    ),
    (lambda: _sample_badly(kind='heun'), 'heun'),
    (lambda: _sample_badly(prediction='noise'), 'noise'),
    (lambda: _sample_badly(steps=np.array([0, 1])), 'little'),
    (lambda: _sample_badly(steps=np.array([1, 1])), 'little'),
    (lambda: _sample_badly(steps=np.zeros(0, int)), 'little'),
  ],
)
def test_bad_settings_are_errors(call, message):
  with pytest.raises(ValueError, match=message):
    call()


def test_half_precision_network_is_sampled_in_float32(toy):
  denoise_fn, _, noise = toy
  settings = dict(
    alpha_bar=ALPHA_BAR,
    steps=sampler.timesteps(7, 1000, spacing='trailing'),
    prediction='v',
  )
  noise = jnp.asarray(noise)
  full = sampler.sample('dpm++2m', denoise_fn, noise, **settings)
  half = sampler.sample(
    'dpm++2m',
    lambda x, t: denoise_fn(x, t).astype(jnp.bfloat16),
    noise,
    **settings,
  )
  assert half.dtype == jnp.float32
  assert_close(half, np.asarray(full), relative=0.05)


SHARDED = """
import json
import jax
import jax.numpy as jnp
import numpy as np
from odin_jax.diffusion import sampler, schedule
from odin_jax import sharding

weights = np.random.default_rng(0).normal(0, 0.3, (4, 4)).astype(np.float32)
noise = jax.random.normal(jax.random.key(0), (16, 8, 8, 4))
pose = jax.random.normal(jax.random.key(1), (16, 4))
alpha_bar = schedule.alpha_bars('cosine', 1000, zero_terminal_snr=True)
mesh = sharding.make_mesh(dict(data=8, fsdp=1, tensor=1))
rows = sharding.batch_sharding(mesh, 16)
traces = []


def denoise(x, timestep, pose):
  traces.append(x.shape)
  return jnp.tanh(x @ weights + pose[:, None, None])


def sample(noise, pose):
  return sampler.sample(
    'dpm++2m',
    sampler.guided(
      denoise, pose, jnp.zeros_like(pose), guidance=3.0, rescale=0.7
    ),
    noise,
    alpha_bar=alpha_bar,
    steps=sampler.timesteps(20, 1000, spacing='trailing'),
    prediction='v',
  )


sharded = jax.jit(sample, in_shardings=(rows, rows), out_shardings=rows)
result = sharded(noise, pose)
sharded(noise + 1, pose)
counted = list(traces)
alone = jax.jit(sample)(noise, pose)
text = sharded.lower(noise, pose).compile().as_text()
print(json.dumps(dict(
  devices=jax.device_count(),
  traces=counted,
  split=result.addressable_shards[0].data.shape,
  difference=float(jnp.abs(np.asarray(result) - np.asarray(alone)).max()),
  size=float(jnp.abs(alone).max()),
  transfers=[
    name
    for name in ('all-gather', 'all-to-all', 'all-reduce', 'collective-permute')
    if name in text
  ],
  loops=text.count(' while('),
)))
"""


@pytest.fixture(scope='module')
def findings(repository):
  done = subprocess.run(
    [sys.executable, '-c', SHARDED],
    cwd=repository,
    env=os.environ | {'XLA_FLAGS': commands.with_devices(8)},
    capture_output=True,
    text=True,
    timeout=300,
    check=False,
  )
  assert done.returncode == 0, done.stderr[-2000:]
  return json.loads(done.stdout.splitlines()[-1])


def test_devices_sample_their_own_rows(findings):
  assert findings['devices'] == 8
  assert findings['split'] == [2, 8, 8, 4]
  assert findings['difference'] <= 1e-5 * findings['size']
  assert findings['transfers'] == []


def test_twenty_steps_are_one_loop_traced_once(findings):
  assert findings['traces'] == [[32, 8, 8, 4]]
  assert findings['loops'] == 1
