"""Depth of a view in a PNG, known at all of its pixels, at some, or at none.

A square one-channel 16-bit PNG of any side, whatever that of the view's
picture: depth along the optical axis at the pixel centres of this grid, in the
record's scene units. 0 says that it is not known; any other value v stands for

    2 ** ((v - 32768) / 2048),

just above 2 ** -16 to just below 2 ** 16 in relative steps of 0.034 %. So what
is read is within 0.017 % of what was written. Records of panoramas hold the
distance along the ray in the same way, in maps twice as wide as high.
"""

import cv2
from jaxtyping import Float, Float32
import numpy as np

from odin_jax.shared import png

_BITS = 16
_ONE, _STEPS_PER_OCTAVE, _LARGEST = 32768, 2048, 65535


def encode(depth: Float[np.ndarray, 'h w']) -> bytes:
  """The PNG of a map; the same map, the same bytes.

  Args:
    depth: scene units. What is infinite, not a number, 0 or below is not known.
      What lies beyond either end of the range is written as that end.
  """
  depth = np.asarray(depth, np.float64)
  known = np.isfinite(depth) & (depth > 0)
  octaves = np.log2(depth, where=known, out=np.zeros_like(depth))
  values = np.rint(octaves * _STEPS_PER_OCTAVE + _ONE).clip(1, _LARGEST)
  values = np.where(known, values, 0).astype(np.uint16)
  return cv2.imencode('.png', values)[1].tobytes()


def side_px(data: bytes) -> int:
  """Side of the map of a PNG, which is not decoded for it.

  Raises:
    ValueError: no square 16-bit grey PNG.
  """
  return png.check_header(data, bits=_BITS)


def decode(data: bytes, *, aspect: int = 1) -> Float32[np.ndarray, 'h w']:
  """The map of a PNG, scene units, 0 where not known.

  Args:
    data: of the PNG.
    aspect: its width / height.

  Raises:
    ValueError: it is damaged, or no 16-bit grey PNG of this aspect.
  """
  png.check(data, bits=_BITS, aspect=aspect)
  values = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
  if values is None:
    raise ValueError('a damaged PNG')
  depth = np.exp2((values.astype(np.float32) - _ONE) / _STEPS_PER_OCTAVE)
  return np.where(values == 0, np.float32(0), depth)
