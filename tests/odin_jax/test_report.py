"""The page and the summary, from folders in the layout of the stages."""

import json
import os
import re
import shutil
import subprocess
import sys

import pytest

from odin_jax.reporting import contents, summary, true_path, verdict
from odin_jax.shared import errors
from odin_jax.training import goodput
from tests.helpers import run_folders


@pytest.fixture
def run_folder(tmp_path):
  run_folders.write(tmp_path)
  return tmp_path


def page_of(run_folder):
  page = (run_folder / 'index.html').read_text()
  return page, json.loads(re.search(r'id="data">(.*?)</script>', page, re.S)[1])


def call(repository, *arguments):
  return subprocess.run(
    [sys.executable, '-m', 'odin_jax.report', *arguments],
    capture_output=True,
    text=True,
    cwd=repository,
    env={**os.environ, 'PYTHONPATH': str(repository)},
  )


def test_the_summary_holds_the_gains_and_the_page_everything(
  run_folder, repository
):
  videos = run_folder / 'worlds'
  run_folders.write_truth(run_folder, blocked_from=4)
  for name, share in (('generate', 0.25), ('truth', 1.0)):
    run_folders.write_consistency(run_folder, name, share)
  backs = {
    'audit': '..',
    'evaluate': '..',
    'evaluate/model': '../..',
    'evaluate_unseen': '..',
    'evaluate_unseen/model': '../..',
  }
  for folder in backs:
    (run_folder / folder).mkdir(exist_ok=True)
    (run_folder / folder / 'index.html').write_text('<nav><!--LINKS--></nav>')
  log = goodput.Log(run_folder / 'train', 0)
  log.add('compiled', 0, compile_s=0.0)
  log.close()
  done = call(repository, f'--run={run_folder}', f'--videos={videos}')
  assert done.returncode == 0, done.stderr
  assert 'training: 0.0 s in all, started 1 times, step 0' in done.stdout
  summary = json.loads((run_folder / 'summary.json').read_text())
  assert summary['train']['gain_db'] == pytest.approx(3.0)
  assert summary['train']['ssim_gain'] == pytest.approx(0.2)
  assert summary['train']['shuffle_drop_db'] == pytest.approx(4.0)
  assert summary['train']['loss_first'] > summary['train']['loss_last']
  assert summary['pose'] == {'unique': {'flips': 0}}
  assert summary['seconds'] == {'train': 9.5}
  assert summary['goodput']['seconds'].keys() == goodput.BUCKETS.keys()
  assert summary['peak_rss_mb'] == {'train': 700}
  assert summary['train']['checkpoint'] == {'step': 200, 'steps': 200}
  assert summary['train']['lpips']['copy'] == 0.065
  assert summary['train']['interval_95']['psnr'] == {
    **dict.fromkeys(run_folders.SCORES),
    'model': [16.61, 17.44],
  }
  scores = {
    line.split(':')[1].split()[0]: re.split('  +', line)[1:]
    for line in done.stdout.splitlines()
    if line.startswith('held out: ')
  }
  assert scores['model'] == [
    '17.00 (16.6 to 17.4)',
    '0.500 (0.490 to 0.512)',
    '0.071',
  ]
  # No gain is measured by the sweep, which has a row.
  assert scores['sweep'] == ['18.00', '0.400', '–']
  assert 'model: step 200 of 200\n' in done.stdout

  page, data = page_of(run_folder)
  assert data['scores'][1] == [
    'held-out frames: model, one sample',
    *scores['model'],
    '3',
  ]
  # Self-contained: nothing is loaded from elsewhere; links lead to what is there.
  assert not re.search(r'src="(?!data:)', page)
  assert not re.search(r'https?://', page)
  links = re.findall(r'href="([^"]*)"', page)
  assert set(links) == {
    'audit/index.html',
    'evaluate/index.html',
    'evaluate/model/index.html',
    'evaluate_unseen/index.html',
    'generate/video.mp4',
    'reconstruct/points.ply',
    'summary.json',
  }
  for folder, back in backs.items():
    page_of_stage = (run_folder / folder / 'index.html').read_text()
    links = re.findall(r'href="([^"]*)"', page_of_stage)
    assert links == [f'{back}/index.html']
  assert [path['name'] for path in data['paths']] == ['walk']
  assert len(data['paths'][0]['poses']) == 6
  assert [len(grid['cells']) for grid in data['grids']] == [3]
  assert data['points']['count'] == 4
  assert data['panoramas'][0]['name'] == 'walk'
  assert data['checkpoint'] == 'step 200 of 200'
  assert 'model of 1.2 M parameters' in data['made']
  assert re.search(r'Made \d{4}-\d\d-\d\d \d\d:\d\d UTC by code', data['made'])

  # Beside what was imagined, the truth, as far as the way is free.
  has_truth = [bool(view['truth']) for view in data['views']]
  assert has_truth == [True] * 4 + [False]
  off_by_ten = pytest.approx(28.13, abs=0.01)
  assert [view['psnr'] for view in data['views']] == [
    None,
    *[off_by_ten] * 3,
    None,
  ]
  assert summary['path']['mean_psnr'] == off_by_ten
  assert [finding['text'] for finding in summary['verdict']] == [
    "The model beats the source's mean colour by 3.0 dB on frames that were "
    'held out.',
    'It uses the pose: with the poses of other pairs it loses 4.0 dB.',
    'Along the generated path, 3 imagined views come to 28.1 dB of the true '
    'ones; the first image in their place to 14.7 dB.',
    'Of 4 pairs of neighbouring imagined views 25 % are consistent by epipolar '
    'lines (TSED); of the true ones 100 %.',
    '4 points were reconstructed, from the 45 % of the pixels of the imagined '
    'views whose depth agrees.',
  ]


def test_where_the_true_depth_is_known_the_table_has_what_is_seen(tmp_path):
  run_folders.write(tmp_path, has_unseen=True)
  assert 'psnr_seen' not in summary.summarise(tmp_path)['train']
  for folder in ('evaluate', 'evaluate_unseen'):
    shutil.copytree(tmp_path / folder / 'sweep', tmp_path / folder / 'warp')
  for path in tmp_path.glob('evaluate*/*/metrics.json'):
    content = json.loads(path.read_text())
    psnr = content['mean']['psnr']
    # Of one evaluation nothing is unseen.
    unseen = None if path.parent.name == 'copy' else psnr - 5
    content['mean'] |= {'psnr_seen': psnr + 5, 'psnr_unseen': unseen}
    path.write_text(json.dumps(content))
  train = summary.summarise(tmp_path)['train']
  assert train['psnr_seen']['warp'] == train['psnr']['warp'] + 5
  head, *rows = contents._scores(train)
  assert [cell.partition(',')[0] for cell in head].count('PSNR') == 3
  table = {row[0]: row[4:6] for row in rows}
  ceiling = 'source warped by the true depth: the ceiling of pure geometry'
  assert table[f'unseen worlds: {ceiling}'] == ['23.00', '13.00']
  assert table['held-out frames: copy of the source'] == ['17.00', '–']


def test_what_a_run_lacks_is_told_and_shown(run_folder, repository):
  lacking = ['evaluate/model_mean', 'evaluate/pretrained', 'consistency']
  assert summary.missing(run_folder) == lacking
  # What a demo on procedural worlds has, too; an earlier version put scores
  # on unseen worlds elsewhere.
  (run_folder / 'worlds' / 'worlds.json').write_text('{}')
  shutil.copytree(
    run_folder / 'evaluate/model', run_folder / 'evaluate/model_unseen'
  )
  lacking.insert(2, 'evaluate/warp')
  lacking = ['truth', *lacking[:3], 'evaluate_unseen', 'consistency']
  done = call(repository, f'--run={run_folder}')
  assert done.returncode == 0, done.stderr
  (line,) = done.stderr.splitlines()
  assert f'{run_folder}: {", ".join(lacking)}: not here' in line
  _, data = page_of(run_folder)
  assert data['summary']['missing'] == lacking
  # Of those that are partly there each one is named.
  shutil.copytree(
    run_folder / 'evaluate/copy', run_folder / 'evaluate_unseen/copy'
  )
  assert 'evaluate_unseen/model' in summary.missing(run_folder)
  assert 'evaluate_unseen/copy' not in summary.missing(run_folder)
  (run_folder / 'train_without_pretraining').mkdir()
  assert 'evaluate/without_pretraining' in summary.missing(run_folder)


def test_a_whole_run_lacks_nothing(tmp_path):
  run_folders.write(tmp_path, has_unseen=True)
  for suffix in ('', summary.UNSEEN):
    for name in ('model_mean', 'pretrained', 'warp'):
      (tmp_path / f'evaluate{suffix}' / name).mkdir()
  for name in ('generate', 'truth'):
    run_folders.write_consistency(tmp_path, name, 1.0)
  run_folders.write_truth(tmp_path)
  (tmp_path / 'worlds' / 'worlds.json').write_text('{}')
  assert summary.missing(tmp_path) == []


def test_gains_are_of_the_same_pairs_and_of_no_other_evaluation(tmp_path):
  run_folders.write(tmp_path)
  before = summary.summarise(tmp_path)['train']
  evaluations = tmp_path / 'evaluate'
  # Several predictors side by side, say.
  (evaluations / 'all').mkdir()
  (evaluations / 'all' / 'metrics.json').write_text('{"predictors": {}}')
  assert summary.summarise(tmp_path)['train'] == before
  path = evaluations / 'copy' / 'metrics.json'
  content = json.loads(path.read_text())
  content['protocol']['data_sha256'] = 'another'
  path.write_text(json.dumps(content))
  with pytest.raises(
    errors.UserError, match='evaluate/copy: is of other pairs'
  ):
    summary.summarise(tmp_path)


def gains(gain_db, copy=12.0, mean=14.0):
  return {'psnr': {'copy': copy, 'mean': mean}, 'gain_db': gain_db}


@pytest.mark.parametrize(
  'held_out, unseen, says, good',
  [
    (
      gains(2.1),
      gains(-0.3),
      "beats the source's mean colour by 2.1 dB on frames that were held out, "
      'and loses to it by 0.3 dB on worlds that it never saw.',
      None,
    ),
    (
      gains(2.1),
      gains(1.0, copy=15.0),
      'and beats the source image itself by 1.0 dB',
      True,
    ),
    (
      gains(-0.04),
      gains(-1.0),
      "equals the source's mean colour (-0.04 dB)",
      False,
    ),
  ],
)
def test_the_verdict_follows_the_figures(held_out, unseen, says, good):
  summary = {
    'train': {
      **held_out,
      'unseen': unseen,
      'shuffle_drop_db': 0.02,
      'checkpoint': {'step': 78, 'steps': 160},
    },
    'path': {},
    'consistency': {},
    'reconstruct': {'points': 0},
  }
  unfinished, model, poses, points = verdict.findings(summary)
  assert 'step 78 of 160' in unfinished.text and unfinished.good is False
  assert says in model.text and model.good is good
  assert 'does not use the pose' in poses.text and poses.good is False
  assert 'No points' in points.text and points.good is False


def test_the_truth_of_other_views_is_refused(run_folder):
  run_folders.write_truth(run_folder)
  folders = run_folder / 'generate', run_folder / 'truth'
  assert len(true_path.figures(*folders)['psnr']) == run_folders.NUM_VIEWS - 1
  poses = folders[0] / 'poses.json'
  poses.write_text(poses.read_text() + '\n')
  with pytest.raises(errors.UserError, match='truth of other views'):
    true_path.figures(*folders)


def test_a_checkpoint_that_is_not_the_last_is_named(run_folder, repository):
  path = run_folder / 'evaluate' / 'model' / 'metrics.json'
  metrics = json.loads(path.read_text())
  # What was asked for, and what training has reached since.
  for step, steps, of in ((78, 160, 200), (78, 1600, 1600)):
    metrics['protocol']['model'] = {
      'checkpoint_step': step,
      'training_steps': steps,
    }
    path.write_text(json.dumps(metrics))
    done = call(repository, f'--run={run_folder}')
    assert done.returncode == 0, done.stderr
    assert f'model: step {step} of {of}, not the last' in done.stdout
    _, data = page_of(run_folder)
    assert data['checkpoint'].startswith(f'step {step} of {of}, not the last')


def test_a_run_without_any_reconstructed_point_has_a_page(
  run_folder, repository
):
  (run_folder / 'reconstruct' / 'points.ply').write_text(
    'ply\nformat ascii 1.0\nelement vertex 0\nproperty float x\n'
    'property float y\nproperty float z\nend_header\n'
  )
  done = call(repository, f'--run={run_folder}')
  assert done.returncode == 0, done.stderr
  _, data = page_of(run_folder)
  assert data['points'] == {'count': 0, 'xyz': [], 'rgb': []}


def test_a_run_that_lacks_a_stage_is_refused(run_folder, repository):
  (run_folder / 'train' / 'metrics.jsonl').unlink()
  done = call(repository, f'--run={run_folder}')
  assert done.returncode == 2
  assert 'metrics.jsonl' in done.stderr and done.stderr.count('\n') == 1


def test_of_a_training_alone_it_says_where_the_time_went(tmp_path, repository):
  goodput.Log(tmp_path, 7).close()
  done = call(repository, f'--workdir={tmp_path}')
  assert done.returncode == 0, done.stderr
  assert done.stdout.startswith('0.0 s in all, started 1 times, step 7\n')
  assert json.loads((tmp_path / 'goodput.json').read_text())['step'] == 7


def test_of_a_training_behind_an_address_it_says_the_same(
  tmp_path, repository, monkeypatch
):
  monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'cache'))
  workdir = tmp_path / 'run'
  workdir.mkdir()
  goodput.Log(workdir, 7).close()
  done = call(repository, f'--workdir={workdir.as_uri()}')
  assert done.returncode == 0, done.stderr
  assert done.stdout.startswith('0.0 s in all, started 1 times, step 7\n')
  assert [path.name for path in workdir.iterdir()] == [goodput.NAME]
  (tmp_path / 'none').mkdir()
  (tmp_path / 'none' / 'metrics.jsonl').touch()
  done = call(repository, f'--workdir={tmp_path.as_uri()}/none')
  assert done.returncode == 2 and done.stderr.count('\n') == 1
  assert f'none/{goodput.NAME}: no such file' in done.stderr


@pytest.mark.parametrize(
  'name, key',
  [
    ('audit/audit.json', None),
    ('train/metrics.jsonl', 'step'),
    ('evaluate/model/metrics.json', 'protocol'),
    ('generate/poses.json', 'frames'),
    ('truth/truth.json', 'views_sha256'),
    ('reconstruct/reconstruction.json', 'points'),
    ('stages.jsonl', 'stage'),
  ],
)
def test_what_a_stage_left_cut_or_of_another_version_is_named(
  run_folder, name, key
):
  run_folders.write_truth(run_folder)
  path = run_folder / name
  whole = path.read_bytes()
  path.write_bytes(whole.rstrip()[:-3])
  with pytest.raises(errors.UserError, match=f'{path}: .*no whole JSON'):
    summary.summarise(run_folder)
  path.write_text('{}\n')
  if key:
    with pytest.raises(errors.UserError, match=f"{path}: .*has no '{key}'"):
      summary.summarise(run_folder)


def test_points_that_are_none_are_named(tmp_path):
  path = tmp_path / 'points.ply'
  path.write_text('ply')
  with pytest.raises(errors.UserError, match=f'{path}: no points in PLY'):
    contents._point_cloud(path)
