"""The field of view of a photo, from lines that are parallel or square to others.

Rooms and buildings have three directions at right angles. Images of lines of
one direction meet in its vanishing point, and where two directions have one at
a finite place, v1 and v2 off the principal point, the focal length is known:
v1 . v2 + f^2 = 0 (Caprile and Torre, "Using vanishing points for camera
calibration", 1990). Lines are found by LSD (von Gioi et al., 2010, OpenCV's);
triples of directions by RANSAC over pairs of pairs of them, each judged by the
length of the lines that go with one of its three; then rotation and focal
length are refined over these together, which also tells how sure the focal
length is. The principal point is the middle of the photo: of one that was
cropped elsewhere the answer is wrong, and nothing in it shows that.
"""

import dataclasses

import cv2
from jaxtyping import Bool, Float, UInt8
import numpy as np
from scipy import optimize
from scipy.spatial.transform import Rotation

# Smaller photos have no lines; longer ones are made smaller.
_LEAST_PX, _MOST_PX = 200, 800
_TRIALS = 4000
# Segments shorter than this share of the diagonal point anywhere.
_LEAST_LENGTH = 0.03
_MOST_SEGMENTS = 300
# A line goes with a direction up to here.
_ERROR_RAD = np.deg2rad(1.5)
# Of the shorter side: what lenses of phones, cameras and records have.
_FOV_DEG = (15.0, 120.0)
# Focal lengths whose logarithms differ by less are one.
_OTHER_FOCAL = 0.15
# What is believed; chosen on views of worlds whose field of view is known.
_LEAST_SHARE, _MOST_RIVAL, _MOST_SIGMA_DEG = 0.6, 0.92, 2.0
_LEAST_LINES, _LEAST_PART = 5, 0.1


@dataclasses.dataclass(frozen=True, kw_only=True)
class Estimate:
  """A field of view and how sure it is.

  Attributes:
    fov_deg: of the shorter side.
    sigma_deg: one standard error of it, if the lines are what they are taken
      for.
    share: of the length of all lines, what goes with the three directions.
    rival: what goes with the best triple of another focal length, as a share of
      what goes with this one: where both are alike, lines do not tell.
    counts: lines of each direction.
  """

  fov_deg: float
  sigma_deg: float
  share: float
  rival: float
  counts: tuple[int, int, int]

  @property
  def is_sure(self) -> bool:
    """Whether it is to be relied on; odin_jax/README.md has how often."""
    return (
      self.share >= _LEAST_SHARE
      and self.rival <= _MOST_RIVAL
      # Any two directions are at right angles for some focal length; the third
      # one has to say so.
      and min(self.counts) >= max(_LEAST_LINES, sum(self.counts) * _LEAST_PART)
      and self.sigma_deg <= _MOST_SIGMA_DEG
      and _FOV_DEG[0] < self.fov_deg < _FOV_DEG[1]
    )


@dataclasses.dataclass(frozen=True)
class _Lines:
  """Segments, in units of half the shorter side from the middle.

  Attributes:
    middle: of each.
    along: unit vector.
    length: of each.
  """

  middle: Float[np.ndarray, 'n 2']
  along: Float[np.ndarray, 'n 2']
  length: Float[np.ndarray, 'n']

  @property
  def homogeneous(self) -> Float[np.ndarray, 'n 3']:
    """Normals of the lines: n . (x, y, 1) = 0 on them."""
    normal = np.stack([-self.along[:, 1], self.along[:, 0]], 1)
    return np.column_stack([normal, -(normal * self.middle).sum(1)])


def estimate(image: UInt8[np.ndarray, 'h w 3']) -> Estimate | None:
  """The field of view of a photo; None where its lines do not tell it."""
  scale = min(1.0, _MOST_PX / max(image.shape[:2]))
  if min(image.shape[:2]) * scale < _LEAST_PX:
    return None
  lines = _segments(image, scale)
  if len(lines.length) < 12:
    return None
  start = _search(lines)
  return None if start is None else _refined(lines, *start)


def _segments(image: UInt8[np.ndarray, 'h w 3'], scale: float) -> _Lines:
  grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
  if scale < 1:
    grey = cv2.resize(
      grey, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA
    )
  height, width = grey.shape
  found = cv2.createLineSegmentDetector().detect(grey)[0]
  ends = np.zeros(0) if found is None else found.astype(np.float64)
  half = min(height, width) / 2
  # OpenCV counts pixel centres from 0.
  ends = (ends.reshape(-1, 2, 2) + 0.5 - [width / 2, height / 2]) / half
  step = ends[:, 1] - ends[:, 0]
  length = np.linalg.norm(step, axis=1)
  least = _LEAST_LENGTH * np.hypot(height, width) / half
  keep = np.argsort(-length)[:_MOST_SEGMENTS]
  keep = keep[length[keep] >= least]
  return _Lines(
    ends[keep].mean(1), step[keep] / length[keep, None], length[keep]
  )


def _errors(
  lines: _Lines, points: Float[np.ndarray, '*b 3']
) -> Float[np.ndarray, '*b n']:
  """Angles between lines and where, from their middles, points lie."""
  towards = points[..., None, :2] - points[..., None, 2:] * lines.middle
  across = (
    towards[..., 0] * lines.along[:, 1] - towards[..., 1] * lines.along[:, 0]
  )
  size = np.maximum(np.linalg.norm(towards, axis=-1), 1e-12)
  return np.arcsin(np.clip(across / size, -1, 1))


def _search(
  lines: _Lines,
) -> tuple[Float[np.ndarray, '3 3'], float, float] | None:
  """Directions (rows) and focal length that most lines go with; `rival`."""
  rng = np.random.default_rng(0)
  count = len(lines.length)
  chance = lines.length / lines.length.sum()
  of_pairs = rng.choice(count, (_TRIALS, 2, 2), p=chance)
  normals = lines.homogeneous[of_pairs]
  points = np.cross(normals[:, :, 0], normals[:, :, 1])
  first, second = points[:, 0], points[:, 1]
  with np.errstate(divide='ignore', invalid='ignore'):
    square = -(first[:, :2] * second[:, :2]).sum(1) / (
      first[:, 2] * second[:, 2]
    )
  limits = [1 / np.tan(np.deg2rad(fov) / 2) for fov in _FOV_DEG]
  good = (square > limits[1] ** 2) & (square < limits[0] ** 2)
  if not good.any():
    return None
  focal = np.sqrt(square[good])
  to_rays = np.stack([1 / focal, 1 / focal, np.ones_like(focal)], -1)
  axes = [_unit(x[good] * to_rays) for x in (first, second)]
  axes.append(_unit(np.cross(*axes)))
  rays = np.stack(axes, 1)
  near = np.abs(_errors(lines, rays / to_rays[:, None])) < _ERROR_RAD
  scores = (near.any(1) * lines.length).sum(1)
  best = int(np.argmax(scores))
  others = scores[np.abs(np.log(focal / focal[best])) > _OTHER_FOCAL]
  rival = float(others.max(initial=0) / scores[best])
  return rays[best], float(focal[best]), rival


def _unit(x: Float[np.ndarray, '*b 3']) -> Float[np.ndarray, '*b 3']:
  return x / np.maximum(np.linalg.norm(x, axis=-1, keepdims=True), 1e-12)


def _members(
  lines: _Lines, axes: Float[np.ndarray, '3 3'], focal: float
) -> Bool[np.ndarray, '3 n']:
  """Which lines go with which direction; with the nearest alone."""
  apart = np.abs(_errors(lines, axes * [focal, focal, 1]))
  nearest = np.arange(3)[:, None] == apart.argmin(0)
  return nearest & (apart < _ERROR_RAD)


def _fit(
  lines: _Lines,
  axes: Float[np.ndarray, '3 3'],
  focal: float,
  members: Bool[np.ndarray, '3 n'],
) -> optimize.OptimizeResult:
  """A turn of the axes (a rotation vector) and the logarithm of the focal
  length for which the members' lines go best with their directions."""
  weights = np.sqrt(np.tile(lines.length, (3, 1))[members])

  def residuals(x: Float[np.ndarray, '4']) -> Float[np.ndarray, 'm']:
    rays = axes @ Rotation.from_rotvec(x[:3]).as_matrix().T
    errors = _errors(lines, rays * [np.exp(x[3]), np.exp(x[3]), 1])
    return errors[members] * weights

  return optimize.least_squares(
    residuals,
    [0, 0, 0, np.log(focal)],
    loss='soft_l1',
    f_scale=_ERROR_RAD / 3,
  )


def _refined(
  lines: _Lines, axes: Float[np.ndarray, '3 3'], focal: float, rival: float
) -> Estimate | None:
  """Least squares over rotation and focal length."""
  if np.linalg.det(axes) < 0:
    axes = axes * [[1], [1], [-1]]
  for _ in range(3):
    members = _members(lines, axes, focal)
    if members.sum() < 8:
      return None
    found = _fit(lines, axes, focal, members)
    axes = axes @ Rotation.from_rotvec(found.x[:3]).as_matrix().T
    focal = float(np.exp(found.x[3]))
  members = _members(lines, axes, focal)
  if members.sum() < 8:
    return None
  information = found.jac.T @ found.jac
  variance = 2 * found.cost / max(members.sum() - 4, 1)
  with np.errstate(all='ignore'):
    sigma = np.sqrt(variance * np.linalg.pinv(information)[3, 3])
  fov = 2 * np.arctan(1 / focal)
  # d fov / d log f.
  slope = 2 * focal / (1 + focal**2)
  return Estimate(
    fov_deg=float(np.rad2deg(fov)),
    sigma_deg=float(np.rad2deg(slope * sigma)),
    share=float((members.any(0) * lines.length).sum() / lines.length.sum()),
    rival=rival,
    counts=tuple(int(row.sum()) for row in members),
  )
