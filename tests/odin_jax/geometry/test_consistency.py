"""TSED and returns on views whose scene is known, and through the command."""

import dataclasses
import functools
import json

import cv2
import numpy as np
import pytest

from odin_jax.geometry import consistency, trajectory
from odin_jax.shared import camera, opengl
from tests.helpers import commands
from tests.helpers.room_views import Room

FOV_DEG, SIZE_PX = 70.0, 64
RULE = consistency.Rule()
FOCAL_PX = camera.intrinsics(FOV_DEG, RULE.size_px)[0, 0]


def true_views(name, count=4, step=0.08):
  path = trajectory.camera_path(name, count, step)
  images, _ = Room().views(path, FOV_DEG, SIZE_PX)
  return [
    consistency.View(
      name=f'{index}.png',
      read=functools.partial(np.asarray, image),
      size=(SIZE_PX, SIZE_PX),
      intrinsics=camera.intrinsics(FOV_DEG, SIZE_PX),
      camera2scene=pose,
    )
    for index, (image, pose) in enumerate(zip(images, path))
  ]


def with_images(views, images):
  return [
    dataclasses.replace(view, read=functools.partial(np.asarray, image))
    for view, image in zip(views, images)
  ]


def pairs_of(views, stride=1):
  seen = [consistency.look(view, RULE.size_px) for view in views]
  return consistency.pairs(seen, RULE, stride)


@pytest.fixture(scope='module')
def orbit():
  return true_views('orbit_left', count=5)


@pytest.mark.parametrize('name', ['right', 'forward'])
def test_true_views_lie_on_their_epipolar_lines(name):
  results = pairs_of(true_views(name))
  assert consistency.tsed(results) == 1.0
  for pair in results:
    # Measured: 96 % of the matches, a quarter of a pixel of 64 px views.
    assert pair.matches > 100 and pair.share > 0.95
    assert pair.median_px < 0.25
    assert pair.median_px < pair.thresholded_mean_px < 0.5


def test_matches_move_as_far_as_the_scene_does():
  """The room's back wall is 1.6 away, its sides as near as 1."""
  (pair,) = pairs_of(true_views('right', count=2))
  far, near = (FOCAL_PX * 0.08 / depth for depth in (1.7, 0.6))
  assert far < pair.shift_px < near


def test_a_stride_compares_views_that_far_apart(orbit):
  results = pairs_of(orbit, stride=2)
  assert [pair.views for pair in results] == [(0, 2), (1, 3), (2, 4)]
  assert consistency.tsed(results) == 1.0
  assert results[0].shift_px > 1.5 * pairs_of(orbit)[0].shift_px


@pytest.mark.parametrize('error_deg', [0.2, 0.4, 0.8, 1.6])
def test_poses_that_err_by_an_angle_err_by_as_many_pixels(error_deg):
  """Sideways all lines are level; a pitch by d lifts a point at height y.

  By f tan d (1 + y^2 / f^2), and half of the points are within a quarter of
  the view from its middle.
  """
  views = true_views('right')
  turn = camera.rotation_x(np.deg2rad(error_deg))
  for index in (1, 3):
    pose = views[index].camera2scene.copy()
    pose[:, :3] = pose[:, :3] @ turn
    views[index] = dataclasses.replace(views[index], camera2scene=pose)
  expected = FOCAL_PX * np.tan(np.deg2rad(error_deg))
  expected *= 1 + (RULE.size_px / 4 / FOCAL_PX) ** 2
  results = pairs_of(views)
  for pair in results:
    assert pair.median_px == pytest.approx(expected, rel=0.1)
  # 0.56 degrees are 2 px.
  assert consistency.tsed(results) == (1.0 if error_deg < 0.5 else 0.0)


def test_views_in_another_order_are_not_consistent():
  views = true_views('weave', count=6, step=0.12)
  assert consistency.tsed(pairs_of(views)) == 1.0
  images = [views[index].read() for index in (3, 1, 5, 0, 2, 4)]
  # A pair may have kept its distance by chance.
  assert consistency.tsed(pairs_of(with_images(views, images))) <= 0.2


def test_copies_are_told_by_matches_that_do_not_move():
  """Where cameras do not turn, a copy lies on its own epipolar line."""
  views = true_views('forward')
  results = pairs_of(with_images(views, [views[0].read()] * 4))
  assert consistency.tsed(results) == 1.0
  assert [pair.shift_px for pair in results] == [0.0] * 3


def test_few_matches_are_not_consistent_whatever_they_say(orbit):
  blank = np.full((SIZE_PX, SIZE_PX, 3), 99, np.uint8)
  results = pairs_of(with_images(orbit[:2], [blank, blank]))
  assert results[0].matches == 0 and results[0].consistent is False
  assert results[0].median_px is results[0].share is None
  seen = [consistency.look(view, RULE.size_px) for view in orbit[:2]]
  count = pairs_of(orbit[:2])[0].matches
  for min_matches in (count, count + 1):
    rule = dataclasses.replace(RULE, min_matches=min_matches)
    (pair,) = consistency.pairs(seen, rule, 1)
    assert pair.consistent == (count >= min_matches)


def test_a_turn_on_the_spot_has_no_epipolar_lines():
  results = pairs_of(true_views('pan_right', count=3))
  assert [pair.consistent for pair in results] == [None, None]
  assert results[0].matches > 50 and results[0].median_px is None
  assert consistency.tsed(results) is None


def slow_distance(a, b, point_a, point_b):
  """From two far points of the ray through the pixel, seen in the other."""
  halves = []
  for first, second, p, q in (
    (a, b, point_a, point_b),
    (b, a, point_b, point_a),
  ):
    ray = np.linalg.inv(first.intrinsics) @ [*p, 1.0]
    pose = camera.relative(second.camera2scene, first.camera2scene)
    ends, _ = camera.project(
      camera.transform(pose, np.outer([1.0, 2.0], ray)), second.intrinsics
    )
    along = ends[1] - ends[0]
    away = q - ends[0]
    cross = along[0] * away[1] - along[1] * away[0]
    halves.append(abs(cross) / np.linalg.norm(along))
  return sum(halves) / 2


def test_the_distance_is_that_of_the_slow_oracle(orbit):
  generator = np.random.default_rng(0)
  a = consistency.look(orbit[0], 100)
  b = dataclasses.replace(
    orbit[3], intrinsics=np.array([[90.0, 0, 40], [0, 80, 55], [0, 0, 1]])
  )
  points_a, points_b = generator.uniform(5, 60, (2, 20, 2))
  distances = consistency.symmetric_epipolar_distance(
    consistency.fundamental_matrix(a, b), points_a, points_b
  )
  expected = [slow_distance(a, b, p, q) for p, q in zip(points_a, points_b)]
  np.testing.assert_allclose(distances, expected, rtol=1e-9)


def test_at_the_epipole_every_line_will_do():
  a, b = true_views('forward', count=2)
  middle = np.full((1, 2), SIZE_PX / 2)
  matrix = consistency.fundamental_matrix(a, b)
  np.testing.assert_array_equal(
    consistency.symmetric_epipolar_distance(matrix, middle, middle), [0.0]
  )


def test_a_view_that_is_resized_keeps_its_pixels_where_they_were(orbit):
  blank = np.zeros((50, 80, 3), np.uint8)
  wide = dataclasses.replace(orbit[0], read=lambda: blank, size=(80, 50))
  ray = np.array([0.2, -0.3, 1.0])
  expected, _ = camera.project(ray, wide.intrinsics)
  for size_px in (25, 100):
    seen = consistency.look(wide, size_px)
    pixel, _ = camera.project(ray, seen.intrinsics)
    np.testing.assert_allclose(pixel, expected * size_px / 50)


def test_a_path_that_returns_shows_the_same_again():
  views = true_views('loop', count=5)
  returned = consistency.returns(views)
  assert [row.views for row in returned] == [(1, 3), (0, 4)]
  assert [row.psnr for row in returned] == pytest.approx([138.13] * 2, abs=0.01)
  # Ten levels of 255 off.
  images = [np.minimum(view.read(), 245) for view in views]
  views = with_images(views, [*images[:4], images[4] + 10])
  assert consistency.returns(views)[1].psnr == pytest.approx(
    20 * np.log10(25.5)
  )
  # Of another lens it is another view.
  other = views[4].intrinsics * np.array([[2.0], [2.0], [1.0]])
  views[4] = dataclasses.replace(views[4], intrinsics=other)
  assert [row.views for row in consistency.returns(views)] == [(1, 3)]


def test_a_path_that_goes_on_does_not_return(orbit):
  assert consistency.returns(orbit) == []
  assert consistency.returns(true_views('pan_left')) == []


# -- The command ---------------------------------------------------------------


def write(folder, views):
  """As odin_jax.generate does."""
  folder.mkdir()
  frames = []
  for view in views:
    cv2.imwrite(str(folder / view.name), view.read()[..., ::-1])
    pose = view.camera2scene.ravel().tolist()
    frames.append({'file': view.name, 'camera2scene': pose})
  content = {'fov_deg': FOV_DEG, 'width': SIZE_PX, 'height': SIZE_PX}
  (folder / 'poses.json').write_text(json.dumps({**content, 'frames': frames}))
  return folder


def write_nerfstudio(folder, views):
  """As nerfstudio has it, with numbers that text would sort otherwise."""
  folder.mkdir()
  opengl2opencv = camera.make_pose(opengl.OPENGL2OPENCV, np.zeros(3))
  frames = []
  for index, view in enumerate(views, start=8):
    cv2.imwrite(str(folder / f'frame_{index}.png'), view.read()[..., ::-1])
    opengl2world = camera.compose(
      opengl.SCENE2WORLD, camera.compose(view.camera2scene, opengl2opencv)
    )
    pose = np.vstack([opengl2world, [0, 0, 0, 1]]).tolist()
    frames.append({'file_path': f'frame_{index}.png', 'transform_matrix': pose})
  content = {'camera_angle_x': np.deg2rad(FOV_DEG), 'frames': frames}
  (folder / 'transforms.json').write_text(json.dumps(content))
  return folder


@pytest.fixture(scope='module')
def outcomes(tmp_path_factory, orbit):
  """The command's results by name: (figures or None, status, stderr)."""
  folder = tmp_path_factory.mktemp('consistency')
  blank = np.full((SIZE_PX, SIZE_PX, 3), 99, np.uint8)
  empty = folder / 'empty'
  empty.mkdir()
  copies = true_views('forward', count=3)
  lost = orbit[2].camera2scene.copy()
  lost[0, 3] = 1e9
  far = [
    *orbit[:2],
    dataclasses.replace(orbit[2], camera2scene=lost),
    *orbit[3:],
  ]
  cases = {
    'orbit': (write(folder / 'orbit', orbit), []),
    'nerfstudio': (write_nerfstudio(folder / 'nerfstudio', orbit), []),
    'blank': (
      write(
        folder / 'blank', with_images(orbit, [orbit[0].read()] + [blank] * 4)
      ),
      [],
    ),
    'copies': (
      write(folder / 'copies', with_images(copies, [copies[0].read()] * 3)),
      [],
    ),
    'loop': (write(folder / 'loop', true_views('loop', count=3)), []),
    'pan': (write(folder / 'pan', true_views('pan_left', count=3)), []),
    'stride': (folder / 'orbit', ['--stride=5']),
    'stray': (write(folder / 'stray', far), []),
    'nan': (folder / 'orbit', ['--threshold_px=nan']),
    'inf': (folder / 'orbit', ['--threshold_px=inf']),
    'huge': (folder / 'orbit', ['--size_px=100000']),
    'empty': (empty, []),
    'absent': (folder / 'absent', []),
  }
  results = commands.run_all(
    'odin_jax.consistency',
    [
      [f'--views={views}', f'--output={folder / "out" / name}', *more]
      for name, (views, more) in cases.items()
    ],
  )
  outcomes = {}
  for name, (status, stderr) in zip(cases, results, strict=True):
    path = folder / 'out' / name / 'consistency.json'
    figures = json.loads(path.read_text()) if path.is_file() else None
    outcomes[name] = figures, status, stderr
  return outcomes


def test_the_command_writes_what_came_of_every_pair(outcomes, orbit):
  figures, status, stderr = outcomes['orbit']
  assert status == 0 and 'warning' not in stderr
  assert figures['tsed'] == 1.0 and figures['loop_psnr'] is None
  assert figures['rule'] == {
    'threshold_px': 2.0,
    'min_matches': 10,
    'size_px': 256,
  }
  expected = [dataclasses.asdict(pair) for pair in pairs_of(orbit)]
  assert len(figures['pairs']) == 4
  for pair, row in zip(expected, figures['pairs'], strict=True):
    assert row.pop('views') == list(pair.pop('views'))
    assert row == pytest.approx(pair)
  assert [row['file'] for row in figures['per_view']] == [
    f'{index}.png' for index in range(5)
  ]


def test_nerfstudio_has_the_same_views_in_the_order_of_their_numbers(outcomes):
  figures, status, stderr = outcomes['nerfstudio']
  assert status == 0, stderr
  assert [row['file'] for row in figures['per_view']] == [
    f'frame_{index}.png' for index in range(8, 13)
  ]
  ours = outcomes['orbit'][0]['pairs']
  for row, other in zip(figures['pairs'], ours, strict=True):
    assert row['matches'] == other['matches']
    assert row['median_px'] == pytest.approx(other['median_px'], rel=1e-6)


def test_what_figures_do_not_tell_is_a_warning(outcomes):
  figures, status, stderr = outcomes['blank']
  assert status == 0 and figures['tsed'] == 0.0
  (line,) = [row for row in stderr.splitlines() if row.startswith('warning')]
  assert '4 of 5 views have hardly any texture (1.png, 2.png, 3.png, ...)' in (
    line
  )
  figures, status, stderr = outcomes['copies']
  assert status == 0 and figures['tsed'] == 1.0
  (line,) = [row for row in stderr.splitlines() if row.startswith('warning')]
  assert 'copies of one view are consistent, too' in line


def test_a_return_is_in_the_file(outcomes):
  figures, status, _ = outcomes['loop']
  assert status == 0
  assert figures['returns'] == [
    {'views': [0, 2], 'psnr': pytest.approx(138.13, abs=0.01)}
  ]
  assert figures['loop_psnr'] == figures['returns'][0]['psnr']


def test_views_that_tell_nothing_are_refused(outcomes):
  expected = {
    'pan': ['pan', 'one place'],
    'stride': ['5 views', '--stride=5'],
    'stray': ['the camera of 2.png is so far off'],
    'nan': ['--threshold_px=nan', 'finite'],
    'inf': ['--threshold_px=inf', 'finite'],
    'huge': ['--size_px=100000'],
    'empty': ['neither poses.json', 'transforms.json'],
    'absent': ['absent'],
  }
  lines = [outcomes[name] for name in expected]
  commands.assert_refused(
    # The bar of progress comes first.
    [(status, text.splitlines()[-1]) for _, status, text in lines],
    list(expected.values()),
  )
  assert all(figures is None for figures, _, _ in lines)
