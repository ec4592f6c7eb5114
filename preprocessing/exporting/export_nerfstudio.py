"""A component of a camera path as nerfstudio data.

`transform_matrix` is camera to world, in the axes of `odin_jax.shared.opengl`.
nerfstudio's `colmap_to_json` also names the turn of the world,
`applied_transform`, and puts the points, turned alike, where `ply_file_path`
says.

EQUIRECTANGULAR images: `_generate_rays_from_coords` in
https://github.com/nerfstudio-project/nerfstudio/blob/main/nerfstudio/cameras/cameras.py
takes (x - cx) / fl_x * pi for the longitude and (y - cy) / fl_y * pi for the
latitude. So fl_x is half the width and fl_y the height: the panorama spans the
sphere whatever its aspect ratio.
"""

import os
import pathlib
from typing import Any, Sequence

from jaxtyping import Float, UInt8
import numpy as np

from odin_jax.shared import camera, files, opengl
from preprocessing.exporting import cameras, export_colmap, sensors

_PLY_VERTEX = np.dtype(
  [(axis, '<f4') for axis in ('x', 'y', 'z')]
  + [(colour, 'u1') for colour in ('red', 'green', 'blue')]
)
_PLY_TYPES = {'<f4': 'float', '|u1': 'uchar'}


def write(
  folder: str | os.PathLike[str],
  path: cameras.CameraPath,
  component: int,
  rig: Sequence[sensors.Sensor],
  colours: UInt8[np.ndarray, 'p 3'],
) -> None:
  """Writes `transforms.json` and `points.ply`.

  The pictures are those of `images/` and `masks/` in the same folder. Of
  component n > 0 the files are called `transforms_n.json` and `points_n.ply`;
  nerfstudio's `--data` takes a JSON file as well as a folder.

  Args:
    folder: where to.
    path: what to write of.
    component: which of its components.
    rig: the sensors of every panorama, at least one, of equal intrinsics.
    colours: of all points of the path.
  """
  folder = pathlib.Path(folder)
  suffix = f'_{component}' if component else ''
  points = f'points{suffix}.ply'
  visible = np.unique(path.observations_of(component).point)
  _write_ply(
    folder / points,
    camera.transform(opengl.SCENE2WORLD, path.points[visible]),
    colours[visible],
  )
  files.write_json(
    folder / f'transforms{suffix}.json',
    {
      **_intrinsics(rig[0]),
      'applied_transform': opengl.SCENE2WORLD.tolist(),
      'ply_file_path': points,
      'frames': [
        _frame(export_colmap.image_name(frame, sensor), pose, sensor)
        for frame, pose in zip(
          path.frames(component), path.frame2scene[path.component == component]
        )
        for sensor in rig
      ],
    },
  )


def _intrinsics(sensor: sensors.Sensor) -> dict[str, Any]:
  if isinstance(sensor, sensors.Panorama):
    model, focal_px = 'EQUIRECTANGULAR', (sensor.width / 2, sensor.height)
  else:
    focal_px = np.diag(sensor.intrinsics)[:2].tolist()
    model = 'PINHOLE'
  return {
    'camera_model': model,
    'w': sensor.width,
    'h': sensor.height,
    'fl_x': float(focal_px[0]),
    'fl_y': float(focal_px[1]),
    'cx': sensor.width / 2,
    'cy': sensor.height / 2,
  }


def _frame(
  name: str, frame2scene: Float[np.ndarray, '3 4'], sensor: sensors.Sensor
) -> dict[str, Any]:
  sensor2frame = camera.make_pose(sensor.sensor2frame, np.zeros(3))
  opengl2world = opengl.opengl2world(camera.compose(frame2scene, sensor2frame))
  return {
    'file_path': f'images/{name}',
    'mask_path': f'masks/{name}.png',
    'transform_matrix': [*opengl2world.tolist(), [0.0, 0.0, 0.0, 1.0]],
  }


def _write_ply(
  path: pathlib.Path,
  points: Float[np.ndarray, 'n 3'],
  colours: UInt8[np.ndarray, 'n 3'],
) -> None:
  """Coloured points; http://paulbourke.net/dataformats/ply."""
  vertices = np.empty(len(points), _PLY_VERTEX)
  for name, values in zip(_PLY_VERTEX.names, np.hstack([points, colours]).T):
    vertices[name] = values
  header = [
    'ply',
    'format binary_little_endian 1.0',
    f'element vertex {len(vertices)}',
    *(
      f'property {_PLY_TYPES[_PLY_VERTEX[name].str]} {name}'
      for name in _PLY_VERTEX.names
    ),
    'end_header\n',
  ]
  path.write_bytes('\n'.join(header).encode() + vertices.tobytes())
