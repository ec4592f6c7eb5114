"""What of the sphere can be used: what the camera saw, and is scene."""

import numpy as np

from preprocessing import panorama
from preprocessing.reading import projections
from preprocessing.solving import masks
from preprocessing.views import alignment
from preprocessing.writing import rejections

# A view is asked for on a grid of so many rays, and counted on a finer one.
_ASKED_PX = 32
_COUNTED_PX = 64


def known_mask(path: str, layout: projections.Layout) -> masks.Mask | None:
  """What is known not to be scene before anything is looked at."""
  parts = []
  if path:
    parts.append(masks.read_mask(path))
  if not layout.full_sphere:
    parts.append(masks.outside(layout.sees))
  if not parts:
    return None
  return parts[0] if len(parts) == 1 else masks.union(*parts)


class Sight:
  """Which views may be cut, and how much of each is scene.

  Args:
    layout: what the camera saw.
    mask: what is never scene, as it is exported; cells as panoramas have them.
    rules: field of view of all views, and how much of one may be masked.
  """

  def __init__(
    self,
    layout: projections.Layout,
    mask: masks.Mask,
    rules: alignment.ViewRules,
  ):
    self._layout = layout
    self._mask = mask if mask.cells.any() else None
    self._fov_deg = rules.fov_deg
    self._max_masked_share = rules.max_masked_share
    self._free_deg = _free_band_deg(mask)
    # The outermost rays asked about are those of the view's borders, and of
    # what interpolation reads beyond them.
    border = np.tan(np.deg2rad(rules.fov_deg) / 2) * _ASKED_PX / (_ASKED_PX - 1)
    asked_deg = 2 * np.rad2deg(np.arctan(border))
    asked_deg += 2 * panorama.MARGIN_PX * 360 / mask.cells.shape[1]
    self._asked_deg = float(min(asked_deg, 179.0))

  def refuse(self, angles: alignment.Angles) -> rejections.Reason | None:
    """Why no view with these angles may be cut; None where one may."""
    if not self._sees(angles):
      return rejections.Reason.NOT_SEEN
    if 1 - self.unmasked_share(angles) > self._max_masked_share:
      return rejections.Reason.MASKED
    return None

  def unmasked_share(self, angles: alignment.Angles) -> float:
    """Share of a view's pixels that show what may be scene.

    Counted on a grid of 64 x 64 of the view's rays: good to about a hundredth.
    """
    if self._mask is None or self._is_free(angles):
      return 1.0
    directions = panorama.view_directions(
      yaw_deg=angles.yaw_deg,
      pitch_deg=angles.pitch_deg,
      fov_deg=self._fov_deg,
      size_px=_COUNTED_PX,
    )
    return float(1 - self._mask.holds(directions).mean())

  def _is_free(self, angles: alignment.Angles) -> bool:
    """Whether a view lies where nothing is masked at any longitude."""
    # Its edges are nearest to the poles in their middle.
    top, bottom = (
      edge - angles.pitch_deg
      for edge in (-self._fov_deg / 2, self._fov_deg / 2)
    )
    return self._free_deg[0] <= top and bottom <= self._free_deg[1]

  def _sees(self, angles: alignment.Angles) -> bool:
    if self._layout.full_sphere:
      return True
    directions = panorama.view_directions(
      yaw_deg=angles.yaw_deg,
      pitch_deg=angles.pitch_deg,
      fov_deg=self._asked_deg,
      size_px=_ASKED_PX,
    )
    return bool(np.all(self._layout.sees(directions)))


def _free_band_deg(mask: masks.Mask) -> tuple[float, float]:
  """The latitudes around the horizon, positive down, where nothing is masked.

  (0, 0) where something at the horizon is.
  """
  height = len(mask.cells)
  masked = np.flatnonzero(mask.cells.any(axis=1))
  above, below = masked[masked < height / 2], masked[masked >= height // 2]
  first, end = above.max(initial=-1) + 1, below.min(initial=height)
  low, high = (row / height * 180 - 90 for row in (first, end))
  return float(min(low, 0.0)), float(max(high, 0.0))
