"""The camera path of a run: one by name, or that of a file.

Files say where cameras are in axes and units of their own. What is taken of
them is how the cameras stand to the first one, which is that of the image.
"""

import os
import pathlib
from typing import Any

from jaxtyping import Float
import numpy as np

from odin_jax.benchmarks import colmap_model, posed_views
from odin_jax.geometry import view_folder
from odin_jax.shared import camera, errors, files, opengl

Path = Float[np.ndarray, 'n 3 4']
TRANSFORMS = 'transforms.json'
_LAYOUTS = (
  f'{view_folder.POSES} of odin_jax.generate, {TRANSFORMS} or camera_path.json '
  "of nerfstudio, or a folder of COLMAP's cameras, images and points3D"
)


def read(path: str | os.PathLike[str], scale: float) -> Path:
  """`camera2scene` of the cameras of a file, in its order.

  Args:
    path: a JSON file, or a folder that holds one or a model of COLMAP, whose
      order is that of the images' names.
    scale: scene units per unit of the file.

  Raises:
    errors.UserError: no such file, none of these layouts, fewer than two poses,
      or one that is no rotation and translation.
  """
  path = pathlib.Path(path)
  if path.is_dir():
    names = [
      name for name in (view_folder.POSES, TRANSFORMS) if (path / name).exists()
    ]
    poses = (
      _of_json(path / names[0]) if names else colmap_model.camera2scene(path)
    )
  else:
    poses = _of_json(files.require_file(path, f'a path: {_LAYOUTS},'))
  if len(poses) < 2:
    raise errors.UserError(
      f'{path}: has {len(poses)} cameras; a path needs two or more'
    )
  relative = camera.relative(np.broadcast_to(poses[0], poses.shape), poses)
  # Not but for rounding.
  relative[0] = camera.identity_pose()
  return camera.make_pose(relative[..., :3], relative[..., 3] * scale)


def _of_json(path: pathlib.Path) -> Path:
  content = files.read_json(path, 'a path')
  for key, read_poses in _READERS.items():
    entries = content.get(key)
    if isinstance(entries, list) and entries:
      try:
        return np.stack(
          [
            read_poses(entry, f'{path}: {key} {number}')
            for number, entry in enumerate(entries)
          ]
        )
      except (KeyError, TypeError, ValueError) as error:
        raise errors.UserError(
          f'{path}: {type(error).__name__} in its poses: {error}; there are '
          f'{_LAYOUTS}'
        ) from error
  raise errors.UserError(f'{path}: holds no path; there are {_LAYOUTS}')


def _of_frame(frame: Any, where: str) -> Float[np.ndarray, '3 4']:
  """Of our poses.json, or of nerfstudio's transforms.json."""
  if 'camera2scene' in frame:
    return posed_views.rigid(_matrix(frame['camera2scene'], 3), where)
  pose = np.array(frame['transform_matrix'], np.float64)
  return opengl.camera2scene(posed_views.rigid(pose, where))


def _of_keyframe(camera_of: Any, where: str) -> Float[np.ndarray, '3 4']:
  """Of a path of nerfstudio's viewer."""
  pose = _matrix(camera_of['camera_to_world'], 4)
  return opengl.camera2scene(posed_views.rigid(pose, where))


def _matrix(values: Any, rows: int) -> Float[np.ndarray, 'r 4']:
  """From a list of numbers, row by row, or of rows."""
  return np.array(values, np.float64).reshape(rows, 4)


_READERS = {'frames': _of_frame, 'camera_path': _of_keyframe}
