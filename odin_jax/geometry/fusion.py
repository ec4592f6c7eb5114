"""Posed views to one coloured point cloud: depth maps that must agree.

A depth is believed when other views, through their own depth maps, put the
same surface there (Schoenberger et al., "Pixelwise view selection for
unstructured multi-view stereo", 2016; Yao et al., "MVSNet", 2018). Believed
depths become points in the scene's axes; points that share a voxel are merged.
"""

import dataclasses
import os
from typing import Callable, Iterable

import cv2
from jaxtyping import Bool, Float, Float32, Int, UInt8, UInt16
import numpy as np

from odin_jax.geometry import lenses, stereo
from odin_jax.shared import camera


@dataclasses.dataclass(frozen=True, kw_only=True)
class Agreement:
  """When two views agree on a surface, and how many have to.

  Attributes:
    reprojection_px: a pixel taken to the other view and back, with that
      view's depth, returns this close.
    relative_depth: and with a depth that differs by at most this share.
    parallax_deg: the two cameras see the point under at least this angle;
      below it they agree on any depth.
    num_views: how many other views have to agree.
    correlation: least ZNCC of the match.
  """

  reprojection_px: float
  relative_depth: float
  parallax_deg: float
  num_views: int
  correlation: float


# For views at their own size.
AGREEMENT = Agreement(
  reprojection_px=1.0,
  relative_depth=0.03,
  parallax_deg=1.0,
  num_views=2,
  correlation=0.5,
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class PointCloud:
  """Points in scene axes with sRGB colours and unit normals."""

  points: Float32[np.ndarray, 'n 3']
  normals: Float32[np.ndarray, 'n 3']
  colours: UInt8[np.ndarray, 'n 3']


@dataclasses.dataclass(frozen=True, kw_only=True)
class ViewFigures:
  """What came of one view.

  Attributes:
    coverage: share of its pixels whose depth is believed.
    correlation: median ZNCC where a depth inside the range was found; None
      where none was.
  """

  coverage: float
  correlation: float | None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Reconstruction:
  """A point cloud and how well the views agreed on it.

  Attributes:
    cloud: all believed points, merged in voxels.
    inverse_depths: per view, 0 where it is not believed.
    num_agreeing: how many other views agree on it, 0 where it is not believed.
    figures: per view.
    depth_differences: relative differences between agreeing views.
  """

  cloud: PointCloud
  inverse_depths: Float32[np.ndarray, 'n h w']
  num_agreeing: UInt16[np.ndarray, 'n h w']
  figures: list[ViewFigures]
  depth_differences: Float[np.ndarray, 'm']


@dataclasses.dataclass(frozen=True, kw_only=True)
class CheckedView:
  """One view's depths after the check.

  Attributes:
    points: scene points, mean over the views that agree; rows of `believed`.
    believed: which pixels they belong to.
    num_agreeing: how many other views agree on each pixel, believed or not.
    depth_differences: relative differences between agreeing views.
  """

  points: Float[np.ndarray, 'n 3']
  believed: Bool[np.ndarray, 'h w']
  num_agreeing: Int[np.ndarray, 'h w']
  depth_differences: Float[np.ndarray, 'm']


def _scene_points(
  views: stereo.Views, index: int, depth: Float[np.ndarray, 'h w']
) -> Float[np.ndarray, 'p 3']:
  rays = views.lens.rays(lenses.grid(views.lens))
  points = (rays * depth[..., None]).reshape(-1, 3).astype(np.float64)
  return camera.transform(views.camera2scene[index], points)


def check(
  views: stereo.Views,
  maps: list[stereo.DepthMap | None],
  reference: int,
  rule: Agreement,
) -> CheckedView:
  """Keeps the depths of `reference` on which enough other views agree."""
  lens = views.lens
  own = maps[reference].depth.astype(np.float64)
  points = _scene_points(views, reference, own)
  pixels = lenses.grid(lens).reshape(-1, 2)
  own = own.reshape(-1)
  total, count = points.copy(), np.zeros(len(points), int)
  differences = []
  for neighbour, neighbour_map in enumerate(maps):
    if neighbour == reference or neighbour_map is None:
      continue
    returned, agree = _round_trip(views, neighbour, neighbour_map, points)
    back, depth = lens.project(
      camera.transform(camera.inverse(views.camera2scene[reference]), returned)
    )
    difference = np.abs(depth - own) / own
    agree &= lens.apart_px(back, pixels) < rule.reprojection_px
    agree &= difference < rule.relative_depth
    agree &= (
      camera.angle_between_deg(
        points - views.camera2scene[reference][:, 3],
        points - views.camera2scene[neighbour][:, 3],
      )
      >= rule.parallax_deg
    )
    total[agree] += returned[agree]
    count += agree
    differences.append(difference[agree])
  believed = count >= rule.num_views
  believed &= maps[reference].correlation.reshape(-1) >= rule.correlation
  return CheckedView(
    points=total[believed] / (1 + count[believed, None]),
    believed=believed.reshape(views.images.shape[1:3]),
    num_agreeing=count.reshape(views.images.shape[1:3]),
    depth_differences=np.concatenate([*differences, np.zeros(0)]),
  )


def _round_trip(
  views: stereo.Views,
  neighbour: int,
  neighbour_map: stereo.DepthMap,
  points: Float[np.ndarray, 'p 3'],
) -> tuple[Float[np.ndarray, 'p 3'], Bool[np.ndarray, 'p']]:
  """Where `other` sees the surface behind each point, and whether it does."""
  local = camera.transform(
    camera.inverse(views.camera2scene[neighbour]), points
  )
  lens, shape = views.lens, views.images.shape[1:3]
  pixels, z = lens.project(local)
  visible = (z > 0) & lens.is_inside(pixels)
  where = np.where(visible[:, None], pixels, 0).reshape(*shape, 2)
  depth = stereo.sampled(neighbour_map.depth, lens, where).reshape(-1)
  if views.counts is not None:
    counts = views.counts[neighbour].astype(np.float32)
    visible &= stereo.sampled(counts, lens, where).reshape(-1) > 0.5
  ray = local / np.where(visible, z, 1)[:, None]
  surface = camera.transform(
    views.camera2scene[neighbour], ray * depth[:, None].astype(np.float64)
  )
  return surface, visible


def normals_of_depth(
  views: stereo.Views, index: int, depth: Float32[np.ndarray, 'h w']
) -> Float[np.ndarray, 'h w 3']:
  """Unit normals in scene axes that face the camera, from smoothed depth."""
  smooth = cv2.bilateralFilter(1 / depth, 5, 0.1, 2.0)
  surface = _scene_points(views, index, 1 / smooth).reshape(*depth.shape, 3)
  normal = np.cross(np.gradient(surface, axis=0), np.gradient(surface, axis=1))
  length = np.linalg.norm(normal, axis=-1, keepdims=True)
  normal = normal / np.maximum(length, 1e-12)
  towards = views.camera2scene[index][:, 3] - surface
  facing = np.sum(normal * towards, axis=-1, keepdims=True) >= 0
  return np.where(facing, normal, -normal)


def merge_in_voxels(cloud: PointCloud, voxel: float) -> PointCloud:
  """One point per occupied voxel: mean position, normal and colour."""
  if not len(cloud.points):
    return cloud
  cells = np.floor(cloud.points.astype(np.float64) / voxel).astype(np.int64)
  _, cell, count = np.unique(
    cells, axis=0, return_inverse=True, return_counts=True
  )

  def mean(values: np.ndarray) -> np.ndarray:
    sums = [
      np.bincount(cell.reshape(-1), weights=column) for column in values.T
    ]
    return np.stack(sums, -1) / count[:, None]

  normals = mean(cloud.normals)
  length = np.linalg.norm(normals, axis=-1, keepdims=True)
  return PointCloud(
    points=mean(cloud.points).astype(np.float32),
    normals=(normals / np.maximum(length, 1e-12)).astype(np.float32),
    colours=np.round(mean(cloud.colours)).astype(np.uint8),
  )


def cloud_of_view(
  views: stereo.Views,
  index: int,
  depth: Float32[np.ndarray, 'h w'],
  checked: CheckedView,
) -> PointCloud:
  """The believed points of one view with their colours and normals."""
  normals = normals_of_depth(views, index, depth)
  return PointCloud(
    points=checked.points.astype(np.float32),
    normals=normals[checked.believed].astype(np.float32),
    colours=views.images[index][checked.believed],
  )


def join(clouds: list[PointCloud]) -> PointCloud:
  """All points of several clouds; none of none."""
  empty = np.zeros((0, 3), np.float32)
  return PointCloud(
    points=np.concatenate([empty, *(cloud.points for cloud in clouds)]),
    normals=np.concatenate([empty, *(cloud.normals for cloud in clouds)]),
    colours=np.concatenate(
      [empty.astype(np.uint8), *(cloud.colours for cloud in clouds)]
    ),
  )


def resize(views: stereo.Views, size_px: int) -> stereo.Views:
  """The same views at another size: area averages down, cubic up."""
  smaller = size_px < views.size_px
  height, width = views.images.shape[1:3]
  # Of panoramas even, so that half a turn is a number of columns.
  size = size_px, size_px
  if views.fov_deg is None:
    size = 2 * round(width * size_px / height / 2), size_px

  def resized(pictures: np.ndarray) -> np.ndarray:
    how = cv2.INTER_AREA if smaller else cv2.INTER_CUBIC
    return np.stack(
      [cv2.resize(picture, size, interpolation=how) for picture in pictures]
    )

  counts = views.counts
  if counts is not None:
    # Pixels to which none adds that does not count.
    counts = resized(np.where(counts, np.uint8(255), np.uint8(0))) == 255
  return dataclasses.replace(views, images=resized(views.images), counts=counts)


def reconstruct(
  views: stereo.Views,
  sweep: stereo.Sweep,
  rule: Agreement,
  progress: Callable[[Iterable[int]], Iterable[int]] = iter,
) -> Reconstruction:
  """Points on which the views agree.

  Args:
    views: at the size at which they are matched.
    sweep: how depth is searched for.
    rule: which depths are believed.
    progress: wraps the loop over views, for a progress bar.
  """
  count = len(views.images)
  maps = [
    stereo.depth_map(views, index, sweep) for index in progress(range(count))
  ]
  return fuse(views, maps, rule)


def fuse(
  views: stereo.Views, maps: list[stereo.DepthMap | None], rule: Agreement
) -> Reconstruction:
  """Points on which depths agree, however they were found.

  Args:
    views: at the size of the depths.
    maps: depth of each; None where there is none.
    rule: which depths are believed.
  """
  clouds, figures, differences = [], [], []
  inverse_depths = np.zeros(views.images.shape[:3], np.float32)
  num_agreeing = np.zeros(inverse_depths.shape, np.uint16)
  for index, depth_map in enumerate(maps):
    if depth_map is None:
      figures.append(ViewFigures(coverage=0.0, correlation=None))
      continue
    checked = check(views, maps, index, rule)
    clouds.append(cloud_of_view(views, index, depth_map.depth, checked))
    differences.append(checked.depth_differences)
    inverse_depths[index] = np.where(checked.believed, 1 / depth_map.depth, 0)
    num_agreeing[index] = np.where(checked.believed, checked.num_agreeing, 0)
    scores = depth_map.correlation[depth_map.correlation > -1]
    figures.append(
      ViewFigures(
        coverage=float(checked.believed.mean()),
        correlation=float(np.median(scores)) if scores.size else None,
      )
    )
  # One pixel at depth 1: points closer than that are the same point seen twice.
  voxel = views.lens.pixel_rad
  return Reconstruction(
    cloud=merge_in_voxels(join(clouds), voxel),
    inverse_depths=inverse_depths,
    num_agreeing=num_agreeing,
    figures=figures,
    depth_differences=np.concatenate([*differences, np.zeros(0)]),
  )


def write_ply(path: str | os.PathLike[str], cloud: PointCloud) -> None:
  """Writes a binary little-endian PLY with normals and colours."""
  fields = [(name, '<f4') for name in ('x', 'y', 'z', 'nx', 'ny', 'nz')]
  fields += [(name, 'u1') for name in ('red', 'green', 'blue')]
  vertices = np.empty(len(cloud.points), fields)
  for start, values in (
    (0, cloud.points),
    (3, cloud.normals),
    (6, cloud.colours),
  ):
    for column in range(3):
      vertices[fields[start + column][0]] = values[:, column]
  kinds = {'<f4': 'float', 'u1': 'uchar'}
  header = [
    'ply',
    'format binary_little_endian 1.0',
    f'element vertex {len(vertices)}',
    *(f'property {kinds[kind]} {name}' for name, kind in fields),
    'end_header',
  ]
  with open(path, 'wb') as file:
    file.write('\n'.join(header).encode() + b'\n')
    file.write(vertices.tobytes())
