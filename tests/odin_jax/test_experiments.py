"""Experiments: what is run, what is not run again, and what is said of it."""

import json
import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest

from configs import train as train_configs
from odin_jax.experimenting import comparison, running, tables
from odin_jax.shared import errors, subcommand
from tests import test_readme

SIZE = tables.Size(
  steps=3, image_size_px=16, num_worlds=2, pairs=8, num_pairs=6
)
SCENES = ['a/0', 'a/0', 'b/0', 'b/0', 'c/0', 'c/0']


def all_stages(name):
  experiment = tables.EXPERIMENTS[name]
  values = tables.values_of(experiment, [])
  stages = tables.data_stages(experiment, SIZE, values, '/root')
  for value in values:
    stages.append(
      tables.training_stage(
        experiment, SIZE, value=value, width=96, seed=1, root='/root'
      )
    )
    cell = tables.cell_name(value, 96, 1)
    for folder in (cell, 'copy'):
      stages += tables.evaluation_stages(
        experiment, SIZE, folder, '/root'
      ).values()
  return stages


@pytest.mark.parametrize('name', tables.EXPERIMENTS)
def test_stages_have_flags_and_configs_that_there_are(repository, name):
  stages = all_stages(name)
  folders = {stage.folder for stage in stages}
  for stage in stages:
    path = repository / f'{stage.module.replace(".", "/")}.py'
    known = test_readme.flag_names(path, repository)
    for argument in stage.arguments:
      flag, _, value = argument.removeprefix('--').partition('=')
      assert flag.partition('.')[0] in known and '{' not in argument
      # What a stage reads, another one writes.
      if value.startswith('/root/'):
        below = value.removeprefix('/root/')
        assert any(below.startswith(folder) for folder in folders), argument
      if flag == 'config':
        config = train_configs.get_config(value.partition(':')[2])
        assert config.recipe == 'world'


@pytest.mark.parametrize('name', tables.EXPERIMENTS)
def test_more_values_leave_what_was_made_as_it_is(name):
  experiment = tables.EXPERIMENTS[name]
  values = tables.values_of(experiment, [])
  few, all_of_them = (
    set(tables.data_stages(experiment, SIZE, some, '/root'))
    for some in (values[:1], values)
  )
  assert few <= all_of_them


def test_training_gets_what_its_cell_tries():
  def arguments(name, value):
    stage = tables.training_stage(
      tables.EXPERIMENTS[name], SIZE, value=value, width=48, seed=2, root='/r'
    )
    return stage.arguments

  assert '--records=/r/data/worlds_16' in arguments('data_scale', '16')
  assert '--config.model.unet.model_channels=48' in arguments('data_scale', '4')
  assert '--records=/r/data/fps_0.5/fps_0.5/records' in arguments('fps', '0.5')
  assert '--config.diffusion.mask_lambda=0.5' in arguments('lambda', '0.5')
  assert arguments('lambda', 'none')[-1] == (
    '--config.diffusion.mask_auxiliary=none'
  )
  assert arguments('prediction', 'x0')[0].endswith(',prediction=x0')
  assert {'--config.steps=3', '--config.seed=2'} <= {*arguments('fps', '1')}


@pytest.mark.parametrize(
  ('name', 'given', 'says'),
  [
    ('data_scale', '0', 'above 0'),
    ('data_scale', '4.5', 'whole number'),
    ('data_scale', '4,04', 'twice'),
    ('fps', 'nan', 'above 0'),
    ('lambda', '-1', 'above 0'),
    ('prediction', 'w', 'none of v, eps, x0'),
    ('conditioning', 'se3+', 'no conditioning'),
  ],
)
def test_bad_values_are_refused(name, given, says):
  with pytest.raises(errors.UserError, match=says):
    tables.values_of(tables.EXPERIMENTS[name], given.split(','))


def test_numbers_ascend_and_words_keep_their_order():
  values_of, known = tables.values_of, tables.EXPERIMENTS
  assert values_of(known['data_scale'], ['64', '4']) == ['4', '64']
  assert values_of(known['fps'], ['1.0', '0.50']) == ['0.5', '1']
  assert values_of(known['prediction'], ['x0', 'v']) == ['x0', 'v']


# -- Stages --------------------------------------------------------------------


@pytest.fixture
def calls(monkeypatch):
  """Commands that a fake runs, each giving the status that is set."""
  made = []

  def call(command):
    made.append(command)
    folder = pathlib.Path(command[-1].partition('=')[2])
    folder.mkdir(parents=True, exist_ok=True)
    return made_status[0]

  made_status = [0]
  monkeypatch.setattr(subcommand, '_status', call)
  return made, made_status


def test_a_stage_is_done_once_and_only_with_its_arguments(tmp_path, calls):
  made, status = calls
  stage = tables.Stage('data/a', 'odin_jax.evaluate', ('--data=x',))
  status[0] = os.EX_TEMPFAIL
  with pytest.raises(errors.Unfinished, match='goes on'):
    running.run(stage, tmp_path)
  status[0] = 2
  with pytest.raises(
    errors.UserError, match='data/a: odin_jax.evaluate ended with status 2'
  ):
    running.run(stage, tmp_path)
  status[0] = 0
  assert running.run(stage, tmp_path)['seconds'] is not None
  running.run(stage, tmp_path)
  assert len(made) == 3
  assert made[0][1:] == [
    '-m', 'odin_jax.evaluate', '--data=x', f'--output={tmp_path}/data/a',
  ]  # fmt: skip
  with pytest.raises(errors.UserError, match='--data=x, --data=y'):
    running.run(stage._replace(arguments=('--data=y',)), tmp_path)
  # What was deleted is made again.
  (tmp_path / 'data/a').rmdir()
  running.run(stage, tmp_path)
  assert len(made) == 4


# -- What the cells say --------------------------------------------------------


def cell(value, psnr, width=48, seed=0, **more):
  scores = {'psnr': psnr, 'ssim': [0.5] * 6, 'lpips': [None] * 6}
  evaluation = {'data_sha256': 'd', 'scenes': SCENES, **scores}
  return {
    'value': value,
    'width': width,
    'seed': seed,
    'parameters': 1,
    'code_commit': 'c',
    'evaluations': {'unseen/sample': {**evaluation, **more}},
  }


def test_intervals_are_over_scenes():
  found = comparison.estimate(np.array([1.0, 1, 2, 2, 3, 3]), SCENES)
  assert found.mean == 2
  # All three draws are the lowest scene once in 27 times: more than 2.5 %.
  assert found.interval == [1, 3]
  assert comparison.estimate(np.array([1.0, 3]), ['a', 'a']) == (2, None)


def test_only_what_exceeds_its_interval_is_called_a_difference():
  noise = np.array([3.0, -3.0, 2.0, -2.0, 1.0, -1.0])
  base = cell('4', [10.0, 14, 18, 11, 15, 19])
  better = cell(
    '16', [p + 1 for p in base['evaluations']['unseen/sample']['psnr']]
  )
  equal = cell('64', (np.array([10.0, 14, 18, 11, 15, 19]) + noise).tolist())
  found = [
    f.text for f in comparison.findings('worlds', [base, better, equal], 4)
  ]
  assert found[0] == '3 of 4 models are done so far.'
  assert found[1] == (
    'unseen worlds, one sample: worlds 16 against 4: +1.00 dB '
    '(+1.00 to +1.00): better.'
  )
  assert 'worlds 64 against 4: +0.00 dB' in found[2]
  assert 'no difference beyond the interval' in found[2]
  assert 'One seed each' in found[-1]


def test_one_step_is_compared_where_it_is_the_conditional_mean():
  experiment, key = tables.EXPERIMENTS['prediction'], 'unseen/one_step'
  stages = {
    value: tables.evaluation_stages(experiment, SIZE, 'x', '/r', value=value)
    for value in experiment.values
  }
  assert {value for value, made in stages.items() if key in made} == {'v', 'x0'}
  cells = [cell(value, [10.0] * 6) for value in ('v', 'eps', 'x0')]
  for of_one in (cells[0], cells[2]):
    evaluations = of_one['evaluations']
    evaluations[key] = evaluations['unseen/sample']
  texts = [found.text for found in comparison.findings('p', cells, 3)]
  assert [text.partition(': +')[0] for text in texts[:-1]] == [
    'unseen worlds, one sample: p eps against v',
    'unseen worlds, one sample: p x0 against v',
    'unseen worlds, conditional mean: p x0 against v',
  ]
  assert len(comparison.rows(cells)) == 5


def test_seeds_are_averaged_and_other_pairs_or_code_are_told():
  cells = [cell('v', [10.0] * 6), cell('v', [12.0] * 6, seed=1)]
  (row,) = comparison.rows(cells)
  assert (row['psnr']['mean'], row['seeds'], row['lpips']) == (11, 2, None)
  cells[1]['code_commit'] = 'other'
  assert 'same code' in comparison.findings('p', cells, 2)[-1].text
  cells[1] = cell('v', [12.0] * 6, seed=1, data_sha256='other')
  with pytest.raises(errors.UserError, match='different pairs'):
    comparison.rows(cells)


# -- The command ---------------------------------------------------------------


# In a process of its own: another command that a test loads has the same flags.
SCRIPT = """
import json, pathlib, sys
from absl import flags
from odin_jax import experiments
from odin_jax.shared import errors, subcommand

made = []


def fake(command):
  made.append(command)
  folder = pathlib.Path(command[-1].partition('=')[2])
  folder.mkdir(parents=True, exist_ok=True)
  if command[2] == 'odin_jax.evaluate':
    is_large = 'width_96' in str(folder)
    scores = {'psnr': 12.0 if is_large else 11.0, 'ssim': 0.5, 'lpips': None}
    pairs = [
      {'video_id': name, 'scene_id': 0, **scores} for name in ('a', 'b')
    ]
    protocol = {'data_sha256': 'd', 'model': {'parameters': 7}}
    (folder / 'metrics.json').write_text(
      json.dumps({'pairs': pairs, 'protocol': protocol})
    )
  return 0


subcommand._status = fake
counts = []
for arguments in json.loads(sys.argv[2]):
  while not arguments[0].startswith('--'):
    (pathlib.Path(sys.argv[1]) / arguments.pop(0)).write_text('{"cut')
  flags.FLAGS.unparse_flags()
  flags.FLAGS(['x', f'--output={sys.argv[1]}', *arguments])
  try:
    experiments.main()
    counts.append(len(made))
  except errors.UserError as error:
    counts.append(str(error))
print(json.dumps(counts))
"""


def test_a_run_writes_cells_table_and_page_and_does_nothing_twice(
  repository, tmp_path
):
  output = tmp_path / 'run'
  twice = ['--experiment=data_scale', '--values=1,2']
  more = ['--experiment=data_scale', '--values=1,2,3']
  runs = [
    twice,
    twice,
    more,
    ['--experiment=prediction', '--values=v'],
    # With damage to what the command itself wrote, and to what others did.
    ['cells/copy.json', 'stages/data__unseen.json', *more],
    ['evaluation/copy/unseen_copy/metrics.json', *more],
  ]
  done = subprocess.run(
    [sys.executable, '-c', SCRIPT, str(output), json.dumps(runs)],
    cwd=repository,
    capture_output=True,
    text=True,
    check=False,
  )
  assert done.returncode == 0, done.stderr
  *counts, other, mended, damaged = json.loads(done.stdout.splitlines()[-1])
  first, again, with_more = counts
  # Two folders of all, one per value; three baselines, four models, six scores.
  assert first == again == 2 + 2 + 3 * 2 + 4 + 4 * 6
  # One value more: its folder, and a model of each size.
  assert with_more == first + 1 + 2 * 7
  assert f'{output}: holds the experiment data_scale;' in other
  # The folder of that note alone.
  assert mended == with_more + 1
  folder = output / 'evaluation/copy/unseen_copy'
  assert f'remove {folder}, and the same command makes it again' in damaged
  content = json.loads((output / 'experiment.json').read_text())
  assert content['models'] == 6 and len(content['rows']) == 6 * 6 + 3 * 2
  assert any('96 channels against 48' in text for text in content['findings'])
  assert len(list((output / 'cells').glob('*.json'))) == 9
  page = (output / 'index.html').read_text()
  assert '/*DATA*/' not in page and 'More worlds' in page
  assert "source's mean colour" in (output / 'table.md').read_text()


def test_the_first_word_is_the_experiment(repository, tmp_path):
  done = subprocess.run(
    [
      sys.executable, '-m', 'odin_jax.experiments', 'prediction',
      '--values=w', f'--output={tmp_path / "o"}',
    ],
    cwd=repository, capture_output=True, text=True, check=False,
  )  # fmt: skip
  assert done.returncode == 2
  assert done.stderr == "error: --values: 'w' is none of v, eps, x0\n"
  assert not (tmp_path / 'o').exists()
