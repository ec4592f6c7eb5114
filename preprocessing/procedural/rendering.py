"""Views of a procedural world: their rays, and the pictures along these."""

from jaxtyping import Float, UInt8
import numpy as np

from odin_jax.shared import camera
from preprocessing import panorama
from preprocessing.procedural import raycaster, scenes
from preprocessing.views import alignment

# Small views are sampled finer and averaged, lest edges be ragged.
_SUPERSAMPLED_BELOW_PX = 200


def supersampling(size_px: int) -> int:
  """Rays per pixel and axis of a view."""
  return 2 if size_px < _SUPERSAMPLED_BELOW_PX else 1


def render_view(
  world: scenes.World,
  time_s: float,
  angles: alignment.Angles,
  *,
  fov_deg: float,
  size_px: int,
) -> UInt8[np.ndarray, 's s 3']:
  """The view that is cut at these angles from the panorama at a time."""
  rays = unit_rays(angles, fov_deg, size_px * supersampling(size_px))
  frame2world = world.walk.frame2world(time_s)
  return render_rays(
    world, time_s, frame2world, rays, fov_deg=fov_deg, size_px=size_px
  )


def unit_rays(
  angles: alignment.Angles, fov_deg: float, size_px: int
) -> Float[np.ndarray, 's s 3']:
  """Through the pixel centres of a view, in the axes of its panorama."""
  rays = panorama.view_directions(
    yaw_deg=angles.yaw_deg,
    pitch_deg=angles.pitch_deg,
    fov_deg=fov_deg,
    size_px=size_px,
  )
  return rays / np.linalg.norm(rays, axis=-1, keepdims=True)


def render_rays(
  world: scenes.World,
  time_s: float,
  camera2world: Float[np.ndarray, '3 4'],
  rays: Float[np.ndarray, 'r r 3'],
  *,
  fov_deg: float,
  size_px: int,
) -> UInt8[np.ndarray, 's s 3']:
  """What a camera sees along its unit rays, averaged to `size_px`."""
  factor = supersampling(size_px)
  rays = raycaster.rotate(camera2world[:, :3], rays.astype(np.float32))
  origin = camera2world[:, 3]
  hits = world.scene.cast(origin, rays, time_s)
  pixel_rad = 1 / camera.intrinsics(fov_deg, size_px * factor)[0, 0]
  image = world.scene.paint(origin, rays, hits, time_s, pixel_rad=pixel_rad)
  if factor == 1:
    return image
  blocks = image.reshape(size_px, factor, size_px, factor, 3)
  return np.rint(blocks.mean(axis=(1, 3))).astype(np.uint8)
