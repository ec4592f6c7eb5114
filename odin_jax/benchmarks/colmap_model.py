"""Models of COLMAP, binary or text: cameras, images and points3D.

https://colmap.github.io/format.html; its axes and pixels are ours.
"""

import pathlib
from typing import Any

from jaxtyping import Float
import numpy as np

from odin_jax.benchmarks import posed_views
from odin_jax.shared import camera, errors, files


def read(path: pathlib.Path) -> Any:
  """The `pycolmap.Reconstruction` in a folder.

  Raises:
    errors.UserError: no such folder, a file of it is missing, or it cannot be
      read.
  """
  # pycolmap brings libraries of its own: imported late, after OpenCV and PIL.
  import pycolmap

  files.require_folder(path, "COLMAP's model of the scene")
  for kind in ('.bin', '.txt'):
    names = [f'{part}{kind}' for part in ('cameras', 'images', 'points3D')]
    missing = [name for name in names if not (path / name).is_file()]
    if not missing:
      break
    if len(missing) < len(names):
      raise errors.UserError(
        f'{path}: {", ".join(missing)} is missing; copy the model again'
      )
  else:
    raise errors.UserError(
      f'{path}: no model of COLMAP: cameras, images and points3D as .bin or .txt'
    )
  try:
    model = pycolmap.Reconstruction(path)
    # What images see has to be there, which COLMAP does not check of text.
    for image in model.images.values():
      for point in image.points2D:
        if point.has_point3D():
          model.point3D(point.point3D_id)
    return model
  # Whatever COLMAP checks, and what runs out of bytes.
  except Exception as error:  # noqa: BLE001
    reason = ' '.join(str(error).split())
    raise errors.UserError(
      f'{path}: COLMAP cannot read this model ({reason}); copy it again'
    ) from error


def scene2camera(image: Any, path: pathlib.Path) -> Float[np.ndarray, '3 4']:
  """The pose of an image of a model in a folder.

  Raises:
    errors.UserError: it is no rotation and translation.
  """
  return posed_views.rigid(
    image.cam_from_world().matrix(), f'{path}: {image.name}'
  )


def cameras(
  path: pathlib.Path,
) -> tuple[Float[np.ndarray, 'n 3 4'], tuple[posed_views.Lens, ...]]:
  """`camera2scene` and lenses of all images of the model in a folder.

  They are in the order of the images' names.

  Raises:
    errors.UserError: as `read` and `scene2camera`.
  """
  model = read(path)
  posed = sorted(
    (image for image in model.images.values() if image.has_pose),
    key=lambda image: image.name,
  )
  poses = [camera.inverse(scene2camera(image, path)) for image in posed]
  return np.array(poses).reshape(-1, 3, 4), tuple(
    _lens(model.cameras[image.camera_id]) for image in posed
  )


def _lens(camera_of: Any) -> posed_views.Lens:
  """Of a `pycolmap.Camera`."""
  if not camera_of.is_perspective_pinhole():
    return posed_views.Lens(is_pinhole=False)
  focal = camera_of.focal_length_x, camera_of.focal_length_y
  size = float(camera_of.width), float(camera_of.height)
  return posed_views.lens(focal, size, is_pinhole=camera_of.is_undistorted())
