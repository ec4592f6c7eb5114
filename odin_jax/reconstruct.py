"""Points and a mesh from posed views: depth, kept where the views agree.

  python -m odin_jax.reconstruct --views=runs/demo/generate \
      --output=runs/demo/reconstruct [--truth=runs/demo/truth]

`--views` is a folder as `odin_jax.generate` writes it: `poses.json` with
`fov_deg`, `width`, `height` and `frames` (`file`, `camera2scene` as 12 numbers,
row-major), and the square images that it names. Any posed views in that layout
will do, real ones too. With `--truth`, which `preprocessing.true_views` wrote
for them, the page shows beside each what is really there.

A 360-degree video of your own is made 3D by

  python -m odin_jax.reconstruct --cameras=runs/records/cameras/VIDEO \
      --output=runs/scene

from the panoramas that `preprocessing.run --export=nerfstudio` (or colmap)
wrote there, or by `--records` from the panoramas or pairs of a folder of
records. Both take one component, the largest unless `--component` (and
`--video`) name another: others have no common place or scale. Lengths are in
scene units; a video does not tell how many metres one is.

Depth comes from a plane sweep, of panoramas by a sweep of spheres
(`odin_jax/geometry/stereo.py`); of `--views` with `--method=dust3r` from a DUSt3R
network (`preprocessing/matchers/posed_depth.py`; `launch/setup_dust3r.sh` gets
one, `DUST3R_HOME` says where it is), the mesh from the signed distances that the
depths give on average (`odin_jax/geometry/tsdf.py`).

Output: `points.ply` (binary; points in scene units with colours and normals),
`mesh.ply` and `mesh.glb` (a coloured surface; none where no depth is believed),
`index.html` (a page to fly through both, with the cameras; of panoramas what
they see ahead), `reconstruction.json`, and per view, named there,
`depth/000.png` (inverse depth, near is bright, black where it is not believed),
`depth_maps/000.png` (16 bits; times `depth_unit_scale_factor` of
`reconstruction.json` depth in scene units, z along the optical axis, of
panoramas distance; 0 where it is not believed) and `agreeing_views/000.png`
(how many other views agree on it; `odin_jax/geometry/depth_maps.py`). Of
`--views` `transforms.json` names the images, where they are, and their depth
maps for nerfstudio. Views that do not agree give few points or none, and the
figures say so.
"""

import sys

# As a file it finds none of the packages below.
if __name__ == '__main__' and not __package__:
  sys.stderr.write('error: type: python -m odin_jax.reconstruct\n')
  sys.exit(2)

import dataclasses
import functools
import math
import os
import pathlib
import time
from typing import Any

from absl import flags
import numpy as np

from odin_jax.geometry import (
  depth_maps,
  equirectangular_frames,
  fusion,
  lenses,
  mesh_files,
  record_views,
  stereo,
  tsdf,
  view_folder,
)
from odin_jax.reporting import scene_page, true_path
from odin_jax.shared import (
  command,
  cores,
  errors,
  files,
  page,
  progress,
)
from preprocessing import matchers
from preprocessing.matchers import dust3r, dust3r_network, posed_depth

_TOOL = 'odin_jax.reconstruct'
_VIEWS = command.define_path(
  'views', 'Folder with poses.json and the images that it names.'
)
_TRUTH = command.define_path(
  'truth', 'Of --views: folder that preprocessing.true_views wrote for them.'
)
_CAMERAS = command.define_path(
  'cameras', 'Folder cameras/VIDEO that preprocessing.run exported.'
)
_RECORDS = command.define_path(
  'records', 'Folder of panoramas or pairs that preprocessing wrote.'
)
_VIDEO = flags.DEFINE_string(
  'video', None, 'Of --records: whose; default: with the largest component.'
)
_COMPONENT = flags.DEFINE_integer(
  'component', None, 'Of a video; default: the largest.', lower_bound=0
)
_MAX_VIEWS = flags.DEFINE_integer(
  'max_views',
  40,
  'Of a video as many are taken, evenly spread in time; each takes seconds.',
  lower_bound=2,
)
_OUTPUT = command.define_output(
  'Folder for index.html, points.ply, mesh.ply, mesh.glb, depths and figures'
)
_METHOD = flags.DEFINE_enum(
  'method',
  'sweep',
  ['sweep', 'dust3r'],
  'Where depth comes from: a plane sweep, or of --views a DUSt3R network.',
)
_DUST3R_CHECKPOINT = command.define_path(
  'dust3r_checkpoint',
  'Of --method=dust3r: file; default: that of launch/setup_dust3r.sh.',
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
  'max_size_px',
  None,
  'Higher views are reduced for matching; default: 384, of panoramas 256.',
  lower_bound=16,
)
_MESH_VOXELS = flags.DEFINE_integer(
  'mesh_voxels',
  160,
  'Voxels along the longest side of the scene, of which the mesh is made.',
  lower_bound=8,
  upper_bound=512,
)
flags.mark_flags_as_required(['output'])
# The view ahead of a panorama, for its page.
_AHEAD = lenses.Perspective(90.0, 192)
_LINKS = {
  'Mesh (GLB)': 'mesh.glb',
  'Mesh (PLY)': 'mesh.ply',
  'Points (PLY)': 'points.ply',
  'Figures (JSON)': 'reconstruction.json',
}
_MOST_VIEW_PX, _MOST_PANORAMA_PX = 384, 256
# Of --method=dust3r: pairs of each view that the network is asked about, and when
# two views agree on what it says, at the size that it takes. Chosen without its
# weights, which could not be had.
_PAIRS_PER_VIEW = 4
_AGREEMENT_OF_NETWORK = dataclasses.replace(
  fusion.AGREEMENT, reprojection_px=4.0, relative_depth=0.05
)
# Side of the matching window in pixels of the original image, at least.
_MIN_WINDOW_PX = 5


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Input:
  """What is reconstructed.

  Attributes:
    views: not yet at the size at which they are matched.
    names: of each.
    place: where they come from.
    chosen: which of what is there, for reconstruction.json.
    unit: what a scene unit is.
    truth: what there really is in their places, where that is known.
  """

  views: stereo.Views
  names: list[str]
  place: str
  chosen: dict[str, str | int]
  unit: str
  truth: true_path.Views | None = None

  @functools.cached_property
  def likeness(self) -> dict[str, Any]:
    """Of the truth: see `true_path.likeness`."""
    return true_path.likeness(self.truth) if self.truth else {}


_UNIT_OF_RECORDS = (
  'one is the median depth of the source views of the records of this component'
)


def _check_flags() -> None:
  """Raises errors.UserError: not one input, or a flag that changes nothing."""
  inputs = [
    flag for flag in (_VIEWS, _CAMERAS, _RECORDS) if flag.value is not None
  ]
  if len(inputs) != 1:
    raise errors.UserError(
      'give one of --views, --cameras and --records, what to reconstruct'
    )
  if _VIDEO.value is not None and _RECORDS.value is None:
    raise errors.UserError(
      '--video: chooses among --records alone; leave it out'
    )
  if _TRUTH.value is not None and _VIEWS.value is None:
    raise errors.UserError('--truth: is of --views alone; leave it out')
  _check_method()
  for flag in (_COMPONENT, _MAX_VIEWS):
    if flag.present and _VIEWS.value is not None:
      raise errors.UserError(
        f'--{flag.name}: all of --views are taken; leave it out'
      )
  if _MIN_DEPTH.value >= _MAX_DEPTH.value:
    raise errors.UserError('--min_depth must be smaller than --max_depth')


def _check_method() -> None:
  """Raises errors.UserError: --method and what it takes do not go together."""
  if _METHOD.value == 'dust3r':
    if _VIEWS.value is None:
      raise errors.UserError(
        '--method=dust3r: takes --views alone; panoramas are swept, leave it out'
      )
    for flag in (_MIN_SIZE_PX, _MAX_SIZE_PX):
      if flag.present:
        raise errors.UserError(
          f'--{flag.name}: the network of --method=dust3r takes views of '
          f'{posed_depth.RULES.size_px} px; leave it out'
        )
  elif _DUST3R_CHECKPOINT.value is not None:
    raise errors.UserError(
      '--dust3r_checkpoint: is of --method=dust3r alone; leave it out'
    )


def _read() -> _Input:
  """What the flags name."""
  if _VIEWS.value is not None:
    folder = files.require_folder(_VIEWS.value, 'a folder of posed views')
    views, names = view_folder.read(folder)
    truth = None
    if _TRUTH.value is not None:
      truth = true_path.read(
        folder, files.require_folder(_TRUTH.value, 'the true views')
      )
    return _Input(
      views=views,
      names=names,
      place=str(folder),
      chosen={},
      unit='that of the poses',
      truth=truth,
    )
  limits = {
    'component': _COMPONENT.value,
    'most': _MAX_VIEWS.value,
    'max_height_px': _MAX_SIZE_PX.value or _MOST_VIEW_PX,
  }
  if _CAMERAS.value is not None:
    folder = files.require_folder(_CAMERAS.value, 'the cameras of a video')
    limits['max_height_px'] = _MAX_SIZE_PX.value or _MOST_PANORAMA_PX
    frames = equirectangular_frames.read(folder, **limits)
    return _Input(
      views=stereo.Views(
        images=frames.images,
        camera2scene=frames.camera2scene,
        fov_deg=None,
        counts=frames.counts,
      ),
      names=frames.names,
      place=str(folder),
      chosen={
        'component': frames.component,
        'num_available': frames.available,
      },
      unit=_UNIT_OF_RECORDS,
    )
  folder = files.require_folder(_RECORDS.value, 'a folder of records')
  found = record_views.read(folder, video_id=_VIDEO.value, **limits)
  return _Input(
    views=found.views,
    names=found.names,
    place=str(folder),
    chosen={
      'video_id': found.video_id,
      'component': found.component,
      'num_available': found.available,
    },
    unit=_UNIT_OF_RECORDS,
  )


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


def _options_of_network() -> dict[str, Any]:
  """Of --method=dust3r, checked."""
  options = dict(dust3r.OPTIONS)
  if _DUST3R_CHECKPOINT.value is not None:
    options['checkpoint'] = str(
      files.require_file(_DUST3R_CHECKPOINT.value, 'the --dust3r_checkpoint')
    )
  return dict(matchers.checked('dust3r', options).options)


def _reconstruct_by_network(
  network: dust3r_network.Network,
  views: stereo.Views,
  sweep: stereo.Sweep,
  rule: fusion.Agreement,
) -> tuple[fusion.Reconstruction, list[int]]:
  """Of the depths that a DUSt3R network gives; of each view its pairs."""
  found = posed_depth.depths(
    network,
    views.images,
    views.camera2scene,
    views.fov_deg,
    progress.each(
      [
        stereo.neighbours(views, index, sweep)[:_PAIRS_PER_VIEW]
        for index in range(len(views.images))
      ],
      unit='view',
      desc='depth',
    ),
    posed_depth.RULES,
  )
  maps = []
  for of_view in found:
    depth = of_view.depth
    known = (depth >= sweep.min_depth) & (depth <= sweep.max_depth)
    maps.append(
      stereo.DepthMap(
        depth=np.where(known, depth, np.float32(sweep.max_depth)),
        # There is no other figure of a match.
        correlation=np.where(known, np.float32(1), np.float32(-1)),
      )
      if of_view.num_pairs
      else None
    )
  result = fusion.fuse(views, maps, rule)
  # A network has no correlations.
  figures = [dataclasses.replace(x, correlation=None) for x in result.figures]
  return (
    dataclasses.replace(result, figures=figures),
    [of_view.num_pairs for of_view in found],
  )


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
  given: _Input,
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
  likeness = given.likeness['mean_psnr'] if given.truth else None
  if likeness is not None:
    findings.append(
      page.Finding(
        f'The views have {likeness:.1f} dB PSNR against what is really there.'
      )
    )
  of_all = given.chosen.get('num_available', len(given.names))
  if of_all > len(given.names):
    findings.append(
      page.Finding(
        f'{len(given.names)} of {of_all} views were taken; --max_views takes '
        'more.'
      )
    )
  if given.chosen:
    findings.append(
      page.Finding(
        f'Lengths are in scene units: {given.unit}; a video does not tell '
        'metres.'
      )
    )
  pictures = views.images
  if views.fov_deg is None:
    pictures = stereo.ahead(views.images, _AHEAD)
  truths = given.truth.true if given.truth else [None] * len(given.names)
  text = scene_page.render(
    title='A scene from its views',
    made=f'{time.strftime("%Y-%m-%d")}, {len(given.names)} views of '
    f'{given.place}',
    next_step='open mesh.glb or points.ply in Blender or MeshLab',
    findings=findings,
    fov_deg=views.fov_deg or _AHEAD.fov_deg,
    points=scene_page.points(cloud.points, cloud.colours),
    mesh=scene_page.mesh(mesh.vertices, mesh.faces, mesh.colours),
    views=[
      scene_page.view(*view)
      for view in zip(given.names, pictures, views.camera2scene, truths)
    ],
    places=cloud.points
    if len(cloud.points)
    else views.camera2scene[:, :, 3].astype(np.float32),
  )
  text = page.links(text, output, _LINKS)
  with files.atomic_path(output / 'index.html') as temporary:
    temporary.write_text(text)


def _write_transforms(
  output: pathlib.Path, given: _Input, depth_files: list[dict[str, str]]
) -> None:
  """Writes transforms.json of --views; removes that of an earlier run.

  Records have no images in files, panoramas of a video a transforms.json.
  """
  path = output / view_folder.TRANSFORMS
  if _VIEWS.value is None:
    path.unlink(missing_ok=True)
    return
  # Without links: what lies above a folder that is one is above its target.
  here, folder = output.resolve(), pathlib.Path(_VIEWS.value).resolve()
  files.write_json(
    path,
    view_folder.nerfstudio(
      [os.path.relpath(folder / name, here) for name in given.names],
      given.views.camera2scene,
      given.views.fov_deg,
      given.views.size_px,
      [written['depth_map_file'] for written in depth_files],
    ),
  )


def main() -> None:
  watch = command.Stopwatch()
  _check_flags()
  options = _options_of_network() if _METHOD.value == 'dust3r' else None
  given = _read()
  network = None if options is None else dust3r.make_network(options)
  views, names = given.views, given.names
  output = files.claim_output(_OUTPUT.value, _TOOL)
  size = views.size_px
  most_px = _MAX_SIZE_PX.value or (
    _MOST_PANORAMA_PX if views.fov_deg is None else _MOST_VIEW_PX
  )
  working_px = min(max(size, _MIN_SIZE_PX.value), most_px)
  sweep, rule = settings(size, working_px, len(names))
  if network is not None:
    working_px = posed_depth.RULES.size_px
    rule = dataclasses.replace(_AGREEMENT_OF_NETWORK, num_views=rule.num_views)
  command.say([cores.text()])
  views = fusion.resize(views, working_px)
  if network is None:
    result = fusion.reconstruct(
      views,
      sweep,
      rule,
      functools.partial(progress.each, unit='view', desc='depth'),
    )
    of_method = {'sweep': dataclasses.asdict(sweep)}
  else:
    result, num_pairs = _reconstruct_by_network(network, views, sweep, rule)
    of_network = {
      'checkpoint': options['checkpoint'],
      'min_depth': sweep.min_depth,
      'max_depth': sweep.max_depth,
      'num_pairs': num_pairs,
      **dataclasses.asdict(posed_depth.RULES),
    }
    of_method = {'sweep': None, 'dust3r': of_network}
  with files.atomic_path(output / 'points.ply') as temporary:
    fusion.write_ply(temporary, result.cloud)
  mesh = tsdf.fuse(views, result.inverse_depths, voxels=_MESH_VOXELS.value)
  mesh_files.write(output, mesh)
  depth_scale = depth_maps.scale_factor(sweep.max_depth)
  depth_files = depth_maps.write(output, result, depth_scale)
  _write_transforms(output, given, depth_files)
  per_view = [
    {'file': name, **written, **dataclasses.asdict(figures)}
    for name, written, figures in zip(names, depth_files, result.figures)
  ]
  count = len(result.cloud.points)
  coverage = float(np.mean([row['coverage'] for row in per_view]))
  agreement = _agreement(result.depth_differences)
  files.write_json(
    output / 'reconstruction.json',
    {
      'views': given.place,
      'camera': 'equirectangular' if views.fov_deg is None else 'perspective',
      **given.chosen,
      'method': _METHOD.value,
      'scene_unit': given.unit,
      'depth_unit_scale_factor': depth_scale,
      **({'truth': given.likeness} if given.truth else {}),
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
      **of_method,
      'agreement': dataclasses.asdict(rule),
      **watch.figures(),
    },
  )
  made = (
    f'{count} points and a mesh of {len(mesh.faces)} triangles from {len(names)} '
    f'views, depth believed at {100 * coverage:.0f} % of the pixels'
  )
  _write_page(output, given, views, result, mesh, coverage, agreement['median'])
  command.finish(output, made, look_at='index.html')


if __name__ == '__main__':
  command.run(main)
