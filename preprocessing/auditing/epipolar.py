"""Do two views obey their pose? Fresh matches against epipolar geometry.

Nothing here uses the code that found the pose.
"""

from typing import Any, Mapping

import cv2
from jaxtyping import Float, UInt8
import numpy as np

from odin_jax.shared import camera
from preprocessing.writing import jpeg

_RATIO = 0.8
# Fewer matches say nothing of a pair.
MIN_MATCHES = 8
_DRAWN_MATCHES = 10


def mutual_matches(
  source: UInt8[np.ndarray, 'h w'], target: UInt8[np.ndarray, 'h w']
) -> tuple[Float[np.ndarray, 'n 2'], Float[np.ndarray, 'n 2']]:
  """SIFT features that are each other's nearest and pass the ratio test.

  Returns:
    (u, v) in the source and in the target, pixel centres at integer + 0.5.
  """
  sift = cv2.SIFT_create()
  points, descriptors = zip(
    *(sift.detectAndCompute(image, None) for image in (source, target))
  )
  empty = np.zeros((0, 2))
  if any(rows is None or len(rows) < 2 for rows in descriptors):
    return empty, empty
  matcher = cv2.BFMatcher(cv2.NORM_L2)
  forward = _ratio_matches(matcher, *descriptors)
  backward = _ratio_matches(matcher, descriptors[1], descriptors[0])
  pairs = sorted((i, j) for i, j in forward.items() if backward.get(j) == i)
  if not pairs:
    return empty, empty
  # OpenCV counts pixel centres from 0.
  ends = [
    np.array([points[side][pair[side]].pt for pair in pairs], np.float64) + 0.5
    for side in range(2)
  ]
  return ends[0], ends[1]


def _ratio_matches(
  matcher: cv2.BFMatcher, query: np.ndarray, train: np.ndarray
) -> dict[int, int]:
  return {
    best.queryIdx: best.trainIdx
    for best, second in matcher.knnMatch(query, train, k=2)
    if best.distance < _RATIO * second.distance
  }


def fundamental_matrix(
  target2source: Float[np.ndarray, '3 4'], matrix: Float[np.ndarray, '3 3']
) -> Float[np.ndarray, '3 3']:
  """F with `pixel_source^T F pixel_target == 0`; `matrix` of both views."""
  inverse = np.linalg.inv(matrix)
  return inverse.T @ camera.essential_matrix(target2source) @ inverse


def sampson_px(
  points_source: Float[np.ndarray, 'n 2'],
  points_target: Float[np.ndarray, 'n 2'],
  target2source: Float[np.ndarray, '3 4'],
  matrix: Float[np.ndarray, '3 3'],
) -> Float[np.ndarray, 'n']:
  """Sampson distance of matches to an epipolar geometry, in pixels.

  Hartley and Zisserman, Multiple View Geometry, equation 11.9.

  Args:
    points_source: pixels in the source.
    points_target: the same points in the target.
    target2source: pose.
    matrix: intrinsics of both views.
  """
  fundamental = fundamental_matrix(target2source, matrix)
  source, target = (
    np.concatenate([points, np.ones((len(points), 1))], axis=1)
    for points in (points_source, points_target)
  )
  lines_source = target @ fundamental.T
  lines_target = source @ fundamental
  residual = np.abs(np.sum(source * lines_source, axis=1))
  slope = np.sum(lines_source[:, :2] ** 2 + lines_target[:, :2] ** 2, axis=1)
  return residual / np.sqrt(np.maximum(slope, 1e-24))


def fresh_errors_px(record: Mapping[str, Any]) -> Float[np.ndarray, 'n']:
  """Sampson distances of a record's fresh matches, at the pictures' size."""
  source, target = (
    jpeg.decode_grey(record[f'{side}/image']) for side in ('source', 'target')
  )
  points = mutual_matches(source, target)
  matrix = camera.intrinsics(record['fov_deg'], source.shape[0])
  pose = record['target2source'].astype(np.float64)
  return sampson_px(*points, pose, matrix)


def median_error_px(record: Mapping[str, Any]) -> float | None:
  """Median Sampson distance of a record's fresh matches.

  Returns:
    pixels at the pictures' size; None when they share too few features.
  """
  errors = fresh_errors_px(record)
  return float(np.median(errors)) if len(errors) >= MIN_MATCHES else None


def draw(record: Mapping[str, Any]) -> UInt8[np.ndarray, 'h w 3']:
  """Source and target side by side, with matches and their epipolar lines.

  A match has one colour: its two points, and in either view the line on which
  the pose expects the other view's point.

  Returns:
    RGB.
  """
  pictures = [record[f'{side}/image'] for side in ('source', 'target')]
  points = mutual_matches(*map(jpeg.decode_grey, pictures))
  views = [jpeg.decode(picture) for picture in pictures]
  matrix = camera.intrinsics(record['fov_deg'], views[0].shape[0])
  pose = record['target2source'].astype(np.float64)
  fundamental = fundamental_matrix(pose, matrix)
  order = np.argsort(sampson_px(*points, pose, matrix))
  # Good matches, evenly from left to right, so that lines do not crowd.
  good = order[: max(_DRAWN_MATCHES, len(order) // 2)]
  good = good[np.argsort(points[0][good, 0])]
  step = max(1, len(good) // _DRAWN_MATCHES)
  drawn = []
  # x_source^T F x_target = 0: F x_target is a line in the source.
  sides = ((fundamental, points[1]), (fundamental.T, points[0]))
  for index, (matrix_here, facing) in enumerate(sides):
    canvas = np.ascontiguousarray(views[index])
    for number, match in enumerate(good[::step]):
      hue = np.uint8([[[180 * number // _DRAWN_MATCHES % 180, 255, 255]]])
      colour = cv2.cvtColor(hue, cv2.COLOR_HSV2RGB)[0, 0].tolist()
      _draw_line(canvas, matrix_here @ np.append(facing[match], 1.0), colour)
      u, v = (int(value) for value in points[index][match])
      cv2.circle(canvas, (u, v), 3, colour, 1, cv2.LINE_AA)
    drawn.append(canvas)
  return np.concatenate(drawn, axis=1)


def _draw_line(
  canvas: UInt8[np.ndarray, 'h w 3'],
  line: Float[np.ndarray, '3'],
  colour: list[int],
) -> None:
  a, b, c = line
  size = canvas.shape[0]
  # Crossing the two borders that the line meets less steeply.
  if abs(b) > abs(a):
    ends = [(0.0, -c / b), (float(size), -(c + a * size) / b)]
  else:
    ends = [(-c / a, 0.0), (-(c + b * size) / a, float(size))]
  limit = 1e4  # OpenCV draws within 16 bits.
  ends = np.clip(np.array(ends), -limit, limit).astype(int).tolist()
  cv2.line(canvas, ends[0], ends[1], colour, 1, cv2.LINE_AA)
