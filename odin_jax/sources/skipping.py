"""Damaged records that a training may pass over, counted.

In place of a damaged record comes the next sound one of its folder. Which one
follows from the records alone, so that all hosts and a run that goes on take
the same.
"""

from typing import Callable

from absl import logging
import numpy as np

from odin_jax import batches
from odin_jax.shared import errors, posed_pair, tfrecord


class Allowance:
  """How many damaged records this process may pass over.

  Args:
    limit: see above; each counts once, however often it is read.
  """

  def __init__(self, limit: int):
    self.limit = limit
    # What was wrong, which names the record.
    self._faults: set[str] = set()

  @property
  def count(self) -> int:
    """How many it has passed over."""
    return len(self._faults)

  def figures(self) -> dict[str, int]:
    """For journals; nothing where none may be skipped."""
    return {'corrupt_records': self.count} if self.limit else {}

  def spend(self, error: tfrecord.CorruptRecordError) -> None:
    """Passes over a record.

    Raises:
      errors.UserError: it is one too many.
    """
    fault = str(error)
    if fault in self._faults:
      return
    # First, so that threads cannot both take the last.
    self._faults.add(fault)
    if self.count > self.limit:
      raise errors.UserError(
        f'{fault}; config.max_corrupt_records={self.limit} were skipped before '
        'it'
      ) from error
    logging.warning('skipped, %d of %d: %s', self.count, self.limit, fault)


class Skipping:
  """A source that gives the next sound record for a damaged one.

  Args:
    source: of the records of one folder.
    allowance: that it takes from.
  """

  def __init__(self, source: batches.Source, allowance: Allowance):
    self._source = source
    self._allowance = allowance

  def __len__(self) -> int:
    return len(self._source)

  def __getitem__(self, index: int) -> posed_pair.PosedPair:
    return self._first_sound(index, self._source.__getitem__)

  def draw(self, index: int, rng: np.random.Generator) -> posed_pair.PosedPair:
    """A pair for this index, or one after it."""
    return self._first_sound(index, lambda other: self._source.draw(other, rng))

  def _first_sound(
    self, index: int, read: Callable[[int], posed_pair.PosedPair]
  ) -> posed_pair.PosedPair:
    for turn in range(len(self)):
      try:
        return read((index + turn) % len(self))
      except tfrecord.CorruptRecordError as error:
        self._allowance.spend(error)
        last = error
    raise last

  def place(self, index: int) -> str:
    """Where the record is that an index names, were it sound."""
    return self._source.place(index)

  def fingerprint(self) -> str:
    """See `odin_jax.batches.Source`."""
    return self._source.fingerprint()
