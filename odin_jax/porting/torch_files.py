"""Files of torch.save, read without running anything that is in them.

A pickle can call any function. `weights_only` of torch.load lets tensors pass
and refuses the rest but for an allow-list. The one here holds what training
frameworks leave beside the tensors; even of that nothing is imported or made:
an inert object stands in for each.
"""

import contextlib
import functools
import os
import pathlib
import pickle
import re
from typing import Any, Iterable, Mapping
import zipfile

import ml_dtypes
import numpy as np

from odin_jax.shared import binary
from odin_jax.shared.lazy_array import LazyArray


class _Inert:
  """Stands for an object of a class, or for the value of a function."""

  def __new__(cls, *args: Any, **kwargs: Any) -> '_Inert':
    del args, kwargs
    return super().__new__(cls)

  def __setstate__(self, state: Any) -> None:
    del state


def _empty(*args: Any) -> dict[Any, Any]:
  """Stands for a class of mappings, whose items then come one by one."""
  del args
  return {}


_LIGHTNING = ('pytorch_lightning', 'lightning.pytorch', 'lightning_fabric')
# Key of `callbacks` in files of PyTorch Lightning before 2.0, hyperparameters,
# scores and counters of its callbacks.
ALLOWED = {
  **{
    f'{package}.callbacks.{name}': _Inert
    for package in _LIGHTNING
    for name in (
      'model_checkpoint.ModelCheckpoint',
      'early_stopping.EarlyStopping',
    )
  },
  **{
    f'{package}.utilities.{name}.AttributeDict': _empty
    for package in _LIGHTNING
    for name in ('parsing', 'data')
  },
  'numpy.core.multiarray.scalar': _Inert,
  'numpy._core.multiarray.scalar': _Inert,
  'numpy.dtype': _Inert,
  'numpy.dtypes.Float32DType': _Inert,
  'numpy.dtypes.Float64DType': _Inert,
  'numpy.dtypes.Int64DType': _Inert,
  '_codecs.encode': _Inert,
  'collections.defaultdict': _empty,
  'builtins.list': _Inert,
  'builtins.dict': _Inert,
  'builtins.int': _Inert,
  'pathlib.PosixPath': _Inert,
}


def read_span(
  path: pathlib.Path, offset: int, dtype: np.dtype, count: int
) -> np.ndarray:
  """`count` numbers that start at byte `offset` of a file.

  Raises:
    binary.UserError: the file ends before.
  """
  values = np.fromfile(path, np.uint8, count * dtype.itemsize, offset=offset)
  if values.size != count * dtype.itemsize:
    raise binary.UserError(
      f'{path}: ends before byte {offset + count * dtype.itemsize}; is it '
      'whole? Download it again'
    )
  return values.view(dtype)


def _dtype(tensor: Any) -> np.dtype:
  """numpy's for torch's: 'torch.bfloat16' has the name without the module."""
  name = str(tensor.dtype).removeprefix('torch.')
  return np.dtype(getattr(ml_dtypes, name, name))


def read(path: pathlib.Path) -> dict[str, LazyArray]:
  """The state dict in a file of torch.save: its own, or under `state_dict`.

  Of a file in today's format, a zip archive, only the list of tensors is read;
  one of torch before 1.6 is read whole.

  Raises:
    binary.UserError: it holds something that is neither a tensor nor on the
      allow-list, or no state dict, or it is damaged.
  """
  content = _load(path, lazy=zipfile.is_zipfile(path))
  state = content.get('state_dict', content) if _is_dict(content) else None
  if not _is_dict(state) or not state:
    raise binary.UserError(
      f'{path}: not a state dict; a mapping of names to tensors is needed, or '
      'one under the key state_dict'
    )
  others = [name for name, tensor in state.items() if not _is_tensor(tensor)]
  if others:
    raise binary.UserError(
      f'{path}: {others[0]!r} is not a tensor; a mapping of names to tensors '
      'is needed, or one under the key state_dict'
    )
  return {name: _lazy(path, tensor) for name, tensor in state.items()}


def _is_dict(value: Any) -> bool:
  return isinstance(value, Mapping)


def _is_tensor(value: Any) -> bool:
  import torch

  return isinstance(value, torch.Tensor)


def _load(path: pathlib.Path, *, lazy: bool) -> Any:
  import torch
  from torch._subclasses.fake_tensor import FakeTensorMode

  allowed = [(stand_in, name) for name, stand_in in ALLOWED.items()]
  # Fake tensors have no memory; torch.load notes where the true ones start:
  # https://docs.pytorch.org/docs/stable/notes/serialization.html
  mode = FakeTensorMode() if lazy else contextlib.nullcontext()
  try:
    with torch.serialization.safe_globals(allowed), mode:
      return torch.load(path, map_location='cpu', weights_only=True)
  except pickle.UnpicklingError as error:
    raise binary.UserError(f'{path}: {_refusal(str(error))}') from error
  except (OSError, EOFError, RuntimeError, ValueError, LookupError) as error:
    why = str(error).partition('. ')[0] or 'it ends too early'
    raise binary.UserError(
      f'{path}: torch cannot read it ({why}); is it whole? Download it again'
    ) from error


def _refusal(message: str) -> str:
  """One clause of what torch says in a page."""
  found = re.search(r'(?:GLOBAL|function|class|type) ([\w.]+\.\w+)', message)
  if found is None:
    return (
      'holds more than tensors, or is damaged; get the weights alone, best '
      'as .safetensors'
    )
  return (
    f'refused: it needs {found[1]}, and a checkpoint that needs more than '
    'tensors may run anything; get the weights alone, best as .safetensors'
  )


def _lazy(path: pathlib.Path, tensor: Any) -> LazyArray:
  dtype, shape = _dtype(tensor), tuple(tensor.shape)
  start = getattr(tensor.untyped_storage(), '_checkpoint_offset', None)
  if start is None:
    values = tensor.detach().contiguous().view(-1).numpy().reshape(shape)
    return LazyArray(shape, dtype, lambda: values)
  steps = tuple(step * dtype.itemsize for step in tensor.stride())
  offset = start + tensor.storage_offset() * dtype.itemsize
  spans = zip(shape, tensor.stride(), strict=True)
  last = sum((size - 1) * step for size, step in spans)
  count = last + 1 if 0 not in shape else 0

  return LazyArray(
    shape,
    dtype,
    functools.partial(_read_strided, path, offset, dtype, count, shape, steps),
  )


def _read_strided(
  path: pathlib.Path,
  offset: int,
  dtype: np.dtype,
  count: int,
  shape: tuple[int, ...],
  steps: tuple[int, ...],
) -> np.ndarray:
  values = read_span(path, offset, dtype, count)
  return np.lib.stride_tricks.as_strided(values, shape, steps)


def write(path: pathlib.Path, tensors: Iterable[tuple[str, LazyArray]]) -> None:
  """Writes `{'state_dict': ...}` tensor by tensor.

  The checksums in the archive are not of the tensors; torch.load, which never
  looks at them, reads the file as any other.
  """
  import torch
  from torch._subclasses.fake_tensor import FakeTensorMode

  tensors = dict(tensors)
  with FakeTensorMode():
    state = {
      name: torch.empty(tensor.shape, dtype=getattr(torch, tensor.dtype.name))
      for name, tensor in tensors.items()
    }
  with binary.atomic_path(path) as temporary:
    # Room is left for the numbers, which are filled in where torch.load
    # says that they start.
    with torch.serialization.skip_data(materialize_fake_tensors=True):
      torch.save({'state_dict': state}, temporary)
    offsets = _offsets(temporary)
    with open(temporary, 'r+b') as file:
      for name, tensor in tensors.items():
        file.seek(offsets[name])
        np.ascontiguousarray(tensor.read()).tofile(file)
      file.flush()
      os.fsync(file.fileno())


def _offsets(path: pathlib.Path) -> dict[str, int]:
  state = _load(path, lazy=True)['state_dict']
  return {
    name: tensor.untyped_storage()._checkpoint_offset
    for name, tensor in state.items()
  }
