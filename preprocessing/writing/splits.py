"""Which frames are for training and which for testing."""

import dataclasses
import hashlib
import math

from odin_jax.shared import errors

SPLIT_BY = ('video', 'time')


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
  """Which records are for testing.

  Attributes:
    split_by: `video`: all frames of a video alike; `time`: one contiguous block
      of test frames in each, at a place that the hash of its id decides.
    test_fraction: expected share of test videos, or share of test frames.
  """

  split_by: str
  test_fraction: float


def _uniform(text: str) -> float:
  """A number in [0, 1) that depends on the text alone."""
  digest = hashlib.sha256(text.encode()).digest()
  return int.from_bytes(digest[:6], 'big') / 2**48


def split_frames(
  video_id: str, num_frames: int, settings: Settings
) -> list[str]:
  """The split of every frame of a video.

  Frame pairs whose frames differ in split belong to neither: they have to be
  dropped, so that no test record shares a frame with training.

  Args:
    video_id: its hash decides, so that other videos change nothing.
    num_frames: frames of the video, in order of time.
    settings: see there.

  Raises:
    errors.UserError: an unknown `split_by`, or a share outside 0..1.
  """
  split_by, test_fraction = settings.split_by, settings.test_fraction
  if split_by not in SPLIT_BY or not 0 <= test_fraction <= 1:
    raise errors.UserError(
      f'split_by={split_by!r}, test_fraction={test_fraction}: give one of '
      f'{SPLIT_BY} and a share in 0..1'
    )
  position = _uniform(f'split of {video_id}')
  if split_by == 'video':
    return ['test' if position < test_fraction else 'train'] * num_frames
  # Less a little: 0.1 * 30 may exceed 3 by a rounding error.
  test = math.ceil(test_fraction * num_frames - 1e-9)
  first = int(position * (num_frames - test + 1))
  return [
    'test' if first <= index < first + test else 'train'
    for index in range(num_frames)
  ]
