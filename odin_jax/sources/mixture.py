"""Several sources as one, whose examples take turns by weight.

Example i of the run is of source k for a share w_k / (w_1 + ... + w_n) of all
i: among the first m examples each source has its share of m, to less than n.
Each source goes through its own records, once an epoch of its own, in an order
that is reshuffled every epoch. Which source and which record example i takes
follows from i by arithmetic, so that no state has to be kept.
"""

import bisect
import fractions
import hashlib
import math
import sys
from typing import Any, Sequence

import numpy as np

from odin_jax import batches
from odin_jax.shared import posed_pair


def turn(number: int, shares: Sequence[int]) -> tuple[int, int]:
  """Whose turn it is, and how many turns it had before.

  Of the first m turns the first source has m - m * rest // all, and what is
  left is shared among the others in the same way.

  Args:
    number: of the turn, from 0.
    shares: of the sources, whole and above 0.
  """
  everything = sum(shares)
  before, after = number, number + 1
  for which, share in enumerate(shares):
    rest = everything - share
    rest_before = before * rest // everything
    rest_after = after * rest // everything
    if after - rest_after > before - rest_before:
      return which, before - rest_before
    before, after, everything = rest_before, rest_after, rest
  raise ValueError(f'{shares}: no shares')


class Mixture:
  """Sources one after the other, as `odin_jax.batches.Mixed`.

  Args:
    sources: whose pairs have the same shapes.
    weights: of the sources, above 0; None: as if their records lay in one
      folder.
  """

  def __init__(
    self,
    sources: Sequence[batches.Source],
    weights: Sequence[float | int] | None = None,
  ):
    self._sources = list(sources)
    self._starts = np.cumsum([0, *map(len, sources)]).tolist()
    self._shares = None
    if weights is not None:
      # As they are written, 0.1 as one of ten.
      exact = [fractions.Fraction(str(weight)) for weight in weights]
      unit = math.lcm(*(weight.denominator for weight in exact))
      self._shares = [int(weight * unit) for weight in exact]

  def __len__(self) -> int:
    return self._starts[-1]

  def _find(self, index: int) -> tuple[batches.Source, int]:
    which = bisect.bisect_right(self._starts, index) - 1
    return self._sources[which], index - self._starts[which]

  def __getitem__(self, index: int) -> posed_pair.PosedPair:
    source, own = self._find(index)
    return source[own]

  def draw(self, index: int, rng: np.random.Generator) -> posed_pair.PosedPair:
    """A pair of the source that has this index."""
    source, own = self._find(index)
    return source.draw(own, rng)

  def place(self, index: int) -> str:
    """See `odin_jax.batches.Source`."""
    source, own = self._find(index)
    return source.place(own)

  def order(self, seed: int) -> Any:
    """See `odin_jax.batches.Mixed`."""
    if self._shares is None:
      return batches.shuffled(len(self), seed)
    # Folders of the same length have orders of their own.
    seeds = np.random.SeedSequence(seed).generate_state(len(self._sources))
    orders = [
      batches.shuffled(len(source), int(own))
      for source, own in zip(self._sources, seeds, strict=True)
    ]

    def index(number: int) -> int:
      which, place = turn(int(number), self._shares)
      return self._starts[which] + int(orders[which][place])

    # Here, for a command reads its flags before what is slow to load.
    import grain

    return grain.MapDataset.range(sys.maxsize).seed(seed).map(index)

  def fingerprint(self) -> str:
    """Digest of those of the sources, in their order."""
    digests = ','.join(source.fingerprint() for source in self._sources)
    return hashlib.sha256(digests.encode()).hexdigest()[:16]
