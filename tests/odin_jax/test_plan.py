"""The plan is of the program that training runs."""

import importlib.util
import json
from unittest import mock

import jax
import numpy as np
import pytest

from configs import train as recipes
from odin_jax import sharding
from odin_jax.checkpoints import checkpoint
from odin_jax.models import encoders
from odin_jax.planning import estimate, hardware, plans
from odin_jax.shared import files, posed_pair
from odin_jax.training import program, step
from tests.helpers import commands

RECIPE = 'world,runlocal=True,conditioning=se3'


def tiny():
  config = recipes.get_config(RECIPE)
  config.model.unet.model_channels = 8
  return checkpoint.plain(config.to_dict())


def batch_of(config):
  count, size = config['batch_size'], config['image_size_px']
  pixels = np.zeros((count, size, size, 3), np.uint8)
  return posed_pair.PosedPair(
    source=pixels,
    target=pixels,
    target2source=np.tile(np.eye(3, 4, dtype=np.float32), (count, 1, 1)),
    fov_deg=np.full(count, 90, np.float32),
    median_depth=np.ones(count, np.float32),
  )


@pytest.fixture(scope='module')
def planned(tmp_path_factory):
  """A config, its program, the folder of programs and the plan."""
  config = tiny()
  output = tmp_path_factory.mktemp('plan')
  files.write_json(output / files.MARKER, {'tool': 'odin_jax.plan'})
  folder = output / 'programs'
  folder.mkdir()
  mesh = sharding.make_mesh(config['mesh'], jax.devices('cpu')[:1])
  lowered = plans.lowered(config, mesh)
  with mock.patch.object(plans, 'lowered', lambda *_: lowered):
    found = plans.plan(config, hardware.of('cpu:1'), folder, None)
  return config, lowered, folder, found


def test_what_is_planned_is_what_training_runs(planned):
  config, planned_program, _, found = planned
  mesh = sharding.make_mesh(config['mesh'], jax.devices('cpu')[:1])
  state = jax.eval_shape(lambda: step.init(config))
  batch = batch_of(config)
  frozen = encoders.fit(config, batch.source)
  where = program.placement(config, mesh, state)
  train_step = program.jitted(config, mesh, where)
  lowered = train_step.lower(state, batch, frozen, None)
  assert lowered.as_text() == planned_program.as_text()
  given = sum(
    leaf.size * leaf.dtype.itemsize
    for leaf in jax.tree.leaves((state, batch, frozen))
  )
  memory = found['memory']
  # The decoder of a fitted autoencoder is not asked in training.
  assert memory['arguments'] == given - frozen.autoencoder.decoder.nbytes
  assert memory['peak'] >= memory['arguments'] + memory['temporaries']
  assert found['costs']['flops'] > 1e6
  assert found['fits'] and found['prediction'] is None


def test_a_program_is_compiled_once(planned, monkeypatch):
  _, lowered, folder, found = planned

  def refuse(*_):
    raise AssertionError('compiled again')

  monkeypatch.setattr(jax.stages.Lowered, 'compile', refuse)
  again = plans.compiled(lowered, 'cpu:1', folder)
  assert again['memory'] == found['memory']
  assert again['costs'] == found['costs']
  with pytest.raises(AssertionError, match='again'):
    plans.compiled(lowered, 'v5e:2x2', folder)


def test_what_does_not_fit_says_what_it_wants(planned, monkeypatch, tmp_path):
  config, lowered, _, _ = planned

  def run_out(*_):
    raise jax.errors.JaxRuntimeError(
      'RESOURCE_EXHAUSTED: XLA:TPU compile permanent error. Ran out of memory '
      'in memory space hbm. Used 20.50G of 15.75G hbm. Exceeded by 4.75G.'
    )

  monkeypatch.setattr(jax.stages.Lowered, 'compile', run_out)
  monkeypatch.setattr(plans, 'lowered', lambda *_: lowered)
  found = plans.plan(config, hardware.of('cpu:1'), tmp_path, None)
  assert not found['fits'] and found['prediction'] is None
  heading, memory = plans.lines(found)
  assert heading.endswith('; does not fit')
  assert memory.endswith('Used 20.50G of 15.75G hbm')
  assert estimate.front([found]) == []


def test_a_search_goes_on_to_the_first_batch_that_does_not_fit(
  monkeypatch, tmp_path
):
  def fake(config, place, folder, price):
    size, remat = config['batch_size'], config['model']['unet']['remat']
    return {'batch': size, 'remat': remat, 'fits': size < 8}

  monkeypatch.setattr(plans, 'plan', fake)
  monkeypatch.setattr(plans, 'heading', str)
  found = plans.searched(
    tiny(),
    hardware.of('cpu:1'),
    tmp_path,
    None,
    fsdps=[1],
    remats=['full', 'none'],
    batches=[4, 2, 8, 16],
  )
  assert [(row['remat'], row['batch']) for row in found] == [
    (remat, batch) for remat in ('full', 'none') for batch in (2, 4, 8)
  ]


def test_the_command_plans_and_refuses(planned, tmp_path):
  _, _, folder, planned_here = planned
  small = [f'--config=configs/train.py:{RECIPE}']
  small += ['--config.model.unet.model_channels=8']
  output = f'--output={tmp_path / "plan"}'
  lines = [
    # Its program is there.
    [*small, '--topology=cpu:1', f'--output={folder.parent}'],
    [*small, '--topology=cpu:2', output, '--config.batch_size=3'],
    [*small, '--topology=cpu:2', output, '--search', '--batches=0'],
    [output, '--topology=v7:2x2'],
    [output, '--topology=v5e:2x2'],
  ]
  first, *refused = commands.run_all('odin_jax.plan', lines)
  assert first[0] == 0, first
  written = json.loads((folder.parent / 'plan.json').read_text())
  assert written == {'plans': [planned_here], 'best': [planned_here]}
  assert len(list(folder.glob('*.json'))) == 1
  expected = [('batch_size=3', '2 devices'), ('--batches=0',), ('v5e:4x4',)]
  if importlib.util.find_spec('libtpu') is None:
    expected.append(('setup.sh --plan',))
  commands.assert_refused(refused[: len(expected)], expected)
