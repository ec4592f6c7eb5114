"""Images that people give: any common file -> upright 8-bit RGB, or one line.

Other people's files hold more than three channels of 8 bits: transparency, 16
bits, a palette, CMYK, colours of another gamut, an orientation, several
pictures, half of a picture. Each comes out as a viewer shows it, or is refused.
"""

import contextlib
import io
import os
import pathlib
from typing import Iterator
import warnings

import cv2
from jaxtyping import Shaped, UInt8, UInt16
import numpy as np
from PIL import Image, ImageColor

from odin_jax.shared import colour_profiles, errors, files, impostors

WHITE = (255, 255, 255)
# The largest panoramas have 16384 x 8192 pixels. A header can promise any
# number, and memory would be taken for all of them.
MAX_PIXELS = 2**27
# Pillow knows others too, some of which start programs (EPS).
_FORMATS = (
  'AVIF',
  'BMP',
  'GIF',
  'JPEG',
  'JPEG2000',
  'PNG',
  'PPM',
  'TIFF',
  'WEBP',
)
_ORIENTATION_TAG = 0x0112
# EXIF's orientation: what turns the stored picture upright.
_UPRIGHT = {
  1: lambda pixels: pixels,
  2: lambda pixels: pixels[:, ::-1],
  3: lambda pixels: pixels[::-1, ::-1],
  4: lambda pixels: pixels[::-1],
  5: lambda pixels: pixels.swapaxes(0, 1),
  6: lambda pixels: pixels[::-1].swapaxes(0, 1),
  7: lambda pixels: pixels[::-1, ::-1].swapaxes(0, 1),
  8: lambda pixels: pixels[:, ::-1].swapaxes(0, 1),
}
# Pillow's modes of one channel with 16 bits.
_GREY_16 = ('I;16', 'I;16L', 'I;16B', 'I;16N')
_PNG_START = b'\x89PNG\r\n\x1a\n'
# How files begin that would be images if the rest were sound.
_IMAGE_STARTS = (b'\xff\xd8\xff', _PNG_START, b'II*\0', b'MM\0*', b'GIF8')
# Brands in the first box of HEIC; every other `ftyp` is taken for a video.
_HEIC_BRANDS = (b'heic', b'heix', b'heim', b'heis', b'hevc', b'mif1', b'msf1')
# How files begin that hold no picture we can read, and what to do.
_FRAME_OF_VIDEO = (
  'is a video; give one picture of it: ffmpeg -i VIDEO -frames:v 1 frame.png'
)
_NOT_IMAGES = (
  (b'\x1a\x45\xdf\xa3', _FRAME_OF_VIDEO),
  (b'%PDF', 'is a PDF; export its picture as PNG'),
  (b'%!PS', 'is PostScript; export its picture as PNG'),
  (b'<svg', 'is SVG; export it as PNG'),
  (b'<?xml', 'is XML or SVG; export it as PNG'),
)
# JPEG's markers: end of image, start of scan; what may stand inside a scan.
_EOI, _SOS = 0xD9, 0xDA
_IN_SCAN = (0x00, *range(0xD0, 0xD8))


def parse_colour(text: str) -> tuple[int, int, int]:
  """'R,G,B' of 0 to 255, a name of CSS or '#RRGGBB' -> the colour.

  Raises:
    errors.UserError: it is none of these.
  """
  with contextlib.suppress(ValueError):
    if ',' not in text:
      return ImageColor.getrgb(text.strip())[:3]
    levels = [int(level) for level in text.split(',')]
    if len(levels) == 3 and all(0 <= level <= 255 for level in levels):
      return tuple(levels)
  raise errors.UserError(
    f'{text!r} is no colour; give R,G,B of 0 to 255, such as 255,255,255, or '
    'a name such as white'
  )


def read(
  path: str | os.PathLike[str],
  what: str,
  *,
  background: tuple[int, int, int] = WHITE,
) -> UInt8[np.ndarray, 'h w 3']:
  """An image as a viewer shows it, RGB.

  Grey, palettes, CMYK and 16 bits become RGB of 8 bits. EXIF's orientation is
  obeyed, and what is said of colours; a warning tells what cannot be.

  Args:
    path: of the file.
    what: what is needed here, should there be no file.
    background: what shines through where the image is transparent.

  Raises:
    errors.UserError: no file, no image, a damaged or an unfinished one, more
      than one picture in it, or one of more than `MAX_PIXELS`.
  """
  return composite(read_stored(path, what), background)


def size_px(path: str | os.PathLike[str], what: str) -> tuple[int, int]:
  """Width and height as its header says, before anything is decoded.

  Args:
    path: of the file.
    what: what is needed here, should there be no file.

  Raises:
    errors.UserError: no image, or one of more than `MAX_PIXELS`.
  """
  path = pathlib.Path(path)
  data = files.require_file(path, what).read_bytes()
  with _faults_named(path, data), _opened(data) as image:
    return image.size


def read_stored(
  path: str | os.PathLike[str], what: str, *, upright: bool = True
) -> Shaped[np.ndarray, 'h w c']:
  """An image upright, in sRGB, with its alpha and its 16 bits.

  Args:
    path: of the file.
    what: what is needed here, should there be no file.
    upright: turn it as its header says; else pixels stay where they are.

  Returns:
    uint8 or uint16, RGB or RGBA.

  Raises:
    errors.UserError: as `read`.
  """
  path = pathlib.Path(path)
  if path.is_dir():
    raise errors.UserError(f'{path}: is a folder; give {what}, a file')
  data = files.require_file(path, what).read_bytes()
  if not data:
    raise errors.UserError(f'{path}: is empty; {what} is needed here')
  with _faults_named(path, data):
    if data.startswith(_PNG_START):
      # Decoding looks at no checksum.
      with _opened(data) as image:
        image.verify()
    with _opened(data) as image:
      _check_is_single(path, image)
      image.load()
      if image.format in ('JPEG', 'MPO'):
        _check_jpeg_is_whole(data, image)
      orientation = image.getexif().get(_ORIENTATION_TAG) if upright else 1
      turn = _UPRIGHT.get(orientation, _UPRIGHT[1])
      pixels = _pixels(path, data, image)
  return np.ascontiguousarray(turn(pixels))


def composite(
  pixels: Shaped[np.ndarray, 'h w c'], background: tuple[int, int, int]
) -> UInt8[np.ndarray, 'h w 3']:
  """What `read_stored` gives, over a background, in 8 bits."""
  if pixels.dtype == np.uint8 and pixels.shape[2] == 3:
    return pixels
  largest = np.iinfo(pixels.dtype).max
  colour = pixels[..., :3].astype(np.float32) * np.float32(255 / largest)
  if pixels.shape[2] == 4:
    alpha = pixels[..., 3:].astype(np.float32) / np.float32(largest)
    under = np.array(background, np.float32)
    colour = under + alpha * (colour - under)
  return np.round(colour).astype(np.uint8)


@contextlib.contextmanager
def _faults_named(path: pathlib.Path, data: bytes) -> Iterator[None]:
  """Makes one line of what decoders raise."""
  try:
    yield
  except errors.UserError:
    raise
  except (Image.DecompressionBombError, MemoryError) as error:
    raise errors.UserError(
      f'{path}: has more pixels than {MAX_PIXELS // 10**6} million, which is '
      'the limit; reduce it first'
    ) from error
  except Image.UnidentifiedImageError as error:
    raise errors.UserError(f'{path}: {_unknown(data)}') from error
  # Damaged files raise whatever a decoder trips over: OSError, SyntaxError,
  # struct.error, IndexError, zlib.error and more.
  except Exception as error:  # noqa: BLE001
    raise errors.UserError(
      f'{path}: is damaged or not whole ({error}); copy or export it again'
    ) from error


@contextlib.contextmanager
def _opened(data: bytes) -> Iterator[Image.Image]:
  """The image, its header read, and not too large."""
  with warnings.catch_warnings():
    # Pillow warns of large images; the limit here is our own.
    warnings.simplefilter('ignore')
    with Image.open(io.BytesIO(data), formats=_FORMATS) as image:
      if image.width * image.height > MAX_PIXELS:
        raise Image.DecompressionBombError(f'{image.width}x{image.height}')
      yield image


def _unknown(data: bytes) -> str:
  is_avif = data[4:12] in (b'ftypavif', b'ftypavis')
  if is_avif or data.startswith(_IMAGE_STARTS):
    return 'is damaged or not whole; copy or export it again'
  if data[4:8] == b'ftyp':
    if data[8:12] in _HEIC_BRANDS:
      return 'is HEIC, which is not read here; export it as JPEG or PNG'
    return _FRAME_OF_VIDEO
  if data[:4] == b'RIFF' and data[8:12] == b'AVI ':
    return _FRAME_OF_VIDEO
  # An MPEG transport stream: packets of 188 bytes.
  if data[:1] == b'G' and data[188:189] == b'G':
    return _FRAME_OF_VIDEO
  text = data[:512].lstrip()
  for start, what in _NOT_IMAGES:
    if text[: len(start)].lower() == start.lower():
      return what
  if what := impostors.recognise(data):
    return f'is {what}'
  return 'cannot be read as an image; give a JPEG or PNG file'


def _check_is_single(path: pathlib.Path, image: Image.Image) -> None:
  # Phones put depth or brightness as further pictures into their JPEGs (MPO).
  count = getattr(image, 'n_frames', 1)
  if count > 1 and image.format != 'MPO':
    raise errors.UserError(
      f'{path}: holds {count} pictures (animated, or of several pages); give '
      'one of them as JPEG or PNG'
    )


def _pixels(
  path: pathlib.Path, data: bytes, image: Image.Image
) -> Shaped[np.ndarray, 'h w c']:
  """RGB or RGBA, as many bits as are stored."""
  if image.format == 'PNG' and data[24] == 16:
    pixels = _of_16_bits(data)
    colour_profiles.make_srgb(pixels, image, data, path)
    return pixels
  if image.mode in _GREY_16 or (image.mode, image.format) == ('I', 'PPM'):
    grey = np.asarray(image).astype(np.uint16)
    pixels = np.repeat(grey[..., None], 3, axis=-1)
    colour_profiles.make_srgb(pixels, image, data, path)
    return pixels
  if image.mode in ('I', 'F'):
    raise errors.UserError(
      f'{path}: has 32 bits per pixel, whose range is not known; export it '
      'with 8 or 16 bits'
    )
  return colour_profiles.to_rgb(image, data, path)


def _of_16_bits(data: bytes) -> UInt16[np.ndarray, 'h w c']:
  """RGB or RGBA of a PNG; Pillow has no 16 bits but in grey."""
  stored = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
  if stored is None:
    raise ValueError('no pixels')
  if stored.ndim == 2:
    return np.repeat(stored[..., None], 3, axis=-1)
  order = cv2.COLOR_BGR2RGB if stored.shape[2] == 3 else cv2.COLOR_BGRA2RGBA
  return cv2.cvtColor(stored, order)


# -- Whether all of a JPEG is there --------------------------------------------


def _check_jpeg_is_whole(data: bytes, image: Image.Image) -> None:
  """Raises if pixels are made up, as decoders do where the data end early.

  No decoder tells. So the picture is decoded once more with other bytes
  before its end marker: where data were missing, these become pixels; where
  they were not, they are passed over.
  """
  end = _end_of_jpeg(data)
  if end is None:
    raise ValueError('its end is missing')
  filler = bytes(np.random.default_rng(0).integers(0, 255, 4096, np.uint8))
  with _opened(data[:end] + filler + data[end:]) as other:
    other.load()
    if other.tobytes() != image.tobytes():
      raise ValueError('its last rows are missing')


def _end_of_jpeg(data: bytes) -> int | None:
  """Where the end marker of the first picture is, or None."""
  place = 2
  while place + 4 <= len(data):
    if data[place] != 0xFF:
      return None
    marker = data[place + 1]
    if marker == 0xFF:
      # Markers may be padded.
      place += 1
      continue
    if marker == _EOI:
      return place
    place += 2 + int.from_bytes(data[place + 2 : place + 4])
    if marker == _SOS:
      place = _end_of_scan(data, place)
  is_end = data[place : place + 2] == bytes([0xFF, _EOI])
  return place if is_end else None


def _end_of_scan(data: bytes, place: int) -> int:
  """Where the next marker after a scan's data is."""
  while True:
    place = data.find(b'\xff', place)
    if place < 0 or place + 1 >= len(data):
      return len(data)
    if data[place + 1] not in _IN_SCAN:
      return place
    place += 2
