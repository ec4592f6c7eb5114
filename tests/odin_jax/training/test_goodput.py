"""Where the time went: known journals, and a real one in test_train.py."""

import json

import numpy as np
import pytest

from odin_jax.shared import errors
from odin_jax.training import goodput


class Clock:
  """Writes a journal as a run does, and keeps the truth beside it."""

  def __init__(self, path):
    self.now = 1_000_000.0
    self.truth = dict.fromkeys(goodput.BUCKETS, 0.0)
    self._file = open(path, 'w')

  def spend(self, kind, seconds):
    self.now += seconds
    self.truth[kind] += seconds

  def write(self, event, step, **more):
    row = {'event': event, 'time_s': self.now, 'step': step, **more}
    self._file.write(json.dumps(row) + '\n')

  def close(self):
    self._file.close()


def test_times_of_a_run_that_was_killed_ten_times_add_up(tmp_path):
  rng = np.random.default_rng(0)
  clock = Clock(tmp_path / goodput.NAME)
  step, per_row = 0, 10
  # Of each process: the rows that it saves after, and those that are lost.
  for process in range(11):
    clock.write('start', step)
    clock.spend('start', rng.uniform(1, 5))
    clock.spend('compile', compile_s := rng.uniform(1, 9))
    clock.write('compiled', step, compile_s=compile_s)
    whole, lost = rng.integers(1, 5, 2).tolist()
    for row in range(whole + (lost if process < 10 else 0)):
      kind = 'steps' if row < whole else 'lost'
      wait_s = rng.uniform(0, 3)
      clock.spend('input_wait' if row < whole else 'lost', wait_s)
      clock.spend(kind, rng.uniform(5, 20))
      done = step + per_row * (row + 1)
      clock.write('steps', done, input_wait_s=wait_s)
      if row == whole - 1:
        clock.spend('sample', 1.5)
        clock.write('sample', done)
        clock.spend('checkpoint', rng.uniform(0.1, 2))
        clock.write('save', done)
    step += per_row * whole
    if process < 10:
      clock.spend('down', rng.uniform(1, 100))
  clock.spend('checkpoint', 4.0)
  clock.write('stop', step)
  clock.close()

  figures = goodput.summary(goodput.read(tmp_path))
  wall = clock.now - 1_000_000.0
  assert figures['wall_s'] == pytest.approx(wall, abs=1e-3)
  assert figures['starts'] == 11 and figures['step'] == step
  assert sum(figures['seconds'].values()) == pytest.approx(wall, rel=1e-4)
  assert sum(figures['share'].values()) == pytest.approx(1, abs=1e-3)
  for name, seconds in clock.truth.items():
    assert figures['seconds'][name] == pytest.approx(seconds, abs=0.01), name
    assert seconds > 0
  table = goodput.table(figures).splitlines()
  assert len(table) == 1 + len(goodput.BUCKETS)
  assert f'{100 * figures["share"]["lost"]:.1f} %' in ' '.join(table)


def test_of_a_row_that_is_lost_in_part_that_part_is(tmp_path):
  clock = Clock(tmp_path / goodput.NAME)
  clock.write('start', 0)
  clock.write('compiled', 0, compile_s=0.0)
  clock.now += 10
  clock.write('steps', 20, input_wait_s=2.0)
  clock.write('start', 15)
  clock.close()
  seconds = goodput.summary(goodput.read(tmp_path))['seconds']
  assert seconds['lost'] == pytest.approx(2.5)
  assert seconds['steps'] == pytest.approx(6.0)
  assert seconds['input_wait'] == pytest.approx(1.5)


def test_a_journal_is_appended_to_and_read_as_far_as_it_is_whole(tmp_path):
  log = goodput.Log(tmp_path, 0)
  log.add('compiled', 0, compile_s=1.0)
  log.close()
  path = tmp_path / goodput.NAME
  with open(path, 'a') as file:
    file.write('{"event": "ste')
  assert [event['event'] for event in goodput.read(tmp_path)] == [
    'start',
    'compiled',
  ]
  goodput.Log(tmp_path, 7).close()
  assert [event['step'] for event in goodput.read(tmp_path)] == [0, 0, 7]
  goodput.Log(None, 0).close()
  # A clock that is set back makes no time, and loses none.
  with open(path, 'a') as file:
    file.write('{"event": "steps", "time_s": 5.0, "step": 9}\n')
  assert min(goodput.summary(goodput.read(tmp_path))['seconds'].values()) >= 0
  for text, words in (
    ('{"event": "moon", "time_s": 5.0, "step": 9}\n', 'line 1 is no event'),
    ('{"event": "stop", "time_s": 5.0, "step": 9}\n', 'begin with a start'),
    ('', 'begin with a start'),
  ):
    path.write_text(text)
    with pytest.raises(errors.UserError, match=words):
      goodput.read(tmp_path)
  path.unlink()
  with pytest.raises(errors.UserError, match='no such file'):
    goodput.read(tmp_path)
