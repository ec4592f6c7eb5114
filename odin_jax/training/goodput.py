"""Where the time of a run went, over all of its restarts.

`goodput.jsonl` in the workdir gets a line, one JSON object, for every event of
every process that trained there. Each has `event`, `time_s` (Unix time, to the
millisecond) and `step`, how many steps are done:

  start     the command began; `step` is the one that it goes on from
  compiled  the step is compiled, which took `compile_s`
  steps     since the event before, steps were made; `input_wait_s` of that time
            the devices had no batch
  save      the loop stood still until a save was under way
  sample    views were sampled
  stop      the loop has ended, and what was to be saved is on disk

All time between two events of a process is of the kind that the second one
names, but for the seconds that it gives to another. Steps that a later process
began before are lost: their time is counted as that. From the last event of a
process to the start of the next one nothing was done, as far as one can tell.
"""

import itertools
import json
import os
import pathlib
import time
from typing import Any, Iterator, Mapping, Sequence

from odin_jax.shared import errors, storage

NAME = 'goodput.jsonl'
# What the time between two events is of, by the second one; and of it those
# seconds which that event gives to another kind.
_KINDS = {
  'compiled': 'start',
  'steps': 'steps',
  'save': 'checkpoint',
  'sample': 'sample',
  'stop': 'checkpoint',
}
_PARTS = {'compile_s': 'compile', 'input_wait_s': 'input_wait'}
BUCKETS = {
  'steps': 'steps that count',
  'compile': 'compiling the step',
  'input_wait': 'waiting for a batch',
  'checkpoint': 'waiting for checkpoints',
  'sample': 'sampling views',
  'lost': 'steps that were done again after a kill',
  'start': 'starting: records, state',
  'down': 'not running, between two starts',
}

Event = Mapping[str, Any]


class Log:
  """Appends events, each on disk before the call returns.

  Args:
    workdir: of the run; None: events go nowhere, as where another process of
      the run writes them.
    step: that the run goes on from.
    start_s: Unix time when the command began; None: now.
  """

  def __init__(
    self, workdir: pathlib.Path | None, step: int, start_s: float | None = None
  ):
    self._file = None
    if workdir is not None:
      path = workdir / NAME
      _drop_half_a_line(path)
      self._file = open(path, 'a')
    self._write('start', step, time.time() if start_s is None else start_s)

  def add(self, event: str, step: int, **seconds: float) -> None:
    """An event of now, see above."""
    self._write(event, step, time.time(), **seconds)

  def _write(
    self, event: str, step: int, time_s: float, **seconds: float
  ) -> None:
    if self._file is None:
      return
    row = {'event': event, 'time_s': time_s, 'step': step, **seconds}
    row = {
      k: round(v, 3) if isinstance(v, float) else v for k, v in row.items()
    }
    self._file.write(json.dumps(row) + '\n')
    self._file.flush()

  def close(self) -> None:
    """Closes the file."""
    if self._file is not None:
      self._file.close()


def _drop_half_a_line(path: pathlib.Path) -> None:
  """Cuts off what a kill left behind the last whole line."""
  if path.is_file():
    whole = path.read_bytes().rfind(b'\n') + 1
    os.truncate(path, whole)


def read(workdir: str | os.PathLike[str]) -> list[Event]:
  """The events of a workdir, without a last one that is not whole yet.

  Args:
    workdir: of `odin_jax.train`, or its address.

  Raises:
    errors.UserError: there are none, or the file is damaged.
  """
  folder = storage.Folder(workdir, 'the --workdir of odin_jax.train')
  path, content = folder.place(NAME), folder.read(NAME)
  if content is None:
    raise errors.UserError(
      f'{path}: no such file; the journal of a training of this version is '
      'needed here'
    )
  events = []
  for number, line in enumerate(content.split(b'\n')[:-1], 1):
    try:
      event = json.loads(line)
      if event['event'] not in ('start', *_KINDS):
        raise ValueError(event['event'])
      float(event['time_s']), int(event['step'])
    except (ValueError, KeyError, TypeError) as error:
      raise errors.UserError(
        f'{path}: line {number} is no event of this version; its times cannot '
        'be told'
      ) from error
    events.append(event)
  if not events or events[0]['event'] != 'start':
    raise errors.UserError(f'{path}: does not begin with a start')
  return events


def _attempts(events: Sequence[Event]) -> list[list[Event]]:
  """The events of each process."""
  starts = [i for i, event in enumerate(events) if event['event'] == 'start']
  return [list(events[a:b]) for a, b in zip(starts, [*starts[1:], None])]


def _of_attempt(
  attempt: Sequence[Event], next_step: int | None
) -> Iterator[tuple[str, float]]:
  """(kind, seconds) of a process, in order.

  Args:
    attempt: its events.
    next_step: that the next process went on from; None: there is none.
  """
  kept = attempt[-1]['step'] if next_step is None else next_step
  for before, after in itertools.pairwise(attempt):
    # A clock that is set back makes no time.
    left = max(0.0, after['time_s'] - before['time_s'])
    done, first = after['step'] - before['step'], before['step']
    lost = max(0, after['step'] - max(first, kept)) / done if done else 0.0
    for name, kind in _PARTS.items():
      seconds = min(left, after.get(name, 0.0))
      left -= seconds
      yield kind, seconds * (1 - lost)
      yield 'lost', seconds * lost
    yield _KINDS[after['event']], left * (1 - lost)
    yield 'lost', left * lost


def summary(events: Sequence[Event]) -> dict[str, Any]:
  """Seconds and shares of the wall time by kind, which add up to it.

  Args:
    events: from `read`.

  Returns:
    `wall_s`, from the first event to the last; `starts` and `step`; `seconds`
    and `share` by `BUCKETS`.
  """
  seconds = dict.fromkeys(BUCKETS, 0.0)
  attempts = _attempts(events)
  for attempt, following in itertools.zip_longest(attempts, attempts[1:]):
    next_step = following[0]['step'] if following else None
    for kind, spent in _of_attempt(attempt, next_step):
      seconds[kind] += spent
    if following:
      gap = following[0]['time_s'] - attempt[-1]['time_s']
      seconds['down'] += max(0.0, gap)
  wall = events[-1]['time_s'] - events[0]['time_s']
  return {
    'wall_s': round(wall, 3),
    'starts': len(attempts),
    'step': events[-1]['step'],
    'seconds': {name: round(spent, 3) for name, spent in seconds.items()},
    'share': {
      name: round(spent / wall, 5) if wall > 0 else 0.0
      for name, spent in seconds.items()
    },
  }


def table(figures: Mapping[str, Any]) -> str:
  """The figures of `summary` as lines of text."""
  lines = [
    f'{figures["wall_s"]:.1f} s in all, started {figures["starts"]} times, '
    f'step {figures["step"]}'
  ]
  lines += [
    f'{words:44}{figures["seconds"][name]:9.1f} s'
    f'{100 * figures["share"][name]:8.1f} %'
    for name, words in BUCKETS.items()
  ]
  return '\n'.join(lines)
