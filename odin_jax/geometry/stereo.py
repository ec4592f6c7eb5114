"""Depth of one view from its neighbours with known poses: a plane sweep.

Every pixel of the reference view is tried at depths whose inverses are evenly
spaced. For the plane z = d of the reference camera, the homography

  H(d) = K (R + t [0 0 1] / d) K^-1,   x_neighbour = R @ x_reference + t

says where its pixels lie in a neighbour. A panorama is tried at distances along
its rays in the same way: spheres take the place of planes, and its edges, where
it goes on at the other side, are no edges. The two images are compared by
zero-mean normalised cross-correlation (ZNCC) over a window and its colours, so
brightness and contrast may differ; of the neighbours in whose picture a pixel
lies the better half counts, so what hides it from one of them is forgiven
(Kang, Szeliski, Chai, "Handling occlusions in dense multi-view stereo", 2001).
Costs are smoothed along image lines (Hirschmueller, "Stereo processing by
semi-global matching", 2008), and a parabola through the best plane and its two
neighbours gives the depth between planes. A second sweep in finer steps, around
that answer instead of planes, compares windows that follow the surface, as
planes do only where it faces the camera (`refined`).
"""

import dataclasses

import cv2
from jaxtyping import Bool, Float, Float32, UInt8
import numpy as np

from odin_jax.geometry import lenses
from odin_jax.shared import camera

Costs = Float32[np.ndarray, 'h w d']
# Of colours in [0, 1]; windows with less contrast than this say nothing.
_NOISE_VARIANCE = 1e-4
# The finer sweeps look this far to either side, in steps of the first one.
_FINER = (1.0, 0.5)
_OFFSETS = np.float32([-1, -0.5, 0, 0.5, 1])
# Stands for the cost of a pixel that a neighbour does not show; more than any.
_UNSEEN = np.float32(4)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Views:
  """Square views with one field of view, or panoramas of one size.

  Attributes:
    images: sRGB.
    camera2scene: pose of every view.
    fov_deg: full field of view; None of equirectangular panoramas.
    counts: which pixels may be scene; None for all.
  """

  images: UInt8[np.ndarray, 'n h w 3']
  camera2scene: Float[np.ndarray, 'n 3 4']
  fov_deg: float | None
  counts: Bool[np.ndarray, 'n h w'] | None = None

  @property
  def size_px(self) -> int:
    """Height; of square views the width, too."""
    return self.images.shape[1]

  @property
  def lens(self) -> lenses.Lens:
    height, width = self.images.shape[1:3]
    if self.fov_deg is None:
      return lenses.Equirectangular(width, height)
    return lenses.Perspective(self.fov_deg, height)

  @property
  def intrinsics(self) -> Float[np.ndarray, '3 3']:
    """Of square views."""
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
  window_px=5,
  num_neighbours=6,
  baseline=0.2,
  plane_step_px=0.7,
  max_planes=160,
  small_penalty=0.04,
  large_penalty=0.4,
)


def _grid_rays(lens: lenses.Lens, count: int) -> Float[np.ndarray, 'p 3']:
  """Rays at depth 1 on an even grid from edge to edge of a view."""
  u, v = np.meshgrid(
    np.linspace(0, lens.width_px, count), np.linspace(0, lens.height_px, count)
  )
  return lens.rays(np.stack([u, v], -1).reshape(-1, 2))


def neighbours(views: Views, reference: int, sweep: Sweep) -> list[int]:
  """The views to compare with `reference`, best first.

  A view qualifies when it sees at least half of what the reference sees in
  the middle of the depth range, from another place; among those the baselines
  nearest to the wanted one win.
  """
  middle = np.sqrt(sweep.min_depth * sweep.max_depth)
  lens = views.lens
  points = _grid_rays(lens, 7) * middle
  rated = []
  for neighbour in range(len(views.images)):
    pose = views.a2b(reference, neighbour)
    baseline = float(np.linalg.norm(pose[:, 3])) / middle
    pixels, depth = lens.project(camera.transform(pose, points))
    seen = lens.is_inside(pixels) & (depth > 0)
    if baseline > 1e-3 and np.mean(seen) >= 0.5:
      rated.append((abs(np.log(baseline / sweep.baseline)), neighbour))
  return [neighbour for _, neighbour in sorted(rated)[: sweep.num_neighbours]]


def plane_depths(
  views: Views, reference: int, neighbour_views: list[int], sweep: Sweep
) -> Float[np.ndarray, 'd']:
  """Depths of the planes, far to near, evenly spaced in inverse depth.

  Their number follows from the widest shift that the depth range causes in
  any of the neighbours.
  """
  lens = views.lens
  rays = _grid_rays(lens, 5)
  most = lens.width_px, lens.height_px
  shift_px = 1.0
  for neighbour in neighbour_views:
    ends = []
    for depth in (sweep.min_depth, sweep.max_depth):
      points = camera.transform(views.a2b(reference, neighbour), rays * depth)
      pixels, z = lens.project(points)
      # What leaves the image is not searched for.
      ends.append(np.where(z[:, None] > 0, np.clip(pixels, 0, most), np.nan))
    lengths = lens.apart_px(*ends)
    if np.isfinite(lengths).any():
      shift_px = max(shift_px, float(np.nanmax(lengths)))
  count = int(np.ceil(shift_px / sweep.plane_step_px)) + 1
  count = int(np.clip(count, 16, sweep.max_planes))
  return 1 / np.linspace(1 / sweep.max_depth, 1 / sweep.min_depth, count)


def _box(image: np.ndarray, window_px: int) -> np.ndarray:
  return cv2.blur(
    image, (window_px, window_px), borderType=cv2.BORDER_REFLECT_101
  )


def _dot(a: np.ndarray, b: np.ndarray) -> Float32[np.ndarray, 'h w']:
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

  def __init__(self, image: Float32[np.ndarray, 'h w 3'], window_px: int):
    self.image = image
    self.window_px = window_px
    self.mean = _box(image, window_px)
    variance = self.product(self) + _NOISE_VARIANCE
    self.deviation = np.sqrt(np.maximum(variance, _NOISE_VARIANCE))

  def product(self, other: '_Windows') -> Float32[np.ndarray, 'h w']:
    """Covariance of the two images in every window, mean over colours."""
    return _box(_dot(self.image, other.image), self.window_px) - _dot(
      self.mean, other.mean
    )

  def correlation(self, other: '_Windows') -> Float32[np.ndarray, 'h w']:
    """ZNCC of every window, in [-1, 1]."""
    return self.product(other) / (self.deviation * other.deviation)


Warped = tuple[Float32[np.ndarray, 'h w 3'], Bool[np.ndarray, 'h w']]


def _warp(
  image: Float32[np.ndarray, 's s 3'], matrix: Float[np.ndarray, '3 3']
) -> Warped:
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


def sampled(
  picture: np.ndarray, lens: lenses.Lens, pixels: Float[np.ndarray, 'h w 2']
) -> np.ndarray:
  """A picture of a lens between its pixels, linearly; beyond it, its edge."""
  # A panorama goes on for as far as what lies between its pixels needs.
  picture = lens.continued(picture, 1)
  # OpenCV puts the centre of the first pixel at 0, this project at 0.5.
  first = np.float32(0.5 - lens.goes_on)
  return cv2.remap(
    picture,
    pixels.astype(np.float32) - first,
    None,
    cv2.INTER_LINEAR,
    borderMode=cv2.BORDER_REPLICATE,
  )


def ahead(
  panoramas: UInt8[np.ndarray, 'n h w 3'], lens: lenses.Perspective
) -> UInt8[np.ndarray, 'n s s 3']:
  """What a lens shows of panoramas along their axes."""
  height, width = panoramas.shape[1:3]
  whole = lenses.Equirectangular(width, height)
  pixels, _ = whole.project(lens.rays(lenses.grid(lens)))
  return np.stack([sampled(image, whole, pixels) for image in panoramas])


class _Comparison:
  """A reference view and the neighbours that it is compared with.

  Of a panorama the reference goes on beyond its edges by a margin, so that
  windows and smoothing know no edge; `cropped` takes it off again.
  """

  def __init__(
    self, views: Views, reference: int, neighbours: list[int], window_px: int
  ):
    self.views, self.lens = views, views.lens
    self.reference = reference
    self.neighbours = neighbours
    self.window_px = window_px
    self.margin_px = window_px
    self.rays = self.lens.rays(lenses.grid(self.lens, self.margin_px)).astype(
      np.float32
    )
    self.target = _Windows(
      self.lens.continued(self._image(reference), self.margin_px), window_px
    )
    self._images = [self._image(view) for view in neighbours]
    # Windows must not reach into what does not count.
    self._counts = None
    if views.counts is not None:
      window = np.ones((window_px, window_px), np.uint8)
      self._counts = [
        cv2.erode(views.counts[view].astype(np.float32), window)
        for view in neighbours
      ]

  def _image(self, view: int) -> Float32[np.ndarray, 'h w 3']:
    return self.views.images[view].astype(np.float32) / 255

  def cropped(self, values: np.ndarray) -> np.ndarray:
    """Without the margin."""
    margin = self.margin_px * self.lens.goes_on
    height, width = values.shape[:2]
    return values[margin : height - margin, margin : width - margin]

  def costs(
    self, depth: float | Float32[np.ndarray, 'h w']
  ) -> Float32[np.ndarray, 'h w']:
    """Mean of the better half of the neighbours' costs, in [0, 2].

    A cost is 1 - ZNCC. Neighbours that do not show a pixel are not among those
    whose half counts; it is 1, no correlation, where none does.

    Args:
      depth: of a plane, or of every pixel.
    """
    shape = len(self.neighbours), *self.rays.shape[:2]
    costs = np.full(shape, _UNSEEN, np.float32)
    for index, cost in enumerate(costs):
      warped, visible = self._warped(index, depth)
      correlation = self.target.correlation(_Windows(warped, self.window_px))
      np.subtract(1, correlation, out=cost, where=visible)
    return _mean_of_better_half(costs)

  def _warped(
    self, index: int, depth: float | Float32[np.ndarray, 'h w']
  ) -> Warped:
    """A neighbour as the reference would see it, were its depth this one."""
    neighbour = self.neighbours[index]
    image = self._images[index]
    # The same, and faster, where there are planes.
    if (
      isinstance(self.lens, lenses.Perspective)
      and self._counts is None
      and np.ndim(depth) == 0
    ):
      return _warp(
        image, _homography(self.views, self.reference, neighbour, float(depth))
      )
    pose = self.views.a2b(self.reference, neighbour).astype(np.float32)
    points = self.rays * np.asarray(depth, np.float32)[..., None]
    pixels, away = self.lens.project(points @ pose[:, :3].T + pose[:, 3])
    visible = self.lens.is_inside(pixels) & (away > 0)
    # Not to overflow where it is not seen.
    pixels = np.where(visible[..., None], pixels, 0)
    if self._counts is not None:
      visible &= sampled(self._counts[index], self.lens, pixels) > 0.999
    return sampled(image, self.lens, pixels), visible


def _mean_of_better_half(
  costs: Float32[np.ndarray, 'k h w'],
) -> Float32[np.ndarray, 'h w']:
  """Of those of k costs that are seen, at every pixel; 1 where none is.

  A selection sort over whole images: with a handful of values it takes a tenth
  of the time of `np.sort`, which visits one pixel after another.
  """
  costs = costs.copy()
  half = ((costs < _UNSEEN).sum(axis=0, dtype=np.uint8) + np.uint8(1)) // 2
  total = np.zeros_like(costs[0])
  for place in range(int(half.max())):
    for later in range(place + 1, len(costs)):
      higher = np.maximum(costs[place], costs[later])
      np.minimum(costs[place], costs[later], out=costs[place])
      costs[later] = higher
    total += costs[place] * (half > place)
  return np.where(half > 0, total / np.maximum(half, 1), np.float32(1))


def matching_costs(
  views: Views,
  reference: int,
  neighbour_views: list[int],
  depths: Float[np.ndarray, 'd'],
  window_px: int,
) -> Costs:
  """Costs of every pixel at every depth, 0 to 2; see `_Comparison.costs`.

  Args:
    views: all of them.
    reference: whose pixels are matched.
    neighbour_views: that they are looked for in.
    depths: of the planes, scene units.
    window_px: side of the windows that are compared.
  """
  comparison = _Comparison(views, reference, neighbour_views, window_px)
  return comparison.cropped(_swept(comparison, depths))


def _swept(comparison: _Comparison, depths: Float[np.ndarray, 'd']) -> Costs:
  """Costs of every depth, margin and all."""
  costs = np.stack([comparison.costs(depth) for depth in depths])
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


def refined(
  comparison: _Comparison, inverse: Float32[np.ndarray, 'h w'], step: float
) -> tuple[Float32[np.ndarray, 'h w'], Float32[np.ndarray, 'h w']]:
  """Inverse depth by a finer sweep around a first answer, and its costs.

  Args:
    comparison: of the views.
    inverse: the first answer.
    step: between the planes that gave it.
  """
  for width in _FINER:
    # Windows that follow the noise of the first answer compare noise.
    base = cv2.medianBlur(inverse, 5)
    base = np.where(np.abs(base - inverse) < 2 * step, base, inverse)
    offsets = np.float32(width * step) * _OFFSETS
    costs = np.stack(
      [
        comparison.costs(1 / np.maximum(base + offset, 0.1 * step))
        for offset in offsets
      ],
      axis=-1,
    )
    best = costs.argmin(axis=-1)
    inverse = base + _between_planes(costs, best, offsets).astype(np.float32)
    inverse = np.maximum(inverse, np.float32(0.1 * step))
  return inverse, costs.min(axis=-1)


@dataclasses.dataclass(frozen=True, kw_only=True)
class DepthMap:
  """Depth of one view before any check against the others.

  Attributes:
    depth: z in the camera, scene units.
    correlation: ZNCC at that depth, mean of the better half; -1 to 1. And -1
      where the best depth is an end of the range, or the finer sweep left it:
      that is where a search runs into when nothing moves as a scene does, no
      minimum that it found. Beyond its far end there is mostly sky.
  """

  depth: Float32[np.ndarray, 'h w']
  correlation: Float32[np.ndarray, 'h w']


def depth_map(views: Views, reference: int, sweep: Sweep) -> DepthMap | None:
  """Depth of one view; None when no other view can be compared with it."""
  neighbour_views = neighbours(views, reference, sweep)
  if not neighbour_views:
    return None
  depths = plane_depths(views, reference, neighbour_views, sweep)
  comparison = _Comparison(views, reference, neighbour_views, sweep.window_px)
  costs = _swept(comparison, depths)
  smooth = smooth_costs(costs, sweep.small_penalty, sweep.large_penalty)
  best = smooth.argmin(axis=-1)
  inverse = _between_planes(smooth, best, 1 / depths).astype(np.float32)
  step = (1 / sweep.min_depth - 1 / sweep.max_depth) / (len(depths) - 1)
  inverse, cost = refined(comparison, inverse, step)
  is_found = (best > 0) & (best < len(depths) - 1)
  is_found &= (inverse >= 1 / sweep.max_depth) & (
    inverse <= 1 / sweep.min_depth
  )
  correlation = comparison.cropped(np.where(is_found, 1 - cost, np.float32(-1)))
  if views.counts is not None:
    correlation = np.where(views.counts[reference], correlation, np.float32(-1))
  return DepthMap(
    depth=np.ascontiguousarray(comparison.cropped(1 / inverse)),
    correlation=np.ascontiguousarray(correlation),
  )
