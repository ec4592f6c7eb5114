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


def write(path, with_points=False, truth=None, count=COUNT):
  """A red wall ahead, a green one to the right, a blue floor; two cameras.

  The first looks ahead, the second to the right. With points these alone.
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
  places = rng.uniform(-1, 1, (count, 3)).astype(np.float32) + [0, 0, 2]
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


# Where on the window the picture of a camera is, and its canvas.
SPOT = """(() => {
  const box = canvas.getBoundingClientRect(), at = pictures[%d].getWorldPosition(new THREE.Vector3()).project(eye);
  return [box.left + (1 + at.x) / 2 * box.width, box.top + (1 - at.y) / 2 * box.height];
})()"""
BOX = """(() => {
  canvas.scrollIntoView({block: 'center'});
  const box = canvas.getBoundingClientRect();
  return [box.left, box.top, box.width, box.height];
})()"""


def gaze(chromium):
  """What it looks at, and the eye from there: distance, and angles in turns."""
  target, (x, y, z) = chromium.run(
    '[controls.target.toArray(), eye.position.clone().sub(controls.target).toArray()]'
  )
  away = np.linalg.norm([x, y, z])
  turns = np.array([np.arctan2(x, z), np.arccos(y / away)]) / (2 * np.pi)
  return np.array(target), away, turns


def test_a_click_on_a_camera_goes_there_and_a_drag_does_not(chromium, tmp_path):
  chromium.open(write(tmp_path / 'index.html'), 1400, 'light')
  left, top, width, height = chromium.run(BOX)
  chromium.run(DRAWN)
  x, y = chromium.run(SPOT % 1)
  assert left < x < left + width and top < y < top + height
  start = gaze(chromium)
  # Beside it, and where it is while there are no cameras to be seen.
  chromium.drag((left + 0.95 * width, top + 0.05 * height))
  cameras = "[...$('layers').children].find(button => button.textContent === 'Cameras').click()"
  chromium.run(cameras)
  chromium.drag((x, y))
  chromium.run(cameras)
  assert chromium.run('chosen') == 0
  assert gaze(chromium)[1] == pytest.approx(start[1])
  # Over the wide picture of the other, where it is at the end, too.
  chromium.run('show(1)')
  across, down = chromium.run(SPOT % 0)
  chromium.drag((across, down), (across + 3, down), (across + 6, down))
  assert chromium.run('chosen') == 1
  chromium.run('reset()')
  chromium.run(DRAWN)
  chromium.drag((x, y), (x + 2, y))
  assert chromium.run('chosen') == 1
  np.testing.assert_allclose(
    chromium.run('eye.position.toArray()'), [0.1, 0, 0], atol=1e-6
  )
  assert np.abs(np.subtract(pixel(chromium, 0.5, 0.4), GREEN)).max() < 3
  assert complaints(chromium) == []


def check_turned(chromium, before, turned):
  """The gaze has turned about what it looks at, and nothing else."""
  target, away, turns = before
  new_target, new_away, new_turns = gaze(chromium)
  np.testing.assert_allclose(new_turns - turns, turned, atol=1e-6)
  np.testing.assert_allclose(new_target, target, atol=1e-6)
  assert new_away == pytest.approx(away)


def test_a_drag_turns_and_the_right_button_moves(chromium, tmp_path):
  chromium.open(write(tmp_path / 'index.html'), 1400, 'light')
  left, top, width, height = chromium.run(BOX)
  x, y = left + width / 2, top + height / 2
  chromium.run(AT_REST)
  target, away, turns = gaze(chromium)
  frames = int(chromium.run('canvas.dataset.frames'))
  chromium.drag((x, y), (x + 30, y), (x + 60, y - 40))
  # The height of the canvas is a turn, and the scene follows the hand.
  check_turned(chromium, (target, away, turns), np.array([-60, 40]) / height)
  new_turns = gaze(chromium)[2]
  chromium.run(AT_REST)
  assert int(chromium.run('canvas.dataset.frames')) > frames
  # What it looks at goes with the hand, too.
  chromium.drag((x, y), (x + 50, y), (x + 100, y), button='right')
  moved, last_away, last_turns = gaze(chromium)
  per_px = 2 * away * np.tan(np.deg2rad(30)) / height
  assert np.linalg.norm(moved - target) == pytest.approx(100 * per_px)
  assert last_away == pytest.approx(away)
  np.testing.assert_allclose(last_turns, new_turns, atol=1e-6)
  chromium.run(DRAWN)
  # It was in the middle.
  seen = f'new THREE.Vector3(...{target.tolist()}).project(eye).x'
  assert chromium.run(seen) == pytest.approx(200 / width)
  # The wheel comes nearer to what is under it.
  chromium.wheel(x + 100, y, -240)
  chromium.run(DRAWN)
  assert gaze(chromium)[1] < 0.95 * away
  assert chromium.run(seen) == pytest.approx(200 / width, rel=0.01)
  # A hand stops the film.
  chromium.run('play(true)')
  chromium.drag((x, y), (x + 9, y))
  assert chromium.run('playing') == 0
  assert complaints(chromium) == []


def test_a_finger_turns_and_two_come_nearer_and_move(chromium, tmp_path):
  chromium.open(write(tmp_path / 'index.html'), 390, 'light')
  left, top, width, height = chromium.run(BOX)
  x, y = left + width / 2, top + height / 2
  chromium.run(AT_REST)
  target, away, turns = gaze(chromium)
  chromium.touch([(x, y), (x + 20, y), (x + 60, y)])
  check_turned(chromium, (target, away, turns), np.array([-60, 0]) / height)
  new_turns = gaze(chromium)[2]
  # Apart around the middle: nearer by as much, to what it looks at. One finger
  # goes before the other, which is why it is so to some hundredths alone.
  steps = range(0, 41, 5)
  chromium.touch(
    [(x - 40 - along, y) for along in steps],
    [(x + 40 + along, y) for along in steps],
  )
  pinched, near, same_turns = gaze(chromium)
  assert near == pytest.approx(away / 2, rel=1e-3)
  np.testing.assert_allclose(pinched, target, atol=0.03)
  np.testing.assert_allclose(same_turns, new_turns, atol=1e-6)
  # Side by side: as far as they go.
  chromium.touch(
    [(x - 40 + along, y) for along in steps],
    [(x + 40 + along, y) for along in steps],
  )
  moved, still_near, last_turns = gaze(chromium)
  per_px = 2 * near * np.tan(np.deg2rad(30)) / height
  assert np.linalg.norm(moved - pinched) == pytest.approx(40 * per_px, rel=0.06)
  assert still_near == pytest.approx(near, rel=1e-3)
  np.testing.assert_allclose(last_turns, new_turns, atol=1e-6)
  # The page itself has not moved, and no camera was chosen.
  assert chromium.run(BOX) == [left, top, width, height]
  assert chromium.run('chosen') == 0
  assert complaints(chromium) == []


def test_a_finger_chooses_a_camera_and_one_of_two_does_not(chromium, tmp_path):
  chromium.open(write(tmp_path / 'index.html'), 390, 'light')
  chromium.run(BOX)
  chromium.run(AT_REST)
  x, y = chromium.run(SPOT % 1)
  # One of the two stays on it.
  stays, goes = [(x, y)] * 3, [(x + 60, y + along) for along in (0, 20, 40)]
  for fingers in ((stays, goes), (goes, stays)):
    chromium.touch(*fingers)
    assert chromium.run('chosen') == 0
    chromium.run('reset()')
    chromium.run(DRAWN)
  chromium.touch([(x, y)])
  assert chromium.run('chosen') == 1
  assert complaints(chromium) == []


# What the renderer draws takes so many ms, by a clock that does else not go on.
CLOCK = """
let late = 0;
const prototype = WebGL2RenderingContext.prototype, fenced = prototype.fenceSync;
performance.now = () => late;
prototype.fenceSync = function(...given) { late += %d; return fenced.apply(this, given); };
"""
MANY = 120_000


@pytest.mark.parametrize('took_ms, drawn', [(1000, 20_000), (100, MANY)])
def test_so_many_points_are_drawn_as_a_machine_is_fast(
  chromium, tmp_path, took_ms, drawn
):
  script = chromium.call(
    'Page.addScriptToEvaluateOnNewDocument', source=CLOCK % took_ms
  )
  path = write(tmp_path / 'index.html', with_points=True, count=MANY)
  chromium.open(path, 800, 'light')
  chromium.call('Page.removeScriptToEvaluateOnNewDocument', **script)
  chromium.run("""new Promise(done => {
    const wait = () => canvas.dataset.budget ? done() : setTimeout(wait, 20);
    wait();
  })""")
  chromium.run('delete performance.now')
  chromium.run(AT_REST)
  chromium.run(DRAWN)
  # 20,000 were timed: so many as take a second are drawn, or all.
  at_rest = f'{drawn} of {MANY} points: this machine is slow at drawing'
  if drawn == MANY:
    at_rest = ''
  shown = "[canvas.dataset.points, $('moving').textContent]"
  assert chromium.run(shown) == [str(drawn), at_rest]
  # While it moves fewer: what a frame has time for.
  first = chromium.run(f"""new Promise(done => {{
    look(eye.position.clone().multiplyScalar(1.1), controls.target.clone());
    requestAnimationFrame(() => done({shown}));
  }})""")
  budget = str(20_000 * 33 // took_ms)
  assert first == [budget, f'{budget} of {MANY} points while it moves']
  chromium.run(AT_REST)
  chromium.run(DRAWN)
  assert chromium.run(shown) == [str(drawn), at_rest]
  assert complaints(chromium) == []


def test_a_page_says_of_how_many_points_it_has_some(
  chromium, tmp_path, monkeypatch
):
  monkeypatch.setattr(scene_page, 'MOST_POINTS', 1000)
  chromium.open(write(tmp_path / 'index.html', with_points=True), 800, 'light')
  assert chromium.run("$('note').textContent") == (
    f'Of {COUNT} points 1000 are in this page; points.ply has all.'
  )


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
