"""A server of scenes without a model: shell scripts in place of its commands."""

import asyncio
import contextlib
import dataclasses
import shutil
import threading
import time

import cv2
import numpy as np
import uvicorn

from odin_jax.serving import jobs, routes, running, serve_page, uploads

LIMITS = uploads.Limits(
  most_bytes=200_000,
  most_pixels=10**6,
  most_frames=20,
  most_waiting=5,
  most_jobs=8,
)
# What the commands leave, as far as the server looks at it.
VIEWS = (
  'mkdir -p views/frames; '
  'for i in 0 1 2; do cp thumbnail.jpg views/frames/00$i.png; done; '
  'cp thumbnail.jpg views/video.mp4; '
)
# Until a file of that name is in the job's folder.
WAIT_FOR_GO = 'until [ -e go ]; do sleep 0.02; done; '
FIRST_VIEW = 'mkdir -p views/frames; cp thumbnail.jpg views/frames/000.png; '
SCENE = "mkdir -p scene; echo '<p>a scene</p>' > scene/index.html"


def image():
  """A PNG file."""
  pixels = np.random.default_rng(0).integers(0, 255, (20, 30, 3), np.uint8)
  return cv2.imencode('.png', pixels)[1].tobytes()


def scripted(views=VIEWS, scene=SCENE):
  """Steps of jobs that are shell scripts."""
  return lambda job, folder: [
    running.Step(jobs.VIEWS, ['sh', '-c', views]),
    running.Step(jobs.SCENE, ['sh', '-c', scene]),
  ]


async def take_any(path, thumbnail, settings, most_pixels):
  """A check that takes whatever comes for an image."""
  del settings, most_pixels
  shutil.copy(path, thumbnail)
  return {
    'width': 30,
    'height': 20,
    'fov_deg': 90.0,
    'fov_from': 'assumed',
    'is_panorama': False,
  }


def site(output, steps=None, check=take_any, **limits):
  """The jobs of a folder, what runs them, and their site."""
  output.mkdir(exist_ok=True)
  kept = jobs.Jobs(output)
  worker = running.Worker(kept, steps or scripted())
  limits = dataclasses.replace(LIMITS, **limits)
  page = serve_page.render({'step': 7, 'image_size_px': 64}, limits)
  return kept, worker, routes.Site(kept, worker, limits, page, check)


async def ask(
  app, method, path, body=b'', query='', chunks=None, answer=None, **headers
):
  """Status, headers and body of an answer.

  Args:
    app: an ASGI application.
    method: of the request.
    path: decoded.
    body: bytes, or a list of chunks.
    query: of the address.
    chunks: parts of the answer after which the client goes away; None: all.
    answer: a list that gets the messages of the answer as they come.
    **headers: with _ for -.
  """
  sent = [body] if isinstance(body, bytes) else list(body)
  headers = {'host': 'localhost:8000', **headers}
  scope = {
    'type': 'http',
    'http_version': '1.1',
    'method': method,
    'path': path,
    'raw_path': path.encode(errors='replace'),
    'root_path': '',
    'scheme': 'http',
    'query_string': query.encode(),
    'headers': [
      (name.replace('_', '-').encode(), value.encode('latin-1'))
      for name, value in headers.items()
    ],
    'client': ('127.0.0.1', 50000),
    'server': ('127.0.0.1', 8000),
  }
  gone = asyncio.Event()
  answer = [] if answer is None else answer

  async def receive():
    if sent:
      part = sent.pop(0)
      return {'type': 'http.request', 'body': part, 'more_body': bool(sent)}
    await gone.wait()
    return {'type': 'http.disconnect'}

  async def send(message):
    answer.append(message)
    if chunks is not None and len(answer) > chunks:
      gone.set()

  await asyncio.wait_for(app(scope, receive, send), 20)
  start, *rest = answer
  return (
    start['status'],
    {name.decode(): value.decode() for name, value in start['headers']},
    b''.join(part.get('body', b'') for part in rest),
  )


@contextlib.contextmanager
def listening(its_site):
  """The address of a site's server in a thread, ended with the block."""
  app = its_site.app(is_local=True, token=None)
  server = uvicorn.Server(
    uvicorn.Config(app, port=0, log_config=None, lifespan='on', ws='none')
  )
  thread = threading.Thread(target=server.run, daemon=True)
  thread.start()
  end = time.monotonic() + 20
  while not server.started and time.monotonic() < end:
    time.sleep(0.01)
  port = server.servers[0].sockets[0].getsockname()[1]
  try:
    yield f'http://127.0.0.1:{port}/'
  finally:
    its_site.close()
    server.should_exit = True
    thread.join(20)
    assert not thread.is_alive()
