"""Scenes of Mip-NeRF 360: known points fall on their pixels."""

import shutil

import cv2
import numpy as np
import pytest

from odin_jax.benchmarks import mipnerf360
from odin_jax.shared import camera, errors

pycolmap = pytest.importorskip('pycolmap')


def reprojection_errors(scene, views):
  """Of every point in every picture, in pixels of the model's pictures."""
  model = pycolmap.Reconstruction(scene / 'sparse' / '0')
  images = {image.name: image for image in model.images.values()}
  assert sorted(images) == [view.name for view in views.views]
  distances = []
  for view in views.views:
    image = images[view.name]
    observed = [point for point in image.points2D if point.has_point3D()]
    points = [model.point3D(point.point3D_id).xyz for point in observed]
    pixels, depth = camera.project(
      camera.transform(camera.inverse(view.camera2scene), np.array(points)),
      view.intrinsics,
    )
    assert np.all(depth > 0)
    factors = np.divide((image.camera.width, image.camera.height), view.size)
    offsets = pixels * factors - [point.xy for point in observed]
    distances.append(np.linalg.norm(offsets, axis=1))
  return np.concatenate(distances)


@pytest.mark.parametrize('factor', [1, 4])
def test_points_of_the_model_fall_on_their_features(shared_data, factor):
  scene = shared_data / 'lund_360v2'
  views = mipnerf360.read(scene, factor=factor)
  assert len(views.views) == 29
  distances = reprojection_errors(scene, views)
  # As COLMAP has it: the mean over points of the mean over their pictures.
  assert distances.mean() == pytest.approx(0.66, abs=0.1)
  assert np.quantile(distances, 0.99) < 3
  image = views.views[7].read()
  assert (
    image.shape[1::-1]
    == views.views[7].size
    == ((1039, 773), (259, 193))[factor > 1]
  )


# -- A world of one colour per direction ---------------------------------------

SIZE = (96, 72)
LENSES = {
  'SIMPLE_PINHOLE': [80, 48.5, 36],
  'PINHOLE': [80, 78, 47, 37],
  'SIMPLE_RADIAL': [80, 48, 36, -0.15],
  'RADIAL': [80, 48, 36, 0.1, 0.02],
  'OPENCV': [80, 78, 47, 37, -0.12, 0.03, 0.004, -0.006],
  'FULL_OPENCV': [80, 78, 47, 37, 0.1, 0.03, 0.004, -0.006, 0.01, 0.1, 0, 0],
}
NAMES = ('a.png', 'b.png')


def colour(rays):
  """Of directions [*b 3] in camera axes."""
  x, y = rays[..., 0] / rays[..., 2], rays[..., 1] / rays[..., 2]
  waves = [np.sin(3 * x + 1), np.sin(4 * y), np.cos(3 * x - 4 * y)]
  return 128 + 100 * np.stack(waves, axis=-1)


def pose(index):
  """World to camera."""
  return camera.make_pose(
    camera.rotation_y(0.3 * index) @ camera.rotation_x(-0.2),
    np.array([1.0, index, 2.0]),
  )


def picture(lens):
  """What a camera of COLMAP sees of the world."""
  u, v = camera.pixel_centres(*SIZE)
  rays = lens.cam_from_img(np.stack([u.ravel(), v.ravel()], axis=-1))
  rays = np.c_[rays, np.ones(len(rays))]
  return np.rint(colour(rays)).astype(np.uint8).reshape(*u.shape, 3)


def write_scene(folder, model_name='PINHOLE', text=False, with_rigs=True):
  """Two pictures of one camera, and a point that each of them sees."""
  model = pycolmap.Reconstruction()
  lens = pycolmap.Camera(
    camera_id=1,
    model=model_name,
    width=SIZE[0],
    height=SIZE[1],
    params=LENSES.get(model_name, [80, 78, 47, 37, 0.01, 0, 0, 0]),
  )
  model.add_camera_with_trivial_rig(lens)
  for index, name in enumerate(NAMES):
    image = pycolmap.Image(
      name=name, camera_id=1, image_id=index + 1, keypoints=np.ones((1, 2))
    )
    world2camera = pose(index)
    model.add_image_with_trivial_frame(
      image,
      pycolmap.Rigid3d(
        pycolmap.Rotation3d(world2camera[:, :3]), world2camera[:, 3]
      ),
    )
  sparse = folder / 'sparse' / '0'
  sparse.mkdir(parents=True)
  model.write_text(sparse) if text else model.write_binary(sparse)
  if not with_rigs:
    for path in sparse.glob('*s.*'):
      if path.stem in ('rigs', 'frames'):
        path.unlink()
  (folder / 'images').mkdir()
  if model_name in LENSES:
    for name in NAMES:
      cv2.imwrite(str(folder / 'images' / name), picture(lens)[..., ::-1])
  return folder


def assert_pixels_show_their_directions(views):
  for index, view in enumerate(views.views):
    np.testing.assert_allclose(
      view.camera2scene, camera.inverse(pose(index)), atol=1e-9
    )
    u, v = camera.pixel_centres(*view.size)
    pixels = np.stack([u, v, np.ones_like(u)], axis=-1)
    expected = colour(pixels @ np.linalg.inv(view.intrinsics).T)
    difference = np.abs(view.read() - expected)
    assert difference.mean() < 1.5 and difference.max() < 12


@pytest.mark.parametrize('model_name', LENSES)
def test_pixels_of_every_lens_show_their_directions(tmp_path, model_name):
  views = mipnerf360.read(write_scene(tmp_path, model_name))
  assert [view.name for view in views.views] == list(NAMES)
  assert_pixels_show_their_directions(views)
  for view in views.views:
    assert min(np.divide(view.size, SIZE)) > 0.7


@pytest.mark.parametrize('text', [False, True])
@pytest.mark.parametrize('with_rigs', [False, True])
def test_models_of_old_and_new_colmap(tmp_path, text, with_rigs):
  scene = write_scene(tmp_path, 'OPENCV', text, with_rigs)
  names = {path.stem for path in (scene / 'sparse' / '0').iterdir()}
  assert ('rigs' in names) == with_rigs
  assert_pixels_show_their_directions(mipnerf360.read(scene))


def test_reduced_pictures_have_a_reduced_camera(tmp_path):
  scene = write_scene(tmp_path, 'SIMPLE_RADIAL')
  (scene / 'images_2').mkdir()
  for name in NAMES:
    image = cv2.imread(str(scene / 'images' / name))
    half = cv2.resize(image, (48, 36), interpolation=cv2.INTER_AREA)
    # Reduced pictures of the release have suffixes of their own.
    path = (scene / 'images_2' / name).with_suffix('.tiff')
    assert cv2.imwrite(str(path), half)
  views = mipnerf360.read(scene, factor=2)
  assert views.views[0].undistortion.size == (48, 36)
  assert_pixels_show_their_directions(views)


def test_what_is_missing_or_malformed_is_named(tmp_path):
  def refused(words, folder=None, factor=1):
    with pytest.raises(errors.UserError, match=words) as error:
      mipnerf360.read(folder or tmp_path / 'scene', factor=factor)
    assert '\n' not in str(error.value)

  refused('scene: no such folder')
  scene = write_scene(tmp_path / 'scene')
  refused('images_8: no such folder', factor=8)
  fisheye = write_scene(tmp_path / 'fisheye', 'OPENCV_FISHEYE')
  refused('a.png: no such file', fisheye)
  for name in NAMES:
    shutil.copy(scene / 'images' / name, fisheye / 'images')
  refused('a.png: its camera is OPENCV_FISHEYE.*image_undistorter', fisheye)

  text = write_scene(tmp_path / 'text', text=True)
  listed = text / 'sparse' / '0' / 'images.txt'
  whole = listed.read_text()
  listed.write_text(whole.replace('b.png', 'a.png'))
  refused('sparse/0: two images there have one name', text)
  listed.write_text(whole.replace('1 1 -1', '1 1 7'))
  assert '1 1 7' in listed.read_text()
  refused('sparse/0: COLMAP cannot read .* 7 does not exist', text)

  image = cv2.imread(str(scene / 'images' / 'b.png'))
  cv2.imwrite(str(scene / 'images' / 'b.png'), cv2.rotate(image, 0))
  refused('b.png: has 72x96 pixels, its camera 96x72: it was cropped or turned')
  (scene / 'images' / 'b.png').write_text('no picture')
  refused('b.png: is no picture')

  sparse = scene / 'sparse' / '0'
  whole = (sparse / 'images.bin').read_bytes()
  (sparse / 'images.bin').write_bytes(whole[:60])
  refused('sparse/0: COLMAP cannot read this model')
  (sparse / 'images.bin').unlink()
  refused('sparse/0: images.bin is missing')
  for path in list(sparse.iterdir()):
    path.unlink()
  refused('sparse/0: no model of COLMAP')
  sparse.rmdir()
  refused('sparse/0: no such folder')
