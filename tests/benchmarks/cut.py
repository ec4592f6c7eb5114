"""Ten views of one panorama, against py360convert.

    pip install -r tests/benchmarks/requirements.txt
    python -m tests.benchmarks.cut ../shared/data/real_360_alcatraz.mp4

prints one JSON line: milliseconds per view of both for the same ten views of
512x512 from the video's first frame, their ratio, and the largest difference,
in grey levels, of ours to a bicubic reference in float64 on the same grid.
py360convert spans its field of view from the first pixel's centre to the
last's; it is given the field that puts its pixels where ours are. `cold` is the
first time, with the coordinates of the views still to be computed; of the later
rounds the median counts. Ours keeps the coordinates of the last 64 kinds of
views. py360convert keeps those of the last 8, so that among ten views it computes them
anew each time; for one view again and again both take about as long. The ratio
`warm` is to the faster of ours, on one thread or on all cores.
"""

import concurrent.futures
import json
import os
import statistics
import sys
import time

import cv2
import numpy as np
import py360convert

from preprocessing import frames, panorama
from tests import bicubic

_SIZE_PX, _FOV_DEG = 512, 90.0
_VIEWS = [(36.0 * turn - 180.0, 20.0 * (turn % 3 - 1)) for turn in range(10)]
_ROUNDS = 5


def ours(image, pool=None):
  """All views, on the threads of a pool if there is one."""
  views = panorama.Views(image)

  def cut(angles):
    yaw, pitch = angles
    return views.cut(
      yaw_deg=yaw, pitch_deg=pitch, fov_deg=_FOV_DEG, size_px=_SIZE_PX
    )

  return list(pool.map(cut, _VIEWS) if pool else map(cut, _VIEWS))


def theirs(image, mode):
  # The same grid: its outermost pixels' centres, not edges.
  half = np.tan(np.deg2rad(_FOV_DEG / 2)) * (_SIZE_PX - 1) / _SIZE_PX
  fov_deg = float(np.rad2deg(2 * np.arctan(half)))
  return [
    py360convert.e2p(image, fov_deg, yaw, pitch, (_SIZE_PX, _SIZE_PX), 0, mode)
    for yaw, pitch in _VIEWS
  ]


def milliseconds(run):
  """(cold, warm) per view."""
  spent = []
  for _ in range(1 + _ROUNDS):
    start = time.perf_counter()
    run()
    spent.append((time.perf_counter() - start) / len(_VIEWS) * 1e3)
  return spent[0], statistics.median(spent[1:])


def main():
  cv2.setNumThreads(1)
  image = next(frames.read_frames(sys.argv[1], 1.0)).image
  pool = concurrent.futures.ThreadPoolExecutor(os.cpu_count())
  spent = {
    'ours (bicubic)': milliseconds(lambda: ours(image)),
    'ours (bicubic), all cores': milliseconds(lambda: ours(image, pool)),
    'py360convert bilinear': milliseconds(lambda: theirs(image, 'bilinear')),
    'py360convert bicubic': milliseconds(lambda: theirs(image, 'bicubic')),
  }
  mine = ('ours (bicubic)', 'ours (bicubic), all cores')
  # Where the coordinates are known already, nothing is cold.
  cold, warm = spent[mine[0]][0], min(spent[name][1] for name in mine)
  references = [
    bicubic.view(image, yaw, pitch, _FOV_DEG, _SIZE_PX) for yaw, pitch in _VIEWS
  ]
  bilinear = theirs(image, 'bilinear')
  figures = {
    'ms_per_view': {
      name: {'cold': round(first, 2), 'warm': round(later, 2)}
      for name, (first, later) in spent.items()
    },
    'ratio': {
      name: {'cold': round(first / cold, 1), 'warm': round(later / warm, 1)}
      for name, (first, later) in spent.items()
      if name not in mine
    },
    'largest difference to float64': round(
      max(
        float(np.abs(view - reference).max())
        for view, reference in zip(ours(image), references)
      ),
      3,
    ),
    # That the views are the same ones.
    'median difference of the two': float(
      np.median(np.abs(np.float64(ours(image)) - np.float64(bilinear)))
    ),
  }
  print(json.dumps(figures))


if __name__ == '__main__':
  main()
