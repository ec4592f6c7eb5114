"""Metadata of files: what is in them is found, and hostile boxes do no harm."""

import struct

import av
from hypothesis import given, settings
from hypothesis import strategies as st
import numpy as np
import pytest

from preprocessing.reading import decoding, spherical
from tests.helpers import layouts, spherical_boxes


@pytest.fixture(scope='module')
def plain(tmp_path_factory):
  """Bytes of a video that says nothing of its projection."""
  path = tmp_path_factory.mktemp('spherical') / 'plain.mp4'
  layouts.write_video(path, [np.full((96, 192, 3), 100, np.uint8)] * 3)
  return path.read_bytes()


@pytest.fixture
def read(tmp_path, plain):
  """Metadata of the plain video with boxes put into it."""

  def metadata(
    payload: bytes, parents=spherical_boxes.ENTRY_PATH, remux_as: str = ''
  ):
    path = tmp_path / 'video.mp4'
    path.write_bytes(spherical_boxes.inject(plain, parents, payload))
    if remux_as:
      path = remux(path, tmp_path / f'video.{remux_as}')
    return spherical.read(path, decoding.key_frames(path, 1)[0])

  return metadata


def remux(source, target):
  with av.open(source) as reader, av.open(target, 'w') as writer:
    stream = writer.add_stream_from_template(reader.streams.video[0])
    for packet in reader.demux(video=0):
      if packet.dts is not None:
        packet.stream = stream
        writer.mux(packet)
  return target


def test_nothing_is_said(read):
  assert read(b'') == spherical.Metadata()


@pytest.mark.parametrize('remux_as', ['', 'mkv'])
@pytest.mark.parametrize(
  'mode,stereo', [(0, 'mono'), (1, 'top-bottom'), (2, 'left-right')]
)
def test_version_2_stereo_and_pose(read, mode, stereo, remux_as):
  payload = spherical_boxes.st3d(mode) + spherical_boxes.sv3d(
    spherical_boxes.equi(), pose=(30.5, -20.0, 10.0)
  )
  layout = read(payload, remux_as=remux_as).layout
  assert (layout.projection, layout.stereo) == ('equirectangular', stereo)
  pose = (layout.yaw_deg, layout.pitch_deg, layout.roll_deg)
  np.testing.assert_allclose(pose, (30.5, -20.0, 10.0), atol=1e-4)


@pytest.mark.parametrize('remux_as', ['', 'mkv'])
def test_version_2_bounds(read, remux_as):
  bounds = dict(top=0.1, bottom=0.2, left=0.25, right=0.25)
  layout = read(
    spherical_boxes.sv3d(spherical_boxes.equi(**bounds)), remux_as=remux_as
  ).layout
  assert not layout.full_sphere
  for name, value in bounds.items():
    assert getattr(layout, name) == pytest.approx(value, abs=1e-6)
  assert read(
    spherical_boxes.sv3d(spherical_boxes.equi(left=0.25, right=0.25))
    + spherical_boxes.st3d(2)
  ).layout.name == ('vr180-sbs')


@pytest.mark.parametrize('stereo', ['', 'mono', 'top-bottom', 'left-right'])
def test_version_1(read, stereo):
  layout = read(spherical_boxes.version_1(stereo), [b'moov', b'trak']).layout
  assert layout.stereo == (stereo or 'mono')
  assert layout.full_sphere and layout.pitch_deg == 0


def test_version_1_cropping(read):
  payload = spherical_boxes.version_1(
    FullPanoWidth=4000,
    FullPanoHeight=2000,
    CroppedAreaLeft=1000,
    CroppedAreaTop=100,
    CroppedAreaImageWidth=2000,
    CroppedAreaImageHeight=1700,
  )
  layout = read(payload, [b'moov', b'trak']).layout
  borders = (layout.left, layout.right, layout.top, layout.bottom)
  np.testing.assert_allclose(borders, (0.25, 0.25, 0.05, 0.1))


def test_unsound_cropping_is_not_believed(read):
  payload = spherical_boxes.version_1(
    FullPanoWidth=100, CroppedAreaImageWidth=300
  )
  assert read(payload, [b'moov', b'trak']).layout.full_sphere


@pytest.mark.parametrize('kind', [b'mshp', b'ytmp'])
def test_a_mesh_is_noticed(read, kind):
  metadata = read(
    spherical_boxes.st3d(2)
    + spherical_boxes.sv3d(spherical_boxes.full_box(kind, b'\0' * 40))
  )
  assert metadata == spherical.Metadata(stereo='left-right', mesh=True)


def test_a_cubemap_is_named(read):
  metadata = read(
    spherical_boxes.sv3d(
      spherical_boxes.full_box(b'cbmp', struct.pack('>2I', 0, 4))
    )
  )
  assert metadata.layout is None and metadata.unknown == 'cubemap'


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_damaged_boxes_do_no_harm(plain, tmp_path_factory, data):
  """The frame is that of the sound file; FFmpeg may refuse the other."""
  path = tmp_path_factory.getbasetemp() / 'damaged.mp4'
  path.write_bytes(
    spherical_boxes.inject(
      plain, [b'moov', b'trak'], spherical_boxes.version_1()
    )
  )
  (frame,) = decoding.key_frames(path, 1)
  cropping = spherical_boxes.version_1(
    FullPanoWidth=100, CroppedAreaImageWidth=90
  )
  sound = spherical_boxes.inject(plain, [b'moov', b'trak'], cropping)
  sound = spherical_boxes.inject(
    sound,
    spherical_boxes.ENTRY_PATH,
    spherical_boxes.sv3d(spherical_boxes.full_box(b'mshp', b'\0' * 20)),
  )
  damaged = bytearray(sound)
  start = sound.index(b'moov') - 4
  for _ in range(data.draw(st.integers(1, 4))):
    place = data.draw(st.integers(start, len(sound) - 8))
    word = data.draw(st.sampled_from([0, 1, 7, 8, 2**31, 2**32 - 1]))
    struct.pack_into('>I', damaged, place, word)
  path.write_bytes(damaged[: data.draw(st.integers(start, len(sound)))])
  assert spherical.read(path, frame).layout.name == 'equirectangular'


@pytest.mark.parametrize('size', [8, 16, 0])
def test_more_boxes_than_a_file_has_are_left(tmp_path, size):
  """One after the other, or each in the one before, or without an end."""
  path = tmp_path / 'deep.mp4'
  if size == 8:
    content = struct.pack('>I4s', 8, b'free') * 30_000
  else:
    count = 30_000
    content = b''.join(
      struct.pack('>I4s', size and 8 * (count - k), b'moov')
      for k in range(count)
    )
  path.write_bytes(content)
  frame = av.VideoFrame.from_ndarray(
    np.zeros((96, 192, 3), np.uint8), format='rgb24'
  )
  assert spherical.read(path, frame) == spherical.Metadata()
