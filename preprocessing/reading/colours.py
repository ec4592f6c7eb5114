"""Decoded frames -> pictures in sRGB, whatever colours a video has.

The values of ordinary (SDR) video with the primaries of BT.709 or BT.601 are
sRGB as they are: only matrix and range are undone. Two kinds are converted:

* High dynamic range, the transfers PQ and HLG of BT.2100. Its values become
  light, with SDR white at 203 cd/m2 (BT.2408; HLG as a screen of 1000 cd/m2
  shows it). Up to `_KNEE` of white, light stays what it is. Above, it is
  rolled off, so that `_PEAK_NITS` becomes white, with the curve that FFmpeg's
  filter `tonemap` calls mobius. As there, the largest of red, green and blue
  goes through the curve, and hue stays. The curve is the same for all frames:
  the light of a place must not depend on what else is in the picture.
* Wide primaries, those of BT.2020 and P3. Light is transformed to those of
  BT.709; what these cannot show is clipped.

Light is coded with the curve of sRGB in the end, and SDR video is decoded by it
to transform its primaries, so that greys stay what they are.

As in players, a video that names no transfer is SDR, and one of PQ or HLG that
names no primaries or matrix has those of BT.2020. Other tags are not guessed
at: see `fault`.

Tags are numbers of ITU-T H.273, as FFmpeg has them.
"""

import functools
from typing import Any

import av
from av.video.reformatter import ColorRange, Colorspace, Interpolation
import cv2
from jaxtyping import Float, Float32, UInt8
import numpy as np

from odin_jax.shared import colorimetry

# What can be read of each tag, by its name.
_TRANSFERS = {
  1: 'bt709',
  colorimetry.UNSPECIFIED: 'unknown',
  4: 'gamma22',
  5: 'gamma28',
  6: 'smpte170m',
  7: 'smpte240m',
  11: 'iec61966-2-4',
  12: 'bt1361e',
  13: 'iec61966-2-1',
  14: 'bt2020-10',
  15: 'bt2020-12',
  colorimetry.PQ: 'smpte2084',
  colorimetry.HLG: 'arib-std-b67',
}
_PRIMARIES = {
  1: 'bt709',
  colorimetry.UNSPECIFIED: 'unknown',
  4: 'bt470m',
  5: 'bt470bg',
  6: 'smpte170m',
  7: 'smpte240m',
  8: 'film',
  colorimetry.BT2020: 'bt2020',
  11: 'smpte431',
  12: 'smpte432',
  22: 'ebu3213',
}
_MATRICES = {
  0: 'gbr',
  1: 'bt709',
  colorimetry.UNSPECIFIED: 'unknown',
  4: 'fcc',
  5: 'bt470bg',
  6: 'smpte170m',
  7: 'smpte240m',
  9: 'bt2020nc',
}
# Names of some that cannot be read, for the message.
_UNREAD = {
  'transfer': {8: 'linear', 9: 'log100', 10: 'log316', 17: 'smpte428'},
  'primaries': {10: 'smpte428'},
  'matrix': {
    8: 'ycgco',
    10: 'bt2020c',
    11: 'smpte2085',
    12: 'chroma-derived-nc',
    13: 'chroma-derived-c',
    14: 'ictcp',
    15: 'ipt-c2, as of Dolby Vision',
    16: 'ycgco-re',
    17: 'ycgco-ro',
  },
}
# Tags of a video that names no matrix: its size tells, as in players.
_NO_MATRIX = (0, colorimetry.UNSPECIFIED, 3)
_HD_WIDTH_PX, _HD_HEIGHT_PX = 1280, 576
# Light of SDR white, and of what becomes white, in cd/m2; the latter is also
# the brightest that HLG has on its screen.
_WHITE_NITS, _PEAK_NITS = 203.0, 1000.0
_KNEE = 0.9
# The system gamma of HLG is 1 + this on that screen.
_HLG_GAMMA = 0.2
# FFmpeg rounds deeper video down unless it is asked not to, which costs 2 to 4
# levels. (So it does with 8 bits, by 1 to 2, which stay as they were.)
_EXACT = (
  Interpolation.BILINEAR
  | Interpolation.ACCURATE_RND
  | Interpolation.FULL_CHR_H_INT
)
# What white becomes in 16 bits: FFmpeg widens limited range by shifts.
_WHITE_LIMITED, _WHITE_FULL = 255 << 8, 65535


def to_srgb(frame: av.VideoFrame) -> UInt8[np.ndarray, 'h w 3']:
  """The picture of a frame that has no `fault`, in sRGB."""
  matrix = _assumed_matrix(frame)
  if _is_sdr(frame) and frame.color_primaries not in colorimetry.WIDE_XY:
    options = {'interpolation': _EXACT} if _bits(frame) > 8 else {}
    return frame.to_ndarray(format='rgb24', src_colorspace=matrix, **options)
  signal = frame.to_ndarray(format='rgb48le', src_colorspace=matrix)
  is_full = frame.color_range == ColorRange.JPEG or frame.format.is_rgb
  light = _light_table(frame.color_trc, is_full)
  to_bt709 = _primaries_matrix(_primaries(frame))
  output = np.empty(signal.shape, np.uint8)
  for row in range(0, len(signal), colorimetry.STRIP):
    strip = cv2.transform(
      light[signal[row : row + colorimetry.STRIP]], to_bt709
    )
    if frame.color_trc == colorimetry.HLG:
      _show_hlg(strip)
    if not _is_sdr(frame):
      _roll_off(strip)
    output[row : row + colorimetry.STRIP] = _coded(strip)
  return output


def fault(frame: av.VideoFrame) -> str:
  """What in a frame's colours cannot be read; '' for nothing."""
  side_data = {item.type.name for item in frame.side_data}
  if (
    frame.color_trc == colorimetry.UNSPECIFIED
    and frame.color_primaries == colorimetry.UNSPECIFIED
    and side_data & {'DOVI_METADATA', 'DOVI_RPU_BUFFER'}
  ):
    return (
      'its colours are those of Dolby Vision alone (profile 5), which are not '
      'read; export it as HDR10, HLG or SDR'
    )
  for name, number, readable in (
    ('transfer', frame.color_trc, _TRANSFERS),
    ('primaries', frame.color_primaries, _PRIMARIES),
    ('matrix', frame.colorspace, _MATRICES),
  ):
    # Zero and three are reserved, and mean no more than `UNSPECIFIED`.
    if number not in (0, 3, *readable):
      words = _UNREAD[name].get(number, f'number {number}')
      return (
        f'its colours are not read ({name} {words}); export it in BT.709, or '
        'correct the tags where only these are wrong'
      )
  return ''


def describe(frame: av.VideoFrame) -> dict[str, Any]:
  """What colours a video has by one of its frames, for the manifest.

  Returns:
    tags by name, as they are; `bits`; `conversion`: what was done to come to
    sRGB, with what was assumed.
  """
  is_wide = _primaries(frame) in colorimetry.WIDE_XY
  words = []
  if not _is_sdr(frame):
    words.append(
      f'high dynamic range: white at {_WHITE_NITS:g} cd/m2, unchanged up to '
      f'{_KNEE:g} of it, rolled off up to {_PEAK_NITS:g} cd/m2'
    )
  if is_wide:
    words.append('wide primaries: transformed to those of BT.709, clipped')
  if is_wide and frame.color_primaries not in colorimetry.WIDE_XY:
    words.append('those of BT.2020 were assumed')
  return {
    'transfer': _TRANSFERS.get(frame.color_trc, 'unknown'),
    'primaries': _PRIMARIES.get(frame.color_primaries, 'unknown'),
    'matrix': _MATRICES.get(frame.colorspace, 'unknown'),
    'range': {1: 'limited', 2: 'full'}.get(int(frame.color_range), 'unknown'),
    'bits': _bits(frame),
    'conversion': '; '.join(words) or 'none',
  }


def _is_sdr(frame: av.VideoFrame) -> bool:
  return frame.color_trc not in (colorimetry.PQ, colorimetry.HLG)


def _bits(frame: av.VideoFrame) -> int:
  return frame.format.components[0].bits


def _primaries(frame: av.VideoFrame) -> int:
  """The primaries, also where an HDR frame names none."""
  is_named = frame.color_primaries not in (0, colorimetry.UNSPECIFIED, 3)
  if is_named or _is_sdr(frame):
    return frame.color_primaries
  return colorimetry.BT2020


def _assumed_matrix(frame: av.VideoFrame) -> Colorspace | None:
  """The matrix where the frame names none; None where FFmpeg knows it."""
  if frame.format.is_rgb or frame.colorspace not in _NO_MATRIX:
    return None
  if _primaries(frame) == colorimetry.BT2020:
    return Colorspace.BT2020
  is_hd = frame.width >= _HD_WIDTH_PX or frame.height > _HD_HEIGHT_PX
  return Colorspace.ITU709 if is_hd else Colorspace.ITU601


@functools.lru_cache(maxsize=4)
def _light_table(transfer: int, is_full: bool) -> Float32[np.ndarray, 'v']:
  """Light of every 16-bit value; that of SDR white is 1, for HLG its peak."""
  white = _WHITE_FULL if is_full else _WHITE_LIMITED
  signal = np.minimum(np.arange(1 << 16) / white, 1.0)
  if transfer == colorimetry.PQ:
    light = _pq_nits(signal) / _WHITE_NITS
  elif transfer == colorimetry.HLG:
    light = _hlg_scene(signal)
  else:
    light = colorimetry.srgb_light(signal)
  return light.astype(np.float32)


def _pq_nits(signal: Float[np.ndarray, 'v']) -> Float[np.ndarray, 'v']:
  """Light in cd/m2 of values of PQ in 0..1 (SMPTE ST 2084)."""
  root = signal ** (32 / 2523)
  share = np.maximum(root - 107 / 128, 0) / (2413 / 128 - 2392 / 128 * root)
  return 10_000 * share ** (8192 / 1305)


def _hlg_scene(signal: Float[np.ndarray, 'v']) -> Float[np.ndarray, 'v']:
  """Light before the camera of values of HLG, both in 0..1 (BT.2100)."""
  a, b, c = 0.17883277, 0.28466892, 0.55991073
  return np.where(
    signal <= 0.5, signal**2 / 3, (np.exp((signal - c) / a) + b) / 12
  )


def _show_hlg(light: Float32[np.ndarray, 'h w 3']) -> None:
  """Scene's light -> that of the screen, in place; in primaries of BT.709."""
  to_xyz = colorimetry.xyz_matrix(colorimetry.BT709_XY)
  luminance = cv2.transform(light, to_xyz[1:2])
  gain = np.maximum(luminance, 1e-6) ** _HLG_GAMMA
  light *= (gain * (_PEAK_NITS / _WHITE_NITS))[..., None]


def _roll_off(light: Float32[np.ndarray, 'h w 3']) -> None:
  """Brings light above the knee to at most 1, in place.

  With peak p and knee k the curve is s (x + a) / (x + b), of value k and slope
  1 at k, and of value 1 at p.
  """
  peak, knee = _PEAK_NITS / _WHITE_NITS, _KNEE
  a = -(knee**2) * (peak - 1) / (knee**2 - 2 * knee + peak)
  b = (knee**2 - 2 * knee * peak + peak) / (peak - 1)
  scale = (b**2 + 2 * b * knee + knee**2) / (b - a)
  strongest = light.max(axis=2)
  is_bright = strongest > knee
  bright = strongest[is_bright]
  factor = scale * (bright + a) / ((bright + b) * bright)
  light[is_bright] *= factor[:, None]


def _coded(light: Float32[np.ndarray, 'h w 3']) -> UInt8[np.ndarray, 'h w 3']:
  """Light, 1 for white, in sRGB; clipped."""
  steps = np.clip(light * 65535 + 0.5, 0, 65535).astype(np.uint16)
  return _srgb_table()[steps]


@functools.cache
def _srgb_table() -> UInt8[np.ndarray, 'v']:
  light = np.arange(1 << 16) / 65535
  return np.round(255 * colorimetry.srgb_signal(light)).astype(np.uint8)


@functools.cache
def _primaries_matrix(primaries: int) -> Float[np.ndarray, '3 3']:
  """From red, green and blue of primaries to those of BT.709."""
  if primaries not in colorimetry.WIDE_XY:
    return np.eye(3)
  return colorimetry.bt709_matrix(colorimetry.WIDE_XY[primaries])
