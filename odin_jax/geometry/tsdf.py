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

  def centres(self, x: int) -> Float32[np.ndarray, 'n 3']:
    """Of a slice of the grid, in the order of its flat indices."""
    _, down, along = self.shape
    y, z = np.meshgrid(np.arange(down), np.arange(along), indexing='ij')
    index = np.stack([np.full_like(y, x), y, z], -1).reshape(-1, 3)
    return (self.origin + self.voxel * index).astype(np.float32)


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
  grid = _grid(views, inverse_depths, voxels)
  if grid is None:
    return NO_MESH
  field, weight, colour = _integrate(views, inverse_depths, grid)
  return _surface(field, weight, colour, grid)


def _grid(
  views: stereo.Views,
  inverse_depths: Float32[np.ndarray, 'n h w'],
  voxels: int,
) -> _Grid | None:
  """Around the known surfaces; None where there is nothing to speak of."""
  rays = views.lens.rays(lenses.grid(views.lens))
  points = [
    camera.transform(pose, rays[known] / inverse[known][:, None])
    for pose, inverse in zip(views.camera2scene, inverse_depths)
    if (known := inverse > 0).any()
  ]
  if not points:
    return None
  low, high = np.percentile(
    np.concatenate(points),
    [_OUTLIERS_PERCENT, 100 - _OUTLIERS_PERCENT],
    axis=0,
  )
  longest = float((high - low).max())
  if not longest > 0:
    return None
  voxel = longest / voxels
  margin = _TRUNCATION * voxel
  shape = np.ceil((high - low + 2 * margin) / voxel).astype(int) + 1
  return _Grid(low - margin, voxel, tuple(shape.tolist()))


def _integrate(
  views: stereo.Views, inverse_depths: Float32[np.ndarray, 'n h w'], grid: _Grid
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """Field in truncations, -1 to 1; weights; sums of colours and their weight."""
  field = np.zeros(grid.shape, np.float32)
  weight = np.zeros(grid.shape, np.float32)
  colour = np.zeros((*grid.shape, 4), np.float32)
  truncation = _TRUNCATION * grid.voxel
  lens = views.lens
  last = np.array([lens.width_px - 1, lens.height_px - 1])
  scene2camera = camera.inverse(views.camera2scene).astype(np.float32)
  for x in range(grid.shape[0]):
    points = grid.centres(x)
    layer = grid.shape[1:]
    for index, pose in enumerate(scene2camera):
      local = points @ pose[:, :3].T + pose[:, 3]
      pixels, z = lens.project(local)
      inside = (z > 0) & lens.is_inside(pixels)
      if not inside.any():
        continue
      # OpenCV puts the centre of the first pixel at 0, this project at 0.5.
      place = np.where(inside[:, None], pixels - np.float32(0.5), 0)
      depth = _depth_at(
        inverse_depths[index],
        place.astype(np.float32).reshape(*layer, 2),
        truncation,
      ).reshape(-1)
      before = (depth - z) / truncation
      seen = inside & (depth > 0) & (before > -1)
      near = seen & (before < 1)
      seen, near = seen.reshape(layer), near.reshape(layer)
      before = np.minimum(before, 1).reshape(layer)
      field[x] += np.where(seen, before, 0)
      weight[x] += seen
      if near.any():
        pixels = np.round(place).astype(int).clip(0, last).reshape(*layer, 2)
        where = pixels[near]
        values = views.images[index][where[:, 1], where[:, 0]]
        colour[x][near] += np.append(
          values, np.ones((len(values), 1)), axis=1
        ).astype(np.float32)
  return field / np.maximum(weight, 1), weight, colour


def _depth_at(
  inverse: Float32[np.ndarray, 'a b'],
  place: Float32[np.ndarray, 'h w 2'],
  truncation: float,
) -> Float32[np.ndarray, 'h w']:
  """Depth between pixels, 0 where not known; of the nearest at an edge."""
  border = {'borderMode': cv2.BORDER_REPLICATE}
  nearest, between = (
    cv2.remap(inverse, place, None, how, **border)
    for how in (cv2.INTER_NEAREST, cv2.INTER_LINEAR)
  )
  known = nearest > 0
  nearest, between = (1 / np.maximum(x, 1e-9) for x in (nearest, between))
  smooth = np.abs(nearest - between) < truncation / 2
  return np.where(known, np.where(smooth, between, nearest), 0)


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
