"""Videos to parts of the output folder, on the machines of a Ray cluster.

One task per video, at most so many at a time that every core has its next one
ready. Videos and output lie on a file system that all machines share under the
same paths, and so does this checkout: a task writes its part there itself and
returns a few words, so nothing large passes through Ray's object store. Only
with matcher actors do panoramas and features, one call at a time per task.

A task whose machine is taken away is begun again elsewhere, while the first
attempt may still be writing where the network alone was cut. Therefore each
attempt writes into a folder of its own and moves what is whole.
"""

import collections
import contextlib
import dataclasses
import itertools
import json
import os
import pathlib
import secrets
import shutil
import signal
import socket
from typing import Any, Iterable, Iterator, Sequence

import numpy as np

from odin_jax.shared import command, cores, errors, files
from preprocessing import matchers
from preprocessing.running import pool, workers
from preprocessing.writing import parts

# So many tasks per core are handed to Ray: one at work, one waiting.
_TASKS_PER_CORE = 2
_CONNECT_S = 10.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rules:
  """How the cluster is used.

  Attributes:
    address: of a cluster that runs, from one of its machines: `auto` or
      `IP:PORT`; '': one is started on this machine and ended with the run.
    num_workers: cores of the cluster that is started; 0: all.
    max_attempts: how often a video is begun, when machines or processes die.
    matcher_actors: processes that describe and match for all tasks, such as a
      network on GPUs; 0: every task does so itself.
    gpus_per_actor: share of a GPU that each of them holds; 0: they use the
      cores of the tasks, which wait meanwhile.
    object_store_mb: shared memory of the cluster that is started.
  """

  address: str = ''
  num_workers: int = 0
  max_attempts: int = workers.MAX_ATTEMPTS
  matcher_actors: int = 0
  gpus_per_actor: float = 0.0
  object_store_mb: int = 256


def run(
  jobs: Iterable[workers.Job], rules: Rules
) -> Iterator[workers.Report | workers.Outcome]:
  """Does all jobs; yields one outcome per job, in the order of their ends.

  Args:
    jobs: of one output folder; taken as there is room for them.
    rules: see there.

  Raises:
    errors.UserError: there is no such cluster, a machine of it does not see
      the shared folders, or no video can be done.
  """
  jobs = iter(jobs)
  first = next(jobs, None)
  if first is None:
    return
  # Left in reverse order: no task writes any more when the folder goes.
  with _scratch(first.output) as token, _cluster(rules):
    servers = _Servers(_start_actors(first, rules))
    yield from _run(itertools.chain([first], jobs), rules, token, servers)


def _run(
  jobs: Iterable[workers.Job],
  rules: Rules,
  token: str,
  servers: '_Servers',
) -> Iterator[workers.Outcome]:
  import ray

  # Attempts are counted here: Ray's own retries have no limit for tasks that
  # run out of memory, and do not tell why they were needed.
  task = ray.remote(num_cpus=1, max_retries=0)(_do)
  todo = ((job, 1) for job in jobs)
  again: collections.deque[tuple[workers.Job, int]] = collections.deque()
  running: dict[Any, tuple[workers.Job, int, Any]] = {}
  while True:
    while len(running) < _limit() and (entry := pool.next_task(todo, again)):
      actor = servers.take()
      ref = task.remote(_absolute(entry[0]), token, actor)
      running[ref] = *entry, actor
    if not running:
      return
    done, _ = ray.wait(list(running))
    for ref in done:
      job, attempt, actor = running.pop(ref)
      servers.give_back(actor)
      outcome, fault = _result(ref)
      if outcome:
        yield _as_given(outcome, job)
      elif attempt < rules.max_attempts:
        again.append((job, attempt + 1))
      else:
        reason = f'the worker died {attempt} times ({fault})'
        yield workers.give_up(job, reason)


def _limit() -> int:
  """Tasks at a time; more as an autoscaler adds machines."""
  import ray

  cores = int(ray.cluster_resources().get('CPU', 0))
  return _TASKS_PER_CORE * max(1, cores)


def _result(ref: Any) -> tuple[workers.Outcome | None, str]:
  """The outcome of a task that is over, or the fault that it met."""
  import ray
  from ray import exceptions

  try:
    return ray.get(ref), ''
  except exceptions.RayTaskError as error:
    if not isinstance(error.cause, workers.Fault):
      raise error.cause from error
    return None, str(error.cause)
  except (
    exceptions.WorkerCrashedError,
    exceptions.NodeDiedError,
    exceptions.OutOfMemoryError,
    exceptions.ObjectLostError,
  ) as error:
    return None, str(error).partition('. ')[0]


def _absolute(job: workers.Job) -> workers.Job:
  """The job for processes that were started in another folder."""
  return dataclasses.replace(
    job, path=job.path.absolute(), output=job.output.absolute()
  )


def _as_given(outcome: workers.Outcome, job: workers.Job) -> workers.Outcome:
  """Names the video as the user did, like a run without Ray."""
  error = outcome.error.replace(str(job.path.absolute()), str(job.path))
  return dataclasses.replace(outcome, error=error)


def _do(job: workers.Job, token: str, actor: Any) -> workers.Outcome:
  """A task: one attempt at a job."""
  pool.prepare()
  _check_view(job, token)
  matcher = None
  if actor:
    matcher = remote_matcher(actor, job.video_id)
  scratch = job.output / parts.SCRATCH / secrets.token_hex(8)
  try:
    outcome = workers.make_part(
      job,
      lambda report: None,
      matcher=matcher,
      folder=scratch,
    )
    if scratch.is_dir():
      _move(scratch, job)
  finally:
    shutil.rmtree(scratch, ignore_errors=True)
    if actor:
      actor.end.remote(job.video_id)
  return outcome


def _move(scratch: pathlib.Path, job: workers.Job) -> None:
  """Moves all files of a part; its note, which tells it whole, comes last."""
  _, note = parts.paths(scratch, job.video_id)
  paths = sorted(path for path in scratch.rglob('*') if path.is_file())
  for path in sorted(paths, key=lambda path: path == note):
    target = job.output / path.relative_to(scratch)
    target.parent.mkdir(parents=True, exist_ok=True)
    os.replace(path, target)


def _python_path() -> str:
  """Where workers find modules: here, and where the user keeps matchers."""
  own = os.environ.get('PYTHONPATH')
  return os.pathsep.join([str(command.REPOSITORY), *([own] if own else [])])


@contextlib.contextmanager
def _scratch(output: pathlib.Path) -> Iterator[str]:
  """A folder for what is unfinished, with a token that tells it from others."""
  folder = output / parts.SCRATCH
  parts.remove_scratch(output)
  folder.mkdir(parents=True)
  token = secrets.token_hex(16)
  files.write_json(folder / 'token.json', token)
  try:
    yield token
  finally:
    shutil.rmtree(folder, ignore_errors=True)


def _check_view(job: workers.Job, token: str) -> None:
  """Whether this machine sees the folders that the driver sees.

  Raises:
    errors.UserError: it sees none, or others of the same names.
  """
  path = job.output / parts.SCRATCH / 'token.json'
  if not path.is_file() or json.loads(path.read_text()) != token:
    missing = job.output
  elif not job.path.parent.is_dir():
    missing = job.path.parent
  else:
    return
  raise errors.UserError(
    f'{missing}: {socket.gethostname()} does not see this folder of the '
    'machine that started the run; mount one file system under the same path '
    'on all machines of the cluster'
  )


@contextlib.contextmanager
def _cluster(rules: Rules) -> Iterator[None]:
  """Connects to a cluster, or starts one here and ends it."""
  import ray

  os.environ.setdefault('RAY_USAGE_STATS_ENABLED', '0')
  environment = {'PYTHONPATH': _python_path(), **pool.SINGLE_THREADED}
  if rules.address:
    cluster = {'address': rules.address}
  else:
    cluster = {
      'address': 'local',
      'num_cpus': rules.num_workers or cores.count(),
      'object_store_memory': rules.object_store_mb * 2**20,
      'include_dashboard': False,
    }
  handler = signal.getsignal(signal.SIGTERM)
  try:
    _require_server(rules.address)
    ray.init(
      **cluster,
      runtime_env={'env_vars': environment},
      logging_level='ERROR',
    )
  except (ConnectionError, TimeoutError, socket.gaierror) as error:
    raise errors.UserError(
      f'--ray_address={rules.address}: no Ray cluster answers there; start '
      'one (launch/preprocess_ray.yaml), or leave the address out'
    ) from error
  # Ray has set its own, after which no run says that it is unfinished.
  if handler is not None:
    signal.signal(signal.SIGTERM, handler)
  try:
    yield
  finally:
    ray.shutdown()


def _require_server(address: str) -> None:
  """Asks whether anybody listens there; Ray would do so for two minutes.

  Raises:
    ConnectionError, TimeoutError, socket.gaierror: nobody does.
    errors.UserError: it is no address.
  """
  if address in ('', 'auto'):
    return
  host, _, port = address.rpartition(':')
  if not (host and port.isdigit()) or '/' in host:
    raise errors.UserError(f'--ray_address={address}: give auto or IP:PORT')
  socket.create_connection((host, int(port)), _CONNECT_S).close()


def _start_actors(job: workers.Job, rules: Rules) -> list[Any]:
  """The matcher's own processes.

  Raises:
    errors.UserError: this machine lacks the GPUs for them.
  """
  import ray

  needed = rules.matcher_actors * rules.gpus_per_actor
  # A cluster elsewhere may start machines with GPUs for them.
  if not rules.address and needed > ray.cluster_resources().get('GPU', 0):
    raise errors.UserError(
      f'{rules.matcher_actors} matcher actors with {rules.gpus_per_actor} of a '
      'GPU each: this machine has fewer GPUs; ask for less or give '
      '--ray_address'
    )
  server = ray.remote(
    num_cpus=0,
    num_gpus=rules.gpus_per_actor,
    max_restarts=-1,
    max_task_retries=rules.max_attempts,
  )(_MatcherServer)
  return [
    server.remote(job.settings.matching) for _ in range(rules.matcher_actors)
  ]


class _MatcherServer:
  """An actor: holds a matcher for each video at work and answers for it."""

  def __init__(self, settings: matchers.Settings):
    pool.prepare()
    self._settings = settings
    self._matchers: dict[str, matchers.Matcher] = {}

  def _matcher(self, video_id: str) -> matchers.Matcher:
    # One for each, so that what comes of a video depends on it alone; they
    # share what is heavy. Made by the first call, whose error then reaches the
    # task as it is.
    if video_id not in self._matchers:
      self._matchers[video_id] = self._settings.make()
    return self._matchers[video_id]

  def call(
    self, video_id: str, method: str, *arguments: Any, **more: Any
  ) -> tuple[Any, int]:
    """What a method returns, and the calls that it cost."""
    matcher = self._matcher(video_id)
    before = getattr(matcher, 'calls', 0)
    answer = getattr(matcher, method)(*arguments, **more)
    return answer, getattr(matcher, 'calls', 0) - before

  def traits(self, video_id: str) -> tuple[str, tuple[bool, bool]]:
    """The matcher's own name, which the records have; its abilities.

    Returns:
      the name; whether it counts its calls, and whether it gives poses.
    """
    matcher = self._matcher(video_id)
    return matcher.name, (
      isinstance(matcher, matchers.CountsCalls),
      isinstance(matcher, matchers.GivesPoses),
    )

  def end(self, video_id: str) -> None:
    """Forgets a video."""
    self._matchers.pop(video_id, None)


class _Servers:
  """Gives each task the actor with the fewest tasks.

  A video stays with one actor, so that what this has found out about a frame
  serves all pairs of the frame.
  """

  def __init__(self, actors: Sequence[Any]):
    self._load = dict.fromkeys(actors, 0)

  def take(self) -> Any:
    """An actor; None where there is none."""
    actor = min(self._load, key=self._load.__getitem__, default=None)
    if actor is not None:
      self._load[actor] += 1
    return actor

  def give_back(self, actor: Any) -> None:
    if actor is not None:
      self._load[actor] -= 1


def _answer(ref: Any) -> Any:
  from ray import exceptions

  try:
    # While a task waits in `ray.get`, Ray gives its core to another one: then
    # more videos would be in memory than there are cores.
    return ref.future().result()
  except exceptions.RayActorError as error:
    raise workers.Fault(str(error).partition('. ')[0]) from error
  except exceptions.RayTaskError as error:
    raise error.cause from error


class RemoteMatcher:
  """A `matchers.Matcher` whose work is done by an actor.

  Args:
    name: of the matcher that the actor holds.
    actor: its handle.
    video_id: whose matcher it is.
  """

  def __init__(self, name: str, actor: Any, video_id: str):
    self.name = name
    self._actor = actor
    self._video_id = video_id

  def describe(self, panorama: np.ndarray) -> matchers.Features:
    return self._call('describe', panorama)

  def match(
    self,
    source: matchers.Features,
    target: matchers.Features,
    *,
    expected: np.ndarray | None = None,
    gate_rad: float = 0.0,
  ) -> np.ndarray:
    return self._call(
      'match', source, target, expected=expected, gate_rad=gate_rad
    )

  def _call(self, method: str, *arguments: Any, **more: Any) -> Any:
    answer, calls = _answer(
      self._actor.call.remote(self._video_id, method, *arguments, **more)
    )
    self._count(calls)
    return answer

  def _count(self, calls: int) -> None:
    """Told what each answer cost."""


class _GivesPoses:
  """Of a remote matcher that gives poses, too."""

  def match_and_pose(
    self,
    source: matchers.Features,
    target: matchers.Features,
    *,
    expected: np.ndarray | None = None,
    gate_rad: float = 0.0,
  ) -> tuple[np.ndarray, matchers.PairPose | None]:
    return self._call(
      'match_and_pose', source, target, expected=expected, gate_rad=gate_rad
    )


class RemoteCountingMatcher(RemoteMatcher):
  """The same, of a matcher that counts its calls; counts those of one video."""

  calls = 0

  def calls_bound(self, num_pairs: int, num_requests: int) -> int:
    return self._call('calls_bound', num_pairs, num_requests)

  def _count(self, calls: int) -> None:
    self.calls += calls


class _RemotePosingMatcher(_GivesPoses, RemoteMatcher):
  """The same, of a matcher that gives poses."""


class _RemoteCountingPosingMatcher(_GivesPoses, RemoteCountingMatcher):
  """The same, of a matcher that does both."""


# Whether a matcher counts its calls, whether it gives poses -> its stand-in.
_REMOTE_MATCHERS = {
  (False, False): RemoteMatcher,
  (False, True): _RemotePosingMatcher,
  (True, False): RemoteCountingMatcher,
  (True, True): _RemoteCountingPosingMatcher,
}


def remote_matcher(actor: Any, video_id: str) -> RemoteMatcher:
  """The matcher that an actor holds for a video."""
  name, abilities = _answer(actor.traits.remote(video_id))
  return _REMOTE_MATCHERS[abilities](name, actor, video_id)
