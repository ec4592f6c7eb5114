"""Scans of DTU: known points fall on their pixels in every layout."""

import cv2
import numpy as np
import pytest

from odin_jax.benchmarks import dtu
from odin_jax.shared import camera, errors

SIZE = (40, 30)
NUMBERS = (3, 25)
SPHERE2WORLD = np.array(
  [[200.0, 0, 0, -30], [0, 200, 0, 10], [0, 0, 200, 600], [0, 0, 0, 1]]
)
INTRINSICS = np.array([[70.0, 0, 20.6], [0, 69.0, 15.5], [0, 0, 1]])


def world2camera(number):
  """In millimetres; cameras that see the sphere from the world's origin."""
  angle = 0.01 * number
  return camera.make_pose(
    camera.rotation_y(angle) @ camera.rotation_x(0.1),
    np.array([5.0 * number, -20, 8]),
  )


def world_mat(number, intrinsics=INTRINSICS):
  matrix = np.eye(4)
  matrix[:3] = intrinsics @ world2camera(number)
  return matrix


def points_in_world():
  """Points of the sphere, in millimetres."""
  points = np.random.default_rng(0).normal(size=(20, 3))
  points /= 2 * np.linalg.norm(points, axis=1, keepdims=True)
  return points @ SPHERE2WORLD[:3, :3].T + SPHERE2WORLD[:3, 3]


def true_pixels(number):
  """Where the points are, in pixels whose first has its centre at (0, 0)."""
  homogeneous = np.c_[points_in_world(), np.ones(20)]
  pixels = homogeneous @ world_mat(number)[:3].T
  return pixels[:, :2] / pixels[:, 2:]


def write_pictures(folder, name):
  folder.mkdir(parents=True)
  for number in NUMBERS:
    path = folder / name.format(number, number + 1)
    assert cv2.imwrite(str(path), np.full((30, 40, 3), number, np.uint8))


def write_npz(folder, **changes):
  """A scan in the layout of IDR; a change of None leaves a matrix out."""
  matrices = {}
  for number in NUMBERS:
    # A projection has any sign and scale.
    matrices[f'world_mat_{number}'] = -2 * world_mat(number)
    matrices[f'scale_mat_{number}'] = SPHERE2WORLD
  matrices |= changes
  np.savez(
    folder / 'cameras_sphere.npz',
    **{name: value for name, value in matrices.items() if value is not None},
  )
  return folder


@pytest.fixture
def scan(tmp_path):
  """A scan in the layout of IDR, without its matrices."""
  write_pictures(tmp_path / 'image', '{:06d}.png')
  write_pictures(tmp_path / 'mask', '{:03d}.png')
  return tmp_path


def cam_text(number, factor=1):
  intrinsics = INTRINSICS / [[factor], [factor], [1]]
  rows = [*world2camera(number), [0, 0, 0, 1], *intrinsics]
  lines = [' '.join(map(repr, map(float, row))) for row in rows]
  return '\n'.join(
    ['extrinsic', *lines[:4], '', 'intrinsic', *lines[4:], '', '425.0 2.5']
  )


def write_cams(folder, factor):
  folder.mkdir(parents=True)
  for number in NUMBERS:
    text = cam_text(number, factor)
    (folder / f'{number:08d}_cam.txt').write_text(text)


def assert_points_fall_on_their_pixels(views, points):
  assert [view.number for view in views.views] == list(NUMBERS)
  for view in views.views:
    pixels, depth = camera.project(
      camera.transform(camera.inverse(view.camera2scene), points),
      view.intrinsics,
    )
    assert np.all(depth > 0) and view.size == SIZE
    # Our pixels start at a corner.
    np.testing.assert_allclose(
      pixels, true_pixels(view.number) + 0.5, atol=1e-6
    )
    assert view.read()[0, 0].tolist() == [view.number] * 3


def test_points_of_the_sphere_in_the_layout_of_idr(scan):
  views = dtu.read(write_npz(scan))
  in_sphere = (points_in_world() - SPHERE2WORLD[:3, 3]) / 200
  assert_points_fall_on_their_pixels(views, in_sphere)
  assert 'sphere' in views.unit
  assert views.numbered(25).mask_path == scan / 'mask' / '025.png'


def test_without_a_sphere_lengths_are_millimetres(scan):
  spheres = {f'scale_mat_{number}': None for number in NUMBERS}
  views = dtu.read(write_npz(scan, **spheres))
  assert_points_fall_on_their_pixels(views, points_in_world())
  assert views.unit == 'millimetre'


def test_points_in_the_layout_of_pixelnerf(scan):
  write_npz(scan).joinpath('cameras_sphere.npz').rename(scan / 'cameras.npz')
  in_sphere = (points_in_world() - SPHERE2WORLD[:3, 3]) / 200
  assert_points_fall_on_their_pixels(dtu.read(scan), in_sphere)


def test_points_in_the_layouts_of_mvsnet(tmp_path):
  write_pictures(tmp_path / 'scan8' / 'images', '{:08d}.jpg')
  write_cams(tmp_path / 'scan8' / 'cams', 1)
  views = dtu.read(tmp_path / 'scan8')
  assert_points_fall_on_their_pixels(views, points_in_world())

  rectified = tmp_path / 'Rectified' / 'scan8_train'
  write_pictures(rectified, 'rect_{1:03d}_3_r5000.png')
  write_pictures(rectified / 'unused', 'rect_{1:03d}_2_r5000.png')
  write_cams(tmp_path / 'Cameras' / 'train', 4)
  views = dtu.read(rectified)
  assert_points_fall_on_their_pixels(views, points_in_world())


@pytest.mark.parametrize(
  'changes, words',
  [
    ({'world_mat_25': None}, 'world_mat_25: not there, but .*000025.png is'),
    ({'world_mat_3': np.full((4, 4), np.nan)}, 'world_mat_3: not a 4x4'),
    ({'world_mat_3': np.zeros((4, 4))}, r'world_mat_3: not K \[R|t\]'),
    (
      {'world_mat_3': np.diag([4, 4, 1, 1]) @ world_mat(3)},
      'world_mat_3: its principal point .* 40x30 pixels',
    ),
    # A tenth larger than the pictures.
    (
      {'world_mat_3': np.diag([1.1, 1.1, 1, 1]) @ world_mat(3)},
      'world_mat_3: its principal point .* 40x30 pixels',
    ),
    ({'scale_mat_3': 2 * SPHERE2WORLD}, 'scale_mat_25: not a 4x4 .* share'),
    ({'scale_mat_25': None}, 'scale_mat_25: not a 4x4 .* share'),
  ],
)
def test_a_malformed_matrix_is_named(scan, changes, words):
  with pytest.raises(errors.UserError, match=words) as error:
    dtu.read(write_npz(scan, **changes))
  assert '\n' not in str(error.value)


def test_malformed_folders_are_named(scan, tmp_path):
  with pytest.raises(errors.UserError, match='no scan of DTU: needs image/'):
    dtu.read(scan)
  (scan / 'cameras.npz').write_bytes(b'PK\3\4 and no more')
  with pytest.raises(errors.UserError, match='cameras.npz: cannot be read'):
    dtu.read(scan)
  write_npz(scan)
  (scan / 'image' / 'view.png').touch()
  with pytest.raises(errors.UserError, match='view.png: .* by their number'):
    dtu.read(scan)
  (scan / 'image' / 'view.png').rename(scan / 'image' / '000003.png')
  with pytest.raises(errors.UserError, match='000003.png: is no picture'):
    dtu.read(scan)
  (scan / 'image' / '3.jpg').touch()
  with pytest.raises(errors.UserError, match='000003.png and 3.jpg have the'):
    dtu.read(scan)

  cams = tmp_path / 'other' / 'cams'
  write_pictures(cams.parent / 'images', '{:08d}.png')
  write_cams(cams, 1)
  (cams / '00000025_cam.txt').write_text('extrinsic 1 2 3 intrinsic')
  with pytest.raises(errors.UserError, match='00000025_cam.txt: no camera'):
    dtu.read(cams.parent)
  (cams / '00000025_cam.txt').write_text(
    cam_text(25).replace('0.0 0.0 0.0 1.0', '0.0 0.0 1.0 1.0')
  )
  with pytest.raises(errors.UserError, match='00000025_cam.txt: not a pose'):
    dtu.read(cams.parent)
  (cams / '00000025_cam.txt').unlink()
  with pytest.raises(errors.UserError, match='00000025_cam.txt: no such file'):
    dtu.read(cams.parent)


def features(view):
  """SIFT features of the object: pixels of the whole picture, descriptors."""
  grey = cv2.cvtColor(view.read(), cv2.COLOR_RGB2GRAY)
  mask = cv2.imread(str(view.mask_path), cv2.IMREAD_GRAYSCALE)
  half = [
    cv2.resize(image, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA)
    for image in (grey, mask)
  ]
  inside = np.where(half[1] > 127, 255, 0).astype(np.uint8)
  points, descriptors = cv2.SIFT_create(2000).detectAndCompute(half[0], inside)
  return 2 * (np.array([point.pt for point in points]) + 0.5), descriptors


def matches(first, second):
  """Mutually nearest features that are clearly nearer than the second best."""
  both = {
    (match.queryIdx, match.trainIdx)
    for match in cv2.BFMatcher(crossCheck=True).match(first, second)
  }
  return {
    match.queryIdx: match.trainIdx
    for match, other in cv2.BFMatcher().knnMatch(first, second, k=2)
    if match.distance < 0.7 * other.distance
    and (match.queryIdx, match.trainIdx) in both
  }


def test_features_of_two_photographs_are_found_in_the_third(shared_data):
  """Triangulated by the cameras of two views, seen by that between them."""
  views = dtu.read(shared_data / 'dtu_scan24')
  three = [views.numbered(number) for number in (23, 24, 25)]
  pixels, descriptors = zip(*map(features, three))
  to_second, to_third = (
    matches(descriptors[0], other) for other in descriptors[1:]
  )
  tracks = np.array(
    [(i, to_second[i], to_third[i]) for i in to_second if i in to_third]
  )
  first, middle, last = (
    pixels[view][tracks[:, view]] for view in range(len(three))
  )
  projections = [
    view.intrinsics @ camera.inverse(view.camera2scene) for view in three
  ]
  points = cv2.triangulatePoints(
    projections[0], projections[2], first.T, last.T
  )
  points = (points[:3] / points[3]).T
  scene2camera = camera.inverse(three[1].camera2scene)
  projected, depth = camera.project(
    camera.transform(scene2camera, points), three[1].intrinsics
  )
  errors_px = np.linalg.norm(projected - middle, axis=1)
  close = errors_px < 3
  # The house repeats its windows, which some matches confuse.
  assert close.sum() >= 15 and close.mean() > 0.5
  assert np.median(errors_px) < 1 and np.all(depth[close] > 0)
  # The object lies in the sphere of radius 1, in which poses are given.
  assert np.linalg.norm(points[close], axis=1).max() < 1
  distances = [np.linalg.norm(view.camera2scene[:, 3]) for view in three]
  assert all(2 < distance < 4 for distance in distances)
