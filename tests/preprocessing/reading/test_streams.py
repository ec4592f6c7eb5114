"""Files with several streams: which is the video, and whether all of it came."""

import av
from av.stream import Disposition
import numpy as np
import pytest

from preprocessing.reading import decoding, detection, frames, projections
from tests.helpers import layouts

_SOUND_RATE = 48_000
_PANORAMA = projections.Layout()


def pictures(count: int = 60):
  image = layouts.panorama()[::2, ::2]
  return [np.roll(image, 4 * i, axis=1) for i in range(count)]


def add_video(container, size, codec='libx264', rate=20):
  stream = container.add_stream(codec, rate=rate)
  stream.width, stream.height = size
  stream.pix_fmt = 'yuv420p'
  stream.options = {'g': '10'}
  return stream


def encoded(stream, images, *, last_s=0.0):
  """Packets of pictures, of which the last is shown for longer."""
  packets = []
  for image in images:
    height, width = image.shape[:2]
    frame = av.VideoFrame.from_ndarray(image, format='rgb24')
    frame = frame.reformat(stream.width, stream.height)
    packets += stream.encode(frame)
  packets += stream.encode()
  if last_s:
    last = max(packets, key=lambda packet: packet.pts)
    last.duration = int(last_s / last.time_base)
  return packets


def write_streams(path, sizes, *, cover=()):
  """A video with a stream of every size, and a cover of a size before them."""
  with av.open(str(path), 'w', format='mp4') as container:
    if cover:
      still = add_video(container, cover, 'mjpeg')
      still.pix_fmt = 'yuvj420p'
      still.disposition = Disposition.attached_pic
    streams = [add_video(container, size) for size in sizes]
    if cover:
      container.mux(encoded(still, pictures(1)))
    for stream in streams:
      container.mux(encoded(stream, pictures()))
  return path


def write_long(path, *, sound_s=0.0, last_s=0.0, codec='libx264'):
  """Three seconds of video, and sound that goes on, or a picture that stays."""
  with av.open(str(path), 'w') as container:
    video = add_video(container, (256, 128), codec)
    packets = encoded(video, pictures(), last_s=last_s)
    if sound_s:
      sound = container.add_stream('libopus', rate=_SOUND_RATE)
      noise = np.random.default_rng(0).normal(size=(1, 960)).astype(np.float32)
      for index in range(int(sound_s * _SOUND_RATE / 960)):
        frame = av.AudioFrame.from_ndarray(noise / 9, 'flt', 'mono')
        frame.sample_rate, frame.pts = _SOUND_RATE, 960 * index
        packets += sound.encode(frame)
      packets += sound.encode()
    packets.sort(key=lambda packet: packet.dts * packet.time_base)
    for packet in packets:
      container.mux(packet)
  return path


def cut(path, share):
  data = path.read_bytes()
  path.write_bytes(data[: int(len(data) * share)])
  return path


@pytest.mark.parametrize(
  'sizes', [((64, 32), (256, 128)), ((256, 128), (64, 32))]
)
def test_the_largest_picture_is_the_video(tmp_path, sizes):
  path = write_streams(tmp_path / 'video.mp4', sizes)
  assert frames.probe(path).width == 256
  assert detection.decide(path).layout == _PANORAMA
  taken = list(frames.read_frames(path, 5.0))
  assert len(taken) == 15
  for frame, image in zip(taken, pictures()[::4], strict=True):
    assert frame.image.shape == image.shape
    assert np.abs(frame.image.astype(int) - image).mean() < 5


def test_a_cover_is_no_video(tmp_path):
  path = tmp_path / 'video.mp4'
  write_streams(path, [(256, 128)], cover=(512, 256))
  with av.open(str(path)) as container:
    sizes = {stream.width: stream for stream in container.streams.video}
    assert sizes[512].disposition & Disposition.attached_pic
  assert frames.probe(path).width == 256
  write_streams(path, [], cover=(512, 256))
  with pytest.raises(frames.VideoError, match='no video stream'):
    frames.probe(path)


@pytest.mark.parametrize(
  'name,words', [('a.360', 'GoPro.*two EAC'), ('a.insv', 'fisheye.*v360')]
)
def test_two_halves_are_refused_by_name(tmp_path, monkeypatch, name, words):
  write_streams(tmp_path / name, [(256, 128)] * 2)
  monkeypatch.chdir(tmp_path)
  # The file is named as it was given: ends of runs count messages by what
  # stands behind it.
  message = f'^{name}: 2 video streams.*{words}'
  for forced in (None, 'eac'):
    with pytest.raises(frames.VideoError, match=message):
      detection.decide(name, forced)


def test_the_files_of_cameras_are_used_or_refused(shared_data):
  folder = shared_data / 'video_cases'
  with pytest.raises(frames.VideoError, match='GoPro'):
    detection.decide(folder / 'K6_gopro_two_streams.360')
  path = folder / 'K8_preview_stream_first.mp4'
  shapes = [frame.image.shape for frame in frames.read_frames(path, 5.0)]
  assert shapes == [(192, 384, 3)] * 15


_LONG = {
  'mkv': ('video.mkv', 'libx264', {'sound_s': 6.0}),
  'webm': ('video.webm', 'libvpx', {'sound_s': 6.0}),
  'mp4': ('video.mp4', 'libx264', {'sound_s': 6.0}),
  'ts': ('video.ts', 'libx264', {'sound_s': 6.0}),
  'last picture, mkv': ('video.mkv', 'libx264', {'last_s': 4.0}),
  'last picture, webm': ('video.webm', 'libvpx', {'last_s': 4.0}),
  'last picture, mp4': ('video.mp4', 'libx264', {'last_s': 4.0}),
}


@pytest.mark.parametrize('case', _LONG)
def test_what_goes_on_longer_is_no_truncation(tmp_path, case):
  name, codec, longer = _LONG[case]
  path = write_long(tmp_path / name, codec=codec, **longer)
  taken = list(frames.read_frames(path, 5.0, _PANORAMA))
  assert len(taken) == 15


@pytest.mark.parametrize('sound_s', [0.0, 6.0])
@pytest.mark.parametrize(
  'name,codec',
  [('v.mkv', 'libx264'), ('v.webm', 'libvpx'), ('v.mp4', 'libx264')],
)
def test_a_video_that_was_cut_is_refused(tmp_path, name, codec, sound_s):
  # Half of the file is less than the video: the sound is small.
  path = cut(write_long(tmp_path / name, codec=codec, sound_s=sound_s), 0.3)
  with pytest.raises(frames.VideoError, match='truncated|damaged|not a video'):
    list(frames.read_frames(path, 5.0, _PANORAMA))


def test_a_length_without_the_video_s_own_is_that_of_all(tmp_path, monkeypatch):
  """Matroska of other writers: no length but the file's."""
  monkeypatch.setattr(decoding, '_tagged_duration_s', lambda tags: 0.0)
  path = write_long(tmp_path / 'video.mkv', sound_s=6.0)
  assert not frames.probe(path).own_duration
  assert len(list(frames.read_frames(path, 5.0, _PANORAMA))) == 15
  cut(path, 0.3)
  with pytest.raises(frames.VideoError, match='truncated'):
    list(frames.read_frames(path, 5.0, _PANORAMA))


@pytest.mark.parametrize(
  'tags,seconds',
  [
    ({'DURATION': '00:01:04.500000000'}, 64.5),
    ({'DURATION-eng': '01:00:00'}, 3600.0),
    ({'ENCODER': '1:1:1'}, 0.0),
    ({'DURATION': 'unknown'}, 0.0),
  ],
)
def test_lengths_of_tracks_are_read_from_tags(tags, seconds):
  assert decoding._tagged_duration_s(tags) == seconds


def test_sound_that_is_longer_costs_no_frame(shared_data):
  folder = shared_data / 'video_cases'
  counts = [
    len(list(frames.read_frames(folder / name, 5.0)))
    for name in ('walk4.mp4', 'K1_longaudio.mkv')
  ]
  assert counts == [20, 20]
