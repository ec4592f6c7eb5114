"""How wide cameras see, where nothing but their poses can be used."""

import dataclasses

import numpy as np


@dataclasses.dataclass(frozen=True)
class Lens:
  """What a file tells of a camera beside its pose.

  Attributes:
    fov_deg: full field of view of the square middle of its picture; None where
      it is not told, or the lens is no pinhole's but for a distortion.
    is_pinhole: whether it neither distorts nor is a fisheye or a panorama.
  """

  fov_deg: float | None = None
  is_pinhole: bool = True


def square_fov_deg(
  focal_px: tuple[float, float], size_px: tuple[float, float]
) -> float | None:
  """Of the square middle of a picture: what both of its sides have.

  Args:
    focal_px: along x and y.
    size_px: width and height.

  Returns:
    None where these are not all positive and finite.
  """
  if not all(0 < length < np.inf for length in (*focal_px, *size_px)):
    return None
  half_side = min(np.divide(size_px, focal_px)) / 2
  return float(np.rad2deg(2 * np.arctan(half_side)))
