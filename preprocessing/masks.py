"""What is never scene: the holder and the stand below the camera.

Two rules. By latitude: everything below a given angle. By persistence: cells
of the image whose points, as long as they can be followed, stay nearly where
they are while the scene moves, and do not obey its motion; a hand, a hat, a
watermark. A distant point in the direction of travel also stays, but it obeys.
"""

import dataclasses

import cv2
from jaxtyping import Bool, Float
import numpy as np

from odin_jax.shared import camera

# Columns and rows of cells; 5 degrees at the equator.
_GRID = (72, 36)
# A point that moved by less than this share of the scene's motion stays.
_STILL_SHARE = 0.4
# Fewer points than this say nothing of a cell.
_MIN_POINTS = 10


def _cells(rays: Float[np.ndarray, 'n 3']) -> tuple[np.ndarray, np.ndarray]:
  u, v = camera.direction_to_equirect(rays, *_GRID)
  return (
    np.clip(v.astype(int), 0, _GRID[1] - 1),
    u.astype(int) % _GRID[0],
  )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Mask:
  """Cells of the sphere that are not used.

  Attributes:
    cells: [36, 72], rows of latitude from the top.
  """

  cells: Bool[np.ndarray, 'h w']

  def holds(self, rays: Float[np.ndarray, 'n 3']) -> Bool[np.ndarray, 'n']:
    """Which directions are masked."""
    return self.cells[_cells(rays)]

  @property
  def share(self) -> float:
    """Masked share of the sphere, by solid angle."""
    latitude = (np.arange(_GRID[1]) + 0.5) / _GRID[1] * np.pi - np.pi / 2
    return float(np.average(self.cells.mean(axis=1), weights=np.cos(latitude)))


def below(latitude_deg: float) -> Mask:
  """Masks all cells that lie below `latitude_deg` under the horizon."""
  top_deg = np.arange(_GRID[1]) / _GRID[1] * 180 - 90
  rows = top_deg >= latitude_deg
  return Mask(cells=np.repeat(rows[:, None], _GRID[0], axis=1))


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
    cells = _cells(before)
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


def union(one: Mask, other: Mask) -> Mask:
  """What either masks."""
  return Mask(cells=one.cells | other.cells)
