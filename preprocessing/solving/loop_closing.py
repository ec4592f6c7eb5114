"""What closures do: components become one, and poses are relaxed.

A bundle adjustment does not get over an error of metres by itself. So what
closures say is first shared out along the path (`pose_graph`), as far as each
step may be wrong; from there it converges.
"""

import dataclasses
from typing import Iterable, Sequence

import networkx as nx
import numpy as np

from odin_jax.shared import camera
from preprocessing.solving import (
  bundle_adjustment,
  loop_detection,
  pair_graph,
  pose_graph,
  reconstruction,
)

# Limits of what closures may differ by, in standard errors.
_SIGMAS = 4.0
# A camera that stands still may drift too, as if it went this share of the
# depth.
_STILL = 0.1


def close(
  scene: reconstruction.Reconstruction,
  closures: Sequence[loop_detection.Closure],
  rules: pair_graph.GraphRules,
) -> reconstruction.Reconstruction:
  """Joins the components that closures link and relaxes the poses.

  Args:
    scene: what is solved so far.
    closures: those that hold.
    rules: how much paths drift.

  Returns:
    components, numbered by first frame, poses, and the points from there. The
    poses that no closure touches stay as they are.
  """
  component, pose, log_scale = _joined(scene, closures)
  pose = pose.copy()
  constraints = [
    *_steps(scene, closures, rules),
    *(_constraint(closure, scene) for closure in closures),
  ]
  for index in sorted({int(component[item.source]) for item in closures}):
    frames = np.flatnonzero(component == index)
    inside = [
      dataclasses.replace(
        constraint,
        source=int(np.searchsorted(frames, constraint.source)),
        target=int(np.searchsorted(frames, constraint.target)),
      )
      for constraint in constraints
      if component[constraint.source] == index
    ]
    pose[frames], _ = pose_graph.relax(pose[frames], log_scale[frames], inside)
  return dataclasses.replace(
    scene,
    component=component,
    frame2scene=pose,
    points=bundle_adjustment.triangulate(
      pose, scene.observations, len(scene.points)
    ),
  )


def _joined(
  scene: reconstruction.Reconstruction,
  closures: Sequence[loop_detection.Closure],
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """Components that closures link become one, in the unit of the first."""
  component = scene.component
  strongest: dict[tuple[int, int], loop_detection.Closure] = {}
  for closure in sorted(closures, key=lambda closure: closure.inliers):
    a, b = component[closure.source], component[closure.target]
    if a != b:
      strongest[int(a), int(b)] = strongest[int(b), int(a)] = closure
  links = nx.Graph(sorted(strongest))
  pose, log_scale = scene.frame2scene.copy(), np.zeros(len(component))
  label = component.copy()
  for group in sorted(nx.connected_components(links), key=min):
    for known, new in nx.bfs_edges(links, min(group), sort_neighbors=sorted):
      frames = component == new
      moved = _moved(pose, log_scale, strongest[known, new], component, new)
      pose[frames], log_scale[frames] = moved
      label[frames] = min(group)
  return reconstruction.number_components(label), pose, log_scale


def _moved(
  pose: np.ndarray,
  log_scale: np.ndarray,
  closure: loop_detection.Closure,
  component: np.ndarray,
  new: int,
) -> tuple[np.ndarray, float]:
  """The poses of a component in the scene of the one that it is linked to."""
  relative, stretch = closure.target2source, closure.log_scale
  known_frame, new_frame = closure.pair
  if component[known_frame] == new:
    # The closure leads the other way.
    known_frame, new_frame = new_frame, known_frame
    relative = camera.rescale(camera.inverse(relative), float(np.exp(-stretch)))
    stretch = -stretch
  scale = log_scale[known_frame]
  landing = camera.compose(
    pose[known_frame], camera.rescale(relative, float(np.exp(scale)))
  )
  total = float(scale + stretch)
  others = pose[component == new]
  inside = camera.compose(
    np.broadcast_to(camera.inverse(pose[new_frame]), others.shape), others
  )
  inside = camera.rescale(inside, float(np.exp(total)))
  return camera.compose(np.broadcast_to(landing, others.shape), inside), total


def _steps(
  scene: reconstruction.Reconstruction,
  closures: Sequence[loop_detection.Closure],
  rules: pair_graph.GraphRules,
) -> Iterable[pose_graph.Constraint]:
  """From frame to frame along the path, as exact as drift allows."""
  depths = pair_graph.frame_depths(
    scene.frame2scene, scene.points, scene.observations
  )
  ends = [frame for closure in closures for frame in closure.pair]
  for index in np.unique(scene.component[ends]):
    frames = np.flatnonzero(scene.component == index).tolist()
    depth = float(np.nanmedian(depths[frames]))
    for a, b in zip(frames, frames[1:]):
      step = camera.relative(scene.frame2scene[a], scene.frame2scene[b])
      way = float(np.linalg.norm(step[:, 3])) + _STILL * depth
      tens = way / (loop_detection.PER_DEPTHS * depth)
      yield pose_graph.Constraint(
        source=a,
        target=b,
        target2source=step,
        log_scale=0.0,
        turn_rad=float(np.deg2rad(rules.drift_turn_deg)) * tens,
        shift=rules.drift_share * way,
        stretch=rules.drift_log_scale * tens,
      )


def _constraint(
  closure: loop_detection.Closure, scene: reconstruction.Reconstruction
) -> pose_graph.Constraint:
  of_source = scene.observations.frame == closure.source
  depth = pair_graph.frame_depths(
    scene.frame2scene, scene.points, scene.observations.subset(of_source)
  )
  return pose_graph.Constraint(
    source=closure.source,
    target=closure.target,
    target2source=closure.target2source,
    log_scale=closure.log_scale,
    turn_rad=float(np.deg2rad(loop_detection.OFF_DEG)) / _SIGMAS,
    shift=loop_detection.OFF * float(depth[closure.source]) / _SIGMAS,
    stretch=loop_detection.OFF_LOG_SCALE / _SIGMAS,
  )
