"""What every benchmark gives: posed pairs of square views, one after another."""

import dataclasses
from typing import Any

from jaxtyping import Float, UInt8
import numpy as np


@dataclasses.dataclass(frozen=True, kw_only=True)
class PosedPair:
  """One view to start from, one to predict, and the pose between them.

  Attributes:
    source: the view that the predictor sees, sRGB.
    truth: the view that it has to predict.
    target2source: `x_source = R @ x_target + t`, scene units.
    fov_deg: full field of view of both.
    scale: median depth of the source view, scene units; 0 where unknown.
    facts: what the benchmark knows of the pair, ready for JSON.
  """

  source: UInt8[np.ndarray, 's s 3']
  truth: UInt8[np.ndarray, 's s 3']
  target2source: Float[np.ndarray, '3 4']
  fov_deg: float
  scale: float
  facts: dict[str, Any]


@dataclasses.dataclass(frozen=True, kw_only=True)
class PairSet:
  """The pairs of a benchmark and how they were chosen, for the protocol."""

  pairs: list[PosedPair]
  protocol: dict[str, Any]
