"""A few convolutions over a picture that was blended of what the sources show.

The denoiser has one answer per patch, and where it is not sure of a distance
the blend is a mean of shifted copies. What can be mended in the picture itself,
seams between patches and what such a mean blurs, is left to a small network
that sees pixels, as view synthesis by warping has it since Niklaus and Liu
(SynSin, 1912.08804, section 3.3). It starts as if it were not there.
"""

from einops import rearrange
from flax import nnx
import jax.numpy as jnp
from jaxtyping import Array, Float

from odin_jax.models import layers, multisphere

# Pixels along an edge of what the convolutions see as one.
_BLOCK_PX = 2
# Of every pixel: the picture, the made-up share, the spread of distances, t.
_INPUTS = 6
_COLOURS = 3


class Refiner(nnx.Module):
  """Adds to a picture what its pixels and their weights tell.

  Args:
    features: of the convolutions.
    num_timesteps: of the schedule.
    rngs: of the initial parameters.
  """

  def __init__(self, features: int, num_timesteps: int, *, rngs: nnx.Rngs):
    block = _BLOCK_PX**2
    self.num_timesteps = num_timesteps
    self.conv1 = layers.Conv(_INPUTS * block, features, rngs=rngs)
    self.conv2 = layers.Conv(features, features, rngs=rngs)
    self.conv3 = layers.Conv(features, _COLOURS * block, rngs=rngs, zero=True)

  def __call__(
    self, blended: multisphere.Blended, timestep: Float[Array, 'b']
  ) -> Float[Array, 'b s s 3']:
    """The picture as it is to be.

    Args:
      blended: as it is; not empty: its side is a multiple of two.
      timestep: t; at the last one the best picture is the mean of all.
    """
    picture = blended.picture
    t = (timestep / self.num_timesteps)[:, None, None, None]
    t = jnp.broadcast_to(t, (*picture.shape[:3], 1))
    seen = jnp.concatenate(
      [picture * 2 - 1, blended.made_up, blended.spread, t], axis=-1
    )
    x = rearrange(
      seen, 'b (i y) (j x) c -> b i j (y x c)', y=_BLOCK_PX, x=_BLOCK_PX
    )
    x = nnx.silu(self.conv1(x))
    x = nnx.silu(self.conv2(x))
    added = rearrange(
      self.conv3(x),
      'b i j (y x c) -> b (i y) (j x) c',
      y=_BLOCK_PX,
      x=_BLOCK_PX,
    )
    return picture + added


SHARDING = {
  'conv[123]/kernel': (None, None, 'fsdp', 'tensor'),
  'conv[123]/bias': (),
}
