"""Posed depth maps to one coloured surface: a truncated signed distance field.

Every voxel of a grid keeps the mean, over the views that see it, of how far it
lies before the surface that the view has on its ray, cut off at a few voxels
(Curless and Levoy, "A volumetric method for building complex models from range
images", 1996). The surface is where that changes sign, found by marching cubes
(Lewiner et al. 2003, of scikit-image).
"""

import dataclasses
from typing import Iterator

import cv2
from jaxtyping import Bool, Float, Float32, Int, UInt8
import numpy as np
from scipy import ndimage, sparse, spatial
from scipy.sparse import csgraph

from odin_jax.geometry import lenses, stereo
from odin_jax.shared import camera

# Of the truncation, in voxels.
_TRUNCATION = 4.0
# Voxels along an axis that are near a surface or not together; voxels taken at
# once (OpenCV remaps to rows of at most 32767).
_BLOCK, _AT_ONCE = 2, 32_000
_EDGE = {'borderMode': cv2.BORDER_REPLICATE}
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
  field, weight = _integrate(views, inverse_depths, grid, near)
  vertices, faces = _surface(field, weight, grid)
  if not len(faces):
    return NO_MESH
  return Mesh(
    vertices=vertices,
    faces=faces,
    colours=_colours(views, inverse_depths, vertices, grid),
  )


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
) -> tuple[Float32[np.ndarray, 'x y z'], Float32[np.ndarray, 'x y z']]:
  """Field in truncations, -1 to 1, and how many views it is the mean of.

  Of all voxels but those `near` surfaces that is none.
  """
  field = np.zeros(grid.shape, np.float32)
  weight = np.zeros(grid.shape, np.float32)
  truncation = _TRUNCATION * grid.voxel
  for start in range(0, len(near), _AT_ONCE):
    index = near[start : start + _AT_ONCE]
    total = np.zeros(len(index), np.float32)
    count = np.zeros(len(index), np.float32)
    points = grid.centres(index)
    for _, before, seen in _before(views, inverse_depths, points, truncation):
      total += np.where(seen, np.minimum(before, 1), 0)
      count += seen
    field.reshape(-1)[index] = total / np.maximum(count, 1)
    weight.reshape(-1)[index] = count
  return field, weight


def _before(
  views: stereo.Views,
  inverse_depths: Float32[np.ndarray, 'n h w'],
  points: Float32[np.ndarray, 'm 3'],
  truncation: float,
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
  """Of each view, where it has points and how far they lie before its surface.

  Yields:
    pixels, [m 2], the centre of the first one at 0, as OpenCV has it; how far,
    in truncations; whether the view shows them, or what is at most one
    truncation before them.
  """
  scene2camera = camera.inverse(views.camera2scene).astype(np.float32)
  for pose, inverse in zip(scene2camera, inverse_depths, strict=True):
    pixels, z = views.lens.project(points @ pose[:, :3].T + pose[:, 3])
    inside = (z > 0) & views.lens.is_inside(pixels)
    place = np.where(inside[:, None], pixels - np.float32(0.5), np.float32(0))
    depth = _depth_at(inverse, place, truncation)
    before = (depth - z) / np.float32(truncation)
    yield place, before, inside & (depth > 0) & (before > -1)


def _depth_at(
  inverse: Float32[np.ndarray, 'h w'],
  place: Float32[np.ndarray, 'n 2'],
  truncation: float,
) -> Float32[np.ndarray, 'n']:
  """Depth between pixels, 0 where not known; of the nearest at an edge."""
  nearest, between = (
    cv2.remap(inverse, place[None], None, how, **_EDGE)[0]
    for how in (cv2.INTER_NEAREST, cv2.INTER_LINEAR)
  )
  # Their depths differ by less than half a truncation.
  smooth = np.abs(between - nearest) < truncation / 2 * nearest * between
  chosen = np.where(smooth, between, nearest)
  return np.divide(1, chosen, out=np.zeros_like(chosen), where=nearest > 0)


def _over_corners(reduce: np.ufunc, values: np.ndarray) -> np.ndarray:
  """Of every cell between voxels, over its eight corners."""
  for axis in range(3):
    values = np.moveaxis(values, axis, 0)
    values = np.moveaxis(reduce(values[:-1], values[1:]), 0, axis)
  return values


def _surface(
  field: Float32[np.ndarray, 'x y z'],
  weight: Float32[np.ndarray, 'x y z'],
  grid: _Grid,
) -> tuple[Float32[np.ndarray, 'n 3'], Int[np.ndarray, 'm 3']]:
  """Vertices and faces; none where nothing is seen."""
  # Slow to load, and for this alone.
  from skimage import measure

  largest, smallest = (
    _over_corners(reduce, field) for reduce in (np.maximum, np.minimum)
  )
  is_seen = _over_corners(np.minimum, weight) > 0
  crosses = is_seen & (largest > 0) & (smallest < 0)
  is_cell = crosses & (largest - smallest < _MOST_CHANGE)
  if not is_cell.any():
    return NO_MESH.vertices, NO_MESH.faces
  mask = np.zeros(field.shape, bool)
  # scikit-image looks a cell up at its last corner.
  mask[1:, 1:, 1:] = is_cell
  # The front is where the field is larger.
  places, faces, _, _ = measure.marching_cubes(
    field, 0.0, mask=mask, gradient_direction='descent'
  )
  kept = _without_specks(faces, len(places))
  used, faces = np.unique(faces[kept], return_inverse=True)
  vertices = (grid.origin + grid.voxel * places[used]).astype(np.float32)
  return vertices, faces.reshape(-1, 3)


def _colours(
  views: stereo.Views,
  inverse_depths: Float32[np.ndarray, 'n h w'],
  vertices: Float32[np.ndarray, 'm 3'],
  grid: _Grid,
) -> UInt8[np.ndarray, 'm 3']:
  """Mean of what the views show where their surface is near.

  Interpolated between pixels of known depth: others may show other things.
  """
  total = np.zeros((len(vertices), 3), np.float32)
  count = np.zeros(len(vertices), np.float32)
  for start in range(0, len(vertices), _AT_ONCE):
    rows = slice(start, start + _AT_ONCE)
    found = _before(
      views, inverse_depths, vertices[rows], _TRUNCATION * grid.voxel
    )
    for image, inverse, (place, before, seen) in zip(
      views.images, inverse_depths, found, strict=True
    ):
      known = (inverse > 0).astype(np.float32)
      shown, share = (
        cv2.remap(x, place[None], None, cv2.INTER_LINEAR, **_EDGE)[0]
        for x in (image * known[..., None], known)
      )
      # The nearest pixel is known where a surface is seen.
      near = seen & (before < 1)
      total[rows] += (near / np.maximum(share, 0.2))[:, None] * shown
      count[rows] += near
  # The corners of a cell are seen, and yet a pixel within it may not be.
  has_none = count == 0
  if has_none.any() and not has_none.all():
    _, nearest = spatial.KDTree(vertices[~has_none]).query(vertices[has_none])
    total[has_none], count[has_none] = (
      x[~has_none][nearest] for x in (total, count)
    )
  return np.round(total / np.maximum(count, 1)[:, None]).astype(np.uint8)


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
