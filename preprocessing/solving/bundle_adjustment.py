"""Bundle adjustment on the sphere.

A point X seen from a frame with pose (R, c), x_scene = R x_frame + c, appears
in the direction u = R^T (X - c) / |X - c|. The residual against the observed
unit vector b is the chord u - b, in radians for small angles: the same error
counts the same in all directions. Minimised over all poses and points by
Levenberg-Marquardt with the points eliminated (Schur complement) and Cauchy
weights. B. Triggs et al., "Bundle adjustment - a modern synthesis", 2000.

Our own, since pycolmap (4.2) adjusts the pixels of an equirectangular camera,
which weigh an error more the nearer it is to a pole: on 16 scenes of points
(`tests/helpers/point_worlds.py`) the paths that it gives drift 5 % more.
"""

import dataclasses

from jaxtyping import Bool, Float, Int
import numpy as np
from scipy import sparse
from scipy.sparse import linalg
from scipy.spatial.transform import Rotation

from odin_jax.shared import camera
from preprocessing.solving import levenberg_marquardt

# Of the Cauchy loss, in standard errors.
LOSS_SCALE = 2.0
_START_DAMPING = 1e-4
_MIN_DAMPING = 1e-9


@dataclasses.dataclass(frozen=True, kw_only=True)
class Observations:
  """Which point each frame shows, and in which direction.

  Attributes:
    frame: index of the frame.
    point: index of the point.
    ray: unit vector in the axes of the frame.
    noise_rad: standard error of the direction.
  """

  frame: Int[np.ndarray, 'n']
  point: Int[np.ndarray, 'n']
  ray: Float[np.ndarray, 'n 3']
  noise_rad: Float[np.ndarray, 'n']

  def subset(self, keep: Bool[np.ndarray, 'n']) -> 'Observations':
    """The observations that `keep` selects."""
    return Observations(
      frame=self.frame[keep],
      point=self.point[keep],
      ray=self.ray[keep],
      noise_rad=self.noise_rad[keep],
    )


def triangulate(
  frame2scene: Float[np.ndarray, 'f 3 4'],
  observations: Observations,
  num_points: int,
) -> Float[np.ndarray, 'p 3']:
  """Points nearest to all their rays, in the sense of least squares.

  Solves sum_i (I - d_i d_i^T) (X - c_i) = 0; NaN where the rays are parallel
  or fewer than two.
  """
  poses = frame2scene[observations.frame]
  direction = np.einsum('nij,nj->ni', poses[:, :, :3], observations.ray)
  across = np.eye(3) - direction[:, :, None] * direction[:, None, :]
  normal = sum_by(observations.point, across, num_points)
  right = sum_by(
    observations.point,
    np.einsum('nij,nj->ni', across, poses[:, :, 3]),
    num_points,
  )
  points = np.full((num_points, 3), np.nan)
  solvable = np.linalg.det(normal) > 1e-9
  points[solvable] = np.linalg.solve(
    normal[solvable], right[solvable, :, None]
  )[..., 0]
  return points


def errors_rad(
  frame2scene: Float[np.ndarray, 'f 3 4'],
  points: Float[np.ndarray, 'p 3'],
  observations: Observations,
) -> Float[np.ndarray, 'n']:
  """Chord between predicted and observed direction; NaN for NaN points."""
  unit, _ = _predict(frame2scene, points, observations)
  return np.linalg.norm(unit - observations.ray, axis=1)


def parallax_rad(
  frame2scene: Float[np.ndarray, 'f 3 4'],
  points: Float[np.ndarray, 'p 3'],
  observations: Observations,
) -> Float[np.ndarray, 'p']:
  """How far apart, as an angle, the frames of each point lie around it.

  The largest angle between the mean direction to a point and one of its
  directions, doubled.
  """
  away = points[observations.point] - frame2scene[observations.frame, :, 3]
  away = away / np.linalg.norm(away, axis=1, keepdims=True)
  mean = sum_by(observations.point, np.nan_to_num(away), len(points))
  mean /= np.maximum(np.linalg.norm(mean, axis=1, keepdims=True), 1e-12)
  chord = np.linalg.norm(away - mean[observations.point], axis=1)
  widest = np.zeros(len(points))
  np.maximum.at(widest, observations.point, np.nan_to_num(chord))
  return 2 * widest


def adjust(
  frame2scene: Float[np.ndarray, 'f 3 4'],
  points: Float[np.ndarray, 'p 3'],
  observations: Observations,
  *,
  max_iterations: int,
  loss_scale: float = LOSS_SCALE,
  tolerance: float = 1e-5,
) -> tuple[Float[np.ndarray, 'f 3 4'], Float[np.ndarray, 'p 3']]:
  """Refines all poses but the first, and all points.

  Args:
    frame2scene: starting poses; each must have some observation.
    points: starting points, finite where observed.
    observations: what the frames show.
    max_iterations: of Levenberg-Marquardt.
    loss_scale: of the Cauchy loss, in standard errors.
    tolerance: stops when the cost falls by less than this share.
  """
  return levenberg_marquardt.minimise(
    (frame2scene, points),
    cost=lambda state: _cost(*state, observations, loss_scale),
    linearise=lambda state: _linearise(*state, observations, loss_scale),
    step=lambda state, system, damping: _step(*state, *_solve(system, damping)),
    start_damping=_START_DAMPING,
    min_damping=_MIN_DAMPING,
    max_iterations=max_iterations,
    tolerance=tolerance,
  )


@dataclasses.dataclass(frozen=True)
class _System:
  """The normal equations; the coupling is one block per observation."""

  poses: Float[np.ndarray, 'f 6 6']
  points: Float[np.ndarray, 'p 3 3']
  coupling: sparse.bsr_array
  point_of_block: Int[np.ndarray, 'n']
  pose_gradient: Float[np.ndarray, 'f 6']
  point_gradient: Float[np.ndarray, 'p 3']


def sum_by(
  index: Int[np.ndarray, 'n'], values: np.ndarray, count: int
) -> np.ndarray:
  """Sums of rows with the same index."""
  flat = values.reshape(len(values), -1)
  gather = sparse.csr_array(
    (np.ones(len(index)), (index, np.arange(len(index)))),
    shape=(count, len(index)),
  )
  return (gather @ flat).reshape(count, *values.shape[1:])


def _predict(
  frame2scene: np.ndarray, points: np.ndarray, observations: Observations
) -> tuple[np.ndarray, np.ndarray]:
  poses = frame2scene[observations.frame]
  offset = points[observations.point] - poses[:, :, 3]
  local = np.einsum('nji,nj->ni', poses[:, :, :3], offset)
  distance = np.linalg.norm(local, axis=1)
  return local / np.maximum(distance, 1e-12)[:, None], distance


def _cost(
  frame2scene: np.ndarray,
  points: np.ndarray,
  observations: Observations,
  loss_scale: float,
) -> float:
  error = errors_rad(frame2scene, points, observations)
  ratio = error / (loss_scale * observations.noise_rad)
  return float(np.log1p(ratio**2).sum())


def _linearise(
  frame2scene: np.ndarray,
  points: np.ndarray,
  observations: Observations,
  loss_scale: float,
) -> _System:
  """The normal equations of the weighted residuals.

  All in the axes of the scene, where a frame turns by exp([w]_x) and moves by
  dc. With v the direction to the point, at the distance d, the residual has
  the derivatives [v]_x by w, -P / d by dc and P / d by the point, where
  P = I - v v^T; and [v]_x^T [v]_x = P, [v]_x P = [v]_x, P P = P.
  """
  frame, point = observations.frame, observations.point
  rotation = frame2scene[frame, :, :3]
  offset = points[point] - frame2scene[frame, :, 3]
  distance = np.maximum(np.linalg.norm(offset, axis=1), 1e-12)
  toward = offset / distance[:, None]
  observed = np.einsum('nij,nj->ni', rotation, observations.ray)
  residual = toward - observed
  scale = loss_scale * observations.noise_rad
  weight = 1 / (scale**2 + np.sum(residual**2, axis=1))
  near = weight / distance
  across = np.eye(3) - toward[:, :, None] * toward[:, None, :]
  turning = across * weight[:, None, None]
  mixed = camera.cross_matrix(toward * near[:, None])
  moving = across * (near / distance)[:, None, None]
  push = near[:, None] * residual
  push -= np.sum(push * toward, axis=1, keepdims=True) * toward
  twist = -np.cross(toward, weight[:, None] * residual)
  num_frames, num_points = len(frame2scene), len(points)
  turned, both, moved = (
    sum_by(frame, blocks, num_frames) for blocks in (turning, mixed, moving)
  )
  order = np.argsort(frame, kind='stable')
  return _System(
    np.concatenate(
      [
        np.concatenate([turned, both], axis=2),
        np.concatenate([np.swapaxes(both, 1, 2), moved], axis=2),
      ],
      axis=1,
    ),
    sum_by(point, moving, num_points),
    sparse.bsr_array(
      (
        -np.concatenate([mixed, moving], axis=1)[order],
        point[order],
        np.concatenate(
          [[0], np.cumsum(np.bincount(frame, minlength=num_frames))]
        ),
      ),
      shape=(6 * num_frames, 3 * num_points),
    ),
    point[order],
    sum_by(frame, np.concatenate([twist, -push], axis=1), num_frames),
    sum_by(point, push, num_points),
  )


def _solve(system: _System, damping: float) -> tuple[np.ndarray, np.ndarray]:
  """The damped Gauss-Newton step; the first pose stays."""
  poses, points = (
    _damped(system.poses, damping),
    _damped(system.points, damping),
  )
  inverse = np.linalg.inv(points)
  coupling = system.coupling
  eliminate = sparse.bsr_array(
    (
      coupling.data @ inverse[system.point_of_block],
      coupling.indices,
      coupling.indptr,
    ),
    shape=coupling.shape,
  )
  reduced = sparse.block_diag(poses) - eliminate @ coupling.T
  right = -system.pose_gradient.ravel() + eliminate @ (
    system.point_gradient.ravel()
  )
  pose_step = np.zeros_like(right)
  if len(right) > 6:
    pose_step[6:] = linalg.spsolve(
      sparse.csc_array(sparse.csr_array(reduced)[6:, 6:]), right[6:]
    )
  carried = (coupling.T @ pose_step).reshape(-1, 3)
  point_step = np.einsum(
    'pij,pj->pi', inverse, -system.point_gradient - carried
  )
  return pose_step.reshape(-1, 6), point_step


def _damped(blocks: np.ndarray, damping: float) -> np.ndarray:
  diagonal = np.einsum('...ii->...i', blocks)
  added = damping * np.maximum(diagonal, 1e-9 * diagonal.max(initial=1e-9))
  return blocks + added[..., None] * np.eye(blocks.shape[-1])


def _step(
  frame2scene: np.ndarray,
  points: np.ndarray,
  pose_step: np.ndarray,
  point_step: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
  turn = Rotation.from_rotvec(pose_step[:, :3]).as_matrix()
  turned = turn @ frame2scene[:, :, :3]
  moved = frame2scene[:, :, 3] + pose_step[:, 3:]
  return camera.make_pose(turned, moved), points + point_step
