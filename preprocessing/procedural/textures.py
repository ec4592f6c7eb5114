"""Procedural textures, and the atlas that holds them at every resolution.

Textures are periodic: what leaves on one side comes in on the other. They
have structure at all scales (multi-octave noise) and places that differ from
one another (tiles of random colour), as real surfaces do, so that local
features are found on them and told apart.
"""

import dataclasses
from typing import Sequence

import cv2
from jaxtyping import Float, Float32, UInt8
import numpy as np

Image = UInt8[np.ndarray, 'h w 3']
Colour = Float32[np.ndarray, '3']

_GUTTER_PX = 2
_ATLAS_WIDTH_PX = 4096
MAX_SIZE_PX = 4000  # Fits on a shelf of the atlas.
# Two steps per octave, so that a change of level is hard to see.
LEVELS_PER_OCTAVE = 2
_NUM_LEVELS = 13


def fractal_noise(
  rng: np.random.Generator,
  height: int,
  width: int,
  *,
  coarsest_px: float,
  finest_px: float = 3.0,
  persistence: float = 0.75,
) -> Float32[np.ndarray, 'h w']:
  """Periodic multi-octave noise with zero mean and unit deviation.

  Args:
    rng: source of randomness.
    height: in pixels.
    width: in pixels.
    coarsest_px: cell size of the first octave; each next one halves it.
    finest_px: no octave has smaller cells.
    persistence: amplitude of an octave relative to the one before.
  """
  total = np.zeros((height, width), np.float32)
  cell_px, amplitude = max(coarsest_px, finest_px), 1.0
  while cell_px >= finest_px:
    rows, columns = (max(2, round(n / cell_px)) for n in (height, width))
    grid = rng.standard_normal((rows, columns), np.float32)
    scale = np.array(
      [[columns / width, 0, 0], [0, rows / height, 0]], np.float32
    )
    flags = cv2.WARP_INVERSE_MAP | cv2.INTER_CUBIC
    octave = cv2.warpAffine(
      grid, scale, (width, height), flags=flags, borderMode=cv2.BORDER_WRAP
    )
    total += amplitude * octave
    cell_px, amplitude = cell_px / 2, amplitude * persistence
  return (total - total.mean()) / (total.std() + 1e-6)


def random_colour(rng: np.random.Generator, *, vivid: bool = False) -> Colour:
  """A random colour in 0..255 of medium brightness."""
  saturation = rng.uniform(0.4, 0.95) if vivid else rng.uniform(0.1, 0.5)
  value = rng.uniform(0.35, 0.95) if vivid else rng.uniform(0.45, 0.8)
  hsv = np.array([[[rng.uniform(0, 360), saturation, value]]], dtype=np.float32)
  return 255 * cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB)[0, 0]


def _finish(colour: Float[np.ndarray, 'h w 3']) -> Image:
  return np.clip(colour, 0, 255).astype(np.uint8)


def rough(
  rng: np.random.Generator,
  height: int,
  width: int,
  *,
  base: Colour,
  coarsest_px: float,
  contrast: float = 0.25,
) -> Image:
  """Plaster, grass, leaves: noise in brightness and, slower, in hue."""
  light = fractal_noise(rng, height, width, coarsest_px=coarsest_px)
  hue = fractal_noise(
    rng, height, width, coarsest_px=2 * coarsest_px, finest_px=coarsest_px / 3
  )
  tint = (random_colour(rng, vivid=True) - 128) / 128
  relative = 1 + contrast * light[..., None] + 0.08 * hue[..., None] * tint
  return _finish(base * relative)


def tiles(
  rng: np.random.Generator,
  height: int,
  width: int,
  *,
  base: Colour,
  tile_px: tuple[float, float],
  joint_px: float = 2.0,
  variation: float = 0.3,
  bond: float = 0.5,
) -> Image:
  """Bricks, tiles or planks, each of its own colour, with joints and wear.

  Args:
    rng: source of randomness.
    height: in pixels.
    width: in pixels.
    base: mean colour.
    tile_px: (height, width) of a tile, made to fit a whole number of times.
    joint_px: width of the joints.
    variation: relative deviation of the tiles' brightness.
    bond: shift of every second row in tiles.
  """
  rows = max(2, 2 * round(height / tile_px[0] / 2))
  columns = max(1, round(width / tile_px[1]))
  y = (np.arange(height, dtype=np.float32) + 0.5) * rows / height
  row = y.astype(np.int32)
  x = (np.arange(width, dtype=np.float32) + 0.5) * columns / width
  x = x + np.float32(bond) * (row % 2)[:, None].astype(np.float32)
  column = np.floor(x).astype(np.int32)
  brightness = 1 + variation * rng.standard_normal((rows, columns, 1))
  hue = 0.06 * rng.standard_normal((rows, columns, 3))
  colours = (base * (brightness + hue)).astype(np.float32)
  image = colours[row[:, None], column % columns]
  edge_y = np.minimum(y - row, 1 - (y - row)) * height / rows
  edge_x = np.minimum(x - column, 1 - (x - column)) * width / columns
  edge = np.minimum(edge_y[:, None], edge_x)
  joint = np.clip(1.5 - edge / joint_px, 0, 1)[..., None].astype(np.float32)
  image = image * (1 - joint) + joint * base * np.float32(rng.uniform(0.3, 0.6))
  noise = fractal_noise(rng, height, width, coarsest_px=tile_px[1])
  return _finish(image * (1 + 0.14 * noise[..., None]))


def poster(rng: np.random.Generator, height: int, width: int) -> Image:
  """Random shapes and letters on a coloured ground, with a border."""
  image = rough(
    rng,
    height,
    width,
    base=random_colour(rng, vivid=True),
    coarsest_px=width / 2,
    contrast=0.12,
  )
  for _ in range(int(rng.integers(9, 16))):
    _draw_shape(rng, image)
  border = max(2, min(height, width) // 25)
  frame = tuple(random_colour(rng).tolist())
  cv2.rectangle(image, (0, 0), (width - 1, height - 1), frame, border)
  return image


def _draw_shape(rng: np.random.Generator, image: Image) -> None:
  height, width = image.shape[:2]
  colour = tuple(random_colour(rng, vivid=True).tolist())
  centre = rng.uniform(0, 1, 2) * (width, height)
  size = rng.uniform(0.06, 0.28) * min(height, width)
  x, y = (int(value) for value in centre)
  shape = rng.integers(4)
  if shape == 0:
    cv2.circle(image, (x, y), int(size), colour, -1, cv2.LINE_AA)
  elif shape == 1:
    corners = centre + size * rng.uniform(-1.5, 1.5, (4, 2))
    hull = cv2.convexHull(corners.astype(np.int32))
    cv2.fillConvexPoly(image, hull, colour, cv2.LINE_AA)
  elif shape == 2:
    end = (centre + size * rng.uniform(-3, 3, 2)).astype(int).tolist()
    thickness = max(1, int(size / 4))
    cv2.line(image, (x, y), end, colour, thickness, cv2.LINE_AA)
  else:
    text = ''.join(chr(rng.integers(65, 91)) for _ in range(3))
    face = cv2.FONT_HERSHEY_SIMPLEX
    scale, thickness = size / 30, max(1, int(size / 12))
    start = (x - int(size), y)
    cv2.putText(image, text, start, face, scale, colour, thickness, cv2.LINE_AA)


def facade(
  rng: np.random.Generator,
  height: int,
  width: int,
  *,
  base: Colour,
  texel_per_m: float,
) -> Image:
  """A brick wall with a grid of windows, each lit differently."""
  brick_px = (0.35 * texel_per_m, 0.9 * texel_per_m)
  image = tiles(rng, height, width, base=base, tile_px=brick_px, joint_px=1.0)
  rows = max(1, round(height / (3.0 * texel_per_m)))
  columns = max(1, round(width / (2.4 * texel_per_m)))
  step_y, step_x = height / rows, width / columns
  for row in range(rows):
    for column in range(columns):
      low = np.array([(column + 0.28) * step_x, (row + 0.25) * step_y])
      high = np.array([(column + 0.72) * step_x, (row + 0.75) * step_y])
      low, high = low.astype(int).tolist(), high.astype(int).tolist()
      glass = tuple((random_colour(rng) * rng.uniform(0.2, 1.2)).tolist())
      cv2.rectangle(image, low, high, glass, -1)
      cv2.rectangle(image, low, high, (225.0, 225.0, 220.0), 1)
  return image


def sky(rng: np.random.Generator, size_px: int) -> Image:
  """Clouds, zenith in the centre and the horizon on the inscribed circle."""
  centred = (np.arange(size_px, dtype=np.float32) + 0.5) / size_px * 2 - 1
  radius = np.clip(np.hypot(centred[:, None], centred), 0, 1)[..., None]
  blue = np.array([70, 120, 205], np.float32) * np.float32(
    rng.uniform(0.8, 1.1)
  )
  haze = np.array([200, 210, 220], np.float32)
  clouds = fractal_noise(rng, size_px, size_px, coarsest_px=size_px / 5)
  cover = 1 / (1 + np.exp(-3 * (clouds - rng.uniform(0, 1))))[..., None]
  clear = blue + (haze - blue) * radius**2
  return _finish(clear + (245 - clear) * cover.astype(np.float32) * 0.8)


@dataclasses.dataclass(frozen=True)
class Atlas:
  """All textures at all levels in one image, for one lookup per image.

  Level l of a texture is smaller by `2 ** (l / LEVELS_PER_OCTAVE)`.

  Attributes:
    image: the atlas.
    origin: (x, y) of a level's first pixel.
    size: (width, height) of a level in pixels.
  """

  image: Image
  origin: Float32[np.ndarray, 'textures levels 2']
  size: Float32[np.ndarray, 'textures levels 2']

  @property
  def num_levels(self) -> int:
    """Number of levels of every texture."""
    return self.origin.shape[1]


def build_atlas(textures: Sequence[UInt8[np.ndarray, '_ _ 3']]) -> Atlas:
  """Packs textures and their smaller versions on shelves, tallest first."""
  cells = []
  for index, texture in enumerate(textures):
    height, width = texture.shape[:2]
    for level in range(_NUM_LEVELS):
      scale = 2 ** (-level / LEVELS_PER_OCTAVE)
      size = max(2, round(width * scale)), max(2, round(height * scale))
      cells.append((index, level, *size))
  cells.sort(key=lambda cell: -cell[3])
  origin = np.zeros((len(textures), _NUM_LEVELS, 2), np.float32)
  size = np.zeros_like(origin)
  x, y, shelf = 0, 0, 0
  for index, level, width, height in cells:
    if x + width + 2 * _GUTTER_PX > _ATLAS_WIDTH_PX:
      x, y, shelf = 0, y + shelf, 0
    origin[index, level] = x + _GUTTER_PX, y + _GUTTER_PX
    size[index, level] = width, height
    x += width + 2 * _GUTTER_PX
    shelf = max(shelf, height + 2 * _GUTTER_PX)
  image = np.zeros((y + shelf, _ATLAS_WIDTH_PX, 3), np.uint8)
  for index, level, width, height in cells:
    cell = textures[index]
    if level:
      cell = cv2.resize(cell, (width, height), interpolation=cv2.INTER_AREA)
    cell = cv2.copyMakeBorder(cell, *[_GUTTER_PX] * 4, cv2.BORDER_WRAP)
    x, y = (origin[index, level] - _GUTTER_PX).astype(int)
    image[y : y + cell.shape[0], x : x + cell.shape[1]] = cell
  return Atlas(image, origin, size)
