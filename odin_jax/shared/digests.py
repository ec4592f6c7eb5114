"""By what figures can be told to be of the same data and the same code."""

import hashlib
import pathlib
from typing import Any, Iterable, Iterator

from jaxtyping import UInt8
import numpy as np

from odin_jax.shared import config_files

# What computes, and how: not the tests, nor pages.
_CODE = ('odin_jax/**/*.py', 'odin_jax/**/*.toml', 'configs/*.py')


# Arrays, some of which may be tuples of arrays, or None.
Arrays = Iterable[Any]


def _each(arrays: Arrays) -> Iterator[np.ndarray]:
  for array in arrays:
    if isinstance(array, tuple):
      yield from _each(array)
    elif array is not None:
      yield array


def of_arrays(arrays: Arrays) -> str:
  """SHA-256 of types, shapes and values, in their order."""
  digest = hashlib.sha256()
  for array in _each(arrays):
    digest.update(f'{array.dtype.str}{array.shape}'.encode())
    digest.update(np.ascontiguousarray(array).tobytes())
  return digest.hexdigest()


def of_views(folder: pathlib.Path, first: UInt8[np.ndarray, 'h w 3']) -> str:
  """SHA-256 of the path and the first view that `odin_jax.generate` wrote."""
  poses = (folder / 'poses.json').read_bytes()
  return hashlib.sha256(poses + first.tobytes()).hexdigest()


def of_code() -> str:
  """SHA-256 of the files of this project that make a figure."""
  digest = hashlib.sha256()
  paths = {
    path.relative_to(config_files.REPOSITORY).as_posix(): path
    for pattern in _CODE
    for path in config_files.REPOSITORY.glob(pattern)
  }
  for name in sorted(paths):
    content = hashlib.sha256(paths[name].read_bytes()).hexdigest()
    digest.update(f'{name} {content}\n'.encode())
  return digest.hexdigest()
