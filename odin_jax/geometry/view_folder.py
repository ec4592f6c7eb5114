"""Folders of posed views as `odin_jax.generate` writes them.

`poses.json` has `fov_deg`, `width`, `height` and `frames` (`file`, and
`camera2scene` as 12 numbers, row-major), beside the square images it names.
`transforms.json` has the same cameras for nerfstudio,
https://docs.nerf.studio/quickstart/data_conventions.html.
"""

import json
import pathlib
from typing import Any, Sequence

from jaxtyping import Float, UInt8
import numpy as np

from odin_jax.geometry import stereo
from odin_jax.shared import camera, errors, files, opengl, user_images

POSES = 'poses.json'
TRANSFORMS = 'transforms.json'


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


def nerfstudio(
  names: Sequence[str],
  camera2scene: Float[np.ndarray, 'n 3 4'],
  fov_deg: float,
  size_px: int,
  depth_maps: Sequence[str] | None = None,
) -> dict[str, Any]:
  """What `transforms.json` says of square views.

  Args:
    names: paths of the images from where it is.
    camera2scene: of each.
    fov_deg: of all.
    size_px: side of all.
    depth_maps: likewise, of `odin_jax.geometry.depth_maps`; None for none. What
      their steps stand for no key tells: nerfstudio takes a flag.
  """
  focal_px = float(camera.intrinsics(fov_deg, size_px)[0, 0])
  frames = [
    {
      'file_path': name,
      'transform_matrix': [*opengl.opengl2world(pose).tolist(), [0, 0, 0, 1]],
    }
    for name, pose in zip(names, camera2scene, strict=True)
  ]
  if depth_maps is not None:
    for frame, depth_map in zip(frames, depth_maps, strict=True):
      frame['depth_file_path'] = depth_map
  return {
    'camera_model': 'PINHOLE',
    'w': size_px,
    'h': size_px,
    'fl_x': focal_px,
    'fl_y': focal_px,
    'cx': size_px / 2,
    'cy': size_px / 2,
    'applied_transform': opengl.SCENE2WORLD.tolist(),
    'frames': frames,
  }
