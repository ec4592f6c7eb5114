"""Which views of two panoramas make a pair.

As for records of pairs (`preprocessing/views/alignment.py`): the source view
looks around the circle; the target view is aimed at the middle of what the
source view sees, and turned away by a random angle. What both see is told by
the points that the panoramas know the distance of: the pair is good if enough
of the source view's points lie in the target view (`overlap`), and enough of
the target view's in the source view (`coverage`).

No descent turns the views here: a few of them are tried, which takes a
millisecond. And points know of no match. Where both panoramas know a distance
in the same direction from the target, they have to agree, or something stands
in between.
"""

import dataclasses
from typing import NamedTuple

from jaxtyping import Bool, Float, Float32
import numpy as np

from odin_jax.panoramas import cutting
from odin_jax.shared import camera, median_depth

# Points of a panorama that are looked at; a dense map has more.
_MAX_POINTS = 1500
# A view with fewer points is not judged.
_MIN_POINTS = 12
# Distances that two panoramas know of one direction agree up to this share of
# them; at the edge of a thing a cell of a map holds one or the other.
_SAME_DISTANCE = 0.15
# So many of those that are compared.
_MIN_AGREEING = 0.5
# Fewer say nothing: two panoramas that see the same know more in common.
_MIN_COMPARED = 4
# Side of the grid of rays on which masked pixels are counted.
_MASK_PX = 16


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rules:
  """What pairs are drawn; fields of `config.panoramas`.

  Attributes:
    single_share: of the pairs, those of one panorama: exact rotations.
    max_gap_s: largest time between two panoramas.
    far_share: of the other pairs, those of panoramas further apart in time,
      where the path returns.
    max_baseline: between those, scene units.
    min_fov_deg: smallest full field of view, of both views.
    max_fov_deg: largest.
    max_pitch_deg: source views look up or down by at most this.
    max_roll_deg: all views are turned about their axis by at most this.
    jitter_yaw_deg: the target view is turned away by at most this.
    jitter_pitch_deg: and up or down by at most this.
    max_turn_deg: largest angle between the axes before the jitter.
    single_yaw_deg: views of one panorama are turned by at most this.
    single_pitch_deg: and up or down by at most this.
    num_tries: of views, before another panorama is tried.
    preferred_overlap: views whose overlap and coverage reach this are taken at
      once; where none do, the best.
    min_overlap: least overlap.
    min_coverage: least coverage.
    max_masked_share: a view of which more is masked is not cut.
  """

  single_share: float
  max_gap_s: float
  far_share: float
  max_baseline: float
  min_fov_deg: float
  max_fov_deg: float
  max_pitch_deg: float
  max_roll_deg: float
  jitter_yaw_deg: float
  jitter_pitch_deg: float
  max_turn_deg: float
  single_yaw_deg: float
  single_pitch_deg: float
  num_tries: int
  preferred_overlap: float
  min_overlap: float
  min_coverage: float
  max_masked_share: float

  def __post_init__(self) -> None:
    for name in ('single_share', 'far_share', 'max_masked_share'):
      if not 0 <= getattr(self, name) <= 1:
        raise ValueError(f'{name}={getattr(self, name)}: must be in 0..1')
    if not 0 < self.min_fov_deg <= self.max_fov_deg < 170:
      raise ValueError(
        f'min_fov_deg={self.min_fov_deg}, max_fov_deg={self.max_fov_deg}: must '
        'be above 0, in this order, and below 170'
      )
    if self.num_tries < 1:
      raise ValueError(f'num_tries={self.num_tries}: must be at least 1')


@dataclasses.dataclass(frozen=True)
class Surroundings:
  """What is known around a panorama, in its axes.

  Attributes:
    distance: by direction, along the ray, scene units; 0 where not known.
    masked: by direction.
    points: that the distances give, evenly spread where there are many.
    weights: of the points, by solid angle.
  """

  distance: Float32[np.ndarray, 'h w']
  masked: Bool[np.ndarray, 'h w']
  points: Float32[np.ndarray, 'n 3']
  weights: Float32[np.ndarray, 'n']

  @classmethod
  def of(
    cls,
    distance: Float32[np.ndarray, 'h w'],
    masked: Bool[np.ndarray, 'a b'],
  ) -> 'Surroundings':
    """From the maps of a record."""
    height, width = distance.shape
    row, column = np.nonzero(distance)
    if len(row) > _MAX_POINTS:
      # Even in solid angle, not in rows of the map; the same each time.
      share = np.cos((row + 0.5) / height * np.pi - np.pi / 2)
      chosen = np.random.default_rng(0).choice(
        len(row), _MAX_POINTS, replace=False, p=share / share.sum()
      )
      row, column = row[chosen], column[chosen]
    directions = camera.equirect_to_direction(
      column + 0.5, row + 0.5, width, height
    )
    weights = np.hypot(directions[:, 0], directions[:, 2])
    if len(row) == _MAX_POINTS:
      weights = np.ones(len(row))
    points = directions * distance[row, column, None]
    return cls(
      distance, masked, points.astype(np.float32), weights.astype(np.float32)
    )

  def at(self, directions: Float[np.ndarray, '*b 3']) -> np.ndarray:
    """The distance known in each direction; 0 where none is."""
    return _look_up(self.distance, directions)

  def masked_share(self, view: cutting.View) -> float:
    """Share of a view's pixels that are masked; to about a hundredth."""
    if not self.masked.any():
      return 0.0
    return float(_look_up(self.masked, view.rays(_MASK_PX)).mean())

  def median_depth(self, view: cutting.View) -> float:
    """The `median_depth` of a view; 0 where it holds too few points."""
    if _inside(self.points, view).sum() < _MIN_POINTS:
      return 0.0
    return median_depth.of_points(self.points @ view.view2frame, view.fov_deg)


class ViewPair(NamedTuple):
  """Two views of two panoramas, or of one."""

  source: cutting.View
  target: cutting.View


def _look_up(
  values: np.ndarray, directions: Float[np.ndarray, '*b 3']
) -> np.ndarray:
  height, width = values.shape
  u, v = camera.direction_to_equirect(directions, width, height)
  return values[np.minimum(v.astype(int), height - 1), u.astype(int) % width]


def _inside(
  points: Float[np.ndarray, 'n 3'], view: cutting.View
) -> Bool[np.ndarray, 'n']:
  """Which points of a panorama a view holds."""
  right, down, depth = (points @ view.view2frame).T
  reach = depth * np.tan(np.deg2rad(view.fov_deg) / 2)
  return (depth > 0) & (np.abs(right) <= reach) & (np.abs(down) <= reach)


def rotation_z(angle_rad: float) -> Float[np.ndarray, '3 3']:
  """Rotation about the optical axis; positive turns the view clockwise."""
  c, s = np.cos(angle_rad), np.sin(angle_rad)
  return np.array([[c, -s, 0.0], [s, c, 0.0], [0.0, 0.0, 1.0]])


class _Drawer:
  """Draws views by the rules."""

  def __init__(
    self, rules: Rules, rng: np.random.Generator, fov_deg: float | None = None
  ):
    self._rules = rules
    self._rng = rng
    if fov_deg is None:
      fov_deg = rng.uniform(rules.min_fov_deg, rules.max_fov_deg)
    self._fov_deg = fov_deg

  def _within(self, limit: float) -> float:
    return self._rng.uniform(-limit, limit)

  def view(self, yaw_deg: float, pitch_deg: float) -> cutting.View:
    """A view that looks there, and is rolled."""
    turn = camera.view2frame_rotation(yaw_deg, np.clip(pitch_deg, -85, 85))
    roll = rotation_z(np.deg2rad(self._within(self._rules.max_roll_deg)))
    return cutting.View(turn @ roll, self._fov_deg)

  def source(self) -> cutting.View:
    pitch_deg = self._within(self._rules.max_pitch_deg)
    return self.view(self._within(180.0), pitch_deg)

  def turned(
    self, direction: Float[np.ndarray, '3'], yaw_deg: float, pitch_deg: float
  ) -> cutting.View:
    """A view that looks past a direction by up to so much."""
    yaw, pitch = camera.yaw_pitch_deg(direction)
    return self.view(
      yaw + self._within(yaw_deg), pitch + self._within(pitch_deg)
    )


def single(
  around: Surroundings, rules: Rules, rng: np.random.Generator
) -> ViewPair | None:
  """Two views of one panorama; None where all that are tried are masked."""
  drawer = _Drawer(rules, rng)
  for _ in range(rules.num_tries):
    source = drawer.source()
    target = drawer.turned(
      source.view2frame[:, 2], rules.single_yaw_deg, rules.single_pitch_deg
    )
    if _are_free(around, source, around, target, rules):
      return ViewPair(source, target)
  return None


def between(
  source_around: Surroundings,
  target_around: Surroundings,
  target2source: Float[np.ndarray, '3 4'],
  rules: Rules,
  rng: np.random.Generator,
) -> ViewPair | None:
  """A view of each of two panoramas, which share what they see.

  Args:
    source_around: what is known around the source panorama.
    target_around: and around the target panorama.
    target2source: pose of the panoramas.
    rules: see there.
    rng: of all that is drawn.

  Returns:
    None where none that are tried share enough.
  """
  shared = _shared_points(source_around, target_around, target2source)
  if shared is None:
    return None
  in_source, in_target, weights = shared
  drawer = _Drawer(rules, rng)
  best, best_share = None, 0.0
  for _ in range(rules.num_tries):
    source = drawer.source()
    seen = _inside(in_source, source)
    if seen.sum() < _MIN_POINTS:
      continue
    middle = _mean_direction(in_target[seen], weights[seen])
    turn_deg = camera.angle_between_deg(
      source.view2frame[:, 2], target2source[:, :3] @ middle
    )
    if turn_deg > rules.max_turn_deg:
      continue
    target = drawer.turned(middle, rules.jitter_yaw_deg, rules.jitter_pitch_deg)
    if not _are_free(source_around, source, target_around, target, rules):
      continue
    inside = _inside(in_target, target)
    both = weights @ (seen & inside)
    overlap = both / (weights @ seen)
    coverage = both / max(weights @ inside, 1e-9)
    share = min(overlap, coverage)
    if share >= rules.preferred_overlap:
      return ViewPair(source, target)
    if (
      overlap >= rules.min_overlap
      and coverage >= rules.min_coverage
      and share > best_share
    ):
      best, best_share = ViewPair(source, target), share
  return best


def another(
  around: Surroundings,
  target_around: Surroundings,
  target2source: Float[np.ndarray, '3 4'],
  target: cutting.View,
  rules: Rules,
  rng: np.random.Generator,
) -> cutting.View | None:
  """A further view that shows some of what a target view does.

  Args:
    around: what is known around the panorama that it is cut of.
    target_around: and around the target's.
    target2source: pose of the panoramas.
    target: the view that is to be predicted.
    rules: see there; the share of the target's points in it is `min_overlap`.
    rng: of all that is drawn.

  Returns:
    None where none that are tried show enough.
  """
  shared = _shared_points(around, target_around, target2source)
  if shared is None:
    return None
  in_source, in_target, weights = shared
  wanted = _inside(in_target, target)
  if wanted.sum() < _MIN_POINTS:
    return None
  middle = _mean_direction(in_source[wanted], weights[wanted])
  drawer = _Drawer(rules, rng, target.fov_deg)
  for _ in range(rules.num_tries):
    view = drawer.turned(middle, rules.jitter_yaw_deg, rules.jitter_pitch_deg)
    if around.masked_share(view) > rules.max_masked_share:
      continue
    shown = weights @ (wanted & _inside(in_source, view))
    if shown >= rules.min_overlap * (weights @ wanted):
      return view
  return None


def _mean_direction(
  points: Float[np.ndarray, 'n 3'], weights: Float[np.ndarray, 'n']
) -> Float[np.ndarray, '3']:
  """Mean of directions, lest far points draw a view to themselves."""
  length = np.linalg.norm(points, axis=1, keepdims=True)
  return weights @ (points / np.maximum(length, 1e-9))


def _are_free(
  source_around: Surroundings,
  source: cutting.View,
  target_around: Surroundings,
  target: cutting.View,
  rules: Rules,
) -> bool:
  """Whether little of either view is masked."""
  return (
    source_around.masked_share(source) <= rules.max_masked_share
    and target_around.masked_share(target) <= rules.max_masked_share
  )


def _shared_points(
  source: Surroundings,
  target: Surroundings,
  target2source: Float[np.ndarray, '3 4'],
) -> tuple[np.ndarray, np.ndarray, np.ndarray] | None:
  """Points of either panorama that nothing known hides from the other.

  Returns:
    the points in the axes of the source and in those of the target, and their
    weights; None where what both know does not agree.
  """
  source2target = camera.inverse(target2source)
  to_target = camera.transform(source2target, source.points)
  to_source = camera.transform(target2source, target.points)
  hidden, agreeing, compared = zip(
    _compare(target, to_target), _compare(source, to_source)
  )
  if sum(compared) < _MIN_COMPARED:
    return None
  if sum(agreeing) < _MIN_AGREEING * sum(compared):
    return None
  keep = ~np.concatenate(hidden)
  return (
    np.concatenate([source.points, to_source])[keep],
    np.concatenate([to_target, target.points])[keep],
    np.concatenate([source.weights, target.weights])[keep],
  )


def _compare(
  around: Surroundings, points: Float[np.ndarray, 'n 3']
) -> tuple[Bool[np.ndarray, 'n'], int, int]:
  """Which points a panorama hides; how many distances agree, of how many."""
  known = around.at(points)
  away = np.linalg.norm(points, axis=1)
  hidden = (known > 0) & (known < (1 - _SAME_DISTANCE) * away)
  agrees = (known > 0) & (np.abs(known - away) <= _SAME_DISTANCE * away)
  return hidden, int(agrees.sum()), int((known > 0).sum())
