"""TFRecord files and tf.train.Example without TensorFlow.

A TFRecord file is a sequence of frames
  uint64 length | uint32 masked_crc(length) | data | uint32 masked_crc(data)
in little-endian order, with masked_crc(x) = rotr(crc32c(x), 15) + 0xa282ead8.
Source: tensorflow/core/lib/io/record_writer.h and lib/hash/crc32c.h.

Our own, since TensorFlow would be needed for nothing else, and its reader gives
records in their order alone; here each is read by its position.
"""

import hashlib
import os
import pathlib
import struct
from typing import Any, Iterable, Mapping, Sequence

import google_crc32c

from odin_jax.shared import errors

_HEADER = struct.Struct('<QI')
_FOOTER = struct.Struct('<I')
_MASK_DELTA = 0xA282EAD8


class CorruptRecordError(errors.UserError):
  """A TFRecord file with a broken frame; the message names file and offset."""


def masked_crc(data: bytes) -> int:
  """CRC-32C of `data`, rotated and offset as TFRecord files store it."""
  crc = google_crc32c.value(data)
  return (((crc >> 15) | (crc << 17)) + _MASK_DELTA) & 0xFFFFFFFF


def frame(data: bytes) -> bytes:
  """`data` as one TFRecord frame."""
  length = struct.pack('<Q', len(data))
  return b''.join(
    (
      length,
      _FOOTER.pack(masked_crc(length)),
      data,
      _FOOTER.pack(masked_crc(data)),
    )
  )


def write_file(path: os.PathLike[str] | str, records: Iterable[bytes]) -> int:
  """Writes a whole TFRecord file and flushes it to disk.

  Returns:
    the number of records written.
  """
  count = 0
  with open(path, 'wb') as file:
    for record in records:
      file.write(frame(record))
      count += 1
    file.flush()
    os.fsync(file.fileno())
  return count


class RecordFile:
  """Random access to the records of one TFRecord file.

  The constructor walks the frame headers and checks their checksums;
  `file[i]` reads one record and checks its data. Safe to use from threads
  and, after pickling, from other processes.

  Raises:
    CorruptRecordError: a broken or truncated frame, or an empty file.
  """

  def __init__(self, path: os.PathLike[str] | str):
    self.path = pathlib.Path(path)
    self._fd: int | None = None
    self._offsets = self._index()

  def _index(self) -> list[tuple[int, int]]:
    size = self.path.stat().st_size
    if size == 0:
      raise CorruptRecordError(
        f'{self.path}: zero bytes, no records in it; make the records again'
      )
    offsets = []
    position = 0
    with open(self.path, 'rb') as file:
      while position < size:
        file.seek(position)
        header = file.read(_HEADER.size)
        if len(header) < _HEADER.size:
          raise self._corrupt(position, 'truncated header')
        length, crc = _HEADER.unpack(header)
        if crc != masked_crc(header[:8]):
          raise self._corrupt(position, 'length checksum differs')
        end = position + _HEADER.size + length + _FOOTER.size
        if end > size:
          raise self._corrupt(position, 'truncated data')
        offsets.append((position + _HEADER.size, length))
        position = end
    return offsets

  def _corrupt(self, position: int, reason: str) -> CorruptRecordError:
    return CorruptRecordError(
      f'{self.path}: {reason} at byte {position}; make the records again, or '
      'copy them again'
    )

  def __len__(self) -> int:
    return len(self._offsets)

  def __getitem__(self, index: int) -> bytes:
    offset, length = self._offsets[index]
    if self._fd is None:
      self._fd = os.open(self.path, os.O_RDONLY)
    data = os.pread(self._fd, length + _FOOTER.size, offset)
    if len(data) < length + _FOOTER.size:
      raise self._corrupt(offset, 'truncated data')
    (crc,) = _FOOTER.unpack_from(data, length)
    if crc != masked_crc(data[:length]):
      raise self._corrupt(offset, 'data checksum differs')
    return data[:length]

  def digest(self) -> str:
    """SHA-256 of the checksums of all records' data, which are not read."""
    digest = hashlib.sha256()
    with open(self.path, 'rb') as file:
      for offset, length in self._offsets:
        digest.update(os.pread(file.fileno(), _FOOTER.size, offset + length))
    return digest.hexdigest()

  def __getstate__(self) -> dict[str, Any]:
    return {**self.__dict__, '_fd': None}

  def __del__(self, close=os.close) -> None:
    # Bound early: at interpreter shutdown the module's names are gone.
    if getattr(self, '_fd', None) is not None:
      close(self._fd)


def _new_example() -> Any:
  # Here, for a command reads its flags before what is slow to load.
  from tensorflow_datasets.proto import tf_example_pb2

  return tf_example_pb2.Example()


def encode_example(features: Mapping[str, Sequence[Any]]) -> bytes:
  """Serialised tf.train.Example; one value type per feature, keys sorted.

  Raises:
    TypeError: a feature whose first value is not bytes, int or float.
  """
  example = _new_example()
  for name in sorted(features):
    values = features[name]
    feature = example.features.feature[name]
    if isinstance(values[0], bytes):
      feature.bytes_list.value.extend(values)
    elif isinstance(values[0], int):
      feature.int64_list.value.extend(values)
    elif isinstance(values[0], float):
      feature.float_list.value.extend(values)
    else:
      raise TypeError(f'{name}: no feature type for {type(values[0])}')
  return example.SerializeToString(deterministic=True)


def decode_example(
  serialised: bytes, names: Iterable[str] | None = None
) -> dict[str, list[Any]]:
  """Feature values by name of a serialised tf.train.Example.

  Args:
    serialised: the example.
    names: of the features that are wanted, where it has them; None: all.

  Raises:
    ValueError: it is none.
  """
  # Here, as what it belongs to is.
  from google.protobuf import message

  example = _new_example()
  try:
    example.ParseFromString(serialised)
  except message.DecodeError as error:
    raise ValueError(str(error)) from error
  features = example.features.feature
  values = {}
  for name in features if names is None else names:
    if name not in features:
      continue
    feature = features[name]
    kind = feature.WhichOneof('kind')
    values[name] = list(getattr(feature, kind).value) if kind else []
  return values
