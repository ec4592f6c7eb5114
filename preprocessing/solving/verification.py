"""Is a frame pair good? Against its own fit, and against the joint solution."""

import dataclasses
import types
from typing import Mapping, Sequence

from jaxtyping import Float, Int
import numpy as np

from odin_jax.shared import camera
from preprocessing import matchers
from preprocessing.solving import relative_pose, tracks
from preprocessing.writing import rejections

# Of the sampling in robust fits.
_SEED = 0

MatcherPoses = Mapping[tracks.FramePair, matchers.PairPose]
_NO_POSES: MatcherPoses = types.MappingProxyType({})


@dataclasses.dataclass(frozen=True, kw_only=True)
class PoseRules:
  """What is a match, a fit and a good pair; the fields of `config.poses`.

  Attributes:
    gate_deg: a match lies at most so far from where it is expected.
    max_error_px: largest epipolar error of an inlier, in panorama pixels at
      the equator.
    min_inliers: of a pair.
    min_inlier_share: of a pair's matches.
    min_parallax_deg: a pair whose points moved by less, in the median, after
      its rotation is taken out, has no direction of translation.
    min_spread: smallest eigenvalue of the mean r r^T of a pair's inliers;
      1/3 for points all around, 0 for points on a great circle.
    max_rotation_off_deg: a pair's own fit may differ by this from the
      composed pose,
    max_direction_off_deg: and in direction of translation by this.
    chain_gap: the start is made from pairs up to this many frames apart.
    rounds: matching and refinement are repeated so often.
    max_iterations: of the last refinement; those before have half as many.
    mask_below_deg: everything lower under the horizon is masked.
    mask_min_persistence: least share of a masked cell's points that stay.
  """

  gate_deg: float
  max_error_px: float
  min_inliers: int
  min_inlier_share: float
  min_parallax_deg: float
  min_spread: float
  max_rotation_off_deg: float
  max_direction_off_deg: float
  chain_gap: int
  rounds: int
  max_iterations: int
  mask_below_deg: float
  mask_min_persistence: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class Verification:
  """Geometric verification of a frame pair.

  Attributes:
    reason: why the pair is dropped; None where it is kept.
    confidence: share of its matches that obey the joint solution; at most
      what the matcher itself says of the pair, if anything.
    matches: how many there were.
  """

  reason: rejections.Reason | None
  confidence: float
  matches: int

  @property
  def is_kept(self) -> bool:
    """Whether nothing speaks against the pair."""
    return self.reason is None


def unmatched(reason: rejections.Reason) -> Verification:
  """That of a pair that was never matched."""
  return Verification(reason=reason, confidence=0.0, matches=0)


class Verifier:
  """Fits and verifies frame pairs.

  Args:
    rules: thresholds.
    pixel_rad: angle of one panorama pixel at the equator.
  """

  def __init__(self, rules: PoseRules, pixel_rad: float):
    self._rules = rules
    self._max_error_rad = rules.max_error_px * pixel_rad

  def fit(
    self,
    source_rays: Float[np.ndarray, 'm 3'],
    target_rays: Float[np.ndarray, 'm 3'],
    matcher_pose: matchers.PairPose | None = None,
  ) -> relative_pose.PairFit | None:
    """The robust solution of a pair alone, or of the matcher's own pose."""
    return relative_pose.fit_pair(
      source_rays,
      target_rays,
      max_error_rad=self._max_error_rad,
      min_inliers=self._rules.min_inliers,
      min_parallax_rad=np.deg2rad(self._rules.min_parallax_deg),
      seed=_SEED,
      proposed=None if matcher_pose is None else matcher_pose.target2source,
    )

  def weakness_alone(
    self,
    fit: relative_pose.PairFit | None,
    source_rays: Float[np.ndarray, 'm 3'],
  ) -> rejections.Reason | None:
    """Why a pair that nothing else is known of is not to be trusted."""
    if fit is None:
      return rejections.Reason.FEW_MATCHES
    if fit.inliers.mean() < self._rules.min_inlier_share:
      return rejections.Reason.SMALL_SHARE
    if _spread(source_rays[fit.inliers]) < self._rules.min_spread:
      return rejections.Reason.NO_SPREAD
    return None

  def compare(
    self,
    features: Sequence[matchers.Features],
    frame2scene: Float[np.ndarray, 'f 3 4'],
    matches: tracks.Matches,
    matcher_poses: MatcherPoses = _NO_POSES,
  ) -> dict[tracks.FramePair, Verification]:
    """Fits each pair by itself and compares it with the composed pose."""
    return {
      pair: Verification(
        reason=self._disagreement(
          self.fit(*_rays(features, pair, matched), matcher_poses.get(pair)),
          _relative(frame2scene, pair),
        ),
        confidence=0.0,
        matches=len(matched),
      )
      for pair, matched in matches.items()
    }

  def _disagreement(
    self, fit: relative_pose.PairFit | None, composed: np.ndarray
  ) -> rejections.Reason | None:
    if fit is None:
      return rejections.Reason.FEW_MATCHES
    off = camera.inverse(composed)[:, :3] @ fit.target2source[:, :3]
    if camera.rotation_angle_deg(off) > self._rules.max_rotation_off_deg:
      return rejections.Reason.OTHER_ROTATION
    if not fit.moves:
      return rejections.Reason.NO_PARALLAX
    apart = camera.angle_between_deg(composed[:, 3], fit.target2source[:, 3])
    if apart > self._rules.max_direction_off_deg:
      return rejections.Reason.OTHER_DIRECTION
    return None

  def verify(
    self,
    features: Sequence[matchers.Features],
    frame2scene: Float[np.ndarray, 'f 3 4'],
    pair: tracks.FramePair,
    matched: Int[np.ndarray, 'm 2'],
    matcher_pose: matchers.PairPose | None = None,
  ) -> Verification:
    """Checks a pair's matches against the joint solution."""
    source, target = _rays(features, pair, matched)
    relative = _relative(frame2scene, pair)
    error = relative_pose.epipolar_error_rad(relative, source, target)
    depths = relative_pose.pair_depths(relative, source, target)
    good = (error < self._max_error_rad) & np.all(depths > 0, axis=0)
    share = float(good.mean()) if len(good) else 0.0
    confidence = share
    if matcher_pose is not None:
      confidence = min(share, matcher_pose.confidence)
    return Verification(
      reason=self._weakness(relative, source[good], target[good], share),
      confidence=confidence,
      matches=len(matched),
    )

  def _weakness(
    self,
    relative: np.ndarray,
    source: np.ndarray,
    target: np.ndarray,
    share: float,
  ) -> rejections.Reason | None:
    rules = self._rules
    if len(source) < rules.min_inliers:
      return rejections.Reason.FEW_INLIERS
    if share < rules.min_inlier_share:
      return rejections.Reason.SMALL_INLIER_SHARE
    turned = target @ relative[:, :3].T
    parallax = np.median(np.linalg.norm(turned - source, axis=1))
    if parallax < np.deg2rad(rules.min_parallax_deg):
      return rejections.Reason.NO_PARALLAX
    if _spread(source) < rules.min_spread:
      return rejections.Reason.NO_SPREAD
    return None


def _spread(rays: Float[np.ndarray, 'm 3']) -> float:
  """Smallest eigenvalue of the mean r r^T."""
  return float(np.linalg.eigvalsh(rays.T @ rays / len(rays))[0])


def _rays(
  features: Sequence[matchers.Features],
  pair: tracks.FramePair,
  matched: Int[np.ndarray, 'm 2'],
) -> tuple[Float[np.ndarray, 'm 3'], Float[np.ndarray, 'm 3']]:
  source, target = (features[frame].rays for frame in pair)
  return source[matched[:, 0]], target[matched[:, 1]]


def _relative(
  poses: Float[np.ndarray, 'f 3 4'], pair: tracks.FramePair
) -> Float[np.ndarray, '3 4']:
  """target2source of a (source, target) pair."""
  return camera.relative(poses[pair[0]], poses[pair[1]])
