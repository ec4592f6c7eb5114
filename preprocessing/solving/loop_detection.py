"""Finds loop closures: where a path returns, and how its ends lie there.

1. Candidates: frames far apart in time that the composed poses put near each
   other, or that look alike; and frames on both sides of a break.
2. Each is matched without guidance and fitted by itself. Matches of points that
   have a double around either frame count for nothing: a place of repeated
   things gives no closure, however many matches agree.
3. A closure is a similarity between the surroundings of two frames: the scale
   of a path drifts too. Closures that link the same surroundings must agree,
   and more of them must where drift does not explain what they say.
"""

import collections
import dataclasses
from typing import Any, Callable, Sequence

from jaxtyping import Bool, Float, Int
import numpy as np
from scipy import sparse, spatial

from odin_jax.shared import camera
from preprocessing import matchers
from preprocessing.solving import (
  bundle_adjustment,
  pair_graph,
  relative_pose,
  retrieval,
  tracks,
  verification,
)

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
# Where there are too many candidates, so many neighbours are tried together.
_RUN = 16
# Residual angles below this count as squares.
_SMALL_RAD = 1e-3
# Drift is given per so many depths of path.
PER_DEPTHS = 10.0

Match = Callable[[matchers.Features, matchers.Features], np.ndarray]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Scene:
  """What is solved so far.

  Attributes:
    component: of each frame; -1 for none.
    frame2scene: pose of each frame in its component.
    points: in scene coordinates; NaN where not used.
    observations: of the points.
    ids: for each frame, the point of each of its n features [n]; -1 for none.
  """

  component: Int[np.ndarray, 'f']
  frame2scene: Float[np.ndarray, 'f 3 4']
  points: Float[np.ndarray, 'p 3']
  observations: bundle_adjustment.Observations
  ids: Sequence[np.ndarray]


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
    dropped: a row for the ledger for each of the others.
  """

  closures: list[Closure]
  tried: int
  dropped: list[dict[str, Any]]


def max_tries(num_frames: int, rules: pair_graph.GraphRules) -> int:
  """At most so many frame pairs are matched to find closures."""
  return min(rules.max_tries, rules.tries_per_frame * num_frames)


class Finder:
  """Looks for closures; see the module docstring.

  Args:
    features: of each frame.
    scene: what is solved so far.
    match: matches two frames without guidance.
    judge: fits pairs.
    rules: limits.
    max_gap: frames further apart are beyond the window.
  """

  def __init__(
    self,
    features: Sequence[matchers.Features],
    scene: Scene,
    match: Match,
    judge: verification.Judge,
    rules: pair_graph.GraphRules,
    max_gap: int,
  ):
    self._features = features
    self._scene = scene
    self._match = match
    self._judge = judge
    self._rules = rules
    self._max_gap = max_gap
    self._depths = pair_graph.frame_depths(
      scene.frame2scene, scene.points, scene.observations
    )
    self._path = path_lengths(scene.component, scene.frame2scene)
    self._looks = _looks(features, scene)

  def find(self) -> Search:
    """Tries all candidates and lets those that hold vote."""
    tried = self._candidates()
    found = {pair: self._verify(*pair) for pair in tried}
    reasons = {
      pair: result for pair, result in found.items() if isinstance(result, str)
    }
    closures = [
      result for result in found.values() if isinstance(result, Closure)
    ]
    reasons |= self.outvoted(closures)
    return Search(
      closures=[one for one in closures if one.pair not in reasons],
      tried=len(tried),
      dropped=[
        {'stage': 'loops', 'reason': reasons[pair], 'frames': list(pair)}
        for pair in sorted(reasons)
      ],
    )

  def _candidates(self) -> list[tracks.FramePair]:
    """Frame pairs worth a try, sorted; see `max_tries`."""
    returns = collections.defaultdict(list)
    for pair in dict.fromkeys([*self._near(), *self._alike()]):
      returns[pair[0]].append(pair)
    limit = self._rules.tries_per_frame
    every = sorted(
      self._breaks()
      + [pair for mine in returns.values() for pair in mine[:limit]]
    )
    return _thinned(every, max_tries(len(self._features), self._rules))

  def _beyond(self) -> Bool[np.ndarray, 'f f']:
    """Pairs of posed frames beyond the window, the earlier one first."""
    posed = np.isfinite(self._depths)
    return np.triu(posed[:, None] & posed, self._max_gap + 1)

  def _breaks(self) -> list[tracks.FramePair]:
    """Frames of two components that follow each other in time.

    The gap is such that enough of the pairs have no frame in common.
    """
    component = self._scene.component
    gap = self._rules.min_agreeing_beyond
    return [
      (a, b)
      for a, b in tracks.candidates(len(component), gap)
      if component[a] != component[b] and min(component[[a, b]]) >= 0
    ]

  def _near(self) -> list[tracks.FramePair]:
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

  def _alike(self) -> list[tracks.FramePair]:
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

  def _verify(self, source: int, target: int) -> Closure | str:
    """The closure of two frames, or why there is none."""
    one, two = (self._solved_features(frame) for frame in (source, target))
    matched = self._match(
      self._features[source].subset(one), self._features[target].subset(two)
    )
    one, two = one[matched[:, 0]], two[matched[:, 1]]
    distinct = self._distinct(source, one, target, two)
    one, two = one[distinct], two[distinct]
    if distinct.sum() < self._rules.min_distinct * len(distinct):
      return 'place looks like others'
    rays = self._features[source].rays[one], self._features[target].rays[two]
    fit = self._judge.fit(*rays)
    reason = self._judge.weakness_alone(fit, rays[0])
    if reason:
      return reason
    one, two = one[fit.inliers], two[fit.inliers]
    return self._measure(source, one, target, two, fit)

  def _solved_features(self, frame: int) -> Int[np.ndarray, 'n']:
    """The features of a frame that show a solved point."""
    ids = self._scene.ids[frame]
    known = ids >= 0
    known[known] = np.isfinite(self._scene.points[ids[known], 0])
    return np.flatnonzero(known)

  def _distinct(
    self, source: int, one: np.ndarray, target: int, two: np.ndarray
  ) -> Bool[np.ndarray, 'm']:
    """Which matches no other point around either frame could replace."""
    return self._without_double(source, one, target, two) & (
      self._without_double(target, two, source, one)
    )

  def _without_double(
    self, frame: int, shown: np.ndarray, other: int, found: np.ndarray
  ) -> Bool[np.ndarray, 'm']:
    scene = self._scene
    wanted = self._features[other].descriptors[found]
    own = scene.ids[frame][shown]
    around = self._around(frame)
    away = np.linalg.norm(
      scene.points[own] - scene.frame2scene[frame, :, 3], axis=1
    )
    elsewhere = (
      spatial.distance.cdist(scene.points[own], scene.points[around])
      > _SAME * away[:, None]
    )
    rival = np.where(elsewhere, wanted @ self._looks[around].T, -1.0)
    similarity = np.einsum('md,md->m', wanted, self._looks[own])
    return 1 - similarity <= self._rules.max_ratio**2 * (
      1 - rival.max(axis=1, initial=-1.0)
    )

  def _around(self, frame: int) -> Int[np.ndarray, 'n']:
    """The points that a frame and those near it in time see."""
    seen = self._scene.observations
    component = self._scene.component
    near = (np.abs(seen.frame - frame) <= self._max_gap) & (
      component[seen.frame] == component[frame]
    )
    return np.unique(seen.point[near])

  def _measure(
    self,
    source: int,
    one: np.ndarray,
    target: int,
    two: np.ndarray,
    fit: relative_pose.PairFit,
  ) -> Closure | str:
    """Translation and scale from the points of both sides."""
    scene = self._scene
    local = [
      camera.transform(
        camera.inverse(scene.frame2scene[frame]),
        scene.points[scene.ids[frame][index]],
      )
      for frame, index in ((source, one), (target, two))
    ]
    rotation = fit.target2source[:, :3]
    centre = locate(local[0], self._features[target].rays[two] @ rotation.T)
    back = locate(local[1], self._features[source].rays[one] @ rotation)
    ratio = np.linalg.norm(local[0] - centre, axis=1) / np.linalg.norm(
      local[1], axis=1
    )
    log_scale = float(np.median(np.log(ratio)))
    # Each side alone says where the other frame is: they must agree.
    off = np.linalg.norm(centre + np.exp(log_scale) * (rotation @ back))
    if off > OFF * self._depths[source]:
      return 'points of both sides disagree'
    return Closure(
      source=source,
      target=target,
      target2source=camera.make_pose(rotation, centre),
      log_scale=log_scale,
      inliers=len(one),
    )

  def outvoted(
    self, closures: Sequence[Closure]
  ) -> dict[tracks.FramePair, str]:
    """Why closures fall that too few others agree with."""
    reasons = {}
    for one in closures:
      others = [other for other in closures if self._beside(one, other)]
      agreeing = [other for other in others if self._agree(one, other)]
      # Independent: no frame counts twice.
      support = 1 + min(
        len({other.source for other in agreeing} - {one.source}),
        len({other.target for other in agreeing} - {one.target}),
      )
      if 2 * len(agreeing) < len(others):
        reasons[one.pair] = 'other closures contradict'
        continue
      needed, reason = self._needed(one)
      if support < needed:
        reasons[one.pair] = reason
    return reasons

  def _beside(self, one: Closure, other: Closure) -> bool:
    """Whether two closures link the same surroundings by other frames."""
    component = self._scene.component
    return one is not other and all(
      component[a] == component[b] and abs(a - b) <= self._max_gap
      for a, b in zip(one.pair, other.pair)
    )

  def _agree(self, one: Closure, other: Closure) -> bool:
    """Whether the cycle of two closures and the paths between them closes."""
    pose = self._scene.frame2scene
    here, there = (
      camera.relative(pose[a], pose[b]) for a, b in zip(one.pair, other.pair)
    )
    stretched = camera.rescale(there, float(np.exp(one.log_scale)))
    expected = camera.relative(
      here, camera.compose(one.target2source, stretched)
    )
    way = np.linalg.norm(here[:, 3]) + np.linalg.norm(stretched[:, 3])
    return self._alike_poses(
      expected, other, other.log_scale - one.log_scale, float(way)
    )

  def _needed(self, closure: Closure) -> tuple[int, str]:
    """How many must agree, and what it means if they do not."""
    ends = list(closure.pair)
    component = self._scene.component[ends]
    if component[0] != component[1]:
      reason = 'too few closures join the components'
      return self._rules.min_agreeing_beyond, reason
    pose = self._scene.frame2scene
    composed = camera.relative(pose[closure.source], pose[closure.target])
    way = float(np.diff(self._path[ends])[0])
    if not self._alike_poses(composed, closure, closure.log_scale, way):
      reason = 'contradicts the composed poses'
      return self._rules.min_agreeing_beyond, reason
    return self._rules.min_agreeing, 'too few closures agree'

  def _alike_poses(
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
    found = closure.target2source
    turn_deg = camera.rotation_angle_deg(expected[:, :3].T @ found[:, :3])
    off = np.linalg.norm(expected[:, 3] - found[:, 3])
    return bool(
      turn_deg <= OFF_DEG + rules.drift_turn_deg * tens
      and off <= OFF * depth + rules.drift_share * way
      and abs(log_scale_off) <= OFF_LOG_SCALE + rules.drift_log_scale * tens
    )


def _looks(
  features: Sequence[matchers.Features], scene: Scene
) -> Float[np.ndarray, 'p d']:
  """Mean descriptor of every point."""
  ids = np.concatenate(scene.ids)
  shown = np.flatnonzero(ids >= 0)
  gather = sparse.csr_array(
    (np.ones(len(shown), np.float32), (ids[shown], shown)),
    shape=(len(scene.points), len(ids)),
  )
  looks = gather @ np.concatenate([frame.descriptors for frame in features])
  return looks / np.maximum(np.linalg.norm(looks, axis=1, keepdims=True), 1e-12)


def _thinned(
  every: Sequence[tracks.FramePair], count: int
) -> list[tracks.FramePair]:
  """At most `count` of them: runs of neighbours, evenly spread.

  Candidates alone would have none beside them to agree with.
  """
  if len(every) <= count:
    return list(every)
  runs = -(-count // _RUN)
  sizes = [count // runs + (run < count % runs) for run in range(runs)]
  return [
    every[run * len(every) // runs + step]
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
