"""LPIPS, version 0.1: a learned perceptual distance between two images.

Zhang, Isola, Efros, Shechtman, Wang, "The unreasonable effectiveness of deep
features as a perceptual metric" (2018, 1801.03924), equation 1, and
github.com/richzhang/PerceptualSimilarity:

  d(x, y) = sum_l mean_hw  w_l . (f_l(x) - f_l(y))^2

for the features f_l of five layers of an AlexNet or a VGG16 that was trained
to classify images, normalised to length 1 over channels, and learned weights
w_l >= 0.

The features and weights are those of torchvision and of the package `lpips`:
`load` refuses a file of any others, because a score of theirs is no LPIPS.
"""

import os
import pathlib
from typing import Any, Mapping, NamedTuple

import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float
import numpy as np
import safetensors

from odin_jax.models import lpips_files, ops
from odin_jax.shared import errors, files

Images = Float[Array, 'b h w 3']

# What images in [-1, 1] are normalised with: `ScalingLayer` of lpips.
_SHIFT = (-0.030, -0.088, -0.188)
_SCALE = (0.458, 0.448, 0.450)
_EPSILON = 1e-10


class Conv(NamedTuple):
  """A convolution, followed by a ReLU."""

  outputs: int
  size: int = 3
  stride: int = 1
  padding: int = 1


class Net(NamedTuple):
  """The layers of a backbone up to the last one that is compared.

  Attributes:
    stages: the convolutions up to one compared layer, then to the next, ...
    pooled: stages that start with a max-pooling of stride 2.
    pool_px: side of the pooling's window.
    min_px: side of the smallest image of which every stage sees something.
  """

  stages: tuple[tuple[Conv, ...], ...]
  pooled: tuple[int, ...]
  pool_px: int
  min_px: int


NETS = {
  'alex': Net(
    stages=(
      (Conv(64, size=11, stride=4, padding=2),),
      (Conv(192, size=5, padding=2),),
      (Conv(384),),
      (Conv(256),),
      (Conv(256),),
    ),
    pooled=(1, 2),
    pool_px=3,
    min_px=31,
  ),
  'vgg': Net(
    stages=(
      (Conv(64),) * 2,
      (Conv(128),) * 2,
      (Conv(256),) * 3,
      (Conv(512),) * 3,
      (Conv(512),) * 3,
    ),
    pooled=(1, 2, 3, 4),
    pool_px=2,
    min_px=16,
  ),
}


def _max_pool(x: Array, size: int) -> Array:
  return jax.lax.reduce_window(
    x, -jnp.inf, jax.lax.max, (1, size, size, 1), (1, 2, 2, 1), 'VALID'
  )


def _length(x: Float[Array, 'b h w c']) -> Float[Array, 'b h w 1']:
  """Over channels; where all of them are 0 the gradient is 0, and no NaN."""
  squared = jnp.sum(jnp.square(x), axis=-1, keepdims=True)
  return jnp.where(squared > 0, jnp.sqrt(jnp.where(squared > 0, squared, 1)), 0)


@flax.struct.dataclass
class Lpips:
  """A pytree, so that a jitted function can be given it.

  Attributes:
    params: float32 arrays by path, see `shapes`.
    net: a key of `NETS`.
  """

  params: Any
  net: str = flax.struct.field(pytree_node=False)

  def distance(self, prediction: Images, truth: Images) -> Float[Array, 'b']:
    """0 but for rounding for equal images, more for less alike ones.

    Args:
      prediction: sRGB images, values in [0, 1].
      truth: likewise.

    Raises:
      ValueError: the images are too small for the network.
    """
    smallest = NETS[self.net].min_px
    if min(truth.shape[1:3]) < smallest:
      height, width = truth.shape[1:3]
      raise ValueError(
        f'LPIPS with {self.net} needs images of {smallest} px, '
        f'got {height}x{width}'
      )
    # One pass over both: half as much to compile.
    images = jnp.concatenate([prediction, truth])
    # A score must not depend on how coarsely a device multiplies.
    with jax.default_matmul_precision('highest'):
      return sum(
        self._compare(stage, *jnp.split(x, 2))
        for stage, x in enumerate(self._features(images))
      )

  def _features(self, images: Images) -> list[Array]:
    """The compared layers, normalised to length 1 over channels."""
    net = NETS[self.net]
    x = (images * 2 - 1 - jnp.asarray(_SHIFT)) / jnp.asarray(_SCALE)
    features, index = [], 0
    for stage, convs in enumerate(net.stages):
      if stage in net.pooled:
        x = _max_pool(x, net.pool_px)
      for conv in convs:
        kernel = self.params[f'convs/{index}/kernel']
        padding = (conv.padding, conv.padding)
        x = ops.conv2d(
          x, kernel, stride=conv.stride, padding=(padding, padding)
        )
        x = jax.nn.relu(x + self.params[f'convs/{index}/bias'])
        index += 1
      length = _length(x)
      features.append(x / (length + _EPSILON))
    return features

  def _compare(self, stage: int, x: Array, y: Array) -> Float[Array, 'b']:
    weighted = jnp.square(x - y) @ self.params[f'heads/{stage}/kernel']
    return jnp.mean(weighted, axis=(1, 2, 3))


def shapes(net: str) -> dict[str, tuple[int, ...]]:
  """Shape of every parameter, by path."""
  stages = NETS[net].stages
  by_path, inputs = {}, 3
  for index, conv in enumerate(conv for convs in stages for conv in convs):
    size = conv.size
    by_path[f'convs/{index}/kernel'] = (size, size, inputs, conv.outputs)
    by_path[f'convs/{index}/bias'] = (conv.outputs,)
    inputs = conv.outputs
  for stage, convs in enumerate(stages):
    by_path[f'heads/{stage}/kernel'] = (convs[-1].outputs, 1)
  return by_path


def _read(
  path: pathlib.Path,
) -> tuple[dict[str, str], dict[str, np.ndarray]]:
  try:
    with safetensors.safe_open(path, framework='numpy') as file:
      params = {name: file.get_tensor(name) for name in file.keys()}
      return file.metadata() or {}, params
  except safetensors.SafetensorError as error:
    raise errors.UserError(
      f'{path}: cannot be read ({error}); write it again with '
      'odin_jax.port_weights'
    ) from error


def _fault(
  metadata: Mapping[str, str], params: Mapping[str, np.ndarray]
) -> str | None:
  """What is wrong with a file, if anything is."""
  net = metadata.get('net')
  if metadata.get('format') != lpips_files.FORMAT or net not in NETS:
    return f'no {lpips_files.FORMAT} file of a known network'
  unpublished = lpips_files.unpublished(net, metadata)
  if unpublished is not None:
    return f'its {unpublished} is not that of the published {net} weights'
  if {name: param.shape for name, param in params.items()} != shapes(net):
    return f'its arrays are not those of {net}'
  if lpips_files.content_sha256(params) != metadata.get('content_sha256'):
    return 'its arrays are not those that were written'
  return None


def load(path: str | os.PathLike[str]) -> Lpips:
  """LPIPS with the weights in a file of `odin_jax.porting.lpips.write`.

  Raises:
    errors.UserError: there is no such file, it cannot be read, or it does not
      hold the published weights.
  """
  path = files.require_file(
    path, 'a file of LPIPS weights, which odin_jax.port_weights writes,'
  )
  metadata, params = _read(path)
  fault = _fault(metadata, params)
  if fault is not None:
    raise errors.UserError(
      f'{path}: {fault}; write it again with odin_jax.port_weights'
    )
  return Lpips(
    params={name: jnp.asarray(param) for name, param in params.items()},
    net=metadata['net'],
  )
