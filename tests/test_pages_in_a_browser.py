"""The pages as a person sees them: in Chromium, narrow and wide, light and dark.

Their data is made here, with what is awkward in it: long names, many rows,
parts that are missing.
"""

import base64

import numpy as np
import pytest

from odin_jax.experimenting import comparison, experiment_page
from odin_jax.experimenting import tables as experiment_tables
from odin_jax.reporting import (
  contents,
  evaluation_page,
  joint_page,
  pair_cells,
  summary,
)
from odin_jax.shared import camera, page
from preprocessing.auditing import audit_page, quality, rates_page, sample
from preprocessing.auditing import verdict as audit_verdict
from tests.helpers import (
  browser,
  evaluations,
  noise_records,
  run_folders,
  served,
)

LONG_NAME = 'a_walk_through_the_old_town_in_the_rain_' * 4
WIDTHS_PX = (390, 1400)
SCHEMES = ('light', 'dark')
# Of a telephone's screens of 800 px, fifteen.
MAX_HEIGHT_PX = 12_000
# WCAG 2.2, 1.4.3, for text of this size.
MIN_CONTRAST = 4.5

# Elements that reach beyond the window and are in no box that scrolls.
OVERFLOWING = """
[...document.body.querySelectorAll('*')].filter(element => {
  const box = element.getBoundingClientRect();
  return box.width && box.right > document.documentElement.clientWidth + 1
    && !element.closest('.scroll, .bar');
}).map(element => element.outerHTML.slice(0, 80))
"""
# The lowest contrast between a text and what is behind it.
CONTRAST = """
(() => {
  const rgba = text => {
    const context = document.createElement('canvas').getContext('2d');
    context.fillStyle = text;
    context.fillRect(0, 0, 1, 1);
    return [...context.getImageData(0, 0, 1, 1).data];
  };
  const luminance = ([r, g, b]) => [r, g, b].map(v => v / 255)
    .map(v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
    .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
  const behind = element => {
    for (; element; element = element.parentElement) {
      const colour = rgba(getComputedStyle(element).backgroundColor);
      if (colour[3] === 255) return colour;
    }
    return [255, 255, 255, 255];
  };
  const seen = new Map();
  for (const element of document.body.querySelectorAll('h1, h2, h3, p, li, a, b, span, button, td, th, figure, summary, text')) {
    const style = getComputedStyle(element);
    const front = element.tagName === 'text' ? style.fill : style.color;
    const pair = [luminance(rgba(front)), luminance(behind(element))];
    seen.set(pair.join(), (Math.max(...pair) + 0.05) / (Math.min(...pair) + 0.05));
  }
  return Math.min(...seen.values());
})()
"""
IMAGES_ARE_LOADED = """
Promise.all([...document.images].filter(image => image.getAttribute('src'))
  .map(image => image.decode()))
  .then(() => document.images.length)
"""
MIDDLE_OF_VIEW = """
(() => {
  document.querySelector('canvas').scrollIntoView({block: 'center'});
  const box = document.querySelector('canvas').getBoundingClientRect();
  return [box.left + box.width / 2, box.top + box.height / 2];
})()
"""
# Once what the browser has been given is drawn.
NEXT_FRAME = (
  'new Promise(done => setTimeout(() => requestAnimationFrame(done), {}))'
)
UNTIL_SCROLLED = """
new Promise((done, fail) => {{
  const end = Date.now() + 10000;
  const look = () => scrollY !== {} ? done() :
    Date.now() > end ? fail(new Error('the page did not scroll')) : setTimeout(look, 20);
  look();
}})
"""


@pytest.fixture(scope='session')
def window(tmp_path_factory):
  executable = browser.find()
  if not executable:
    pytest.skip('no chromium and no google-chrome on PATH')
  with browser.started(
    executable, tmp_path_factory.mktemp('browser')
  ) as opened:
    yield opened


def run_page(folder, **options):
  folder.mkdir()
  has_truth = options.pop('has_truth')
  run_folders.write(folder, **options)
  if has_truth:
    run_folders.write_truth(folder, blocked_from=4)
  figures = summary.summarise(folder)
  html = page.render(
    contents.TEMPLATE, contents.gather(folder, None, figures, 'A run')
  )
  path = folder / 'index.html'
  path.write_text(page.link(html, folder, 'All', folder / 'stages.jsonl'))
  return path


def share(decided, value):
  return {
    'size': decided + 3,
    'decided': decided,
    'consistent': 1,
    'share': value,
    'interval_95': [0.0, 1.0],
  }


def audit_report(num_videos):
  """Figures as an audit has them, of videos with long names."""
  names = [f'{index:03d}_{LONG_NAME}' for index in range(num_videos)]
  videos = [
    {
      'video_id': name,
      'frames': 24,
      'components': 2,
      'records': 800,
      'frame_pairs': 83,
      'long_frame_pairs': 19,
      'frame_pair_candidates': 100,
      'median_depth': None,
      'kept_share': 0.8,
      'min_unmasked_share': 0.9,
      'kept_share_per_gap': {'1': 1.0, '10': 0.25, '2': 0.5},
    }
    for name in names
  ]
  histogram = {'edges': [0.0, 0.5, 1.0], 'counts': [0, 1066]}
  report = {
    'records': 123_456,
    'real': videos,
    'epipolar': {
      'close_records': 0,
      'tried': 0,
      'matched': 0,
      'sampson_px': None,
      'sampson_px_per_gap': {},
      'sampson_px_per_video': {},
    },
    'histograms': dict.fromkeys(('overlap', 'baseline', 'gap_s'), histogram),
    'consistency': {'max_rotation_deg': 2e-6, 'max_translation': 7e-7},
    'videos': videos,
    'held_out': {
      'sampson_px': {
        'train': {'value': 0.5, 'count': 80, 'scenes': 4},
        'test': {'value': 0.6, 'count': 20, 'scenes': 4},
        'difference': 0.1,
        'interval_95': [-0.2, 0.4],
      }
    },
    'sample': {
      **share(30, 0.5),
      'direct': share(30, 0.5),
      'composed': share(0, None),
      'chance_share': None,
      'max_error_px_at_256': 1.0,
    },
    'rejected': [
      {
        'stage': 'input',
        'reason': f'no 360-degree video {LONG_NAME}',
        'count': 3,
        'examples': [],
      }
    ],
  }
  return {'verdict': page.verdict(audit_verdict.findings(report)), **report}


def audit_page_of(folder, num_videos):
  folder.mkdir()
  assessments = [
    sample.Assessment(
      record=noise_records.make_record(LONG_NAME, index, 'train'),
      matches=0,
      error_px=error_px,
      consistent=consistent,
    )
    for index, (error_px, consistent) in enumerate(
      [(0.5, True), (None, None), (2.0, False)] * 10
    )
  ]
  poses = {
    float(time): camera.make_pose(np.eye(3), np.array([0.1 * time, 0.0, time]))
    for time in range(5)
  }
  components = [
    quality.Component(video_id=LONG_NAME, scene_id=index, poses=poses)
    for index in range(num_videos)
  ]
  path = folder / 'index.html'
  path.write_text(
    audit_page.render(
      audit_report(num_videos), components, assessments, folder / LONG_NAME
    )
  )
  return path


def rates_page_of(folder):
  folder.mkdir()
  rows = [
    {
      'fps': fps,
      'frames': 40,
      'frame_pairs': pairs,
      'long_frame_pairs': 0,
      'records': 8 * pairs,
      'matcher_calls_per_pair': None,
      'seconds': 90.0,
      'consistent_share': None if fps == 1 else 0.9,
      'interval_95': [0.5, 1.0],
      'sampson_px': None,
      'sampson_px_per_gap': {},
      'pose': None if fps == 1 else {'unique': {'frame_pairs': 0}},
    }
    for fps, pairs in ((0.5, 10), (1.0, 0), (2.0, 60))
  ]
  path = folder / 'index.html'
  path.write_text(rates_page.render(f'Frame rates: {LONG_NAME}', rows))
  return path


def experiment_page_of(folder):
  folder.mkdir()
  cells = []
  for width in (48, 96):
    for index, value in enumerate(('se3', 'se3+plucker', LONG_NAME)):
      scores = {
        'psnr': [15.0 + index, 17.0, 16.0 + width / 96],
        'ssim': [0.5] * 3,
        'lpips': [None] * 3,
      }
      evaluation = {'data_sha256': '', 'scenes': ['a', 'b', 'c'], **scores}
      cells.append(
        {
          'value': value,
          'width': width,
          'seed': 0,
          'parameters': 1,
          'code_commit': '',
          'evaluations': {
            'held_out/sample': evaluation,
            'unseen/one_step': evaluation,
          },
        }
      )
  experiment = experiment_tables.EXPERIMENTS['conditioning']
  found = comparison.findings(experiment.axis, cells, len(cells))
  path = folder / 'index.html'
  path.write_text(experiment_page.render(experiment, cells, found))
  return path


def evaluation_page_of(folder, **options):
  folder.mkdir()
  content = evaluations.write(folder, **options)
  path = folder / 'index.html'
  path.write_text(evaluation_page.render(folder, content))
  return path


def joint_page_of(folder, **options):
  folder.mkdir()
  names = ['model', 'model_mean', 'copy', 'mean', 'sweep', LONG_NAME]
  content = evaluations.write_joint(folder, names, **options)
  for name in names:
    # So that there are links.
    (folder / name / 'index.html').touch()
  path = folder / 'index.html'
  path.write_text(joint_page.render(folder, content))
  return path


@pytest.fixture(scope='session')
def pages(tmp_path_factory):
  folder = tmp_path_factory.mktemp('pages')
  return {
    'run': run_page(folder / 'run', has_truth=True, pairs=40, has_unseen=True),
    'run of one video': run_page(
      folder / 'video', has_truth=False, video_id=LONG_NAME
    ),
    'audit': audit_page_of(folder / 'audit', 30),
    'audit of nothing': audit_page_of(folder / 'nothing', 0),
    'rates': rates_page_of(folder / 'rates'),
    'experiment': experiment_page_of(folder / 'experiment'),
    'evaluation': evaluation_page_of(
      folder / 'evaluation', pairs=120, scenes=['a', LONG_NAME, 'c']
    ),
    'evaluation of several': joint_page_of(
      folder / 'several', pairs=30, scenes=['a', LONG_NAME, 'c']
    ),
    'evaluation of others': evaluation_page_of(
      folder / 'others', pairs=3, scenes=['a'], has_facts=False
    ),
  }


@pytest.mark.parametrize('scheme', SCHEMES)
@pytest.mark.parametrize('width_px', WIDTHS_PX)
@pytest.mark.parametrize(
  'name',
  [
    'run',
    'run of one video',
    'audit',
    'experiment',
    'audit of nothing',
    'rates',
    'evaluation',
    'evaluation of several',
    'evaluation of others',
  ],
)
def test_a_page_fits_and_is_legible(window, pages, name, width_px, scheme):
  window.open(pages[name], width_px, scheme)
  window.run(IMAGES_ARE_LOADED)
  assert window.run(OVERFLOWING) == []
  root = 'document.documentElement'
  assert window.run(f'{root}.scrollWidth <= {root}.clientWidth')
  assert 800 <= window.run(f'{root}.scrollHeight') <= MAX_HEIGHT_PX
  # The figures need no scrolling of their own, with their intervals.
  scores = "[...document.querySelectorAll('.figures .scroll')]"
  assert window.run(f'{scores}.every(b => b.scrollWidth <= b.clientWidth)')
  assert window.run(CONTRAST) >= MIN_CONTRAST
  # No key of a program is shown, and nothing that is not there.
  shown = window.run('document.body.innerText')
  for raw in ('_per_gap', '_deg', '_px', 'undefined', 'NaN', '[object'):
    assert raw not in shown
  assert 'Next: ' in shown and 'UTC by code at commit' in shown
  assert window.run("document.querySelectorAll('.verdict li').length") >= 1
  is_dark = window.run('getComputedStyle(document.body).backgroundColor')
  assert (is_dark == 'rgb(255, 255, 255)') == (scheme == 'light')
  assert window.complaints() == []


def drawing(window):
  window.run(NEXT_FRAME.format(0))
  return window.run("document.querySelector('canvas').toDataURL()")


def test_a_3d_view_turns_by_keys_and_resets(window, pages):
  window.open(pages['run'], 1400, 'light')
  canvas = "document.querySelector('canvas')"
  assert 'Arrow keys' in window.run(f'{canvas}.ariaLabel')
  assert window.run(f'{canvas}.tabIndex') == 0
  first, scale = drawing(window), window.run(f'{canvas}.dataset.scale')
  assert scale.endswith(('scene unit', 'scene units'))
  window.run(f'{canvas}.focus()')
  drawings = {first}
  for key in ('ArrowLeft', 'ArrowUp', '+', '-', '-'):
    window.press(key)
    drawings.add(drawing(window))
  # Back and forth again is where it was.
  assert len(drawings) == 5
  window.press('Home')
  assert drawing(window) == first
  for _ in range(12):
    window.press('+')
  assert window.run(f'{canvas}.dataset.scale') != scale
  window.run("document.querySelector('.hint button').click()")
  assert drawing(window) == first
  assert window.complaints() == []


def test_a_3d_view_lets_the_page_scroll_past(window, pages):
  def middle():
    window.open(pages['run'], 390, 'light')
    return window.run(MIDDLE_OF_VIEW)

  # The wheel and one finger scroll the page; nothing turns.
  x, y = middle()
  first, before = drawing(window), window.run('scrollY')
  window.wheel(x, y, 120)
  window.run(UNTIL_SCROLLED.format(before))
  assert drawing(window) == first
  x, y = middle()
  window.touch([(x, y - 10 * step) for step in range(12)])
  window.run(UNTIL_SCROLLED.format(before))
  assert drawing(window) == first
  # Two fingers zoom, and so does the wheel once the view has the focus.
  x, y = middle()
  apart = [(x + 20 + 5 * step, y) for step in range(8)]
  window.touch([(x, y)] * 8, apart)
  zoomed = drawing(window)
  assert zoomed != first
  window.run("document.querySelector('canvas').focus({preventScroll: true})")
  window.wheel(x, y, -300)
  window.run(NEXT_FRAME.format(250))
  assert drawing(window) != zoomed
  assert window.run('scrollY') == before
  assert window.complaints() == []


def test_a_gallery_shows_the_rest_when_it_is_asked(window, pages):
  window.open(pages['audit'], 390, 'light')
  count = "document.querySelectorAll('#sample figure').length"
  assert window.run(count) == 9
  window.run("document.querySelector('#sample + button').click()")
  assert window.run(count) == 30
  # A filter begins anew.
  window.run("document.querySelectorAll('#sample-filter button')[2].click()")
  assert window.run(count) == 9
  assert window.run("!!document.querySelector('#sample figure.bad')")


def test_pairs_are_sorted_and_filtered(window, pages):
  window.open(pages['evaluation'], 390, 'light')
  figures = "[...document.querySelectorAll('#pairs figure b')]"
  psnr = f'{figures}.map(b => parseFloat(b.textContent))'
  assert len(window.run(psnr)) == 12
  window.run("document.querySelector('#pairs + button').click()")
  worst_first = window.run(psnr)
  assert len(worst_first) == pair_cells.MAX_PAIRS
  assert worst_first == sorted(worst_first)

  def pick(place, option):
    select = f"document.querySelectorAll('#steer select')[{place}]"
    window.run(
      f"{select}.value = {option}; {select}.dispatchEvent(new Event('change'))"
    )
    return window.run(psnr)

  best_first = pick(0, 1)
  assert best_first == worst_first[::-1][:12]
  # Of the second scene, those with a gap of 2 s, which are the worst.
  pick(1, 2)
  assert set(pick(2, 2)) == {worst_first[0]}
  shown = window.run("document.querySelector('#steer output').textContent")
  assert shown.endswith(f' of {pair_cells.MAX_PAIRS}')
  assert 0 < int(shown.split()[0]) < 20
  words = window.run("document.querySelector('#pairs').innerText")
  assert LONG_NAME in words and '2 s apart' in words and '5 s' not in words
  assert window.complaints() == []


def test_the_true_view_stands_beside_the_imagined_one(window, pages):
  window.open(pages['run'], 1400, 'light')
  shown = "[...document.querySelectorAll('#player figure')]"
  visible = f'{shown}.map(f => getComputedStyle(f).visibility)'
  assert window.run(visible) == ['visible', 'visible']
  # The last one lies behind a surface.
  window.run("$('place').value = 4; $('place').oninput()")
  assert window.run(visible) == ['visible', 'hidden']
  window.open(pages['run of one video'], 1400, 'light')
  assert window.run(f'{shown}.length') == 1
  assert 'no truth is shown' in window.run("$('path-text').textContent")


DROP = """
(() => {{
  const bytes = Uint8Array.from(atob({image!r}), letter => letter.charCodeAt(0));
  const dropped = new DataTransfer();
  dropped.items.add(new File([bytes], 'my room.png', {{type: 'image/png'}}));
  window.dispatchEvent(new DragEvent('drop', {{dataTransfer: dropped, cancelable: true}}));
}})()
"""
UNTIL = """
new Promise((done, fail) => {{
  const end = Date.now() + 20000;
  const look = () => {0} ? done() : Date.now() > end ? fail(new Error({0!r})) : setTimeout(look, 20);
  look();
}})
"""


def draw_a_line(window):
  box = "$('above').getBoundingClientRect()"
  left, top, width, height = window.run(
    f"$('above').scrollIntoView({{block: 'center'}}), [{box}.left, {box}.top,"
    f' {box}.width, {box}.height]'
  )
  x, y = left + width / 2, top + 0.75 * height
  for kind, dx, dy in (
    ('mousePressed', 0, 0),
    ('mouseMoved', 0, -60),
    ('mouseMoved', 60, -60),
    ('mouseReleased', 60, -60),
  ):
    window.call(
      'Input.dispatchMouseEvent',
      type=kind,
      x=x + dx,
      y=y + dy,
      button='left',
      clickCount=1,
    )


@pytest.mark.parametrize('width_px,scheme', [(390, 'dark'), (1400, 'light')])
def test_an_image_is_dropped_and_a_scene_comes_of_it(
  window, tmp_path, width_px, scheme
):
  views = f'{served.FIRST_VIEW}{served.WAIT_FOR_GO}{served.VIEWS}'
  kept, _, site = served.site(tmp_path, served.scripted(views=views))
  with served.listening(site) as address:
    window.open(address, width_px, scheme)
    assert window.run("$('go').disabled")
    image = base64.b64encode(served.image()).decode()
    window.run(DROP.format(image=image))
    window.run(UNTIL.format("$('drop-text').textContent.includes('30 x 20')"))
    # A path of one's own, whose cameras are shown before they are imagined.
    draw_a_line(window)
    window.run(UNTIL.format("$('above').dataset.cameras === '16'"))
    assert window.run("$('trajectory').value") == 'drawn'
    window.run("$('look').value = 'along'; $('go').click()")
    shown = "document.querySelectorAll('.job .strip img').length"
    # Views come while others are still made.
    window.run(UNTIL.format(f'{shown} === 1'))
    assert 'imagining the views' in window.run('document.body.innerText')
    (job,) = kept.all()
    (kept.folder(job) / 'go').touch()
    window.run(
      UNTIL.format("document.querySelector('.job a[download], .job a')")
    )
    assert window.run(shown) == 3
    assert job.name == 'my room.png' and job.settings.look == 'along'
    # Forward, then to the right, in scene units.
    (x, z) = job.settings.line[-1]
    assert x == pytest.approx(z, abs=0.02) and x > 0.1
    window.run(IMAGES_ARE_LOADED)
    assert window.run(OVERFLOWING) == []
    assert window.run(CONTRAST) >= MIN_CONTRAST
    assert 'Done in' in window.run('document.body.innerText')
    # The scene in 3D, in the page.
    window.run("[...document.querySelectorAll('.job button')][0].click()")
    body = "document.querySelector('iframe').contentDocument?.body"
    window.run(UNTIL.format(f"{body}?.innerText.trim() === 'a scene'"))
    window.run(
      'window.confirm = () => true;'
      "[...document.querySelectorAll('.job button')].at(-1).click()"
    )
    window.run(UNTIL.format("!document.querySelector('.job')"))
    assert len(kept) == 0
    assert window.complaints() == []
