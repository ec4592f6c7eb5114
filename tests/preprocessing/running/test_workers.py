"""Videos in processes that may die: what each costs the others."""

import dataclasses
import errno
import multiprocessing
import os
import signal
import subprocess
import sys
import time

import pytest

from odin_jax.shared import errors
from preprocessing import video
from preprocessing.running import pool, workers
from preprocessing.writing import parts
from tests.helpers import tiny_videos
from tests.helpers.faulty_tasks import Task, work


def each(tasks, num_workers=2, max_attempts=2):
  return pool.each(
    work,
    tasks,
    num_workers=num_workers,
    max_attempts=max_attempts,
    lost=lambda task, reason: (task.name, reason),
  )


def results_and_attempts(events):
  results, attempts = {}, {}
  for event in events:
    if event[0] == 'begun':
      attempts[event[1]] = attempts.get(event[1], 0) + 1
    else:
      assert event[0] not in results
      results[event[0]] = event[1]
  return results, attempts


def test_a_process_that_dies_costs_only_its_job(tmp_path):
  tasks = [
    Task('a'),
    Task('b', 'killed'),
    Task('c', 'killed once', tmp_path),
    Task('d', 'crash'),
    Task('e', 'exit'),
    Task('f'),
  ]
  results, attempts = results_and_attempts(each(tasks))
  assert set(results) == set('abcdef')
  assert all(results[name] == pool.SINGLE_THREADED for name in 'acf')
  assert results['b'] == 'the worker died 2 times (signal 9, Killed)'
  assert results['d'].startswith('the worker died 2 times (signal 11, ')
  assert results['e'] == 'the worker died 2 times (status 3)'
  assert attempts == {'a': 1, 'b': 2, 'c': 2, 'd': 2, 'e': 2, 'f': 1}
  assert not multiprocessing.active_children()


def test_jobs_are_taken_as_there_are_processes_for_them():
  taken, done = [], 0

  def tasks():
    for name in 'abcdef':
      taken.append(name)
      yield Task(name)

  for event in each(tasks()):
    if event[0] != 'begun':
      done += 1
      assert len(taken) <= done + 1
  assert done == len(taken) == 6


def test_what_the_user_must_mend_ends_all_jobs(tmp_path):
  """Also those at work, which remove what they had not finished."""
  tasks = [Task('a', 'unfinished', tmp_path), Task('b', 'user'), Task('c')]
  with pytest.raises(errors.UserError, match='no room'):
    for event in each(tasks):
      if event == ('begun', 'b', event[2]):
        wait_for(tmp_path / 'a')
  assert not list(tmp_path.iterdir())
  assert not multiprocessing.active_children()


def test_the_keyboard_leaves_processes_that_start_to_their_parent(repository):
  done = subprocess.run(
    [sys.executable, '-m', 'tests.helpers.interrupted_starts'],
    capture_output=True,
    text=True,
    cwd=repository,
  )
  assert done.returncode == 0 and 'Traceback' not in done.stderr, done.stderr


def wait_for(path):
  while not path.exists():
    time.sleep(0.01)


@pytest.fixture(scope='module')
def videos(tmp_path_factory):
  return tiny_videos.write(tmp_path_factory.mktemp('videos'), 2)


@pytest.fixture(scope='module')
def undisturbed(videos, tmp_path_factory):
  output = tmp_path_factory.mktemp('undisturbed')
  events = workers.run(tiny_videos.jobs(videos, output), num_workers=1)
  outcomes = tiny_videos.finish(videos, output, events)
  assert not any(outcome.error for outcome in outcomes.values())
  return tiny_videos.contents(output)


def test_any_number_of_workers_gives_the_same_bytes(
  videos, undisturbed, tmp_path
):
  events = list(workers.run(tiny_videos.jobs(videos, tmp_path), num_workers=2))
  tiny_videos.finish(videos, tmp_path, events)
  assert tiny_videos.contents(tmp_path) == undisturbed
  reports = [event for event in events if isinstance(event, workers.Report)]
  assert {report.video_id for report in reports} == {'000', '001'}
  assert all(0 <= report.share <= 1 for report in reports)


def killing(events, times):
  """Kills the only worker at the first reports that come."""
  for event in events:
    if isinstance(event, workers.Report) and times:
      times -= 1
      (child,) = multiprocessing.active_children()
      os.kill(child.pid, signal.SIGKILL)
      child.join()
    yield event


def test_a_killed_worker_is_replaced(videos, undisturbed, tmp_path):
  events = workers.run(tiny_videos.jobs(videos, tmp_path), num_workers=1)
  tiny_videos.finish(videos, tmp_path, killing(events, 1))
  assert tiny_videos.contents(tmp_path) == undisturbed


def test_a_video_that_kills_its_workers_is_given_up(videos, tmp_path):
  (job,) = tiny_videos.jobs(videos[:1], tmp_path)
  (tmp_path / 'parts').mkdir()
  (tmp_path / 'parts' / '.tmp-000.part').write_text('of a killed worker')
  events = workers.run([job], num_workers=1, max_attempts=2)
  *_, outcome = killing(events, 9)
  assert outcome.error == (
    f'{job.path}: the worker died 2 times (signal 9, Killed)'
  )
  assert not tiny_videos.contents(tmp_path)


def test_an_unexpected_error_costs_only_its_video(
  videos, undisturbed, tmp_path, capfd
):
  good, bad = tiny_videos.jobs(videos, tmp_path)
  matching = dataclasses.replace(
    bad.settings.matching,
    options={**bad.settings.matching.options, 'gate': 1.0},
  )
  bad = dataclasses.replace(
    bad, settings=dataclasses.replace(bad.settings, matching=matching)
  )
  outcomes = {
    event.video_id: event
    for event in workers.run([bad, good], num_workers=1)
    if isinstance(event, workers.Outcome)
  }
  assert outcomes['000'].error == ''
  assert outcomes['001'].error.startswith(f'{bad.path}: TypeError: ')
  assert "'gate'" in outcomes['001'].error
  assert '\n' not in outcomes['001'].error
  assert 'Traceback' in capfd.readouterr().err
  left = set(tiny_videos.contents(tmp_path))
  assert {'parts/000.part', 'parts/000.json'} <= left
  assert not any('001' in name for name in left)


def test_output_that_takes_no_more_is_named(videos, tmp_path, monkeypatch):
  def write(*arguments, **more):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

  monkeypatch.setattr(parts, 'write', write)
  job, *_ = tiny_videos.jobs(videos, tmp_path)
  with pytest.raises(errors.UserError) as error:
    workers.make_part(job, lambda report: None)
  assert str(tmp_path) in str(error.value)
  assert os.strerror(errno.ENOSPC) in str(error.value)
  assert not parts.is_done(tmp_path, job.video_id, job.fingerprint())


def test_the_end_of_a_worker_is_no_error_of_its_video(
  videos, tmp_path, monkeypatch, capfd
):
  def interrupted(*arguments):
    # What Python makes of SystemExit where a library was calling back.
    raise SystemError('a callback returned a result with an exception set')

  monkeypatch.setattr(video, 'process', interrupted)
  monkeypatch.setattr(pool, '_is_ending', True)
  job, *_ = tiny_videos.jobs(videos, tmp_path)
  with pytest.raises(SystemExit):
    workers.make_part(job, lambda report: None)
  assert 'Traceback' not in capfd.readouterr().err


def test_a_worker_that_is_told_to_end_says_nothing_more(monkeypatch):
  here, there = multiprocessing.Pipe()

  def work(job, tell):
    monkeypatch.setattr(pool, '_is_ending', True)
    return workers.Outcome(video_id=job, error='cannot be decoded')

  monkeypatch.setattr(pool, '_follow_parent', lambda: None)
  monkeypatch.setattr(pool.signal, 'signal', lambda *_: None)
  here.send('000')
  with pytest.raises(SystemExit):
    pool._serve(work, there)
  assert not here.poll()


def test_nothing_of_another_config_stays_beside_a_part(videos, tmp_path):
  job, *_ = tiny_videos.jobs(videos, tmp_path)
  folders = [tmp_path / name / job.video_id for name in ('cameras', 'rejected')]
  for folder in folders:
    folder.mkdir(parents=True)
    (folder / 'stale.jpg').touch()
  assert not workers.make_part(job, lambda report: None).error
  left = set(tiny_videos.contents(tmp_path))
  assert not any('stale' in name for name in left)
  path = folders[0] / 'path.json'
  written = path.stat().st_mtime_ns
  # A part that is whole stays; one that lacks its cameras is made again.
  assert not workers.make_part(job, lambda report: None).error
  assert path.stat().st_mtime_ns == written
  path.unlink()
  assert not workers.make_part(job, lambda report: None).error
  assert set(tiny_videos.contents(tmp_path)) == left


def test_only_what_a_part_depends_on_is_in_its_fingerprint(videos, tmp_path):
  def fingerprint(**fields):
    job, *_ = tiny_videos.jobs(videos, tmp_path, **fields)
    return job.fingerprint()

  assert fingerprint() == fingerprint(max_bad_share=0.9)
  assert fingerprint() != fingerprint(seed=1)
