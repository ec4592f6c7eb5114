"""Chunks of a PNG; whether it is a grey one of some shape, without its pixels.

Decoders go on over some kinds of damage, and of others they write to stderr.
Source: PNG specification, sections 5 (chunks) and 11.2.2 (IHDR),
https://www.w3.org/TR/png-3/.
"""

import struct
from typing import Iterator
import zlib

_SIGNATURE = b'\x89PNG\r\n\x1a\n'
_GREY = 0


def check_header(data: bytes, *, bits: int, aspect: int = 1) -> int:
  """Reads the first 33 bytes only, so it costs next to nothing.

  Args:
    data: of a file.
    bits: per pixel.
    aspect: width / height.

  Returns:
    height in pixels: the side of a square.

  Raises:
    ValueError: no PNG, or one of another aspect, not grey, or of other bits.
  """
  kind, content = next(chunks(data))
  if kind != b'IHDR' or len(content) != 13:
    raise ValueError('a damaged PNG')
  width, height, found_bits, colour_type = struct.unpack_from('>IIBB', content)
  if width != aspect * height or not width:
    shape = 'square' if aspect == 1 else f'{aspect} times as wide as high'
    raise ValueError(f'a PNG of {width} x {height} px, which is not {shape}')
  if colour_type != _GREY:
    raise ValueError('a PNG with colours or transparency, which is not grey')
  if found_bits != bits:
    raise ValueError(f'a PNG of {found_bits} bits, not of {bits}')
  return height


def check(data: bytes, *, bits: int, aspect: int = 1) -> None:
  """As `check_header`; also that the file is whole and no byte has changed.

  Raises:
    ValueError: it is not.
  """
  check_header(data, bits=bits, aspect=aspect)
  for _ in chunks(data):
    pass


def chunks(data: bytes) -> Iterator[tuple[bytes, bytes]]:
  """Kind and content of each chunk, up to the last one.

  Raises:
    ValueError: no PNG, or not as it was written.
  """
  if not data.startswith(_SIGNATURE):
    raise ValueError('no PNG')
  place, kind = len(_SIGNATURE), b''
  while kind != b'IEND':
    # Length, kind, content, checksum of kind and content.
    end = place + 12 + int.from_bytes(data[place : place + 4], 'big')
    if len(data) < end:
      raise ValueError('a PNG that is cut off')
    body = data[place + 4 : end - 4]
    if zlib.crc32(body).to_bytes(4, 'big') != data[end - 4 : end]:
      raise ValueError('a damaged PNG')
    kind = body[:4]
    yield kind, body[4:]
    place = end
