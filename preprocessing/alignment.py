"""Chooses pairs of perspective views of two panoramas that overlap.

A panorama can be turned freely after capture, so whatever the camera pointed
at, two frames of the same scene hold views of the same things. Source views
look around the circle; each target view is aimed at the middle of what its
source view sees, found from scene points that both frames see, and then turned
away by a bounded random angle: relative rotations vary, and a copy of the
source is no answer.
"""

import dataclasses
from typing import NamedTuple

from jaxtyping import Bool, Float
import numpy as np

from odin_jax.shared import camera

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
    num_views: view pairs that are tried per frame pair.
    fov_deg: full field of view.
    max_pitch_deg: source views look up or down by at most this.
    jitter_yaw_deg: the target view is turned away by at most this.
    jitter_pitch_deg: and up or down by at most this.
    min_overlap: least share of the source view's points that the target view
      holds, and of the target view's that the source view holds.
    min_points: a view with fewer points is not judged but dropped.
  """

  num_views: int = 4
  fov_deg: float = 90.0
  max_pitch_deg: float = 10.0
  jitter_yaw_deg: float = 20.0
  jitter_pitch_deg: float = 6.0
  min_overlap: float = 0.5
  min_points: int = 12


@dataclasses.dataclass(frozen=True, kw_only=True)
class ViewPair:
  """Two views that overlap.

  Attributes:
    source: orientation of the source view.
    target: orientation of the target view.
    target2source: pose, in the units of the frames' poses.
    overlap: share of the source view's points inside the target view.
    median_depth: of the source view's points: distance from the camera.
  """

  source: Angles
  target: Angles
  target2source: Float[np.ndarray, '3 4']
  overlap: float
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
  frames = (source_frame2scene, target_frame2scene)
  points_source, points_target = (
    camera.transform(camera.inverse(pose), points) for pose in frames
  )
  distance = np.linalg.norm(points_source, axis=1)
  phase = rng.uniform(0, 360)
  kept, reasons = [], []
  for index in range(rules.num_views):
    yaw = (phase + 360 * index / rules.num_views + 180) % 360 - 180
    source = _angles(
      yaw, rng.uniform(-rules.max_pitch_deg, rules.max_pitch_deg)
    )
    jitter = rng.uniform(-1, 1, 2) * (
      rules.jitter_yaw_deg,
      rules.jitter_pitch_deg,
    )
    in_source = points_in_view(points_source, source, rules.fov_deg)
    if in_source.sum() < rules.min_points:
      reasons.append('too few points in the source view')
      continue
    target = _aim(points_target[in_source], weights[in_source], jitter)
    in_target = points_in_view(points_target, target, rules.fov_deg)
    in_both = weights[in_source & in_target].sum()
    overlap = float(in_both / weights[in_source].sum())
    coverage = float(in_both / max(weights[in_target].sum(), 1e-12))
    if min(overlap, coverage) < rules.min_overlap:
      reasons.append('views overlap too little')
      continue
    kept.append(
      ViewPair(
        source=source,
        target=target,
        target2source=camera.relative_view_pose(*frames, source, target),
        overlap=min(overlap, 1.0),
        median_depth=weighted_median(distance[in_source], weights[in_source]),
      )
    )
  return kept, reasons


def _angles(yaw_deg: float, pitch_deg: float) -> Angles:
  # Rounded to what a record holds: poses computed from the record's angles
  # are then the pose that is stored.
  yaw_deg = (yaw_deg + 180) % 360 - 180
  return Angles(float(np.float32(yaw_deg)), float(np.float32(pitch_deg)))


def _aim(
  points_frame: Points, weights: Weights, jitter_deg: Float[np.ndarray, '2']
) -> Angles:
  """The view at the points' median direction, turned away by the jitter."""
  directions = points_frame / np.linalg.norm(
    points_frame, axis=1, keepdims=True
  )
  centre = [weighted_median(column, weights) for column in directions.T]
  yaw, pitch = camera.yaw_pitch_deg(np.array(centre))
  pitch = np.clip(pitch + jitter_deg[1], -85, 85)
  return _angles(yaw + jitter_deg[0], float(pitch))
