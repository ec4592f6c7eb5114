"""A path as a picture: its cameras from above and from the side."""

import pathlib

import cv2
from jaxtyping import Float, UInt8
import numpy as np

from odin_jax.shared import camera, image_files

NAME = 'path.png'
_PANEL_PX, _MARGIN_PX = 480, 48
_PAPER, _INK, _FIRST = (250, 250, 248), (70, 90, 120), (200, 60, 30)
# Of the scene: what across and down of a panel are.
_PANELS = {
  'from above: z up, x right': (0, 2, -1),
  'from the side: y down, z right': (2, 1, 1),
}


def draw(
  camera2scene: Float[np.ndarray, 'n 3 4'], fov_deg: float
) -> UInt8[np.ndarray, 'h w 3']:
  """Cameras with their fields of view, the first one in red.

  A bar has the length of one scene unit, the median distance of what the image
  shows, or of as much of it as fits.
  """
  places = camera2scene[:, :, 3]
  extent = max(0.2, float(np.ptp(places, axis=0).max()) * 1.2)
  depth = 0.12 * extent
  half = depth * np.tan(np.deg2rad(min(fov_deg, 120.0)) / 2)
  corners = np.array(
    [
      [x * half, y * half, depth]
      for x, y in ((-1, -1), (1, -1), (1, 1), (-1, 1))
    ]
  )
  in_scene = camera.transform(
    camera2scene, np.broadcast_to(corners, (len(places), 4, 3))
  )
  middle = (places.min(0) + places.max(0)) / 2
  px_per_unit = (_PANEL_PX - 2 * _MARGIN_PX) / (extent + 2 * depth)
  return np.concatenate(
    [
      _panel(title, axes, places, in_scene, middle, px_per_unit)
      for title, axes in _PANELS.items()
    ],
    axis=1,
  )


def _panel(
  title: str,
  axes: tuple[int, int, int],
  places: Float[np.ndarray, 'n 3'],
  corners: Float[np.ndarray, 'n 4 3'],
  middle: Float[np.ndarray, '3'],
  px_per_unit: float,
) -> UInt8[np.ndarray, 'h w 3']:
  across, down, sign = axes

  def pixels(points: Float[np.ndarray, 'm 3']) -> np.ndarray:
    offset = (points - middle) * px_per_unit
    place = np.stack([offset[:, across], sign * offset[:, down]], -1)
    return np.round(place + _PANEL_PX / 2).astype(np.int32)

  image = np.full((_PANEL_PX, _PANEL_PX, 3), _PAPER, np.uint8)
  cv2.polylines(image, [pixels(places)], False, _INK, 1, cv2.LINE_AA)
  # The first one last: it lies on top.
  for index in range(len(places))[::-1]:
    colour = _INK if index else _FIRST
    tip, of_corners = pixels(places[index][None]), pixels(corners[index])
    cv2.polylines(image, [of_corners], True, colour, 1, cv2.LINE_AA)
    for corner in of_corners:
      cv2.line(image, tip[0].tolist(), corner.tolist(), colour, 1, cv2.LINE_AA)
    cv2.circle(image, tip[0].tolist(), 3, colour, -1, cv2.LINE_AA)
  length = _bar(px_per_unit)
  end = _MARGIN_PX // 2 + round(length * px_per_unit)
  y = _PANEL_PX - 16
  cv2.line(image, (_MARGIN_PX // 2, y), (end, y), _INK, 2)
  for text, place in (
    (f'{length:g}', (end + 6, y + 5)),
    (title, (_MARGIN_PX // 2, 22)),
  ):
    cv2.putText(
      image, text, place, cv2.FONT_HERSHEY_SIMPLEX, 0.45, _INK, 1, cv2.LINE_AA
    )
  return image


def _bar(px_per_unit: float) -> float:
  """The longest of 1, 0.5, 0.2, 0.1, ... that is not half of the panel."""
  return next(
    factor * 10.0**power
    for power in range(6, -9, -1)
    for factor in (5, 2, 1)
    if factor * 10.0**power <= min(1.0, _PANEL_PX / 2 / px_per_unit)
  )


def write(
  output: pathlib.Path, camera2scene: Float[np.ndarray, 'n 3 4'], fov_deg: float
) -> None:
  """Writes it as path.png."""
  image_files.write(output / NAME, draw(camera2scene, fov_deg))
