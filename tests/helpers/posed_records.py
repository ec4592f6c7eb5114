"""Record folders whose target view follows from the pose alone.

The target is one flat colour, 0.5 plus the translation, so a predictor that
uses the pose can be right and one that does not cannot.
"""

import cv2
import numpy as np

from odin_jax.shared import camera, depth_png, schema, tfrecord


def colour_of_pose(target2source):
  """RGB in [0, 1]."""
  return np.clip(0.5 + np.asarray(target2source)[..., 3], 0, 1)


def jpeg(image):
  done, data = cv2.imencode('.jpg', image[..., ::-1], [1, 95])
  assert done
  return data.tobytes()


def make_record(generator, video_id, split, size_px=48):
  translation = generator.uniform(-0.4, 0.4, 3)
  target2source = camera.make_pose(
    camera.view2frame_rotation(*generator.uniform(-20, 20, 2)), translation
  )
  source = generator.integers(0, 256, (6, 6, 3), np.uint8)
  source = cv2.resize(source, (size_px, size_px))
  colour = np.round(colour_of_pose(target2source) * 255).astype(np.uint8)
  target = np.broadcast_to(colour, (size_px, size_px, 3))
  pose = camera.identity_pose()
  return {
    'source/image': jpeg(source),
    'target/image': jpeg(target),
    'target2source': target2source,
    'fov_deg': 90.0,
    'source/time_s': 1.0,
    'target/time_s': float(generator.integers(2, 6)),
    'source/yaw_deg': 10.0,
    'target/yaw_deg': 20.0,
    'source/pitch_deg': 0.0,
    'target/pitch_deg': -5.0,
    'source/frame2scene': pose,
    'target/frame2scene': pose,
    'video_id': video_id,
    'split': split,
    'scene_id': 0,
    'median_depth': 1.0,
    'overlap': 0.75,
    'confidence': 1.0,
    'hops': 1,
    'matcher': 'procedural',
  }


def write_records(folder, split, counts, size_px=48, seed=0):
  """One shard with `counts[video_id]` records of each video; returns them."""
  generator = np.random.default_rng(seed)
  folder.mkdir(exist_ok=True)
  records = [
    make_record(generator, video_id, split, size_px)
    for video_id, count in counts.items()
    for _ in range(count)
  ]
  tfrecord.write_file(
    folder / schema.shard_name(split, 0, 1), map(schema.encode, records)
  )
  return records


def write_changed(folder, count, *, seed=0, depth_px=None, **changes):
  """One shard of one video with other values; returns the folder's path.

  Args:
    folder: is made.
    count: of the records.
    seed: of what is drawn.
    depth_px: side of maps of depth, 2 everywhere; None: without.
    **changes: values, or functions of the record's number.
  """
  generator = np.random.default_rng(seed)
  records = []
  for number in range(count):
    record = make_record(generator, 'a', 'train', 32)
    for name, value in changes.items():
      record[name] = value(number) if callable(value) else value
    if depth_px:
      depth = depth_png.encode(np.full((depth_px, depth_px), 2.0))
      record |= {'source/depth': depth, 'target/depth': depth}
    records.append(record)
  folder.mkdir()
  tfrecord.write_file(
    folder / schema.shard_name('train', 0, 1), map(schema.encode, records)
  )
  return str(folder)
