"""Features of all frames -> one joint solution per component.

1. Neighbours are matched near the places where their points arrived by small
   steps (`tracking`), and fitted pair by pair.
2. `chain` makes starting poses of them, `bundle` refines these: composed poses
   that no repeated texture can have turned round.
3. Every frame pair of the window is matched near the places where the composed
   poses and the triangulated points put them. A robust fit of the pair alone
   that disagrees with the composed pose rejects the pair.
4. All matches of the pairs that agree are joined into points, and everything
   is refined together. Each pair is checked against the result.
"""

import dataclasses
from typing import Callable, Mapping, Sequence

from jaxtyping import Float, Int
import numpy as np

from odin_jax.shared import camera
from preprocessing import (
  alignment,
  bundle,
  chain,
  masks,
  matchers,
  pairs,
  two_view,
)

# An observation is kept within so many standard errors; before the first
# refinement within more.
_INLIER_SIGMA = 4.0
_START_SIGMA = 10.0
# Points seen under less parallax have no useful depth.
_MIN_POINT_PARALLAX_DEG = 0.3
_SEED = 0

Frames = Sequence[matchers.Features]
Fits = dict[pairs.FramePair, two_view.PairFit]


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
    chain_gap: pairs up to this many frames apart make the chain.
    rounds: matching and refinement are repeated so often.
    max_iterations: of each refinement.
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
class Verdict:
  """Whether a frame pair is kept.

  Attributes:
    reason: why it is dropped; '' where it is kept.
    confidence: share of its matches that obey the joint solution.
    matches: how many there were.
  """

  reason: str
  confidence: float
  matches: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class Solution:
  """Poses of all frames of a video and what they rest on.

  Attributes:
    component: of each frame; -1 where it has none.
    frame2scene: pose of each frame in its component, median depth 1.
    points: in scene coordinates of their component; NaN where not used.
    observations: that obey the solution.
    verdicts: of every candidate pair.
    mask: what was not used.
    figures: counts, for the manifest.
  """

  component: Int[np.ndarray, 'f']
  frame2scene: Float[np.ndarray, 'f 3 4']
  points: Float[np.ndarray, 'p 3']
  observations: bundle.Observations
  verdicts: Mapping[pairs.FramePair, Verdict]
  mask: masks.Mask
  figures: Mapping[str, int | float]

  def points_of_pair(
    self, source: int, target: int
  ) -> Float[np.ndarray, 'n 3']:
    """The points that either frame of a pair sees."""
    seen = self.observations.point[
      np.isin(self.observations.frame, (source, target))
    ]
    return self.points[np.unique(seen)]


class Solver:
  """Solves one video; see the module docstring.

  Args:
    features: of each keyframe.
    arrivals: for each keyframe but the last, where its points arrived in the
      next one; NaN for those that were lost.
    matcher: what made the features.
    rules: thresholds.
    max_gap: largest gap of a pair, in frames.
    pixel_rad: angle of one panorama pixel at the equator.
  """

  def __init__(
    self,
    features: Frames,
    arrivals: Sequence[Float[np.ndarray, 'n 3']],
    matcher: matchers.Matcher,
    *,
    rules: PoseRules,
    max_gap: int,
    pixel_rad: float,
  ):
    self._features = list(features)
    self._arrivals = list(arrivals)
    self._matcher = matcher
    self._rules = rules
    self._max_gap = max_gap
    self._max_error_rad = rules.max_error_px * pixel_rad
    self._matcher_calls = 0

  def solve(self, progress: Callable[[str], None] = lambda _: None) -> Solution:
    """Runs all steps; `progress` is told the name of each."""
    progress('chain')
    mask = self._mask()
    matches = self._match_neighbours()
    tracks = self._tracks(matches)
    start = self._chain(matches, tracks)
    component, poses = start.component, start.frame2scene
    poses, points, observations = self._refine(component, poses, tracks)
    verdicts: dict[pairs.FramePair, Verdict] = {}
    for _ in range(self._rules.rounds):
      progress('pairs')
      matches = self._match_window(component, poses, tracks, points)
      verdicts = self.compare(component, poses, matches)
      kept = {
        pair: matches[pair] for pair in matches if not verdicts[pair].reason
      }
      progress('refinement')
      tracks = self._tracks(kept)
      poses, points, observations = self._refine(component, poses, tracks)
    for pair, matched in matches.items():
      if not verdicts[pair].reason:
        verdicts[pair] = self._verify(poses, pair, matched)
    poses, points = _normalise(component, poses, points, observations)
    return Solution(
      component=component,
      frame2scene=poses,
      points=points,
      observations=observations,
      verdicts=verdicts,
      mask=mask,
      figures={
        'matcher_calls': self._matcher_calls,
        'points': int(np.isfinite(points[:, 0]).sum()),
        'observations': len(observations.frame),
        'refused_matches': tracks.num_refused,
        'residual_median_px': self._residual_px(poses, points, observations),
      },
    )

  def _residual_px(
    self,
    poses: np.ndarray,
    points: np.ndarray,
    observations: bundle.Observations,
  ) -> float:
    if not len(observations.frame):
      return 0.0
    pixel_rad = self._max_error_rad / self._rules.max_error_px
    errors = bundle.errors_rad(poses, points, observations)
    return round(float(np.median(errors)) / pixel_rad, 4)

  def _match(
    self, source: int, target: int, expected: np.ndarray
  ) -> Int[np.ndarray, 'm 2']:
    self._matcher_calls += 1
    return self._matcher.match(
      self._features[source],
      self._features[target],
      expected=expected,
      gate_rad=np.deg2rad(self._rules.gate_deg),
    )

  def _match_neighbours(self) -> dict[pairs.FramePair, np.ndarray]:
    return {
      (frame, frame + 1): self._match(frame, frame + 1, arrived)
      for frame, arrived in enumerate(self._arrivals)
    }

  def _tracks(self, matches: pairs.Matches) -> pairs.Tracks:
    return pairs.Tracks(matches, [len(frame) for frame in self._features])

  def _fit(
    self, source_rays: np.ndarray, target_rays: np.ndarray
  ) -> two_view.PairFit | None:
    return two_view.fit_pair(
      source_rays,
      target_rays,
      max_error_rad=self._max_error_rad,
      min_inliers=self._rules.min_inliers,
      min_parallax_rad=np.deg2rad(self._rules.min_parallax_deg),
      seed=_SEED,
    )

  def _mask(self) -> masks.Mask:
    """Finds what is never scene and takes its features out."""
    persistence = masks.Persistence()
    for frame, arrived in enumerate(self._arrivals):
      before = self._features[frame].rays
      known = np.isfinite(arrived[:, 0])
      fit = self._fit(before[known], arrived[known])
      if fit is not None and fit.moves:
        persistence.add(before[known], arrived[known], fit.inliers)
    mask = masks.union(
      masks.below(self._rules.mask_below_deg),
      persistence.mask(self._rules.mask_min_persistence),
    )
    for frame, features in enumerate(self._features):
      keep = ~mask.holds(features.rays)
      self._features[frame] = features.subset(keep)
      if frame < len(self._arrivals):
        self._arrivals[frame] = self._arrivals[frame][keep]
    return mask

  def _chain(self, matches: pairs.Matches, tracks: pairs.Tracks) -> chain.Chain:
    points = [
      tracks.by_feature(frame, len(features))
      for frame, features in enumerate(self._features)
    ]
    fits: Fits = {}
    ids = {}
    for pair in pairs.candidates(len(points), self._rules.chain_gap):
      shared, one, other = _shared(*(points[frame] for frame in pair))
      fit = self._fit(
        self._features[pair[0]].rays[one], self._features[pair[1]].rays[other]
      )
      if fit is not None:
        fits[pair], ids[pair] = fit, shared
    return chain.chain(
      len(points), fits, ids, min_shared=self._rules.min_inliers // 2
    )

  def _observations(self, tracks: pairs.Tracks) -> bundle.Observations:
    starts = np.concatenate(
      [[0], np.cumsum([len(frame) for frame in self._features])]
    )
    index = starts[tracks.frame] + tracks.feature
    return bundle.Observations(
      frame=tracks.frame,
      point=tracks.point,
      ray=np.concatenate([frame.rays for frame in self._features])[index],
      noise_rad=np.concatenate([frame.noise_rad for frame in self._features])[
        index
      ],
    )

  def _refine(
    self, component: np.ndarray, poses: np.ndarray, tracks: pairs.Tracks
  ) -> tuple[np.ndarray, np.ndarray, bundle.Observations]:
    """Bundle adjustment of every component, twice, without outliers."""
    everything = self._observations(tracks)
    poses = poses.copy()
    points = np.full((tracks.num_points, 3), np.nan)
    for sigma in (_START_SIGMA, _INLIER_SIGMA):
      used = []
      for index in range(component.max(initial=-1) + 1):
        frames = np.flatnonzero(component == index)
        mine = everything.subset(component[everything.frame] == index)
        mine, points_mine = _inliers(poses, mine, tracks.num_points, sigma)
        poses[frames], points_mine = self._adjust(
          frames, poses, points_mine, mine
        )
        seen = np.isfinite(points_mine[:, 0])
        points[seen] = points_mine[seen]
        used.append(mine)
    return poses, points, _concatenate(used)

  def _adjust(
    self,
    frames: np.ndarray,
    poses: np.ndarray,
    points: np.ndarray,
    observations: bundle.Observations,
  ) -> tuple[np.ndarray, np.ndarray]:
    """Adjusts some frames and the points that they see; others become NaN."""
    ids, point = np.unique(observations.point, return_inverse=True)
    adjusted, moved = bundle.adjust(
      poses[frames],
      points[ids],
      dataclasses.replace(
        observations,
        frame=np.searchsorted(frames, observations.frame),
        point=point,
      ),
      max_iterations=self._rules.max_iterations,
    )
    result = np.full_like(points, np.nan)
    result[ids] = moved
    return adjusted, result

  def _match_window(
    self,
    component: np.ndarray,
    poses: np.ndarray,
    tracks: pairs.Tracks,
    points: np.ndarray,
  ) -> dict[pairs.FramePair, np.ndarray]:
    """Matches all pairs of the window, near where the poses put each point."""
    found = {}
    ids = [
      tracks.by_feature(frame, len(features))
      for frame, features in enumerate(self._features)
    ]
    # The last row stands for features that show no point.
    points = np.concatenate([points, np.full((1, 3), np.nan)])
    for pair in pairs.candidates(len(self._features), self._max_gap):
      source, target = pair
      if not component[source] == component[target] >= 0:
        continue
      local = camera.transform(
        camera.inverse(poses[target]), points[ids[source]]
      )
      expected = local / np.linalg.norm(local, axis=1, keepdims=True)
      if target == source + 1:
        unknown = np.isnan(expected)
        expected = np.where(unknown, self._arrivals[source], expected)
      found[pair] = np.unique(
        np.concatenate(
          [
            self._match(source, target, expected),
            self._common(pair, ids, expected),
          ]
        ),
        axis=0,
      )
    return found

  def _common(
    self, pair: pairs.FramePair, ids: list[np.ndarray], expected: np.ndarray
  ) -> Int[np.ndarray, 'm 2']:
    """Matches by way of the frames between: points that both frames show.

    A wide pair changes the look of a point more than a chain of narrow ones.
    """
    source, target = pair
    _, one, other = _shared(ids[source], ids[target])
    off = np.linalg.norm(
      expected[one] - self._features[target].rays[other], axis=1
    )
    near = off < np.deg2rad(self._rules.gate_deg / 4)
    return np.stack([one[near], other[near]], axis=1)

  def compare(
    self, component: np.ndarray, poses: np.ndarray, matches: pairs.Matches
  ) -> dict[pairs.FramePair, Verdict]:
    """Fits each pair by itself and compares it with the composed pose."""
    verdicts = {}
    for pair in pairs.candidates(len(self._features), self._max_gap):
      if pair not in matches:
        lost = min(component[list(pair)]) < 0
        reason = 'frame without a pose' if lost else 'different components'
        verdicts[pair] = Verdict(reason=reason, confidence=0.0, matches=0)
        continue
      matched = matches[pair]
      fit = self._fit(*self._rays(pair, matched))
      composed = _relative(poses, pair)
      verdicts[pair] = Verdict(
        reason=self._disagreement(fit, composed),
        confidence=0.0,
        matches=len(matched),
      )
    return verdicts

  def _disagreement(
    self, fit: two_view.PairFit | None, composed: np.ndarray
  ) -> str:
    if fit is None:
      return 'too few matches agree'
    off = camera.inverse(composed)[:, :3] @ fit.target2source[:, :3]
    if camera.rotation_angle_deg(off) > self._rules.max_rotation_off_deg:
      return 'own fit turns against the composed pose'
    if not fit.moves:
      return 'too little parallax'
    apart = camera.angle_between_deg(composed[:, 3], fit.target2source[:, 3])
    if apart > self._rules.max_direction_off_deg:
      return 'own fit moves against the composed pose'
    return ''

  def _rays(
    self, pair: pairs.FramePair, matched: np.ndarray
  ) -> tuple[np.ndarray, np.ndarray]:
    source, target = (self._features[frame].rays for frame in pair)
    return source[matched[:, 0]], target[matched[:, 1]]

  def _verify(
    self, poses: np.ndarray, pair: pairs.FramePair, matched: np.ndarray
  ) -> Verdict:
    """Checks a pair's matches against the joint solution."""
    source, target = self._rays(pair, matched)
    relative = _relative(poses, pair)
    error = two_view.epipolar_error_rad(relative, source, target)
    depths = two_view.pair_depths(relative, source, target)
    good = (error < self._max_error_rad) & np.all(depths > 0, axis=0)
    share = float(good.mean()) if len(good) else 0.0
    return Verdict(
      reason=self._weakness(relative, source[good], target[good], share),
      confidence=share,
      matches=len(matched),
    )

  def _weakness(
    self,
    relative: np.ndarray,
    source: np.ndarray,
    target: np.ndarray,
    share: float,
  ) -> str:
    rules = self._rules
    if len(source) < rules.min_inliers:
      return 'too few matches obey the joint solution'
    if share < rules.min_inlier_share:
      return 'too small a share of matches obeys the joint solution'
    turned = target @ relative[:, :3].T
    parallax = np.median(np.linalg.norm(turned - source, axis=1))
    if parallax < np.deg2rad(rules.min_parallax_deg):
      return 'too little parallax'
    spread = np.linalg.eigvalsh(source.T @ source / len(source))[0]
    if spread < rules.min_spread:
      return 'matches lie too close together'
    return ''


def _shared(
  one: Int[np.ndarray, 'n'], other: Int[np.ndarray, 'm']
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """Points that two frames have in common, and their features."""
  ids, first, second = np.intersect1d(one, other, return_indices=True)
  real = ids >= 0
  return ids[real], first[real], second[real]


def _relative(
  poses: Float[np.ndarray, 'f 3 4'], pair: pairs.FramePair
) -> Float[np.ndarray, '3 4']:
  """target2source of a (source, target) pair."""
  return camera.compose(camera.inverse(poses[pair[0]]), poses[pair[1]])


def _inliers(
  poses: np.ndarray,
  observations: bundle.Observations,
  num_points: int,
  sigma: float,
) -> tuple[bundle.Observations, np.ndarray]:
  """Observations that agree on a point, and the points."""
  for _ in range(2):
    points = bundle.triangulate(poses, observations, num_points)
    errors = bundle.errors_rad(poses, points, observations)
    observations = observations.subset(errors < sigma * observations.noise_rad)
    observations = _seen_twice(poses, points, observations)
  points = bundle.triangulate(poses, observations, num_points)
  finite = np.isfinite(points[observations.point, 0])
  return observations.subset(finite), points


def _seen_twice(
  poses: np.ndarray, points: np.ndarray, observations: bundle.Observations
) -> bundle.Observations:
  parallax = bundle.parallax_rad(poses, points, observations)
  counts = np.bincount(observations.point, minlength=len(points))
  good = (counts >= 2) & (parallax > np.deg2rad(_MIN_POINT_PARALLAX_DEG))
  return observations.subset(good[observations.point])


def _concatenate(
  parts: Sequence[bundle.Observations],
) -> bundle.Observations:
  empty = bundle.Observations(
    frame=np.zeros(0, np.int64),
    point=np.zeros(0, np.int64),
    ray=np.zeros((0, 3)),
    noise_rad=np.zeros(0),
  )
  return bundle.Observations(
    **{
      field.name: np.concatenate(
        [getattr(part, field.name) for part in [empty, *parts]]
      )
      for field in dataclasses.fields(bundle.Observations)
    }
  )


def _normalise(
  component: np.ndarray,
  poses: np.ndarray,
  points: np.ndarray,
  observations: bundle.Observations,
) -> tuple[np.ndarray, np.ndarray]:
  """Scales every component so that the median depth of its points is 1."""
  poses, points = poses.copy(), points.copy()
  for index in range(component.max(initial=-1) + 1):
    mine = observations.subset(component[observations.frame] == index)
    depth = median_depth(poses, points, mine)
    poses[component == index, :, 3] /= depth
    points[np.unique(mine.point)] /= depth
  return poses, points


def median_depth(
  poses: Float[np.ndarray, 'f 3 4'],
  points: Float[np.ndarray, 'p 3'],
  observations: bundle.Observations,
) -> float:
  """Median distance of what the frames see, over directions."""
  away = points[observations.point] - poses[observations.frame, :, 3]
  weights = np.concatenate(
    [np.zeros(0)]
    + [
      direction_weights(away[observations.frame == frame])
      for frame in range(len(poses))
    ]
  )
  order = np.argsort(observations.frame, kind='stable')
  return alignment.weighted_median(np.linalg.norm(away[order], axis=1), weights)


def direction_weights(
  away: Float[np.ndarray, 'n 3'],
) -> Float[np.ndarray, 'n']:
  """The solid angle that each point stands for, seen from the origin.

  Points crowd where texture is. So each gets the solid angle of its cell of
  10 degrees, shared with the other points in it.
  """
  away = away / np.linalg.norm(away, axis=1, keepdims=True)
  u, v = camera.direction_to_equirect(away, 36, 18)
  _, cell, counts = np.unique(
    37 * v.astype(int) + u.astype(int), return_inverse=True, return_counts=True
  )
  height = np.hypot(away[:, 0], away[:, 2])
  return np.maximum(height, 1e-3) / counts[cell]
