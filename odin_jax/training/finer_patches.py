"""A model of spheres that goes on at a higher resolution than it learned at.

Its networks see the patches of a picture, and the picture is blended of the
source at full resolution (`odin_jax.models.multisphere`). With patches twice as
wide on pictures twice as large the grid stays the same, and so does all but what
looks at pixels or makes them up: the first layers see the mean of the pixels
that one pixel was before, the last one gives each of them what that one had.
So a model of 64 px is one of 128 px at once, sharp where the source is.
"""

from typing import Any, Mapping

import jax
import jax.numpy as jnp
import numpy as np

from odin_jax import sharding
from odin_jax.models import odin

Config = Mapping[str, Any]
_COLOURS = 3


def factor(config: Config, saved_config: Config) -> int:
  """How many times as wide patches are; 1 where that is not all that differs."""
  here, there = config['autoencoder'], saved_config['autoencoder']
  if not (odin.has_spheres(config) and odin.has_spheres(saved_config)):
    return 1
  if {**there, 'patch_px': here.get('patch_px')} != here:
    return 1
  wider, rest = divmod(here['patch_px'], there['patch_px'])
  return wider if wider and not rest else 1


def _pixels_before(patch_px: int, wider: int) -> np.ndarray:
  """Of every number of a wider patch, that of the patch before."""
  y, x, colour = np.indices((patch_px * wider, patch_px * wider, _COLOURS))
  place = (y // wider) * patch_px + x // wider
  return (place * _COLOURS + colour).reshape(-1)


def widened(params: Any, saved_config: Config, wider: int) -> Any:
  """Parameters for patches so many times as wide.

  Args:
    params: of a model of `saved_config`.
    saved_config: a whole training config.
    wider: how many times.
  """
  before = _pixels_before(saved_config['autoencoder']['patch_px'], wider)
  count = len(before) // wider**2
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
      own = own[:, :, before] / wider**2
      return jnp.concatenate([first, own, last], axis=2)
    if name in outputs:
      own, last = jnp.split(leaf, [count], axis=-1)
      return jnp.concatenate([own[..., before], last], axis=-1)
    return leaf

  return jax.tree_util.tree_map_with_path(of, params)
