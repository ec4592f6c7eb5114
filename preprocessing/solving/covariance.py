"""How far relative poses are off: standard errors from the bundle adjustment.

The poses minimise the sum over all points of what a point costs once it lies
where it costs least. Let g_p be the gradient of that by the poses. At the true
poses the g_p are random with mean zero, so to first order the poses found are
off by

    e = -H^-1 sum_p g_p,   with the covariance   H^-1 (sum_p g_p g_p^T) H^-1,

the "sandwich" of M-estimators (P. J. Huber, Robust Statistics, 1981, section
6.3). So the noise is as large as the residuals say, not as a matcher says of
itself, and what a point does in several frames may go together. Points are
eliminated as in the adjustment (B. Triggs et al., "Bundle adjustment - a modern
synthesis", 2000, section 6; R. Hartley and A. Zisserman, Multiple View
Geometry, 2004, chapter 5 and appendix 6). A frame and the scale are held, since
nothing observes them; relative rotations and directions depend on neither.

Three things make the errors larger than those of least squares:

* H is the second derivative of the Cauchy cost, w I - 2 w^2 r r^T for a
  residual r, not the w I of reweighted least squares: the farther off an
  observation is, the less it pulls.
* An observation beyond `refinement.INLIER_SIGMA` standard errors is left out,
  so poses that are off keep what agrees with them. When poses move by e, those
  next to the limit cross it, which takes C e from the gradient, with
  C = sum_i (w_i |r_i| / h) q_i q_i^T over the observations in a band of width h
  inside the limit, and q_i the derivative of |r_i| by the poses. Inliers are
  chosen by poses that are off by about as much, so (I + H^-1 C) H^-1 takes the
  place of H^-1. This is on the safe side: where outliers are independent of
  each other, errors are smaller than stated, but in pictures they go together.
* A detector may find a feature twice at one place, in two orientations. Points
  that coincide in some frame err together and count as one.
"""

import functools
from typing import Iterable, NamedTuple, Protocol, runtime_checkable

from jaxtyping import Bool, Float, Int
import numpy as np
from scipy import sparse, spatial
from scipy.sparse import csgraph, linalg

from odin_jax.shared import camera
from preprocessing.solving import bundle_adjustment, refinement, tracks

# Of a pose of which nothing is known; no angle is larger.
UNKNOWN_DEG = 180.0
# Width of the band inside the limit of inliers, in standard errors.
_BAND_SIGMA = 0.5
# Points that come so near to each other in a frame, in standard errors, are
# one: the same place, to all that a detector tells.
_TWIN_SIGMA = 0.1
# Residuals may take at most this share of what is known of a point, lest it be
# at no minimum.
_MAX_TAKEN = 0.9
# What the residuals do not tell, such as what a codec does to all points of a
# part of the picture. Fitted to 20 procedural videos; see the README.
_INFLATION = 1.1
# Frames whose columns of the inverse are kept at a time.
_KEPT_FRAMES = 64
# Columns of the inverse are good where they invert to within this.
_TOLERANCE = 1e-3


class PoseError(NamedTuple):
  """Standard errors of a relative pose, target2source.

  Attributes:
    rotation_deg: of the rotation about one axis, the RMS over three. In units
      of it the angle that the rotation is off is chi distributed with three
      degrees of freedom, where no axis stands out: 95 % below 2.80.
    direction_deg: of the direction of the translation, in the source's axes,
      along one axis across it, the RMS over two. Chi with two: 95 % below 2.45.
  """

  rotation_deg: float
  direction_deg: float


_UNKNOWN = PoseError(UNKNOWN_DEG, UNKNOWN_DEG)


@runtime_checkable
class Solved(Protocol):
  """What errors are known from: a `solver.Solution`."""

  frame2scene: Float[np.ndarray, 'f 3 4']
  points: Float[np.ndarray, 'p 3']
  observations: bundle_adjustment.Observations


def pose_errors(
  solved: Solved, pairs: Iterable[tracks.FramePair]
) -> dict[tracks.FramePair, PoseError]:
  """Standard errors of the relative poses of frames.

  Args:
    solved: poses and points at the minimum, and the observations they rest on.
    pairs: (source, target), matched or not.

  Returns:
    by pair; `UNKNOWN_DEG` where the observations do not tell.
  """
  wanted = sorted(set(pairs))
  if not len(solved.observations.frame):
    return dict.fromkeys(wanted, _UNKNOWN)
  covariance = _Covariance(solved)
  return {pair: covariance.pose_error(*pair) for pair in wanted}


class _Covariance:
  """The covariance of the poses, computed where it is asked for."""

  def __init__(self, solved: Solved):
    self._frame2scene = solved.frame2scene
    self._piece = _pieces(solved)
    curvature, crossing, gradients = _reduced_equations(solved)
    free = np.flatnonzero(~_held(solved, self._piece))
    self._free = free
    self._curvature = curvature[free][:, free]
    self._crossing = crossing[free][:, free]
    # As many unknowns as there are poses were fitted to the same points: J. G.
    # MacKinnon and H. White, Journal of Econometrics 29, 1985, HC1.
    num_points = gradients.shape[1]
    correction = num_points / max(num_points - len(free), 1e-9)
    self._scatter = sparse.csr_array(
      correction * (gradients[free] @ gradients[free].T)
    )
    # Lest what nothing observes stops the rest.
    tiny = 1e-12 * max(self._curvature.diagonal().max(initial=0.0), 1e-300)
    self._factors = linalg.splu(
      sparse.csc_array(self._curvature + tiny * sparse.eye_array(len(free)))
    )
    self._columns = functools.lru_cache(_KEPT_FRAMES)(self._columns_of)

  def pose_error(self, source: int, target: int) -> PoseError:
    """That of target2source."""
    columns = self._columns(source), self._columns(target)
    if self._piece[source] != self._piece[target] or None in columns:
      return _UNKNOWN
    (inverse_s, scatter_s), (inverse_t, scatter_t) = columns
    by_source, by_target = _derivatives(
      camera.relative(self._frame2scene[source], self._frame2scene[target])
    )
    mixed = by_source @ (inverse_s.T @ scatter_t) @ by_target.T
    covariance = (
      by_source @ (inverse_s.T @ scatter_s) @ by_source.T
      + by_target @ (inverse_t.T @ scatter_t) @ by_target.T
      + mixed
      + mixed.T
    )
    variance = _INFLATION**2 * np.maximum(covariance.diagonal(), 0)
    rotation, direction = np.rad2deg(
      np.sqrt([variance[:3].sum() / 3, variance[3:].sum() / 2])
    )
    return PoseError(
      min(float(rotation), UNKNOWN_DEG), min(float(direction), UNKNOWN_DEG)
    )

  def _columns_of(
    self, frame: int
  ) -> tuple[Float[np.ndarray, 'k 6'], Float[np.ndarray, 'k 6']] | None:
    """A frame's columns of (I + H^-1 C) H^-1, and of the scatter times these.

    None where the observations do not tell its pose.
    """
    unit = (self._free[:, None] == 6 * frame + np.arange(6)).astype(float)
    inverse = self._factors.solve(unit)
    error = np.abs(self._curvature @ inverse - unit).max(initial=0.0)
    # Where the cost is no minimum, the pose is none either.
    least = np.einsum('ki,ki->i', unit, inverse).min()
    if not error < _TOLERANCE or least < 0:
      return None
    inverse = inverse + self._factors.solve(self._crossing @ inverse)
    return inverse, self._scatter @ inverse


def _pieces(solved: Solved) -> Int[np.ndarray, 'f']:
  """Which frames some points join, by a number."""
  observations = solved.observations
  num_frames = len(solved.frame2scene)
  size = num_frames + len(solved.points)
  _, label = csgraph.connected_components(
    sparse.coo_array(
      (
        np.ones(len(observations.frame)),
        (observations.frame, num_frames + observations.point),
      ),
      shape=(size, size),
    ),
    directed=False,
  )
  return label[:num_frames]


def _held(
  solved: Solved, piece: Int[np.ndarray, 'f']
) -> Bool[np.ndarray, '6*f']:
  """What fixes the gauge of every piece: its first frame, and its scale.

  For the scale, one coordinate of a frame that is far from the first and shows
  many points.
  """
  counts = np.bincount(solved.observations.frame, minlength=len(piece))
  held = np.zeros((len(piece), 6), bool)
  for first in np.unique(piece, return_index=True)[1]:
    frames = np.flatnonzero(piece == piece[first])
    away = solved.frame2scene[frames, :, 3] - solved.frame2scene[first, :, 3]
    best = np.argmax(np.linalg.norm(away, axis=1) * counts[frames])
    local = away[best] @ solved.frame2scene[frames[best], :, :3]
    held[frames[best], 3 + np.argmax(np.abs(local))] = True
    held[first] = True
  return held.ravel()


def _derivatives(
  target2source: Float[np.ndarray, '3 4'],
) -> tuple[Float[np.ndarray, '6 6'], Float[np.ndarray, '6 6']]:
  """Of rotation and direction, by the six of the source and of the target.

  Those of a frame are as in `_jacobians`; the relative rotation R turns by
  exp([.]_x) R.
  """
  rotation, shift = target2source[:, :3], target2source[:, 3]
  length = max(float(np.linalg.norm(shift)), 1e-12)
  across = (np.eye(3) - np.outer(shift, shift) / length**2) / length
  nothing = np.zeros((3, 3))
  by_source = np.block(
    [[-np.eye(3), nothing], [across @ camera.cross_matrix(shift), -across]]
  )
  by_target = np.block([[rotation, nothing], [nothing, across @ rotation]])
  return by_source, by_target


def _jacobians(
  frame2scene: Float[np.ndarray, 'f 3 4'],
  points: Float[np.ndarray, 'p 3'],
  observations: bundle_adjustment.Observations,
) -> tuple[
  Float[np.ndarray, 'n 3'],
  Float[np.ndarray, 'n 3 6'],
  Float[np.ndarray, 'n 3 3'],
]:
  """Residuals, and their derivatives by the poses and by the points.

  The six of a frame are (w, dc), both in its own axes: it turns by R exp([w]_x)
  and moves by R dc.
  """
  poses = frame2scene[observations.frame]
  offset = points[observations.point] - poses[:, :, 3]
  local = np.einsum('nji,nj->ni', poses[:, :, :3], offset)
  distance = np.maximum(np.linalg.norm(local, axis=1), 1e-12)
  unit = local / distance[:, None]
  along = np.eye(3) - unit[:, :, None] * unit[:, None, :]
  along /= distance[:, None, None]
  by_pose = np.concatenate([camera.cross_matrix(unit), -along], axis=2)
  by_point = np.einsum('nij,nkj->nik', along, poses[:, :, :3])
  return unit - observations.ray, by_pose, by_point


def _reduced_equations(
  solved: Solved,
) -> tuple[sparse.csr_array, sparse.csr_array, sparse.csr_array]:
  """The equations of the poses, with the points eliminated.

  Returns:
    H and C, [6 f, 6 f]; the gradients of points that err independently, [6 f, g].
  """
  observations = solved.observations
  residual, by_pose, by_point = _jacobians(
    solved.frame2scene, solved.points, observations
  )
  frame, num_frames = observations.frame, len(solved.frame2scene)
  ids, point = np.unique(observations.point, return_inverse=True)
  num_points = len(ids)
  scale = bundle_adjustment.LOSS_SCALE * observations.noise_rad
  weight = 1 / (scale**2 + np.sum(residual**2, axis=1))
  bend = _second_derivative(residual, weight, scale, by_point, point)

  def block_columns(blocks: np.ndarray) -> sparse.csr_array:
    rows = 6 * frame[:, None, None] + np.arange(6)[:, None]
    columns = 3 * point[:, None, None] + np.arange(3)
    rows, columns = np.broadcast_arrays(rows, columns)
    return sparse.csr_array(
      (blocks.ravel(), (rows.ravel(), columns.ravel())),
      shape=(6 * num_frames, 3 * num_points),
    )

  bent_pose = np.swapaxes(by_pose, 1, 2) @ bend
  known = bundle_adjustment.sum_by(
    point, np.swapaxes(by_point, 1, 2) @ bend @ by_point, num_points
  )
  coupling = bent_pose @ by_point
  eliminate = block_columns(coupling @ np.linalg.inv(known)[point])
  curvature = sparse.block_diag(
    bundle_adjustment.sum_by(frame, bent_pose @ by_pose, num_frames)
  )
  curvature = curvature - eliminate @ block_columns(coupling).T

  def by_poses(
    pull: Float[np.ndarray, 'k 3'],
    chosen: Int[np.ndarray, 'k'],
    group: Int[np.ndarray, 'k'],
  ) -> sparse.csr_array:
    """Sums, by group, of derivatives of pull . residual, points eliminated."""
    width = int(group.max(initial=-1)) + 1
    parts = []
    for derivative, index, size in (
      (by_pose, frame, 6 * num_frames),
      (by_point, point, 3 * num_points),
    ):
      values = np.einsum('kij,ki->kj', derivative[chosen], pull)
      step = values.shape[1]
      rows = step * index[chosen][:, None] + np.arange(step)
      parts.append(
        sparse.csr_array(
          (values.ravel(), (rows.ravel(), np.repeat(group, step))),
          shape=(size, width),
        )
      )
    return parts[0] - eliminate @ parts[1]

  gradients = by_poses(
    residual * weight[:, None],
    np.arange(len(frame)),
    _independent(observations, point)[point],
  )
  band, unit, lost = _crossing(solved, point)
  slopes = by_poses(unit, band, np.arange(len(band)))
  crossing = sparse.csr_array((slopes * lost) @ slopes.T)
  return sparse.csr_array(curvature), crossing, gradients


def _crossing(
  solved: Solved, point: Int[np.ndarray, 'n']
) -> tuple[
  Int[np.ndarray, 'k'], Float[np.ndarray, 'k 3'], Float[np.ndarray, 'k']
]:
  """Observations next to the limit of inliers, which is where it is applied:
  at points that are triangulated from the poses.

  Returns:
    which; the directions of their residuals r; w |r| / h, what the gradient
    loses per radian, with the one other observation of a point of two.
  """
  observations = solved.observations
  points = bundle_adjustment.triangulate(
    solved.frame2scene, observations, len(solved.points)
  )
  residual, _, _ = _jacobians(solved.frame2scene, points, observations)
  size = np.linalg.norm(residual, axis=1)
  noise = observations.noise_rad
  limit = refinement.INLIER_SIGMA * noise
  band = np.flatnonzero((size > limit - _BAND_SIGMA * noise) & (size < limit))
  size, noise = size[band], noise[band]
  weight = 1 / ((bundle_adjustment.LOSS_SCALE * noise) ** 2 + size**2)
  gone = np.where(np.bincount(point)[point[band]] == 2, 2, 1)
  return (
    band,
    residual[band] / size[:, None],
    gone * weight * size / (_BAND_SIGMA * noise),
  )


def _second_derivative(
  residual: Float[np.ndarray, 'n 3'],
  weight: Float[np.ndarray, 'n'],
  scale: Float[np.ndarray, 'n'],
  by_point: Float[np.ndarray, 'n 3 3'],
  point: Int[np.ndarray, 'n'],
) -> Float[np.ndarray, 'n 3 3']:
  """Of the Cauchy cost by the residual: w I - 2 w^2 r r^T.

  Its mean over directions, w^2 s^2 I with the scale s of the loss, where the
  former leaves too little of what is known of a point.
  """
  taken = np.sqrt(2) * weight[:, None] * residual
  pull = np.einsum('nij,ni->nj', by_point, taken)
  all_known, all_taken = (
    bundle_adjustment.sum_by(point, blocks, int(point.max()) + 1)
    for blocks in (
      np.swapaxes(by_point, 1, 2) @ by_point * weight[:, None, None],
      pull[:, :, None] * pull[:, None, :],
    )
  )
  # Not below the largest share over all directions.
  share = np.trace(np.linalg.solve(all_known, all_taken), axis1=1, axis2=2)
  exact = weight[:, None, None] * np.eye(3)
  exact = exact - taken[:, :, None] * taken[:, None, :]
  mean = ((weight * scale) ** 2)[:, None, None] * np.eye(3)
  return np.where((share < _MAX_TAKEN)[point][:, None, None], exact, mean)


def _independent(
  observations: bundle_adjustment.Observations, point: Int[np.ndarray, 'n']
) -> Int[np.ndarray, 'p']:
  """A number for each point, the same for those that coincide in a frame."""
  order = np.argsort(observations.frame, kind='stable')
  starts = np.flatnonzero(np.diff(observations.frame[order])) + 1
  pairs = [np.zeros((0, 2), np.int64)]
  for inside in np.split(order, starts):
    near = _TWIN_SIGMA * observations.noise_rad[inside].min()
    tree = spatial.cKDTree(observations.ray[inside])
    pairs.append(point[inside[tree.query_pairs(near, output_type='ndarray')]])
  first, second = np.concatenate(pairs).T
  size = int(point.max()) + 1
  _, label = csgraph.connected_components(
    sparse.coo_array(
      (np.ones(len(first)), (first, second)), shape=(size, size)
    ),
    directed=False,
  )
  return label
