"""What a checkpoint says of its networks: their settings, and a config.

Settings are the arguments that build a network here. They come from the
config.json beside the tensors; for a model that was exported from here, from
its own config; or else from the tensors' shapes. What none of these says is
taken from a recipe with Stable Diffusion's sizes.
"""

import contextlib
import json
from typing import Any, Iterator, Mapping

import numpy as np

from odin_jax.porting import clip, formats, ledger, unet, vae
from odin_jax.shared import errors

NAMING = {'unet': unet, 'autoencoder': vae, 'image': clip}
_ROLES = {
  'unet': 'the U-Net',
  'autoencoder': 'the KL autoencoder',
  'image': 'the CLIP image encoder',
  'conditioning': 'the conditioning',
}
# Encoder -> section of our config, and the kind of it that is known elsewhere.
SECTIONS = {
  'autoencoder': ('autoencoder', 'kl'),
  'image': ('image_encoder', 'clip'),
}
# Ours by diffusers'.
PREDICTIONS = {'epsilon': 'eps', 'v_prediction': 'v', 'sample': 'x0'}
SCHEDULES = {'scaled_linear': 'scaled_linear', 'squaredcos_cap_v2': 'cosine'}
SPACINGS = ('leading', 'trailing', 'linspace')
# What building a network raises of settings that none can have.
MISFITS = (
  ValueError,
  TypeError,
  LookupError,
  ArithmeticError,
  AttributeError,
)
BETAS = {'beta_start': 0.00085, 'beta_end': 0.012}


@contextlib.contextmanager
def explained(where: str, network: str) -> Iterator[None]:
  """Settings that no network can have become a clear line.

  Args:
    where: the checkpoint.
    network: `unet`, `autoencoder`, `image` or `conditioning`.
  """
  try:
    yield
  except MISFITS as error:
    raise errors.UserError(
      f'{where}: {_ROLES[network]}: {error}; is --format right?'
    ) from error


# Where a number is of something that there is.
_SIZES = ('model.unet.', 'autoencoder.', 'image_encoder.')


def _fields(
  config: Mapping[str, Any], recipe: Mapping[str, Any], prefix: str = ''
) -> Iterator[tuple[str, Any, Any]]:
  """Path and value of every field that the recipe has, and the recipe's."""
  for name in config.keys() & recipe.keys():
    value, like = config[name], recipe[name]
    if isinstance(value, Mapping) and isinstance(like, Mapping):
      yield from _fields(value, like, f'{prefix}{name}.')
    else:
      yield prefix + name, value, like


class SourceConfig:
  """Reads settings and config; takes from the ledger what tells of them.

  Args:
    name: of the format.
    source: what `formats.read` found.
    tensors: its ledger.
    recipe: a training config with Stable Diffusion's sizes.

  Attributes:
    own: the config of a model that was exported from here, or None.

  Raises:
    errors.UserError: that config is damaged.
  """

  def __init__(
    self,
    name: str,
    source: formats.Source,
    tensors: ledger.Ledger,
    recipe: Mapping[str, Any],
  ):
    self._name = name
    self._format = formats.FORMATS[name]
    self._configs = source.configs
    self._where = tensors.where
    self._ledger = tensors
    self._recipe = recipe
    self.own = self._own_config()

  def _own_config(self) -> dict[str, Any] | None:
    if formats.CONFIG not in self._ledger.tensors:
      own = self._configs.get('odin')
    else:
      text = self._ledger.take(formats.CONFIG).read().tobytes()
      try:
        own = json.loads(text)
      except ValueError as error:
        raise self._damaged_config() from error
    if own is None:
      return None
    if not isinstance(own, dict) or not all(
      isinstance(own.get(name), dict)
      for name in ('model', 'autoencoder', 'image_encoder', 'diffusion')
    ):
      raise self._damaged_config()
    for path, value, like in _fields(own, self._recipe):
      self._require_like(path, value, like)
    return own

  def _require_like(self, path: str, value: Any, like: Any) -> None:
    """Checks a field by that of the recipe.

    Raises:
      errors.UserError: it is of another type, or a number that no network has.
    """
    if isinstance(like, bool):
      fits, words = isinstance(value, bool), 'true or false'
    elif isinstance(like, (int, float)):
      types = (int, float) if isinstance(like, float) else int
      fits = isinstance(value, types) and not isinstance(value, bool)
      words = 'a number' if isinstance(like, float) else 'a whole number'
      if path.startswith(_SIZES):
        fits, words = fits and 0 < value < np.inf, f'{words} above 0'
    elif isinstance(like, (list, tuple)):
      fits, words = isinstance(value, (list, tuple)), 'a list'
    else:
      fits, words = isinstance(value, type(like)), 'a text'
    if not fits:
      raise errors.UserError(
        f'{self._where}: its config says {path}={value!r}, which must be '
        f'{words}; export the model again'
      )

  def _damaged_config(self) -> errors.UserError:
    return errors.UserError(
      f'{self._where}: the config of ours that comes with it is damaged; '
      'export the model again'
    )

  # -- Settings ----------------------------------------------------------------

  def settings(self) -> dict[str, dict[str, Any]]:
    """Settings by network, without those that may be absent and are.

    Raises:
      errors.UserError: a network is absent or is none that ours can be.
    """
    settings = {network: self._settings(network) for network in NAMING}
    settings = {network: sizes for network, sizes in settings.items() if sizes}
    for network, sizes in settings.items():
      name, recipe = 'model.unet', self._recipe['model']['unet']
      if network in SECTIONS:
        name, _ = SECTIONS[network]
        recipe = self._recipe[name]
      for path, value, like in _fields(sizes, recipe):
        self._require_like(f'{name}.{path}', value, like)
    return settings

  def _settings(self, network: str) -> dict[str, Any] | None:
    prefix, layout = self._format.networks[network]
    shapes = {
      name.removeprefix(prefix): self._ledger.tensors[name].shape
      for name in self._ledger.names(prefix)
    }
    if not shapes and self._may_lack(network):
      return None
    if not shapes:
      raise errors.UserError(
        f'{self._where}: no tensor {prefix}*, which is {_ROLES[network]} of '
        f'--format={self._name}; give a checkpoint that has it'
      )
    config = self._configs.get(prefix.removesuffix('.'))
    with explained(self._where, network):
      if config is not None:
        settings = _from_foreign(network, config, self._recipe)
      elif self.own is not None:
        settings = _from_own(network, self.own, shapes, layout)
      else:
        settings = NAMING[network].settings_from_shapes(
          shapes, layout, **_not_in_shapes(network, self._recipe)
        )
    if network == 'autoencoder' and self._format.scale in self._ledger.tensors:
      settings['scale'] = self._scale()
    return settings

  def _may_lack(self, network: str) -> bool:
    if self.own is not None and network in SECTIONS:
      section, kind = SECTIONS[network]
      if self.own[section].get('kind') != kind:
        return True
    return network in self._format.optional

  def _scale(self) -> float:
    """What ldm made the latents' standard deviation 1 with."""
    values = self._ledger.take(self._format.scale).read()
    if values.size != 1 or not 0 < float(values.flat[0]) < np.inf:
      raise errors.UserError(
        f'{self._where}: {self._format.scale} is {values}, not a positive '
        'number; the file is damaged'
      )
    return float(values.flat[0])

  # -- Config ------------------------------------------------------------------

  def sections(
    self, settings: Mapping[str, dict[str, Any]]
  ) -> dict[str, dict[str, Any]]:
    """`config.autoencoder` and `config.image_encoder`.

    Of a network that is not there only what the U-Net and the recipe tell: it
    can be exported, and the config says why it cannot be sampled from.

    Args:
      settings: by network.
    """
    network = settings['unet']
    autoencoder = self._recipe['autoencoder']
    sections = {
      'autoencoder': dict(
        kind='none',
        latent_channels=network['out_channels'],
        channel_mult=autoencoder['channel_mult'],
        scale=autoencoder['scale'],
      ),
      'image_encoder': dict(kind='none', projection=network['context_dim']),
    }
    own = self.own or {}
    for network, (section, kind) in SECTIONS.items():
      if own.get(section, {}).get('kind') == 'none':
        sections[section] = own[section]
      if network in settings:
        sections[section] = dict(kind=kind, **settings[network])
    return sections

  def config(
    self,
    settings: Mapping[str, dict[str, Any]],
    sections: Mapping[str, dict[str, Any]],
    conditioning: str,
  ) -> dict[str, Any]:
    """What else of a training config the checkpoint decides.

    Args:
      settings: by network.
      sections: what the method of that name gives.
      conditioning: names of its parts.

    Raises:
      errors.UserError: its noise schedule is none that is known here.
    """
    return self.own or dict(
      model=dict(
        conditioning=conditioning,
        unscaled_source=True,
        unet={
          key: value
          for key, value in settings['unet'].items()
          if key not in ('in_channels', 'out_channels')
        },
      ),
      diffusion={
        **_diffusion(self._where, self._configs.get('scheduler', {})),
        # No checkpoint says; Zero-1-to-3 and its relatives train with it.
        'condition_dropout': self._recipe['diffusion']['condition_dropout'],
      },
      image_size_px=self._image_size_px(sections['autoencoder']),
    )

  def _image_size_px(self, autoencoder: Mapping[str, Any]) -> int:
    latents = self._configs.get('unet', {}).get('sample_size')
    if not isinstance(latents, int):
      return self._recipe['image_size_px']
    return latents * 2 ** (len(autoencoder['channel_mult']) - 1)


def _from_foreign(
  network: str, config: Mapping[str, Any], recipe: Mapping[str, Any]
) -> dict[str, Any]:
  """Settings of a network by the config.json beside it."""
  if network == 'unet':
    return unet.settings_from_diffusers(config)
  if network == 'image':
    return clip.settings_from_transformers(config)
  return vae.settings_from_diffusers(
    config, scale=recipe['autoencoder']['scale']
  )


def _not_in_shapes(network: str, config: Mapping[str, Any]) -> dict[str, Any]:
  """The settings that shapes do not tell, from a training config."""
  if network == 'unet':
    section, names = config['model']['unet'], ('num_heads', 'num_groups')
  elif network == 'autoencoder':
    section, names = config['autoencoder'], ('num_groups', 'scale')
  else:
    return {}
  return {name: section[name] for name in names}


def _from_own(
  network: str,
  own: Mapping[str, Any],
  shapes: Mapping[str, tuple[int, ...]],
  layout: str,
) -> dict[str, Any]:
  """Settings of a network that was exported from here.

  Shapes do not tell all of them, and the config not those of the U-Net's ends.
  """
  if network == 'unet':
    section = own['model']['unet']
    settings = unet.settings_from_shapes(
      shapes, layout, **_not_in_shapes(network, own)
    )
  else:
    name, known = SECTIONS[network]
    settings, section = {}, dict(own[name])
    kind = section.pop('kind')
    if kind != known:
      raise ValueError(f'its config says that it is of the kind {kind}')
  return settings | {
    key: tuple(value) if isinstance(value, list) else value
    for key, value in section.items()
  }


# -- Schedulers ----------------------------------------------------------------

# Classes of diffusers for networks trained as Stable Diffusion is, and the
# spacing that they have where their config says none.
_SPACING_BY_CLASS = {
  **dict.fromkeys(
    ('DDIMScheduler', 'DDPMScheduler', 'PNDMScheduler'), 'leading'
  ),
  **dict.fromkeys(
    (
      'DEISMultistepScheduler',
      'DPMSolverMultistepScheduler',
      'DPMSolverSinglestepScheduler',
      'EulerAncestralDiscreteScheduler',
      'EulerDiscreteScheduler',
      'HeunDiscreteScheduler',
      'KDPM2AncestralDiscreteScheduler',
      'KDPM2DiscreteScheduler',
      'LMSDiscreteScheduler',
      'UniPCMultistepScheduler',
    ),
    'linspace',
  ),
}
_DEFAULT_BETAS = {'beta_start': 0.0001, 'beta_end': 0.02}
# Those that clip where their config does not say.
_CLIPS = ('DDIMScheduler', 'DDPMScheduler')
# What becomes settings of ours; `_diffusion` says how.
_OBEYED = (
  'beta_schedule',
  'beta_start',
  'beta_end',
  'num_train_timesteps',
  'prediction_type',
  'rescale_betas_zero_snr',
  'timestep_spacing',
  'steps_offset',
  'set_alpha_to_one',
)
# Numbers that act only where another field, which is refused, asks for them;
# and what a sampler that is chosen here, by its name, does not have.
_INERT = (
  'algorithm_type',
  'clip_sample_range',
  'deis_algorithm_type',
  'disable_corrector',
  'dynamic_thresholding_ratio',
  'euler_at_final',
  'flow_shift',
  'lambda_min_clipped',
  'lower_order_final',
  'predict_x0',
  'sample_max_value',
  'skip_prk_steps',
  'solver_order',
  'solver_p',
  'solver_type',
  'time_shift_type',
)
# Field -> values that ask for nothing; of any other field those are the values
# that count as false.
_NEUTRAL = {
  'final_sigmas_type': ('zero',),
  'interpolation_type': ('linear',),
  'timestep_type': ('discrete',),
  'variance_type': ('fixed_small', 'fixed_small_log', 'fixed_large'),
}


def _check_scheduler(where: str, scheduler: Mapping[str, Any]) -> None:
  """Raises errors.UserError for what cannot be obeyed, by name."""
  if not scheduler:
    return
  kind = scheduler.get('_class_name', 'DDIMScheduler')
  if kind not in _SPACING_BY_CLASS:
    raise errors.UserError(
      f'{where}: a scheduler of class {kind}; known are '
      f'{", ".join(_SPACING_BY_CLASS)}: if the network was trained as for one '
      'of them, put its scheduler_config.json there'
    )
  refused = [
    f'{name}={str(value)[:40]}'
    for name, value in scheduler.items()
    if not name.startswith('_')
    and name not in (*_OBEYED, *_INERT)
    # A list is there, whatever is in it.
    and (value or isinstance(value, list))
    and value not in _NEUTRAL.get(name, ())
  ]
  if 'clip_sample' not in scheduler and kind in _CLIPS:
    refused.append(f'clip_sample=True (its default in {kind})')
  if refused:
    raise errors.UserError(
      f'{where}: its scheduler has {", ".join(refused)}, which is not known '
      'here and would be ignored; to sample without it, set it to null or '
      'false in scheduler_config.json'
    )


def _spacing(where: str, scheduler: Mapping[str, Any]) -> str:
  kind = scheduler.get('_class_name', 'DDIMScheduler')
  spacing = scheduler.get('timestep_spacing') or _SPACING_BY_CLASS[kind]
  # Where it is not said, Stable Diffusion's pipelines make it 1.
  offset = scheduler.get('steps_offset', 1)
  rows = {'leading': {0: 'leading-from-0', 1: 'leading'}}
  row = rows.get(spacing, {0: spacing, 1: spacing})
  if spacing not in SPACINGS or offset not in (0, 1):
    raise errors.UserError(
      f'{where}: its scheduler has timestep_spacing={spacing} and '
      f'steps_offset={offset}; {", ".join(SPACINGS)} and an offset of 0 or 1 '
      'are known'
    )
  return row[offset]


def _diffusion(where: str, scheduler: Mapping[str, Any]) -> dict[str, Any]:
  """`config.diffusion` of a scheduler_config.json, {} for Zero-1-to-3's.

  Raises:
    errors.UserError: something in it is not known here; or nothing of the
      signal is left where sampling starts, and the prediction is eps.
  """
  _check_scheduler(where, scheduler)
  # Without a scheduler it is that of Stable Diffusion, else diffusers' default.
  default = 'linear' if scheduler else 'scaled_linear'
  schedule = scheduler.get('beta_schedule', default)
  prediction = scheduler.get('prediction_type', 'epsilon')
  defaults = _DEFAULT_BETAS if scheduler else BETAS
  betas = {name: scheduler.get(name, value) for name, value in defaults.items()}
  if (
    schedule not in SCHEDULES
    or prediction not in PREDICTIONS
    or (schedule == 'scaled_linear' and betas != BETAS)
  ):
    raise errors.UserError(
      f'{where}: a scheduler with beta_schedule={schedule}, {betas} and '
      f'prediction_type={prediction}; {", ".join(SCHEDULES)} with {BETAS} and '
      f'{", ".join(PREDICTIONS)} are known'
    )
  num_timesteps = scheduler.get('num_train_timesteps', 1000)
  if not isinstance(num_timesteps, int) or num_timesteps < 2:
    raise errors.UserError(
      f'{where}: its scheduler has num_train_timesteps={num_timesteps}, not a '
      'number of timesteps; get scheduler_config.json again'
    )
  spacing = _spacing(where, scheduler)
  no_signal = bool(scheduler.get('rescale_betas_zero_snr', False))
  starts_late = spacing in ('trailing', 'linspace')
  if no_signal and starts_late and prediction == 'epsilon':
    raise errors.UserError(
      f'{where}: its scheduler has prediction_type=epsilon, '
      f'rescale_betas_zero_snr=True and timestep_spacing={spacing}: it starts '
      'where nothing of the signal is left, of which eps says nothing; if the '
      'network predicts v, say so in scheduler_config.json'
    )
  diffusion = dict(
    schedule=SCHEDULES[schedule],
    num_timesteps=num_timesteps,
    zero_terminal_snr=no_signal,
    prediction=PREDICTIONS[prediction],
    spacing=spacing,
  )
  ends_clean = scheduler.get('set_alpha_to_one')
  # The rule of `odin_jax.diffusion.sampler` for DDIM.
  if ends_clean is not None and ends_clean == spacing.startswith('leading'):
    diffusion['set_alpha_to_one'] = ends_clean
  return diffusion
