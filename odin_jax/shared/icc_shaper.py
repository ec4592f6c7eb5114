"""ICC profiles of curves and a matrix, to compute with at any number of bits.

LittleCMS, as Pillow has it, takes 8 bits. Source: ICC.1:2022, sections 7.3
(tags), 10.6 (curves), 10.18 (parametric curves); F.3 (matrix and curves).
"""

import struct
from typing import Sequence

from jaxtyping import Float
import numpy as np

from odin_jax.shared import colorimetry

# Tables of colours, which win over a matrix beside them.
_TABLES = (b'A2B0', b'A2B1', b'A2B2', b'D2B0', b'D2B1', b'D2B2')
_GREY, _CHANNELS = b'GRAY', (b'r', b'g', b'b')
# Numbers of a parametric curve, by its kind.
_PARAMETERS = (1, 3, 4, 5, 7)


def read(profile: bytes) -> colorimetry.Space:
  """What levels mean by a profile that LittleCMS can use.

  Grey is red, green and blue of one level.

  Raises:
    ValueError: it has tables of colours, or is not whole.
  """
  space, connection = profile[16:20], profile[20:24]
  try:
    tags = _tags(profile)
    if connection != b'XYZ ' or any(name in tags for name in _TABLES):
      raise ValueError('it has tables of colours, which are for 8 bits here')
    if space == _GREY:
      return colorimetry.Space((_curve(tags[b'kTRC']),) * 3, np.eye(3))
    red, green, blue = (_curve(tags[name + b'TRC']) for name in _CHANNELS)
    columns = [_xyz(tags[name + b'XYZ']) for name in _CHANNELS]
  except (KeyError, struct.error) as error:
    raise ValueError('it is not whole') from error
  matrix = colorimetry.bt709_matrix_of_d50(np.stack(columns, axis=-1))
  return colorimetry.Space((red, green, blue), matrix)


def _tags(profile: bytes) -> dict[bytes, bytes]:
  (count,) = struct.unpack_from('>I', profile, 128)
  rows = [
    struct.unpack_from('>4sII', profile, 132 + 12 * index)
    for index in range(min(count, len(profile) // 12))
  ]
  return {name: profile[place : place + size] for name, place, size in rows}


def _xyz(tag: bytes) -> Float[np.ndarray, '3']:
  return np.array(struct.unpack_from('>3i', tag, 8)) / 65536


def _curve(tag: bytes) -> colorimetry.Curve:
  if tag[:4] == b'para':
    (kind,) = struct.unpack_from('>H', tag, 8)
    if kind >= len(_PARAMETERS):
      raise ValueError(f'a parametric curve of kind {kind}')
    numbers = struct.unpack_from(f'>{_PARAMETERS[kind]}i', tag, 12)
    return _parametric(kind, [number / 65536 for number in numbers])
  if tag[:4] != b'curv':
    raise ValueError('a curve of an unknown kind')
  (count,) = struct.unpack_from('>I', tag, 8)
  entries = np.array(struct.unpack_from(f'>{count}H', tag, 12))
  if count == 0:
    return lambda signal: signal
  if count == 1:
    return lambda signal: signal ** (entries[0] / 256)
  places = np.linspace(0, 1, count)
  return lambda signal: np.interp(signal, places, entries / 65535)


def _parametric(kind: int, numbers: Sequence[float]) -> colorimetry.Curve:
  """(a x + b) ** gamma + e from d on, c x + f below."""
  gamma, a, b, c, d, e, f = (*numbers, *[0.0] * (7 - len(numbers)))
  if kind == 0:
    a = 1.0
  elif not a:
    raise ValueError('a parametric curve without a slope')
  elif kind in (1, 2):
    # What is added is the fourth number here, and holds below, too.
    c, d, e, f = 0.0, -b / a, c, c
  return lambda signal: np.where(
    signal >= d, np.maximum(a * signal + b, 0) ** gamma + e, c * signal + f
  )
