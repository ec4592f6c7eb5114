"""From the parameters of a model here to the public layouts.

  diffusers  folders `unet`, `vae`, `image_encoder` and `scheduler`, which
             `from_pretrained` loads; what is ours alone is in `odin`: the
             motion mask's rows of the last layer, the conditioning, the config;
  ldm        one `model.ckpt` with the names of Zero-1-to-3, what is ours alone
             under `odin.`.

Both come back bit for bit through `odin_jax.porting.importing`.
"""

import itertools
import json
import pathlib
from typing import Any, Callable, Mapping, NamedTuple

import numpy as np

from odin_jax.porting import (
  checkpoint_files,
  clip,
  formats,
  importing,
  source_config,
  tensors,
  torch_files,
  unet,
  vae,
)
from odin_jax.shared import errors, lazy_array
from odin_jax.shared.lazy_array import LazyArray

Tree = Mapping[Any, Any]
Tensors = dict[str, LazyArray]
Claim = Callable[[], pathlib.Path]
EXPORTS = ('diffusers', 'ldm')
# Files and folders that they may consist of.
PARTS = ('unet', 'vae', 'image_encoder', 'scheduler', 'odin', 'model.ckpt')
_LDM = formats.FORMATS['zero123']
_DIFFUSERS = formats.FORMATS['diffusers']


class Model(NamedTuple):
  """What is exported.

  Attributes:
    params: nested dicts of lazy arrays: `unet` and `conditioning`.
    encoders: `autoencoder` and `image`; None or other kinds are left out.
    config: a whole training config.
  """

  params: Mapping[str, Tree]
  encoders: Mapping[str, Tree | None]
  config: Mapping[str, Any]


def write(
  kind: str, model: Model, claim: Claim, dtype: np.dtype
) -> dict[str, Any]:
  """Writes a model in a public layout.

  Args:
    kind: one of `EXPORTS`.
    model: to write.
    claim: gives the output folder; called when nothing can be refused anymore.
    dtype: of the tensors.

  Returns:
    what was done, for a report.

  Raises:
    errors.UserError: the layout has no such network.
  """
  # Parts that these layouts have no place for would be lost without a word.
  strangers = sorted(set(model.params) - {'unet', 'conditioning'})
  if strangers:
    raise errors.UserError(
      f'--export={kind}: has no place for {", ".join(strangers)} of this model; '
      'a whole model is its workdir, or --export=pretrained'
    )
  try:
    return _WRITERS[kind](model, claim, dtype)
  except ValueError as error:
    advice = '; --export=ldm can hold it' if kind == 'diffusers' else ''
    raise errors.UserError(f'--export={kind}: {error}{advice}') from error


# -- Networks ------------------------------------------------------------------


def _settings(model: Model) -> dict[str, dict[str, Any]]:
  """Settings of the networks that have a counterpart."""
  network = lazy_array.flattened(model.params['unet'])
  settings = {
    'unet': {
      **model.config['model']['unet'],
      'in_channels': network['conv_in/kernel'].shape[2],
      'out_channels': network['conv_out/kernel'].shape[3] - 1,
    }
  }
  for name, (section, kind) in source_config.SECTIONS.items():
    values = dict(model.config[section])
    if values.pop('kind') == kind:
      settings[name] = values
  return settings


def _foreign(
  rows: list[tensors.Entry], params: list[LazyArray], dtype: np.dtype
) -> LazyArray:
  """The tensor that the rows, which share its name, make up."""
  shapes = [np.broadcast_to(np.zeros((), dtype), p.shape) for p in params]
  shape = tensors.to_torch(rows, shapes).shape

  def read() -> np.ndarray:
    arrays = [param.read() for param in params]
    return tensors.to_torch(rows, arrays).astype(dtype, copy=False)

  return LazyArray(shape, dtype, read)


def _networks(
  model: Model, row: formats.Format, dtype: np.dtype
) -> tuple[Tensors, dict[str, dict[str, Any]]]:
  """All tensors that the layout knows, and the settings of the networks.

  The rows of the motion mask are apart, under `formats.MOTION_MASK`.
  """
  settings = _settings(model)
  trees = {'unet': model.params['unet'], **model.encoders}
  written = {}
  for name, naming in source_config.NAMING.items():
    if name not in settings:
      continue
    params = lazy_array.flattened(trees[name])
    if name == 'unet':
      for path, leaf, layout in importing.MASK:
        entry = tensors.Entry(path, formats.MOTION_MASK + leaf, layout)
        last = params[path].map(lambda layer: layer[..., -1:])
        written[entry.name] = _foreign([entry], [last], dtype)
        params[path] = params[path].map(lambda layer: layer[..., :-1])
    prefix, layout = row.networks[name]
    entries = sorted(
      naming.entries(settings[name], layout), key=lambda entry: entry.name
    )
    for key, rows in itertools.groupby(entries, lambda entry: entry.name):
      rows = list(rows)
      written[prefix + key] = _foreign(
        rows, [params[entry.path] for entry in rows], dtype
      )
  return written, settings


def _conditioning(params: Mapping[str, Any], dtype: np.dtype) -> Tensors:
  """Ours as it is, under `formats.CONDITIONING`."""
  return {
    formats.CONDITIONING + path.replace('/', '.'): _foreign(
      [tensors.Entry(path, path)], [array], dtype
    )
    for path, array in params.items()
  }


def _facts(model: Model, written: Tensors, settings: Any) -> dict[str, Any]:
  return dict(
    tensors=len(written),
    parameters=sum(tensor.size for tensor in written.values()),
    conditioning=model.config['model']['conditioning'],
    left_out=[
      f'{name}: no counterpart'
      for name in source_config.NAMING
      if name not in settings
    ],
  )


# -- Layouts -------------------------------------------------------------------


def _write_ldm(model: Model, claim: Claim, dtype: np.dtype) -> dict[str, Any]:
  networks, settings = _networks(model, _LDM, dtype)
  params = lazy_array.flattened(model.params['conditioning'])
  pose = _pose(model.config)
  written = {}
  if pose:
    for leaf, name, layout in importing.PROJECTION:
      array = params.pop(f'parts/{pose}/projection/{leaf}')
      entry = tensors.Entry(leaf, _LDM.projection + name, layout)
      written[entry.name] = _foreign([entry], [array], dtype)
  # The encoders come last: lazy arrays are cheapest one tree after the other.
  written |= _conditioning(params, dtype) | networks
  facts = _facts(model, written, settings)
  text = json.dumps(model.config).encode()
  written[formats.CONFIG] = lazy_array.of(np.frombuffer(text, np.uint8))
  torch_files.write(claim() / 'model.ckpt', written.items())
  return facts


def _pose(config: Mapping[str, Any]) -> str | None:
  """The one part that the projection of the layout can be of."""
  parts = config['model']['conditioning'].split('+')
  poses = [part for part in parts if part in formats.WIDTHS]
  return poses[0] if poses else None


# Prefix of the tensors -> file. The encoders come last: lazy arrays are
# cheapest one tree after the other.
_FILES = {
  'unet.': 'unet/diffusion_pytorch_model.safetensors',
  formats.MOTION_MASK: 'odin/motion_mask.safetensors',
  formats.CONDITIONING: 'odin/conditioning.safetensors',
  'vae.': 'vae/diffusion_pytorch_model.safetensors',
  'image_encoder.': 'image_encoder/model.safetensors',
}


def _write_diffusers(
  model: Model, claim: Claim, dtype: np.dtype
) -> dict[str, Any]:
  # What diffusers cannot hold is told before anything else is done.
  configs = _configs(model.config, _settings(model))
  written, settings = _networks(model, _DIFFUSERS, dtype)
  params = lazy_array.flattened(model.params['conditioning'])
  written |= _conditioning(params, dtype)
  output = claim()
  for name, config in configs.items():
    checkpoint_files.write_json(output / name, config)
  for prefix, name in _FILES.items():
    part = {
      key.removeprefix(prefix): tensor
      for key, tensor in written.items()
      if key.startswith(prefix)
    }
    if part or prefix.startswith('odin'):
      checkpoint_files.write_safetensors(output / name, part.items())
  return _facts(model, written, settings)


def _configs(
  config: Mapping[str, Any], settings: Mapping[str, dict[str, Any]]
) -> dict[str, Any]:
  """Content of every JSON file by its name."""
  first = config['autoencoder']
  downsampling = first.get('patch_px') or 2 ** (len(first['channel_mult']) - 1)
  configs = {
    'unet/config.json': unet.diffusers_config(
      settings['unet'], sample_size=config['image_size_px'] // downsampling
    ),
    'scheduler/scheduler_config.json': _scheduler(config['diffusion']),
    'odin/config.json': config,
  }
  if 'autoencoder' in settings:
    configs['vae/config.json'] = vae.diffusers_config(settings['autoencoder'])
  if 'image' in settings:
    configs['image_encoder/config.json'] = clip.transformers_config(
      settings['image']
    )
  return configs


def _scheduler(diffusion: Mapping[str, Any]) -> dict[str, Any]:
  """scheduler_config.json of the sampler that Stable Diffusion is used with."""
  schedules = {value: field for field, value in source_config.SCHEDULES.items()}
  predictions = {
    value: field for field, value in source_config.PREDICTIONS.items()
  }
  spacing, _, from_0 = diffusion['spacing'].partition('-from-')
  return {
    '_class_name': 'DDIMScheduler',
    **source_config.BETAS,
    'beta_schedule': schedules[diffusion['schedule']],
    'num_train_timesteps': diffusion['num_timesteps'],
    'prediction_type': predictions[diffusion['prediction']],
    'rescale_betas_zero_snr': diffusion['zero_terminal_snr'],
    # Zero-1-to-3's own, which diffusers has not, is next to Stable Diffusion's.
    'timestep_spacing': 'leading' if spacing == 'zero123' else spacing,
    'steps_offset': int(spacing in ('leading', 'zero123') and not from_0),
    'clip_sample': False,
    'set_alpha_to_one': diffusion.get(
      'set_alpha_to_one', spacing not in ('leading', 'zero123')
    ),
  }


_WRITERS = {'diffusers': _write_diffusers, 'ldm': _write_ldm}
