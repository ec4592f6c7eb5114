"""A video, read once: keyframes, their features, where their points went."""

import dataclasses
import itertools
import os
from typing import Callable, Iterator

from jaxtyping import Float, UInt8
import numpy as np

from odin_jax.shared import camera
from preprocessing import matchers
from preprocessing.keyframes import (
  flow_tracker,
  frame_quality,
  panorama_store,
  static_weights,
)
from preprocessing.reading import frames, projections
from preprocessing.writing import rejections

# Called with the name of a phase of the work and the share of it that is done.
Progress = Callable[[str, float], None]
# Points are not followed into such frames: nothing of the scene is in them.
_WITHOUT_SCENE = (rejections.Reason.BLACK, rejections.Reason.STATIC)
# Rows and columns at which the part of a panorama that the camera saw is found.
_SIGHT_GRID = (36, 72)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
  """Which frames become keyframes, and what is found of them.

  Attributes:
    fps: keyframes per second.
    substeps: frames per keyframe that points are followed through.
    frames: limits on keyframes.
    motion: how paths are judged; None: without static weights.
  """

  fps: float
  substeps: int
  frames: frame_quality.FrameRules
  motion: static_weights.MotionRules | None


@dataclasses.dataclass
class Keyframes:
  """What is kept of a video while it is read, once.

  Attributes:
    times_s: of the keyframes.
    slots: which 1 / fps of the video each keyframe stands for.
    pictures: the keyframes.
    features: of the keyframes.
    tracked_rays: where the points of each keyframe but the last are in the
      next; NaN for those that were lost.
    static_weights: of the keyframes, see `static_weights`; empty where not
      asked for.
    width_px: of the panoramas.
    rejected: slots without a usable frame.
  """

  times_s: list[float] = dataclasses.field(default_factory=list)
  slots: list[int] = dataclasses.field(default_factory=list)
  pictures: panorama_store.PanoramaStore = dataclasses.field(
    default_factory=panorama_store.PanoramaStore
  )
  features: list[matchers.Features] = dataclasses.field(default_factory=list)
  tracked_rays: list[Float[np.ndarray, 'n 3']] = dataclasses.field(
    default_factory=list
  )
  static_weights: list[UInt8[np.ndarray, 'h w']] = dataclasses.field(
    default_factory=list
  )
  width_px: int = 0
  rejected: list[rejections.Rejection] = dataclasses.field(default_factory=list)


def extract(
  path: str | os.PathLike[str],
  settings: Settings,
  matcher: matchers.Matcher,
  layout: projections.Layout,
  *,
  max_width_px: int,
  progress: Progress = lambda phase, share: None,
) -> Keyframes:
  """Reads a video, describes its keyframes and follows their points.

  A keyframe is the first usable frame at or after k / fps and before
  (k + 1) / fps.

  Args:
    path: the video.
    settings: see there.
    matcher: describes the keyframes.
    layout: of the video's frames.
    max_width_px: wider panoramas are reduced to this even width.
    progress: told of the share of the video that is read.

  Raises:
    frames.VideoError: it is no usable 360-degree video.
  """
  extractor = _Extractor(settings, matcher, layout)
  rate = settings.fps * settings.substeps
  length_s = max(frames.probe(path).duration_s, 1 / rate)
  panoramas = frames.read_frames(path, rate, layout, max_width_px=max_width_px)
  for frame, following in _with_following(panoramas):
    slot = round(frame.time_s * rate) // settings.substeps
    is_sound = following is not None and not following.is_damaged
    extractor.add(frame, slot, following.image if is_sound else None)
    progress('frames', min(1.0, frame.time_s / length_s))
  share, most = extractor.damaged_share, settings.frames.max_damaged_share
  if share > most:
    raise frames.VideoError(
      f'{path}: {share:.0%} of its frames are damaged, more than '
      f'config.frames.max_damaged_share={most:g}; get the file again'
    )
  return extractor.finish()


def _with_following(
  panoramas: Iterator[frames.Frame],
) -> Iterator[tuple[frames.Frame, frames.Frame | None]]:
  return itertools.pairwise(itertools.chain(panoramas, [None]))


def _sight_box(layout: projections.Layout) -> Float[np.ndarray, '2 2']:
  """Rows and columns that hold what the camera saw, as shares of a panorama."""
  height, width = _SIGHT_GRID
  centres = camera.pixel_centres(width, height)
  in_sight = layout.sees(camera.equirect_to_direction(*centres, width, height))
  limits = [np.flatnonzero(in_sight.any(axis=axis))[[0, -1]] for axis in (1, 0)]
  return (np.array(limits) + [0, 1]) / np.array(_SIGHT_GRID)[:, None]


class _Extractor:
  """Takes the frames one by one."""

  def __init__(
    self,
    settings: Settings,
    matcher: matchers.Matcher,
    layout: projections.Layout,
  ):
    self._matcher = matcher
    self._sight_box = _sight_box(layout)
    self._filter = frame_quality.FrameFilter(settings.frames)
    self._motion: static_weights.MotionEstimator | None = None
    if settings.motion is not None:
      self._motion = static_weights.MotionEstimator(settings.motion)
    self._keyframes = Keyframes()
    self._tracker: flow_tracker.FlowTracker | None = None
    self._num_frames = self._num_damaged = 0
    # First reason and time of the slots that have no keyframe so far.
    self._refused: dict[int, tuple[rejections.Reason, float]] = {}

  def add(
    self,
    frame: frames.Frame,
    slot: int,
    following: UInt8[np.ndarray, 'h w 3'] | None,
  ) -> None:
    """Takes the next frame, which may become the keyframe of its slot."""
    self._num_frames += 1
    if frame.is_damaged:
      # Nor are points followed into it.
      self._num_damaged += 1
      if slot not in self._keyframes.slots[-1:]:
        reason = rejections.Reason.DAMAGED
        self._refused.setdefault(slot, (reason, frame.time_s))
      return
    is_open = not self._keyframes.slots or slot > self._keyframes.slots[-1]
    reason = self._judge(frame.image, following) if is_open else None
    if reason in _WITHOUT_SCENE:
      self._refused.setdefault(slot, (reason, frame.time_s))
      return
    is_keyframe = is_open and reason is None
    self._follow(frame.image, is_keyframe)
    if is_keyframe:
      self._refused.pop(slot, None)
      self._keep(frame, slot)
    elif reason is not None:
      self._refused.setdefault(slot, (reason, frame.time_s))

  @property
  def damaged_share(self) -> float:
    """Share of the frames so far that show damage of the file."""
    return self._num_damaged / max(1, self._num_frames)

  def _judge(
    self,
    image: UInt8[np.ndarray, 'h w 3'],
    following: UInt8[np.ndarray, 'h w 3'] | None,
  ) -> rejections.Reason | None:
    """Why the picture is no keyframe, by what the camera saw of it."""
    (top, bottom), (left, right) = (
      (round(low * size), round(high * size))
      for (low, high), size in zip(self._sight_box, image.shape)
    )
    in_sight = np.s_[top:bottom, left:right]
    return self._filter.judge(
      image[in_sight], None if following is None else following[in_sight]
    )

  def _follow(
    self, image: UInt8[np.ndarray, 'h w 3'], is_keyframe: bool
  ) -> None:
    """Follows the points of the last keyframe, and all that moves."""
    if self._tracker is not None:
      self._tracker.step(image)
    if self._motion is None:
      return
    if is_keyframe:
      self._motion.keyframe(image)
    else:
      self._motion.step(image)

  def _keep(self, frame: frames.Frame, slot: int) -> None:
    keyframes = self._keyframes
    features = self._matcher.describe(frame.image)
    matchers.check_features(self._matcher.name, features)
    if self._tracker is not None:
      keyframes.tracked_rays.append(self._tracker.rays())
    self._tracker = flow_tracker.FlowTracker(frame.image, features.rays)
    keyframes.times_s.append(frame.time_s)
    keyframes.slots.append(slot)
    keyframes.features.append(features)
    keyframes.pictures.append(frame.image)
    keyframes.width_px = frame.image.shape[1]

  def finish(self) -> Keyframes:
    """The keyframes, and a rejection for every slot without one."""
    if self._motion is not None:
      self._keyframes.static_weights = self._motion.weights()
    self._keyframes.rejected = [
      rejections.Rejection(
        stage=rejections.Stage.FRAMES,
        reason=reason,
        # No keyframe, so no number: the row says when instead.
        details={'times_s': [round(time_s, 3)]},
      )
      for _, (reason, time_s) in sorted(self._refused.items())
    ]
    return self._keyframes
