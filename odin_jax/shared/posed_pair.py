"""The posed pair: one shape for all that happens to it after preprocessing.

Batches of training, benchmarks and predictors hold it, with or without a
leading batch axis. JAX takes it for a tree of arrays.
"""

from typing import Any, NamedTuple, Sequence

from jaxtyping import Shaped
import numpy as np

# Of NumPy or JAX.
Array = Any


class PosedPair(NamedTuple):
  """Two square views and the pose between them, or a batch of such.

  Attributes:
    source: [*b s s 3] uint8 sRGB, the view that is given.
    target: [*b s s 3] uint8 sRGB, the view that is to be predicted; None where
      it is not known or nobody's business.
    target2source: [*b 3 4], `x_source = R @ x_target + t`, scene units.
    fov_deg: [*b], full field of view of both views.
    median_depth: [*b], of the source view, scene units; 0 where not known.
    source_depth: [*b d d] float32, along the optical axis at pixel centres,
      scene units, 0 where not known; None where nobody asks for it.
    target_depth: likewise.
  """

  source: Array
  target: Array | None
  target2source: Array
  fov_deg: Array
  median_depth: Array
  source_depth: Array | None = None
  target_depth: Array | None = None


def stack(pairs: Sequence[PosedPair]) -> PosedPair:
  """A batch of pairs; what one of them lacks, all of them lack."""
  return PosedPair(
    *(
      None if values[0] is None else np.stack(values)
      for values in zip(*pairs, strict=True)
    )
  )


def select(
  pairs: PosedPair, rows: slice | Shaped[np.ndarray, 'n']
) -> PosedPair:
  """Some pairs of a batch, as a batch."""
  return PosedPair(
    *(None if values is None else values[rows] for values in pairs)
  )
