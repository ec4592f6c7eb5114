"""Training that starts from a checkpoint of another run, or a ported one.

The parameters of both models are compared by path. What the checkpoint has is
taken. Of the first convolution the input channels are compared by name: those
of the checkpoint are taken wherever they stand, new ones start with zeros, as
Zero-1-to-3 made its eight channels from Stable Diffusion's four. A conditioning
of another kind starts fresh, and so does a refiner where there was none.
Patches of pixels may be of another size (`patch_size`). Anything else must be
the same.
"""

import pathlib
from typing import Any, Mapping, NamedTuple, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from odin_jax import sharding
from odin_jax.checkpoints import checkpoint, pretrained
from odin_jax.models import encoders, odin
from odin_jax.shared import errors
from odin_jax.training import patch_size

Config = Mapping[str, Any]
# Of each input channel the row of the checkpoint's kernel; None: zeros.
Rows = Sequence[int | None]
_FIRST_KERNEL = 'unet/conv_in/kernel'
_MAY_BE_FRESH = 'conditioning/', 'refiner/'
# What of two configs must agree where the parameters' shapes do not show it.
_MUST_AGREE = ('autoencoder', 'image_encoder')
_OF_UNET = ('num_heads', 'num_groups')
# Of `config.model`, what is compared in other ways.
_CHECKED = {'conditioning', 'unet', 'unscaled_source', 'sources'}
# What may change, and is worth a word.
_NOTED = ('prediction', 'schedule', 'zero_terminal_snr')


class Start(NamedTuple):
  """What training starts from.

  Attributes:
    params: of the checkpoint, in their shards.
    rows: for `adopt`, where the input channels are.
    encoders: of the checkpoint.
    notes: for the user, such as which parameters start fresh.
    init_sha256: see `pretrained.init_sha256`.
  """

  params: Any
  rows: Rows
  encoders: encoders.Encoders
  notes: list[str]
  init_sha256: str | None


def _shapes(params: Any) -> dict[str, tuple[int, ...]]:
  """By path; that of the first kernel without its input channels."""
  shapes = {name: leaf.shape for name, leaf in sharding.by_path(params).items()}
  height, width, _, outputs = shapes[_FIRST_KERNEL]
  return shapes | {_FIRST_KERNEL: (height, width, outputs)}


def _misfits(params: Any, saved: Any) -> list[str]:
  """Paths of parameters that one model has and the other has not, or other."""
  shapes, saved_shapes = _shapes(params), _shapes(saved)
  return sorted(
    name
    for name in shapes.keys() | saved_shapes.keys()
    if not name.startswith(_MAY_BE_FRESH)
    and shapes.get(name) != saved_shapes.get(name)
  )


def _rows(channels: Sequence[str], saved_channels: Sequence[str]) -> Rows:
  """Where the checkpoint has each channel; None where it has not."""
  places = {name: row for row, name in enumerate(saved_channels)}
  return [places.get(name) for name in channels]


def _parts(channels: Sequence[str]) -> str:
  """The parts of the conditioning that channels belong to."""
  # Keys of a dict: each once, in order.
  return ', '.join(dict.fromkeys(name.split('.')[0] for name in channels))


def _notes(
  config: Config, saved_config: Config, params: Any, saved: Any
) -> list[str]:
  """What a user may not expect."""
  shapes, saved_shapes = (
    {
      name: shape
      for name, shape in _shapes(tree).items()
      if name.startswith(_MAY_BE_FRESH)
    }
    for tree in (params, saved)
  )
  fresh = sorted(n for n in shapes if saved_shapes.get(n) != shapes[n])
  unused = sorted(n for n in saved_shapes if saved_shapes[n] != shapes.get(n))
  notes = [
    f'diffusion.{name}: {saved_config["diffusion"][name]!r} there, '
    f'{config["diffusion"][name]!r} here'
    for name in _NOTED
    if saved_config['diffusion'][name] != config['diffusion'][name]
  ]
  if len(fresh) < len(shapes):
    # Shapes do not tell what an option of a part means.
    options, saved_options = (
      {
        name: value
        for name, value in of_model.items()
        if name in saved_config['model'].keys() - _CHECKED
      }
      for of_model in (config['model'], saved_config['model'])
    )
    there = checkpoint.changed_fields(options, saved_options)
    notes += [
      f'model.{name}: {there.get(name)!r} there, {value!r} here; the parameters '
      'that fit are taken all the same'
      for name, value in checkpoint.changed_fields(
        saved_options, options
      ).items()
    ]
  saved_channels = odin.input_channels(saved_config)
  new = [x for x in odin.input_channels(config) if x not in saved_channels]
  if new:
    notes.append(f'lacks channels of {_parts(new)}: these start with zeros')
  if fresh:
    notes.append(f'has no {", ".join(fresh)}: these start fresh')
  if unused:
    notes.append(f'{", ".join(unused)} are not used')
  return notes


def _take_rows(kernel: jax.Array, rows: Rows) -> jax.Array:
  """Of each input channel its row of the kernel, or zeros."""
  padded = jnp.pad(kernel, ((0, 0), (0, 0), (0, 1), (0, 0)))
  zeros = kernel.shape[2]
  places = [zeros if row is None else row for row in rows]
  return padded[:, :, np.array(places)]


def adopt(params: Any, saved: Any, rows: Rows) -> Any:
  """`params` with all that `saved` has of them.

  Args:
    params: fresh parameters of the model.
    saved: of the checkpoint; see `load` for what it may lack.
    rows: where it has the input channels.
  """
  saved = sharding.by_path(saved)

  def pick(path: Any, leaf: jax.Array) -> jax.Array:
    name = sharding.path_name(path)
    if name == _FIRST_KERNEL:
      return _take_rows(saved[name], rows)
    fits = name in saved and saved[name].shape == leaf.shape
    return saved[name] if fits else leaf

  return jax.tree_util.tree_map_with_path(pick, params)


def _sizes(section: Config) -> Config:
  """What matters of an encoder's settings: nothing, where there is none."""
  return {'kind': 'none'} if section['kind'] == 'none' else section


def _lost_channels(config: Config, saved_config: Config) -> list[str]:
  """Channels that the checkpoint has and this config has not.

  Those that compare sources are left out: of one they are zeros.
  """
  channels = odin.input_channels(config)
  alone = odin.input_channels(_of_one_source(saved_config))
  return [x for x in alone if x not in channels]


def _of_one_source(config: Config) -> Config:
  return {**config, 'model': {**config['model'], 'sources': 1}}


def _require_whole(
  where: pathlib.Path, restored: Any, saved: Any, saved_config: Config
) -> None:
  """Refuses a model of which more depends on the size of patches."""
  shapes, expected = (
    {name: leaf.shape for name, leaf in sharding.by_path(tree).items()}
    for tree in (restored, saved)
  )
  unlike = sorted(name for name in expected if shapes[name] != expected[name])
  if unlike:
    raise errors.UserError(
      f'--init={where}: patches of another size, on which {unlike[0]} of its '
      f'conditioning={saved_config["model"]["conditioning"]} depends; give its '
      'config.autoencoder.patch_px'
    )


def _check(where: pathlib.Path, config: Config, saved_config: Config) -> None:
  """Raises errors.UserError where the configs name other networks."""
  if saved_config['autoencoder']['kind'] == 'none':
    raise errors.UserError(
      f'--init={where}: a U-Net that was ported without its autoencoder; port '
      'their folders together'
    )
  values = [
    (name, _sizes(config[name]), _sizes(saved_config[name]))
    for name in _MUST_AGREE
  ]
  model, saved_model = config['model'], saved_config['model']
  values += [
    (f'model.unet.{name}', model['unet'][name], saved_model['unet'][name])
    for name in _OF_UNET
  ]
  name = 'unscaled_source'
  values.append((f'model.{name}', model[name], saved_model[name]))
  changed = [
    f'{name}: {saved_value!r} there, {value!r} here'
    for name, value, saved_value in values
    if value != saved_value
  ]
  # How many channels a latent has is the autoencoder's: that must agree first.
  lost = [] if changed else _lost_channels(config, saved_config)
  if lost:
    changed.append(
      f'channels of model.conditioning: {len(lost)} of {_parts(lost)} there, '
      f'such as {lost[0]}, not here'
    )
  if changed:
    raise errors.UserError(
      f'--init={where}: a model of another config ({"; ".join(changed)})'
    )


def load(
  where: pathlib.Path,
  config: Config,
  mesh: jax.sharding.Mesh,
  step: int | None = None,
) -> Start:
  """A checkpoint of a workdir, as a start.

  Args:
    where: workdir of training (its moving averages are taken) or of
      port_weights, or the word for the checkpoint that comes with the project.
    config: of the run to start.
    mesh: its mesh.
    step: of the checkpoint; None: the newest.

  Raises:
    errors.UserError: no checkpoint there, or one of another network.
  """
  checkpoints, step, as_it_is = checkpoint.open_step(where, step)
  is_resized = patch_size.differs_alone(config, as_it_is)
  # As it is taken: with the patches of this config.
  saved_config = as_it_is
  if is_resized:
    saved_config = {**as_it_is, 'autoencoder': config['autoencoder']}
  _check(where, config, saved_config)
  checkpoint.warn_of_other_units(where, as_it_is)
  saved = jax.eval_shape(lambda: odin.init_params(saved_config))
  params = jax.eval_shape(lambda: odin.init_params(config))
  misfits = _misfits(params, saved)
  if misfits:
    raise errors.UserError(
      f'--init={where}: {len(misfits)} parameters do not fit this config, '
      f'{misfits[0]} first; give the U-Net and conditioning of that model'
    )
  there = saved
  if is_resized:
    there = jax.eval_shape(lambda: odin.init_params(as_it_is))
  restored = checkpoints.restore_params(
    step,
    'params' if checkpoint.is_ported(saved_config) else 'ema',
    there,
    sharding.shardings(there, mesh, odin.sharding_rules()),
  )
  notes = _notes(config, saved_config, params, saved)
  size, saved_size = map(encoders.latent_size, (config, as_it_is))
  if odin.has_spheres(config) and size != saved_size:
    notes.append(
      f'learned at {saved_size}x{saved_size} patches, and here are {size}x{size}'
    )
  if is_resized:
    patch_px = config['autoencoder']['patch_px']
    restored = patch_size.resized(restored, as_it_is, patch_px)
    _require_whole(where, restored, saved, saved_config)
    notes.append(
      f'patches of {as_it_is["autoencoder"]["patch_px"]} px there, {patch_px} px '
      'here: its networks see and make them as they were'
    )
  # As they were saved; the run casts them to what it holds them in.
  as_saved = {
    **config,
    'encoders_dtype': encoders.held_dtype(saved_config),
  }
  if is_resized:
    # Pixels, which no picture is needed for.
    frozen = encoders.fit(config, np.zeros((0, 1, 1, 3), np.uint8))
  else:
    frozen = checkpoints.restore_encoders(
      step, as_saved, encoders.shardings(as_saved, mesh)
    )
  checkpoints.close()
  return Start(
    params=restored,
    rows=_rows(odin.input_channels(config), odin.input_channels(saved_config)),
    encoders=frozen,
    notes=notes,
    init_sha256=pretrained.init_sha256(where, as_it_is),
  )
