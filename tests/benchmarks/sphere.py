"""CPU seconds of the whole pipeline with the sphere matcher per kept pair.

    python -m tests.benchmarks.sphere ../shared/data/real_360_alcatraz.mp4

runs `python -m preprocessing.run` on the video into a folder that is then
thrown away, and prints one JSON line: CPU and wall seconds of the command and
of all its processes, the kept pairs of frames inside the window and the records
of all pairs, CPU seconds per kept pair, and the CPU seconds of decoding alone.
"""

import json
import os
import pathlib
import subprocess
import sys
import tempfile
import time

import av


def decoding_cpu_s(video):
  """CPU seconds of decoding every frame."""
  start = time.process_time()
  with av.open(str(video)) as file:
    for _ in file.decode(video=0):
      pass
  return time.process_time() - start


def children_cpu_s():
  """CPU seconds of all processes that this one started and that ended."""
  times = os.times()
  return times.children_user + times.children_system


def main():
  video = pathlib.Path(sys.argv[1]).resolve()
  with tempfile.TemporaryDirectory() as folder:
    start = time.perf_counter(), children_cpu_s()
    subprocess.run(
      [
        sys.executable,
        *('-m', 'preprocessing.run', '--config=configs/preprocess.py'),
        *(f'--input={video}', f'--output={folder}/records'),
      ],
      check=True,
      stderr=subprocess.DEVNULL,
    )
    wall_s = time.perf_counter() - start[0]
    cpu_s = children_cpu_s() - start[1]
    manifest = pathlib.Path(folder, 'records', 'manifest.json').read_text()
  (figures,) = json.loads(manifest)['videos']
  kept = sum(figures['frame_pairs']['kept'].values())
  print(
    json.dumps(
      {
        'cpu_s': round(cpu_s, 2),
        'wall_s': round(wall_s, 2),
        'decoding_cpu_s': round(decoding_cpu_s(video), 2),
        'kept_pairs': kept,
        'records': figures['records'],
        'cpu_s_per_kept_pair': round(cpu_s / max(kept, 1), 4),
      }
    )
  )


if __name__ == '__main__':
  main()
