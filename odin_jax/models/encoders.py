"""The frozen networks: an autoencoder and, in some configs, an image encoder.

What `config.autoencoder.kind` and `config.image_encoder.kind` can name:

  pca   patches by principal components, fitted to the records (autoencoder)
  pixels  patches as they are (autoencoder)
  kl    Stable Diffusion's autoencoder (vae), from a checkpoint
  none  no such network; a U-Net that was ported without an autoencoder can be
        exported again, but neither trained nor sampled from
  clip  CLIP's vision tower (image_encoder), from a checkpoint
"""

from typing import Any, Mapping

import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, UInt8
import numpy as np

from odin_jax import sharding
from odin_jax.models import autoencoder, image_encoder, vae
from odin_jax.shared import posed_pair

Config = Mapping[str, Any]
AUTOENCODERS = ('pca', 'pixels', 'kl')
IMAGE_ENCODERS = ('none', 'clip')
# What `config.encoders_dtype` can be.
HELD = ('float32', 'compute')


@flax.struct.dataclass
class Encoders:
  """A pytree, so it can be an argument of a jitted function.

  Attributes:
    autoencoder: images to latents and back: a PatchPca or a KlAutoencoder.
    image: images to embeddings: an ImageEncoder, or None.
  """

  autoencoder: Any
  image: Any


def _settings(section: Config) -> dict[str, Any]:
  return {name: value for name, value in section.items() if name != 'kind'}


def are_pretrained(config: Config) -> bool:
  """Whether the encoders come from a checkpoint; else they can be fitted."""
  return (
    config['autoencoder']['kind'] == 'kl'
    or config['image_encoder']['kind'] == 'clip'
  )


def latent_channels(config: Config) -> int:
  """Channels of a latent."""
  settings = config['autoencoder']
  if settings['kind'] == 'pixels':
    return 3 * settings['patch_px'] ** 2
  return settings[
    'channels' if settings['kind'] == 'pca' else 'latent_channels'
  ]


def latent_size(config: Config) -> int:
  """Side of the latent grid."""
  settings = config['autoencoder']
  if settings['kind'] in ('pca', 'pixels'):
    return config['image_size_px'] // settings['patch_px']
  return config['image_size_px'] // vae.downsampling(settings['channel_mult'])


def image_width(config: Config) -> int:
  """Width of the embeddings that the model takes; 0 if it takes none."""
  return config['image_encoder'].get('projection', 0)


def latents(
  frozen: Encoders,
  images: UInt8[Array, 'b s s 3'] | None,
  encoded: posed_pair.Encoded | None,
  noise: Float[Array, 'b n n c'] | None = None,
) -> Float[Array, 'b n n c']:
  """Latents of views, which may be encoded already.

  Args:
    frozen: the encoders.
    images: the views, sRGB; None where they are encoded.
    encoded: the views, or None.
    noise: see `vae.KlAutoencoder.encode`.
  """
  if encoded is None:
    return frozen.autoencoder.encode(images / 255.0, noise)
  return frozen.autoencoder.sample(encoded.moments, noise)


def embedding(
  frozen: Encoders,
  images: UInt8[Array, 'b s s 3'] | None,
  encoded: posed_pair.Encoded | None,
) -> Float[Array, 'b d']:
  """Embeddings of views, which may be encoded already; see `latents`."""
  if encoded is None:
    return frozen.image.encode(images / 255.0)
  return encoded.embedding.astype(jnp.float32)


def encode_views(
  frozen: Encoders, images: UInt8[Array, 'b s s 3']
) -> posed_pair.Encoded:
  """Views as `latents` and `embedding` take them; of a `kl` autoencoder."""
  values = images / 255.0
  embedded = None
  if frozen.image is not None:
    # The network computes in that type, so that no bit is lost.
    embedded = frozen.image.encode(values).astype(frozen.image.dtype)
  return posed_pair.Encoded(frozen.autoencoder.moments(values), embedded)


def encoded_shapes(config: Config) -> dict[str, tuple[int, ...]]:
  """Shapes of the fields of one encoded view."""
  size = latent_size(config)
  shapes = {'moments': (size, size, 2 * latent_channels(config))}
  if image_width(config):
    shapes['embedding'] = (image_width(config),)
  return shapes


def _assemble(config: Config, make_kl: Any, make_clip: Any) -> Encoders:
  make = {
    'pca': lambda patch_px, channels, **_: autoencoder.abstract(
      patch_px=patch_px, channels=channels
    ),
    'pixels': lambda patch_px, **_: autoencoder.abstract(
      patch_px=patch_px, channels=3 * patch_px**2
    ),
    'kl': lambda **settings: make_kl(settings),
    'clip': lambda **settings: make_clip(settings),
    'none': lambda **_: None,
  }
  first, second = (
    make[section['kind']](**_settings(section))
    for section in (config['autoencoder'], config['image_encoder'])
  )
  return Encoders(autoencoder=first, image=second)


def abstract(config: Config) -> Encoders:
  """The shapes of both, to restore a checkpoint into."""
  shapes = _assemble(
    config,
    lambda settings: vae.abstract(settings, dtype=config['dtype']),
    lambda settings: image_encoder.abstract(settings, dtype=config['dtype']),
  )
  return held(shapes, config)


def held_dtype(config: Config) -> str:
  """Of the kernels of a config's encoders; see configs/train.py."""
  # Ported checkpoints, and earlier ones, do not say it.
  dtype = config.get('encoders_dtype', 'float32')
  return config['dtype'] if dtype == 'compute' else dtype


def held(frozen: Encoders, config: Config) -> Encoders:
  """The encoders, or their shapes, with kernels as `encoders_dtype` has them.

  Layers cast kernels to the dtype that they compute in: of networks that
  compute in bfloat16 kernels in bfloat16 make no difference to any bit.
  """
  dtype = held_dtype(config)

  def hold(path: tuple[Any, ...], leaf: Any) -> Any:
    if getattr(path[-1], 'key', None) != 'kernel':
      return leaf
    if isinstance(leaf, jax.ShapeDtypeStruct):
      return leaf.update(dtype=dtype)
    return leaf.astype(dtype)

  return jax.tree_util.tree_map_with_path(hold, frozen)


def shardings(config: Config, mesh: sharding.AnyMesh) -> Any:
  """Where every array of the encoders lives, as `encoders_split` has it.

  Ported checkpoints, and earlier ones, do not say it: on every device.
  """
  shapes = abstract(config)
  if config.get('encoders_split', False):
    return sharding.frozen_shardings(shapes, mesh)
  return jax.tree.map(lambda _: sharding.replicated(mesh), shapes)


def num_fit_images(config: Config) -> int:
  """How many images `fit` wants; patches as they are need to see but one."""
  return config['autoencoder'].get('fit_images', 1)


def fit(config: Config, images: UInt8[np.ndarray, 'n s s 3']) -> Encoders:
  """Encoders that need no checkpoint, fitted to images."""
  settings = _settings(config['autoencoder'])
  if config['autoencoder']['kind'] == 'pixels':
    return Encoders(autoencoder=autoencoder.pixels(**settings), image=None)
  settings.pop('fit_images')
  return Encoders(autoencoder=autoencoder.fit(images, **settings), image=None)


def random(config: Config) -> Encoders:
  """Random networks: for trying the machinery, they encode nothing useful."""
  seed = config['seed']
  return _assemble(
    config,
    lambda settings: vae.random(settings, seed, dtype=config['dtype']),
    lambda settings: image_encoder.random(
      settings, seed, dtype=config['dtype']
    ),
  )
