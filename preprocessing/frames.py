"""Video -> timestamped panoramas, in one pass and without seeking."""

import dataclasses
import os
import pathlib
from typing import Iterator, Sequence

import av
from jaxtyping import UInt8
import numpy as np

from odin_jax.shared import binary

# A panorama is twice as wide as high; encoders pad it to whole blocks.
_ASPECT_RANGE = (1.9, 2.1)
# Share of the contrast between far columns that the seam must not show, and
# the largest contrast along the pole rows against that along the others.
# Measured on a real hand-held video: 0.70..0.95 and 0.05..0.24; on photographs
# cropped to 2:1: 0.02..0.82 and 0.64 or more. So both are asked for.
_MIN_SEAM_CONTINUITY = 0.5
_MAX_POLE_CONTRAST = 0.45
# Columns that differ by less (in grey levels) say nothing about the seam.
_MIN_CONTRAST = 2.0
_CHECKED_FRAMES = 10


class VideoError(binary.UserError):
  """A file that is no usable 360-degree video; the message names it."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class VideoInfo:
  """What the container says of its first video stream.

  Attributes:
    width: in pixels.
    height: in pixels.
    frame_rate: average frames per second; 0 where unknown.
    duration_s: in seconds; 0 where unknown.
  """

  width: int
  height: int
  frame_rate: float
  duration_s: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class Frame:
  """One panorama of a video.

  Attributes:
    time_s: presentation time, counted from the first frame.
    image: [h, w, 3] sRGB.
  """

  time_s: float
  image: UInt8[np.ndarray, 'h w 3']


def probe(path: str | os.PathLike[str]) -> VideoInfo:
  """Reads the header of a video.

  Raises:
    VideoError: the file cannot be opened as a video.
  """
  with _open(path) as container:
    return _info(container)


def read_frames(
  path: str | os.PathLike[str], fps: float, *, check: bool = True
) -> Iterator[Frame]:
  """Yields the frames nearest to the times k / fps, in order.

  A frame is taken when it is the first at or after k / fps, with half a frame
  of tolerance; a video slower than `fps` gives every frame once.

  Args:
    path: the video file.
    fps: frames per second to take.
    check: refuse a video whose first frames are no panoramas.

  Raises:
    VideoError: no video, no 360-degree video, or one that is damaged or ends
      before its header says.
  """
  frames = _sample(pathlib.Path(path), fps)
  if not check:
    yield from frames
    return
  head: list[Frame] = []
  for frame in frames:
    head.append(frame)
    if len(head) == _CHECKED_FRAMES:
      break
  try:
    check_panoramic([frame.image for frame in head])
  except ValueError as error:
    raise VideoError(f'{path}: {error}') from error
  yield from head
  yield from frames


def check_panoramic(images: Sequence[UInt8[np.ndarray, 'h w 3']]) -> None:
  """Raises ValueError unless the images look like equirectangular panoramas.

  Such an image goes on across its left-right seam, and its first and last
  rows each show a single point of the sphere.
  """
  height, width = images[0].shape[:2]
  low, high = _ASPECT_RANGE
  if not low <= width / height <= high:
    raise ValueError(
      f'{width}x{height} is no 360-degree video: an equirectangular frame is '
      'twice as wide as high; convert it, or give another video'
    )
  scores = [score for image in images if (score := _panorama_scores(image))]
  if not scores:
    raise ValueError(
      'its first frames are too plain to tell whether it is a 360-degree '
      'video; cut a plain beginning off'
    )
  seam, poles = np.median(scores, axis=0)
  if seam < _MIN_SEAM_CONTINUITY or poles > _MAX_POLE_CONTRAST:
    raise ValueError(
      'no 360-degree video: the left edge does not go on from the right edge, '
      f'or a pole is no single point (seam continuity {seam:.2f}, at least '
      f'{_MIN_SEAM_CONTINUITY}; pole contrast {poles:.2f}, at most '
      f'{_MAX_POLE_CONTRAST}); give an equirectangular video'
    )


def _panorama_scores(
  image: UInt8[np.ndarray, 'h w 3'],
) -> tuple[float, float] | None:
  """(seam continuity, pole contrast), or None where nothing can be said."""
  height, width = image.shape[:2]
  pixels = image.astype(np.float32)
  columns = np.arange(0, width - 1, 8)

  def difference(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return np.abs(pixels[:, a] - pixels[:, b]).mean(axis=(0, 2))

  seam = difference(np.array([0]), np.array([width - 1]))[0]
  near = np.median(difference(columns, columns + 1))
  far = np.median(difference(columns, (columns + width // 2) % width))
  rows = np.arange(height // 4, 3 * height // 4, 8)
  contrast = np.median(pixels[rows].std(axis=1))
  if far - near < _MIN_CONTRAST or contrast < _MIN_CONTRAST:
    return None
  poles = pixels[[0, -1]].std(axis=1).mean() / contrast
  return float((far - seam) / (far - near)), float(poles)


def _open(path: str | os.PathLike[str]) -> av.container.InputContainer:
  try:
    container = av.open(os.fspath(path))
  except FileNotFoundError as error:
    raise VideoError(
      f'{path}: no such file; give a 360-degree video'
    ) from error
  except (av.error.FFmpegError, OSError) as error:
    raise VideoError(
      f'{path}: not a video, or truncated ({error.strerror}); give the whole '
      'video file'
    ) from error
  if not container.streams.video:
    container.close()
    raise VideoError(f'{path}: no video stream in it; give a video')
  return container


def _info(container: av.container.InputContainer) -> VideoInfo:
  stream = container.streams.video[0]
  duration_s = 0.0
  if stream.duration:
    duration_s = float(stream.duration * stream.time_base)
  elif container.duration:
    duration_s = container.duration / av.time_base
  return VideoInfo(
    width=stream.width,
    height=stream.height,
    frame_rate=float(stream.average_rate or 0),
    duration_s=duration_s,
  )


def _sample(path: pathlib.Path, fps: float) -> Iterator[Frame]:
  with _open(path) as container:
    info = _info(container)
    stream = container.streams.video[0]
    stream.thread_type = 'AUTO'
    half_frame_s = 0.5 / info.frame_rate if info.frame_rate else 0.0
    start_s: float | None = None
    time_s = 0.0
    taken = 0
    try:
      for decoded in container.decode(stream):
        if decoded.time is None:
          continue
        start_s = decoded.time if start_s is None else start_s
        time_s = decoded.time - start_s
        if time_s + half_frame_s < taken / fps:
          continue
        # A gap in the video (variable frame rate) skips the times inside it.
        taken = int((time_s + half_frame_s) * fps + 1e-6) + 1
        yield Frame(time_s=time_s, image=decoded.to_ndarray(format='rgb24'))
    except av.error.FFmpegError as error:
      raise VideoError(
        f'{path}: damaged at {time_s:.2f} s ({error.strerror}); get the file '
        'again'
      ) from error
  if start_s is None:
    raise VideoError(
      f'{path}: no frame in it can be decoded; get the file again'
    )
  missing_s = info.duration_s - time_s
  if missing_s > max(1.0, 4 * half_frame_s):
    raise VideoError(
      f'{path}: truncated: ends at {time_s:.2f} s of {info.duration_s:.2f} s; '
      'get the file again'
    )
