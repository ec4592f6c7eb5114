"""What is never scene: the holder, the stand, what the camera does not see.

By latitude: everything below a given angle. By persistence: cells of the image
whose points, as long as they can be followed, stay nearly where they are while
the scene moves, and do not obey its motion; a hand, a hat, a watermark. A
distant point in the direction of travel also stays, but it obeys. By hand: a
picture that the user painted. By the lens: directions that were not filmed.
"""

import dataclasses
import os
import pathlib
from typing import Callable

import cv2
from jaxtyping import Bool, Float, Shaped
import numpy as np

from odin_jax.shared import camera, equirect, errors, files, user_images

# Columns and rows of the cells in which points are counted; 5 degrees.
_GRID = (72, 36)
# Columns and rows of the cells in which sight is asked for; half a degree.
_FINE_GRID = (720, 360)
# A point that moved by less than this share of the scene's motion stays.
_STILL_SHARE = 0.4
# Fewer points than this say nothing of a cell.
_MIN_POINTS = 10
# Between cells a mask is interpolated linearly, and ends where it falls below
# this. At 1/4 every masked cell stays masked as a whole, its corners too.
_EDGE = 0.25
# A painted mask may be this far from twice as wide as high.
_MAX_ASPECT_OFF = 0.1
# Levels up to this share of the brightest one count as black: editors that
# keep a mask as JPEG in between leave noise in it.
_BLACK_SHARE = 0.1
_PNG_START = b'\x89PNG\r\n\x1a\n'


class ShapeError(errors.UserError):
  """A mask has another shape than panoramas have."""


def _cells(
  rays: Float[np.ndarray, '*b 3'], width: int, height: int
) -> tuple[np.ndarray, np.ndarray]:
  u, v = camera.direction_to_equirect(rays, width, height)
  return np.clip(v.astype(int), 0, height - 1), u.astype(int) % width


@dataclasses.dataclass(frozen=True, kw_only=True)
class Mask:
  """Cells of the sphere that are not used.

  Attributes:
    cells: rows of latitude from the top, columns of longitude; an
      equirectangular picture of any size.
  """

  cells: Bool[np.ndarray, 'h w']

  def holds(self, rays: Float[np.ndarray, '*b 3']) -> Bool[np.ndarray, '*b']:
    """Which directions are masked."""
    height, width = self.cells.shape
    return self.cells[_cells(rays, width, height)]

  @property
  def share(self) -> float:
    """Masked share of the sphere, by solid angle."""
    height = len(self.cells)
    latitude = (np.arange(height) + 0.5) / height * np.pi - np.pi / 2
    return float(np.average(self.cells.mean(axis=1), weights=np.cos(latitude)))

  def resized(self, width: int, height: int) -> 'Mask':
    """The same mask in other cells, its edge smooth.

    What was masked stays masked, and up to 3/4 of an old cell around it is
    masked too.
    """
    if self.cells.shape == (height, width):
      return self
    values = equirect.pad(self.cells.astype(np.uint8), 1).astype(np.float32)
    values = _interpolated(_interpolated(values, height).T, width).T
    return Mask(cells=values >= _EDGE)


def _interpolated(
  values: Float[np.ndarray, 'n m'], count: int
) -> Float[np.ndarray, 'c m']:
  """Values at `count` even places between the first and the last row.

  The first and the last row lie beyond the ends. Computed here since
  cv2.remap rounds places to 1/32.
  """
  place = (np.arange(count) + 0.5) * (len(values) - 2) / count + 0.5
  low = np.floor(place).astype(int)
  share = (place - low).astype(values.dtype)[:, None]
  return values[low] * (1 - share) + values[low + 1] * share


def below(latitude_deg: float) -> Mask:
  """Masks all cells that lie below `latitude_deg` under the horizon."""
  top_deg = np.arange(_GRID[1]) / _GRID[1] * 180 - 90
  rows = top_deg >= latitude_deg
  return Mask(cells=np.repeat(rows[:, None], _GRID[0], axis=1))


def outside(
  is_visible: Callable[[Float[np.ndarray, '*b 3']], Bool[np.ndarray, '*b']],
) -> Mask:
  """Masks what a camera never sees, to half a degree.

  Args:
    is_visible: says of unit directions in the axes of the panorama whether the
      camera sees them. A cell is masked unless all of its corners are seen.
  """
  width, height = _FINE_GRID
  u, v = np.meshgrid(
    np.arange(width + 1, dtype=np.float64),
    np.arange(height + 1, dtype=np.float64),
  )
  visible = is_visible(camera.equirect_to_direction(u, v, width, height))
  visible = visible[1:] & visible[:-1]
  return Mask(cells=~(visible[:, 1:] & visible[:, :-1]))


def read_mask(path: str | os.PathLike[str]) -> Mask:
  """The mask that a user painted over a panorama.

  Black is masked, as COLMAP has it (https://colmap.github.io/faq.html, "Mask
  image regions"), and so is what is transparent. Black is what is at most a
  tenth as bright, in its brightest channel, as the brightest level of the
  picture: 25 of 255, 6553 of 65535, and 0 where a mask has the levels 0 and 1.
  Transparent is what is at most a tenth opaque.

  Args:
    path: a PNG in the layout of the panorama, of any size; grey, black and
      white, a palette, or colour, of 8 or 16 bits, with or without
      transparency.

  Raises:
    ShapeError: it is not about twice as wide as high.
    errors.UserError: it is no such picture, masks all or nothing, or is so dark
      that black cannot be told from noise.
  """
  path = files.require_file(path, 'a PNG of what is not to be used')
  pixels = _read_png(path)
  height, width = pixels.shape[:2]
  if abs(width / height - 2) > _MAX_ASPECT_OFF:
    raise ShapeError(
      f'{path}: is {width} x {height}, but a mask covers the whole panorama '
      'and is twice as wide as high; paint it over one of its frames'
    )
  opaque = (pixels[..., 3:] > _BLACK_SHARE * np.iinfo(pixels.dtype).max).all(-1)
  masked = ~opaque | _is_black(path, pixels[..., :3].max(axis=-1), opaque)
  for fault, what in ((masked.all(), 'all'), (not masked.any(), 'nothing')):
    if fault:
      raise errors.UserError(
        f'{path}: masks {what}; black or transparent is masked, any other '
        'colour is not'
      )
  return Mask(cells=masked)


def _is_black(
  path: pathlib.Path,
  levels: Shaped[np.ndarray, 'h w'],
  opaque: Bool[np.ndarray, 'h w'],
) -> Bool[np.ndarray, 'h w']:
  """Which levels count as black, seen against the brightest opaque one."""
  brightest = int(levels[opaque].max(initial=0))
  is_dark = brightest <= _BLACK_SHARE * np.iinfo(levels.dtype).max
  # Two dark levels are the values of a label; more of them are noise.
  if is_dark and len(np.unique(levels[opaque])) > 2:
    raise errors.UserError(
      f'{path}: is dark everywhere (its brightest level is {brightest} of '
      f'{np.iinfo(levels.dtype).max}); paint white what is to be used'
    )
  return levels <= _BLACK_SHARE * brightest


def _read_png(path: pathlib.Path) -> Shaped[np.ndarray, 'h w c']:
  """Pixels RGB or RGBA, of 8 or 16 bits."""
  what = 'a PNG of what is not to be used'
  wanted = (
    'a mask is a PNG in the layout of the panorama, black where it is not to '
    'be used'
  )
  with open(files.require_file(path, what), 'rb') as file:
    if file.read(len(_PNG_START)) != _PNG_START:
      raise errors.UserError(f'{path}: no PNG picture; {wanted}')
  try:
    return user_images.read_stored(path, what)
  except errors.UserError as error:
    reason = str(error).removeprefix(f'{path}: ')
    raise errors.UserError(
      f'{path}: no PNG picture that can be used: {reason}; {wanted}'
    ) from error


class Persistence:
  """Counts, over all steps, which cells stay while the scene moves."""

  def __init__(self) -> None:
    self._followed = np.zeros(_GRID[::-1])
    self._stayed = np.zeros(_GRID[::-1])

  def add(
    self,
    before: Float[np.ndarray, 'n 3'],
    after: Float[np.ndarray, 'n 3'],
    obeys: Bool[np.ndarray, 'n'],
  ) -> None:
    """Adds points that were followed from one keyframe to the next.

    Args:
      before: their directions in the first frame.
      after: and in the second.
      obeys: whether they move as the static scene does.
    """
    moved = np.linalg.norm(after - before, axis=1)
    scene = np.median(moved[obeys]) if obeys.any() else 0.0
    stayed = ~obeys & (moved < _STILL_SHARE * scene)
    cells = _cells(before, *_GRID)
    np.add.at(self._followed, cells, 1)
    np.add.at(self._stayed, cells, stayed)

  def mask(self, min_share: float) -> Mask:
    """Cells in which at least `min_share` of the points stayed."""
    # Each cell is judged together with its neighbours.
    followed, stayed = (
      cv2.blur(
        np.pad(counts, ((0, 0), (1, 1)), mode='wrap'),
        (3, 3),
        borderType=cv2.BORDER_REPLICATE,
      )[:, 1:-1]
      * 9
      for counts in (self._followed, self._stayed)
    )
    return Mask(
      cells=(followed >= _MIN_POINTS)
      & (stayed >= min_share * np.maximum(followed, 1))
    )


def union(first: Mask, second: Mask) -> Mask:
  """What either masks, in the cells of the finer one."""
  height, width = np.maximum(first.cells.shape, second.cells.shape).tolist()
  first, second = (mask.resized(width, height) for mask in (first, second))
  return Mask(cells=first.cells | second.cells)
