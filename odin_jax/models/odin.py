"""The assembled model: conditioning and U-Net, built from a config."""

from typing import Any, Mapping

from einops import rearrange, reduce
from flax import nnx
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, UInt8

from odin_jax.models import autoencoder, conditioning, sweep, unet

Config = Mapping[str, Any]
# Arguments of `conditioning.Conditioning`, without `drop`.
Condition = dict[str, Array]


def condition(
  vae: autoencoder.PatchPca,
  config: Config,
  source_images: UInt8[Array, 'b s s 3'],
  target2source: Float[Array, 'b 3 4'],
  fov_deg: Float[Array, 'b'],
) -> Condition:
  """What the model is told of every example, computed once per pair."""
  images = source_images / 255.0
  source = vae.encode(images)
  swept = source[..., :0]
  if config['model']['conditioning'] == 'sweep':
    swept = _swept(vae, config, images, target2source, fov_deg)
  return dict(
    source=source, swept=swept, target2source=target2source, fov_deg=fov_deg
  )


def _swept(
  vae: autoencoder.PatchPca,
  config: Config,
  images: Array,
  target2source: Array,
  fov_deg: Array,
) -> Array:
  """Latents of the sweep's images and the share of each that is seen."""
  views, seen = sweep.sweep(
    images, target2source, fov_deg, config['model']['sweep_distances']
  )
  count, size = views.shape[1], latent_size(config)
  latents = vae.encode(rearrange(views, 'b k y x c -> (b k) y x c'))
  latents = rearrange(latents, '(b k) i j c -> b i j (k c)', k=count)
  share = reduce(seen, 'b k (i y) (j x) -> b i j k', 'mean', i=size, j=size)
  return jnp.concatenate([latents, share], axis=-1)


class Odin(nnx.Module):
  """Denoises the target's latent, given the source's and the relative pose.

  Args:
    config: a whole training config; read are `autoencoder.channels` and
      `model`.
    rngs: of the initial parameters.
  """

  def __init__(self, config: Config, *, rngs: nnx.Rngs):
    channels = config['autoencoder']['channels']
    model = config['model']
    self.conditioning = conditioning.Conditioning(
      kind=model['conditioning'],
      latent_channels=channels,
      context_dim=model['unet']['context_dim'],
      fourier_bands=model['fourier_bands'],
      sweep_distances=len(model['sweep_distances']),
      rngs=rngs,
    )
    self.unet = unet.UNet(
      in_channels=channels + self.conditioning.channels,
      out_channels=channels,
      rngs=rngs,
      **model['unet'],
    )

  def __call__(
    self,
    noisy: Float[Array, 'b n n c'],
    timestep: Float[Array, 'b'],
    condition: Condition,
    drop: Bool[Array, 'b'],
  ) -> tuple[Float[Array, 'b n n c'], Float[Array, 'b n n']]:
    """The network's output and the logit of the motion mask."""
    channels, context = self.conditioning(**condition, drop=drop)
    return self.unet(
      jnp.concatenate([noisy, channels], axis=-1), timestep, context
    )


def latent_size(config: Config) -> int:
  """Side of the latent grid."""
  return config['image_size_px'] // config['autoencoder']['patch_px']
