"""Processes, on one machine or several, that do one job and end together.

The process that is started on each machine only guards: it meets the others at
the address of process 0, and does the work in a process of its own, which it
forks. So it can always say in one line why all end, whatever the work was doing
when a machine or a process was lost, and with the same exit status everywhere:
that of the first that failed, or 75 (`errors.Unfinished`) where one is gone.
Guards send each other one JSON object a line:

  others to 0   {"process": 1, "of": 2}, and when the work is done its end
  0 to others   {"port": 4321}, free on its machine, when all have come; and
                the end of all

An end is {"status": 2, "line": "what to say"}; status 0 is that of success.

A signal to one guard ends all at once, unless the work ends itself: then its
guard hands the first signal on, the work sees to it that all end together, and
only a second signal ends all at once.
"""

import contextlib
import json
import os
import selectors
import signal
import socket
import sys
import tempfile
import threading
import time
import traceback
from typing import Any, BinaryIO, Callable, Iterator, NamedTuple, NoReturn

from absl import logging

from odin_jax.shared import command, errors, locks

# For all to come, some of which a scheduler starts late, and for the work to
# clean up.
MEET_S = 300.0
_CLEAN_UP_S = 5.0
_RETRY_S = 0.2
# Seconds after which a machine is looked for that says nothing, seconds between
# such looks, and how many: one that lost its power is gone after half a minute.
_KEEP_ALIVE = (15, 5, 3)
_BUG = 1


class Place(NamedTuple):
  """Which of the processes this one is.

  Attributes:
    host: of process 0.
    port: where it meets the others.
    process: number of this one, from 0.
    of: how many there are.
    is_told: by the environment: the name of a host may be known later, as
      Kubernetes makes one when it starts a process there.
  """

  host: str
  port: int
  process: int
  of: int
  is_told: bool = False

  @property
  def address(self) -> str:
    """As the user gives it."""
    return f'{self.host}:{self.port}'

  def name(self, process: int) -> str:
    """What messages call a process."""
    return f'process {process} of {self.of}'


class _End(NamedTuple):
  """How the work of a process ended."""

  status: int
  line: str


class _Link:
  """A stream of JSON lines from another guard or from the work.

  Args:
    stream: a socket, or the reading end of a pipe.
  """

  def __init__(self, stream: socket.socket | BinaryIO):
    self.stream = stream
    self._unread = b''

  def read(self) -> list[dict[str, Any]] | None:
    """Messages that have come; None where the other side is gone, or is none."""
    try:
      if isinstance(self.stream, socket.socket):
        content = self.stream.recv(1 << 16)
      else:
        content = os.read(self.stream.fileno(), 1 << 16)
    except OSError:
      content = b''
    if not content:
      return None
    *lines, self._unread = (self._unread + content).split(b'\n')
    try:
      messages = [json.loads(line) for line in lines]
    except ValueError:
      return None
    return messages if all(isinstance(x, dict) for x in messages) else None

  def read_one(self, until: float) -> dict[str, Any] | None:
    """The first message; None where none comes in time."""
    while (left := until - time.monotonic()) > 0:
      self.stream.settimeout(left)
      messages = self.read()
      if messages is None or messages:
        self.stream.settimeout(None)
        return messages[0] if messages else None
    return None

  def send(self, message: dict[str, Any]) -> None:
    """Sends a message, unless the other side is gone, which reading tells."""
    with contextlib.suppress(OSError):
      self.stream.sendall(json.dumps(message).encode() + b'\n')


def together(
  place: Place, work: Callable[[int], None], *, ends_itself: bool = False
) -> None:
  """Does the work, here and on all others, and ends when all have ended.

  Args:
    place: of this process.
    work: runs in a process of its own; is given a port of process 0's machine
      that is free.
    ends_itself: after a signal, which may come to it more than once and stands
      for one: a scheduler signals to guard and work.

  Raises:
    errors.UserError: here or elsewhere what was asked for cannot be done, or
      the others did not come.
    errors.Unfinished: a process was stopped, or is gone.
    SystemExit: a process failed by a bug, which it tells itself.
  """
  with contextlib.ExitStack() as stack:
    links = stack.enter_context(_met(place))
    try:
      if place.process:
        port = _wait_for_port(place, links[0])
      else:
        port = _free_port()
        for link in links.values():
          link.send({'port': port})
      streams = [link.stream for link in links.values()]
      forked = _fork(work, port, streams, ends_itself)
      stack.callback(_end_work, forked, ends_itself)
      _guard(place, links, forked.report)
    # From when it has met them: they are told why it ends.
    except KeyboardInterrupt as stopped:
      status, line = command.ending(stopped)
      _tell(links, _End(status, f'{place.name(place.process)}: {line}'))
      raise


# -- Meeting -------------------------------------------------------------------


@contextlib.contextmanager
def _met(place: Place) -> Iterator[dict[int, _Link]]:
  """Links to all others of process 0, and to it of the others; closed after."""
  links: dict[int, _Link] = {}
  try:
    (_reach if place.process else _gather)(place, links)
    for link in links.values():
      _keep_alive(link.stream)
    yield links
  finally:
    for link in links.values():
      link.stream.close()


def _gather(place: Place, links: dict[int, _Link]) -> None:
  until = time.monotonic() + MEET_S
  try:
    is_dual = socket.has_dualstack_ipv6()
    server = socket.create_server(
      ('', place.port),
      family=socket.AF_INET6 if is_dual else socket.AF_INET,
      dualstack_ipv6=is_dual,
    )
  except (OSError, OverflowError) as error:
    raise errors.UserError(
      f'--coordinator={place.address}: {error}; give a port that is free here'
    ) from error
  with server:
    while len(links) < place.of - 1:
      server.settimeout(max(0.01, until - time.monotonic()))
      try:
        stream, _ = server.accept()
      except TimeoutError:
        fault = (
          f'--coordinator={place.address}: {len(links) + 1} of {place.of} '
          f'processes came within {MEET_S:.0f} s; start all of them'
        )
        _tell(links, _End(errors.UserError.exit_status, fault))
        raise errors.UserError(fault) from None
      link = _Link(stream)
      hello = link.read_one(min(until, time.monotonic() + _CLEAN_UP_S))
      if hello is None:
        # A stranger: what looks for open ports, or whether this one is.
        stream.close()
        continue
      if fault := _fault(place, links, hello):
        _tell(
          {**links, place.of: link}, _End(errors.UserError.exit_status, fault)
        )
        stream.close()
        raise errors.UserError(fault)
      links[hello['process']] = link


def _fault(
  place: Place, links: dict[int, _Link], hello: dict[str, Any]
) -> str | None:
  """What is wrong with one that came."""
  process, of = hello.get('process'), hello.get('of')
  if of != place.of:
    return (
      f'--num_processes={place.of}: another process was given {of}; give all '
      'the same'
    )
  if process in (0, *links):
    return (
      f'--process_id={process}: was given to two processes; number them from '
      f'0 to {place.of - 1}'
    )
  return None


def _reach(place: Place, links: dict[int, _Link]) -> None:
  until = time.monotonic() + MEET_S
  while True:
    try:
      stream = socket.create_connection(
        (place.host, place.port), timeout=max(0.01, until - time.monotonic())
      )
      break
    except (socket.gaierror, OverflowError) as error:
      if place.is_told and time.monotonic() + _RETRY_S < until:
        time.sleep(_RETRY_S)
        continue
      raise errors.UserError(
        f'--coordinator={place.address}: {error}; give the address of process 0'
      ) from error
    except OSError as error:
      if time.monotonic() + _RETRY_S > until:
        raise errors.UserError(
          f'--coordinator={place.address}: process 0 was not there within '
          f'{MEET_S:.0f} s ({error}); start it, and see that its address can be '
          'reached from here'
        ) from error
      time.sleep(_RETRY_S)
  stream.settimeout(None)
  links[0] = _Link(stream)
  links[0].send({'process': place.process, 'of': place.of})


def _wait_for_port(place: Place, link: _Link) -> int:
  # As long as process 0 waits for the others, and a little more.
  message = link.read_one(time.monotonic() + MEET_S + _CLEAN_UP_S)
  if message is None:
    raise errors.Unfinished(_gone(place, 0))
  if 'port' not in message:
    _raise(_End(**message))
  return message['port']


def _free_port() -> int:
  with socket.create_server(('', 0)) as server:
    return server.getsockname()[1]


def _keep_alive(stream: socket.socket) -> None:
  stream.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
  names = ('TCP_KEEPIDLE', 'TCP_KEEPINTVL', 'TCP_KEEPCNT')
  for name, value in zip(names, _KEEP_ALIVE, strict=True):
    # macOS has not all of them.
    if option := getattr(socket, name, None):
      stream.setsockopt(socket.IPPROTO_TCP, option, value)


# -- The work ------------------------------------------------------------------


class _Forked(NamedTuple):
  """The process of the work.

  Attributes:
    pid: of it.
    report: tells its end.
    guarded: stays open as long as this process guards it.
  """

  pid: int
  report: _Link
  guarded: BinaryIO


def _fork(
  work: Callable[[int], None],
  port: int,
  streams: list[socket.socket],
  ends_itself: bool,
) -> _Forked:
  """Starts the work."""
  report_in, report_out = os.pipe()
  guard_in, guard_out = os.pipe()
  sys.stdout.flush()
  sys.stderr.flush()
  # A signal that comes now is for the guard, or for the work, and not for both
  # or neither.
  signal.pthread_sigmask(signal.SIG_BLOCK, command.STOP_SIGNALS)
  hand_on = _HandOn() if ends_itself else None
  pid = os.fork()
  if not pid:
    os.close(guard_out)
    for stream in streams:
      stream.close()
    _work(lambda: work(port), guard_in, report_out, ends_itself)
  if hand_on:
    hand_on.to(pid)
  signal.pthread_sigmask(signal.SIG_UNBLOCK, command.STOP_SIGNALS)
  os.close(report_out)
  os.close(guard_in)
  return _Forked(
    pid,
    _Link(os.fdopen(report_in, 'rb', buffering=0)),
    os.fdopen(guard_out, 'wb', buffering=0),
  )


class _HandOn:
  """Hands the first signal on to the work, also one that comes before it is.

  The next one ends this process.
  """

  def __init__(self) -> None:
    self._number = self._pid = 0
    for number in command.STOP_SIGNALS:
      signal.signal(number, self._take)

  def to(self, pid: int) -> None:
    """Says who the work is."""
    self._pid = pid
    self._send()

  def _take(self, number: int, frame: Any) -> None:
    del frame
    command.end_at_once()
    self._number = number
    self._send()

  def _send(self) -> None:
    if self._pid and self._number:
      _signal(self._pid, self._number)


def _work(
  work: Callable[[], None], guard: int, report: int, ends_itself: bool
) -> NoReturn:
  """Does the work and ends, in a process that was forked for it.

  Args:
    work: what to do.
    guard: is closed at its other end when nobody guards this process any more.
    report: gets the end.
    ends_itself: see `together`.
  """
  end = _End(0, '')
  try:
    threading.Thread(target=_end_with_guard, args=(guard,), daemon=True).start()
    command.stop_on_signals(second_ends=not ends_itself)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, command.STOP_SIGNALS)
    _quiet_libraries()
    work()
  except BaseException as error:  # noqa: BLE001 - told to the guard.
    bug = f'failed, see its output ({type(error).__name__})'
    end = _End(*(command.ending(error) or (_BUG, bug)))
    if end.status == _BUG:
      traceback.print_exc()
  # Nothing is left to do for which a signal should wait.
  for number in command.STOP_SIGNALS:
    signal.signal(number, signal.SIG_IGN)
  sys.stdout.flush()
  locks.release_all()
  os.write(report, json.dumps(end._asdict()).encode() + b'\n')
  # What is registered for the end of Python may wait for processes that fail.
  os._exit(end.status)


def _end_with_guard(reader: int) -> NoReturn:
  """Ends the work when nobody guards it any more."""
  os.read(reader, 1)
  locks.release_all()
  os._exit(errors.Unfinished.exit_status)


def _quiet_libraries() -> None:
  """Python's own output stays; what libraries in C++ print goes to a file.

  They number the peers that they found on stdout, and end with a stack trace
  where one is lost, of which the guard tells in one line.
  """
  noise = tempfile.TemporaryFile()
  for number, name in ((1, 'stdout'), (2, 'stderr')):
    stream = getattr(sys, name)
    stream.flush()
    kept = os.fdopen(
      os.dup(number), 'w', 1, encoding=stream.encoding, errors=stream.errors
    )
    setattr(sys, name, kept)
    os.dup2(noise.fileno(), number)
  logging.get_absl_handler().python_handler.setStream(sys.stderr)


def _end_work(forked: _Forked, ends_itself: bool) -> None:
  """Ends the work, where it has not ended."""
  if not ends_itself:
    # It cleans up; what ends itself would wait for the others.
    _signal(forked.pid, signal.SIGTERM)
    if _has_ended(forked.pid):
      return
  # It frees its folders, wherever it is, see `_end_with_guard`.
  forked.guarded.close()
  if not _has_ended(forked.pid):
    _signal(forked.pid, signal.SIGKILL)
    _has_ended(forked.pid)


def _signal(pid: int, number: int) -> None:
  with contextlib.suppress(ProcessLookupError):
    os.kill(pid, number)


def _has_ended(pid: int) -> bool:
  """Whether a process of this one ends in time."""
  until = time.monotonic() + _CLEAN_UP_S
  while time.monotonic() < until:
    try:
      if os.waitpid(pid, os.WNOHANG)[0]:
        return True
    except ChildProcessError:
      return True
    time.sleep(0.02)
  return False


# -- Guarding ------------------------------------------------------------------


def _guard(place: Place, links: dict[int, _Link], report: _Link) -> None:
  """Waits until all have ended.

  Raises:
    errors.UserError, errors.Unfinished, SystemExit: see `together`.
  """
  waiting = {place.process, *links}
  with selectors.DefaultSelector() as selector:
    for process, link in {**links, place.process: report}.items():
      selector.register(link.stream, selectors.EVENT_READ, (process, link))
    while waiting:
      for key, _ in selector.select():
        process, link = key.data
        messages = link.read()
        if messages is None:
          selector.unregister(link.stream)
          # Of this process the end may have been read already.
          if process not in waiting:
            continue
          end = _End(errors.Unfinished.exit_status, _gone(place, process))
        elif messages:
          end = _End(**messages[-1])
        else:
          continue
        if end.status:
          _fail(place, links, process, end)
        waiting.discard(process)
        if place.process and process == place.process:
          links[0].send(end._asdict())
  if not place.process:
    _tell(links, _End(0, ''))


def _gone(place: Place, process: int) -> str:
  return (
    f'{place.name(process)} is gone; the same commands go on, on all machines'
  )


def _fail(
  place: Place, links: dict[int, _Link], process: int, end: _End
) -> NoReturn:
  """Ends all: tells the others, and says why."""
  named = end
  # What others send has their names; so has what is said of one that is gone.
  if process == place.process and end.line != _gone(place, process):
    named = _End(end.status, f'{place.name(process)}: {end.line}')
  _tell(links, named)
  _raise(end)


def _tell(links: dict[int, _Link], end: _End) -> None:
  for link in links.values():
    link.send(end._asdict())


def _raise(end: _End) -> NoReturn:
  for kind in (errors.UserError, errors.Unfinished):
    if end.status == kind.exit_status:
      raise kind(end.line)
  sys.stderr.write(f'error: {end.line}\n')
  sys.exit(end.status)
