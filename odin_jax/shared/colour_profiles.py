"""Colours by what a picture says of them -> sRGB.

Phones write Display P3, cameras Adobe RGB, print shops CMYK of a certain paper;
the same levels stand for other colours there. LittleCMS, which comes with
Pillow, converts those of ICC profiles, relative to white as viewers do. It
takes 8 bits; what is beside 16 (`icc_shaper`) and what is named without a
profile (`colour_tags`) is computed here (`colorimetry`).
"""

import io
import os

from absl import logging
from jaxtyping import UInt8, UInt16
import numpy as np
from PIL import Image, ImageCms

from odin_jax.shared import colorimetry, colour_tags, icc_shaper

_KEY = 'icc_profile'
_GREYS = np.arange(256, dtype=np.uint8)[None]
# The space of a profile -> the mode of the pixels that it is for.
_MODES = {'GRAY': 'L', 'RGB': 'RGB', 'CMYK': 'CMYK'}


def to_rgb(
  image: Image.Image, data: bytes, path: str | os.PathLike[str]
) -> UInt8[np.ndarray, 'h w c']:
  """The picture in sRGB: RGB, or RGBA where it may be transparent.

  Levels stay what they are where nothing is said of colours, where they are
  sRGB's, and, with a warning, where what is said is damaged, not for these
  pixels, or of a kind that is not obeyed.

  Args:
    image: of 8 bits, loaded.
    data: of its file.
    path: of its file, for warnings.
  """
  said = _said(image, data, path)
  if not isinstance(said, ImageCms.ImageCmsTransform):
    rgb = image.convert('RGBA' if image.has_transparency_data else 'RGB')
    if said is None:
      return np.asarray(rgb)
    pixels = np.array(rgb)
    said.make_srgb(pixels)
    return pixels
  return np.asarray(_transformed(image, said))


def make_srgb(
  pixels: UInt16[np.ndarray, 'h w c'],
  image: Image.Image,
  data: bytes,
  path: str | os.PathLike[str],
) -> None:
  """The same for 16 bits, in place.

  A profile that has tables of colours, and no curves and a matrix, is not
  obeyed: a warning says so.

  Args:
    pixels: RGB or RGBA, of an image, grey as three equal channels.
    image: as Pillow has it, loaded.
    data: of its file.
    path: of its file.
  """
  said = _said(image, data, path)
  if isinstance(said, ImageCms.ImageCmsTransform):
    try:
      said = icc_shaper.read(image.info[_KEY])
    except ValueError as error:
      logging.warning(
        '%s: its colour profile is not sRGB, and beside 16 bits it is not '
        'obeyed (%s): taken as sRGB; export it as sRGB, or with 8 bits',
        path,
        error,
      )
      return
  if said is not None:
    said.make_srgb(pixels)


def _transformed(
  image: Image.Image, transform: ImageCms.ImageCmsTransform
) -> Image.Image:
  mode = 'RGBA' if image.has_transparency_data else 'RGB'
  if transform.input_mode == mode:
    # No memory but that of the copy.
    return transform.apply_in_place(image.convert(mode))
  if mode == 'RGB':
    return transform.apply(image.convert(transform.input_mode))
  alpha = image.convert(mode).getchannel('A')
  rgb = transform.apply(image.convert(transform.input_mode))
  rgb.putalpha(alpha)
  return rgb


def _said(
  image: Image.Image, data: bytes, path: str | os.PathLike[str]
) -> ImageCms.ImageCmsTransform | colorimetry.Space | None:
  """What leads to sRGB; None: levels may stay as they are.

  In the order that PNG has: numbers, a profile, then measures. Of AVIF a
  profile comes first.
  """
  has_profile = _KEY in image.info
  if image.mode == 'CMYK':
    return _transform(image, path)
  try:
    space = None
    if image.format == 'PNG' or not has_profile:
      space = colour_tags.by_numbers(image, data)
    if space is None and not has_profile:
      space = colour_tags.by_measure(image)
  except ValueError as error:
    # Who writes numbers that few obey gives a profile that all do.
    if not has_profile:
      _warn(path, 'its colours', error)
      return None
    space = None
  if space is None:
    return _transform(image, path)
  return None if space.is_srgb() else space


def _warn(path: str | os.PathLike[str], what: str, error: Exception) -> None:
  logging.warning(
    '%s: %s cannot be used (%s): taken as sRGB; export it as sRGB if its '
    'colours come out wrong',
    path,
    what,
    ' '.join(str(error).split()),
  )


def _transform(
  image: Image.Image, path: str | os.PathLike[str]
) -> ImageCms.ImageCmsTransform | None:
  """From the picture's colours to sRGB; None: levels may stay as they are."""
  if _KEY not in image.info:
    return None
  try:
    transform = _read(image)
    is_srgb = _is_srgb(transform)
  # LittleCMS says OSError, Pillow one of its own in front of it.
  except (OSError, ValueError, ImageCms.PyCMSError) as error:
    _warn(path, 'its colour profile', error)
    return None
  return None if is_srgb else transform


def _read(image: Image.Image) -> ImageCms.ImageCmsTransform:
  """By the embedded profile.

  Raises:
    OSError, ValueError, ImageCms.PyCMSError: it is none, is damaged, or is for
      pixels of another kind.
  """
  # Pillow leaves None of what it cannot put together.
  profile = ImageCms.ImageCmsProfile(io.BytesIO(image.info[_KEY] or b''))
  space = profile.profile.xcolor_space.strip()
  mode = _MODES.get(space)
  if mode not in _fitting(image):
    raise ValueError(f'it is for {space}, its pixels are {image.mode}')
  # Alpha goes along.
  has_alpha = mode == 'RGB' and image.has_transparency_data
  return ImageCms.buildTransform(
    profile,
    ImageCms.createProfile('sRGB'),
    'RGBA' if has_alpha else mode,
    'RGBA' if has_alpha else 'RGB',
    ImageCms.Intent.RELATIVE_COLORIMETRIC,
    ImageCms.Flags.BLACKPOINTCOMPENSATION,
  )


def _fitting(image: Image.Image) -> tuple[str, ...]:
  """Modes of the profiles that a picture's pixels may have."""
  bands = image.getbands()
  if len(bands) <= 2 and bands[0] != 'P':
    # Programs leave the profile of a coloured picture where they make it grey.
    return 'L', 'RGB'
  return ('CMYK',) if image.mode == 'CMYK' else ('RGB',)


def _is_srgb(transform: ImageCms.ImageCmsTransform) -> bool:
  """Whether it moves no colour by more than rounding does."""
  if transform.input_mode == 'CMYK':
    return False
  is_grey = transform.input_mode == 'L'
  probe = _GREYS if is_grey else colorimetry.COLOURS
  image = Image.fromarray(probe).convert(transform.input_mode)
  found = np.asarray(transform.apply(image))[..., :3].astype(int)
  expected = probe[..., None] if is_grey else probe
  return bool(np.abs(found - expected).max() <= colorimetry.ROUNDING_LEVELS)
