"""A model of spheres that goes on at another resolution than it learned at.

Its networks see the patches of a picture, and the picture is blended of the
source at full resolution (`odin_jax.models.multisphere`). With patches twice as
wide on pictures twice as large the grid stays the same, and so does all but what
looks at pixels or makes them up: the first layers see a patch as it would have
been at the size that they know, the last one makes up a patch of that size,
whose pixels are spread over those that there are. So a model of 64 px is one of
128 px at once, sharp where the source is, and the other way round. A refiner
sees pixels, and stays as it was.
"""

from typing import Any, Mapping

import jax
import jax.numpy as jnp
import numpy as np

from odin_jax import sharding
from odin_jax.models import odin

Config = Mapping[str, Any]
_COLOURS = 3
# Accelerators round what they multiply, unless told not to.
_EXACT = jax.lax.Precision.HIGHEST


def differs_alone(config: Config, saved_config: Config) -> bool:
  """Whether the side of patches is what differs between two autoencoders."""
  here, there = config['autoencoder'], saved_config['autoencoder']
  return (
    odin.has_spheres(config)
    and odin.has_spheres(saved_config)
    and here != there
    and here == {**there, 'patch_px': here.get('patch_px')}
  )


def _resized(before_px: int, after_px: int) -> np.ndarray:
  """Takes the numbers of a patch to those of the same patch of another size.

  A pixel becomes the mean of what it covers.

  Returns:
    a matrix, [after, before].
  """
  after, before = np.arange(after_px)[:, None], np.arange(before_px)
  ends = np.minimum((after + 1) * before_px, (before + 1) * after_px)
  starts = np.maximum(after * before_px, before * after_px)
  along = np.maximum(ends - starts, 0) / before_px
  return np.kron(np.kron(along, along), np.eye(_COLOURS)).astype(np.float32)


def resized(params: Any, saved_config: Config, patch_px: int) -> Any:
  """Parameters for patches of another side.

  Args:
    params: of a model of `saved_config`.
    saved_config: a whole training config.
    patch_px: the side.
  """
  saved_px = saved_config['autoencoder']['patch_px']
  seen, made = _resized(patch_px, saved_px), _resized(saved_px, patch_px)
  count = _COLOURS * saved_px**2
  names = odin.input_channels(saved_config)
  # Where the numbers of a patch begin among inputs and outputs.
  inputs = {
    'unet/conv_in/kernel': names.index('source.0'),
    'spheres/network/conv_in/kernel': 0,
  }
  outputs = ('unet/conv_out/kernel', 'unet/conv_out/bias')

  def of(path: Any, leaf: jax.Array) -> jax.Array:
    name = sharding.path_name(path)
    if name in inputs:
      first, own, last = jnp.split(
        leaf, [inputs[name], inputs[name] + count], axis=2
      )
      own = jnp.einsum('yxio,ij->yxjo', own, seen, precision=_EXACT)
      return jnp.concatenate([first, own, last], axis=2)
    if name in outputs:
      own, last = jnp.split(leaf, [count], axis=-1)
      own = jnp.matmul(own, made.T, precision=_EXACT)
      return jnp.concatenate([own, last], axis=-1)
    return leaf

  return jax.tree_util.tree_map_with_path(of, params)
