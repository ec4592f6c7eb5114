"""Files of named tensors: safetensors, torch's, and folders of shards.

Reading gives lazy arrays by name: of a file only the list of its tensors is
read at first. safetensors (https://github.com/huggingface/safetensors#format):
eight bytes with the length of the header, the header in JSON, the tensors.
"""

import json
import math
import os
import pathlib
import re
from typing import Any, Iterable, Mapping, NamedTuple

import ml_dtypes
import numpy as np

from odin_jax.porting import torch_files
from odin_jax.shared import errors, files, impostors
from odin_jax.shared.lazy_array import LazyArray

Tensors = dict[str, LazyArray]
_AGAIN = 'is it whole? Download it again'
_LENGTH = np.dtype('<u8')
_DTYPES = {
  'F64': np.dtype('<f8'),
  'F32': np.dtype('<f4'),
  'F16': np.dtype('<f2'),
  'BF16': np.dtype(ml_dtypes.bfloat16),
  'I64': np.dtype('<i8'),
  'I32': np.dtype('<i4'),
  'I16': np.dtype('<i2'),
  'I8': np.dtype('i1'),
  'U8': np.dtype('u1'),
  'BOOL': np.dtype('?'),
}
_NAMES = {dtype: name for name, dtype in _DTYPES.items()}


class Files(NamedTuple):
  """Tensors by name, and the files that they come from."""

  tensors: Tensors
  paths: list[pathlib.Path]


# -- Reading -------------------------------------------------------------------


def read(path: pathlib.Path) -> Files:
  """The tensors of a file, or of all shards that an index file lists.

  Raises:
    errors.UserError: no such file, not a checkpoint, or a damaged one.
  """
  path = files.require_file(path, 'a checkpoint')
  _check_content(path)
  if _INDEX.search(path.name):
    return _read_shards(path)
  if path.suffix not in _READERS:
    raise errors.UserError(
      f'{path}: not a checkpoint file; its name must end with one of '
      f'{", ".join([*_READERS, ".index.json"])}'
    )
  return Files(_READERS[path.suffix](path), [path])


def _check_content(path: pathlib.Path) -> None:
  """Checks that a file is not empty and not what a failed download leaves.

  Raises:
    errors.UserError: it is; says what it is.
  """
  with open(path, 'rb') as file:
    what = impostors.recognise(file.read(impostors.START_BYTES))
  if what:
    raise errors.UserError(f'{path}: {what}')


# A variant, such as fp16, is named after the kind of file in an index's name,
# before it elsewhere.
_INDEX = re.compile(r'\.index(\.\w+)?\.json$')
_SHARD = re.compile(r'-\d{5}-of-\d{5}\.')
# Of the files of a folder, the first pattern that one of them matches counts.
_PATTERNS = (
  r'[^.]+\.safetensors\.index\.json',
  r'[^.]+\.safetensors',
  r'[^.]+\.bin\.index\.json',
  r'[^.]+\.bin',
  r'[^.]+\.safetensors\.index\.\w+\.json',
  r'[^.]+\.\w+\.safetensors',
  r'[^.]+\.bin\.index\.\w+\.json',
  r'[^.]+\.\w+\.bin',
)


def read_folder(folder: pathlib.Path) -> Files:
  """The tensors of a folder of diffusers or transformers.

  A variant, such as `model.fp16.safetensors`, counts only where there is no
  file without one; of several it is the one with the shortest name.

  Raises:
    errors.UserError: no weights there, or damaged ones.
  """
  paths = sorted(folder.iterdir(), key=lambda path: (len(path.name), path.name))
  for pattern in _PATTERNS:
    for path in paths:
      if re.fullmatch(pattern, path.name) and not _SHARD.search(path.name):
        return read(path)
  raise errors.UserError(
    f'{folder}: no weights here: no *.safetensors, *.bin or index of shards '
    'of these'
  )


def read_json(path: pathlib.Path) -> dict[str, Any]:
  """An object from a JSON file, or a UserError."""
  _check_content(path)
  try:
    content = json.loads(path.read_text())
  except ValueError as error:
    raise errors.UserError(f'{path}: not JSON ({error}); {_AGAIN}') from error
  if not isinstance(content, dict):
    raise errors.UserError(f'{path}: not a JSON object; {_AGAIN}')
  return content


def _read_shards(index: pathlib.Path) -> Files:
  where = read_json(index).get('weight_map')
  if not isinstance(where, dict) or not where:
    raise errors.UserError(f'{index}: names no tensors; {_AGAIN}')
  for name in where.values():
    if not isinstance(name, str) or pathlib.Path(name).suffix not in _READERS:
      raise errors.UserError(f'{index}: {name!r} is no shard; {_AGAIN}')
    if pathlib.Path(name).name != name:
      raise errors.UserError(
        f'{index}: {name!r} is in another folder; {_AGAIN}'
      )
  paths = [index.with_name(name) for name in sorted(set(where.values()))]
  shards = {path.name: read(path).tensors for path in paths}
  absent = [name for name, shard in where.items() if name not in shards[shard]]
  if absent:
    raise errors.UserError(
      f'{index}: {absent[0]} is not in {where[absent[0]]}; {_AGAIN}'
    )
  return Files(
    {name: shards[shard][name] for name, shard in where.items()},
    [index, *paths],
  )


def _read_safetensors(path: pathlib.Path) -> Tensors:
  try:
    with open(path, 'rb') as file:
      length = int(np.fromfile(file, _LENGTH, 1)[0])
      header = json.loads(file.read(min(length, path.stat().st_size)))
    start = _LENGTH.itemsize + length
    header.pop('__metadata__', None)
    return {
      name: _stored(path, name, start, **entry)
      for name, entry in header.items()
    }
  except (ValueError, LookupError, TypeError, AttributeError) as error:
    raise errors.UserError(
      f'{path}: not a safetensors file ({error}); {_AGAIN}'
    ) from error


def _stored(
  path: pathlib.Path,
  name: str,
  start: int,
  dtype: str,
  shape: list[int],
  data_offsets: list[int],
) -> LazyArray:
  torch_files.require_known(path, name, dtype)
  begin, end = data_offsets
  count = math.prod(shape)
  if end - begin != count * _DTYPES[dtype].itemsize:
    raise ValueError(f'{end - begin} bytes for {dtype} {shape}')
  if start + end > path.stat().st_size:
    raise ValueError(f'it ends before byte {start + end}')
  return LazyArray(
    tuple(shape),
    _DTYPES[dtype],
    lambda: torch_files.read_span(
      path, start + begin, _DTYPES[dtype], count
    ).reshape(shape),
  )


def _read_torch(path: pathlib.Path) -> Tensors:
  return torch_files.read(path)


_READERS = {
  '.safetensors': _read_safetensors,
  '.ckpt': _read_torch,
  '.pt': _read_torch,
  '.pth': _read_torch,
  '.bin': _read_torch,
}


# -- Writing -------------------------------------------------------------------


def write_safetensors(
  path: pathlib.Path, tensors: Iterable[tuple[str, LazyArray]]
) -> None:
  """Writes a safetensors file tensor by tensor."""
  tensors = dict(tensors)
  header, end = {'__metadata__': {'format': 'pt'}}, 0
  for name, tensor in tensors.items():
    begin, end = end, end + tensor.size * tensor.dtype.itemsize
    header[name] = {
      'dtype': _NAMES[tensor.dtype],
      'shape': list(tensor.shape),
      'data_offsets': [begin, end],
    }
  text = json.dumps(header).encode()
  # The tensors start at a multiple of eight bytes.
  text += b' ' * (-len(text) % _LENGTH.itemsize)
  with files.atomic_path(path) as temporary, open(temporary, 'wb') as file:
    file.write(np.array(len(text), _LENGTH).tobytes())
    file.write(text)
    for tensor in tensors.values():
      # tofile() would not say that a disk is full.
      file.write(np.ascontiguousarray(tensor.read()).reshape(-1).view(np.uint8))
    file.flush()
    os.fsync(file.fileno())


def write_json(path: pathlib.Path, content: Mapping[str, Any]) -> None:
  """Writes JSON into a folder that is made where it is absent."""
  path.parent.mkdir(parents=True, exist_ok=True)
  files.write_json(path, content)
