"""What levels of red, green and blue mean: light, in primaries of some colour.

Light is that of one channel, 0..1, 1 for white. Numbers are those of ITU-T
H.273, as videos and pictures name them.
"""

import functools
from typing import Callable, NamedTuple, Sequence

from jaxtyping import Float, UInt8, UInt16
import numpy as np

Curve = Callable[[Float[np.ndarray, '*n']], Float[np.ndarray, '*n']]
XY = tuple[float, float]
UNSPECIFIED, PQ, HLG = 2, 16, 18
BT2020 = 9
# Chromaticities (x, y) of red, green and blue, and of white (D65).
BT709_XY = ((0.64, 0.33), (0.30, 0.60), (0.15, 0.06))
_BT2020_XY = ((0.708, 0.292), (0.170, 0.797), (0.131, 0.046))
_P3_XY = ((0.680, 0.320), (0.265, 0.690), (0.150, 0.060))
# Primaries by number that are far from those of sRGB.
WIDE_XY = {BT2020: _BT2020_XY, 11: _P3_XY, 12: _P3_XY}
D65_XY = (0.3127, 0.3290)
# White of ICC's profiles.
_D50_XYZ = (0.9642, 1.0, 0.8249)
_BRADFORD = np.array(
  [
    [0.8951, 0.2664, -0.1614],
    [-0.7502, 1.7135, 0.0367],
    [0.0389, -0.0685, 1.0296],
  ]
)
# What rounding moves colours by that are sRGB's already. There are many ways to
# say sRGB, so they are known by what they do.
ROUNDING_LEVELS = 1
# Every 15th level of red, green and blue.
COLOURS = 15 * np.indices((18, 18, 18)).reshape(3, 1, -1).T.astype(np.uint8)
# Rows that are converted at a time, for light takes many bytes.
STRIP = 64


class Space(NamedTuple):
  """What levels mean.

  Attributes:
    curves: of red, green and blue, signal in 0..1 -> light.
    to_bt709: from light in its primaries to that in those of sRGB.
  """

  curves: tuple[Curve, Curve, Curve]
  to_bt709: Float[np.ndarray, '3 3']

  def make_srgb(
    self, pixels: UInt8[np.ndarray, 'h w c'] | UInt16[np.ndarray, 'h w c']
  ) -> None:
    """Makes levels those of sRGB, in place; clipped. Alpha is left alone."""
    largest = np.iinfo(pixels.dtype).max
    signal = np.arange(largest + 1) / largest
    light = [curve(signal).astype(np.float32) for curve in self.curves]
    matrix = self.to_bt709.T.astype(np.float32)
    for row in range(0, len(pixels), STRIP):
      strip = pixels[row : row + STRIP]
      colours = np.stack(
        [light[channel][strip[..., channel]] for channel in range(3)], axis=-1
      )
      coded = srgb_signal(np.clip(colours @ matrix, 0, 1))
      strip[..., :3] = np.round(coded * largest)

  def is_srgb(self) -> bool:
    """Whether it moves no colour by more than rounding does."""
    found = COLOURS.copy()
    self.make_srgb(found)
    moved = np.abs(found.astype(int) - COLOURS)
    return bool(moved.max() <= ROUNDING_LEVELS)


def srgb_light(signal: Float[np.ndarray, '*n']) -> Float[np.ndarray, '*n']:
  """Light of values of sRGB in 0..1 (IEC 61966-2-1)."""
  return np.where(
    signal <= 0.04045, signal / 12.92, ((signal + 0.055) / 1.055) ** 2.4
  )


def srgb_signal(light: Float[np.ndarray, '*n']) -> Float[np.ndarray, '*n']:
  """The other way round."""
  return np.where(
    light <= 0.0031308, 12.92 * light, 1.055 * light ** (1 / 2.4) - 0.055
  )


@functools.cache
def xyz_matrix(
  primaries: Sequence[XY], white: XY = D65_XY
) -> Float[np.ndarray, '3 3']:
  """From red, green and blue of chromaticities to XYZ, white of luminance 1.

  Raises:
    ValueError: they span no colours.
  """
  columns = np.array([_xyz(xy) for xy in primaries]).T
  if abs(np.linalg.det(columns)) < 1e-6:
    raise ValueError('primaries in one line')
  return columns * np.linalg.solve(columns, _xyz(white))


def bt709_matrix(
  primaries: Sequence[XY], white: XY = D65_XY
) -> Float[np.ndarray, '3 3']:
  """From light in primaries to that in those of sRGB; white stays white.

  Raises:
    ValueError: they span no colours.
  """
  to_d65 = _adaptation(_xyz(white), _xyz(D65_XY))
  to_rgb = np.linalg.inv(xyz_matrix(BT709_XY))
  return to_rgb @ to_d65 @ xyz_matrix(primaries, white)


def bt709_matrix_of_d50(
  columns: Float[np.ndarray, '3 3'],
) -> Float[np.ndarray, '3 3']:
  """The same of XYZ under D50 of red, green and blue, as ICC has them."""
  to_d65 = _adaptation(_D50_XYZ, _xyz(D65_XY))
  return np.linalg.inv(xyz_matrix(BT709_XY)) @ to_d65 @ columns


def _xyz(xy: XY) -> tuple[float, float, float]:
  x, y = xy
  if y <= 0:
    raise ValueError('a chromaticity without light')
  return x / y, 1.0, (1 - x - y) / y


def _adaptation(
  white: Sequence[float], other: Sequence[float]
) -> Float[np.ndarray, '3 3']:
  """From XYZ under one white to those under another (Bradford)."""
  cones = (_BRADFORD @ other) / (_BRADFORD @ white)
  return np.linalg.inv(_BRADFORD) @ np.diag(cones) @ _BRADFORD
