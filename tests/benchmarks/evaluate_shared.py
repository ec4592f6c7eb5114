"""An evaluation shared by devices and by processes: what becomes of its figures.

    python -m tests.benchmarks.evaluate_shared --output=DIR --pairs=1000

writes records of noise, trains a tiny model for two steps, and evaluates it on
one simulated device, on eight, on four, and by two processes of four each. Eight
against one: the largest difference of a pixel, in grey levels, and of a pair's
PSNR. Two processes against one with four devices: whether metrics.json and the
pictures are equal to the byte, but for the lines that count both. Then one of
the two processes is killed: seconds until the other one ends, what it says, and
whether the same commands go on to the same bytes.
"""

import json
import os
import pathlib
import signal
import socket
import subprocess
import sys
import time
from typing import Any

from absl import flags
import cv2
import numpy as np
import tqdm

from odin_jax.shared import command, errors
from tests.helpers.posed_records import write_records

_OUTPUT = command.define_output()
_PAIRS = flags.DEFINE_integer('pairs', 1000, 'Pairs to evaluate.', 2)
flags.mark_flags_as_required(['output'])

_VIDEOS = 5
_COUNTED = ('num_devices', 'num_processes')


def _start(
  module: str, arguments: dict[str, Any], devices: int = 1
) -> subprocess.Popen[str]:
  flag = f'--xla_force_host_platform_device_count={devices}'
  typed = [f'--{name}={value}' for name, value in arguments.items()]
  return subprocess.Popen(
    [sys.executable, '-m', module, *typed],
    env=os.environ | {'XLA_FLAGS': flag, 'JAX_PLATFORMS': 'cpu'},
    stdout=subprocess.DEVNULL,
    stderr=subprocess.PIPE,
    text=True,
  )


def _end(process: subprocess.Popen[str]) -> None:
  _, stderr = process.communicate()
  if process.returncode:
    raise errors.UserError(f'a command failed: {stderr[-500:]}')


def _evaluate(folder: pathlib.Path, name: str) -> dict[str, Any]:
  return {
    'data': folder / 'records',
    'workdir': folder / 'train',
    'output': folder / name,
    'config.num_pairs': _PAIRS.value,
    'config.num_steps': 2,
    'config.lpips': '',
  }


def _two(folder: pathlib.Path) -> list[subprocess.Popen[str]]:
  with socket.create_server(('', 0)) as server:
    port = server.getsockname()[1]
  return [
    _start(
      'odin_jax.evaluate',
      {
        **_evaluate(folder, 'two_by_four'),
        'coordinator': f'localhost:{port}',
        'num_processes': 2,
        'process_id': process,
      },
      devices=4,
    )
    for process in (0, 1)
  ]


def _content(folder: pathlib.Path) -> dict[str, Any]:
  return json.loads((folder / 'metrics.json').read_text())


def _against_one(folder: pathlib.Path) -> dict[str, Any]:
  """Eight devices against one."""
  one, eight = _content(folder / '1'), _content(folder / '8')
  levels = psnr_db = 0.0
  for row, other in zip(one['pairs'], eight['pairs'], strict=True):
    images = [
      cv2.imread(str(folder / name / row['files']['sample'])).astype(float)
      for name in ('1', '8')
    ]
    levels = max(levels, float(np.abs(images[0] - images[1]).max()))
    psnr_db = max(psnr_db, abs(row['psnr'] - other['psnr']))
  return {
    'what': 'eight devices against one',
    'pairs': len(one['pairs']),
    'largest_difference_levels': levels,
    'largest_difference_db': psnr_db,
    'difference_of_mean_db': abs(one['mean']['psnr'] - eight['mean']['psnr']),
  }


def _is_same(folder: pathlib.Path) -> bool:
  """Two processes of four devices against one of four, to the byte."""
  texts = []
  for name in ('4', 'two_by_four'):
    content = _content(folder / name)
    for line in _COUNTED:
      del content['protocol']['software'][line]
    texts.append(json.dumps(content))
  pictures = [
    [path.read_bytes() for path in sorted((folder / name / 'pairs').iterdir())]
    for name in ('4', 'two_by_four')
  ]
  return texts[0] == texts[1] and pictures[0] == pictures[1]


def main() -> None:
  folder = pathlib.Path(_OUTPUT.value)
  folder.mkdir(parents=True, exist_ok=True)
  per_video = -(-_PAIRS.value // _VIDEOS)
  write_records(folder / 'records', 'train', {'t': 8})
  write_records(
    folder / 'records', 'test', {f'v{i}': per_video for i in range(_VIDEOS)}
  )
  training = {
    'config': 'configs/train.py:world,runlocal=True',
    'config.steps': 2,
    'config.batch_size': 4,
    'records': folder / 'records',
    'workdir': folder / 'train',
  }
  _end(_start('odin_jax.train', training))
  seconds = {}
  for devices in (1, 8, 4):
    start = time.monotonic()
    arguments = _evaluate(folder, str(devices))
    _end(_start('odin_jax.evaluate', arguments, devices))
    seconds[f'{devices} devices'] = round(time.monotonic() - start, 1)
  tqdm.tqdm.write(json.dumps(_against_one(folder)))

  # -- Two processes, one of which is killed, and the same again ---------------
  first, second = _two(folder)
  while not list((folder / 'two_by_four').glob('unfinished/[!.]*.npz')):
    if first.poll() is not None:
      raise errors.UserError(f'it ended: {first.stderr.read()[-500:]}')
    time.sleep(0.05)
  second.send_signal(signal.SIGKILL)
  start = time.monotonic()
  _, stderr = first.communicate()
  killed = {
    'what': 'one of two processes is killed',
    'seconds_to_end': round(time.monotonic() - start, 1),
    'status': first.returncode,
    'says': stderr.splitlines()[-1],
    'batches_kept': len(
      list((folder / 'two_by_four').glob('unfinished/[!.]*.npz'))
    ),
  }
  tqdm.tqdm.write(json.dumps(killed))
  start = time.monotonic()
  for process in _two(folder):
    _end(process)
  seconds['2 processes x 4 devices, gone on'] = round(
    time.monotonic() - start, 1
  )
  figures = {
    'what': 'two processes of four devices against one process of four',
    'pairs': _PAIRS.value,
    'equal_to_the_byte': _is_same(folder),
    'seconds': seconds,
  }
  tqdm.tqdm.write(json.dumps(figures))


if __name__ == '__main__':
  command.run(main)
