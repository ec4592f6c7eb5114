"""Ten views of one panorama, against py360convert.

    pip install -r tests/benchmarks/requirements.txt
    python -m tests.benchmarks.cut ../shared/data/real_360_alcatraz.mp4

prints one JSON line: milliseconds per view of both for the same ten views of
512x512 from the video's first frame, with bilinear and with bicubic
interpolation, their ratio, and the largest difference, in grey levels, of ours
to the same interpolation in float64 on the same grid. py360convert spans its
field of view from the first pixel's centre to the last's; it is given the field
that puts its pixels where ours are. `cold` is the first time, with the
coordinates of the views still to be computed; of the later rounds the median
counts. Ours keeps the coordinates of the last 16 kinds of views; py360convert
keeps those of the last 8, so that among ten views it computes them anew each
time; for one view again and again both take about as long. py360convert works
on one thread.
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

from preprocessing import panorama
from preprocessing.reading import frames
from tests.helpers import exact_views

_SIZE_PX, _FOV_DEG = 512, 90.0
_VIEWS = [(36.0 * turn - 180.0, 20.0 * (turn % 3 - 1)) for turn in range(10)]
_ROUNDS = 9
_OURS = {'bilinear': cv2.INTER_LINEAR, 'bicubic': cv2.INTER_CUBIC}
_KERNELS = {'bilinear': exact_views.linear, 'bicubic': exact_views.cubic}


def own_views(image, mode, pool=None):
  """All views, on the threads of a pool if there is one."""
  views = panorama.Views(image, _OURS[mode])

  def cut(angles):
    yaw, pitch = angles
    return views.cut(
      yaw_deg=yaw, pitch_deg=pitch, fov_deg=_FOV_DEG, size_px=_SIZE_PX
    )

  return list(pool.map(cut, _VIEWS) if pool else map(cut, _VIEWS))


def py360convert_views(image, mode):
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


def measure(image, mode):
  """Figures of one interpolation."""
  panorama._view_maps.cache_clear()
  with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
    spent = {
      'ours': milliseconds(lambda: own_views(image, mode)),
      'ours, all cores': milliseconds(lambda: own_views(image, mode, pool)),
      'py360convert': milliseconds(lambda: py360convert_views(image, mode)),
    }
  references = [
    exact_views.view(image, *angles, _FOV_DEG, _SIZE_PX, _KERNELS[mode])
    for angles in _VIEWS
  ]
  own, peer = (
    np.float64(cut(image, mode)) for cut in (own_views, py360convert_views)
  )
  _, warm = spent['py360convert']
  return {
    'ms_per_view': {
      name: {'cold': round(cold, 2), 'warm': round(later, 2)}
      for name, (cold, later) in spent.items()
    },
    'ratio, one core': round(warm / spent['ours'][1], 1),
    'ratio, all cores': round(warm / spent['ours, all cores'][1], 1),
    'largest difference to float64': round(
      float(np.abs(own - references).max()), 3
    ),
    # That the views are the same ones.
    'median difference of the two': float(np.median(np.abs(own - peer))),
  }


def main():
  cv2.setNumThreads(1)
  image = next(frames.read_frames(sys.argv[1], 1.0)).image
  print(json.dumps({mode: measure(image, mode) for mode in _OURS}))


if __name__ == '__main__':
  main()
