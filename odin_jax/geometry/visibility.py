"""What one view shows of what another shows, by the true depth of both.

A pixel of the target whose surface lies at depth z shows the point z ray, in
the source's axes R z ray + t. The source shows that point where it lies in
front of the camera, inside the picture, and at the depth that the source has
there: between the nearest and the farthest of the four pixel centres around it,
give or take `DEPTH_TOLERANCE`. On a plane, however it is inclined, that is
exact; an edge is decided to within a pixel.

The nearest pixel alone would call much of a floor unseen, on which depth
changes by 10 % from pixel to pixel.
"""

from typing import NamedTuple, Sequence

from jaxtyping import Bool, Float
import numpy as np

from odin_jax.shared import camera

# Depths are rounded and poses estimated.
DEPTH_TOLERANCE = 0.02
# Bilinear weight from which a pixel counts: at its centre, no other one does.
_LEAST_WEIGHT = 1e-6

Depth = Float[np.ndarray, 's s']
Mask = Bool[np.ndarray, 's s']
Masks = Bool[np.ndarray, 'n s s']


class Projection(NamedTuple):
  """Where in the source the surfaces of the target are.

  Attributes:
    u: pixel coordinates, centres at + 0.5; of no meaning where `seen` is False.
    v: likewise.
    seen: whether the source shows them.
  """

  u: Float[np.ndarray, 's s']
  v: Float[np.ndarray, 's s']
  seen: Mask


def project(
  target2source: Float[np.ndarray, '3 4'],
  fov_deg: float,
  source_depth: Depth,
  target_depth: Depth,
) -> Projection:
  """Takes the surfaces that the target shows to the source.

  Args:
    target2source: relative pose.
    fov_deg: full field of view of both views.
    source_depth: along the optical axis at pixel centres, units of the pose;
      inf where there is no surface.
    target_depth: likewise; what has no surface is not seen.
  """
  size = len(target_depth)
  has_surface = np.isfinite(target_depth)
  depth = np.where(has_surface, target_depth, 1.0).astype(np.float64)
  points = camera.view_rays(fov_deg, size) * depth[..., None]
  local = points @ target2source[:, :3].T + target2source[:, 3]
  pixels, z = camera.project(local, camera.intrinsics(fov_deg, size))
  in_picture = np.all((pixels >= 0) & (pixels <= size), axis=-1)
  seen = has_surface & (z > 0) & in_picture
  u, v = np.moveaxis(np.where(seen[..., None], pixels, 0.5), -1, 0)
  # Where none of the four has a surface, the source shows none.
  nearest, farthest = np.full_like(u, np.inf), np.full_like(u, -np.inf)
  for place, weight in _corners(u, v, size):
    there = source_depth[place]
    counts = (weight > _LEAST_WEIGHT) & np.isfinite(there)
    nearest = np.where(counts, np.minimum(nearest, there), nearest)
    farthest = np.where(counts, np.maximum(farthest, there), farthest)
  seen &= z >= nearest * (1 - DEPTH_TOLERANCE)
  seen &= z <= farthest * (1 + DEPTH_TOLERANCE)
  return Projection(u, v, seen)


def _corners(
  u: Depth, v: Depth, size: int
) -> Sequence[tuple[tuple[np.ndarray, np.ndarray], Depth]]:
  """The four pixels around places in a picture, with their bilinear weights.

  Beyond the outermost centres the picture goes on as it is there.
  """
  x, y = (np.clip(values - 0.5, 0, size - 1) for values in (u, v))
  left, top = (
    np.clip(np.floor(values).astype(int), 0, max(size - 2, 0))
    for values in (x, y)
  )
  x, y = x - left, y - top
  right, bottom = (np.minimum(first + 1, size - 1) for first in (left, top))
  return [
    ((top, left), (1 - y) * (1 - x)),
    ((top, right), (1 - y) * x),
    ((bottom, left), y * (1 - x)),
    ((bottom, right), y * x),
  ]


def warp(
  source: Float[np.ndarray, 's s c'],
  target2source: Float[np.ndarray, '3 4'],
  fov_deg: float,
  source_depth: Depth,
  target_depth: Depth,
) -> Float[np.ndarray, 's s c']:
  """The source as the target shows it, by backward warping.

  Every surface that the source sees too gets the colour that it has there, by
  bilinear interpolation; every other one the source's mean colour; and where
  there is no surface, the mean colour of where the source has none either, if
  there is such a place.

  Args:
    source: the picture.
    target2source: as for `project`.
    fov_deg: likewise.
    source_depth: likewise.
    target_depth: likewise.
  """
  args = target2source, fov_deg, source_depth, target_depth
  u, v, seen = project(*args)
  colours = sum(
    weight[..., None] * source[place]
    for place, weight in _corners(u, v, len(source))
  )
  mean = source.mean(axis=(0, 1))
  view = np.where(seen[..., None], colours, mean)
  is_empty = np.isinf(source_depth)
  if is_empty.any():
    view[np.isinf(target_depth)] = source[is_empty].mean(axis=0)
  return view


def masks(
  target2source: Float[np.ndarray, 'n 3 4'],
  fov_deg: Float[np.ndarray, 'n'],
  source_depth: Float[np.ndarray, 'n s s'],
  target_depth: Float[np.ndarray, 'n s s'],
  target_moving: Masks | None,
) -> dict[str, Masks]:
  """The kinds of pixels that targets have.

  Args:
    target2source: true poses.
    fov_deg: as for `project`.
    source_depth: likewise.
    target_depth: likewise.
    target_moving: which show something that moves between the two views; None
      where that is not known.

  Returns:
    `seen`: they show a surface that the source shows, too, and that has not
    moved. `unseen`: they show another surface. `static`, `moving`: none where
    that is not known.
  """
  args = zip(target2source, fov_deg, source_depth, target_depth, strict=True)
  seen = np.stack([project(*of_pair).seen for of_pair in args])
  none = np.zeros_like(seen)
  moving = none if target_moving is None else target_moving
  seen &= ~moving
  return {
    'seen': seen,
    'unseen': np.isfinite(target_depth) & ~seen,
    'static': none if target_moving is None else ~moving,
    'moving': moving,
  }
