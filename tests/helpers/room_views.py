"""Square views of a textured room with a ball in it, with exact depth.

A ray caster of a few lines for tests of geometry: the room is an axis-aligned
box seen from inside, its colours a smooth random solid texture, so that every
surface point has one colour whatever the view.
"""

import dataclasses

import numpy as np

from odin_jax.shared import camera


@dataclasses.dataclass(frozen=True, kw_only=True)
class Room:
  """Half extents around (0, 0, centre_z), one ball, a seeded texture."""

  half: tuple[float, float, float] = (1.0, 0.8, 1.6)
  ball_centre: tuple[float, float, float] = (0.25, 0.15, 0.9)
  ball_radius: float = 0.25
  seed: int = 0
  waves: int = 80
  max_frequency: float = 70.0

  def colour(self, points: np.ndarray) -> np.ndarray:
    """Sum of plane waves of many directions and lengths, per channel."""
    generator = np.random.default_rng(self.seed)
    channels = []
    for _ in range(3):
      direction = generator.normal(size=(self.waves, 3))
      direction /= np.linalg.norm(direction, axis=1, keepdims=True)
      frequency = np.geomspace(2, self.max_frequency, self.waves)
      phase = generator.uniform(0, 2 * np.pi, self.waves)
      waves = np.sin(points @ (direction * frequency[:, None]).T + phase)
      channels.append(waves.mean(-1) * np.sqrt(self.waves))
    return np.clip(0.5 + 0.2 * np.stack(channels, -1), 0, 1)

  def view(
    self, camera2scene: np.ndarray, fov_deg: float, size_px: int
  ) -> tuple[np.ndarray, np.ndarray]:
    """sRGB uint8 image and exact depth (z) of one view."""
    return self.seen(camera2scene, camera.view_rays(fov_deg, size_px))

  def seen(
    self, camera2scene: np.ndarray, rays: np.ndarray
  ) -> tuple[np.ndarray, np.ndarray]:
    """sRGB uint8 image and what the rays are multiplied with to get there."""
    direction = rays @ camera2scene[:, :3].T
    origin = camera2scene[:, 3]
    with np.errstate(divide='ignore'):
      walls = (np.sign(direction) * self.half - origin) / direction
    depth = walls.min(-1)
    # |origin + s * direction - centre|^2 = radius^2; the nearer root.
    offset = origin - self.ball_centre
    a = np.sum(direction**2, -1)
    b = direction @ offset
    root = b**2 - a * (offset @ offset - self.ball_radius**2)
    hit = (-b - np.sqrt(np.maximum(root, 0))) / a
    depth = np.where((root > 0) & (hit > 0), np.minimum(depth, hit), depth)
    points = origin + direction * depth[..., None]
    image = np.round(self.colour(points) * 255).astype(np.uint8)
    # Where rays have z = 1, their parameter is the depth.
    return image, depth

  def views(
    self, camera2scene: np.ndarray, fov_deg: float, size_px: int
  ) -> tuple[np.ndarray, np.ndarray]:
    """Images [n s s 3] and depths [n s s] of all poses."""
    pairs = [self.view(pose, fov_deg, size_px) for pose in camera2scene]
    return np.stack([p[0] for p in pairs]), np.stack([p[1] for p in pairs])

  def panoramas(
    self, frame2scene: np.ndarray, height_px: int
  ) -> tuple[np.ndarray, np.ndarray]:
    """Images [n h 2h 3] and distances [n h 2h] of panoramas at all poses."""
    u, v = camera.pixel_centres(2 * height_px, height_px)
    rays = camera.equirect_to_direction(u, v, 2 * height_px, height_px)
    pairs = [self.seen(pose, rays) for pose in frame2scene]
    return np.stack([p[0] for p in pairs]), np.stack([p[1] for p in pairs])
