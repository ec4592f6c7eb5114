"""What became of frame pairs that were rejected: ledger rows, and pictures."""

import collections
from typing import Any, Sequence

import cv2
import numpy as np

from preprocessing.keyframes import keyframes

# Of each panorama.
_HEIGHT_PX = 160
_QUALITY = [cv2.IMWRITE_JPEG_QUALITY, 80]


def with_times(row: dict[str, Any], times_s: Sequence[float]) -> dict[str, Any]:
  """A ledger row that says when, too."""
  if 'frames' not in row:
    return row
  return {**row, 'times_s': [round(times_s[f], 3) for f in row['frames']]}


def pictures(
  video_id: str,
  dropped: list[dict[str, Any]],
  seen: keyframes.Observed,
  limit: int,
) -> dict[str, bytes]:
  """Pictures of the first rejected pairs of every reason.

  Their rows get `picture`, the file's name in the output folder.
  """
  made: dict[str, bytes] = {}
  count: collections.Counter[tuple[str, str]] = collections.Counter()
  for row in dropped:
    key = row['stage'], row['reason']
    if 'frames' not in row or count[key] >= limit:
      continue
    count[key] += 1
    name = f'rejected/{video_id}/{len(made):03d}.jpg'
    row['picture'] = name
    made[name] = _side_by_side([seen.pictures[f] for f in row['frames']])
  return made


def _side_by_side(images: Sequence[np.ndarray]) -> bytes:
  size = (2 * _HEIGHT_PX, _HEIGHT_PX)
  small = [
    cv2.resize(image, size, interpolation=cv2.INTER_AREA) for image in images
  ]
  joined = np.concatenate(small, axis=1)[..., ::-1]
  return cv2.imencode('.jpg', joined, _QUALITY)[1].tobytes()
