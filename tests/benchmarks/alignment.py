"""What turning views by gradient descent is worth, on procedural truth.

    python -m tests.benchmarks.alignment

prints JSON lines. `views`: view pairs of all frame pairs up to 5 s apart,
chosen without and with the descent: how many pass, how much they share, how
far they are turned from each other, CPU seconds per world. `poses`: coarse
pairs of views, a multiple of 45 degrees each and with little in common, before
and after the descent; both are matched alone, afresh, as a matcher of pairs of
pictures would, and the pose that comes out is compared with the truth. The
descent is given either all scene points (`scene`) or only what the coarse views
show, with an error in depth, as a network that sees these views would
(`pointmaps`).
"""

import dataclasses
import itertools
import json
import time
from typing import Any, Iterator, Sequence

import numpy as np

from odin_jax.shared import camera
from preprocessing import panorama
from preprocessing.auditing import epipolar
from preprocessing.procedural import footage, scenes, true_pairs
from preprocessing.solving import relative_pose
from preprocessing.views import alignment
from tests.helpers import default_rules

_NUM_WORLDS = 3
# Per world, a second apart.
_NUM_FRAMES = 12
_KINDS = ('unique_room', 'unique_corridor', 'unique_outdoor')
_MAX_GAP_S = 5
_POINTS = 1200
_PANORAMA_PX = 1024
_VIEW_PX = 256
_COARSE_DEG = 45
# What coarse pairs share: enough to be found, too little to be good.
_COARSE_SHARE = (0.1, 0.4)
_DEPTH_ERROR = 0.05
_GOOD_DEG = 5.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Walk:
  """A world and frames of the walk through it.

  Attributes:
    world: the scene and the path.
    frames: one per second.
  """

  world: scenes.World
  frames: list[true_pairs.FrameGeometry]

  def pairs(self) -> Iterator[tuple[int, int]]:
    """Frame pairs, in time."""
    for first, second in itertools.combinations(range(len(self.frames)), 2):
      if second - first <= _MAX_GAP_S:
        yield first, second

  def points(self, first: int, second: int) -> tuple[np.ndarray, np.ndarray]:
    """Scene points that both frames see, and their weights."""
    points, weights = true_pairs.shared_points(
      self.frames[first], self.frames[second]
    )
    rng = np.random.default_rng([first, second])
    chosen = rng.permutation(len(points))[:_POINTS]
    return points[chosen], weights[chosen]


def walk(index: int, num_frames: int) -> Walk:
  """World `index` and its frames."""
  world = footage.make_world(
    _KINDS,
    index,
    seed=5,
    seconds=float(num_frames),
    px_per_rad=_PANORAMA_PX / (2 * np.pi),
  )
  frames = [true_pairs.observe(world, float(t)) for t in range(num_frames)]
  return Walk(world=world, frames=frames)


def choose_views(
  walks: Sequence[Walk], rules: alignment.ViewRules
) -> dict[str, Any]:
  """Figures of the view pairs that `rules` choose."""
  gaps, choices, seconds = [], [], 0.0
  for world_walk in walks:
    posed = []
    for first, second in world_walk.pairs():
      points, weights = world_walk.points(first, second)
      for ends in ((first, second), (second, first)):
        poses = [world_walk.frames[end].frame2world for end in ends]
        frames = alignment.PosedFrames(
          source_frame2scene=poses[0],
          target_frame2scene=poses[1],
          points=points,
          weights=weights,
          num_views=rules.num_views,
          rng=np.random.default_rng(ends),
        )
        posed.append(frames)
        gaps.append(second - first)
    start = time.process_time()
    choices += alignment.choose_all(posed, rules=rules)
    seconds += time.process_time() - start
  views = [
    (gap, view)
    for gap, choice in zip(gaps, choices, strict=True)
    for view in choice.view_pairs
  ]
  turns = [camera.rotation_angle_deg(v.target2source[:, :3]) for _, v in views]
  return {
    'asked': len(gaps) * rules.num_views,
    'kept': len(views),
    'overlap': _quantiles([view.overlap for _, view in views]),
    'coverage': _quantiles([view.coverage for _, view in views]),
    'median_share_by_gap_s': {
      gap: round(
        float(
          np.median([min(v.overlap, v.coverage) for g, v in views if g == gap])
        ),
        3,
      )
      for gap in sorted(set(gaps))
    },
    'turn_deg': _quantiles(turns),
    'turn_std_deg': round(float(np.std(turns)), 2),
    'cpu_s_per_world': round(seconds / len(walks), 3),
  }


def _quantiles(values: Sequence[float]) -> list[float]:
  """5, 25, 50, 75 and 95 percent."""
  return np.round(np.percentile(values, [5, 25, 50, 75, 95]), 3).tolist()


def coarse_proposals(
  world_walk: Walk,
  rules: alignment.ViewRules,
  *,
  pointmaps: bool,
  per_pair: int = 1,
) -> list[tuple[tuple[int, int], alignment.ViewProposal]]:
  """Pairs of views on a grid of yaws that have little in common.

  Returns:
    (first frame, second frame) and the views, with the points that the descent
    is to be given.
  """
  proposals = []
  for ends in world_walk.pairs():
    rng = np.random.default_rng(ends)
    points, weights = world_walk.points(*ends)
    poses = [world_walk.frames[end].frame2world for end in ends]
    local = [camera.transform(camera.inverse(pose), points) for pose in poses]
    yaws = np.arange(-180.0, 180.0, _COARSE_DEG)
    grid = [
      alignment.ViewProposal(
        points_source=local[0],
        points_target=local[1],
        weights=weights,
        target2source=poses[0][:, :3].T @ poses[1][:, :3],
        source=alignment.Angles(source, 0.0),
        target=alignment.Angles(target, 0.0),
        fov_deg=rules.fov_deg,
      )
      for source, target in itertools.product(yaws.tolist(), yaws.tolist())
    ]
    low, high = _COARSE_SHARE
    poor = [view for view in grid if low <= min(view.shares) <= high]
    for index in rng.permutation(len(poor))[:per_pair]:
      view = poor[index]
      proposals.append((ends, _as_pointmaps(view, rng) if pointmaps else view))
  return proposals


def _as_pointmaps(
  view: alignment.ViewProposal, rng: np.random.Generator
) -> alignment.ViewProposal:
  """Keeps only what the views show, with an error in depth."""
  shown = view.in_source | view.in_target
  factor = np.exp(_DEPTH_ERROR * rng.normal(size=(2, shown.sum(), 1)))
  return dataclasses.replace(
    view,
    points_source=view.points_source[shown] * factor[0],
    points_target=view.points_target[shown] * factor[1],
    weights=view.weights[shown],
  )


class Panoramas:
  """Pictures of a walk's frames, rendered when they are first needed."""

  def __init__(self, world: scenes.World):
    self._world = world
    self._pictures: dict[int, np.ndarray] = {}

  def view(
    self, frame: int, angles: alignment.Angles, fov_deg: float
  ) -> np.ndarray:
    """A view's brightness."""
    if frame not in self._pictures:
      self._pictures[frame] = footage.render_panorama(
        self._world,
        float(frame),
        width=_PANORAMA_PX,
        height=_PANORAMA_PX // 2,
      )
    picture = panorama.cut_view(
      self._pictures[frame],
      yaw_deg=angles.yaw_deg,
      pitch_deg=angles.pitch_deg,
      fov_deg=fov_deg,
      size_px=_VIEW_PX,
    )
    return np.rint(picture @ [0.299, 0.587, 0.114]).astype(np.uint8)


def pose_error_deg(
  world_walk: Walk,
  pictures: Panoramas,
  ends: tuple[int, int],
  view: alignment.ViewProposal,
) -> tuple[float, float]:
  """Rotation and direction error of the pose of two views, matched alone.

  Returns:
    degrees; infinite where there is no pose or no direction.
  """
  angles = view.source, view.target
  pixels = epipolar.mutual_matches(
    *(pictures.view(*side, view.fov_deg) for side in zip(ends, angles))
  )
  matrix = camera.intrinsics(view.fov_deg, _VIEW_PX)
  rays = [
    np.column_stack([side, np.ones(len(side))]) @ np.linalg.inv(matrix).T
    for side in pixels
  ]
  fit = relative_pose.fit_pair(
    *(side / np.linalg.norm(side, axis=1, keepdims=True) for side in rays),
    max_error_rad=1.5 / matrix[0, 0],
    min_inliers=12,
    min_parallax_rad=np.deg2rad(0.5),
    seed=0,
  )
  if fit is None or not fit.moves:
    return np.inf, np.inf
  poses = [world_walk.frames[end].frame2world for end in ends]
  true = camera.relative_view_pose(*poses, *angles)
  fitted = fit.target2source
  return (
    float(camera.rotation_angle_deg(fitted[:, :3] @ true[:, :3].T)),
    float(camera.angle_between_deg(fitted[:, 3], true[:, 3])),
  )


def pose_errors(
  walks: Sequence[Walk],
  rules: alignment.ViewRules,
  *,
  pointmaps: bool,
  per_pair: int = 1,
) -> dict[str, dict[str, Any]]:
  """Figures of the coarse pairs before and after the descent."""
  shares, errors = {'before': [], 'after': []}, {'before': [], 'after': []}
  for world_walk in walks:
    proposals = coarse_proposals(
      world_walk, rules, pointmaps=pointmaps, per_pair=per_pair
    )
    ends, before = zip(*proposals, strict=True)
    pictures = Panoramas(world_walk.world)
    sides = {'before': before, 'after': alignment.align(before, rules)}
    for name, views in sides.items():
      for pair, view in zip(ends, views, strict=True):
        shares[name].append(_true_share(world_walk, pair, view))
        errors[name].append(pose_error_deg(world_walk, pictures, pair, view))
  return {name: _summary(shares[name], errors[name]) for name in shares}


def _true_share(
  world_walk: Walk, ends: tuple[int, int], view: alignment.ViewProposal
) -> float:
  """What the views share of all scene points, without error."""
  points, weights = world_walk.points(*ends)
  local = [
    camera.transform(camera.inverse(world_walk.frames[end].frame2world), points)
    for end in ends
  ]
  return min(
    dataclasses.replace(
      view, points_source=local[0], points_target=local[1], weights=weights
    ).shares
  )


def _summary(
  shares: Sequence[float], errors: Sequence[tuple[float, float]]
) -> dict[str, Any]:
  rotation, direction = np.array(errors).T
  fitted = np.isfinite(rotation)
  return {
    'view_pairs': len(shares),
    'share': _quantiles(shares),
    'fitted': round(float(fitted.mean()), 3),
    'rotation_median_deg': round(float(np.median(rotation[fitted])), 3),
    'direction_median_deg': round(float(np.median(direction[fitted])), 3),
    'good': round(
      float(np.mean((rotation < _GOOD_DEG) & (direction < _GOOD_DEG))), 3
    ),
  }


def main() -> None:
  """Prints all figures."""
  walks = [walk(index, _NUM_FRAMES) for index in range(_NUM_WORLDS)]
  rules = default_rules.view_rules()
  for name, goal in (('before', 0.0), ('after', rules.goal_overlap)):
    changed = dataclasses.replace(rules, goal_overlap=goal)
    _tell({'views': name, **choose_views(walks, changed)})
  for pointmaps in (False, True):
    figures = pose_errors(walks, rules, pointmaps=pointmaps)
    for name, values in figures.items():
      given = 'pointmaps' if pointmaps else 'scene'
      _tell({'poses': name, 'points': given, **values})


def _tell(row: dict[str, Any]) -> None:
  print(json.dumps(row), flush=True)


if __name__ == '__main__':
  main()
