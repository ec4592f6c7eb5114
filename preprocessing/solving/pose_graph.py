"""Pose-graph relaxation with scale: what a closed loop says goes all round.

Every frame has a similarity x_scene = exp(l) R x_frame + c. A constraint says
what similarity leads from one frame to another. Residuals of a constraint
(R_ab, t_ab, l_ab), each over its standard error:

  turn   log(R_ab^T R_a^T R_b),
  shift  exp(-l_a) R_a^T (c_b - c_a) - t_ab,
  scale  l_b - l_a - l_ab,

minimised by Levenberg-Marquardt. Poses alone would not do: from one camera the
scale drifts too. H. Strasdat et al., "Scale drift-aware large scale monocular
SLAM", RSS 2010.
"""

import dataclasses
from typing import Sequence

from jaxtyping import Float
import numpy as np
from scipy import sparse
from scipy.sparse import linalg
from scipy.spatial.transform import Rotation

from odin_jax.shared import camera

_MAX_ITERATIONS = 50
_START_DAMPING = 1e-6
_MAX_DAMPING = 1e6
# Stops when the cost falls by less than this share.
_TOLERANCE = 1e-9


@dataclasses.dataclass(frozen=True, kw_only=True)
class Constraint:
  """A similarity between two frames: x_source = exp(log_scale) R x_target + t.

  Attributes:
    source: index of the frame.
    target: index of the other frame.
    target2source: [R|t], in the unit of the source frame.
    log_scale: unit of the target frame over that of the source frame.
    turn_rad: standard error of R.
    shift: standard error of t.
    stretch: standard error of `log_scale`.
  """

  source: int
  target: int
  target2source: Float[np.ndarray, '3 4']
  log_scale: float
  turn_rad: float
  shift: float
  stretch: float


@dataclasses.dataclass(frozen=True)
class _Edges:
  """The constraints as arrays."""

  source: np.ndarray
  target: np.ndarray
  pose: np.ndarray
  log_scale: np.ndarray
  # 1 / standard errors of the seven residuals.
  strength: np.ndarray


def relax(
  frame2scene: Float[np.ndarray, 'f 3 4'],
  log_scale: Float[np.ndarray, 'f'],
  constraints: Sequence[Constraint],
) -> tuple[Float[np.ndarray, 'f 3 4'], Float[np.ndarray, 'f']]:
  """The similarities that fit the constraints best; the first frame stays.

  Args:
    frame2scene: starting poses.
    log_scale: starting scale of each frame.
    constraints: they must tie every frame to the first.

  Returns:
    poses and scales.
  """
  edges = _Edges(
    source=np.array([one.source for one in constraints]),
    target=np.array([one.target for one in constraints]),
    pose=np.stack([one.target2source for one in constraints]),
    log_scale=np.array([one.log_scale for one in constraints]),
    strength=1
    / np.array(
      [
        [one.turn_rad] * 3 + [one.shift] * 3 + [one.stretch]
        for one in constraints
      ]
    ),
  )
  state = frame2scene, log_scale
  residual = _residual(state, edges)
  damping = _START_DAMPING
  for _ in range(_MAX_ITERATIONS):
    jacobian = _jacobian(state, edges)
    normal = jacobian.T @ jacobian
    right = -(jacobian.T @ residual)
    cost = residual @ residual
    while damping < _MAX_DAMPING:
      damped = normal + damping * sparse.diags_array(normal.diagonal())
      step = linalg.spsolve(sparse.csc_array(damped), right)
      trial = _step(state, step.reshape(-1, 7))
      trial_residual = _residual(trial, edges)
      if trial_residual @ trial_residual < cost:
        break
      damping *= 8
    else:
      break
    state, residual = trial, trial_residual
    damping = max(damping / 8, 1e-12)
    if cost - residual @ residual < _TOLERANCE * cost:
      break
  return state


def _residual(
  state: tuple[np.ndarray, np.ndarray], edges: _Edges
) -> Float[np.ndarray, 'n']:
  pose, scale = state
  back = np.swapaxes(pose[edges.source, :, :3], 1, 2)
  turned = (
    np.swapaxes(edges.pose[:, :, :3], 1, 2) @ back @ pose[edges.target, :, :3]
  )
  stretch = scale[edges.target] - scale[edges.source] - edges.log_scale
  rows = np.concatenate(
    [
      Rotation.from_matrix(turned).as_rotvec(),
      _shift(state, edges) - edges.pose[:, :, 3],
      stretch[:, None],
    ],
    axis=1,
  )
  return (rows * edges.strength).ravel()


def _shift(
  state: tuple[np.ndarray, np.ndarray], edges: _Edges
) -> Float[np.ndarray, 'e 3']:
  """The targets' centres as the sources see them, in their units."""
  pose, scale = state
  away = pose[edges.target, :, 3] - pose[edges.source, :, 3]
  local = np.einsum('eji,ej->ei', pose[edges.source, :, :3], away)
  return local * np.exp(-scale[edges.source])[:, None]


def _jacobian(
  state: tuple[np.ndarray, np.ndarray], edges: _Edges
) -> sparse.csr_array:
  """By turn (R exp([w]_x)), move (c + dc) and stretch (l + dl) of each frame.

  The turn's own derivative is taken at a small residual, where it is the
  identity; this costs steps, not accuracy.
  """
  pose, scale = state
  count = len(edges.source)
  by_source = np.zeros((count, 7, 7))
  by_target = np.zeros((count, 7, 7))
  by_target[:, :3, :3] = np.eye(3)
  relative = (
    np.swapaxes(pose[edges.source, :, :3], 1, 2) @ pose[edges.target, :, :3]
  )
  by_source[:, :3, :3] = -np.swapaxes(relative, 1, 2)
  shift = _shift(state, edges)
  shrink = np.exp(-scale[edges.source])[:, None, None]
  by_centre = np.swapaxes(pose[edges.source, :, :3], 1, 2) * shrink
  by_target[:, 3:6, 3:6] = by_centre
  by_source[:, 3:6, 3:6] = -by_centre
  by_source[:, 3:6, :3] = camera.cross_matrix(shift)
  by_source[:, 3:6, 6] = -shift
  by_target[:, 6, 6] = 1
  by_source[:, 6, 6] = -1
  blocks = np.concatenate([by_source, by_target], axis=2)
  blocks *= edges.strength[:, :, None]
  rows = 7 * np.arange(count)[:, None, None] + np.arange(7)[:, None]
  ends = np.stack([edges.source, edges.target], axis=1)
  columns = (7 * ends[:, :, None] + np.arange(7)).reshape(count, 1, 14)
  rows, columns = np.broadcast_arrays(rows, columns)
  whole = sparse.csr_array(
    (blocks.ravel(), (rows.ravel(), columns.ravel())),
    shape=(7 * count, 7 * len(pose)),
  )
  # The first frame stays.
  return whole[:, 7:]


def _step(
  state: tuple[np.ndarray, np.ndarray], step: Float[np.ndarray, 'n 7']
) -> tuple[np.ndarray, np.ndarray]:
  pose, scale = state
  step = np.concatenate([np.zeros((1, 7)), step])
  turned = pose[:, :, :3] @ Rotation.from_rotvec(step[:, :3]).as_matrix()
  return camera.make_pose(turned, pose[:, :, 3] + step[:, 3:6]), (
    scale + step[:, 6]
  )
