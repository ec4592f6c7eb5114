"""The motion-masked denoising loss.

With e the squared error of the prediction at a pixel (mean over channels) and
M = sigmoid(mask logit) in [0, 1] the network's own weight for it,

  loss = mean(M e) + lambda aux(M)      aux(M) = -mean(log M)  or  mean((1-M)^2)

per example; means run over pixels. For the first form the optimum of a pixel
is M = min(1, lambda / e): the mask is inert where lambda >= e and collapses as
lambda -> 0. The paper (2412.07770) leaves the form of aux open.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

AUXILIARIES = ('log', 'square')


def squared_error(
  output: Float[Array, 'b h w c'], target: Float[Array, 'b h w c']
) -> Float[Array, 'b h w']:
  """e of every pixel."""
  return jnp.square(output - target).mean(axis=-1)


def masked_loss(
  error: Float[Array, 'b h w'],
  mask_logit: Float[Array, 'b h w'],
  *,
  mask_lambda: float,
  auxiliary: str = 'log',
) -> Float[Array, 'b']:
  """Loss of every example; the caller reduces.

  Args:
    error: e of every pixel.
    mask_logit: logit of M.
    mask_lambda: lambda.
    auxiliary: `log` or `square`.
  """
  mask = jax.nn.sigmoid(mask_logit)
  if auxiliary == 'log':
    penalty = -jax.nn.log_sigmoid(mask_logit)
  elif auxiliary == 'square':
    penalty = jnp.square(1 - mask)
  else:
    raise ValueError(f'auxiliary {auxiliary!r} is none of {AUXILIARIES}')
  return (mask * error + mask_lambda * penalty).mean(axis=(1, 2))
