"""Folders as `odin_jax.evaluate` leaves them, for tests of their page."""

import pathlib
from typing import Any

import cv2
import numpy as np

from odin_jax.benchmarks import protocols
from odin_jax.evaluating import joint, single

SIDE_PX = 8
# How many grey levels the prediction of pair 0 is off, of pair 1, ...
LEVELS_OFF = (5, 40, 20)
# The source of every pair is this many off.
SOURCE_OFF = 30


def _write_image(path: pathlib.Path, level: int, side_px: int) -> None:
  path.parent.mkdir(parents=True, exist_ok=True)
  cv2.imwrite(str(path), np.full((side_px, side_px, 3), level, np.uint8))


def _row(index: int, scene: str, has_facts: bool) -> dict[str, Any]:
  off = LEVELS_OFF[index % len(LEVELS_OFF)]
  row = {
    'index': index,
    'scene': scene,
    'rotation_deg': 10.0 + index,
    'pose_of_pair': index,
    'psnr': 20 * np.log10(255 / off),
    'ssim': 1 / off,
    'lpips': off / 100 if has_facts else None,
    'files': {
      kind: f'pairs/{index:03d}_{kind}.png'
      for kind in ('source', 'truth', 'sample')
    },
  }
  if has_facts:
    row |= {
      'source_time_s': 3.0,
      'target_time_s': 3.0 + (1, -2, 5)[index % 3],
      'overlap': (0.3, 0.6, 0.9)[index % 3],
    }
  return row


def write(
  folder: pathlib.Path,
  *,
  pairs: int,
  scenes: list[str],
  has_facts: bool = True,
  side_px: int = SIDE_PX,
) -> dict[str, Any]:
  """Writes the pictures; returns what `metrics.json` holds.

  Args:
    folder: of the evaluation.
    pairs: how many; those of one scene go together.
    scenes: their names.
    has_facts: whether times, overlaps and LPIPS are known, nothing departs
      from the protocol and nothing was published.
    side_px: of the pictures.
  """
  rows = [
    _row(index, scenes[index * len(scenes) // pairs], has_facts)
    for index in range(pairs)
  ]
  for row in rows:
    off = LEVELS_OFF[row['index'] % len(LEVELS_OFF)]
    levels = {'source': 100 + SOURCE_OFF, 'truth': 100, 'sample': 100 + off}
    for kind, name in row['files'].items():
      _write_image(folder / name, levels[kind], side_px)
  mean = {
    score: None
    if rows[0][score] is None
    else float(np.mean([row[score] for row in rows]))
    for score in ('psnr', 'ssim', 'lpips')
  }
  none = dict.fromkeys(mean)
  published = {'Others': {'psnr': 13.552, 'ssim': 0.4689, 'source': 'a paper'}}
  departure = {
    'line': 'image.size_px',
    'published': [400, 300],
    'here': [SIDE_PX, SIDE_PX],
  }
  return {
    'protocol': {
      'predictor': 'model',
      'shuffle_poses': False,
      'table': {
        'name': 'zeronvs_dtu',
        'published': {} if has_facts else published,
      },
      'departures': [] if has_facts else [departure],
      'config': {'image_size_px': side_px},
      'model': {
        'parameters': 1_234_567,
        'checkpoint_step': 78,
        'training_steps': 160 if has_facts else 78,
      },
      'software': {'jax': '0.10', 'device': 'cpu'},
    },
    'mean': mean,
    'interval_95': none if len(scenes) == 1 else {**none, 'psnr': [20.0, 25.0]},
    'scenes': dict.fromkeys(scenes, mean),
    'pairs': rows,
  }


def write_joint(
  folder: pathlib.Path, names: list[str], **options: Any
) -> dict[str, Any]:
  """Writes the pictures of several; returns what the joint file holds.

  Args:
    folder: of the evaluation.
    names: of the predictors; the second is 1 dB above the first, and so on.
    **options: of `write`.
  """
  evaluations = {}
  for place, name in enumerate(names):
    content = write(folder / name, **options)
    content['protocol'] |= {'predictor': name, 'only': name}
    for row in content['pairs']:
      row['psnr'] += place
    content['mean'] = {
      **content['mean'],
      'psnr': content['mean']['psnr'] + place,
    }
    evaluations[name] = single.Evaluation(content, np.zeros(0, np.float32))
  return joint.content(evaluations, protocols.load('records'))
