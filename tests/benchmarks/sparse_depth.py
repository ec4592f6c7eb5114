"""How many points records have depth of, and how true it is, on known worlds.

    python -m preprocessing.worlds --output=runs/depth_worlds --num_worlds=4 \\
        --seconds=24 --seed=501
    python -m preprocessing.run --input=runs/depth_worlds \\
        --output=runs/depth_records --config.depth_px=64
    python -m tests.benchmarks.sparse_depth runs/depth_records \\
        runs/depth_worlds

prints one JSON line per kind of world: cells with a depth in a view, its
relative error against the true depth at the centre of the cell, which shares of
the cells show something that moves, and are off by more than a tenth. Metres
per scene unit are those of the poses, so the error has that of the scale.
"""

import collections
import json
import pathlib
import sys

import numpy as np

from odin_jax.shared import depth_png
from preprocessing.auditing import records as finished
from preprocessing.procedural import footage, true_depth
from preprocessing.views import alignment


def cells(record, world, unit_m):
  """Per view: relative errors of the known cells, and whether they move."""
  for side in true_depth.SIDES:
    depth = depth_png.decode(record[f'{side}/depth'])
    truth = true_depth.view(
      world,
      footage.picture_time_s(record[f'{side}/time_s']),
      alignment.Angles(record[f'{side}/yaw_deg'], record[f'{side}/pitch_deg']),
      fov_deg=record['fov_deg'],
      size_px=len(depth),
    )
    known = depth > 0
    off = np.abs(depth[known] * unit_m / truth.depth_m[known] - 1)
    yield off, truth.moves[known]


def components(folder):
  """The records of each component of each video."""
  found = collections.defaultdict(list)
  for record in finished.Records(folder):
    found[record['video_id'], record['scene_id']].append(record)
  return found


def errors_of(records, world):
  poses = {}
  for record in records:
    poses.update(true_depth.poses(record))
  unit_m = true_depth.metres_per_unit(world, poses)
  for record in records:
    yield from cells(record, world, unit_m)


def main():
  records_folder, worlds_folder = map(pathlib.Path, sys.argv[1:])
  views = collections.defaultdict(list)
  for (video_id, _), records in components(records_folder).items():
    world = footage.rebuild_world(worlds_folder, video_id)
    views[world.kind] += errors_of(records, world)
  for kind, of_kind in views.items():
    count = [len(off) for off, _ in of_kind]
    off, moves = map(np.concatenate, zip(*of_kind, strict=True))
    figures = {
      'kind': kind,
      'views': len(of_kind),
      'cells_median': float(np.median(count)),
      'cells_10_percent': float(np.quantile(count, 0.1)),
      'views_below_20_cells': round(float(np.mean(np.array(count) < 20)), 4),
      'error_median': round(float(np.median(off)), 5),
      'error_90_percent': round(float(np.quantile(off, 0.9)), 5),
      'off_by_a_tenth': round(float(np.mean(off > 0.1)), 5),
      'moving': round(float(moves.mean()), 5),
    }
    print(json.dumps(figures))


if __name__ == '__main__':
  main()
