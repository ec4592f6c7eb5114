"""How near a predicted mesh is to the true one.

As SyncDreamer measures it,
https://github.com/liuyuan-pal/SyncDreamer/blob/main/eval_mesh.py, both meshes
in the same axes and unit, the true one in the unit box:

* Chamfer distance: (mean of d_p + mean of d_t) / 2 of points on the surfaces,
  d the distance (not squared) from each point of one mesh to the nearest of the
  other. The points are the depth maps of a ring of cameras, thinned to one, the
  mean, in each voxel, as Open3D's `voxel_down_sample` has them.
* Volume IoU: of the nodes -1 + 2 i / n, i = 0 ... n - 1, of a grid, those with
  negative signed distance. The sign is that of mesh2sdf,
  https://github.com/wang-ps/mesh2sdf/blob/master/csrc/makelevelset3.cpp: inside
  is where a ray along x has crossed an odd number of faces. On SyncDreamer's
  `chicken`, whole and with a hole, all nodes are as mesh2sdf 1.1.0 has them.
* F-score: 2 P R / (P + R), P the share of predicted points with d_p below a
  threshold, R that of true ones with d_t below it. SyncDreamer has none.

There, points lie half a pixel beside their rays, in both meshes alike; here
they do not.
"""

from typing import NamedTuple

from jaxtyping import Bool, Float
import numpy as np
from scipy import spatial

from odin_jax.geometry import meshes
from odin_jax.shared import camera

Points = Float[np.ndarray, 'n 3']
Others = Float[np.ndarray, 'm 3']

# Pairs of a face and a line along x that are looked at together.
_CHUNK = 1_000_000
# Of where a line meets a face, in nodes: of faces that hold nodes, all are on
# one side.
_ROUNDING = 1e-9


class UnseenError(ValueError):
  """A mesh that no camera sees."""


class Cameras(NamedTuple):
  """Square views that points are taken from.

  Attributes:
    poses: [n 3 4], camera to mesh.
    fov_deg: of all.
    size_px: side of all.
  """

  poses: Float[np.ndarray, 'n 3 4']
  fov_deg: float
  size_px: int


def surface_points(mesh: meshes.Mesh, cameras: Cameras, voxel: float) -> Points:
  """Points of a mesh that cameras see, one for each voxel.

  Args:
    mesh: that is seen.
    cameras: that see it.
    voxel: side.

  Raises:
    UnseenError: no camera sees it.
  """
  caster = meshes.Caster(mesh)
  rays = camera.view_rays(cameras.fov_deg, cameras.size_px).reshape(-1, 3)
  seen = []
  for pose in cameras.poses:
    hits = caster.cast(pose, rays)
    seen.append(camera.transform(pose, rays[hits.rays] * hits.depth[:, None]))
  points = np.concatenate(seen)
  if not len(points):
    raise UnseenError(
      'no camera sees it; give it in the axes and the unit of the object'
    )
  return thinned(points, voxel)


def thinned(points: Points, voxel: float) -> Others:
  """The mean of the points in each voxel that has some."""
  corner = points.min(axis=0) - voxel / 2
  cells = np.floor((points - corner) / voxel).astype(np.int64)
  _, cell = np.unique(cells, axis=0, return_inverse=True)
  cell = cell.reshape(-1)
  counts = np.bincount(cell)
  return np.stack(
    [np.bincount(cell, weights=axis) / counts for axis in points.T], axis=-1
  )


def nearest(points: Points, others: Others) -> Float[np.ndarray, 'n']:
  """Distance of each point from the nearest of the others."""
  return spatial.cKDTree(others).query(points)[0]


def f_score(
  predicted: Float[np.ndarray, 'n'],
  true: Float[np.ndarray, 'm'],
  threshold: float,
) -> float:
  """Of the distances of predicted points and of true ones."""
  precision = float(np.mean(predicted < threshold))
  recall = float(np.mean(true < threshold))
  total = precision + recall
  return 2 * precision * recall / total if total else 0.0


def inside(mesh: meshes.Mesh, size: int) -> Bool[np.ndarray, 'n n n']:
  """Which nodes of a grid over [-1, 1] lie in a mesh, by axes x, y, z.

  A node on the surface is on one side of it by a rule, as a pixel on the edge
  that two triangles share is in one of them.

  Args:
    mesh: see `meshes.is_closed`: an open one has no inside everywhere.
    size: nodes along each axis.
  """
  crossings = np.zeros((size, size, size), np.int64)
  corners = ((mesh.vertices + 1) * (size / 2))[mesh.faces]
  # Lines along x that a face may cross: those in its box, seen along x.
  low = np.ceil(corners[..., 1:].min(axis=1)).clip(0, None).astype(np.int64)
  high = np.floor(corners[..., 1:].max(axis=1)).clip(None, size - 1)
  counts = np.maximum(high.astype(np.int64) - low + 1, 0)
  totals = counts.prod(axis=1)
  face = np.flatnonzero(totals)
  ends = np.cumsum(totals[face])
  starts = np.searchsorted(
    ends, np.arange(0, ends[-1] if len(ends) else 0, _CHUNK)
  )
  for rows in np.split(face, starts[1:]):
    _count_crossings(crossings, corners[rows], low[rows], counts[rows])
  return np.cumsum(crossings, axis=0) % 2 == 1


def _count_crossings(
  crossings: np.ndarray,
  corners: Float[np.ndarray, 'f 3 3'],
  low: np.ndarray,
  counts: np.ndarray,
) -> None:
  """Counts each crossing at the first node that is not before it."""
  size = len(crossings)
  totals = counts.prod(axis=1)
  of_face = np.repeat(np.arange(len(corners)), totals)
  place = np.arange(len(of_face)) - np.repeat(
    np.cumsum(totals) - totals, totals
  )
  j = low[of_face, 0] + place // counts[of_face, 1]
  k = low[of_face, 1] + place % counts[of_face, 1]
  x = corners[of_face, :, 0]
  y, z = (
    corners[of_face, :, 1] - j[:, None],
    corners[of_face, :, 2] - k[:, None],
  )
  areas, signs = zip(
    *(
      _orientation(y[:, a], z[:, a], y[:, b], z[:, b])
      for a, b in ((1, 2), (2, 0), (0, 1))
    )
  )
  hit = (signs[0] != 0) & (signs[0] == signs[1]) & (signs[0] == signs[2])
  weights = np.stack(areas, axis=-1)[hit]
  at = (weights * x[hit]).sum(axis=-1) / weights.sum(axis=-1)
  node = np.ceil(at - _ROUNDING).clip(0, size).astype(np.int64)
  within = node < size
  np.add.at(crossings, (node[within], j[hit][within], k[hit][within]), 1)


def _orientation(
  y1: np.ndarray, z1: np.ndarray, y2: np.ndarray, z2: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
  """Twice the area of the triangle with 0, and its sign.

  Where the area is 0 the sign is that of a triangle moved by a hair, the same
  for all that share the edge, so that each line crosses one of them.
  """
  area = z1 * y2 - y1 * z2
  sign = np.sign(area)
  for difference in (z2 - z1, y1 - y2):
    sign = np.where(sign == 0, np.sign(difference), sign)
  return area, sign


def volume_iou(
  predicted: meshes.Mesh, true: meshes.Mesh, size: int
) -> float | None:
  """Of the volumes that both and that either of them has; None of two empty."""
  volumes = inside(predicted, size), inside(true, size)
  either = np.count_nonzero(volumes[0] | volumes[1])
  both = np.count_nonzero(volumes[0] & volumes[1])
  return float(both / either) if either else None


def scores(
  predicted: meshes.Mesh,
  true: meshes.Mesh,
  cameras: Cameras,
  *,
  voxel: float,
  grid: int,
  threshold: float,
) -> dict[str, float | None]:
  """`chamfer`, `volume_iou` and `f_score` of a mesh.

  Args:
    predicted: in the axes and the unit of the true one.
    true: in the unit box.
    cameras: that points are taken from.
    voxel: side of those that points are thinned by.
    grid: nodes along each axis of [-1, 1].
    threshold: of the F-score.

  Raises:
    UnseenError: no camera sees a mesh.
  """
  points, others = (
    surface_points(mesh, cameras, voxel) for mesh in (predicted, true)
  )
  of_predicted, of_true = nearest(points, others), nearest(others, points)
  return {
    'chamfer': float((of_predicted.mean() + of_true.mean()) / 2),
    'volume_iou': volume_iou(predicted, true, grid),
    'f_score': f_score(of_predicted, of_true, threshold),
  }
