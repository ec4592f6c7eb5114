"""Downloads from a local server that drops, lies and refuses; no internet."""

import collections
import http.server
import json
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time

import av
import hypothesis
from hypothesis import strategies as st
import numpy as np
import pytest
import yt_dlp

from odin_jax.shared import files
from preprocessing.downloading import failures, fetching, pacing, targets
from tests.helpers import commands

# Ten characters and one that ends a real id.
GOOD = 'good______A'
DROPS = 'drops_____E'
BUSY = 'busy______I'
LONG = 'long______M'
LONG_ONCE = 'long_once_Q'
SHORT = 'short_____U'
GONE = 'gone______Y'
BROKEN = 'broken____c'
PAGE = 'page______g'
FAKE = 'fake______k'
SLOW = '-slow_____o'
EXCLUDED = 'excluded__s'
INVALID = ['../../x', '--exec=touch', ';rm -rf ~', 'g\u043eod______A', 'good']
FAST = [
  '--requests_per_minute=0',
  '--backoff_s=0.01',
  '--timeout_s=5',
  '--retries=1',
  '--proxy=',
]


def make_video(path, seconds=3):
  """Noise, so that its bytes are spread over its length."""
  rng = np.random.default_rng(0)
  with av.open(str(path), 'w', options={'movflags': 'faststart'}) as container:
    stream = container.add_stream('libx264', rate=10, options={'g': '5'})
    stream.width, stream.height, stream.pix_fmt = 96, 48, 'yuv420p'
    for _ in range(10 * seconds):
      image = rng.integers(0, 255, (48, 96, 3), np.uint8)
      container.mux(stream.encode(av.VideoFrame.from_ndarray(image)))
    container.mux(stream.encode(None))
  return path.read_bytes()


class Server(http.server.ThreadingHTTPServer):
  """Serves the same video under every id, each with its own fault.

  Attributes:
    log: (path, Range header) of every request.
    counts: requests by id.
    release: lets the slow one go on.
    now_good: ids whose fault has been mended.
  """

  daemon_threads = True

  def __init__(self, video):
    super().__init__(('127.0.0.1', 0), Handler)
    self.video = video
    self.log = []
    self.counts = collections.Counter()
    self.release = threading.Event()
    self.now_good = set()

  @property
  def url(self):
    return f'--url=http://127.0.0.1:{self.server_port}/v/{{id}}.mp4'

  def handle_error(self, request, client_address):
    """A client that goes away is part of the tests."""
    assert isinstance(sys.exception(), OSError)


class Handler(http.server.BaseHTTPRequestHandler):
  """Answers one request; the client asks twice per attempt.

  The first request is for the kind of file alone, so faults in the body are
  in the answers to both.
  """

  def do_GET(self):
    server = self.server
    name = self.path.removeprefix('/v/').removesuffix('.mp4')
    server.log.append((self.path, self.headers.get('Range')))
    server.counts[name] += 1
    fault = None if name in server.now_good else FAULTS.get(name)
    if fault is None:
      self.send_video()
    else:
      fault(self, server.counts[name])

  def send_video(self, extra=0, cut=None, pause=False, kind='video/mp4'):
    """The video, or the rest of it from the start of the range.

    Args:
      extra: added to the length that is announced.
      cut: after how many bytes the connection is dropped.
      pause: whether to wait in the middle.
      kind: what it is said to be.
    """
    video = self.server.video
    asked = re.fullmatch(r'bytes=(\d+)-', self.headers.get('Range', ''))
    start = int(asked[1]) if asked else 0
    if start >= len(video):
      self.send_error(416)
      return
    self.send_response(206 if asked else 200)
    self.send_header('Content-Type', kind)
    self.send_header('Content-Length', str(len(video) - start + extra))
    if asked:
      total = f'{start}-{len(video) - 1}/{len(video)}'
      self.send_header('Content-Range', f'bytes {total}')
    self.end_headers()
    body = video[start:cut]
    if pause:
      self.wfile.write(body[: len(body) // 2])
      self.server.release.wait(30)
      body = body[len(body) // 2 :]
    self.wfile.write(body)

  def drop(self, count):
    self.send_video(cut=len(self.server.video) // 2 if count <= 2 else None)

  def busy(self, count):
    if count == 1:
      self.send_error(429)
    else:
      self.send_video()

  def too_long(self, count):
    self.send_video(extra=5000)

  def too_long_once(self, count):
    self.send_video(extra=5000 if count <= 2 else 0)

  def too_short(self, count):
    self.send_video(extra=-len(self.server.video) // 2)

  def gone(self, count):
    self.send_error(404)

  def broken(self, count):
    self.send_error(500)

  def page(self, count, kind='text/html'):
    text = b'<html><body>please sign in</body></html>'
    self.send_response(200)
    self.send_header('Content-Type', kind)
    self.send_header('Content-Length', str(len(text)))
    self.end_headers()
    self.wfile.write(text)

  def fake(self, count):
    self.page(count, 'video/mp4')

  def slow(self, count):
    self.send_video(pause=True)

  def log_message(self, *arguments):
    """Nothing on stderr; the server keeps its own log."""


FAULTS = {
  DROPS: Handler.drop,
  BUSY: Handler.busy,
  LONG: Handler.too_long,
  LONG_ONCE: Handler.too_long_once,
  SHORT: Handler.too_short,
  GONE: Handler.gone,
  BROKEN: Handler.broken,
  PAGE: Handler.page,
  FAKE: Handler.fake,
  SLOW: Handler.slow,
}


@pytest.fixture(scope='session')
def video(tmp_path_factory):
  return make_video(tmp_path_factory.mktemp('video') / 'sample.mp4')


@pytest.fixture
def server(video):
  with Server(video) as made:
    thread = threading.Thread(target=made.serve_forever, args=(0.02,))
    thread.start()
    yield made
    made.release.set()
    made.shutdown()
    thread.join()


def write_ids(path, names):
  path.write_text('# a list\n' + ''.join(f'{name}\n' for name in names))
  return path


def ledger(output):
  rows = [json.loads(row) for row in (output / 'ledger.jsonl').open()]
  return {row['video_id']: row for row in rows}


def figures(output):
  return json.loads((output / 'download.json').read_text())


def contents(output):
  """What is in the folder, but for its marker and the cache of yt-dlp."""
  return {
    str(path.relative_to(output))
    for path in output.rglob('*')
    if path.is_file()
    and not {'.odin_output.json', '.cache'} & {*path.parts}
    and path.name != '.odin_output.json'
  }


def test_every_fault_is_mended_or_told(server, video, tmp_path):
  output = tmp_path / 'videos'
  names = [GOOD, EXCLUDED, *FAULTS]
  names.remove(SLOW)
  listed = write_ids(tmp_path / 'ids.txt', [*INVALID, *names, GOOD])
  excluded = write_ids(
    tmp_path / 'out.txt', [f'https://youtu.be/{EXCLUDED}', 'never listed']
  )
  line = [
    f'--ids={listed}',
    f'--output={output}',
    f'--exclude_ids={excluded}',
    '--num_workers=2',
    server.url,
    *FAST,
  ]
  ((status, stderr),) = commands.run_all('preprocessing.download', [line])
  assert status == 0, stderr
  assert 'Traceback' not in stderr

  whole = {GOOD, DROPS, BUSY, LONG_ONCE}
  assert contents(output) == {
    'ledger.jsonl',
    'download.json',
    *(f'{name}.mp4' for name in whole),
  }
  for name in whole:
    assert (output / f'{name}.mp4').read_bytes() == video
  rows = ledger(output)
  reasons = {
    name: (row['reason'], row.get('attempts')) for name, row in rows.items()
  }
  assert reasons == {
    EXCLUDED: ('excluded', None),
    LONG: ('truncated', 2),
    SHORT: ('truncated', 2),
    GONE: ('unavailable', 1),
    BROKEN: ('network', 2),
    PAGE: ('not a video', 1),
    FAKE: ('not a video', 1),
    **{text: ('invalid id', 0) for text in INVALID},
  }
  assert '404' in rows[GONE]['detail'] and '500' in rows[BROKEN]['detail']
  assert (
    figures(output).items()
    >= {
      'listed': 11,
      'invalid': len(INVALID),
      'excluded': 1,
      'wanted': 10,
      'there_before': 0,
      'given_up_before': 0,
      'downloaded': 4,
      'failed': {
        'network': 1,
        'not a video': 2,
        'truncated': 2,
        'unavailable': 1,
      },
      'bytes': 4 * len(video),
    }.items()
  )
  # Nothing but the ids was ever asked for.
  asked = {path for path, _ in server.log}
  assert asked == {f'/v/{name}.mp4' for name in names if name != EXCLUDED}
  # The dropped connection was gone on with, not begun anew.
  resumed = [span for path, span in server.log if DROPS in path and span]
  assert resumed and all(span != 'bytes=0-' for span in resumed)
  assert server.counts[GONE] == 1 and server.counts[GOOD] == 2

  # A rerun asks for what failed, but not for what is there or gone for good.
  server.log.clear()
  server.now_good |= {BROKEN, GONE}
  again = [*line, '--retry_permanent']
  results = commands.run_all('preprocessing.download', [line, again])
  assert [status for status, _ in results] == [0, 0], results
  asked = collections.Counter(path for path, _ in server.log)
  assert asked[f'/v/{GOOD}.mp4'] == 0 and asked[f'/v/{EXCLUDED}.mp4'] == 0
  assert asked[f'/v/{GONE}.mp4'] == asked[f'/v/{BROKEN}.mp4'] == 2
  rows = ledger(output)
  assert rows.keys() == {EXCLUDED, LONG, SHORT, PAGE, FAKE, *INVALID}
  assert figures(output)['there_before'] == 5
  assert figures(output)['downloaded'] == 1


def test_a_killed_run_goes_on_where_it_was(server, video, tmp_path, repository):
  output = tmp_path / 'videos'
  listed = write_ids(tmp_path / 'ids.txt', [GOOD, SLOW])
  line = [f'--ids={listed}', f'--output={output}', server.url, *FAST]
  line += ['--num_workers=1']
  run = subprocess.Popen(
    [sys.executable, '-m', 'preprocessing.download', *line],
    cwd=repository,
    stderr=subprocess.DEVNULL,
  )
  part = output / '.staging' / SLOW / f'{SLOW}.mp4.part'
  while run.poll() is None and not (part.is_file() and part.stat().st_size):
    time.sleep(0.01)
  assert run.poll() is None
  os.kill(run.pid, signal.SIGKILL)
  run.wait()
  server.release.set()
  assert (output / f'{GOOD}.mp4').read_bytes() == video
  assert not (output / f'{SLOW}.mp4').exists()
  size = part.stat().st_size
  assert 0 < size < len(video)
  # What else is left in the staging folder is removed; others come later.
  shutil.copytree(part.parent, part.parent.with_name(EXCLUDED))
  server.log.clear()
  write_ids(listed, [DROPS, SLOW, GOOD])
  ((status, stderr),) = commands.run_all('preprocessing.download', [line])
  assert status == 0, stderr
  assert (output / f'{SLOW}.mp4').read_bytes() == video
  assert server.log[:2] == [
    (f'/v/{SLOW}.mp4', None),
    (f'/v/{SLOW}.mp4', f'bytes={size}-'),
  ]
  assert f'/v/{GOOD}.mp4' not in {path for path, _ in server.log}
  assert contents(output) == {
    'ledger.jsonl',
    'download.json',
    *(f'{name}.mp4' for name in (GOOD, SLOW, DROPS)),
  }


def test_bad_flags_and_folders_are_refused(server, tmp_path):
  listed = write_ids(tmp_path / 'ids.txt', [GOOD])
  gone = write_ids(tmp_path / 'gone.txt', [GONE])
  broken = write_ids(tmp_path / 'broken.txt', [f'{i:010d}A' for i in range(9)])
  cookies = tmp_path / 'cookies.txt'
  cookies.write_text('# none\n')
  taken = tmp_path / 'taken'
  taken.mkdir()
  (taken / 'precious').write_text('x')
  other = files.claim_output(tmp_path / 'other', 'preprocessing.run')
  new = tmp_path / 'new'
  good = [f'--ids={listed}', f'--output={new}', server.url, *FAST]
  lines = [
    ([f'--output={new}'], ['--ids']),
    ([f'--ids={listed}'], ['--output']),
    ([*good, '--ids=absent.txt'], ['absent.txt', 'no such file']),
    ([*good, '--exclude_ids=absent.txt'], ['absent.txt', 'no such file']),
    ([*good, '--url=http://localhost/'], ['{id}']),
    ([*good, '--url=file:///{id}'], ['file:///']),
    ([*good, f'--output={taken}'], ['precious']),
    ([*good, f'--output={other}'], [str(other), 'made by preprocessing.run']),
    ([*good, f'--output={listed}/x'], [f'{listed}/x', 'give another folder']),
    ([*good, '--output=/proc/videos'], ['/proc/videos', 'cannot be used']),
    ([*good, f'--staging={taken}'], ['precious']),
    ([*good, '--cookies=absent.txt'], ['absent.txt']),
    ([*good, f'--cookies={cookies}'], ['cookies.txt', 'Netscape']),
    ([*good, '--output=gs://bucket/x'], ['pip install gcsfs==']),
    ([*good, '--output=s3://bucket/x'], ['pip install s3fs==']),
    ([*good, '--output=nothing://x'], ['nothing://x']),
    ([*good, '--num_workers=0'], ['num_workers']),
  ]
  results = commands.run_all(
    'preprocessing.download', [line for line, _ in lines]
  )
  commands.assert_refused(results, [words for _, words in lines])
  assert not server.log
  # Nothing at all, and a server that is down: the last line tells.
  results = commands.run_all(
    'preprocessing.download',
    [
      [*good, f'--ids={gone}'],
      [
        *good,
        f'--ids={broken}',
        '--max_in_a_row=3',
        '--num_workers=1',
        '--retries=0',
        '--url=http://127.0.0.1:9/{id}',
      ],
      # YouTube itself, as far as a proxy that is not there.
      [
        f'--ids={listed}',
        f'--output={tmp_path / "youtube"}',
        *FAST,
        '--retries=0',
        '--proxy=http://127.0.0.1:9',
      ],
    ],
  )
  for (status, stderr), words in zip(
    results,
    (
      ['none of its videos', 'unavailable'],
      ['3 videos in a row'],
      ['none of its videos', 'network'],
    ),
    strict=True,
  ):
    last = stderr.strip().splitlines()[-1]
    assert status == 2 and 'Traceback' not in stderr
    assert all(word in last for word in words), last
  assert len(ledger(new)) == 1 + 3
  row = ledger(tmp_path / 'youtube')[GOOD]
  assert row['reason'] == 'network' and row['detail'].startswith('[youtube]')


def call(program, *arguments):
  """Runs code with the command imported; returns what it prints as JSON."""
  done = subprocess.run(
    [sys.executable, '-c', program, *map(str, arguments)],
    capture_output=True,
    text=True,
  )
  assert done.returncode == 0, done.stderr
  # Commands that ran there have said before what they made.
  return json.loads(done.stdout.splitlines()[-1])


# The files of memory:// end with the process.
_REMOTE = """
import json, sys
from absl import flags
import fsspec
from odin_jax.shared import errors
from preprocessing import download

memory = fsspec.filesystem('memory')


def run():
  flags.FLAGS.unparse_flags()
  flags.FLAGS(sys.argv)
  try:
    download.main()
  except errors.UserError as error:
    return str(error)


def state():
  found = {path: memory.cat_file(path) for path in memory.find('/')}
  return {path: [len(data), hash(data)] for path, data in found.items()}

results = [run(), state(), run(), state()]
# An upload that loses its end, and then one that is refused.
video = next(path for path in memory.find('/') if path.endswith('A.mp4'))
for fault in ('cut', 'refuse'):
  memory.rm_file(video)
  whole = type(memory).put_file

  def put_file(self, local, remote, **more):
    if fault == 'refuse':
      raise PermissionError('not yours')
    whole(self, local, remote, **more)
    self.pipe_file(remote, self.cat_file(remote)[:-1])

  type(memory).put_file = put_file
  results += [run(), sorted(memory.find('/'))]
  type(memory).put_file = whole
  if fault == 'cut':
    memory.pipe_file('/bucket/videos/.tmp-old.mp4', b'half')
    results += [run(), state()]
memory.pipe_file('/bucket/videos/.odin_output.json', b'{"tool": "other"}')
results += [run()]
memory.rm_file('/bucket/videos/.odin_output.json')
results += [run()]
print(json.dumps(results))
"""


def test_a_remote_target(server, video, tmp_path):
  listed = write_ids(tmp_path / 'ids.txt', [GOOD, BUSY, GONE])
  staging = tmp_path / 'staging'
  results = call(
    _REMOTE,
    f'--ids={listed}',
    '--output=memory://bucket/videos',
    f'--staging={staging}',
    server.url,
    *FAST,
  )
  first, made, second, again = results[:4]
  cut, after_cut, mended, after = results[4:8]
  refused, after_refusal, other, unmarked = results[8:]
  folder = '/bucket/videos/'
  kept = {folder + name for name in ('.odin_output.json', 'ledger.jsonl')}
  kept.add(f'{folder}download.json')
  videos = {f'{folder}{name}.mp4' for name in (GOOD, BUSY)}
  assert first is None and made.keys() == kept | videos
  assert all(made[name][0] == len(video) for name in videos)
  assert second is None and again.keys() == made.keys()
  for name in (*videos, f'{folder}ledger.jsonl'):
    assert again[name] == made[name]
  assert server.counts[BUSY] == 3 and server.counts[GONE] == 1
  # The local copy outlives an upload that failed, and is what is sent next.
  kept = staging / GOOD / f'{GOOD}.mp4'
  assert f'{len(video) - 1} of {len(video)} bytes arrived' in cut
  assert str(kept) in cut and f'{folder}{GOOD}.mp4' not in after_cut
  assert mended is None and after.keys() == made.keys()
  assert after[f'{folder}{GOOD}.mp4'] == made[f'{folder}{GOOD}.mp4']
  assert 'not yours' in refused
  assert f'{folder}{GOOD}.mp4' not in after_refusal
  assert kept.read_bytes() == video
  assert 'made by other' in other and 'not made by' in unmarked


# As YouTube and yt-dlp word it.
_MESSAGES = {
  'ERROR: [youtube] abcdeRemovA: Private video. Sign in if you have been '
  'granted access to this video': 'private',
  'Video unavailable. This video is private': 'private',
  'Video unavailable': 'unavailable',
  'Video unavailable. This video has been removed by the uploader': 'removed',
  'This video is no longer available because the YouTube account associated '
  'with this video has been terminated.': 'removed',
  'Video unavailable. This video contains content from X, who has blocked it '
  'in your country on copyright grounds': 'geo-blocked',
  'The uploader has not made this video available in your country': (
    'geo-blocked'
  ),
  'Sign in to confirm your age. This video may be inappropriate for some '
  'users.': 'age-restricted',
  'Sign in to confirm you\u2019re not a bot. Use --cookies': 'rate-limited',
  "Video unavailable. This content isn't available, try again later. The "
  'current session has been rate-limited by YouTube': 'rate-limited',
  'Unable to download webpage: HTTP Error 429: Too Many Requests': (
    'rate-limited'
  ),
  'Unable to download webpage: HTTP Error 503: Service Unavailable': 'network',
  'Unable to download webpage: HTTP Error 404: Not Found': 'unavailable',
  'unable to download video data: HTTP Error 403: Forbidden': 'forbidden',
  'Requested format is not available. Use --list-formats': 'no such format',
  'Join this channel to get access to members-only content like this video, '
  'and other exclusive perks.': 'members-only',
  'This live event will begin in 3 hours.': 'not yet published',
  'Premieres in 5 days': 'not yet published',
  'Got error: 1000 bytes read, 5000 more expected': 'truncated',
  "('Connection broken: IncompleteRead(1 bytes read, 2 more expected)')": (
    'truncated'
  ),
  '<urlopen error [Errno -2] getaddrinfo failed>': 'network',
  'The read operation timed out': 'network',
  'abcdeRemovA: something new': 'other',
}


@pytest.mark.parametrize('message', _MESSAGES)
def test_what_is_said_is_understood(message):
  failure = failures.classify('abcdeRemovA', message)
  assert failure.reason == _MESSAGES[message]


def test_requests_are_spaced():
  now_s = [0.0]

  class Stop(threading.Event):
    def wait(self, timeout=None):
      now_s[0] += timeout
      return self.is_set()

  stop = Stop()

  def starts(pacer, count):
    for _ in range(count):
      pacer.wait()
      yield now_s[0]

  pacer = pacing.Pacer(30.0, stop, clock=lambda: now_s[0])
  times_s = list(starts(pacer, 400))
  gaps = np.diff(times_s)
  assert gaps.min() >= 1 - 1e-9 and gaps.max() <= 3 + 1e-9
  assert gaps.std() > 0.3 and abs(gaps.mean() - 2) < 0.2
  pacer.hold(100.0)
  pacer.wait()
  held_s = now_s[0]
  assert held_s >= times_s[-1] + 100
  free = pacing.Pacer(0.0, stop, clock=lambda: now_s[0])
  assert list(starts(free, 10)) == [held_s] * 10
  stop.set()
  with pytest.raises(failures.Stopped):
    pacer.wait()


_HEIGHTS = (None, 240, 720, 1080, 2048, 2160, 4320)
_FORMATS = st.lists(
  st.fixed_dictionaries(
    {
      'height': st.sampled_from(_HEIGHTS),
      'ext': st.sampled_from(('mp4', 'webm', 'flv')),
      'protocol': st.sampled_from(('https', 'http', 'm3u8_native')),
      'acodec': st.sampled_from(('none', 'opus')),
      'dynamic_range': st.sampled_from((None, 'SDR', 'HLG', 'HDR10', 'DV')),
      'fps': st.sampled_from((None, 30, 60)),
      'quality': st.just(7),
    }
  ),
  min_size=1,
  max_size=8,
)


def settings(max_height):
  return fetching.Settings(
    url='https://localhost/{id}',
    max_height=max_height,
    bytes_per_s=None,
    cookies=None,
    proxy=None,
    retries=0,
    backoff_s=0.0,
    timeout_s=1.0,
  )


def described(formats):
  """What the code for YouTube in yt-dlp says of a video."""
  return {
    'id': GOOD,
    'title': 'Room',
    'extractor': 'youtube',
    'extractor_key': 'Youtube',
    'webpage_url': 'https://localhost/page',
    '_format_sort_fields': (
      *('quality', 'res', 'fps', 'hdr:12', 'source', 'vcodec', 'channels'),
      *('acodec', 'lang', 'proto'),
    ),
    'formats': [
      {**item, 'format_id': f'f{i}', 'url': f'https://localhost/{i}'}
      for i, item in enumerate(formats)
    ],
  }


def select(formats, max_height):
  """What yt-dlp takes of formats; a sound track is always on offer."""
  sound = {'ext': 'm4a', 'protocol': 'https', 'vcodec': 'none', 'acodec': 'aac'}
  pictures = [
    {**item, 'vcodec': 'avc1', 'width': item['height'] and 2 * item['height']}
    for item in formats
  ]
  options = {**fetching.options(settings(max_height)), 'logger': _Silent()}
  with yt_dlp.YoutubeDL(options, auto_init=False) as client:
    info = described([sound, *pictures])
    return client.process_ie_result(info, download=False)


class _Silent:
  def debug(self, message):
    """Nothing is shown."""

  info = warning = error = debug


@hypothesis.settings(max_examples=80, deadline=None)
@hypothesis.given(formats=_FORMATS, cap=st.sampled_from(_HEIGHTS[1:]))
def test_the_best_format_not_above_the_cap_is_taken(formats, cap):
  usable = [
    item
    for item in formats
    if (item['height'] or 0) <= cap
    and item['ext'] != 'flv'
    and item['protocol'] != 'm3u8_native'
  ]
  if not usable:
    with pytest.raises(yt_dlp.utils.ExtractorError) as caught:
      select(formats, cap)
    failure = failures.classify(GOOD, str(caught.value))
    assert failure.reason == 'no such format'
    return
  # Pictures without sound come first, and sound is never joined to them.
  silent = [item for item in usable if item['acodec'] == 'none']
  taken = select(formats, cap)
  heights = [item['height'] or 0 for item in silent or usable]
  assert (taken['height'] or 0) == max(heights)
  assert taken['acodec'] == ('none' if silent else 'opus')
  # Of that size SDR where there is any.
  ranges = {
    item['dynamic_range'] or 'SDR'
    for item in silent or usable
    if (item['height'] or 0) == max(heights)
  }
  assert taken['dynamic_range'] in ({'SDR'} & ranges or ranges)
  assert (taken['ext'], taken['protocol']) in {
    (item['ext'], item['protocol']) for item in usable
  }


@pytest.mark.parametrize('hdr', ['HDR10', 'HLG', 'HDR10+', 'DV'])
def test_sdr_is_taken_of_the_same_size_and_hdr_where_it_is_larger(hdr):
  common = {'ext': 'mp4', 'protocol': 'https', 'acodec': 'none', 'quality': 7}
  bright = {**common, 'height': 1080, 'dynamic_range': hdr, 'fps': 60}
  plain = {**common, 'height': 1080, 'dynamic_range': 'SDR', 'fps': 30}
  small = {**plain, 'height': 720}
  for formats in ([bright, plain, small], [small, plain, bright]):
    assert select(formats, 2048)['dynamic_range'] == 'SDR'
    assert select(formats, 2048)['height'] == 1080
  for formats in ([bright, small], [small, bright]):
    assert select(formats, 2048)['dynamic_range'] == hdr


@pytest.mark.parametrize(
  ('info', 'reason', 'detail'),
  [
    ({'id': BUSY}, 'not a video', 'leads to https://localhost/page'),
    ({'live_status': 'is_upcoming'}, 'not yet published', 'is_upcoming'),
    ({'live_status': 'is_live'}, 'not yet published', 'is_live'),
    ({'formats': []}, 'no such format', 'No video formats found'),
  ],
)
def test_another_video_or_one_to_come_is_refused(
  info, reason, detail, tmp_path, monkeypatch
):
  pacer = pacing.Pacer(0.0, threading.Event())
  fetcher = fetching.Fetcher(
    settings(1080),
    staging=tmp_path / 'staging',
    target=targets.Folder(str(tmp_path / 'videos')),
    pacer=pacer,
  )

  # Where yt-dlp turns errors into messages.
  @yt_dlp.YoutubeDL._handle_extraction_exceptions
  def extract_info(self, url):
    assert url == f'https://localhost/{GOOD}'
    stream = {'height': 720, 'ext': 'mp4', 'protocol': 'https'}
    return self.process_ie_result({**described([stream]), **info})

  monkeypatch.setattr(yt_dlp.YoutubeDL, 'extract_info', extract_info)
  row = fetcher(GOOD).row
  assert (row['video_id'], row['reason']) == (GOOD, reason), row
  assert detail in row['detail'] and row['attempts'] == 1


# Prints what the part of yt-dlp that reads the stream is told.
_DRIVER = """
import json, sys
from absl import flags
from preprocessing import download
from yt_dlp.downloader import common

found = []


def slow_down(self, *times):
  found[-1] = [self.params['ratelimit'], self.params['format']]

common.FileDownloader.slow_down = slow_down
for line in json.loads(sys.argv[1]):
  found.append(None)
  flags.FLAGS.unparse_flags()
  flags.FLAGS(['', *line])
  download.main()
print(json.dumps(found))
"""


def test_rate_and_height_reach_the_downloader(server, tmp_path):
  listed = write_ids(tmp_path / 'ids.txt', [GOOD])
  lines = [
    [
      f'--ids={listed}',
      f'--output={tmp_path / str(number)}',
      server.url,
      *FAST,
      *more,
    ]
    for number, more in enumerate(
      (
        ['--rate_limit_mb_s=6', '--num_workers=3', '--max_height=1000'],
        ['--num_workers=3'],
      )
    )
  ]
  assert call(_DRIVER, json.dumps(lines)) == [
    [2e6, fetching.options(settings(1000))['format']],
    [None, fetching.options(settings(2048))['format']],
  ]


def test_the_limit_counts_what_is_wanted(server, tmp_path):
  output = tmp_path / 'videos'
  listed = write_ids(tmp_path / 'ids.txt', [EXCLUDED, GOOD, BUSY, DROPS])
  excluded = write_ids(tmp_path / 'out.txt', [EXCLUDED])
  line = [
    f'--ids={listed}',
    f'--output={output}',
    f'--exclude_ids={excluded}',
    server.url,
    *FAST,
  ]
  for limit, asked in ((1, {GOOD}), (2, {BUSY}), (0, {DROPS})):
    server.counts.clear()
    ((status, stderr),) = commands.run_all(
      'preprocessing.download', [[*line, f'--limit={limit}']]
    )
    assert status == 0, stderr
    assert server.counts.keys() == asked
    assert figures(output)['wanted'] == (limit or 3)
    assert figures(output)['downloaded'] == len(asked)


def test_a_list_without_a_single_id(server, tmp_path):
  output = tmp_path / 'videos'
  names = [*INVALID, 'x' * 400]
  listed = write_ids(tmp_path / 'ids.txt', names)
  line = [f'--ids={listed}', f'--output={output}', server.url, *FAST]
  results = commands.run_all('preprocessing.download', [line, line])
  words = [str(listed), 'none of its videos', str(output / 'ledger.jsonl')]
  commands.assert_refused(results, [words] * 2)
  rows = [json.loads(row) for row in (output / 'ledger.jsonl').open()]
  assert sorted(row['video_id'] for row in rows) == sorted(
    name[:300] for name in names
  )
  assert {(row['stage'], row['reason']) for row in rows} == {
    ('download', 'invalid id')
  }
  assert figures(output)['invalid'] == len(names)
  assert not server.log


# As on a disk without room for the video.
_SMALL_DISK = """
import resource
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
"""


def test_a_full_disk_ends_the_run(server, video, tmp_path):
  assert len(video) > 20_000
  output = tmp_path / 'videos'
  listed = write_ids(tmp_path / 'ids.txt', [GOOD, BUSY])
  line = [f'--ids={listed}', f'--output={output}', server.url, *FAST]
  ((status, stderr),) = commands.run_all(
    'preprocessing.download', [line], setup=_SMALL_DISK
  )
  last = stderr.strip().splitlines()[-1]
  assert status == 2 and 'Traceback' not in stderr, stderr
  assert last.startswith('error: ') and 'free some space' in last
  assert not list(output.glob('*.mp4'))
  # With room again, the run goes on.
  ((status, stderr),) = commands.run_all('preprocessing.download', [line])
  assert status == 0, stderr
  assert (output / f'{GOOD}.mp4').read_bytes() == video


def test_staging_is_on_the_disk_of_a_local_output(server, tmp_path):
  other = pathlib.Path('/dev/shm')
  if not other.is_dir() or other.stat().st_dev == tmp_path.stat().st_dev:
    pytest.skip('no second file system at /dev/shm')
  listed = write_ids(tmp_path / 'ids.txt', [GOOD])
  with tempfile.TemporaryDirectory(dir=other) as staging:
    line = [f'--ids={listed}', f'--output={tmp_path / "new"}', server.url]
    results = commands.run_all(
      'preprocessing.download', [[*line, f'--staging={staging}']]
    )
    commands.assert_refused(results, [[staging, 'not on the disk of']])


def test_cookies_are_sent_and_not_written(server, tmp_path):
  listed = write_ids(tmp_path / 'ids.txt', [GOOD])
  cookies = tmp_path / 'cookies.txt'
  text = (
    '# Netscape HTTP Cookie File\n'
    '127.0.0.1\tFALSE\t/\tFALSE\t0\tsession\tsecret\n'
  )
  cookies.write_text(text)
  sent = []
  handle = Handler.send_video

  def spy(self, **more):
    sent.append(self.headers.get('Cookie'))
    handle(self, **more)

  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(Handler, 'send_video', spy)
    line = [f'--ids={listed}', f'--output={tmp_path / "new"}', server.url]
    line += [f'--cookies={cookies}', *FAST]
    ((status, stderr),) = commands.run_all('preprocessing.download', [line])
  assert status == 0, stderr
  assert sent == ['session=secret'] * 2
  assert cookies.read_text() == text
