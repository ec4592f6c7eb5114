"""The page of a scene in Chromium: what its canvas shows, and what keys do."""

import base64
import re

import cv2
import numpy as np
import pytest

from odin_jax.reporting import scene_page
from odin_jax.shared import camera, page
from tests.helpers import browser

EXECUTABLE = browser.find()
pytestmark = pytest.mark.skipif(
  EXECUTABLE is None, reason='no Chromium or Chrome here'
)
RED, GREEN, BLUE = (220, 30, 20), (20, 200, 30), (30, 60, 210)
COUNT = 4000


def quad(centre, normal_axis, half=1.0):
  """Corners of a square across an axis, and its two triangles."""
  across = [axis for axis in range(3) if axis != normal_axis]
  corners = np.tile(np.float32(centre), (4, 1))
  for corner, (a, b) in enumerate([(-1, -1), (1, -1), (1, 1), (-1, 1)]):
    corners[corner, across] += half * np.float32([a, b])
  return corners, np.array([[0, 1, 2], [0, 2, 3]])


def write(path, with_points=False):
  """A red wall ahead, a green one to the right, a blue floor; two cameras.

  The first looks ahead, the second to the right.
  """
  walls = [
    (*quad((0, 0, 2), 2), RED),
    (*quad((2, 0, 0), 0), GREEN),
    (*quad((0, 1, 2), 1), BLUE),
  ]
  vertices = np.concatenate([corners for corners, _, _ in walls])
  faces = np.concatenate(
    [faces + 4 * number for number, (_, faces, _) in enumerate(walls)]
  )
  colours = np.repeat(np.uint8([colour for *_, colour in walls]), 4, axis=0)
  poses = [
    camera.identity_pose(),
    camera.make_pose(camera.rotation_y(np.pi / 2), np.array([0.1, 0, 0])),
  ]
  image = np.full((8, 8, 3), 128, np.uint8)
  rng = np.random.default_rng(0)
  places = rng.uniform(-1, 1, (COUNT, 3)).astype(np.float32) + [0, 0, 2]
  shown = places if with_points else places[:0]
  path.write_text(
    scene_page.render(
      title='A scene </script> of two walls and a floor',
      made='today',
      next_step='look',
      findings=[page.Finding('It is there.', True)],
      fov_deg=90.0,
      points=scene_page.points(
        shown.astype(np.float32), np.full((len(shown), 3), 200, np.uint8)
      ),
      mesh=scene_page.mesh(
        *((vertices[:0], faces[:0]) if with_points else (vertices, faces)),
        colours[:0] if with_points else colours,
      ),
      views=[
        scene_page.view(f'frames/{number}.png', image, pose)
        for number, pose in enumerate(poses)
      ],
      places=places.astype(np.float32),
    )
  )
  return path


@pytest.fixture(scope='module')
def chromium(tmp_path_factory):
  with browser.started(EXECUTABLE, tmp_path_factory.mktemp('profile')) as it:
    yield it


DRAWN = 'new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))'


def pixel(chromium, across, down):
  """Colour of the canvas at shares of its width and height."""
  chromium.run(DRAWN)
  return chromium.run(f"""(() => {{
    const copy = document.createElement('canvas'), from = document.getElementById('scene');
    [copy.width, copy.height] = [from.width, from.height];
    const context = copy.getContext('2d');
    renderer.render(stage, eye);
    context.drawImage(from, 0, 0);
    return [...context.getImageData({across} * copy.width, {down} * copy.height, 1, 1).data].slice(0, 3);
  }})()""")


def complaints(chromium):
  """But that the tests themselves read the canvas."""
  return [line for line in chromium.complaints() if 'ReadPixels' not in line]


@pytest.mark.parametrize('width_px', [390, 1400])
def test_the_canvas_shows_the_scene_from_its_cameras(
  chromium, tmp_path, width_px
):
  chromium.open(write(tmp_path / 'index.html'), width_px, 'light')
  chromium.run('select(0)')
  # Ahead the red wall; the floor below its middle, 90 degrees to the edge.
  assert np.abs(np.subtract(pixel(chromium, 0.5, 0.4), RED)).max() < 3
  assert np.abs(np.subtract(pixel(chromium, 0.5, 0.85), BLUE)).max() < 3
  chromium.run("$('scene').focus()")
  chromium.press('ArrowRight')
  assert np.abs(np.subtract(pixel(chromium, 0.5, 0.4), GREEN)).max() < 3
  assert 'view 1 of 1' in chromium.run("$('view-name').textContent")
  # Forward, until the wall lies behind.
  for _ in range(60):
    chromium.press('w')
  assert max(pixel(chromium, 0.5, 0.4)) < 3
  chromium.press('r')
  assert 'view 0 of 1' in chromium.run("$('view-name').textContent")
  chromium.run(DRAWN)
  scale = chromium.run("$('scale').textContent")
  assert re.fullmatch(
    r'[125]0*(?:\.\d+)? scene units?|0\.\d+ scene units', scale
  )
  # Without the mesh nothing is left but cameras.
  chromium.run("document.querySelector('#layers button').click()")
  assert max(pixel(chromium, 0.9, 0.1)) < 3
  wide = chromium.run('document.documentElement.scrollWidth')
  assert wide <= width_px
  assert complaints(chromium) == []


def test_points_are_shown_where_there_is_no_mesh(chromium, tmp_path):
  chromium.open(write(tmp_path / 'index.html', with_points=True), 800, 'dark')
  chromium.run(DRAWN)
  assert chromium.run("$('scene').dataset.points") == str(COUNT)
  assert chromium.run("$('layers').textContent").startswith('Points')
  chromium.run('select(0)')
  shown = [max(pixel(chromium, 0.5 + 0.01 * i, 0.5)) for i in range(-4, 5)]
  assert max(shown) > 150
  assert complaints(chromium) == []


def test_more_points_than_a_page_holds_are_a_random_choice():
  count = scene_page.MOST_POINTS + 5000
  places = np.arange(3 * count, dtype=np.float32).reshape(-1, 3)
  packed = scene_page.points(places, np.zeros((count, 3), np.uint8))
  assert (packed['count'], packed['all']) == (scene_page.MOST_POINTS, count)


@pytest.mark.parametrize('size_px', [32, 300])
def test_pictures_of_views_keep_their_colours(size_px):
  image = np.full((size_px, size_px, 3), RED, np.uint8)
  uri = scene_page.view('a.png', image, camera.identity_pose())['image']
  data = base64.b64decode(uri.split(',')[1])
  shown = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
  assert np.abs(shown[..., ::-1] - np.int64(RED)).max() < 4
