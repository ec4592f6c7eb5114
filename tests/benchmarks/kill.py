"""Kills a training at random moments, and compares what it ends with.

    python -m tests.benchmarks.kill [--kills=20] [--seed=0]

A tiny model (recipe `world,runlocal=True`, 60 steps, a checkpoint after every
third) is trained once undisturbed; then it is killed by SIGKILL so many times,
half of them at a random moment, half while a checkpoint is being written, each
time started again, and let come to its end. Printed are where it was killed and
gone on from, whether parameters are equal (`params_sha256`), and where the time
went (`odin_jax.training.goodput`), whose kinds must add up to the wall time
within 1 %.
"""

import json
import os
import pathlib
import random
import signal
import subprocess
import sys
import tempfile
import time

from absl import flags

from odin_jax.checkpoints import checkpoint
from odin_jax.shared import command, errors
from odin_jax.training import goodput
from tests.helpers import posed_records

_KILLS = flags.DEFINE_integer('kills', 20, 'How many.', 1)
_SEED = flags.DEFINE_integer('seed', 0, 'Of the moments.')
_STEPS = 60


def start(folder: pathlib.Path, workdir: pathlib.Path) -> subprocess.Popen:
  """A training."""
  return subprocess.Popen(
    [
      sys.executable,
      '-m',
      'odin_jax.train',
      '--config=configs/train.py:world,runlocal=True',
      f'--records={folder / "records"}',
      f'--workdir={workdir}',
      f'--config.steps={_STEPS}',
      '--config.checkpoint_every=3',
      '--config.log_every=1',
    ],
    env=os.environ
    | {
      'JAX_COMPILATION_CACHE_DIR': str(folder / 'cache'),
      'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS': '0',
      'XLA_FLAGS': '--xla_backend_optimization_level=0',
    },
    stdout=subprocess.DEVNULL,
    stderr=subprocess.PIPE,
    text=True,
  )


def end(process: subprocess.Popen) -> None:
  """Waits for an end that has to be good."""
  _, stderr = process.communicate()
  if process.returncode:
    raise errors.UserError(f'a training failed: {stderr[-500:]}')


def events(workdir: pathlib.Path, kind: str) -> list[goodput.Event]:
  """Those of a kind, so far."""
  if not (workdir / goodput.NAME).is_file():
    return []
  return [x for x in goodput.read(workdir) if x['event'] == kind]


def is_saving(workdir: pathlib.Path) -> bool:
  """Whether a checkpoint is being written."""
  return any((workdir / checkpoint.FOLDER).glob('*tmp*'))


def kill(
  process: subprocess.Popen, workdir: pathlib.Path, rng: random.Random
) -> dict[str, object]:
  """Kills it at a moment; where that was."""
  starts = len(events(workdir, 'compiled'))
  while process.poll() is None and len(events(workdir, 'compiled')) == starts:
    time.sleep(0.02)
  in_save = rng.random() < 0.5
  until = time.monotonic() + rng.uniform(0.0, 3.0)
  while process.poll() is None and time.monotonic() < until:
    time.sleep(0.005)
  while in_save and process.poll() is None and not is_saving(workdir):
    time.sleep(0.001)
  was_saving = is_saving(workdir)
  process.send_signal(signal.SIGKILL)
  process.communicate()
  done = [event['step'] for event in events(workdir, 'steps')]
  return {'in_save': was_saving, 'step': done[-1] if done else 0}


def final(workdir: pathlib.Path) -> str:
  """Digest of the parameters at the end."""
  return json.loads((workdir / 'final.json').read_text())['params_sha256']


def main() -> None:
  rng = random.Random(_SEED.value)
  with tempfile.TemporaryDirectory() as name:
    folder = pathlib.Path(name)
    (folder / 'records').mkdir()
    posed_records.write_records(folder / 'records', 'train', {'a': 20, 'b': 20})
    end(start(folder, folder / 'whole'))
    workdir, kills = folder / 'killed', 0
    while kills < _KILLS.value:
      process = start(folder, workdir)
      killed = kill(process, workdir, rng)
      if (workdir / 'final.json').is_file():
        # It had come to its end; the next one begins anew.
        if final(workdir) != final(folder / 'whole'):
          raise errors.UserError('the parameters are others')
        workdir = folder / f'killed_{kills}'
        continue
      kills += 1
      print(json.dumps({'kill': kills, **killed}), flush=True)
    end(start(folder, workdir))
    figures = goodput.summary(goodput.read(workdir))
    total = sum(figures['seconds'].values())
    print(
      json.dumps(
        {
          'kills': kills,
          'equal': final(workdir) == final(folder / 'whole'),
          'adds_up': abs(total / figures['wall_s'] - 1) < 0.01,
          **figures,
        }
      )
    )


if __name__ == '__main__':
  command.run(main)
