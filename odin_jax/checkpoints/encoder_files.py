"""The encoders of a run, which no step changes: one file for all checkpoints.

`encoders/SHA256.safetensors` in the workdir holds their arrays under their
slash-separated paths, such as `autoencoder/mean`; its name is the digest of its
content, which every checkpoint has among its checksums.
"""

import hashlib
import os
import pathlib
from typing import Any

import jax
import ml_dtypes
import numpy as np
import safetensors
import safetensors.numpy

from odin_jax import sharding
from odin_jax.models import encoders
from odin_jax.shared import errors, files

FOLDER = 'encoders'
_DTYPES = {
  'BOOL': np.bool_,
  'U8': np.uint8,
  'I32': np.int32,
  'U32': np.uint32,
  'F16': np.float16,
  'BF16': ml_dtypes.bfloat16,
  'F32': np.float32,
}
_TEMPORARY = f'{files.TEMPORARY}encoders'
_OTHERWISE = (
  'copy it from where this workdir was copied from, or make a new --workdir'
)


def _path(workdir: pathlib.Path, sha256: str) -> pathlib.Path:
  return workdir / FOLDER / f'{sha256}.safetensors'


def write(workdir: pathlib.Path, frozen: encoders.Encoders) -> str:
  """Puts the encoders into a workdir, unless they are there; their digest.

  What a killed run has not finished is written over, and so is a file that is
  there, should it be damaged.

  Raises:
    ValueError: not all of their numbers are finite.
    OSError: they cannot be written.
  """
  arrays = {
    # Of others safetensors would write the bytes in the order of memory.
    name: np.asarray(leaf, order='C')
    for name, leaf in sharding.by_path(frozen).items()
  }
  for name, array in arrays.items():
    if not np.isfinite(array).all():
      raise ValueError(f'{FOLDER}/{name} is not all finite')
  temporary = workdir / FOLDER / _TEMPORARY
  temporary.parent.mkdir(exist_ok=True)
  safetensors.numpy.save_file(arrays, temporary)
  with open(temporary, 'rb+') as file:
    sha256 = hashlib.file_digest(file, 'sha256').hexdigest()
    os.fsync(file.fileno())
  os.replace(temporary, _path(workdir, sha256))
  return sha256


def read(
  workdir: pathlib.Path,
  sha256: str,
  abstract: encoders.Encoders,
  where: Any,
) -> encoders.Encoders:
  """The encoders of a checkpoint.

  Args:
    workdir: of the run.
    sha256: their digest.
    abstract: shapes and types of their arrays.
    where: they go: a sharding, or a tree of them.

  Raises:
    errors.UserError: they are not there, damaged or of another config.
  """
  path = _path(workdir, sha256)
  if not path.is_file():
    raise errors.UserError(
      f'{path}: no such file; it holds the encoders of the checkpoints here; '
      + _OTHERWISE
    )
  content = path.read_bytes()
  if hashlib.sha256(content).hexdigest() != sha256:
    raise errors.UserError(
      f'{path}: is not as it was written, as its name tells: the disk or a copy '
      f'damaged it; {_OTHERWISE}'
    )
  tensors = dict(safetensors.deserialize(content))
  expected = sharding.by_path(abstract)
  if tensors.keys() != expected.keys():
    raise errors.UserError(
      f'{path}: has other arrays than the encoders of this config; give the '
      'config that it was trained by'
    )

  def place(keys: Any, leaf: Any, of_leaf: jax.sharding.Sharding) -> jax.Array:
    name = sharding.path_name(keys)
    tensor = tensors[name]
    array = np.frombuffer(tensor['data'], _DTYPES[tensor['dtype']])
    if tuple(tensor['shape']) != leaf.shape:
      raise errors.UserError(
        f'{path}: {name} is {tensor["shape"]}, where this config has '
        f'{list(leaf.shape)}; give the config that it was trained by'
      )
    array = array.reshape(leaf.shape).astype(leaf.dtype)
    return jax.make_array_from_callback(
      leaf.shape, of_leaf, lambda index: array[index]
    )

  return jax.tree_util.tree_map_with_path(
    place, abstract, jax.tree.broadcast(where, abstract)
  )
