"""Depth of a view at the places where it shows known points of the scene."""

from jaxtyping import Float
import numpy as np

from odin_jax.shared import camera
from preprocessing.views import alignment


def rasterise(
  points_frame: Float[np.ndarray, 'n 3'],
  angles: alignment.Angles,
  *,
  fov_deg: float,
  size_px: int,
) -> Float[np.ndarray, 'd d']:
  """The depth of the nearest point in each cell of a grid over a view.

  A point counts for all of its cell, so on slanted surfaces depth is off by up
  to what it changes over half a cell.

  Args:
    points_frame: what the view shows, in the axes of its panorama.
    angles: of the view.
    fov_deg: of the view.
    size_px: side of the grid.

  Returns:
    along the optical axis, in the units of the points; inf in cells without.
  """
  points = points_frame @ camera.view2frame_rotation(*angles)
  places, depth = camera.project(points, camera.intrinsics(fov_deg, size_px))
  inside = (depth > 0) & np.all((places >= 0) & (places < size_px), axis=1)
  column, row = places[inside].astype(int).T
  nearest = np.full((size_px, size_px), np.inf)
  np.minimum.at(nearest, (row, column), depth[inside])
  return nearest
