"""Progress: a bar on a terminal, few plain lines in a log."""

import runpy
import sys

import pytest
import tqdm

from odin_jax.shared import progress


class Clock:
  def __init__(self):
    self.now = 1000.0

  def __call__(self):
    return self.now


@pytest.mark.parametrize('every_s', [0.01, 1.0, 29.0, 45.0])
def test_a_log_gets_at_most_one_line_per_thirty_seconds(capsys, every_s):
  clock = Clock()
  steps = int(600 / every_s)
  bar = progress.Lines(steps, 'video', clock=clock)
  when = []
  for _ in range(steps):
    clock.now += every_s
    bar.update()
    when += [clock.now] * len(capsys.readouterr().err.splitlines())
  assert when[0] >= 1000 + progress.LINE_EVERY_S
  gaps = [later - earlier for earlier, later in zip(when, when[1:])]
  assert min(gaps) >= progress.LINE_EVERY_S
  # And it does tell how it goes.
  assert max(gaps) < progress.LINE_EVERY_S + 2 * every_s


def test_who_reads_the_lines_says_how_often_they_come(monkeypatch):
  monkeypatch.setenv(progress.EVERY_S, '0.5')
  assert runpy.run_path(progress.__file__)['LINE_EVERY_S'] == 0.5


def test_a_line_says_what_is_done_and_left(capsys):
  clock = Clock()
  bar = progress.Lines(8, 'video', desc='frames', initial=2, clock=clock)
  bar.set_postfix_str('hall: records')
  clock.now += 90
  bar.update(1.5)
  assert capsys.readouterr().err == (
    'frames: video 3.5 of 8 (43 %), 01:30, about 04:30 left, hall: records\n'
  )


def test_large_numbers_are_written_out(capsys):
  clock = Clock()
  bar = progress.Lines(4_000_000, 'step', clock=clock)
  clock.now += 60
  bar.update(2_000_000)
  assert capsys.readouterr().err == (
    'step 2000000 of 4000000 (50 %), 01:00, about 01:00 left\n'
  )


def test_work_of_unknown_length_is_counted(capsys):
  clock = Clock()
  bar = progress.Lines(None, 'record', clock=clock)
  clock.now += 31
  bar.update()
  assert capsys.readouterr().err == 'record 1, 00:31\n'


def test_where_there_is_no_terminal_short_work_is_silent(capsys):
  assert list(progress.each(range(3), 'record')) == [0, 1, 2]
  with progress.bar(2, 'step') as bar:
    bar.update(2)
  assert bar.n == 2
  assert capsys.readouterr().err == ''


def test_a_terminal_has_a_bar(capsys, monkeypatch):
  monkeypatch.setattr(sys.stderr, 'isatty', lambda: True, raising=False)
  with progress.bar(2, 'step', desc='train') as bar:
    assert isinstance(bar, tqdm.tqdm)
    bar.update(2)
  assert 'train: 100%' in capsys.readouterr().err
