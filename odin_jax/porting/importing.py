"""From a public checkpoint to the parameters and the config of a model here.

Every tensor is used exactly once or is named in the format's table of what is
left out; anything else is an error. Nothing is read but what settings are made
of: the parameters are lazy arrays.
"""

import collections
import contextlib
import functools
import json
import re
from typing import Any, Callable, Iterable, Iterator, Mapping, NamedTuple

import numpy as np

from odin_jax.porting import clip, formats, tensors, unet, vae, widen
from odin_jax.shared import errors, lazy_array
from odin_jax.shared.lazy_array import LazyArray

Flat = dict[str, LazyArray]
# (network, its settings) -> shape of every parameter by path.
Shapes = Callable[[str, Mapping[str, Any]], Mapping[str, tuple[int, ...]]]
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
# Why the one set of the U-Net's parameters is left out, by whether the other,
# the moving average, is taken.
_LEFT = {
  True: 'the last parameters: the moving average is used',
  False: 'the moving average: the last parameters are used',
}


class Imported(NamedTuple):
  """A model.

  Attributes:
    params: nested dicts of lazy arrays, as `nnx.to_pure_dict` nests them:
      `unet` and `conditioning`.
    encoders: likewise: `autoencoder` and `image`; None of what is absent.
    config: its part of a training config, with `ported_from`, the format, and
      `ported_average`, whether the U-Net's moving average was taken.
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
    self._missing: set[str] = set()
    self._left_out: dict[str, str] = {}

  def take(self, name: str) -> LazyArray | None:
    """The tensor, or None where it is missing, which `close` tells."""
    if name not in self.tensors:
      self._missing.add(name)
      return None
    self._taken.add(name)
    return self.tensors[name]

  def leave(self, name: str, why: str) -> None:
    """Leaves out a tensor that must be there all the same."""
    if self.take(name) is not None:
      self._left_out[name] = why

  def names(self, prefix: str) -> list[str]:
    return [name for name in self.tensors if name.startswith(prefix)]

  def close(self, ignored: formats.Ignored) -> dict[str, int]:
    """Counts what is left out, by reason.

    Raises:
      errors.UserError: tensors are missing, or left over: names all of them.
    """
    left_over = set()
    for name in self.tensors.keys() - self._taken:
      why = next((w for p, w in ignored if re.fullmatch(p, name)), None)
      if why is None:
        left_over.add(name)
      else:
        self._left_out[name] = why
    faults = [
      f'{len(names)} tensors ({", ".join(sorted(names))}) are {what}'
      for names, what in (
        (self._missing, 'missing'),
        (left_over, 'left over, which this format does not know'),
      )
      if names
    ]
    if faults:
      raise errors.UserError(
        f'{self.where}: {"; ".join(faults)}; is --format right?'
      )
    return dict(collections.Counter(self._left_out.values()))


def _read_finite(
  where: str,
  tensor: LazyArray,
  convert: Callable[[np.ndarray], np.ndarray],
  dtype: np.dtype,
) -> np.ndarray:
  array = np.ascontiguousarray(convert(tensor.read()), dtype)
  if not np.isfinite(array).all():
    raise errors.UserError(
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
    recipe: Mapping[str, Any],
  ):
    self.name = name
    self.row = formats.FORMATS[name]
    self.configs = source.configs
    self.dtype = dtype
    self.shapes = shapes
    self.recipe = recipe
    self.where = str(source.paths[0])
    self.ledger = _Ledger(self.where, source.tensors)
    self.own = self._own_config()
    self.has_average = self._finds_average()
    if average and not self.has_average:
      raise errors.UserError(
        f'{self.where}: no moving average here; give --noema'
      )
    self.averaged = self.has_average and average is not False

  # -- Settings ----------------------------------------------------------------

  def _own_config(self) -> dict[str, Any] | None:
    """The config of a model that was exported from here, or None."""
    if formats.CONFIG not in self.ledger.tensors:
      own = self.configs.get('odin')
    else:
      text = self.ledger.take(formats.CONFIG).read().tobytes()
      try:
        own = json.loads(text)
      except ValueError as error:
        raise self._not_ours() from error
    if own is None:
      return None
    if not isinstance(own, dict) or not all(
      isinstance(own.get(name), dict)
      for name in ('model', 'autoencoder', 'image_encoder', 'diffusion')
    ):
      raise self._not_ours()
    return own

  def _not_ours(self) -> errors.UserError:
    return errors.UserError(
      f'{self.where}: the config of ours that comes with it is damaged; export '
      'the model again'
    )

  def settings(self, network: str) -> dict[str, Any] | None:
    """Sizes of a network; None of one that may be absent and is."""
    prefix, layout = self.row.networks[network]
    shapes = {
      name.removeprefix(prefix): self.ledger.tensors[name].shape
      for name in self.ledger.names(prefix)
    }
    if not shapes and self._may_lack(network):
      return None
    if not shapes:
      raise errors.UserError(
        f'{self.where}: no tensor {prefix}*, which is {_ROLES[network]} of '
        f'--format={self.name}; give a checkpoint that has it'
      )
    config = self.configs.get(prefix.removesuffix('.'))
    with self._explained(network):
      if config is not None:
        settings = _from_config(network, config, self.recipe)
      elif self.own is not None:
        settings = _from_own(network, self.own, shapes, layout)
      else:
        settings = NAMING[network].settings_from_shapes(
          shapes, layout, **_untold(network, self.recipe)
        )
    if network == 'autoencoder' and self.row.scale in self.ledger.tensors:
      settings['scale'] = self._scale()
    return settings

  @contextlib.contextmanager
  def _explained(self, network: str) -> Iterator[None]:
    """Settings that no network can have become a clear line."""
    try:
      yield
    except (ValueError, TypeError, LookupError) as error:
      raise errors.UserError(
        f'{self.where}: {_ROLES[network]}: {error}; is --format right?'
      ) from error

  def _may_lack(self, network: str) -> bool:
    if self.own is not None and network in SECTIONS:
      section, kind = SECTIONS[network]
      if self.own[section].get('kind') != kind:
        return True
    return network in self.row.optional

  def _scale(self) -> float:
    """What ldm made the latents' standard deviation 1 with."""
    values = self.ledger.take(self.row.scale).read()
    if values.size != 1 or not 0 < float(values.flat[0]) < np.inf:
      raise errors.UserError(
        f'{self.where}: {self.row.scale} is {values}, not a positive number; '
        'the file is damaged'
      )
    return float(values.flat[0])

  # -- Networks ----------------------------------------------------------------

  def network(self, network: str, settings: Mapping[str, Any]) -> Flat:
    """The parameters of a network by path."""
    prefix, layout = self.row.networks[network]
    with self._explained(network):
      expected = self.shapes(network, settings)
      entries = NAMING[network].entries(settings, layout)
    rows = []
    for entry in entries:
      name = prefix + entry.name
      if network == 'unet' and self.has_average:
        name = self._of_two(name)
      rows.append((entry._replace(name=name), expected.get(entry.path)))
    return self._take(rows)

  def _of_two(self, name: str) -> str:
    both = (formats.average_name(name, self.row.averages), name)
    taken, left = both if self.averaged else both[::-1]
    self.ledger.leave(left, _LEFT[self.averaged])
    return taken

  def _finds_average(self) -> bool:
    averages = self.row.averages
    plain = self.ledger.names(self.row.networks['unet'][0])
    return averages is not None and any(
      formats.average_name(name, averages) in self.ledger.tensors
      for name in plain
    )

  def _take(
    self, rows: Iterable[tuple[tensors.Entry, tuple[int, ...] | None]]
  ) -> Flat:
    """Parameters, each of the shape expected, without those missing."""
    found = {
      entry.path: (self.ledger.take(entry.name), entry, expected)
      for entry, expected in rows
    }
    return {
      path: self._parameter(*row)
      for path, row in found.items()
      if row[0] is not None
    }

  def _parameter(
    self,
    tensor: LazyArray,
    entry: tensors.Entry,
    expected: tuple[int, ...] | None,
  ) -> LazyArray:
    """Our parameter: in our layout, of the dtype asked for, finite."""
    where = f'{self.where}: {entry.name}'
    convert = functools.partial(tensors.to_ours, entry)
    try:
      shape = tensor.map(convert).shape
    except (ValueError, IndexError):
      shape = None
    if shape is None or shape != expected:
      raise errors.UserError(
        f'{where} has shape {tensor.shape}, which does not fit the other '
        'tensors; the file is damaged, or --format is wrong'
      )
    read = functools.partial(_read_finite, where, tensor, convert, self.dtype)
    return LazyArray(shape, self.dtype, read)

  # -- What is ours ------------------------------------------------------------

  def mask(self, params: Flat) -> Flat:
    """What of the last layer is the motion mask's; {} if nothing is."""
    if not self.ledger.names(formats.MOTION_MASK):
      return {}
    rows = []
    for path, name, layout in MASK:
      entry = tensors.Entry(path, formats.MOTION_MASK + name, layout)
      # One output beside those of the layer, which `close` tells if missing.
      if path in params:
        rows.append((entry, (*params[path].shape[:-1], 1)))
    return self._take(rows)

  def widened(
    self, params: Flat, mask: Flat, settings: Mapping[str, Any], latent: int
  ) -> tuple[Flat, list[str]]:
    """The U-Net with our inputs and the mask; and what of it is new."""
    inputs, new = settings['in_channels'], []
    if settings['out_channels'] != latent:
      raise errors.UserError(
        f'{self.where}: the U-Net has {settings["out_channels"]} outputs and '
        f'a latent {latent} channels; give the autoencoder of that U-Net'
      )
    if not self.own and inputs not in (latent, 2 * latent):
      raise errors.UserError(
        f'{self.where}: the U-Net has {inputs} inputs; {latent} and '
        f'{2 * latent}, with the source view, are known'
      )
    params = dict(params)
    if not self.own and inputs == latent:
      new.append('inputs of the source view: zeros')
      params['conv_in/kernel'] = params['conv_in/kernel'].map(
        lambda kernel: widen.first_convolution(kernel, 2 * latent)
      )
    if not mask:
      new.append('output of the motion mask: zeros')
    for path, _, _ in MASK:
      params[path] = (
        _joined(params[path], mask[path])
        if mask
        else params[path].map(widen.last_layer)
      )
    return params, new

  def conditioning(
    self, sections: Mapping[str, Any], network: Mapping[str, Any]
  ) -> tuple[str, Flat, list[str]]:
    """Names of the parts, their parameters, and what of it is new.

    Args:
      sections: `autoencoder` and `image_encoder` of the config.
      network: settings of the U-Net.
    """
    image_width = sections['image_encoder'].get('projection', 0)
    own = self.own['model'] if self.own else {}
    given = self.ledger.names(self.row.projection)
    pose = self._pose(image_width)
    path = f'parts/{pose}/projection/'
    if not (given or self.own or self.row.pose):
      start = widen.pose_projection(
        image_width, formats.WIDTHS[pose], network['context_dim']
      )
      params = {
        path + leaf: lazy_array.of(array.astype(self.dtype))
        for leaf, array in start.items()
      }
      return (
        pose,
        params,
        [f'pose projection of {pose}: as Zero-1-to-3 started'],
      )
    names = own.get('conditioning', pose)
    with self._explained('conditioning'):
      expected = self.shapes(
        'conditioning',
        {**sections, 'model': {**own, 'conditioning': names, 'unet': network}},
      )
    # Their projection has a name of its own, the rest is as it is here.
    theirs = {
      path + leaf: (self.row.projection + name, layout)
      for leaf, name, layout in PROJECTION
      if given or not self.own
    }
    rows = []
    for path, shape in expected.items():
      own_name = formats.CONDITIONING + path.replace('/', '.')
      name, layout = theirs.get(path, (own_name, 'same'))
      rows.append((tensors.Entry(path, name, layout), shape))
    return names, self._take(rows), []

  def _pose(self, image_width: int) -> str:
    """The part that the pose projection is of, as its size says."""
    expected = self.row.pose or 'zero123'
    weight = self.ledger.tensors.get(self.row.projection + 'weight')
    if weight is None or len(weight.shape) != 2:
      return expected
    width = weight.shape[1] - image_width
    pose = formats.POSES.get(width)
    if pose is None or self.row.pose not in (None, pose):
      raise errors.UserError(
        f'{self.where}: {self.row.projection}weight takes {width} numbers of '
        f'the pose, which is {pose or "no known pose"}; '
        f'{"give --format=" + pose if pose else "it cannot be imported"}'
      )
    return pose


# Path of ours, name, layout.
MASK = (
  ('conv_out/kernel', 'weight', 'conv'),
  ('conv_out/bias', 'bias', 'same'),
)
PROJECTION = (('kernel', 'weight', 'linear'), ('bias', 'bias', 'same'))


def _from_config(
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


def _untold(network: str, config: Mapping[str, Any]) -> dict[str, Any]:
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
  """Settings of a network of ours: shapes do not tell all of them."""
  if network == 'unet':
    values = own['model']['unet']
    found = unet.settings_from_shapes(shapes, layout, **_untold(network, own))
  else:
    section, known = SECTIONS[network]
    found, values = {}, dict(own[section])
    kind = values.pop('kind')
    if kind != known:
      raise ValueError(f'its config says that it is of the kind {kind}')
  return found | {
    key: tuple(value) if isinstance(value, list) else value
    for key, value in values.items()
  }


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
    raise errors.UserError(
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


def _sections(
  settings: Mapping[str, dict[str, Any]],
  own: Mapping[str, Any],
  recipe: Mapping[str, Any],
) -> dict[str, Any]:
  """`config.autoencoder` and `config.image_encoder`.

  Of a network that is not there only what the U-Net and the recipe tell: it can
  be exported, and the config says why it cannot be sampled from.
  """
  network = settings['unet']
  sections = {
    'autoencoder': dict(
      kind='none',
      latent_channels=network['out_channels'],
      channel_mult=recipe['autoencoder']['channel_mult'],
      scale=recipe['autoencoder']['scale'],
    ),
    'image_encoder': dict(kind='none', projection=network['context_dim']),
  }
  for network, (section, kind) in SECTIONS.items():
    if own.get(section, {}).get('kind') == 'none':
      sections[section] = own[section]
    if network in settings:
      sections[section] = dict(kind=kind, **settings[network])
  return sections


def _image_size_px(
  configs: Mapping[str, Any],
  autoencoder: Mapping[str, Any],
  recipe: Mapping[str, Any],
) -> int:
  latents = configs.get('unet', {}).get('sample_size')
  if not isinstance(latents, int):
    return recipe['image_size_px']
  return latents * 2 ** (len(autoencoder['channel_mult']) - 1)


def convert(
  name: str,
  source: formats.Source,
  *,
  average: bool | None,
  dtype: np.dtype,
  shapes: Shapes,
  recipe: Mapping[str, Any],
) -> Imported:
  """The model in a checkpoint.

  Args:
    name: of the format.
    source: what `formats.read` found.
    average: take the moving average of the U-Net; None: where there is one.
    dtype: of the parameters.
    shapes: what the networks of given settings need; those of the conditioning
      are a config.
    recipe: a training config with Stable Diffusion's sizes, for what the
      checkpoint does not say of itself.

  Raises:
    errors.UserError: tensors are missing, left over, of a wrong shape, or
      belong to another network.
  """
  job = _Job(name, source, average, dtype, shapes, recipe)
  found = {network: job.settings(network) for network in NAMING}
  settings = {network: sizes for network, sizes in found.items() if sizes}
  params = {
    network: job.network(network, sizes) for network, sizes in settings.items()
  }
  sections = _sections(settings, job.own or {}, recipe)
  latent = sections['autoencoder']['latent_channels']
  names, conditioning, new_parts = job.conditioning(sections, settings['unet'])
  mask = job.mask(params['unet'])
  left_out = job.ledger.close(job.row.ignored)
  network, new = job.widened(params['unet'], mask, settings['unet'], latent)
  own = job.own or dict(
    model=dict(
      conditioning=names,
      unscaled_source=True,
      unet={
        key: value
        for key, value in settings['unet'].items()
        if key not in ('in_channels', 'out_channels')
      },
    ),
    diffusion=_diffusion(job.where, source.configs.get('scheduler', {})),
    image_size_px=_image_size_px(
      source.configs, sections['autoencoder'], recipe
    ),
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
    config={
      **own,
      'ported_from': name,
      'ported_average': job.averaged,
      **sections,
    },
    facts=dict(
      files=[str(path) for path in source.paths],
      moving_average=job.averaged,
      conditioning=names,
      new=new + new_parts,
      absent=[network for network in NAMING if network not in settings],
      left_out=left_out,
    ),
  )
