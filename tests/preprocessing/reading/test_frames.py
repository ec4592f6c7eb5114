"""Frames: their times, colours and layout, and what is refused."""

import functools
import os
import pathlib

import av
from av.video.reformatter import ColorRange, Colorspace
import numpy as np
import pytest

from odin_jax.shared import camera
from preprocessing.reading import decoding, frames, projections
from tests.helpers import layouts


@functools.cache
def smooth_panorama() -> np.ndarray:
  """Low-pass noise on the sphere."""
  rng = np.random.default_rng(0)
  centres = camera.pixel_centres(192, 96)
  directions = camera.equirect_to_direction(*centres, 192, 96)
  image = np.zeros((96, 192, 3))
  for _ in range(12):
    wave = np.sin(directions @ rng.normal(size=3) * 3)
    image += wave[..., None] * rng.normal(size=3) * 20
  return np.clip(image + 128, 0, 255).astype(np.uint8)


def panorama(shift: int = 0) -> np.ndarray:
  """A smooth panorama, turned by `shift` pixels."""
  return np.roll(smooth_panorama(), -shift, axis=1)


def write_video(path: pathlib.Path, images, rate: int = 30, **kwargs) -> None:
  layouts.write_video(path, images, rate=rate, **kwargs)


def taken(path: pathlib.Path, fps: float, *, skip: bool):
  """Times and pictures of the frames that a rate takes."""
  return [
    (time_s, decoding.to_rgb(frame).tobytes())
    for time_s, frame, _ in decoding.sample(path, fps, skip=skip)
  ]


@pytest.mark.parametrize(
  'rate,fps', [(30, 1.0), (30, 5.0), (25, 2.0), (10, 3.0)]
)
def test_frame_times_are_the_first_at_or_after_the_grid(tmp_path, rate, fps):
  path = tmp_path / 'video.mp4'
  write_video(path, [panorama(i) for i in range(3 * rate + 1)], rate)
  times = [frame.time_s for frame in frames.read_frames(path, fps)]
  assert len(times) == int(3 * fps) + 1
  lag = np.array(times) - np.arange(len(times)) / fps
  assert np.all(np.abs(lag) <= 0.5 / rate + 1e-6)


def test_frames_show_what_was_written(tmp_path):
  path = tmp_path / 'video.mp4'
  write_video(path, [panorama(4 * (i // 30)) for i in range(91)])
  for k, frame in enumerate(frames.read_frames(path, 1.0)):
    error = np.abs(frame.image.astype(int) - panorama(4 * k)).mean()
    wrong = np.abs(frame.image.astype(int) - panorama(4 * (k + 1))).mean()
    assert error < 3 < wrong


def test_a_video_slower_than_asked_gives_every_frame_once(tmp_path):
  path = tmp_path / 'video.mp4'
  write_video(path, [panorama(i) for i in range(8)], rate=4)
  times = [frame.time_s for frame in frames.read_frames(path, 30.0)]
  np.testing.assert_allclose(times, np.arange(8) / 4, atol=1e-3)


def test_probe_reads_the_header(tmp_path):
  path = tmp_path / 'video.mp4'
  write_video(path, [panorama(i) for i in range(60)])
  info = frames.probe(path)
  assert (info.width, info.height) == (192, 96)
  assert info.frame_rate == pytest.approx(30)
  assert info.duration_s == pytest.approx(2, abs=0.05)


def test_a_file_that_is_no_video_is_refused(tmp_path):
  path = tmp_path / 'notes.mp4'
  path.write_text('no video at all\n' * 100)
  with pytest.raises(frames.VideoError, match='notes.mp4.*not a video'):
    next(frames.read_frames(path, 1.0))
  with pytest.raises(frames.VideoError, match='no such file'):
    next(frames.read_frames(tmp_path / 'absent.mp4', 1.0))


_NAMES = ('x' * 246, os.fsdecode(b'caf\xe9'), '%03d', 'a:b', 'http:a', '-a')


@pytest.mark.parametrize('name', _NAMES, ids=ascii)
def test_any_name_of_a_file_is_read(tmp_path, monkeypatch, name):
  monkeypatch.chdir(tmp_path)
  path = pathlib.Path(f'{name}.mp4')
  write_video(tmp_path / 'video.mp4', [panorama(i) for i in range(3)])
  (tmp_path / 'video.mp4').rename(path)
  assert len(list(frames.read_frames(path, 30.0, projections.Layout()))) == 3
  path.write_text('no video at all\n' * 100)
  with pytest.raises(frames.VideoError, match='not a video'):
    frames.probe(path)


@pytest.mark.parametrize('faststart', [True, False])
def test_a_truncated_video_is_refused(tmp_path, faststart):
  path = tmp_path / 'video.mp4'
  muxer = {'movflags': 'faststart'} if faststart else None
  write_video(path, [panorama(i) for i in range(150)], muxer=muxer)
  data = path.read_bytes()
  path.write_bytes(data[: len(data) // 2])
  with pytest.raises(frames.VideoError, match='truncated|damaged|not a video'):
    list(frames.read_frames(path, 1.0))


def test_a_part_of_a_panorama_is_refused(tmp_path):
  path = tmp_path / 'flat.mp4'
  write_video(path, [panorama(i)[:, :128] for i in range(30)])
  with pytest.raises(frames.VideoError, match='no 360-degree video'):
    list(frames.read_frames(path, 1.0))


def test_a_black_video_is_refused(tmp_path):
  path = tmp_path / 'black.mp4'
  write_video(path, [np.zeros((96, 192, 3), np.uint8)] * 60)
  with pytest.raises(frames.VideoError, match='too plain'):
    list(frames.read_frames(path, 1.0))


def test_the_real_video_passes_and_has_41_frames_at_1_fps(shared_data):
  path = shared_data / 'real_360_alcatraz.mp4'
  taken = list(frames.read_frames(path, 1.0))
  assert len(taken) == 41
  np.testing.assert_allclose(
    [frame.time_s for frame in taken], np.arange(41), atol=1e-3
  )
  assert taken[0].image.shape == (322, 640, 3)


_ENCODINGS = {
  'short groups': {'g': '15'},
  'open groups': {'g': '15', 'x264-params': 'open-gop=1:bframes=3'},
  'open groups without B': {'g': '15', 'x264-params': 'open-gop=1:bframes=0'},
  'key frames only': {'g': '1'},
  'B that nothing needs': {'g': '30', 'x264-params': 'b-pyramid=none'},
  'no key frame but one': {'g': '50', 'x264-params': 'intra-refresh=1'},
}


@pytest.mark.parametrize(
  'encoding,suffix',
  [
    *((encoding, 'mp4') for encoding in _ENCODINGS),
    *(('open groups', suffix) for suffix in ('mkv', 'ts', 'avi', 'h264')),
  ],
)
def test_skipping_changes_no_frame(tmp_path, encoding, suffix):
  path = tmp_path / f'video.{suffix}'
  options = {'preset': 'fast', **_ENCODINGS[encoding]}
  write_video(path, [panorama(3 * i) for i in range(75)], options=options)
  for fps in (2.0, 5.0, 7.0):
    assert taken(path, fps, skip=True) == taken(path, fps, skip=False)


def test_skipping_changes_no_frame_of_the_real_video(shared_data, monkeypatch):
  path = shared_data / 'real_360_alcatraz.mp4'
  assert taken(path, 5.0, skip=True) == taken(path, 5.0, skip=False)
  # A frame is decoded for each that is taken, and for few others.
  decoded = []
  convert = decoding._seconds
  monkeypatch.setattr(
    decoding,
    '_seconds',
    lambda timed: (
      decoded.append(isinstance(timed, av.VideoFrame)) or convert(timed)
    ),
  )
  counts = {}
  for fps in (1.0, 5.0):
    decoded.clear()
    assert len(list(decoding.sample(path, fps))) == 40 * fps + 1
    counts[fps] = sum(decoded)
  assert counts[1.0] < 120 and counts[5.0] < 800


@pytest.mark.parametrize(
  'matrix,size,is_tagged,is_full',
  [
    ('bt709', (128, 64), True, False),
    ('bt709', (128, 64), True, True),
    ('bt601', (128, 64), True, False),
    ('bt601', (1280, 640), True, True),
    # What carries no tag is taken for limited, and by its size.
    ('bt709', (1280, 640), False, False),
    ('bt601', (640, 322), False, False),
  ],
)
def test_colours_are_those_that_were_filmed(
  tmp_path, matrix, size, is_tagged, is_full
):
  path = tmp_path / 'video.mp4'
  spaces = {'bt709': (1, Colorspace.ITU709), 'bt601': (6, Colorspace.ITU601)}
  colour_range = ColorRange.JPEG if is_full else ColorRange.MPEG
  colours = [(200, 40, 40), (40, 200, 40), (40, 40, 200), (250,) * 3, (8,) * 3]
  with av.open(str(path), 'w') as container:
    stream = container.add_stream('libx264', rate=5)
    stream.width, stream.height = size
    stream.pix_fmt = 'yuv420p'
    stream.options = {'crf': '1', 'preset': 'ultrafast'}
    if is_tagged:
      stream.codec_context.colorspace = spaces[matrix][0]
      stream.codec_context.color_range = int(colour_range)
    for colour in colours:
      picture = np.full((size[1], size[0], 3), colour, np.uint8)
      frame = av.VideoFrame.from_ndarray(picture, format='rgb24').reformat(
        format='yuv420p',
        dst_colorspace=spaces[matrix][1],
        dst_color_range=colour_range,
      )
      frame.pts = None
      if not is_tagged:
        frame.colorspace, frame.color_range = 2, 0
      container.mux(stream.encode(frame))
    container.mux(stream.encode())
  layout = projections.Layout()
  shown = [frame.image for frame in frames.read_frames(path, 5.0, layout)]
  for colour, image in zip(colours, shown, strict=True):
    assert np.abs(image.astype(int) - colour).max() <= 4


@pytest.mark.parametrize('mirrored', [False, True])
@pytest.mark.parametrize('degrees', [0, 90, 180, 270])
def test_a_picture_is_turned_as_its_metadata_say(tmp_path, degrees, mirrored):
  path = tmp_path / 'video.mp4'
  image = panorama()
  options = {'crf': '4'}
  write_video(path, [image] * 2, rotation=(degrees, mirrored), options=options)
  turned = np.rot90(image, degrees // 90)
  expected = turned[:, ::-1] if mirrored else turned
  for frame in decoding.key_frames(path, 1):
    shown = decoding.to_rgb(frame)
    assert shown.shape == expected.shape
    assert np.abs(shown.astype(int) - expected).mean() < 3


def remuxed(source: pathlib.Path, target: pathlib.Path, change) -> pathlib.Path:
  """The packets of a video, changed one by one."""
  with av.open(str(source)) as reader, av.open(str(target), 'w') as writer:
    stream = writer.add_stream_from_template(reader.streams.video[0])
    for index, packet in enumerate(reader.demux(video=0)):
      if packet.dts is not None:
        packet.stream = stream
        change(index, packet)
        writer.mux(packet)
  return target


def test_times_count_from_the_first_frame(tmp_path):
  source = tmp_path / 'source.mp4'
  write_video(source, [panorama(i) for i in range(60)], options={'g': '10'})

  def delay(_, packet):
    shift = int(3 / packet.time_base)
    packet.pts, packet.dts = packet.pts + shift, packet.dts + shift

  path = remuxed(source, tmp_path / 'late.mkv', delay)
  with av.open(str(path)) as container:
    assert next(container.decode(video=0)).time > 2.9
  for fps in (2.0, 5.0):
    late = list(frames.read_frames(path, fps, projections.Layout()))
    early = list(frames.read_frames(source, fps, projections.Layout()))
    for a, b in zip(late, early, strict=True):
      assert a.time_s == pytest.approx(b.time_s, abs=2e-3)
      np.testing.assert_array_equal(a.image, b.image)


@pytest.mark.parametrize('skip', [True, False])
def test_a_variable_frame_rate_keeps_its_times(tmp_path, skip):
  """A second at 30 frames per second, a gap of two, and a second again."""
  source = tmp_path / 'source.mp4'
  options = {'g': '10', 'x264-params': 'bframes=0:scenecut=0'}
  write_video(source, [panorama(i) for i in range(60)], options=options)

  def gap(index, packet):
    if index >= 30:
      shift = int(2 / packet.time_base)
      packet.pts, packet.dts = packet.pts + shift, packet.dts + shift

  path = remuxed(source, tmp_path / 'gap.mkv', gap)
  times = [time_s for time_s, *_ in decoding.sample(path, 2.0, skip=skip)]
  np.testing.assert_allclose(times, [0, 0.5, 3, 3.5], atol=0.04)


def test_frames_without_times_follow_at_the_video_s_rate(tmp_path):
  path = tmp_path / 'raw.h264'
  write_video(path, [panorama(i) for i in range(50)], rate=25)
  times = [time_s for time_s, *_ in decoding.sample(path, 5.0)]
  np.testing.assert_allclose(times, np.arange(10) / 5, atol=0.021)


@pytest.mark.parametrize('name', ['equirectangular-tb', 'eac', 'vr180-sbs'])
def test_frames_of_any_layout_come_as_panoramas(tmp_path, name):
  truth = layouts.panorama()
  path = tmp_path / 'video.mp4'
  images = [layouts.MAKERS[name](truth)] * 2
  write_video(path, images, options={'g': '1', 'crf': '10'})
  layout = projections.NAMES[name]
  for chosen in (None, layout):
    frame = next(frames.read_frames(path, 1.0, chosen, max_width_px=512))
    assert frame.image.shape == truth.shape
    shown = frame.image.astype(int) - truth
    if not layout.full_sphere:
      shown = layouts.front(shown)
    assert np.abs(shown).mean() < 6


def test_wide_panoramas_are_reduced(tmp_path):
  path = tmp_path / 'video.mp4'
  write_video(path, [panorama(i) for i in range(3)])
  (frame,) = frames.read_frames(path, 1.0, max_width_px=64)
  assert frame.image.shape == (32, 64, 3)
