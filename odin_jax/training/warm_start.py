"""Training that starts from a checkpoint of another run, or a ported one.

The parameters of both models are compared by path. What the checkpoint has is
taken; a first convolution with more input channels keeps zeros for the new
ones, as Zero-1-to-3 made its eight channels from Stable Diffusion's four; a
conditioning of another kind starts fresh. Anything else must be the same.
"""

import pathlib
from typing import Any, Mapping

import jax
import jax.numpy as jnp

from odin_jax import sharding
from odin_jax.checkpoints import checkpoint
from odin_jax.models import conditioning, encoders, odin
from odin_jax.shared import errors

Config = Mapping[str, Any]
_WIDENED = 'unet/conv_in/kernel'
_MAY_BE_FRESH = 'conditioning/'
# What of two configs must agree where the parameters' shapes do not show it.
_MUST_AGREE = ('autoencoder', 'image_encoder')
_OF_UNET = ('num_heads', 'num_groups')
# Parts of the conditioning that give channels, and what their number means.
_CHANNELS = {
  'plucker': 'fourier_bands',
  'rays': 'fourier_bands',
  'sweep': 'sweep_distances',
}
# What may change, and is worth a word.
_NOTED = ('prediction', 'schedule', 'zero_terminal_snr')


def _by_path(params: Any) -> dict[str, Any]:
  leaves = jax.tree_util.tree_leaves_with_path(params)
  return {sharding.path_name(path): leaf for path, leaf in leaves}


def _fits(name: str, ours: tuple[int, ...], theirs: tuple[int, ...]) -> bool:
  if name != _WIDENED:
    return ours == theirs
  narrower = theirs[2] <= ours[2]
  return narrower and ours[:2] + ours[3:] == theirs[:2] + theirs[3:]


def _misfits(ours: Any, theirs: Any) -> list[str]:
  """Paths of parameters that one model has and the other has not, or other."""
  ours, theirs = _by_path(ours), _by_path(theirs)
  return sorted(
    name
    for name in ours.keys() | theirs.keys()
    if not name.startswith(_MAY_BE_FRESH)
    and not (
      name in ours
      and name in theirs
      and _fits(name, ours[name].shape, theirs[name].shape)
    )
  )


def _notes(config: Config, saved: Config, ours: Any, theirs: Any) -> list[str]:
  """What a user may not expect."""
  ours, theirs = (
    {
      name: leaf.shape
      for name, leaf in _by_path(params).items()
      if name.startswith(_MAY_BE_FRESH)
    }
    for params in (ours, theirs)
  )
  fresh = sorted(name for name in ours if theirs.get(name) != ours[name])
  unused = sorted(name for name in theirs if theirs[name] != ours.get(name))
  notes = [
    f'diffusion.{name}: {saved["diffusion"][name]!r} there, '
    f'{config["diffusion"][name]!r} here'
    for name in _NOTED
    if saved['diffusion'][name] != config['diffusion'][name]
  ]
  if fresh:
    notes.append(f'has no {", ".join(fresh)}: these start fresh')
  if unused:
    notes.append(f'{", ".join(unused)} are not used')
  return notes


def adopt(params: Any, given: Any) -> Any:
  """`params` with all that `given` has of them.

  Args:
    params: fresh parameters of the model.
    given: of the checkpoint; see `load` for what it may lack.
  """
  given = _by_path(given)

  def pick(path: Any, leaf: jax.Array) -> jax.Array:
    name = sharding.path_name(path)
    theirs = given.get(name)
    if name == _WIDENED:
      added = leaf.shape[2] - theirs.shape[2]
      return jnp.pad(theirs, ((0, 0), (0, 0), (0, added), (0, 0)))
    taken = theirs is not None and theirs.shape == leaf.shape
    return theirs if taken else leaf

  return jax.tree_util.tree_map_with_path(pick, params)


def _sizes(section: Config) -> Config:
  """What matters of an encoder's settings: nothing, where there is none."""
  return {'kind': 'none'} if section['kind'] == 'none' else section


def _channels(config: Config) -> list[tuple[str, Any]]:
  """The parts that give channels, in order, with their settings."""
  model = config['model']
  return [
    (part, model[_CHANNELS[part]])
    for part in conditioning.parse(model['conditioning'])
    if part in _CHANNELS
  ]


def _check(where: pathlib.Path, config: Config, saved: Config) -> None:
  """Raises errors.UserError where the configs name other networks."""
  if saved['autoencoder']['kind'] == 'none':
    raise errors.UserError(
      f'--init={where}: a U-Net that was ported without its autoencoder; port '
      'their folders together'
    )
  pairs = [
    (name, _sizes(config[name]), _sizes(saved[name])) for name in _MUST_AGREE
  ] + [
    (f'model.unet.{name}', *(c['model']['unet'][name] for c in (config, saved)))
    for name in _OF_UNET
  ]
  name = 'unscaled_source'
  pairs.append((f'model.{name}', config['model'][name], saved['model'][name]))
  # Channels keep their places; further ones may follow.
  ours, theirs = _channels(config), _channels(saved)
  pairs.append(('channels of model.conditioning', ours[: len(theirs)], theirs))
  changed = [
    f'{name}: {theirs!r} there, {ours!r} here'
    for name, ours, theirs in pairs
    if ours != theirs
  ]
  if changed:
    raise errors.UserError(
      f'--init={where}: a model of another config ({"; ".join(changed)})'
    )


def load(
  where: pathlib.Path, config: Config, mesh: jax.sharding.Mesh
) -> tuple[Any, encoders.Encoders, list[str]]:
  """The parameters of the newest checkpoint of a workdir, as a start.

  Args:
    where: workdir of training (its moving averages are taken) or of
      port_weights.
    config: of the run to start.
    mesh: its mesh.

  Returns:
    the parameters in their shards, for `adopt`; the encoders; notes for the
    user, such as which parameters start fresh.

  Raises:
    errors.UserError: no checkpoint there, or one of another network.
  """
  checkpoints, newest, saved = checkpoint.open_latest(where)
  _check(where, config, saved)
  theirs = jax.eval_shape(lambda: odin.init_params(saved))
  ours = jax.eval_shape(lambda: odin.init_params(config))
  misfits = _misfits(ours, theirs)
  if misfits:
    raise errors.UserError(
      f'--init={where}: {len(misfits)} parameters do not fit this config, '
      f'{misfits[0]} first; give the U-Net and conditioning of that model'
    )
  params = checkpoints.restore_params(
    newest,
    'params' if checkpoint.is_ported(saved) else 'ema',
    theirs,
    sharding.shardings(theirs, mesh),
  )
  frozen = checkpoints.restore_encoders(
    newest, config, sharding.replicated(mesh)
  )
  checkpoints.close()
  return params, frozen, _notes(config, saved, ours, theirs)
