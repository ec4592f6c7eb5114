"""Chooses pairs of perspective views of two panoramas that overlap.

A panorama can be turned freely after capture, so whatever the camera pointed
at, two frames of the same scene hold views of the same things. Source views
look around the circle; each target view is aimed at the middle of what its
source view sees, found from scene points of the two frames, but not turned
further than a limit, since nobody knows a thing again from its other side. Then
it is turned away by a bounded random angle: relative rotations vary, and a copy
of the source is no answer. Both views of a pair that shares less than a goal
are then turned by gradient descent (`descent`) until it does.

How much two views share is asked both ways. `overlap` is the share of the
source view's points inside the target view: small where the target is close to
a part of what the source shows. `coverage` is the share of the target view's
points inside the source view: a target that the source does not cover could
only be guessed, so coverage has the higher limit.

The descent sees smooth shares of a sample of the points. What it found is
judged by counting all of them, and stays only if the views share more than
before.
"""

import dataclasses
import functools
import itertools
from typing import Callable, Iterable, NamedTuple, Sequence

from jaxtyping import Bool, Float
import numpy as np

from odin_jax.shared import camera
from preprocessing.views import descent

# How far views that look along the path look past it.
_PATH_SPREAD_DEG = 15.0
_STEEPEST_DEG = 85.0
# Frame pairs whose views are turned at a time.
_FRAME_PAIRS = 64
Points = Float[np.ndarray, 'n 3']
Weights = Float[np.ndarray, 'n']


class Angles(NamedTuple):
  """Orientation of a view in its panorama; float32 values, as in records."""

  yaw_deg: float
  pitch_deg: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class ViewRules:
  """What views are cut, and which pairs of them are good.

  Attributes:
    num_views: view pairs that are looked for per frame pair.
    num_tries: source views that are tried for each of them: as asked, then
      anywhere and along the path in turn. Where frames are far apart for what
      they see, only few directions have views that overlap.
    fov_deg: full field of view.
    max_pitch_deg: source views look up or down by at most this.
    jitter_yaw_deg: the target view is turned away by at most this.
    jitter_pitch_deg: and up or down by at most this.
    max_turn_deg: largest angle between the views' axes before the jitter.
    preferred_overlap: the first view pair whose overlap and coverage reach
      this is taken; where none does, the one that comes nearest to it.
    goal_overlap: views are turned until overlap and coverage reach this, or
      come as near to it as they can; 0: they stay as they are.
    min_overlap: least overlap.
    min_coverage: least coverage.
    min_points: a view with fewer points is not judged but dropped.
  """

  num_views: int = 4
  num_tries: int = 8
  fov_deg: float = 90.0
  max_pitch_deg: float = 10.0
  jitter_yaw_deg: float = 20.0
  jitter_pitch_deg: float = 6.0
  max_turn_deg: float = 60.0
  preferred_overlap: float = 0.5
  goal_overlap: float = 0.65
  min_overlap: float = 0.2
  min_coverage: float = 0.5
  min_points: int = 12


@dataclasses.dataclass(frozen=True, kw_only=True)
class ViewPair:
  """Two views that overlap.

  Attributes:
    source: orientation of the source view.
    target: orientation of the target view.
    target2source: pose, in the units of the frames' poses.
    overlap: share of the source view's points inside the target view.
    coverage: share of the target view's points inside the source view.
    median_depth: of the source view's points: distance from the camera.
  """

  source: Angles
  target: Angles
  target2source: Float[np.ndarray, '3 4']
  overlap: float
  coverage: float
  median_depth: float


def weighted_median(values: Float[np.ndarray, 'n'], weights: Weights) -> float:
  """The value with half of the weight on either side."""
  order = np.argsort(values, kind='stable')
  cumulative = np.cumsum(weights[order])
  middle = np.searchsorted(cumulative, cumulative[-1] / 2)
  return float(values[order[min(middle, len(order) - 1)]])


def points_in_view(
  points_frame: Points, angles: Angles, fov_deg: float
) -> Bool[np.ndarray, 'n']:
  """Which points, given in a frame's axes, a view of it holds."""
  right, down, depth = camera.view2frame_rotation(*angles).T @ points_frame.T
  reach = depth * np.tan(np.deg2rad(fov_deg) / 2)
  return (depth > 0) & (np.abs(right) <= reach) & (np.abs(down) <= reach)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Candidate:
  """Two views, and points that tell what they share.

  Attributes:
    points_source: in the source frame: triangulated, or a network's pointmap.
    points_target: the same points in the target frame.
    weights: of the points; not negative.
    target2source: rotation of the frames.
    source: orientation of the source view.
    target: orientation of the target view.
    fov_deg: full field of view of both.
  """

  points_source: Points
  points_target: Points
  weights: Weights
  target2source: Float[np.ndarray, '3 3']
  source: Angles
  target: Angles
  fov_deg: float

  @functools.cached_property
  def in_source(self) -> Bool[np.ndarray, 'n']:
    """Which points the source view holds."""
    return points_in_view(self.points_source, self.source, self.fov_deg)

  @functools.cached_property
  def in_target(self) -> Bool[np.ndarray, 'n']:
    """Which points the target view holds."""
    return points_in_view(self.points_target, self.target, self.fov_deg)

  @functools.cached_property
  def shares(self) -> tuple[float, float]:
    """Overlap and coverage; see `ViewPair`."""
    weights = self.weights
    shared = weights @ (self.in_source & self.in_target)
    # A view without points shares none either.
    overlap, coverage = (
      min(float(shared / max(weights @ held, 1e-12)), 1.0)
      for held in (self.in_source, self.in_target)
    )
    return overlap, coverage

  def merit(self, rules: ViewRules) -> tuple[bool, float]:
    """Larger is better: whether the views pass, then the smaller share."""
    overlap, coverage = self.shares
    passes = overlap >= rules.min_overlap and coverage >= rules.min_coverage
    return passes, min(overlap, coverage)

  @property
  def turn_deg(self) -> float:
    """Angle between the axes of the views."""
    source, target = (
      camera.view2frame_rotation(*angles)[:, 2]
      for angles in (self.source, self.target)
    )
    return float(camera.angle_between_deg(source, self.target2source @ target))


Sees = Callable[[Angles], bool]


def align(
  candidates: Sequence[Candidate],
  rules: ViewRules,
  sees: Sees | None = None,
) -> list[Candidate]:
  """Turns the views of each candidate until they share enough.

  The views stay near their start, within the limits of pitch of `rules`, and
  are turned from each other by at most `max_turn_deg`, or as they were before.
  Nothing depends on what else is in the list.

  Args:
    candidates: what to start from.
    rules: the goal and the limits.
    sees: whether the camera saw all of a view.

  Returns:
    the candidates in order: with new angles where the views share more so, by
    count of all points; as they came elsewhere.
  """
  todo = [
    index
    for index, start in enumerate(candidates)
    if min(start.shares) < rules.goal_overlap and start.weights.sum() > 0
  ]
  found = list(candidates)
  if not todo:
    return found
  turned = descent.descend(
    [_problem(candidates[index], rules) for index in todo],
    goal=rules.goal_overlap,
  )
  for index, angles in zip(todo, np.rad2deg(turned).tolist(), strict=True):
    end = dataclasses.replace(
      candidates[index],
      source=_angles(*angles[:2]),
      target=_angles(*angles[2:]),
    )
    if _is_better(end, candidates[index], rules, sees):
      found[index] = end
  return found


def _problem(start: Candidate, rules: ViewRules) -> descent.Problem:
  steepest = max(
    abs(start.target.pitch_deg), rules.max_pitch_deg + rules.jitter_pitch_deg
  )
  limits = rules.max_pitch_deg, min(steepest, _STEEPEST_DEG)
  return descent.Problem(
    source_points=start.points_source,
    target_points=start.points_target,
    weights=start.weights,
    target2source=start.target2source,
    fov_rad=float(np.deg2rad(start.fov_deg)),
    start_rad=np.deg2rad([*start.source, *start.target]),
    max_pitch_rad=np.deg2rad(limits),
    max_turn_rad=float(np.deg2rad(max(rules.max_turn_deg, start.turn_deg))),
  )


def _is_better(
  end: Candidate, start: Candidate, rules: ViewRules, sees: Sees | None
) -> bool:
  # Angles are rounded, so a turn may pass its limit by a hair.
  limit_deg = max(rules.max_turn_deg, start.turn_deg) + 1e-3
  return (
    end.merit(rules) > start.merit(rules)
    and end.in_source.sum() >= rules.min_points
    and end.turn_deg <= limit_deg
    and (sees is None or (sees(end.source) and sees(end.target)))
  )


@dataclasses.dataclass(frozen=True, kw_only=True)
class FramePair:
  """Two panoramas of which views are wanted.

  Attributes:
    source_frame2scene: pose of the source panorama.
    target_frame2scene: pose of the target panorama.
    points: scene points that either frame sees, in scene coordinates.
    weights: positive; how much each point counts.
    num_views: view pairs that are looked for.
    rng: source of the views' directions; seed it per frame pair.
  """

  source_frame2scene: Float[np.ndarray, '3 4']
  target_frame2scene: Float[np.ndarray, '3 4']
  points: Points
  weights: Weights
  num_views: int
  rng: np.random.Generator


Choice = tuple[list[ViewPair], list[str]]


def choose_view_pairs(
  source_frame2scene: Float[np.ndarray, '3 4'],
  target_frame2scene: Float[np.ndarray, '3 4'],
  points: Points,
  weights: Weights,
  *,
  rules: ViewRules,
  rng: np.random.Generator,
  sees: Sees | None = None,
) -> Choice:
  """Pairs of views of one frame pair; see `choose_all`."""
  pair = FramePair(
    source_frame2scene=source_frame2scene,
    target_frame2scene=target_frame2scene,
    points=points,
    weights=weights,
    num_views=rules.num_views,
    rng=rng,
  )
  return choose_all([pair], rules=rules, sees=sees)[0]


def choose_all(
  pairs: Iterable[FramePair], *, rules: ViewRules, sees: Sees | None = None
) -> list[Choice]:
  """Pairs of views of many frame pairs, turned many at a time.

  The choice for a frame pair is that of `choose_view_pairs`, at a fraction of
  its time.

  Args:
    pairs: the frame pairs; a generator saves memory.
    rules: fields of view and limits; its `num_views` is not used.
    sees: whether the camera saw all of a view with these angles, where it did
      not see all around; views that reach beyond are refused.

  Returns:
    of each frame pair the view pairs that pass, and for each of the others the
    reason.
  """
  rest, chosen = iter(pairs), []
  while some := list(itertools.islice(rest, _FRAME_PAIRS)):
    chosen += _choose(some, rules, sees)
  return chosen


def _choose(
  pairs: Sequence[FramePair], rules: ViewRules, sees: Sees | None
) -> list[Choice]:
  searches = [_Search(pair, rules, sees) for pair in pairs]
  proposals = [search.propose() for search in searches]
  found = itertools.chain.from_iterable(proposals)
  candidates = [view for view in found if isinstance(view, Candidate)]
  aligned = iter(align(candidates, rules, sees))
  chosen = []
  for search, views in zip(searches, proposals, strict=True):
    kept: list[ViewPair] = []
    reasons: list[str] = []
    for view in views:
      judged = view if isinstance(view, str) else search.judge(next(aligned))
      (reasons if isinstance(judged, str) else kept).append(judged)
    chosen.append((kept, reasons))
  return chosen


class _Search:
  """Looks for views of one frame pair."""

  def __init__(self, pair: FramePair, rules: ViewRules, sees: Sees | None):
    self._frames2scene = pair.source_frame2scene, pair.target_frame2scene
    self._in_source, self._in_target = (
      camera.transform(camera.inverse(pose), pair.points)
      for pose in self._frames2scene
    )
    self._target2source = camera.relative(
      pair.source_frame2scene, pair.target_frame2scene
    )
    self._target_rays = self._in_target / np.linalg.norm(
      self._in_target, axis=1, keepdims=True
    )
    self._path_yaw_deg, _ = camera.yaw_pitch_deg(self._target2source[:, 3])
    self._weights = pair.weights
    self._num_views = pair.num_views
    self._rng = pair.rng
    self._rules = rules
    self._sees = sees

  def propose(self) -> list[Candidate | str]:
    """Views all around, each with a target; or reasons why not."""
    phase = self._rng.uniform(0, 360)
    return [
      self._look_at(phase + 360 * index / self._num_views)
      for index in range(self._num_views)
    ]

  def judge(self, views: Candidate) -> ViewPair | str:
    """What is kept of two views, or the reason why nothing is."""
    if not views.merit(self._rules)[0]:
      return 'views overlap too little'
    seen, (overlap, coverage) = views.in_source, views.shares
    return ViewPair(
      source=views.source,
      target=views.target,
      target2source=camera.relative_view_pose(
        *self._frames2scene, views.source, views.target
      ),
      overlap=overlap,
      coverage=coverage,
      median_depth=weighted_median(
        np.linalg.norm(self._in_source[seen], axis=1), self._weights[seen]
      ),
    )

  def _look_at(self, yaw_deg: float) -> Candidate | str:
    """Views whose source looks there, or else elsewhere; or a reason."""
    rules, best, reason = self._rules, None, ''
    for attempt in range(rules.num_tries):
      found = self._try(yaw_deg)
      # Where frames are far apart, views along the path overlap best.
      yaw_deg = self._rng.uniform(0, 360)
      if attempt % 2:
        yaw_deg = self._path_yaw_deg + self._rng.normal(0, _PATH_SPREAD_DEG)
        yaw_deg += 180 * self._rng.integers(2)
      if isinstance(found, str):
        reason = found
        continue
      if best is None or found.merit(rules) > best.merit(rules):
        best = found
      if min(found.shares) >= rules.preferred_overlap:
        break
    return best or reason

  def _try(self, yaw_deg: float) -> Candidate | str:
    rules, rng = self._rules, self._rng
    pitch = rng.uniform(-rules.max_pitch_deg, rules.max_pitch_deg)
    jitter = rng.uniform(-1, 1, 2) * (
      rules.jitter_yaw_deg,
      rules.jitter_pitch_deg,
    )
    source = _angles(yaw_deg, pitch)
    seen = points_in_view(self._in_source, source, rules.fov_deg)
    if seen.sum() < rules.min_points:
      return 'too few points in the source view'
    target = self._aim(source, seen, jitter)
    if self._sees and not (self._sees(source) and self._sees(target)):
      return 'view reaches beyond what the camera saw'
    return Candidate(
      points_source=self._in_source,
      points_target=self._in_target,
      weights=self._weights,
      target2source=self._target2source[:, :3],
      source=source,
      target=target,
      fov_deg=rules.fov_deg,
    )

  def _aim(
    self,
    source: Angles,
    seen: Bool[np.ndarray, 'n'],
    jitter_deg: Float[np.ndarray, '2'],
  ) -> Angles:
    """The view of the middle of what the source view sees, then turned away."""
    directions = self._target_rays[seen]
    weights = self._weights[seen]
    centre = np.array([weighted_median(axis, weights) for axis in directions.T])
    source_axis = (
      self._target2source[:, :3].T @ camera.view2frame_rotation(*source)[:, 2]
    )
    centre = _turn_towards(source_axis, centre, self._rules.max_turn_deg)
    yaw, pitch = camera.yaw_pitch_deg(centre)
    pitch = np.clip(pitch + jitter_deg[1], -_STEEPEST_DEG, _STEEPEST_DEG)
    return _angles(yaw + jitter_deg[0], float(pitch))


def _turn_towards(
  axis: Float[np.ndarray, '3'], goal: Float[np.ndarray, '3'], limit_deg: float
) -> Float[np.ndarray, '3']:
  """Unit `axis` turned towards `goal`, by at most a limit."""
  along = axis @ goal
  across = goal - along * axis
  length = np.linalg.norm(across)
  limit = np.deg2rad(limit_deg)
  if np.arctan2(length, along) <= limit:
    return goal
  if length < 1e-9:
    # Opposite: no way round is the shorter one.
    return axis
  return axis * np.cos(limit) + across / length * np.sin(limit)


def _angles(yaw_deg: float, pitch_deg: float) -> Angles:
  # Rounded to what a record holds: poses computed from the record's angles
  # are then the pose that is stored.
  yaw_deg = (yaw_deg + 180) % 360 - 180
  return Angles(float(np.float32(yaw_deg)), float(np.float32(pitch_deg)))
