"""Frames: their times, and what is refused."""

import pathlib

import av
import cv2
import numpy as np
import pytest

from preprocessing import frames


def panorama(shift: int = 0) -> np.ndarray:
  """A smooth panorama: low-pass noise on the sphere, turned by `shift`."""
  rng = np.random.default_rng(0)
  height, width = 96, 192
  v, u = np.mgrid[:height, :width]
  latitude = ((v + 0.5) / height - 0.5) * np.pi
  longitude = ((u + shift + 0.5) / width - 0.5) * 2 * np.pi
  x = np.cos(latitude) * np.sin(longitude)
  y = np.sin(latitude)
  z = np.cos(latitude) * np.cos(longitude)
  image = np.zeros((height, width, 3))
  for _ in range(12):
    direction = rng.normal(size=3) * 3
    wave = np.sin(x * direction[0] + y * direction[1] + z * direction[2])
    image += wave[..., None] * rng.normal(size=3) * 20
  return np.clip(image + 128, 0, 255).astype(np.uint8)


def write_video(
  path: pathlib.Path,
  images: list[np.ndarray],
  rate: int = 30,
  options: dict[str, str] | None = None,
) -> None:
  with av.open(str(path), 'w', options=options or {}) as container:
    stream = container.add_stream('libx264', rate=rate)
    stream.height, stream.width = images[0].shape[:2]
    stream.pix_fmt = 'yuv420p'
    for image in images:
      frame = av.VideoFrame.from_ndarray(image, format='rgb24')
      container.mux(stream.encode(frame))
    container.mux(stream.encode())


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


@pytest.mark.parametrize('faststart', [True, False])
def test_a_truncated_video_is_refused(tmp_path, faststart):
  path = tmp_path / 'video.mp4'
  options = {'movflags': 'faststart'} if faststart else None
  write_video(path, [panorama(i) for i in range(150)], options=options)
  data = path.read_bytes()
  path.write_bytes(data[: len(data) // 2])
  with pytest.raises(frames.VideoError, match='truncated|damaged|not a video'):
    list(frames.read_frames(path, 1.0))


def test_a_wrong_aspect_is_refused(tmp_path):
  path = tmp_path / 'flat.mp4'
  write_video(path, [panorama(i)[:, :128] for i in range(30)])
  with pytest.raises(frames.VideoError, match='twice as wide'):
    list(frames.read_frames(path, 1.0))


def test_a_black_video_is_refused(tmp_path):
  path = tmp_path / 'black.mp4'
  write_video(path, [np.zeros((96, 192, 3), np.uint8)] * 60)
  with pytest.raises(frames.VideoError, match='too plain'):
    list(frames.read_frames(path, 1.0))


def test_flat_photographs_of_a_panorama_s_aspect_are_refused(shared_data):
  paths = sorted((shared_data / 'lund_360v2' / 'images').iterdir())
  for path in paths:
    photograph = cv2.imread(str(path))
    width = photograph.shape[1] // 2 * 2
    for row in (0, photograph.shape[0] - width // 2):
      with pytest.raises(ValueError, match='no 360-degree video'):
        frames.check_panoramic([photograph[row : row + width // 2, :width]])


def test_the_real_video_passes_and_has_41_frames_at_1_fps(shared_data):
  path = shared_data / 'real_360_alcatraz.mp4'
  taken = list(frames.read_frames(path, 1.0))
  assert len(taken) == 41
  np.testing.assert_allclose(
    [frame.time_s for frame in taken], np.arange(41), atol=1e-3
  )
  assert taken[0].image.shape == (322, 640, 3)
