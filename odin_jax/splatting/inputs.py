"""Posed views from the folders that other commands write."""

import dataclasses
import pathlib

import cv2
import numpy as np

from odin_jax.geometry import equirectangular_frames, ply_files, view_folder
from odin_jax.shared import camera, errors, files, opengl
from odin_jax.splatting import fitting, initial


@dataclasses.dataclass(frozen=True, kw_only=True)
class Inputs:
  """Views, what they are called, and points that came with them.

  Attributes:
    views: all of one size.
    names: of their files.
    points: in scene axes, with colours; None where there are none.
    component: of the video that they are of; None of other views.
  """

  views: fitting.Views
  names: list[str]
  points: initial.Points | None
  component: int | None = None


def of_views(folder: pathlib.Path, max_size_px: int) -> Inputs:
  """The views of a folder as `odin_jax.generate` writes it.

  Args:
    folder: with poses.json.
    max_size_px: larger views are made smaller.

  Raises:
    errors.UserError: see `view_folder.read`.
  """
  views, names = view_folder.read(folder)
  images = views.images
  if views.size_px > max_size_px:
    size = max_size_px, max_size_px
    images = np.stack(
      [cv2.resize(x, size, interpolation=cv2.INTER_AREA) for x in images]
    )
  return Inputs(
    views=fitting.Views(
      images=images,
      counts=np.ones(images.shape[:3], np.uint8),
      scene2camera=camera.inverse(views.camera2scene),
      focal_px=float(views.intrinsics[0, 0]) * images.shape[1] / views.size_px,
    ),
    names=names,
    points=None,
  )


def of_cameras(
  folder: pathlib.Path, component: int | None, max_height_px: int
) -> Inputs:
  """The panoramas of a video that `preprocessing.run` exported.

  Args:
    folder: `cameras/VIDEO` of an output folder.
    component: which of its components; None for the largest.
    max_height_px: larger panoramas are made smaller.

  Raises:
    errors.UserError: see `equirectangular_frames.read` and `of_file`.
  """
  frames = equirectangular_frames.read(
    folder, component=component, max_height_px=max_height_px
  )
  return Inputs(
    views=fitting.Views(
      images=frames.images,
      counts=frames.counts.astype(np.uint8),
      scene2camera=camera.inverse(frames.camera2scene),
      focal_px=None,
    ),
    names=frames.names,
    points=_exported_points(folder, frames.component),
    component=frames.component,
  )


def _exported_points(
  folder: pathlib.Path, component: int
) -> initial.Points | None:
  """Those that nerfstudio's files come with, in scene axes."""
  suffix = f'_{component}' if component else ''
  path = folder / f'points{suffix}.ply'
  if not path.is_file():
    return None
  places, colours = of_file(path)
  return camera.transform(camera.inverse(opengl.SCENE2WORLD), places), colours


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
