"""A scene as 3D Gaussians: what is learned of each, and what it means.

Kerbl, Kopanas, Leimkuehler, Drettakis, "3D Gaussian splatting for real-time
radiance field rendering", 2023 (https://arxiv.org/abs/2308.04079), with
spherical harmonics of degree 0: a Gaussian has one colour from all sides.

  covariance = R S S^T R^T,  S = diag(exp(log_scales)),  R of the quaternion
  opacity = sigmoid(opacity_logits)
  colour = max(1/2 + C_0 colour_coefficients, 0),  C_0 = 1 / (2 sqrt(pi))
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float
import numpy as np

# The spherical harmonic of degree 0.
HARMONIC_0 = 0.5 / math.sqrt(math.pi)


class Gaussians(NamedTuple):
  """Parameters of n Gaussians, as the files of other programs hold them.

  Attributes:
    means: centres, scene units.
    log_scales: logarithms of the standard deviations along the own axes.
    quaternions: (w, x, y, z), of any length but 0; turn own axes into those of
      the scene.
    opacity_logits: before the sigmoid.
    colour_coefficients: of the harmonic of degree 0, sRGB.
  """

  means: Float[Array, 'n 3']
  log_scales: Float[Array, 'n 3']
  quaternions: Float[Array, 'n 4']
  opacity_logits: Float[Array, 'n']
  colour_coefficients: Float[Array, 'n 3']


def rotations(quaternions: Float[Array, 'n 4']) -> Float[Array, 'n 3 3']:
  """Rotation matrices of quaternions (w, x, y, z) of any length."""
  unit = quaternions / jnp.linalg.norm(quaternions, axis=-1, keepdims=True)
  w, x, y, z = jnp.moveaxis(unit, -1, 0)
  rows = [
    [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
    [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
    [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
  ]
  return jnp.stack([jnp.stack(row, -1) for row in rows], -2)


def covariances(scene: Gaussians) -> Float[Array, 'n 3 3']:
  """Covariances, square scene units."""
  spread = rotations(scene.quaternions) * jnp.exp(scene.log_scales)[:, None]
  return jnp.einsum(
    'nij,nkj->nik', spread, spread, precision=jax.lax.Precision.HIGHEST
  )


def opacities(gaussians: Gaussians) -> Float[Array, 'n']:
  """How opaque the centre of each is, from 0 to 1."""
  return jax.nn.sigmoid(gaussians.opacity_logits)


def colours(gaussians: Gaussians) -> Float[Array, 'n 3']:
  """sRGB colours; at least 0, and as others have it not bounded above."""
  return jnp.maximum(0.5 + HARMONIC_0 * gaussians.colour_coefficients, 0.0)


def coefficients_of_colours(
  values: Float[np.ndarray, 'n 3'],
) -> Float[np.ndarray, 'n 3']:
  """The inverse of `colours`, of sRGB colours from 0 to 1."""
  return (values - 0.5) / HARMONIC_0
