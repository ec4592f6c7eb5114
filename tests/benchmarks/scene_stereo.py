"""Depth, points and meshes of `odin_jax.reconstruct` against procedural truth.

    python -m tests.benchmarks.scene_stereo --output=DIR

Of every procedural world, true views (--views along a path) and true panoramas
(--views along the walk) with true poses are reconstructed as the command does.
For each, a JSON line and a row of `scene_stereo.json`:

  median_depth_error  of believed depths, relative, where the truth is known
  over_5_percent      share of believed depths that are off by more
  coverage            share of pixels whose depth is believed
  chamfer             (mean distance of our points from true ones + the other
                      way) / 2, as a share of the scene's diagonal; points of
                      both are thinned to one per voxel of 1/200 of that
  accuracy            its first half: of our points from true ones
  completeness        and its second: of true points from ours
  reachable_chamfer   the same where the other way is of true points alone that
                      lie within the sweep's range and that two views show
  mesh_chamfer, reachable_mesh_chamfer
                      of the mesh's vertices
  complete            share of true points with one of ours within 1/50 of it
  sweep_s, fuse_s     CPU seconds: of all depths, and of the mesh from them
  open3d_s            of Open3D's TSDF integration and extraction from the same
                      depths at the same voxel and truncation; perspective
                      alone (Open3D knows no panoramas); null without Open3D,
                      0.20 here (`pip install --target=DIR open3d==0.20.0`, and
                      DIR at the end of PYTHONPATH)

True points are what all pixels of all views show, some of it in one view
alone, where no two can tell its depth, or farther away than the sweep looks.
The diagonal is that of a box without the last half percent of them at either
end of every axis, and they are all counted: outdoors an eighth of the voxels
lie outside of it, some more than a diagonal away from any that can be found.
`reachable_chamfer` is without. COLMAP's own stereo needs CUDA, so that
pycolmap's has nothing to be compared with on a CPU.
"""

import os

# Open3D's threads would go on spinning in the time of the others.
os.environ.setdefault('OMP_WAIT_POLICY', 'passive')

import json
import pathlib
import time
from typing import Any

from absl import flags
import numpy as np

from odin_jax.geometry import (
  fusion,
  lenses,
  shape_metrics,
  stereo,
  trajectory,
  tsdf,
  visibility,
)
from odin_jax.shared import camera, command, errors, files
from preprocessing.procedural import (
  footage,
  raycaster,
  scenes,
  true_path,
)

_OUTPUT = flags.DEFINE_string('output', None, 'Folder to write.', required=True)
_WORLDS = flags.DEFINE_list(
  'worlds', ['unique_room', 'unique_corridor', 'unique_outdoor'], 'Their kinds.'
)
_LENSES = flags.DEFINE_list('lenses', ['perspective', 'panorama'], 'Which.')
_SEED = flags.DEFINE_integer('seed', 4711, 'Of the worlds.', 0)
_VIEWS = flags.DEFINE_integer('views', 8, 'Of each world.', 3)
_SIZE_PX = flags.DEFINE_integer('size_px', 192, 'Height of views.', 32)
_VOXELS = flags.DEFINE_integer('voxels', 160, 'Of the mesh.', 16)
_FOV_DEG = 90.0
_PATH = flags.DEFINE_string('path', 'orbit_left', 'Of perspective views.')
_STEP = flags.DEFINE_float('step', 0.1, 'Of the path, scene units.')


def _truth(
  world: scenes.World, pose: np.ndarray, lens: lenses.Lens, time_s: float
) -> np.ndarray:
  """Depth in metres; inf where nobody can tell."""
  rays = lens.rays(lenses.grid(lens))
  lengths = np.linalg.norm(rays, axis=-1)
  turned = raycaster.rotate(
    pose[:, :3], (rays / lengths[..., None]).astype(np.float32)
  )
  hits = world.scene.cast(pose[:, 3], turned, time_s)
  scene = world.scene
  known = ~(scene.surface_moves | scene.surface_is_backdrop)[hits.surface]
  return np.where(known, hits.distance / lengths, np.inf)


def _perspective(
  world: scenes.World,
) -> tuple[stereo.Views, np.ndarray, float]:
  """Views, true depths, metres per scene unit."""
  path = trajectory.camera_path(_PATH.value, _VIEWS.value, _STEP.value)
  first = world.walk.frame2world(0.0)
  size_px = _SIZE_PX.value
  true = true_path.render(
    world, 0.0, first, path, fov_deg=_FOV_DEG, size_px=size_px
  )
  shown = [i for i, image in enumerate(true.images) if image is not None]
  path = path[shown]
  views = stereo.Views(
    images=np.stack([true.images[i] for i in shown]),
    camera2scene=path,
    fov_deg=_FOV_DEG,
  )
  depths = [
    _truth(
      world,
      camera.compose(first, camera.rescale(pose, true.unit_m)),
      views.lens,
      0.0,
    )
    for pose in path
  ]
  return views, np.stack(depths) / true.unit_m, true.unit_m


def _panoramas(world: scenes.World) -> tuple[stereo.Views, np.ndarray, float]:
  """The same of panoramas along the walk, 0.4 s apart."""
  height = _SIZE_PX.value
  times = np.arange(_VIEWS.value) * 0.4
  poses = np.stack([world.walk.frame2world(t) for t in times])
  lens = lenses.Equirectangular(2 * height, height)
  depths = np.stack([_truth(world, pose, lens, 0.0) for pose in poses])
  unit_m = float(np.median(depths[np.isfinite(depths)]))
  images = [
    footage.render_panorama(world, t, width=2 * height, height=height)
    for t in times
  ]
  views = stereo.Views(
    images=np.stack(images),
    camera2scene=camera.rescale(poses, 1 / unit_m),
    fov_deg=None,
  )
  return views, depths / unit_m, unit_m


def _open3d_s(
  views: stereo.Views, inverse_depths: np.ndarray, voxel: float
) -> float | None:
  """CPU seconds of Open3D for the same; None where it is not installed."""
  try:
    import open3d
  except ImportError:
    return None
  # The first use pays for what is loaded then.
  for _ in range(2):
    start = time.process_time()
    vertices = _open3d_mesh(open3d, views, inverse_depths, voxel)
    spent = time.process_time() - start
  if not vertices:
    raise errors.UserError('Open3D made no mesh; nothing to compare with')
  return spent


def _open3d_mesh(
  open3d: Any, views: stereo.Views, inverse_depths: np.ndarray, voxel: float
) -> int:
  """Vertices of Open3D's mesh, by its voxel blocks.

  Its older `ScalableTSDFVolume` gives an empty mesh of anything in 0.20.0.
  """
  as_tensor = open3d.core.Tensor
  kind = open3d.core.Dtype.Float32
  grid = open3d.t.geometry.VoxelBlockGrid(
    ('tsdf', 'weight', 'color'), (kind,) * 3, ((1,), (1,), (3,)), voxel, 16
  )
  matrix = views.intrinsics.copy()
  # Open3D puts the centre of the first pixel at 0.
  matrix[:2, 2] -= 0.5
  intrinsics = as_tensor(np.ascontiguousarray(matrix))
  for image, inverse, pose in zip(
    views.images, inverse_depths, views.camera2scene
  ):
    depth = np.where(inverse > 0, 1 / np.maximum(inverse, 1e-9), 0)
    depth = open3d.t.geometry.Image(as_tensor(depth.astype(np.float32)))
    colour = open3d.t.geometry.Image(
      as_tensor(np.ascontiguousarray(image, np.float32) / 255)
    )
    extrinsics = as_tensor(
      np.vstack([camera.inverse(pose), [0.0, 0.0, 0.0, 1.0]])
    )
    limits = {
      'depth_scale': 1.0,
      'depth_max': 1e6,
      'trunc_voxel_multiplier': 4.0,
    }
    blocks = grid.compute_unique_block_coordinates(
      depth, intrinsics, extrinsics, **limits
    )
    grid.integrate(
      blocks, depth, colour, intrinsics, intrinsics, extrinsics, **limits
    )
  return len(grid.extract_triangle_mesh(0.5).vertex.positions)


def _num_showing(
  views: stereo.Views, depths: np.ndarray, points: np.ndarray
) -> np.ndarray:
  """How many views show each point; as `visibility` has it, of any lens."""
  lens = views.lens
  count = np.zeros(len(points), int)
  for pose, depth in zip(views.camera2scene, depths):
    pixels, z = lens.project(camera.transform(camera.inverse(pose), points))
    is_inside = (z > 0) & lens.is_inside(pixels)
    column, row = np.floor(
      np.where(is_inside[:, None], pixels, 0) + 0.5
    ).T.astype(int)
    depth = (
      lens.continued(depth, 1) if lens.goes_on else np.pad(depth, 1, 'edge')
    )
    around = np.stack(
      [depth[row + i, column + j] for i in (0, 1) for j in (0, 1)]
    )
    farthest = np.where(np.isfinite(around), around, 0).max(axis=0)
    count += (
      is_inside
      & (z >= around.min(axis=0) * (1 - visibility.DEPTH_TOLERANCE))
      & (z <= farthest * (1 + visibility.DEPTH_TOLERANCE))
    )
  return count


def _distances(
  points: np.ndarray, true: np.ndarray, reachable: np.ndarray, diagonal: float
) -> dict[str, float]:
  """By the diagonal, and the share of what is complete."""
  points, *truths = (
    shape_metrics.thinned(part.astype(np.float64), diagonal / 200)
    for part in (points, true, true[reachable])
  )
  accuracy = shape_metrics.nearest(points, truths[0]).mean() / diagonal
  missed, reachable_missed = (
    shape_metrics.nearest(truth, points) / diagonal for truth in truths
  )
  completeness = missed.mean()
  return {
    'chamfer': float((accuracy + completeness) / 2),
    'accuracy': float(accuracy),
    'completeness': float(completeness),
    'reachable_chamfer': float((accuracy + reachable_missed.mean()) / 2),
    'complete': float(np.mean(missed < 1 / 50)),
  }


def _row(
  views: stereo.Views, depths: np.ndarray, unit_m: float
) -> dict[str, Any]:
  num_views = min(fusion.AGREEMENT.num_views, len(views.images) - 1)
  start = time.process_time()
  result = fusion.reconstruct(views, stereo.SWEEP, fusion.AGREEMENT)
  sweep_s = time.process_time() - start
  # As of Open3D, the first use pays for what is loaded then.
  for _ in range(2):
    start = time.process_time()
    mesh = tsdf.fuse(views, result.inverse_depths, voxels=_VOXELS.value)
    fuse_s = time.process_time() - start
  believed = (result.inverse_depths > 0) & np.isfinite(depths)
  wrong = np.abs(1 / result.inverse_depths[believed] / depths[believed] - 1)
  rays = views.lens.rays(lenses.grid(views.lens))
  true = np.concatenate(
    [
      camera.transform(pose, (rays * depth[..., None])[np.isfinite(depth)])
      for pose, depth in zip(views.camera2scene, depths)
    ]
  )
  low, high = np.percentile(true, [0.5, 99.5], axis=0)
  diagonal = float(np.linalg.norm(high - low))
  reachable = depths[np.isfinite(depths)] < stereo.SWEEP.max_depth
  reachable &= _num_showing(views, depths, true) >= 2
  of_mesh = _distances(mesh.vertices, true, reachable, diagonal)
  return {
    'views': len(views.images),
    'agreeing': num_views,
    'size_px': list(views.images.shape[1:3]),
    'median_depth_error': float(np.median(wrong)),
    'over_5_percent': float(np.mean(wrong > 0.05)),
    'coverage': float(np.mean(result.inverse_depths > 0)),
    **_distances(result.cloud.points, true, reachable, diagonal),
    'mesh_chamfer': of_mesh['chamfer'],
    'reachable_mesh_chamfer': of_mesh['reachable_chamfer'],
    'diagonal': diagonal,
    'metres_per_unit': unit_m,
    'sweep_s': sweep_s,
    'fuse_s': fuse_s,
    'open3d_s': None
    if views.fov_deg is None
    else _open3d_s(
      views,
      result.inverse_depths,
      float(np.ptp(mesh.vertices, axis=0).max()) / _VOXELS.value,
    ),
  }


def main() -> None:
  output = pathlib.Path(_OUTPUT.value)
  output.mkdir(parents=True, exist_ok=True)
  rows = []
  for kind in _WORLDS.value:
    world = footage.make_world(
      [kind],
      0,
      seed=_SEED.value,
      seconds=8.0,
      px_per_rad=_SIZE_PX.value,
      movers=0 if kind in scenes.WITH_MOVERS else None,
    )
    for lens in _LENSES.value:
      make = {'perspective': _perspective, 'panorama': _panoramas}[lens]
      row = {'world': kind, 'lens': lens, **_row(*make(world))}
      print(json.dumps(row), flush=True)  # noqa: T201
      rows.append(row)
      files.write_json(output / 'scene_stereo.json', rows)


if __name__ == '__main__':
  command.run(main)
