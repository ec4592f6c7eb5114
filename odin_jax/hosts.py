"""Several processes, on one machine or many, that work as one.

  python -m odin_jax.train ... --coordinator=HOST:PORT --num_processes=2 \
      --process_id=0

and the same with `--process_id=1`, on this machine or another. Under Slurm
(`srun`) and on slices of TPUs, whose environment or machines name their
workers, no flag is needed, and `--num_processes=1` keeps them apart. One
process alone does without all of this. How they meet and end together:
`odin_jax.shared.meeting`.
"""

import dataclasses
import functools
import hashlib
import itertools
import json
import os
import pathlib
import re
import time
from typing import Any, Callable, Mapping
import urllib.request

from absl import flags
import jax
from jax._src import distributed, hardware_utils
from jax.experimental import multihost_utils
import jax.numpy as jnp
from jaxtyping import Shaped, UInt8
import numpy as np

from odin_jax.shared import errors, meeting

# Until a file that another machine has written is seen on a network.
_SEEN_S = 30.0
# Where the environment does not say: jobs of one cluster differ.
_PORTS = range(20_000, 30_000)
# How long a machine may take to tell of its slice.
_METADATA_S = 10.0
# How long CPUs wait in a gathering, 30 minutes by default: the first process
# may score for longer, and a lost one is seen by `odin_jax.shared.meeting`.
_WAIT_S = 604_800
_WAIT = f'--xla_cpu_collective_timeout_seconds={_WAIT_S}'
# Each barrier has a name of its own, the same in all processes.
_BARRIERS = itertools.count()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Group:
  """The processes that do one job.

  Attributes:
    process: number of this one; the first, 0, is the one that writes.
    of: how many there are.
  """

  process: int = 0
  of: int = 1

  @property
  def is_first(self) -> bool:
    """Whether this is the process that writes."""
    return self.process == 0

  def gather(
    self, array: Shaped[np.ndarray, '...']
  ) -> Shaped[np.ndarray, '...']:
    """The arrays of all processes, of one shape, stacked in their order."""
    if self.of == 1:
      return array[None]
    self.wait()
    return np.asarray(multihost_utils.process_allgather(array))

  def wait(self) -> None:
    """Waits until all have come here, however long one takes.

    Nothing goes over the devices: those of CPUs wait 30 s for each other when
    a program first joins them.
    """
    if self.of > 1:
      distributed.global_state.client.wait_at_barrier(
        f'odin_jax:{next(_BARRIERS)}', _WAIT_S * 1000
      )

  def of_first(self, tree: Any) -> Any:
    """Arrays of the first process, of the same shapes in all of them."""
    if self.of == 1:
      return tree
    self.wait()
    return multihost_utils.broadcast_one_to_all(tree)

  def require_one_file(self, path: pathlib.Path, flag: str) -> None:
    """Waits until all see the file that the first one has there.

    Args:
      path: of the file.
      flag: that names its folder.

    Raises:
      errors.UserError: the folder of this process is another one.
    """
    if self.of == 1:
      return
    wanted = self.gather(_digest_of(path))[0]
    until = time.monotonic() + _SEEN_S
    while not np.array_equal(_digest_of(path), wanted):
      if time.monotonic() > until:
        raise errors.UserError(
          f'{flag}={path.parent}: is not the folder that process 0 has there; '
          'give one on a file system that all processes share'
        )
      time.sleep(_SEEN_S / 30)

  def require_same(self, what: Mapping[str, Any]) -> None:
    """Refuses processes that were started for different work.

    Args:
      what: has to be the same, by names that a user understands; as JSON.

    Raises:
      errors.UserError: it is not, in all of them.
    """
    for name, value in what.items():
      text = json.dumps(value, sort_keys=True, default=str)
      every = self.gather(_digest(text.encode()))
      others = np.flatnonzero((every != every[0]).any(axis=-1))
      if len(others):
        raise errors.UserError(
          f'process {others[0]} has other {name} than process 0; start all with '
          'the same code, files and flags, but for --process_id'
        )


def _digest(content: bytes) -> UInt8[np.ndarray, '32']:
  return np.frombuffer(hashlib.sha256(content).digest(), np.uint8)


def _digest_of(path: pathlib.Path) -> UInt8[np.ndarray, '32']:
  """Of a file, or of nothing where there is none."""
  try:
    return _digest(path.read_bytes())
  except FileNotFoundError:
    return _digest(b'')


ALONE = Group()


class Poll:
  """What any process says, made known to all after the same step.

  A collective of its own goes to the devices behind every step, and is waited
  for behind the next one, so that devices never wait for it.

  Args:
    group: the processes.
  """

  def __init__(self, group: Group):
    self._group = group
    self._asked: jax.Array | None = None
    if group.of == 1:
      return
    mesh = jax.sharding.Mesh(jax.devices(), 'all')
    spread, everywhere = (
      jax.sharding.NamedSharding(mesh, jax.P(*axes)) for axes in (['all'], [])
    )
    self._max = jax.jit(jnp.max, out_shardings=everywhere)
    self._put = functools.partial(
      jax.make_array_from_process_local_data, spread
    )

  def largest(self, number: int) -> int:
    """The largest number that a process gave one step ago; 0 at first.

    Of one process its own number, at once.
    """
    if self._group.of == 1:
      return number
    asked = self._asked
    numbers = np.full(jax.local_device_count(), number, np.int32)
    self._asked = self._max(self._put(numbers))
    return 0 if asked is None else int(asked)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Flags:
  """The flags of a command that can run on several hosts, see `define`."""

  coordinator: flags.FlagHolder[str | None]
  num_processes: flags.FlagHolder[int | None]
  process_id: flags.FlagHolder[int | None]

  def run(
    self, work: Callable[[Group], None], *, ends_itself: bool = False
  ) -> None:
    """Does the work with all processes that there are; ends as all end.

    Args:
      work: is given the group. Of several it runs in a process of its own, so
        nothing may have used jax's devices before.
      ends_itself: after a signal, see `meeting.together`.

    Raises:
      errors.UserError, errors.Unfinished, SystemExit: see `meeting.together`.
    """
    place = (
      self._place()
      or _slurm(os.environ)
      or _tpu(os.environ)
      or _tpu(_tpu_metadata())
    )
    if place is None or place.of == 1:
      work(ALONE)
      return

    def join_and_work(port: int) -> None:
      _join(place, port)
      group = Group(process=place.process, of=place.of)
      work(group)
      # Waits for the others, of which one may score for long: that jax waits at
      # its end for five minutes, and then ends as if one were lost.
      group.wait()
      jax.distributed.shutdown()

    meeting.together(place, join_and_work, ends_itself=ends_itself)

  def _place(self) -> meeting.Place | None:
    """What the flags say; None where they say nothing."""
    holders = (self.coordinator, self.num_processes, self.process_id)
    missing = [f'--{holder.name}' for holder in holders if holder.value is None]
    if len(missing) == len(holders):
      return None
    if self.num_processes.value == 1:
      # Whatever the environment says.
      return meeting.Place('', 0, 0, 1)
    if missing:
      raise errors.UserError(
        f'{", ".join(missing)}: not given; several processes need all of '
        f'{", ".join(f"--{holder.name}" for holder in holders)}'
      )
    host, _, port = self.coordinator.value.rpartition(':')
    if not host or not re.fullmatch(r'\d+', port):
      raise errors.UserError(
        f'--coordinator={self.coordinator.value}: is no HOST:PORT'
      )
    process, of = self.process_id.value, self.num_processes.value
    if not process < of:
      raise errors.UserError(
        f'--process_id={process}: they are numbered from 0 to {of - 1}'
      )
    return meeting.Place(host.strip('[]'), int(port), process, of)


def define() -> Flags:
  """Defines `--coordinator`, `--num_processes` and `--process_id`."""
  return Flags(
    coordinator=flags.DEFINE_string(
      'coordinator',
      None,
      'HOST:PORT of process 0, of several that do this together.',
    ),
    num_processes=flags.DEFINE_integer(
      'num_processes', None, 'How many processes do this together.', 1
    ),
    process_id=flags.DEFINE_integer(
      'process_id', None, 'Which of them this one is, from 0.', 0
    ),
  )


def _join(place: meeting.Place, port: int) -> None:
  # XLA reads them when devices are first used, later ones before earlier ones.
  os.environ['XLA_FLAGS'] = f'{_WAIT} {os.environ.get("XLA_FLAGS", "")}'.strip()
  # Its handler of SIGTERM would take the place of ours.
  jax.config.update('jax_enable_preemption_service', False)
  host = f'[{place.host}]' if ':' in place.host else place.host
  jax.distributed.initialize(
    f'{host}:{port}',
    num_processes=place.of,
    process_id=place.process,
    initialization_timeout=int(meeting.MEET_S),
  )


def _port_of(job: str) -> int:
  """A port of a job, the same for all of its processes."""
  digest = hashlib.sha256(job.encode()).digest()
  return _PORTS[int.from_bytes(digest[:4], 'big') % len(_PORTS)]


def _slurm(environment: Mapping[str, str]) -> meeting.Place | None:
  """What `srun` says; None outside of it, also in a batch script itself."""
  names = (
    'SLURM_STEP_NUM_TASKS',
    'SLURM_PROCID',
    'SLURM_STEP_NODELIST',
    'SLURM_JOB_ID',
  )
  if not all(environment.get(name) for name in names):
    return None
  of, process, nodes, job = (environment[name] for name in names)
  # 'a[003-007,9],b' begins with a003.
  first = re.match(r'([^\[,]+)(?:\[([^\],-]+))?', nodes)
  host = ''.join(part or '' for part in first.groups())
  step = environment.get('SLURM_STEP_ID', '')
  return meeting.Place(host, _port_of(f'{job}.{step}'), int(process), int(of))


def _tpu(environment: Mapping[str, str]) -> meeting.Place | None:
  """What TPU slices say of their workers; None where they name none."""
  workers = environment.get('TPU_WORKER_HOSTNAMES', '').split(',')
  process = environment.get('TPU_WORKER_ID', '')
  # Of several slices, which have a coordinator in the first.
  slices = int(environment.get('MEGASCALE_NUM_SLICES') or 1)
  if len(workers) * slices < 2 or not process.isdigit():
    return None
  first = workers[0]
  number = int(process)
  if slices > 1:
    names = ('MEGASCALE_COORDINATOR_ADDRESS', 'MEGASCALE_SLICE_ID')
    if missing := [name for name in names if not environment.get(name)]:
      raise errors.UserError(
        f'MEGASCALE_NUM_SLICES={slices}: {", ".join(missing)} is not set; set '
        'it, or give --coordinator, --num_processes and --process_id'
      )
    first = environment['MEGASCALE_COORDINATOR_ADDRESS'].partition(':')[0]
    number += int(environment['MEGASCALE_SLICE_ID']) * len(workers)
  return meeting.Place(
    first, _port_of(first), number, len(workers) * slices, is_told=True
  )


def _tpu_metadata() -> dict[str, str]:
  """What Google's machines with TPUs know of their slice, as `_tpu` reads it.

  On the machines of Kubernetes, whose environment says it, and on others there
  is nothing.
  """
  chips, _ = hardware_utils.num_available_tpu_chips_and_device_id()
  is_told = {'TPU_WORKER_HOSTNAMES', 'TPU_SKIP_MDS_QUERY'} & os.environ.keys()
  if not chips or is_told:
    return {}
  workers = _metadata('worker-network-endpoints')
  facts = dict(
    line.split(':', 1)
    for line in _metadata('tpu-env').splitlines()
    if ':' in line
  )
  return {
    # A host each, or NAME:NUMBER:HOST.
    'TPU_WORKER_HOSTNAMES': ','.join(
      x.split(':')[-1] for x in workers.split(',')
    ),
    'TPU_WORKER_ID': _metadata('agent-worker-number'),
    **{
      name: facts[name].strip().strip("'")
      for name in facts
      if name.startswith('MEGASCALE_')
    },
  }


def _metadata(name: str) -> str:
  """An attribute of this machine; '' where it has none."""
  host = os.environ.get('GCE_METADATA_IP', 'metadata.google.internal')
  request = urllib.request.Request(
    f'http://{host}/computeMetadata/v1/instance/attributes/{name}',
    headers={'Metadata-Flavor': 'Google'},
  )
  try:
    # It is this machine's own, behind no proxy.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(request, timeout=_METADATA_S) as answer:
      return answer.read().decode()
  except OSError as error:
    if getattr(error, 'code', None) == 404:
      return ''
    raise errors.UserError(
      f'this machine has TPUs, and does not tell of which slice ({error}); give '
      '--num_processes=1 for one alone, or else --coordinator and --process_id, '
      'too'
    ) from error
