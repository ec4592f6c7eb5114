"""What every benchmark gives: posed pairs of square views, and their facts."""

import dataclasses
from typing import Any, Mapping, NamedTuple

from jaxtyping import Bool, Float32
import numpy as np

from odin_jax.shared import posed_pair


class PairTruth(NamedTuple):
  """What is known of the surfaces that pairs show.

  Attributes:
    source_depth: along the optical axis at pixel centres, units of the pose;
      inf where there is no surface.
    target_depth: likewise.
    target_moving: whether what the target shows there moves between the two
      views; None where it is not known.
  """

  source_depth: Float32[np.ndarray, 'n s s']
  target_depth: Float32[np.ndarray, 'n s s']
  target_moving: Bool[np.ndarray, 'n s s'] | None


@dataclasses.dataclass(frozen=True, kw_only=True)
class PairSet:
  """The pairs of a benchmark.

  Attributes:
    pairs: a batch of all; their targets are what has to be predicted.
    facts: what the benchmark knows of every pair, ready for JSON.
    protocol: how they were chosen.
    truth: of their surfaces, if it is known.
  """

  pairs: posed_pair.PosedPair
  facts: list[dict[str, Any]]
  protocol: dict[str, Any]
  truth: PairTruth | None = None


def select_truth(truth: PairTruth, rows: slice) -> PairTruth:
  """That of some pairs."""
  return PairTruth(
    *(None if values is None else values[rows] for values in truth)
  )


def scene_of(facts: Mapping[str, Any]) -> str:
  """The scene that a pair is of, by what its benchmark knows of it.

  A scene of records is a component of a video's poses.
  """
  return facts.get('scene') or f'{facts["video_id"]}/{facts["scene_id"]}'
