"""Which frame pairs of a solved video are views looked for in."""

import collections
from typing import Any, Sequence

import numpy as np

from preprocessing.keyframes import keyframes
from preprocessing.solving import solver, tracks, verification
from preprocessing.views import cutting


class Candidates:
  """The frame pairs of a solved video that views are looked for in.

  Args:
    seen: the keyframes.
    solution: their poses.
    split_of: the split of each.
    window: largest gap, in slots, of pairs that are candidates by their time.

  Attributes:
    frame_pairs: to cut views of.
    dropped: ledger rows of the others.
    counts: per kind and gap in slots, for the manifest.
  """

  def __init__(
    self,
    seen: keyframes.Observed,
    solution: solver.Solution,
    split_of: Sequence[str],
    window: int,
  ):
    self._slots = seen.slots
    self._window = window
    self.frame_pairs: list[cutting.FramePair] = []
    self.dropped: list[dict[str, Any]] = [
      {'stage': 'poses', 'reason': 'frame without a pose', 'frames': [frame]}
      for frame in np.flatnonzero(solution.component < 0).tolist()
    ]
    self.counts: dict[str, collections.Counter[int]] = collections.defaultdict(
      collections.Counter
    )
    for pair, verdict in sorted(solution.verifications.items()):
      kind = self._judge(pair, verdict, split_of)
      # Beyond the window: where the path returns, or keyframes are missing.
      place = f'{kind}_beyond' if self.is_beyond(pair) else kind
      self.counts[place][self.gap(pair)] += 1
    for long in solution.long_pairs:
      if split_of[long.source] == split_of[long.target]:
        self.frame_pairs.append(
          cutting.FramePair(
            frames=(long.source, long.target),
            confidence=long.confidence,
            hops=long.hops,
          )
        )

  def gap(self, pair: tracks.FramePair) -> int:
    """Slots between the frames of a pair."""
    return self._slots[pair[1]] - self._slots[pair[0]]

  def is_beyond(self, pair: tracks.FramePair) -> bool:
    """Whether the frames are further apart than the window."""
    return self.gap(pair) > self._window

  def _judge(
    self,
    pair: tracks.FramePair,
    verdict: verification.Verification,
    split_of: Sequence[str],
  ) -> str:
    if split_of[pair[0]] != split_of[pair[1]]:
      reason = 'frames belong to different splits'
      self.dropped.append(
        {'stage': 'split', 'reason': reason, 'frames': list(pair)}
      )
      return 'split_apart'
    if verdict.reason is not None:
      reason = verdict.reason.value
      self.dropped.append(
        {'stage': 'poses', 'reason': reason, 'frames': list(pair)}
      )
      return 'refused'
    self.frame_pairs.append(
      cutting.FramePair(frames=pair, confidence=verdict.confidence)
    )
    return 'posed'
