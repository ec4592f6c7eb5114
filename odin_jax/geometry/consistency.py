"""Whether views along a path show one scene, by their own poses.

Thresholded symmetric epipolar distance (TSED; Yu, Forghani, Derpanis, Brubaker,
"Long-Term Photometric Consistent Novel View Synthesis with Diffusion Models",
ICCV 2023; https://github.com/YorkUCVIL/Photoconsistent-NVS,
src/scripts/compute_sed.py and eval_consistency.py). For a match of pixel p in
one view and q in the other and the line F p on which q has to lie,

  SED = (distance of q from F p + distance of p from F^T q) / 2     in pixels

and a pair of views is consistent if it has T_matches matches or more whose
median SED is below T_error. TSED is the share of consistent pairs. Theirs are
neighbouring views of 256 px, T_error = 2, T_matches = 10, and these settings
here too.

What it does not tell is how far along its line a match lies: copies of one view
are consistent wherever cameras do not turn. So the shift of matches is told
too. And where a path comes back to a pose, both views should be the same:
their PSNR tells that.
"""

import dataclasses
from typing import Callable, NamedTuple, Sequence

import cv2
from jaxtyping import Float, UInt8
import numpy as np

from odin_jax.geometry import matching
from odin_jax.shared import camera, psnr

# Cameras this near, of the distance between the farthest, stand in one place;
# those that also turn by less have one pose.
_SAME_PLACE, _SAME_TURN_DEG = 1e-4, 0.01

Image = UInt8[np.ndarray, 'h w 3']
Matrix = Float[np.ndarray, '3 3']
Pose = Float[np.ndarray, '3 4']


@dataclasses.dataclass(frozen=True, kw_only=True)
class View:
  """A picture and its camera.

  Attributes:
    name: of its file.
    read: gives the picture, sRGB: all of a path may be more than memory holds.
    size: its width and height.
    intrinsics: of the picture.
    camera2scene: its pose.
  """

  name: str
  read: Callable[[], Image]
  size: tuple[int, int]
  intrinsics: Matrix
  camera2scene: Pose


class Seen(NamedTuple):
  """What is matched of a view.

  Attributes:
    features: at the size at which views are matched.
    intrinsics: of that size.
    camera2scene: pose of the view.
  """

  features: matching.Features
  intrinsics: Matrix
  camera2scene: Pose


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rule:
  """When a pair is consistent; the defaults are the paper's.

  Attributes:
    threshold_px: T_error.
    min_matches: T_matches.
    size_px: shorter side of views when they are matched; pixels are of that.
  """

  threshold_px: float = 2.0
  min_matches: int = 10
  size_px: int = 256


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pair:
  """What came of two views; None where there are no matches.

  Attributes:
    views: their places along the path.
    matches: how many.
    median_px: median SED.
    share: of the matches whose SED is below the threshold.
    thresholded_mean_px: mean of SED, or the threshold where that is less.
    shift_px: median distance of the matched points, as if both views were one.
    consistent: None where both cameras stand in one place: there are no
      epipolar lines then, and the pair is not counted.
  """

  views: tuple[int, int]
  matches: int
  median_px: float | None
  share: float | None
  thresholded_mean_px: float | None
  shift_px: float | None
  consistent: bool | None


class Return(NamedTuple):
  """Two views of one pose.

  Attributes:
    views: their places along the path.
    psnr: of the one against the other, in dB; that of equal pictures is
      infinite, for which 138.1 stands.
  """

  views: tuple[int, int]
  psnr: float


def look(view: View, size_px: int) -> Seen:
  """The features of a view whose shorter side is made `size_px`.

  By area averages where that is smaller, cubic where it is larger.
  """
  width, height = view.size
  factor = size_px / min(width, height)
  size = (round(width * factor), round(height * factor))
  image = cv2.resize(
    view.read(),
    size,
    interpolation=cv2.INTER_AREA if factor < 1 else cv2.INTER_CUBIC,
  )
  factors = np.array([size[0] / width, size[1] / height, 1.0])
  return Seen(
    features=matching.features(image),
    intrinsics=view.intrinsics * factors[:, None],
    camera2scene=view.camera2scene,
  )


def fundamental_matrix(a: Seen | View, b: Seen | View) -> Matrix:
  """F with `pixel_b^T F pixel_a == 0` for pixels of one scene point."""
  essential = camera.essential_matrix(
    camera.relative(b.camera2scene, a.camera2scene)
  )
  inverse_a, inverse_b = (np.linalg.inv(view.intrinsics) for view in (a, b))
  return inverse_b.T @ essential @ inverse_a


def _from_lines(
  points: Float[np.ndarray, 'n 2'], lines: Float[np.ndarray, 'n 3']
) -> Float[np.ndarray, 'n']:
  """Distance of points from lines; 0 where a line is not determined.

  That is the line of the epipole, through which all lines go.
  """
  value = np.sum(lines[:, :2] * points, axis=1) + lines[:, 2]
  steepness = np.linalg.norm(lines[:, :2], axis=1)
  return np.where(
    steepness > 0, np.abs(value) / np.maximum(steepness, 1e-300), 0.0
  )


def symmetric_epipolar_distance(
  matrix: Matrix,
  points_a: Float[np.ndarray, 'n 2'],
  points_b: Float[np.ndarray, 'n 2'],
) -> Float[np.ndarray, 'n']:
  """SED of matches in pixels.

  Args:
    matrix: F with `pixel_b^T F pixel_a == 0`.
    points_a: (u, v) in one view.
    points_b: in the other.
  """
  ones = np.ones((len(points_a), 1))
  lines_b = np.hstack([points_a, ones]) @ matrix.T
  lines_a = np.hstack([points_b, ones]) @ matrix
  return (_from_lines(points_a, lines_a) + _from_lines(points_b, lines_b)) / 2


def _extent(views: Sequence[Seen | View]) -> float:
  """How far cameras reach from the first one."""
  centres = np.stack([view.camera2scene[:, 3] for view in views])
  return float(np.linalg.norm(centres - centres[0], axis=1).max())


def stray(views: Sequence[View]) -> View | None:
  """A view so far from the others that these stand in one place beside it.

  A pose that was solved wrongly; None where there is none.
  """
  centres = np.stack([view.camera2scene[:, 3] for view in views])
  # A stray one may be as far as floats go.
  with np.errstate(over='ignore'):
    away = np.linalg.norm(centres - np.median(centres, axis=0), axis=1)
  farthest = int(np.argmax(away))
  is_stray = 0 < np.median(away) <= _SAME_PLACE * away[farthest]
  return views[farthest] if is_stray else None


def pairs(views: list[Seen], rule: Rule, stride: int) -> list[Pair]:
  """Every view and the one `stride` places later.

  Args:
    views: along a path.
    rule: when a pair is consistent.
    stride: 1 for neighbours.
  """
  nearest = _SAME_PLACE * _extent(views)
  results = []
  for first in range(len(views) - stride):
    last = first + stride
    a, b = views[first], views[last]
    points_a, points_b = matching.matches(a.features, b.features)
    step = np.linalg.norm(a.camera2scene[:, 3] - b.camera2scene[:, 3])
    # Also where all cameras stand in one place.
    has_lines = bool(step > nearest)
    shift = np.linalg.norm(points_a - points_b, axis=1)
    distance = np.zeros(0)
    if has_lines:
      matrix = fundamental_matrix(a, b)
      distance = symmetric_epipolar_distance(matrix, points_a, points_b)
    results.append(_pair((first, last), distance, shift, rule, has_lines))
  return results


def _pair(
  views: tuple[int, int],
  distance: Float[np.ndarray, 'k'],
  shift: Float[np.ndarray, 'n'],
  rule: Rule,
  has_lines: bool,
) -> Pair:
  count, threshold = len(shift), rule.threshold_px
  median = float(np.median(distance)) if distance.size else None
  is_near = median is not None and median < threshold
  return Pair(
    views=views,
    matches=count,
    median_px=median,
    share=float(np.mean(distance < threshold)) if distance.size else None,
    thresholded_mean_px=float(np.minimum(distance, threshold).mean())
    if distance.size
    else None,
    shift_px=float(np.median(shift)) if count else None,
    consistent=count >= rule.min_matches and is_near if has_lines else None,
  )


def tsed(results: list[Pair]) -> float | None:
  """The share of consistent pairs; None where none has epipolar lines."""
  counted = [pair.consistent for pair in results if pair.consistent is not None]
  return float(np.mean(counted)) if counted else None


def returns(views: list[View]) -> list[Return]:
  """Views at a pose where the path was before, each against the first there.

  Views of another size or with another lens than that one are left out.
  """
  nearest = _SAME_PLACE * _extent(views)
  poses = np.stack([view.camera2scene for view in views])
  results = []
  for last in range(1, len(views)):
    turn_deg = camera.rotation_angle_deg(
      np.swapaxes(poses[:last, :, :3], 1, 2) @ poses[last, :, :3]
    )
    step = np.linalg.norm(poses[:last, :, 3] - poses[last, :, 3], axis=1)
    there = np.flatnonzero((turn_deg < _SAME_TURN_DEG) & (step <= nearest))
    for first in there.tolist():
      if _is_same_lens(views[first], views[last]):
        value = psnr.psnr_db(views[first].read(), views[last].read())
        results.append(Return((first, last), value))
        break
  return results


def _is_same_lens(a: View, b: View) -> bool:
  return a.size == b.size and np.allclose(a.intrinsics, b.intrinsics)
