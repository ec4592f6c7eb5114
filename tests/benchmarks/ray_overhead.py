"""What Ray costs per video.

    python -m tests.benchmarks.ray_overhead

prints one JSON line: 500 files that are no videos, which take no time, through
the local engine and through Ray on one core; seconds per file, start and end of
the processes apart.
"""

import json
import pathlib
import tempfile
import time

from configs import preprocess
from preprocessing import settings
from preprocessing.running import ray_engine, workers

_NUM_FILES = 500


def measure(run, jobs):
  """Seconds until the first outcome, and per file after that."""
  start = time.perf_counter()
  moments = [
    time.perf_counter() - start
    for event in run(jobs)
    if isinstance(event, workers.Outcome)
  ]
  return {
    'first_s': round(moments[0], 2),
    'ms_per_file': round(1e3 * (moments[-1] - moments[0]) / (len(jobs) - 1), 2),
  }


def main():
  checked = settings.checked(preprocess.get_config())
  rules = ray_engine.Rules(num_workers=1)
  with tempfile.TemporaryDirectory() as name:
    path = pathlib.Path(name) / 'film.mp4'
    path.write_bytes(b'no video at all')
    job = workers.Job(path=path, output=pathlib.Path(name), settings=checked)
    jobs = [job] * _NUM_FILES
    local = measure(lambda jobs: workers.run(jobs, num_workers=1), jobs)
    ray = measure(lambda jobs: ray_engine.run(jobs, rules), jobs)
  print(json.dumps({'files': _NUM_FILES, 'local': local, 'ray': ray}))


if __name__ == '__main__':
  main()
