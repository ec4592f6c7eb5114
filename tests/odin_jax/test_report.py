"""The page and the summary, from folders in the layout of the stages."""

import json
import os
import re
import subprocess
import sys

import av
import cv2
import numpy as np
import pytest
import trimesh

from odin_jax.shared import camera, schema, tfrecord

SCORES = {
  'model': (17.0, 0.5),
  'copy': (12.0, 0.2),
  'mean': (14.0, 0.3),
  'shuffled': (13.0, 0.1),
}


def write_records(folder):
  by_kind = {'bytes': b'jpeg', 'text': 'train', 'int': 1, 'float': 0.5}
  records = []
  for time in range(5):
    record = {
      name: camera.identity_pose() if feature.shape else by_kind[feature.kind]
      for name, feature in schema.FEATURES.items()
    }
    for side, shift in (('source', 0), ('target', 1)):
      record[f'{side}/time_s'] = float(time + shift)
      record[f'{side}/frame2scene'] = camera.make_pose(
        np.eye(3), np.array([0.0, 0.0, float(time + shift)])
      )
    records.append(
      schema.encode({**record, 'video_id': 'walk', 'matcher': 'sphere'})
    )
  tfrecord.write_file(folder / schema.shard_name('train', 0, 1), records)


def write_video(path, width, height):
  with av.open(str(path), 'w') as container:
    stream = container.add_stream('libx264', rate=10)
    stream.width, stream.height, stream.pix_fmt = width, height, 'yuv420p'
    image = np.full((height, width, 3), 90, np.uint8)
    for _ in range(3):
      container.mux(stream.encode(av.VideoFrame.from_ndarray(image, 'rgb24')))
    container.mux(stream.encode())


@pytest.fixture
def run_folder(tmp_path):
  names = ('worlds', 'records', 'audit/pairs', 'train', 'generate')
  for name in (*names, 'reconstruct'):
    (tmp_path / name).mkdir(parents=True)

  def write(name, content):
    (tmp_path / name).write_text(json.dumps(content))

  write_video(tmp_path / 'worlds' / 'walk.mp4', 128, 64)
  write_records(tmp_path / 'records')
  write('audit/audit.json', {'pose': {'unique': {'flips': 0}}, 'epipolar': {}})
  rows = [
    {
      'step': step,
      'loss': 100.0 / step,
      'learning_rate': 1e-3,
      'examples_per_s': 50.0,
      'mask_mean': 0.9,
    }
    for step in range(10, 210, 10)
  ]
  (tmp_path / 'train' / 'metrics.jsonl').write_text(
    '\n'.join(json.dumps(row) for row in rows) + '\n'
  )
  model = {'checkpoint_step': 200, 'training_steps': 200}
  for name, (psnr, ssim) in SCORES.items():
    protocol = {'model': model if name == 'model' else {'predictor': name}}
    folder = tmp_path / 'evaluate' / name / 'pairs'
    folder.mkdir(parents=True)
    mean = {'psnr': psnr, 'ssim': ssim, 'lpips': None}
    kinds = ('source', 'truth', 'sample')
    pairs = [
      {
        'psnr': psnr,
        'files': {kind: f'pairs/{index:03d}_{kind}.png' for kind in kinds},
      }
      for index in range(3)
    ]
    write(
      f'evaluate/{name}/metrics.json',
      {'protocol': protocol, 'mean': mean, 'pairs': pairs},
    )
    for index in range(3):
      for kind in kinds:
        image = np.full((8, 8, 3), 10 * index, np.uint8)
        cv2.imwrite(str(folder / f'{index:03d}_{kind}.png'), image)
  write_video(tmp_path / 'generate' / 'video.mp4', 64, 64)
  pose = camera.identity_pose().ravel().tolist()
  write('generate/poses.json', {'frames': [{'camera2scene': pose}] * 2})
  write('reconstruct/reconstruction.json', {'points': 4})
  trimesh.PointCloud(np.eye(4, 3), np.full((4, 4), 200)).export(
    tmp_path / 'reconstruct' / 'points.ply'
  )
  stage = {'stage': 'train', 'seconds': 9.5, 'peak_rss_mb': 700, 'command': 'x'}
  write('stages.jsonl', stage)
  return tmp_path


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
  done = call(repository, f'--run={run_folder}', f'--videos={videos}')
  assert done.returncode == 0, done.stderr
  summary = json.loads((run_folder / 'summary.json').read_text())
  assert summary['train']['gain_db'] == pytest.approx(3.0)
  assert summary['train']['ssim_gain'] == pytest.approx(0.2)
  assert summary['train']['shuffle_drop_db'] == pytest.approx(4.0)
  assert summary['train']['loss_first'] > summary['train']['loss_last']
  assert summary['pose'] == {'unique': {'flips': 0}}
  assert summary['seconds'] == {'train': 9.5}
  assert summary['peak_rss_mb'] == {'train': 700}
  assert summary['train']['checkpoint'] == {'step': 200, 'steps': 200}
  assert 'held out: model' in done.stdout
  assert 'model: step 200 of 200\n' in done.stdout

  page = (run_folder / 'index.html').read_text()
  # Self-contained: nothing is loaded from elsewhere.
  assert not re.search(r'(src|href)="(?!data:)', page)
  assert not re.search(r'https?://', page)
  data = json.loads(re.search(r'id="data">(.*?)</script>', page, re.S)[1])
  assert [path['name'] for path in data['paths']] == ['walk']
  assert len(data['paths'][0]['poses']) == 6
  assert len(data['grid']) == 3
  assert data['points']['count'] == 4
  assert data['video'].startswith('data:video/mp4;base64,')
  assert data['panoramas'][0]['name'] == 'walk'
  assert data['checkpoint'] == 'step 200 of 200'


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
    page = (run_folder / 'index.html').read_text()
    data = json.loads(re.search(r'id="data">(.*?)</script>', page, re.S)[1])
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
  page = (run_folder / 'index.html').read_text()
  data = json.loads(re.search(r'id="data">(.*?)</script>', page, re.S)[1])
  assert data['points'] == {'count': 0, 'xyz': [], 'rgb': []}


def test_a_run_that_lacks_a_stage_is_refused(run_folder, repository):
  (run_folder / 'train' / 'metrics.jsonl').unlink()
  done = call(repository, f'--run={run_folder}')
  assert done.returncode == 2
  assert 'metrics.jsonl' in done.stderr and done.stderr.count('\n') == 1
