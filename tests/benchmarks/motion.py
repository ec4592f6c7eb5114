"""How well the static weight finds what moves, against procedural truth.

    python -m preprocessing.worlds --output=runs/motion_worlds --num_worlds=12 \\
        --seconds=12 --seed=100
    python -m tests.benchmarks.motion runs/motion_worlds

prints one JSON line: intersection over union with the truth of the pixels whose
weight is below the threshold, weighted by solid angle, over all worlds at the
fixed threshold and at the best one, with precision and recall; the share of the
sphere called moving in worlds where nothing moves; IoU of the two trivial
ways, at the best threshold of each: the length of the flow's departure from its
median, and the difference of two frames; CPU milliseconds per keyframe. Every
pixel of the truth counts, also those beyond the latitude that is judged.
"""

import collections
import json
import pathlib
import sys
import time

import cv2
import numpy as np

from preprocessing.keyframes import static_weights
from preprocessing.reading import frames
from tests.helpers import default_rules

_THRESHOLD = 96
_STEPS = 5
_SIZE = (static_weights.GRID_WIDTH_PX, static_weights.GRID_HEIGHT_PX)
_LATITUDE = (np.arange(_SIZE[1]) + 0.5) / _SIZE[1] * np.pi - np.pi / 2
_AREA = np.repeat(np.cos(_LATITUDE)[:, None], _SIZE[0], axis=1)


class Counts:
  """Solid angles by score, of all pixels and of those that move."""

  def __init__(self):
    self.called = np.zeros(256)
    self.hit = np.zeros(256)

  def add(self, scores, moving):
    """Scores 0..255, low where something moves."""
    self.called += np.bincount(scores.ravel(), _AREA.ravel(), 256)
    self.hit += np.bincount(scores[moving], _AREA[moving], 256)

  def iou(self):
    """Of all thresholds `score < t`, t = 1..256."""
    called, hit = np.cumsum(self.called), np.cumsum(self.hit)
    return hit / np.maximum(called + hit[-1] - hit, 1e-9)

  def at(self, threshold):
    """IoU, precision and recall at one threshold."""
    called, hit = self.called[:threshold].sum(), self.hit[:threshold].sum()
    return {
      'threshold': threshold,
      'iou': round(float(self.iou()[threshold - 1]), 3),
      'precision': round(float(hit / max(called, 1e-9)), 3),
      'recall': round(float(hit / max(self.hit.sum(), 1e-9)), 3),
    }


def best(counts, limit=256):
  """The best threshold up to a limit."""
  return counts.at(int(np.argmax(counts.iou()[:limit])) + 1)


def trivial(key, after):
  """Scores of the two ways that know nothing of geometry."""
  grey, grey_after = (
    cv2.cvtColor(
      cv2.resize(image, (384, 192), interpolation=cv2.INTER_AREA),
      cv2.COLOR_RGB2GRAY,
    )
    for image in (key, after)
  )
  flow = cv2.DISOpticalFlow_create(cv2.DISOPTICAL_FLOW_PRESET_FAST)
  moved = cv2.resize(flow.calc(grey, grey_after, None), _SIZE)
  length = np.hypot(moved[..., 0] * np.cos(_LATITUDE)[:, None], moved[..., 1])
  departure = np.abs(length - np.median(length))
  difference = cv2.resize(cv2.absdiff(grey, grey_after), _SIZE).astype(float)
  return {
    'flow difference': 255 - np.clip(8 * departure, 0, 255).astype(np.uint8),
    'frame difference': 255 - np.clip(difference, 0, 255).astype(np.uint8),
  }


def weigh(images):
  """Weights of the keyframes and the CPU seconds they took."""
  start = time.process_time()
  estimator = static_weights.MotionEstimator(default_rules.motion_rules())
  for index, image in enumerate(images):
    if index % _STEPS:
      estimator.step(image)
    else:
      estimator.keyframe(image)
  return estimator.weights(), time.process_time() - start


def main():
  cv2.setNumThreads(1)
  counts = collections.defaultdict(Counts)
  worlds, spent, keyframes = {}, 0.0, 0
  for path in sorted(pathlib.Path(sys.argv[1]).glob('*.mp4')):
    truth = np.load(path.with_suffix('.truth.npz'))['moving']
    images = [frame.image for frame in frames.read_frames(path, 5.0)]
    weights, seconds = weigh(images)
    spent, keyframes = spent + seconds, keyframes + len(weights)
    world = Counts()
    for key, weight in enumerate(weights):
      index = _STEPS * key
      moving = truth[index]
      world.add(weight, moving)
      counts['static weight'].add(weight, moving)
      if index + 1 < len(images):
        scores = trivial(images[index], images[index + 1])
        for name, score in scores.items():
          counts[name].add(score, moving)
    wrong = (world.called - world.hit)[:_THRESHOLD].sum() / world.called.sum()
    worlds[path.stem] = {
      'moving': round(float(world.hit.sum() / world.called.sum()), 5),
      'iou': world.at(_THRESHOLD)['iou'],
      'called_in_error': round(float(wrong), 5),
    }
  static = [w['called_in_error'] for w in worlds.values() if not w['moving']]
  figures = {
    'fixed': counts['static weight'].at(_THRESHOLD),
    # From 128 on nothing is said to move.
    'best': best(counts['static weight'], static_weights.UNKNOWN),
    **{
      name: best(counts[name])
      for name in ('flow difference', 'frame difference')
    },
    'called_in_error_in_static_worlds': static and max(static),
    'cpu_ms_per_keyframe': round(spent / keyframes * 1e3, 1),
    'worlds': worlds,
  }
  print(json.dumps(figures))


if __name__ == '__main__':
  main()
