"""Weights & Biases and MLflow, of which stand-ins note what they are told."""

import sys
import types

import numpy as np
import pytest

from odin_jax.shared import errors
from odin_jax.training import journal, trackers

PICTURE = np.zeros((2, 2, 3), np.uint8)


@pytest.fixture
def told(monkeypatch):
  """What both were told, by name; none is installed otherwise."""
  notes = {'wandb': [], 'mlflow': []}

  def note(name, what, answer=None):
    def called(*args, **kwargs):
      notes[name].append((what, args, kwargs))
      return answer(kwargs) if answer else None

    return called

  run = types.SimpleNamespace(
    log=note('wandb', 'log'), finish=note('wandb', 'finish')
  )
  fakes = {
    'wandb': dict(
      init=note('wandb', 'init', lambda _: run), Image=lambda x: ('image', x)
    ),
    'mlflow': dict(
      start_run=note(
        'mlflow',
        'start_run',
        lambda given: types.SimpleNamespace(
          info=types.SimpleNamespace(run_id=given['run_id'] or 'first')
        ),
      ),
      **{
        name: note('mlflow', name)
        for name in ('log_params', 'log_metrics', 'log_image', 'end_run')
      },
    ),
  }
  for name, functions in fakes.items():
    module = types.ModuleType(name)
    module.__spec__ = object()
    vars(module).update(functions)
    monkeypatch.setitem(sys.modules, name, module)
  return notes


def train(workdir, first, config):
  of_both = trackers.start(['wandb', 'mlflow'], workdir, config)
  rows = journal.Journal(workdir, first, of_both)
  rows.write(first + 1, {'loss': 0.5, 'mfu': None})
  rows.picture(first + 1, 'samples', PICTURE)
  rows.close()


def test_both_are_told_what_the_journal_is_told(tmp_path, told):
  trackers.check(['wandb', 'mlflow'])
  train(tmp_path, 0, {'steps': 3, 'model': {'sources': 1}})
  (init, row, picture, finish) = told['wandb']
  assert init[2]['config'] == {'steps': 3, 'model': {'sources': 1}}
  # What is not known is no figure.
  assert row == ('log', ({'loss': 0.5},), {'step': 1})
  assert picture[1] == ({'samples': ('image', PICTURE)},)
  assert finish[0] == 'finish'
  names = [what for what, _, _ in told['mlflow']]
  assert names == [
    'start_run', 'log_params', 'log_metrics', 'log_image', 'end_run',
  ]  # fmt: skip
  assert told['mlflow'][2][1:] == (({'loss': 0.5},), {'step': 1})


def test_a_training_that_goes_on_goes_on_in_the_same_run(tmp_path, told):
  train(tmp_path, 0, {'steps': 3})
  train(tmp_path, 1, {'steps': 3})
  ids = [kw['id'] for what, _, kw in told['wandb'] if what == 'init']
  assert len(ids) == 2 and len(set(ids)) == 1
  ids = [kw['run_id'] for what, _, kw in told['mlflow'] if what == 'start_run']
  assert ids == [None, 'first']
  # Its parameters are there already.
  assert [what for what, _, _ in told['mlflow']].count('log_params') == 1


def test_what_cannot_be_told_is_one_line(tmp_path, told, monkeypatch):
  def offline(**_):
    raise ConnectionError('no such host')

  monkeypatch.setattr(sys.modules['wandb'], 'init', offline)
  with pytest.raises(errors.UserError, match='wandb: ConnectionError: no such'):
    trackers.start(['wandb'], tmp_path, {})
  monkeypatch.delitem(sys.modules, 'mlflow')
  with pytest.raises(errors.UserError, match='package mlflow is not installed'):
    trackers.check(['mlflow'])
  with pytest.raises(errors.UserError, match='neptune: none of wandb, mlflow'):
    trackers.check(['neptune'])
