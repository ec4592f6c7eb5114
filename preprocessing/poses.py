"""Pair poses -> chain -> starting poses of one component.

Neighbouring frames are fitted one pair at a time; `scale` brings the pairs to
one gauge; rotations are chained along the best pairs and positions solved for
together. What comes out is only the start of the joint solution (`bundle`).
"""

import dataclasses
from typing import Mapping, Sequence

from jaxtyping import Bool, Float, Int
import numpy as np
from scipy import sparse
from scipy.sparse import csgraph, linalg

from odin_jax.shared import camera
from preprocessing import bundle, scale as scales

# A match is an inlier within so many standard errors of its two directions.
INLIER_SIGMA = 4.0
_MAX_TRIALS = 2000
_L1_ITERATIONS = 20


@dataclasses.dataclass(frozen=True, kw_only=True)
class PairFit:
  """A robust two-frame solution.

  Attributes:
    target2source: its translation has length 1, or is 0 for a mere rotation.
    inliers: which of the matches obey it.
    parallax_rad: median angle by which translation moved the inliers.
    depths: distances of all matches from source and target; inliers only are
      positive for sure.
  """

  target2source: Float[np.ndarray, '3 4']
  inliers: Bool[np.ndarray, 'm']
  parallax_rad: float
  depths: Float[np.ndarray, '2 m']

  @property
  def moves(self) -> bool:
    """Whether the translation has a direction."""
    return bool(np.any(self.target2source[:, 3]))


def fit_pair(
  source_rays: Float[np.ndarray, 'm 3'],
  target_rays: Float[np.ndarray, 'm 3'],
  *,
  max_error_rad: float,
  min_inliers: int,
  min_parallax_rad: float,
  seed: int,
) -> PairFit | None:
  """LO-RANSAC on rays, then refinement over the inliers (pycolmap).

  Args:
    source_rays: unit directions in the source frame.
    target_rays: the matched directions in the target frame.
    max_error_rad: largest epipolar error of an inlier.
    min_inliers: with fewer there is no fit.
    min_parallax_rad: with less the fit is a rotation and its translation 0,
      since noise alone would give it a direction.
    seed: of the sampling.

  Returns:
    the fit, or None where too few matches agree.
  """
  import pycolmap

  if len(source_rays) < max(8, min_inliers):
    return None
  options = pycolmap.RANSACOptions()
  options.max_error = max_error_rad
  options.max_num_trials = _MAX_TRIALS
  options.random_seed = seed
  found = pycolmap.estimate_relative_pose(target_rays, source_rays, options)
  if found is None or found['num_inliers'] < min_inliers:
    return None
  refined = pycolmap.refine_relative_pose(
    found['cam2_from_cam1'], target_rays, source_rays, found['inlier_mask']
  )
  pose = (refined or found)['cam2_from_cam1'].matrix()
  return _judge(
    pose, source_rays, target_rays, max_error_rad, min_inliers, min_parallax_rad
  )


def _judge(
  target2source: np.ndarray,
  source_rays: np.ndarray,
  target_rays: np.ndarray,
  max_error_rad: float,
  min_inliers: int,
  min_parallax_rad: float,
) -> PairFit | None:
  depths = pair_depths(target2source, source_rays, target_rays)
  error = epipolar_error_rad(target2source, source_rays, target_rays)
  inliers = (error < max_error_rad) & np.all(depths > 0, axis=0)
  turned = target_rays @ target2source[:, :3].T
  apart = np.linalg.norm(turned - source_rays, axis=1)
  still = apart < max_error_rad
  parallax_rad = float(np.median(apart[inliers])) if inliers.any() else 0.0
  if parallax_rad < min_parallax_rad or still.sum() > inliers.sum():
    inliers = still
    target2source = camera.make_pose(target2source[:, :3], np.zeros(3))
  if inliers.sum() < min_inliers:
    return None
  return PairFit(
    target2source=target2source,
    inliers=inliers,
    parallax_rad=parallax_rad,
    depths=depths,
  )


def epipolar_error_rad(
  target2source: Float[np.ndarray, '3 4'],
  source_rays: Float[np.ndarray, 'm 3'],
  target_rays: Float[np.ndarray, 'm 3'],
) -> Float[np.ndarray, 'm']:
  """Angular Sampson error of matched rays, combined over both frames.

  Zero everywhere for a translation of 0.
  """
  essential = camera.essential_matrix(target2source)
  source_normal = target_rays @ essential.T
  target_normal = source_rays @ essential
  algebraic = np.abs(np.sum(source_rays * source_normal, axis=1))
  # The gradient of s^T E t on both spheres: the normals, less their radial
  # part.
  squared = (
    np.sum(source_normal**2, axis=1)
    + np.sum(target_normal**2, axis=1)
    - 2 * algebraic**2
  )
  return algebraic / np.sqrt(np.maximum(squared, 1e-18))


def pair_depths(
  target2source: Float[np.ndarray, '3 4'],
  source_rays: Float[np.ndarray, 'm 3'],
  target_rays: Float[np.ndarray, 'm 3'],
) -> Float[np.ndarray, '2 m']:
  """Distances along both rays to where they pass each other most closely."""
  along = target_rays @ target2source[:, :3].T
  cosine = np.sum(source_rays * along, axis=1)
  sine2 = np.maximum(1 - cosine**2, 1e-12)
  to_source = source_rays @ target2source[:, 3]
  to_target = along @ target2source[:, 3]
  return np.stack(
    [
      (to_source - cosine * to_target) / sine2,
      (cosine * to_source - to_target) / sine2,
    ]
  )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Chain:
  """Starting poses.

  Attributes:
    component: of each frame; -1 for a frame that nothing ties to another.
    frame2scene: pose of each frame in its component; the first frame of a
      component is the identity.
  """

  component: Int[np.ndarray, 'f']
  frame2scene: Float[np.ndarray, 'f 3 4']


def chain(
  num_frames: int,
  fits: Mapping[tuple[int, int], PairFit],
  points: Mapping[tuple[int, int], Int[np.ndarray, 'm']],
  *,
  min_shared: int,
) -> Chain:
  """Poses of all frames from fits of neighbouring pairs.

  Args:
    num_frames: number of frames.
    fits: by (source, target).
    points: ids of the matched points of each fit; the same point has the same
      id in every pair.
    min_shared: fewest inliers that two pairs must share to be linked.
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
  log_scale, label = scales.resolve(
    len(moving), scales.links(depths, min_shared=min_shared)
  )
  component, used = _components(num_frames, places, moving, label)
  edges = [
    (pair, fits[pair], float(np.exp(log_scale[index])))
    for index, pair in enumerate(moving)
    if used[index]
  ] + [
    (pair, fits[pair], 0.0)
    for pair in pairs
    if not fits[pair].moves
    and component[pair[0]] == component[pair[1]] >= 0
  ]
  frame2scene = np.tile(camera.identity_pose(), (num_frames, 1, 1))
  for index in range(component.max(initial=-1) + 1):
    frames = np.flatnonzero(component == index)
    inside = [edge for edge in edges if component[edge[0][0]] == index]
    frame2scene[frames] = _solve_component(frames, inside)
  return Chain(component=component, frame2scene=frame2scene)


def _places(
  num_frames: int, fits: Mapping[tuple[int, int], PairFit]
) -> Int[np.ndarray, 'f']:
  """Frames between which the camera only turned have the same place."""
  still = [pair for pair, fit in fits.items() if not fit.moves]
  still = np.array(still, np.int64).reshape(-1, 2)
  graph = sparse.coo_array(
    (np.ones(len(still)), (still[:, 0], still[:, 1])),
    shape=(num_frames, num_frames),
  )
  return csgraph.connected_components(graph, directed=False)[1]


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
