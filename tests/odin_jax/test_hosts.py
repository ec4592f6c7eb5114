"""Several processes: who they are, what they share, and one evaluation."""

import json
import os
import socket
from unittest import mock

from absl import flags
import numpy as np
import pytest

from odin_jax import hosts
from odin_jax.shared import errors, meeting
from tests.helpers import commands
from tests.helpers.posed_records import write_records
from tests.odin_jax import test_evaluate

SLURM = {
  'SLURM_STEP_NUM_TASKS': '4',
  'SLURM_PROCID': '2',
  'SLURM_STEP_NODELIST': 'gpu[003-005,9],other1',
  'SLURM_JOB_ID': '77',
  'SLURM_STEP_ID': '0',
}
# The first process scores, so no other one needs them.
FEATURES = """
import sys
def levels(images):
  assert '--process_id=1' not in sys.argv
  return images.mean(axis=(1, 2))
"""
TPU = {'TPU_WORKER_HOSTNAMES': '10.0.0.2,10.0.0.3', 'TPU_WORKER_ID': '1'}


def test_srun_says_who_is_who_and_a_batch_script_does_not():
  place = hosts._slurm(SLURM)
  assert (place.host, place.process, place.of) == ('gpu003', 2, 4)
  assert 20_000 <= place.port < 30_000
  # One port for all of a step, another one for the next.
  assert hosts._slurm({**SLURM, 'SLURM_PROCID': '0'}).port == place.port
  assert hosts._slurm({**SLURM, 'SLURM_STEP_ID': '1'}).port != place.port
  for nodes in ('n1', 'n1,n2', 'n[1-2]', 'n[1,4]'):
    assert hosts._slurm({**SLURM, 'SLURM_STEP_NODELIST': nodes}).host == 'n1'
  for name in SLURM.keys() - {'SLURM_STEP_ID'}:
    assert hosts._slurm({**SLURM, name: ''}) is None


def flags_of(values):
  """Flags with these values."""
  holders = {}
  for name, value in values.items():
    holders[name] = mock.Mock(spec=flags.FlagHolder)
    holders[name].name, holders[name].value = name, value
  return hosts.Flags(**holders)


def test_one_process_is_alone_whatever_the_environment_says(monkeypatch):
  for name, value in SLURM.items():
    monkeypatch.setenv(name, value)

  groups = []
  told = {'coordinator': None, 'num_processes': 1, 'process_id': None}
  flags_of(told).run(groups.append)
  assert groups == [hosts.ALONE]


def test_a_tpu_slice_says_who_is_who_and_one_worker_is_alone():
  place = hosts._tpu(TPU)
  assert (place.host, place.process, place.of) == ('10.0.0.2', 1, 2)
  assert hosts._tpu({**TPU, 'TPU_WORKER_HOSTNAMES': 'localhost'}) is None
  assert hosts._tpu({}) is None


def test_those_that_would_do_different_work_are_refused():
  class Others(hosts.Group):
    def gather(self, array):
      return np.stack([array, array, array + self.off])

  others = Others(of=3)
  object.__setattr__(others, 'off', 0)
  others.require_same({'flags': {'seed': 1}})
  object.__setattr__(others, 'off', 1)
  with pytest.raises(errors.UserError, match='process 2 has other flags'):
    others.require_same({'flags': {'seed': 1}})
  hosts.ALONE.require_same({'flags': 1})


def test_those_that_are_done_wait_for_the_first_as_long_as_it_scores(
  monkeypatch,
):
  """By a gathering: the shutdown of jax gives up after five minutes."""
  order = []

  def note(name):
    return lambda *_: order.append(name)

  monkeypatch.setattr(hosts, '_join', note('join'))
  monkeypatch.setattr(hosts.Group, 'gather', note('gather'))
  monkeypatch.setattr('jax.distributed.shutdown', note('shutdown'))
  monkeypatch.setattr(meeting, 'together', lambda place, work: work(4321))
  given = {'coordinator': 'a:1', 'num_processes': 2, 'process_id': 1}
  flags_of(given).run(note('work'))
  assert order == ['join', 'work', 'gather', 'shutdown']


def test_cpus_wait_for_days_and_flags_that_are_given_stay(monkeypatch):
  monkeypatch.setenv('XLA_FLAGS', '--xla_given=1')
  monkeypatch.setattr('jax.distributed.initialize', lambda *_, **__: None)
  monkeypatch.setattr('jax.config.update', lambda *_: None)
  hosts._join(meeting.Place('a', 1, 1, 2), 4321)
  flag, given = os.environ['XLA_FLAGS'].split()
  name, _, seconds = flag.partition('=')
  assert name == '--xla_cpu_collective_timeout_seconds'
  assert int(seconds) > 24 * 3600 and given == '--xla_given=1'


def free_port():
  with socket.create_server(('', 0)) as server:
    return server.getsockname()[1]


def test_two_processes_of_four_devices_evaluate_as_one(tmp_path):
  """To the byte, but for the lines that count processes and devices.

  One process is stopped in the second of its batches: both end, and the same
  commands go on. Batches are of 3 of 10 pairs, so one process has less to do.
  """
  data, workdir = tmp_path / 'records', tmp_path / 'model'
  features = tmp_path / 'features.py'
  features.write_text(FEATURES)
  write_records(data, 'test', {'a': 6, 'b': 4})
  for name in ('model', 'other'):
    (tmp_path / name).mkdir()
  (workdir / 'stop').touch()
  common = [
    f'--data={data}',
    '--predictor=model,sweep',
    '--config.batch_size=3',
    '--config.lpips=',
    f'--features={features}:levels',
  ]

  def both():
    port = free_port()
    return [
      [
        *common,
        f'--workdir={workdir}',
        f'--output={tmp_path / "two"}',
        f'--coordinator=localhost:{port}',
        '--num_processes=2',
        f'--process_id={process}',
      ]
      for process in (0, 1)
    ]

  alone = [
    *common,
    f'--workdir={tmp_path / "other"}',
    f'--output={tmp_path / "one"}',
  ]
  stopped, gone_on = commands.run_together(
    'odin_jax.evaluate',
    [both(), [*both(), alone]],
    test_evaluate.FAKE_MODEL,
    XLA_FLAGS='--xla_force_host_platform_device_count=4',
  )
  for status, stderr in stopped:
    assert status == 75, stderr
    assert 'stopped by SIGTERM: ' in stderr.splitlines()[-1]
  for status, stderr in gone_on:
    assert status == 0, stderr
  # The first alone says what becomes of it.
  assert 'not the table' in gone_on[0][1] and 'not the table' in gone_on[2][1]
  assert 'not the table' not in gone_on[1][1]
  for name in ('.', 'model', 'sweep'):
    one, two = (
      json.loads((tmp_path / count / name / 'metrics.json').read_text())
      for count in ('one', 'two')
    )
    software = [of['protocol'].pop('software') for of in (one, two)]
    assert [of.pop('num_devices') for of in software] == [4, 8]
    assert [of.pop('num_processes') for of in software] == [1, 2]
    assert software[0] == software[1]
    text = json.dumps(one).replace(str(tmp_path / 'other'), str(workdir))
    assert text == json.dumps(two)
  assert 'FID' in (tmp_path / 'two' / 'table.md').read_text()
