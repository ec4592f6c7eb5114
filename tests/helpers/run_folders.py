"""Folders in the layout that the stages of a run leave, for tests of its page."""

import hashlib
import json
import pathlib

import av
import cv2
import numpy as np
import trimesh

from odin_jax.shared import camera, schema, tfrecord

# PSNR, SSIM, LPIPS; of the last as without its weights.
SCORES = {
  'model': (17.0, 0.5, 0.071),
  'copy': (12.0, 0.2, 0.065),
  'mean': (14.0, 0.3, 0.4),
  'shuffled': (13.0, 0.1, 0.1),
  'sweep': (18.0, 0.4, None),
}
# Of each score of the model, and of no other.
INTERVAL = {'psnr': [16.61, 17.44], 'ssim': [0.49, 0.512], 'lpips': None}
NUM_VIEWS = 5


def write_records(folder: pathlib.Path, video_id: str) -> None:
  """Five records of a straight walk."""
  by_kind = {'bytes': b'jpeg', 'text': 'train', 'int': 1, 'float': 0.5}
  records = []
  for time in range(5):
    record = {
      name: camera.identity_pose() if feature.shape else by_kind[feature.kind]
      for name, feature in schema.FEATURES.items()
      # What is optional is checked more closely than these would stand.
      if feature.encoding != 'png'
    }
    for side, shift in (('source', 0), ('target', 1)):
      record[f'{side}/time_s'] = float(time + shift)
      record[f'{side}/frame2scene'] = camera.make_pose(
        np.eye(3), np.array([0.0, 0.0, float(time + shift)])
      )
    records.append(
      schema.encode({**record, 'video_id': video_id, 'matcher': 'sphere'})
    )
  tfrecord.write_file(folder / schema.shard_name('train', 0, 1), records)


def write_video(path: pathlib.Path, width: int, height: int) -> None:
  """Three grey frames."""
  with av.open(str(path), 'w') as container:
    stream = container.add_stream('libx264', rate=10)
    stream.width, stream.height, stream.pix_fmt = width, height, 'yuv420p'
    image = np.full((height, width, 3), 90, np.uint8)
    for _ in range(3):
      container.mux(stream.encode(av.VideoFrame.from_ndarray(image, 'rgb24')))
    container.mux(stream.encode())


def _write_image(path: pathlib.Path, level: int) -> np.ndarray:
  image = np.full((8, 8, 3), level, np.uint8)
  path.parent.mkdir(parents=True, exist_ok=True)
  cv2.imwrite(str(path), image)
  return image


def _write_evaluations(folder: pathlib.Path, pairs: int) -> None:
  model = {
    'checkpoint_step': 200,
    'training_steps': 200,
    'parameters': 1_234_567,
    'image_size_px': 8,
  }
  for name, (psnr, ssim, lpips) in SCORES.items():
    protocol = {'model': model if name == 'model' else {'predictor': name}}
    rows = []
    for index in range(pairs):
      names = {
        kind: f'pairs/{index:03d}_{kind}.png'
        for kind in ('source', 'truth', 'sample')
      }
      for file in names.values():
        _write_image(folder / name / file, 6 * index)
      rows.append({'psnr': psnr, 'files': names})
    content = {
      'protocol': protocol,
      'mean': {'psnr': psnr, 'ssim': ssim, 'lpips': lpips},
      'interval_95': INTERVAL if name == 'model' else dict.fromkeys(INTERVAL),
      'pairs': rows,
    }
    (folder / name / 'metrics.json').write_text(json.dumps(content))


def write_truth(run: pathlib.Path, blocked_from: int = NUM_VIEWS) -> None:
  """True views of the generated path, 10 levels off what was imagined.

  Args:
    run: the folder of the run.
    blocked_from: the first view that lies behind a surface.
  """
  frames = []
  for index in range(NUM_VIEWS):
    name = f'frames/{index:03d}.png'
    _write_image(run / 'truth' / name, 50 + 20 * index)
    frames.append({'file': name if index < blocked_from else None})
  first = np.full((8, 8, 3), 40, np.uint8)
  digest = hashlib.sha256(
    (run / 'generate' / 'poses.json').read_bytes() + first.tobytes()
  )
  content = {
    'views_sha256': digest.hexdigest(),
    'metres_per_scene_unit': 2.5,
    'frames': frames,
  }
  (run / 'truth' / 'truth.json').write_text(json.dumps(content))


def write(
  run: pathlib.Path,
  *,
  video_id: str = 'walk',
  pairs: int = 3,
  has_unseen: bool = False,
) -> None:
  """All folders of a run but the truth.

  Args:
    run: an empty folder.
    video_id: of its video.
    pairs: in its evaluations.
    has_unseen: whether unseen worlds were evaluated too.
  """
  names = ('worlds', 'records', 'audit/pairs', 'train', 'generate')
  for name in (*names, 'reconstruct'):
    (run / name).mkdir(parents=True)

  def note(name, content):
    (run / name).write_text(json.dumps(content))

  write_video(run / 'worlds' / f'{video_id}.mp4', 128, 64)
  write_records(run / 'records', video_id)
  note('audit/audit.json', {'pose': {'unique': {'flips': 0}}, 'epipolar': {}})
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
  (run / 'train' / 'metrics.jsonl').write_text(
    '\n'.join(json.dumps(row) for row in rows) + '\n'
  )
  for suffix in ['', '_unseen'][: 1 + has_unseen]:
    _write_evaluations(run / f'evaluate{suffix}', pairs)
  write_video(run / 'generate' / 'video.mp4', 64, 64)
  frames = []
  for index in range(NUM_VIEWS):
    name = f'frames/{index:03d}.png'
    _write_image(run / 'generate' / name, 40 + 20 * index)
    pose = camera.make_pose(np.eye(3), np.array([0.0, 0.0, 0.1 * index]))
    frames.append({'file': name, 'camera2scene': pose.ravel().tolist()})
  note('generate/poses.json', {'frames': frames})
  note('reconstruct/reconstruction.json', {'points': 4, 'coverage': 0.45})
  trimesh.PointCloud(np.eye(4, 3), np.full((4, 4), 200)).export(
    run / 'reconstruct' / 'points.ply'
  )
  note(
    'stages.jsonl',
    {
      'stage': 'train',
      'seconds': 9.5,
      'peak_rss_mb': 700,
      'command': f'python -m odin_jax.train --workdir=/{"long/" * 60}',
    },
  )


def write_consistency(run: pathlib.Path, name: str, tsed: float) -> None:
  """What `odin_jax.consistency` says of the views of `name`."""
  folder = run / 'consistency' / name
  folder.mkdir(parents=True)
  pairs = [
    {'consistent': index < tsed * (NUM_VIEWS - 1)}
    for index in range(NUM_VIEWS - 1)
  ]
  content = {'tsed': tsed, 'loop_psnr': None, 'pairs': pairs}
  (folder / 'consistency.json').write_text(json.dumps(content))
