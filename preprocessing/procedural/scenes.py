"""Layouts of procedural worlds: what stands where, and how the camera walks.

Four kinds. `unique_room`, `unique_corridor` and `unique_outdoor` have textures
that occur once; `repeated_corridor` is a row of bays that are identical in
texture and in geometry, so that two views one period apart look the same.
World axes: y down, floor at y = 0, metres.
"""

import dataclasses
from typing import Sequence

from jaxtyping import Float
import numpy as np

from preprocessing.procedural import raycaster, textures, walks

KINDS = (
  'unique_room',
  'repeated_corridor',
  'unique_outdoor',
  'unique_corridor',
)
# Those of which one can say how many things move.
WITH_MOVERS = ('unique_room', 'unique_outdoor')
_CLEARANCE_M = 0.55


@dataclasses.dataclass(frozen=True)
class World:
  """A scene and the walk through it.

  Attributes:
    name: one of KINDS.
    scene: what there is to see.
    walk: where the camera is.
  """

  name: str
  scene: raycaster.Scene
  walk: walks.Walk

  @property
  def kind(self) -> str:
    """`unique` or `repeated` texture."""
    return self.name.split('_')[0]


def build_world(
  name: str,
  rng: np.random.Generator,
  *,
  seconds: float,
  texel_per_m: float,
  movers: int | None = None,
) -> World:
  """A random world of a kind.

  Args:
    name: one of KINDS.
    rng: the only source of randomness.
    seconds: length of the walk; corridors are made long enough for it.
    texel_per_m: resolution of the textures.
    movers: how many bodies move in the kinds WITH_MOVERS, as far as there is
      room for them; None draws a few.

  Raises:
    ValueError: `movers` for another kind.
  """
  if movers is not None and name not in WITH_MOVERS:
    raise ValueError(f'{name}: movers are for {", ".join(WITH_MOVERS)}')
  builder = _Builder(rng, texel_per_m, movers)
  walk = _LAYOUTS[name](builder, seconds)
  light = np.array([rng.normal(), -1.2, rng.normal()])
  scene = raycaster.Scene(
    builder.bodies,
    textures.build_atlas(builder.textures),
    light=light,
    ambient=rng.uniform(0.45, 0.65),
  )
  return World(name, scene, walk)


class _Builder:
  """Collects bodies and their textures."""

  def __init__(
    self, rng: np.random.Generator, texel_per_m: float, movers: int | None
  ):
    self.rng = rng
    self.texel_per_m = texel_per_m
    self._movers = movers
    self.bodies: list[raycaster.Body] = []
    self.textures: list[textures.Image] = []
    # (x, z, radius) of what stands on the floor.
    self._taken: list[tuple[float, float, float]] = []

  def pixels(self, width_m: float, height_m: float) -> tuple[int, int]:
    """(height, width) of a texture of this extent."""
    size = np.array([height_m, width_m]) * self.texel_per_m
    height, width = np.clip(np.rint(size), 8, textures.MAX_SIZE_PX).astype(int)
    return int(height), int(width)

  def add_texture(self, image: textures.Image) -> int:
    """Index of a new texture."""
    self.textures.append(image)
    return len(self.textures) - 1

  def rough(self, width_m: float, height_m: float) -> int:
    """Plaster, stone, leaves."""
    rng = self.rng
    image = textures.rough(
      rng,
      *self.pixels(width_m, height_m),
      base=textures.random_colour(rng),
      coarsest_px=rng.uniform(0.5, 1.2) * self.texel_per_m,
      contrast=rng.uniform(0.16, 0.28),
    )
    return self.add_texture(image)

  def tiles(
    self,
    width_m: float,
    height_m: float,
    tile_m: tuple[float, float] | None = None,
  ) -> int:
    """Bricks, tiles or planks; `tile_m` is (height, width)."""
    rng = self.rng
    tile_m = tile_m or (rng.uniform(0.15, 0.45), rng.uniform(0.3, 1.0))
    image = textures.tiles(
      rng,
      *self.pixels(width_m, height_m),
      base=textures.random_colour(rng),
      tile_px=(tile_m[0] * self.texel_per_m, tile_m[1] * self.texel_per_m),
      joint_px=max(1.0, 0.012 * self.texel_per_m),
      variation=rng.uniform(0.15, 0.3),
      bond=rng.uniform(0, 0.5),
    )
    return self.add_texture(image)

  def poster(self, width_m: float, height_m: float) -> int:
    """A picture; finer than other textures."""
    height, width = self.pixels(2 * width_m, 2 * height_m)
    return self.add_texture(textures.poster(self.rng, height, width))

  def surface(self, width_m: float, height_m: float) -> int:
    """Any of the above that suits furniture."""
    number = self.rng.integers(3)
    if number == 0:
      return self.rough(width_m, height_m)
    if number == 1:
      return self.tiles(width_m, height_m)
    return self.poster(width_m, height_m)

  def wall(self, width_m: float, height_m: float) -> int:
    """Tiles or plaster."""
    if self.rng.integers(2) == 0:
      return self.tiles(width_m, height_m)
    return self.rough(width_m, height_m)

  def box(
    self,
    centre: tuple[float, float, float],
    half_m: tuple[float, float, float],
    faces: Sequence[int | raycaster.Face] | int | None = None,
    **more: object,
  ) -> None:
    """Adds a box; without `faces` every side gets a texture of its own."""
    if faces is None:
      x, y, z = 2 * np.asarray(half_m)
      sides = ((z, y), (z, y), (x, z), (x, z), (x, y), (x, y))
      faces = [self.surface(*side) for side in sides]
    if isinstance(faces, int):
      faces = [faces] * 6
    painted = tuple(
      face if isinstance(face, raycaster.Face) else raycaster.Face(face)
      for face in faces
    )
    body = raycaster.Body(
      centre=np.array(centre, float),
      half_m=np.array(half_m, float),
      faces=painted,
      **more,
    )
    self.bodies.append(body)

  def sphere(
    self,
    centre: tuple[float, float, float],
    radius_m: float,
    texture: int | None = None,
    **more: object,
  ) -> None:
    """Adds a sphere."""
    if texture is None:
      texture = self.surface(4 * radius_m, 4 * radius_m)
    body = raycaster.Body(
      centre=np.array(centre, float),
      half_m=np.full(3, float(radius_m)),
      faces=(raycaster.Face(texture),),
      **more,
    )
    self.bodies.append(body)

  def find_place(
    self,
    curve: Float[np.ndarray, 'n 2'],
    half_x_m: float,
    half_z_m: float,
    radius_m: float,
    *,
    clearance_m: float = _CLEARANCE_M,
  ) -> tuple[float, float] | None:
    """A free (x, z) about the origin, away from the path and other bodies."""
    limit = np.array([half_x_m, half_z_m]) - radius_m - 0.05
    if np.any(limit <= 0):
      return None
    for _ in range(40):
      place = self.rng.uniform(-limit, limit)
      if np.linalg.norm(curve - place, axis=1).min() < clearance_m + radius_m:
        continue
      if any(
        np.hypot(place[0] - x, place[1] - z) < radius_m + taken_m
        for x, z, taken_m in self._taken
      ):
        continue
      self._taken.append((place[0], place[1], radius_m))
      return float(place[0]), float(place[1])
    return None

  def motion(self, reach_m: float) -> dict[str, object]:
    """A random sway along the floor with a peak speed of 0.3 to 0.9 m/s."""
    angle = self.rng.uniform(0, 2 * np.pi)
    return {
      'sway_m': reach_m * np.array([np.cos(angle), 0, np.sin(angle)]),
      'sway_rad_per_s': self.rng.uniform(0.3, 0.9) / reach_m,
      'sway_phase_rad': self.rng.uniform(0, 2 * np.pi),
    }

  def furnish(
    self,
    curve: Float[np.ndarray, 'n 2'],
    half_x_m: float,
    half_z_m: float,
    *,
    count: int,
    moving: int,
    size_m: tuple[float, float] = (0.2, 0.55),
  ) -> None:
    """Boxes and spheres on the floor, the first `moving` of them moving.

    The number of movers that the world was asked for goes before `moving`.
    """
    rng = self.rng
    moving = moving if self._movers is None else self._movers
    for index in range(max(count, moving)):
      half = rng.uniform(*size_m, 3) * (1, 1.4, 1)
      reach = rng.uniform(0.5, 1.0) if index < moving else 0.0
      radius = float(np.hypot(half[0], half[2]) + reach)
      place = self.find_place(curve, half_x_m, half_z_m, radius)
      if place is None:
        continue
      more = self.motion(reach) if reach else {}
      if rng.uniform() < 0.3:
        size = float(min(half[0], half[2]))
        height = size if reach else rng.uniform(size, 2.0)
        self.sphere((place[0], -height, place[1]), size, **more)
      else:
        yaw = rng.uniform(0, np.pi)
        centre = (place[0], -half[1], place[1])
        self.box(centre, tuple(half.tolist()), yaw_rad=yaw, **more)


def _hall(
  builder: _Builder,
  half_x_m: float,
  height_m: float,
  z_low_m: float,
  z_high_m: float,
) -> None:
  """Floor, walls and ceiling, each with a texture that occurs once."""
  length, width = z_high_m - z_low_m, 2 * half_x_m
  walls = [
    builder.wall(side, height_m) for side in (length, length, width, width)
  ]
  faces = [
    *walls[:2],
    builder.rough(width, length),
    builder.tiles(width, length),
    *walls[2:],
  ]
  centre = (0.0, -height_m / 2, (z_low_m + z_high_m) / 2)
  half = (half_x_m, height_m / 2, length / 2)
  builder.box(centre, half, faces, inside=True)


def _hang_posters(
  builder: _Builder,
  half_x_m: float,
  places: Float[np.ndarray, 'n'],
  depth_m: float = 0.02,
) -> None:
  """Posters on the two long walls at x = +-half_x_m, at these z."""
  rng = builder.rng
  for z in places:
    width, height = rng.uniform(0.6, 1.3), rng.uniform(0.6, 1.4)
    x = (half_x_m - depth_m) * (1 if rng.uniform() < 0.5 else -1)
    centre = (x, -rng.uniform(1.4, 1.8), z)
    picture = builder.poster(width, height)
    builder.box(centre, (depth_m, height / 2, width / 2), picture)


def _unique_room(builder: _Builder, seconds: float) -> walks.Walk:
  del seconds  # The walk is a loop.
  rng = builder.rng
  half_x, half_z = rng.uniform(3.5, 5.5), rng.uniform(4.0, 6.5)
  height = rng.uniform(2.6, 3.8)
  curve = walks.loop(rng, half_x - 1.2, half_z - 1.2)
  _hall(builder, half_x, height, -half_z, half_z)
  places = rng.uniform(0.8 - half_z, half_z - 0.8, int(rng.integers(3, 7)))
  _hang_posters(builder, half_x, places)
  builder.furnish(
    curve,
    half_x,
    half_z,
    count=int(rng.integers(8, 16)),
    moving=int(rng.integers(0, 3)),
  )
  return walks.random_walk(rng, curve, closed=True)


def _unique_corridor(builder: _Builder, seconds: float) -> walks.Walk:
  rng = builder.rng
  half_x, height = rng.uniform(1.3, 2.0), rng.uniform(2.5, 3.4)
  length = 1.4 * seconds + 1.0
  curve = walks.winding(rng, length, rng.uniform(0.05, 0.25))
  z_low, z_high = -rng.uniform(3, 6), length + rng.uniform(3, 6)
  _hall(builder, half_x, height, z_low, z_high)
  spacing = rng.uniform(1.5, 3.0)
  places = np.arange(z_low + 1, z_high - 1, spacing)
  _hang_posters(builder, half_x, places + rng.uniform(-0.3, 0.3, len(places)))
  for z in np.arange(z_low + 2, z_high - 2, rng.uniform(2.5, 4.5)):
    half = rng.uniform((0.12, 0.2, 0.2), (0.25, 0.7, 0.5))
    x = (half_x - half[0]) * (1 if rng.uniform() < 0.5 else -1)
    builder.box((x, -half[1], z), tuple(half.tolist()))
  if rng.uniform() < 0.5:
    centre = (rng.choice([-1, 1]) * (half_x - 0.3), -0.3, length + 2)
    builder.sphere(centre, 0.3, **builder.motion(0.2))
  return walks.random_walk(rng, curve, closed=False)


def _repeated_corridor(builder: _Builder, seconds: float) -> walks.Walk:
  rng = builder.rng
  half_x, height = rng.uniform(1.2, 1.7), rng.uniform(2.5, 3.1)
  period = rng.uniform(2.2, 3.0)
  length = 1.4 * seconds + 1.0
  curve = walks.winding(rng, length, rng.uniform(0.05, 0.2))
  # The ends are so far away that they show little to hold on to.
  first, last = -9, int(np.ceil(length / period)) + 9
  per_bay = [
    raycaster.Face(builder.tiles(period, height), (period, None)),
    raycaster.Face(builder.tiles(period, height), (period, None)),
    raycaster.Face(builder.rough(2 * half_x, period), (None, period)),
    raycaster.Face(builder.tiles(2 * half_x, period), (None, period)),
    builder.rough(2 * half_x, height),
    builder.rough(2 * half_x, height),
  ]
  centre = (0.0, -height / 2, (first + last) / 2 * period)
  half = (half_x, height / 2, (last - first) / 2 * period)
  builder.box(centre, half, per_bay, inside=True)
  pieces = [_bay_piece(builder, side, half_x, height) for side in (-1, 1)]
  for bay in range(first, last):
    for piece in pieces:
      for x, y, z, half_m, face in piece:
        builder.box((x, y, (bay + z) * period), half_m, face)
  return walks.random_walk(rng, curve, closed=False)


def _bay_piece(
  builder: _Builder, side: int, half_x_m: float, height_m: float
) -> list[tuple]:
  """Pillar, door and picture on one side of a bay; z in periods."""
  rng = builder.rng
  pillar = (0.1, height_m / 2, 0.12)
  door = (0.03, 1.05, rng.uniform(0.38, 0.48))
  picture = (0.02, rng.uniform(0.3, 0.5), rng.uniform(0.2, 0.3))
  return [
    (
      side * (half_x_m - pillar[0]),
      -pillar[1],
      0.02,
      pillar,
      builder.rough(0.3, height_m),
    ),
    (
      side * (half_x_m - door[0]),
      -door[1],
      0.35,
      door,
      builder.tiles(1.0, 2.1, (0.5, 0.2)),
    ),
    (
      side * (half_x_m - picture[0]),
      -1.6,
      0.78,
      picture,
      builder.poster(0.6, 0.9),
    ),
  ]


def _unique_outdoor(builder: _Builder, seconds: float) -> walks.Walk:
  del seconds  # The walk is a loop.
  rng = builder.rng
  half = rng.uniform(9, 13)
  curve = walks.loop(rng, half * 0.7, half * rng.uniform(0.55, 0.7))
  dome = builder.add_texture(textures.sky(rng, 1024))
  builder.sphere((0.0, 0.0, 0.0), 150.0, dome, inside=True, backdrop=True)
  paving = builder.wall(2 * half, 2 * half)
  builder.box((0.0, 0.05, 0.0), (half, 0.05, half), paving)
  field = raycaster.Face(builder.rough(15.0, 15.0), (15.0, 15.0))
  builder.box((0.0, 0.15, 0.0), (140.0, 0.05, 140.0), [field] * 6)
  _ring_of_buildings(builder, half)
  builder.furnish(
    curve,
    half,
    half,
    count=int(rng.integers(14, 24)),
    moving=int(rng.integers(1, 4)),
    size_m=(0.3, 0.8),
  )
  for _ in range(int(rng.integers(3, 7))):
    _plant_tree(builder, curve, half)
  return walks.random_walk(rng, curve, closed=True)


def _ring_of_buildings(builder: _Builder, half_m: float) -> None:
  rng = builder.rng
  angle = rng.uniform(0, 2 * np.pi)
  last = angle + 2 * np.pi - 0.3
  while angle < last:
    size = rng.uniform((2.5, 2.0, 2.5), (5.0, 4.5, 5.0))
    away = half_m * 1.45 + size[0] + rng.uniform(0, 4)
    centre = (away * np.sin(angle), -size[1], away * np.cos(angle))
    # Buildings are seen from afar: coarser than what is near.
    texel_per_m = builder.texel_per_m / 3
    pixels = np.rint(2 * size * texel_per_m).astype(int).tolist()
    base = textures.random_colour(rng)
    front = builder.add_texture(
      textures.facade(
        rng, pixels[1], pixels[0], base=base, texel_per_m=texel_per_m
      )
    )
    side = builder.add_texture(
      textures.facade(
        rng, pixels[1], pixels[2], base=base, texel_per_m=texel_per_m
      )
    )
    faces = [side, front, front, front, side, front]
    builder.box(centre, tuple(size.tolist()), faces, yaw_rad=angle)
    angle += rng.uniform(1.0, 1.5) * 2 * size[0] / away


def _plant_tree(
  builder: _Builder, curve: Float[np.ndarray, 'n 2'], half_m: float
) -> None:
  rng = builder.rng
  crown, trunk = rng.uniform(0.8, 1.4), rng.uniform(1.2, 2.0)
  place = builder.find_place(curve, half_m, half_m, crown)
  if place is None:
    return
  x, z = place
  builder.box((x, -trunk / 2, z), (0.12, trunk / 2, 0.12))
  green = np.array([70, 115, 50], np.float32) * np.float32(
    rng.uniform(0.7, 1.3)
  )
  leaves = textures.rough(
    rng,
    *builder.pixels(2.5, 2.5),
    base=green,
    coarsest_px=0.4 * builder.texel_per_m,
    contrast=0.35,
  )
  centre = (x, -trunk - 0.8 * crown, z)
  builder.sphere(centre, crown, builder.add_texture(leaves))


_LAYOUTS = {
  'unique_room': _unique_room,
  'repeated_corridor': _repeated_corridor,
  'unique_outdoor': _unique_outdoor,
  'unique_corridor': _unique_corridor,
}
