"""A video, read once: keyframes, their features, and where their points went."""

import dataclasses
import itertools
import os
from typing import Any, Callable, Iterator

from jaxtyping import Float, UInt8
import ml_collections
import numpy as np

from odin_jax.shared import camera
from preprocessing import matchers
from preprocessing.keyframes import flow_tracker, frame_quality, static_weights
from preprocessing.keyframes.panorama_store import Pictures
from preprocessing.reading import frames, projections

Progress = Callable[[str, float], None]
# Points are not followed into such frames: nothing of the scene is in them.
_WITHOUT_SCENE = (frame_quality.BLACK, frame_quality.STATIC)


@dataclasses.dataclass
class Observed:
  """What is kept of a video while it is read, once.

  Attributes:
    times_s: of the keyframes.
    slots: which 1 / fps of the video each keyframe stands for.
    pictures: the keyframes.
    features: of the keyframes.
    arrivals: where the points of each keyframe but the last are in the next.
    static_weights: of the keyframes, see `static_weights`; empty where not asked for.
    width_px: of the panoramas.
    dropped: ledger rows of slots without a usable frame.
  """

  times_s: list[float] = dataclasses.field(default_factory=list)
  slots: list[int] = dataclasses.field(default_factory=list)
  pictures: Pictures = dataclasses.field(default_factory=Pictures)
  features: list[matchers.Features] = dataclasses.field(default_factory=list)
  arrivals: list[Float[np.ndarray, 'n 3']] = dataclasses.field(
    default_factory=list
  )
  static_weights: list[UInt8[np.ndarray, 'h w']] = dataclasses.field(
    default_factory=list
  )
  width_px: int = 0
  dropped: list[dict[str, Any]] = dataclasses.field(default_factory=list)


def observe(
  path: str | os.PathLike[str],
  config: ml_collections.ConfigDict,
  matcher: matchers.Matcher,
  layout: projections.Layout,
  progress: Progress = lambda stage, share: None,
) -> Observed:
  """Reads a video, describes its keyframes and follows their points.

  A keyframe is the first usable frame at or after k / fps and before
  (k + 1) / fps.

  Args:
    path: the video.
    config: see `configs/preprocess.py`.
    matcher: describes the keyframes.
    layout: of the video's frames.
    progress: told of the share of the video that is read.

  Raises:
    frames.VideoError: it is no usable 360-degree video.
  """
  reader = _Reader(config, matcher, layout)
  rate = config.fps * config.substeps
  length_s = max(frames.probe(path).duration_s, 1 / rate)
  found = frames.read_frames(
    path, rate, layout, max_width_px=config.max_panorama_width_px
  )
  for frame, following in _with_following(found):
    slot = round(frame.time_s * rate) // config.substeps
    reader.add(frame, slot, following.image if following else None)
    progress('frames', min(1.0, frame.time_s / length_s))
  return reader.finish()


def _with_following(
  found: Iterator[frames.Frame],
) -> Iterator[tuple[frames.Frame, frames.Frame | None]]:
  return itertools.pairwise(itertools.chain(found, [None]))


def _seen_box(layout: projections.Layout) -> Float[np.ndarray, '2 2']:
  """Rows and columns that hold what the camera saw, as shares of a panorama."""
  height, width = shape = 36, 72
  centres = camera.pixel_centres(width, height)
  seen = layout.sees(camera.equirect_to_direction(*centres, width, height))
  limits = [np.flatnonzero(seen.any(axis=axis))[[0, -1]] for axis in (1, 0)]
  return (np.array(limits) + [0, 1]) / np.array(shape)[:, None]


class _Reader:
  """Takes the frames one by one."""

  def __init__(
    self,
    config: ml_collections.ConfigDict,
    matcher: matchers.Matcher,
    layout: projections.Layout,
  ):
    self._matcher = matcher
    self._box = _seen_box(layout)
    self._filter = frame_quality.FrameFilter(
      frame_quality.FrameRules(**config.frames)
    )
    self._motion = (
      static_weights.MotionEstimator(
        static_weights.MotionRules(**config.motion)
      )
      if config.static_weights
      else None
    )
    self._seen = Observed()
    self._tracker: flow_tracker.FlowTracker | None = None
    # First reason and time of the slots that have no keyframe so far.
    self._refused: dict[int, tuple[str, float]] = {}

  def add(
    self,
    frame: frames.Frame,
    slot: int,
    following: UInt8[np.ndarray, 'h w 3'] | None,
  ) -> None:
    """Takes the next frame, which may become the keyframe of its slot."""
    is_open = not self._seen.slots or slot > self._seen.slots[-1]
    reason = self._judge(frame.image, following) if is_open else ''
    if reason in _WITHOUT_SCENE:
      self._refused.setdefault(slot, (reason, frame.time_s))
      return
    if self._tracker is not None:
      self._tracker.step(frame.image)
    if self._motion is not None:
      is_keyframe = is_open and not reason
      show = self._motion.keyframe if is_keyframe else self._motion.step
      show(frame.image)
    if reason:
      self._refused.setdefault(slot, (reason, frame.time_s))
    elif is_open:
      self._refused.pop(slot, None)
      self._keep(frame, slot)

  def _judge(
    self,
    image: UInt8[np.ndarray, 'h w 3'],
    following: UInt8[np.ndarray, 'h w 3'] | None,
  ) -> str:
    """Why the picture is no keyframe, by what the camera saw of it."""
    (top, bottom), (left, right) = (
      (round(low * size), round(high * size))
      for (low, high), size in zip(self._box, image.shape)
    )
    seen = np.s_[top:bottom, left:right]
    return self._filter.judge(
      image[seen], None if following is None else following[seen]
    )

  def _keep(self, frame: frames.Frame, slot: int) -> None:
    seen = self._seen
    features = self._matcher.describe(frame.image)
    if self._tracker is not None:
      seen.arrivals.append(self._tracker.rays())
    self._tracker = flow_tracker.FlowTracker(frame.image, features.rays)
    seen.times_s.append(frame.time_s)
    seen.slots.append(slot)
    seen.features.append(features)
    seen.pictures.append(frame.image)
    seen.width_px = frame.image.shape[1]

  def finish(self) -> Observed:
    """What was seen, with a ledger row for every slot that was refused."""
    if self._motion is not None:
      self._seen.static_weights = self._motion.weights()
    self._seen.dropped = [
      {'stage': 'frames', 'reason': reason, 'times_s': [round(time_s, 3)]}
      for _, (reason, time_s) in sorted(self._refused.items())
    ]
    return self._seen
