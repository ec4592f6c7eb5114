"""Image patches as latents: their principal components, or all their pixels.

The autoencoder of the `world` recipe is principal component analysis of
image patches, fitted to the records in seconds. With mean mu, orthonormal
components U and standard deviations s of the patches x of the training images,

  encode  z = (x - mu) U / s^p * g        decode  x = mu + (z s^p / g) U^T

for a whitening power p in [0, 1] (1: every component has unit variance, 0:
latents keep the proportions of pixels) and the one gain g that gives the
latents unit variance on average.

Where a model works on pixels the latents are the patches themselves (JiT, Li
and He 2511.13720): mu = 0, U = 1, and a gain that is given.
"""

from typing import Any

from einops import rearrange
import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, UInt8
import numpy as np


@flax.struct.dataclass
class PatchPca:
  """Fitted arrays; a pytree, so it can be an argument of a jitted function.

  Attributes:
    mean: [d] of the patches, values in [-1, 1].
    encoder: [d c] patch -> latent.
    decoder: [c d] latent -> patch.
    patch_px: side of a patch; the latent grid is this much smaller.
  """

  mean: Any
  encoder: Any
  decoder: Any
  patch_px: int = flax.struct.field(pytree_node=False)

  # Latents have unit variance as they are.
  scale = 1.0

  def encode(
    self,
    images: Float[Array, 'b s s 3'],
    noise: Float[Array, 'b n n c'] | None = None,
  ) -> Float[Array, 'b n n c']:
    """Latents of sRGB images, values in [0, 1]; `noise` makes no difference."""
    del noise
    return (_patches(images * 2 - 1, self.patch_px) - self.mean) @ self.encoder

  def decode(self, latents: Float[Array, 'b n n c']) -> Float[Array, 'b s s 3']:
    """Images in [0, 1] of latents."""
    decoded = latents @ self.decoder + self.mean
    p = self.patch_px
    images = rearrange(
      decoded, 'b i j (y x k) -> b (i y) (j x) k', y=p, x=p, k=3
    )
    return jnp.clip(images / 2 + 0.5, 0, 1)


def _patches(images: Array | np.ndarray, patch_px: int) -> Array | np.ndarray:
  return rearrange(
    images, 'b (i y) (j x) k -> b i j (y x k)', y=patch_px, x=patch_px
  )


def abstract(*, patch_px: int, channels: int) -> PatchPca:
  """The shapes of a fitted autoencoder, to restore one into."""
  width = 3 * patch_px**2
  return PatchPca(
    mean=jax.ShapeDtypeStruct((width,), jnp.float32),
    encoder=jax.ShapeDtypeStruct((width, channels), jnp.float32),
    decoder=jax.ShapeDtypeStruct((channels, width), jnp.float32),
    patch_px=patch_px,
  )


def pixels(*, patch_px: int, gain: float) -> PatchPca:
  """The autoencoder whose latents are the patches, values in [-gain, gain]."""
  width = 3 * patch_px**2
  identity = jnp.eye(width, dtype=jnp.float32)
  return PatchPca(
    mean=jnp.zeros(width, jnp.float32),
    encoder=identity * gain,
    decoder=identity / gain,
    patch_px=patch_px,
  )


def fit(
  images: UInt8[np.ndarray, 'n s s 3'],
  *,
  patch_px: int,
  channels: int,
  whitening: float,
) -> PatchPca:
  """Fits the autoencoder to images.

  Args:
    images: sRGB; their side is divisible by `patch_px`.
    patch_px: side of a patch.
    channels: components kept.
    whitening: the power p of the module's docstring.
  """
  rows = _patches(images.astype(np.float64) / 127.5 - 1, patch_px)
  rows = rows.reshape(-1, rows.shape[-1])
  mean = rows.mean(axis=0)
  variances, components = np.linalg.eigh(np.cov(rows.T, ddof=0))
  # The sign of an eigenvector is arbitrary: fix it, so that equal images give
  # equal latents on every machine.
  components = components[:, ::-1][:, :channels]
  components = components * np.where(components.sum(axis=0) < 0, -1.0, 1.0)
  deviations = np.sqrt(np.maximum(variances[::-1][:channels], 1e-6))
  scales = deviations**whitening
  scales = scales * np.sqrt(np.mean((deviations / scales) ** 2))
  return PatchPca(
    mean=jnp.asarray(mean, jnp.float32),
    encoder=jnp.asarray(components / scales, jnp.float32),
    decoder=jnp.asarray((components * scales).T, jnp.float32),
    patch_px=patch_px,
  )
