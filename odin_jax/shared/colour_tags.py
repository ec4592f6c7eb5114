"""Colours of a picture that names them without an ICC profile.

PNG does by cICP, by cHRM and gAMA, AVIF by nclx, and JPEGs of cameras by the
index of Exif that stands for Adobe RGB. Sources: PNG specification, third
edition, sections 4.3 and 11.3.2; ISO/IEC 14496-12, 12.1.5; DCF 2.0, 3.3.
"""

import struct

from jaxtyping import Float
import numpy as np
from PIL import ExifTags, Image

from odin_jax.shared import colorimetry, png

_ADOBE_RGB = 'R03'
_ADOBE_RGB_XY = ((0.64, 0.33), (0.21, 0.71), (0.15, 0.06))
_ADOBE_RGB_GAMMA = 563 / 256
# gAMA of sRGB, whose curve is no power: programs write this for it.
_GAMA_OF_SRGB = 0.45455
# Primaries that are taken as those of sRGB, as of videos: BT.709, BT.601.
_NEAR_SRGB = (1, colorimetry.UNSPECIFIED, 5, 6, 7)
# Transfers that are taken as that of sRGB: greys stay what they are.
_CURVE_OF_SRGB = (1, colorimetry.UNSPECIFIED, 6, 13, 14, 15)
_GAMMAS = {4: 2.2, 5: 2.8, 8: 1.0}
_NAMES = {colorimetry.PQ: 'PQ', colorimetry.HLG: 'HLG'}


def by_numbers(image: Image.Image, data: bytes) -> colorimetry.Space | None:
  """By numbers of H.273; None where it has none.

  Args:
    image: opened.
    data: of its file.

  Raises:
    ValueError: numbers that are not obeyed here.
  """
  if image.format == 'PNG':
    for kind, content in png.chunks(data):
      if kind == b'cICP' and len(content) == 4:
        primaries, transfer, matrix, is_full = content
        if matrix or not is_full:
          raise ValueError('no RGB of full range')
        return _of_numbers(primaries, transfer)
      if kind == b'IDAT':
        break
  if image.format == 'AVIF':
    place = data.find(b'colrnclx')
    if place >= 0:
      # Pillow undoes the matrix and the range, but not these.
      return _of_numbers(*struct.unpack_from('>2H', data, place + 8))
  return None


def by_measure(image: Image.Image) -> colorimetry.Space | None:
  """By chromaticities and gamma, or by Exif; None where they are sRGB's.

  Args:
    image: loaded.

  Raises:
    ValueError: they are those of no colours.
  """
  if image.format in ('JPEG', 'MPO'):
    index = image.getexif().get_ifd(ExifTags.IFD.Interop).get(1)
    if index == _ADOBE_RGB:
      return _powers(_ADOBE_RGB_GAMMA, colorimetry.bt709_matrix(_ADOBE_RGB_XY))
  if image.format != 'PNG' or 'srgb' in image.info:
    return None
  gamma, xy = (image.info.get(name) for name in ('gamma', 'chromaticity'))
  if gamma is None and xy is None:
    return None
  matrix = np.eye(3)
  if xy is not None:
    white, *primaries = zip(xy[::2], xy[1::2], strict=True)
    matrix = colorimetry.bt709_matrix(tuple(primaries), white)
  if gamma is None or abs(gamma - _GAMA_OF_SRGB) < 1.5e-5:
    return colorimetry.Space((colorimetry.srgb_light,) * 3, matrix)
  if gamma <= 0:
    raise ValueError('a gamma of 0')
  return _powers(1 / gamma, matrix)


def _of_numbers(primaries: int, transfer: int) -> colorimetry.Space:
  if transfer in _CURVE_OF_SRGB:
    curve = colorimetry.srgb_light
  elif transfer in _GAMMAS:
    curve = _power(_GAMMAS[transfer])
  else:
    raise ValueError(f'transfer {_NAMES.get(transfer, transfer)} of H.273')
  if primaries in colorimetry.WIDE_XY:
    matrix = colorimetry.bt709_matrix(colorimetry.WIDE_XY[primaries])
  elif primaries in _NEAR_SRGB:
    matrix = np.eye(3)
  else:
    raise ValueError(f'primaries {primaries} of H.273')
  return colorimetry.Space((curve,) * 3, matrix)


def _power(exponent: float) -> colorimetry.Curve:
  return lambda signal: signal**exponent


def _powers(
  exponent: float, matrix: Float[np.ndarray, '3 3']
) -> colorimetry.Space:
  return colorimetry.Space((_power(exponent),) * 3, matrix)
