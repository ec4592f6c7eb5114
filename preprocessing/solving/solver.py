"""Features of all frames -> one joint solution per component.

1. Neighbours are matched near the places where their points were tracked by
   small steps (`flow_tracker`), and fitted pair by pair. What contradicts the
   cycles that it is in (`pair_graph`) is left out.
2. `initialization` makes initial poses, `refinement` refines these: composed
   poses that no repeated texture can have turned round.
3. Every frame pair of the window is matched near the places where the composed
   poses and the triangulated points put them. A robust fit of the pair alone
   that disagrees with the composed pose rejects the pair.
4. All matches of the pairs that agree are joined into points, and everything
   is refined together.
5. Before the last round of 3 and 4, `loop_detection` finds where the path
   returns, and `loop_closing` joins components and relaxes the poses; closures
   are then matched like all pairs.
6. Each pair is verified against the result. Composed long-range pairs follow.
"""

import dataclasses
import functools
from typing import Callable, Mapping, Sequence

from jaxtyping import Float, Int
import numpy as np

from preprocessing import matchers
from preprocessing.solving import (
  bundle_adjustment,
  initialization,
  loop_closing,
  loop_detection,
  masks,
  matching,
  pair_graph,
  reconstruction,
  refinement,
  scene_scale,
  tracks,
  verification,
)
from preprocessing.writing import rejections


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
  """How videos are solved.

  Attributes:
    poses: what is a match, a fit and a good pair.
    graph: of cycles, closures and long-range pairs.
    max_gap: largest gap of a pair, in keyframes.
    mask: picture of what is known not to be scene; '' for none.
  """

  poses: verification.PoseRules
  graph: pair_graph.GraphRules
  max_gap: int
  mask: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class Solution:
  """Poses of all frames of a video and what they rest on.

  Attributes:
    component: of each frame; -1 where it has none.
    frame2scene: pose of each frame in its component, median depth 1.
    points: in scene coordinates of their component; NaN where not used.
    observations: that obey the solution.
    verifications: of every pair of the window, and of every closure.
    mask: what was not used.
    figures: counts, for the manifest.
    closures: where the path returns, and what joined components;
      `verifications` says which of them are good pairs too.
    long_pairs: composed pairs of frames that were not matched.
    rejected: edges that were cut, scales that disagree, closures that fell.
  """

  component: Int[np.ndarray, 'f']
  frame2scene: Float[np.ndarray, 'f 3 4']
  points: Float[np.ndarray, 'p 3']
  observations: bundle_adjustment.Observations
  verifications: Mapping[tracks.FramePair, verification.Verification]
  mask: masks.Mask
  figures: Mapping[str, int | float]
  closures: Sequence[loop_detection.Closure] = ()
  long_pairs: Sequence[pair_graph.LongPair] = ()
  rejected: Sequence[rejections.Rejection] = ()

  def points_of_pair(
    self, source: int, target: int
  ) -> Float[np.ndarray, 'n 3']:
    """The points that either frame of a pair sees."""
    both = np.concatenate([self._point_ids[source], self._point_ids[target]])
    return self.points[np.unique(both)]

  def points_in_both(
    self, source: int, target: int, *, min_frames: int
  ) -> Float[np.ndarray, 'n 3']:
    """The points that both frames of a pair see, and so many in all."""
    both = np.intersect1d(self._point_ids[source], self._point_ids[target])
    return self.points[both[self._num_frames_of_point[both] >= min_frames]]

  def points_of_frame(
    self, frame: int, *, min_frames: int
  ) -> Float[np.ndarray, 'n 3']:
    """The points that a frame sees, and so many frames in all."""
    seen = self._point_ids[frame]
    return self.points[seen[self._num_frames_of_point[seen] >= min_frames]]

  @functools.cached_property
  def _num_frames_of_point(self) -> Int[np.ndarray, 'p']:
    return np.bincount(self.observations.point, minlength=len(self.points))

  @functools.cached_property
  def _point_ids(self) -> list[Int[np.ndarray, 'n']]:
    """The points that each frame sees."""
    order = np.argsort(self.observations.frame, kind='stable')
    counts = np.bincount(self.observations.frame, minlength=len(self.component))
    return np.split(self.observations.point[order], np.cumsum(counts)[:-1])


@dataclasses.dataclass(frozen=True, kw_only=True)
class _State:
  """What is known of a video so far; every step replaces it.

  Attributes:
    scene: poses and points.
    num_refused: matches that would have given a point two features in a frame.
    pair_matches: of the last round.
    verifications: of the pairs that were matched in it.
    loops: where the path returns.
    rejected: what was left out of the start, and loop candidates that fell.
  """

  scene: reconstruction.Reconstruction
  num_refused: int
  pair_matches: matching.PairMatches
  verifications: Mapping[tracks.FramePair, verification.Verification]
  loops: loop_detection.Search
  rejected: Sequence[rejections.Rejection]


class Solver:
  """Solves one video; see the module docstring.

  Args:
    features: of each keyframe.
    tracked_rays: for each keyframe but the last, where its points are in the
      next one; NaN for those that were lost.
    matcher: what made the features.
    rules: thresholds.
    max_gap: largest gap of a pair, in frames.
    pixel_rad: angle of one panorama pixel at the equator.
    graph_rules: of cycles, closures and long-range pairs; None: without them.
    mask: what is known not to be scene, besides what is found.
  """

  def __init__(
    self,
    features: Sequence[matchers.Features],
    tracked_rays: Sequence[Float[np.ndarray, '_ 3']],
    matcher: matchers.Matcher,
    *,
    rules: verification.PoseRules,
    max_gap: int,
    pixel_rad: float,
    graph_rules: pair_graph.GraphRules | None = None,
    mask: masks.Mask | None = None,
  ):
    self._features = features
    self._tracked_rays = tracked_rays
    self._matcher = matcher
    self._rules = rules
    self._max_gap = max_gap
    self._pixel_rad = pixel_rad
    self._graph_rules = graph_rules
    self._known_mask = mask
    self._verifier = verification.Verifier(rules, pixel_rad)

  def solve(self, progress: Callable[[str], None] = lambda _: None) -> Solution:
    """Runs all steps; `progress` is told the name of each."""
    progress('initialization')
    mask = self._find_mask()
    features, tracked_rays = _without_masked(
      self._features, self._tracked_rays, mask
    )
    matcher = matching.PairMatcher(
      self._matcher,
      features,
      tracked_rays,
      gate_rad=np.deg2rad(self._rules.gate_deg),
    )
    # 1. and 2.: neighbours, and initial poses from them.
    state = self._initialize(features, matcher.match_neighbours())
    for rounds_left in reversed(range(self._rules.rounds)):
      if not rounds_left:
        # 5.: before the last round.
        progress('loops')
        state = self._close_loops(features, matcher, state)
      # 3.: all pairs, near where the poses put their points.
      progress('pairs')
      state = self._match_pairs(features, matcher, state)
      # 4.: everything together.
      progress('refinement')
      state = self._refine(
        features, state, state.scene.component, is_last=not rounds_left
      )
    # 6.: pairs against the result.
    state = self._verify(features, state)
    state = self._split_components(features, state)
    solution = self._solution(state, mask, self._cost(matcher))
    return self._with_long_pairs(solution)

  def _find_mask(self) -> masks.Mask:
    """What is never scene: far down, going with the camera, or known."""
    persistence = masks.Persistence()
    for features, tracked in zip(self._features, self._tracked_rays):
      known = np.isfinite(tracked[:, 0])
      before, after = features.rays[known], tracked[known]
      fit = self._verifier.fit(before, after)
      if fit is not None and fit.moves:
        persistence.add(before, after, fit.inliers)
    mask = masks.union(
      masks.below(self._rules.mask_below_deg),
      persistence.mask(self._rules.mask_min_persistence),
    )
    if self._known_mask is None:
      return mask
    return masks.union(mask, self._known_mask)

  def _initialize(
    self,
    features: Sequence[matchers.Features],
    neighbours: matching.PairMatches,
  ) -> _State:
    """Refined initial poses, from the matches of neighbours."""
    point_tracks = _tracks(features, neighbours.matches)
    point_ids = point_tracks.point_ids()
    fits, shared = initialization.fit_pairs(
      tracks.window_pairs(len(features), self._rules.chain_gap),
      features,
      point_ids,
      neighbours.matcher_poses,
      self._verifier,
    )
    cut: list[tracks.FramePair] = []
    if self._graph_rules is not None:
      cut = pair_graph.inconsistent(fits, self._graph_rules)
    initial = initialization.initialize(
      len(features),
      {pair: fit for pair, fit in fits.items() if pair not in cut},
      shared,
      min_shared=self._rules.min_inliers // 2,
      matcher_depths=matching.depths_of_points(neighbours, point_ids),
    )
    scene = refinement.refine(
      initial.component,
      initial.frame2scene,
      features,
      point_tracks,
      max_iterations=self._iterations(is_last=False),
    )
    return _State(
      scene=scene,
      num_refused=point_tracks.num_refused,
      pair_matches=neighbours,
      verifications={},
      loops=loop_detection.Search(closures=(), tried=0, rejected=()),
      rejected=[
        *(_rejected_edge(pair) for pair in cut),
        *(outlier.rejection() for outlier in initial.outliers),
      ],
    )

  def _close_loops(
    self,
    features: Sequence[matchers.Features],
    matcher: matching.PairMatcher,
    state: _State,
  ) -> _State:
    """Finds closures and brings the poses near them."""
    if self._graph_rules is None:
      return state
    loops = loop_detection.Finder(
      features,
      state.scene,
      matcher.match,
      self._verifier,
      self._graph_rules,
      self._max_gap,
    ).find()
    scene = state.scene
    if loops.closures:
      scene = loop_closing.close(scene, loops.closures, self._graph_rules)
    return dataclasses.replace(
      state,
      scene=scene,
      loops=loops,
      rejected=[*state.rejected, *loops.rejected],
    )

  def _match_pairs(
    self,
    features: Sequence[matchers.Features],
    matcher: matching.PairMatcher,
    state: _State,
  ) -> _State:
    """Matches near the composed poses; own fits are compared with these."""
    pair_matches = matcher.match_near_poses(self._pairs(state), state.scene)
    return dataclasses.replace(
      state,
      pair_matches=pair_matches,
      verifications=self._verifier.compare(
        features,
        state.scene.frame2scene,
        pair_matches.matches,
        pair_matches.matcher_poses,
      ),
    )

  def _pairs(self, state: _State) -> list[tracks.FramePair]:
    """All pairs of the window, and closures."""
    window = tracks.window_pairs(len(self._features), self._max_gap)
    closed = sorted(closure.pair for closure in state.loops.closures)
    return list(dict.fromkeys([*window, *closed]))

  def _refine(
    self,
    features: Sequence[matchers.Features],
    state: _State,
    component: Int[np.ndarray, 'f'],
    *,
    is_last: bool = True,
  ) -> _State:
    """Joins the matches that agree into points, and refines everything."""
    point_tracks = _tracks(features, _agreeing_matches(state))
    scene = refinement.refine(
      component,
      state.scene.frame2scene,
      features,
      point_tracks,
      max_iterations=self._iterations(is_last),
    )
    return dataclasses.replace(
      state, scene=scene, num_refused=point_tracks.num_refused
    )

  def _iterations(self, is_last: bool) -> int:
    """Of a refinement: what is only a start need not converge."""
    most = self._rules.max_iterations
    return most if is_last else (most + 1) // 2

  def _verify(
    self, features: Sequence[matchers.Features], state: _State
  ) -> _State:
    """Checks the pairs that are good so far against the joint solution."""
    verifications = {
      pair: self._verifier.verify(
        features,
        state.scene.frame2scene,
        pair,
        matched,
        state.pair_matches.matcher_poses.get(pair),
      )
      for pair, matched in state.pair_matches.matches.items()
      if state.verifications[pair].is_kept
    }
    return dataclasses.replace(
      state, verifications={**state.verifications, **verifications}
    )

  def _split_components(
    self, features: Sequence[matchers.Features], state: _State
  ) -> _State:
    """Solves by itself what no good pair joins: it has no common scale."""
    component = pair_graph.components(len(features), _agreeing_matches(state))
    if np.array_equal(component, state.scene.component):
      return state
    return self._refine(features, state, component)

  def _cost(self, matcher: matching.PairMatcher) -> dict[str, int]:
    """Matcher calls of this video, and the most that it could have taken.

    Neighbours are matched once, the window in every round, and each try for a
    closure twice: to find it and, with the last round, to use it.
    """
    count = len(self._features)
    window = len(tracks.window_pairs(count, self._max_gap))
    tries = 0
    if self._graph_rules is not None:
      tries = loop_detection.max_tries(count, self._graph_rules)
    return matcher.cost(
      num_pairs=window + tries,
      num_requests=max(count - 1, 0) + self._rules.rounds * window + 2 * tries,
    )

  def _solution(
    self,
    state: _State,
    mask: masks.Mask,
    cost: Mapping[str, int],
  ) -> Solution:
    scene = state.scene
    frame2scene, points = scene_scale.normalise(
      scene.component, scene.frame2scene, scene.points, scene.observations
    )
    errors = bundle_adjustment.errors_rad(
      frame2scene, points, scene.observations
    )
    stages = [rejection.stage for rejection in state.rejected]
    return Solution(
      component=scene.component,
      frame2scene=frame2scene,
      points=points,
      observations=scene.observations,
      verifications={
        pair: state.verifications.get(pair) or _unmatched(pair, scene.component)
        for pair in self._pairs(state)
      },
      mask=mask,
      figures={
        **cost,
        'points': int(np.isfinite(points[:, 0]).sum()),
        'observations': len(errors),
        'refused_matches': state.num_refused,
        'residual_median_px': self._median_px(errors),
        'cut_edges': stages.count(rejections.Stage.GRAPH),
        'scale_outliers': stages.count(rejections.Stage.SCALE),
        'loops_tried': state.loops.tried,
        'loops_closed': len(state.loops.closures),
      },
      closures=state.loops.closures,
      rejected=state.rejected,
    )

  def _median_px(self, errors_rad: Float[np.ndarray, 'n']) -> float:
    if not len(errors_rad):
      return 0.0
    return round(float(np.median(errors_rad)) / self._pixel_rad, 4)

  def _with_long_pairs(self, solution: Solution) -> Solution:
    if self._graph_rules is None:
      return solution
    long_pairs = pair_graph.long_range_pairs(solution, self._graph_rules)
    return dataclasses.replace(
      solution,
      long_pairs=long_pairs,
      figures={**solution.figures, 'long_pairs': len(long_pairs)},
    )


def _without_masked(
  features: Sequence[matchers.Features],
  tracked_rays: Sequence[Float[np.ndarray, '_ 3']],
  mask: masks.Mask,
) -> tuple[list[matchers.Features], list[Float[np.ndarray, '_ 3']]]:
  """What is left of features and their tracked rays outside a mask."""
  keep = [~mask.holds(frame.rays) for frame in features]
  return (
    [frame.subset(kept) for frame, kept in zip(features, keep)],
    [rays[kept] for rays, kept in zip(tracked_rays, keep)],
  )


def _tracks(
  features: Sequence[matchers.Features], matches: tracks.Matches
) -> tracks.Tracks:
  return tracks.Tracks(matches, [len(frame) for frame in features])


def _agreeing_matches(state: _State) -> tracks.Matches:
  """The matches of the pairs that are good so far.

  A closure without parallax is no pair for the records, but it joins frames.
  """
  closed = {closure.pair for closure in state.loops.closures}

  def agrees(pair: tracks.FramePair) -> bool:
    check = state.verifications[pair]
    return check.is_kept or (
      pair in closed and check.reason is rejections.Reason.NO_PARALLAX
    )

  matches = state.pair_matches.matches
  return {pair: matches[pair] for pair in matches if agrees(pair)}


def _unmatched(
  pair: tracks.FramePair, component: Int[np.ndarray, 'f']
) -> verification.Verification:
  """Why a pair was never matched."""
  if min(component[list(pair)]) < 0:
    return verification.unmatched(rejections.Reason.NO_POSE)
  return verification.unmatched(rejections.Reason.OTHER_COMPONENT)


def _rejected_edge(pair: tracks.FramePair) -> rejections.Rejection:
  return rejections.Rejection(
    stage=rejections.Stage.GRAPH, reason=rejections.Reason.CYCLES, frames=pair
  )
