"""Colours of videos against the light that was filmed."""

import av
import numpy as np
import pytest

from preprocessing.reading import colours, decoding, frames, projections
from tests.helpers import layouts

_PQ, _HLG = 16, 18
_TRANSFERS = {'smpte2084': _PQ, 'arib-std-b67': _HLG}
_BLOCK_PX = 32
# Luminance of red and blue, and the matrix from BT.709 (Table 2 of BT.2087).
_LUMA = {1: (0.2126, 0.0722), 9: (0.2627, 0.0593)}
_BT709_TO_BT2020 = np.array(
  [
    [0.6274, 0.3293, 0.0433],
    [0.0691, 0.9195, 0.0114],
    [0.0164, 0.0880, 0.8956],
  ]
)
_GREYS = [(level,) * 3 for level in (0, 16, 32, 64, 96, 128, 160, 200, 235)]
_SATURATED = [
  *((200, 40, 40), (40, 200, 40), (40, 40, 200)),
  *((220, 200, 30), (30, 190, 200), (200, 50, 180)),
  *((180, 140, 110), (30, 20, 60), (90, 120, 60)),
]
PATCHES = np.array(_GREYS + _SATURATED)


def light_of(srgb):
  """Light of sRGB levels; 1 for white."""
  signal = np.asarray(srgb) / 255
  return np.where(
    signal <= 0.04045, signal / 12.92, ((signal + 0.055) / 1.055) ** 2.4
  )


def pq(nits):
  """ST 2084, equation 5.2."""
  power = (nits / 10_000) ** 0.1593017578125
  top, bottom = 0.8359375 + 18.8515625 * power, 1 + 18.6875 * power
  return (top / bottom) ** 78.84375


def hlg(nits):
  """BT.2100, tables 4 and 5, for a screen of 1000 cd/m2."""
  luminance = nits @ np.array([0.2627, 0.6780, 0.0593]) / 1000
  gain = np.maximum(luminance, 1e-9) ** (-0.2 / 1.2)
  scene = nits / 1000 * gain[..., None]
  a, b, c = 0.17883277, 0.28466892, 0.55991073
  high = a * np.log(np.maximum(12 * scene - b, 1e-9)) + c
  return np.where(scene <= 1 / 12, np.sqrt(3 * scene), high)


_CODED = {_PQ: pq, _HLG: hlg}


def hdr(light, transfer):
  """Values of light in BT.709, SDR white at 203 cd/m2."""
  return _CODED[transfer](203 * light @ _BT709_TO_BT2020.T)


def blocks(patches):
  """[h, w, ...]; patches side by side; 18 fill a picture of 2:1."""
  across = min(6, len(patches))
  rows = np.array(patches).reshape(-1, across, 3)
  return rows.repeat(_BLOCK_PX, axis=0).repeat(_BLOCK_PX, axis=1)


def centres(image):
  """The middles of `blocks`, as numbers that may be negative."""
  half = _BLOCK_PX // 2
  return image[half::_BLOCK_PX, half::_BLOCK_PX].reshape(-1, 3).astype(float)


def yuv_frame(rgb, *, matrix=1, bits=10, subsampling='420', full=False, **tags):
  """Values in 0..1 as a frame, computed here and not by FFmpeg."""
  red, blue = _LUMA[matrix]
  luma = rgb @ np.array([red, 1 - red - blue, blue])
  chroma = [
    (rgb[..., 2] - luma) / (2 - 2 * blue),
    (rgb[..., 0] - luma) / (2 - 2 * red),
  ]
  down, across = {'420': (2, 2), '422': (1, 2), '444': (1, 1)}[subsampling]
  height, width = luma.shape
  chroma = [
    plane.reshape(height // down, down, width // across, across).mean((1, 3))
    for plane in chroma
  ]
  step = 1 << bits - 8
  if full:
    planes = [luma * (256 * step - 1)]
    planes += [plane * (256 * step - 1) + 128 * step for plane in chroma]
  else:
    planes = [(luma * 219 + 16) * step]
    planes += [(plane * 224 + 128) * step for plane in chroma]
  suffix = f'{bits}le' if bits > 8 else ''
  frame = av.VideoFrame(width, height, f'yuv{subsampling}p{suffix}')
  kind = np.uint16 if bits > 8 else np.uint8
  for plane, values in zip(frame.planes, planes, strict=True):
    columns = plane.line_size // np.dtype(kind).itemsize
    padded = np.zeros((plane.height, columns), kind)
    values = np.clip(np.round(values), 0, 256 * step - 1)
    padded[:, : values.shape[1]] = values
    plane.update(padded.tobytes())
  frame.colorspace, frame.color_range = matrix, 2 if full else 1
  for name, value in tags.items():
    setattr(frame, name, value)
  return frame


def hdr_frame(light, transfer, **options):
  tags = {'color_trc': transfer, 'color_primaries': 9, 'matrix': 9}
  return yuv_frame(hdr(light, transfer), **{**tags, **options})


def write(path, codec, frame, **options):
  """A video of three times one frame, with its tags."""
  with av.open(str(path), 'w') as container:
    stream = container.add_stream(codec, rate=5)
    stream.width, stream.height = frame.width, frame.height
    stream.pix_fmt, stream.options = frame.format.name, options
    context = stream.codec_context
    context.color_trc, context.colorspace = frame.color_trc, frame.colorspace
    context.color_primaries = frame.color_primaries
    context.color_range = frame.color_range
    for index in range(3):
      frame.pts = index
      container.mux(stream.encode(frame))
    container.mux(stream.encode())
  return path


def read(path):
  return [frame.image for frame in frames.read_frames(path, 5.0, _PANORAMA)]


_PANORAMA = projections.Layout()
_X265 = {'crf': '4', 'preset': 'ultrafast', 'x265-params': 'log-level=none'}
_FILES = {
  'mp4': ('video.mp4', 'libx265', _X265),
  'mkv': ('video.mkv', 'ffv1', {}),
  'mov': ('video.mov', 'prores_ks', {'profile': '4'}),
}


@pytest.mark.parametrize('kind', _FILES)
@pytest.mark.parametrize('transfer', _TRANSFERS)
def test_a_hdr_video_shows_what_was_filmed(tmp_path, transfer, kind):
  name, codec, options = _FILES[kind]
  subsampling = '444' if kind == 'mov' else '420'
  light = blocks(light_of(PATCHES))
  frame = hdr_frame(light, _TRANSFERS[transfer], subsampling=subsampling)
  path = write(tmp_path / name, codec, frame, **options)
  for image in read(path):
    assert np.abs(centres(image) - PATCHES).max() <= 3
  stated = frames.describe_colours(path)
  assert stated['transfer'] == transfer
  assert (stated['primaries'], stated['matrix']) == ('bt2020', 'bt2020nc')
  assert 'white at 203 cd/m2' in stated['conversion']
  assert 'BT.709' in stated['conversion']


@pytest.mark.parametrize('full', [False, True])
@pytest.mark.parametrize('transfer', _TRANSFERS.values())
def test_a_hdr_picture_has_the_contrast_and_saturation_of_its_scene(
  transfer, full
):
  truth = layouts.panorama()
  frame = hdr_frame(light_of(truth), transfer, subsampling='444', full=full)
  shown = colours.to_srgb(frame).astype(float)
  assert np.abs(shown - truth).mean() < 1
  assert abs(shown.mean() - truth.mean()) < 0.6
  # Whites are a little less than white: there is brighter light.
  share = shown.std((0, 1)) / truth.std((0, 1))
  assert np.all((share > 0.97) & (share < 1.03))
  saturation = [np.ptp(image.astype(float), axis=2) for image in (shown, truth)]
  assert 0.97 < saturation[0].mean() / saturation[1].mean() < 1.03
  # Stored as it is, it was half of that.
  as_it_is = frame.to_ndarray(format='rgb24').astype(float)
  assert np.all(as_it_is.std((0, 1)) / truth.std((0, 1)) < 0.8)


@pytest.mark.parametrize('transfer', _TRANSFERS.values())
def test_brighter_light_is_rolled_off_and_keeps_its_hue(transfer):
  nits = np.array([150.0, 203, 250, 300, 500, 1000])
  grey = np.repeat(nits[:, None] / 203, 3, axis=1)
  shown = centres(colours.to_srgb(hdr_frame(blocks(grey), transfer)))
  assert np.all(np.diff(shown[:, 0]) >= 0)
  assert np.ptp(shown, axis=1).max() <= 1
  assert 248 <= shown[1, 0] <= 251 and shown[-1, 0] == 255
  orange = grey * [1.0, 0.5, 0.1]
  shown = light_of(
    centres(colours.to_srgb(hdr_frame(blocks(orange), transfer)))
  )
  np.testing.assert_allclose(shown[1:, 1] / shown[1:, 0], 0.5, atol=0.02)
  np.testing.assert_allclose(shown[1:, 2] / shown[1:, 0], 0.1, atol=0.02)


def test_hdr_without_further_tags_is_that_of_bt2020():
  light = blocks(light_of(PATCHES))
  frame = hdr_frame(light, _PQ, color_primaries=2)
  frame.colorspace = 2
  assert np.abs(centres(colours.to_srgb(frame)) - PATCHES).max() <= 3
  assert 'BT.2020 were assumed' in colours.describe(frame)['conversion']


@pytest.mark.parametrize('bits', [8, 10])
def test_wide_primaries_become_those_of_bt709(bits):
  light = light_of(PATCHES) @ _BT709_TO_BT2020.T
  coded = np.where(
    light <= 0.0031308, 12.92 * light, 1.055 * light ** (1 / 2.4) - 0.055
  )
  frame = yuv_frame(
    blocks(coded), matrix=9, bits=bits, color_trc=14, color_primaries=9
  )
  assert (
    np.abs(centres(colours.to_srgb(frame)) - PATCHES).max()
    <= {8: 8, 10: 3}[bits]
  )
  assert 'wide primaries' in colours.describe(frame)['conversion']
  # What lies outside is the nearest that there is.
  green = yuv_frame(
    blocks([(0, 1, 0)] * 2), matrix=9, color_trc=14, color_primaries=9
  )
  assert np.abs(centres(colours.to_srgb(green)) - (0, 255, 0)).max() <= 2


@pytest.mark.parametrize('full', [False, True])
@pytest.mark.parametrize('subsampling', ['420', '422', '444'])
@pytest.mark.parametrize('bits', [10, 12])
def test_deeper_video_is_not_darker(bits, subsampling, full):
  truth = layouts.panorama()
  frame = yuv_frame(truth / 255, bits=bits, subsampling=subsampling, full=full)
  shown = colours.to_srgb(frame).astype(float)
  assert abs((shown - truth).mean()) < 0.4
  # The rest is chroma that is not there.
  most = {'420': 1.3, '422': 0.7, '444': 0.3}[subsampling]
  assert np.abs(shown - truth).mean() < most
  assert colours.describe(frame)['conversion'] == 'none'


def test_prores_is_within_a_level(tmp_path):
  truth = layouts.panorama()
  frame = yuv_frame(truth / 255, subsampling='422')
  path = write(tmp_path / 'video.mov', 'prores_ks', frame, profile='3')
  for image in read(path):
    error = image.astype(float) - truth
    assert abs(error.mean()) < 0.3 and np.abs(error).mean() < 1.3


def test_video_of_8_bits_is_what_ffmpeg_makes_of_it(shared_data):
  """Records that were made before must stay what they are."""
  frame = yuv_frame(layouts.panorama() / 255, bits=8)
  assert np.array_equal(
    colours.to_srgb(frame), frame.to_ndarray(format='rgb24')
  )
  for name in ('real_360_alcatraz.mp4', 'video_cases/walk4.mp4'):
    (frame,) = decoding.key_frames(shared_data / name, 1)
    assert np.array_equal(
      decoding.to_rgb(frame), frame.to_ndarray(format='rgb24')
    )
    assert colours.describe(frame)['conversion'] == 'none'


@pytest.mark.parametrize(
  'tag,number,words',
  [
    ('colorspace', 14, 'matrix ictcp'),
    ('colorspace', 10, 'matrix bt2020c'),
    ('colorspace', 15, 'ipt-c2, as of Dolby Vision'),
    ('color_trc', 8, 'transfer linear'),
    ('color_primaries', 10, 'primaries smpte428'),
    ('color_primaries', 77, 'primaries number 77'),
  ],
)
def test_what_cannot_be_converted_is_named(tag, number, words):
  frame = yuv_frame(blocks(light_of(PATCHES)), color_trc=1, color_primaries=1)
  assert not colours.fault(frame)
  setattr(frame, tag, number)
  assert words in colours.fault(frame)


def test_a_file_whose_colours_are_not_read_is_refused(tmp_path):
  """Profile 5 of Dolby Vision names no colours, but has its own data."""
  frame = yuv_frame(blocks(PATCHES / 255), color_trc=2, color_primaries=2)
  frame.colorspace = 2
  source = write(tmp_path / 'plain.mkv', 'libx265', frame, **_X265)
  path = tmp_path / 'video.mkv'
  with av.open(str(source)) as reader, av.open(str(path), 'w') as writer:
    stream = writer.add_stream_from_template(reader.streams.video[0])
    for packet in reader.demux(video=0):
      if not packet.size:
        continue
      # A unit of type 62 carries them; its length comes first.
      unit = b'\x7c\x01\x19' + bytes(range(16, 80))
      data = bytes(packet) + len(unit).to_bytes(4) + unit
      changed = av.Packet(data)
      changed.pts, changed.dts = packet.pts, packet.dts
      changed.time_base, changed.stream = packet.time_base, stream
      changed.is_keyframe = packet.is_keyframe
      writer.mux(changed)
  assert len(read(source)) == 3
  with pytest.raises(frames.VideoError, match='Dolby Vision alone'):
    read(path)
  with pytest.raises(frames.VideoError, match='Dolby Vision alone'):
    frames.describe_colours(path)
