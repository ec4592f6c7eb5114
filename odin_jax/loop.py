"""The loop of training, and what it leaves in the workdir as it goes on."""

import collections
import contextlib
import pathlib
import time
from typing import Any, Callable, Iterator, Mapping, Sequence

from absl import logging
import jax
import numpy as np

from odin_jax import batches, held_out, hosts
from odin_jax.checkpoints import checkpoint
from odin_jax.models import encoders, lpips
from odin_jax.planning import costs
from odin_jax.shared import (
  chips,
  errors,
  files,
  image_files,
  interrupts,
  posed_pair,
  progress,
)
from odin_jax.training import (
  goodput,
  journal,
  profiling,
  program,
  step,
  watching,
)
from odin_jax.training import trackers as tracking

# Of the records that an error names.
_MOST_NAMED = 6
# What a process says that cannot read a batch; no signal has this number.
_UNREAD = 1000


def _flops(compiled: Any) -> float:
  """Of a step on each device, at least: XLA counts loops once, and of kernels
  only what they say of themselves can be counted.
  """
  flops = (compiled.cost_analysis() or {}).get('flops', 0.0)
  if chips.peak_flops_per_s(jax.local_devices()[0].device_kind):
    with contextlib.suppress(ValueError):
      flops = max(flops, float(costs.of(compiled.as_text()).flops))
  return flops


class _Ahead:
  """Batches, of several processes read two steps ahead.

  What one process says all know a step later (`hosts.Poll`). So one that cannot
  read a batch makes the step before that with the others, as their last.

  Args:
    stream: of batches.
    group: of processes.

  Attributes:
    fault: why no more can be read; None so far.
  """

  def __init__(
    self, stream: Iterator[posed_pair.PosedPair], group: hosts.Group
  ):
    self._stream = stream
    self._wanted = 3 if group.of > 1 else 1
    self._read: collections.deque[Any] = collections.deque()
    self.fault: errors.UserError | OSError | None = None

  def next(self) -> Any:
    """The next batch.

    Raises:
      errors.UserError, OSError: it cannot be read.
    """
    while not self.fault and len(self._read) < self._wanted:
      try:
        self._read.append(next(self._stream))
      except (errors.UserError, OSError) as error:
        self.fault = error
    if not self._read:
      raise self.fault
    return self._read.popleft()


class Keeper:
  """Writes down what a run does: rows, events, pictures, checkpoints.

  Args:
    workdir: of the run.
    config: of it.
    group: of which the first process writes.
    source: of the batches.
    records: folders of it, for people.
    counts: what has been counted so far, for rows.
    checkpoints: of the workdir.
    samples: of held-out pairs, every `config.sample_every` steps; or None.
    traced: steps to trace, or None.
    trackers: that are told what the journal is told.
    done: steps that are done already.
    start_s: Unix time when the command began.

  Attributes:
    done: steps done.
  """

  def __init__(
    self,
    *,
    workdir: pathlib.Path,
    config: checkpoint.Config,
    group: hosts.Group,
    source: batches.Source,
    records: str,
    counts: Callable[[], Mapping[str, int]],
    checkpoints: checkpoint.Checkpoints,
    samples: held_out.HeldOut | None,
    traced: profiling.Steps | None,
    trackers: Sequence[tracking.Tracker],
    done: int,
    start_s: float,
  ):
    self.done = self._first = done
    self.config, self.group = config, group
    self._workdir, self._source, self._records = workdir, source, records
    self._checkpoints, self._samples = checkpoints, samples
    self._counts = counts
    self._written = workdir if group.is_first else None
    self._rows = journal.Journal(self._written, done, trackers)
    self._events = goodput.Log(self._written, done, start_s)
    self._profile = profiling.Profile(self._written, traced)
    self._watch = watching.Watch(config)

  def compile(self, train_step: Any, *arguments: Any) -> Any:
    """The program of a step."""
    since = time.monotonic()
    compiled = train_step.lower(*arguments).compile()
    # Of one with a warm cache the others are still at it.
    self.group.wait()
    seconds = time.monotonic() - since
    self._events.add('compiled', self.done, compile_s=seconds)
    self._watch.restart()
    self._watch.compiled(_flops(compiled))
    logging.info('%s', program.memory(compiled).text())
    return compiled

  def make(
    self, compiled: Any, state: step.State, waited_s: float, *arguments: Any
  ) -> step.State:
    """The state after the next step, for whose batch the devices waited."""
    with self._profile.before(self.done + 1):
      state, figures = compiled(state, *arguments)
    self._watch.add(figures, waited_s)
    self.done += 1
    self._profile.after(self.done, figures)
    return state

  def keep(
    self, state: step.State, frozen: encoders.Encoders, *, is_last: bool
  ) -> float | None:
    """Writes what is due after a step; the loss, where there is a row.

    Raises:
      errors.UserError: a step was bad, or a checkpoint cannot be written.
    """

    def is_due(every: int) -> bool:
      return bool(every) and self.done % every == 0

    sample = self._samples and is_due(self.config['sample_every'])
    save = is_last or is_due(self.config['checkpoint_every'])
    loss = None
    if save or sample or is_due(self.config['log_every']):
      loss = self._write_row(state, frozen if sample else None)
    if save and (is_last or not self._passes_over()):
      self._save(state, frozen)
      self._watch.restart()
    return loss

  def keep_unread(
    self,
    state: step.State,
    frozen: encoders.Encoders,
    reason: errors.UserError | OSError,
  ) -> errors.UserError:
    """Saves what is done, where no more batches come; what to say of it."""
    # Of several processes that cannot read one of the first two batches the
    # others are at a step.
    is_saved = self.done > self._first and self.group.of == 1
    if is_saved:
      if self._watch.has_steps:
        self._write_row(state, None)
      self._save(state, frozen)
    return self.unread(reason, is_saved=is_saved)

  def unread(
    self, reason: errors.UserError | OSError | None, *, is_saved: bool
  ) -> errors.UserError:
    """What to say where no more batches come, here or in another process."""
    text = str(reason or 'another process cannot read its records')
    if isinstance(reason, OSError):
      text = f'{self._records}: cannot be read: {reason}'
    if is_saved:
      text += (
        f'; step {self.done} is saved, the same command goes on from there'
      )
    return errors.UserError(text)

  def _write_row(
    self, state: step.State, sampled_with: encoders.Encoders | None
  ) -> float:
    try:
      row = self._watch.row(self.done)
    except watching.BadStepError as bad:
      raise self._diverged(bad) from bad
    waited_s = self._watch.input_wait_s
    self._events.add('steps', self.done, input_wait_s=waited_s)
    if sampled_with is not None:
      row['held_out_psnr_db'] = self._sample(state, sampled_with)
    self._rows.write(self.done, row | self._counts())
    self._watch.restart()
    return row['loss']

  def _sample(self, state: step.State, frozen: encoders.Encoders) -> float:
    samples = self._samples.sample(state['ema'], frozen)
    self._rows.picture(self.done, 'held_out', samples.picture)
    if self._written:
      folder = self._written / 'samples'
      folder.mkdir(exist_ok=True)
      image_files.write(folder / f'{self.done:08d}.png', samples.picture)
    self._events.add('sample', self.done)
    return samples.psnr_db

  def _passes_over(self) -> bool:
    """Whether a save is left out, for the one before is not written yet."""
    if self.config['save_when_busy'] == 'wait':
      return False
    return bool(self.group.gather(np.array(self._checkpoints.is_busy())).any())

  def _save(self, state: step.State, frozen: encoders.Encoders) -> None:
    self._checkpoints.save(self.done, state, frozen, self.config)
    self._events.add('save', self.done)

  def _diverged(self, bad: watching.BadStepError) -> errors.UserError:
    """What to say of a step that went wrong; its records go into a file."""
    size = self.config['batch_size']
    numbers = range((bad.step - 1) * size, bad.step * size)
    places = batches.places(self._source, self.config['seed'], numbers)
    path = self._workdir / 'diverged.json'
    if self._written:
      what = {'step': bad.step, 'what': bad.what, 'records': places}
      files.write_json(path, what)
    named = ', '.join(places[:_MOST_NAMED])
    if more := places[_MOST_NAMED:]:
      named += f' and {len(more)} more ({path.name} has all)'
    return errors.UserError(
      f'{self._workdir}: the {bad}, which is not saved; its batch is of {named}; '
      'lower config.optimizer.learning_rate and start in a new --workdir, or take '
      'records out'
    )

  def close(self) -> None:
    """Waits for a save under way, which an error leaves whole, too."""
    self._profile.close()
    self._rows.close()
    try:
      self._checkpoints.close()
    finally:
      self._events.add('stop', self.done)
      self._events.close()


def run(
  keeper: Keeper,
  train_step: Any,
  state: step.State,
  stream: Iterator[posed_pair.PosedPair],
  fixed: tuple[encoders.Encoders, lpips.Lpips | None],
  interrupt: interrupts.Interrupt,
) -> tuple[step.State, int]:
  """Makes all steps that are left, or those until a signal.

  Args:
    keeper: writes down what happens, and knows where the run stands.
    train_step: a jitted step.
    state: to begin with; donated.
    stream: of batches.
    fixed: encoders and LPIPS, the other arguments of the step.
    interrupt: knows of a signal; closed as soon as there are no more steps, so
      that one ends this process whatever is still written.

  Returns:
    the last state, and the signal that ended it, or 0.

  Raises:
    errors.UserError: a batch cannot be read, a step was bad, or a checkpoint
      cannot be written.
  """
  steps, group = keeper.config['steps'], keeper.group
  poll, ahead = hosts.Poll(group), _Ahead(stream, group)
  compiled, stopped_by = None, 0
  with (
    contextlib.closing(keeper),
    # The first to be closed.
    contextlib.closing(interrupt),
    progress.bar(
      steps, 'step', desc='train', initial=keeper.done, is_shown=group.is_first
    ) as bar,
  ):
    while keeper.done < steps and not stopped_by:
      since = time.monotonic()
      try:
        batch = ahead.next()
      except (errors.UserError, OSError) as error:
        raise keeper.keep_unread(state, fixed[0], error) from error
      waited_s = time.monotonic() - since
      if compiled is None:
        compiled = keeper.compile(train_step, state, batch, *fixed)
        waited_s = 0.0
      state = keeper.make(compiled, state, waited_s, batch, *fixed)
      # Asked once: what comes after the save must not end it without one.
      stopped_by = poll.largest(_UNREAD if ahead.fault else interrupt.number)
      is_last = keeper.done == steps or bool(stopped_by)
      loss = keeper.keep(state, fixed[0], is_last=is_last)
      if loss is not None:
        bar.set_postfix_str(f'loss={loss:.4f}', refresh=False)
      bar.update()
  if stopped_by == _UNREAD and keeper.done < steps:
    raise keeper.unread(ahead.fault, is_saved=True) from ahead.fault
  return state, stopped_by
