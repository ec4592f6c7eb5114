"""The assembled model: conditioning and U-Net, built from a config."""

from typing import Any, Mapping

from einops import rearrange, reduce
from flax import nnx
import jax.numpy as jnp
from jaxtyping import Array, Float, UInt8

from odin_jax.models import conditioning, encoders, sweep, unet

Config = Mapping[str, Any]
# What the U-Net is told: channels [b n n e] and a context [b m d].
Told = tuple[Array, Array]


def condition(
  frozen: encoders.Encoders,
  config: Config,
  source_images: UInt8[Array, 'b s s 3'],
  target2source: Float[Array, 'b 3 4'],
  fov_deg: Float[Array, 'b'],
  scale: Float[Array, 'b'],
) -> conditioning.Condition:
  """What the frozen encoders make of every example, once per pair.

  Args:
    frozen: the encoders.
    config: a whole training config.
    source_images: sRGB.
    target2source: relative poses, scene units.
    fov_deg: full field of view of both views.
    scale: median depth of the source view, scene units; 0 where not known.
  """
  images = source_images / 255.0
  source = frozen.autoencoder.encode(images)
  swept = source[..., :0]
  if 'sweep' in config['model']['conditioning'].split('+'):
    swept = _swept(frozen, config, images, target2source, fov_deg)
  if config['model']['unscaled_source']:
    # Zero-1-to-3 gives the source's latent without the factor that it gives
    # the target's (ldm/models/diffusion/ddpm.py, get_input).
    source = source / frozen.autoencoder.scale
  embedding = (
    jnp.zeros((len(images), 0))
    if frozen.image is None
    else frozen.image.encode(images)
  )
  return conditioning.Condition(
    source=source,
    image=embedding,
    swept=swept,
    target2source=target2source,
    fov_deg=fov_deg,
    scale=scale,
  )


def _swept(
  frozen: encoders.Encoders,
  config: Config,
  images: Array,
  target2source: Array,
  fov_deg: Array,
) -> Array:
  """Latents of the sweep's images and the share of each that is seen."""
  views, seen = sweep.sweep(
    images, target2source, fov_deg, config['model']['sweep_distances']
  )
  count, size = views.shape[1], encoders.latent_size(config)
  latents = frozen.autoencoder.encode(
    rearrange(views, 'b k y x c -> (b k) y x c')
  )
  latents = rearrange(latents, '(b k) i j c -> b i j (k c)', k=count)
  share = reduce(seen, 'b k (i y) (j x) -> b i j k', 'mean', i=size, j=size)
  return jnp.concatenate([latents, share], axis=-1)


class Odin(nnx.Module):
  """Denoises the target's latent, given the source's and the relative pose.

  Args:
    config: a whole training config; read are `dtype`, `autoencoder`,
      `image_encoder` and `model`.
    rngs: of the initial parameters.
  """

  def __init__(self, config: Config, *, rngs: nnx.Rngs):
    channels = encoders.latent_channels(config)
    model = config['model']
    self.conditioning = conditioning.Conditioning(
      model['conditioning'],
      latent_channels=channels,
      context_dim=model['unet']['context_dim'],
      image_width=encoders.image_width(config),
      fourier_bands=model['fourier_bands'],
      sweep_distances=len(model['sweep_distances']),
      rngs=rngs,
    )
    self.unet = unet.UNet(
      in_channels=channels + self.conditioning.channels,
      out_channels=channels,
      dtype=config['dtype'],
      rngs=rngs,
      **model['unet'],
    )

  def denoise(
    self,
    noisy: Float[Array, 'b n n c'],
    timestep: Float[Array, 'b'],
    told: Told,
  ) -> tuple[Float[Array, 'b n n c'], Float[Array, 'b n n']]:
    """The network's output and the logit of the motion mask.

    Args:
      noisy: x_t.
      timestep: t.
      told: what `conditioning` gives; it does not depend on t, so a sampler
        computes it once.
    """
    channels, context = told
    return self.unet(
      jnp.concatenate([noisy, channels], axis=-1), timestep, context
    )


def init_params(config: Config) -> Any:
  """Fresh parameters, a function of the config's seed alone."""
  model = Odin(config, rngs=nnx.Rngs(config['seed']))
  return nnx.to_pure_dict(nnx.state(model, nnx.Param))


def graph(config: Config) -> nnx.GraphDef:
  """The model without its parameters; makes no arrays."""
  model = nnx.eval_shape(lambda: Odin(config, rngs=nnx.Rngs(0)))
  return nnx.split(model)[0]
