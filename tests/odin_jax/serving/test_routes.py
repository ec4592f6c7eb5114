"""What is answered to whom: routes, limits, and who may ask."""

import asyncio
import errno
import io
import json
import pathlib
import sys
from urllib import parse
import zipfile

from hypothesis import Phase, given, settings, strategies
import pytest

from odin_jax.serving import access, jobs
from odin_jax.shared import config_files
from tests.helpers import served

TOKEN = 'a-token-of-letters'
IMAGE = served.image()
ROUTES = [
  ('GET', '/'),
  ('GET', '/events'),
  ('GET', '/path'),
  ('POST', '/jobs'),
  ('DELETE', '/jobs/ID'),
  ('POST', '/jobs/ID/cancel'),
  ('GET', '/jobs/ID/files/views/video.mp4'),
  ('GET', '/jobs/ID/download'),
]


def asked(app, *requests):
  """Answers to requests, one after the other, while no job runs."""

  async def run():
    return [
      await served.ask(app, method, path, **options)
      for method, path, options in requests
    ]

  return asyncio.run(run())


def error_of(answer):
  status, headers, body = answer
  assert headers['content-type'] == 'application/json'
  return status, json.loads(body)['error']


@pytest.fixture(scope='module')
def place(tmp_path_factory):
  """A site with a job that is done, and one that waits; for reading alone."""
  tmp_path = tmp_path_factory.mktemp('place')
  kept, worker, site = served.site(tmp_path / 'output')
  app = site.app(is_local=True, token=None)

  async def fill():
    working = asyncio.create_task(worker.run())
    _, _, first = await served.ask(
      app, 'POST', '/jobs', IMAGE, 'name=a%20b.png&trajectory=left&seed=3'
    )
    while not kept.all()[0].is_over:
      await asyncio.sleep(0.02)
    worker.close()
    await working
    _, _, second = await served.ask(app, 'POST', '/jobs', IMAGE)
    return json.loads(first)['id'], json.loads(second)['id']

  done, waiting = asyncio.run(fill())
  folder = tmp_path / 'output' / 'jobs' / done
  (folder / 'views' / '.odin_lock.json').write_text('secret')
  (folder / 'views' / 'link.json').symlink_to(folder / 'job.json')
  (folder / 'model').symlink_to(tmp_path)
  return kept, site, app, done, waiting


def test_a_job_is_made_shown_and_downloaded(place):
  kept, _, app, done, waiting = place
  files = f'/jobs/{done}/files'
  page, events, view, thumbnail, scene, archive, early = asked(
    app,
    ('GET', '/', {}),
    ('GET', '/events', {'chunks': 1}),
    ('GET', f'{files}/views/frames/001.png', {}),
    ('HEAD', f'{files}/thumbnail.jpg', {}),
    ('GET', f'{files}/scene/index.html', {}),
    ('GET', f'/jobs/{done}/download', {}),
    ('GET', f'/jobs/{waiting}/download', {}),
  )
  assert page[0] == 200 and b'Imagine a scene' in page[2]
  assert "script-src 'sha256-" in page[1]['content-security-policy']
  kind, content = events[2].decode().split('\n\n')[0].split('\n')
  told = json.loads(content.removeprefix('data: '))
  assert kind == 'event: job' and told == json.loads(
    json.dumps(kept.public(kept.get(done)))
  )
  assert told['name'] == 'a b.png' and told['settings']['seed'] == 3
  assert (told['status'], told['ahead']) == ('done', 0)
  assert view[2] == IMAGE and view[1]['content-type'] == 'image/png'
  assert thumbnail[0] == 200 and not thumbnail[2]
  assert scene[1]['content-type'].startswith('text/html')
  for answer in (page, view, scene, archive, early):
    assert answer[1]['x-content-type-options'] == 'nosniff'
    assert answer[1]['content-security-policy'].startswith("default-src 'none'")
  with zipfile.ZipFile(io.BytesIO(archive[2])) as opened:
    assert not opened.testzip()
    assert opened.read('scene_1/input.png') == IMAGE
    assert sorted(opened.namelist()) == [
      'scene_1/input.png',
      'scene_1/scene/index.html',
      *(f'scene_1/views/frames/00{i}.png' for i in range(3)),
      'scene_1/views/video.mp4',
    ]
  assert error_of(early) == (409, 'it is not finished yet')


def test_every_change_is_told_to_who_listens(tmp_path):
  steps = served.scripted(scene=f'{served.WAIT_FOR_GO}{served.SCENE}')
  kept, worker, site = served.site(tmp_path, steps)
  app = site.app(is_local=True, token=None)
  answer = []

  async def until_told(words):
    while not any(words in part.get('body', b'') for part in answer):
      await asyncio.sleep(0.02)

  async def listen():
    listening = asyncio.create_task(
      served.ask(app, 'GET', '/events', answer=answer)
    )
    working = asyncio.create_task(worker.run())
    _, _, body = await served.ask(app, 'POST', '/jobs', IMAGE)
    job_id = json.loads(body)['id']
    await until_told(b'"step": "scene"')
    (kept.folder(kept.get(job_id)) / 'go').touch()
    await until_told(b'"status": "done"')
    status, _, _ = await served.ask(app, 'DELETE', f'/jobs/{job_id}')
    assert status == 204
    await until_told(b'event: gone')
    site.close()
    _, headers, events = await listening
    await working
    return job_id, headers, events.decode()

  job_id, headers, events = asyncio.run(listen())
  assert headers['content-type'].startswith('text/event-stream')
  told = [
    event.split('\n') for event in events.split('\n\n') if 'data' in event
  ]
  contents = [json.loads(data.removeprefix('data: ')) for _, data in told]
  statuses = [content['status'] for content in contents[:-1]]
  assert statuses[-1] == 'done' and 'running' in statuses
  assert told[-1][0] == 'event: gone' and contents[-1] == job_id
  assert not list((tmp_path / 'jobs').iterdir())


def test_cameras_of_a_path_are_shown_before_it_is_imagined(place):
  (status, _, body), refused = asked(
    place[2],
    ('GET', '/path', {'query': 'trajectory=right&num_frames=3'}),
    ('GET', '/path', {'query': 'num_frames=3&num_frames=4'}),
  )
  poses = json.loads(body)['camera2scene']
  assert status == 200 and [pose[3] for pose in poses] == [0, 0.05, 0.1]
  assert error_of(refused) == (400, 'a field is given twice')


@pytest.mark.parametrize(
  'name',
  [
    'job.json',
    'log.txt',
    'input.png',
    'model/output',
    'views',
    'views/link.json',
    'views/.odin_lock.json',
    'views/../job.json',
    'views//video.mp4',
    'views/frames/../../job.json',
    '../../../etc/passwd',
    '/etc/passwd',
    'views/%2e%2e/job.json',
    'views/\x00',
    'views/frames/' + 'x' * 5000,
  ],
)
def test_no_other_file_is_given_away(place, name):
  _, _, app, done, _ = place
  (answer,) = asked(app, ('GET', f'/jobs/{done}/files/{name}', {}))
  assert error_of(answer) == (404, 'there is nothing of that name')


def test_what_is_too_much_is_refused_before_it_is_read(tmp_path):
  kept, _, site = served.site(
    tmp_path, most_bytes=1000, most_waiting=2, most_jobs=3
  )
  app = site.app(is_local=True, token=None)
  large, unsaid, empty, one, two, busy = asked(
    app,
    ('POST', '/jobs', {'body': b'x', 'content_length': '1001'}),
    ('POST', '/jobs', {'body': [bytes(600)] * 2}),
    ('POST', '/jobs', {}),
    ('POST', '/jobs', {'body': b'x'}),
    ('POST', '/jobs', {'body': b'x'}),
    ('POST', '/jobs', {'body': b'x'}),
  )
  for answer in (large, unsaid):
    status, line = error_of(answer)
    assert status == 413 and 'more than 0.001 MB' in line
  assert error_of(empty)[0] == 400
  assert (one[0], two[0]) == (201, 201)
  assert error_of(busy) == (429, '2 jobs wait already; try again later')
  # What was refused has left nothing.
  assert len(list((tmp_path / 'jobs').iterdir())) == 2
  cancel = ('POST', f'/jobs/{kept.all()[0].id}/cancel', {})
  cancelled, _, third, _, full = asked(
    app,
    cancel,
    cancel,
    ('POST', '/jobs', {'body': b'x'}),
    ('POST', f'/jobs/{kept.all()[1].id}/cancel', {}),
    ('POST', '/jobs', {'body': b'x'}),
  )
  assert json.loads(cancelled[2])['status'] == 'cancelled' and third[0] == 201
  assert error_of(full)[0] == 429 and '3 scenes are kept' in error_of(full)[1]


def test_a_job_that_runs_or_waits_is_not_deleted(tmp_path):
  kept, _, site = served.site(tmp_path)
  app = site.app(is_local=True, token=None)
  asked(app, ('POST', '/jobs', {'body': IMAGE}))
  path = f'/jobs/{kept.all()[0].id}'
  refused, _, gone, again = asked(
    app,
    ('DELETE', path, {}),
    ('POST', f'{path}/cancel', {}),
    ('DELETE', path, {}),
    ('DELETE', path, {}),
  )
  assert error_of(refused) == (409, 'cancel it first')
  assert gone[0] == 204 and error_of(again)[0] == 404


def test_an_upload_that_is_broken_off_leaves_nothing(tmp_path):
  _, _, site = served.site(tmp_path)
  app = site.app(is_local=True, token=None)

  async def leave():
    sent = [{'type': 'http.request', 'body': b'x', 'more_body': True}]

    async def receive():
      return sent.pop() if sent else {'type': 'http.disconnect'}

    async def send(message):
      del message

    scope = {'type': 'http', 'method': 'POST', 'path': '/jobs'}
    scope |= {'query_string': b'', 'headers': [(b'host', b'localhost')]}
    await app(scope, receive, send)

  asyncio.run(leave())
  assert not list((tmp_path / 'jobs').iterdir())


def test_a_full_disk_is_told_in_a_line(tmp_path):
  async def full(path, *args):
    raise OSError(errno.ENOSPC, 'No space left on device', str(path))

  _, _, site = served.site(tmp_path, check=full)
  app = site.app(is_local=True, token=None)
  (answer,) = asked(app, ('POST', '/jobs', {'body': IMAGE}))
  assert error_of(answer) == (
    507,
    'the server cannot write: No space left on device',
  )


# -- Who may ask -------------------------------------------------------------------


@pytest.mark.parametrize('method,path', ROUTES)
def test_other_sites_in_the_same_browser_get_nothing(place, method, path):
  _, _, app, done, _ = place
  path = path.replace('ID', done)
  here = 'http://localhost:8000'
  answers = asked(
    app,
    # A name of theirs that leads here (DNS rebinding).
    (method, path, {'host': 'evil.example:8000', 'origin': here}),
    (method, path, {'host': ''}),
    (method, path, {'host': '[::1'}),
    # Requests of their pages.
    (method, path, {'origin': 'http://evil.example'}),
    (method, path, {'origin': 'null'}),
    (method, path, {'origin': 'http://localhost:9000'}),
    (method, path, {'origin': 'http://[::1'}),
    (method, path, {'sec_fetch_site': 'cross-site'}),
    (method, path, {'sec_fetch_site': 'same-site'}),
  )
  statuses = [error_of(answer)[0] for answer in answers]
  assert statuses == [421] * 3 + [403] * 6


def test_the_page_itself_may_ask_by_every_name_of_this_machine(place):
  visit = {'sec_fetch_site': 'cross-site', 'sec_fetch_mode': 'navigate'}
  visit |= {'sec_fetch_dest': 'document'}
  own = {'sec_fetch_site': 'same-origin'}
  answers = asked(
    place[2],
    ('GET', '/', {'host': '127.0.0.1:8000', **own}),
    ('GET', '/', {'host': '[::1]:9', 'origin': 'http://[::1]:9', **own}),
    ('GET', '/', {'host': 'LOCALHOST', 'origin': 'http://localhost'}),
    # A link from elsewhere leads to the page.
    ('GET', '/', visit),
  )
  assert [answer[0] for answer in answers] == [200] * 4


@pytest.mark.parametrize('method,path', ROUTES)
def test_nothing_is_given_without_the_token(place, method, path):
  _, site, _, done, _ = place
  app = site.app(is_local=False, token=TOKEN)
  path = path.replace('ID', done)
  answers = asked(
    app,
    (method, path, {}),
    (method, path, {'query': 'token=a-token-of-letterz'}),
    (method, path, {'authorization': 'Bearer a-token'}),
    (method, path, {'authorization': f'Basic {TOKEN}'}),
    (method, path, {'cookie': f'token={TOKEN}; odin=%s'}),
    (method, path, {'authorization': 'Bearer \xff'}),
  )
  assert {error_of(answer)[0] for answer in answers} == {401}


def test_the_token_opens_the_page_and_stays_out_of_its_address(place):
  _, site, _, _, _ = place
  app = site.app(is_local=False, token=TOKEN)
  host = {'host': 'studio.local:8000'}
  entrance, bearer = asked(
    app,
    ('GET', '/', {'query': f'token={TOKEN}', **host}),
    ('GET', '/path', {'authorization': f'Bearer {TOKEN}', **host}),
  )
  assert entrance[0] == 303 and entrance[1]['location'] == './'
  cookie = entrance[1]['set-cookie']
  assert 'HttpOnly' in cookie and 'SameSite=lax' in cookie
  cookie = {'cookie': cookie.partition(';')[0]}
  page, stranger = asked(
    app,
    ('GET', '/', {**cookie, **host}),
    ('POST', '/jobs', {'origin': 'http://evil.example', **cookie, **host}),
  )
  assert (bearer[0], page[0], stranger[0]) == (200, 200, 403)


@pytest.mark.parametrize(
  'host,is_own',
  [
    ('127.0.0.1', True),
    ('127.8.8.8', True),
    ('::1', True),
    ('localhost', True),
    ('0.0.0.0', False),
    ('::', False),
    ('192.168.1.2', False),
    ('localhost.evil.example', False),
    ('127.0.0.1.evil.example', False),
  ],
)
def test_which_addresses_are_of_this_machine_alone(host, is_own):
  assert access.is_loopback(host) == is_own


# -- Whatever is asked ---------------------------------------------------------------

METHODS = ['GET', 'POST', 'DELETE', 'HEAD', 'PUT', 'X']
SOUP = strategies.text(max_size=30)
PIECES = strategies.one_of(
  strategies.sampled_from(
    ['jobs', 'ID', 'ID', 'files', 'views', 'frames', '000.png', 'scene']
    + ['..', '.', '', 'cancel', 'download', 'events', 'path', 'job.json']
    + ['%2e%2e', '\x00', 'model', 'thumbnail.jpg', '~', '...', 'index.html']
  ),
  SOUP,
)
FIELDS = strategies.dictionaries(
  strategies.one_of(
    strategies.sampled_from(
      ['trajectory', 'num_frames', 'line', 'look', 'name', 'token', 'fov_deg']
    ),
    SOUP,
  ),
  strategies.one_of(
    strategies.sampled_from(
      ['drawn', 'forward', '1', '1e999', '0,1;1,1', '-1']
    ),
    SOUP,
  ),
  max_size=4,
)
HEADERS = strategies.dictionaries(
  strategies.sampled_from(
    ['host', 'origin', 'range', 'cookie', 'authorization', 'content_length']
    + ['content_type', 'transfer_encoding', 'sec_fetch_site', 'accept']
  ),
  strategies.one_of(
    strategies.sampled_from(
      ['localhost:8000', 'bytes=0-1,1-', 'bytes=-5', '7']
    ),
    strategies.text(strategies.characters(max_codepoint=255), max_size=20),
  ),
  max_size=2,
)


@pytest.fixture(scope='module')
def fuzzed(tmp_path_factory):
  folder = tmp_path_factory.mktemp('fuzzed')
  loop = asyncio.new_event_loop()
  yield folder, loop
  loop.close()


def test_no_request_breaks_the_server_or_learns_where_it_is(fuzzed):
  folder, loop = fuzzed
  kept, _, site = served.site(folder, most_jobs=6)
  app = site.app(is_local=True, token=None)
  for name in ('done', 'waiting'):
    status, _, _ = loop.run_until_complete(
      served.ask(app, 'POST', '/jobs', IMAGE, f'name={name}')
    )
    assert status == 201
  done, _ = kept.all()
  done.status, done.message = jobs.FAILED, 'is bad'
  for name in ('views/frames/000.png', 'scene/index.html'):
    path = kept.folder(done) / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(IMAGE)
  secrets = [folder, config_files.REPOSITORY, sys.prefix, pathlib.Path.home()]
  secrets = [str(secret).encode() for secret in secrets]
  seen = set()

  @settings(
    max_examples=200,
    deadline=None,
    database=None,
    derandomize=True,
    # A smaller example is not worth the minutes.
    phases=[Phase.generate],
  )
  @given(
    route=strategies.one_of(
      strategies.sampled_from(ROUTES),
      strategies.tuples(
        strategies.sampled_from(METHODS),
        strategies.lists(PIECES, max_size=6).map(lambda x: '/' + '/'.join(x)),
      ),
    ),
    fields=strategies.one_of(strategies.just({}), FIELDS),
    headers=strategies.one_of(strategies.just({}), HEADERS),
    body=strategies.lists(
      strategies.binary(max_size=50), min_size=1, max_size=3
    ),
  )
  def ask(route, fields, headers, body):
    method, path = route
    path = path.replace('ID', kept.all()[0].id if len(kept) else '0' * 16)
    status, answered, content = loop.run_until_complete(
      served.ask(
        app,
        method,
        path,
        body,
        parse.urlencode(fields, errors='replace'),
        chunks=1,
        **headers,
      )
    )
    seen.add(status)
    assert status < 500, (method, path, fields, headers)
    told = content + repr(answered).encode()
    assert not any(secret in told for secret in secrets), told
    assert answered['x-content-type-options'] == 'nosniff'

  ask()
  # It came past the gate, and into the routes.
  assert seen >= {200, 201, 400, 403, 404, 405, 421}
  assert len(kept) <= 6
