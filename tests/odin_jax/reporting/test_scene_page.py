"""The page of a scene in Chromium: what its canvas shows, and what keys do."""

import base64
import re

import cv2
import numpy as np
import pytest

from odin_jax.reporting import scene_page
from odin_jax.shared import camera, page
from tests.helpers import browser, slow_splats

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


def write(path, with_points=False, truth=None):
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
        scene_page.view(
          f'frames/{number}.png', image, pose, None if number else truth
        )
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


# At rest, with all its pixels.
AT_REST = """new Promise(done => {
  const wait = () => performance.now() > settled && !waiting ? done() : setTimeout(wait, 20);
  wait();
})"""
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


def test_the_truth_stands_beside_the_views_and_they_play(chromium, tmp_path):
  is_hidden = "[$('true').hidden, $('view-kind').hidden]"
  chromium.open(write(tmp_path / 'index.html'), 390, 'light')
  assert chromium.run(is_hidden) == [True, True]
  truth = np.full((8, 8, 3), RED, np.uint8)
  chromium.open(write(tmp_path / 'index.html', truth=truth), 390, 'light')
  assert chromium.run(is_hidden) == [False, False]
  shown = chromium.run('data.views[0].truth')
  assert chromium.run("$('truth').src") == shown
  # Where the path has run into a surface there is none.
  chromium.run('select(1)')
  assert chromium.run("$('truth').hidden") is True
  chromium.run('select(0)')
  chromium.run('player.click()')
  assert chromium.run('player.textContent') == 'Pause'
  both = chromium.run(
    """new Promise(done => {
      const seen = new Set(), watch = setInterval(() => {
        seen.add(chosen);
        if (seen.size === 2) { clearInterval(watch); done(seen.size); }
      }, 20);
    })"""
  )
  assert both == 2
  # Whatever else one does stops it.
  for act in ('player.click()', 'reset()', 'select(1)'):
    chromium.run('play(true)')
    assert chromium.run('player.textContent') == 'Pause'
    chromium.run(act)
    assert chromium.run('[playing, player.textContent]') == [0, 'Play']
  wide = chromium.run('document.documentElement.scrollWidth')
  assert wide <= 390
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


def test_gaussians_are_drawn_as_a_slow_renderer_has_them(chromium, tmp_path):
  generator = np.random.default_rng(0)
  count = 14
  scene = (
    generator.normal(size=(count, 3)) * [0.5, 0.35, 0.4] + [0, 0, 1.5],
    generator.normal(-2, 0.5, (count, 3)),
    generator.normal(size=(count, 4)),
    generator.normal(1, 1, count),
    generator.normal(0, 0.8, (count, 3)),
  )
  poses = [
    camera.make_pose(camera.rotation_y(angle), np.array([0.1, 0.05, 0.0]))
    for angle in (0.0, 0.2)
  ]
  spread = np.stack(
    [slow_splats.covariance(*both) for both in zip(scene[1], scene[2])]
  )
  colours = np.clip(0.5 + slow_splats.HARMONIC_0 * scene[4], 0, 1)
  chromium.open(write(tmp_path / 'empty.html', with_points=True), 390, 'light')
  width, height = (
    chromium.run(f"$('scene').client{side}") for side in ('Width', 'Height')
  )
  focal_px = height / 2 / np.tan(np.deg2rad(80.0) / 2)
  # Of the views that they were fitted to a pixel was so many of the canvas.
  coarse = 30.0
  path = tmp_path / 'index.html'
  path.write_text(
    scene_page.render(
      title='Gaussians',
      made='today',
      next_step='look',
      findings=[page.Finding('They are there.', True)],
      fov_deg=80.0,
      views=[
        scene_page.view('a.png', np.zeros((8, 8, 3), np.uint8), pose)
        for pose in poses
      ],
      places=scene[0].astype(np.float32),
      splats=scene_page.splats(
        scene[0].astype(np.float32),
        spread.astype(np.float32),
        np.rint(colours * 255).astype(np.uint8),
        (1 / (1 + np.exp(-scene[3]))).astype(np.float32),
        coarse / focal_px,
      ),
    )
  )
  chromium.open(path, 390, 'light')
  assert '14' in chromium.run("$('cards').textContent")
  # Without the cameras.
  chromium.run("[...$('layers').children][1].click()")
  for index, pose in enumerate(poses):
    chromium.run(f'select({index})')
    chromium.run(AT_REST)
    uri = chromium.run(
      "(renderer.render(stage, eye), $('scene').toDataURL('image/png'))"
    )
    data = np.frombuffer(base64.b64decode(uri.split(',')[1]), np.uint8)
    shown = cv2.imdecode(data, cv2.IMREAD_COLOR)[..., ::-1]
    expected, _ = slow_splats.picture(
      (*scene[:4], (colours - 0.5) / slow_splats.HARMONIC_0),
      slow_splats.View(
        camera.inverse(pose), width, height, focal_px, 0.3 * coarse**2
      ),
    )
    assert shown.shape == expected.shape and expected.max() > 0.5
    # Each is rounded to 8 bits as it is added.
    error = np.abs(shown - 255 * expected)
    assert error.mean() < 1 and error.max() < 8, (error.mean(), error.max())
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
