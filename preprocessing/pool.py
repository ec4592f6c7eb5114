"""Independent jobs in processes of their own, one thread each.

Sums come out the same on any machine only if they are added in the same order,
so every process computes with a single thread, however many there are.
"""

from concurrent import futures
import contextlib
import multiprocessing
import os
import threading
from typing import Any, Callable, Iterator, Sequence, TypeVar

import cv2
from tqdm import tqdm

_THREADS = ('OMP_NUM_THREADS', 'OPENBLAS_NUM_THREADS', 'MKL_NUM_THREADS')
_POLL_S = 0.3
# Processes are started anew: a forked one would inherit locked threads.
CONTEXT = multiprocessing.get_context('spawn')
Job = TypeVar('Job')
Result = TypeVar('Result')

# In a worker: how many steps all workers have done.
_counter: Any = None


def step() -> None:
  """Moves the progress bar on by one; called by a job."""
  if _counter is not None:
    with _counter.get_lock():
      _counter.value += 1


def run(
  work: Callable[[Job], Result],
  jobs: Sequence[Job],
  *,
  num_workers: int,
  steps: int,
  unit: str,
) -> list[Result]:
  """`[work(job) for job in jobs]`, in parallel and with a progress bar.

  Args:
    work: a function of a module, so that other processes find it.
    jobs: its arguments.
    num_workers: processes; 0 takes all cores.
    steps: how often the jobs call `step` in all.
    unit: what a step is.

  Raises:
    the first error of a job; jobs that have not begun are then given up.
  """
  counter = CONTEXT.Value('q', 0)
  with (
    executor(
      min(num_workers or num_cores(), len(jobs)), _count_with, counter
    ) as pool,
    tqdm(total=steps, unit=unit) as bar,
  ):
    running = [pool.submit(work, job) for job in jobs]
    waiting = set(running)
    while waiting:
      done, waiting = futures.wait(
        waiting, _POLL_S, return_when=futures.FIRST_EXCEPTION
      )
      bar.update(counter.value - bar.n)
      if any(future.exception() for future in done):
        pool.shutdown(cancel_futures=True)
        break
    return [future.result() for future in running if not future.cancelled()]


def num_cores() -> int:
  """Cores that this process may use."""
  if hasattr(os, 'sched_getaffinity'):
    return len(os.sched_getaffinity(0))
  return os.cpu_count() or 1


@contextlib.contextmanager
def executor(
  num_processes: int, prepare: Callable[[Any], None], shared: Any
) -> Iterator[futures.ProcessPoolExecutor]:
  """Processes with one thread each, that end when this one does.

  Args:
    num_processes: at least one is started.
    prepare: called once in each process, with `shared`.
    shared: a queue or a value of `CONTEXT`.
  """
  with (
    _single_threaded(),
    futures.ProcessPoolExecutor(
      max(1, num_processes),
      mp_context=CONTEXT,
      initializer=_start,
      initargs=(prepare, shared),
    ) as pool,
  ):
    yield pool


def _start(prepare: Callable[[Any], None], shared: Any) -> None:
  cv2.setNumThreads(1)
  threading.Thread(target=_follow_parent, daemon=True).start()
  prepare(shared)


def _follow_parent() -> None:
  """Ends this process when its parent is gone, even if it was killed."""
  multiprocessing.parent_process().join()
  os._exit(1)


def _count_with(counter: Any) -> None:
  global _counter
  _counter = counter


@contextlib.contextmanager
def _single_threaded() -> Iterator[None]:
  """Lets child processes start with one thread per library."""
  before = {name: os.environ.get(name) for name in _THREADS}
  os.environ.update(dict.fromkeys(_THREADS, '1'))
  try:
    yield
  finally:
    for name, value in before.items():
      if value is None:
        del os.environ[name]
      else:
        os.environ[name] = value
