"""Which frame pairs of a solved video are views looked for in."""

import collections
import dataclasses
from typing import Mapping, Sequence

import numpy as np

from preprocessing.solving import solver, tracks, verification
from preprocessing.writing import rejections


@dataclasses.dataclass(frozen=True, kw_only=True)
class SelectedPair:
  """Two keyframes to cut views of.

  Attributes:
    frames: the earlier and the later one.
    confidence: 0..1.
    hops: 1 = matched directly.
  """

  frames: tracks.FramePair
  confidence: float
  hops: int = 1


@dataclasses.dataclass(frozen=True, kw_only=True)
class Selection:
  """The frame pairs of a solved video, sorted out.

  Attributes:
    frame_pairs: to cut views of.
    rejected: the other candidates, and frames that have no pose.
    counts: candidates per kind and gap in slots, for the manifest; the kinds
      are `posed`, `refused` and `split_apart`, with `_beyond` where the frames
      are further apart than the window.
    slots: which 1 / fps of the video each keyframe stands for.
    window: largest gap, in slots, of pairs that are candidates by their time.
  """

  frame_pairs: Sequence[SelectedPair]
  rejected: Sequence[rejections.Rejection]
  counts: Mapping[str, collections.Counter[int]]
  slots: Sequence[int]
  window: int

  def gap(self, pair: tracks.FramePair) -> int:
    """Slots between the frames of a pair."""
    return _gap(self.slots, pair)

  def is_beyond(self, pair: tracks.FramePair) -> bool:
    """Whether the frames are further apart than the window."""
    return self.gap(pair) > self.window


def select(
  solution: solver.Solution,
  *,
  slots: Sequence[int],
  split_of: Sequence[str],
  window: int,
) -> Selection:
  """Sorts out the frame pairs of a solved video.

  Args:
    solution: poses of the keyframes, and what is known of their pairs.
    slots: of the keyframes; see `Selection`.
    split_of: the split of each keyframe.
    window: see `Selection`.
  """
  selected: list[SelectedPair] = []
  rejected = [
    rejections.Rejection(
      stage=rejections.Stage.POSES,
      reason=rejections.Reason.NO_POSE,
      frames=(frame,),
    )
    for frame in np.flatnonzero(solution.component < 0).tolist()
  ]
  counts: dict[str, collections.Counter[int]] = collections.defaultdict(
    collections.Counter
  )
  for pair, verified in sorted(solution.verifications.items()):
    rejection = _rejection(pair, verified, split_of)
    if rejection is None:
      kind = 'posed'
      selected.append(SelectedPair(frames=pair, confidence=verified.confidence))
    else:
      is_split = rejection.stage is rejections.Stage.SPLIT
      kind = 'split_apart' if is_split else 'refused'
      rejected.append(rejection)
    # Beyond the window: where the path returns, or keyframes are missing.
    gap = _gap(slots, pair)
    counts[f'{kind}_beyond' if gap > window else kind][gap] += 1
  selected += [
    SelectedPair(
      frames=(long.source, long.target),
      confidence=long.confidence,
      hops=long.hops,
    )
    for long in solution.long_pairs
    if split_of[long.source] == split_of[long.target]
  ]
  return Selection(
    frame_pairs=selected,
    rejected=rejected,
    counts=counts,
    slots=slots,
    window=window,
  )


def _gap(slots: Sequence[int], pair: tracks.FramePair) -> int:
  return slots[pair[1]] - slots[pair[0]]


def _rejection(
  pair: tracks.FramePair,
  verified: verification.Verification,
  split_of: Sequence[str],
) -> rejections.Rejection | None:
  """Why no views of a pair are looked for; None where they are."""
  if split_of[pair[0]] != split_of[pair[1]]:
    return rejections.Rejection(
      stage=rejections.Stage.SPLIT,
      reason=rejections.Reason.SPLITS,
      frames=pair,
    )
  if verified.reason is not None:
    return rejections.Rejection(
      stage=rejections.Stage.POSES,
      reason=verified.reason,
      frames=pair,
    )
  return None
