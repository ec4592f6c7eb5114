"""Colours by the ICC profile that a picture brings -> sRGB.

Phones write Display P3, cameras Adobe RGB, print shops CMYK of a certain paper;
the same levels stand for other colours there. LittleCMS, which comes with
Pillow, converts them, relative to white as viewers do. It takes 8 bits.
"""

import io
import os

from absl import logging
import numpy as np
from PIL import Image, ImageCms

_KEY = 'icc_profile'
# What rounding moves colours by that are sRGB's already. There are many
# profiles of sRGB, so they are known by what they do, not by their bytes.
_ROUNDING_LEVELS = 1
_GREYS = np.arange(256, dtype=np.uint8)[None]
# Every 15th level of red, green and blue.
_COLOURS = 15 * np.indices((18, 18, 18)).reshape(3, 1, -1).T.astype(np.uint8)
# The space of a profile -> the mode of the pixels that it is for.
_MODES = {'GRAY': 'L', 'RGB': 'RGB', 'CMYK': 'CMYK'}


def to_rgb(image: Image.Image, path: str | os.PathLike[str]) -> Image.Image:
  """The picture in sRGB, of mode RGB, or RGBA where it may be transparent.

  Levels stay what they are without a profile, with one of sRGB, and, with a
  warning, with one that is damaged or not for these pixels.

  Args:
    image: of 8 bits, loaded.
    path: of its file, for warnings.
  """
  mode = 'RGBA' if image.has_transparency_data else 'RGB'
  transform = _transform(image, path)
  if transform is None:
    return image.convert(mode)
  if transform.input_mode == mode:
    # No memory but that of the copy.
    return transform.apply_in_place(image.convert(mode))
  if mode == 'RGB':
    return transform.apply(image.convert(transform.input_mode))
  alpha = image.convert(mode).getchannel('A')
  rgb = transform.apply(image.convert(transform.input_mode))
  rgb.putalpha(alpha)
  return rgb


def warn_if_not_srgb(image: Image.Image, path: str | os.PathLike[str]) -> None:
  """Says that a picture with too many bits is taken as sRGB, where it is not.

  Args:
    image: of any number of bits, loaded.
    path: of its file.
  """
  if _transform(image, path) is not None:
    logging.warning(
      '%s: its colour profile is not sRGB, and of 16 bits it is not obeyed: '
      'taken as sRGB; export it as sRGB, or with 8 bits',
      path,
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
    logging.warning(
      '%s: its colour profile cannot be used (%s): taken as sRGB; export it as '
      'sRGB if its colours come out wrong',
      path,
      ' '.join(str(error).split()),
    )
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
  probe = _GREYS if is_grey else _COLOURS
  image = Image.fromarray(probe).convert(transform.input_mode)
  found = np.asarray(transform.apply(image))[..., :3].astype(int)
  expected = probe[..., None] if is_grey else probe
  return bool(np.abs(found - expected).max() <= _ROUNDING_LEVELS)
