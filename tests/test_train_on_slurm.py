"""The sbatch file, run by a Slurm of one machine, where there is one."""

import json
import os
import shutil
import socket
import subprocess
import time

import pytest

from tests.helpers.posed_records import write_records

_PROGRAMS = ('munged', 'slurmctld', 'slurmd', 'sbatch')
_MISSING = [name for name in _PROGRAMS if not shutil.which(name)]
pytestmark = [
  pytest.mark.skipif(bool(_MISSING), reason=f'no {", ".join(_MISSING)} here'),
  pytest.mark.skipif(os.getuid() != 0, reason='slurmd needs root'),
]
_CONFIG = """
ClusterName=test
SlurmctldHost={host}
SlurmctldPort={port}
SlurmdPort={other_port}
AuthInfo=socket={folder}/munge/socket
SlurmUser=root
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
ReturnToService=2
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmdSpoolDir={folder}/spool
StateSaveLocation={folder}/state
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
SelectType=select/cons_tres
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
NodeName={host} CPUs=2 State=UNKNOWN
PartitionName=all Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""


def free_port():
  with socket.create_server(('', 0)) as server:
    return server.getsockname()[1]


@pytest.fixture(scope='module')
def slurm(tmp_path_factory):
  """Environment of a Slurm with one machine, this one."""
  folder = tmp_path_factory.mktemp('slurm')
  (folder / 'munge').mkdir(mode=0o755)
  (folder / 'munge/key').write_bytes(os.urandom(128))
  (folder / 'munge/key').chmod(0o600)
  for name in ('spool', 'state'):
    (folder / name).mkdir()
  (folder / 'slurm.conf').write_text(
    _CONFIG.format(
      host=socket.gethostname(),
      port=free_port(),
      other_port=free_port(),
      folder=folder,
    )
  )
  environment = os.environ | {'SLURM_CONF': str(folder / 'slurm.conf')}
  places = [
    f'--{name}={folder}/munge/{name}'
    for name in ('socket', 'pid-file', 'log-file', 'seed-file')
  ]
  places.append(f'--key-file={folder}/munge/key')
  daemons = [
    subprocess.Popen(
      command,
      env=environment,
      stdout=subprocess.DEVNULL,
      stderr=subprocess.DEVNULL,
    )
    for command in (
      ['munged', '--foreground', '--force', *places],
      ['slurmctld', '-D'],
      ['slurmd', '-D'],
    )
  ]
  yield environment
  for daemon in reversed(daemons):
    daemon.terminate()
    daemon.wait(30)


def call(slurm, *command):
  return subprocess.run(
    command, env=slurm, capture_output=True, text=True, check=True
  ).stdout


def wait_for(slurm, job, state, seconds=600):
  """Returns when a job is in a state; what Slurm says of it."""
  until = time.monotonic() + seconds
  while time.monotonic() < until:
    says = call(slurm, 'scontrol', 'show', 'job', job)
    if f'JobState={state} ' in says:
      return says
    time.sleep(0.2)
  raise AssertionError(says)


def test_a_job_that_is_stopped_is_queued_again_and_goes_on(
  slurm, repository, tmp_path
):
  write_records(tmp_path / 'records', 'train', {'a': 20, 'b': 20})
  workdir, log = tmp_path / 'run', tmp_path / 'log'
  until = time.monotonic() + 60
  while 'idle' not in call(slurm, 'sinfo') and time.monotonic() < until:
    time.sleep(0.2)
  job = call(
    slurm,
    'sbatch',
    '--parsable',
    '--nodes=1',
    '--ntasks-per-node=2',
    f'--chdir={repository}',
    f'--output={log}',
    'launch/train_slurm.sbatch',
    '--config=configs/train.py:world,runlocal=True,conditioning=se3',
    f'--records={tmp_path / "records"}',
    f'--workdir={workdir}',
    '--config.steps=40',
    '--config.log_every=1',
  ).strip()
  wait_for(slurm, job, 'RUNNING')
  until = time.monotonic() + 600
  while not (workdir / 'metrics.jsonl').exists() and time.monotonic() < until:
    time.sleep(0.1)
  # What the end of --time does.
  call(slurm, 'scancel', '--signal=TERM', job)
  says = wait_for(slurm, job, 'PENDING')
  assert 'Restarts=1 ' in says
  assert 'stopped by SIGTERM: step ' in log.read_text()
  # Slurm waits for two minutes by itself.
  call(slurm, 'scontrol', 'update', f'JobId={job}', 'StartTime=now')
  assert 'ExitCode=0:0' in wait_for(slurm, job, 'COMPLETED')
  figures = json.loads((workdir / 'final.json').read_text())
  assert figures['step'] == 40 and figures['restored_step'] > 0
  assert f'from step {figures["restored_step"]} of 40' in log.read_text()
  assert 'devices: 2 x cpu' in log.read_text()
