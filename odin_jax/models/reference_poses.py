"""The relative pose of two cameras as the models that ours grew from have it.

Zero-1-to-3 (2303.11328), Stable Zero123 and ZeroNVS (2310.17994): their weights
are read (`odin_jax.porting`), so each has to be told the pose in its own way.
"""

import jax.numpy as jnp
from jaxtyping import Array, Float

Pose = Float[Array, '*b 3 4']
Scalar = Float[Array, '*b']


def zero123_pose(
  source: Float[Array, '*b 3'], target: Float[Array, '*b 3']
) -> Float[Array, '*b 4']:
  """Zero-1-to-3's relative pose of two cameras that look at the origin.

  From cvlab-columbia/zero123 `ldm/data/simple.py`, `get_T`.

  Args:
    source: position of the source camera; +z is up.
    target: position of the target camera.

  Returns:
    change of the angle from +z (radians), sine and cosine of the change of
    azimuth (positive from x to y), change of the distance from the origin;
    each is the target's less the source's.
  """

  def spherical(position: Array) -> tuple[Array, Array, Array]:
    x, y, z = jnp.moveaxis(position, -1, 0)
    horizontal = jnp.hypot(x, y)
    return (
      jnp.arctan2(horizontal, z),
      jnp.arctan2(y, x),
      jnp.hypot(horizontal, z),
    )

  polar, azimuth, radius = (
    b - a for a, b in zip(spherical(source), spherical(target), strict=True)
  )
  return jnp.stack([polar, jnp.sin(azimuth), jnp.cos(azimuth), radius], axis=-1)


def stable_zero123_pose(
  source: Float[Array, '*b 3'], target: Float[Array, '*b 3']
) -> Float[Array, '*b 4']:
  """Stable Zero123's relative pose of two cameras that look at the origin.

  From threestudio-project/threestudio
  `threestudio/models/guidance/stable_zero123_guidance.py`, `get_cond`, whose
  polar angle is 90 degrees less the elevation. It knows of no distances.

  Args:
    source: position of the source camera; +z is up.
    target: position of the target camera.

  Returns:
    the first three numbers of `zero123_pose`; then the source's angle from +z
    (radians), pi / 2 at the horizon.
  """
  change = zero123_pose(source, target)[..., :3]
  x, y, z = jnp.moveaxis(source, -1, 0)
  polar = jnp.arctan2(jnp.hypot(x, y), z)
  return jnp.concatenate([change, polar[..., None]], axis=-1)


def _around_object(
  target2source: Pose, scale: Scalar
) -> tuple[Float[Array, '*b 3'], Float[Array, '*b 3']]:
  """Positions of source and target around the object that stands for a scene.

  See `zero123_vector`. The axes are the object's: x towards the source camera,
  y to its right, z up.
  """
  distance = jnp.where(scale > 0, scale, 1.0)
  x, y, z = jnp.moveaxis(target2source[..., 3], -1, 0)
  nil = jnp.zeros_like(distance)
  return (
    jnp.stack([distance, nil, nil], axis=-1),
    jnp.stack([distance - z, x, -y], axis=-1),
  )


def zero123_vector(target2source: Pose, scale: Scalar) -> Float[Array, '*b 4']:
  """Zero-1-to-3's relative pose of any two cameras.

  Zero-1-to-3 knows cameras that look at an object, with z up. A scene has no
  object: the point on the source's optical axis at the scene's distance stands
  for it, and the source camera's -y for up. So the source looks at the object
  from its horizon, and a target that circles it changes angles alone. What the
  vector cannot say is lost: where else the target looks, and its roll.

  Args:
    target2source: relative pose, scene units.
    scale: distance of the object, scene units; where it is 0, 1 is taken.
  """
  return zero123_pose(*_around_object(target2source, scale))


def stable_zero123_vector(
  target2source: Pose, scale: Scalar
) -> Float[Array, '*b 4']:
  """Stable Zero123's relative pose of any two cameras; see `zero123_vector`.

  The source looks at the object from its horizon, so the last is always pi / 2.
  """
  return stable_zero123_pose(*_around_object(target2source, scale))


def zeronvs_vector(
  target2source: Pose, fov_deg: Scalar, scale: Scalar
) -> Float[Array, '*b 19']:
  """ZeroNVS's relative pose: a flat 4x4 matrix and the field of view.

  From kylesargent/zeronvs_diffusion `zero123/ldm/data/common.py`, `compute_T`,
  mode `7dof_quantile_scale`. There the scale is the 0.2 quantile of the
  source's depth; here it is its median, the one figure that a record has.

  Args:
    target2source: relative pose, scene units.
    fov_deg: full field of view.
    scale: of the scene, scene units; 1 is taken where it is 0, and never less
      than 0.01.

  Returns:
    16 numbers: the pose in axes x right, y up, z backward (OpenGL), row by
    row, its translation t replaced by 5 tanh(t / (10 scale)); then the field
    of view in radians, its sine and its cosine.
  """
  # inv(source2world) @ target2world is target2source; both cameras' axes turn.
  opengl = jnp.array([1.0, -1.0, -1.0])
  rotation = opengl[:, None] * target2source[..., :3] * opengl
  unit = jnp.where(scale > 0, jnp.maximum(scale, 1e-2), 1.0)[..., None]
  translation = 5 * jnp.tanh(opengl * target2source[..., 3] / unit / 10)
  matrix = jnp.concatenate([rotation, translation[..., None]], axis=-1)
  flat = matrix.reshape(*matrix.shape[:-2], 12)
  last_row = jnp.broadcast_to(jnp.eye(4)[3], (*flat.shape[:-1], 4))
  fov = jnp.deg2rad(fov_deg)[..., None]
  return jnp.concatenate(
    [flat, last_row, fov, jnp.sin(fov), jnp.cos(fov)], axis=-1
  )
