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
from scipy import sparse
from scipy.sparse import csgraph

from odin_jax.shared import camera
from preprocessing import (
  bundle,
  chain,
  gauge,
  joint,
  masks,
  matchers,
  pairs,
  two_view,
  verdicts,
)

Frames = Sequence[matchers.Features]
Fits = dict[pairs.FramePair, two_view.PairFit]
Verdicts = dict[pairs.FramePair, verdicts.Verdict]


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
  verdicts: Mapping[pairs.FramePair, verdicts.Verdict]
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
    rules: verdicts.PoseRules,
    max_gap: int,
    pixel_rad: float,
  ):
    self._features = list(features)
    self._arrivals = list(arrivals)
    self._matcher = matcher
    self._rules = rules
    self._max_gap = max_gap
    self._pixel_rad = pixel_rad
    self._judge = verdicts.Judge(rules, pixel_rad)
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
    found: Verdicts = {}
    for _ in range(self._rules.rounds):
      progress('pairs')
      matches = self._match_window(component, poses, tracks, points)
      found = self._judge.compare(self._features, poses, matches)
      progress('refinement')
      tracks = self._tracks(_kept(matches, found))
      poses, points, observations = self._refine(component, poses, tracks)
    for pair in _kept(matches, found):
      found[pair] = self._judge.verify(
        self._features, poses, pair, matches[pair]
      )
    whole, component = component, _regroup(component, found)
    if not np.array_equal(whole, component):
      # What fell apart has no common scale: each part is solved by itself.
      tracks = self._tracks(_kept(matches, found))
      poses, points, observations = self._refine(component, poses, tracks)
    poses, points = gauge.normalise(component, poses, points, observations)
    return Solution(
      component=component,
      frame2scene=poses,
      points=points,
      observations=observations,
      verdicts=self._complete(component, found),
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
    errors = bundle.errors_rad(poses, points, observations)
    return round(float(np.median(errors)) / self._pixel_rad, 4)

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

  def _mask(self) -> masks.Mask:
    """Finds what is never scene and takes its features out."""
    persistence = masks.Persistence()
    for frame, arrived in enumerate(self._arrivals):
      before = self._features[frame].rays
      known = np.isfinite(arrived[:, 0])
      fit = self._judge.fit(before[known], arrived[known])
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
      fit = self._judge.fit(
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
    return joint.refine(
      component,
      poses,
      self._observations(tracks),
      tracks.num_points,
      max_iterations=self._rules.max_iterations,
    )

  def _complete(self, component: np.ndarray, found: Verdicts) -> Verdicts:
    """Verdicts of all candidates, also of those that were never matched."""
    complete = {}
    for pair in pairs.candidates(len(self._features), self._max_gap):
      if pair in found:
        complete[pair] = found[pair]
      elif min(component[list(pair)]) < 0:
        complete[pair] = verdicts.dropped('frame without a pose')
      else:
        complete[pair] = verdicts.dropped('different components')
    return complete

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


def _shared(
  one: Int[np.ndarray, 'n'], other: Int[np.ndarray, 'm']
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """Points that two frames have in common, and their features."""
  ids, first, second = np.intersect1d(one, other, return_indices=True)
  real = ids >= 0
  return ids[real], first[real], second[real]


def _kept(
  matches: pairs.Matches, found: Verdicts
) -> dict[pairs.FramePair, np.ndarray]:
  """The matches of the pairs that are good so far."""
  return {
    pair: matched for pair, matched in matches.items() if not found[pair].reason
  }


def _regroup(
  component: Int[np.ndarray, 'f'], found: Verdicts
) -> Int[np.ndarray, 'f']:
  """Components by kept pairs alone, numbered by first frame; -1 without."""
  kept = [pair for pair, verdict in found.items() if not verdict.reason]
  ends = np.array(kept, np.int64).reshape(-1, 2)
  graph = sparse.coo_array(
    (np.ones(len(ends)), (ends[:, 0], ends[:, 1])),
    shape=(len(component), len(component)),
  )
  _, label = csgraph.connected_components(graph, directed=False)
  alone = np.bincount(label)[label] < 2
  seen = list(dict.fromkeys(label[~alone].tolist()))
  return np.array([-1 if a else seen.index(x) for x, a in zip(label, alone)])
