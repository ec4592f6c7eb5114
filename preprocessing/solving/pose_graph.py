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
from preprocessing.solving import levenberg_marquardt

_MAX_ITERATIONS = 50
_START_DAMPING = 1e-6
_MIN_DAMPING = 1e-12
# Stops when the cost falls by less than this share.
_TOLERANCE = 1e-9

# Pose [f, 3, 4] and logarithm of the scale [f] of each frame.
_State = tuple[np.ndarray, np.ndarray]


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
    source=np.array([constraint.source for constraint in constraints]),
    target=np.array([constraint.target for constraint in constraints]),
    pose=np.stack([constraint.target2source for constraint in constraints]),
    log_scale=np.array([constraint.log_scale for constraint in constraints]),
    strength=1 / np.array([_errors(constraint) for constraint in constraints]),
  )
  return levenberg_marquardt.minimise(
    (frame2scene, log_scale),
    cost=lambda state: _cost(state, edges),
    linearise=lambda state: _linearise(state, edges),
    step=_step,
    start_damping=_START_DAMPING,
    min_damping=_MIN_DAMPING,
    max_iterations=_MAX_ITERATIONS,
    tolerance=_TOLERANCE,
  )


def _errors(constraint: Constraint) -> list[float]:
  """Standard errors of the seven residuals of a constraint."""
  turn, shift, stretch = (
    constraint.turn_rad,
    constraint.shift,
    constraint.stretch,
  )
  return [turn] * 3 + [shift] * 3 + [stretch]


def _cost(state: _State, edges: _Edges) -> float:
  residual = _residual(state, edges)
  return residual @ residual


def _linearise(
  state: _State, edges: _Edges
) -> tuple[sparse.sparray, np.ndarray]:
  """Normal equations of a Gauss-Newton step."""
  jacobian = _jacobian(state, edges)
  return jacobian.T @ jacobian, -(jacobian.T @ _residual(state, edges))


def _residual(state: _State, edges: _Edges) -> Float[np.ndarray, 'n']:
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


def _shift(state: _State, edges: _Edges) -> Float[np.ndarray, 'e 3']:
  """The targets' centres as the sources see them, in their units."""
  pose, scale = state
  away = pose[edges.target, :, 3] - pose[edges.source, :, 3]
  local = np.einsum('eji,ej->ei', pose[edges.source, :, :3], away)
  return local * np.exp(-scale[edges.source])[:, None]


def _jacobian(state: _State, edges: _Edges) -> sparse.csr_array:
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
  state: _State, system: tuple[sparse.sparray, np.ndarray], damping: float
) -> _State:
  normal, right = system
  damped = normal + damping * sparse.diags_array(normal.diagonal())
  step = linalg.spsolve(sparse.csc_array(damped), right).reshape(-1, 7)
  pose, scale = state
  step = np.concatenate([np.zeros((1, 7)), step])
  turned = pose[:, :, :3] @ Rotation.from_rotvec(step[:, :3]).as_matrix()
  return camera.make_pose(turned, pose[:, :, 3] + step[:, 3:6]), (
    scale + step[:, 6]
  )
