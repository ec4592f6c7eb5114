"""Scores meshes that were predicted of the objects of a table.

    python -m odin_jax.evaluate_meshes --protocol=syncdreamer_gso --data=GSO \\
        --meshes=meshes --output=runs/gso/meshes

`--meshes` has `OBJECT.ply` or `OBJECT.obj` of every object, in the axes and the
unit in which the table shows it: z up, the camera at azimuth 0 on the side of
+x, the centre of the object's box the origin, the longest side of that box 1.
Nothing is aligned here. Writes

    metrics.json  the whole protocol, mean scores with 95 % intervals over
                  objects, the scores of each, and which meshes are not closed
    table.md      the same figures

What the scores are stands in `odin_jax.geometry.shape_metrics`.
"""

import sys

# As a file it finds none of the packages below.
if __name__ == '__main__' and not __package__:
  sys.stderr.write('error: type: python -m odin_jax.evaluate_meshes\n')
  sys.exit(2)

import pathlib
import platform
from typing import Any

from absl import flags, logging
import numpy as np
import scipy

from odin_jax.benchmarks import gso, protocols, scenes
from odin_jax.geometry import meshes, shape_metrics
from odin_jax.shared import (
  command,
  cores,
  digests,
  errors,
  files,
  progress,
  provenance,
)

_TOOL = 'odin_jax.evaluate_meshes'
_PROTOCOL = command.define_path(
  'protocol',
  'Whose table, one that scores meshes: syncdreamer_gso, or a file of that '
  'kind.',
  required=True,
)
_DATA = command.define_path(
  'data', 'Folder of the objects, or of one.', required=True
)
_MESHES = command.define_path(
  'meshes', 'Folder of OBJECT.ply or OBJECT.obj of every object.', required=True
)
_OUTPUT = command.define_output('Folder for metrics.json and table.md')
flags.mark_flags_as_required(['output'])

_SUFFIXES = ('.ply', '.obj')
# How often the box of a mesh may be as long as that of its object, or this one
# as that, before it looks like another unit.
_UNLIKE = 2.0
_DIGITS = {'chamfer': 4, 'volume_iou': 4, 'f_score': 3}


def _mesh_files(
  folder: pathlib.Path, names: list[str]
) -> dict[str, pathlib.Path]:
  """The mesh of each object.

  Raises:
    errors.UserError: an object has none or two, or a mesh is of no object.
  """
  files.require_folder(folder, 'predicted meshes')
  found: dict[str, list[pathlib.Path]] = {name: [] for name in names}
  for path in sorted(folder.iterdir()):
    if path.suffix.lower() in _SUFFIXES:
      if path.stem not in found:
        raise errors.UserError(
          f'{path}: is of no object that is scored; remove it, or give the '
          'object in --data'
        )
      found[path.stem].append(path)
  missing = [name for name, paths in found.items() if not paths]
  if missing:
    raise errors.UserError(
      f'{folder}: lacks {", ".join(missing)}, as .ply or .obj; every object '
      'needs its mesh'
    )
  for paths in found.values():
    if len(paths) > 1:
      raise errors.UserError(
        f'{folder}: has both {paths[0].name} and {paths[1].name}; leave the '
        'one to score'
      )
  return {name: paths[0] for name, paths in found.items()}


def _read_predicted(path: pathlib.Path) -> meshes.Mesh:
  """A predicted mesh, which lies about where its object does."""
  mesh = meshes.read(path)
  furthest = float(np.abs(mesh.vertices).max())
  if furthest > 1:
    raise errors.UserError(
      f'{path}: reaches {furthest:.3g} from the origin; give it in the unit of '
      'the object, whose box reaches 0.5'
    )
  return mesh


def _ratio(predicted: meshes.Mesh, true: meshes.Mesh) -> float:
  """Of the longest sides of both boxes."""
  sides = [np.ptp(mesh.vertices, axis=0).max() for mesh in (predicted, true)]
  return float(sides[0] / sides[1])


def _score(
  predicted: meshes.Mesh,
  true: meshes.Mesh,
  protocol: protocols.Protocol,
  where: pathlib.Path,
) -> dict[str, float | None]:
  rules = protocol.geometry
  cameras = shape_metrics.Cameras(
    poses=np.stack([pose for _, _, pose in gso.rings(protocol)]),
    fov_deg=protocol.rendering['fov_deg'],
    size_px=rules['size_px'],
  )
  try:
    return shape_metrics.scores(
      predicted,
      true,
      cameras,
      voxel=rules['voxel'],
      grid=rules['grid'],
      threshold=rules['f_score_threshold'],
    )
  except shape_metrics.UnseenError as error:
    raise errors.UserError(f'{where}: {error}') from error


def _cells(scores: dict[str, float | None]) -> list[str]:
  return [
    '-' if scores[name] is None else f'{scores[name]:.{digits}f}'
    for name, digits in _DIGITS.items()
  ]


def _table(content: dict[str, Any]) -> str:
  """The figures for a README."""
  table = content['protocol']['table']
  threshold = table['geometry']['f_score_threshold']
  rows = [
    ['', 'Chamfer', 'volume IoU', f'F-score at {threshold:g}'],
    ['---'] * 4,
    ['**mean**', *_cells(content['mean'])],
    *([name, *_cells(row)] for name, row in content['scenes'].items()),
  ]
  lines = [f'| {" | ".join(row).lstrip()} |' for row in rows]
  lines += ['', f'{len(content["scenes"])} meshes, protocol {table["name"]}.']
  if content['not_closed']:
    lines[-1] += (
      f' Not closed: {", ".join(content["not_closed"])}; what is inside is not '
      'sure there, so nor is the volume IoU.'
    )
  if departures := content['protocol']['departures']:
    named = ', '.join(row['line'] for row in departures)
    lines[-1] += f' Not that table: it differs in {named}.'
  return '\n'.join([*lines, ''])


def main() -> None:
  # It loads jax, which takes seconds: after the flags are read.
  from odin_jax import metrics

  watch = command.Stopwatch()
  protocol = protocols.load(_PROTOCOL.value)
  if not protocol.geometry:
    raise errors.UserError(
      f'{_PROTOCOL.value}: says nothing of meshes ([geometry]); '
      'syncdreamer_gso does'
    )
  folders = {
    folder.resolve().name: folder
    for folder in scenes.scene_folders(_DATA.value, protocol)
  }
  paths = _mesh_files(pathlib.Path(_MESHES.value), list(folders))
  output = files.claim_output(_OUTPUT.value, _TOOL)
  for name in ('metrics.json', 'table.md'):
    (output / name).unlink(missing_ok=True)
  command.say([cores.text()])
  rows, arrays, not_closed, unlike = {}, [], [], []
  for name in progress.each(list(folders), 'mesh', desc='score'):
    true = gso.read_mesh(folders[name], protocol)
    predicted = _read_predicted(paths[name])
    rows[name] = _score(predicted, true, protocol, paths[name])
    arrays += [*true, *predicted]
    if not 1 / _UNLIKE < _ratio(predicted, true) < _UNLIKE:
      unlike.append(name)
    for mesh, what in ((true, f'{name} (true)'), (predicted, name)):
      if not meshes.is_closed(mesh):
        not_closed.append(what)
  content = {
    'protocol': {
      'benchmark': protocol.benchmark,
      'table': protocol.to_dict(),
      'data': _DATA.value,
      'meshes': _MESHES.value,
      'departures': protocols.departures(protocol, {'scenes': list(rows)}),
      'meshes_sha256': digests.of_arrays(arrays),
      'code_sha256': digests.of_code(),
      'code_commit': provenance.commit(),
      'software': {
        'python': platform.python_version(),
        'numpy': np.__version__,
        'scipy': scipy.__version__,
      },
    },
    **metrics.summary(list(rows.values()), list(rows), over_pairs=False),
    'scenes': rows,
    'not_closed': not_closed,
  }
  files.write_json(output / 'metrics.json', content)
  with files.atomic_path(output / 'table.md') as temporary:
    temporary.write_text(_table(content))
  files.write_json(output / 'evaluate_meshes.json', watch.figures())
  if not_closed:
    logging.warning(
      'volume IoU is not sure where meshes are not closed: %s',
      ', '.join(not_closed),
    )
  if unlike:
    logging.warning(
      'boxes are less than half or more than twice as long as those of the '
      'objects: %s; were they given in another unit?',
      ', '.join(unlike),
    )
  chamfer, iou, f_score = _cells(content['mean'])
  command.finish(
    output,
    f'{len(rows)} meshes: Chamfer {chamfer}, volume IoU {iou}, F-score '
    f'{f_score}',
    look_at='table.md',
  )


if __name__ == '__main__':
  command.run(main)
