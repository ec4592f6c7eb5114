"""One process at a time per output folder.

A file in the folder names the process that writes there. It stays as long as
that process works: `files.claim_output` makes it, `command.run` removes it at
every end that Python sees. What a process leaves that was killed is taken over
by the next one on the same machine; of a process on another machine nothing is
known, so a person has to say that it is gone, by deleting the file.
"""

import atexit
import contextlib
import dataclasses
import errno
import fcntl
import json
import os
import pathlib
import shlex
import socket
import sys
import time
from typing import Iterator

from odin_jax.shared import errors

NAME = '.odin_lock.json'
# How the name begins of what is not a lock yet.
TEMPORARY = f'.tmp-{NAME}'
_PROC = pathlib.Path('/proc')
# Fields of /proc/PID/stat behind the name, which may hold blanks.
_STATE, _PARENT, _START = 0, 1, 19
_GONE = ('Z', 'X')
# File systems without hard links say one of these.
_NO_LINKS = (errno.EPERM, errno.ENOSYS, errno.EOPNOTSUPP, errno.EMLINK)
_ATTEMPTS = 20
# Where schedulers say which job this is, and how often it was started anew.
# Kubernetes does so where it is told to, as in launch/train_gke.yaml.
_JOBS = (
  ('SLURM_JOB_ID', 'SLURM_RESTART_COUNT'),
  ('JOBSET_UID', 'JOBSET_RESTART_ATTEMPT'),
)
_SETTLED_S = 0.5

# The locks of this process, with what is written in them.
_held: dict[pathlib.Path, str] = {}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Holder:
  """A process, told from all others on all machines.

  Attributes:
    host: name of the machine.
    boot: changes when the machine starts anew; '' where it is not known.
    pid_namespace: containers of one machine number their processes apart; ''
      where it is not known.
    pid: of the process.
    started: when it did, in ticks of the machine, since a number comes again;
      '' where it is not known.
    command: its command line.
    job: of the scheduler that started it; '' where none did.
    attempt: how often the scheduler had started the job before.
  """

  host: str
  boot: str
  pid_namespace: str
  pid: int
  started: str
  command: str
  job: str = ''
  attempt: str = ''

  def is_here(self) -> bool:
    """Whether its number means something to this process."""
    me = holder_of(os.getpid())
    return (self.host, self.boot, self.pid_namespace) == (
      me.host,
      me.boot,
      me.pid_namespace,
    )

  def is_dead(self) -> bool:
    """Whether it is sure that it does not work any more."""
    if self.is_here():
      return not _is_alive(self.pid, self.started)
    me = holder_of(os.getpid())
    # A job that was started anew has none of its processes left, wherever they
    # were, nor has a machine.
    is_of_job = self.job and self.job == me.job
    return bool(is_of_job and self.attempt != me.attempt) or (
      self.host == me.host and self.boot != me.boot
    )

  def is_ancestor(self) -> bool:
    """Whether it is this process, or has started it."""
    return self.is_here() and any(
      pid == self.pid and _stat(pid)[1] == self.started
      for pid in _ancestors(os.getpid())
    )


def acquire(folder: pathlib.Path, pid: int | None = None) -> None:
  """Takes the folder for a process, until its end.

  A process whose ancestor holds the folder works for it, and needs no lock.

  Args:
    folder: that is there.
    pid: of the process; None: this one, which also removes the lock at its end.

  Raises:
    errors.UserError: another process has it.
    OSError: the folder cannot be written.
  """
  path = folder.resolve() / NAME
  text = json.dumps(dataclasses.asdict(holder_of(pid or os.getpid())))
  with _guard(path.parent) as is_guarded:
    if not _take(path, text):
      return
  if not is_guarded:
    # Two may have removed the same dead lock: the one that came last has it.
    time.sleep(_SETTLED_S)
    if (present := _read(path)) and json.dumps(
      dataclasses.asdict(present)
    ) != text:
      raise errors.UserError(_refusal(path, present))
  if pid is None:
    _held[path] = text


def release_all() -> None:
  """Removes the locks of this process; those of its parent stay."""
  for path, text in list(_held.items()):
    if json.loads(text)['pid'] == os.getpid():
      with contextlib.suppress(OSError):
        if path.read_text() == text:
          path.unlink()
    del _held[path]


atexit.register(release_all)


def _take(path: pathlib.Path, text: str) -> bool:
  """Makes the lock; False where this process or an ancestor has it already."""
  for _ in range(_ATTEMPTS):
    try:
      _create(path, text)
      return True
    except FileExistsError:
      holder = _read(path)
    if holder is None:
      continue
    if holder.is_ancestor():
      return False
    if not holder.is_dead():
      raise errors.UserError(_refusal(path, holder))
    path.unlink(missing_ok=True)
  raise errors.UserError(f'{path}: comes and goes; run again')


def _create(path: pathlib.Path, text: str) -> None:
  """Makes a file in one piece.

  Raises:
    FileExistsError: it is there.
  """
  temporary = path.with_name(
    f'{TEMPORARY}.{socket.gethostname()}.{os.getpid()}'
  )
  try:
    temporary.write_text(text)
    os.link(temporary, path)
  except OSError as error:
    if error.errno not in _NO_LINKS:
      raise
    with open(path, 'x') as file:
      file.write(text)
  finally:
    with contextlib.suppress(OSError):
      temporary.unlink()


def _read(path: pathlib.Path) -> Holder | None:
  """Who has a lock; None where there is none any more.

  Raises:
    errors.UserError: the file is not of this module.
  """
  try:
    return Holder(**json.loads(path.read_text()))
  except FileNotFoundError:
    return None
  except (ValueError, TypeError) as error:
    raise errors.UserError(
      f'{path}: no lock of this project; delete it if no command writes into '
      'this folder, then run again'
    ) from error


def _refusal(path: pathlib.Path, holder: Holder) -> str:
  if holder.is_here():
    return (
      f'{path.parent}: process {holder.pid} is writing here '
      f'({holder.command}); wait for its end, or give another folder'
    )
  return (
    f'{path.parent}: process {holder.pid} on {holder.host} is writing here '
    f'({holder.command}); if it is gone, delete {path}'
  )


@contextlib.contextmanager
def _guard(folder: pathlib.Path) -> Iterator[bool]:
  """Lets the processes of this machine look at a lock one after the other.

  The system ends this one itself with the process. Yields False where the file
  system has none for folders, such as NFS.
  """
  descriptor = os.open(folder, os.O_RDONLY)
  try:
    is_guarded = True
    try:
      fcntl.flock(descriptor, fcntl.LOCK_EX)
    except OSError:
      is_guarded = False
    if is_guarded:
      for orphan in folder.glob(f'{TEMPORARY}.{socket.gethostname()}.*'):
        orphan.unlink(missing_ok=True)
    yield is_guarded
  finally:
    os.close(descriptor)


# -- Processes -----------------------------------------------------------------


def holder_of(pid: int) -> Holder:
  """What tells a process of this machine from all others."""
  job, attempt = next((x for x in _JOBS if os.environ.get(x[0])), ('', ''))
  return Holder(
    host=socket.gethostname(),
    boot=_line(_PROC / 'sys/kernel/random/boot_id'),
    pid_namespace=_link(_PROC / 'self/ns/pid'),
    pid=pid,
    started=_stat(pid)[1],
    command=_command(pid),
    job=os.environ.get(job, ''),
    attempt=os.environ.get(attempt, '0'),
  )


def _line(path: pathlib.Path) -> str:
  try:
    return path.read_text().strip()
  except OSError:
    return ''


def _link(path: pathlib.Path) -> str:
  try:
    return os.readlink(path)
  except OSError:
    return ''


def _command(pid: int) -> str:
  if pid == os.getpid():
    return shlex.join(['python', *sys.argv])[:200]
  return _line(_PROC / str(pid) / 'cmdline').replace('\0', ' ').strip()[:200]


def _stat(pid: int) -> tuple[str, str, int]:
  """State, start and parent of a process; '', '', 0 where nothing is told."""
  text = _line(_PROC / str(pid) / 'stat')
  if not text:
    return '', '', 0
  fields = text.rpartition(')')[2].split()
  return fields[_STATE], fields[_START], int(fields[_PARENT])


def _ancestors(pid: int) -> Iterator[int]:
  """The process itself, its parent, and so on."""
  while pid > 0:
    yield pid
    pid = _stat(pid)[2] or (os.getppid() if pid == os.getpid() else 0)


def _is_alive(pid: int, started: str) -> bool:
  state, start, _ = _stat(pid)
  if state:
    return state not in _GONE and start == started
  try:
    os.kill(pid, 0)
  except ProcessLookupError:
    return False
  except PermissionError:
    pass
  return True
