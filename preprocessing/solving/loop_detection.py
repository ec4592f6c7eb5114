"""Finds loop closures: where a path returns, and how its ends lie there.

1. Loop candidates: frames far apart in time that the composed poses put near
   each other, or that look alike; and frames on both sides of a break.
2. Each is matched without guidance and fitted by itself. Matches of points that
   have a double around either frame count for nothing: a place of repeated
   things gives no closure, however many matches agree.
3. A closure is a similarity between the surroundings of two frames: the scale
   of a path drifts too. Closures that link the same surroundings must agree,
   and more of them must where drift does not explain what they say.
"""

import collections
import dataclasses
from typing import Callable, Sequence

from jaxtyping import Bool, Float, Int
import numpy as np
from scipy import sparse, spatial

from odin_jax.shared import camera
from preprocessing import matchers
from preprocessing.solving import (
  pair_graph,
  reconstruction,
  retrieval,
  tracks,
  verification,
)
from preprocessing.writing import rejections

# A path that is no longer than this times the way back has not returned.
_DETOUR = 2.0
# Frames that look alike because they are close have not returned: between them
# others must look less alike by this factor.
_RISE = 2.0
# What closures may differ by without any drift: share of the depth, angle, and
# logarithm of scale.
OFF = 0.1
OFF_DEG = 1.0
OFF_LOG_SCALE = 0.1
# Points closer together than this share of their distance are one place.
_SAME = 0.1
_LOCATE_ITERATIONS = 10
# Of too many loop candidates, so many neighbours are tried together.
_RUN = 16
# Residual angles below this count as squares.
_SMALL_RAD = 1e-3
# Drift is given per so many depths of path.
PER_DEPTHS = 10.0

Match = Callable[[matchers.Features, matchers.Features], np.ndarray]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Closure:
  """x_source = exp(log_scale) R x_target + t, for two frames' surroundings.

  Attributes:
    source: the earlier frame.
    target: the later frame.
    target2source: [R|t], in the unit of the source's surroundings.
    log_scale: unit of the target's surroundings over that of the source's.
    inliers: matches that agree.
  """

  source: int
  target: int
  target2source: Float[np.ndarray, '3 4']
  log_scale: float
  inliers: int

  @property
  def pair(self) -> tracks.FramePair:
    """(source, target)."""
    return self.source, self.target


@dataclasses.dataclass(frozen=True, kw_only=True)
class Search:
  """What a search for closures found.

  Attributes:
    closures: those that hold.
    tried: number of pairs that were matched.
    rejected: the others.
  """

  closures: Sequence[Closure]
  tried: int
  rejected: Sequence[rejections.Rejection]


@dataclasses.dataclass(frozen=True)
class _Matched:
  """Matches of two frames, as indices of features in either.

  Attributes:
    source: the earlier frame.
    target: the later frame.
    in_source: the matched features of the source.
    in_target: and of the target, in the same order.
  """

  source: int
  target: int
  in_source: Int[np.ndarray, 'm']
  in_target: Int[np.ndarray, 'm']

  def subset(self, keep: Bool[np.ndarray, 'm']) -> '_Matched':
    """The matches that `keep` selects."""
    return _Matched(
      self.source, self.target, self.in_source[keep], self.in_target[keep]
    )

  def reversed(self) -> '_Matched':
    """The same matches from the target to the source."""
    return _Matched(self.target, self.source, self.in_target, self.in_source)


def max_tries(num_frames: int, rules: pair_graph.GraphRules) -> int:
  """At most so many frame pairs are matched to find closures."""
  return min(rules.max_tries, rules.tries_per_frame * num_frames)


class Finder:
  """Looks for closures; see the module docstring.

  Args:
    features: of each frame.
    scene: what is solved so far.
    match: matches two frames without guidance.
    verifier: fits pairs.
    rules: limits.
    max_gap: frames further apart are beyond the window.
  """

  def __init__(
    self,
    features: Sequence[matchers.Features],
    scene: reconstruction.Reconstruction,
    match: Match,
    verifier: verification.Verifier,
    rules: pair_graph.GraphRules,
    max_gap: int,
  ):
    self._features = features
    self._scene = scene
    self._match = match
    self._verifier = verifier
    self._rules = rules
    self._max_gap = max_gap
    self._depths = pair_graph.frame_depths(
      scene.frame2scene, scene.points, scene.observations
    )
    self._path = path_lengths(scene.component, scene.frame2scene)
    self._descriptors = _mean_descriptors(features, scene)

  def find(self) -> Search:
    """Tries all loop candidates and lets the closures among them vote."""
    pairs = self._loop_candidates()
    outcomes = {pair: self._verify(*pair) for pair in pairs}
    closures = [
      outcome for outcome in outcomes.values() if isinstance(outcome, Closure)
    ]
    reasons = {
      pair: outcome
      for pair, outcome in outcomes.items()
      if isinstance(outcome, rejections.Reason)
    }
    reasons |= self.outvoted(closures)
    return Search(
      closures=[closure for closure in closures if closure.pair not in reasons],
      tried=len(pairs),
      rejected=[
        rejections.Rejection(
          stage=rejections.Stage.LOOPS, reason=reasons[pair], frames=pair
        )
        for pair in sorted(reasons)
      ],
    )

  def _loop_candidates(self) -> list[tracks.FramePair]:
    """Frame pairs worth a try, sorted; see `max_tries`."""
    returns = collections.defaultdict(list)
    for pair in dict.fromkeys([*self._near_pairs(), *self._similar_pairs()]):
      returns[pair[0]].append(pair)
    limit = self._rules.tries_per_frame
    pairs = self._break_pairs()
    for of_frame in returns.values():
      pairs += of_frame[:limit]
    return _thinned(sorted(pairs), max_tries(len(self._features), self._rules))

  def _beyond(self) -> Bool[np.ndarray, 'f f']:
    """Pairs of posed frames beyond the window, the earlier one first."""
    posed = np.isfinite(self._depths)
    return np.triu(posed[:, None] & posed, self._max_gap + 1)

  def _break_pairs(self) -> list[tracks.FramePair]:
    """Frames of two components that follow each other in time.

    The gap is such that enough of the pairs have no frame in common.
    """
    component = self._scene.component
    gap = self._rules.min_agreeing_beyond
    return [
      (a, b)
      for a, b in tracks.window_pairs(len(component), gap)
      if component[a] != component[b] and min(component[[a, b]]) >= 0
    ]

  def _near_pairs(self) -> list[tracks.FramePair]:
    """Where composed poses say that the path has returned."""
    component = self._scene.component
    centres = self._scene.frame2scene[:, :, 3]
    apart = spatial.distance.cdist(centres, centres)
    path = np.abs(self._path[:, None] - self._path)
    reach = np.fmin(self._depths[:, None], self._depths)
    reach = reach + self._rules.drift_share * path
    good = (
      self._beyond()
      & (component[:, None] == component)
      & (apart <= reach)
      & (path >= _DETOUR * apart)
      & _row_minima(np.where(component[:, None] == component, apart, np.inf))
    )
    return _best_of_rows(good, apart)

  def _similar_pairs(self) -> list[tracks.FramePair]:
    """Frames that look alike again after others between them did not."""
    alike = retrieval.similarities(self._features)
    beside = np.concatenate([[0.0], np.diagonal(alike, 1), [0.0]])
    usual = np.maximum(beside[1:], beside[:-1])
    later = np.where(np.triu(np.ones(alike.shape, bool)), alike, np.inf)
    lowest = np.maximum(np.minimum.accumulate(later, axis=1), 0.0)
    least = np.maximum(
      self._rules.min_similarity * np.minimum(usual[:, None], usual),
      _RISE * lowest,
    )
    good = self._beyond() & (alike > least) & _row_minima(-alike)
    return _best_of_rows(good, -alike)

  def _verify(self, source: int, target: int) -> Closure | rejections.Reason:
    """The closure of two frames, or why there is none."""
    in_source, in_target = map(self._solved_features, (source, target))
    matches = self._match(
      self._features[source].subset(in_source),
      self._features[target].subset(in_target),
    )
    matched = _Matched(
      source, target, in_source[matches[:, 0]], in_target[matches[:, 1]]
    )
    distinct = self._is_distinct(matched)
    distinct &= self._is_distinct(matched.reversed())
    if distinct.sum() < self._rules.min_distinct * len(distinct):
      return rejections.Reason.AMBIGUOUS
    matched = matched.subset(distinct)
    source_rays = self._features[source].rays[matched.in_source]
    target_rays = self._features[target].rays[matched.in_target]
    fit = self._verifier.fit(source_rays, target_rays)
    reason = self._verifier.weakness_alone(fit, source_rays)
    if reason is not None:
      return reason
    return self._measure(matched.subset(fit.inliers), fit.target2source[:, :3])

  def _solved_features(self, frame: int) -> Int[np.ndarray, 'n']:
    """The features of a frame that show a solved point."""
    point_ids = self._scene.point_ids[frame]
    known = point_ids >= 0
    known[known] = np.isfinite(self._scene.points[point_ids[known], 0])
    return np.flatnonzero(known)

  def _is_distinct(self, matched: _Matched) -> Bool[np.ndarray, 'm']:
    """Which matches no other point around the source could replace."""
    scene = self._scene
    target = self._features[matched.target].descriptors[matched.in_target]
    own = scene.point_ids[matched.source][matched.in_source]
    around = self._around(matched.source)
    away = np.linalg.norm(
      scene.points[own] - scene.frame2scene[matched.source, :, 3], axis=1
    )
    elsewhere = (
      spatial.distance.cdist(scene.points[own], scene.points[around])
      > _SAME * away[:, None]
    )
    rival = np.where(elsewhere, target @ self._descriptors[around].T, -1.0)
    similarity = np.einsum('md,md->m', target, self._descriptors[own])
    return 1 - similarity <= self._rules.max_ratio**2 * (
      1 - rival.max(axis=1, initial=-1.0)
    )

  def _around(self, frame: int) -> Int[np.ndarray, 'n']:
    """The points that a frame and those near it in time see."""
    observations = self._scene.observations
    component = self._scene.component
    near = (np.abs(observations.frame - frame) <= self._max_gap) & (
      component[observations.frame] == component[frame]
    )
    return np.unique(observations.point[near])

  def _measure(
    self, matched: _Matched, rotation: Float[np.ndarray, '3 3']
  ) -> Closure | rejections.Reason:
    """Translation and scale from the points of both sides."""
    source, target = matched.source, matched.target
    in_source = self._points_seen(source, matched.in_source)
    in_target = self._points_seen(target, matched.in_target)
    source_rays = self._features[source].rays[matched.in_source]
    target_rays = self._features[target].rays[matched.in_target]
    centre = locate(in_source, target_rays @ rotation.T)
    back = locate(in_target, source_rays @ rotation)
    ratio = np.linalg.norm(in_source - centre, axis=1) / np.linalg.norm(
      in_target, axis=1
    )
    log_scale = float(np.median(np.log(ratio)))
    # Each side alone says where the other frame is: they must agree.
    off = np.linalg.norm(centre + np.exp(log_scale) * (rotation @ back))
    if off > OFF * self._depths[source]:
      return rejections.Reason.SIDES_DISAGREE
    return Closure(
      source=source,
      target=target,
      target2source=camera.make_pose(rotation, centre),
      log_scale=log_scale,
      inliers=len(matched.in_source),
    )

  def _points_seen(
    self, frame: int, features: Int[np.ndarray, 'm']
  ) -> Float[np.ndarray, 'm 3']:
    """The points that features of a frame show, in the axes of the frame."""
    scene = self._scene
    return camera.transform(
      camera.inverse(scene.frame2scene[frame]),
      scene.points[scene.point_ids[frame][features]],
    )

  def outvoted(
    self, closures: Sequence[Closure]
  ) -> dict[tracks.FramePair, rejections.Reason]:
    """Why closures fall that too few others agree with."""
    reasons = {}
    for closure in closures:
      voters = [voter for voter in closures if self._beside(closure, voter)]
      agreeing = [voter for voter in voters if self._agree(closure, voter)]
      # Independent: no frame counts twice.
      support = 1 + min(
        len({voter.source for voter in agreeing} - {closure.source}),
        len({voter.target for voter in agreeing} - {closure.target}),
      )
      if 2 * len(agreeing) < len(voters):
        reasons[closure.pair] = rejections.Reason.OUTVOTED
        continue
      needed, reason = self._needed(closure)
      if support < needed:
        reasons[closure.pair] = reason
    return reasons

  def _beside(self, first: Closure, second: Closure) -> bool:
    """Whether two closures link the same surroundings by other frames."""
    component = self._scene.component
    return first is not second and all(
      component[a] == component[b] and abs(a - b) <= self._max_gap
      for a, b in zip(first.pair, second.pair)
    )

  def _agree(self, first: Closure, second: Closure) -> bool:
    """Whether the cycle of two closures and the paths between them closes."""
    pose = self._scene.frame2scene
    here = camera.relative(pose[first.source], pose[second.source])
    there = camera.relative(pose[first.target], pose[second.target])
    stretched = camera.rescale(there, float(np.exp(first.log_scale)))
    expected = camera.relative(
      here, camera.compose(first.target2source, stretched)
    )
    way = np.linalg.norm(here[:, 3]) + np.linalg.norm(stretched[:, 3])
    return self._explained_by_drift(
      expected, second, second.log_scale - first.log_scale, float(way)
    )

  def _needed(self, closure: Closure) -> tuple[int, rejections.Reason]:
    """How many must agree, and what it means if they do not."""
    ends = list(closure.pair)
    component = self._scene.component[ends]
    if component[0] != component[1]:
      return self._rules.min_agreeing_beyond, rejections.Reason.FEW_JOIN
    pose = self._scene.frame2scene
    composed = camera.relative(pose[closure.source], pose[closure.target])
    way = float(np.diff(self._path[ends])[0])
    if not self._explained_by_drift(composed, closure, closure.log_scale, way):
      return self._rules.min_agreeing_beyond, rejections.Reason.OTHER_POSE
    return self._rules.min_agreeing, rejections.Reason.FEW_AGREE

  def _explained_by_drift(
    self,
    expected: Float[np.ndarray, '3 4'],
    closure: Closure,
    log_scale_off: float,
    way: float,
  ) -> bool:
    """Whether drift over a way explains by what a closure is off."""
    rules = self._rules
    depth = float(self._depths[closure.source])
    tens = way / (PER_DEPTHS * depth)
    measured = closure.target2source
    turn_deg = camera.rotation_angle_deg(expected[:, :3].T @ measured[:, :3])
    off = np.linalg.norm(expected[:, 3] - measured[:, 3])
    return bool(
      turn_deg <= OFF_DEG + rules.drift_turn_deg * tens
      and off <= OFF * depth + rules.drift_share * way
      and abs(log_scale_off) <= OFF_LOG_SCALE + rules.drift_log_scale * tens
    )


def _mean_descriptors(
  features: Sequence[matchers.Features], scene: reconstruction.Reconstruction
) -> Float[np.ndarray, 'p d']:
  """Mean descriptor of every point."""
  point_ids = np.concatenate(scene.point_ids)
  shown = np.flatnonzero(point_ids >= 0)
  gather = sparse.csr_array(
    (np.ones(len(shown), np.float32), (point_ids[shown], shown)),
    shape=(len(scene.points), len(point_ids)),
  )
  sums = gather @ np.concatenate([frame.descriptors for frame in features])
  return sums / np.maximum(np.linalg.norm(sums, axis=1, keepdims=True), 1e-12)


def _thinned(
  pairs: Sequence[tracks.FramePair], count: int
) -> list[tracks.FramePair]:
  """At most `count` of them: runs of neighbours, evenly spread.

  Loop candidates alone would have none beside them to agree with.
  """
  if len(pairs) <= count:
    return list(pairs)
  runs = -(-count // _RUN)
  sizes = [count // runs + (run < count % runs) for run in range(runs)]
  return [
    pairs[run * len(pairs) // runs + step]
    for run, size in enumerate(sizes)
    for step in range(size)
  ]


def _row_minima(values: Float[np.ndarray, 'f f']) -> Bool[np.ndarray, 'f f']:
  """Entries that neither neighbour in their row is below."""
  padded = np.pad(values, ((0, 0), (1, 1)), constant_values=np.inf)
  return (values <= padded[:, :-2]) & (values <= padded[:, 2:])


def _best_of_rows(
  good: Bool[np.ndarray, 'f f'], values: Float[np.ndarray, 'f f']
) -> list[tracks.FramePair]:
  """The good entries, the lowest of each row first."""
  rows, columns = np.nonzero(good)
  order = np.lexsort((columns, values[rows, columns], rows))
  return list(zip(rows[order].tolist(), columns[order].tolist()))


def path_lengths(
  component: Int[np.ndarray, 'f'], frame2scene: Float[np.ndarray, 'f 3 4']
) -> Float[np.ndarray, 'f']:
  """How far the camera went to each frame from its component's first."""
  lengths = np.zeros(len(component))
  for index in range(component.max(initial=-1) + 1):
    frames = np.flatnonzero(component == index)
    steps = np.diff(frame2scene[frames, :, 3], axis=0)
    lengths[frames[1:]] = np.cumsum(np.linalg.norm(steps, axis=1))
  return lengths


def locate(
  points: Float[np.ndarray, 'n 3'], directions: Float[np.ndarray, 'n 3']
) -> Float[np.ndarray, '3']:
  """Where points appear in these directions, by the least sum of angles.

  Solves sum_i w_i (I - d_i d_i^T) (X_i - c) = 0 for c, with w_i such that the
  sum of angles between d_i and X_i - c is minimised. Unlike a translation from
  directions alone it has a length, also where that is 0.
  """
  across = np.eye(3) - directions[:, :, None] * directions[:, None, :]
  off = np.einsum('nij,nj->ni', across, points)
  centre = np.zeros(3)
  for _ in range(_LOCATE_ITERATIONS):
    distance = np.linalg.norm(points - centre, axis=1)
    angle = np.linalg.norm(
      np.einsum('nij,nj->ni', across, points - centre), axis=1
    ) / np.maximum(distance, 1e-12)
    weight = 1 / (
      np.maximum(angle, _SMALL_RAD) * np.maximum(distance, 1e-12) ** 2
    )
    centre = np.linalg.solve(
      np.einsum('n,nij->ij', weight, across), weight @ off
    )
  return centre
