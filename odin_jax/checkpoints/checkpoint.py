"""Checkpoints: the state, the encoders and the config that made them.

Orbax writes asynchronously and renames when all is on disk, so a kill leaves
the previous checkpoint whole. The parts of a checkpoint can be restored one by
one and onto any mesh.
"""

import hashlib
import json
import os
import pathlib
from typing import Any, Iterator, Mapping

import jax
import jax.numpy as jnp
import numpy as np

from odin_jax import sharding
from odin_jax.models import conditioning, encoders
from odin_jax.shared import errors, files

Config = dict[str, Any]
FOLDER = 'checkpoints'
_KEEP = 2
# What may change between the runs of one workdir: none of it alters what a
# step computes, but for `steps`, towards which the learning rate decays.
MAY_DIFFER = (
  'steps',
  'checkpoint_every',
  'log_every',
  'mesh',
  'cache_records',
  'init',
)
# The parts of the state, each an item of its own; Orbax wants trees, so the
# step goes with the optimiser.
_ITEMS = {
  'params': ('params',),
  'ema': ('ema',),
  'progress': ('optimizer', 'step'),
}


def plain(config: Mapping[str, Any]) -> Config:
  """The config as JSON holds it: a checkpoint's equals the one given."""
  return json.loads(json.dumps(config))


def _leaves(config: Any, prefix: str = '') -> Iterator[tuple[str, Any]]:
  if isinstance(config, dict):
    for key in sorted(config):
      yield from _leaves(config[key], f'{prefix}.{key}' if prefix else key)
  else:
    yield prefix, config


def differences(saved: Config, given: Config) -> list[str]:
  """What differs in what must not, as `key: saved -> given`."""
  old, new = dict(_leaves(saved)), dict(_leaves(given))
  return [
    f'{key}: {old.get(key)!r} -> {new.get(key)!r}'
    for key in sorted(old.keys() | new.keys())
    if key.split('.')[0] not in MAY_DIFFER
    and (key not in old or key not in new or old[key] != new[key])
  ]


def params_sha256(params: Any) -> str:
  """Digest over the names, shapes and values of all parameters."""
  digest = hashlib.sha256()
  for path, leaf in jax.tree_util.tree_leaves_with_path(params):
    values = np.asarray(leaf)
    digest.update(f'{sharding.path_name(path)} {values.shape}'.encode())
    digest.update(values.tobytes())
  return digest.hexdigest()


@jax.jit
def _all_finite(leaves: list[jax.Array]) -> jax.Array:
  return jnp.stack([jnp.isfinite(leaf).all() for leaf in leaves]).all()


def is_finite(tree: Any) -> bool:
  """Whether no number of a tree is NaN or infinite."""
  leaves = [
    leaf
    for leaf in jax.tree.leaves(tree)
    if jnp.issubdtype(leaf.dtype, jnp.floating)
  ]
  return not leaves or bool(_all_finite(leaves))


def _abstract(tree: Any, tree_shardings: Any) -> Any:
  return jax.tree.map(
    lambda leaf, where: jax.ShapeDtypeStruct(
      leaf.shape, leaf.dtype, sharding=where
    ),
    tree,
    tree_shardings,
  )


def _abstract_encoders(config: Config, where: Any) -> Any:
  arrays = encoders.abstract(config)
  return _abstract(arrays, jax.tree.map(lambda _: where, arrays))


def is_ported(config: Config) -> bool:
  """Whether a checkpoint's config says that it comes from another project."""
  return 'ported_from' in config


class Checkpoints:
  """The checkpoints of one workdir.

  Args:
    workdir: of `odin_jax.train`.
    read_only: look, without tidying up what a killed run (or one that is
      still going on) has not finished.
  """

  def __init__(self, workdir: pathlib.Path, *, read_only: bool = False):
    # Here, for a command reads its flags before what is slow to load.
    import orbax.checkpoint as ocp

    self._args = ocp.args
    self._folder = (workdir / FOLDER).absolute()
    self._manager = ocp.CheckpointManager(
      self._folder,
      options=ocp.CheckpointManagerOptions(
        preservation_policy=ocp.checkpoint_managers.LatestN(_KEEP),
        enable_async_checkpointing=not read_only,
        cleanup_tmp_directories=not read_only,
        read_only=read_only,
        create=not read_only,
      ),
    )

  def latest(self) -> int | None:
    """The newest step saved, or None."""
    return self._manager.latest_step()

  def save(
    self,
    step: int,
    state: Mapping[str, Any],
    frozen: encoders.Encoders,
    config: Config,
  ) -> None:
    """Starts to save a step; one that is saved already is left alone."""
    if self.latest() == step:
      return
    items = {
      item: self._args.StandardSave({name: state[name] for name in names})
      for item, names in _ITEMS.items()
    }
    self._manager.save(
      step,
      args=self._args.Composite(
        **items,
        encoders=self._args.StandardSave(frozen),
        config=self._args.JsonSave(config),
      ),
      force=True,
    )

  def config(self, step: int) -> Config:
    """The config of a step."""
    restored = self._manager.restore(
      step, args=self._args.Composite(config=self._args.JsonRestore())
    )
    return restored['config']

  def check(self, step: int, given: Config) -> None:
    """Raises errors.UserError unless `given` may continue from `step`."""
    changed = differences(self.config(step), given)
    if changed:
      raise errors.UserError(
        f'{self._folder}: checkpoint {step} is from another config '
        f'({"; ".join(changed)}); give its config or a new --workdir'
      )

  def restore(
    self, step: int, abstract_state: Any, state_shardings: Any, config: Config
  ) -> tuple[dict[str, Any], encoders.Encoders]:
    """State and encoders of a step, straight into their shards.

    Raises:
      errors.UserError: not all of its numbers are finite.
    """
    where = jax.tree.leaves(state_shardings)[0].mesh
    abstract = _abstract(abstract_state, state_shardings)
    items = {
      item: self._args.StandardRestore({name: abstract[name] for name in names})
      for item, names in _ITEMS.items()
    }
    restored = self._manager.restore(step, args=self._args.Composite(**items))
    state = {k: v for item in _ITEMS for k, v in restored[item].items()}
    self._require_finite(step, state)
    return state, self.restore_encoders(
      step, config, sharding.replicated(where)
    )

  def restore_params(
    self, step: int, name: str, abstract_params: Any, params_shardings: Any
  ) -> Any:
    """One set of parameters, straight into its shards.

    Args:
      step: which checkpoint.
      name: `params` or `ema`; a ported checkpoint has `params` alone.
      abstract_params: their shapes.
      params_shardings: where each goes.

    Raises:
      errors.UserError: not all of them are finite.
    """
    params = _abstract(abstract_params, params_shardings)
    restored = self._manager.restore(
      step,
      args=self._args.Composite(
        **{name: self._args.StandardRestore({name: params})}
      ),
    )
    self._require_finite(step, restored[name])
    return restored[name][name]

  def restore_encoders(
    self, step: int, config: Config, where: jax.sharding.NamedSharding
  ) -> encoders.Encoders:
    """The encoders of a step, all of them in one sharding."""
    frozen = _abstract_encoders(config, where)
    restored = self._manager.restore(
      step,
      args=self._args.Composite(encoders=self._args.StandardRestore(frozen)),
    )
    self._require_finite(step, restored['encoders'])
    return restored['encoders']

  def _require_finite(self, step: int, tree: Any) -> None:
    """Raises errors.UserError unless all numbers of a checkpoint are finite."""
    if not is_finite(tree):
      raise errors.UserError(
        f'{self._folder / str(step)}: its parameters are not all finite (NaN '
        'or infinity): a training that diverged; delete this folder, so that '
        'an earlier checkpoint is used, or train in a new --workdir'
      )

  def close(self) -> None:
    """Waits until everything is on disk."""
    self._manager.wait_until_finished()
    self._manager.close()


def open_latest(
  workdir: str | os.PathLike[str],
) -> tuple[Checkpoints, int, Config]:
  """The checkpoints of a workdir, the newest step and its config.

  Raises:
    errors.UserError: no checkpoint there, or one of a model with a part of the
      conditioning that is not here.
  """
  path = files.require_folder(
    workdir, 'the --workdir of odin_jax.train or output of port_weights'
  )
  files.require_folder(path / FOLDER, 'a training run with a checkpoint')
  checkpoints = Checkpoints(path, read_only=True)
  newest = checkpoints.latest()
  if newest is None:
    raise errors.UserError(f'{workdir}: no checkpoint here yet; train first')
  config = checkpoints.config(newest)
  try:
    conditioning.parse(config['model']['conditioning'])
  except ValueError as error:
    raise errors.UserError(f'{workdir}: {error}') from error
  return checkpoints, newest, config
