"""How far away what the records of a procedural world show truly is.

Records have poses in scene units, and of videos these were estimated; the
world's walk is in metres. Along both the camera has moved equally far, which
says how many metres a scene unit is.
"""

from typing import NamedTuple

from jaxtyping import Bool, Float, Float32, UInt8
import numpy as np
from scipy.spatial import distance

from odin_jax.shared import camera, depth_files, image_files, psnr, schema
from preprocessing.procedural import footage, raycaster, rendering, scenes
from preprocessing.views import alignment

SIDES = ('source', 'target')
# Half of the pairs of frames have their true distance and turn up to this, or
# poses and walk have nothing to do with each other.
_MAX_DEVIATION = 0.1
_MAX_TURN_DEG = 5.0
# Size at which a view of the world is compared with a record's picture.
_COMPARED_PX = 64
# frame2scene of panoramas, scene units, by the moments that they show.
Poses = dict[float, Float[np.ndarray, '3 4']]


class View(NamedTuple):
  """What a view of a world shows, at its pixel centres.

  Attributes:
    depth_m: along the optical axis.
    moves: whether that is part of something that moves.
  """

  depth_m: Float32[np.ndarray, 's s']
  moves: Bool[np.ndarray, 's s']


def _angles(record: schema.Record, side: str) -> alignment.Angles:
  return alignment.Angles(
    yaw_deg=record[f'{side}/yaw_deg'], pitch_deg=record[f'{side}/pitch_deg']
  )


def _moment_s(record: schema.Record, side: str) -> float:
  """When what a view shows was rendered.

  A video holds each picture until the next. Records that were made without a
  video are of whole seconds, which are such moments.
  """
  return footage.picture_time_s(record[f'{side}/time_s'])


def median_distance_m(
  world: scenes.World,
  time_s: float,
  camera2world: Float[np.ndarray, '3 4'],
  rays: Float[np.ndarray, 's s 3'],
) -> float:
  """The `median_depth` of a view of the world, in metres.

  Args:
    world: that is seen.
    time_s: when.
    camera2world: from the axes of the rays.
    rays: of length 1, through the view's pixels.

  Returns:
    0 where the view shows nothing that stands still.
  """
  turned = raycaster.rotate(camera2world[:, :3], rays.astype(np.float32))
  hits = world.scene.cast(camera2world[:, 3], turned, time_s)
  scene = world.scene
  is_static = ~(scene.surface_moves | scene.surface_is_backdrop)
  distance = hits.distance[is_static[hits.surface]]
  return float(np.median(distance)) if distance.size else 0.0


def view(
  world: scenes.World,
  time_s: float,
  angles: alignment.Angles,
  *,
  fov_deg: float,
  size_px: int,
) -> View:
  """What the view at these angles of the panorama at a time shows."""
  rays = rendering.unit_rays(angles, fov_deg, size_px)
  frame2world = world.walk.frame2world(time_s)
  turned = raycaster.rotate(frame2world[:, :3], rays.astype(np.float32))
  hits = world.scene.cast(frame2world[:, 3], turned, time_s)
  along_axis = np.linalg.norm(camera.view_rays(fov_deg, size_px), axis=-1)
  return View(
    (hits.distance / along_axis).astype(np.float32),
    world.scene.surface_moves[hits.surface],
  )


def depths(
  world: scenes.World, record: schema.Record, unit_m: float, size_px: int
) -> depth_files.Depths:
  """What both views of a record show, in scene units.

  Args:
    world: that the record is of.
    record: one of its records.
    unit_m: metres per scene unit.
    size_px: side of the maps, whatever that of the record's pictures is.
  """
  source, target = (
    view(
      world,
      _moment_s(record, side),
      _angles(record, side),
      fov_deg=record['fov_deg'],
      size_px=size_px,
    )
    for side in SIDES
  )
  # Nothing moves within a picture.
  moved = _moment_s(record, 'source') != _moment_s(record, 'target')
  return depth_files.Depths(
    source.depth_m / np.float32(unit_m),
    target.depth_m / np.float32(unit_m),
    target.moves & moved,
  )


def poses(record: schema.Record) -> Poses:
  """Those of the panoramas of a record in its component."""
  return {
    _moment_s(record, side): record[f'{side}/frame2scene'].astype(np.float64)
    for side in SIDES
  }


def metres_per_unit(world: scenes.World, frames: Poses) -> float:
  """Metres per scene unit of one component.

  The median over all pairs of frames of how much farther apart they truly are:
  a part of the frames may be anywhere.

  Args:
    world: with the true poses.
    frames: of the component.

  Raises:
    ValueError: these are not the poses of the walk, in any unit and axes.
  """
  found = np.stack(list(frames.values()))
  true = np.stack([world.walk.frame2world(time_s) for time_s in frames])
  distances = distance.pdist(found[..., 3])
  apart = distances > 0
  if not apart.any():
    raise ValueError('its frames are all at one place, so it has no unit')
  ratios = distance.pdist(true[..., 3])[apart] / distances[apart]
  unit_m = float(np.median(ratios))
  if not np.median(np.abs(ratios - unit_m)) < _MAX_DEVIATION * unit_m:
    raise ValueError('its frames are not where the walk was')
  # The same for all frames.
  scene2world = true[..., :3] @ np.swapaxes(found[..., :3], -1, -2)
  first, second = np.triu_indices(len(found), 1)
  turned_deg = camera.rotation_angle_deg(
    scene2world[first] @ np.swapaxes(scene2world[second], -1, -2)
  )
  if not np.median(turned_deg) < _MAX_TURN_DEG:
    raise ValueError('its frames are not turned as on the walk')
  return unit_m


def likeness_db(world: scenes.World, record: schema.Record) -> float:
  """PSNR of a record's pictures against the world's, the worse of the two.

  Raises:
    ValueError: a picture is no square JPEG.
  """
  return min(_likeness_db(world, record, side) for side in SIDES)


def _likeness_db(
  world: scenes.World, record: schema.Record, side: str
) -> float:
  try:
    picture: UInt8[np.ndarray, 's s 3'] = image_files.decode_square_jpeg(
      record[f'{side}/image'], _COMPARED_PX
    )
  except image_files.TooSmallError as error:
    picture = image_files.decode_square_jpeg(
      record[f'{side}/image'], error.side_px
    )
  truth = rendering.render_view(
    world,
    _moment_s(record, side),
    _angles(record, side),
    fov_deg=record['fov_deg'],
    size_px=len(picture),
  )
  return psnr.psnr_db(truth, picture)
