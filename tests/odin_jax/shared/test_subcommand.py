"""Commands that commands start: how they end, and what is said of it."""

import signal
import sys

import pytest

from odin_jax.shared import errors, subcommand


@pytest.mark.parametrize(
  ('status', 'kind', 'says'),
  [
    (75, errors.Unfinished, 'runs/a: preprocessing.run was stopped'),
    (2, errors.UserError, 'runs/a: preprocessing.run ended with status 2'),
    (-9, errors.UserError, 'ended with status -9'),
  ],
)
def test_a_command_that_was_stopped_can_go_on_and_others_have_failed(
  monkeypatch, status, kind, says
):
  monkeypatch.setattr(subcommand, '_status', lambda command: status)
  with pytest.raises(kind, match=says):
    subcommand.run('preprocessing.run', '--input=x', makes='runs/a')


def test_a_command_is_stopped_and_waited_for_where_its_caller_is(
  tmp_path, monkeypatch
):
  ended = tmp_path / 'ended'
  child = (
    'import os, pathlib, signal, sys, time\n'
    'def end(*_):\n'
    f'  pathlib.Path({str(ended)!r}).touch()\n'
    '  sys.exit(75)\n'
    'signal.signal(signal.SIGTERM, end)\n'
    'os.kill(os.getppid(), signal.SIGUSR1)\n'
    'time.sleep(60)\n'
  )

  def interrupt(*_):
    raise KeyboardInterrupt('SIGTERM')

  before = signal.signal(signal.SIGUSR1, interrupt)
  try:
    with pytest.raises(KeyboardInterrupt):
      subcommand._status([sys.executable, '-S', '-c', child])
  finally:
    signal.signal(signal.SIGUSR1, before)
  assert ended.exists()
