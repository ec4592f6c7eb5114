"""Any transforms.json; what our exporter writes is read in test_exports.py."""

import json

import cv2
import numpy as np
from PIL import Image
import pytest

from odin_jax.benchmarks import nerfstudio
from odin_jax.shared import camera, errors

WIDTH, HEIGHT = 96, 72
LENS = {'fl_x': 80, 'fl_y': 78, 'cx': 47, 'cy': 37, 'w': WIDTH, 'h': HEIGHT}
# On the axis z, which is up, one above the origin, looking down at it; what is
# right in the picture is x.
FROM_ABOVE = [[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 1], [0, 0, 0, 1]]
# Looks along y of a world with z up from the origin.
AHEAD = [[1, 0, 0, 0], [0, 0, -1, 0], [0, 1, 0, 0], [0, 0, 0, 1]]


def write_picture(path, width=WIDTH, height=HEIGHT, value=100):
  path.parent.mkdir(parents=True, exist_ok=True)
  cv2.imwrite(str(path), np.full((height, width, 3), value, np.uint8))


@pytest.fixture
def scene(tmp_path):
  """Writes a scene of two frames; gives its folder."""

  def write(changes=(), of_frame=(), name='transforms.json'):
    frames = [
      {'file_path': 'images/b.png', 'transform_matrix': FROM_ABOVE},
      {'file_path': 'images/a.png', 'transform_matrix': AHEAD},
    ]
    frames[0].update(of_frame)
    for frame in frames:
      if frame['file_path'].endswith('.png'):
        write_picture(tmp_path / frame['file_path'])
    content = {**LENS, 'frames': frames, **dict(changes)}
    content = {key: x for key, x in content.items() if x is not None}
    (tmp_path / name).write_text(json.dumps(content))
    return tmp_path

  return write


def pixel(view, point):
  """Where a scene point is seen."""
  pixels, depth = camera.project(
    camera.transform(camera.inverse(view.camera2scene), np.array([point])),
    view.intrinsics,
  )
  assert depth[0] > 0
  return pixels[0]


def test_known_points_are_seen_where_they_are(scene):
  ahead, above = nerfstudio.read(scene()).views
  assert [ahead.name, above.name] == ['images/a.png', 'images/b.png']
  # Up, +z there, is -y here; ahead, +y there, is +z here.
  np.testing.assert_allclose(pixel(ahead, [0.0, 0.0, 2.0]), [47, 37])
  np.testing.assert_allclose(pixel(ahead, [0.5, -0.2, 2.0]), [67, 37 - 7.8])
  np.testing.assert_allclose(pixel(above, [0.1, 0.0, 0.0]), [55, 37])
  # What is ahead of the one is up in the picture of the other.
  np.testing.assert_allclose(pixel(above, [0.0, 0.0, 0.1]), [47, 37 - 7.8])
  assert ahead.size == (WIDTH, HEIGHT) and ahead.read().shape == (72, 96, 3)


def test_scenes_of_blender(scene):
  """One angle, no size, no suffix, pictures that are transparent."""
  lens = {key: None for key in LENS} | {'camera_angle_x': np.pi / 2}
  frame = {'file_path': './train/r_0'}
  folder = scene(lens, frame, 'transforms_train.json')
  clear = np.zeros((HEIGHT, WIDTH, 4), np.uint8)
  (folder / 'train').mkdir()
  cv2.imwrite(str(folder / 'train' / 'r_0.png'), clear)
  views = nerfstudio.read(folder / 'transforms_train.json').views
  for view in views:
    np.testing.assert_allclose(
      view.intrinsics, [[48, 0, 48], [0, 48, 36], [0, 0, 1]]
    )
  assert np.all(views[0].read() == 255) and np.all(views[1].read() == 100)


def test_reduced_pictures_have_a_reduced_camera(scene):
  # A frame's own values come before those of all.
  ahead, above = nerfstudio.read(
    scene({'w': 2 * WIDTH, 'h': 2 * HEIGHT}, {'w': WIDTH, 'h': HEIGHT})
  ).views
  np.testing.assert_allclose(
    ahead.intrinsics, [[40, 0, 23.5], [0, 39, 18.5], [0, 0, 1]]
  )
  assert above.intrinsics[0, 0] == 80


def test_distorted_pictures_become_those_of_a_pinhole_camera(scene):
  folder = scene({'camera_model': 'OPENCV', 'k1': -0.2, 'p1': 0.01})
  u, v = camera.pixel_centres(WIDTH, HEIGHT)
  lens = np.array([[80, 0, 46.5], [0, 78, 36.5], [0, 0, 1.0]])
  rays = cv2.undistortPoints(
    np.stack([u, v], axis=-1).reshape(-1, 1, 2) - 0.5,
    lens,
    np.array([-0.2, 0, 0.01, 0]),
  )
  picture = 128 + 100 * np.sin(3 * rays.reshape(HEIGHT, WIDTH, 2))
  picture = np.dstack([picture, picture[..., 0]]).round().astype(np.uint8)
  cv2.imwrite(str(folder / 'images' / 'a.png'), picture[..., ::-1])
  view = nerfstudio.read(folder).views[0]
  u, v = camera.pixel_centres(*view.size)
  pixels = np.stack([u, v, np.ones_like(u)], axis=-1)
  rays = pixels @ np.linalg.inv(view.intrinsics).T
  expected = 128 + 100 * np.sin(3 * rays[..., :2])
  assert np.abs(view.read()[..., :2] - expected).max() < 6
  assert min(np.divide(view.size, (WIDTH, HEIGHT))) > 0.8


def test_cameras_are_of_the_pixels_as_they_are_stored(scene):
  """Whatever a picture's header says of how to turn it."""
  folder = scene()
  image = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
  image[:10] = 200
  exif = Image.Exif()
  exif[0x0112] = 3
  Image.fromarray(image).save(folder / 'images' / 'a.png', exif=exif)
  stored = nerfstudio.read(folder).views[0].read()
  np.testing.assert_array_equal(stored, image)


@pytest.mark.parametrize(
  'changes, of_frame, words',
  [
    ({'frames': None}, {}, 'transforms.json: no transforms.json: .*frames'),
    ({'frames': []}, {}, 'transforms.json: no frames'),
    ({'camera_model': 'OPENCV_FISHEYE'}, {}, 'a.png: .* is OPENCV_FISHEYE'),
    ({'camera_model': 'EQUIRECTANGULAR'}, {}, 'a.png: .* EQUIRECTANGULAR'),
    ({'is_fisheye': True}, {}, 'a.png: its camera is fisheye'),
    ({'fl_x': None}, {}, 'a.png: .*neither fl_x nor camera_angle_x'),
    ({'fl_x': -80}, {}, 'a.png: its focal length is not positive'),
    ({'fl_x': 'wide'}, {}, 'a.png: ValueError in its camera'),
    ({'k4': 0.1}, {}, 'a.png: k4 is of fisheye'),
    ({'cx': float('nan')}, {}, 'a.png: .* no numbers'),
    ({'w': 0}, {}, 'a.png: its w and h are not positive'),
    # Degrees; and of pictures that were reduced.
    ({'fl_x': None, 'camera_angle_x': 90}, {}, 'a.png: .*field of view of 90'),
    ({'w': None, 'h': None, 'cx': 94}, {}, 'a.png: its principal point'),
    ({'k1': -50.0}, {}, 'a.png: .*folds pictures'),
    ({'k1': float('nan')}, {}, 'a.png: .*folds pictures'),
    ({'ply_file_path': 3}, {}, '3: no such file'),
    (
      {'w': HEIGHT, 'h': WIDTH},
      {},
      'a.png: has 96x72 pixels, its camera 72x96',
    ),
    ({}, {'transform_matrix': np.eye(3).tolist()}, 'b.png: not a pose'),
    (
      {},
      {'transform_matrix': (2 * np.eye(4)).tolist()},
      'b.png: not a pose: its last row',
    ),
    (
      {},
      {'transform_matrix': np.diag([1, 1, -1, 1]).tolist()},
      'b.png: not a pose: it is no rotation',
    ),
    ({}, {'transform_matrix': 'none'}, 'b.png: ValueError in its camera'),
    ({}, {'mask_path': 'masks/b.png'}, 'masks/b.png: no such file'),
    ({}, {'file_path': './images/a.png'}, 'two frames have one picture'),
  ],
)
def test_what_is_missing_or_malformed_is_named(scene, changes, of_frame, words):
  with pytest.raises(errors.UserError, match=words) as error:
    nerfstudio.read(scene(changes, of_frame))
  assert '\n' not in str(error.value)


def test_missing_files_are_named(scene, tmp_path):
  with pytest.raises(errors.UserError, match='transforms.json: no such file'):
    nerfstudio.read(tmp_path)
  folder = scene()
  (folder / 'images' / 'b.png').unlink()
  with pytest.raises(errors.UserError, match='images/b.png: no such file'):
    nerfstudio.read(folder)
  header = (
    'ply\nformat ascii 1.0\nelement vertex 2\nproperty float x\nproperty '
    'float y\nproperty float z\nend_header\n'
  )
  folder = scene({'ply_file_path': 'points.ply'})
  for points, words in (
    ('0 1 1\n', 'points.ply: says that it has 2 lines, and has 1'),
    ('0 1 1\n0 2\n', 'points.ply: has a line of 2 words'),
    ('0 1 1\nnan 0 0\n', 'points.ply: has points that are no numbers'),
  ):
    (folder / 'points.ply').write_text(header + points)
    with pytest.raises(errors.UserError, match=words):
      nerfstudio.read(folder)
  (folder / 'transforms.json').write_text('{"frames": [')
  with pytest.raises(errors.UserError, match='no transforms.json: needs'):
    nerfstudio.read(folder)
