"""Several processes, on one machine or many, that work as one.

  python -m odin_jax.evaluate ... --coordinator=HOST:PORT --num_processes=2 \
      --process_id=0

and the same with `--process_id=1`, on this machine or another. Under Slurm
(`srun`) and on TPU slices that name their workers no flag is needed, and
`--num_processes=1` keeps them apart. One process alone does without all of
this. How they meet and end together:
`odin_jax.shared.meeting`.
"""

import dataclasses
import hashlib
import json
import os
import re
from typing import Any, Callable, Mapping

from absl import flags
import jax
from jax.experimental import multihost_utils
from jaxtyping import Shaped
import numpy as np

from odin_jax.shared import errors, meeting

# Where the environment does not say: jobs of one cluster differ.
_PORTS = range(20_000, 30_000)
# How long CPUs wait in a gathering, 30 minutes by default: the first process
# may score for longer, and a lost one is seen by `odin_jax.shared.meeting`.
_WAIT = '--xla_cpu_collective_timeout_seconds=604800'


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
    return np.asarray(multihost_utils.process_allgather(array))

  def require_same(self, what: Mapping[str, Any]) -> None:
    """Refuses processes that were started for different work.

    Args:
      what: has to be the same, by names that a user understands; as JSON.

    Raises:
      errors.UserError: it is not, in all of them.
    """
    for name, value in what.items():
      text = json.dumps(value, sort_keys=True, default=str)
      digest = hashlib.sha256(text.encode()).digest()
      every = self.gather(np.frombuffer(digest, np.uint8))
      others = np.flatnonzero((every != every[0]).any(axis=-1))
      if len(others):
        raise errors.UserError(
          f'process {others[0]} has other {name} than process 0; start all with '
          'the same code, files and flags, but for --process_id'
        )


ALONE = Group()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Flags:
  """The flags of a command that can run on several hosts, see `define`."""

  coordinator: flags.FlagHolder[str | None]
  num_processes: flags.FlagHolder[int | None]
  process_id: flags.FlagHolder[int | None]

  def run(self, work: Callable[[Group], None]) -> None:
    """Does the work with all processes that there are; ends as all end.

    Args:
      work: is given the group. Of several it runs in a process of its own, so
        nothing may have used jax's devices before.

    Raises:
      errors.UserError, errors.Unfinished, SystemExit: see `meeting.together`.
    """
    place = self._place() or _slurm(os.environ) or _tpu(os.environ)
    if place is None or place.of == 1:
      work(ALONE)
      return

    def join_and_work(port: int) -> None:
      _join(place, port)
      group = Group(process=place.process, of=place.of)
      work(group)
      # Waits for the others, of which one may score for long: that jax waits at
      # its end for five minutes, and then ends as if one were lost.
      group.gather(np.zeros(1))
      jax.distributed.shutdown()

    meeting.together(place, join_and_work)

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
  """What a TPU slice says of its workers; None where it names none."""
  workers = environment.get('TPU_WORKER_HOSTNAMES', '').split(',')
  process = environment.get('TPU_WORKER_ID', '')
  if len(workers) < 2 or not process.isdigit():
    return None
  return meeting.Place(
    workers[0], _port_of(workers[0]), int(process), len(workers)
  )
