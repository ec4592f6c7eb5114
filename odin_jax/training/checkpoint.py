"""Checkpoints: the state, the autoencoder and the config that made them.

Orbax writes asynchronously and renames when all is on disk, so a kill leaves
the previous checkpoint whole. The parts of a checkpoint can be restored one by
one and onto any mesh.
"""

import hashlib
import json
import pathlib
from typing import Any, Iterator, Mapping

import jax
import numpy as np
import orbax.checkpoint as ocp

from odin_jax.models import autoencoder
from odin_jax.shared import binary
from odin_jax.training import sharding

Config = dict[str, Any]
FOLDER = 'checkpoints'
_KEEP = 2
# What may change between the runs of one workdir: none of it alters what a
# step computes, but for `steps`, towards which the learning rate decays.
MAY_DIFFER = ('steps', 'checkpoint_every', 'log_every', 'mesh', 'cache_records')
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


def _abstract(tree: Any, tree_shardings: Any) -> Any:
  return jax.tree.map(
    lambda leaf, where: jax.ShapeDtypeStruct(
      leaf.shape, leaf.dtype, sharding=where
    ),
    tree,
    tree_shardings,
  )


def _abstract_autoencoder(config: Config, where: Any) -> Any:
  settings = config['autoencoder']
  arrays = autoencoder.abstract(
    patch_px=settings['patch_px'], channels=settings['channels']
  )
  return _abstract(arrays, jax.tree.map(lambda _: where, arrays))


class Checkpoints:
  """The checkpoints of one workdir.

  Args:
    workdir: of `odin_jax.train`.
    read_only: look, without tidying up what a killed run (or one that is
      still going on) has not finished.
  """

  def __init__(self, workdir: pathlib.Path, *, read_only: bool = False):
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
    vae: autoencoder.PatchPca,
    config: Config,
  ) -> None:
    """Starts to save a step; one that is saved already is left alone."""
    if self.latest() == step:
      return
    items = {
      item: ocp.args.StandardSave({name: state[name] for name in names})
      for item, names in _ITEMS.items()
    }
    self._manager.save(
      step,
      args=ocp.args.Composite(
        **items,
        autoencoder=ocp.args.StandardSave(vae),
        config=ocp.args.JsonSave(config),
      ),
      force=True,
    )

  def config(self, step: int) -> Config:
    """The config of a step."""
    restored = self._manager.restore(
      step, args=ocp.args.Composite(config=ocp.args.JsonRestore())
    )
    return restored['config']

  def check(self, step: int, given: Config) -> None:
    """Raises binary.UserError unless `given` may continue from `step`."""
    changed = differences(self.config(step), given)
    if changed:
      raise binary.UserError(
        f'{self._folder}: checkpoint {step} is from another config '
        f'({"; ".join(changed)}); give its config or a new --workdir'
      )

  def restore(
    self, step: int, abstract_state: Any, state_shardings: Any, config: Config
  ) -> tuple[dict[str, Any], autoencoder.PatchPca]:
    """State and autoencoder of a step, straight into their shards."""
    where = jax.tree.leaves(state_shardings)[0].mesh
    abstract = _abstract(abstract_state, state_shardings)
    items = {
      item: ocp.args.StandardRestore({name: abstract[name] for name in names})
      for item, names in _ITEMS.items()
    }
    vae = _abstract_autoencoder(config, sharding.replicated(where))
    restored = self._manager.restore(
      step,
      args=ocp.args.Composite(
        **items, autoencoder=ocp.args.StandardRestore(vae)
      ),
    )
    state = {k: v for item in _ITEMS for k, v in restored[item].items()}
    return state, restored['autoencoder']

  def restore_params(
    self, step: int, name: str, abstract_params: Any, config: Config
  ) -> tuple[Any, autoencoder.PatchPca]:
    """One set of parameters and the autoencoder, on the first device.

    Args:
      step: which checkpoint.
      name: `params` or `ema`.
      abstract_params: their shapes.
      config: the checkpoint's.
    """
    where = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    params = _abstract(
      abstract_params, jax.tree.map(lambda _: where, abstract_params)
    )
    restored = self._manager.restore(
      step,
      args=ocp.args.Composite(
        **{name: ocp.args.StandardRestore({name: params})},
        autoencoder=ocp.args.StandardRestore(
          _abstract_autoencoder(config, where)
        ),
      ),
    )
    return restored[name][name], restored['autoencoder']

  def close(self) -> None:
    """Waits until everything is on disk."""
    self._manager.wait_until_finished()
    self._manager.close()
