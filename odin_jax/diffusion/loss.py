"""The motion-masked denoising loss.

With e the squared error of the prediction at a pixel (mean over channels) and
M = sigmoid(mask logit) in [0, 1] the network's own weight for it,

  loss = mean(M e) + lambda aux(M)      aux(M) = -mean(log M)  or  mean((1-M)^2)

per example; means run over pixels. For the first form the optimum of a pixel
is M = min(1, lambda / e): the mask is inert where lambda >= e and collapses as
lambda -> 0. For the second it is M = max(0, 1 - e / (2 lambda)). The paper
(2412.07770) leaves the form of aux open.

The baseline without a mask, mean(e), is the limit lambda -> inf. It has a name,
`none`, because inf itself is of no use as a setting: inf * 0 is not a number,
and JSON, in which checkpoints keep their config, has no inf.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

# aux of a pixel from the logit of its M, finite for all logits.
_PENALTIES = {
  'log': lambda logit: -jax.nn.log_sigmoid(logit),
  'square': lambda logit: jnp.square(jax.nn.sigmoid(-logit)),
}
AUXILIARIES = (*_PENALTIES, 'none')


def squared_error(
  output: Float[Array, 'b h w c'], target: Float[Array, 'b h w c']
) -> Float[Array, 'b h w']:
  """e of every pixel, in float32."""
  difference = output.astype(jnp.float32) - target.astype(jnp.float32)
  return jnp.square(difference).mean(axis=-1)


def masked_loss(
  error: Float[Array, 'b h w'],
  mask_logit: Float[Array, 'b h w'],
  *,
  mask_lambda: float,
  auxiliary: str,
) -> Float[Array, 'b']:
  """Loss of every example, in float32; the caller reduces.

  Args:
    error: e of every pixel.
    mask_logit: logit of M.
    mask_lambda: lambda.
    auxiliary: `log`, `square`, or `none` for mean(e), whatever M and lambda.

  Raises:
    ValueError: an unknown auxiliary.
  """
  if auxiliary not in AUXILIARIES:
    raise ValueError(f'auxiliary {auxiliary!r} is none of {AUXILIARIES}')
  error = error.astype(jnp.float32)
  if auxiliary == 'none':
    return error.mean(axis=(1, 2))
  logit = mask_logit.astype(jnp.float32)
  penalty = _PENALTIES[auxiliary](logit)
  mask = jax.nn.sigmoid(logit)
  return (mask * error + mask_lambda * penalty).mean(axis=(1, 2))
