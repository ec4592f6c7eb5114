"""Views in float64, by the definition of their interpolation."""

import numpy as np

from odin_jax.shared import camera, equirect

# Of Keys' kernel, as OpenCV has it.
_SHARPNESS = -0.75
_PADDING_PX = 4


def cubic(distance):
  """R. Keys, "Cubic convolution interpolation", 1981, equation 4."""
  a, t = _SHARPNESS, np.abs(distance)
  near = (a + 2) * t**3 - (a + 3) * t**2 + 1
  far = a * (t**3 - 5 * t**2 + 8 * t - 4)
  return np.where(t <= 1, near, np.where(t < 2, far, 0.0))


def linear(distance):
  """Weight of a pixel so far away in bilinear interpolation."""
  return np.maximum(0.0, 1 - np.abs(distance))


def view(image, yaw_deg, pitch_deg, fov_deg, size_px, kernel=cubic):
  """The view that `panorama.cut_view` rounds, without averaging."""
  rays = camera.view_rays(fov_deg, size_px)
  rays = rays @ camera.view2frame_rotation(yaw_deg, pitch_deg).T
  height, width = image.shape[:2]
  u, v = camera.direction_to_equirect(rays, width, height)
  padded = equirect.pad(image, _PADDING_PX).astype(np.float64)
  # Places between pixel centres, counted from the first one.
  x, y = u + _PADDING_PX - 0.5, v + _PADDING_PX - 0.5
  column, row = np.floor(x).astype(int), np.floor(y).astype(int)
  total = 0.0
  for down in range(-1, 3):
    for right in range(-1, 3):
      weight = kernel(x - column - right) * kernel(y - row - down)
      total = total + weight[..., None] * padded[row + down, column + right]
  return np.clip(total, 0, 255)
