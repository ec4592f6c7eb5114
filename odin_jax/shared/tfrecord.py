"""TFRecord files and tf.train.Example without TensorFlow.

A TFRecord file is a sequence of frames
  uint64 length | uint32 masked_crc(length) | data | uint32 masked_crc(data)
in little-endian order, with masked_crc(x) = rotr(crc32c(x), 15) + 0xa282ead8.
Source: tensorflow/core/lib/io/record_writer.h and lib/hash/crc32c.h.

Our own, since TensorFlow would be needed for nothing else, and its reader gives
records in their order alone; here each is read by its position.
"""

import array
import functools
import hashlib
import os
import struct
from typing import Any, Iterable, Iterator, Mapping, Sequence

import google_crc32c
from jaxtyping import UInt64
import numpy as np

from odin_jax.shared import errors, storage

_HEADER = struct.Struct('<QI')
_FOOTER = struct.Struct('<I')
_MASK_DELTA = 0xA282EAD8


class CorruptRecordError(errors.UserError):
  """A record that is damaged, or a file of them; the message names its place."""


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

  The constructor walks the frame headers and checks their checksums, unless it
  is told of them; `file[i]` reads one record and checks its data. Safe to use
  from threads and, after pickling, from other processes.

  Args:
    file: path of the file, or the file.
    frames: start and length of the data of every record, where they are known.

  Attributes:
    path: of the file, or its address.
    frames: see above.

  Raises:
    CorruptRecordError: a broken or truncated frame, or an empty file.
  """

  def __init__(
    self,
    file: os.PathLike[str] | str | storage.File,
    frames: UInt64[np.ndarray, 'n 2'] | None = None,
  ):
    if not isinstance(file, storage.File):
      file = storage.LocalFile(file)
    self.file = file
    self.path = file.path
    self.frames = self._walk() if frames is None else frames

  def _walk(self) -> UInt64[np.ndarray, 'n 2']:
    size = self.file.size()
    if size == 0:
      raise CorruptRecordError(
        f'{self.path}: zero bytes, no records in it; make the records again'
      )
    # Eight bytes a number, for there may be many millions.
    frames = array.array('Q')
    position = 0
    with self.file.in_order() as file:
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
        frames.append(position + _HEADER.size)
        frames.append(length)
        position = end
    return np.frombuffer(frames, np.uint64).reshape(-1, 2)

  def _corrupt(self, position: int, reason: str) -> CorruptRecordError:
    return CorruptRecordError(
      f'{self.path}: {reason} at byte {position}; make the records again, or '
      'copy them again'
    )

  def __len__(self) -> int:
    return len(self.frames)

  def __getitem__(self, index: int) -> bytes:
    offset, length = self.frames[index].tolist()
    data = self.file.read(offset, length + _FOOTER.size)
    return self._checked(index, data)

  def _checked(self, index: int, framed: bytes) -> bytes:
    """The data of a frame, given from there to its end."""
    offset, length = self.frames[index].tolist()
    if len(framed) < length + _FOOTER.size:
      raise self._corrupt(offset, f'record {index}: truncated data')
    data = framed[:length]
    if _FOOTER.unpack_from(framed, length)[0] != masked_crc(data):
      raise self._corrupt(offset, f'record {index}: data checksum differs')
    return data

  def digest(self) -> str:
    """SHA-256 of the checksums of all records' data, which are not read."""
    digest = hashlib.sha256()
    for offset, length in self.frames.tolist():
      digest.update(self.file.read(offset + length, _FOOTER.size))
    return digest.hexdigest()

  def in_order(self) -> Iterator[bytes | None]:
    """All records, read ahead; None in place of a damaged one."""
    with self.file.in_order() as file:
      for index, (offset, length) in enumerate(self.frames.tolist()):
        file.seek(offset)
        try:
          yield self._checked(index, file.read(length + _FOOTER.size))
        except CorruptRecordError:
          yield None


@functools.cache
def _messages() -> tuple[Any, type[Exception]]:
  """tf.train.Example, and what it raises where it cannot be parsed."""
  # Here, for a command reads its flags before what is slow to load.
  from google.protobuf import message
  from tensorflow_datasets.proto import tf_example_pb2

  return tf_example_pb2.Example, message.DecodeError


def encode_example(features: Mapping[str, Sequence[Any]]) -> bytes:
  """Serialised tf.train.Example; one value type per feature, keys sorted.

  Raises:
    TypeError: a feature whose first value is not bytes, int or float.
  """
  example = _messages()[0]()
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
  example, decode_error = _messages()
  try:
    features = example.FromString(serialised).features.feature
  except decode_error as error:
    raise ValueError(str(error)) from error
  values = {}
  for name in features if names is None else names:
    if name not in features:
      continue
    feature = features[name]
    kind = feature.WhichOneof('kind')
    # Sliced, which makes a list in less than half the time of `list`.
    values[name] = getattr(feature, kind).value[:] if kind else []
  return values
