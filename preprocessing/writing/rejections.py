"""What of a video was rejected, in which stage and why: rows of the ledger."""

import dataclasses
import enum
from typing import Any, Mapping, Sequence


class Stage(enum.Enum):
  """Where a frame, a pair or a view was rejected; `stage` of a ledger row."""

  FRAMES = 'frames'
  POSES = 'poses'
  GRAPH = 'graph'
  SCALE = 'scale'
  LOOPS = 'loops'
  SPLIT = 'split'
  VIEWS = 'views'
  PAIRS = 'pairs'


class Reason(enum.Enum):
  """Why; `reason` of a ledger row."""

  # Frames.
  BLACK = 'black'
  STATIC = 'static overlay'
  DUPLICATE = 'near-duplicate'
  BLURRED = 'blurred'
  DAMAGED = 'damaged in the file'
  # Poses of frames and of frame pairs.
  NO_POSE = 'frame without a pose'
  OTHER_COMPONENT = 'different components'
  FEW_MATCHES = 'too few matches agree'
  SMALL_SHARE = 'too small a share of matches agrees'
  NO_SPREAD = 'matches lie too close together'
  NO_PARALLAX = 'too little parallax'
  OTHER_ROTATION = 'own fit turns against the composed pose'
  OTHER_DIRECTION = 'own fit moves against the composed pose'
  FEW_INLIERS = 'too few matches obey the joint solution'
  SMALL_INLIER_SHARE = 'too small a share of matches obeys the joint solution'
  # The graph of pairs, its scales and its closures.
  CYCLES = 'pair contradicts the cycles through it'
  SCALES = 'scales of two pairs contradict the others'
  AMBIGUOUS = 'place looks like others'
  SIDES_DISAGREE = 'points of both sides disagree'
  OUTVOTED = 'other closures contradict'
  FEW_AGREE = 'too few closures agree'
  FEW_JOIN = 'too few closures join the components'
  OTHER_POSE = 'contradicts the composed poses'
  # Splits and views.
  SPLITS = 'frames belong to different splits'
  FEW_POINTS = 'too few points in the source view'
  NOT_SEEN = 'view reaches beyond what the camera saw'
  MASKED = 'too much of the view is masked'
  LITTLE_OVERLAP = 'views overlap too little'


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rejection:
  """A row of the ledger before it is written.

  Attributes:
    stage: where.
    reason: why.
    frames: keyframes that it concerns, by index; empty where none is one yet.
    details: further fields of the row, such as `count`.
  """

  stage: Stage
  reason: Reason
  frames: tuple[int, ...] = ()
  details: Mapping[str, Any] = dataclasses.field(default_factory=dict)

  def row(self, times_s: Sequence[float] = ()) -> dict[str, Any]:
    """The row, with the times of its frames.

    Args:
      times_s: of all keyframes.
    """
    of_frames = {}
    if self.frames:
      of_frames = {
        'frames': list(self.frames),
        'times_s': [round(times_s[frame], 3) for frame in self.frames],
      }
    return {
      'stage': self.stage.value,
      'reason': self.reason.value,
      **of_frames,
      **self.details,
    }


def counted(
  stage: Stage, reasons: Mapping[Reason, int], frames: tuple[int, ...] = ()
) -> list[Rejection]:
  """A rejection for every reason, which says how often it was given.

  Args:
    stage: of all of them.
    reasons: how often each was given.
    frames: keyframes that they concern.
  """
  return [
    Rejection(
      stage=stage, reason=reason, frames=frames, details={'count': count}
    )
    for reason, count in sorted(
      reasons.items(), key=lambda entry: entry[0].value
    )
  ]
