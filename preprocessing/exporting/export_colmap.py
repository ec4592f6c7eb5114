"""A component of a camera path as a COLMAP model.

What COLMAP means agrees with `odin_jax.shared.camera`: cameras look along +z
with y down, and the upper left corner of an image is (0, 0), so that pixel
centres lie at + 0.5. Its EQUIRECTANGULAR camera has the parameters (width,
height) and the longitude and latitude of ours: `EquirectangularCameraModel` in
https://github.com/colmap/colmap/blob/main/src/colmap/sensor/models.h.

The sensors of a panorama are a rig (https://colmap.github.io/rigs.html), whose
first sensor is the reference. So bundle adjustment keeps views cut from one
panorama together. Each sensor of a rig needs a camera of its own, so the views
have as many cameras with the same parameters.
"""

import collections
import os
import pathlib
from typing import Any, Sequence

from jaxtyping import Float, UInt8
import numpy as np

from odin_jax.shared import camera
from preprocessing.exporting import cameras, sensors


def image_name(frame: int, sensor: sensors.Sensor) -> str:
  """Of the picture of a keyframe by a sensor, below `images/`."""
  return f'{frame:06d}{sensor.suffix}.jpg'


def write(
  folder: str | os.PathLike[str],
  path: cameras.CameraPath,
  component: int,
  rig: Sequence[sensors.Sensor],
  colours: UInt8[np.ndarray, 'p 3'],
) -> None:
  """Writes cameras, rigs, frames, images and points3D to `sparse/COMPONENT/`.

  Frame f has the id f + 1, point p has the id p + 1. The 2D points of an image
  are the observations that fall into it; the error of a point is the mean
  reprojection error in pixels (at the equator for a panorama).

  Args:
    folder: where to; what is in its `images/` are the pictures.
    path: what to write of.
    component: which of its components.
    rig: the sensors of every panorama, at least one.
    colours: of all points of the path.
  """
  # pycolmap brings libraries of its own: imported late and after OpenCV.
  import pycolmap

  model = pycolmap.Reconstruction()
  _add_rig(model, rig)
  observations = path.observations_of(component)
  tracks = collections.defaultdict(pycolmap.Track)
  for frame in path.frames(component):
    of_frame = observations.subset(observations.frame == frame)
    images = []
    for index, sensor in enumerate(rig):
      pixels, inside = sensor.project(of_frame.ray)
      image_id = frame * len(rig) + index + 1
      images.append(
        pycolmap.Image(
          name=image_name(frame, sensor),
          keypoints=pixels[inside],
          camera_id=index + 1,
          image_id=image_id,
        )
      )
      for number, point in enumerate(of_frame.point[inside].tolist()):
        tracks[point].add_element(image_id, number)
    _add_frame(model, frame + 1, images, path.frame2scene[frame], rig[0])
  for point in sorted(tracks):
    model.add_point3D_with_id(
      point + 1,
      pycolmap.Point3D(
        xyz=path.points[point], color=colours[point], track=tracks[point]
      ),
    )
  model.update_point_3d_errors()
  folder = pathlib.Path(folder) / 'sparse' / str(component)
  folder.mkdir(parents=True)
  # In the order of the ids, so that equal models are equal bytes.
  model.write_binary(folder)


def _add_rig(model: Any, sensors_of_rig: Sequence[sensors.Sensor]) -> None:
  import pycolmap

  rig = pycolmap.Rig(rig_id=1)
  frame2reference = sensors_of_rig[0].sensor2frame.T
  for index, sensor in enumerate(sensors_of_rig):
    model.add_camera(_camera(index + 1, sensor))
    identity = model.camera(index + 1).sensor_id
    if index == 0:
      rig.add_ref_sensor(identity)
    else:
      sensor2reference = frame2reference @ sensor.sensor2frame
      rig.add_sensor(identity, _rigid(sensor2reference.T, np.zeros(3)))
  model.add_rig(rig)


def _camera(camera_id: int, sensor: sensors.Sensor) -> Any:
  import pycolmap

  if isinstance(sensor, sensors.Panorama):
    model, params = 'EQUIRECTANGULAR', [sensor.width, sensor.height]
  else:
    k = sensor.intrinsics
    model, params = 'PINHOLE', [k[0, 0], k[1, 1], k[0, 2], k[1, 2]]
  return pycolmap.Camera(
    camera_id=camera_id,
    model=model,
    width=sensor.width,
    height=sensor.height,
    params=params,
    has_prior_focal_length=True,
  )


def _add_frame(
  model: Any,
  frame_id: int,
  images: Sequence[Any],
  frame2scene: Float[np.ndarray, '3 4'],
  reference: sensors.Sensor,
) -> None:
  import pycolmap

  reference2scene = camera.compose(
    frame2scene, camera.make_pose(reference.sensor2frame, np.zeros(3))
  )
  scene2reference = camera.inverse(reference2scene)
  frame = pycolmap.Frame(frame_id=frame_id, rig_id=1)
  for image in images:
    image.frame_id = frame_id
    frame.add_data_id(image.data_id)
  frame.rig_from_world = _rigid(scene2reference[:, :3], scene2reference[:, 3])
  model.add_frame(frame)
  for image in images:
    model.add_image(image)
  model.register_frame(frame_id)


def _rigid(
  rotation: Float[np.ndarray, '3 3'], translation: Float[np.ndarray, '3']
) -> Any:
  import pycolmap

  return pycolmap.Rigid3d(pycolmap.Rotation3d(rotation), translation)
