"""The command: what it refuses, one true scene, and how it ends."""

import io
import json
import re
import select
import signal
import subprocess
import sys
import time
import urllib.request
import zipfile

import cv2
import numpy as np
import pytest

from tests.helpers import commands


@pytest.fixture(scope='module')
def output(tmp_path_factory):
  return tmp_path_factory.mktemp('served') / 'output'


@pytest.fixture(scope='module')
def server(output):
  """The process, and its address."""
  process = subprocess.Popen(
    [
      *(sys.executable, '-m', 'odin_jax.serve', '--workdir=pretrained'),
      *(f'--output={output}', '--port=0', '--token=sixteen-or-more-letters'),
    ],
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
  )
  select.select([process.stdout], [], [], 60)
  first, second = process.stdout.readline(), process.stdout.readline()
  assert first == f'{output}: 0 jobs, 0 to do\n'
  address = re.fullmatch(
    r'open: (http://127\.0\.0\.1:\d+/)\?token=sixteen-or-more-letters\n', second
  )
  yield process, address[1]
  process.kill()
  process.communicate()


def ask(address, method='GET', body=None):
  request = urllib.request.Request(address, body, method=method)
  request.add_header('Authorization', 'Bearer sixteen-or-more-letters')
  with urllib.request.urlopen(request, timeout=60) as answer:
    return answer.read()


def test_a_true_scene_is_made_and_holds_no_path_of_the_host(
  server, output, repository
):
  process, address = server
  image = np.random.default_rng(0).integers(0, 255, (70, 80, 3), np.uint8)
  image = cv2.imencode('.png', cv2.GaussianBlur(image, (0, 0), 1.5))[
    1
  ].tobytes()
  asked = 'name=a.png&num_frames=2&trajectory=forward'
  job = json.loads(ask(f'{address}jobs?{asked}', 'POST', image))
  end = time.monotonic() + 120
  while job['status'] in ('queued', 'running') and time.monotonic() < end:
    time.sleep(0.1)
    # The stream begins with the job.
    request = urllib.request.Request(f'{address}events')
    request.add_header('Authorization', 'Bearer sixteen-or-more-letters')
    with urllib.request.urlopen(request, timeout=60) as events:
      assert events.readline() == b'event: job\n'
      job = json.loads(events.readline().removeprefix(b'data: '))
  assert (job['status'], job['message']) == ('done', None)
  archive = ask(f'{address}jobs/{job["id"]}/download')
  with zipfile.ZipFile(io.BytesIO(archive)) as opened:
    content = {name: opened.read(name) for name in opened.namelist()}
  expected = {
    *('views/frames/001.png', 'views/poses.json', 'views/video.mp4'),
    *('views/generate.json', 'scene/index.html', 'scene/points.ply'),
    *('scene/mesh.glb', 'input.png'),
  }
  assert content.keys() >= {f'scene_1/{name}' for name in expected}
  for place in (output, repository, sys.prefix, output.parent.name):
    for name, data in content.items():
      assert str(place).encode() not in data, name
  # By what they are called beside each other.
  figures = json.loads(content['scene_1/views/generate.json'])
  assert (figures['image'], figures['workdir']) == ('input.png', 'pretrained')


def test_what_cannot_be_served_is_refused_in_a_line(server, output, tmp_path):
  _, address = server
  port = address.rstrip('/').rpartition(':')[2]
  (tmp_path / 'empty').mkdir()
  (tmp_path / 'mine').mkdir()
  (tmp_path / 'mine' / 'photo.jpg').touch()
  new = f'--output={tmp_path / "new"}'
  pretrained = '--workdir=pretrained'
  lines = {
    (f'--workdir={tmp_path / "empty"}', new): ['no such folder'],
    (f'--workdir={tmp_path / "none"}', new): ['no such folder'],
    (pretrained, new, '--token=short'): ['--token', '16 letters'],
    (pretrained, new, f'--port={port}'): [f'--port={port}', 'in use'],
    (pretrained, new, '--host=no.such.host.invalid'): ['--host=no.such'],
    (pretrained, f'--output={tmp_path / "mine"}', '--port=0'): ['photo.jpg'],
    # Two servers of one folder.
    (pretrained, f'--output={output}', '--port=0'): ['is writing here'],
  }
  results = commands.run_all('odin_jax.serve', lines)
  commands.assert_refused(results, lines.values())
  assert not (tmp_path / 'new').exists()


def test_a_signal_ends_it_cleanly_with_what_waits_kept(server, output):
  process, address = server
  request = urllib.request.Request(f'{address}events')
  request.add_header('Authorization', 'Bearer sixteen-or-more-letters')
  # Somebody still looks at the page, and a job runs.
  with urllib.request.urlopen(request, timeout=60) as events:
    image = cv2.imencode('.png', np.zeros((9, 9, 3), np.uint8))[1].tobytes()
    job = json.loads(ask(f'{address}jobs?num_frames=3', 'POST', image))
    while b'"running"' not in events.readline():
      pass
    process.send_signal(signal.SIGTERM)
    out, told = process.communicate(timeout=30)
  assert process.returncode == 75 and not out
  line = told.splitlines()[-1]
  assert line == (
    f'{output}: stopped by SIGTERM; the same command goes on with 1 job'
  )
  assert 'Traceback' not in told and 'warning' not in told
  kept = json.loads((output / 'jobs' / job['id'] / 'job.json').read_text())
  assert kept['status'] == 'running' and kept['process'] is None
  # What another server would need.
  assert not list(output.glob('.odin_lock*'))
