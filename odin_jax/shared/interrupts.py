"""A signal as a flag, for work that ends at a place of its own choice."""

import signal
from typing import Any

from odin_jax.shared import command


class Interrupt:
  """Turns signals into a flag that the loop looks at between steps.

  Args:
    second_ends: a second signal ends this process at once.

  Attributes:
    number: of the signal that came; 0 where none did.
  """

  def __init__(self, *, second_ends: bool) -> None:
    self.number = 0
    self._second_ends = second_ends
    self._before = {
      number: signal.signal(number, self._request)
      for number in command.STOP_SIGNALS
    }

  def _request(self, number: int, frame: Any) -> None:
    del frame
    self.number = number
    if self._second_ends:
      command.end_at_once()

  def close(self) -> None:
    """From now on a signal ends the process as any other command."""
    if not self.number:
      for number, handler in self._before.items():
        signal.signal(number, handler)
