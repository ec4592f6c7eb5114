"""From a public checkpoint to the parameters and the config of a model here.

Every tensor is used exactly once or is named in the format's table of what is
left out; anything else is an error. Nothing is read but what settings are made
of: the parameters are lazy arrays.
"""

import collections
import functools
import json
import re
from typing import Any, Callable, Mapping, NamedTuple

import numpy as np

from odin_jax.porting import clip, formats, tensors, unet, vae, widen
from odin_jax.shared import binary, lazy_array
from odin_jax.shared.lazy_array import LazyArray

Flat = dict[str, LazyArray]
# (network, its settings) -> shape of every parameter by path.
Shapes = Callable[[str, Mapping[str, Any]], Mapping[str, tuple[int, ...]]]
NAMING = {'unet': unet, 'autoencoder': vae, 'image': clip}
_FROM_CONFIG = {
  'unet': unet.settings_from_diffusers,
  'autoencoder': vae.settings_from_diffusers,
  'image': clip.settings_from_transformers,
}
_ROLES = {
  'unet': 'the U-Net',
  'autoencoder': 'the KL autoencoder',
  'image': 'the CLIP image encoder',
}
_LISTED = 10
_NOT_AVERAGED = 'the last parameters: the moving average is used'
_AVERAGED = 'the moving average: the last parameters are used'


class Imported(NamedTuple):
  """A model.

  Attributes:
    params: nested dicts of lazy arrays, as `nnx.to_pure_dict` nests them:
      `unet` and `conditioning`.
    encoders: likewise: `autoencoder` and `image`; None of what is absent.
    config: its part of a training config, with `ported_from`.
    facts: what was done, for a report.
  """

  params: dict[str, Any]
  encoders: dict[str, Any]
  config: dict[str, Any]
  facts: dict[str, Any]


class _Ledger:
  """Who takes which tensor."""

  def __init__(self, where: str, all_tensors: Mapping[str, LazyArray]):
    self.where = where
    self.tensors = all_tensors
    self._taken: set[str] = set()
    self._missing: list[str] = []

  def take(self, name: str) -> LazyArray | None:
    """The tensor, or None where it is missing, which `close` tells."""
    if name not in self.tensors:
      self._missing.append(name)
      return None
    self._taken.add(name)
    return self.tensors[name]

  def names(self, prefix: str) -> list[str]:
    return [name for name in self.tensors if name.startswith(prefix)]

  def require_all(self) -> None:
    """Raises binary.UserError unless all that was to be taken was there."""
    if self._missing:
      raise binary.UserError(
        f'{self.where}: {_listed(self._missing)} missing; is --format right?'
      )

  def close(self, ignored: formats.Ignored) -> dict[str, int]:
    """Counts what is left out, by reason.

    Raises:
      binary.UserError: tensors are missing, or left over.
    """
    self.require_all()
    counts: dict[str, int] = collections.Counter()
    left_over = []
    for name in self.tensors.keys() - self._taken:
      why = next((w for p, w in ignored if re.fullmatch(p, name)), None)
      if why is None:
        left_over.append(name)
      else:
        counts[why] += 1
    if left_over:
      raise binary.UserError(
        f'{self.where}: {_listed(sorted(left_over))} left over, which this '
        'format does not know; is --format right?'
      )
    return dict(counts)


def _listed(names: list[str]) -> str:
  more = ', ...' if len(names) > _LISTED else ''
  return f'{len(names)} tensors ({", ".join(names[:_LISTED])}{more}) are'


def _read_finite(
  where: str,
  tensor: LazyArray,
  convert: Callable[[np.ndarray], np.ndarray],
  dtype: np.dtype,
) -> np.ndarray:
  array = np.ascontiguousarray(convert(tensor.read()), dtype)
  if not np.isfinite(array).all():
    raise binary.UserError(
      f'{where} holds NaN or infinity; this checkpoint is of no use'
    )
  return array


class _Job:
  """One import; see `convert` for the arguments."""

  def __init__(
    self,
    name: str,
    source: formats.Source,
    average: bool | None,
    dtype: np.dtype,
    shapes: Shapes,
  ):
    self.name = name
    self.row = formats.FORMATS[name]
    self.configs = source.configs
    self.dtype = dtype
    self.shapes = shapes
    self.where = str(source.paths[0])
    self.ledger = _Ledger(self.where, source.tensors)
    self.own = self._own_config()
    self.ignored = list(self.row.ignored)
    self.averaged = self._choose(average)

  # -- Settings ----------------------------------------------------------------

  def _own_config(self) -> dict[str, Any] | None:
    """The config of a model that was exported from here, or None."""
    if formats.CONFIG in self.ledger.tensors:
      return json.loads(self.ledger.take(formats.CONFIG).read().tobytes())
    return self.configs.get('odin')

  def settings(self, network: str) -> dict[str, Any] | None:
    """Sizes of a network; None for a folder that diffusers was not given."""
    prefix, layout = self.row.networks[network]
    shapes = {
      name.removeprefix(prefix): self.ledger.tensors[name].shape
      for name in self.ledger.names(prefix)
    }
    if not shapes and network in self.row.optional:
      return None
    if not shapes:
      raise binary.UserError(
        f'{self.where}: no tensor {prefix}*, which is {_ROLES[network]} of '
        f'--format={self.name}; give a checkpoint that has it'
      )
    config = self.configs.get(prefix.removesuffix('.'))
    # What no shape tells, such as the number of heads.
    own = {}
    if self.own and network == 'unet':
      unet_config = self.own['model']['unet']
      own = {key: unet_config[key] for key in ('num_heads', 'num_groups')}
    try:
      if config is not None:
        return _FROM_CONFIG[network](config)
      return NAMING[network].settings_from_shapes(shapes, layout, **own)
    except (ValueError, IndexError) as error:
      raise binary.UserError(
        f'{self.where}: {_ROLES[network]}: {error}; is --format right?'
      ) from error

  # -- Networks ----------------------------------------------------------------

  def network(self, network: str, settings: Mapping[str, Any]) -> Flat:
    """The parameters of a network by path."""
    prefix, layout = self.row.networks[network]
    expected = self.shapes(network, settings)
    params = {}
    for entry in NAMING[network].entries(settings, layout):
      name = prefix + entry.name
      if network == 'unet' and self.averaged:
        name = formats.average_name(name, self.row.averages)
      tensor = self.ledger.take(name)
      if tensor is not None:
        params[entry.path] = self._parameter(
          name, tensor, entry, expected[entry.path]
        )
    return params

  def _parameter(
    self,
    name: str,
    tensor: LazyArray,
    entry: tensors.Entry,
    expected: tuple[int, ...] | None,
  ) -> LazyArray:
    """Our parameter: in our layout, of the dtype asked for, finite."""
    where = f'{self.where}: {name}'
    convert = functools.partial(tensors.to_ours, entry)
    try:
      shape = tensor.map(convert).shape
    except (ValueError, IndexError):
      shape = None
    if shape is None or expected not in (None, shape):
      raise binary.UserError(
        f'{where} has shape {tensor.shape}, which does not fit the other '
        'tensors; the file is damaged, or --format is wrong'
      )
    read = functools.partial(_read_finite, where, tensor, convert, self.dtype)
    return LazyArray(shape, self.dtype, read)

  def _choose(self, average: bool | None) -> bool:
    """Whether the moving average is taken; the other set is left out."""
    averages, present = self.row.averages, False
    prefix, _ = self.row.networks['unet']
    plain = self.ledger.names(prefix)
    if averages is not None:
      averaged = [formats.average_name(name, averages) for name in plain]
      present = any(name in self.ledger.tensors for name in averaged)
    if average and not present:
      raise binary.UserError(
        f'{self.where}: no moving average here; give --noema'
      )
    if not present:
      return False
    taken = present if average is None else average
    names, why = (plain, _NOT_AVERAGED) if taken else (averaged, _AVERAGED)
    self.ignored += [(re.escape(name), why) for name in names]
    return taken

  # -- What is ours ------------------------------------------------------------

  def widened(
    self, params: Flat, settings: Mapping[str, Any], latent: int
  ) -> tuple[Flat, list[str]]:
    """The U-Net with our inputs and the mask; and what of it is new."""
    inputs, new = settings['in_channels'], []
    if settings['out_channels'] != latent:
      raise binary.UserError(
        f'{self.where}: the U-Net has {settings["out_channels"]} outputs and '
        f'a latent {latent} channels; give the autoencoder of that U-Net'
      )
    if not self.own and inputs not in (latent, 2 * latent):
      raise binary.UserError(
        f'{self.where}: the U-Net has {inputs} inputs; {latent} and '
        f'{2 * latent}, with the source view, are known'
      )
    params = dict(params)
    if not self.own and inputs == latent:
      new.append('inputs of the source view: zeros')
      params['conv_in/kernel'] = params['conv_in/kernel'].map(
        lambda kernel: widen.first_convolution(kernel, 2 * latent)
      )
    if not self.ledger.names(formats.MOTION_MASK):
      new.append('output of the motion mask: zeros')
      for path in ('conv_out/kernel', 'conv_out/bias'):
        params[path] = params[path].map(widen.last_layer)
      return params, new
    for path, name, layout in MASK:
      mask = self._own(formats.MOTION_MASK + name, path, layout)
      if mask is not None:
        params[path] = _joined(params[path], mask)
    return params, new

  def _own(self, name: str, path: str, layout: str) -> LazyArray | None:
    tensor = self.ledger.take(name)
    if tensor is None:
      return None
    entry = tensors.Entry(path, name, layout)
    return self._parameter(name, tensor, entry, None)

  def conditioning(
    self, image_width: int, context_dim: int
  ) -> tuple[str, Flat, list[str]]:
    """Names of the parts, their parameters, and what of it is new."""
    params = {
      name.removeprefix(formats.CONDITIONING).replace('.', '/'): self._own(
        name, name, 'same'
      )
      for name in self.ledger.names(formats.CONDITIONING)
    }
    given = self.ledger.names(self.row.projection)
    pose, new = self.row.pose or 'zero123', []
    if given or (self.row.pose and not self.own):
      pose, projection = self._projection(image_width)
      params |= {f'parts/{pose}/projection/{k}': v for k, v in projection}
    elif not self.own:
      new.append(f'pose projection of {pose}: as Zero-1-to-3 started')
      for leaf, array in widen.pose_projection(
        image_width, formats.WIDTHS[pose], context_dim
      ).items():
        array = array.astype(self.dtype)
        params[f'parts/{pose}/projection/{leaf}'] = lazy_array.of(array)
    return pose, params, new

  def _projection(
    self, image_width: int
  ) -> tuple[str, list[tuple[str, LazyArray]]]:
    """The part that the pose projection is of, and its parameters."""
    found = [
      (leaf, self._own(self.row.projection + name, leaf, layout))
      for leaf, name, layout in PROJECTION
    ]
    kernel = found[0][1]
    if kernel is None or found[1][1] is None:
      return self.row.pose or 'zero123', []
    width = kernel.shape[0] - image_width
    pose = formats.POSES.get(width)
    if pose is None or self.row.pose not in (None, pose):
      raise binary.UserError(
        f'{self.where}: {self.row.projection}weight takes {width} numbers of '
        f'the pose, which is {pose or "no known pose"}; '
        f'{"give --format=" + pose if pose else "it cannot be imported"}'
      )
    return pose, found


# Path of ours, name, layout.
MASK = (
  ('conv_out/kernel', 'weight', 'conv'),
  ('conv_out/bias', 'bias', 'same'),
)
PROJECTION = (('kernel', 'weight', 'linear'), ('bias', 'bias', 'same'))


def _joined(first: LazyArray, second: LazyArray) -> LazyArray:
  """Both along the last axis."""
  shape = (*first.shape[:-1], first.shape[-1] + second.shape[-1])
  return LazyArray(
    shape,
    first.dtype,
    lambda: np.concatenate([first.read(), second.read()], axis=-1),
  )


# -- Config --------------------------------------------------------------------

# Ours by diffusers'.
PREDICTIONS = {'epsilon': 'eps', 'v_prediction': 'v', 'sample': 'x0'}
SCHEDULES = {'scaled_linear': 'scaled_linear', 'squaredcos_cap_v2': 'cosine'}
SPACINGS = ('leading', 'trailing')
BETAS = {'beta_start': 0.00085, 'beta_end': 0.012}
_PIXELS = 256
# Levels of Stable Diffusion's autoencoder.
_CHANNEL_MULT = (1, 2, 4, 4)


def _diffusion(where: str, scheduler: Mapping[str, Any]) -> dict[str, Any]:
  """`config.diffusion` of a scheduler_config.json, {} for Zero-1-to-3's."""
  schedule = scheduler.get('beta_schedule', 'scaled_linear')
  prediction = scheduler.get('prediction_type', 'epsilon')
  betas = {name: scheduler.get(name, value) for name, value in BETAS.items()}
  if (
    schedule not in SCHEDULES
    or prediction not in PREDICTIONS
    or (schedule == 'scaled_linear' and betas != BETAS)
  ):
    raise binary.UserError(
      f'{where}: a scheduler with beta_schedule={schedule}, {betas} and '
      f'prediction_type={prediction}; {", ".join(SCHEDULES)} with {BETAS} and '
      f'{", ".join(PREDICTIONS)} are known'
    )
  spacing = scheduler.get('timestep_spacing')
  return dict(
    schedule=SCHEDULES[schedule],
    num_timesteps=scheduler.get('num_train_timesteps', 1000),
    zero_terminal_snr=scheduler.get('rescale_betas_zero_snr', False),
    prediction=PREDICTIONS[prediction],
    spacing=spacing if spacing in SPACINGS else SPACINGS[0],
  )


def _sections(settings: Mapping[str, dict[str, Any]]) -> dict[str, Any]:
  """`config.autoencoder` and `config.image_encoder`.

  Of a network that is not there only what the U-Net tells: it can be exported,
  and the config says why it cannot be sampled from.
  """
  network = settings['unet']
  sections = {
    'autoencoder': dict(
      kind='none',
      latent_channels=network['out_channels'],
      channel_mult=_CHANNEL_MULT,
      scale=vae.SCALE,
    ),
    'image_encoder': dict(kind='none', projection=network['context_dim']),
  }
  for network, section, kind in (
    ('autoencoder', 'autoencoder', 'kl'),
    ('image', 'image_encoder', 'clip'),
  ):
    if network in settings:
      sections[section] = dict(kind=kind, **settings[network])
  return sections


def _image_size_px(
  configs: Mapping[str, Any], autoencoder: Mapping[str, Any]
) -> int:
  latents = configs.get('unet', {}).get('sample_size')
  if not isinstance(latents, int):
    return _PIXELS
  return latents * 2 ** (len(autoencoder['channel_mult']) - 1)


def convert(
  name: str,
  source: formats.Source,
  *,
  average: bool | None,
  dtype: np.dtype,
  shapes: Shapes,
) -> Imported:
  """The model in a checkpoint.

  Args:
    name: of the format.
    source: what `formats.read` found.
    average: take the moving average of the U-Net; None: where there is one.
    dtype: of the parameters.
    shapes: what the networks of given settings need.

  Raises:
    binary.UserError: tensors are missing, left over, of a wrong shape, or
      belong to another network.
  """
  job = _Job(name, source, average, dtype, shapes)
  found = {network: job.settings(network) for network in NAMING}
  settings = {network: sizes for network, sizes in found.items() if sizes}
  params = {
    network: job.network(network, sizes) for network, sizes in settings.items()
  }
  sections = _sections(settings)
  latent = sections['autoencoder']['latent_channels']
  pose, conditioning, new_parts = job.conditioning(
    sections['image_encoder']['projection'], settings['unet']['context_dim']
  )
  job.ledger.require_all()
  network, new = job.widened(params['unet'], settings['unet'], latent)
  left_out = job.ledger.close(tuple(job.ignored))
  own = job.own or dict(
    model=dict(
      conditioning=pose,
      unscaled_source=True,
      unet={
        key: value
        for key, value in settings['unet'].items()
        if key not in ('in_channels', 'out_channels')
      },
    ),
    diffusion=_diffusion(job.where, source.configs.get('scheduler', {})),
    image_size_px=_image_size_px(source.configs, sections['autoencoder']),
  )
  return Imported(
    params=dict(
      unet=lazy_array.nested(network),
      conditioning=lazy_array.nested(conditioning),
    ),
    encoders={
      key: lazy_array.nested(params[key]) if key in params else None
      for key in ('autoencoder', 'image')
    },
    config={**own, 'ported_from': name, **sections},
    facts=dict(
      files=[str(path) for path in source.paths],
      moving_average=job.averaged,
      conditioning=own['model']['conditioning'],
      new=new + new_parts,
      absent=[network for network in NAMING if network not in settings],
      left_out=left_out,
    ),
  )
