"""How large a scene is in its unit: the `median_depth` of a view.

It is the median, over what is shown of the view's picture and stands still, of
the distance from the camera; what is not known, such as the sky's, does not
count. A pose without it says nothing of what is near and what is far; so all
that records, panoramas, benchmarks and paths tell a model is this one number.
"""

from jaxtyping import Float
import numpy as np

from odin_jax.shared import camera

# The picture is divided into so many cells a side.
_CELLS = 8


def of_points(points: Float[np.ndarray, 'n 3'], fov_deg: float) -> float:
  """That of a view which shows these points of surfaces, and others.

  Points crowd where there is texture. So those in one of the cells of the
  picture together count as much as those in any other.

  Args:
    points: in the view's axes; those outside of it do not count.
    fov_deg: full field of view.

  Returns:
    in the points' unit; 0 where the view shows none of them.
  """
  pixels, depth = camera.project(points, camera.intrinsics(fov_deg, _CELLS))
  inside = (depth > 0) & np.all((pixels >= 0) & (pixels <= _CELLS), axis=-1)
  if not inside.any():
    return 0.0
  column, row = np.minimum(pixels[inside].astype(int), _CELLS - 1).T
  _, cell, counts = np.unique(
    row * _CELLS + column, return_inverse=True, return_counts=True
  )
  median = np.quantile(
    np.linalg.norm(points[inside], axis=1),
    0.5,
    weights=1 / counts[cell],
    method='inverted_cdf',
  )
  return float(median)
