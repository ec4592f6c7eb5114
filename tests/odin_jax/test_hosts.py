"""Several processes: who they are, what they share, and one evaluation."""

import http.server
import json
import os
import socket
import threading
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


def test_slices_of_one_job_number_their_workers_together():
  slices = {
    **TPU,
    'MEGASCALE_NUM_SLICES': '3',
    'MEGASCALE_SLICE_ID': '2',
    'MEGASCALE_COORDINATOR_ADDRESS': '10.0.0.9:8080',
  }
  place = hosts._tpu(slices)
  assert (place.host, place.process, place.of) == ('10.0.0.9', 5, 6)
  # Slices of one worker each.
  alone = {**slices, 'TPU_WORKER_HOSTNAMES': 'a', 'TPU_WORKER_ID': '0'}
  assert hosts._tpu(alone)[2:4] == (2, 3)
  with pytest.raises(errors.UserError, match='=3: MEGASCALE_SLICE_ID is not'):
    hosts._tpu({**slices, 'MEGASCALE_SLICE_ID': ''})


METADATA = {
  'agent-worker-number': '3',
  'worker-network-endpoints': 'unknown:unknown:10.0.0.4,unknown:unknown:10.0.0.5',
  'tpu-env': "ACCELERATOR_TYPE: 'v5litepod-8'\nMEGASCALE_NUM_SLICES: '2'\n",
}


class Metadata(http.server.BaseHTTPRequestHandler):
  """What the machines of Google tell of themselves."""

  def do_GET(self):
    content = METADATA.get(self.path.rpartition('/')[2])
    is_known = content and self.headers['Metadata-Flavor'] == 'Google'
    self.send_response(200 if is_known else 404)
    self.end_headers()
    self.wfile.write((content or '').encode())

  def log_message(self, *_):
    pass


def test_a_machine_with_tpus_tells_of_its_slice(monkeypatch):
  chips = 'num_available_tpu_chips_and_device_id'
  with http.server.ThreadingHTTPServer(('localhost', 0), Metadata) as server:
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f'localhost:{server.server_port}'
    monkeypatch.setenv('GCE_METADATA_IP', address)
    monkeypatch.delenv('TPU_SKIP_MDS_QUERY', raising=False)
    # A machine without is not asked.
    assert hosts._tpu_metadata() == {}
    monkeypatch.setattr(hosts.hardware_utils, chips, lambda: (4, 'v5e'))
    assert hosts._tpu_metadata() == {
      'TPU_WORKER_HOSTNAMES': '10.0.0.4,10.0.0.5',
      'TPU_WORKER_ID': '3',
      'MEGASCALE_NUM_SLICES': '2',
    }
    monkeypatch.setenv('TPU_WORKER_HOSTNAMES', 'localhost')
    assert hosts._tpu_metadata() == {}
    server.shutdown()
  monkeypatch.delenv('TPU_WORKER_HOSTNAMES')
  # Never alone for want of an answer.
  with pytest.raises(errors.UserError, match='of which slice .*; give --num'):
    hosts._tpu_metadata()


class OfFirst(hosts.Group):
  """The second of two processes; the first gathers what it is told."""

  def gather(self, array):
    return np.stack([self.first, array])


def test_a_folder_that_is_not_shared_is_refused(tmp_path, monkeypatch):
  monkeypatch.setattr(hosts, '_SEEN_S', 0.1)
  group = OfFirst(process=1, of=2)
  path = tmp_path / 'file'
  object.__setattr__(group, 'first', hosts._digest(b'of the first'))
  with pytest.raises(errors.UserError, match='--workdir=.*: is not the folder'):
    group.require_one_file(path, '--workdir')
  path.write_bytes(b'of the first')
  group.require_one_file(path, '--workdir')
  hosts.ALONE.require_one_file(tmp_path / 'none', '--workdir')


def test_one_process_is_asked_and_answers_at_once():
  poll = hosts.Poll(hosts.ALONE)
  assert [poll.largest(number) for number in (0, 15)] == [0, 15]


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
  """By a barrier: the shutdown of jax gives up after five minutes."""
  order = []

  def note(name):
    return lambda *_: order.append(name)

  monkeypatch.setattr(hosts, '_join', note('join'))
  monkeypatch.setattr(hosts.Group, 'wait', note('wait'))
  monkeypatch.setattr('jax.distributed.shutdown', note('shutdown'))
  monkeypatch.setattr(meeting, 'together', lambda _, work, **__: work(4321))
  given = {'coordinator': 'a:1', 'num_processes': 2, 'process_id': 1}
  flags_of(given).run(note('work'))
  assert order == ['join', 'work', 'wait', 'shutdown']


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
    XLA_FLAGS=commands.with_devices(4),
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
