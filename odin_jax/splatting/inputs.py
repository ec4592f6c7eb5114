"""Posed views from the folders that other commands write."""

import dataclasses
import pathlib
from typing import Any

import cv2
from jaxtyping import Float, UInt8
import numpy as np

from odin_jax.benchmarks import posed_views
from odin_jax.geometry import ply_files, view_folder
from odin_jax.shared import camera, errors, files, opengl, user_images
from odin_jax.splatting import fitting, initial


@dataclasses.dataclass(frozen=True, kw_only=True)
class Inputs:
  """Views, what they are called, and points that came with them.

  Attributes:
    views: all of one size.
    names: of their files.
    points: in scene axes, with colours; None where there are none.
  """

  views: fitting.Views
  names: list[str]
  points: initial.Points | None


def of_views(folder: pathlib.Path) -> Inputs:
  """The views of a folder as `odin_jax.generate` writes it.

  Raises:
    errors.UserError: see `view_folder.read`.
  """
  views, names = view_folder.read(folder)
  return Inputs(
    views=fitting.Views(
      images=views.images,
      counts=np.ones(views.images.shape[:3], np.uint8),
      scene2camera=camera.inverse(views.camera2scene),
      focal_px=float(views.intrinsics[0, 0]),
    ),
    names=names,
    points=None,
  )


def of_cameras(folder: pathlib.Path, component: int) -> Inputs:
  """The panoramas of a video that `preprocessing.run` exported.

  Args:
    folder: `cameras/VIDEO` of an output folder.
    component: which of its components.

  Raises:
    errors.UserError: it was exported without pictures, has no such component,
      or what its file names is missing or malformed.
  """
  suffix = f'_{component}' if component else ''
  path = folder / f'transforms{suffix}.json'
  if not path.is_file():
    raise errors.UserError(
      f'{path}: no such file; preprocessing.run --export=nerfstudio writes it '
      'with the pictures, one file for each component'
    )
  content = files.read_json(
    path, 'the panoramas', ('camera_model', 'w', 'h', 'frames')
  )
  if content['camera_model'] != 'EQUIRECTANGULAR':
    raise errors.UserError(
      f'{path}: its camera is {content["camera_model"]}; give the folder of '
      'panoramas, cameras/VIDEO'
    )
  frames = content['frames']
  if not isinstance(frames, list) or len(frames) < 2:
    raise errors.UserError(f'{path}: has fewer than two frames')
  size = content['w'], content['h']
  read = [_frame(path, frame, size) for frame in frames]
  images, counts, poses = zip(*read)
  points = content.get('ply_file_path')
  return Inputs(
    views=fitting.Views(
      images=np.stack(images),
      counts=np.stack(counts),
      scene2camera=camera.inverse(np.stack(poses)),
      focal_px=None,
    ),
    names=[str(frame['file_path']) for frame in frames],
    points=None
    if points is None
    else _in_scene(of_file(path.parent / str(points))),
  )


def _in_scene(points: initial.Points) -> initial.Points:
  places, colours = points
  return camera.transform(camera.inverse(opengl.SCENE2WORLD), places), colours


def _frame(
  path: pathlib.Path, frame: Any, size: tuple[int, int]
) -> tuple[
  UInt8[np.ndarray, 'h w 3'],
  UInt8[np.ndarray, 'h w'],
  Float[np.ndarray, '3 4'],
]:
  """Picture, pixels that count, and camera2scene of a frame."""
  try:
    name = str(frame['file_path'])
    matrix = np.array(frame['transform_matrix'], np.float64)
  except (KeyError, TypeError, ValueError) as error:
    raise errors.UserError(
      f'{path}: a frame is malformed ({error!r}); export again'
    ) from error
  pose = opengl.camera2scene(posed_views.rigid(matrix, f'{path}: {name}'))
  image = user_images.read(path.parent / name, 'a panorama')
  counts = np.ones(image.shape[:2], np.uint8)
  if frame.get('mask_path'):
    mask = user_images.read(path.parent / str(frame['mask_path']), 'its mask')
    counts = (mask[..., 0] > 0).astype(np.uint8)
  for picture in (image, counts):
    if picture.shape[1::-1] != tuple(size):
      raise errors.UserError(
        f'{path}: {name} or its mask has {picture.shape[1]}x{picture.shape[0]} '
        f'px, not {size[0]}x{size[1]}; export again'
      )
  return image, counts, pose


def of_file(path: pathlib.Path) -> initial.Points:
  """The points of a .ply with their colours, grey where it has none.

  Raises:
    errors.UserError: no such file, or none with points that are numbers.
  """
  # Slow to load, and for this alone.
  import trimesh

  files.require_file(path, 'points')
  ply_files.check_whole(path)
  try:
    cloud = trimesh.load(path, file_type='ply', process=False)
    points = np.asarray(cloud.vertices, np.float64)
    colours = np.asarray(cloud.visual.vertex_colors)[:, :3] / 255
  # trimesh raises whatever a damaged file makes it trip over.
  except Exception as error:  # noqa: BLE001
    raise errors.UserError(f'{path}: no points in PLY: {error}') from error
  if not len(points) or not np.isfinite(points).all():
    raise errors.UserError(
      f'{path}: has no points, or some that are no numbers'
    )
  if colours.shape != points.shape:
    colours = np.full(points.shape, 0.5)
  return points, colours


def at_most(views: fitting.Views, max_height_px: int) -> fitting.Views:
  """The same views, made smaller where they are higher than that."""
  height, width = views.images.shape[1:3]
  if height <= max_height_px:
    return views
  factor = max_height_px / height
  size = round(width * factor), max_height_px

  def smaller(pictures: np.ndarray) -> np.ndarray:
    return np.stack(
      [
        cv2.resize(picture, size, interpolation=cv2.INTER_AREA)
        for picture in pictures
      ]
    )

  return dataclasses.replace(
    views,
    images=smaller(views.images),
    # Those to which no masked pixel adds.
    counts=(smaller(views.counts * np.uint8(255)) == 255).astype(np.uint8),
    focal_px=views.focal_px and views.focal_px * factor,
  )


def ahead(
  panoramas: UInt8[np.ndarray, 'n h w 3'], fov_deg: float
) -> UInt8[np.ndarray, 'n s s 3']:
  """The square views along the axes of panoramas, as fine as these."""
  height, width = panoramas.shape[1:3]
  size = max(1, round(height * fov_deg / 180))
  u, v = camera.direction_to_equirect(
    camera.view_rays(fov_deg, size), width, height
  )
  # OpenCV counts from the centre of the first pixel.
  where = u.astype(np.float32) - 0.5, v.astype(np.float32) - 0.5
  return np.stack(
    [
      cv2.remap(picture, *where, cv2.INTER_LINEAR, borderMode=cv2.BORDER_WRAP)
      for picture in panoramas
    ]
  )
