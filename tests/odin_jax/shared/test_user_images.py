"""Images that people give: as a viewer shows them, or refused in one line."""

import io
import struct
import zlib

import cv2
import numpy as np
from PIL import Image, ImageCms
import pytest

from odin_jax.shared import errors, user_images
from tests.helpers import icc_profiles

HEIGHT, WIDTH = 40, 56


def smooth(channels=3, seed=0):
  """Levels that a JPEG keeps nearly as they are."""
  coarse = np.random.default_rng(seed).uniform(20, 235, (4, 5, channels))
  image = cv2.resize(coarse, (WIDTH, HEIGHT), interpolation=cv2.INTER_LINEAR)
  return image.reshape(HEIGHT, WIDTH, channels).round().astype(np.uint8)


def encoded(pixels, kind, mode=None, **options):
  image = Image.fromarray(pixels) if mode is None else mode(pixels)
  stream = io.BytesIO()
  image.save(stream, kind, **options)
  return stream.getvalue()


def png_16(pixels):
  return cv2.imencode('.png', pixels)[1].tobytes()


def with_chunk(data, kind, content):
  """A PNG with a chunk more, right after its header."""
  body = kind + content
  chunk = struct.pack('>I', len(content)) + body
  chunk += struct.pack('>I', zlib.crc32(body))
  return data[:33] + chunk + data[33:]


def read(folder, data, **options):
  (folder / 'image').write_bytes(data)
  return user_images.read(folder / 'image', 'an image', **options)


def with_palette(index, colours):
  image = Image.frombytes('P', index.shape[::-1], index.tobytes())
  image.putpalette(colours.astype(np.uint8).tobytes())
  return image


def cmyk(pixels):
  return Image.frombytes('CMYK', pixels.shape[1::-1], pixels.tobytes())


RGB = smooth()
GREY = np.repeat(RGB[..., :1], 3, axis=-1)
EXACT = {
  'png': (encoded(RGB, 'PNG'), RGB),
  'webp': (encoded(RGB, 'WEBP', lossless=True), RGB),
  'bmp': (encoded(RGB, 'BMP'), RGB),
  'tiff': (encoded(RGB, 'TIFF', compression='tiff_lzw'), RGB),
  'ppm': (encoded(RGB, 'PPM'), RGB),
  'grey': (encoded(GREY[..., 0], 'PNG'), GREY),
  'grey with alpha': (
    encoded(np.dstack([GREY[..., 0], np.full_like(GREY[..., 0], 255)]), 'PNG'),
    GREY,
  ),
  'black and white': (
    encoded(GREY[..., 0] > 99, 'PNG'),
    np.uint8(255) * (GREY > 99),
  ),
  'palette': (
    encoded(
      RGB[..., 0] // 16,
      'PNG',
      lambda index: with_palette(index, np.arange(48).reshape(16, 3) * 5),
    ),
    (np.arange(48).reshape(16, 3) * 5).astype(np.uint8)[RGB[..., 0] // 16],
  ),
  'gif': (
    encoded(GREY[..., 0], 'GIF'),
    GREY,
  ),
  # 257 is 65535 / 255; up to half of that is rounded away.
  'grey, 16 bits': (
    png_16(GREY[..., 0].astype(np.uint16) * 257 + 120),
    GREY,
  ),
  'grey, 16 bits, TIFF': (
    encoded(GREY[..., 0].astype(np.uint16) * 257 - 120, 'TIFF'),
    GREY,
  ),
  '16 bits': (png_16(RGB[..., ::-1].astype(np.uint16) * 257 - 120), RGB),
  'CMYK': (
    encoded(smooth(4), 'TIFF', cmyk),
    np.asarray(cmyk(smooth(4)).convert('RGB')),
  ),
}


@pytest.mark.parametrize('kind', EXACT)
def test_levels_come_back_as_they_were_painted(tmp_path, kind):
  data, expected = EXACT[kind]
  image = read(tmp_path, data)
  assert image.dtype == np.uint8
  np.testing.assert_array_equal(image, expected)


@pytest.mark.parametrize(
  'options',
  [{}, {'progressive': True}, {'restart_marker_rows': 1}, {'optimize': True}],
)
def test_a_jpeg_is_whole_or_refused(tmp_path, options):
  data = encoded(RGB, 'JPEG', quality=95, subsampling=0, **options)
  assert np.abs(read(tmp_path, data).astype(int) - RGB).mean() < 2
  # Phones write depth and small videos after the end.
  trailing = data + b'trailer \xff\xd8 more \xff\xd9'
  np.testing.assert_array_equal(read(tmp_path, trailing), read(tmp_path, data))
  for length in (len(data) // 2, len(data) * 9 // 10, len(data) - 8):
    for end in (b'', b'\xff\xd9'):
      with pytest.raises(errors.UserError, match='damaged or not whole'):
        read(tmp_path, data[:length] + end)


def test_a_grey_and_a_cmyk_jpeg(tmp_path):
  data = encoded(GREY[..., 0], 'JPEG', quality=98)
  assert np.abs(read(tmp_path, data).astype(int) - GREY).max() < 8
  data = encoded(smooth(4), 'JPEG', cmyk, quality=98)
  expected = np.asarray(cmyk(smooth(4)).convert('RGB')).astype(int)
  assert np.abs(read(tmp_path, data) - expected).mean() < 3


def stored(upright, orientation):
  """How a picture is stored, by what EXIF says of row 0 and column 0."""
  rows, columns = {
    1: ('top', 'left'),
    2: ('top', 'right'),
    3: ('bottom', 'right'),
    4: ('bottom', 'left'),
    5: ('left', 'top'),
    6: ('right', 'top'),
    7: ('right', 'bottom'),
    8: ('left', 'bottom'),
  }[orientation]
  if rows in ('left', 'right'):
    upright = np.transpose(upright, (1, 0, 2))
  if rows in ('bottom', 'right'):
    upright = upright[::-1]
  return upright[:, ::-1] if columns in ('bottom', 'right') else upright


@pytest.mark.parametrize('orientation', range(1, 9))
@pytest.mark.parametrize('kind', ['PNG', 'TIFF', 'WEBP', '16 bits'])
def test_orientation_is_obeyed(tmp_path, orientation, kind):
  exif = Image.Exif()
  exif[0x0112] = orientation
  pixels = np.ascontiguousarray(stored(RGB, orientation))
  if kind == '16 bits':
    data = png_16(pixels[..., ::-1].astype(np.uint16) * 257)
    data = with_chunk(data, b'eXIf', exif.tobytes().removeprefix(b'Exif\0\0'))
  else:
    options = {'lossless': True} if kind == 'WEBP' else {}
    data = encoded(pixels, kind, exif=exif, **options)
  np.testing.assert_array_equal(read(tmp_path, data), RGB)


def test_orientation_of_a_jpeg_is_obeyed(tmp_path):
  exif = Image.Exif()
  exif[0x0112] = 6
  pixels = np.ascontiguousarray(stored(RGB, 6))
  data = encoded(pixels, 'JPEG', quality=98, subsampling=0, exif=exif)
  assert np.abs(read(tmp_path, data).astype(int) - RGB).mean() < 2


@pytest.mark.parametrize('background', [(255, 255, 255), (10, 200, 90)])
@pytest.mark.parametrize('bits', [8, 16])
def test_transparency_shows_the_background(tmp_path, background, bits):
  alpha = smooth(1, seed=1)
  alpha[:9], alpha[-9:] = 0, 255
  share = alpha / 255
  expected = RGB * share + np.array(background) * (1 - share)
  if bits == 8:
    data = encoded(np.dstack([RGB, alpha]), 'PNG')
  else:
    pixels = np.dstack([RGB[..., ::-1], alpha]).astype(np.uint16) * 257
    data = png_16(pixels)
  image = read(tmp_path, data, background=background)
  assert np.abs(image - expected).max() <= 0.5 + 1e-3
  assert (image[0, 0] == background).all()


def test_a_transparent_palette_colour_shows_the_background(tmp_path):
  data, expected = EXACT['palette']
  image = Image.open(io.BytesIO(data))
  data = encoded(image, 'PNG', lambda image: image, transparency=7)
  expected = np.where((RGB[..., :1] // 16 == 7), np.uint8([1, 2, 3]), expected)
  np.testing.assert_array_equal(
    read(tmp_path, data, background=(1, 2, 3)), expected
  )


@pytest.fixture
def warned(monkeypatch):
  lines = []
  monkeypatch.setattr(
    'absl.logging.warning', lambda text, *values: lines.append(text % values)
  )
  return lines


@pytest.mark.parametrize('kind', ['PNG', 'TIFF', 'WEBP'])
@pytest.mark.parametrize('name', ['display_p3', 'adobe_rgb'])
def test_colours_of_a_wide_gamut_become_srgb(tmp_path, warned, name, kind):
  pixels = np.random.default_rng(0).integers(0, 256, RGB.shape, np.uint8)
  options = {'lossless': True} if kind == 'WEBP' else {}
  data = encoded(pixels, kind, icc_profile=icc_profiles.rgb(name), **options)
  expected = icc_profiles.srgb_of(pixels, name)
  found = read(tmp_path, data)
  assert np.abs(found - expected).max() < 1.1
  # Which is not what the levels say.
  assert np.abs(found - pixels.astype(float)).max() > 20
  assert warned == []


def test_colours_of_a_palette_and_of_a_jpeg_become_srgb(tmp_path):
  profile = icc_profiles.rgb('display_p3')
  data, colours = EXACT['palette']
  data = encoded(
    Image.open(io.BytesIO(data)), 'PNG', lambda x: x, icc_profile=profile
  )
  expected = icc_profiles.srgb_of(colours, 'display_p3')
  assert np.abs(read(tmp_path, data) - expected).max() < 1.1
  options = {'quality': 98, 'subsampling': 0}
  data = encoded(RGB, 'JPEG', icc_profile=profile, **options)
  expected = icc_profiles.srgb_of(RGB, 'display_p3')
  assert np.abs(read(tmp_path, data) - expected).mean() < 2


@pytest.mark.parametrize('is_grey', [False, True])
def test_transparency_stays_what_it_is_beside_a_profile(tmp_path, is_grey):
  alpha = smooth(1, seed=1)
  if is_grey:
    pixels, profile = GREY[..., :1], icc_profiles.grey(lambda x: x**1.8)
    expected = icc_profiles.to_levels((GREY / 255) ** 1.8)
  else:
    pixels, profile = RGB, icc_profiles.rgb('display_p3')
    expected = icc_profiles.srgb_of(RGB, 'display_p3')
  data = encoded(np.dstack([pixels, alpha]), 'PNG', icc_profile=profile)
  (tmp_path / 'image').write_bytes(data)
  found = user_images.read_stored(tmp_path / 'image', 'an image')
  np.testing.assert_array_equal(found[..., 3:], alpha)
  assert np.abs(found[..., :3] - expected).max() < 1.1


def test_a_grey_profile_and_one_of_colours_that_was_left(tmp_path):
  profile = icc_profiles.grey(lambda x: x**1.8)
  data = encoded(GREY[..., 0], 'PNG', icc_profile=profile)
  expected = icc_profiles.to_levels((GREY / 255) ** 1.8)
  assert np.abs(read(tmp_path, data) - expected).max() < 1.1
  assert np.abs(GREY - expected).max() > 10
  profile = icc_profiles.rgb('adobe_rgb')
  data = encoded(GREY[..., 0], 'PNG', icc_profile=profile)
  expected = icc_profiles.srgb_of(GREY, 'adobe_rgb')
  assert np.abs(read(tmp_path, data) - expected).max() < 1.1


def test_paints_of_a_printer_become_srgb(tmp_path):
  # From white paper to black, with a tint of its own for each paint.
  paints = np.indices((2, 2, 2, 2)).transpose(1, 2, 3, 4, 0)
  lab = np.zeros((2, 2, 2, 2, 3))
  lab[..., 0] = 100 - paints @ [20, 25, 10, 45]
  lab[..., 1:] = paints @ [[-15, -20], [30, 0], [0, 40], [0, 0]]
  lab[1, 1, 1, 1] = 0
  lab[0, 0, 0, 0, 1:] = 0
  pixels = np.uint8(255 * paints.reshape(4, 4, 4))
  data = encoded(pixels, 'TIFF', cmyk, icc_profile=icc_profiles.cmyk(lab))
  # Levels of L*a*b* in the profile have 8 bits.
  expected = icc_profiles.srgb_of_lab(lab).reshape(4, 4, 3)
  assert np.abs(read(tmp_path, data) - expected).max() < 4
  plain = np.asarray(cmyk(pixels).convert('RGB')).astype(float)
  assert np.abs(plain - expected).max() > 50


LITTLE_CMS = ImageCms.ImageCmsProfile(ImageCms.createProfile('sRGB')).tobytes()


@pytest.mark.parametrize(
  'profile',
  # By the second some levels would change by one.
  [icc_profiles.rgb('srgb'), icc_profiles.rgb('srgb', 3e-4), LITTLE_CMS],
  ids=['exact', 'rounded', 'LittleCMS'],
)
@pytest.mark.parametrize('channels', [1, 2, 3, 4])
def test_what_is_srgb_stays_what_it_is(tmp_path, warned, profile, channels):
  shape = (256, 64, channels)
  pixels = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
  pixels = pixels[..., 0] if channels == 1 else pixels
  plain = read(tmp_path, encoded(pixels, 'PNG'))
  found = read(tmp_path, encoded(pixels, 'PNG', icc_profile=profile))
  np.testing.assert_array_equal(found, plain)
  assert warned == []


P3 = icc_profiles.rgb('display_p3')
UNUSABLE = {
  'cut': P3[:200],
  'no profile': b'profile',
  'without its primaries': P3.replace(b'rXYZ', b'qXYZ'),
  'of paints': icc_profiles.cmyk(np.zeros((2, 2, 2, 2, 3))),
  'of grey': icc_profiles.grey(lambda x: x**1.8),
}


@pytest.mark.parametrize('kind', UNUSABLE)
def test_a_profile_that_cannot_be_used_is_said(tmp_path, warned, kind):
  data = encoded(RGB, 'PNG', icc_profile=UNUSABLE[kind])
  np.testing.assert_array_equal(read(tmp_path, data), RGB)
  (line,) = warned
  assert line.startswith(f'{tmp_path / "image"}: its colour profile cannot be')
  assert 'taken as sRGB' in line and '\n' not in line


# -- Beside 16 bits, and named without a profile -------------------------------

NOISE = np.random.default_rng(0).integers(0, 65536, RGB.shape, np.uint16)
# sRGB's curve, and a power, as profiles of version 4 have them.
PARAMETRIC = icc_profiles.parametric(
  3, 2.4, 1 / 1.055, 0.055 / 1.055, 1 / 12.92, 0.04045
)


def with_profile(data, profile):
  return with_chunk(data, b'iCCP', b'name\0\0' + zlib.compress(profile))


def read_16(folder, data):
  """As many levels as there are, in the unit of 8 bits."""
  (folder / 'image').write_bytes(data)
  stored = user_images.read_stored(folder / 'image', 'an image')
  assert stored.dtype == np.uint16
  return stored / 257


def assert_near(found, expected):
  """Nearer than 8 bits could be; dark levels tell the digits of primaries."""
  error = np.abs(found - expected)
  assert error.max() < 0.4 and error.mean() < 0.02


@pytest.mark.parametrize(
  ('name', 'curve'),
  [
    ('display_p3', None),
    ('display_p3', PARAMETRIC),
    ('adobe_rgb', None),
    ('adobe_rgb', icc_profiles.parametric(0, 563 / 256)),
    # One number: a power.
    ('adobe_rgb', struct.pack('>4s4xIH', b'curv', 1, 563)),
  ],
)
@pytest.mark.parametrize('has_alpha', [False, True])
def test_a_profile_beside_16_bits_is_obeyed(
  tmp_path, warned, name, curve, has_alpha
):
  alpha = NOISE[..., :1][::-1]
  pixels = (
    np.dstack([NOISE[..., ::-1], alpha]) if has_alpha else NOISE[..., ::-1]
  )
  profile = icc_profiles.rgb(name, curve=curve)
  found = read_16(tmp_path, with_profile(png_16(pixels), profile))
  expected = icc_profiles.srgb_of(NOISE / 257, name)
  assert_near(found[..., :3], expected)
  if has_alpha:
    np.testing.assert_array_equal(found[..., 3:], alpha / 257)
  assert warned == []


@pytest.mark.parametrize('kind', ['PNG', 'TIFF'])
def test_a_profile_beside_grey_of_16_bits_is_obeyed(tmp_path, warned, kind):
  grey = NOISE[..., 0]
  profile = icc_profiles.grey(lambda x: x**1.8)
  if kind == 'PNG':
    data = with_profile(png_16(grey), profile)
  else:
    data = encoded(grey, kind, icc_profile=profile)
  expected = icc_profiles.to_levels((grey / 65535) ** 1.8)[..., None]
  assert_near(read_16(tmp_path, data), expected)
  assert warned == []


def test_what_is_srgb_beside_16_bits_stays_what_it_is(tmp_path, warned):
  data = png_16(NOISE[..., ::-1])
  for profile in (LITTLE_CMS, icc_profiles.rgb('srgb', 3e-4)):
    found = read_16(tmp_path, with_profile(data, profile))
    np.testing.assert_array_equal(found, NOISE / 257)
  assert warned == []


def test_a_profile_of_tables_beside_16_bits_is_said_not_to_be_obeyed(
  tmp_path, warned
):
  # A table that is not read, beside curves and a matrix that are no truth then.
  profile = P3.replace(b'wtpt', b'A2B1')
  data = with_profile(png_16(NOISE[..., ::-1]), profile)
  np.testing.assert_array_equal(read_16(tmp_path, data), NOISE / 257)
  (line,) = warned
  assert line.startswith(f'{tmp_path / "image"}: its colour profile')
  assert '\n' not in line


def measured(name, gamma=None):
  """Chunks of PNG, all numbers times 100,000."""
  chunks = {}
  if name:
    white = [(0.3127, 0.3290)]
    xy = np.round(1e5 * np.array(white + icc_profiles.PRIMARIES[name]))
    chunks[b'cHRM'] = struct.pack('>8I', *xy.astype(int).ravel())
  if gamma:
    chunks[b'gAMA'] = struct.pack('>I', gamma)
  return chunks


NAMED = {
  'P3 by numbers': ({b'cICP': bytes([12, 13, 0, 1])}, 'display_p3'),
  'P3, the curve of video': ({b'cICP': bytes([12, 1, 0, 1])}, 'display_p3'),
  'BT.2020 by numbers': ({b'cICP': bytes([9, 13, 0, 1])}, 'bt2020'),
  'P3 by measure': (measured('display_p3', 45455), 'display_p3'),
  'P3 without a gamma': (measured('display_p3'), 'display_p3'),
  'Adobe RGB by measure': (measured('adobe_rgb', 45471), 'adobe_rgb'),
  'numbers before a profile': (
    {b'cICP': bytes([9, 13, 0, 1]), b'iCCP': icc_profiles.rgb('adobe_rgb')},
    'bt2020',
  ),
  'a profile before measures': (
    {**measured('adobe_rgb', 100000), b'iCCP': P3},
    'display_p3',
  ),
  'a profile for numbers that are not obeyed': (
    {b'cICP': bytes([9, 16, 0, 1]), b'iCCP': P3},
    'display_p3',
  ),
}


def named(data, chunks):
  for kind, content in chunks.items():
    if kind == b'iCCP':
      data = with_profile(data, content)
    else:
      data = with_chunk(data, kind, content)
  return data


@pytest.mark.parametrize('kind', NAMED)
def test_colours_that_a_png_names_become_srgb(tmp_path, warned, kind):
  chunks, name = NAMED[kind]
  data = named(png_16(NOISE[..., ::-1]), chunks)
  expected = icc_profiles.srgb_of(NOISE / 257, name)
  assert_near(read_16(tmp_path, data), expected)
  assert np.abs(NOISE / 257 - expected).max() > 20
  # Of 8 bits likewise, and of those with alpha.
  for pixels in (RGB, np.dstack([RGB, np.full_like(RGB[..., :1], 255)])):
    found = read(tmp_path, named(encoded(pixels, 'PNG'), chunks))
    assert np.abs(found - icc_profiles.srgb_of(RGB, name)).max() < 1.1
  assert warned == []


def test_a_gamma_alone_is_obeyed(tmp_path, warned):
  for pixels in (RGB, GREY[..., 0]):
    data = with_chunk(encoded(pixels, 'PNG'), b'gAMA', struct.pack('>I', 10**5))
    expected = icc_profiles.to_levels((RGB if pixels is RGB else GREY) / 255)
    assert np.abs(read(tmp_path, data) - expected).max() < 0.6
  assert warned == []


@pytest.mark.parametrize(
  'chunks',
  [
    measured(None, 45455),
    measured('srgb', 45455),
    measured('srgb'),
    {**measured('display_p3', 100000), b'sRGB': b'\0'},
    {b'cICP': bytes([1, 13, 0, 1]), b'iCCP': P3},
    {b'cICP': bytes([1, 1, 0, 1])},
  ],
)
def test_names_of_srgb_change_nothing(tmp_path, warned, chunks):
  data = named(png_16(NOISE[..., ::-1]), chunks)
  np.testing.assert_array_equal(read_16(tmp_path, data), NOISE / 257)
  data = named(encoded(RGB, 'PNG'), chunks)
  np.testing.assert_array_equal(read(tmp_path, data), RGB)
  assert warned == []


@pytest.mark.parametrize(
  ('chunks', 'words'),
  [
    ({b'cICP': bytes([9, 16, 0, 1])}, 'PQ'),
    ({b'cICP': bytes([9, 18, 0, 1])}, 'HLG'),
    ({b'cICP': bytes([10, 13, 0, 1])}, 'primaries 10'),
    ({b'cICP': bytes([9, 13, 0, 0])}, 'full range'),
    ({b'gAMA': bytes(4)}, 'gamma of 0'),
    ({b'cHRM': bytes(32)}, 'without light'),
    ({b'cHRM': struct.pack('>8I', *[30000] * 8)}, 'in one line'),
  ],
)
def test_named_colours_that_cannot_be_obeyed_are_said(
  tmp_path, warned, chunks, words
):
  data = named(encoded(RGB, 'PNG'), chunks)
  np.testing.assert_array_equal(read(tmp_path, data), RGB)
  (line,) = warned
  assert line.startswith(f'{tmp_path / "image"}: its colours cannot be used')
  assert words in line and 'taken as sRGB' in line and '\n' not in line


def test_colours_of_an_avif_become_srgb(tmp_path, warned):
  data = encoded(RGB, 'AVIF', quality=100, subsampling='4:4:4')
  place = data.index(b'colrnclx') + 8

  def numbered(primaries, transfer):
    return (
      data[:place] + struct.pack('>2H', primaries, transfer) + data[place + 4 :]
    )

  plain = read(tmp_path, data)
  assert np.abs(plain.astype(int) - RGB).max() < 6
  found = read(tmp_path, numbered(12, 13))
  expected = icc_profiles.srgb_of(plain, 'display_p3')
  assert np.abs(found - expected).max() < 0.6
  assert warned == []
  np.testing.assert_array_equal(read(tmp_path, numbered(9, 16)), plain)
  assert len(warned) == 1 and 'PQ' in warned[0]


def test_adobe_rgb_that_exif_names_becomes_srgb(tmp_path, warned):
  options = {'quality': 98, 'subsampling': 0}
  plain = read(tmp_path, encoded(RGB, 'JPEG', **options))
  exif = Image.Exif()
  exif.get_ifd(0x8769)[0xA005] = {1: 'R03'}
  found = read(tmp_path, encoded(RGB, 'JPEG', exif=exif, **options))
  expected = icc_profiles.srgb_of(plain, 'adobe_rgb')
  assert np.abs(found - expected).max() < 0.6
  assert np.abs(plain - expected).max() > 10
  assert warned == []


def test_colours_are_levels_or_names():
  assert user_images.parse_colour('white') == (255, 255, 255)
  assert user_images.parse_colour('1, 20,255') == (1, 20, 255)
  assert user_images.parse_colour('#0a0b0c') == (10, 11, 12)
  for text in ('1,2', '1,2,256', '-1,2,3', 'a,b,c', 'whitish', '', '1.5,2,3'):
    with pytest.raises(errors.UserError, match='is no colour'):
      user_images.parse_colour(text)


def header_of(width, height):
  """A PNG of which there is only the header, and no pixels."""
  chunks = [
    (b'IHDR', struct.pack('>IIBBBBB', width, height, 8, 2, 0, 0, 0)),
    (b'IDAT', zlib.compress(b'')),
    (b'IEND', b''),
  ]
  return b'\x89PNG\r\n\x1a\n' + b''.join(
    struct.pack('>I', len(body))
    + name
    + body
    + struct.pack('>I', zlib.crc32(name + body))
    for name, body in chunks
  )


def animated(kind, pixels=RGB):
  other = Image.fromarray(pixels[::-1].copy())
  return encoded(pixels, kind, save_all=True, append_images=[other])


def flipped(data, place):
  return data[:place] + bytes([data[place] ^ 0x55]) + data[place + 1 :]


PNG = encoded(RGB, 'PNG')
REFUSED = {
  'empty': (b'', 'is empty'),
  'text': (b'no image', 'cannot be read as an image'),
  'HEIC': (b'\0\0\0\x18ftypheic' + bytes(99), 'is HEIC'),
  'MP4': (b'\0\0\0\x18ftypisom' + bytes(99), 'is a video'),
  'MKV': (b'\x1a\x45\xdf\xa3' + bytes(99), 'is a video'),
  'SVG': (b'<svg xmlns="http://www.w3.org/2000/svg"/>', 'is SVG'),
  'page': (b'<!doctype html><html></html>', 'is a web page'),
  'pointer': (b'version https://git-lfs.github.com/spec/v1\n', 'git lfs pull'),
  'start alone': (b'\xff\xd8\xff\xe0', 'damaged'),
  'huge': (header_of(60000, 60000), 'more pixels than 134 million'),
  'large': (header_of(16385, 8192), 'more pixels than 134 million'),
  'no rows': (header_of(9, 9), 'damaged'),
  'cut PNG': (PNG[:-40], 'damaged'),
  'damaged PNG': (flipped(PNG, len(PNG) // 2), 'damaged'),
  'cut WEBP': (encoded(RGB, 'WEBP')[:-9], 'damaged'),
  'cut TIFF': (encoded(RGB, 'TIFF')[:-99], 'damaged'),
  'cut GIF': (encoded(RGB, 'GIF')[:-99], 'damaged'),
  'animated GIF': (animated('GIF'), 'holds 2 pictures'),
  'animated WEBP': (animated('WEBP'), 'holds 2 pictures'),
  'animated PNG': (animated('PNG'), 'holds 2 pictures'),
  'pages': (animated('TIFF'), 'holds 2 pictures'),
  'float': (encoded(RGB[..., 0].astype(np.float32), 'TIFF'), '32 bits'),
}


@pytest.mark.parametrize('kind', REFUSED)
def test_what_is_no_single_whole_image_is_refused(tmp_path, kind):
  data, message = REFUSED[kind]
  with pytest.raises(errors.UserError, match=message) as error:
    read(tmp_path, data)
  assert str(error.value).startswith(f'{tmp_path / "image"}: ')
  assert '\n' not in str(error.value)


def test_no_file_and_a_folder_are_refused(tmp_path):
  with pytest.raises(errors.UserError, match='no such file'):
    user_images.read(tmp_path / 'absent.png', 'an image')
  with pytest.raises(errors.UserError, match='is a folder'):
    user_images.read(tmp_path, 'an image')


def test_files_that_showed_these_faults(shared_data):
  folder = shared_data / 'image_cases'
  if not folder.is_dir():
    pytest.skip(f'no {folder}')
  image = user_images.read(folder / 'rgba_hidden_red.png', 'an image')
  # A green thing on white; the hidden colour is red.
  colours = np.unique(image.reshape(-1, 3), axis=0).tolist()
  assert colours == [[0, 200, 0], [255, 255, 255]]
  assert user_images.read(folder / 'upright.png', 'an image').shape[2] == 3
  for name in ('trunc.jpg', 'huge_header.png'):
    with pytest.raises(errors.UserError, match=name):
      user_images.read(folder / name, 'an image')
