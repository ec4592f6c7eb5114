"""What every benchmark gives: posed pairs of square views, and their facts."""

import dataclasses
from typing import Any, Mapping

from odin_jax.shared import posed_pair


@dataclasses.dataclass(frozen=True, kw_only=True)
class PairSet:
  """The pairs of a benchmark.

  Attributes:
    pairs: a batch of all; their targets are what has to be predicted.
    facts: what the benchmark knows of every pair, ready for JSON.
    protocol: how they were chosen.
  """

  pairs: posed_pair.PosedPair
  facts: list[dict[str, Any]]
  protocol: dict[str, Any]


def scene_of(facts: Mapping[str, Any]) -> str:
  """The scene that a pair is of, by what its benchmark knows of it.

  A scene of records is a component of a video's poses.
  """
  return facts.get('scene') or f'{facts["video_id"]}/{facts["scene_id"]}'
