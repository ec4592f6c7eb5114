"""Processes that work together end together, with one line that says why.

All processes of all cases are forks of one driver and run at the same time.
"""

import json
import pathlib
import socket
import subprocess
import sys
import threading
import time
from unittest import mock

import pytest

from odin_jax.shared import errors, meeting

DRIVER = """
import json, os, pathlib, signal, socket, sys, tempfile, time
from odin_jax.shared import command, errors, meeting

folder = pathlib.Path(sys.argv[1])


def done(process, port):
  os.write(1, b'noise of a library')
  os.write(2, b'noise of a library')
  print(f'process {process} has port {port}')


def slow(process, port):
  (folder / f'{os.getpid()}.work').touch()
  time.sleep(60)


def refused(process, port):
  raise errors.UserError('no such\\nfolder')


def bug(process, port):
  raise ValueError('a bug')


def guard_killed(process, port):
  (folder / f'{os.getpid()}.work').touch()
  os.kill(os.getppid(), signal.SIGKILL)
  time.sleep(60)


def killed(process, port):
  os.kill(os.getpid(), signal.SIGKILL)


def stopped(process, port):
  os.kill(os.getppid(), signal.SIGTERM)
  time.sleep(60)


# Signals to the guard; returns when it has handed the signal on.
def asked_to_stop():
  came = []
  signal.signal(signal.SIGTERM, lambda *_: came.append(None))
  os.kill(os.getppid(), signal.SIGTERM)
  while not came:
    time.sleep(0.01)


def own_end(process, port):
  asked_to_stop()
  # A scheduler signals to the work, too.
  os.kill(os.getpid(), signal.SIGTERM)
  raise errors.Unfinished('saved')


def own_end_is_not_waited_for(process, port):
  asked_to_stop()
  os.kill(os.getppid(), signal.SIGTERM)
  slow(process, port)


def own_wait(process, port):
  signal.signal(signal.SIGTERM, signal.SIG_IGN)
  slow(process, port)


def free_port():
  with socket.create_server(('', 0)) as server:
    return server.getsockname()[1]


children = {}
for name, (of, meet_s, works) in json.load(sys.stdin).items():
  port = free_port()
  # Process 0 last: the others try until it is there.
  for index, (process, work) in reversed(list(enumerate(works))):
    streams = [tempfile.TemporaryFile() for _ in range(2)]
    pid = os.fork()
    if not pid:
      meeting.MEET_S = meet_s
      for number, stream in enumerate(streams, 1):
        os.dup2(stream.fileno(), number)
      place = meeting.Place('localhost', port, process, of[index])
      sys.argv = ['test']
      try:
        command.run(
          lambda: meeting.together(
            place,
            lambda port: globals()[work](process, port),
            ends_itself=work.startswith('own_'),
          )
        )
      except SystemExit as stop:
        sys.stdout.flush()
        os._exit(stop.code or 0)
    children[name, index] = pid, streams
results = {}
for (name, index), (pid, streams) in children.items():
  status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
  texts = []
  for stream in streams:
    stream.seek(0)
    texts.append(stream.read().decode())
  results.setdefault(name, {})[index] = [status, *texts]
print(json.dumps(results))
"""
# By name: what each was told of how many there are, seconds until all have to
# have come, and number and work of each.
CASES = {
  'done': ([3] * 3, 60, [(0, 'done'), (1, 'done'), (2, 'done')]),
  'refused': ([3] * 3, 60, [(0, 'slow'), (1, 'refused'), (2, 'slow')]),
  'refused by the first': ([2] * 2, 60, [(0, 'refused'), (1, 'slow')]),
  'bug': ([2] * 2, 60, [(0, 'slow'), (1, 'bug')]),
  'gone': ([3] * 3, 60, [(0, 'slow'), (1, 'guard_killed'), (2, 'slow')]),
  'first is gone': ([2] * 2, 60, [(0, 'guard_killed'), (1, 'slow')]),
  'work is gone': ([2] * 2, 60, [(0, 'slow'), (1, 'killed')]),
  'stopped': ([2] * 2, 60, [(0, 'slow'), (1, 'stopped')]),
  'first is stopped': ([2] * 2, 60, [(0, 'stopped'), (1, 'slow')]),
  'ends itself': ([2] * 2, 60, [(0, 'own_wait'), (1, 'own_end')]),
  'signalled to twice': (
    [2] * 2,
    60,
    [(0, 'own_wait'), (1, 'own_end_is_not_waited_for')],
  ),
  'told otherwise': ([2, 3], 60, [(0, 'done'), (1, 'done')]),
  'twice': ([2] * 2, 2, [(0, 'done'), (0, 'done')]),
  'two of three': ([3] * 2, 2, [(0, 'done'), (1, 'done')]),
  'without the first': ([2], 0.5, [(1, 'done')]),
}


@pytest.fixture(scope='module')
def works(tmp_path_factory):
  """Where works that would last leave their process ids."""
  return tmp_path_factory.mktemp('works')


@pytest.fixture(scope='module')
def results(repository, works):
  done = subprocess.run(
    [sys.executable, '-c', DRIVER, works],
    input=json.dumps(CASES),
    capture_output=True,
    text=True,
    cwd=repository,
    timeout=100,
  )
  assert done.returncode == 0, done.stderr
  return {
    name: [of_case[str(index)] for index in range(len(of_case))]
    for name, of_case in json.loads(done.stdout).items()
  }


def test_all_are_done_with_one_port_and_without_noise(results):
  assert [(status, err) for status, _, err in results['done']] == [(0, '')] * 3
  outs = [out.split() for _, out, _ in results['done']]
  assert [out[:2] for out in outs] == [['process', str(i)] for i in range(3)]
  assert len({out[-1] for out in outs}) == 1 and int(outs[0][-1]) > 0


STOPPED = 'stopped by SIGTERM: what is whole stays; the same command goes on'
GONE = 'process {} is gone; the same commands go on, on all machines'


@pytest.mark.parametrize(
  'name, status, lines',
  [
    (
      'refused',
      2,
      [
        'error: process 1 of 3: no such folder',
        'error: no such folder',
        'error: process 1 of 3: no such folder',
      ],
    ),
    (
      'refused by the first',
      2,
      ['error: no such folder', 'error: process 0 of 2: no such folder'],
    ),
    ('gone', 75, [GONE.format('1 of 3'), None, GONE.format('1 of 3')]),
    ('first is gone', 75, [None, GONE.format('0 of 2')]),
    ('work is gone', 75, [GONE.format('1 of 2')] * 2),
    ('stopped', 75, [f'process 1 of 2: {STOPPED}', STOPPED]),
    ('first is stopped', 75, [STOPPED, f'process 0 of 2: {STOPPED}']),
    ('ends itself', 75, ['process 1 of 2: saved', 'saved']),
  ],
)
def test_one_that_fails_ends_all_with_its_status_and_a_line(
  results, name, status, lines
):
  for (ended, _, stderr), line in zip(results[name], lines, strict=True):
    if line is None:
      assert ended == -9
    else:
      assert (ended, stderr) == (status, f'{line}\n')


def test_what_ends_itself_is_ended_by_a_second_signal(results):
  (first, _, told), (second, _, stderr) = results['signalled to twice']
  # By the system, or by what waits for the signal where it came earlier.
  assert second in (-15, 128 + 15) and not stderr
  assert (first, told) == (75, f'{GONE.format("1 of 2")}\n')


def test_a_bug_keeps_its_traceback_where_it_is(results):
  (first, _, told), (second, _, traceback) = results['bug']
  assert first == second == 1
  assert 'ValueError: a bug' in traceback
  assert told.strip() == (
    'error: process 1 of 2: failed, see its output (ValueError)'
  )


@pytest.mark.parametrize(
  'name, words',
  [
    ('told otherwise', '--num_processes=2: another process was given 3'),
    ('twice', '--process_id=0: '),
    ('two of three', '2 of 3 processes came within 2 s'),
    ('without the first', 'process 0 was not there within 0 s'),
  ],
)
def test_those_that_do_not_belong_together_are_refused(results, name, words):
  for status, out, stderr in results[name]:
    assert status == 2 and out == ''
    assert stderr.startswith('error: ') and stderr.count('\n') == 1
    if name != 'twice':
      assert words in stderr
  if name == 'twice':
    # Which of the two has the address is chance.
    assert any('free here' in stderr for _, _, stderr in results[name])


def is_alive(pid):
  try:
    text = pathlib.Path(f'/proc/{pid}/stat').read_text()
  except OSError:
    return False
  # A zombie waits for a parent that may not care.
  return text.rpartition(')')[2].split()[0] not in 'ZX'


def test_no_work_outlives_its_guard(results, works):
  assert results
  pids = [int(path.stem) for path in works.glob('*.work')]
  assert len(pids) >= 5
  end = time.monotonic() + 20
  while any(map(is_alive, pids)) and time.monotonic() < end:
    time.sleep(0.05)
  assert not any(map(is_alive, pids))


def test_strangers_at_the_port_are_passed_over():
  with socket.create_server(('', 0)) as server:
    port = server.getsockname()[1]
  place = meeting.Place('localhost', port, 0, 2)
  links, theirs = {}, {}
  gathering = threading.Thread(target=meeting._gather, args=(place, links))
  gathering.start()
  for said in (b'', b'GET / HTTP/1.1\r\n\r\n', b'[1]\n', b'{"process": 1\n'):
    end = time.monotonic() + 10
    while time.monotonic() < end:
      try:
        stranger = socket.create_connection(('localhost', port))
        break
      except OSError:
        time.sleep(0.01)
    with stranger:
      stranger.sendall(said)
  meeting._reach(place._replace(process=1), theirs)
  gathering.join(10)
  assert links.keys() == {1}
  for link in (*links.values(), *theirs.values()):
    link.stream.close()


def test_the_name_of_a_host_that_a_scheduler_starts_may_come_late(monkeypatch):
  tries = []

  def connect(*_, **__):
    tries.append(None)
    if len(tries) < 3:
      raise socket.gaierror(-2, 'Name or service not known')
    return mock.Mock(spec=socket.socket)

  monkeypatch.setattr(socket, 'create_connection', connect)
  monkeypatch.setattr(meeting, '_RETRY_S', 0.01)
  place = meeting.Place('late', 1, 1, 2)
  with pytest.raises(errors.UserError, match='--coordinator=late:1: .*Name'):
    meeting._reach(place, {})
  links = {}
  meeting._reach(place._replace(is_told=True), links)
  assert links.keys() == {0} and len(tries) == 3
