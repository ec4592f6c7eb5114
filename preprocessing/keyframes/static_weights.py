"""Which part of a scene stands still, found while its video is read.

Every keyframe gets a map of the sphere that says where the frames around it
show what a static scene can show. A camera at T, turned by R, sees the point
at inverse depth r >= 0 in direction d of the keyframe along R^T (d - r T). So
the paths of all pixels have to agree with the cameras' motion and with one r
each; what they do not agree with is motion of the scene: off the epipolar
line, along it the wrong way, or with a parallax that changes as that of no
point at rest does. A thing that moves evenly and in line with the camera looks
like a static one at another depth and cannot be told from it; hence up to a
second of video on either side, over which few things move evenly.

No poses are needed. The cameras' motion is found here and serves nothing else:
one pair of frames by its epipolar geometry, the others by resection, all of
them robustly and in a unit of their own.

Paths are chained from the optical flow of one frame to the next, forth and
back: DIS (T. Kroeger et al., "Fast optical flow using dense inverse search",
ECCV 2016) on the Mercator chart, which is conformal, so that patches keep
their shape up to high latitudes.
"""

import collections
import dataclasses
from typing import Mapping

import cv2
from jaxtyping import Bool, Float, Float32, UInt8
import numpy as np

from odin_jax.shared import camera
from preprocessing import panorama
from preprocessing.keyframes import ego_motion

GRID_WIDTH_PX, GRID_HEIGHT_PX = 192, 96
# Weights: 0 moves, 255 stands still.
UNKNOWN = 128
# Frames on either side that are judged, of those that paths lead through.
_JUDGED_STEPS = (1, 3, 5)
# The chart goes on beyond what is judged, where paths may lead.
_CHART_LATITUDE_DEG = 64.0
_CHART_PAD_SHARE = 1 / 16
# Patches of 8 px, this far apart, on the full chart: what a patch covers is
# what a small thing in motion has to fill.
_FLOW_STRIDE_PX, _FLOW_ITERATIONS = 5, 6
# A path ends where forth and back again miss by more: px, and share of the
# step.
_MAX_RETURN_PX, _MAX_RETURN_SHARE = 0.4, 0.05
# Directions that take part in finding the cameras' motion.
_SAMPLE = 700
# Inverse depth in units of the first step: nearer things are the holder's.
_MAX_INVERSE_DEPTH = 5.0
# Below this the window has no texture to follow, in grey levels.
_MIN_CONTRAST = 1.5
# Of the guided filter: half window in cells, and variance that is an edge.
_SMOOTH_CELLS, _EDGE_VARIANCE = 2, 1e-2
# Window in cells of what is near enough to be mixed up with.
_WINDOW_CELLS = 5
# Across the epipolar line flow is right even at edges of depth, nearly.
_ACROSS_SHARE = 0.1
# Directions tracked into fewer frames say nothing.
_MIN_TRACKED = 2

Rays = Float[np.ndarray, '*b 3']


@dataclasses.dataclass(frozen=True, kw_only=True)
class MotionRules:
  """How paths are judged; the fields of `config.motion`.

  Attributes:
    chart_width_px: of the chart on which flow is found.
    max_latitude_deg: farther from the horizon nothing is judged.
    noise_deg: error of a path of one step at best.
    return_share: by how much of the distance between forth and back again a
      path may be wrong.
    parallax_share: and by how much of its own parallax.
    edge_share: and, along the epipolar line, by how much of the spread of
      parallax around it: flow runs over edges of depth.
    half_weight: residual in units of noise that is given half the weight.
    still_share: a camera stands still if rotation alone explains this share of
      what a translation explains.
  """

  chart_width_px: int
  max_latitude_deg: float
  noise_deg: float
  return_share: float
  parallax_share: float
  edge_share: float
  half_weight: float
  still_share: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class _TrackedRays:
  """Where the directions of a keyframe are some steps on.

  Attributes:
    steps: how many.
    rays: in that frame.
    error_rad: of all steps, forth and back again.
    alive: the path has led there.
  """

  steps: int
  rays: Float[np.ndarray, '*b 3']
  error_rad: Float[np.ndarray, '*b']
  alive: Bool[np.ndarray, '*b']

  def at(self, chosen: Bool[np.ndarray, 'h w']) -> '_TrackedRays':
    """Those of some of the directions."""
    return _TrackedRays(
      steps=self.steps,
      rays=self.rays[chosen],
      error_rad=self.error_rad[chosen],
      alive=self.alive[chosen],
    )


class _Chart:
  """The Mercator chart of the sphere's middle latitudes.

  Args:
    width_px: of a full turn; the chart goes on a little at both ends.
  """

  def __init__(self, width_px: int):
    self._width = width_px
    self._px_per_rad = width_px / (2 * np.pi)
    top = np.arcsinh(np.tan(np.deg2rad(_CHART_LATITUDE_DEG)))
    # DIS halves the image a few times.
    self._height = 8 * round(2 * top * self._px_per_rad / 8)
    self._pad = round(width_px * _CHART_PAD_SHARE)
    u = np.arange(-self._pad, width_px + self._pad)
    rows = (np.arange(self._height) + 0.5 - self._height / 2) / self._px_per_rad
    latitude = np.arctan(np.sinh(rows))
    v = (latitude / np.pi + 0.5) * (width_px // 2) - 0.5
    self._maps = [
      np.ascontiguousarray(axis, np.float32)
      for axis in np.broadcast_arrays(u % width_px, v[:, None])
    ]

  def draw(self, image: UInt8[np.ndarray, 'h w 3']) -> UInt8[np.ndarray, 'H W']:
    """A panorama's brightness on the chart."""
    grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
    size = (self._width, self._width // 2)
    grey = cv2.resize(grey, size, interpolation=cv2.INTER_AREA)
    return cv2.remap(grey, *self._maps, cv2.INTER_LINEAR)

  def places(self, rays: Rays) -> tuple[np.ndarray, np.ndarray]:
    """(x, y) on the chart of directions."""
    longitude = np.arctan2(rays[..., 0], rays[..., 2])
    rows = np.arcsinh(rays[..., 1] / np.hypot(rays[..., 0], rays[..., 2]))
    return (
      ((longitude + np.pi) * self._px_per_rad).astype(np.float32),
      (rows * self._px_per_rad + self._height / 2).astype(np.float32),
    )

  def rays(self, x: Float32[np.ndarray, 'h w'], y: Float32[np.ndarray, 'h w']):
    """Directions of places."""
    longitude = x / self._px_per_rad - np.pi
    rows = (y - self._height / 2) / self._px_per_rad
    level = 1 / np.cosh(rows)
    return np.stack(
      [np.sin(longitude) * level, np.tanh(rows), np.cos(longitude) * level], -1
    )

  def rad_per_px(self, y: Float32[np.ndarray, 'h w']) -> np.ndarray:
    """Size of a pixel."""
    rows = (y - self._height / 2) / self._px_per_rad
    return 1 / (np.cosh(rows) * self._px_per_rad)

  def inside(self, y: Float32[np.ndarray, 'h w']) -> Bool[np.ndarray, 'h w']:
    """Which places lie on the chart."""
    return (y > 1) & (y < self._height - 1)

  def sample(
    self,
    values: np.ndarray,
    x: Float32[np.ndarray, 'h w'],
    y: Float32[np.ndarray, 'h w'],
  ) -> np.ndarray:
    """Values of the chart at places."""
    # OpenCV counts pixels from their centres.
    return cv2.remap(
      values,
      x % self._width + (self._pad - 0.5),
      y - 0.5,
      cv2.INTER_LINEAR,
      borderMode=cv2.BORDER_REPLICATE,
    )


@dataclasses.dataclass(frozen=True)
class _Pending:
  """A keyframe whose following frames are still to come."""

  frame: int
  grey: Float32[np.ndarray, 'h w']


class MotionEstimator:
  """Weighs the keyframes of one video, which is shown to it frame by frame.

  Meant for five frames a second: what moves less than the flow's noise within
  five frames is not seen, and what moves too far from one to the next is lost.

  Args:
    rules: see there.
  """

  def __init__(self, rules: MotionRules):
    self._rules = rules
    self._chart = _Chart(rules.chart_width_px)
    self._flow = cv2.DISOpticalFlow_create(cv2.DISOPTICAL_FLOW_PRESET_ULTRAFAST)
    self._flow.setFinestScale(0)
    self._flow.setPatchStride(_FLOW_STRIDE_PX)
    self._flow.setGradientDescentIterations(_FLOW_ITERATIONS)
    u, v = camera.pixel_centres(GRID_WIDTH_PX, GRID_HEIGHT_PX)
    latitude_deg = (v[:, 0] / GRID_HEIGHT_PX - 0.5) * 180
    self._rows = np.abs(latitude_deg) < rules.max_latitude_deg
    self._rays = camera.equirect_to_direction(
      u[self._rows], v[self._rows], GRID_WIDTH_PX, GRID_HEIGHT_PX
    )
    self._start = self._chart.places(self._rays)
    self._sample = _even_sample(self._rays)
    self._frame = -1
    self._drawn: np.ndarray | None = None
    # Flow forth and back of the last pairs of frames, by their first frame.
    self._flows: dict[int, tuple[np.ndarray, np.ndarray]] = {}
    self._pending: collections.deque[_Pending] = collections.deque()
    self._weights: list[UInt8[np.ndarray, 'h w']] = []

  def keyframe(self, image: UInt8[np.ndarray, 'h w 3']) -> None:
    """The next frame, which is to be weighed."""
    self._add(image)
    grey = self._chart.sample(self._drawn, *self._start).astype(np.float32)
    self._pending.append(_Pending(self._frame, grey))

  def step(self, image: UInt8[np.ndarray, 'h w 3']) -> None:
    """The next frame, which only shows how things move."""
    self._add(image)

  def weights(self) -> list[UInt8[np.ndarray, '96 192']]:
    """The weights of all keyframes in their order, at the video's end.

    Returns:
      panoramas of 0 (moves) to 255 (stands still); UNKNOWN where nothing can
      be said.
    """
    while self._pending:
      self._weigh(self._pending.popleft())
    return self._weights

  def _is_due(self, pending: _Pending) -> bool:
    return self._frame - pending.frame >= _JUDGED_STEPS[-1]

  def _add(self, image: UInt8[np.ndarray, 'h w 3']) -> None:
    drawn = self._chart.draw(image)
    if self._drawn is not None:
      self._flows[self._frame] = (
        self._flow.calc(self._drawn, drawn, None),
        self._flow.calc(drawn, self._drawn, None),
      )
      self._flows.pop(self._frame - 2 * _JUDGED_STEPS[-1], None)
    self._drawn = drawn
    self._frame += 1
    while self._pending and self._is_due(self._pending[0]):
      self._weigh(self._pending.popleft())

  def _weigh(self, pending: _Pending) -> None:
    weight = np.full((GRID_HEIGHT_PX, GRID_WIDTH_PX), UNKNOWN, np.uint8)
    tracked = {
      **self._follow(pending.frame, 1),
      **self._follow(pending.frame, -1),
    }
    if tracked:
      cameras = self._cameras(tracked)
      residual, known = self._residual(tracked, cameras)
      known &= _deviation(pending.grey) > _MIN_CONTRAST
      residual = np.where(known, residual, 0).astype(np.float32)
      smooth = np.expm1(_guided(np.log1p(residual), pending.grey / 255))
      static = 1 / (1 + (smooth / self._rules.half_weight) ** 4)
      weight[self._rows] = np.where(known, np.rint(255 * static), UNKNOWN)
    self._weights.append(weight)

  def _follow(self, frame: int, direction: int) -> dict[int, _TrackedRays]:
    """Paths from a keyframe on (1) or back (-1), by number of steps."""
    chart = self._chart
    x, y = self._start
    alive = np.ones(x.shape, bool)
    squared = np.zeros(x.shape, np.float32)
    tracked = {}
    for step in range(1, _JUDGED_STEPS[-1] + 1):
      first = frame + step - 1 if direction > 0 else frame - step
      if first not in self._flows:
        break
      onward, backward = self._flows[first]
      if direction > 0:
        there, back = onward, backward
      else:
        there, back = backward, onward
      moved = chart.sample(there, x, y)
      x, y = x + moved[..., 0], y + moved[..., 1]
      gap = moved + chart.sample(back, x, y)
      missed = ego_motion.dot(gap, gap)
      allowed = _MAX_RETURN_PX + _MAX_RETURN_SHARE * np.hypot(
        moved[..., 0], moved[..., 1]
      )
      alive = alive & chart.inside(y) & (missed < allowed**2)
      squared = squared + missed * chart.rad_per_px(y) ** 2
      if step in _JUDGED_STEPS:
        tracked[direction * step] = _TrackedRays(
          steps=step,
          rays=chart.rays(x, y),
          error_rad=np.sqrt(squared),
          alive=alive,
        )
    return tracked

  def _noise(self, tracked: _TrackedRays) -> np.ndarray:
    """Variance of a path, rad^2."""
    rules = self._rules
    return (
      tracked.steps * np.deg2rad(rules.noise_deg) ** 2
      + (rules.return_share * tracked.error_rad) ** 2
    )

  def _cameras(self, tracked: Mapping[int, _TrackedRays]) -> ego_motion.Cameras:
    """(R, T) of every judged frame, in the keyframe's axes."""
    rays = self._rays[self._sample]
    items = {step: item.at(self._sample) for step, item in tracked.items()}
    observed = {step: item.rays for step, item in items.items()}
    trust = {
      step: item.alive / self._noise(item) for step, item in items.items()
    }
    turned = {
      step: ego_motion.rotation_between(rays, observed[step], trust[step])
      for step in observed
    }
    first, *others = sorted(observed, key=lambda step: (abs(step), -step))
    cameras = {
      first: ego_motion.two_frames(
        rays, observed[first], trust[first], turned[first]
      )
    }
    for step in others:
      depth = ego_motion.inverse_depth(rays, observed, trust, cameras)
      cameras[step] = ego_motion.resect(
        rays,
        np.minimum(depth, _MAX_INVERSE_DEPTH),
        observed[step],
        trust[step],
        *ego_motion.extrapolate(cameras, step),
      )
    still = {step: (turned[step], np.zeros(3)) for step in observed}
    explained = [
      _explained(rays, observed, trust, model) for model in (still, cameras)
    ]
    share = self._rules.still_share
    return still if explained[0] >= share * explained[1] else cameras

  def _residual(
    self, tracked: Mapping[int, _TrackedRays], cameras: ego_motion.Cameras
  ) -> tuple[Float[np.ndarray, 'h w'], Bool[np.ndarray, 'h w']]:
    """What a static scene leaves unexplained, in units of noise."""
    rules = self._rules
    across, along = {}, {}
    for step, item in tracked.items():
      parallax = _angle_rad(self._rays, item.rays @ cameras[step][0].T)
      spread = _deviation(parallax)
      own = self._noise(item) + (rules.parallax_share * parallax) ** 2
      along[step] = item.alive / (own + (rules.edge_share * spread) ** 2)
      across[step] = item.alive / (
        own + (_ACROSS_SHARE * rules.edge_share * spread) ** 2
      )
    observed = {step: item.rays for step, item in tracked.items()}
    depth = ego_motion.inverse_depth(self._rays, observed, along, cameras)
    total = np.zeros(depth.shape)
    for step, (rotation, place) in cameras.items():
      expected = ego_motion.predict(self._rays, depth, place)
      error = expected - observed[step] @ rotation.T
      slope = (expected @ place)[..., None] * expected - place
      slope /= np.maximum(ego_motion.length(slope), 1e-9)[..., None]
      line = ego_motion.dot(error, slope) ** 2
      rest = np.maximum(ego_motion.dot(error, error) - line, 0)
      total += _scaled(line, along[step]) + _scaled(rest, across[step])
    count = sum(item.alive.astype(int) for item in tracked.values())
    return np.sqrt(total / np.maximum(count, 1)), count >= _MIN_TRACKED


def _even_sample(rays: Float[np.ndarray, 'h w 3']) -> Bool[np.ndarray, 'h w']:
  """About _SAMPLE cells, as dense everywhere on the sphere."""
  level = np.hypot(rays[..., 0], rays[..., 2])
  chance = np.random.default_rng(0).uniform(size=level.shape)
  return chance < level * (_SAMPLE / level.sum())


def _angle_rad(first: Rays, second: Rays) -> np.ndarray:
  """Angle between directions that are close to each other, in radians."""
  return ego_motion.length(first - second)


def _explained(
  rays: Rays,
  observed: Mapping[int, Rays],
  trust: Mapping[int, np.ndarray],
  cameras: ego_motion.Cameras,
) -> int:
  """How many tracked rays lie within twice their noise of a static scene's."""
  depth = ego_motion.inverse_depth(rays, observed, trust, cameras)
  count = 0
  for step, (rotation, place) in cameras.items():
    expected = ego_motion.predict(rays, depth, place)
    squared = (
      _angle_rad(expected, observed[step] @ rotation.T) ** 2 * trust[step]
    )
    count += int(np.sum((trust[step] > 0) & (squared < 4)))
  return count


def _scaled(
  squared: Float[np.ndarray, 'h w'], trust: Float[np.ndarray, 'h w']
) -> Float[np.ndarray, 'h w']:
  """Squared residuals over their variance, raised by what all have."""
  trusted = squared[trust > 0]
  usual = 2 * np.median(trusted) if trusted.size else 0.0
  return squared * trust / (1 + usual * trust)


def _blur(
  values: Float[np.ndarray, 'h w'], size: int
) -> Float[np.ndarray, 'h w']:
  """Mean over a window, around the seam."""
  half = size // 2
  wide = cv2.copyMakeBorder(values, 0, 0, half, half, cv2.BORDER_WRAP)
  mean = cv2.blur(wide, (size, size), borderType=cv2.BORDER_REPLICATE)
  return mean[:, half:-half]


def _deviation(
  values: Float[np.ndarray, 'h w'],
) -> Float[np.ndarray, 'h w']:
  """Standard deviation in a window."""
  mean = _blur(values, _WINDOW_CELLS)
  return np.sqrt(np.maximum(_blur(values**2, _WINDOW_CELLS) - mean**2, 0))


def _guided(
  values: Float[np.ndarray, 'h w'], guide: Float[np.ndarray, 'h w']
) -> Float[np.ndarray, 'h w']:
  """Smooth within the guide's edges.

  K. He et al., "Guided image filtering", ECCV 2010.
  """
  size = 2 * _SMOOTH_CELLS + 1
  mean, guide_mean = _blur(values, size), _blur(guide, size)
  covariance = _blur(values * guide, size) - mean * guide_mean
  variance = _blur(guide**2, size) - guide_mean**2
  slope = covariance / (variance + _EDGE_VARIANCE)
  return _blur(slope, size) * guide + _blur(mean - slope * guide_mean, size)


def cut(
  weight: UInt8[np.ndarray, 'h w'],
  *,
  yaw_deg: float,
  pitch_deg: float,
  fov_deg: float,
  size_px: int,
) -> UInt8[np.ndarray, 's s']:
  """The weight of a view; its arguments are those of `panorama.cut_view`."""
  # Linear: bicubic interpolation would overshoot beside an edge.
  views = panorama.Views(weight, cv2.INTER_LINEAR)
  return views.cut(
    yaw_deg=yaw_deg, pitch_deg=pitch_deg, fov_deg=fov_deg, size_px=size_px
  )


def encode_png(view: UInt8[np.ndarray, 's s']) -> bytes:
  """A grey PNG of a view's weight; the same view, the same bytes."""
  return cv2.imencode('.png', view, [cv2.IMWRITE_PNG_COMPRESSION, 9])[
    1
  ].tobytes()
