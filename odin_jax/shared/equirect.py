"""Equirectangular images across the seam and the poles."""

from jaxtyping import Shaped
import numpy as np


def pad(
  panorama: Shaped[np.ndarray, 'h w *c'], margin_px: int
) -> Shaped[np.ndarray, 'H W *c']:
  """Continues a panorama by `margin_px` on every side, as the sphere does.

  Columns wrap around. Past a pole the image goes on half a turn away, upside
  down, so those rows are flipped and rolled by half the width.

  Args:
    panorama: an equirectangular image of even width.
    margin_px: at most the height.
  """
  half_turn = panorama.shape[1] // 2
  top = np.roll(panorama[:margin_px][::-1], half_turn, axis=1)
  bottom = np.roll(panorama[-margin_px:][::-1], half_turn, axis=1)
  rows = np.concatenate([top, panorama, bottom])
  return np.concatenate([rows[:, -margin_px:], rows, rows[:, :margin_px]], 1)
