"""Independent jobs in processes of their own, one thread each.

Sums come out the same on any machine only if they are added in the same order,
so every process computes with a single thread, however many there are.
"""

import collections
from concurrent import futures
import contextlib
import multiprocessing
from multiprocessing import connection, resource_tracker
import os
import signal
import sys
import threading
from typing import Any, Callable, Iterable, Iterator, Sequence, TypeVar

import cv2

from odin_jax.shared import cores, errors, progress

# What a process needs in its environment from the start.
SINGLE_THREADED = {
  'OMP_NUM_THREADS': '1',
  'OPENBLAS_NUM_THREADS': '1',
  'MKL_NUM_THREADS': '1',
}
_POLL_S = 0.3
# How long a process may take to clean up when it is to end.
_PATIENCE_S = 10.0
# Ends a process with its cleaning up. pycolmap's logging library takes SIGTERM
# for a crash.
_STOP = signal.SIGUSR1
# Processes are started anew: a forked one would inherit locked threads.
_CONTEXT = multiprocessing.get_context('spawn')
# What a worker's answer is.
_MESSAGE, _DONE, _RAISED, _DIED = 'message', 'done', 'raised', 'died'
Job = TypeVar('Job')
Result = TypeVar('Result')

# In a worker: how many steps all workers have done; whether it was told to end.
_counter: Any = None
_is_ending = False


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
  counter = _CONTEXT.Value('q', 0)
  with (
    futures.ProcessPoolExecutor(
      max(1, min(num_workers or cores.count(), len(jobs))),
      mp_context=_CONTEXT,
      initializer=_count_with,
      initargs=(counter,),
    ) as pool,
    progress.bar(steps, unit) as bar,
  ):
    try:
      with _starting():
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
    except KeyboardInterrupt:
      # The pool would wait for its jobs, which may take minutes.
      for process in multiprocessing.active_children():
        process.kill()
      raise
    return [future.result() for future in running if not future.cancelled()]


def each(
  work: Callable[[Job, Callable[[Any], None]], Any],
  jobs: Iterable[Job],
  *,
  num_workers: int,
  max_attempts: int,
  lost: Callable[[Job, str], Any],
) -> Iterator[Any]:
  """Does jobs of which any may take its process down with it.

  A process that dies (out of memory, a crash in a library) costs the others
  nothing. Its job is done again after all others, when a shortage of memory may
  be over.

  Args:
    work: a function of a module; called as `work(job, tell)`.
    jobs: taken only as there are processes for them.
    num_workers: processes; 0 takes all cores.
    max_attempts: so often a job may be begun.
    lost: `lost(job, reason)` stands for the result of a job that has used up
      its attempts.

  Yields:
    what `work` tells and what it returns, as it comes.

  Raises:
    errors.UserError: one that `work` raised; it ends all jobs. Any other
      exception ends its process like a crash.
  """
  todo = ((job, 1) for job in jobs)
  again: collections.deque[tuple[Job, int]] = collections.deque()
  crew = _Crew(work, num_workers or cores.count())
  try:
    while True:
      while crew.has_room() and (task := next_task(todo, again)):
        crew.begin(*task)
      if not crew.busy:
        return
      for worker, event, content in crew.answers():
        if event != _DIED:
          yield content
        elif worker.attempt < max_attempts:
          again.append((worker.job, worker.attempt + 1))
        else:
          reason = f'the worker died {worker.attempt} times ({content})'
          yield lost(worker.job, reason)
  finally:
    crew.stop()


def next_task(
  todo: Iterator[tuple[Job, int]], again: collections.deque[tuple[Job, int]]
) -> tuple[Job, int] | None:
  return next(todo, None) or (again.popleft() if again else None)


class _Crew:
  """So many workers as there is work for, up to a limit."""

  def __init__(
    self, work: Callable[[Any, Callable[[Any], None]], Any], limit: int
  ):
    self._work = work
    self._limit = limit
    self._idle: list[_Worker] = []
    self.busy: dict[connection.Connection, _Worker] = {}

  def has_room(self) -> bool:
    return len(self.busy) < self._limit

  def begin(self, job: Any, attempt: int) -> None:
    worker = self._idle.pop() if self._idle else _Worker(self._work)
    self.busy[worker.pipe] = worker
    worker.begin(job, attempt)

  def answers(self) -> Iterator[tuple['_Worker', str, Any]]:
    """Waits; then what each worker that has something to say brings."""
    for pipe in connection.wait(list(self.busy)):
      worker = self.busy[pipe]
      event, content = worker.answer()
      if event != _MESSAGE:
        del self.busy[pipe]
      if event == _DONE:
        self._idle.append(worker)
      yield worker, event, content

  def stop(self) -> None:
    workers = [*self._idle, *self.busy.values()]
    for worker in workers:
      worker.stop()
    for worker in workers:
      worker.join()


class _Worker:
  """A process that does one job at a time, and the pipe to it."""

  def __init__(self, work: Callable[[Any, Callable[[Any], None]], Any]):
    self.pipe, child_end = _CONTEXT.Pipe()
    self._process = _CONTEXT.Process(
      target=_serve, args=(work, child_end), daemon=True
    )
    with _starting():
      self._process.start()
    child_end.close()

  def begin(self, job: Any, attempt: int) -> None:
    self.job, self.attempt = job, attempt
    # A process that has just gone shows when its answer is asked for.
    with contextlib.suppress(BrokenPipeError):
      self.pipe.send(job)

  def answer(self) -> tuple[str, Any]:
    """The next event and what it brings: a message, a result, a reason."""
    try:
      event, content = self.pipe.recv()
    except (EOFError, OSError):
      return _DIED, self._ending()
    if event == _RAISED:
      raise content
    return event, content

  def _ending(self) -> str:
    self._process.join()
    code = self._process.exitcode
    if code >= 0:
      return f'status {code}'
    return f'signal {-code}, {signal.strsignal(-code)}'

  def stop(self) -> None:
    """Tells the process to end; it removes what it had not finished."""
    if self._process.is_alive():
      os.kill(self._process.pid, _STOP)

  def join(self) -> None:
    """Waits for the end, with limited patience."""
    self._process.join(_PATIENCE_S)
    self._process.kill()


def _serve(
  work: Callable[[Any, Callable[[Any], None]], Any],
  pipe: connection.Connection,
) -> None:
  """Does one job after the other, until this process is ended."""
  _leave_keyboard_to_parent()
  for number in (_STOP, signal.SIGTERM):
    signal.signal(number, _end)
  prepare()
  threading.Thread(target=_follow_parent, daemon=True).start()
  while True:
    try:
      job = pipe.recv()
    except EOFError:
      return
    try:
      answer = _DONE, work(job, lambda message: pipe.send((_MESSAGE, message)))
    except errors.UserError as error:
      answer = _RAISED, error
    if _is_ending:
      # Whatever became of it where a library was calling back.
      sys.exit(1)
    pipe.send(answer)


def _end(*_: Any) -> None:
  global _is_ending
  _is_ending = True
  sys.exit(1)


def is_ending() -> bool:
  """Whether this worker was told to end.

  Where a library was calling back, it may have made another error of that.
  """
  return _is_ending


def prepare() -> None:
  """Keeps OpenCV, which reads no variable, to one thread."""
  cv2.setNumThreads(1)


def _leave_keyboard_to_parent() -> None:
  """The parent decides when the keyboard's interrupt ends its children."""
  signal.signal(signal.SIGINT, signal.SIG_IGN)
  signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGINT])


def _follow_parent() -> None:
  """Ends this process when its parent is gone, even if it was killed."""
  multiprocessing.parent_process().join()
  os._exit(1)


def _count_with(counter: Any) -> None:
  global _counter
  _counter = counter
  _leave_keyboard_to_parent()
  prepare()
  threading.Thread(target=_follow_parent, daemon=True).start()


@contextlib.contextmanager
def _starting() -> Iterator[None]:
  """Lets child processes start with one thread per library.

  The keyboard's interrupt, which comes to all processes of a terminal, waits in
  them until they ignore it: it would end their imports with a traceback.
  """
  before = {name: os.environ.get(name) for name in SINGLE_THREADED}
  # Started with the first child, it would unblock the signal.
  resource_tracker.ensure_running()
  blocked = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
  os.environ.update(SINGLE_THREADED)
  try:
    yield
  finally:
    for name, value in before.items():
      if value is None:
        del os.environ[name]
      else:
        os.environ[name] = value
    signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
