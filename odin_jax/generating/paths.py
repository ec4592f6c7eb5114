"""The camera path of a run: one by name, or that of a file.

Files say where cameras are in axes and units of their own. What is taken of
them is how the cameras stand to the first one, which is that of the image. Their
lenses are not, for the views have that of the image: where they differ, it is
said.
"""

import dataclasses
import os
import pathlib
from typing import Any, Callable, Mapping

from jaxtyping import Float
import numpy as np

from odin_jax.benchmarks import colmap_model, nerfstudio, posed_views
from odin_jax.geometry import view_folder
from odin_jax.shared import camera, errors, files, opengl

Path = Float[np.ndarray, 'n 3 4']
TRANSFORMS = 'transforms.json'
# Kinds of cameras of nerfstudio's viewer.
_NO_PINHOLES = ('fisheye', 'equirectangular')
# By how much fields of view differ that are not the same.
_FOV_TOLERANCE_DEG = 1.0
_LAYOUTS = (
  f'{view_folder.POSES} of odin_jax.generate, {TRANSFORMS} or camera_path.json '
  "of nerfstudio, or a folder of COLMAP's cameras, images and points3D"
)


@dataclasses.dataclass(frozen=True)
class CameraPath:
  """Cameras of a path.

  Attributes:
    camera2scene: their poses.
    optics: what a file tells of each beside its pose; of a path by name none.
  """

  camera2scene: Path
  optics: tuple[posed_views.Lens, ...] = ()

  def left_out(self, fov_deg: float) -> str | None:
    """What its lenses have that views do not, in words; None: nothing.

    Args:
      fov_deg: of the views, which are square and a pinhole camera's.
    """
    told = [
      lens.fov_deg for lens in self.optics if lens.fov_deg is not None
    ] or [fov_deg]
    least, most = min(told), max(told)
    notes = []
    if max(most - fov_deg, fov_deg - least) > _FOV_TOLERANCE_DEG:
      seen = f'{least:.1f}'
      if most - least > _FOV_TOLERANCE_DEG:
        seen += f' to {most:.1f}'
      notes.append(
        f'the square middle of its pictures is {seen} degrees wide, the views '
        f'are {fov_deg:.1f}, as --fov_deg or the image says'
      )
    if not all(lens.is_pinhole for lens in self.optics):
      notes.append(
        'its lenses distort or are fisheyes or panoramas, the views are a '
        "pinhole camera's"
      )
    return '; '.join(notes) or None


def read(path: str | os.PathLike[str], scale: float) -> CameraPath:
  """The cameras of a file, in its order.

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
    poses, told = (
      _of_json(path / names[0]) if names else colmap_model.cameras(path)
    )
  else:
    poses, told = _of_json(files.require_file(path, f'a path: {_LAYOUTS},'))
  if len(poses) < 2:
    raise errors.UserError(
      f'{path}: has {len(poses)} cameras; a path needs two or more'
    )
  relative = camera.relative(np.broadcast_to(poses[0], poses.shape), poses)
  # Not but for rounding.
  relative[0] = camera.identity_pose()
  return CameraPath(
    camera.make_pose(relative[..., :3], relative[..., 3] * scale), told
  )


def _of_json(path: pathlib.Path) -> tuple[Path, tuple[posed_views.Lens, ...]]:
  content = files.read_json(path, 'a path')
  for key, (read_pose, read_lens) in _READERS.items():
    entries = content.get(key)
    if isinstance(entries, list) and entries:
      try:
        poses = [
          read_pose(entry, f'{path}: {key} {number}')
          for number, entry in enumerate(entries)
        ]
        told = [_lens(read_lens, {**content, **entry}) for entry in entries]
        return np.stack(poses), tuple(told)
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


def _lens(
  read_lens: Callable[[Mapping[str, Any]], posed_views.Lens],
  values: Mapping[str, Any],
) -> posed_views.Lens:
  """What can be read of a lens, which the path itself does not need."""
  try:
    return read_lens(values)
  except (KeyError, TypeError, ValueError):
    return posed_views.Lens()


def _lens_of_frame(frame: Mapping[str, Any]) -> posed_views.Lens:
  """Of our poses.json, or of nerfstudio's transforms.json.

  Args:
    frame: its values over those of all frames.
  """
  if 'camera2scene' not in frame:
    return nerfstudio.lens(frame)
  # Paths that were drawn have none.
  return posed_views.Lens(float(frame['fov_deg']))


def _lens_of_keyframe(camera_of: Mapping[str, Any]) -> posed_views.Lens:
  """Of a path of nerfstudio's viewer, whose `fov` is the vertical one.

  See `get_path_from_json` in
  https://github.com/nerfstudio-project/nerfstudio/blob/main/nerfstudio/cameras/camera_paths.py.

  Args:
    camera_of: its values over those of all of the path.
  """
  if camera_of.get('camera_type', 'perspective') in _NO_PINHOLES:
    return posed_views.Lens(is_pinhole=False)
  # Of pictures of height 1.
  with np.errstate(divide='ignore'):
    focal = float(0.5 / np.tan(np.deg2rad(float(camera_of['fov'])) / 2))
  aspect = float(camera_of.get('aspect', 1.0))
  if 'render_width' in camera_of and camera_of.get('render_height'):
    aspect = float(camera_of['render_width'] / camera_of['render_height'])
  return posed_views.lens((focal, focal), (aspect, 1.0))


def _matrix(values: Any, rows: int) -> Float[np.ndarray, 'r 4']:
  """From a list of numbers, row by row, or of rows."""
  return np.array(values, np.float64).reshape(rows, 4)


# Of each layout the readers of a pose and of a lens.
_READERS = {
  'frames': (_of_frame, _lens_of_frame),
  'camera_path': (_of_keyframe, _lens_of_keyframe),
}
