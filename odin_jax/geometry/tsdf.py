"""Posed depth maps to one coloured surface: a truncated signed distance field.

Every voxel of a grid keeps the mean, over the views that see it, of how far it
lies before the surface that the view has on its ray, cut off at a few voxels
(Curless and Levoy, "A volumetric method for building complex models from range
images", 1996). The surface is where that changes sign, found by marching cubes
(Lewiner et al. 2003, of scikit-image).
"""

import dataclasses

import cv2
from jaxtyping import Bool, Float, Float32, Int, UInt8
import numpy as np
from scipy import ndimage, sparse
from scipy.sparse import csgraph

from odin_jax.geometry import lenses, stereo
from odin_jax.shared import camera

# Of the truncation, in voxels.
_TRUNCATION = 4.0
# Voxels along an axis that are near a surface or not together; voxels taken at
# once (OpenCV remaps to rows of at most 32767).
_BLOCK, _AT_ONCE = 2, 32_000
# Of points, what may lie outside of the grid at either end of an axis.
_OUTLIERS_PERCENT = 0.5
# Within a cell of a surface the field changes by no more than this: about
# sqrt(3) / _TRUNCATION. Where it jumps, one view sees past what hides from
# another, and there is no surface between.
_MOST_CHANGE = 1.0
# Parts with a smaller share of the faces are specks.
_LEAST_SHARE = 0.005


@dataclasses.dataclass(frozen=True, kw_only=True)
class Mesh:
  """Triangles in scene axes, whose front is where they were seen from."""

  vertices: Float32[np.ndarray, 'n 3']
  faces: Int[np.ndarray, 'm 3']
  colours: UInt8[np.ndarray, 'n 3']


NO_MESH = Mesh(
  vertices=np.zeros((0, 3), np.float32),
  faces=np.zeros((0, 3), int),
  colours=np.zeros((0, 3), np.uint8),
)


@dataclasses.dataclass(frozen=True)
class _Grid:
  """Voxels, whose centres lie at origin + voxel * index."""

  origin: Float[np.ndarray, '3']
  voxel: float
  shape: tuple[int, int, int]

  def centres(self, index: Int[np.ndarray, 'n']) -> Float32[np.ndarray, 'n 3']:
    """Of voxels by their flat indices."""
    places = np.stack(np.unravel_index(index, self.shape), -1)
    return (self.origin + self.voxel * places).astype(np.float32)

  def within(
    self, points: Float[np.ndarray, 'n 3'], reach: Float[np.ndarray, 'n']
  ) -> Int[np.ndarray, 'm']:
    """Flat indices of voxels no farther from a point than its reach, and more."""
    size = _BLOCK * self.voxel
    shape = [-(-count // _BLOCK) for count in self.shape]
    blocks = np.floor((points - self.origin) / size + 0.5 / _BLOCK).astype(int)
    is_inside = ((blocks >= 0) & (blocks < shape)).all(1)
    blocks, steps = blocks[is_inside], np.ceil(reach[is_inside] / size)
    near = np.zeros(shape, bool)
    for far in np.unique(steps):
      with_points = np.zeros(shape, bool)
      with_points[tuple(blocks[steps == far].T)] = True
      near |= ndimage.maximum_filter(with_points, 2 * int(far) + 1)
    for axis in range(3):
      near = near.repeat(_BLOCK, axis)
    x, y, z = self.shape
    return np.flatnonzero(near[:x, :y, :z])


def fuse(
  views: stereo.Views,
  inverse_depths: Float32[np.ndarray, 'n h w'],
  *,
  voxels: int,
) -> Mesh:
  """The surface that depth maps agree on, on average.

  Args:
    views: with their images.
    inverse_depths: of each view at its pixel centres, 0 where not known.
    voxels: along the longest side of what is seen; the least detail is a few of
      them.
  """
  points, apart = _known_points(views, inverse_depths)
  grid = _grid(points, voxels)
  if grid is None:
    return NO_MESH
  # Surfaces lie where pixels see them, or between these; their sign changes
  # within the voxels around.
  near = grid.within(points, apart + _TRUNCATION / 2 * grid.voxel)
  field, weight, colour = _integrate(views, inverse_depths, grid, near)
  return _surface(field, weight, colour, grid)


def _known_points(
  views: stereo.Views, inverse_depths: Float32[np.ndarray, 'n h w']
) -> tuple[Float[np.ndarray, 'm 3'], Float[np.ndarray, 'm']]:
  """Of all pixels whose depth is known; how far the next ones' are from each.

  As far as on surfaces that face the camera.
  """
  rays = views.lens.rays(lenses.grid(views.lens))
  points = [
    camera.transform(pose, rays[known] / inverse[known][:, None])
    for pose, inverse in zip(views.camera2scene, inverse_depths)
    if (known := inverse > 0).any()
  ]
  inverse = inverse_depths[inverse_depths > 0].astype(np.float64)
  apart = views.lens.pixel_rad / inverse
  return np.concatenate([*points, np.zeros((0, 3))]), apart


def _grid(points: Float[np.ndarray, 'n 3'], voxels: int) -> _Grid | None:
  """Around the known surfaces; None where there is nothing to speak of."""
  if not len(points):
    return None
  low, high = np.percentile(
    points, [_OUTLIERS_PERCENT, 100 - _OUTLIERS_PERCENT], axis=0
  )
  longest = float((high - low).max())
  if not longest > 0:
    return None
  voxel = longest / voxels
  margin = _TRUNCATION * voxel
  shape = np.ceil((high - low + 2 * margin) / voxel).astype(int) + 1
  return _Grid(low - margin, voxel, tuple(shape.tolist()))


def _integrate(
  views: stereo.Views,
  inverse_depths: Float32[np.ndarray, 'n h w'],
  grid: _Grid,
  near: Int[np.ndarray, 'm'],
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """Field in truncations, -1 to 1; weights; sums of colours and their weight.

  Of all voxels but those `near` surfaces the weight is 0.
  """
  field = np.zeros(grid.shape, np.float32)
  weight = np.zeros(grid.shape, np.float32)
  colour = np.zeros((*grid.shape, 4), np.float32)
  of_voxels = field.reshape(-1), weight.reshape(-1), colour.reshape(-1, 4)
  truncation = _TRUNCATION * grid.voxel
  scene2camera = camera.inverse(views.camera2scene).astype(np.float32)
  for start in range(0, len(near), _AT_ONCE):
    index = near[start : start + _AT_ONCE]
    points = grid.centres(index)
    sums = [np.zeros((len(index), *x.shape[1:]), np.float32) for x in of_voxels]
    for pose, image, inverse in zip(
      scene2camera, views.images, inverse_depths, strict=True
    ):
      local = points @ pose[:, :3].T + pose[:, 3]
      _add_view(sums, local, views.lens, image, inverse, truncation)
    for values, more in zip(of_voxels, sums, strict=True):
      values[index] = more
  return field / np.maximum(weight, 1), weight, colour


def _add_view(
  sums: list[np.ndarray],
  local: Float32[np.ndarray, 'n 3'],
  lens: lenses.Lens,
  image: UInt8[np.ndarray, 'h w 3'],
  inverse: Float32[np.ndarray, 'h w'],
  truncation: float,
) -> None:
  """What one view says of voxels, in its axes."""
  field, weight, colour = sums
  pixels, z = lens.project(local)
  inside = (z > 0) & lens.is_inside(pixels)
  # OpenCV puts the centre of the first pixel at 0, this project at 0.5.
  place = np.where(inside[:, None], pixels - np.float32(0.5), np.float32(0))
  depth = _depth_at(inverse, place, truncation)
  before = (depth - z) / np.float32(truncation)
  seen = inside & (depth > 0) & (before > -1)
  field += np.where(seen, np.minimum(before, 1), 0)
  weight += seen
  near = np.flatnonzero(seen & (before < 1))
  last = [lens.width_px - 1, lens.height_px - 1]
  where = np.minimum((place[near] + 0.5).astype(np.int32), last)
  colour[near, :3] += image[where[:, 1], where[:, 0]]
  colour[near, 3] += 1


def _depth_at(
  inverse: Float32[np.ndarray, 'h w'],
  place: Float32[np.ndarray, 'n 2'],
  truncation: float,
) -> Float32[np.ndarray, 'n']:
  """Depth between pixels, 0 where not known; of the nearest at an edge."""
  border = {'borderMode': cv2.BORDER_REPLICATE}
  nearest, between = (
    cv2.remap(inverse, place[None], None, how, **border)[0]
    for how in (cv2.INTER_NEAREST, cv2.INTER_LINEAR)
  )
  # Their depths differ by less than half a truncation.
  smooth = np.abs(between - nearest) < truncation / 2 * nearest * between
  chosen = np.where(smooth, between, nearest)
  return np.divide(1, chosen, out=np.zeros_like(chosen), where=nearest > 0)


def _over_corners(reduce: np.ufunc, values: np.ndarray) -> np.ndarray:
  """Of every cell between voxels, over its eight corners."""
  for axis in range(3):
    values = reduce(np.delete(values, -1, axis), np.delete(values, 0, axis))
  return values


def _surface(
  field: Float32[np.ndarray, 'x y z'],
  weight: Float32[np.ndarray, 'x y z'],
  colour: Float32[np.ndarray, 'x y z 4'],
  grid: _Grid,
) -> Mesh:
  # Slow to load, and for this alone.
  from skimage import measure

  largest, smallest = (
    _over_corners(reduce, field) for reduce in (np.maximum, np.minimum)
  )
  is_seen = _over_corners(np.minimum, weight) > 0
  crosses = is_seen & (largest > 0) & (smallest < 0)
  is_cell = crosses & (largest - smallest < _MOST_CHANGE)
  if not is_cell.any():
    return NO_MESH
  mask = np.zeros(field.shape, bool)
  # scikit-image looks a cell up at its last corner.
  mask[1:, 1:, 1:] = is_cell
  # The front is where the field is larger.
  places, faces, _, _ = measure.marching_cubes(
    field, 0.0, mask=mask, gradient_direction='descent'
  )
  kept = _without_specks(faces, len(places))
  used, faces = np.unique(faces[kept], return_inverse=True)
  places = places[used]
  sums = [
    ndimage.map_coordinates(channel, places.T, order=1, mode='nearest')
    for channel in np.moveaxis(colour, -1, 0)
  ]
  colours = np.stack(sums[:3], -1) / np.maximum(sums[3], 1e-6)[:, None]
  return Mesh(
    vertices=(grid.origin + grid.voxel * places).astype(np.float32),
    faces=faces.reshape(-1, 3),
    colours=np.round(colours.clip(0, 255)).astype(np.uint8),
  )


def _without_specks(
  faces: Int[np.ndarray, 'm 3'], count: int
) -> Bool[np.ndarray, 'm']:
  """Which faces belong to parts that are worth keeping."""
  edges = np.concatenate([faces[:, [0, 1]], faces[:, [1, 2]]])
  graph = sparse.coo_array(
    (np.ones(len(edges), np.int8), tuple(edges.T)), (count, count)
  )
  _, part = csgraph.connected_components(graph, directed=False)
  sizes = np.bincount(part[faces[:, 0]])
  return sizes[part[faces[:, 0]]] >= _LEAST_SHARE * len(faces)
