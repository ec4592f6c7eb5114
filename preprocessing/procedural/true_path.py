"""What a procedural world looks like along a camera path that starts in it.

A path is in scene units, of which one is the `median_depth` of its first view
(`odin_jax.geometry.trajectory`); the world's own depth says how many metres
that is.
"""

import dataclasses

from jaxtyping import Float, Float32, UInt8
import numpy as np

from odin_jax.shared import camera
from preprocessing.procedural import (
  raycaster,
  rendering,
  scenes,
  true_depth,
)
from preprocessing.views import alignment

_AHEAD = alignment.Angles(yaw_deg=0.0, pitch_deg=0.0)


@dataclasses.dataclass(frozen=True)
class TruePath:
  """The world at the poses of a path.

  Attributes:
    images: what a camera sees there; None where the straight way from the first
      camera meets a surface, and from there on: beyond is nothing that the
      first view could tell of.
    depths: of the same views, along the optical axis at pixel centres, scene
      units; inf where there is no surface, such as in the sky.
    unit_m: metres per scene unit.
  """

  images: list[UInt8[np.ndarray, 's s 3'] | None]
  depths: list[Float32[np.ndarray, 's s'] | None]
  unit_m: float


def _cast(
  world: scenes.World,
  time_s: float,
  camera2world: Float[np.ndarray, '3 4'],
  rays: Float[np.ndarray, 'h w 3'],
) -> raycaster.Hits:
  turned = raycaster.rotate(camera2world[:, :3], rays.astype(np.float32))
  return world.scene.cast(camera2world[:, 3], turned, time_s)


def _way_is_free(
  world: scenes.World,
  time_s: float,
  camera2world: Float[np.ndarray, '3 4'],
  place: Float[np.ndarray, '3'],
) -> bool:
  """Whether the straight way from a camera to a place in its axes is free."""
  length = np.linalg.norm(place)
  if not length:
    return True
  ray = (place / length).reshape(1, 1, 3)
  return bool(_cast(world, time_s, camera2world, ray).distance[0, 0] > length)


def _depth_m(
  world: scenes.World,
  time_s: float,
  camera2world: Float[np.ndarray, '3 4'],
  rays: Float[np.ndarray, 's s 3'],
) -> Float32[np.ndarray, 's s']:
  """Depth of what unit rays of a camera meet; inf where it is no surface."""
  hits = _cast(world, time_s, camera2world, rays)
  is_surface = ~world.scene.surface_is_backdrop[hits.surface]
  depth = np.where(is_surface, hits.distance * rays[..., 2], np.inf)
  return depth.astype(np.float32)


def render(
  world: scenes.World,
  time_s: float,
  first2world: Float[np.ndarray, '3 4'],
  camera2scene: Float[np.ndarray, 'n 3 4'],
  *,
  fov_deg: float,
  size_px: int,
) -> TruePath:
  """The true views of a path; the world stands still meanwhile.

  Args:
    world: what is seen.
    time_s: when.
    first2world: pose of the first camera, metres.
    camera2scene: poses in the axes of the first camera, scene units.
    fov_deg: of all views.
    size_px: of all views.

  Raises:
    ValueError: the first view shows nothing that stands still.
  """
  rays = rendering.unit_rays(
    _AHEAD, fov_deg, size_px * rendering.supersampling(size_px)
  )
  unit_m = true_depth.median_distance_m(world, time_s, first2world, rays)
  if not unit_m:
    raise ValueError('the first view shows nothing that stands still')
  centres = rendering.unit_rays(_AHEAD, fov_deg, size_px)
  images: list[np.ndarray | None] = []
  depths: list[np.ndarray | None] = []
  is_free = True
  for pose in camera2scene:
    camera2first = camera.rescale(pose, unit_m)
    is_free = is_free and _way_is_free(
      world, time_s, first2world, camera2first[:, 3]
    )
    if not is_free:
      images.append(None)
      depths.append(None)
      continue
    camera2world = camera.compose(first2world, camera2first)
    images.append(
      rendering.render_rays(
        world, time_s, camera2world, rays, fov_deg=fov_deg, size_px=size_px
      )
    )
    depth_m = _depth_m(world, time_s, camera2world, centres)
    depths.append(depth_m / np.float32(unit_m))
  return TruePath(images, depths, unit_m)
