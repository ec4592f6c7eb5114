"""ICC profiles of version 2, byte by byte (ICC.1:2001-04), and their colours.

What levels mean is also computed here, by colorimetry alone.
"""

import struct

import numpy as np

D50 = np.array([0.9642, 1.0, 0.8249])
D65 = np.array([0.95047, 1.0, 1.08883])
BRADFORD = np.array(
  [
    [0.8951, 0.2664, -0.1614],
    [-0.7502, 1.7135, 0.0367],
    [0.0389, -0.0685, 1.0296],
  ]
)
# x and y of red, green and blue.
PRIMARIES = {
  'srgb': [(0.64, 0.33), (0.3, 0.6), (0.15, 0.06)],
  'display_p3': [(0.68, 0.32), (0.265, 0.69), (0.15, 0.06)],
  'adobe_rgb': [(0.64, 0.33), (0.21, 0.71), (0.15, 0.06)],
  'bt2020': [(0.708, 0.292), (0.17, 0.797), (0.131, 0.046)],
}


def to_light(encoded):
  """sRGB's curve, which is Display P3's, too."""
  return np.where(
    encoded <= 0.04045, encoded / 12.92, ((encoded + 0.055) / 1.055) ** 2.4
  )


def to_levels(light):
  light = np.clip(light, 0, 1)
  curved = 1.055 * light ** (1 / 2.4) - 0.055
  return 255 * np.where(light <= 0.0031308, light * 12.92, curved)


# A gamma that ICC's fixed point numbers hold.
CURVES = {
  'srgb': to_light,
  'display_p3': to_light,
  'bt2020': to_light,
  'adobe_rgb': lambda encoded: encoded ** (563 / 256),
}


def rgb2xyz(name):
  """Under D65, which is white in all of them."""
  matrix = np.array([[x / y, 1.0, (1 - x - y) / y] for x, y in PRIMARIES[name]])
  return matrix.T * np.linalg.solve(matrix.T, D65)


def adapted(matrix):
  """XYZ under D65 -> D50, as profiles have it."""
  cones = np.diag(BRADFORD @ D50 / (BRADFORD @ D65))
  return np.linalg.inv(BRADFORD) @ cones @ BRADFORD @ matrix


def srgb_of(pixels, name):
  """Levels, not rounded, in sRGB of levels in another space."""
  light = CURVES[name](pixels / 255)
  to_srgb = np.linalg.solve(rgb2xyz('srgb'), rgb2xyz(name))
  return to_levels(light @ to_srgb.T)


def srgb_of_lab(lab):
  """Levels in sRGB of CIE L*a*b* under D50."""
  middle = (lab[..., 0] + 16) / 116
  f = np.stack(
    [middle + lab[..., 1] / 500, middle, middle - lab[..., 2] / 200], -1
  )
  xyz = np.where(f > 6 / 29, f**3, 3 * (6 / 29) ** 2 * (f - 4 / 29)) * D50
  return to_levels(xyz @ np.linalg.inv(adapted(rgb2xyz('srgb'))).T)


def _xyz(values):
  return b'XYZ \0\0\0\0' + struct.pack(
    '>3i', *np.round(values * 65536).astype(int)
  )


def _curve(values):
  entries = np.round(values * 65535).astype('>u2')
  return b'curv\0\0\0\0' + struct.pack('>I', len(entries)) + entries.tobytes()


def _profile(space, tags, kind=b'mntr', pcs=b'XYZ '):
  place = 128 + 4 + 12 * len(tags)
  table, body = struct.pack('>I', len(tags)), b''
  for name, data in tags.items():
    table += name + struct.pack('>II', place + len(body), len(data))
    body += data + bytes(-len(data) % 4)
  header = struct.pack(
    '>I4xI4s4s4s12x4s28x3i',
    place + len(body),
    0x02400000,
    kind,
    space,
    pcs,
    b'acsp',
    *np.round(D50 * 65536).astype(int),
  )
  return header.ljust(128, b'\0') + table + body


def parametric(kind, *numbers):
  """A curve of ICC version 4, of one of its kinds."""
  fixed = np.round(np.multiply(numbers, 65536)).astype(int)
  return struct.pack(f'>4s4xHxx{len(numbers)}i', b'para', kind, *fixed)


def rgb(name, error=0.0, curve=None):
  """Of a curve and of three primaries, which are so far from the true ones."""
  curve = curve or _curve(CURVES[name](np.linspace(0, 1, 4096)))
  columns = adapted(rgb2xyz(name)).T + np.outer([1, -1, 0], np.full(3, error))
  tags = {b'wtpt': _xyz(D50)}
  tags |= {key + b'XYZ': _xyz(x) for key, x in zip((b'r', b'g', b'b'), columns)}
  tags |= {key + b'TRC': curve for key in (b'r', b'g', b'b')}
  return _profile(b'RGB ', tags)


def grey(curve):
  tags = {b'wtpt': _xyz(D50), b'kTRC': _curve(curve(np.linspace(0, 1, 4096)))}
  return _profile(b'GRAY', tags)


def cmyk(lab):
  """Of paints without a mixture: [2 2 2 2 3], L*a*b* with and without each."""
  encoded = np.round(lab * [2.55, 1, 1] + [0, 128, 128]).astype(np.uint8)
  ramp = bytes(range(256))
  identity = struct.pack('>9i', *(65536 * np.eye(3, dtype=int)).ravel())
  table = b'mft1\0\0\0\0' + bytes([4, 3, 2, 0]) + identity
  table += ramp * 4 + encoded.tobytes() + ramp * 3
  return _profile(
    b'CMYK', {b'wtpt': _xyz(D50), b'A2B0': table}, b'prtr', b'Lab '
  )
