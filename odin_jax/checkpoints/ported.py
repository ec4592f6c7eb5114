"""Checkpoints of other projects, in and out.

A ported checkpoint (`odin_jax.port_weights`) is step 0 of a workdir of its own,
without moving averages or an optimiser: models are sampled from it as from any
other, and training starts from it.
"""

import functools
import os
import pathlib
from typing import Any, Callable, Mapping

import jax
import numpy as np

from odin_jax import sharding
from odin_jax.checkpoints import checkpoint, checksums
from odin_jax.models import encoders, odin
from odin_jax.shared.lazy_array import LazyArray

# What a checkpoint of another project does not say, and sampling and
# initialisation read.
_PORTED = {
  'recipe': 'ported',
  'seed': 0,
  'dtype': 'float32',
  'model': {'unet': {'remat': 'none'}},
}


def _completed(config: Any, defaults: Any) -> Any:
  """The config with the defaults for what it lacks, at every depth."""
  if not isinstance(defaults, dict):
    return config
  return {
    **defaults,
    **config,
    **{
      name: _completed(config[name], defaults[name])
      for name in config.keys() & defaults.keys()
    },
  }


def require_buildable(config: checkpoint.Config) -> None:
  """Checks that a config for `write_ported` is one of networks.

  Raises:
    ValueError, TypeError, LookupError, ArithmeticError, AttributeError: it is
      not.
  """
  config = checkpoint.plain(_completed(config, _PORTED))
  encoders.abstract(config)
  jax.eval_shape(lambda: odin.init_params(config))


def write_ported(
  workdir: pathlib.Path,
  params: Any,
  encoder_params: Mapping[str, Any],
  config: checkpoint.Config,
) -> None:
  """Makes a workdir of parameters from elsewhere, as its step 0.

  Args:
    workdir: to make.
    params: nested dicts of arrays, as `odin.init_params` gives them; lazy ones
      (`odin_jax.shared.lazy_array`) are read one at a time.
    encoder_params: `autoencoder` and `image`, likewise; None where absent.
    config: of the networks and the diffusion, with `ported_from`.

  Raises:
    ValueError: parameters other than the config's.
  """
  # Here, for a command reads its flags before what is slow to load.
  import orbax.checkpoint as ocp

  from odin_jax.checkpoints import streaming

  config = checkpoint.plain(_completed(config, _PORTED))
  shapes = encoders.abstract(config)
  frozen = shapes.replace(
    **{
      name: getattr(shapes, name).replace(params=params)
      for name, params in encoder_params.items()
      if params is not None
    }
  )
  expected = {
    'params': jax.eval_shape(lambda: odin.init_params(config)),
    'encoders': shapes,
  }
  given = {'params': params, 'encoders': frozen}
  if jax.tree.map(np.shape, expected) != jax.tree.map(np.shape, given):
    raise ValueError('parameters and config are of different networks')
  trees = {'params': {'params': params}, checkpoint.ENCODERS: frozen}
  sums = checksums.sealed(config, checksums.of_lazy(trees))
  manager = ocp.CheckpointManager(
    (workdir / checkpoint.FOLDER).absolute(),
    item_handlers={
      'params': streaming.handler(),
      'encoders': streaming.handler(),
      'config': ocp.JsonCheckpointHandler(),
      checkpoint.CHECKSUMS: ocp.JsonCheckpointHandler(),
    },
  )
  if manager.latest_step() is not None:
    manager.delete(0)
  manager.save(
    0,
    args=ocp.args.Composite(
      **{item: ocp.args.PyTreeSave(tree) for item, tree in trees.items()},
      config=ocp.args.JsonSave(config),
      **{checkpoint.CHECKSUMS: ocp.args.JsonSave(sums)},
    ),
    force=True,
  )
  manager.wait_until_finished()
  manager.close()


class _OneAtATime:
  """Trees of lazy arrays; of the trees, the one read last is in memory."""

  def __init__(self) -> None:
    self._owner: Any = None
    self._arrays: dict[str, Any] = {}

  def lazy(self, shapes: Any, load: Callable[[], Any]) -> Any:
    """Lazy arrays of a tree.

    Args:
      shapes: of its leaves.
      load: gives the tree.
    """

    def read(name: str) -> np.ndarray:
      if self._owner is not load:
        # The old one goes before the new one comes.
        self._arrays, self._owner = {}, None
        leaves = jax.tree_util.tree_leaves_with_path(load())
        self._arrays = {sharding.path_name(path): x for path, x in leaves}
        self._owner = load
      return np.asarray(self._arrays[name])

    return jax.tree_util.tree_map_with_path(
      lambda path, leaf: LazyArray(
        leaf.shape,
        np.dtype(leaf.dtype),
        functools.partial(read, sharding.path_name(path)),
      ),
      shapes,
    )


def read_exportable(
  workdir: str | os.PathLike[str], ema: bool, step: int | None = None
) -> tuple[Any, dict[str, Any], checkpoint.Config]:
  """A checkpoint as lazy arrays, in the form of `write_ported`.

  Args:
    workdir: of training or of port_weights.
    ema: the moving averages, where there are any.
    step: of the checkpoint; None: the newest.

  Returns:
    params, encoder_params and config: see `write_ported`.

  Raises:
    errors.UserError: no checkpoint there.
  """
  checkpoints, step, config = checkpoint.open_step(workdir, step)
  mesh = jax.make_mesh((1, 1, 1), sharding.AXES, devices=jax.devices()[:1])
  where = sharding.replicated(mesh)
  shapes = jax.eval_shape(lambda: odin.init_params(config))
  memory = _OneAtATime()
  params = memory.lazy(
    shapes,
    lambda: checkpoints.restore_params(
      step,
      'ema' if ema and not checkpoint.is_ported(config) else 'params',
      shapes,
      jax.tree.map(lambda _: where, shapes),
    ),
  )

  # A fitted autoencoder has no `params`, and no counterpart elsewhere.
  def params_of(frozen: encoders.Encoders) -> dict[str, Any]:
    return {
      name: getattr(getattr(frozen, name), 'params', None)
      for name in ('autoencoder', 'image')
    }

  frozen = memory.lazy(
    params_of(encoders.abstract(config)),
    lambda: params_of(checkpoints.restore_encoders(step, config, where)),
  )
  return params, frozen, config
