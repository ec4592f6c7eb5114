"""Chooses pairs of perspective views of two panoramas that overlap.

A panorama can be turned freely after capture, so whatever the camera pointed
at, two frames of the same scene hold views of the same things. Source views
look around the circle; each target view is aimed at the middle of what its
source view sees, found from scene points that both frames see, but not turned
further than a limit, since nobody knows a thing again from its other side. Then
it is turned away by a bounded random angle: relative rotations vary, and a copy
of the source is no answer.

How much two views share is asked both ways. `overlap` is the share of the
source view's points inside the target view: small where the target is close to
a part of what the source shows. `coverage` is the share of the target view's
points inside the source view: a target that the source does not cover could
only be guessed, so coverage has the higher limit.
"""

import dataclasses
from typing import NamedTuple

from jaxtyping import Bool, Float
import numpy as np

from odin_jax.shared import camera

# How far views that look along the path look past it.
_PATH_SPREAD_DEG = 15.0
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
  points_view = points_frame @ camera.view2frame_rotation(*angles)
  depth = points_view[:, 2]
  reach = depth * np.tan(np.deg2rad(fov_deg) / 2)
  return (depth > 0) & np.all(
    np.abs(points_view[:, :2]) <= reach[:, None], axis=1
  )


def choose_view_pairs(
  source_frame2scene: Float[np.ndarray, '3 4'],
  target_frame2scene: Float[np.ndarray, '3 4'],
  points: Points,
  weights: Weights,
  *,
  rules: ViewRules,
  rng: np.random.Generator,
) -> tuple[list[ViewPair], list[str]]:
  """Pairs of views of a frame pair.

  Args:
    source_frame2scene: pose of the source panorama.
    target_frame2scene: pose of the target panorama.
    points: scene points that both frames see, in scene coordinates.
    weights: positive; how much each point counts.
    rules: fields of view and limits.
    rng: source of the views' directions; seed it per frame pair.

  Returns:
    the view pairs that pass, and for each of the others the reason.
  """
  search = _Search(
    (source_frame2scene, target_frame2scene), points, weights, rules, rng
  )
  phase = rng.uniform(0, 360)
  kept, reasons = [], []
  for index in range(rules.num_views):
    found = search.look_at(phase + 360 * index / rules.num_views)
    (reasons if isinstance(found, str) else kept).append(found)
  return kept, reasons


class _Search:
  """Looks for views of one frame pair."""

  def __init__(
    self,
    frames2scene: tuple[np.ndarray, np.ndarray],
    points: Points,
    weights: Weights,
    rules: ViewRules,
    rng: np.random.Generator,
  ):
    self._frames2scene = frames2scene
    self._in_source, self._in_target = (
      camera.transform(camera.inverse(pose), points) for pose in frames2scene
    )
    self._source2target = camera.compose(
      camera.inverse(frames2scene[1]), frames2scene[0]
    )
    target2source = camera.inverse(self._source2target)
    self._path_yaw_deg, _ = camera.yaw_pitch_deg(target2source[:, 3])
    self._weights = weights
    self._rules = rules
    self._rng = rng

  def look_at(self, yaw_deg: float) -> ViewPair | str:
    """A view pair whose source looks there, or else elsewhere; or a reason."""
    best, best_shared, reason = None, 0.0, ''
    for attempt in range(self._rules.num_tries):
      found = self._try(yaw_deg)
      # Where frames are far apart, views along the path overlap best.
      yaw_deg = self._rng.uniform(0, 360)
      if attempt % 2:
        yaw_deg = self._path_yaw_deg + self._rng.normal(0, _PATH_SPREAD_DEG)
        yaw_deg += 180 * self._rng.integers(2)
      if isinstance(found, str):
        reason = found
        continue
      shared = min(found.overlap, found.coverage)
      if shared > best_shared:
        best, best_shared = found, shared
      if shared >= self._rules.preferred_overlap:
        break
    return best or reason

  def _try(self, yaw_deg: float) -> ViewPair | str:
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
    also_seen = points_in_view(self._in_target, target, rules.fov_deg)
    weights = self._weights
    shared = weights[seen & also_seen].sum()
    # A target view without points shares none either.
    overlap = float(shared / weights[seen].sum())
    coverage = float(shared / max(weights[also_seen].sum(), 1e-12))
    if overlap < rules.min_overlap or coverage < rules.min_coverage:
      return 'views overlap too little'
    distance = np.linalg.norm(self._in_source[seen], axis=1)
    return ViewPair(
      source=source,
      target=target,
      target2source=camera.relative_view_pose(
        *self._frames2scene, source, target
      ),
      overlap=min(overlap, 1.0),
      coverage=min(coverage, 1.0),
      median_depth=weighted_median(distance, weights[seen]),
    )

  def _aim(
    self,
    source: Angles,
    seen: Bool[np.ndarray, 'n'],
    jitter_deg: Float[np.ndarray, '2'],
  ) -> Angles:
    """The view of the middle of what the source view sees, then turned away."""
    directions = self._in_target[seen]
    directions = directions / np.linalg.norm(directions, axis=1, keepdims=True)
    weights = self._weights[seen]
    centre = np.array([weighted_median(axis, weights) for axis in directions.T])
    source_axis = (
      self._source2target[:, :3] @ camera.view2frame_rotation(*source)[:, 2]
    )
    centre = _turn_towards(source_axis, centre, self._rules.max_turn_deg)
    yaw, pitch = camera.yaw_pitch_deg(centre)
    pitch = np.clip(pitch + jitter_deg[1], -85, 85)
    return _angles(yaw + jitter_deg[0], float(pitch))


def _turn_towards(
  axis: Float[np.ndarray, '3'], goal: Float[np.ndarray, '3'], limit_deg: float
) -> Float[np.ndarray, '3']:
  """`axis` turned towards `goal`, by at most a limit."""
  if camera.angle_between_deg(axis, goal) <= limit_deg:
    return goal
  across = np.cross(axis, goal)
  length = np.linalg.norm(across)
  if length < 1e-9:
    # Opposite: no way round is the shorter one.
    return axis
  limit = np.deg2rad(limit_deg)
  return axis * np.cos(limit) + np.cross(across / length, axis) * np.sin(limit)


def _angles(yaw_deg: float, pitch_deg: float) -> Angles:
  # Rounded to what a record holds: poses computed from the record's angles
  # are then the pose that is stored.
  yaw_deg = (yaw_deg + 180) % 360 - 180
  return Angles(float(np.float32(yaw_deg)), float(np.float32(pitch_deg)))
