"""Which tensors of a checkpoint are used, and why the others are not."""

import collections
import re
from typing import Mapping

from odin_jax.porting import formats
from odin_jax.shared import errors, lazy_array


class Ledger:
  """Who takes which tensor."""

  def __init__(
    self, where: str, all_tensors: Mapping[str, lazy_array.LazyArray]
  ):
    self.where = where
    self.tensors = all_tensors
    self._taken: set[str] = set()
    self._missing: set[str] = set()
    self._left_out: dict[str, str] = {}

  def take(self, name: str) -> lazy_array.LazyArray | None:
    """The tensor, or None where it is missing, which `close` tells."""
    if name not in self.tensors:
      self._missing.add(name)
      return None
    self._taken.add(name)
    return self.tensors[name]

  def leave(self, name: str, why: str) -> None:
    """Leaves out a tensor that must be there all the same."""
    if self.take(name) is not None:
      self._left_out[name] = why

  def names(self, prefix: str) -> list[str]:
    return [name for name in self.tensors if name.startswith(prefix)]

  def close(self, ignored: formats.Ignored) -> dict[str, int]:
    """Counts what is left out, by reason.

    Raises:
      errors.UserError: tensors are missing, or left over: names all of them.
    """
    left_over = set()
    for name in self.tensors.keys() - self._taken:
      why = next((w for p, w in ignored if re.fullmatch(p, name)), None)
      if why is None:
        left_over.add(name)
      else:
        self._left_out[name] = why
    faults = [
      f'{len(names)} tensors ({", ".join(sorted(names))}) are {what}'
      for names, what in (
        (self._missing, 'missing'),
        (left_over, 'left over, which this format does not know'),
      )
      if names
    ]
    if faults:
      raise errors.UserError(
        f'{self.where}: {"; ".join(faults)}; is --format right?'
      )
    return dict(collections.Counter(self._left_out.values()))
