"""Tasks that end badly; with few imports, for many processes load them."""

import dataclasses
import os
import pathlib
import signal
import time

from odin_jax.shared import errors
from preprocessing.running import pool


@dataclasses.dataclass(frozen=True)
class Task:
  """What `work` does: its name, how it ends, and where it leaves traces."""

  name: str
  fault: str = ''
  folder: pathlib.Path | None = None


def work(task, tell):
  tell(('begun', task.name, os.getpid()))
  if task.fault == 'killed':
    os.kill(os.getpid(), signal.SIGKILL)
  if task.fault == 'crash':
    os.kill(os.getpid(), signal.SIGSEGV)
  if task.fault == 'exit':
    os._exit(3)
  if task.fault == 'user':
    raise errors.UserError('no room')
  if task.fault == 'killed once' and not (task.folder / task.name).exists():
    (task.folder / task.name).touch()
    os.kill(os.getpid(), signal.SIGKILL)
  if task.fault == 'unfinished':
    try:
      (task.folder / task.name).touch()
      tell('written')
      time.sleep(600)
    finally:
      (task.folder / task.name).unlink()
  return task.name, {name: os.environ[name] for name in pool.SINGLE_THREADED}
