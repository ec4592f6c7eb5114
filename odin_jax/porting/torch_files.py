"""Files of torch.save, read without running anything that is in them.

A pickle can call any function. `weights_only` of torch.load lets tensors pass
and refuses the rest but for an allow-list. The one here holds what training
frameworks leave beside the tensors; even of that nothing is imported or made:
an inert object stands in for each.
"""

import collections
import contextlib
import functools
import os
import pathlib
import pickle
import re
import struct
from typing import Any, BinaryIO, Iterable, Mapping
import zipfile
import zlib

import ml_dtypes
import numpy as np

from odin_jax.shared import errors, files
from odin_jax.shared.lazy_array import LazyArray


class _Inert:
  """Stands for an object of a class, or for the value of a function."""

  def __new__(cls, *args: Any, **kwargs: Any) -> '_Inert':
    del args, kwargs
    return super().__new__(cls)

  def __setstate__(self, state: Any) -> None:
    del state


class _Mapping:
  """Stands for a class of mappings, whose items then come one by one."""

  def __new__(cls, *args: Any) -> dict[Any, Any]:
    del args
    return collections.OrderedDict()


class _Sequence:
  """Stands for a class of sequences, whose items then come one by one."""

  def __new__(cls, *args: Any) -> list[Any]:
    del args
    return []


def _named(names: Mapping[str, str], stand_in: type) -> dict[str, type]:
  """The stand-in by full name, of names separated by blanks by module."""
  return {
    f'{module}.{name}': stand_in
    for module, listed in names.items()
    for name in listed.split()
  }


_LIGHTNING = ('pytorch_lightning', 'lightning.pytorch', 'lightning_fabric')
_NUMPY = ('numpy.core', 'numpy._core')
# What Lightning keeps: the key of `callbacks` before 2.0, hyperparameters, as
# argparse or omegaconf has them, scores and counters.
ALLOWED = {
  **_named(
    {
      **{
        f'{package}.callbacks.model_checkpoint': 'ModelCheckpoint'
        for package in _LIGHTNING
      },
      **{
        f'{package}.callbacks.early_stopping': 'EarlyStopping'
        for package in _LIGHTNING
      },
      **{f'{package}.multiarray': 'scalar _reconstruct' for package in _NUMPY},
      'numpy': 'dtype ndarray',
      'numpy.dtypes': 'Float32DType Float64DType Int64DType',
      '_codecs': 'encode',
      'builtins': 'bool dict float frozenset int list range slice str tuple',
      'argparse': 'Namespace',
      'datetime': 'date datetime timedelta timezone',
      'omegaconf.base': 'ContainerMetadata Metadata',
      'omegaconf.dictconfig': 'DictConfig',
      'omegaconf.listconfig': 'ListConfig',
      'omegaconf.nodes': 'AnyNode BooleanNode FloatNode IntegerNode StringNode',
      'pathlib': 'PosixPath PurePosixPath WindowsPath',
      'typing': 'Any',
    },
    _Inert,
  ),
  **_named(
    {
      'collections': 'defaultdict',
      **{
        f'{package}.utilities.{module}': 'AttributeDict'
        for package in _LIGHTNING
        for module in ('parsing', 'data')
      },
    },
    _Mapping,
  ),
  **_named({'collections': 'deque'}, _Sequence),
}
# What the unpickler raises, by chance, where a file is damaged.
_DAMAGE = (
  OSError,
  EOFError,
  RuntimeError,
  ValueError,
  LookupError,
  TypeError,
  AttributeError,
  AssertionError,
  struct.error,
)
_ZIP = b'PK\x03\x04'


def read_span(
  path: pathlib.Path, offset: int, dtype: np.dtype, count: int
) -> np.ndarray:
  """`count` numbers that start at byte `offset` of a file.

  Raises:
    errors.UserError: the file ends before.
  """
  values = np.fromfile(path, np.uint8, count * dtype.itemsize, offset=offset)
  if values.size != count * dtype.itemsize:
    raise errors.UserError(
      f'{path}: ends before byte {offset + count * dtype.itemsize}; is it '
      'whole? Download it again'
    )
  return values.view(dtype)


# Of eight bits and less, as torch and safetensors call them. Such values are
# rounded, and mean nothing without scales that each tool keeps in its own way.
_QUANTISED = re.compile(
  r'(?i)(torch\.)?(float[468]_\w+|f[468]|f[468]_\w+|u?int[1-7]|q\w+|bits\w+)'
)


def require_known(path: pathlib.Path, name: str, dtype: str) -> None:
  """Checks that a tensor's numbers are not quantised.

  Args:
    path: of the file.
    name: of the tensor.
    dtype: as torch or safetensors calls it.

  Raises:
    errors.UserError: they are.
  """
  if _QUANTISED.fullmatch(dtype):
    raise errors.UserError(
      f'{path}: {name} is quantised ({dtype}: fp8 or less), which cannot be '
      'imported; get the weights in float32, float16 or bfloat16'
    )


def _dtype(tensor: Any) -> np.dtype:
  """numpy's for torch's: 'torch.bfloat16' has the name without the module."""
  name = str(tensor.dtype).removeprefix('torch.')
  return np.dtype(getattr(ml_dtypes, name, name))


def read(path: pathlib.Path) -> dict[str, LazyArray]:
  """The state dict in a file of torch.save: its own, or under `state_dict`.

  Of a file in today's format, a zip archive, only the list of tensors is read;
  one of torch before 1.6 is read whole.

  Raises:
    errors.UserError: it holds something that is neither a tensor nor on the
      allow-list, or no state dict, or it is damaged.
  """
  content = _load(path, lazy=_is_zip(path))
  state = content.get('state_dict', content) if _is_dict(content) else None
  if not _is_dict(state) or not state:
    raise errors.UserError(
      f'{path}: not a state dict; a mapping of names to tensors is needed, or '
      'one under the key state_dict'
    )
  for name, tensor in state.items():
    if not isinstance(name, str) or not _is_tensor(tensor):
      raise errors.UserError(
        f'{path}: {name!r} is not a tensor; a mapping of names to tensors is '
        'needed, or one under the key state_dict'
      )
    require_known(path, name, str(tensor.dtype))
    if not _is_plain(tensor):
      raise errors.UserError(
        f'{path}: {name} is no array of real numbers ({tensor.dtype}, '
        f'{tensor.layout}, on {tensor.device}); such a checkpoint cannot be '
        'imported'
      )
  return {name: _lazy(path, tensor) for name, tensor in state.items()}


def _is_zip(path: pathlib.Path) -> bool:
  """Whether torch.load takes a file for a zip archive."""
  with open(path, 'rb') as file:
    return file.read(len(_ZIP)) == _ZIP


def _is_dict(value: Any) -> bool:
  return isinstance(value, Mapping)


def _is_tensor(value: Any) -> bool:
  import torch

  return isinstance(value, torch.Tensor)


def _is_plain(tensor: Any) -> bool:
  """Whether the memory of a tensor holds its values."""
  import torch

  return (
    tensor.layout is torch.strided
    and tensor.device.type != 'meta'
    and not tensor.is_nested
    and not tensor.is_quantized
    and not tensor.is_complex()
    and not tensor.is_neg()
  )


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
    raise errors.UserError(f'{path}: {_refusal(str(error))}') from error
  except _DAMAGE as error:
    why = str(error).partition('. ')[0] or 'it ends too early'
    raise errors.UserError(
      f'{path}: torch cannot read it ({why}); is it whole? Download it again'
    ) from error


def _refusal(message: str) -> str:
  """One clause of what torch says in a page."""
  match = re.search(r'(?:GLOBAL|function|class|type) ([\w.]+\.\w+)', message)
  if match is None:
    return (
      'holds more than tensors, or is damaged; get the weights alone, best '
      'as .safetensors'
    )
  return (
    f'refused: it needs {match[1]}, and a checkpoint that needs more than '
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

  What torch.save to an open file makes of it, but for when the numbers come.
  """
  import torch
  from torch._subclasses.fake_tensor import FakeTensorMode

  tensors = dict(tensors)
  with FakeTensorMode():
    state = {
      name: torch.empty(tensor.shape, dtype=getattr(torch, tensor.dtype.name))
      for name, tensor in tensors.items()
    }
  with files.atomic_path(path) as temporary:
    # Room is left for the numbers, which are filled in where torch.load
    # says that they start. To a name, torch.save would put it into the file.
    with (
      open(temporary, 'wb') as file,
      torch.serialization.skip_data(materialize_fake_tensors=True),
    ):
      torch.save({'state_dict': state}, file)
    offsets = _offsets(temporary)
    checksums = {}
    with open(temporary, 'r+b') as file:
      for name, tensor in tensors.items():
        file.seek(offsets[name])
        content = np.ascontiguousarray(tensor.read()).reshape(-1).view(np.uint8)
        # tofile() would not say that a disk is full.
        file.write(content)
        checksums[offsets[name]] = zlib.crc32(content)
      _write_checksums(temporary, file, checksums)
      file.flush()
      os.fsync(file.fileno())


# Of the zip format's headers, in the archive's directory and before each
# member: where the checksum is, and the lengths of what follows.
_CENTRAL, _CENTRAL_CRC, _CENTRAL_LENGTHS = 46, 16, struct.Struct('<28x3H')
_LOCAL, _LOCAL_CRC, _LOCAL_LENGTHS = 30, 14, struct.Struct('<26x2H')


def _write_checksums(
  path: pathlib.Path, file: BinaryIO, checksums: Mapping[int, int]
) -> None:
  """Writes the CRC of the members that start at the offsets given."""

  def header(at: int, lengths: struct.Struct) -> tuple[int, ...]:
    file.seek(at)
    return lengths.unpack(file.read(lengths.size))

  with zipfile.ZipFile(path) as archive:
    members, central = archive.infolist(), archive.start_dir
  for member in members:
    local = member.header_offset
    start = local + _LOCAL + sum(header(local, _LOCAL_LENGTHS))
    for at in (local + _LOCAL_CRC, central + _CENTRAL_CRC):
      if start in checksums:
        file.seek(at)
        file.write(checksums[start].to_bytes(4, 'little'))
    central += _CENTRAL + sum(header(central, _CENTRAL_LENGTHS))


def _offsets(path: pathlib.Path) -> dict[str, int]:
  state = _load(path, lazy=True)['state_dict']
  return {
    name: tensor.untyped_storage()._checkpoint_offset
    for name, tensor in state.items()
  }
