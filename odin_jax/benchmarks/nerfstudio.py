"""Any `transforms.json`: nerfstudio, instant-ngp, Blender's synthetic scenes.

https://docs.nerf.studio/quickstart/data_conventions.html. Its axes are those
of `odin_jax.shared.opengl`, its pixels are ours.
"""

import dataclasses
import json
import os
import pathlib
from typing import Any, Mapping

from jaxtyping import Float
import numpy as np

from odin_jax.benchmarks import posed_views
from odin_jax.geometry import ply_files
from odin_jax.shared import camera, errors, files, opengl

NAME = 'transforms.json'
# Of pinhole cameras, distorted or not; no name is a pinhole camera, too.
_MODELS = ('PINHOLE', 'SIMPLE_PINHOLE', 'SIMPLE_RADIAL', 'RADIAL', 'OPENCV')
_COEFFICIENTS = ('k1', 'k2', 'p1', 'p2', 'k3', 'k4')
_SUFFIXES = ('', '.png', '.jpg')


def read(path: str | os.PathLike[str]) -> posed_views.PosedViews:
  """The views of one scene, in the order of their paths, as nerfstudio has it.

  Args:
    path: a folder with `transforms.json`, or such a file of any name.

  Raises:
    errors.UserError: no such file, no such JSON, or a frame whose picture,
      pose or camera is missing or malformed.
  """
  path = pathlib.Path(path)
  if path.is_dir():
    path /= NAME
  files.require_file(path, f"a scene's {NAME}")
  try:
    content = json.loads(path.read_text())
    frames = {frame['file_path']: frame for frame in content['frames']}
    names = sorted(frames)
  except (ValueError, KeyError, TypeError) as error:
    raise errors.UserError(
      f'{path}: no {NAME}: needs "frames", each with "file_path" '
      f'({type(error).__name__}: {error})'
    ) from error
  if not frames or len(frames) != len(content['frames']):
    raise errors.UserError(f'{path}: no frames, or one file_path twice')
  views = [
    _view(path, number, {**content, **frames[name]})
    for number, name in enumerate(names)
  ]
  if len({view.path.resolve() for view in views}) < len(views):
    raise errors.UserError(f'{path}: two frames have one picture')
  if content.get('ply_file_path'):
    points = _points(path.parent / str(content['ply_file_path']))
    # A cloud does not tell which of its points a view sees: of several in one
    # direction all count.
    views = [dataclasses.replace(view, points=points) for view in views]
  return posed_views.PosedViews(
    layout=path.name, unit=f'unit of {path.name}', views=tuple(views)
  )


def lens(frame: Mapping[str, Any]) -> posed_views.Lens:
  """What is told of a frame's camera where its picture need not be there.

  Args:
    frame: its values over those of all frames.

  Raises:
    KeyError, TypeError, ValueError: it is malformed.
  """
  if frame.get('camera_model', _MODELS[0]) not in _MODELS or frame.get(
    'is_fisheye'
  ):
    return posed_views.Lens(is_pinhole=False)
  is_pinhole = not any(float(frame.get(name, 0)) for name in _COEFFICIENTS)
  if 'w' in frame and 'h' in frame:
    size = float(frame['w']), float(frame['h'])
  elif 'cx' in frame and 'cy' in frame:
    size = 2 * float(frame['cx']), 2 * float(frame['cy'])
  elif 'camera_angle_x' in frame and 'fl_x' not in frame:
    # Of Blender's scenes, whose pictures are square.
    size = 1.0, 1.0
  else:
    return posed_views.Lens(is_pinhole=is_pinhole)
  matrix = _intrinsics(frame, size)
  focal = float(matrix[0, 0]), float(matrix[1, 1])
  return posed_views.lens(focal, size, is_pinhole=is_pinhole)


def _points(path: pathlib.Path) -> Float[np.ndarray, 'n 3']:
  """The points of a scene, in our axes."""
  # Slow to load, and for this alone.
  import trimesh

  files.require_file(path, 'the points of ply_file_path')
  ply_files.check_whole(path)
  try:
    points = np.asarray(trimesh.load(path, process=False).vertices, np.float64)
  # trimesh raises whatever a damaged file makes it trip over.
  except Exception as error:  # noqa: BLE001
    raise errors.UserError(f'{path}: no points in PLY: {error}') from error
  if not np.isfinite(points).all():
    raise errors.UserError(f'{path}: has points that are no numbers')
  return camera.transform(camera.inverse(opengl.SCENE2WORLD), points)


def _view(
  path: pathlib.Path, number: int, frame: Mapping[str, Any]
) -> posed_views.PosedView:
  """One frame.

  Args:
    path: of the JSON.
    number: of the frame.
    frame: its values over those of all frames.
  """
  name = frame['file_path']
  where = f'{path}: {name}'
  picture = _picture(path.parent / name, where)
  size = posed_views.picture_size(picture, 'a view')
  mask = None
  if frame.get('mask_path'):
    mask = files.require_file(path.parent / str(frame['mask_path']), 'its mask')
  try:
    matrix = np.array(frame['transform_matrix'], np.float64)
    lens = _lens(frame, size, where)
  except (KeyError, ValueError, TypeError) as error:
    raise errors.UserError(
      f'{where}: {type(error).__name__} in its camera: {error}'
    ) from error
  return posed_views.PosedView(
    name=name,
    number=number,
    path=picture,
    camera2scene=opengl.camera2scene(posed_views.rigid(matrix, where)),
    mask_path=mask,
    **lens,
  )


def _picture(path: pathlib.Path, where: str) -> pathlib.Path:
  # Blender's scenes leave the suffix out.
  for suffix in _SUFFIXES if not path.suffix else ('',):
    if (whole := path.with_name(path.name + suffix)).is_file():
      return whole
  raise errors.UserError(f'{where}: no such file; copy the pictures, too')


def _lens(
  frame: Mapping[str, Any], size: posed_views.Size, where: str
) -> dict[str, Any]:
  """Intrinsics, size and undistortion of a view."""
  model = frame.get('camera_model', 'PINHOLE')
  if model not in _MODELS or frame.get('is_fisheye'):
    raise errors.UserError(
      f'{where}: its camera is {"fisheye" if model in _MODELS else model}; only '
      f'pinhole cameras are read ({", ".join(_MODELS)})'
    )
  # The pictures may be reduced; the camera is of those that it was solved with.
  solved = (frame.get('w', size[0]), frame.get('h', size[1]))
  if not min(solved) > 0:
    raise errors.UserError(f'{where}: its w and h are not positive')
  matrix = _intrinsics(frame, solved)
  if not np.isfinite(matrix).all():
    raise errors.UserError(
      f'{where}: its camera has values that are no numbers'
    )
  if not np.diag(matrix).min() > 0:
    raise errors.UserError(f'{where}: its focal length is not positive')
  is_size_known = 'w' in frame and 'h' in frame
  if (
    not is_size_known
    and posed_views.off_centre(matrix, size) > posed_views.OFF_CENTRE
  ):
    raise posed_views.misfit(where, size)
  matrix = posed_views.rescaled(matrix, solved, size, where)
  coefficients = [float(frame.get(name, 0)) for name in _COEFFICIENTS]
  if not any(coefficients):
    return {'intrinsics': matrix, 'size': size}
  # OpenCV takes 4, 5 or 8 of them; nerfstudio's k4 is not OpenCV's.
  if coefficients[5]:
    raise errors.UserError(f'{where}: k4 is of fisheye cameras')
  undistortion = posed_views.Undistortion(
    lens=matrix, coefficients=tuple(coefficients[:5]), size=size
  )
  return {
    'intrinsics': undistortion.intrinsics,
    'size': undistortion.new_size,
    'undistortion': undistortion,
  }


def _intrinsics(
  frame: Mapping[str, Any], size: posed_views.Size | tuple[float, float]
) -> posed_views.Matrix:
  width, height = size
  if 'fl_x' in frame:
    fl_x = float(frame['fl_x'])
    fl_y = float(frame.get('fl_y', fl_x))
  elif 'camera_angle_x' in frame:
    fl_x = width / 2 / _half_tangent(frame['camera_angle_x'])
    fl_y = fl_x
    if 'camera_angle_y' in frame:
      fl_y = height / 2 / _half_tangent(frame['camera_angle_y'])
  else:
    raise KeyError('neither fl_x nor camera_angle_x is there')
  return np.array(
    [
      [fl_x, 0, float(frame.get('cx', width / 2))],
      [0, fl_y, float(frame.get('cy', height / 2))],
      [0, 0, 1],
    ]
  )


def _half_tangent(angle: Any) -> float:
  """Of half a field of view in radians."""
  if not 0 < float(angle) < np.pi:
    raise ValueError(f'a field of view of {angle}, in radians 0 to 3.14')
  return float(np.tan(float(angle) / 2))
