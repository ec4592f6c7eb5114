"""Folders of posed views as `odin_jax.generate` writes them.

`poses.json` has `fov_deg`, `width`, `height` and `frames` (`file`, and
`camera2scene` as 12 numbers, row-major), beside the square images it names.
"""

import json
import pathlib
from typing import Any

from jaxtyping import UInt8
import numpy as np

from odin_jax.geometry import stereo
from odin_jax.shared import camera, errors, files, user_images

POSES = 'poses.json'


def _read_image(path: pathlib.Path, size_px: int) -> UInt8[np.ndarray, 's s 3']:
  image = user_images.read(path, 'a view of poses.json')
  if image.shape[:2] != (size_px, size_px):
    raise errors.UserError(
      f'{path}: {image.shape[1]}x{image.shape[0]} px, but poses.json says '
      f'{size_px}x{size_px}'
    )
  return image


def _pose(frame: dict[str, Any], path: pathlib.Path) -> np.ndarray:
  pose = np.array(frame['camera2scene'], np.float64).reshape(3, 4)
  if not np.isfinite(pose).all() or not camera.is_rotation(
    pose[:, :3], tolerance=1e-3
  ):
    raise errors.UserError(
      f'{path}: camera2scene of {frame["file"]} is no rotation and translation'
    )
  return pose


def read(folder: pathlib.Path) -> tuple[stereo.Views, list[str]]:
  """The posed views of a folder and the names of their files.

  Raises:
    errors.UserError: no or a damaged poses.json, a missing or unreadable
      image, views that are not square, or fewer than two.
  """
  path = files.require_file(folder / POSES, 'the poses of the views')
  try:
    content = json.loads(path.read_text())
    fov_deg = float(content['fov_deg'])
    size = int(content['width'])
    names = [str(frame['file']) for frame in content['frames']]
    poses = [_pose(frame, path) for frame in content['frames']]
    square = size == int(content['height']) and 0 < fov_deg < 180
  except (KeyError, TypeError, ValueError) as error:
    raise errors.UserError(
      f'{path}: not the layout that odin_jax.generate writes ({error!r})'
    ) from error
  if len(names) < 2 or len(set(names)) < len(names):
    raise errors.UserError(
      f'{path}: names {len(names)} views, {len(set(names))} different ones; '
      'two or more are needed, each once'
    )
  if not square:
    raise errors.UserError(
      f'{path}: needs square views (width = height) and 0 < fov_deg < 180'
    )
  images = [_read_image(folder / name, size) for name in names]
  views = stereo.Views(
    images=np.stack(images), camera2scene=np.stack(poses), fov_deg=fov_deg
  )
  return views, names
