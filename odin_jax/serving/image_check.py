"""Whether a file that somebody sent is an image, found out in a process apart.

  python -m odin_jax.serving.image_check FILE THUMBNAIL MOST_PIXELS PANORAMA FOV

Decoders of images read what strangers wrote: here one may crash, or take all
the time and memory that it is given, and the server goes on. What is checked is
what `odin_jax.generate` would check. Facts go to stdout as JSON, a small JPEG
to THUMBNAIL; one line of what is wrong to stderr, with status 2.
"""

import json
import pathlib
import resource
import sys

import cv2

from odin_jax.generating import given
from odin_jax.shared import errors, image_files, user_images

_THUMBNAIL_PX = 480
# Address space: what packages take, and a largest image several times.
_MOST_BYTES = 8 << 30


def check(
  path: pathlib.Path,
  thumbnail: pathlib.Path,
  *,
  most_pixels: int,
  panorama: bool | None,
  fov_deg: float | None,
) -> dict[str, object]:
  """Facts of an image: sides, field of view, whether it is a panorama.

  Raises:
    errors.UserError: it is none, is damaged, or has too many pixels.
  """
  width, height = user_images.size_px(path, 'an image')
  if width * height > most_pixels:
    raise errors.UserError(
      f'{path.name}: has {width}x{height} pixels, more than the '
      f'{most_pixels / 1e6:g} million that this server takes; reduce it first'
    )
  start = given.read(
    path,
    background=user_images.WHITE,
    fov_deg=fov_deg,
    is_panorama=panorama,
  )
  height, width = start.image.shape[:2]
  scale = min(1.0, _THUMBNAIL_PX / max(height, width))
  size = [max(1, round(side * scale)) for side in (width, height)]
  image_files.write(
    thumbnail, cv2.resize(start.image, size, interpolation=cv2.INTER_AREA)
  )
  return {
    'width': width,
    'height': height,
    'fov_deg': start.fov_deg,
    'fov_from': start.fov_from,
    'is_panorama': start.is_panorama,
  }


def main(arguments: list[str]) -> int:
  """Status of the command line."""
  resource.setrlimit(resource.RLIMIT_AS, (_MOST_BYTES, _MOST_BYTES))
  path, thumbnail, most_pixels, panorama, fov_deg = arguments
  try:
    facts = check(
      pathlib.Path(path),
      pathlib.Path(thumbnail),
      most_pixels=int(most_pixels),
      panorama=json.loads(panorama),
      fov_deg=json.loads(fov_deg),
    )
  except errors.UserError as error:
    sys.stderr.write(f'{" ".join(str(error).split())}\n')
    return error.exit_status
  sys.stdout.write(json.dumps(facts))
  return 0


if __name__ == '__main__':
  sys.exit(main(sys.argv[1:]))
