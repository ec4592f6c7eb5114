"""Who may write into a folder: one process at a time."""

import dataclasses
import json
import os
import pathlib
import signal
import subprocess
import sys

import pytest

from odin_jax.shared import errors, files, locks

# Claims a folder as a command does, says so, and works until it is told to end.
WORKER = """
import os, signal, sys, time
from absl import flags
from odin_jax.shared import command, errors, files

HOW = flags.DEFINE_string('how', '', 'How to end.')
FOLDER = flags.DEFINE_string('folder', '', 'Folder.')


def main():
  files.claim_output(FOLDER.value, 'tool')
  print('claimed', flush=True)
  sys.stdin.readline()
  if HOW.value == 'user':
    raise errors.UserError('bad')
  if HOW.value == 'bug':
    raise ValueError('a bug')
  if HOW.value == 'callback':
    Stopped()
    time.sleep(60)
  if HOW.value == 'code':
    exec('os.kill(os.getpid(), signal.SIGTERM); time.sleep(60)')


class Stopped:
  def __del__(self):
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(0.05)


if __name__ == '__main__':
  command.run(main)
"""


@pytest.fixture
def start(repository, tmp_path):
  """Starts workers on one folder; kills what is left of them."""
  program = tmp_path / 'worker.py'
  program.write_text(WORKER)
  workers = []

  def start_one(folder, how=''):
    pipe = subprocess.PIPE
    workers.append(
      subprocess.Popen(
        # As a module: Python's own end is another one than that of a file.
        [sys.executable, '-m', program.stem]
        + [f'--folder={folder}', f'--how={how}'],
        env={**os.environ, 'PYTHONPATH': f'{repository}:{tmp_path}'},
        stdin=pipe,
        stdout=pipe,
        stderr=pipe,
        text=True,
      )
    )
    return workers[-1]

  yield start_one
  for worker in workers:
    worker.kill()
    worker.communicate()


def holder_of(folder):
  return json.loads((folder / locks.NAME).read_text())


def is_claimed(worker):
  return worker.stdout.readline() == 'claimed\n'


def end(worker):
  _, stderr = worker.communicate('\n', timeout=60)
  return worker.returncode, stderr


def of_dead(folder, **changes):
  """Leaves the lock of a process that has gone."""
  process = subprocess.Popen([sys.executable, '-c', 'input()'], stdin=-1)
  holder = locks.holder_of(process.pid)
  process.communicate(b'\n')
  changed = dataclasses.replace(holder, **changes)
  (folder / locks.NAME).write_text(json.dumps(dataclasses.asdict(changed)))


def test_the_second_process_is_refused_and_the_first_ends_in_peace(
  start, tmp_path
):
  folder = tmp_path / 'output'
  first = start(folder)
  assert is_claimed(first)
  assert holder_of(folder)['pid'] == first.pid
  status, stderr = end(start(folder))
  assert status == 2 and stderr.count('\n') == 1
  assert stderr.startswith('error: ')
  assert f'process {first.pid} is writing here' in stderr
  # By another name it is the same folder.
  (tmp_path / 'link').symlink_to(folder)
  assert end(start(tmp_path / 'link'))[0] == 2
  assert holder_of(folder)['pid'] == first.pid
  assert end(first) == (0, '')
  assert [path.name for path in folder.iterdir()] == [files.MARKER]


@pytest.mark.parametrize(
  'how,status',
  [
    ('user', 2),
    ('bug', 1),
    (signal.SIGTERM, os.EX_TEMPFAIL),
    (signal.SIGINT, os.EX_TEMPFAIL),
    # Where Python passes over what is raised, and where it remembers it.
    ('callback', os.EX_TEMPFAIL),
    ('code', os.EX_TEMPFAIL),
  ],
)
def test_every_end_gives_the_folder_back(start, tmp_path, how, status):
  folder = tmp_path / 'output'
  worker = start(folder, how if isinstance(how, str) else '')
  assert is_claimed(worker)
  if isinstance(how, str):
    ended, stderr = end(worker)
  else:
    worker.send_signal(how)
    ended, stderr = worker.wait(60), worker.stderr.read()
    assert stderr.startswith(f'stopped by {how.name}:')
    assert stderr.count('\n') == 1
  assert ended == status, stderr
  assert [path.name for path in folder.iterdir()] == [files.MARKER]


def test_exactly_one_takes_over_what_a_killed_process_left(start, tmp_path):
  folder = tmp_path / 'output'
  killed = start(folder)
  assert is_claimed(killed)
  killed.kill()
  # It is not even waited for: a zombie works no more.
  os.waitid(os.P_PID, killed.pid, os.WEXITED | os.WNOWAIT)
  rivals = [start(folder) for _ in range(4)]
  claimed = [rival for rival in rivals if is_claimed(rival)]
  assert len(claimed) == 1
  for rival in rivals:
    assert end(rival)[0] == (0 if rival in claimed else 2)
  assert [path.name for path in folder.iterdir()] == [files.MARKER]


def test_a_number_that_came_again_is_not_the_holder(tmp_path):
  # Process 1 is there, but it did not start then.
  of_dead(tmp_path, pid=1, started='1234567')
  locks.acquire(tmp_path)
  assert holder_of(tmp_path)['pid'] == os.getpid()
  locks.release_all()
  assert not list(tmp_path.iterdir())


def test_a_machine_that_was_started_anew_has_no_old_processes(tmp_path):
  of_dead(tmp_path, pid=os.getpid(), boot='before')
  locks.acquire(tmp_path)
  locks.release_all()
  assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
  'of_job, of_attempt',
  [
    ('SLURM_JOB_ID', 'SLURM_RESTART_COUNT'),
    ('JOBSET_UID', 'JOBSET_RESTART_ATTEMPT'),
  ],
)
def test_a_job_that_was_started_anew_has_no_old_processes(
  tmp_path, monkeypatch, of_job, of_attempt
):
  monkeypatch.setenv(of_job, '77')
  monkeypatch.setenv(of_attempt, '1')
  # Beside it, and of another job: nothing is known.
  for job, attempt in (('77', '1'), ('76', '0')):
    of_dead(tmp_path, host='elsewhere', job=job, attempt=attempt)
    with pytest.raises(errors.UserError, match='on elsewhere is writing'):
      locks.acquire(tmp_path)
  # Elsewhere, and in a container of this machine that was killed.
  for where in ({'host': 'elsewhere'}, {'pid_namespace': 'pid:[1]'}):
    of_dead(tmp_path, job='77', attempt='0', **where)
    locks.acquire(tmp_path)
    assert holder_of(tmp_path)['pid'] == os.getpid()
    locks.release_all()
  assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
  'changes', [{'host': 'elsewhere'}, {'pid_namespace': 'pid:[1]'}]
)
def test_of_other_machines_a_person_has_to_say_that_it_is_gone(
  tmp_path, changes
):
  of_dead(tmp_path, **changes)
  before = holder_of(tmp_path)
  with pytest.raises(errors.UserError) as refusal:
    locks.acquire(tmp_path)
  assert before['host'] in str(refusal.value)
  assert f'delete {tmp_path / locks.NAME}' in str(refusal.value)
  assert holder_of(tmp_path) == before
  (tmp_path / locks.NAME).write_text('')
  with pytest.raises(errors.UserError, match='delete it'):
    locks.acquire(tmp_path)


def test_what_a_process_starts_is_no_second_holder(start, tmp_path):
  folder = files.claim_output(tmp_path / 'output', 'tool')
  worker = start(folder)
  assert is_claimed(worker)
  assert holder_of(folder)['pid'] == os.getpid()
  assert end(worker)[0] == 0
  # The lock outlives it, and a fork that ends.
  if not (fork := os.fork()):
    locks.release_all()
    os._exit(0)
  os.waitpid(fork, 0)
  assert holder_of(folder)['pid'] == os.getpid()
  locks.release_all()
  assert not (folder / locks.NAME).exists()


def test_a_folder_of_others_gets_no_lock(tmp_path):
  (tmp_path / 'precious.txt').write_text('x')
  with pytest.raises(errors.UserError):
    files.claim_output(tmp_path, 'tool')
  assert [path.name for path in tmp_path.iterdir()] == ['precious.txt']


@pytest.mark.parametrize('lacking', ['link', 'flock'])
def test_a_file_system_without_links_or_locks_will_do(
  tmp_path, monkeypatch, lacking
):
  def refuse(*unused):
    raise OSError(95, 'Operation not supported')

  monkeypatch.setattr(
    *{'link': (os, 'link'), 'flock': (locks.fcntl, 'flock')}[lacking], refuse
  )
  of_dead(tmp_path)
  locks.acquire(tmp_path)
  assert holder_of(tmp_path)['pid'] == os.getpid()
  locks.release_all()
  assert not list(tmp_path.iterdir())


def test_a_file_system_that_takes_nothing_is_one_line(tmp_path, monkeypatch):
  folder = files.claim_output(tmp_path / 'output', 'tool')
  locks.release_all()

  def refuse(*unused, **more):
    raise OSError(30, 'Read-only file system')

  monkeypatch.setattr(pathlib.Path, 'write_text', refuse)
  with pytest.raises(errors.UserError, match='Read-only file system'):
    files.claim_output(folder, 'tool')
