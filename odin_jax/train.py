"""Trains the model on a folder of records.

  python -m odin_jax.train --config=configs/train.py:world \
    --records=DIR --workdir=DIR [--config.steps=60] [--init=DIR]

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
workdir on a file system that all of them see; see `odin_jax.hosts`. Losses and
batches are those of one process, and a run goes on with another number.

The workdir gets `checkpoints/`, `metrics.jsonl` (a row every `log_every`
steps), `tensorboard/` and, when all steps are done, `final.json`.
"""

import sys

# As a file it finds none of the packages below.
if __name__ == '__main__' and not __package__:
  sys.stderr.write('error: type: python -m odin_jax.train\n')
  sys.exit(2)

import functools
import math
import pathlib
import signal
import time
from typing import Any

from absl import flags, logging
import jax
import numpy as np

from odin_jax import batches, hosts, sharding
from odin_jax.checkpoints import checkpoint
from odin_jax.models import conditioning, encoders, odin
from odin_jax.panoramas import choice
from odin_jax.panoramas import source as panoramas
from odin_jax.porting import lpips_package
from odin_jax.shared import (
  command,
  digests,
  errors,
  files,
  locks,
  progress,
  record_folder,
  schema,
  workdirs,
)
from odin_jax.training import journal, program, settings, step, warm_start

_CONFIG = command.define_config('configs/train.py')
_RECORDS = command.define_records('to train on')
_WORKDIR = command.define_path(
  'workdir',
  'Folder for checkpoints and metrics; made if absent, continued if it holds '
  'a run of the same config.',
)
_INIT = command.define_path(
  'init',
  'Workdir to take the first parameters and the encoders from: the output of '
  'odin_jax.port_weights, or another run, whose moving averages are taken; or '
  'the word pretrained: the checkpoint that comes with the project '
  '(./pretrained is a folder of that name; where there is one, the word alone '
  'is refused).',
)
_CHECKPOINT_STEP = command.define_checkpoint_step('init')
_HOSTS = hosts.define()
flags.mark_flags_as_required(['records', 'workdir'])
_TOOL = 'odin_jax.train'
_INIT_NEEDS = 'another run, or a ported one,'


class Interrupt:
  """Turns signals into a flag that the loop looks at between steps.

  Args:
    second_ends: a second signal ends this process at once.

  Attributes:
    number: of the signal that came; 0 where none did.
  """

  def __init__(self, *, second_ends: bool) -> None:
    self.number = 0
    self._second_ends = second_ends
    self._before = {
      number: signal.signal(number, self._request)
      for number in command.STOP_SIGNALS
    }

  def _request(self, number: int, frame: Any) -> None:
    del frame
    self.number = number
    if self._second_ends:
      command.end_at_once()

  def close(self) -> None:
    """From now on a signal ends the process as any other command."""
    if not self.number:
      for number, handler in self._before.items():
        signal.signal(number, handler)


def _check(config: checkpoint.Config) -> None:
  """Refuses what can be refused at once."""
  settings.check(config)
  if _WORKDIR.value == workdirs.PRETRAINED:
    raise errors.UserError(
      f'--workdir={workdirs.PRETRAINED}: is the checkpoint that comes with the '
      f'project, which nothing is written into; --init={workdirs.PRETRAINED} starts '
      f'from it; give a new folder, or write ./{workdirs.PRETRAINED} for one of that '
      'name'
    )
  if config['init']:
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


def _open(config: checkpoint.Config) -> batches.Source:
  """The records to train on; the config keeps what is read of them."""
  rules = config.pop('panoramas', {})
  given = {
    'image_size_px': config['image_size_px'],
    'cache': config['cache_records'],
    'depth': odin.has_spheres(config),
    'num_sources': conditioning.num_sources(config),
  }
  if record_folder.kind(_RECORDS.value) is schema.PAIRS:
    return batches.PairSource(_RECORDS.value, 'train', **given)
  try:
    drawn = choice.Rules(**rules)
  except (TypeError, ValueError) as error:
    raise errors.UserError(f'config.panoramas: {error}') from error
  config['panoramas'] = rules
  return panoramas.PanoramaSource(_RECORDS.value, 'train', rules=drawn, **given)


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
  where = workdirs.require(config['init'], _INIT_NEEDS)
  init_step = _CHECKPOINT_STEP.value
  if group.of > 1:
    # Each reads its part of it.
    checkpoints, first_step, _ = checkpoint.open_step(where, init_step)
    group.require_same({'checkpoint in --init': checkpoints.seal(first_step)})
    checkpoints.close()
  start = warm_start.load(where, config, mesh, init_step)
  for note in start.notes:
    logging.info('%s: %s', config['init'], note)

  def init_from(saved: Any) -> step.State:
    params = warm_start.adopt(odin.init_params(config), saved, start.rows)
    return step.state_of(config, params)

  state = jax.jit(init_from, donate_argnums=0, out_shardings=state_shardings)
  return state(start.params), start.encoders


def _check_restored(
  workdir: pathlib.Path,
  checkpoints: checkpoint.Checkpoints,
  restored_step: int,
  config: checkpoint.Config,
) -> None:
  """Refuses a checkpoint that this config cannot go on from."""
  checkpoints.check(restored_step, config)
  if config['init']:
    logging.info(
      '--init is not read: %s goes on from step %d', workdir, restored_step
    )
  if restored_step > config['steps']:
    raise errors.UserError(
      f'{workdir}: trained for {restored_step} steps already, more than '
      f'config.steps={config["steps"]}; give more, or a new --workdir'
    )


def _summary(
  metrics: list[dict[str, Any]], last_step: int, since: float, config: Any
) -> dict[str, float]:
  """Means over the steps since the last row.

  Raises:
    errors.UserError: the loss of one of the steps is not finite.
  """
  # Steps are dispatched ahead of the device: fetching waits for them, so the
  # clock is read afterwards.
  fetched = jax.device_get(metrics)
  seconds = time.monotonic() - since
  first_step = last_step - len(fetched) + 1
  for index, values in enumerate(fetched, first_step):
    if not np.isfinite(values['loss']):
      raise errors.UserError(_diverged('loss is', index))
  means = {
    name: float(np.mean([values[name] for values in fetched]))
    for name in fetched[0]
  }
  return {
    **means,
    'learning_rate': float(step.learning_rate(config)(last_step - 1)),
    'examples_per_s': len(metrics) * config['batch_size'] / seconds,
  }


def _diverged(what: str, last_step: int) -> str:
  return (
    f'{_WORKDIR.value}: the {what} not finite at step {last_step}, which is '
    'not saved; lower config.optimizer.learning_rate and start in a new '
    '--workdir'
  )


def _claim_workdir(group: hosts.Group) -> pathlib.Path:
  """The workdir, which the first process has for all of them.

  Raises:
    errors.UserError: it is of others, or not one folder for all.
  """
  path = pathlib.Path(_WORKDIR.value)
  if group.is_first:
    path = files.claim_output(_WORKDIR.value, _TOOL)
  group.require_one_file(path / locks.NAME, '--workdir')
  return path


def _finish(
  workdir: pathlib.Path,
  figures: dict[str, Any],
  config: checkpoint.Config,
  made_of: str,
) -> None:
  """Writes the figures, and says what comes next."""
  files.write_json(workdir / 'final.json', figures)
  given = {
    'data': _RECORDS.value,
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
  stopwatch = command.Stopwatch()
  # Of several processes a guard knows of the second signal.
  interrupt = Interrupt(second_ends=group.of == 1)
  if not group.is_first:
    logging.set_verbosity(logging.WARNING)
  config = checkpoint.plain(_CONFIG.value.to_dict())
  config['init'] = _INIT.value or ''
  _check(config)
  perceptual = lpips_package.for_training(config)

  # -- Input ------------------------------------------------------------------
  source = _open(config)
  made_of = f'{len(source)} {"panoramas" if "panoramas" in config else "pairs"}'
  config['records'] = source.fingerprint()
  # The shapes of a large network take seconds: after what is quickly refused.
  abstract = _abstract_state(config)
  workdir = _claim_workdir(group)

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
    _check_restored(workdir, checkpoints, restored_step, config)
    state, frozen = checkpoints.restore(
      restored_step, abstract, placement.state, config
    )
  else:
    state, frozen = _start(source, config, mesh, placement.state, group)
  frozen = jax.device_put(encoders.held(frozen, config), placement.frozen)
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

  train_step = program.Telling(program.jitted(config, mesh, placement))
  own_rows = sharding.own_rows(placement.batch, config['batch_size'])
  stream = batches.batches(
    batches.examples(source, seed=config['seed'], **config['augment']),
    first_step=restored_step,
    batch_size=config['batch_size'],
    rows=own_rows,
  )

  # -- Loop -------------------------------------------------------------------
  rows = journal.Journal(workdir if group.is_first else None, restored_step)
  poll = hosts.Poll(group)
  metrics: list[dict[str, Any]] = []
  stopped_by = 0
  since = time.monotonic()
  done = restored_step
  try:
    with progress.bar(
      config['steps'],
      'step',
      desc='train',
      initial=restored_step,
      is_shown=group.is_first,
    ) as bar:
      for index in range(restored_step, config['steps']):
        batch = jax.tree.map(
          functools.partial(
            sharding.of_rows, placement.batch, config['batch_size'], own_rows
          ),
          next(stream),
        )
        state, values = train_step(state, batch, frozen, perceptual)
        metrics.append(values)
        done = index + 1
        # Asked once: what comes after the save must not end it without one.
        stopped_by = poll.largest(interrupt.number)
        last = done == config['steps'] or stopped_by
        save = last or done % config['checkpoint_every'] == 0
        if save or done % config['log_every'] == 0:
          row = _summary(metrics, done, since, config)
          rows.write(done, row)
          bar.set_postfix_str(f'loss={row["loss"]:.4f}', refresh=False)
          metrics, since = [], time.monotonic()
        if save:
          try:
            checkpoints.save(done, state, frozen, config)
          except checkpoint.NotFiniteError as error:
            # Even from a loss that is finite, a step may lead to NaN.
            raise errors.UserError(_diverged('parameters are', done)) from error
        bar.update()
        if stopped_by:
          break
    interrupt.close()
  finally:
    rows.close()
    # Waits for a save under way, which an error leaves whole, too.
    checkpoints.close()
  # What one process says of a step that is saved is true of all.
  group.wait()

  # -- Figures ----------------------------------------------------------------
  if done < config['steps']:
    raise errors.Unfinished(
      f'stopped by {signal.Signals(stopped_by).name}: step {done} of '
      f'{config["steps"]} is saved in {workdir}; the same command goes on from '
      'there'
    )
  figures = {
    'step': done,
    'restored_step': restored_step,
    'params_sha256': checkpoint.params_sha256(state['params']),
  }
  if group.is_first:
    figures |= stopwatch.figures()
    _finish(workdir, figures, config, f'{count} parameters, {made_of}')


def main() -> None:
  _HOSTS.run(_train, ends_itself=True)


if __name__ == '__main__':
  command.run(main)
