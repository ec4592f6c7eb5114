"""A page on which an image becomes a scene: views, a video, 3D.

  python -m odin_jax.serve --workdir=pretrained --output=runs/served

Open the address that it prints, drop an image or a panorama, choose a path by
name or draw one, and see the views, a video and a scene to fly through, each
when it is made, and all of it to download. Jobs are done one at a time, as the commands
`odin_jax.generate` and `odin_jax.reconstruct` do them. They are kept in
`--output` with all of their files: after a stop (status 75) or a kill the same
command goes on with those that were not finished.

It can be reached from this machine alone, unless `--host` says otherwise; then
it asks for a token, `--token` or one that it makes and prints with its address.
What is sent is plain HTTP: across other people's networks use a tunnel
(`ssh -L 8000:localhost:8000 HOST`) or a proxy with TLS.
"""

import sys

# As a file it finds none of the packages below.
if __name__ == '__main__' and not __package__:
  sys.stderr.write('error: type: python -m odin_jax.serve\n')
  sys.exit(2)

import asyncio
import contextlib
import functools
import secrets
import signal
import socket
from typing import Iterator
import urllib.parse

from absl import flags
import uvicorn

from odin_jax.checkpoints import checkpoint
from odin_jax.serving import (
  access,
  jobs,
  routes,
  running,
  serve_page,
  uploads,
)
from odin_jax.shared import (
  command,
  errors,
  files,
  interrupts,
  user_images,
  workdirs,
)

_TOOL = 'odin_jax.serve'
_WORKDIR = command.define_model()
_OUTPUT = command.define_output('Folder for the jobs and all that they make')
_HOST = flags.DEFINE_string(
  'host',
  '127.0.0.1',
  'Address to listen at; 0.0.0.0: all that this machine has.',
)
_CHECKPOINT_STEP = command.define_checkpoint_step()
_PORT = flags.DEFINE_integer(
  'port', 8000, 'Port; 0: any that is free.', 0, 65535
)
_TOKEN = flags.DEFINE_string(
  'token',
  None,
  'Secret that visitors need (whoever works on this machine can read it in the '
  'list of processes); by default one is made where --host lets other machines '
  'in, and none is asked for otherwise.',
)
_MAX_UPLOAD_MB = flags.DEFINE_integer(
  'max_upload_mb', 64, 'Most megabytes of an image.', 1, 4096
)
_MAX_MEGAPIXELS = flags.DEFINE_integer(
  'max_megapixels',
  80,
  'Most million pixels of an image; to read one takes 23 bytes of memory for '
  'each, up to 50 where it is transparent or has 16 bits.',
  1,
  user_images.MAX_PIXELS // 10**6,
)
_MAX_FRAMES = flags.DEFINE_integer(
  'max_frames', 64, 'Most views of a job.', 2, 999
)
_MAX_WAITING = flags.DEFINE_integer(
  'max_waiting', 20, 'Most jobs that wait at a time.', 1
)
_MAX_JOBS = flags.DEFINE_integer(
  'max_jobs', 200, 'Most jobs that are kept; visitors delete some for more.', 1
)
flags.mark_flags_as_required(['workdir', 'output'])
_MIN_TOKEN = 16
_MOST_CONNECTIONS = 100
# For answers that are under way when the server ends.
_LAST_WORDS_S = 5


def _listen(host: str, port: int) -> socket.socket:
  """A socket that listens there.

  Raises:
    errors.UserError: no such address here, or the port is taken.
  """
  try:
    (family, kind, _, _, address), *_ = socket.getaddrinfo(
      host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    )
    listening = socket.socket(family, kind)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listening.bind(address)
    listening.listen()
  except (OSError, UnicodeError) as error:
    reason = getattr(error, 'strerror', None) or error
    raise errors.UserError(
      f'--host={host} --port={port}: {reason}; give another one, --port=0 takes '
      'any that is free'
    ) from error
  return listening


def _token(is_local: bool) -> str | None:
  """What visitors have to know; None: nothing."""
  if _TOKEN.value is None:
    return None if is_local else secrets.token_urlsafe(24)
  if len(_TOKEN.value) < _MIN_TOKEN:
    raise errors.UserError(
      f'--token: is guessed too soon; give {_MIN_TOKEN} letters or more, or '
      'leave it out where --host lets other machines in: one is made'
    )
  return _TOKEN.value


def _address(listening: socket.socket, token: str | None) -> str:
  """What to open in a browser."""
  host, port, *_ = listening.getsockname()
  if host in ('0.0.0.0', '::'):
    host = socket.gethostname()
  host = f'[{host}]' if ':' in host else host
  query = f'?{urllib.parse.urlencode({"token": token})}' if token else ''
  return f'http://{host}:{port}/{query}'


def _jobs(count: int) -> str:
  return f'{count} job{"" if count == 1 else "s"}'


class _Server(uvicorn.Server):
  """One that leaves signals to this command."""

  @contextlib.contextmanager
  def capture_signals(self) -> Iterator[None]:
    """Captures none."""
    yield


async def _serve(
  server: _Server,
  site: routes.Site,
  listening: socket.socket,
  interrupt: interrupts.Interrupt,
) -> None:
  """Serves until a signal comes."""

  async def stop() -> None:
    while not interrupt.number:
      await asyncio.sleep(0.1)
    site.close()
    server.should_exit = True

  stopping = asyncio.create_task(stop())
  await server.serve(sockets=[listening])
  stopping.cancel()


def main() -> None:
  asked = _CHECKPOINT_STEP.value
  workdir = workdirs.require(_WORKDIR.value, 'a training run', asked)
  checkpoints, step, config = checkpoint.open_step(workdir, asked)
  checkpoints.close()
  if not workdirs.is_pretrained(workdir):
    workdir = workdir.resolve()
  listening = _listen(_HOST.value, _PORT.value)
  is_local = access.is_loopback(listening.getsockname()[0])
  token = _token(is_local)
  output = files.claim_output(_OUTPUT.value, _TOOL).resolve()
  limits = uploads.Limits(
    most_bytes=_MAX_UPLOAD_MB.value * 10**6,
    most_pixels=_MAX_MEGAPIXELS.value * 10**6,
    most_frames=_MAX_FRAMES.value,
    most_waiting=_MAX_WAITING.value,
    most_jobs=_MAX_JOBS.value,
  )
  kept = jobs.Jobs(output)
  worker = running.Worker(
    kept, functools.partial(running.steps, workdir, asked)
  )
  model = {'step': step, 'image_size_px': config['image_size_px']}
  page = serve_page.render(model, limits)
  site = routes.Site(kept, worker, limits, page)
  server = _Server(
    uvicorn.Config(
      site.app(is_local=is_local, token=token),
      log_config=None,
      access_log=False,
      server_header=False,
      proxy_headers=False,
      ws='none',
      lifespan='on',
      limit_concurrency=_MOST_CONNECTIONS,
      timeout_graceful_shutdown=_LAST_WORDS_S,
    )
  )
  command.say(
    [
      f'{_OUTPUT.value}: {_jobs(len(kept))}, {kept.num_waiting()} to do',
      f'open: {_address(listening, token)}',
    ]
  )
  sys.stdout.flush()
  interrupt = interrupts.Interrupt(second_ends=True)
  asyncio.run(_serve(server, site, listening, interrupt))
  raise errors.Unfinished(
    f'{_OUTPUT.value}: stopped by {signal.Signals(interrupt.number).name}; the '
    f'same command goes on with {_jobs(kept.num_waiting())}'
  )


if __name__ == '__main__':
  command.run(main)
