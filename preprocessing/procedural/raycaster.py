"""Ray casting of textured boxes and spheres, in float32 numpy.

Rays come as images `[h w 3]` of unit directions, so the same caster renders
panoramas, perspective views and depth maps. Rays are handled in tiles: a body
is intersected only with tiles whose cone of rays meets its bounding sphere.
World axes are those of `odin_jax.shared.camera`: y down.
"""

import dataclasses
import functools

import cv2
from jaxtyping import Bool, Float, Float32, Int, Int16, UInt8
import numpy as np

from odin_jax.shared import camera
from preprocessing.procedural import textures

_TILE_PX = 16
_FACES = 6
# A texture that is stretched over a face keeps away from the face's border by
# this share, so that rounding never wraps it around.
_INSET = 1e-3
# Keeps divisions finite for rays parallel to a face.
_TINY = np.float32(1e-20)
Rays = Float32[np.ndarray, 'h w 3']


@dataclasses.dataclass(frozen=True)
class Face:
  """What is painted on a face.

  Attributes:
    texture: index in the atlas.
    period_m: (width, height) after which the texture repeats; None in an axis
      stretches it once over the face.
  """

  texture: int
  period_m: tuple[float | None, float | None] = (None, None)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Body:
  """A box or a sphere.

  Attributes:
    centre: at rest, in metres.
    half_m: half extents of a box; all equal: the radius of a sphere.
    faces: of a box in the order -x, +x, -y, +y, -z, +z; of a sphere one.
    yaw_rad: rotation of a box about the vertical.
    inside: seen from the inside (a room, the sky).
    sway_m: amplitude of the motion; zero for what stands still.
    sway_rad_per_s: its angular frequency.
    sway_phase_rad: its phase.
    backdrop: sky, which is no scene content.
  """

  centre: np.ndarray
  half_m: np.ndarray
  faces: tuple[Face, ...]
  yaw_rad: float = 0.0
  inside: bool = False
  sway_m: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros(3))
  sway_rad_per_s: float = 0.0
  sway_phase_rad: float = 0.0
  backdrop: bool = False

  @property
  def is_sphere(self) -> bool:
    """Whether it is a sphere and no box."""
    return len(self.faces) == 1

  @property
  def moves(self) -> bool:
    """Whether it ever moves."""
    return bool(np.any(self.sway_m)) and self.sway_rad_per_s != 0

  @property
  def bounding_radius_m(self) -> float:
    """Radius of the sphere about its centre that holds it."""
    return float(
      self.half_m[0] if self.is_sphere else np.hypot.reduce(self.half_m)
    )

  def centre_at(self, time_s: float) -> Float[np.ndarray, '3']:
    """Its centre at a time."""
    angle = self.sway_rad_per_s * time_s + self.sway_phase_rad
    return self.centre + self.sway_m * np.sin(angle)


@dataclasses.dataclass(frozen=True)
class Hits:
  """What the rays meet first.

  Attributes:
    distance: along the ray, metres.
    surface: `6 * body + face`.
  """

  distance: Float32[np.ndarray, 'h w']
  surface: Int16[np.ndarray, 'h w']


def box_face_axes(
  face: int, *, inside: bool
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """Outward normal, texture's right and texture's down of a box's face."""
  normal = np.zeros(3)
  normal[face // 2] = 1 if face % 2 else -1
  if face // 2 == 1:
    return normal, np.array([1.0, 0, 0]), np.array([0, 0, 1.0])
  down = np.array([0, 1.0, 0])
  looking = normal if inside else -normal
  return normal, np.cross(down, looking), down


class Scene:
  """Bodies, their textures and the light.

  Every ray has to meet something: one body is seen from the inside and holds
  all others and the camera.

  Args:
    bodies: at most 5461.
    atlas: their textures.
    light: direction towards the light.
    ambient: brightness of what faces away from the light, 0..1.
  """

  def __init__(
    self,
    bodies: list[Body],
    atlas: textures.Atlas,
    *,
    light: Float[np.ndarray, '3'],
    ambient: float,
  ):
    self.bodies = bodies
    self.atlas = atlas
    self._light = light / np.linalg.norm(light)
    self._ambient = ambient
    count = _FACES * len(bodies)
    self._texture = np.zeros(count, np.int32)
    self._normal = np.zeros((count, 3))
    self._texel_per_m = np.ones(count)
    # uv = matrix @ (x_world - centre of the body) + 1/2, in whole textures.
    self._matrix = np.zeros((count, 2, 3))
    for index, body in enumerate(bodies):
      for face, paint in enumerate(body.faces):
        self._add_surface(index, face, body, paint)
    self._shade = self._brightness(self._normal)
    for index, body in enumerate(bodies):
      if body.backdrop:
        self._shade[_FACES * index : _FACES * (index + 1)] = 1.0
    self.surface_moves = np.repeat([body.moves for body in bodies], _FACES)
    self.surface_is_backdrop = np.repeat(
      [body.backdrop for body in bodies], _FACES
    )

  def _add_surface(self, index: int, face: int, body: Body, paint: Face):
    surface = _FACES * index + face
    self._texture[surface] = paint.texture
    width, height = self.atlas.size[paint.texture, 0]
    if body.is_sphere:
      self._texel_per_m[surface] = width / (4 * body.half_m[0])
      return
    normal, right, down = box_face_axes(face, inside=body.inside)
    box2world = camera.rotation_y(body.yaw_rad)
    stretched = 1 - 2 * _INSET
    extent = [2 * np.abs(axis) @ body.half_m for axis in (right, down)]
    scale = [
      1 / period if period else stretched / length
      for period, length in zip(paint.period_m, extent)
    ]
    self._matrix[surface] = (
      np.array([right, down]) @ box2world.T * np.array(scale)[:, None]
    )
    self._normal[surface] = box2world @ (-normal if body.inside else normal)
    self._texel_per_m[surface] = np.sqrt(scale[0] * width * scale[1] * height)

  def _brightness(self, normal: np.ndarray) -> np.ndarray:
    # Wrapped Lambert: what faces away is darker, yet not flat.
    # Rounding takes what faces straight away just below zero.
    facing = np.maximum((normal @ self._light + 1) / 2, 0)
    return self._ambient + (1.1 - self._ambient) * facing**1.5

  def cast(
    self, origin: Float[np.ndarray, '3'], rays: Rays, time_s: float
  ) -> Hits:
    """The first surface on every ray.

    Args:
      origin: where the rays start, in the world.
      rays: unit directions in the world.
      time_s: the moment; bodies that move are where they are then.
    """
    height, width = rays.shape[:2]
    tiles = _to_tiles(rays)
    centres = np.array([body.centre_at(time_s) for body in self.bodies])
    meets = _tiles_in_reach(
      tiles, centres - origin, [body.bounding_radius_m for body in self.bodies]
    )
    distance = np.full(tiles.shape[1:], np.inf, np.float32)
    surface = np.zeros(tiles.shape[1:], np.int16)
    for index, body in enumerate(self.bodies):
      chosen = np.flatnonzero(meets[index])
      if not chosen.size:
        continue
      everywhere = chosen.size == meets.shape[1]
      rows = slice(None) if everywhere else chosen
      start = (origin - centres[index]).astype(np.float32)
      intersect = _meet_sphere if body.is_sphere else _meet_box
      t, face = intersect(body, start, tiles[:, rows])
      closer = t < distance[rows]
      distance[rows] = np.where(closer, t, distance[rows])
      label = (face + _FACES * index).astype(np.int16)
      surface[rows] = np.where(closer, label, surface[rows])
    return Hits(
      _from_tiles(distance, height, width), _from_tiles(surface, height, width)
    )

  def paint(
    self,
    origin: Float[np.ndarray, '3'],
    rays: Rays,
    hits: Hits,
    time_s: float,
    *,
    pixel_rad: float,
  ) -> UInt8[np.ndarray, 'h w 3']:
    """Colours of what the rays met.

    Args:
      origin: as for `cast`.
      rays: as for `cast`.
      hits: the result of `cast`.
      time_s: as for `cast`.
      pixel_rad: angle between neighbouring rays, which sets how fine a level
        of a texture is read.
    """
    shape = hits.surface.shape
    # Flat and one plane per axis: gathers and sums then run over plain arrays.
    surface = hits.surface.ravel().astype(np.intp)
    distance = hits.distance.ravel()
    directions = np.ascontiguousarray(rays.reshape(-1, 3).T)
    points = directions * distance + origin.astype(np.float32)[:, None]
    u, v = self._texture_coordinates(points, surface, time_s)
    normal = [_gather(column, surface) for column in self._normal.T]
    cosine = np.abs(sum(n * d for n, d in zip(normal, directions)))
    shade = _gather(self._shade, surface)
    visible = np.bincount(surface, minlength=len(self._shade)) > 0
    for index, body in enumerate(self.bodies):
      if body.is_sphere and visible[_FACES * index]:
        where = np.flatnonzero(surface == _FACES * index)
        values = self._paint_sphere(
          body, points[:, where].T, directions[:, where].T, time_s
        )
        u[where], v[where], cosine[where] = values[:3]
        if not body.backdrop:
          shade[where] = values[3]
    density = _gather(self._texel_per_m * pixel_rad, surface)
    footprint = distance * density / np.sqrt(np.maximum(cosine, 0.02))
    colour = self._look_up(
      *(values.reshape(shape) for values in (surface, u, v, footprint))
    )
    # 255 times the brightest shade, in units of 1/128, fits 16 bits.
    shade = np.clip(shade.reshape(shape) * 128, 0, 256).astype(np.uint16)
    lit = (colour.astype(np.uint16) * shade[..., None]) >> 7
    return np.minimum(lit, 255).astype(np.uint8)

  def _texture_coordinates(
    self,
    points: Float32[np.ndarray, '3 n'],
    surface: Int[np.ndarray, 'n'],
    time_s: float,
  ) -> tuple[Float32[np.ndarray, 'n'], Float32[np.ndarray, 'n']]:
    centres = np.repeat(
      [body.centre_at(time_s) for body in self.bodies], _FACES, axis=0
    )
    offset = 0.5 - (self._matrix @ centres[..., None])[..., 0]
    coordinates = []
    for axis in range(2):
      total = _gather(offset[:, axis], surface)
      for column, plane in zip(self._matrix[:, axis].T, points):
        total += _gather(column, surface) * plane
      coordinates.append(total)
    return coordinates[0], coordinates[1]

  def _paint_sphere(
    self,
    body: Body,
    points: Float32[np.ndarray, 'n 3'],
    directions: Float32[np.ndarray, 'n 3'],
    time_s: float,
  ) -> tuple[np.ndarray, ...]:
    """u, v, cosine of the incidence, and brightness where a sphere is seen.

    Both hemispheres carry the same stereographic map, which has no seam and no
    pole: the equator is the circle inscribed in the texture.
    """
    centre = body.centre_at(time_s).astype(np.float32)
    normal = (points - centre) / np.float32(body.half_m[0])
    plane = normal[:, [0, 2]] / (1 + np.abs(normal[:, 1:2]))
    cosine = np.abs(np.sum(normal * directions, axis=-1))
    u, v = (0.5 + 0.499 * plane).T
    return u, v, cosine, self._brightness(normal)

  def _look_up(
    self,
    surface: Int[np.ndarray, 'h w'],
    u: Float32[np.ndarray, 'h w'],
    v: Float32[np.ndarray, 'h w'],
    footprint: Float32[np.ndarray, 'h w'],
  ) -> UInt8[np.ndarray, 'h w 3']:
    """One bilinear lookup per pixel, at the level that fits its footprint."""
    levels = self.atlas.num_levels
    level = textures.LEVELS_PER_OCTAVE * np.log2(np.maximum(footprint, 1))
    level = np.minimum(np.rint(level), levels - 1).astype(np.intp)
    cell = np.take(self._texture * levels, surface) + level
    maps = []
    for axis, coordinate in enumerate((u, v)):
      origin = _gather(self.atlas.origin[..., axis].ravel(), cell)
      size = _gather(self.atlas.size[..., axis].ravel(), cell)
      fraction = coordinate - np.floor(coordinate)
      maps.append(origin + fraction * size - np.float32(0.5))
    return cv2.remap(self.atlas.image, maps[0], maps[1], cv2.INTER_LINEAR)


def _gather(table: np.ndarray, index: np.ndarray) -> np.ndarray:
  """Float32 entries of a table, for every pixel."""
  return np.take(table.astype(np.float32), index)


def _to_tiles(rays: Rays) -> Float32[np.ndarray, '3 tiles pixels']:
  """Square tiles of rays; rays at the border are repeated to fill them."""
  height, width = rays.shape[:2]
  rows, columns = -(-height // _TILE_PX), -(-width // _TILE_PX)
  missing = rows * _TILE_PX - height, columns * _TILE_PX - width
  if any(missing):
    rays = np.pad(rays, ((0, missing[0]), (0, missing[1]), (0, 0)), 'edge')
  grid = rays.reshape(rows, _TILE_PX, columns, _TILE_PX, 3)
  return np.ascontiguousarray(grid.transpose(4, 0, 2, 1, 3)).reshape(
    3, rows * columns, _TILE_PX**2
  )


def _from_tiles(tiles: np.ndarray, height: int, width: int) -> np.ndarray:
  rows, columns = -(-height // _TILE_PX), -(-width // _TILE_PX)
  grid = tiles.reshape(rows, columns, _TILE_PX, _TILE_PX)
  image = grid.transpose(0, 2, 1, 3).reshape(rows * _TILE_PX, -1)
  return np.ascontiguousarray(image[:height, :width])


def _tiles_in_reach(
  tiles: Float32[np.ndarray, '3 tiles pixels'],
  to_centre: Float[np.ndarray, 'bodies 3'],
  radius_m: list[float],
) -> Bool[np.ndarray, 'bodies tiles']:
  """Whether a tile's cone of rays meets a body's bounding sphere."""
  axis = tiles.mean(axis=-1)
  axis /= np.linalg.norm(axis, axis=0)
  cosine = np.einsum('ct,ctp->tp', axis, tiles).min(axis=-1)
  cone = np.arccos(np.clip(cosine, -1, 1))
  away = np.linalg.norm(to_centre, axis=-1)
  radius = np.asarray(radius_m)
  with np.errstate(divide='ignore', invalid='ignore'):
    half_angle = np.where(
      away <= radius, np.pi, np.arcsin(np.minimum(radius / away, 1))
    )
    towards = to_centre / np.maximum(away, 1e-9)[:, None]
  between = np.arccos(np.clip(towards @ axis, -1, 1))
  # A thousandth covers the rounding of float32 directions.
  return between <= half_angle[:, None] + cone + 1e-3


def _meet_sphere(
  body: Body,
  start: Float32[np.ndarray, '3'],
  rays: Float32[np.ndarray, '3 tiles pixels'],
) -> tuple[np.ndarray, np.int16]:
  along = sum(rays[i] * start[i] for i in range(3))
  radius = np.float32(body.half_m[0])
  square = along * along - (start @ start - radius * radius)
  root = np.sqrt(np.maximum(square, 0))
  t = root - along if body.inside else -along - root
  missed = (square < 0) | (t <= 0)
  return np.where(missed, np.float32(np.inf), t), np.int16(0)


def _meet_box(
  body: Body,
  start: Float32[np.ndarray, '3'],
  rays: Float32[np.ndarray, '3 tiles pixels'],
) -> tuple[np.ndarray, np.ndarray]:
  """Slab method in the box's own axes: distance and face."""
  if body.yaw_rad:
    world2box = camera.rotation_y(body.yaw_rad).T.astype(np.float32)
    start = world2box @ start
    x = world2box[0, 0] * rays[0] + world2box[0, 2] * rays[2]
    z = world2box[2, 0] * rays[0] + world2box[2, 2] * rays[2]
    rays = (x, rays[1], z)
  inverse = [np.float32(1) / (rays[i] + _TINY) for i in range(3)]
  middle = [inverse[i] * -start[i] for i in range(3)]
  reach = [np.abs(inverse[i]) * np.float32(body.half_m[i]) for i in range(3)]
  near = [middle[i] - reach[i] for i in range(3)]
  far = [middle[i] + reach[i] for i in range(3)]
  leaves = functools.reduce(np.minimum, far)
  if body.inside:
    t, bounds = leaves, far
  else:
    t, bounds = functools.reduce(np.maximum, near), near
    t = np.where((t > leaves) | (t <= 0), np.float32(np.inf), t)
  # A ray enters by the low face of an axis, and leaves by the high one, if it
  # runs up that axis.
  high = [(inverse[i] > 0) == body.inside for i in range(3)]
  face = np.where(
    bounds[0] == t,
    high[0],
    np.where(bounds[1] == t, 2 + high[1], 4 + high[2]),
  )
  return t, face


@functools.lru_cache(maxsize=4)
def panorama_rays(width: int, height: int) -> Float32[np.ndarray, 'h w 3']:
  """Unit rays of an equirectangular image in its own axes."""
  u, v = camera.pixel_centres(width, height)
  return camera.equirect_to_direction(u, v, width, height).astype(np.float32)


def rotate(
  rotation: Float[np.ndarray, '3 3'], rays: Rays
) -> Float32[np.ndarray, 'h w 3']:
  """`rotation @ ray` for every ray."""
  return rays @ rotation.T.astype(np.float32)
