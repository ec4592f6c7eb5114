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
from preprocessing.writing import rejections

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


# Why no view with these angles may be cut; None where one may.
Refuse = Callable[[Angles], rejections.Reason | None]


@dataclasses.dataclass(frozen=True, kw_only=True)
class ViewRules:
  """What views are cut, and which pairs of them are good.

  Raises ValueError for a value that means nothing.

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
    max_masked_share: a view of which more is masked is not cut. At a fifth the
      operator is never most of a view, and of a hand-held walk no record is
      lost: others take the place of the two in a hundred that are refused.
  """

  num_views: int
  num_tries: int
  fov_deg: float
  max_pitch_deg: float
  jitter_yaw_deg: float
  jitter_pitch_deg: float
  max_turn_deg: float
  preferred_overlap: float
  goal_overlap: float
  min_overlap: float
  min_coverage: float
  min_points: int
  max_masked_share: float

  def __post_init__(self) -> None:
    if not 0 <= self.max_masked_share <= 1:
      raise ValueError(
        f'max_masked_share={self.max_masked_share}: must be in 0..1'
      )


@dataclasses.dataclass(frozen=True, kw_only=True)
class ViewPair:
  """Two views that overlap.

  Attributes:
    source: orientation of the source view.
    target: orientation of the target view.
    target2source: pose, in the units of the frames' poses.
    overlap: share of the source view's points inside the target view.
    coverage: share of the target view's points inside the source view.
  """

  source: Angles
  target: Angles
  target2source: Float[np.ndarray, '3 4']
  overlap: float
  coverage: float


def points_in_view(
  points_frame: Points, angles: Angles, fov_deg: float
) -> Bool[np.ndarray, 'n']:
  """Which points, given in a frame's axes, a view of it holds."""
  right, down, depth = camera.view2frame_rotation(*angles).T @ points_frame.T
  reach = depth * np.tan(np.deg2rad(fov_deg) / 2)
  return (depth > 0) & (np.abs(right) <= reach) & (np.abs(down) <= reach)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ViewProposal:
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
      min(float(shared / max(weights @ in_view, 1e-12)), 1.0)
      for in_view in (self.in_source, self.in_target)
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


def align(
  proposals: Sequence[ViewProposal],
  rules: ViewRules,
  refuse: Refuse | None = None,
) -> list[ViewProposal]:
  """Turns the views of each proposal until they share enough.

  The views stay near their start, within the limits of pitch of `rules`, and
  are turned from each other by at most `max_turn_deg`, or as they were before.
  Nothing depends on what else is in the list.

  Args:
    proposals: what to start from.
    rules: the goal and the limits.
    refuse: see `choose_all`.

  Returns:
    the proposals in order: with new angles where the views share more so, by
    count of all points; as they came elsewhere.
  """
  aligned = list(proposals)
  below_goal = [
    index
    for index, start in enumerate(proposals)
    if min(start.shares) < rules.goal_overlap and start.weights.sum() > 0
  ]
  if not below_goal:
    return aligned
  angles_rad = descent.descend(
    [_problem(proposals[index], rules) for index in below_goal],
    goal=rules.goal_overlap,
  )
  angles_deg = np.rad2deg(angles_rad).tolist()
  for index, angles in zip(below_goal, angles_deg, strict=True):
    end = dataclasses.replace(
      proposals[index],
      source=_angles(*angles[:2]),
      target=_angles(*angles[2:]),
    )
    if _is_better(end, proposals[index], rules, refuse):
      aligned[index] = end
  return aligned


def _problem(start: ViewProposal, rules: ViewRules) -> descent.Problem:
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
  end: ViewProposal,
  start: ViewProposal,
  rules: ViewRules,
  refuse: Refuse | None,
) -> bool:
  # Angles are rounded, so a turn may pass its limit by a hair.
  limit_deg = max(rules.max_turn_deg, start.turn_deg) + 1e-3
  return (
    end.merit(rules) > start.merit(rules)
    and end.in_source.sum() >= rules.min_points
    and end.turn_deg <= limit_deg
    and not (refuse and (refuse(end.source) or refuse(end.target)))
  )


@dataclasses.dataclass(frozen=True, kw_only=True)
class PosedFrames:
  """Two panoramas in one scene, to look for views of.

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


class Choice(NamedTuple):
  """What came of one frame pair.

  Attributes:
    view_pairs: those that pass.
    reasons: for each of the others, why there is none.
  """

  view_pairs: list[ViewPair]
  reasons: list[rejections.Reason]


def choose_view_pairs(
  source_frame2scene: Float[np.ndarray, '3 4'],
  target_frame2scene: Float[np.ndarray, '3 4'],
  points: Points,
  weights: Weights,
  *,
  rules: ViewRules,
  rng: np.random.Generator,
  refuse: Refuse | None = None,
) -> Choice:
  """Pairs of views of one frame pair; see `choose_all`."""
  frames = PosedFrames(
    source_frame2scene=source_frame2scene,
    target_frame2scene=target_frame2scene,
    points=points,
    weights=weights,
    num_views=rules.num_views,
    rng=rng,
  )
  return choose_all([frames], rules=rules, refuse=refuse)[0]


def choose_all(
  frame_pairs: Iterable[PosedFrames],
  *,
  rules: ViewRules,
  refuse: Refuse | None = None,
) -> list[Choice]:
  """Pairs of views of many frame pairs, turned many at a time.

  The choice for a frame pair is that of `choose_view_pairs`, at a fraction of
  its time.

  Args:
    frame_pairs: a generator saves memory.
    rules: fields of view and limits; its `num_views` is not used.
    refuse: says why no view with some angles may be cut, such as where the
      camera did not see all around; other angles are then tried. None: every
      view may be cut.
  """
  rest, choices = iter(frame_pairs), []
  while batch := list(itertools.islice(rest, _FRAME_PAIRS)):
    choices += _choose(batch, rules, refuse)
  return choices


def _choose(
  frame_pairs: Sequence[PosedFrames],
  rules: ViewRules,
  refuse: Refuse | None,
) -> list[Choice]:
  searches = [_Search(frames, rules, refuse) for frames in frame_pairs]
  proposed = [search.propose() for search in searches]
  proposals = itertools.chain.from_iterable(views for views, _ in proposed)
  aligned = iter(align(list(proposals), rules, refuse))
  choices = []
  for search, (views, reasons) in zip(searches, proposed, strict=True):
    own = list(itertools.islice(aligned, len(views)))
    passed = [view for view in own if view.merit(rules)[0]]
    refused = [rejections.Reason.LITTLE_OVERLAP] * (len(own) - len(passed))
    choices.append(
      Choice([search.view_pair(view) for view in passed], reasons + refused)
    )
  return choices


class _Search:
  """Looks for views of one frame pair."""

  def __init__(
    self,
    frames: PosedFrames,
    rules: ViewRules,
    refuse: Refuse | None,
  ):
    self._frames2scene = frames.source_frame2scene, frames.target_frame2scene
    self._in_source, self._in_target = (
      camera.transform(camera.inverse(pose), frames.points)
      for pose in self._frames2scene
    )
    self._target2source = camera.relative(
      frames.source_frame2scene, frames.target_frame2scene
    )
    self._target_rays = self._in_target / np.linalg.norm(
      self._in_target, axis=1, keepdims=True
    )
    self._path_yaw_deg, _ = camera.yaw_pitch_deg(self._target2source[:, 3])
    self._weights = frames.weights
    self._num_views = frames.num_views
    self._rng = frames.rng
    self._rules = rules
    self._refuse = refuse

  def propose(self) -> tuple[list[ViewProposal], list[rejections.Reason]]:
    """Views all around, each with a target; and why there are not more."""
    phase = self._rng.uniform(0, 360)
    results = [
      self._propose_at(phase + 360 * index / self._num_views)
      for index in range(self._num_views)
    ]
    views = [result for result in results if isinstance(result, ViewProposal)]
    reasons = [
      result for result in results if isinstance(result, rejections.Reason)
    ]
    return views, reasons

  def view_pair(self, views: ViewProposal) -> ViewPair:
    """What is kept of two views."""
    overlap, coverage = views.shares
    return ViewPair(
      source=views.source,
      target=views.target,
      target2source=camera.relative_view_pose(
        *self._frames2scene, views.source, views.target
      ),
      overlap=overlap,
      coverage=coverage,
    )

  def _propose_at(self, yaw_deg: float) -> ViewProposal | rejections.Reason:
    """Views whose source looks there, or else elsewhere; or why none do."""
    rules, best, reason = self._rules, None, None
    for attempt in range(rules.num_tries):
      result = self._try(yaw_deg)
      # Where frames are far apart, views along the path overlap best.
      yaw_deg = self._rng.uniform(0, 360)
      if attempt % 2:
        yaw_deg = self._path_yaw_deg + self._rng.normal(0, _PATH_SPREAD_DEG)
        yaw_deg += 180 * self._rng.integers(2)
      if isinstance(result, rejections.Reason):
        reason = result
        continue
      if best is None or result.merit(rules) > best.merit(rules):
        best = result
      if min(result.shares) >= rules.preferred_overlap:
        break
    return reason if best is None else best

  def _try(self, yaw_deg: float) -> ViewProposal | rejections.Reason:
    rules, rng = self._rules, self._rng
    pitch = rng.uniform(-rules.max_pitch_deg, rules.max_pitch_deg)
    jitter = rng.uniform(-1, 1, 2) * (
      rules.jitter_yaw_deg,
      rules.jitter_pitch_deg,
    )
    source = _angles(yaw_deg, pitch)
    in_source = points_in_view(self._in_source, source, rules.fov_deg)
    if in_source.sum() < rules.min_points:
      return rejections.Reason.FEW_POINTS
    target = self._aim(source, in_source, jitter)
    refuse = self._refuse
    if refuse and (reason := refuse(source) or refuse(target)):
      return reason
    return ViewProposal(
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
    in_source: Bool[np.ndarray, 'n'],
    jitter_deg: Float[np.ndarray, '2'],
  ) -> Angles:
    """The view of the middle of what the source view sees, then turned away."""
    centre = np.quantile(
      self._target_rays[in_source],
      0.5,
      axis=0,
      weights=self._weights[in_source],
      method='inverted_cdf',
    )
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
