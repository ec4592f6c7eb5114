"""The panoramas of a video that `preprocessing.run` exported, with their poses.

`cameras/VIDEO` has `path.json` (every keyframe's time, component and
`frame2scene`) and, where pictures were exported (`--export=nerfstudio` or
`colmap`), `images/000000.jpg` and `masks/000000.jpg.png`, numbered by keyframe.
A mask is 0 where nothing is scene. Components have no common place or scale.
"""

import dataclasses
import pathlib
from typing import Any, Sequence

import cv2
from jaxtyping import Bool, Float, Shaped, UInt8
import numpy as np

from odin_jax.shared import camera, errors, files, user_images

PATH = 'path.json'


@dataclasses.dataclass(frozen=True, kw_only=True)
class Frames:
  """Posed panoramas of one component.

  Attributes:
    images: sRGB, equirectangular; the height spans 180 degrees.
    counts: which pixels may be scene.
    camera2scene: poses.
    names: of their files below the folder.
    component: which one they are of.
    available: how many it has; more than these where they were too many.
  """

  images: UInt8[np.ndarray, 'n h w 3']
  counts: Bool[np.ndarray, 'n h w']
  camera2scene: Float[np.ndarray, 'n 3 4']
  names: list[str]
  component: int
  available: int


def spread(count: int, most: int) -> list[int]:
  """At most so many of `count` numbers, evenly spread."""
  if count <= most:
    return list(range(count))
  return np.round(np.linspace(0, count - 1, most)).astype(int).tolist()


def chosen_component(
  components: Sequence[int], wanted: int | None, where: str
) -> int:
  """The wanted component, or the one with most frames.

  Args:
    components: of each frame that has a pose.
    wanted: None for the largest.
    where: the frames are, for the message.

  Raises:
    errors.UserError: there is no such component.
  """
  numbers, counts = np.unique(np.asarray(components, int), return_counts=True)
  if not len(numbers):
    raise errors.UserError(f'{where}: no frame has a pose')
  if wanted is None:
    return int(numbers[counts.argmax()])
  if wanted not in numbers:
    raise errors.UserError(
      f'{where}: has no component {wanted}; there are '
      f'{", ".join(map(str, numbers.tolist()))}'
    )
  return wanted


def smaller(
  picture: Shaped[np.ndarray, 'h w *c'], max_height_px: int
) -> Shaped[np.ndarray, 'H W *c']:
  """A picture of at most this height, of even width, by area averages."""
  height, width = picture.shape[:2]
  factor = min(1.0, max_height_px / height)
  size = max(2, 2 * round(width * factor / 2)), max(1, round(height * factor))
  if size == (width, height):
    return picture
  return cv2.resize(picture, size, interpolation=cv2.INTER_AREA)


def read(
  folder: pathlib.Path,
  *,
  component: int | None = None,
  most: int = 1_000_000,
  max_height_px: int = 1_000_000,
) -> Frames:
  """The frames of `cameras/VIDEO`.

  Args:
    folder: see the module.
    component: None for the one with most frames.
    most: frames to read, evenly spread.
    max_height_px: larger pictures are made smaller.

  Raises:
    errors.UserError: no or a damaged path.json, no such component, fewer than
      two of its frames, exported without pictures, or one that is missing,
      unreadable or of another size.
  """
  path = folder / PATH
  content = files.read_json(path, 'the path of a video', ('frames',))
  try:
    rows = [
      (number, int(frame['component']), _pose(frame, path, number))
      for number, frame in enumerate(content['frames'])
      if frame['component'] is not None
    ]
  except (KeyError, TypeError, ValueError) as error:
    raise errors.UserError(
      f'{path}: not as preprocessing.run writes it ({error!r}); export again'
    ) from error
  number = chosen_component([row[1] for row in rows], component, str(path))
  rows = [row for row in rows if row[1] == number]
  if len(rows) < 2:
    raise errors.UserError(
      f'{path}: component {number} has {len(rows)} frame; two or more are '
      'needed'
    )
  if not (folder / 'images').is_dir():
    raise errors.UserError(
      f'{folder}: was exported without pictures; run preprocessing.run again '
      'with --export=nerfstudio'
    )
  chosen = [rows[index] for index in spread(len(rows), most)]
  names = [f'images/{row[0]:06d}.jpg' for row in chosen]
  pictures = [_picture(folder, name, max_height_px) for name in names]
  sizes = {image.shape for image, _ in pictures}
  if len(sizes) > 1:
    raise errors.UserError(
      f'{folder}/images: pictures of different sizes; export again'
    )
  return Frames(
    images=np.stack([image for image, _ in pictures]),
    counts=np.stack([counts for _, counts in pictures]),
    camera2scene=np.stack([row[2] for row in chosen]),
    names=names,
    component=number,
    available=len(rows),
  )


def _pose(
  frame: dict[str, Any], path: pathlib.Path, number: int
) -> Float[np.ndarray, '3 4']:
  pose = np.array(frame['frame2scene'], np.float64).reshape(3, 4)
  if not np.isfinite(pose).all() or not camera.is_rotation(
    pose[:, :3], tolerance=1e-3
  ):
    raise errors.UserError(
      f'{path}: frame2scene of frame {number} is no rotation and translation'
    )
  return pose


def _picture(
  folder: pathlib.Path, name: str, max_height_px: int
) -> tuple[UInt8[np.ndarray, 'h w 3'], Bool[np.ndarray, 'h w']]:
  """A panorama and which of its pixels count."""
  image = user_images.read(folder / name, 'a panorama of the video')
  mask_name = folder / 'masks' / f'{pathlib.PurePath(name).name}.png'
  mask = user_images.read(mask_name, 'the mask of a panorama')[..., 0]
  if mask.shape != image.shape[:2]:
    raise errors.UserError(
      f'{mask_name}: {mask.shape[1]}x{mask.shape[0]} px, the panorama has '
      f'{image.shape[1]}x{image.shape[0]}; export again'
    )
  # Smaller pixels to which no masked one adds.
  return smaller(image, max_height_px), smaller(
    np.where(mask > 0, np.uint8(255), np.uint8(0)), max_height_px
  ) == 255
