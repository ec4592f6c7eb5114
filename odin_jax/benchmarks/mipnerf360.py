"""A scene of Mip-NeRF 360: `images`, `images_2|4|8` and COLMAP's `sparse/0`.

https://jonbarron.info/mipnerf360. The model may be binary or text, of a COLMAP
with rigs and frames or of one without. Its axes and pixels are ours
(https://colmap.github.io/format.html); its world has no known up and its unit
is what the model chose.
"""

import os
import pathlib
from typing import Any

from jaxtyping import Float
import numpy as np

from odin_jax.benchmarks import colmap_model, posed_views
from odin_jax.shared import camera, errors, files

# Cameras of COLMAP that OpenCV has too: places of fx, fy, cx, cy among their
# parameters (https://colmap.github.io/cameras.html), and how many coefficients
# of OpenCV follow.
_MODELS = {
  'SIMPLE_PINHOLE': ((0, 0, 1, 2), 0),
  'PINHOLE': ((0, 1, 2, 3), 0),
  'SIMPLE_RADIAL': ((0, 0, 1, 2), 1),
  'RADIAL': ((0, 0, 1, 2), 2),
  'OPENCV': ((0, 1, 2, 3), 4),
  'FULL_OPENCV': ((0, 1, 2, 3), 8),
}
_FEWEST_COEFFICIENTS = 4
_UNIT = "unit of COLMAP's model"


def read(
  folder: str | os.PathLike[str], *, factor: int = 1
) -> posed_views.PosedViews:
  """The views of one scene, in the order of their names.

  The order is that of the names as text, which is how multinerf and ZeroNVS
  number them.

  Args:
    folder: of the scene.
    factor: by which pictures were reduced: 1 takes `images`, N `images_N`.

  Raises:
    errors.UserError: no such folder, no readable model, a camera that has no
      pinhole camera in its place, or a picture that is missing or of another
      shape than its camera.
  """
  folder = files.require_folder(folder, 'a scene of Mip-NeRF 360')
  name = 'images' if factor == 1 else f'images_{factor}'
  images = files.require_folder(folder / name, 'the pictures of the scene')
  model = colmap_model.read(folder / 'sparse' / '0')
  of_pose = [image for image in model.images.values() if image.has_pose]
  posed = {image.name: image for image in of_pose}
  if not posed:
    raise errors.UserError(f'{folder / "sparse/0"}: no image there has a pose')
  if len(posed) < len(of_pose):
    raise errors.UserError(
      f'{folder / "sparse/0"}: two images there have one name; solve again'
    )
  views = []
  for number, image_name in enumerate(sorted(posed)):
    image = posed[image_name]
    path = _picture(images, image_name)
    size = posed_views.picture_size(path, f'a view of {folder / "sparse/0"}')
    scene2camera = colmap_model.scene2camera(image, folder / 'sparse' / '0')
    views.append(
      posed_views.PosedView(
        name=image_name,
        number=number,
        path=path,
        camera2scene=camera.inverse(scene2camera),
        points=_points(model, image),
        **_lens(image.camera, size, str(path)),
      )
    )
  return posed_views.PosedViews(
    layout=f'{name}/ and sparse/0', unit=_UNIT, views=tuple(views)
  )


def _points(model: Any, image: Any) -> Float[np.ndarray, 'n 3']:
  """Those that an image sees, in the scene."""
  points = [
    model.point3D(point.point3D_id).xyz
    for point in image.points2D
    if point.has_point3D()
  ]
  return np.array(points, np.float64).reshape(-1, 3)


def _picture(images: pathlib.Path, name: str) -> pathlib.Path:
  """The file of an image of the model; reduced ones may have another suffix."""
  path = images / name
  if path.is_file():
    return path
  others = sorted(path.parent.glob(f'{path.stem}.*')) if path.stem else []
  if len(others) != 1:
    raise errors.UserError(
      f'{path}: no such file; sparse/0 has a camera for it'
    )
  return others[0]


def _lens(lens: Any, size: posed_views.Size, where: str) -> dict[str, Any]:
  """Intrinsics, size and undistortion of a view."""
  if lens.model_name not in _MODELS:
    raise errors.UserError(
      f'{where}: its camera is {lens.model_name}, which is not read here; there '
      f'are {", ".join(_MODELS)}; undistort it with colmap image_undistorter'
    )
  places, count = _MODELS[lens.model_name]
  fx, fy, cx, cy = (lens.params[place] for place in places)
  matrix = posed_views.rescaled(
    np.array([[fx, 0, cx], [0, fy, cy], [0, 0, 1.0]]),
    (lens.width, lens.height),
    size,
    where,
  )
  if not (np.isfinite(lens.params).all() and np.diag(matrix).min() > 0):
    raise errors.UserError(f'{where}: its camera has no positive focal length')
  coefficients = [float(x) for x in lens.params[len(set(places)) :]]
  if not any(coefficients):
    return {'intrinsics': matrix, 'size': size}
  coefficients += [0.0] * (_FEWEST_COEFFICIENTS - count)
  try:
    undistortion = posed_views.Undistortion(
      lens=matrix, coefficients=tuple(coefficients), size=size
    )
  except ValueError as error:
    raise errors.UserError(f'{where}: {error}') from error
  return {
    'intrinsics': undistortion.intrinsics,
    'size': undistortion.new_size,
    'undistortion': undistortion,
  }
