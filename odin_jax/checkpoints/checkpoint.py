"""Checkpoints: the state, the encoders and the config that made them.

Orbax writes asynchronously and renames when all is on disk, so a kill leaves
the previous checkpoint whole. Checksums are computed meanwhile, too, and the
encoders, which no step changes, are one file of the workdir (`encoder_files`);
checkpoints of earlier versions have them inside. The parts of a checkpoint can
be restored one by one and onto any mesh.
"""

import contextlib
import functools
import hashlib
import itertools
import json
import logging as python_logging
import os
import pathlib
import re
import sys
from typing import Any, Callable, Iterator, Mapping

from absl import logging
import jax
from jax.experimental import multihost_utils
import numpy as np

from odin_jax import sharding
from odin_jax.checkpoints import checksums, encoder_files, pretrained
from odin_jax.models import conditioning, encoders, multisphere
from odin_jax.shared import checkpoint_steps, errors, files, schema, workdirs

Config = dict[str, Any]
FOLDER = 'checkpoints'
ENCODERS = 'encoders'
CHECKSUMS = 'checksums'
# Where Orbax has its processes wait until the arrays of all are on disk.
_WRITTEN = 'async_write_complete'
# Where a run keeps checkpoints that it did not go on from.
DAMAGED = 'damaged'
_OTHERWISE = (
  'odin_jax.train --allow_fallback sets it aside and goes on from the one '
  'before, other commands read an earlier one by --step'
)
# Field of the config of a run: what its records meant.
RECORD_SCHEMA = 'record_schema'
# What may change between the runs of one workdir: none of it alters what a
# step computes, but for `steps`, towards which the learning rate decays.
MAY_DIFFER = (
  'steps',
  'checkpoint_every',
  'log_every',
  'max_to_keep',
  'keep_period',
  'save_when_busy',
  'max_loss_spike',
  'sample_every',
  'mesh',
  'encoders_split',
  'cache_records',
  # A run that met damaged records may be told to go on.
  'max_corrupt_records',
  'num_workers',
  'init',
  pretrained.INIT_SHA256,
  # Records that a run is continued with are those of its fingerprint.
  RECORD_SCHEMA,
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


def changed_fields(usual: Config, given: Config) -> Config:
  """Fields of a config, at any depth, that another has not or not so."""
  before = dict(_leaves(usual))
  return {
    key: value
    for key, value in _leaves(given)
    if key not in before or before[key] != value
  }


def differences(saved: Config, given: Config) -> list[str]:
  """What differs in what must not, as `key: saved -> given`."""
  old, new = dict(_leaves(saved)), dict(_leaves(given))
  return [
    f'{key}: {old.get(key)!r} -> {new.get(key)!r}'
    for key in sorted(old.keys() | new.keys())
    if key.split('.')[0] not in MAY_DIFFER
    and (key not in old or key not in new or old[key] != new[key])
  ]


def _whole(leaf: jax.Array) -> np.ndarray:
  """An array of which each process may have a part; to be called by all."""
  if leaf.is_fully_addressable or leaf.is_fully_replicated:
    return np.asarray(leaf)
  return multihost_utils.process_allgather(leaf, tiled=True)


def params_sha256(params: Any) -> str:
  """Digest over the names, shapes and values of all parameters."""
  digest = hashlib.sha256()
  for path, leaf in jax.tree_util.tree_leaves_with_path(params):
    values = _whole(leaf)
    digest.update(f'{sharding.path_name(path)} {values.shape}'.encode())
    digest.update(values.tobytes())
  return digest.hexdigest()


class DamagedError(errors.UserError):
  """A checkpoint that is not as it was saved; an earlier one may be.

  Args:
    what: is wrong with it.
    otherwise: what to do then.

  Attributes:
    what: the same.
  """

  def __init__(self, what: str, otherwise: str):
    super().__init__(f'{what}; {otherwise}')
    self.what = what


class NotFiniteError(ValueError):
  """A state with a NaN or an infinity, which is not saved."""


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
  return _abstract(arrays, jax.tree.broadcast(where, arrays))


@functools.cache
def _pass_over_what_is_abandoned() -> None:
  """Keeps what Orbax leaves behind after a failure from being printed.

  Of each array that TensorStore was still at, it says that the event loop is
  gone, and Python that Orbax's coroutine was not ended, or that nobody asked
  for the errors after the first, which is told. Threads say it at any
  time from the failure on, which of an asynchronous save is known later; so
  from the first checkpoints that are opened to the end of the process.
  """
  otherwise = sys.unraisablehook

  def hook(unraisable: Any) -> None:
    if str(unraisable.exc_value) not in (
      'Event loop is closed',
      'sys.meta_path is None, Python is likely shutting down',
    ):
      otherwise(unraisable)

  sys.unraisablehook = hook
  python_logging.getLogger('asyncio').addFilter(
    lambda record: 'exception was never retrieved' not in record.getMessage()
  )


def _reason(error: Exception) -> str:
  """The system's words where it was the system that refused."""
  text = str(error) or type(error).__name__
  code = re.search(r"os_error_code='(\d+)'", text)
  return os.strerror(int(code[1])) if code else text.splitlines()[0][:200]


@contextlib.contextmanager
def _as_user_error(
  what: str,
  otherwise: str,
  kind: Callable[[str, str], errors.UserError] = (
    lambda what, otherwise: errors.UserError(f'{what}; {otherwise}')
  ),
) -> Iterator[None]:
  """Turns a failure of Orbax, which has no errors of its own, into one line.

  Args:
    what: that was done, 'PATH: cannot be read' for example.
    otherwise: what to do then.
    kind: makes the error of the two.

  Raises:
    errors.UserError: it failed.
  """
  try:
    yield
  except errors.UserError:
    raise
  except Exception as error:
    raise kind(f'{what} ({_reason(error)})', otherwise) from error


@functools.cache
def _warn_of_no_checksums(checkpoint: pathlib.Path) -> None:
  """Says so once, however often a command opens it."""
  logging.warning(
    '%s: has no checksums, for an earlier version made it: not checked',
    checkpoint,
  )


def _carrying(
  barrier: Callable[..., None], carry: Callable[[], None]
) -> Callable[..., None]:
  """A barrier of Orbax that carries what is written, see `Checkpoints`."""

  def wait(*, key: str, timeout_ms: int) -> None:
    is_written, is_first = _WRITTEN in key, not jax.process_index()
    if is_written and not is_first:
      carry()
    barrier(key=key, timeout_ms=timeout_ms)
    if is_written and is_first:
      carry()

  return wait


def warn_of_other_units(
  workdir: str | os.PathLike[str], config: Config
) -> None:
  """Says that a model may have learned another unit of length.

  Records of schema 1 had another `median_depth`, and so another scene unit, and
  runs of before did not note what they read.

  Args:
    workdir: of the model, or the word for the checkpoint of the project, which
      is of this schema.
    config: of its checkpoint; of a ported one no records are known.
  """
  if workdirs.is_pretrained(workdir) or is_ported(config):
    return
  if config.get(RECORD_SCHEMA) != schema.SCHEMA_VERSION:
    logging.warning(
      '%s: its records are of schema %s, and it is asked in units of schema %d: '
      'distances may be a fifth off; train it again on records made anew',
      workdir,
      config.get(RECORD_SCHEMA, '1, or not noted'),
      schema.SCHEMA_VERSION,
    )


def is_ported(config: Config) -> bool:
  """Whether a checkpoint's config says that it comes from another project."""
  return 'ported_from' in config


class Checkpoints:
  """The checkpoints of one workdir.

  Args:
    workdir: of `odin_jax.train`.
    max_to_keep: of the newest ones; earlier ones are removed,
    keep_period: but for those of the steps that this divides; 0 keeps none.
    read_only: look, without tidying up what a killed run (or one that is
      still going on) has not finished.
    carry: takes the arrays of a save, which are on the disk of each process, to
      that of the first, where the processes share no disk. It is called by
      every process, by the first once it has been by all others.
  """

  def __init__(
    self,
    workdir: pathlib.Path,
    *,
    max_to_keep: int = 2,
    keep_period: int = 0,
    read_only: bool = False,
    carry: Callable[[], None] | None = None,
  ):
    # Here, for a command reads its flags before what is slow to load.
    import orbax.checkpoint as ocp

    from odin_jax.checkpoints import late_json

    _pass_over_what_is_abandoned()
    barrier = None
    if carry:
      barrier = _carrying(ocp.multihost.get_barrier_sync_fn(), carry)
      # Of metadata of arrays each process waits for a folder that the first
      # makes; nothing here needs them.
      ocp.type_handlers.register_type_handler(
        jax.Array, ocp.type_handlers.ArrayHandler(), override=True
      )
    policies = ocp.checkpoint_managers
    self._args = ocp.args
    self._late_json = late_json
    self._workdir = workdir.absolute()
    self._folder = self._workdir / FOLDER
    # Of the encoders, which all steps share, and whether some process of this
    # run has written them, or does so with the first save.
    self._encoders_sha256: str | None = None
    self._are_encoders_there = False
    self._checksums: dict[int, dict[str, str] | None] = {}
    self._manager = ocp.CheckpointManager(
      self._folder,
      options=ocp.CheckpointManagerOptions(
        preservation_policy=policies.AnyPreservationPolicy(
          [policies.LatestN(max_to_keep)]
          + [policies.EveryNSteps(keep_period)] * bool(keep_period)
        ),
        enable_async_checkpointing=not read_only,
        async_options=ocp.AsyncOptions(barrier_sync_fn=barrier),
        cleanup_tmp_directories=not read_only,
        read_only=read_only,
        create=not read_only,
      ),
    )

  def latest(self) -> int | None:
    """The newest step saved, or None."""
    return self._manager.latest_step()

  def steps(self) -> list[int]:
    """All steps saved, in order."""
    return sorted(self._manager.all_steps())

  def save(
    self,
    step: int,
    state: Mapping[str, Any],
    frozen: encoders.Encoders,
    config: Config,
  ) -> None:
    """Starts to save a step; one that is saved already is left alone.

    The arrays may be donated as soon as this returns. Waits for the end of a
    save that is under way.

    Raises:
      errors.UserError: the one before cannot be written, or not all of its
        numbers are finite; of this one the next call, or `close`, tells.
    """
    if self.latest() == step:
      return
    trees = {
      item: {name: state[name] for name in names}
      for item, names in _ITEMS.items()
    }
    inspect = checksums.later(trees)
    if not self._are_encoders_there:
      self._are_encoders_there = True
      # By all processes, which may have parts of them.
      frozen = jax.tree.map(_whole, frozen)

    def seal() -> dict[str, str]:
      sums, is_finite = inspect()
      if not is_finite:
        raise NotFiniteError(f'step {step}: its numbers are not all finite')
      return checksums.sealed(
        config, {**sums, ENCODERS: self._keep_encoders(frozen)}
      )

    items = {
      item: self._args.StandardSave(tree) for item, tree in trees.items()
    }
    with self._writing():
      self._manager.save(
        step,
        args=self._args.Composite(
          **items,
          config=self._args.JsonSave(config),
          **{CHECKSUMS: self._late_json.LateJsonSave(seal)},
        ),
        force=True,
      )

  def _keep_encoders(self, frozen: encoders.Encoders) -> str:
    """Their digest, once they are on disk; of one process, which writes."""
    if self._encoders_sha256 is None and not jax.process_index():
      self._encoders_sha256 = encoder_files.write(self._workdir, frozen)
    return self._encoders_sha256 or ''

  def is_busy(self) -> bool:
    """Whether a save is under way."""
    return self._manager.is_saving_in_progress()

  def config(self, step: int) -> Config:
    """The config of a step.

    Raises:
      errors.UserError: it is damaged.
    """
    config = self._restore(step, config=self._args.JsonRestore())['config']
    self._require_same(step, {}, config)
    return config

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
      errors.UserError: it is damaged, or not all of its numbers are finite.
    """
    where = jax.tree.leaves(state_shardings)[0].mesh
    abstract = _abstract(abstract_state, state_shardings)
    items = {
      item: self._args.StandardRestore({name: abstract[name] for name in names})
      for item, names in _ITEMS.items()
    }
    restored = self._restore(step, **items)
    self._require_sound(step, {item: restored[item] for item in items})
    state = {k: v for item in _ITEMS for k, v in restored[item].items()}
    return state, self.restore_encoders(
      step, config, encoders.shardings(config, where)
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
      errors.UserError: they are damaged, or not all of them are finite.
    """
    params = _abstract(abstract_params, params_shardings)
    tree = self._restore(
      step, **{name: self._args.StandardRestore({name: params})}
    )[name]
    self._require_sound(step, {name: tree})
    return tree[name]

  def restore_encoders(
    self, step: int, config: Config, where: Any
  ) -> encoders.Encoders:
    """The encoders of a step, in one sharding or in a tree of them.

    Raises:
      errors.UserError: they are not there, or damaged.
    """
    sha256 = (self._kept_checksums(step) or {}).get(ENCODERS)
    if sha256 is not None:
      frozen = encoder_files.read(
        self._workdir, sha256, encoders.abstract(config), where
      )
      self._encoders_sha256, self._are_encoders_there = sha256, True
      return frozen
    frozen = self._restore(
      step,
      **{
        ENCODERS: self._args.StandardRestore(_abstract_encoders(config, where))
      },
    )[ENCODERS]
    self._require_sound(step, {ENCODERS: frozen})
    return frozen

  def _restore(self, step: int, **items: Any) -> Any:
    """Items of a checkpoint.

    Raises:
      DamagedError: they can't be read.
    """
    where = self._folder / str(step)
    with _as_user_error(
      f'{where}: {", ".join(items)}: cannot be read', _OTHERWISE, DamagedError
    ):
      return self._manager.restore(step, args=self._args.Composite(**items))

  def _require_same(
    self, step: int, sums: Mapping[str, str], config: Config | None = None
  ) -> None:
    """Raises DamagedError unless all is as it was saved."""
    kept = self._kept_checksums(step)
    names = kept and checksums.damaged(kept, sums, config)
    if names:
      raise DamagedError(
        f'{self._folder / str(step)}: {names[0]} is not as it was saved (and '
        f'{len(names) - 1} more): the disk or a copy damaged it',
        _OTHERWISE,
      )

  def seal(self, step: int) -> dict[str, str]:
    """The checksums of a step as they are kept there, and its config's.

    Raises:
      errors.UserError: they are damaged.
    """
    return self._kept_checksums(step) or checksums.sealed(self.config(step), {})

  def _kept_checksums(self, step: int) -> dict[str, str] | None:
    """Those of a step, read once; None where it has none."""
    if step not in self._checksums:
      kept = None
      if (self._folder / str(step) / CHECKSUMS).is_dir():
        items = {CHECKSUMS: self._late_json.LateJsonRestore()}
        kept = self._restore(step, **items)[CHECKSUMS]
        if not checksums.is_whole(kept):
          raise DamagedError(
            f'{self._folder / str(step)}: its checksums are not as they were '
            f'saved: the disk or a copy damaged them',
            _OTHERWISE,
          )
      else:
        _warn_of_no_checksums(self._folder / str(step))
      self._checksums[step] = kept
    return self._checksums[step]

  def _require_sound(self, step: int, trees: Mapping[str, Any]) -> None:
    """Raises DamagedError unless arrays are as saved, and finite."""
    sums, is_finite = checksums.inspect(trees)
    self._require_same(step, sums)
    if not is_finite:
      raise DamagedError(
        f'{self._folder / str(step)}: its parameters are not all finite (NaN '
        'or infinity): a training that diverged',
        _OTHERWISE,
      )

  def set_aside(self, step: int) -> pathlib.Path:
    """Moves a checkpoint to where none is looked for; returns its new place."""
    for number in itertools.count():
      name = f'{step}.{number}' if number else str(step)
      aside = self._workdir / DAMAGED / name
      if not aside.exists():
        break
    aside.parent.mkdir(exist_ok=True)
    (self._folder / str(step)).rename(aside)
    self._checksums.pop(step, None)
    self._manager.reload()
    return aside

  def close(self) -> None:
    """Waits until everything is on disk.

    Raises:
      errors.UserError: it cannot be written.
    """
    with self._writing():
      self._manager.wait_until_finished()
      self._manager.close()

  @contextlib.contextmanager
  def _writing(self) -> Iterator[None]:
    with _as_user_error(
      f'{self._folder}: a checkpoint cannot be written',
      'the one before is whole; make room, and the same command goes on from it',
    ):
      try:
        yield
      except NotFiniteError as error:
        raise errors.UserError(
          f'{self._folder}: {error}, so that it is not saved; the one before is '
          'whole; lower config.optimizer.learning_rate and start in a new '
          '--workdir'
        ) from error


def open_step(
  workdir: str | os.PathLike[str], step: int | None = None
) -> tuple[Checkpoints | pretrained.Pretrained, int, Config]:
  """The checkpoints of a workdir, a step and its config.

  Args:
    workdir: of `odin_jax.train` or `odin_jax.port_weights`, or the word for
      the checkpoint that comes with the project (`workdirs`).
    step: of the checkpoint; None: the newest.

  Raises:
    errors.UserError: no such checkpoint there, or one of a model with a part of
      the conditioning that is not here, or of spheres of an earlier version.
  """
  if workdirs.is_pretrained(workdir):
    checkpoints = pretrained.Pretrained()
  else:
    path = files.require_folder(
      workdir, 'the --workdir of odin_jax.train or output of port_weights'
    )
    files.require_folder(path / FOLDER, 'a training run with a checkpoint')
    checkpoints = Checkpoints(path, read_only=True)
  step = checkpoint_steps.choose(workdir, checkpoints.steps(), step)
  config = checkpoints.config(step)
  try:
    conditioning.parse(config['model']['conditioning'])
    multisphere.check(config)
  except ValueError as error:
    raise errors.UserError(f'{workdir}: {error}') from error
  return checkpoints, step, config
