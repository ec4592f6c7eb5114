"""Records of noise, and parts of them: for tests of files, not of pictures."""

import numpy as np

from odin_jax.shared import camera
from preprocessing.writing import jpeg, parts


def make_record(video_id, index, split):
  rng = np.random.default_rng([index, len(video_id)])
  image = rng.integers(0, 255, (16, 16, 3), dtype=np.uint8)
  record = {
    'target2source': camera.make_pose(np.eye(3), rng.normal(size=3)),
    'fov_deg': 90.0,
    'video_id': video_id,
    'split': split,
    'scene_id': 0,
    'median_depth': 1.0 + index,
    'overlap': 0.75,
    'confidence': 0.5,
    'hops': 1,
    'matcher': 'sphere',
  }
  for side in ('source', 'target'):
    record |= {
      f'{side}/image': jpeg.encode(image),
      f'{side}/time_s': float(index),
      f'{side}/yaw_deg': 10.0,
      f'{side}/pitch_deg': -5.0,
      f'{side}/frame2scene': camera.identity_pose(),
    }
  return record


def write_part(output, video_id, count=5, test=2, fingerprint='a'):
  records = [
    make_record(video_id, i, 'test' if i < test else 'train')
    for i in range(count)
  ]
  parts.write(
    output,
    video_id,
    records=records,
    summary={'frames': 7, 'components': 1},
    dropped=[{'stage': 'pairs', 'reason': 'too blurred', 'gap_s': 2}],
    fingerprint=fingerprint,
  )
  return records
