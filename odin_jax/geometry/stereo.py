"""Depth of one view from its neighbours with known poses: a plane sweep.

Every pixel of the reference view is tried at depths whose inverses are evenly
spaced. For the plane z = d of the reference camera, the homography

  H(d) = K (R + t [0 0 1] / d) K^-1,   x_neighbour = R @ x_reference + t

says where its pixels lie in a neighbour. The two images are compared by
zero-mean normalised cross-correlation (ZNCC) over a window and its colours, so
brightness and contrast may differ; of all neighbours the better half counts, so
what one of them does not see is forgiven (Kang, Szeliski, Chai, "Handling
occlusions in dense multi-view stereo", 2001). Costs are smoothed along image
lines (Hirschmueller, "Stereo processing by semi-global matching", 2008), and a
parabola through the best plane and its two neighbours gives the depth between
planes.
"""

import dataclasses

import cv2
from jaxtyping import Bool, Float, Float32, UInt8
import numpy as np

from odin_jax.shared import camera

Costs = Float32[np.ndarray, 'h w d']
# Of colours in [0, 1]; windows with less contrast than this say nothing.
_NOISE_VARIANCE = 1e-4


@dataclasses.dataclass(frozen=True, kw_only=True)
class Views:
  """Square views with one field of view.

  Attributes:
    images: sRGB.
    camera2scene: pose of every view.
    fov_deg: full field of view.
  """

  images: UInt8[np.ndarray, 'n s s 3']
  camera2scene: Float[np.ndarray, 'n 3 4']
  fov_deg: float

  @property
  def size_px(self) -> int:
    return self.images.shape[1]

  @property
  def intrinsics(self) -> Float[np.ndarray, '3 3']:
    return camera.intrinsics(self.fov_deg, self.size_px)

  def a2b(self, a: int, b: int) -> Float[np.ndarray, '3 4']:
    """Pose that takes coordinates of camera a to those of camera b."""
    return camera.relative(self.camera2scene[b], self.camera2scene[a])


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sweep:
  """How depth is searched for; `SWEEP` has the usual values.

  Attributes:
    min_depth: nearest depth, scene units.
    max_depth: farthest depth.
    window_px: side of the comparison window, odd.
    num_neighbours: views compared with each reference view.
    baseline: distance that neighbours should have, as a share of the depth in
      the middle of the range (small: depth is vague; large: views differ).
    plane_step_px: two planes next to each other lie at most this far apart in
      any neighbour.
    max_planes: upper limit of the number of planes.
    small_penalty: cost of a change by one plane between pixels side by side.
    large_penalty: cost of a larger change.
  """

  min_depth: float
  max_depth: float
  window_px: int
  num_neighbours: int
  baseline: float
  plane_step_px: float
  max_planes: int
  small_penalty: float
  large_penalty: float


SWEEP = Sweep(
  min_depth=0.25,
  max_depth=10.0,
  window_px=7,
  num_neighbours=6,
  baseline=0.2,
  plane_step_px=0.7,
  max_planes=160,
  small_penalty=0.04,
  large_penalty=0.4,
)


def _grid_rays(views: Views, count: int) -> Float[np.ndarray, 'p 3']:
  """Rays with z = 1 on an even grid from edge to edge of a view."""
  grid = np.linspace(0, views.size_px, count)
  u, v = np.meshgrid(grid, grid)
  pixels = np.stack([u, v, np.ones_like(u)], -1).reshape(-1, 3)
  return pixels @ np.linalg.inv(views.intrinsics).T


def neighbours(views: Views, reference: int, sweep: Sweep) -> list[int]:
  """The views to compare with `reference`, best first.

  A view qualifies when it sees at least half of what the reference sees in
  the middle of the depth range, from another place; among those the baselines
  nearest to the wanted one win.
  """
  middle = np.sqrt(sweep.min_depth * sweep.max_depth)
  points = _grid_rays(views, 7) * middle
  rated = []
  for neighbour in range(len(views.images)):
    pose = views.a2b(reference, neighbour)
    baseline = float(np.linalg.norm(pose[:, 3])) / middle
    pixels, depth = camera.project(
      camera.transform(pose, points), views.intrinsics
    )
    inside = np.all((pixels >= 0) & (pixels <= views.size_px), axis=-1)
    if baseline > 1e-3 and np.mean(inside & (depth > 0)) >= 0.5:
      rated.append((abs(np.log(baseline / sweep.baseline)), neighbour))
  return [neighbour for _, neighbour in sorted(rated)[: sweep.num_neighbours]]


def plane_depths(
  views: Views, reference: int, neighbour_views: list[int], sweep: Sweep
) -> Float[np.ndarray, 'd']:
  """Depths of the planes, far to near, evenly spaced in inverse depth.

  Their number follows from the widest shift that the depth range causes in
  any of the neighbours.
  """
  size = views.size_px
  rays = _grid_rays(views, 5)
  shift_px = 1.0
  for neighbour in neighbour_views:
    ends = []
    for depth in (sweep.min_depth, sweep.max_depth):
      points = camera.transform(views.a2b(reference, neighbour), rays * depth)
      pixels, z = camera.project(points, views.intrinsics)
      # What leaves the image is not searched for.
      ends.append(np.where(z[:, None] > 0, np.clip(pixels, 0, size), np.nan))
    lengths = np.linalg.norm(ends[0] - ends[1], axis=-1)
    if np.isfinite(lengths).any():
      shift_px = max(shift_px, float(np.nanmax(lengths)))
  count = int(np.ceil(shift_px / sweep.plane_step_px)) + 1
  count = int(np.clip(count, 16, sweep.max_planes))
  return 1 / np.linspace(1 / sweep.max_depth, 1 / sweep.min_depth, count)


def _box(image: np.ndarray, window_px: int) -> np.ndarray:
  return cv2.blur(
    image, (window_px, window_px), borderType=cv2.BORDER_REFLECT_101
  )


def _dot(a: np.ndarray, b: np.ndarray) -> Float32[np.ndarray, 's s']:
  """Mean over colours of a product of images."""
  return cv2.transform(a * b, np.full((1, 3), 1 / 3, np.float32))


def _homography(
  views: Views, reference: int, neighbour: int, depth: float
) -> Float[np.ndarray, '3 3']:
  """Pixels of the reference to pixels of `other`, in OpenCV's coordinates."""
  pose = views.a2b(reference, neighbour)
  # OpenCV puts the centre of the first pixel at 0, this project at 0.5.
  matrix = views.intrinsics - np.array([[0, 0, 0.5], [0, 0, 0.5], [0, 0, 0]])
  plane = pose[:, :3] + np.outer(pose[:, 3], [0, 0, 1]) / depth
  return matrix @ plane @ np.linalg.inv(matrix)


class _Windows:
  """An image with the mean and the deviation of the window at every pixel."""

  def __init__(self, image: Float32[np.ndarray, 's s 3'], window_px: int):
    self.image = image
    self.window_px = window_px
    self.mean = _box(image, window_px)
    variance = self.product(self) + _NOISE_VARIANCE
    self.deviation = np.sqrt(np.maximum(variance, _NOISE_VARIANCE))

  def product(self, other: '_Windows') -> Float32[np.ndarray, 's s']:
    """Covariance of the two images in every window, mean over colours."""
    return _box(_dot(self.image, other.image), self.window_px) - _dot(
      self.mean, other.mean
    )

  def correlation(self, other: '_Windows') -> Float32[np.ndarray, 's s']:
    """ZNCC of every window, in [-1, 1]."""
    return self.product(other) / (self.deviation * other.deviation)


def _warp(
  image: Float32[np.ndarray, 's s 3'], matrix: Float[np.ndarray, '3 3']
) -> tuple[Float32[np.ndarray, 's s 3'], Bool[np.ndarray, 's s']]:
  """`image` where the homography says, and which pixels it covers."""
  size = len(image)
  flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
  inside = np.full((size, size), 255, np.uint8)
  warped = cv2.warpPerspective(image, matrix, (size, size), flags=flags)
  visible = (
    cv2.warpPerspective(inside, matrix, (size, size), flags=flags) == 255
  )
  column = np.arange(size)
  # What lies behind the camera is projected too, with a negative divisor.
  visible &= (
    matrix[2, 0] * column + matrix[2, 1] * column[:, None] > -matrix[2, 2]
  )
  return warped, visible


def _mean_of_lowest(
  values: Float32[np.ndarray, 'k s s'], count: int
) -> Float32[np.ndarray, 's s']:
  """Mean of the `count` lowest of k values at every pixel.

  A selection sort over whole images: with a handful of values it takes a tenth
  of the time of `np.sort`, which visits one pixel after another.
  """
  values = values.copy()
  for place in range(count):
    for later in range(place + 1, len(values)):
      higher = np.maximum(values[place], values[later])
      np.minimum(values[place], values[later], out=values[place])
      values[later] = higher
  return values[:count].mean(axis=0)


def matching_costs(
  views: Views,
  reference: int,
  neighbour_views: list[int],
  depths: Float[np.ndarray, 'd'],
  window_px: int,
) -> Costs:
  """Mean of the better half of the neighbours' costs, in [0, 2].

  A cost is 1 - ZNCC; 1, no correlation, where a neighbour sees nothing.
  """
  images = views.images.astype(np.float32) / 255
  target = _Windows(images[reference], window_px)
  size = views.size_px
  costs = np.empty((len(depths), size, size), np.float32)
  for plane, depth in enumerate(depths):
    neighbour_costs = np.ones((len(neighbour_views), size, size), np.float32)
    for cost, neighbour in zip(neighbour_costs, neighbour_views):
      warped, visible = _warp(
        images[neighbour], _homography(views, reference, neighbour, depth)
      )
      correlation = target.correlation(_Windows(warped, window_px))
      np.subtract(1, correlation, out=cost, where=visible)
    costs[plane] = _mean_of_lowest(
      neighbour_costs, (len(neighbour_views) + 1) // 2
    )
  return np.ascontiguousarray(np.moveaxis(costs, 0, -1))


def _smooth_downwards(costs: Costs, small: float, large: float) -> Costs:
  """Costs of the best path that comes down from the first image row.

  L(p, d) = C(p, d) + min(L(q, d), L(q, d +- 1) + small, min L(q) + large)
            - min L(q), with q the pixel above p.
  """
  smooth = np.empty_like(costs)
  smooth[0] = costs[0]
  for row in range(1, len(costs)):
    above = smooth[row - 1]
    lowest = above.min(axis=-1, keepdims=True)
    best = np.minimum(above, lowest + large)
    best[:, 1:] = np.minimum(best[:, 1:], above[:, :-1] + small)
    best[:, :-1] = np.minimum(best[:, :-1], above[:, 1:] + small)
    smooth[row] = costs[row] + best - lowest
  return smooth


def smooth_costs(costs: Costs, small: float, large: float) -> Costs:
  """Mean of the path costs from above, below, left and right."""
  total = np.zeros_like(costs)
  for axis in (0, 1):
    lines = np.swapaxes(costs, 0, axis)
    down = _smooth_downwards(lines, small, large)
    up = _smooth_downwards(lines[::-1], small, large)[::-1]
    total += np.swapaxes(down + up, 0, axis)
  return total / 4


def _between_planes(
  costs: Costs, best: np.ndarray, inverse_depths: Float[np.ndarray, 'd']
) -> Float[np.ndarray, 'h w']:
  """Inverse depth at the lowest point of a parabola through three planes."""
  middle = np.clip(best, 1, costs.shape[-1] - 2)
  left, centre, right = (
    np.take_along_axis(costs, (middle + offset)[..., None], -1)[..., 0]
    for offset in (-1, 0, 1)
  )
  curvature = np.maximum(left + right - 2 * centre, 1e-6)
  offset = np.clip((left - right) / (2 * curvature), -0.5, 0.5)
  offset = np.where(best == middle, offset, 0)
  return np.interp(
    best + offset, np.arange(len(inverse_depths)), inverse_depths
  )


@dataclasses.dataclass(frozen=True, kw_only=True)
class DepthMap:
  """Depth of one view before any check against the others.

  Attributes:
    depth: z in the camera, scene units.
    correlation: ZNCC at that depth, mean of the better half; -1 to 1. And -1
      where the best depth is an end of the range: that is where a search runs
      into when nothing moves as a scene does, no minimum that it found.
  """

  depth: Float32[np.ndarray, 's s']
  correlation: Float32[np.ndarray, 's s']


def depth_map(views: Views, reference: int, sweep: Sweep) -> DepthMap | None:
  """Depth of one view; None when no other view can be compared with it."""
  neighbour_views = neighbours(views, reference, sweep)
  if not neighbour_views:
    return None
  depths = plane_depths(views, reference, neighbour_views, sweep)
  costs = matching_costs(
    views, reference, neighbour_views, depths, sweep.window_px
  )
  smooth = smooth_costs(costs, sweep.small_penalty, sweep.large_penalty)
  best = smooth.argmin(axis=-1)
  inverse = _between_planes(smooth, best, 1 / depths)
  cost = np.take_along_axis(costs, best[..., None], -1)[..., 0]
  at_an_end = (best == 0) | (best == len(depths) - 1)
  return DepthMap(
    depth=(1 / inverse).astype(np.float32),
    correlation=np.where(at_an_end, np.float32(-1), 1 - cost),
  )
