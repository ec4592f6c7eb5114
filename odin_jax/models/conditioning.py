"""What the denoiser is told: the source view and the relative pose.

Two kinds, both with the source latent beside the noisy one as in
Zero-1-to-3 (2303.11328):

  token    the context is one token made of `target2source` and the field of
           view;
  plucker  adds rays. Every latent pixel of the target comes with its ray, and
           the context holds one more token per latent pixel of the source,
           with its ray.

A ray with direction d (unit) through the point o is the six numbers
(d, o x d): Pluecker coordinates, the same for every point of the ray. Rays of
both cameras are given in the axes of the target camera, so that attention
compares like with like: two rays meet where d1 . m2 + d2 . m1 = 0.
"""

from einops import rearrange
from flax import nnx
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

KINDS = ('token', 'plucker')
Pose = Float[Array, 'b 3 4']


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


def fourier_features(
  x: Float[Array, '*b d'], bands: int
) -> Float[Array, '*b f']:
  """x with its sines and cosines at angular frequencies pi/2 * 2^k."""
  frequencies = jnp.pi / 2 * 2.0 ** jnp.arange(bands)
  angles = (x[..., None] * frequencies).reshape(*x.shape[:-1], -1)
  return jnp.concatenate([x, jnp.sin(angles), jnp.cos(angles)], axis=-1)


def fourier_width(width: int, bands: int) -> int:
  """Number of Fourier features of `width` numbers."""
  return width * (1 + 2 * bands)


class Conditioning(nnx.Module):
  """Channels to concatenate with the noisy latent, and a context of tokens.

  Args:
    kind: `token` or `plucker`.
    latent_channels: of the autoencoder.
    context_dim: width of the context's tokens.
    fourier_bands: frequencies of the rays' Fourier features.
  """

  def __init__(
    self,
    *,
    kind: str,
    latent_channels: int,
    context_dim: int,
    fourier_bands: int,
    rngs: nnx.Rngs,
  ):
    if kind not in KINDS:
      raise ValueError(f'conditioning {kind!r} is none of {KINDS}')
    self.kind = kind
    self.fourier_bands = fourier_bands
    self.pose1 = nnx.Linear(13, context_dim, rngs=rngs)
    self.pose2 = nnx.Linear(context_dim, context_dim, rngs=rngs)
    self.channels = latent_channels
    if kind == 'plucker':
      rays = fourier_width(6, fourier_bands)
      self.source1 = nnx.Linear(latent_channels + rays, context_dim, rngs=rngs)
      self.source2 = nnx.Linear(context_dim, context_dim, rngs=rngs)
      self.channels += rays

  def __call__(
    self,
    source: Float[Array, 'b n n c'],
    target2source: Pose,
    fov_deg: Float[Array, 'b'],
    drop: Bool[Array, 'b'],
  ) -> tuple[Float[Array, 'b n n e'], Float[Array, 'b m d']]:
    """Conditions of every example.

    Args:
      source: latent of the source view.
      target2source: relative pose, scene units.
      fov_deg: full field of view of both views.
      drop: True gives the null condition of classifier-free guidance: zeros.
    """
    fov_rad = jnp.deg2rad(fov_deg)
    pose = jnp.concatenate(
      [target2source.reshape(-1, 12), fov_rad[:, None]], axis=-1
    )
    context = self.pose2(nnx.silu(self.pose1(pose)))[:, None]
    channels = source
    if self.kind == 'plucker':
      size = source.shape[1]
      directions = camera_rays(fov_deg, size)
      source_rays = plucker(directions, inverse(target2source))
      target_rays = jnp.pad(directions, ((0, 0), (0, 0), (0, 3)))
      tokens = jnp.concatenate(
        [
          rearrange(source, 'b i j c -> b (i j) c'),
          fourier_features(source_rays, self.fourier_bands),
        ],
        axis=-1,
      )
      tokens = self.source2(nnx.silu(self.source1(tokens)))
      context = jnp.concatenate([context, tokens], axis=1)
      target_rays = fourier_features(target_rays, self.fourier_bands)
      channels = jnp.concatenate(
        [
          channels,
          rearrange(target_rays, 'b (i j) f -> b i j f', i=size),
        ],
        axis=-1,
      )
    kept = 1.0 - drop.astype(source.dtype)
    return channels * kept[:, None, None, None], context * kept[:, None, None]
