"""What became of frame pairs that were rejected: ledger rows, and pictures."""

import collections
from typing import Any, Sequence

import cv2
from jaxtyping import UInt8
import numpy as np

from preprocessing.writing import jpeg, rejections

# Of each panorama.
_HEIGHT_PX = 160
_JPEG_QUALITY = 80


def rows_and_pictures(
  video_id: str,
  rejected: Sequence[rejections.Rejection],
  *,
  times_s: Sequence[float],
  panoramas: Sequence[UInt8[np.ndarray, 'h w 3']],
  limit: int,
) -> tuple[list[dict[str, Any]], dict[str, bytes]]:
  """Ledger rows of what was rejected, and pictures of the first of a reason.

  Args:
    video_id: the video's stem.
    rejected: in the order of the rows.
    times_s: of all keyframes.
    panoramas: all keyframes.
    limit: most pictures for each stage and reason.

  Returns:
    the rows, those with a picture with its name as `picture`; and the pictures,
    JPEG, by their names in the output folder.
  """
  rows: list[dict[str, Any]] = []
  pictures: dict[str, bytes] = {}
  count: collections.Counter[Any] = collections.Counter()
  for rejection in rejected:
    row = rejection.row(times_s)
    rows.append(row)
    key = rejection.stage, rejection.reason
    if not rejection.frames or count[key] >= limit:
      continue
    count[key] += 1
    name = f'rejected/{video_id}/{len(pictures):03d}.jpg'
    row['picture'] = name
    pictures[name] = _side_by_side(
      [panoramas[frame] for frame in rejection.frames]
    )
  return rows, pictures


def _side_by_side(images: Sequence[np.ndarray]) -> bytes:
  size = (2 * _HEIGHT_PX, _HEIGHT_PX)
  small = [
    cv2.resize(image, size, interpolation=cv2.INTER_AREA) for image in images
  ]
  return jpeg.encode(np.concatenate(small, axis=1), quality=_JPEG_QUALITY)
