"""The assembled model: conditioning and U-Net, built from a config."""

from typing import Any, Mapping, NamedTuple

from flax import nnx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from odin_jax.models import (
  autoencoder,
  conditioning,
  encoders,
  multisphere,
  refiner,
  unet,
  views,
)
from odin_jax.shared import posed_pair

Config = Mapping[str, Any]
# The entries of `Condition.prepared` that models with spheres have: the views
# that are given, and their latents.
_SPHERES, _LATENTS = 'spheres', 'spheres_latents'


class Cond(NamedTuple):
  """What the U-Net is conditioned on.

  Attributes:
    channels: [b n n e].
    context: [b m d].
    blend: what its picture is blended of; None where it makes all of it up.
  """

  channels: Array
  context: Array
  blend: multisphere.Blend | None = None


class Denoised(NamedTuple):
  """What the network says.

  Attributes:
    output: [b n n c], what the config says that it predicts.
    mask_logit: [b n n], of the motion mask.
    blended: of what the picture was blended, where it was.
  """

  output: Array
  mask_logit: Array
  blended: multisphere.Blended | None = None


def null(cond: Cond) -> Cond:
  """The null condition of classifier-free guidance; the blend stays."""
  channels, context = conditioning.null(cond.channels, cond.context)
  return Cond(channels, context, cond.blend)


def has_spheres(config: Config) -> bool:
  """Whether the model blends its picture of the swept source."""
  return config['model'].get('spheres') is not None


def condition(
  frozen: encoders.Encoders,
  config: Config,
  pairs: posed_pair.PosedPair,
) -> conditioning.Condition:
  """What the frozen encoders make of every example, once per pair.

  Args:
    frozen: the encoders.
    config: a whole training config.
    pairs: a batch; their targets make no difference.
  """
  source = encoders.latents(frozen, pairs.source, pairs.source_encoded)
  prepared = conditioning.prepare(frozen, config, pairs)
  if has_spheres(config):
    prepared[_SPHERES] = given = views.given(pairs)
    prepared[_LATENTS] = views.unflat(
      frozen.autoencoder.encode(views.flat(given.image)), given.image.shape[1]
    )
  if config['model']['unscaled_source']:
    # Zero-1-to-3 gives the source's latent without the factor that it gives
    # the target's (ldm/models/diffusion/ddpm.py, get_input).
    source = source / frozen.autoencoder.scale
  return conditioning.Condition(
    source=source,
    target2source=pairs.target2source,
    fov_deg=pairs.fov_deg,
    median_depth=pairs.median_depth,
    prepared=prepared,
  )


def input_channels(config: Config) -> tuple[str, ...]:
  """Names of the U-Net's input channels: noisy latent, then conditioning.

  Raises:
    ValueError: `conditioning.channel_names` does, or a channel of it has the
      name of one of the noisy latent.
  """
  count = (
    multisphere.noisy_channels(config)
    if has_spheres(config)
    else encoders.latent_channels(config)
  )
  noisy = [f'noisy.{i}' for i in range(count)]
  names = conditioning.channel_names(config)
  if has_spheres(config):
    names += tuple(f'spheres.{x}' for x in multisphere.channel_names(config))
  for name in noisy:
    if name in names:
      raise ValueError(
        f'conditioning {config["model"]["conditioning"]!r}: {name!r} is a '
        'channel of the noisy latent; give the part another name'
      )
  return (*noisy, *names)


class Odin(nnx.Module):
  """Denoises the target's latent, given the source's and the relative pose.

  Args:
    config: a whole training config; read are `dtype`, `autoencoder`,
      `image_encoder` and `model`.
    rngs: of the initial parameters.
  """

  def __init__(self, config: Config, *, rngs: nnx.Rngs):
    self.conditioning = conditioning.Conditioning(config, rngs=rngs)
    self.spheres = (
      multisphere.Multisphere(config, rngs=rngs)
      if has_spheres(config)
      else None
    )
    outputs = encoders.latent_channels(config)
    # Configs of earlier versions have none.
    features = (config['model'].get('spheres') or {}).get('refiner', 0)
    self.refiner = (
      refiner.Refiner(features, config['diffusion']['num_timesteps'], rngs=rngs)
      if features
      else None
    )
    if self.spheres is not None:
      self.patch_px = config['autoencoder']['patch_px']
      self.gain = config['autoencoder']['gain']
      self.noisy_cells = config['model']['spheres']['noisy_cells']
      outputs = multisphere.output_channels(config)
    self.unet = unet.UNet(
      in_channels=len(input_channels(config)),
      out_channels=outputs,
      dtype=config['dtype'],
      rngs=rngs,
      **config['model']['unet'],
    )

  def cond(
    self, condition: conditioning.Condition, drop: conditioning.Drop
  ) -> Cond:
    """What `denoise` takes; it does not depend on the noise or on t.

    Args:
      condition: from `condition`.
      drop: which examples lose what.
    """
    channels, context = self.conditioning(condition, drop)
    if self.spheres is None:
      return Cond(channels, context)
    seen, tokens, parts = self.spheres(
      condition['prepared'][_SPHERES],
      condition['prepared'][_LATENTS],
      condition['fov_deg'],
    )
    channels = jnp.concatenate([channels, seen.astype(channels.dtype)], axis=-1)
    context = jnp.concatenate([context, tokens.astype(context.dtype)], axis=1)
    return Cond(channels, context, parts)

  def denoise(
    self,
    noisy: Float[Array, 'b n n c'],
    timestep: Float[Array, 'b'],
    cond: Cond,
  ) -> Denoised:
    """What the network predicts of a noisy latent.

    Args:
      noisy: x_t.
      timestep: t.
      cond: from `cond`.
    """
    if cond.blend is not None:
      noisy = multisphere.noisy_cells(noisy, self.noisy_cells, self.patch_px)
    output, mask_logit = self.unet(
      jnp.concatenate([noisy, cond.channels], axis=-1), timestep, cond.context
    )
    if cond.blend is None:
      return Denoised(output, mask_logit)
    blended = multisphere.blend(
      output, cond.blend, self.spheres.distances, self.patch_px
    )
    if self.refiner is not None:
      blended = blended._replace(picture=self.refiner(blended, timestep))
    latent = autoencoder.pixels(patch_px=self.patch_px, gain=self.gain).encode(
      blended.picture
    )
    return Denoised(latent, mask_logit, blended)


def init_params(config: Config) -> Any:
  """Fresh parameters, a function of the config's seed alone."""
  model = Odin(config, rngs=nnx.Rngs(config['seed']))
  return nnx.to_pure_dict(nnx.state(model, nnx.Param))


def graph(config: Config) -> nnx.GraphDef:
  """The model without its parameters; makes no arrays.

  Raises:
    ValueError: it has other arrays than parameters, which no checkpoint keeps.
  """
  model = nnx.eval_shape(lambda: Odin(config, rngs=nnx.Rngs(0)))
  graphdef, _, others = nnx.split(model, nnx.Param, ...)
  paths = [path for path, _ in nnx.to_flat_state(others)]
  # An array of jax that is a plain attribute stays behind as a tracer.
  paths += [
    (*path, name)
    for path, module in nnx.iter_modules(model)
    for name, value in vars(module).items()
    if isinstance(value, jax.core.Tracer)
  ]
  if paths:
    names = ', '.join('/'.join(map(str, path)) for path in paths)
    raise ValueError(
      f'{names}: arrays of the model that are no parameters; keep '
      'constants as Python numbers and tuples, and make arrays where they are '
      'used'
    )
  return graphdef


def sharding_rules() -> dict[str, conditioning.Axes]:
  """By its path, the mesh axes of every parameter; for `odin_jax.sharding`."""
  networks = {
    'conditioning': conditioning.sharding_rules(),
    'refiner': refiner.SHARDING,
    'spheres': multisphere.sharding_rules(),
    'unet': unet.SHARDING,
  }
  return {
    f'{network}/(?:{pattern})': axes
    for network, rules in networks.items()
    for pattern, axes in rules.items()
  }
