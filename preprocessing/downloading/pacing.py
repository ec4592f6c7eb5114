"""When the next request may begin."""

import random
import threading
import time
from typing import Callable

from preprocessing.downloading import failures


class Pacer:
  """Spaces what several threads begin, at random, as people do.

  Args:
    per_minute: how many on average; 0: any number.
    stop: set when the run is to end.
    clock: seconds of a clock that never goes back.
  """

  def __init__(
    self,
    per_minute: float,
    stop: threading.Event,
    clock: Callable[[], float] = time.monotonic,
  ):
    self._interval_s = 60 / per_minute if per_minute else 0.0
    self._stop = stop
    self._clock = clock
    self._lock = threading.Lock()
    self._next_s = clock()

  def wait(self) -> None:
    """Returns when the caller may begin, or raises failures.Stopped."""
    with self._lock:
      start_s = max(self._clock(), self._next_s)
      self._next_s = start_s + self._interval_s * random.uniform(0.5, 1.5)
    self.sleep(start_s - self._clock())

  def hold(self, seconds: float) -> None:
    """Lets nobody begin for a time."""
    with self._lock:
      self._next_s = max(self._next_s, self._clock() + seconds)

  def sleep(self, seconds: float) -> None:
    """Waits for a time, or raises failures.Stopped when the run is to end."""
    if self._stop.wait(max(0.0, seconds)):
      raise failures.Stopped('the run was stopped')
