"""What a Stable Diffusion checkpoint lacks of ours, and what it starts as.

As Zero-1-to-3 started from an image-conditioned Stable Diffusion
(cvlab-columbia/zero123 `main.py`, "Check if we need to port weights from 4ch
input to 8ch", and `ldm/models/diffusion/ddpm.py`, `cc_projection`): what is
new adds nothing to the output at first.
"""

from jaxtyping import Float, Shaped
import numpy as np

_SEED = 0


def first_convolution(
  kernel: Shaped[np.ndarray, 'h w n outputs'], inputs: int
) -> Shaped[np.ndarray, 'h w inputs outputs']:
  """The kernel with zeros for the input channels that are new."""
  added = inputs - kernel.shape[2]
  return np.pad(kernel, ((0, 0), (0, 0), (0, added), (0, 0)))


def last_layer(
  parameter: Shaped[np.ndarray, '*b outputs'],
) -> Shaped[np.ndarray, '*b outputs_and_mask']:
  """The kernel or bias with zeros for the motion mask's channel, the last."""
  return np.pad(parameter, [(0, 0)] * (parameter.ndim - 1) + [(0, 1)])


def pose_projection(
  image_width: int, pose_width: int, outputs: int
) -> dict[str, Float[np.ndarray, '...']]:
  """`kernel` [image_width + pose_width, outputs] and `bias` of the projection.

  The identity on the image's embedding; for the pose what torch gives a linear
  layer, uniform in +-1 / sqrt(inputs), here from a fixed seed.
  """
  # As `odin_jax.models.conditioning.zero123_init`, which needs jax; porting
  # does not.
  bound = (image_width + pose_width) ** -0.5
  pose = np.random.default_rng(_SEED).uniform(
    -bound, bound, (pose_width, outputs)
  )
  kernel = np.concatenate([np.eye(image_width, outputs), pose])
  return {
    'kernel': kernel.astype(np.float32),
    'bias': np.zeros(outputs, np.float32),
  }
