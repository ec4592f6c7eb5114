"""The Ray engine: the same bytes as without it, whatever dies on the way."""

from concurrent import futures
import dataclasses
import os
import pathlib
import signal
import subprocess
import sys
import threading
import time
from unittest import mock

import numpy as np
import pytest
import yaml

from odin_jax.shared import errors
from preprocessing import matchers
from preprocessing.matchers import sphere
from preprocessing.running import ray_engine, workers
from preprocessing.writing import parts
from tests.helpers import tiny_videos

_STORE = {'object_store_memory': 100 * 2**20}


@pytest.fixture(scope='module', autouse=True)
def environment():
  """No secret in the home folder of who runs the tests, and no report home."""
  with pytest.MonkeyPatch.context() as patch:
    patch.setenv('RAY_AUTH_MODE', 'disabled')
    patch.setenv('RAY_USAGE_STATS_ENABLED', '0')
    yield


@pytest.fixture(scope='module')
def videos(tmp_path_factory):
  """Two videos, and two files that are none."""
  folder = tmp_path_factory.mktemp('videos')
  broken = [folder / 'broken.mp4', folder / 'broken_too.mp4']
  for path in broken:
    path.write_bytes(b'no video at all' * 50)
  return [*tiny_videos.write(folder, 2), *broken]


@pytest.fixture(scope='module')
def undisturbed(videos, tmp_path_factory):
  """What a run without Ray gives: outcomes and files."""
  errors, contents = finished(
    videos,
    tmp_path_factory.mktemp('undisturbed'),
    lambda jobs: workers.run(jobs, num_workers=1),
  )
  assert [name for name, error in errors.items() if error] == [
    'broken',
    'broken_too',
  ]
  return errors, contents


def finished(videos, output, run):
  jobs = tiny_videos.jobs(videos, output)
  outcomes = tiny_videos.finish(videos, output, run(jobs))
  errors = {name: outcome.error for name, outcome in outcomes.items()}
  return errors, tiny_videos.contents(output)


@pytest.fixture(scope='module')
def cluster():
  """Two machines in appearance: a head and one more, of one core each."""
  from ray import cluster_utils

  cluster = cluster_utils.Cluster(
    initialize_head=True,
    head_node_args={'num_cpus': 1, 'include_dashboard': False, **_STORE},
  )
  yield cluster
  cluster.shutdown()


def tasks_of(raylet):
  """Processes of a node that are at a task of the engine."""
  children = pathlib.Path(f'/proc/{raylet.pid}/task/{raylet.pid}/children')
  tasks = []
  for child in children.read_text().split():
    title = pathlib.Path(f'/proc/{child}/cmdline')
    if title.exists() and title.read_bytes().startswith(b'ray::_do'):
      tasks.append(int(child))
  return tasks


def lose(raylet, lost):
  """Kills a node's raylet, with which its tasks go, once a task is there."""
  while not (tasks := tasks_of(raylet)):
    time.sleep(0.01)
  lost += tasks
  os.kill(raylet.pid, signal.SIGKILL)
  # A zombie would pass for a raylet that lives.
  raylet.wait()


def test_a_lost_node_changes_nothing(cluster, videos, undisturbed, tmp_path):
  node = cluster.add_node(num_cpus=1, **_STORE)
  raylet = node.all_processes['raylet'][0].process
  lost = []
  thread = threading.Thread(target=lose, args=(raylet, lost), daemon=True)
  thread.start()
  rules = ray_engine.Rules(address=cluster.address)
  results = finished(videos, tmp_path, lambda jobs: ray_engine.run(jobs, rules))
  thread.join()
  assert lost
  assert results == undisturbed


def test_a_task_that_dies_each_time_is_given_up(cluster, videos, tmp_path):
  """Needs the node that the test before has left."""
  raylet = cluster.head_node.all_processes['raylet'][0].process
  over = threading.Event()

  def kill_tasks():
    while not over.is_set():
      for task in tasks_of(raylet):
        os.kill(task, signal.SIGKILL)
      time.sleep(0.02)

  thread = threading.Thread(target=kill_tasks, daemon=True)
  thread.start()
  rules = ray_engine.Rules(address=cluster.address, max_attempts=2)
  (job,) = tiny_videos.jobs(videos[:1], tmp_path)
  (outcome,) = ray_engine.run([job], rules)
  over.set()
  thread.join()
  assert outcome.error.startswith(f'{job.path}: the worker died 2 times (')
  assert not tiny_videos.contents(tmp_path)


def test_a_folder_that_a_node_does_not_see_is_named(cluster, videos, tmp_path):
  (job,) = tiny_videos.jobs(videos[:1], tmp_path)
  job = dataclasses.replace(job, path=tmp_path / 'elsewhere' / 'film.mp4')
  rules = ray_engine.Rules(address=cluster.address)
  with pytest.raises(errors.UserError) as error:
    list(ray_engine.run([job], rules))
  assert str(error.value).startswith(f'{tmp_path}/elsewhere: ')
  assert 'does not see this folder' in str(error.value)
  assert not tiny_videos.contents(tmp_path)


def test_matcher_actors_change_nothing(cluster, videos, undisturbed, tmp_path):
  rules = ray_engine.Rules(address=cluster.address, matcher_actors=2)
  errors, contents = finished(
    videos[:1], tmp_path, lambda jobs: ray_engine.run(jobs, rules)
  )
  assert errors == {'000': ''}
  for path in parts.paths('', '000'):
    assert contents[str(path)] == undisturbed[1][str(path)]


def test_a_local_cluster_gives_the_same_bytes(videos, undisturbed, tmp_path):
  taken, done = [], []

  def run(jobs):
    def one_by_one():
      for job in jobs:
        taken.append(job)
        yield job

    rules = ray_engine.Rules(num_workers=1, object_store_mb=100)
    for event in ray_engine.run(one_by_one(), rules):
      done.append(event)
      # The core's video and the next one.
      assert len(taken) <= len(done) + 2
      yield event

  assert finished(videos, tmp_path, run) == undisturbed


def test_the_command_gives_the_same_bytes(videos, repository, tmp_path):
  outputs = []
  for engine in ('local', 'ray'):
    outputs.append(tmp_path / engine)
    done = subprocess.run(
      [
        sys.executable,
        *('-m', 'preprocessing.run', '--config=configs/preprocess.py'),
        f'--input={videos[0].parent}',
        f'--output={outputs[-1]}',
        f'--engine={engine}',
        '--num_workers=1',
        '--config.panorama_records=True',
        *tiny_videos.ARGUMENTS,
      ],
      cwd=repository,
      capture_output=True,
      text=True,
      check=False,
    )
    assert done.returncode == 0, done.stderr
  local, ray = map(tiny_videos.contents, outputs)
  assert local == ray
  assert b'broken.mp4' in local['ledger.jsonl']
  assert 'panoramas/index.npz' in local


def test_no_jobs_need_no_cluster():
  rules = ray_engine.Rules(address='127.0.0.1:1')
  assert not list(ray_engine.run([], rules))


@pytest.mark.parametrize(
  'address,says',
  [
    ('127.0.0.1:1', 'no Ray cluster answers there'),
    ('ray://127.0.0.1:1', 'give auto or IP:PORT'),
    ('127.0.0.1', 'give auto or IP:PORT'),
  ],
)
def test_an_address_without_a_cluster_is_refused(
  videos, tmp_path, address, says
):
  jobs = tiny_videos.jobs(videos, tmp_path)
  with pytest.raises(errors.UserError) as error:
    list(ray_engine.run(jobs, ray_engine.Rules(address=address)))
  assert str(error.value).startswith(f'--ray_address={address}: {says}')


def test_gpus_that_are_not_there_are_not_waited_for(videos, tmp_path):
  rules = ray_engine.Rules(
    num_workers=1,
    matcher_actors=1000,
    gpus_per_actor=0.5,
    object_store_mb=100,
  )
  with pytest.raises(errors.UserError, match='1000 matcher actors with 0.5'):
    list(ray_engine.run(tiny_videos.jobs(videos, tmp_path), rules))


class Actor:
  """In place of a Ray actor: notes the calls and answers at once."""

  def __init__(self):
    self.calls = []
    self.call = self

  def remote(self, *arguments, **more):
    self.calls.append((*arguments, more))
    return self

  def future(self):
    return self

  def result(self):
    answers = {
      'describe': FEATURES,
      'match': np.zeros((0, 2), np.int64),
      'calls_bound': 9,
    }
    # What was asked, and that it cost two calls.
    return answers[self.calls[-1][1]], 2


FEATURES = matchers.Features(
  rays=np.eye(3),
  noise_rad=np.ones(3),
  descriptors=np.eye(3, dtype=np.float32),
)


def test_a_remote_matcher_passes_on_what_it_is_asked():
  actor = Actor()
  remote = ray_engine.RemoteMatcher('sphere', actor, 'walk')
  assert isinstance(remote, matchers.Matcher)
  picture = np.zeros((2, 4, 3), np.uint8)
  assert remote.describe(picture) is FEATURES
  options = {'expected': None, 'gate_rad': 0.1}
  assert remote.match(FEATURES, FEATURES, **options).shape == (0, 2)
  assert actor.calls == [
    ('walk', 'describe', picture, {}),
    ('walk', 'match', FEATURES, FEATURES, options),
  ]


def test_a_remote_matcher_counts_the_calls_of_its_video():
  remote = ray_engine.RemoteCountingMatcher('dust3r', Actor(), 'walk')
  assert isinstance(remote, matchers.CountsCalls) and remote.calls == 0
  remote.match(FEATURES, FEATURES, expected=None, gate_rad=0.1)
  remote.match(FEATURES, FEATURES, expected=None, gate_rad=0.1)
  assert remote.calls == 4
  assert remote.calls_bound(3, 2) == 9
  assert not isinstance(
    ray_engine.RemoteMatcher('sphere', Actor(), 'walk'), matchers.CountsCalls
  )


class Here:
  """In place of a Ray actor: an object of this process."""

  def __init__(self, held):
    self._held = held

  def __getattr__(self, method):
    def answer(*arguments):
      future = futures.Future()
      future.set_result(getattr(self._held, method)(*arguments))
      return mock.Mock(future=lambda: future)

    return mock.Mock(remote=answer)


def test_records_have_the_name_that_the_remote_matcher_gives_itself():
  """Not its name in the config, which a run without actors never asks for."""
  server = ray_engine._MatcherServer(
    matchers.Settings(name='renamed', module=__name__, options={})
  )
  remote = ray_engine.remote_matcher(Here(server), 'walk')
  assert type(remote) is ray_engine.RemoteMatcher and remote.name == 'sphere'


def test_workers_find_modules_where_the_user_does(monkeypatch, repository):
  monkeypatch.delenv('PYTHONPATH', raising=False)
  assert ray_engine._python_path() == str(repository)
  monkeypatch.setenv('PYTHONPATH', '/own')
  assert ray_engine._python_path() == f'{repository}{os.pathsep}/own'


def make(options):
  """As a matcher's module."""
  return sphere.make({**sphere.OPTIONS, **options})


def test_cluster_file_is_what_ray_expects(repository):
  from ray.autoscaler._private import util

  path = repository / 'launch' / 'preprocess_ray.yaml'
  config = util.prepare_config(yaml.safe_load(path.read_text()))
  util.validate_config(config)
  for local in config['file_mounts'].values():
    assert local.startswith('~') or (repository / local).exists()
  assert set(config['available_node_types']) == {'head', 'cpu', 'gpu'}
