"""From a public checkpoint to the parameters and the config of a model here.

Every tensor is used exactly once or is named in the format's table of what is
left out; anything else is an error. Nothing is read but what settings are made
of (`odin_jax.porting.source_config`): the parameters are lazy arrays.
"""

import functools
from typing import Any, Callable, Iterable, Mapping, NamedTuple

import numpy as np

from odin_jax.porting import formats, ledger, source_config, tensors, widen
from odin_jax.shared import errors, lazy_array
from odin_jax.shared.lazy_array import LazyArray

Flat = dict[str, LazyArray]
# (network, its settings) -> shape of every parameter by path.
Shapes = Callable[[str, Mapping[str, Any]], Mapping[str, tuple[int, ...]]]
# Path of ours, name, layout.
MASK = (
  ('conv_out/kernel', 'weight', 'conv'),
  ('conv_out/bias', 'bias', 'same'),
)
PROJECTION = (('kernel', 'weight', 'linear'), ('bias', 'bias', 'same'))
# Why one set of the U-Net's parameters is left out.
_LEFT_LAST = 'the last parameters: the moving average is used'
_LEFT_AVERAGE = 'the moving average: the last parameters are used'


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
    self.dtype = dtype
    self.shapes = shapes
    self.where = str(source.paths[0])
    self.ledger = ledger.Ledger(self.where, source.tensors)
    self.source_config = source_config.SourceConfig(
      name, source, self.ledger, recipe
    )
    self.own = self.source_config.own
    self.has_average = self._finds_average()
    if average and not (self.has_average or source.only_average):
      raise errors.UserError(
        f'{self.where}: no moving average here; give --noema'
      )
    if source.only_average and average is False:
      raise errors.UserError(
        f'{self.where}: the moving average alone; give the folder of the last '
        'parameters too, or leave out --noema'
      )
    self.averaged = source.only_average or (
      self.has_average and average is not False
    )

  # -- Networks ----------------------------------------------------------------

  def network(self, network: str, settings: Mapping[str, Any]) -> Flat:
    """The parameters of a network by path."""
    prefix, layout = self.row.networks[network]
    with source_config.explained(self.where, network):
      expected = self.shapes(network, settings)
      entries = source_config.NAMING[network].entries(settings, layout)
    rows = []
    for entry in entries:
      name = prefix + entry.name
      if network == 'unet' and self.has_average:
        name = self._choose(name)
      rows.append((entry._replace(name=name), expected.get(entry.path)))
    return self._take(rows)

  def _choose(self, name: str) -> str:
    """The name of the set of parameters that is taken; leaves the other."""
    average = formats.average_name(name, self.row.averages)
    if self.averaged:
      self.ledger.leave(name, _LEFT_LAST)
      return average
    self.ledger.leave(average, _LEFT_AVERAGE)
    return name

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
    params = {}
    for entry, expected in rows:
      tensor = self.ledger.take(entry.name)
      if tensor is not None:
        params[entry.path] = self._parameter(tensor, entry, expected)
    return params

  def _parameter(
    self,
    tensor: LazyArray,
    entry: tensors.Entry,
    expected: tuple[int, ...] | None,
  ) -> LazyArray:
    """Our parameter: in our layout, of the dtype asked for, finite."""
    where = f'{self.where}: {entry.name}'
    if tensor.dtype.kind in 'iub':
      raise errors.UserError(
        f'{where} holds {tensor.dtype} numbers: quantised weights cannot be '
        'imported; get them in float32, float16 or bfloat16'
      )
    convert = functools.partial(tensors.to_flax, entry)
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
    if given:
      self._check_own_pose(names)
    with source_config.explained(self.where, 'conditioning'):
      expected = self.shapes(
        'conditioning',
        {**sections, 'model': {**own, 'conditioning': names, 'unet': network}},
      )
    # Their projection has a name of its own, the rest is as it is here.
    projection = {
      path + leaf: (self.row.projection + name, layout)
      for leaf, name, layout in PROJECTION
      if given or not self.own
    }
    rows = []
    for path, shape in expected.items():
      own_name = formats.CONDITIONING + path.replace('/', '.')
      name, layout = projection.get(path, (own_name, 'same'))
      rows.append((tensors.Entry(path, name, layout), shape))
    return names, self._take(rows), []

  def _pose(self, image_width: int) -> str:
    """The part that the pose projection is of, as its size says."""
    expected = self.row.pose or 'zero123'
    weight = self.ledger.tensors.get(self.row.projection + 'weight')
    if weight is None or len(weight.shape) != 2:
      return expected
    width = weight.shape[1] - image_width
    poses = [pose for pose, size in formats.WIDTHS.items() if size == width]
    if not poses or self.row.pose not in (None, *poses):
      raise errors.UserError(
        f'{self.where}: {self.row.projection}weight takes {width} numbers of '
        f'the pose, which is {" or ".join(poses) or "no known pose"}; '
        + (f'give --format={poses[0]}' if poses else 'it cannot be imported')
      )
    own = self.own['model'].get('conditioning', '') if self.own else ''
    own_poses = [part for part in own.split('+') if part in poses]
    return self.row.pose or (own_poses or poses)[0]

  def _check_own_pose(self, names: str) -> None:
    """Checks a config of ours against the pose that the format stands for."""
    poses = [part for part in names.split('+') if part in formats.WIDTHS]
    if self.own and self.row.pose and poses[:1] != [self.row.pose]:
      raise errors.UserError(
        f'{self.where}: its conditioning is {names}, and --format={self.name} '
        f'is that of {self.row.pose}; give the format that it was exported from'
      )


def _joined(first: LazyArray, second: LazyArray) -> LazyArray:
  """Both along the last axis."""
  shape = (*first.shape[:-1], first.shape[-1] + second.shape[-1])
  return LazyArray(
    shape,
    first.dtype,
    lambda: np.concatenate([first.read(), second.read()], axis=-1),
  )


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
  settings = job.source_config.settings()
  params = {
    network: job.network(network, sizes) for network, sizes in settings.items()
  }
  sections = job.source_config.sections(settings)
  latent = sections['autoencoder']['latent_channels']
  names, conditioning, new_parts = job.conditioning(sections, settings['unet'])
  mask = job.mask(params['unet'])
  left_out = job.ledger.close(job.row.ignored)
  network, new = job.widened(params['unet'], mask, settings['unet'], latent)
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
      **job.source_config.config(settings, sections, names),
      'ported_from': name,
      'ported_average': job.averaged,
      **sections,
    },
    facts=dict(
      files=[str(path) for path in source.paths],
      moving_average=job.averaged,
      conditioning=names,
      new=new + new_parts,
      absent=[
        network for network in source_config.NAMING if network not in settings
      ],
      left_out=left_out,
    ),
  )
