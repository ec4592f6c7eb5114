"""How a camera moves through a static scene, from directions alone.

A keyframe sees a point at inverse depth r in direction d; a camera at T (in
the keyframe's axes) turned by R sees it along y with R y ~ d - r T. All solvers
here are iteratively reweighted least squares with Geman-McClure weights, whose
scale follows the median residual; they start from the one before. They are
meant for the small motion between frames of a video and for directions all
around, where rotation and translation are told apart well.
"""

from typing import Mapping

import cv2
from jaxtyping import Float
import numpy as np

from odin_jax.shared import camera

Rays = Float[np.ndarray, '*b 3']
Vectors = Float[np.ndarray, '*b n']
Lengths = Float[np.ndarray, '*b'] | np.floating
# (R, T) of frames, by their distance in steps.
Cameras = dict[int, tuple[np.ndarray, np.ndarray]]
# Least scale of the residuals, in radians: below it all are equally good.
_LEAST_SCALE_RAD = 5e-4
# Directions closer to the epipole than this say nothing, as a sine.
_LEAST_SINE = 0.1


def dot(first: Vectors, second: Vectors) -> Lengths:
  """Inner products; much faster than a sum over so short an axis."""
  return np.einsum('...i,...i->...', first, second)


def length(vectors: Vectors) -> Lengths:
  """Euclidean lengths."""
  return np.sqrt(dot(vectors, vectors))


def unit(vectors: Rays) -> Rays:
  """Vectors of length 1."""
  return vectors / length(vectors)[..., None]


def predict(
  rays: Rays, inverse_depth: Float[np.ndarray, '*b'], place: np.ndarray
) -> Rays:
  """Where a static point appears from another place, in unrotated axes."""
  return unit(rays - inverse_depth[..., None] * place)


def _weights(residual: np.ndarray, trust: np.ndarray) -> np.ndarray:
  """Robust weights of residuals in radians."""
  trusted = residual[trust > 0]
  scale = 2 * np.median(trusted) if len(trusted) else 0.0
  scale = max(scale, _LEAST_SCALE_RAD)
  return trust / (1 + (residual / scale) ** 2) ** 2


def _solve(
  jacobian: np.ndarray, residual: np.ndarray, weights: np.ndarray
) -> np.ndarray:
  """A Gauss-Newton step, damped a little."""
  weighted = jacobian * weights[:, None]
  normal = weighted.T @ jacobian
  damping = 1e-9 * np.trace(normal) + 1e-12
  return -np.linalg.solve(
    normal + damping * np.eye(len(normal)), weighted.T @ residual
  )


def _turn(rotation: np.ndarray, rotation_vector: np.ndarray) -> np.ndarray:
  return cv2.Rodrigues(rotation_vector)[0] @ rotation


def rotation_between(
  rays: Float[np.ndarray, 'n 3'],
  observed: Float[np.ndarray, 'n 3'],
  trust: Float[np.ndarray, 'n'],
  rounds: int = 5,
) -> Float[np.ndarray, '3 3']:
  """R with `rays ~ R observed`, as well as rotation alone can (Kabsch)."""
  weights = trust
  for _ in range(rounds):
    left, _, right = np.linalg.svd((rays * weights[:, None]).T @ observed)
    flip = np.diag([1.0, 1.0, np.linalg.det(left @ right)])
    rotation = left @ flip @ right
    residual = length(observed @ rotation.T - rays)
    weights = _weights(residual, trust)
  return rotation


def two_frames(
  rays: Float[np.ndarray, 'n 3'],
  observed: Float[np.ndarray, 'n 3'],
  trust: Float[np.ndarray, 'n'],
  rotation: Float[np.ndarray, '3 3'],
  rounds: int = 8,
) -> tuple[Float[np.ndarray, '3 3'], Float[np.ndarray, '3']]:
  """(R, T) with |T| = 1 from the epipolar constraint d . (T x R y) = 0.

  Args:
    rays: d, unit directions in the keyframe.
    observed: y, the same points in the other frame.
    trust: inverse variances; 0 for those to leave out.
    rotation: R to start from.
    rounds: of Gauss-Newton.
  """
  place = _epipole(rays, observed @ rotation.T, trust)
  for _ in range(rounds):
    turned = observed @ rotation.T
    plane = np.cross(place, rays)
    normal = np.cross(rays, turned)
    slope = np.sqrt(2) * np.maximum(length(plane), _LEAST_SINE)
    residual = normal @ place / slope
    tangent = np.linalg.svd(place[None])[2][1:]
    jacobian = np.hstack([np.cross(turned, plane), normal @ tangent.T])
    jacobian /= slope[:, None]
    weights = _weights(np.abs(residual), trust)
    step = _solve(jacobian, residual, weights)
    rotation = _turn(rotation, step[:3])
    place = unit(place + step[3:] @ tangent)
  turned = observed @ rotation.T
  parallax = dot(np.cross(turned, rays), np.cross(turned, place))
  # Most points are in front of both cameras.
  in_front = np.sum(weights * np.sign(parallax)) >= 0
  return rotation, place if in_front else -place


def _epipole(rays: np.ndarray, turned: np.ndarray, trust: np.ndarray):
  """The direction that is most nearly in the plane of all rays' pairs."""
  normal = np.cross(rays, turned)
  least = np.maximum(length(normal), 1e-2)
  weights = trust / least
  for _ in range(5):
    _, vectors = np.linalg.eigh((normal * weights[:, None]).T @ normal)
    weights = _weights(np.abs(normal @ vectors[:, 0]), trust) / least
  return vectors[:, 0]


def inverse_depth(
  rays: Rays,
  observed: Mapping[int, Rays],
  trust: Mapping[int, Float[np.ndarray, '*b']],
  cameras: Cameras,
) -> Float[np.ndarray, '*b']:
  """r of every direction, from all frames whose camera is known.

  Least squares on R y x (d - r T) = 0; 0 where it would be negative, or where
  nothing is trusted.
  """
  numerator = np.zeros(rays.shape[:-1])
  denominator = np.full(rays.shape[:-1], 1e-12)
  for step, (rotation, place) in cameras.items():
    turned = observed[step] @ rotation.T
    moment = np.cross(turned, place)
    numerator += trust[step] * dot(np.cross(turned, rays), moment)
    denominator += trust[step] * dot(moment, moment)
  return np.maximum(numerator / denominator, 0)


def extrapolate(
  cameras: Cameras, step: int
) -> tuple[Float[np.ndarray, '3 3'], Float[np.ndarray, '3']]:
  """Where a camera is expected that goes on as from 0 to the nearest known."""
  known = min(cameras, key=lambda known_step: abs(step - known_step))
  rotation, place = cameras[known]
  vector = cv2.Rodrigues(rotation)[0][:, 0] * (step / known)
  return cv2.Rodrigues(vector)[0], place * (step / known)


def resect(
  rays: Float[np.ndarray, 'n 3'],
  depth: Float[np.ndarray, 'n'],
  observed: Float[np.ndarray, 'n 3'],
  trust: Float[np.ndarray, 'n'],
  rotation: Float[np.ndarray, '3 3'],
  place: Float[np.ndarray, '3'],
  rounds: int = 6,
) -> tuple[Float[np.ndarray, '3 3'], Float[np.ndarray, '3']]:
  """(R, T) of a frame that sees points of known inverse depth.

  Args:
    rays: d, unit directions in the keyframe.
    depth: r, inverse depths in the unit of `place`.
    observed: y, the same points in the frame.
    trust: inverse variances; 0 for those to leave out.
    rotation: R to start from.
    place: T to start from.
    rounds: of Gauss-Newton.
  """
  for _ in range(rounds):
    turned = observed @ rotation.T
    towards = rays - depth[:, None] * place
    distance = length(towards)
    expected = towards / distance[:, None]
    error = expected - turned
    tangent = np.eye(3) - expected[:, :, None] * expected[:, None, :]
    shift = -(depth / distance)[:, None, None] * tangent
    jacobian = np.concatenate([camera.cross_matrix(turned), shift], axis=2)
    weights = _weights(length(error), trust)
    step = _solve(jacobian.reshape(-1, 6), error.ravel(), np.repeat(weights, 3))
    rotation, place = _turn(rotation, step[:3]), place + step[3:]
  return rotation, place
