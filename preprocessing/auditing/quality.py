"""Figures that tell how good poses are, from the written records alone.

Nothing here uses the code that found the poses: relative poses are compared
with truth, and every record with what its own fields imply.
"""

import dataclasses
from typing import Any, Iterable, Mapping

from jaxtyping import Float
import numpy as np

from odin_jax.shared import camera

# Nearer than this the direction of a translation means nothing.
_MIN_BASELINE_M = 0.01
# Records hold times as float32; a frame of a 30 fps video lasts seven times
# this.
_TIME_TOLERANCE_S = 0.005
# What records say of their own poses.
_STATED = ('rotation_error_deg', 'direction_error_deg')


@dataclasses.dataclass
class Component:
  """Poses of the frames of one component of a video, as its records have them.

  Attributes:
    video_id: the video's stem.
    scene_id: the component within it.
    poses: frame2scene by time.
    frame_pairs: pairs of times, the earlier one first, that occur in records
      that were matched directly.
    long_pairs: the same of records whose pose is composed of several.
    poses_per_frame: largest number of different poses of one frame.
    stated_deg: by pair of times, source first, one sigma of rotation and
      direction of target2source; empty where records do not say.
    unstated: such pairs of times whose records do not say both.
  """

  video_id: str
  scene_id: int
  poses: dict[float, Float[np.ndarray, '3 4']] = dataclasses.field(
    default_factory=dict
  )
  frame_pairs: set[tuple[float, float]] = dataclasses.field(default_factory=set)
  long_pairs: set[tuple[float, float]] = dataclasses.field(default_factory=set)
  poses_per_frame: int = 1
  stated_deg: dict[tuple[float, float], tuple[float, float]] = (
    dataclasses.field(default_factory=dict)
  )
  unstated: set[tuple[float, float]] = dataclasses.field(default_factory=set)


def gather_components(
  rows: Iterable[Mapping[str, Any]],
) -> list[Component]:
  """The components that records belong to, in order of appearance."""
  components: dict[tuple[str, int], Component] = {}
  poses_of: dict[tuple[str, int, float], set[bytes]] = {}
  for row in rows:
    key = row['video_id'], row['scene_id']
    component = components.setdefault(key, Component(*key))
    times = []
    for side in ('source', 'target'):
      time_s, pose = row[f'{side}/time_s'], row[f'{side}/frame2scene']
      times.append(time_s)
      component.poses.setdefault(time_s, pose.astype(np.float64))
      distinct = poses_of.setdefault((*key, time_s), set())
      distinct.add(np.asarray(pose, np.float32).tobytes())
      component.poses_per_frame = max(component.poses_per_frame, len(distinct))
    ordered = times[0], times[1]
    if all(name in row for name in _STATED):
      component.stated_deg[ordered] = row[_STATED[0]], row[_STATED[1]]
    else:
      component.unstated.add(ordered)
    pair = min(times), max(times)
    if row['hops'] == 1:
      component.frame_pairs.add(pair)
    else:
      component.long_pairs.add(pair)
  return list(components.values())


def pose_at(
  truth: Mapping[str, np.ndarray], time_s: float
) -> Float[np.ndarray, '3 4']:
  """True frame2world of the picture that is held at a time.

  Raises:
    ValueError: the truth has no picture for this time.
  """
  index = int(np.searchsorted(truth['time_s'], time_s + _TIME_TOLERANCE_S)) - 1
  if index < 0 or time_s > truth['time_s'][-1] + 1:
    raise ValueError(f'no truth for {time_s} s')
  return truth['frame2world'][index]


def pose_errors(
  component: Component,
  truth: Mapping[str, np.ndarray],
  pairs: Iterable[tuple[float, float]] | None = None,
) -> dict[str, np.ndarray]:
  """Errors of the relative poses of a component's frame pairs.

  Args:
    component: poses found.
    truth: the contents of a `NAME.truth.npz`.
    pairs: of which pairs of times; by default of `component.frame_pairs`.

  Returns:
    one value per frame pair: `gap_s`; `rotation_deg`; `direction_deg`, between
    the translations; `scale`, |t| / |t_true| over its median in the component,
    minus 1; `units_per_m`, |t| / |t_true|. The last three are NaN where the
    camera did not move.
  """
  rows = []
  chosen = component.frame_pairs if pairs is None else pairs
  for earlier, later in sorted(chosen):
    estimated = camera.relative(
      component.poses[earlier], component.poses[later]
    )
    true = camera.relative(pose_at(truth, earlier), pose_at(truth, later))
    rotation = camera.rotation_angle_deg(estimated[:, :3].T @ true[:, :3])
    direction, ratio = np.nan, np.nan
    baseline_m = np.linalg.norm(true[:, 3])
    if baseline_m > _MIN_BASELINE_M:
      direction = camera.angle_between_deg(estimated[:, 3], true[:, 3])
      ratio = np.linalg.norm(estimated[:, 3]) / baseline_m
    rows.append((later - earlier, rotation, direction, ratio))
  gap, rotation, direction, ratio = np.array(rows, np.float64).reshape(-1, 4).T
  moved = ratio[np.isfinite(ratio)]
  middle = np.median(moved) if moved.size else np.nan
  return {
    'gap_s': gap,
    'rotation_deg': rotation,
    'direction_deg': direction,
    'scale': ratio / middle - 1,
    'units_per_m': ratio,
  }


def frames_behind(component: Component) -> dict[str, int | float]:
  """Whether the frames lie along the path in the order of their times.

  Returns:
    `frames`; `behind`, how many lie behind an earlier one along the path's
    principal direction; `straightness`, that direction's share of the
    positions' variance.
  """
  times = sorted(component.poses)
  centres = np.array([component.poses[time][:, 3] for time in times])
  spread = centres - centres.mean(axis=0)
  _, singular, axes = np.linalg.svd(spread, full_matrices=False)
  along = spread @ axes[0]
  if along[-1] < along[0]:
    along = -along
  behind = along[1:] < np.maximum.accumulate(along)[:-1]
  total = float((singular**2).sum())
  return {
    'frames': len(times),
    'behind': int(behind.sum()),
    'straightness': float(singular[0] ** 2) / total if total else 1.0,
  }


def pose_inconsistency(record: Mapping[str, Any]) -> tuple[float, float]:
  """How far `target2source` is from what the record's other fields give.

  Returns:
    rotation in degrees, and translation relative to max(|t|, 1).
  """
  implied = camera.relative_view_pose(
    record['source/frame2scene'].astype(np.float64),
    record['target/frame2scene'].astype(np.float64),
    (record['source/yaw_deg'], record['source/pitch_deg']),
    (record['target/yaw_deg'], record['target/pitch_deg']),
  )
  stored = record['target2source'].astype(np.float64)
  rotation = camera.rotation_angle_deg(implied[:, :3].T @ stored[:, :3])
  apart = np.linalg.norm(implied[:, 3] - stored[:, 3])
  return float(rotation), float(apart / max(np.linalg.norm(implied[:, 3]), 1.0))
