"""Pair poses -> starting poses of all frames of a component.

Neighbouring frames are fitted one pair at a time; `scale_averaging` brings the pairs to
one gauge; rotations are chained along the best pairs and positions solved for
together. What comes out is only the start of the joint solution.
"""

import dataclasses
from typing import Mapping, NamedTuple, Sequence

from jaxtyping import Bool, Float, Int
import numpy as np
from scipy import sparse
from scipy.sparse import csgraph, linalg

from odin_jax.shared import camera
from preprocessing.solving import scale_averaging as scales
from preprocessing.solving.relative_pose import PairFit

_L1_ITERATIONS = 20
_NO_IDS, _NO_DEPTHS = np.zeros(0, np.int64), np.zeros((2, 0))


class Disagreement(NamedTuple):
  """Two frame pairs whose common points the other pairs contradict.

  Attributes:
    first: frames of one pair.
    second: frames of the other.
    residual: log of the factor by which their depths differ in one gauge.
    error: standard error of that log, as their points scatter.
  """

  first: tuple[int, int]
  second: tuple[int, int]
  residual: float
  error: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class Chain:
  """Starting poses.

  Attributes:
    component: of each frame; -1 for a frame that nothing ties to another.
    frame2scene: pose of each frame in its component; the first frame of a
      component is the identity.
    outliers: what the scales of the pairs do not explain.
  """

  component: Int[np.ndarray, 'f']
  frame2scene: Float[np.ndarray, 'f 3 4']
  outliers: list[Disagreement]


def chain(
  num_frames: int,
  fits: Mapping[tuple[int, int], PairFit],
  points: Mapping[tuple[int, int], Int[np.ndarray, 'm']],
  *,
  min_shared: int,
  said: Mapping[tuple[int, int], tuple[np.ndarray, np.ndarray]] | None = None,
) -> Chain:
  """Poses of all frames from fits of neighbouring pairs.

  Args:
    num_frames: number of frames.
    fits: by (source, target).
    points: ids of the matched points of each fit; the same point has the same
      id in every pair.
    min_shared: fewest inliers that two pairs must share to be linked.
    said: for pairs of which the matcher says depths itself, with the
      translation as 1: ids of points [m], and distances from both [2, m].
  """
  pairs = sorted(fits)
  places = _places(num_frames, fits)
  moving = [
    pair
    for pair in pairs
    if fits[pair].moves and places[pair[0]] != places[pair[1]]
  ]
  depths = [
    scales.PairDepths(
      places=(int(places[pair[0]]), int(places[pair[1]])),
      points=points[pair][fits[pair].inliers],
      depths=fits[pair].depths[:, fits[pair].inliers],
    )
    for pair in moving
  ]
  own = [
    scales.PairDepths(places=one.places, points=ids, depths=distances)
    for pair, one in zip(moving, depths)
    for ids, distances in [(said or {}).get(pair, (_NO_IDS, _NO_DEPTHS))]
  ]
  resolved = scales.resolve(
    len(moving),
    [
      *scales.links(depths, min_shared=min_shared),
      *scales.links(own, min_shared=min_shared),
    ],
  )
  component, used = _components(num_frames, places, moving, resolved.component)
  edges = [
    (pair, fits[pair], float(np.exp(resolved.log_scale[index])))
    for index, pair in enumerate(moving)
    if used[index]
  ] + [
    (pair, fits[pair], 0.0)
    for pair in pairs
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
    for outlier in resolved.outliers
  ]
  return Chain(component=component, frame2scene=frame2scene, outliers=outliers)


def _places(
  num_frames: int, fits: Mapping[tuple[int, int], PairFit]
) -> Int[np.ndarray, 'f']:
  """Frames between which the camera only turned have the same place."""
  place = np.arange(num_frames)
  moving = np.array(
    [pair for pair, fit in fits.items() if fit.moves], np.int64
  ).reshape(-1, 2)
  # A slow camera stands still from frame to frame, and yet goes somewhere.
  for pair in sorted(fits):
    one, other = place[list(pair)]
    joined = np.isin(place[moving], (one, other)).all(axis=1)
    if not fits[pair].moves and one != other and not joined.any():
      place[place == other] = one
  return place


def _components(
  num_frames: int,
  places: np.ndarray,
  moving: Sequence[tuple[int, int]],
  label: np.ndarray,
) -> tuple[Int[np.ndarray, 'f'], Bool[np.ndarray, 'e']]:
  """Assigns places to components, the largest first; and the pairs inside."""
  owner = np.full(num_frames, -1)
  used = np.zeros(len(moving), bool)
  size = np.bincount(label, minlength=1) if len(moving) else np.zeros(1)
  for candidate in np.argsort(-size, kind='stable'):
    mine = np.flatnonzero(label == candidate) if len(moving) else []
    for index in mine:
      ends = places[list(moving[index])]
      if np.all((owner[ends] == -1) | (owner[ends] == candidate)):
        owner[ends] = candidate
        used[index] = True
  component = owner[places]
  # Number by first frame.
  seen = list(dict.fromkeys(c for c in component.tolist() if c >= 0))
  renumbered = np.array([seen.index(c) if c >= 0 else -1 for c in component])
  return renumbered, used


def _solve_component(
  frames: np.ndarray, edges: Sequence[tuple[tuple[int, int], PairFit, float]]
) -> Float[np.ndarray, 'f 3 4']:
  local = {int(frame): index for index, frame in enumerate(frames)}
  ends = np.array([[local[a], local[b]] for (a, b), _, _ in edges])
  rotation = _chain_rotations(
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


def _chain_rotations(
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
