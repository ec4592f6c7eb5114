"""How far long work is: a bar on a terminal, few plain lines elsewhere.

A log file keeps every line, so there is at most one for every `LINE_EVERY_S`,
and none of work that is done before. A program that reads the lines sets the
variable `EVERY_S` for those that it starts.
"""

import math
import os
import sys
import time
from typing import Any, Callable, Iterable, Iterator, Sequence, TypeVar

import tqdm

EVERY_S = 'ODIN_PROGRESS_EVERY_S'
LINE_EVERY_S = float(os.environ.get(EVERY_S, 30.0))
Item = TypeVar('Item')


class Lines:
  """Plain lines on stderr, with those methods of tqdm that are used here.

  Args:
    total: units in all; None where that is not known.
    unit: what is counted.
    desc: what is done with them.
    initial: units that were done before.
    clock: seconds that only grow.

  Attributes:
    n: units that are done.
  """

  def __init__(
    self,
    total: int | None,
    unit: str,
    *,
    desc: str = '',
    initial: int = 0,
    clock: Callable[[], float] = time.monotonic,
  ):
    self.n = initial
    self._total = total
    self._name = f'{desc}: {unit}' if desc else unit
    self._initial = initial
    self._clock = clock
    self._start = self._last = clock()
    self._postfix = ''

  def update(self, n: int | float = 1) -> None:
    """Adds units that are done; writes a line when one is due."""
    self.n += n
    now = self._clock()
    if now - self._last >= LINE_EVERY_S:
      self._last = now
      sys.stderr.write(f'{self._line(now - self._start)}\n')
      sys.stderr.flush()

  def set_postfix_str(self, s: str = '', refresh: bool = True) -> None:
    """Sets what stands behind the figures of the next line."""
    del refresh
    self._postfix = s

  def __enter__(self) -> 'Lines':
    return self

  def __exit__(self, *error: object) -> None:
    """There is nothing to clear."""

  def _line(self, elapsed_s: int | float) -> str:
    done = f'{self.n:.1f}'.removesuffix('.0')
    parts = [f'{self._name} {done}', _clock_text(elapsed_s)]
    if self._total:
      percent = math.floor(100 * self.n / self._total)
      parts[0] += f' of {self._total} ({percent} %)'
      if self.n > self._initial:
        rest = (self._total - self.n) / (self.n - self._initial)
        parts.append(f'about {_clock_text(elapsed_s * rest)} left')
    return ', '.join([*parts, *([self._postfix] if self._postfix else [])])


Bar = Lines | tqdm.tqdm


def _clock_text(seconds: int | float) -> str:
  return tqdm.tqdm.format_interval(max(seconds, 0))


def bar(
  total: int | None,
  unit: str,
  *,
  desc: str = '',
  initial: int = 0,
  is_shown: bool = True,
  **on_terminal: Any,
) -> Bar:
  """Shows how far work is, on stderr.

  Args:
    total: units in all; None where that is not known.
    unit: what is counted, such as `video`.
    desc: what is done with them.
    initial: units that were done before.
    is_shown: False: nothing is, as where another process shows the same.
    on_terminal: further arguments of tqdm, such as `bar_format`.
  """
  if not is_shown:
    return tqdm.tqdm(disable=True)
  if not sys.stderr.isatty():
    return Lines(total, unit, desc=desc, initial=initial)
  return tqdm.tqdm(
    total=total, unit=unit, desc=desc or None, initial=initial, **on_terminal
  )


def each(
  items: Iterable[Item], unit: str, *, desc: str = '', **on_terminal: Any
) -> Iterator[Item]:
  """The items, shown as they are taken."""
  total = len(items) if isinstance(items, Sequence) else None
  with bar(total, unit, desc=desc, **on_terminal) as shown:
    for item in items:
      yield item
      shown.update()
