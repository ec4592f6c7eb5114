"""Points and a mesh from posed views: depth, kept where the views agree.

  python -m odin_jax.reconstruct --views=runs/demo/generate \
      --output=runs/demo/reconstruct

`--views` is a folder as `odin_jax.generate` writes it: `poses.json` with
`fov_deg`, `width`, `height` and `frames` (`file`, `camera2scene` as 12 numbers,
row-major), and the square images that it names. Any posed views in that layout
will do, real ones too.

Depth comes from a plane sweep (`odin_jax/geometry/stereo.py`), the mesh from the
signed distances that the depths give on average (`odin_jax/geometry/tsdf.py`).

Output: `points.ply` (binary; points in scene units with colours and normals),
`mesh.ply` and `mesh.glb` (a coloured surface; none where no depth is believed),
`index.html` (a page to fly through both), `depth/000.png` per view (inverse depth, near is bright, black where it is not
believed) and `reconstruction.json`. Views that do not agree give few points or
none, and the figures say so.
"""

import sys

# As a file it finds none of the packages below.
if __name__ == '__main__' and not __package__:
  sys.stderr.write('error: type: python -m odin_jax.reconstruct\n')
  sys.exit(2)

import dataclasses
import functools
import math
import pathlib
import time

from absl import flags
import cv2
from jaxtyping import Float32
import numpy as np

from odin_jax.geometry import fusion, mesh_files, stereo, tsdf, view_folder
from odin_jax.reporting import scene_page
from odin_jax.shared import (
  command,
  cores,
  errors,
  files,
  image_files,
  page,
  progress,
)

_TOOL = 'odin_jax.reconstruct'
_VIEWS = command.define_path(
  'views', 'Folder with poses.json and the images that it names.'
)
_OUTPUT = command.define_output(
  'Folder for index.html, points.ply, mesh.ply, mesh.glb, depth/ and figures'
)
_MIN_DEPTH = flags.DEFINE_float(
  'min_depth',
  stereo.SWEEP.min_depth,
  'Nearest depth, scene units.',
  lower_bound=1e-6,
)
_MAX_DEPTH = flags.DEFINE_float(
  'max_depth',
  stereo.SWEEP.max_depth,
  'Farthest depth, scene units.',
  lower_bound=1e-6,
)
_MIN_VIEWS = flags.DEFINE_integer(
  'min_views',
  fusion.AGREEMENT.num_views,
  'How many other views have to agree on a depth before it is believed; all '
  'others where there are fewer.',
  lower_bound=1,
)
_MIN_SIZE_PX = flags.DEFINE_integer(
  'min_size_px', 128, 'Smaller views are enlarged for matching.', lower_bound=16
)
_MAX_SIZE_PX = flags.DEFINE_integer(
  'max_size_px', 384, 'Larger views are reduced for matching.', lower_bound=16
)
_MESH_VOXELS = flags.DEFINE_integer(
  'mesh_voxels',
  160,
  'Voxels along the longest side of the scene, of which the mesh is made.',
  lower_bound=8,
  upper_bound=512,
)
flags.mark_flags_as_required(['views', 'output'])
# Side of the matching window in pixels of the original image, at least.
_MIN_WINDOW_PX = 5


def settings(
  size_px: int, working_px: int, num_views: int
) -> tuple[stereo.Sweep, fusion.Agreement]:
  """Windows and tolerances for views that were resized for matching.

  Enlarging a small view adds no detail: the window has to span the same
  original pixels, and depths agree only as well as those allow. Small views are
  mostly samples of a model, each with its own noise, which lowers every
  correlation: a lower one has to do, and agreement does the rest (measured on
  views of pure noise: depth is believed at 2 % of the pixels).
  """
  enlarged = max(1.0, working_px / size_px)
  window_px = max(stereo.SWEEP.window_px, math.ceil(_MIN_WINDOW_PX * enlarged))
  sweep = dataclasses.replace(
    stereo.SWEEP,
    min_depth=_MIN_DEPTH.value,
    max_depth=_MAX_DEPTH.value,
    window_px=window_px + 1 - window_px % 2,
  )
  rule = dataclasses.replace(
    fusion.AGREEMENT,
    reprojection_px=fusion.AGREEMENT.reprojection_px * math.sqrt(enlarged),
    relative_depth=fusion.AGREEMENT.relative_depth * enlarged,
    num_views=min(_MIN_VIEWS.value, max(1, num_views - 1)),
    correlation=fusion.AGREEMENT.correlation / enlarged**0.25,
  )
  return sweep, rule


def _write_depths(
  folder: pathlib.Path,
  inverse_depths: Float32[np.ndarray, 'n s s'],
  digits: int,
) -> list[str]:
  """Writes depth/000.png ...; returns their names."""
  folder.mkdir(exist_ok=True)
  for old in folder.glob('*.png'):
    old.unlink()
  believed = inverse_depths[inverse_depths > 0]
  brightest = np.percentile(believed, 98) if believed.size else 1.0
  names = []
  for index, inverse in enumerate(inverse_depths):
    level = np.clip(inverse / brightest, 0, 1) * 255
    image = cv2.applyColorMap(level.astype(np.uint8), cv2.COLORMAP_TURBO)
    image[inverse == 0] = 0
    names.append(f'{folder.name}/{index:0{digits}d}.png')
    # OpenCV's colour maps are BGR.
    image_files.write(folder.parent / names[-1], image[..., ::-1])
  return names


def _agreement(differences: np.ndarray) -> dict[str, float | int | None]:
  """How far agreeing views differ in depth; null where none agree."""
  if not differences.size:
    return {'comparisons': 0, 'median': None, 'p90': None}
  return {
    'comparisons': int(differences.size),
    'median': float(np.median(differences)),
    'p90': float(np.percentile(differences, 90)),
  }


def _write_page(
  output: pathlib.Path,
  names: list[str],
  views: stereo.Views,
  result: fusion.Reconstruction,
  mesh: tsdf.Mesh,
  coverage: float,
  difference: float | None,
) -> None:
  """Writes index.html, with all that it shows inside."""
  cloud = result.cloud
  findings = [
    page.Finding(
      f'Depth is believed at {100 * coverage:.0f} % of the pixels.',
      bool(len(cloud.points)),
    )
  ]
  if difference is not None:
    findings.append(
      page.Finding(
        f'Where views agree, their depths differ by {100 * difference:.1f} % '
        '(median).'
      )
    )
  else:
    findings.append(
      page.Finding('The views do not agree on any surface.', False)
    )
  text = scene_page.render(
    title='A scene from its views',
    made=f'{time.strftime("%Y-%m-%d")}, {len(names)} views of {_VIEWS.value}',
    next_step='open mesh.glb or points.ply in Blender or MeshLab',
    findings=findings,
    fov_deg=views.fov_deg,
    points=scene_page.points(cloud.points, cloud.colours),
    mesh=scene_page.mesh(mesh.vertices, mesh.faces, mesh.colours),
    views=[
      scene_page.view(name, image, pose)
      for name, image, pose in zip(names, views.images, views.camera2scene)
    ],
    places=cloud.points
    if len(cloud.points)
    else views.camera2scene[:, :, 3].astype(np.float32),
  )
  for words, name in (
    ('Mesh (GLB)', 'mesh.glb'),
    ('Mesh (PLY)', 'mesh.ply'),
    ('Points (PLY)', 'points.ply'),
    ('Figures (JSON)', 'reconstruction.json'),
  ):
    text = page.link(text, output, words, output / name)
  with files.atomic_path(output / 'index.html') as temporary:
    temporary.write_text(text)


def main() -> None:
  watch = command.Stopwatch()
  if _MIN_DEPTH.value >= _MAX_DEPTH.value:
    raise errors.UserError('--min_depth must be smaller than --max_depth')
  folder = files.require_folder(_VIEWS.value, 'a folder of posed views')
  views, names = view_folder.read(folder)
  output = files.claim_output(_OUTPUT.value, _TOOL)
  size = views.size_px
  working_px = min(max(size, _MIN_SIZE_PX.value), _MAX_SIZE_PX.value)
  sweep, rule = settings(size, working_px, len(names))
  command.say([cores.text()])
  views = fusion.resize(views, working_px)
  result = fusion.reconstruct(
    views,
    sweep,
    rule,
    functools.partial(progress.each, unit='view', desc='depth'),
  )
  with files.atomic_path(output / 'points.ply') as temporary:
    fusion.write_ply(temporary, result.cloud)
  mesh = tsdf.fuse(views, result.inverse_depths, voxels=_MESH_VOXELS.value)
  mesh_files.write(output, mesh)
  depth_names = _write_depths(
    output / 'depth', result.inverse_depths, max(3, len(str(len(names) - 1)))
  )
  per_view = [
    {'file': name, 'depth_file': depth, **dataclasses.asdict(figures)}
    for name, depth, figures in zip(names, depth_names, result.figures)
  ]
  count = len(result.cloud.points)
  coverage = float(np.mean([row['coverage'] for row in per_view]))
  agreement = _agreement(result.depth_differences)
  files.write_json(
    output / 'reconstruction.json',
    {
      'views': str(_VIEWS.value),
      'num_views': len(names),
      'size_px': size,
      'working_px': working_px,
      'points': count,
      'mesh_vertices': len(mesh.vertices),
      'mesh_faces': len(mesh.faces),
      'mesh_voxels': _MESH_VOXELS.value,
      'coverage': coverage,
      'relative_depth_difference': agreement,
      'per_view': per_view,
      'sweep': dataclasses.asdict(sweep),
      'agreement': dataclasses.asdict(rule),
      **watch.figures(),
    },
  )
  made = (
    f'{count} points and a mesh of {len(mesh.faces)} triangles from {len(names)} '
    f'views, depth believed at {100 * coverage:.0f} % of the pixels'
  )
  _write_page(output, names, views, result, mesh, coverage, agreement['median'])
  command.finish(output, made, look_at='index.html')


if __name__ == '__main__':
  command.run(main)
