"""Relative pose and scale from pointmaps.

A pointmap holds the scene point of every pixel of a view. A network that gives
those of two views in the axes of the first (DUSt3R, MASt3R, VGGT) says with
that where the second camera stands: PnP between its pixels and their points,
since the views' field of view is known. In units of the second camera's
distance its points are as far away as `scale_averaging` needs them.

PnP: X.-S. Gao et al., "Complete solution classification for the
perspective-three-point problem", PAMI 2003; RANSAC and Levenberg-Marquardt as
in OpenCV.
"""

import dataclasses

import cv2
from jaxtyping import Bool, Float, Float32
import numpy as np

from odin_jax.shared import camera

_TRIALS = 300
_RANSAC_CONFIDENCE = 0.9999
_ROUNDS = 3
# A pose has 6 degrees of freedom and a point gives 2; far fewer than this mean
# nothing.
_MIN_POINTS = 20
# OpenCV remaps to images of at most 32767 columns.
_MAX_ROW = 30_000


@dataclasses.dataclass(frozen=True, kw_only=True)
class ViewPose:
  """Where view two stands, as pointmaps say it.

  Attributes:
    target2source: pose of view two in the axes and the unit of view one's
      pointmap.
    confidence: share of the confident points that agree with the pose.
    num_inliers: how many of them were found to agree.
  """

  target2source: Float[np.ndarray, '3 4']
  confidence: float
  num_inliers: int


def read(
  values: Float32[np.ndarray, 'h w *c'], pixels: Float[np.ndarray, 'n 2']
) -> Float32[np.ndarray, 'n *c']:
  """Values of a map at pixel coordinates, bilinear; borders are repeated."""
  # OpenCV counts pixel centres from 0.
  places = (pixels - 0.5).astype(np.float32)
  read_values = np.zeros((len(pixels), *values.shape[2:]), np.float32)
  for start in range(0, len(pixels), _MAX_ROW):
    row = places[None, start : start + _MAX_ROW]
    read_values[start : start + _MAX_ROW] = cv2.remap(
      values, row, None, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE
    )[0]
  return read_values


def pose_from_pointmap(
  points: Float32[np.ndarray, 'h w 3'],
  confidence: Float32[np.ndarray, 'h w'],
  *,
  fov_deg: float,
  min_confidence: float,
  max_error_px: float,
  max_points: int = 2000,
) -> ViewPose | None:
  """Pose of view two from its pointmap in the axes of view one.

  Args:
    points: scene point of each pixel of view two, in the axes of view one.
    confidence: of each point.
    fov_deg: horizontal field of view of view two; pixels are square.
    min_confidence: points with less are not used.
    max_error_px: largest reprojection error of an inlier.
    max_points: so many, spread evenly over the confident ones, are used.

  Returns:
    the pose, or None where too few points agree on one.
  """
  height, width = confidence.shape
  good = np.flatnonzero(
    (confidence >= min_confidence) & np.isfinite(points).all(axis=-1)
  )
  if len(good) < _MIN_POINTS:
    return None
  count = min(max_points, len(good))
  good = good[np.linspace(0, len(good) - 1, count).round().astype(np.int64)]
  scene = points.reshape(-1, 3)[good].astype(np.float64)
  pixels = np.stack([good % width, good // width], axis=-1) + 0.5
  matrix = intrinsics(fov_deg, width, height)
  is_posed, turn, shift, _ = cv2.solvePnPRansac(
    scene,
    pixels,
    matrix,
    None,
    iterationsCount=_TRIALS,
    reprojectionError=max_error_px,
    confidence=_RANSAC_CONFIDENCE,
    flags=cv2.SOLVEPNP_AP3P,
  )
  if not is_posed:
    return None
  for _ in range(_ROUNDS):
    inliers = _agree(scene, pixels, matrix, turn, shift, max_error_px)
    if inliers.sum() < _MIN_POINTS:
      return None
    turn, shift = cv2.solvePnPRefineLM(
      scene[inliers], pixels[inliers], matrix, None, turn, shift
    )
  inliers = _agree(scene, pixels, matrix, turn, shift, max_error_px)
  return ViewPose(
    target2source=camera.inverse(_pose(turn, shift)),
    confidence=float(inliers.mean()),
    num_inliers=int(inliers.sum()),
  )


def intrinsics(
  fov_deg: float, width: int, height: int
) -> Float[np.ndarray, '3 3']:
  """K of a centred view of square pixels whose width spans `fov_deg`."""
  matrix = camera.intrinsics(fov_deg, width)
  matrix[1, 2] = height / 2
  return matrix


def _pose(turn: np.ndarray, shift: np.ndarray) -> Float[np.ndarray, '3 4']:
  return camera.make_pose(cv2.Rodrigues(turn)[0], shift[:, 0])


def _agree(
  scene: Float[np.ndarray, 'n 3'],
  pixels: Float[np.ndarray, 'n 2'],
  matrix: Float[np.ndarray, '3 3'],
  turn: np.ndarray,
  shift: np.ndarray,
  max_error_px: float,
) -> Bool[np.ndarray, 'n']:
  """Which points lie in front of the camera and near their pixels."""
  projected, depth = camera.project(
    camera.transform(_pose(turn, shift), scene), matrix
  )
  error_px = np.linalg.norm(projected - pixels, axis=1)
  return (depth > 0) & (error_px < max_error_px)
