"""What the fields of a training config may be."""

import math
from typing import Any, Mapping

from odin_jax.diffusion import loss, sampler, schedule
from odin_jax.models import conditioning, encoders, odin
from odin_jax.shared import errors
from odin_jax.training import step

Config = Mapping[str, Any]

CHOICES = {
  'dtype': ('float32', 'bfloat16'),
  'encoders_dtype': encoders.HELD,
  'autoencoder.kind': encoders.AUTOENCODERS,
  'image_encoder.kind': encoders.IMAGE_ENCODERS,
  'diffusion.schedule': schedule.SCHEDULES,
  'diffusion.prediction': schedule.PREDICTIONS,
  'diffusion.mask_auxiliary': loss.AUXILIARIES,
  'diffusion.spacing': tuple(sampler.SPACINGS),
  'save_when_busy': ('wait', 'skip'),
  'optimizer.kind': tuple(step.OPTIMIZERS),
  'optimizer.schedule': ('constant', 'cosine'),
  'optimizer.gradient_sum_dtype': ('float32', 'compute'),
}
# What parts prepare without looking at pixels.
_NOT_OF_PIXELS = {'image_embedding', 'times'}
# The least and the most.
RANGES = {
  'steps': (1, math.inf),
  'batch_size': (1, math.inf),
  'accumulate_steps': (1, math.inf),
  'checkpoint_every': (1, math.inf),
  'log_every': (1, math.inf),
  'num_workers': (0, math.inf),
  'max_to_keep': (1, math.inf),
  'keep_period': (0, math.inf),
  'max_corrupt_records': (0, math.inf),
  'sample_every': (0, math.inf),
  'max_loss_spike': (0, math.inf),
  'diffusion.num_timesteps': (1, math.inf),
  'diffusion.timestep_power': (1e-3, math.inf),
  'diffusion.terminal_share': (0, 1),
  'diffusion.max_v_weight': (0, math.inf),
  'diffusion.min_snr_gamma': (0, math.inf),
  'diffusion.mask_lambda': (0, math.inf),
  # Three times the rate of the examples lose something.
  'diffusion.condition_dropout': (0, 1 / 3),
  'optimizer.warmup_steps': (0, math.inf),
  'model.sources': (1, math.inf),
  'ema_decay': (0, 1),
}


_SPHERES_RANGES = {
  'model.spheres.near': (1e-3, math.inf),
  'model.spheres.count': (2, math.inf),
  'model.spheres.features': (1, math.inf),
  'model.spheres.noisy_cells': (1, math.inf),
  'model.spheres.refiner': (0, math.inf),
  'model.spheres.depth_weight': (0, math.inf),
  'model.spheres.perceptual_weight': (0, math.inf),
}


def _field(config: Config, name: str) -> Any:
  for part in name.split('.'):
    config = config[part]
  return config


def check(config: Config) -> None:
  """Checks every field that has few values or a range, and what must agree.

  Raises:
    errors.UserError: names the field and what it may be.
  """
  for name, allowed in CHOICES.items():
    value = _field(config, name)
    if value not in allowed:
      raise errors.UserError(
        f'config.{name}={value}: must be one of {", ".join(allowed)}'
      )
  ranges = RANGES
  if odin.has_spheres(config):
    ranges = RANGES | _SPHERES_RANGES
    _check_spheres(config)
  for name, (least, most) in ranges.items():
    value = _field(config, name)
    if not least <= value <= most:
      raise errors.UserError(
        f'config.{name}={value}: must be at least {least:g}'
        + (f' and at most {most:.3g}' if most < math.inf else '')
      )
  if config['batch_size'] % config['accumulate_steps']:
    raise errors.UserError(
      f'config.batch_size={config["batch_size"]} is not divisible by '
      f'config.accumulate_steps={config["accumulate_steps"]}'
    )
  parts = conditioning.parse(config['model']['conditioning'])
  if conditioning.num_sources(config) > 1 and not (
    odin.has_spheres(config) or 'sweep' in parts
  ):
    raise errors.UserError(
      f'config.model.sources={config["model"]["sources"]}: nothing of '
      f'config.model.conditioning={config["model"]["conditioning"]} looks at '
      'more than one; add sweep to it'
    )
  diffusion = config['diffusion']
  if diffusion['max_v_weight'] and diffusion['prediction'] != 'x0':
    raise errors.UserError(
      'config.diffusion.max_v_weight: is a weight of errors of x0, not of '
      f'{diffusion["prediction"]}; give 0'
    )
  try:
    schedule.check(
      diffusion['prediction'], zero_terminal_snr=diffusion['zero_terminal_snr']
    )
  except ValueError as error:
    raise errors.UserError(f'config.diffusion: {error}') from error


def check_latents(config: Config) -> None:
  """Raises errors.UserError unless latents of records serve a config."""
  kind = config['autoencoder']['kind']
  if kind != 'kl':
    raise errors.UserError(
      f'config.autoencoder.kind={kind}: takes no time worth saving; latents of '
      'records are for kl'
    )
  for name in conditioning.parse(config['model']['conditioning']):
    if conditioning.PARTS[name].prepares.keys() - _NOT_OF_PIXELS:
      raise errors.UserError(
        f'config.model.conditioning: {name} looks at the images themselves, '
        'which latents of records do not have; leave it out, or train without '
        '--latents'
      )


def _check_spheres(config: Config) -> None:
  """Raises errors.UserError unless a picture can be blended of spheres."""
  kind, prediction = (
    config['autoencoder']['kind'],
    config['diffusion']['prediction'],
  )
  if kind != 'pixels' or prediction != 'x0':
    raise errors.UserError(
      f'config.model.spheres: blends pixels, so that it needs '
      f'config.autoencoder.kind=pixels, not {kind}, and '
      f'config.diffusion.prediction=x0, not {prediction}'
    )
  if config['diffusion']['condition_dropout']:
    raise errors.UserError(
      'config.diffusion.condition_dropout: config.model.spheres are a part of '
      'the picture, which cannot be dropped; give 0'
    )
  spheres = config['model']['spheres']
  if not spheres['near'] < spheres['far'] < math.inf:
    raise errors.UserError(
      f'config.model.spheres.far={spheres["far"]}: must be finite and more than '
      f'near={spheres["near"]}'
    )
  patch_px = config['autoencoder']['patch_px']
  # Rays are two to a patch and axis.
  if patch_px % 2 or config['image_size_px'] % patch_px:
    raise errors.UserError(
      f'config.autoencoder.patch_px={patch_px}: must be even and divide '
      f'config.image_size_px={config["image_size_px"]}'
    )
  if patch_px % spheres['noisy_cells']:
    raise errors.UserError(
      f'config.model.spheres.noisy_cells={spheres["noisy_cells"]}: must divide '
      f'config.autoencoder.patch_px={patch_px}'
    )
