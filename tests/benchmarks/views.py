"""A video to 200 views of 512x512 on disk, against the public 360-1M way.

    pip install -r tests/benchmarks/requirements.txt
    python -m tests.benchmarks.views ../shared/data/real_360_alcatraz.mp4

prints one JSON line: wall and CPU seconds of both in the same run, of decoding
alone, and their ratios. Both cut five views of 72 degrees, 72 degrees apart,
from 40 frames a second apart; the other way does so as the script of
https://github.com/MattWallingford/360-1M (VideoProcessing/video_to_frames.py):
a moviepy frame per view, equilib (bilinear), PNG. Ours is bicubic and writes
JPEG, as the pipeline does.
"""

import concurrent.futures
import json
import os
import pathlib
import sys
import tempfile
import time

import av
import cv2
import equilib
import moviepy
import numpy as np
from PIL import Image

from preprocessing import panorama
from preprocessing.reading import frames
from preprocessing.writing import jpeg

_FRAMES, _YAWS, _SIZE_PX, _FOV_DEG = 40, 5, 512, 72.0


def moviepy_views(video, folder):
  """A frame is sought, cut and written for every view."""
  clip = moviepy.VideoFileClip(str(video))
  cutter = equilib.Equi2Pers(
    height=_SIZE_PX, width=_SIZE_PX, fov_x=_FOV_DEG, mode='bilinear'
  )
  times_s = np.linspace(0, clip.duration, _FRAMES, endpoint=False)
  for index, time_s in enumerate(times_s):
    for turn in range(_YAWS):
      image = np.transpose(clip.get_frame(time_s), (2, 0, 1))
      angles = {'pitch': 0, 'roll': 0, 'yaw': 2 * np.pi / _YAWS * turn}
      view = cutter(equi=image, rots=angles)
      picture = Image.fromarray(np.uint8(np.transpose(view, (1, 2, 0))))
      picture.save(folder / f'{index}_{turn}.png')
  clip.close()


def write_views(image, index, folder):
  """The views of one frame."""
  views = panorama.Views(image)
  for turn in range(_YAWS):
    view = views.cut(
      yaw_deg=360.0 / _YAWS * turn,
      pitch_deg=0.0,
      fov_deg=_FOV_DEG,
      size_px=_SIZE_PX,
    )
    (folder / f'{index}_{turn}.jpg').write_bytes(jpeg.encode(view))


def ours(video, folder):
  """One pass over the video, while threads cut and write."""
  with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
    jobs = [
      pool.submit(write_views, frame.image, index, folder)
      for index, frame in enumerate(frames.read_frames(video, 1.0))
      if index < _FRAMES
    ]
    for job in jobs:
      job.result()


def decode(video, folder):
  """What nobody can do without: every frame, decoded and thrown away."""
  del folder
  with av.open(str(video)) as file:
    file.streams.video[0].thread_type = 'AUTO'
    for _ in file.decode(video=0):
      pass


def cpu_s():
  """CPU seconds of this process and of its children that have ended."""
  return sum(os.times()[:4])


def measure(run, video):
  """(wall s, CPU s, number of files) of one way."""
  with tempfile.TemporaryDirectory() as name:
    folder = pathlib.Path(name)
    start = time.perf_counter(), cpu_s()
    run(video, folder)
    spent = time.perf_counter() - start[0], cpu_s() - start[1]
    return *spent, len(list(folder.iterdir()))


def main():
  video = pathlib.Path(sys.argv[1])
  # The pool of threads takes the place of OpenCV's own.
  cv2.setNumThreads(1)
  ways = {'ours': ours, 'decoding alone': decode, '360-1M': moviepy_views}
  spent = {name: measure(run, video) for name, run in ways.items()}
  views = _FRAMES * _YAWS
  assert spent['ours'][2] == spent['360-1M'][2] == views, spent
  figures = {
    name: {'wall_s': round(wall, 2), 'cpu_s': round(cpu, 2)}
    for name, (wall, cpu, _) in spent.items()
  }
  ratios = {
    f'{name}, {kind}': round(spent[name][index] / spent['ours'][index], 2)
    for name in ('360-1M', 'decoding alone')
    for index, kind in enumerate(('wall', 'cpu'))
  }
  print(json.dumps({'views': views, **figures, 'ratio to ours': ratios}))


if __name__ == '__main__':
  main()
