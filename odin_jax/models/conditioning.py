"""What the denoiser is told: the source view and the relative pose.

Three kinds, all with the source latent beside the noisy one as in
Zero-1-to-3 (2303.11328):

  token    the context is one token made of `target2source` and the field of
           view;
  plucker  adds rays. Every latent pixel of the target comes with its ray, and
           the context holds one more token per latent pixel of the source,
           with its ray. Rays of both cameras are given in the axes of the
           target's, so that attention compares like with like;
  sweep    adds the source as seen from the target on spheres of a few
           distances (`odin_jax.models.sweep`), encoded, with the share of
           every latent pixel that the source sees.
"""

from einops import rearrange
from flax import nnx
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from odin_jax.models import rays

KINDS = ('token', 'plucker', 'sweep')


class Conditioning(nnx.Module):
  """Channels to concatenate with the noisy latent, and a context of tokens.

  Args:
    kind: one of `KINDS`.
    latent_channels: of the autoencoder.
    context_dim: width of the context's tokens.
    fourier_bands: frequencies of the rays' Fourier features.
    sweep_distances: number of distances of a sweep.
  """

  def __init__(
    self,
    *,
    kind: str,
    latent_channels: int,
    context_dim: int,
    fourier_bands: int,
    sweep_distances: int,
    rngs: nnx.Rngs,
  ):
    if kind not in KINDS:
      raise ValueError(f'conditioning {kind!r} is none of {KINDS}')
    self.kind = kind
    self.fourier_bands = fourier_bands
    self.pose1 = nnx.Linear(13, context_dim, rngs=rngs)
    self.pose2 = nnx.Linear(context_dim, context_dim, rngs=rngs)
    self.channels = latent_channels
    if kind != 'token':
      width = rays.fourier_width(6, fourier_bands)
      self.source1 = nnx.Linear(latent_channels + width, context_dim, rngs=rngs)
      self.source2 = nnx.Linear(context_dim, context_dim, rngs=rngs)
      self.channels += width
    if kind == 'sweep':
      self.channels += sweep_distances * (latent_channels + 1)

  def __call__(
    self,
    source: Float[Array, 'b n n c'],
    swept: Float[Array, 'b n n s'],
    target2source: Float[Array, 'b 3 4'],
    fov_deg: Float[Array, 'b'],
    drop: Bool[Array, 'b'],
  ) -> tuple[Float[Array, 'b n n e'], Float[Array, 'b m d']]:
    """Conditions of every example.

    Args:
      source: latent of the source view.
      swept: latents of the sweep and what the source sees; no channels but
        for the kind `sweep`.
      target2source: relative pose, scene units.
      fov_deg: full field of view of both views.
      drop: True gives the null condition of classifier-free guidance: zeros.
    """
    pose = jnp.concatenate(
      [target2source.reshape(-1, 12), jnp.deg2rad(fov_deg)[:, None]], axis=-1
    )
    context = self.pose2(nnx.silu(self.pose1(pose)))[:, None]
    channels = jnp.concatenate([source, swept], axis=-1)
    if self.kind != 'token':
      target_rays, tokens = self._rays(source, target2source, fov_deg)
      channels = jnp.concatenate([channels, target_rays], axis=-1)
      context = jnp.concatenate([context, tokens], axis=1)
    kept = 1.0 - drop.astype(source.dtype)
    return channels * kept[:, None, None, None], context * kept[:, None, None]

  def _rays(
    self, source: Array, target2source: Array, fov_deg: Array
  ) -> tuple[Array, Array]:
    """Features of the target's rays, and tokens of the source's."""
    size = source.shape[1]
    directions = rays.camera_rays(fov_deg, size)
    target = jnp.pad(directions, ((0, 0), (0, 0), (0, 3)))
    target = rays.fourier_features(target, self.fourier_bands)
    tokens = rays.plucker(directions, rays.inverse(target2source))
    tokens = rays.fourier_features(tokens, self.fourier_bands)
    latents = rearrange(source, 'b i j c -> b (i j) c')
    tokens = jnp.concatenate([latents, tokens], axis=-1)
    tokens = self.source2(nnx.silu(self.source1(tokens)))
    return rearrange(target, 'b (i j) f -> b i j f', i=size), tokens
