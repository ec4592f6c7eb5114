"""Training on several processes: what one does, and ends that all agree on.

All processes are forks of one driver. The network is a single layer, so that
compiling takes no time; step, input, checkpoints and journal are the real ones.
"""

import json
import os
import re
import signal
import socket

import numpy as np
import pytest

from odin_jax.shared import errors, locks
from tests.helpers import commands
from tests.helpers.posed_records import write_records

STEPS = 9
# A file WORKDIR.faultN, [process, signal], is what befalls a process when it
# reads the batch of step N; 0: it cannot.
SETUP = """
import json, os, pathlib, signal, sys
from flax import nnx
import jax.numpy as jnp
import odin_jax.train
# Once for all.
import einops, grain, numpy, orbax.checkpoint
from odin_jax import batches
from odin_jax.models import layers, unet

einops.rearrange(numpy.zeros((1, 4)), 'a (b c) -> a b c', b=2)

class Layer(nnx.Module):
  def __init__(self, *, in_channels, out_channels, context_dim, rngs, **others):
    self.time1 = layers.Linear(in_channels, 16, rngs=rngs)
    self.time2 = layers.Linear(context_dim, 16, rngs=rngs)
    self.conv_out = layers.Linear(16, out_channels + 1, rngs=rngs)
  def __call__(self, x, timestep, context):
    of_tokens = self.time2(context).mean(axis=1)
    hidden = jnp.tanh(self.time1(x) + of_tokens[:, None, None])
    output = self.conv_out(hidden)
    return output[..., :-1], output[..., -1]

unet.UNet = Layer
whole = batches.batches

def flag(name, otherwise):
  given = [x for x in sys.argv if x.startswith(f'--{name}=')]
  return given[0].partition('=')[2] if given else otherwise

def faulty(dataset, *, first_step, **others):
  for step, batch in enumerate(
    whole(dataset, first_step=first_step, **others), first_step
  ):
    workdir = flag('workdir', '').removeprefix('file://')
    fault = pathlib.Path(f'{workdir}.fault{step}')
    if fault.exists():
      process, number = json.loads(fault.read_text())
      if int(flag('process_id', 0)) == process:
        fault.unlink()
        if not number:
          raise OSError('the disk is gone')
        # The guard; a scheduler signals to the work, too.
        if number == signal.SIGTERM:
          os.kill(os.getpid(), number)
        os.kill(os.getppid(), number)
    yield batch

batches.batches = faulty
main = odin_jax.train.main

def with_its_share_of_devices():
  count = 8 // int(flag('num_processes', 1))
  os.environ['XLA_FLAGS'] += f' --xla_force_host_platform_device_count={count}'
  main()

odin_jax.train.main = with_its_share_of_devices
"""


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  return tmp_path_factory.mktemp('hosts')


def free_port():
  with socket.create_server(('', 0)) as server:
    return server.getsockname()[1]


def lines(folder, workdir, of, kind=''):
  """A command line for each process."""
  common = [
    '--config=configs/train.py:world,runlocal=True,conditioning=se3',
    f'--records={folder / "records"}',
    f'--workdir={kind}{folder / workdir}',
    f'--config.steps={STEPS}',
    '--config.log_every=1',
    '--config.checkpoint_every=2',
    # No process has all parameters.
    '--config.mesh.fsdp=8',
  ]
  if of == 1:
    return [common]
  port = free_port()
  return [
    [
      *common,
      f'--coordinator=localhost:{port}',
      f'--num_processes={of}',
      f'--process_id={process}',
    ]
    for process in range(of)
  ]


def rows(workdir):
  lines = (workdir / 'metrics.jsonl').read_text().splitlines()
  return [json.loads(line) for line in lines]


@pytest.fixture(scope='module')
def ends(folder):
  """(status, stderr) of all processes of each start.

  One with eight devices does it all. In another workdir two of four devices are
  stopped; four of two go on, until one of them is killed; and one ends it. Two
  that share no disk go on until one cannot read its records, the first is
  killed, and both are stopped; then they end it, and one finds it ended.
  """
  write_records(folder / 'records', 'train', {'a': 20, 'b': 20})
  # Batches are read two steps ahead.
  for step, number in {3: signal.SIGTERM, 7: signal.SIGKILL}.items():
    (folder / f'parts.fault{step}').write_text(json.dumps([1, number]))
  for step, fault in {
    # Step 3 is the last that can be made.
    3: [1, 0],
    7: [0, signal.SIGKILL],
    8: [1, signal.SIGTERM],
  }.items():
    (folder / f'afar.fault{step}').write_text(json.dumps(fault))

  def afar(of):
    return lines(folder, 'afar', of, kind='file://')

  (whole, *stopped), killed, (last, *ended), *there = commands.run_together(
    'odin_jax.train',
    [
      [*lines(folder, 'whole', 1), *lines(folder, 'parts', 2), *afar(2)],
      [*lines(folder, 'parts', 4), *afar(2)],
      [*lines(folder, 'parts', 1), *afar(2)],
      afar(2),
      afar(1),
    ],
    SETUP,
    XDG_CACHE_HOME=str(folder / 'disks'),
    JAX_COMPILATION_CACHE_DIR=str(folder / 'cache'),
    JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS='0',
  )
  return {
    'whole': whole,
    'stopped': stopped[:2],
    'killed': killed[:4],
    'last': last,
    'afar': [stopped[2:], killed[4:], ended, *there],
  }


def test_all_save_the_same_step_when_one_is_stopped(ends):
  for status, stderr in ends['stopped']:
    assert status == os.EX_TEMPFAIL, stderr[-2000:]
    line = stderr.splitlines()[-1]
    assert re.search(r'stopped by SIGTERM: step [34] of 9 is saved in', line)
    assert 'Traceback' not in stderr
  # The first alone tells how far it is.
  assert 'devices: 8 x cpu' in ends['stopped'][0][1]
  assert ends['stopped'][1][1].count('\n') == 1


def test_one_that_is_killed_ends_all_with_a_line(ends, folder):
  (first, killed, *others) = ends['killed']
  assert killed[0] == -signal.SIGKILL
  for status, stderr in (first, *others):
    assert status == os.EX_TEMPFAIL, stderr[-2000:]
    assert stderr.splitlines()[-1] == (
      'process 1 of 4 is gone; the same commands go on, on all machines'
    )
  assert re.search('from step [34] of 9\n', first[1])
  # Whoever was killed, and whatever the others were at.
  assert not (folder / 'parts' / locks.NAME).exists()


def test_processes_compute_what_one_does(ends, folder):
  """Every restoring has checked that all arrays are equal to the bit."""
  for name in ('whole', 'last'):
    status, stderr = ends[name]
    assert status == 0, stderr[-2000:]
  whole, parts = (rows(folder / name) for name in ('whole', 'parts'))
  for of_run in (whole, parts):
    assert [row['step'] for row in of_run] == list(range(1, STEPS + 1))
  losses = [[row['loss'] for row in of_run] for of_run in (whole, parts)]
  np.testing.assert_allclose(*losses, rtol=1e-6)
  figures = json.loads((folder / 'parts' / 'final.json').read_text())
  assert figures['restored_step'] in (3, 4, 6)


def test_processes_that_share_no_disk_meet_behind_an_address(ends, folder):
  unread, killed, stopped, ended, (read,) = ends['afar']
  for status, stderr in unread:
    assert status == errors.UserError.exit_status, stderr[-2000:]
    # Of the process that cannot, or of the other one.
    assert re.search(
      'cannot (be read: the disk is gone|read its records); step 3 is saved, the '
      'same command goes on',
      stderr,
    )
    assert 'Traceback' not in stderr
  assert 'cannot be read: the disk is gone' in unread[1][1]
  assert killed[0][0] == -signal.SIGKILL
  assert killed[1][0] == os.EX_TEMPFAIL, killed[1][1][-2000:]
  assert killed[1][1].splitlines()[-1].startswith('process 0 of 2 is gone;')
  for status, stderr in stopped:
    assert status == os.EX_TEMPFAIL, stderr[-2000:]
    assert 'is saved in file://' in stderr.splitlines()[-1]
  for status, stderr in (*ended, read):
    assert status == 0, stderr[-2000:]
  whole, afar = (rows(folder / name) for name in ('whole', 'afar'))
  losses = [[row['loss'] for row in of_run] for of_run in (whole, afar)]
  np.testing.assert_allclose(*losses, rtol=1e-6)
  # From what two made, and as it is there for whoever reads it.
  assert 'from step 8 of 9\n' in ended[0][1]
  assert 'from step 9 of 9\n' in read[1]
  assert {path.name for path in (folder / 'afar/checkpoints').iterdir()} == {
    '8',
    '9',
  }
