"""Which points of two views look alike: SIFT features and their matches.

RootSIFT (Arandjelovic and Zisserman, "Three things everyone should know to
improve object retrieval", 2012), matched where each is the other's nearest by
far (Lowe, "Distinctive image features from scale-invariant keypoints", 2004).
The settings are those that TSED was measured with, COLMAP's
(https://github.com/YorkUCVIL/Photoconsistent-NVS,
src/scripts/colmap-recover-matches.py); the features are OpenCV's.
"""

from typing import NamedTuple

import cv2
from jaxtyping import Float, UInt8
import numpy as np

# Both ways the nearest has to be this much nearer than the next.
MAX_RATIO = 0.8
# COLMAP's peak threshold is that of one of three layers of an octave.
_PEAK_THRESHOLD, _LAYERS = 0.02 / 3, 3
_EDGE_THRESHOLD = 30


class Features(NamedTuple):
  """Of one view.

  Attributes:
    points: (u, v) in pixels; the centre of the first pixel is at 0.5.
    descriptors: of unit length.
  """

  points: Float[np.ndarray, 'n 2']
  descriptors: Float[np.ndarray, 'n 128']


def features(image: UInt8[np.ndarray, 'h w 3']) -> Features:
  """The features of an sRGB view; none where it has no texture."""
  sift = cv2.SIFT_create(
    nOctaveLayers=_LAYERS,
    contrastThreshold=_PEAK_THRESHOLD * _LAYERS,
    edgeThreshold=_EDGE_THRESHOLD,
    enable_precise_upscale=True,
  )
  grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
  points, descriptors = sift.detectAndCompute(grey, None)
  if descriptors is None:
    return Features(np.zeros((0, 2)), np.zeros((0, 128)))
  descriptors = descriptors.astype(np.float64)
  total = np.maximum(descriptors.sum(1, keepdims=True), 1e-12)
  # OpenCV counts pixel centres from 0.
  where = np.array([point.pt for point in points], np.float64) + 0.5
  return Features(where, np.sqrt(descriptors / total))


def _nearest(
  similarity: Float[np.ndarray, 'n m'],
) -> tuple[np.ndarray, np.ndarray]:
  """The most similar column of every row, and whether it is so by far."""
  angle = np.arccos(np.clip(similarity, -1, 1))
  best, second = np.partition(angle, 1, axis=1)[:, :2].T
  return angle.argmin(axis=1), best < MAX_RATIO * second


def matches(
  a: Features, b: Features
) -> tuple[Float[np.ndarray, 'k 2'], Float[np.ndarray, 'k 2']]:
  """Points of one view and those of the other that they look like."""
  if min(len(a.points), len(b.points)) < 2:
    return np.zeros((0, 2)), np.zeros((0, 2))
  similarity = a.descriptors @ b.descriptors.T
  to_b, is_clear = _nearest(similarity)
  to_a, is_clear_back = _nearest(similarity.T)
  rows = np.arange(len(to_b))
  kept = is_clear & is_clear_back[to_b] & (to_a[to_b] == rows)
  return a.points[kept], b.points[to_b[kept]]
