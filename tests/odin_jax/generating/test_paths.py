"""Paths of files: what their lenses are, and what of them views do not have."""

import json

import numpy as np
import pytest

from odin_jax.generating import outputs, paths
from odin_jax.geometry import trajectory
from odin_jax.shared import opengl

POSES = trajectory.camera_path('forward', 3, 0.1)
MATRICES = [
  [*opengl.opengl2world(pose).tolist(), [0, 0, 0, 1]] for pose in POSES
]


def wide(half_side, focal):
  return np.rad2deg(2 * np.arctan(half_side / focal))


def transforms(**camera_of):
  """A `transforms.json`: what all frames have, or, as a list, each its own."""
  frames = [{'transform_matrix': matrix} for matrix in MATRICES]
  for name, values in list(camera_of.items()):
    if isinstance(values, list):
      del camera_of[name]
      for frame, value in zip(frames, values, strict=True):
        frame[name] = value
  return {**camera_of, 'frames': frames}


def viewer(fovs=(50.0, 50.0, 50.0), aspect=1.5, **settings):
  """A `camera_path.json`."""
  keyframes = [
    {'camera_to_world': np.ravel(matrix).tolist(), 'fov': fov, 'aspect': aspect}
    for matrix, fov in zip(MATRICES, fovs, strict=True)
  ]
  return {'camera_path': keyframes, **settings}


def ours(**content):
  frames = [{'camera2scene': pose.ravel().tolist()} for pose in POSES]
  return {**content, 'frames': frames}


SIZE = {'w': 600, 'h': 400}
RADIAL = {'camera_model': 'OPENCV', 'k1': 0.1, 'k2': 0, 'p1': 0, 'p2': 0}
# What a file says, and what that is: degrees of each, and whether pinholes.
TOLD = {
  'focal length': (transforms(fl_x=500, fl_y=500, **SIZE), wide(200, 500), 1),
  'an upright picture': (transforms(fl_x=500, w=400, h=600), wide(200, 500), 1),
  'pixels not square': (
    transforms(fl_x=200, fl_y=500, **SIZE),
    wide(1, 2.5),
    1,
  ),
  'angle of a wide picture': (
    transforms(camera_angle_x=2 * np.arctan(300 / 500), **SIZE),
    wide(200, 500),
    1,
  ),
  'angle alone': (transforms(camera_angle_x=np.deg2rad(40)), 40.0, 1),
  'size by its middle': (
    transforms(fl_x=500, cx=300, cy=200),
    wide(200, 500),
    1,
  ),
  'no size': (transforms(fl_x=500), None, 1),
  'malformed': (transforms(fl_x='wide', **SIZE), None, 1),
  'no width': (transforms(fl_x=500, w=0, h=0), None, 1),
  'a lens that distorts': (
    transforms(fl_x=500, **SIZE, **RADIAL),
    wide(200, 500),
    0,
  ),
  'a lens that could distort': (
    transforms(fl_x=500, **SIZE, **{**RADIAL, 'k1': 0}),
    wide(200, 500),
    1,
  ),
  'fisheye': (
    transforms(fl_x=500, **SIZE, camera_model='OPENCV_FISHEYE'),
    None,
    0,
  ),
  # Its angle is that of the height.
  'viewer': (viewer(), 50.0, 1),
  'viewer, upright': (
    viewer(render_width=300, render_height=600),
    wide(0.5 * np.tan(np.deg2rad(25)), 1),
    1,
  ),
  'viewer, upright by aspect': (
    viewer(aspect=0.5),
    wide(0.5 * np.tan(np.deg2rad(25)), 1),
    1,
  ),
  'viewer, malformed': (viewer(('a', None, -3)), None, 1),
  'viewer, out of range': (viewer((0, 200, float('nan'))), None, 1),
  'viewer, fisheye': (viewer(camera_type='fisheye'), None, 0),
  'viewer, panorama': (viewer(camera_type='equirectangular'), None, 0),
  'ours': (ours(fov_deg=75.0), 75.0, 1),
  'ours, drawn': (ours(), None, 1),
}


def read(folder, content):
  (folder / 'path.json').write_text(json.dumps(content))
  return paths.read(folder / 'path.json', 1.0)


@pytest.mark.parametrize('kind', TOLD)
def test_lenses_are_what_a_file_says(tmp_path, kind):
  content, fov_deg, is_pinhole = TOLD[kind]
  path = read(tmp_path, content)
  np.testing.assert_allclose(path.camera2scene, POSES, atol=1e-12)
  assert [lens.is_pinhole for lens in path.optics] == [bool(is_pinhole)] * 3
  found = [lens.fov_deg for lens in path.optics]
  assert found == [fov_deg and pytest.approx(fov_deg)] * 3


COLMAP = {
  'PINHOLE': ([500, 450, 300, 200], wide(200, 450), True),
  'SIMPLE_RADIAL': ([500, 300, 200, 0.1], wide(200, 500), False),
  'OPENCV': ([500, 500, 300, 200, 0, 0, 0, 0], wide(200, 500), True),
  'OPENCV_FISHEYE': ([500, 500, 300, 200, 0, 0, 0, 0], None, False),
}


@pytest.mark.parametrize('model', COLMAP)
def test_lenses_are_what_colmap_says(tmp_path, model):
  params, fov_deg, is_pinhole = COLMAP[model]
  outputs.write_cameras(tmp_path, ['a.png', 'b.png', 'c.png'], POSES, 60.0, 8)
  line = ' '.join(map(str, ['1', model, 600, 400, *params]))
  (tmp_path / 'sparse' / '0' / 'cameras.txt').write_text(f'{line}\n')
  path = paths.read(tmp_path / 'sparse' / '0', 1.0)
  assert [lens.is_pinhole for lens in path.optics] == [is_pinhole] * 3
  found = [lens.fov_deg for lens in path.optics]
  assert found == [fov_deg and pytest.approx(fov_deg)] * 3


@pytest.mark.parametrize('name', ['poses.json', 'transforms.json', 'sparse/0'])
def test_cameras_of_views_are_as_wide_as_these(tmp_path, name):
  outputs.write_cameras(tmp_path, ['a.png', 'b.png', 'c.png'], POSES, 61.5, 8)
  path = paths.read(tmp_path / name, 1.0)
  assert [lens.fov_deg for lens in path.optics] == [pytest.approx(61.5)] * 3
  assert path.left_out(61.5) is None
  assert '61.5 degrees wide, the views are 75.0' in path.left_out(75.0)


def test_what_views_do_not_have_is_said_in_words(tmp_path):
  zoom = read(tmp_path, viewer((50.0, 58.0, 66.0)))
  # Either end may be another than that of the views.
  for fov_deg in (50.0, 58.0, 66.0):
    assert '50.0 to 66.0 degrees' in zoom.left_out(fov_deg)
  still = read(tmp_path, viewer())
  assert still.left_out(50.9) is None and still.left_out(49.1) is None
  assert '50.0 degrees' in still.left_out(51.1)
  assert 'distort' not in still.left_out(51.1)
  one = transforms(fl_x=500, **SIZE, k1=[0, 0, 0.1])
  lens = read(tmp_path, one)
  assert 'distort' in lens.left_out(wide(200, 500))
  assert 'degrees' not in lens.left_out(wide(200, 500))
  assert 'distort' in lens.left_out(90.0) and '43.6' in lens.left_out(90.0)
  assert read(tmp_path, ours()).left_out(90.0) is None
  assert paths.CameraPath(POSES).left_out(90.0) is None
