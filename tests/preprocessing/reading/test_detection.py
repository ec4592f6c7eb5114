"""Layouts told from pictures and metadata, and what is refused."""

import re

import cv2
from hypothesis import given, settings
from hypothesis import strategies as st
import numpy as np
import pytest

from preprocessing import panorama
from preprocessing.procedural import scenes
from preprocessing.reading import decoding, detection, projections
from tests.helpers import layouts, spherical_boxes

_KINDS = ('unique_room', 'unique_outdoor')


def compressed(image: np.ndarray) -> np.ndarray:
  data = cv2.imencode('.jpg', image, [cv2.IMWRITE_JPEG_QUALITY, 80])[1]
  return cv2.imdecode(data, cv2.IMREAD_COLOR)


def flat(image: np.ndarray, yaw_deg: float = 20.0) -> np.ndarray:
  """[202, 360, 3]; what a usual camera would see."""
  view = panorama.cut_view(
    image, yaw_deg=yaw_deg, pitch_deg=0.0, fov_deg=90.0, size_px=360
  )
  return view[79:281]


def framed(image: np.ndarray, height: int, width: int) -> np.ndarray:
  """A picture within black bars."""
  output = np.zeros((height, width, 3), np.uint8)
  row, column = (height - image.shape[0]) // 2, (width - image.shape[1]) // 2
  output[row:, column:][: image.shape[0], : image.shape[1]] = image
  return output


def real_frames(shared_data):
  frames = decoding.key_frames(shared_data / 'real_360_alcatraz.mp4', 10)
  return [decoding.to_rgb(frame) for frame in frames]


@pytest.fixture(scope='module')
def videos():
  """Pictures of videos of two procedural worlds."""
  times = (0.0, 3.0)
  return {
    kind: [layouts.panorama(kind, time_s) for time_s in times]
    for kind in _KINDS
  }


@pytest.mark.parametrize('name', layouts.MAKERS)
def test_every_layout_of_worlds_is_recognised(videos, name):
  for images in videos.values():
    shown = [compressed(layouts.MAKERS[name](image)) for image in images]
    assert detection.recognise(shown)[0] == name


def test_every_layout_of_a_real_video_is_recognised(shared_data):
  images = real_frames(shared_data)[::4]
  for name, make in layouts.MAKERS.items():
    shown = [compressed(make(image)) for image in images]
    assert detection.recognise(shown)[0] == name


@pytest.mark.parametrize('size', [(512, 256), (512, 288), (256, 256)])
def test_panoramas_are_recognised_at_any_aspect(videos, size):
  for images in videos.values():
    stretched = [compressed(cv2.resize(image, size)) for image in images]
    assert detection.recognise(stretched)[0] == 'equirectangular'


def test_two_eyes_are_recognised_when_squeezed_into_one_frame(videos):
  for images in videos.values():
    for name in ('equirectangular-tb', 'equirectangular-sbs'):
      packed = [layouts.MAKERS[name](image) for image in images]
      squeezed = [compressed(cv2.resize(image, (512, 256))) for image in packed]
      assert detection.recognise(squeezed)[0] == name


@pytest.mark.parametrize(
  'arrange',
  [
    lambda image: image,
    lambda image: np.concatenate([image, layouts.other_eye(image)], axis=1),
    lambda image: np.concatenate([image, layouts.other_eye(image)]),
    lambda image: framed(image, 360, 480),
    lambda image: framed(image, 270, 360),
    lambda image: np.concatenate([framed(image, 270, 360)] * 2, axis=1),
    lambda image: framed(image[:, 80:282], 202, 404),
  ],
  ids='plain sbs tb windowbox letterbox letterbox-sbs pillarbox'.split(),
)
def test_flat_videos_are_recognised_as_nothing(videos, shared_data, arrange):
  for images in [*videos.values(), real_frames(shared_data)]:
    height = images[0].shape[0] // 2 * 2
    shown = [compressed(arrange(flat(image[:height]))) for image in images]
    assert detection.recognise(shown)[0] is None


def test_photographs_are_recognised_as_nothing(shared_data):
  paths = [
    *sorted((shared_data / 'lund_360v2' / 'images_4').iterdir())[::3],
    *sorted((shared_data / 'dtu_scan24' / 'image').iterdir())[::3],
  ]
  for path in paths:
    photograph = cv2.imread(str(path))
    height, width = photograph.shape[:2]
    for rows in (height, width // 2, width * 9 // 16):
      for crop in (photograph[:rows], photograph[height - rows :]):
        assert detection.recognise([crop])[0] is None, (path, rows)


@settings(max_examples=30, deadline=None)
@given(st.integers(2, 40), st.integers(4, 80), st.integers(0, 2**32 - 1))
def test_any_picture_gets_an_answer(height, width, seed):
  rng = np.random.default_rng(seed)
  noise = rng.integers(0, 256, (2 * height, 2 * width, 3), dtype=np.uint8)
  name, scores = detection.recognise([noise])
  assert name is None or name in projections.NAMES
  assert np.all(np.isfinite(list(scores.values())))


@pytest.fixture
def write(tmp_path):
  def video(images, boxes: bytes = b''):
    path = tmp_path / 'video.mp4'
    layouts.write_video(path, images, options={'g': '1', 'crf': '16'})
    data = spherical_boxes.inject(
      path.read_bytes(), spherical_boxes.ENTRY_PATH, boxes
    )
    path.write_bytes(data)
    return path

  return video


def test_content_decides_where_nothing_else_does(write, videos):
  cubes = [layouts.eac(image) for image in videos['unique_room']]
  decision = detection.decide(write(cubes))
  assert decision.layout == projections.NAMES['eac']
  assert decision.source == 'content'
  evidence = decision.to_dict()['evidence']
  assert evidence['metadata'] == 'none'
  assert evidence['scores']['edges mono'] > 0.9


def test_a_plain_beginning_of_a_short_video_is_no_hindrance(tmp_path, videos):
  """Black, then a second of one picture, behind a single key frame."""
  (image, _) = videos['unique_room']
  path = tmp_path / 'video.mp4'
  images = [np.zeros_like(image)] * 5 + [image] * 40
  options = {'x264-params': 'scenecut=0', 'preset': 'fast'}
  layouts.write_video(path, images, options=options)
  assert len(decoding.key_frames(path, 10)) == 1
  assert detection.decide(path).layout == projections.Layout()


def test_metadata_decide_before_content(write, videos):
  boxes = spherical_boxes.sv3d(spherical_boxes.equi(), pose=(0.0, 10.0, 0.0))
  decision = detection.decide(write(videos['unique_room'], boxes))
  assert decision.source == 'metadata'
  assert decision.layout == projections.Layout(pitch_deg=10.0)


def test_metadata_decide_where_pictures_are_too_plain(write):
  boxes = spherical_boxes.sv3d(spherical_boxes.equi())
  grey = [np.full((96, 192, 3), 90, np.uint8)] * 3
  decision = detection.decide(write(grey, boxes))
  assert decision.source == 'metadata'
  assert decision.to_dict()['confirmed'] is False


def test_pictures_confirm_what_metadata_say(write, videos):
  """Also where fog and noise keep them from telling by themselves."""
  boxes = spherical_boxes.sv3d(spherical_boxes.equi())
  for change in (np.copy, scaled(0.3, 120, 6)):
    images = [change(image) for image in videos['unique_room']]
    decision = detection.decide(write(images, boxes))
    assert decision.source == 'metadata' and decision.confirmed


def test_a_light_in_the_dark_is_no_picture_in_bars(write):
  image = np.full((128, 256, 3), 10, np.uint8)
  image[60:64, 100:103] = 250
  with pytest.raises(decoding.VideoError, match='360-degree video'):
    detection.decide(write([image] * 2))


@pytest.mark.parametrize('name', ['equirectangular-tb', 'eac', 'vr180-sbs'])
def test_content_overrules_metadata_that_it_contradicts(write, videos, name):
  """Mono, equirectangular: what tools write without being told better."""
  boxes = spherical_boxes.sv3d(spherical_boxes.equi())
  images = [layouts.MAKERS[name](image) for image in videos['unique_room']]
  decision = detection.decide(write(images, boxes))
  assert decision.source == 'content' and decision.layout.name == name
  assert decision.evidence['metadata'] == 'equirectangular'


def test_content_overrules_a_second_eye_that_is_not_there(write, videos):
  boxes = spherical_boxes.st3d(1) + spherical_boxes.sv3d(spherical_boxes.equi())
  decision = detection.decide(write(videos['unique_room'], boxes))
  assert decision.source == 'content'
  assert decision.layout == projections.Layout()


def test_a_flag_that_is_wrong_is_refused_unless_it_is_trusted(write, videos):
  path = write(videos['unique_room'])
  with pytest.raises(decoding.VideoError, match='show equirectangular; leave'):
    detection.decide(path, 'eac')
  decision = detection.decide(path, 'eac', trusted=True)
  assert decision.layout == projections.NAMES['eac']
  assert decision.source == 'flag'
  assert decision.evidence['content'] == 'equirectangular'
  assert decision.evidence['scores']['edges mono'] < 0.5
  with pytest.raises(ValueError, match='fisheye.*give auto or one of'):
    detection.decide(path, 'fisheye')


def test_a_single_panorama_is_not_cut_from_two_eyes_by_a_flag(write, videos):
  """One above the other they pass for a panorama, of half the aspect."""
  eyes = layouts.MAKERS['equirectangular-tb']
  path = write([eyes(image) for image in videos['unique_room']])
  with pytest.raises(decoding.VideoError, match='show equirectangular-tb'):
    detection.decide(path, 'equirectangular')


def test_a_flat_video_is_refused_whatever_is_said_of_it(write, videos):
  images = [flat(image) for image in videos['unique_room']]
  path = write(images)
  with pytest.raises(decoding.VideoError, match='no 360-degree video'):
    detection.decide(path, 'auto')
  for name in ('equirectangular', 'eac', 'vr180', 'equirectangular-tb'):
    words = f'{name} by --projection, but.*={name} --trust_projection'
    with pytest.raises(decoding.VideoError, match=words):
      detection.decide(path, name)
    assert detection.decide(path, name, trusted=True).layout.name == name
  path = write(images, spherical_boxes.sv3d(spherical_boxes.equi()))
  with pytest.raises(decoding.VideoError, match='equirectangular by its meta'):
    detection.decide(path)


def grey_above(image: np.ndarray) -> np.ndarray:
  """A picture under a sky of one grey."""
  output = image.copy()
  output[: len(image) // 2] = 190
  return output


def scaled(share: float, level: float, noise: float):
  """Less contrast, and the noise of a sensor."""

  def change(image):
    grain = np.random.default_rng(0).normal(size=image.shape) * noise
    return np.clip(image * share + level + grain, 0, 255).astype(np.uint8)

  return change


_DULL = {
  'as it is': np.copy,
  'grey sky': grey_above,
  'fog': scaled(0.2, 140, 0),
  'foggy and noisy': scaled(0.2, 140, 5),
  'dark': scaled(0.12, 0, 0),
  'dark and noisy': scaled(0.12, 0, 4),
  'very dark': scaled(0.06, 0, 0),
  'very noisy': scaled(0.8, 20, 25),
  'grey sky in fog': lambda image: scaled(0.25, 120, 0)(grey_above(image)),
}


@pytest.mark.parametrize('case', _DULL)
def test_a_dull_panorama_is_what_its_metadata_say(shared_data, case):
  videos = {kind: [layouts.panorama(kind)] for kind in scenes.KINDS}
  videos['real'] = real_frames(shared_data)[::4]
  for kind, images in videos.items():
    shown = [compressed(_DULL[case](image)) for image in images]
    name, scores = detection.recognise(shown)
    fault = detection._fault(projections.Layout(), name, shown, scores)
    assert not fault, (kind, fault)


@pytest.mark.parametrize('case', ['fog', 'dark and noisy', 'grey sky'])
def test_dull_cubes_and_eyes_are_what_their_metadata_say(videos, case):
  for name in ('eac', 'equirectangular-tb', 'equirectangular-sbs'):
    for images in videos.values():
      make = layouts.MAKERS[name]
      shown = [compressed(make(_DULL[case](image))) for image in images]
      shown_as, scores = detection.recognise(shown)
      fault = detection._fault(projections.NAMES[name], shown_as, shown, scores)
      assert not fault
  # And what is none of them is refused, as dull as it is.
  for name in ('eac', 'equirectangular-tb', 'equirectangular-sbs'):
    for images in videos.values():
      shown = [compressed(_DULL[case](flat(image))) for image in images]
      shown_as, scores = detection.recognise(shown)
      assert detection._fault(
        projections.NAMES[name], shown_as, shown, scores
      ) or not _tells(scores, name)


def _tells(scores, name):
  """Whether there is enough in the pictures to measure anything by."""
  stereo = projections.NAMES[name].stereo
  return name == 'eac' or f'similarity {stereo}' in scores


@pytest.mark.parametrize(
  'case,most',
  [
    ('as it is', 0.0),
    ('grey sky', 0.0),
    ('fog', 0.05),
    ('dark', 0.05),
    ('foggy and noisy', 0.1),
    ('very dark', 0.05),
  ],
)
def test_a_flat_picture_clearly_fails(videos, shared_data, case, most):
  photographs = sorted((shared_data / 'lund_360v2' / 'images_4').iterdir())
  shots = [
    cv2.resize(cv2.imread(str(path)), (512, 340)) for path in photographs
  ]
  shots = [[shot[row : row + 256]] for shot in shots[::8] for row in (0, 84)]
  for images in [*videos.values(), real_frames(shared_data)[:1]]:
    height = images[0].shape[0] // 2 * 2
    for yaw_deg in (0.0, 75.0, 200.0):
      views = [flat(image[:height], yaw_deg) for image in images]
      shots += [views, [view[:180] for view in views]]
  passed = 0
  shots = shots[::2]
  for shot in shots:
    shown = [compressed(_DULL[case](image)) for image in shot]
    name, scores = detection.recognise(shown)
    assert name is None
    passed += not detection._fault(projections.Layout(), None, shown, scores)
    # What passes rests on its tag alone, and is said to.
    assert not detection._is_confirmed(
      projections.Layout(), None, shown, scores
    )
  # Where there is a lot of detail all of them; else nearly all.
  assert passed <= most * len(shots), (passed, len(shots))


@pytest.mark.parametrize(
  'kind,size', [('dfisheye', 'w=512:h=256'), ('fisheye', 'w=256:h=256')]
)
def test_fisheyes_are_named_whatever_their_tag_says(write, videos, kind, size):
  options = f'e:{kind}:h_fov=180:v_fov=180:{size}'
  images = [layouts.v360(image, options) for image in videos['unique_room']]
  # The filter fills the corners, too.
  disc = cv2.circle(
    np.zeros((256, 256, 3), np.uint8), (128, 128), 126, (1,) * 3, -1
  )
  disc = np.tile(disc, (1, images[0].shape[1] // 256, 1))
  images = [image * disc for image in images]
  tag = spherical_boxes.sv3d(spherical_boxes.equi())
  for boxes, forced in ((b'', None), (tag, None), (b'', 'equirectangular')):
    with pytest.raises(decoding.VideoError, match=f'fisheye.*v360={kind}:e'):
      detection.decide(write(images, boxes), forced)


@pytest.mark.parametrize('height,width', [(288, 512), (256, 640), (320, 600)])
def test_black_bars_are_named_and_their_crop_is_right(
  write, videos, height, width
):
  images = [framed(image, height, width) for image in videos['unique_room']]
  row, column = (height - 256) // 2, (width - 512) // 2
  tag = spherical_boxes.sv3d(spherical_boxes.equi())
  for boxes in (b'', tag):
    with pytest.raises(decoding.VideoError, match='black bars') as refusal:
      detection.decide(write(images, boxes))
    crop = re.search(r'crop=(\d+):(\d+):(\d+):(\d+)', str(refusal.value))
    found = np.array([int(number) for number in crop.groups()])
    assert np.abs(found - (512, 256, column, row)).max() <= 2


@pytest.mark.parametrize(
  'name,size,is_right',
  [
    ('equirectangular', (192, 96), True),
    ('equirectangular', (192, 108), True),
    ('equirectangular', (128, 96), False),
    ('equirectangular', (96, 96), False),
    ('equirectangular-tb', (96, 96), True),
    ('equirectangular-tb', (192, 96), True),
    ('equirectangular-sbs', (384, 96), True),
    ('equirectangular-sbs', (96, 96), False),
    ('eac', (144, 96), True),
    ('eac', (192, 108), True),
    ('eac', (96, 96), False),
    ('vr180', (96, 96), True),
    ('vr180', (192, 96), False),
  ],
)
def test_a_layout_of_another_aspect_is_refused(write, name, size, is_right):
  """Of pictures of one grey, which say nothing else."""
  path = write([np.full((size[1], size[0], 3), 90, np.uint8)] * 2)
  if is_right:
    assert detection.decide(path, name).layout.name == name
  else:
    with pytest.raises(decoding.VideoError, match='has another aspect'):
      detection.decide(path, name)


def test_the_cases_of_others_are_refused_by_name(shared_data):
  folder = shared_data / 'video_cases'
  with pytest.raises(decoding.VideoError, match='by its metadata, but'):
    detection.decide(folder / 'K2_flat_tagged.mp4')
  with pytest.raises(decoding.VideoError, match='crop=384:192:0:12 '):
    detection.decide(folder / 'K9_letterbox.mp4')


@pytest.mark.parametrize('kind,name', [(b'cbmp', 'cubemap'), (b'mshp', 'mesh')])
def test_a_projection_that_is_not_read_is_named(write, videos, kind, name):
  boxes = spherical_boxes.sv3d(spherical_boxes.full_box(kind, b'\0' * 8))
  path = write([flat(image) for image in videos['unique_room']], boxes)
  with pytest.raises(decoding.VideoError, match=f'{name}.*convert it'):
    detection.decide(path)


def test_the_real_video_is_a_panorama_by_its_content(shared_data):
  decision = detection.decide(shared_data / 'real_360_alcatraz.mp4')
  assert decision.layout == projections.Layout()
  assert decision.source == 'content'
  assert decision.evidence['frames'] == 10
  assert decision.evidence['aspect'] == pytest.approx(640 / 322, abs=1e-3)
