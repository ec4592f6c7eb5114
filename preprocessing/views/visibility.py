"""What of the sphere can be used: what the camera saw, and is scene."""

import numpy as np

from preprocessing import panorama
from preprocessing.reading import projections
from preprocessing.solving import masks
from preprocessing.views import alignment

# A view is asked for on a grid of so many rays.
_ASKED_PX = 32


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


def of_views(
  layout: projections.Layout, fov_deg: float, width_px: int
) -> alignment.Visibility | None:
  """Whether a camera of this layout sees all that a view shows."""
  if layout.full_sphere:
    return None
  # The outermost rays asked about are those of the view's borders, and of what
  # interpolation reads beyond them.
  border = np.tan(np.deg2rad(fov_deg) / 2) * _ASKED_PX / (_ASKED_PX - 1)
  asked_deg = 2 * np.rad2deg(np.arctan(border))
  asked_deg += 2 * panorama.MARGIN_PX * 360 / width_px

  def is_visible(angles: alignment.Angles) -> bool:
    directions = panorama.view_directions(
      yaw_deg=angles.yaw_deg,
      pitch_deg=angles.pitch_deg,
      fov_deg=float(min(asked_deg, 179.0)),
      size_px=_ASKED_PX,
    )
    return bool(np.all(layout.sees(directions)))

  return is_visible
