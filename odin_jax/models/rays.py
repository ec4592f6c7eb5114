"""Rays of cameras: directions, Pluecker coordinates, Fourier features.

A ray with direction d (unit) through the point o is the six numbers
(d, o x d): Pluecker coordinates, the same for every point of the ray. Two
rays meet where d1 . m2 + d2 . m1 = 0.
"""

from typing import Sequence

import jax.numpy as jnp
from jaxtyping import Array, Float

Pose = Float[Array, 'b 3 4']
# The six numbers, by name.
PLUCKER = tuple(
  f'{vector}_{axis}' for vector in ('direction', 'moment') for axis in 'xyz'
)


def camera_rays(fov_deg: Float[Array, 'b'], size: int) -> Float[Array, 'b n 3']:
  """Unit directions through the pixel centres of square views, row by row."""
  centres = (jnp.arange(size) + 0.5) / size * 2 - 1
  v, u = jnp.meshgrid(centres, centres, indexing='ij')
  plane = jnp.stack([u.ravel(), v.ravel()], axis=-1)
  tangent = jnp.tan(jnp.deg2rad(fov_deg) / 2)
  plane = plane * tangent[:, None, None]
  rays = jnp.concatenate([plane, jnp.ones_like(plane[..., :1])], axis=-1)
  return rays / jnp.linalg.norm(rays, axis=-1, keepdims=True)


def inverse(a2b: Pose) -> Pose:
  """`b2a` of `a2b`."""
  rotation = a2b[..., :3].swapaxes(-1, -2)
  return jnp.concatenate([rotation, -(rotation @ a2b[..., 3:])], axis=-1)


def plucker(
  directions: Float[Array, 'b n 3'], camera2frame: Pose
) -> Float[Array, 'b n 6']:
  """Rays of a camera, in the axes of another frame.

  Args:
    directions: unit, in the camera's axes.
    camera2frame: the camera's pose in the frame.
  """
  turned = directions @ camera2frame[..., :3].swapaxes(-1, -2)
  centre = jnp.broadcast_to(camera2frame[:, None, :, 3], turned.shape)
  return jnp.concatenate([turned, jnp.cross(centre, turned)], axis=-1)


def own_plucker(directions: Float[Array, 'b n 3']) -> Float[Array, 'b n 6']:
  """Rays of a camera in its own axes: through the origin, without moment."""
  return jnp.pad(directions, ((0, 0), (0, 0), (0, 3)))


def fourier_features(
  x: Float[Array, '*b d'], bands: int
) -> Float[Array, '*b f']:
  """x with its sines and cosines at angular frequencies pi/2 * 2^k."""
  frequencies = jnp.pi / 2 * 2.0 ** jnp.arange(bands)
  angles = (x[..., None] * frequencies).reshape(*x.shape[:-1], -1)
  return jnp.concatenate([x, jnp.sin(angles), jnp.cos(angles)], axis=-1)


def fourier_names(names: Sequence[str], bands: int) -> tuple[str, ...]:
  """Names of the Fourier features of numbers of these names, in their order.

  Those of frequency pi/2 * 2^k end in `.sin{k}` and `.cos{k}`.
  """

  def waves(kind: str) -> list[str]:
    return [f'{name}.{kind}{k}' for name in names for k in range(bands)]

  return (*names, *waves('sin'), *waves('cos'))
