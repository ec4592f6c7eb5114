"""The embedded matcher: RootSIFT on the sphere, no weights needed.

A panorama is cut into six cube faces that overlap; SIFT runs on each face and
a point is kept only by the face that owns its direction, so that nothing is
found twice and no seam or pole is special. RootSIFT: R. Arandjelovic and
A. Zisserman, "Three things everyone should know to improve object retrieval",
CVPR 2012.
"""

import types
from typing import Any, Mapping

import cv2
from jaxtyping import Float, Float32, Int, UInt8
import numpy as np
from scipy import spatial

from odin_jax.shared import camera
from preprocessing import matchers
from preprocessing import panorama as panoramas

_FACES_DEG = (
  (0.0, 0.0),
  (90.0, 0.0),
  (180.0, 0.0),
  (-90.0, 0.0),
  (0.0, 90.0),
  (0.0, -90.0),
)
# Wider than a cube face, so that a point near its edge sees its surroundings.
_FACE_FOV_DEG = 100.0
# SIFT locates a point to about this share of its radius, and to a quarter of a
# pixel at best.
_NOISE_SHARE = 0.05
_NOISE_FLOOR_PX = 0.25

# The fields of `config.sphere`.
OPTIONS = types.MappingProxyType(
  dict(
    # Points of a face of the cube: at most so many, the strongest first.
    features_per_face=800,
    # Of SIFT; lower finds more points in dark corners.
    contrast_threshold=0.015,
    # Smallest cosine between the descriptors of a match.
    min_similarity=0.7,
    # Largest ratio of the descriptor distances of the best and the second
    # possible match.
    max_ratio=0.9,
  )
)


def check(options: Mapping[str, Any]) -> matchers.Checked:
  """The options as they are; each may be any number."""
  return matchers.Checked(options=options)


def make(options: Mapping[str, Any]) -> 'SphereMatcher':
  """The matcher with the options of `config.sphere`."""
  return SphereMatcher(**options)


class SphereMatcher:
  """See the module docstring; the arguments are explained in `OPTIONS`."""

  name = 'sphere'

  def __init__(
    self,
    *,
    features_per_face: int,
    contrast_threshold: float,
    min_similarity: float,
    max_ratio: float,
  ):
    self._min_similarity = min_similarity
    self._max_ratio = max_ratio
    self._sift = cv2.SIFT_create(
      nfeatures=features_per_face,
      contrastThreshold=contrast_threshold,
      enable_precise_upscale=True,
    )

  def describe(self, panorama: UInt8[np.ndarray, 'h w 3']) -> matchers.Features:
    """RootSIFT features of a panorama; see `Matcher.describe`."""
    faces = [self._describe_face(panorama, *face) for face in _FACES_DEG]
    return matchers.Features(
      rays=np.concatenate([face.rays for face in faces]),
      noise_rad=np.concatenate([face.noise_rad for face in faces]),
      descriptors=np.concatenate([face.descriptors for face in faces]),
    )

  def _describe_face(
    self, panorama: UInt8[np.ndarray, 'h w 3'], yaw_deg: float, pitch_deg: float
  ) -> matchers.Features:
    half = np.tan(np.deg2rad(_FACE_FOV_DEG / 2))
    focal_px = panorama.shape[1] / (2 * np.pi)
    size_px = int(np.ceil(2 * focal_px * half))
    face = panoramas.cut_view(
      panorama,
      yaw_deg=yaw_deg,
      pitch_deg=pitch_deg,
      fov_deg=_FACE_FOV_DEG,
      size_px=size_px,
    )
    keypoints, descriptors = self._sift.detectAndCompute(
      cv2.cvtColor(face, cv2.COLOR_RGB2GRAY), _near_own(size_px, half)
    )
    if descriptors is None:
      descriptors = np.zeros((0, 128), np.float32)
    # OpenCV counts pixels from their centres.
    pixels = np.array([point.pt for point in keypoints]).reshape(-1, 2) + 0.5
    radius_px = np.array([point.size / 2 for point in keypoints])
    rays = (2 * pixels / size_px - 1) * half
    own = np.all(np.abs(rays) <= 1, axis=1)
    rays = np.column_stack([rays, np.ones(len(rays))])[own]
    rays /= np.linalg.norm(rays, axis=1, keepdims=True)
    noise_px = np.maximum(_NOISE_FLOOR_PX, _NOISE_SHARE * radius_px[own])
    return matchers.Features(
      rays=rays @ camera.view2frame_rotation(yaw_deg, pitch_deg).T,
      noise_rad=noise_px / focal_px,
      descriptors=_root(descriptors[own]),
    )

  def match(
    self,
    source: matchers.Features,
    target: matchers.Features,
    *,
    expected: Float[np.ndarray, 'n 3'] | None = None,
    gate_rad: float = 0.0,
  ) -> Int[np.ndarray, 'm 2']:
    """Mutual nearest neighbours with ratio test; see `Matcher.match`.

    With `expected`, only matches inside the gate compete: this is what
    tells identical things at different places apart.
    """
    source_index, target_index = _possible_matches(
      source, target, expected, gate_rad
    )
    similarity = np.einsum(
      'md,md->m',
      source.descriptors[source_index],
      target.descriptors[target_index],
    )
    best, second = _best_two(source_index, similarity, len(source))
    best_of_target, _ = _best_two(target_index, similarity, len(target))
    limit = self._max_ratio**2 * _distance2(second[source_index])
    good = (
      (similarity >= self._min_similarity)
      & (similarity == best[source_index])
      & (similarity == best_of_target[target_index])
      & (_distance2(similarity) <= limit)
    )
    return np.stack([source_index[good], target_index[good]], axis=1)


def _near_own(size_px: int, half: float) -> UInt8[np.ndarray, 's s']:
  """Where a face describes points: all that it owns, and a hair more."""
  margin = max(0, int(size_px / 2 * (1 - 1 / half)) - 2)
  mask = np.zeros((size_px, size_px), np.uint8)
  mask[margin : size_px - margin, margin : size_px - margin] = 255
  return mask


def _possible_matches(
  source: matchers.Features,
  target: matchers.Features,
  expected: Float[np.ndarray, 'n 3'] | None,
  gate_rad: float,
) -> tuple[Int[np.ndarray, 'c'], Int[np.ndarray, 'c']]:
  """Index pairs that may match: inside the gate, or simply all."""
  if not len(source) or not len(target):
    return np.zeros(0, np.int64), np.zeros(0, np.int64)
  if expected is None:
    return _nearest(source.descriptors @ target.descriptors.T)
  known = np.flatnonzero(np.isfinite(expected).all(axis=1))
  if not len(known):
    return np.zeros(0, np.int64), np.zeros(0, np.int64)
  near = spatial.KDTree(expected[known]).sparse_distance_matrix(
    spatial.KDTree(target.rays),
    2 * np.sin(gate_rad / 2),
    output_type='coo_matrix',
  )
  order = np.lexsort((near.col, near.row))
  return known[near.row[order]], near.col[order].astype(np.int64)


def _nearest(
  similarity: Float32[np.ndarray, 'n m'],
) -> tuple[Int[np.ndarray, 'c'], Int[np.ndarray, 'c']]:
  """The two best columns of every row, and the best row of every column."""
  rows, columns = similarity.shape
  best = np.argpartition(-similarity, min(1, columns - 1), axis=1)[:, :2]
  row = np.concatenate(
    [np.repeat(np.arange(rows), best.shape[1]), similarity.argmax(axis=0)]
  )
  column = np.concatenate([best.ravel(), np.arange(columns)])
  return np.divmod(np.unique(row * columns + column), columns)


def _distance2(similarity: Float32[np.ndarray, 'c']) -> np.ndarray:
  """Half the squared distance of descriptors; identical ones stay above 0."""
  return np.maximum(1 - similarity, 1e-6)


def _best_two(
  index: Int[np.ndarray, 'c'], similarity: Float32[np.ndarray, 'c'], count: int
) -> tuple[Float32[np.ndarray, 'n'], Float32[np.ndarray, 'n']]:
  """Largest and second largest similarity by index; -1 where there is none."""
  order = np.lexsort((similarity, index))
  index, similarity = index[order], similarity[order]
  last = np.flatnonzero(np.append(np.diff(index) > 0, True)[: len(index)])
  best = np.full(count, -1, np.float32)
  second = np.full(count, -1, np.float32)
  best[index[last]] = similarity[last]
  before = last[(last > 0) & (index[last - 1] == index[last])]
  second[index[before]] = similarity[before - 1]
  return best, second


def _root(
  descriptors: Float32[np.ndarray, 'n d'],
) -> Float32[np.ndarray, 'n d']:
  total = np.maximum(descriptors.sum(axis=1, keepdims=True), 1e-9)
  return np.sqrt(descriptors / total)
