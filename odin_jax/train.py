"""Trains the model on a folder of records.

  python -m odin_jax.train --config=configs/train.py:world \
    --records=DIR --workdir=DIR [--config.steps=60] [--init=DIR]

Several `--records` are a mixture: `--records=DIR1 --records=DIR2
--config.mixture.weights=3,1` takes three examples of the first for one of the
second.

A workdir that holds checkpoints of the same config is continued from the
newest one: a run that was killed and started again ends with the same
parameters, bit for bit, as one that was not. SIGTERM and Ctrl-C save and exit
75 (EX_TEMPFAIL), which tells a scheduler to start again; a second one ends at
once.
`--init` starts from the parameters of another workdir, such as the output of
`odin_jax.port_weights`, or with `--init=pretrained` from those of the checkpoint
that comes with the project (odin_jax/pretrained).

On several hosts each process gets `--coordinator=HOST:PORT --num_processes=N
--process_id=I` (nothing under Slurm's `srun` or on a TPU slice), and the same
workdir: a folder that all of them see, or an address; see `odin_jax.hosts`.
Losses and batches are those of one process, and a run goes on with another
number.

The workdir gets `checkpoints/`, `encoders/`, `metrics.jsonl` (a row every
`log_every` steps, see `odin_jax.training.watching`), `tensorboard/`,
`goodput.jsonl` (where the time went, `python -m odin_jax.report --workdir=DIR`
says it), with `config.sample_every` pictures of held-out pairs in `samples/`
and, when all steps are done, `final.json` and what the images of the records are
like (`odin_jax.familiarity`; not of `--latents`, nor of fewer than 100).
"""

import sys

# As a file it finds none of the packages below.
if __name__ == '__main__' and not __package__:
  sys.stderr.write('error: type: python -m odin_jax.train\n')
  sys.exit(2)

import contextlib
import functools
import math
import pathlib
import signal
import time
from typing import Any, Callable, Sequence
import warnings

from absl import flags, logging
import jax

from odin_jax import (
  batches,
  familiarity,
  held_out,
  hosts,
  latents,
  loop,
  sharding,
)
from odin_jax.checkpoints import checkpoint, fallback, pretrained
from odin_jax.models import conditioning, encoders, odin
from odin_jax.porting import lpips_package
from odin_jax.shared import (
  command,
  digests,
  errors,
  files,
  interrupts,
  locks,
  mirror,
  schema,
  storage,
  workdirs,
)
from odin_jax.sources import opening
from odin_jax.training import (
  profiling,
  program,
  settings,
  step,
  trackers,
  warm_start,
)

_CONFIG = command.define_config('configs/train.py')
_RECORDS = command.define_paths_of_many(
  'records',
  'Folder of records to train on, or its address (gs://bucket/folder); given '
  'several times, a mixture, see config.mixture.',
  may_be_address=True,
)
_WORKDIR = command.define_path(
  'workdir',
  'Folder for checkpoints and metrics, or its address '
  '(gs://bucket/folder); made if absent, continued if it holds a run of the same '
  'config.',
  may_be_address=True,
)
_INIT = command.define_path(
  'init',
  'Workdir to take the first parameters and the encoders from: the output of '
  'odin_jax.port_weights, or another run, whose moving averages are taken; or '
  'the word pretrained: the checkpoint that comes with the project '
  '(./pretrained is a folder of that name; where there is one, the word alone '
  'is refused).',
  may_be_address=True,
)
_LATENTS = command.define_paths_of_many(
  'latents',
  'Output of odin_jax.cache_latents for these records and encoders: views are '
  'not decoded and encoded again. Losses stay the same. Given as often as '
  '--records, in their order.',
)
_CHECKPOINT_STEP = command.define_checkpoint_step('init')
_ALLOW_FALLBACK = flags.DEFINE_bool(
  'allow_fallback',
  False,
  'Where the newest checkpoint is damaged, set it aside and go on from the one '
  'before.',
)
_PROFILE_STEPS = flags.DEFINE_string(
  'profile_steps',
  None,
  'FIRST:LAST, such as 100:110: traces these steps into profile/ of the workdir, '
  'for XProf, TensorBoard or Perfetto.',
)
_TRACKERS = flags.DEFINE_list(
  'trackers',
  [],
  'Services that figures are sent to as well, where their packages are '
  'installed: wandb, mlflow.',
)
_HOSTS = hosts.define()
flags.mark_flags_as_required(['records', 'workdir'])
_TOOL = 'odin_jax.train'
_INIT_NEEDS = 'another run, or a ported one,'


def _check(config: checkpoint.Config) -> None:
  """Refuses what can be refused at once."""
  settings.check(config)
  if _LATENTS.value:
    settings.check_latents(config)
  trackers.check(_TRACKERS.value)
  if _WORKDIR.value == workdirs.PRETRAINED:
    raise errors.UserError(
      f'--workdir={workdirs.PRETRAINED}: is the checkpoint that comes with the '
      f'project, which nothing is written into; --init={workdirs.PRETRAINED} starts '
      f'from it; give a new folder, or write ./{workdirs.PRETRAINED} for one of that '
      'name'
    )
  if config['init']:
    # What is behind an address is brought once it is known to be read.
    if not storage.is_address(config['init']):
      workdirs.require(config['init'], _INIT_NEEDS)
  elif _CHECKPOINT_STEP.value is not None:
    raise errors.UserError(
      f'--{_CHECKPOINT_STEP.name}: is of --init, which is not given; a run goes '
      'on from the newest checkpoint of --workdir'
    )


def _abstract_state(config: checkpoint.Config) -> step.State:
  """The shapes of the state of a config that can be trained."""
  try:
    return jax.eval_shape(functools.partial(step.init, config))
  except KeyError as error:
    raise errors.UserError(
      f'--config: has no field {error}, which a network or a part of '
      f'config.model.conditioning={config["model"]["conditioning"]} reads; add '
      'it where configs/train.py sets config.model'
    ) from error
  except ValueError as error:
    raise errors.UserError(f'--config: {error}') from error


def _open(
  config: checkpoint.Config, split: str, latents_paths: Sequence[str] = ()
) -> opening.Opened:
  """The records of a split, and latents of them if there are some."""
  return opening.open_sources(
    _RECORDS.value,
    config,
    split=split,
    depth=odin.has_spheres(config),
    num_sources=conditioning.num_sources(config),
    latents_paths=latents_paths,
    times=conditioning.needs_times(config),
  )


def _open_test(config: checkpoint.Config) -> batches.Source | None:
  """The pairs that are sampled on the way, where some are."""
  if not config['sample_every']:
    return None
  try:
    return _open(config, 'test').source
  except errors.UserError as error:
    raise errors.UserError(
      f'config.sample_every={config["sample_every"]}: samples held-out pairs; '
      f'{error}, or give 0'
    ) from error


def _traced(config: checkpoint.Config) -> profiling.Steps | None:
  """The steps to trace, where there are some."""
  if _PROFILE_STEPS.value is None:
    return None
  steps = profiling.parse(_PROFILE_STEPS.value)
  if steps.last > config['steps']:
    raise errors.UserError(
      f'--profile_steps={_PROFILE_STEPS.value}: there are '
      f'{config["steps"]} steps (config.steps)'
    )
  return steps


def _make_encoders(
  source: batches.Source, config: checkpoint.Config
) -> encoders.Encoders:
  """The encoders of a run that starts from no checkpoint."""
  if encoders.are_pretrained(config):
    if not config['random_encoders']:
      raise errors.UserError(
        '--init: not given, and config.autoencoder or config.image_encoder is '
        'a pretrained network; give the output of odin_jax.port_weights'
      )
    return encoders.random(config)
  images = batches.sample_images(source, encoders.num_fit_images(config))
  return encoders.fit(config, images)


def _start(
  source: batches.Source,
  config: checkpoint.Config,
  mesh: jax.sharding.Mesh,
  state_shardings: Any,
  group: hosts.Group,
) -> tuple[step.State, encoders.Encoders]:
  """State and encoders of step 0."""
  init = functools.partial(step.init, config)
  if not config['init']:
    # First what may be refused: a large state takes minutes to make. Of the
    # first process, for processors of other kinds round otherwise.
    frozen = group.of_first(_make_encoders(source, config))
    return jax.jit(init, out_shardings=state_shardings)(), frozen
  init_step = _CHECKPOINT_STEP.value
  where = workdirs.require(config['init'], _INIT_NEEDS, init_step)
  if group.of > 1:
    # Each reads its part of it.
    checkpoints, first_step, _ = checkpoint.open_step(where, init_step)
    group.require_same({'checkpoint in --init': checkpoints.seal(first_step)})
    checkpoints.close()
  start = warm_start.load(where, config, mesh, init_step)
  _note_origin(config, start.init_sha256)
  for note in start.notes:
    logging.info('%s: %s', config['init'], note)

  def init_from(saved: Any) -> step.State:
    params = warm_start.adopt(odin.init_params(config), saved, start.rows)
    return step.state_of(config, params)

  state = jax.jit(init_from, donate_argnums=0, out_shardings=state_shardings)
  with warnings.catch_warnings():
    # Kernels of other shapes than the checkpoint's take memory of their own.
    warnings.filterwarnings('ignore', 'Some donated buffers were not usable')
    return state(start.params), start.encoders


def _note_origin(config: checkpoint.Config, sha256: str | None) -> None:
  """Keeps which checkpoint `pretrained` stood for when the run began."""
  if sha256:
    config[pretrained.INIT_SHA256] = sha256


def _check_restored(
  workdir: pathlib.Path,
  restored_step: int,
  config: checkpoint.Config,
  traced: profiling.Steps | None,
) -> None:
  """Refuses a step that this config cannot go on from."""
  if traced and traced.first <= restored_step:
    logging.warning(
      '--profile_steps: nothing is traced, for step %d is done', traced.first
    )
  if config['init']:
    logging.info(
      '--init is not read: %s goes on from step %d', workdir, restored_step
    )
  if restored_step > config['steps']:
    raise errors.UserError(
      f'{workdir}: trained for {restored_step} steps already, more than '
      f'config.steps={config["steps"]}; give more, or a new --workdir'
    )


def _claim_workdir(
  group: hosts.Group, stack: contextlib.ExitStack
) -> tuple[pathlib.Path, Callable[[], None] | None]:
  """The workdir, which the first process has for all of them.

  Args:
    group: of processes.
    stack: what is taken to an address is so when it ends.

  Returns:
    its folder, and what carries checkpoints between those that several processes
    have of an address.

  Raises:
    errors.UserError: it is of others, or not one folder for all.
  """
  if storage.is_address(_WORKDIR.value):
    if not group.is_first:
      group.wait()
      follower = mirror.Follower(_WORKDIR.value, group.process)
      return follower.folder, follower.give
    mirrored = stack.enter_context(mirror.Mirror(_WORKDIR.value, _TOOL))
    if group.of == 1:
      return mirrored.folder, None
    # Its copy may be ahead of what the others find there.
    mirrored.push()
    group.wait()
    return mirrored.folder, mirrored.collect
  path = pathlib.Path(_WORKDIR.value)
  if group.is_first:
    path = files.claim_output(_WORKDIR.value, _TOOL)
  group.require_one_file(path / locks.NAME, '--workdir')
  return path, None


def _note_familiarity(workdir: pathlib.Path, source: batches.Source) -> None:
  """Writes what the views of the records are like."""
  pairs = batches.sound_pairs(source, familiarity.NUM_IMAGES)
  widths = [float(pair.fov_deg) for pair in pairs]
  if widths:
    images = [pair.source for pair in pairs]
    familiarity.write(workdir, images, (min(widths), max(widths)))


def _finish(
  workdir: pathlib.Path,
  figures: dict[str, Any],
  config: checkpoint.Config,
  made_of: str,
) -> None:
  """Writes the figures, and says what comes next."""
  files.write_json(workdir / 'final.json', figures)
  # What evaluate can read: one folder of this machine.
  here = [path for path in _RECORDS.value if not storage.is_address(path)]
  given = {
    'data': here[0] if here else 'DIR',
    'workdir': _WORKDIR.value,
    'output': command.beside(_WORKDIR.value, 'scores'),
    'config.image_size_px': config['image_size_px'],
  }
  command.finish(
    _WORKDIR.value,
    f'step {figures["step"]} of {config["steps"]}, {made_of}',
    then=('score it', 'odin_jax.evaluate', given),
  )


def _train(group: hosts.Group) -> None:
  with contextlib.ExitStack() as stack:
    _train_in(group, stack)


def _train_in(group: hosts.Group, stack: contextlib.ExitStack) -> None:
  start_s, stopwatch = time.time(), command.Stopwatch()
  # Of several processes a guard knows of the second signal.
  interrupt = interrupts.Interrupt(second_ends=group.of == 1)
  if not group.is_first:
    logging.set_verbosity(logging.WARNING)
  config = checkpoint.plain(_CONFIG.value.to_dict())
  config['init'] = _INIT.value or ''
  _check(config)
  traced = _traced(config)
  if _ALLOW_FALLBACK.value and group.of > 1:
    raise errors.UserError(
      '--allow_fallback: is for one process; move the damaged folder out of '
      f'{_WORKDIR.value}/{checkpoint.FOLDER}, and start all of them again'
    )
  perceptual = lpips_package.for_training(config)

  # -- Input ------------------------------------------------------------------
  test_pairs = _open_test(config)
  source, made_of, allowance, read, encoded = _open(
    config, latents.SPLIT, _LATENTS.value or []
  )
  # The config keeps what is read of them.
  for name in opening.FIELDS:
    del config[name]
  config.update(read, records=source.fingerprint())
  config[checkpoint.RECORD_SCHEMA] = schema.SCHEMA_VERSION
  # The shapes of a large network take seconds: after what is quickly refused.
  abstract = _abstract_state(config)
  workdir, carry = _claim_workdir(group, stack)

  # -- Mesh and state ---------------------------------------------------------
  logging.info(sharding.devices_text())
  mesh = sharding.make_mesh(config['mesh'])
  placement = program.placement(config, mesh, abstract)

  # A checkpoint in the workdir goes before a fresh start; a checkpoint that
  # does not fit is an error, never a reason to start afresh.
  checkpoints = checkpoint.Checkpoints(
    workdir,
    max_to_keep=config['max_to_keep'],
    keep_period=config['keep_period'],
    carry=carry,
  )
  restored_step = checkpoints.latest() or 0
  group.require_same(
    {
      'config, flags or records': config,
      'code': digests.of_code(),
      'checkpoints': restored_step,
    }
  )
  if restored_step:
    restored_step, state, frozen = fallback.restore_newest(
      checkpoints,
      abstract,
      placement.state,
      config,
      may_go_back=_ALLOW_FALLBACK.value,
    )
    _check_restored(workdir, restored_step, config, traced)
    _note_origin(
      config, checkpoints.config(restored_step).get(pretrained.INIT_SHA256)
    )
  else:
    state, frozen = _start(source, config, mesh, placement.state, group)
  frozen = encoders.held(frozen, config)
  if encoded:
    encoders_sha256 = checkpoint.params_sha256(frozen)
    for folder in encoded:
      folder.require_made_by(encoders_sha256)
  frozen = jax.device_put(frozen, placement.frozen)
  perceptual = jax.device_put(perceptual, placement.everywhere)
  count = sum(math.prod(p.shape) for p in jax.tree.leaves(abstract['params']))
  logging.info(
    '%d parameters, %s, mesh %s, from step %d of %d',
    count,
    made_of,
    dict(mesh.shape),
    restored_step,
    config['steps'],
  )

  train_step = program.jitted(config, mesh, placement)
  samples = (
    held_out.HeldOut(test_pairs, config, mesh, placement.state['ema'])
    if test_pairs
    else None
  )
  own_rows = sharding.own_rows(placement.batch, config['batch_size'])
  place = functools.partial(
    sharding.of_rows, placement.batch, config['batch_size'], own_rows
  )
  stream = batches.batches(
    batches.examples(source, seed=config['seed'], **config['augment']),
    first_step=restored_step,
    batch_size=config['batch_size'],
    rows=own_rows,
    num_workers=config['num_workers'],
  )

  # -- Loop -------------------------------------------------------------------
  keeper = loop.Keeper(
    workdir=workdir,
    config=config,
    group=group,
    source=source,
    records=', '.join(_RECORDS.value),
    counts=allowance.figures,
    checkpoints=checkpoints,
    samples=samples,
    traced=traced,
    trackers=trackers.start(_TRACKERS.value, workdir, config)
    if group.is_first
    else [],
    done=restored_step,
    start_s=start_s,
  )
  with contextlib.closing(stream):
    state, stopped_by = loop.run(
      keeper,
      train_step,
      state,
      (jax.tree.map(place, batch) for batch in stream),
      (frozen, perceptual),
      interrupt,
    )
  done = keeper.done
  # What one process says of a step that is saved is true of all.
  group.wait()

  # -- Figures ----------------------------------------------------------------
  if done < config['steps']:
    raise errors.Unfinished(
      f'stopped by {signal.Signals(stopped_by).name}: step {done} of '
      f'{config["steps"]} is saved in {_WORKDIR.value}; the same command goes on from '
      'there'
    )
  figures = {
    'step': done,
    'restored_step': restored_step,
    'params_sha256': checkpoint.params_sha256(state['params']),
    **allowance.figures(),
  }
  if group.is_first:
    if not encoded:
      _note_familiarity(workdir, source)
    figures |= stopwatch.figures()
    _finish(workdir, figures, config, f'{count} parameters, {made_of}')


def main() -> None:
  _HOSTS.run(_train, ends_itself=True)


if __name__ == '__main__':
  command.run(main)
