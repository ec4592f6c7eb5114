"""Video file -> decoded frames at a rate, in one pass and without seeking.

The largest picture of a file is its video, wherever it stands; covers and
thumbnails never are. Two of the same size may be halves of one picture, so such
files are refused.

Damage goes on: a frame that is made from a damaged one shows it, too. What the
decoder flags, what it fails at and what it gives no frame for damages all that
follows in decoding order, up to the next key frame. A frame that does not come
counts as a damaged one: the last that came stands in for it.

What is decoded is what the rate needs. A frame that is not wanted and that no
other frame is made from is left out, and so is the end of a group of pictures
behind its last wanted frame. Both are known from the packets' times, so that
the frames are the same as those of a full decode.
"""

import bisect
import collections
import dataclasses
import itertools
import os
import re
import struct
from typing import BinaryIO, Iterable, Iterator, Mapping, NamedTuple

import av
from av.stream import Disposition
from av.video.frame import PictureType
from jaxtyping import UInt8
import numpy as np

from odin_jax.shared import errors
from preprocessing.reading import colours

# Decoders that leave out frames one by one when told so; packets of others may
# hold several frames, or none. That of HEVC leaves out damaged ones, too, and
# does not say so: of it every frame is asked for.
_SKIPPING_CODECS = ('h264',)
# Of VP9 libvpx fails at most of the damage that FFmpeg's own decoder smears
# over the picture without a word; it decodes the same otherwise.
_STRICT_DECODERS = {'vp9': 'libvpx-vp9'}
# Containers that keep the time of every frame.
_TIMED_CONTAINERS = ('mov,mp4,m4a,3gp,3g2,mj2', 'matroska,webm', 'mpegts')
# Key frames that are tried until one is sound.
_TRIED_PLACES = 10
# Longer groups of pictures are decoded in full, for they are held in memory.
_MAX_GROUP = 300
_DISPLAY_MATRIX = struct.Struct('=9i')
# Streams of pictures that are no video.
_STILLS = (
  Disposition.attached_pic
  | Disposition.timed_thumbnails
  | Disposition.still_image
)
# Matroska's length of a track, such as 00:00:04.007000000; mkvmerge adds the
# language to its name.
_TRACK_DURATION = re.compile(r'(\d+):(\d+):(\d+(?:\.\d+)?)')
# Matroska: ids of the file's header and of the one element behind it, which
# holds all the rest.
_EBML_ID, _SEGMENT_ID = 0x1A45DFA3, 0x18538067


class VideoError(errors.UserError):
  """A file that is no usable 360-degree video; the message names it."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class VideoInfo:
  """What the container says of its video stream.

  Attributes:
    width: in pixels.
    height: in pixels.
    frame_rate: average frames per second; 0 where unknown.
    duration_s: in seconds; 0 where unknown.
    own_duration: `duration_s` is that of the video alone, not of the longest
      stream of the file.
  """

  width: int
  height: int
  frame_rate: float
  duration_s: float
  own_duration: bool


class Sample(NamedTuple):
  """A frame that was taken.

  Attributes:
    time_s: seconds from the first frame.
    frame: as it was decoded; where none was, the one before.
    is_damaged: it, or one that it is made from, was damaged in the file.
  """

  time_s: float
  frame: av.VideoFrame
  is_damaged: bool


def probe(path: str | os.PathLike[str]) -> VideoInfo:
  """Reads the header of a video.

  Raises:
    VideoError: the file cannot be opened as a video.
  """
  with open_video(path) as container:
    return _info(container)


def open_video(path: str | os.PathLike[str]) -> av.container.InputContainer:
  """Opens a file that has a video stream, see `video_stream`.

  Raises:
    VideoError: the file cannot be opened as a video, or which of its streams
      is the video cannot be told.
  """
  try:
    # FFmpeg takes what is before a colon for a protocol, but of whole paths.
    container = av.open(os.path.abspath(path))
  except FileNotFoundError as error:
    raise VideoError(
      f'{path}: no such file; give a 360-degree video'
    ) from error
  except (av.error.FFmpegError, OSError) as error:
    raise VideoError(
      f'{path}: not a video, or truncated ({error.strerror}); give the whole '
      'video file'
    ) from error
  try:
    video_stream(container, path)
  except VideoError:
    container.close()
    raise
  return container


def video_stream(
  container: av.container.InputContainer,
  path: str | os.PathLike[str] | None = None,
) -> av.video.stream.VideoStream:
  """The stream of a file that is its video: the one with the largest picture.

  Args:
    container: see `open_video`, after which there is such a stream.
    path: the file as the user gave it, for the message.

  Raises:
    VideoError: there is none, or there are several of that size, of which each
      may be half of the picture.
  """
  path = path or container.name
  streams = [
    stream
    for stream in container.streams.video
    if not stream.disposition & _STILLS and stream.codec_context is not None
  ]
  if not streams:
    raise VideoError(
      f'{path}: no video stream in it that can be decoded; give a video'
    )
  most = max(stream.width * stream.height for stream in streams)
  largest, *others = (
    stream for stream in streams if stream.width * stream.height == most
  )
  if others:
    raise VideoError(
      f'{path}: {_refusal_of_halves(path, largest, len(others))}'
    )
  return largest


def _refusal_of_halves(
  path: str | os.PathLike[str],
  stream: av.video.stream.VideoStream,
  num_others: int,
) -> str:
  """What to do about several video streams of one size."""
  what = (
    f'{1 + num_others} video streams of the same size ({stream.width}x'
    f'{stream.height})'
  )
  if os.fspath(path).lower().endswith('.insv'):
    return (
      f'{what}, as Insta360 writes its two fisheyes; convert it: ffmpeg -i IN '
      "-filter_complex '[0:v:0][0:v:1]hstack,v360=dfisheye:e:ih_fov=200:"
      "iv_fov=200' OUT.mp4, or export it with Insta360 Studio"
    )
  return (
    f'{what}: each may be half of the picture, as in the .360 files of GoPro '
    'MAX (two EAC strips); convert it to equirectangular, such as with GoPro '
    'Player; where each shows the whole sphere, keep one: ffmpeg -i IN -map '
    '0:v:0 -c copy OUT.mp4'
  )


def to_rgb(frame: av.VideoFrame) -> UInt8[np.ndarray, 'h w 3']:
  """The picture as it is to be shown: sRGB, turned as its metadata says."""
  image, matrix = colours.to_srgb(frame), _display_matrix(frame)
  return image if matrix is None else _turned(image, matrix)


def _display_matrix(frame: av.VideoFrame) -> bytes | None:
  """How the picture is to be turned, see `_turned`; None where it is not."""
  for item in frame.side_data:
    if item.type.name == 'DISPLAYMATRIX':
      return bytes(item)
  return None


def sample(
  path: str | os.PathLike[str], fps: float, *, skip: bool = True
) -> Iterator[Sample]:
  """Yields the frames nearest to the times k / fps, in order.

  A frame is taken when it is the first at or after k / fps, with half a frame
  of tolerance; a video slower than `fps` gives every frame once. Frames that
  carry no time follow each other at the video's rate.

  Args:
    path: the video file.
    fps: frames per second to take.
    skip: leave undecoded what is not needed; the frames are the same.

  Raises:
    VideoError: no video, or one that cannot be read to its end, or ends before
      its header says, or whose colours are not read.
  """
  time_s = last_end_s = 0.0
  last: av.VideoFrame | None = None
  with open_video(path) as container:
    info = _info(container)
    stream = video_stream(container)
    demuxed = _Demuxed(container, stream, others=not info.own_duration)
    decoder = _decoder(path, stream)
    damage = _Damage(decoder)
    grid = _Grid(fps, info.frame_rate)
    plan = _Plan(
      _Grid(fps, info.frame_rate),
      possible=skip
      and stream.codec_context.name in _SKIPPING_CODECS
      and container.format.name in _TIMED_CONTAINERS,
    )
    try:
      for packet, is_wanted in plan.packets(demuxed.packets()):
        decoder.skip_frame = 'DEFAULT' if is_wanted else 'NONREF'
        for pts, frame, is_damaged in damage.decoded(
          packet, is_wanted=is_wanted
        ):
          if frame is not None:
            shown_s = _shown_s(frame, info, path, plan.start_s, time_s)
            if plan.start_s is None:
              plan.start_s = shown_s
            time_s = shown_s - plan.start_s
            last_end_s = max(last_end_s, time_s + _length_s(frame))
            last = frame
          elif last is None:
            # There is no time to count from.
            continue
          else:
            time_s = float(pts * stream.time_base) - plan.start_s
          if grid.takes(time_s):
            _check_colours(path, last)
            yield Sample(time_s, last, is_damaged)
    except av.error.FFmpegError as error:
      raise VideoError(
        f'{path}: damaged at {time_s:.2f} s ({error.strerror}); get the file '
        'again'
      ) from error
  if plan.start_s is None:
    raise VideoError(
      f'{path}: no frame in it can be decoded; get the file again'
    )
  # Some containers state when the video ends, not how long it lasts.
  end_s = last_end_s + max(0.0, plan.start_s)
  # Where only the longest stream's length is known, that one tells.
  end_s = max(end_s, demuxed.others_end_s)
  is_short = info.duration_s - end_s > max(1.0, 4 * grid.half_frame_s)
  if is_short and not _is_whole_matroska(path):
    raise VideoError(
      f'{path}: truncated: ends at {time_s:.2f} s of {info.duration_s:.2f} s; '
      'get the file again'
    )


def key_frames(
  path: str | os.PathLike[str], max_count: int
) -> list[av.VideoFrame]:
  """Key frames from all over a video: those before max_count even times.

  A place that cannot be reached or decoded gives none; reading the video will
  say so. A file that cannot be sought in gives its first.

  Raises:
    VideoError: no video, or none of these frames can be decoded, or their
      colours are not read.
  """
  frame_at = {frame.pts: frame for frame in _sought(path, max_count)}
  return list(frame_at.values())


def any_frame(path: str | os.PathLike[str]) -> av.VideoFrame:
  """A key frame, the first of a sound video.

  Raises:
    VideoError: as for `key_frames`.
  """
  return next(_sought(path, _TRIED_PLACES))


def _sought(
  path: str | os.PathLike[str], max_count: int
) -> Iterator[av.VideoFrame]:
  """Yields the key frames before even times, and raises if there are none."""
  any_came = False
  with open_video(path) as container:
    stream = video_stream(container)
    stream.codec_context.skip_frame = 'NONKEY'
    length_s = _info(container).duration_s
    for place in range(max_count):
      try:
        if place:
          offset_s = (place + 0.5) / max_count * length_s
          start = stream.start_time or 0
          container.seek(
            start + int(offset_s / stream.time_base), stream=stream
          )
        frames = list(itertools.islice(container.decode(stream), 1))
      except av.error.FFmpegError:
        continue
      for frame in frames:
        if not frame.is_corrupt:
          _check_colours(path, frame)
          any_came = True
          yield frame
  if not any_came:
    raise VideoError(
      f'{path}: no frame in it can be decoded; get the file again'
    )


def _check_colours(path: str | os.PathLike[str], frame: av.VideoFrame) -> None:
  """Raises VideoError where `to_rgb` cannot read the colours of a frame."""
  fault = colours.fault(frame)
  if fault:
    raise VideoError(f'{path}: {fault}')


def _decoder(
  path: str | os.PathLike[str], stream: av.video.stream.VideoStream
) -> av.VideoCodecContext:
  """What decodes a stream: its own decoder, or one that fails at damage.

  The latter knows what is in the packets alone: not whether the picture is to
  be turned, and no more than 8 bits.
  """
  own = stream.codec_context
  own.thread_type = 'AUTO'
  name = _STRICT_DECODERS.get(own.name)
  if name is None:
    return own
  frame = any_frame(path)
  is_deep = frame.format.components[0].bits > 8
  if is_deep or _display_matrix(frame) is not None:
    return own
  decoder = av.CodecContext.create(name, 'r')
  decoder.color_trc = frame.color_trc
  decoder.color_primaries = frame.color_primaries
  return decoder


class _Decoded(NamedTuple):
  """What became of a packet.

  Attributes:
    pts: presentation time; None where the packets carry none.
    frame: None where the decoder gave none.
    is_damaged: see `Sample`.
  """

  pts: int | None
  frame: av.VideoFrame | None
  is_damaged: bool


class _Damage:
  """Decodes, and tells which frames show damage.

  Frames wait until it is known: until all that was decoded before them is out,
  which is as long as the decoder reorders.
  """

  def __init__(self, decoder: av.VideoCodecContext):
    self._decoder = decoder
    # By time: number in decoding order, and the latest time up to there.
    self._number: dict[int, int] = {}
    self._latest: dict[int, int] = {}
    self._latest_pts: int | None = None
    # Those of them whose frames have to come.
    self._expected: set[int] = set()
    # Number -> time of key frames, and numbers of what is damaged; ascending.
    self._keys: dict[int, int] = {}
    self._damaged: list[int] = []
    # Times and frames, which are None where they are lost.
    self._waiting: collections.deque[tuple[int, av.VideoFrame | None]] = (
      collections.deque()
    )
    self._num_sent = 0
    # Largest number and time of the frames that are out.
    self._last_received, self._last_pts = -1, 0
    # Frames without times are judged in the order in which they come.
    self._is_damaged_now = False

  def decoded(
    self, packet: av.Packet, *, is_wanted: bool
  ) -> Iterator[_Decoded]:
    """Decodes a packet; yields what is known of it and of earlier ones."""
    if packet.size:
      self._send(packet, is_wanted=is_wanted)
    try:
      frames = self._decoder.decode(packet)
    except av.error.InvalidDataError:
      # Threads fail late: it may have been any since the last frame.
      self._is_damaged_now = True
      self._mark(min(self._last_received, self._num_sent - 1) + 1)
      frames = []
    for frame in frames:
      yield from self._receive(frame)
    if not packet.size:
      self._lose(self._expected)
      while self._waiting:
        yield self._judged(*self._waiting.popleft())

  def _send(self, packet: av.Packet, *, is_wanted: bool) -> None:
    number, pts = self._num_sent, packet.pts
    self._num_sent += 1
    if packet.is_corrupt:
      self._mark(number)
    if pts is None:
      self._is_damaged_now |= packet.is_corrupt
      return
    if packet.is_keyframe:
      if self._last_received >= 0:
        self._forget()
      self._keys[number] = pts
    self._number[pts] = number
    if self._latest_pts is None or pts > self._latest_pts:
      self._latest_pts = pts
    self._latest[pts] = self._latest_pts
    # What leads up to the first key frame cannot be decoded.
    is_leading = not self._keys or pts < next(iter(self._keys.values()))
    if is_wanted and not is_leading and not packet.is_discard:
      self._expected.add(pts)

  def _receive(self, frame: av.VideoFrame) -> Iterator[_Decoded]:
    pts = frame.pts
    if pts not in self._number:
      if frame.key_frame and frame.pict_type == PictureType.I:
        self._is_damaged_now = False
      self._is_damaged_now |= frame.is_corrupt
      yield _Decoded(pts, frame, self._is_damaged_now)
      return
    number = self._number[pts]
    self._last_received = max(self._last_received, number)
    self._last_pts = pts
    if frame.is_corrupt:
      self._mark(number)
    # A picture that is refreshed bit by bit is not sound at once. Some decoders
    # do not say what a picture is.
    is_intra = frame.pict_type in (PictureType.I, PictureType.NONE)
    if not is_intra and len(self._keys) > 1 and self._keys.get(number) == pts:
      del self._keys[number]
    self._expected.discard(pts)
    self._lose({earlier for earlier in self._expected if earlier < pts})
    self._waiting.append((pts, frame))
    while self._waiting and self._latest[self._waiting[0][0]] <= pts:
      yield self._judged(*self._waiting.popleft())

  def _mark(self, number: int) -> None:
    bisect.insort(self._damaged, number)

  def _lose(self, times: set[int]) -> None:
    """Frames that did not come: they are out in the order of their times."""
    for pts in sorted(times):
      self._mark(self._number[pts])
      self._waiting.append((pts, None))
    self._expected = self._expected - times

  def _forget(self) -> None:
    """Drops what no frame that is still to come needs."""
    oldest = self._waiting[0][0] if self._waiting else self._last_pts
    kept = [pts for pts in self._number if pts >= oldest]
    self._number = {pts: self._number[pts] for pts in kept}
    self._latest = {pts: self._latest[pts] for pts in kept}

  def _judged(self, pts: int, frame: av.VideoFrame | None) -> _Decoded:
    """The frame, and whether there is damage from its key frame up to it."""
    number = self._number[pts]
    # What is shown before a key frame is made from the group before it, too.
    # Most often the last one: a long video has thousands.
    start = next(
      (
        key
        for key, key_pts in reversed(self._keys.items())
        if key <= number and key_pts <= pts
      ),
      0,
    )
    first = bisect.bisect_left(self._damaged, start)
    is_damaged = bisect.bisect_right(self._damaged, number) > first
    return _Decoded(pts, frame, is_damaged)


class _Grid:
  """The times k / fps, each of which one frame is taken for."""

  def __init__(self, fps: float, frame_rate: float):
    self.half_frame_s = 0.5 / frame_rate if frame_rate else 0.0
    self._fps = fps
    self._taken = 0

  def takes(self, time_s: float) -> bool:
    """Whether the next frame, which is shown at this time, is taken."""
    if time_s + self.half_frame_s < self._taken / self._fps:
      return False
    # A gap in the video (variable frame rate) skips the times inside it.
    self._taken = int((time_s + self.half_frame_s) * self._fps + 1e-6) + 1
    return True


class _Plan:
  """Which packets hold frames that a grid will take.

  Nothing is skipped before the first frame is out, since times count from it,
  nor in the last group of pictures, since its end tells whether the file is
  whole.

  Attributes:
    start_s: presentation time of the first frame, which the reader sets.
  """

  def __init__(self, grid: _Grid, *, possible: bool):
    self.start_s: float | None = None
    self._grid = grid
    self._possible = possible
    # Times that wait for the first frame's.
    self._early: list[float] = []

  def packets(
    self, demuxed: Iterable[av.Packet]
  ) -> Iterator[tuple[av.Packet, bool]]:
    """Yields the packets to decode, and whether their frames are wanted."""
    groups = itertools.chain(_groups(demuxed), [[]])
    for group, following in itertools.pairwise(groups):
      is_taken = self._are_taken(group)
      end = len(group)
      if not following:
        is_taken = [True] * end
      elif self._possible and _starts_afresh(following):
        while end and not is_taken[end - 1]:
          end -= 1
      yield from zip(group[:end], is_taken[:end], strict=True)

  def _are_taken(self, group: list[av.Packet]) -> list[bool]:
    """Whether the frame of each packet is taken."""
    all_of_it = [True] * len(group)
    self._possible = self._possible and _tells_times(group)
    if not self._possible:
      return all_of_it
    times = [_seconds(packet) for packet in group]
    if self.start_s is None:
      self._early += times
      return all_of_it
    for time_s in sorted(self._early):
      self._grid.takes(time_s - self.start_s)
    self._early = []
    taken = {
      time_s
      for time_s in sorted(times)
      if self._grid.takes(time_s - self.start_s)
    }
    return [time_s in taken for time_s in times]


def _groups(packets: Iterable[av.Packet]) -> Iterator[list[av.Packet]]:
  """Groups of pictures, each from a key frame on, in decoding order."""
  group: list[av.Packet] = []
  for packet in packets:
    if group and (packet.is_keyframe or len(group) > _MAX_GROUP):
      yield group
      group = []
    group.append(packet)
  yield group


def _tells_times(group: list[av.Packet]) -> bool:
  """Whether every packet becomes one frame at a time of its own."""
  times = {packet.pts for packet in group if not packet.is_discard}
  return len(times) == len(group) <= _MAX_GROUP and None not in times


def _starts_afresh(group: list[av.Packet]) -> bool:
  """Whether a group needs no frame of the one before it."""
  return (
    group[0].is_keyframe
    and _tells_times(group)
    and group[0].pts == min(packet.pts for packet in group)
  )


def _seconds(timed: av.Packet | av.VideoFrame) -> float:
  return float(timed.pts * timed.time_base)


def _shown_s(
  frame: av.VideoFrame,
  info: VideoInfo,
  path: str | os.PathLike[str],
  start_s: float | None,
  last_s: float,
) -> float:
  """Presentation time; after the last frame's where it carries none."""
  if frame.pts is not None:
    return _seconds(frame)
  if not info.frame_rate:
    raise VideoError(
      f'{path}: neither times nor a frame rate in it; write it anew, as MP4'
    )
  return 0.0 if start_s is None else start_s + last_s + 1 / info.frame_rate


def _info(container: av.container.InputContainer) -> VideoInfo:
  stream = video_stream(container)
  own_s = (
    float(stream.duration * stream.time_base)
    if stream.duration
    else _tagged_duration_s(stream.metadata)
  )
  return VideoInfo(
    width=stream.width,
    height=stream.height,
    frame_rate=float(stream.average_rate or 0),
    duration_s=own_s or (container.duration or 0) / av.time_base,
    own_duration=own_s > 0,
  )


def _tagged_duration_s(tags: Mapping[str, str]) -> float:
  """Length of a track of Matroska by its tags; 0 where none says it."""
  for name, value in tags.items():
    match = _TRACK_DURATION.match(value)
    if match and name.upper().partition('-')[0] == 'DURATION':
      hours, minutes, seconds = map(float, match.groups())
      return 3600 * hours + 60 * minutes + seconds
  return 0.0


class _Demuxed:
  """The packets of a video, and where the other streams of its file end.

  Attributes:
    others_end_s: end of the last packet of another stream, so far.
  """

  def __init__(
    self,
    container: av.container.InputContainer,
    stream: av.video.stream.VideoStream,
    *,
    others: bool,
  ):
    self.others_end_s = 0.0
    self._container = container
    self._stream = stream
    self._streams = list(container.streams) if others else [stream]

  def packets(self) -> Iterator[av.Packet]:
    """Yields the packets of the video alone."""
    for packet in self._container.demux(self._streams):
      # The packet that ends a stream has the index 0, whatever stream it ends.
      if packet.stream is self._stream:
        yield packet
      elif packet.pts is not None:
        self.others_end_s = max(
          self.others_end_s, _seconds(packet) + _length_s(packet)
        )


def _length_s(timed: av.Packet | av.VideoFrame) -> float:
  """How long it is shown, in seconds; 0 where it does not say."""
  return float((timed.duration or 0) * (timed.time_base or 0))


def _is_whole_matroska(path: str | os.PathLike[str]) -> bool:
  """Whether a file is Matroska or WebM and as long as its header says.

  In these the last picture may last long without a word of it.
  """
  size = os.path.getsize(path)
  with open(path, 'rb') as file:
    for expected in (_EBML_ID, _SEGMENT_ID):
      if int.from_bytes(file.read(4)) != expected:
        return False
      length = _ebml_length(file)
      if length is None or file.tell() + length > size:
        return False
      if expected == _EBML_ID:
        file.seek(length, os.SEEK_CUR)
  return True


def _ebml_length(file: BinaryIO) -> int | None:
  """Length of the element whose id was just read; None where it is unknown."""
  (first,) = file.read(1) or (0,)
  if not first:
    return None
  # As many bytes follow as there are zeros before the first bit that is set.
  num_more = 8 - first.bit_length()
  bits = 7 * (num_more + 1)
  length = (
    int.from_bytes(bytes([first]) + file.read(num_more)) & (1 << bits) - 1
  )
  return None if length == (1 << bits) - 1 else length


def _turned(
  image: UInt8[np.ndarray, 'h w 3'], matrix: bytes
) -> UInt8[np.ndarray, 'H W 3']:
  """Turns and mirrors a picture by quarter turns, as FFmpeg's display matrix.

  The matrix maps (x, y) to (a x + c y, b x + d y); its first rows are
  (a, b, _), (c, d, _).
  """
  a, b, _, c, d = _DISPLAY_MATRIX.unpack(matrix)[:5]
  if abs(b) + abs(c) > abs(a) + abs(d):
    image, a, d = image.swapaxes(0, 1), c, b
  if d < 0:
    image = np.flipud(image)
  if a < 0:
    image = np.fliplr(image)
  return np.ascontiguousarray(image)
