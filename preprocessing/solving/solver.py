"""Features of all frames -> one joint solution per component.

1. Neighbours are matched near the places where their points arrived by small
   steps (`flow_tracker`), and fitted pair by pair. What contradicts the cycles that
   it is in (`pair_graph`) is left out.
2. `initialization` makes starting poses, `bundle_adjustment` refines these: composed poses
   that no repeated texture can have turned round.
3. Every frame pair of the window is matched near the places where the composed
   poses and the triangulated points put them. A robust fit of the pair alone
   that disagrees with the composed pose rejects the pair.
4. All matches of the pairs that agree are joined into points, and everything
   is refined together.
5. Before the last round of 3 and 4, `loop_detection` finds where the path returns, and
   `loop_closing` joins components and relaxes the poses; closures are then matched
   like all pairs.
6. Each pair is checked against the result. Composed long-range pairs follow.
"""

import dataclasses
import functools
from typing import Any, Callable, Mapping, Sequence

from jaxtyping import Float, Int
import numpy as np

from odin_jax.shared import camera
from preprocessing import matchers
from preprocessing.solving import (
  bundle_adjustment,
  initialization,
  loop_closing,
  loop_detection,
  masks,
  pair_graph,
  refinement,
  relative_pose,
  scene_scale,
  tracks,
  verification,
)

Frames = Sequence[matchers.Features]
Fits = dict[tracks.FramePair, relative_pose.PairFit]
Verdicts = dict[tracks.FramePair, verification.Verdict]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Solution:
  """Poses of all frames of a video and what they rest on.

  Attributes:
    component: of each frame; -1 where it has none.
    frame2scene: pose of each frame in its component, median depth 1.
    points: in scene coordinates of their component; NaN where not used.
    observations: that obey the solution.
    verdicts: of every pair of the window, and of every closure.
    mask: what was not used.
    figures: counts, for the manifest.
    closures: where the path returns, and what joined components; `verdicts`
      says which of them are good pairs too.
    long_pairs: composed pairs of frames that were not matched.
    dropped: rows for the ledger: edges that were cut, scales that disagree,
      closures that fell.
  """

  component: Int[np.ndarray, 'f']
  frame2scene: Float[np.ndarray, 'f 3 4']
  points: Float[np.ndarray, 'p 3']
  observations: bundle_adjustment.Observations
  verdicts: Mapping[tracks.FramePair, verification.Verdict]
  mask: masks.Mask
  figures: Mapping[str, int | float]
  closures: Sequence[loop_detection.Closure] = ()
  long_pairs: Sequence[pair_graph.LongPair] = ()
  dropped: Sequence[dict[str, Any]] = ()

  def points_of_pair(
    self, source: int, target: int
  ) -> Float[np.ndarray, 'n 3']:
    """The points that either frame of a pair sees."""
    seen = np.concatenate([self._seen[frame] for frame in (source, target)])
    return self.points[np.unique(seen)]

  @functools.cached_property
  def _seen(self) -> list[Int[np.ndarray, 'n']]:
    """The points that each frame sees."""
    order = np.argsort(self.observations.frame, kind='stable')
    counts = np.bincount(self.observations.frame, minlength=len(self.component))
    return np.split(self.observations.point[order], np.cumsum(counts)[:-1])


@dataclasses.dataclass
class _State:
  """What is solved so far."""

  component: np.ndarray
  frame2scene: np.ndarray
  tracks: tracks.Tracks
  points: np.ndarray
  observations: bundle_adjustment.Observations


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
    graph_rules: of cycles, closures and long-range pairs; None: without them.
    mask: what is known not to be scene, besides what is found.
  """

  def __init__(
    self,
    features: Frames,
    arrivals: Sequence[Float[np.ndarray, 'n 3']],
    matcher: matchers.Matcher,
    *,
    rules: verification.PoseRules,
    max_gap: int,
    pixel_rad: float,
    graph_rules: pair_graph.GraphRules | None = None,
    mask: masks.Mask | None = None,
  ):
    self._features = list(features)
    self._arrivals = list(arrivals)
    self._matcher = matcher
    self._rules = rules
    self._max_gap = max_gap
    self._pixel_rad = pixel_rad
    self._judge = verification.Judge(rules, pixel_rad)
    self._graph_rules = graph_rules
    self._known_mask = mask
    self._requests = 0
    self._said: dict[tracks.FramePair, matchers.PairPose] = {}
    self._calls_before = _calls(matcher)
    self._search = loop_detection.Search(closures=[], tried=0, dropped=[])
    self._dropped: list[dict[str, Any]] = []

  def solve(self, progress: Callable[[str], None] = lambda _: None) -> Solution:
    """Runs all steps; `progress` is told the name of each."""
    progress('chain')
    mask = self._mask()
    matches = self._match_neighbours()
    point_tracks = self._tracks(matches)
    start = self._chain(matches, point_tracks)
    state = self._refine(start.component, start.frame2scene, point_tracks)
    found: Verdicts = {}
    for left in reversed(range(self._rules.rounds)):
      if not left:
        progress('loops')
        self._close_loops(state)
      progress('pairs')
      matches = self._match_window(state)
      found = self._judge.compare(
        self._features, state.frame2scene, matches, self._said
      )
      progress('refinement')
      point_tracks = self._tracks(self._ties(matches, found))
      state = self._refine(state.component, state.frame2scene, point_tracks)
    found |= {
      pair: self._judge.verify(
        self._features,
        state.frame2scene,
        pair,
        matched,
        self._said.get(pair),
      )
      for pair, matched in matches.items()
      if not found[pair].reason
    }
    state = self._fall_apart(state, matches, found)
    return self._with_long_pairs(self._solution(state, found, mask))

  def _fall_apart(
    self, state: _State, matches: tracks.Matches, found: Verdicts
  ) -> _State:
    """What no kept pair ties has no common scale: it is solved by itself."""
    ties = self._ties(matches, found)
    component = pair_graph.components(len(self._features), ties)
    if np.array_equal(component, state.component):
      return state
    return self._refine(component, state.frame2scene, self._tracks(ties))

  def _solution(
    self, state: _State, found: Verdicts, mask: masks.Mask
  ) -> Solution:
    poses, points = scene_scale.normalise(
      state.component, state.frame2scene, state.points, state.observations
    )
    return Solution(
      component=state.component,
      frame2scene=poses,
      points=points,
      observations=state.observations,
      verdicts=self._complete(state.component, found),
      mask=mask,
      figures={
        **self._cost(),
        'points': int(np.isfinite(points[:, 0]).sum()),
        'observations': len(state.observations.frame),
        'refused_matches': state.tracks.num_refused,
        'residual_median_px': self._residual_px(
          poses, points, state.observations
        ),
        'cut_edges': self._count('graph'),
        'scale_outliers': self._count('scale'),
        'loops_tried': self._search.tried,
        'loops_closed': len(self._search.closures),
      },
      closures=self._search.closures,
      dropped=self._dropped,
    )

  def _count(self, stage: str) -> int:
    return sum(row['stage'] == stage for row in self._dropped)

  def _with_long_pairs(self, solution: Solution) -> Solution:
    if self._graph_rules is None:
      return solution
    found = pair_graph.long_range_pairs(solution, self._graph_rules)
    return dataclasses.replace(
      solution,
      long_pairs=found,
      figures={**solution.figures, 'long_pairs': len(found)},
    )

  def _cost(self) -> dict[str, int]:
    """Matcher calls of this video, and the most that it could have taken.

    Neighbours are matched once, the window in every round, and each try for a
    closure twice: to find it and, with the last round, to use it.
    """
    count = len(self._features)
    window = len(tracks.candidates(count, self._max_gap))
    tries = 0
    if self._graph_rules is not None:
      tries = loop_detection.max_tries(count, self._graph_rules)
    requests = max(count - 1, 0) + self._rules.rounds * window + 2 * tries
    if not isinstance(self._matcher, matchers.CountsCalls):
      return {
        'matcher_calls': self._requests,
        'matcher_calls_bound': requests,
      }
    return {
      'matcher_calls': self._matcher.calls - self._calls_before,
      'matcher_calls_bound': self._matcher.calls_bound(
        window + tries, requests
      ),
    }

  def _close_loops(self, state: _State) -> None:
    """Finds closures and brings the poses near them."""
    if self._graph_rules is None:
      return
    scene = loop_detection.Scene(
      component=state.component,
      frame2scene=state.frame2scene,
      points=state.points,
      observations=state.observations,
      ids=self._ids(state.tracks),
    )
    self._search = loop_detection.Finder(
      self._features,
      scene,
      self._match,
      self._judge,
      self._graph_rules,
      self._max_gap,
    ).find()
    self._dropped += self._search.dropped
    if self._search.closures:
      state.component, state.frame2scene = loop_closing.close(
        scene, self._search.closures, self._graph_rules
      )
      state.points = bundle_adjustment.triangulate(
        state.frame2scene, state.observations, len(state.points)
      )

  def _residual_px(
    self,
    poses: np.ndarray,
    points: np.ndarray,
    observations: bundle_adjustment.Observations,
  ) -> float:
    if not len(observations.frame):
      return 0.0
    errors = bundle_adjustment.errors_rad(poses, points, observations)
    return round(float(np.median(errors)) / self._pixel_rad, 4)

  def _match(
    self,
    source: matchers.Features,
    target: matchers.Features,
    expected: np.ndarray | None = None,
  ) -> Int[np.ndarray, 'm 2']:
    self._requests += 1
    return self._matcher.match(
      source,
      target,
      expected=expected,
      gate_rad=np.deg2rad(self._rules.gate_deg),
    )

  def _match_pair(
    self, pair: tracks.FramePair, expected: np.ndarray
  ) -> Int[np.ndarray, 'm 2']:
    """Matches a pair; keeps what the matcher says of its pose."""
    source, target = (self._features[frame] for frame in pair)
    if not isinstance(self._matcher, matchers.GivesPoses):
      return self._match(source, target, expected)
    self._requests += 1
    matched, said = self._matcher.match_and_pose(
      source,
      target,
      expected=expected,
      gate_rad=np.deg2rad(self._rules.gate_deg),
    )
    self._said.pop(pair, None)
    if said is not None:
      self._said[pair] = said
    return matched

  def _match_neighbours(self) -> dict[tracks.FramePair, np.ndarray]:
    return {
      (frame, frame + 1): self._match_pair((frame, frame + 1), arrived)
      for frame, arrived in enumerate(self._arrivals)
    }

  def _tracks(self, matches: tracks.Matches) -> tracks.Tracks:
    return tracks.Tracks(matches, [len(frame) for frame in self._features])

  def _ids(self, point_tracks: tracks.Tracks) -> list[Int[np.ndarray, 'n']]:
    """The point of each feature of each frame, -1 where it has none."""
    return [
      point_tracks.by_feature(frame, len(features))
      for frame, features in enumerate(self._features)
    ]

  def _ties(self, matches: tracks.Matches, found: Verdicts) -> tracks.Matches:
    """The matches of the pairs that are good so far.

    A closure without parallax is no pair for the records, but a tie.
    """
    closed = {closure.pair for closure in self._search.closures}
    return {
      pair: matched
      for pair, matched in matches.items()
      if not found[pair].reason
      or (pair in closed and found[pair].reason == verification.NO_PARALLAX)
    }

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
    if self._known_mask is not None:
      mask = masks.union(mask, self._known_mask)
    for frame, features in enumerate(self._features):
      keep = ~mask.holds(features.rays)
      self._features[frame] = features.subset(keep)
      if frame < len(self._arrivals):
        self._arrivals[frame] = self._arrivals[frame][keep]
    return mask

  def _chain(
    self, matches: tracks.Matches, point_tracks: tracks.Tracks
  ) -> initialization.Chain:
    points = self._ids(point_tracks)
    fits: Fits = {}
    ids = {}
    for pair in tracks.candidates(len(points), self._rules.chain_gap):
      shared, one, other = _shared(*(points[frame] for frame in pair))
      fit = self._judge.fit(
        self._features[pair[0]].rays[one],
        self._features[pair[1]].rays[other],
        self._said.get(pair),
      )
      if fit is not None:
        fits[pair], ids[pair] = fit, shared
    self._cut_edges(fits)
    found = initialization.chain(
      len(points),
      fits,
      ids,
      min_shared=self._rules.min_inliers // 2,
      said={
        pair: _of_points(matches[pair], said, points[pair[0]], points[pair[1]])
        for pair, said in self._said.items()
      },
    )
    self._dropped += [
      {
        'stage': 'scale',
        'reason': 'scales of two pairs contradict the others',
        'frames': sorted({*outlier.first, *outlier.second}),
        'pairs': [list(outlier.first), list(outlier.second)],
        'residual': round(outlier.residual, 4),
        'error': round(outlier.error, 4),
      }
      for outlier in found.outliers
    ]
    return found

  def _cut_edges(self, fits: Fits) -> None:
    """Takes out what contradicts the cycles that it is in."""
    if self._graph_rules is None:
      return
    for pair in pair_graph.inconsistent(fits, self._graph_rules):
      del fits[pair]
      reason = 'pair contradicts the cycles through it'
      self._dropped.append(
        {'stage': 'graph', 'reason': reason, 'frames': list(pair)}
      )

  def _observations(
    self, point_tracks: tracks.Tracks
  ) -> bundle_adjustment.Observations:
    starts = np.concatenate(
      [[0], np.cumsum([len(frame) for frame in self._features])]
    )
    index = starts[point_tracks.frame] + point_tracks.feature
    return bundle_adjustment.Observations(
      frame=point_tracks.frame,
      point=point_tracks.point,
      ray=np.concatenate([frame.rays for frame in self._features])[index],
      noise_rad=np.concatenate([frame.noise_rad for frame in self._features])[
        index
      ],
    )

  def _refine(
    self, component: np.ndarray, poses: np.ndarray, point_tracks: tracks.Tracks
  ) -> _State:
    poses, points, observations = refinement.refine(
      component,
      poses,
      self._observations(point_tracks),
      point_tracks.num_points,
      max_iterations=self._rules.max_iterations,
    )
    return _State(component, poses, point_tracks, points, observations)

  def _candidates(self) -> list[tracks.FramePair]:
    """All pairs of the window, and closures."""
    window = tracks.candidates(len(self._features), self._max_gap)
    closed = sorted(one.pair for one in self._search.closures)
    return list(dict.fromkeys([*window, *closed]))

  def _complete(self, component: np.ndarray, found: Verdicts) -> Verdicts:
    """Verdicts of all candidates, also of those that were never matched."""
    complete = {}
    for pair in self._candidates():
      if pair in found:
        complete[pair] = found[pair]
      elif min(component[list(pair)]) < 0:
        complete[pair] = verification.dropped('frame without a pose')
      else:
        complete[pair] = verification.dropped('different components')
    return complete

  def _match_window(self, state: _State) -> dict[tracks.FramePair, np.ndarray]:
    """Matches all candidates, near where the poses put each point."""
    found = {}
    component, poses = state.component, state.frame2scene
    ids = self._ids(state.tracks)
    # The last row stands for features that show no point.
    points = np.concatenate([state.points, np.full((1, 3), np.nan)])
    for pair in self._candidates():
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
            self._match_pair(pair, expected),
            self._common(pair, ids, expected),
          ]
        ),
        axis=0,
      )
    return found

  def _common(
    self, pair: tracks.FramePair, ids: list[np.ndarray], expected: np.ndarray
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


def _calls(matcher: matchers.Matcher) -> int:
  return matcher.calls if isinstance(matcher, matchers.CountsCalls) else 0


def _of_points(
  matched: Int[np.ndarray, 'm 2'],
  said: matchers.PairPose,
  one: Int[np.ndarray, 'n'],
  other: Int[np.ndarray, 'k'],
) -> tuple[Int[np.ndarray, 'p'], Float[np.ndarray, '2 p']]:
  """The points of matches, and their distances as the matcher says them."""
  ids = one[matched[:, 0]]
  good = (ids >= 0) & (ids == other[matched[:, 1]])
  good &= np.all(np.isfinite(said.depths) & (said.depths > 0), axis=0)
  return ids[good], said.depths[:, good]


def _shared(
  one: Int[np.ndarray, 'n'], other: Int[np.ndarray, 'm']
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """Points that two frames have in common, and their features."""
  ids, first, second = np.intersect1d(one, other, return_indices=True)
  real = ids >= 0
  return ids[real], first[real], second[real]
