"""The assembled model: conditioning and U-Net, built from a config."""

from typing import Any, Mapping

from flax import nnx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int
import numpy as np

from odin_jax.diffusion import sampler, schedule
from odin_jax.models import autoencoder, conditioning, unet

Config = Mapping[str, Any]


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
    source: Float[Array, 'b n n c'],
    target2source: Float[Array, 'b 3 4'],
    fov_deg: Float[Array, 'b'],
    drop: Bool[Array, 'b'],
  ) -> tuple[Float[Array, 'b n n c'], Float[Array, 'b n n']]:
    """The network's output and the logit of the motion mask."""
    channels, context = self.conditioning(source, target2source, fov_deg, drop)
    return self.unet(
      jnp.concatenate([noisy, channels], axis=-1), timestep, context
    )


def latent_size(config: Config) -> int:
  """Side of the latent grid."""
  return config['image_size_px'] // config['autoencoder']['patch_px']


def alpha_bars(config: Config) -> Float[np.ndarray, 't']:
  """alpha_bar of every timestep of the config's schedule."""
  diffusion = config['diffusion']
  return schedule.alpha_bars(
    diffusion['schedule'],
    diffusion['num_timesteps'],
    zero_terminal_snr=diffusion['zero_terminal_snr'],
  )


def sample(
  model: Odin,
  vae: autoencoder.PatchPca,
  config: Config,
  source_images: Array,
  target2source: Float[Array, 'b 3 4'],
  fov_deg: Float[Array, 'b'],
  seeds: Int[Array, 'b'],
  *,
  num_steps: int,
  guidance: float,
) -> Float[Array, 'b s s 3']:
  """One DDIM sample of the target view per example, values in [0, 1].

  Args:
    model: with the parameters to use.
    vae: the autoencoder that the model was trained with.
    config: the training config.
    source_images: [b s s 3] uint8 sRGB.
    target2source: relative poses, scene units.
    fov_deg: full field of view of both views.
    seeds: of each example's noise, so that a sample does not depend on the
      batch it is drawn in.
    num_steps: of DDIM.
    guidance: scale of classifier-free guidance; 1 is none.
  """
  source = vae.encode(source_images)
  diffusion = config['diffusion']

  def denoiser(dropped: bool) -> sampler.DenoiseFn:
    drop = jnp.full(source.shape[0], dropped)
    return lambda x, t: model(x, t, source, target2source, fov_deg, drop)[0]

  noise = jax.vmap(
    lambda seed: jax.random.normal(jax.random.key(seed), source.shape[1:])
  )(seeds)
  latents = sampler.ddim(
    sampler.guided(denoiser(False), denoiser(True), guidance),
    noise,
    alpha_bar=alpha_bars(config),
    steps=sampler.timesteps(
      num_steps, diffusion['num_timesteps'], spacing=diffusion['spacing']
    ),
    prediction=diffusion['prediction'],
  )
  return vae.decode(latents)
