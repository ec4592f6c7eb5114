"""Fits of frame pairs -> initial poses of all frames of a component.

Neighbouring frames are fitted one pair at a time; `scale_averaging` brings the
pairs to one scale; rotations are composed along the best pairs and positions
solved for together. What comes out is only the start of the joint solution.
"""

import dataclasses
from typing import Iterable, Mapping, NamedTuple, Sequence

from jaxtyping import Bool, Float, Int
import numpy as np
from scipy import sparse
from scipy.sparse import csgraph, linalg

from odin_jax.shared import camera
from preprocessing import matchers
from preprocessing.solving import (
  reconstruction,
  relative_pose,
  scale_averaging,
  tracks,
  verification,
)
from preprocessing.writing import rejections

_L1_ITERATIONS = 20

Fits = Mapping[tracks.FramePair, relative_pose.PairFit]
# A moving or a turning pair, its fit, and the length of its translation.
_Edge = tuple[tracks.FramePair, relative_pose.PairFit, float]


class Disagreement(NamedTuple):
  """Two frame pairs whose common points the other pairs contradict.

  Attributes:
    first: frames of one pair.
    second: frames of the other.
    residual: log of the factor by which their depths differ in one scale.
    error: standard error of that log, as their points scatter.
  """

  first: tracks.FramePair
  second: tracks.FramePair
  residual: float
  error: float

  def rejection(self) -> rejections.Rejection:
    """What the ledger says of it."""
    return rejections.Rejection(
      stage=rejections.Stage.SCALE,
      reason=rejections.Reason.SCALES,
      frames=tuple(sorted({*self.first, *self.second})),
      details={
        'pairs': [list(self.first), list(self.second)],
        'residual': round(self.residual, 4),
        'error': round(self.error, 4),
      },
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class InitialPoses:
  """Where the joint solution starts.

  Attributes:
    component: of each frame; -1 for a frame that no pair joins to another.
    frame2scene: pose of each frame in its component; the first frame of a
      component is the identity.
    outliers: what the scales of the pairs do not explain.
  """

  component: Int[np.ndarray, 'f']
  frame2scene: Float[np.ndarray, 'f 3 4']
  outliers: list[Disagreement]


def fit_pairs(
  pairs: Iterable[tracks.FramePair],
  features: Sequence[matchers.Features],
  point_ids: Sequence[np.ndarray],
  matcher_poses: Mapping[tracks.FramePair, matchers.PairPose],
  verifier: verification.Verifier,
) -> tuple[
  dict[tracks.FramePair, relative_pose.PairFit],
  dict[tracks.FramePair, Int[np.ndarray, '_']],
]:
  """Fits pairs from the points that their frames share.

  Args:
    pairs: (source, target).
    features: of each frame.
    point_ids: for each frame, the point of each feature; -1 for none.
    matcher_poses: what the matcher itself says of pairs.
    verifier: makes the fits.

  Returns:
    the fits, where there is one, and the ids of the points of each.
  """
  fits, shared = {}, {}
  for pair in pairs:
    source, target = pair
    points, in_source, in_target = reconstruction.shared_points(
      point_ids[source], point_ids[target]
    )
    fit = verifier.fit(
      features[source].rays[in_source],
      features[target].rays[in_target],
      matcher_poses.get(pair),
    )
    if fit is not None:
      fits[pair], shared[pair] = fit, points
  return fits, shared


def initialize(
  num_frames: int,
  fits: Fits,
  point_ids: Mapping[tracks.FramePair, Int[np.ndarray, '_']],
  *,
  min_shared: int,
  matcher_depths: Mapping[tracks.FramePair, tuple[np.ndarray, np.ndarray]]
  | None = None,
) -> InitialPoses:
  """Poses of all frames from fits of neighbouring pairs.

  Args:
    num_frames: number of frames.
    fits: by (source, target).
    point_ids: of the matches of each fit; the same point has the same id in
      every pair.
    min_shared: fewest inliers that two pairs must share to be linked.
    matcher_depths: for pairs of which the matcher says depths itself, with the
      translation as 1: ids of points [m], and distances from both [2, m].
  """
  places = _places(num_frames, fits)
  moving = [
    pair
    for pair in sorted(fits)
    if fits[pair].moves and places[pair[0]] != places[pair[1]]
  ]
  scales = _scales(
    moving, places, fits, point_ids, matcher_depths or {}, min_shared
  )
  component, used = _components(num_frames, places, moving, scales.component)
  edges = [
    (pair, fits[pair], float(np.exp(scales.log_scale[index])))
    for index, pair in enumerate(moving)
    if used[index]
  ] + [
    (pair, fits[pair], 0.0)
    for pair in sorted(fits)
    if places[pair[0]] == places[pair[1]]
    and not fits[pair].moves
    and component[pair[0]] >= 0
  ]
  frame2scene = np.tile(camera.identity_pose(), (num_frames, 1, 1))
  for index in range(component.max(initial=-1) + 1):
    frames = np.flatnonzero(component == index)
    inside = [edge for edge in edges if component[edge[0][0]] == index]
    frame2scene[frames] = _solve_component(frames, inside)
  outliers = [
    Disagreement(
      moving[outlier.first],
      moving[outlier.second],
      outlier.residual,
      outlier.error,
    )
    for outlier in scales.outliers
  ]
  return InitialPoses(
    component=component, frame2scene=frame2scene, outliers=outliers
  )


def _scales(
  pairs: Sequence[tracks.FramePair],
  places: np.ndarray,
  fits: Fits,
  point_ids: Mapping[tracks.FramePair, Int[np.ndarray, '_']],
  matcher_depths: Mapping[tracks.FramePair, tuple[np.ndarray, np.ndarray]],
  min_shared: int,
) -> scale_averaging.Scales:
  """One scale for all pairs, by their triangulated and the matcher's depths."""
  no_depths = np.zeros(0, np.int64), np.zeros((2, 0))
  triangulated, own = [], []
  for pair in pairs:
    ends = int(places[pair[0]]), int(places[pair[1]])
    inliers = fits[pair].inliers
    triangulated.append(
      scale_averaging.PairDepths(
        places=ends,
        points=point_ids[pair][inliers],
        depths=fits[pair].depths[:, inliers],
      )
    )
    points, depths = matcher_depths.get(pair, no_depths)
    own.append(
      scale_averaging.PairDepths(places=ends, points=points, depths=depths)
    )
  return scale_averaging.resolve(
    len(pairs),
    [
      *scale_averaging.links(triangulated, min_shared=min_shared),
      *scale_averaging.links(own, min_shared=min_shared),
    ],
  )


def _places(num_frames: int, fits: Fits) -> Int[np.ndarray, 'f']:
  """Frames between which the camera only turned have the same place."""
  place = np.arange(num_frames)
  moving = np.array(
    [pair for pair, fit in fits.items() if fit.moves], np.int64
  ).reshape(-1, 2)
  # A slow camera stands still from frame to frame, and yet goes somewhere.
  for pair in sorted(fits):
    source, target = place[list(pair)]
    joined = np.isin(place[moving], (source, target)).all(axis=1)
    if not fits[pair].moves and source != target and not joined.any():
      place[place == target] = source
  return place


def _components(
  num_frames: int,
  places: np.ndarray,
  moving: Sequence[tracks.FramePair],
  label: np.ndarray,
) -> tuple[Int[np.ndarray, 'f'], Bool[np.ndarray, 'e']]:
  """Assigns places to components, the largest first; and the pairs inside."""
  owner = np.full(num_frames, -1)
  used = np.zeros(len(moving), bool)
  size = np.bincount(label, minlength=1) if len(moving) else np.zeros(1)
  for group in np.argsort(-size, kind='stable'):
    inside = np.flatnonzero(label == group) if len(moving) else []
    for index in inside:
      ends = places[list(moving[index])]
      if np.all((owner[ends] == -1) | (owner[ends] == group)):
        owner[ends] = group
        used[index] = True
  return reconstruction.number_components(owner[places]), used


def _solve_component(
  frames: np.ndarray, edges: Sequence[_Edge]
) -> Float[np.ndarray, 'f 3 4']:
  local = {int(frame): index for index, frame in enumerate(frames)}
  ends = np.array([[local[a], local[b]] for (a, b), _, _ in edges])
  rotation = _compose_rotations(
    len(frames),
    ends,
    np.stack([fit.target2source[:, :3] for _, fit, _ in edges]),
    np.array([fit.inliers.sum() for _, fit, _ in edges]),
  )
  steps = np.stack(
    [
      rotation[a] @ (length * fit.target2source[:, 3])
      for (a, _), (_, fit, length) in zip(ends, edges)
    ]
  )
  return camera.make_pose(rotation, _solve_positions(len(frames), ends, steps))


def _compose_rotations(
  num_frames: int, ends: np.ndarray, relative: np.ndarray, strength: np.ndarray
) -> Float[np.ndarray, 'f 3 3']:
  """Frame to scene rotations along the strongest spanning tree."""
  graph = sparse.csr_array(
    (1 / (1 + strength), ends.T.astype(np.int32)),
    shape=(num_frames, num_frames),
  )
  tree = csgraph.minimum_spanning_tree(graph)
  order, before = csgraph.breadth_first_order(tree, 0, directed=False)
  edge = {(int(a), int(b)): index for index, (a, b) in enumerate(ends)}
  rotation = np.tile(np.eye(3), (num_frames, 1, 1))
  for frame in order[1:]:
    parent = int(before[frame])
    if (parent, int(frame)) in edge:
      step = relative[edge[parent, int(frame)]]
    else:
      step = relative[edge[int(frame), parent]].T
    rotation[frame] = rotation[parent] @ step
  return rotation


def _solve_positions(
  num_frames: int, ends: np.ndarray, steps: np.ndarray
) -> Float[np.ndarray, 'f 3']:
  """Positions whose differences are the steps, in the L1 sense; first is 0."""
  rows = np.arange(len(ends))
  design = sparse.csr_array(
    (
      np.concatenate([-np.ones(len(ends)), np.ones(len(ends))]),
      (np.concatenate([rows, rows]), np.concatenate([ends[:, 0], ends[:, 1]])),
    ),
    shape=(len(ends), num_frames),
  )[:, 1:]
  size = np.median(np.linalg.norm(steps, axis=1)) + 1e-12
  robust = np.ones(len(ends))
  position = np.zeros((num_frames, 3))
  for _ in range(_L1_ITERATIONS):
    weighted = sparse.csr_array(design.T @ sparse.diags_array(robust))
    solve = linalg.factorized(sparse.csc_array(weighted @ design))
    position[1:] = np.stack([solve(weighted @ axis) for axis in steps.T], 1)
    off = np.linalg.norm(design @ position[1:] - steps, axis=1)
    robust = 1 / np.maximum(off, 1e-3 * size)
  return position
