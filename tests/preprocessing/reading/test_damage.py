"""Damaged packets: which frames show it, and what becomes of them."""

import av
import numpy as np
import pytest

from configs import preprocess
from preprocessing import settings
from preprocessing.keyframes import keyframes
from preprocessing.reading import decoding, detection, frames, projections
from preprocessing.writing import rejections
from tests.helpers import layouts

# Below it, in decibels against the sound picture, a picture is smeared.
_MIN_PSNR = 30.0
_H264 = {
  'h264': ('libx264', {'g': '20', 'preset': 'fast'}),
  'h264 without B': ('libx264', {'g': '20', 'x264-params': 'bframes=0'}),
  'h264 open groups': ('libx264', {'g': '20', 'x264-params': 'open-gop=1'}),
}
_ENCODINGS = _H264 | {
  'vp9': ('libvpx-vp9', {'g': '20', 'deadline': 'realtime', 'cpu-used': '8'}),
}


def write(path, encoding, damaged=(), seed=0):
  """Two seconds, with bits flipped in the payload of some packets."""
  codec, options = _ENCODINGS[encoding]
  rng = np.random.default_rng(seed)
  texture = layouts.panorama()[::2, ::2]
  with av.open(str(path), 'w') as container:
    stream = container.add_stream(codec, rate=20)
    stream.height, stream.width = texture.shape[:2]
    stream.pix_fmt, stream.options = 'yuv420p', options
    packets = []
    for index in range(60):
      picture = np.roll(texture, 5 * index, axis=1)
      frame = av.VideoFrame.from_ndarray(picture, format='rgb24')
      packets += stream.encode(frame)
    packets += stream.encode()
    for index, packet in enumerate(packets):
      if index in damaged:
        data = bytearray(bytes(packet))
        for at in rng.integers(len(data) // 3, len(data), 4):
          data[at] ^= 1 << int(rng.integers(8))
        broken = av.Packet(bytes(data))
        broken.pts, broken.dts = packet.pts, packet.dts
        broken.time_base, broken.stream = packet.time_base, packet.stream
        broken.is_keyframe = packet.is_keyframe
        packet = broken
      container.mux(packet)
  return path


def psnr(image, truth):
  error = np.mean((image.astype(float) - truth) ** 2)
  return 10 * np.log10(255**2 / max(error, 1e-9))


@pytest.mark.parametrize('encoding', _H264)
def test_no_smeared_picture_counts_as_sound(tmp_path, encoding):
  whole = write(tmp_path / 'whole.mkv', encoding)
  truth = {}
  for time_s, frame, is_damaged in decoding.sample(whole, 20.0):
    assert not is_damaged
    truth[round(time_s, 2)] = decoding.to_rgb(frame)
  assert len(truth) == 60
  smeared = 0
  for seed in range(2):
    at = int(np.random.default_rng(seed).integers(1, 50))
    path = write(tmp_path / 'damaged.mkv', encoding, [at], seed)
    for fps in (20.0, 5.0):
      sampled = list(decoding.sample(path, fps))
      for time_s, frame, is_damaged in sampled:
        sound = truth[round(time_s, 2)]
        is_smeared = psnr(decoding.to_rgb(frame), sound) < _MIN_PSNR
        smeared += is_smeared
        assert is_damaged or not is_smeared, (seed, at, time_s)
      # Damage ends with its group.
      assert sum(item.is_damaged for item in sampled) < 0.8 * len(sampled)
  assert smeared


def test_most_smeared_pictures_of_vp9_do_not(tmp_path):
  """Some damage decodes to another picture, and no decoder can tell."""
  whole = write(tmp_path / 'whole.mkv', 'vp9')
  truth = {}
  for time_s, frame, is_damaged in decoding.sample(whole, 20.0):
    assert not is_damaged
    truth[round(time_s, 2)] = decoding.to_rgb(frame)
  num_smeared = num_passed = num_flagged = 0
  for seed in range(6):
    at = int(np.random.default_rng(seed).integers(1, 50))
    path = write(tmp_path / 'damaged.mkv', 'vp9', [at], seed)
    sampled = list(decoding.sample(path, 20.0))
    # A frame that does not come is there all the same, as a damaged one.
    assert [round(item.time_s, 2) for item in sampled] == list(truth)
    for time_s, frame, is_damaged in sampled:
      sound = truth[round(time_s, 2)]
      is_smeared = psnr(decoding.to_rgb(frame), sound) < _MIN_PSNR
      num_smeared += is_smeared
      num_flagged += is_damaged
      num_passed += is_smeared and not is_damaged
  assert num_smeared > 20
  assert num_flagged < 0.8 * 6 * len(truth)
  assert num_passed < 0.4 * num_smeared


def test_the_strict_decoder_changes_no_picture(tmp_path, monkeypatch):
  path = write(tmp_path / 'video.mkv', 'vp9')
  strict = [decoding.to_rgb(item.frame) for item in decoding.sample(path, 20.0)]
  monkeypatch.setattr(decoding, '_STRICT_DECODERS', {})
  usual = [decoding.to_rgb(item.frame) for item in decoding.sample(path, 20.0)]
  np.testing.assert_array_equal(strict, usual)


def extracted(path, **limits):
  config = preprocess.get_config()
  config.update(fps=5.0, substeps=1)
  config.frames.update(limits)
  checked = settings.checked(config)
  return keyframes.extract(
    path,
    checked.keyframes,
    checked.matching.make(),
    projections.Layout(),
    max_width_px=checked.reading.max_width_px,
  )


def test_damaged_slots_are_rows_of_the_ledger(tmp_path):
  path = write(tmp_path / 'video.mkv', 'h264 without B', [24])
  damaged = [s.time_s for s in decoding.sample(path, 5.0) if s.is_damaged]
  np.testing.assert_allclose(damaged, [1.2, 1.4, 1.6, 1.8], atol=0.06)
  result = extracted(path)
  rows = result.rejected
  assert {row.reason for row in rows} == {rejections.Reason.DAMAGED}
  times = [time_s for row in rows for time_s in row.details['times_s']]
  np.testing.assert_allclose(times, damaged, atol=1e-3)
  assert not set(np.round(result.times_s, 3)) & set(np.round(times, 3))
  with pytest.raises(frames.VideoError, match='27% of its frames are damaged'):
    extracted(path, max_damaged_share=0.2)


def test_bit_errors_of_others_are_refused_or_left_out(shared_data):
  folder = shared_data / 'video_cases'
  with pytest.raises(frames.VideoError, match='80% of its frames are damaged'):
    extracted(folder / 'K3_bit_errors.mp4')
  result = extracted(folder / 'K3_bit_errors.mp4', max_damaged_share=1.0)
  truth = [
    frame.image for frame in frames.read_frames(folder / 'walk4.mp4', 5.0)
  ]
  assert result.slots == [0, 1, 2, 3]
  for slot, picture in zip(result.slots, result.pictures, strict=True):
    assert psnr(picture, truth[slot]) >= _MIN_PSNR
  assert len(result.rejected) == 16
  assert len(extracted(folder / 'walk4.mp4').slots) == 20


def test_a_video_of_which_no_picture_is_sound_is_refused(tmp_path, monkeypatch):
  path = tmp_path / 'damaged.mp4'
  write(path, 'h264')
  # The decoder lets some damage pass, so here it flags all.
  monkeypatch.setattr(decoding, 'key_frames', lambda *_: [])
  sound = decoding.sample
  monkeypatch.setattr(
    decoding,
    'sample',
    lambda *arguments: (
      sample._replace(is_damaged=True) for sample in sound(*arguments)
    ),
  )
  with pytest.raises(decoding.VideoError, match='every picture .* is damaged'):
    detection.decide(path)
