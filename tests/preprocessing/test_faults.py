"""A run that is cut off at any moment goes on as if nothing had happened."""

import errno
import os
import pathlib
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time

import pytest

from odin_jax.shared import locks
from tests.helpers import tiny_videos

_NUM_KILLS = 8
_TICKS_PER_S = os.sysconf('SC_CLK_TCK')
_POLL_S = 0.02
_END_S = 30


def command(videos, output):
  return [
    sys.executable,
    *('-m', 'preprocessing.run', '--config=configs/preprocess.py'),
    f'--input={videos}',
    f'--output={output}',
    '--num_workers=1',
    *tiny_videos.ARGUMENTS,
  ]


def start(repository, videos, output, stderr=subprocess.DEVNULL):
  """A run in a session of its own, so that all its processes are known."""
  return subprocess.Popen(
    command(videos, output),
    cwd=repository,
    stdout=subprocess.DEVNULL,
    stderr=stderr,
    text=True,
    start_new_session=True,
  )


def run(repository, videos, output, **options):
  return subprocess.run(
    command(videos, output),
    cwd=repository,
    capture_output=True,
    text=True,
    check=False,
    **options,
  )


def cpu_seconds(session):
  """Of every living process of a session, by its number."""
  seconds = {}
  for path in pathlib.Path('/proc').glob('[0-9]*/stat'):
    try:
      fields = path.read_text().rpartition(')')[2].split()
    except OSError:
      continue
    if fields[0] != 'Z' and int(fields[3]) == session:
      ticks = int(fields[11]) + int(fields[12])
      seconds[int(path.parent.name)] = ticks / _TICKS_PER_S
  return seconds


def assert_nothing_runs(session):
  """Python's own resource tracker ends only once it sees its parent gone."""
  deadline = time.monotonic() + _END_S
  while left := cpu_seconds(session):
    assert time.monotonic() < deadline, left
    time.sleep(_POLL_S)


def follow(process, until_s):
  """Waits until so much computing is done; returns how much was seen."""
  seconds = {}
  while process.poll() is None and sum(seconds.values()) < until_s:
    seconds.update(cpu_seconds(process.pid))
    time.sleep(_POLL_S)
  return sum(seconds.values())


@pytest.fixture(scope='module')
def videos(tmp_path_factory):
  folder = tmp_path_factory.mktemp('videos')
  tiny_videos.write(folder, 2)
  return folder


@pytest.fixture(scope='module')
def undisturbed(videos, repository, tmp_path_factory):
  """The contents of a run's folder, and the seconds of computing it took."""
  output = tmp_path_factory.mktemp('undisturbed') / 'records'
  process = start(repository, videos, output)
  seconds = follow(process, float('inf'))
  assert process.wait() == 0
  return tiny_videos.contents(output), seconds


def test_killed_at_any_moment(videos, undisturbed, repository, tmp_path):
  """Moments are of computing, which other load of the machine moves little.

  A run that was killed is started again, and that one killed too, until one
  ends by itself.
  """
  expected, seconds = undisturbed
  rng = random.Random(0)
  hits = 0
  states = set()
  output = tmp_path / 'records'
  while True:
    whole = written_at(output)
    process = start(repository, videos, output)
    if hits < _NUM_KILLS:
      follow(process, rng.random() * seconds)
    else:
      follow(process, float('inf'))
    # The parent alone, whose children must follow, or all at once.
    if process.poll() is None:
      (os.kill, os.killpg)[hits % 2](process.pid, signal.SIGKILL)
      hits += 1
    ended = process.wait() == 0
    assert_nothing_runs(process.pid)
    assert whole.items() <= written_at(output).items()
    if ended:
      assert tiny_videos.contents(output) == expected
      if hits == _NUM_KILLS:
        break
      shutil.rmtree(output)
    else:
      assert process.returncode == -signal.SIGKILL
      if output.is_dir():
        states.add(frozenset(tiny_videos.contents(output)))
  assert len(states) >= 2


def limit_file_size(limit):
  return lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))


def test_a_disk_that_takes_no_more_stops_the_run_for_now(
  videos, undisturbed, repository, tmp_path
):
  output = tmp_path / 'records'
  smallest = min(
    len(data) for name, data in undisturbed[0].items() if name.endswith('.part')
  )
  done = run(
    repository, videos, output, preexec_fn=limit_file_size(smallest - 1)
  )
  assert done.returncode == 2
  (line,) = (
    line for line in done.stderr.splitlines() if line.startswith('error: ')
  )
  # What grows first is the file of keyframes.
  assert tempfile.gettempdir() in line and os.strerror(errno.EFBIG) in line
  assert 'Traceback' not in done.stderr
  assert set(tiny_videos.contents(output)) == {'.odin_output.json'}
  done = run(repository, videos, output)
  assert done.returncode == 0, done.stderr
  assert tiny_videos.contents(output) == undisturbed[0]


def written_at(output):
  """When each part was written whose note says that it is whole."""
  notes = (output / 'parts').glob('[!.]*.json')
  return {path.name: path.stat().st_mtime_ns for path in notes}


def damage(path):
  data = bytearray(path.read_bytes())
  data[len(data) // 2] ^= 1
  path.write_bytes(data)


def test_damaged_parts_are_made_again(
  videos, undisturbed, repository, tmp_path
):
  output = tmp_path / 'records'
  for name, data in undisturbed[0].items():
    (output / name).parent.mkdir(parents=True, exist_ok=True)
    (output / name).write_bytes(data)
  damage(output / 'parts' / '000.part')
  (output / 'parts' / '001.json').write_text('{"fingerprint": ')
  done = run(repository, videos, output)
  assert done.returncode == 0, done.stderr
  assert tiny_videos.contents(output) == undisturbed[0]


def wait_for(process, path, text=''):
  while not (path.exists() and text in path.read_text()):
    assert process.poll() is None, process.communicate()[1]
    time.sleep(_POLL_S)


def test_stops_and_a_second_run_cost_nothing(
  videos, undisturbed, repository, tmp_path
):
  output = tmp_path / 'records'
  lock = output / locks.NAME
  # From a terminal, which tells all processes, and from a scheduler.
  for number, end, begun in (
    (signal.SIGINT, os.killpg, lock),
    (signal.SIGTERM, os.kill, output / 'parts' / '000.json'),
  ):
    process = start(repository, videos, output, stderr=subprocess.PIPE)
    wait_for(process, lock, f'"pid": {process.pid},')
    if number == signal.SIGINT:
      second = run(repository, videos, output)
      assert second.returncode == 2 and second.stderr.count('\n') == 1
      assert f'process {process.pid} is writing here' in second.stderr
    wait_for(process, begun)
    end(process.pid, number)
    _, stderr = process.communicate(timeout=120)
    assert process.returncode == os.EX_TEMPFAIL, stderr
    assert 'Traceback' not in stderr
    assert stderr.splitlines()[-1].startswith(f'stopped by {number.name}:')
    assert_nothing_runs(process.pid)
    assert not lock.exists()
    for name, data in tiny_videos.contents(output).items():
      assert undisturbed[0][name] == data
  done = run(repository, videos, output)
  assert done.returncode == 0, done.stderr
  assert tiny_videos.contents(output) == undisturbed[0]
