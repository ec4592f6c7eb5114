"""Video -> timestamped panoramas, in one pass and without seeking."""

import dataclasses
import os
from typing import Any, Iterator

from jaxtyping import UInt8
import numpy as np

from preprocessing.reading import colours, decoding, detection, projections

VideoError = decoding.VideoError
VideoInfo = decoding.VideoInfo
probe = decoding.probe


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
  """How videos are read.

  Attributes:
    projection: layout of their frames, by its name; auto: found out for each.
    trust_projection: a layout that is named holds, whatever pictures show.
    max_width_px: wider panoramas are reduced to this even width.
  """

  projection: str
  trust_projection: bool
  max_width_px: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class Frame:
  """One panorama of a video.

  Attributes:
    time_s: presentation time, counted from the first frame.
    image: [h, w, 3] sRGB, equirectangular.
    is_damaged: it shows damage of the file.
  """

  time_s: float
  image: UInt8[np.ndarray, 'h w 3']
  is_damaged: bool = False


def describe_colours(path: str | os.PathLike[str]) -> dict[str, Any]:
  """What colours a video has and what is done to them, for the manifest.

  Raises:
    VideoError: no video, or its colours are not read.
  """
  return colours.describe(decoding.any_frame(path))


def read_frames(
  path: str | os.PathLike[str],
  fps: float,
  layout: projections.Layout | None = None,
  *,
  max_width_px: int | None = None,
) -> Iterator[Frame]:
  """Yields the frames nearest to the times k / fps, in order.

  A frame is taken when it is the first at or after k / fps, with half a frame
  of tolerance; a video slower than `fps` gives every frame once.

  Args:
    path: the video file.
    fps: frames per second to take.
    layout: of its frames; found out if None.
    max_width_px: wider panoramas are reduced to this even width.

  Raises:
    VideoError: no video, no 360-degree video, or one that is damaged or ends
      before its header says.
  """
  if layout is None:
    layout = detection.decide(path).layout
  for time_s, decoded, is_damaged in decoding.sample(path, fps):
    image = decoding.to_rgb(decoded)
    width_px = layout.width_px(layout.eye(image).shape[1])
    if max_width_px is not None:
      width_px = min(width_px, max_width_px)
    yield Frame(
      time_s=time_s,
      image=projections.to_equirectangular(image, layout, width_px),
      is_damaged=is_damaged,
    )
