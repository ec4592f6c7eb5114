"""What somebody sends -> a file that is known to be an image."""

import asyncio
import contextlib
import dataclasses
import json
import pathlib
import re
import sys
from typing import Any, AsyncIterable, Awaitable, Callable

from odin_jax.serving import host_paths
from odin_jax.serving.settings import Settings
from odin_jax.shared import config_files, errors

# Of a file, with a place for its thumbnail and the most pixels: facts, see
# `check`.
Check = Callable[
  [pathlib.Path, pathlib.Path, Settings, int], Awaitable[dict[str, Any]]
]
# An image that takes longer to send, or to read.
_MOST_SEND_S = 600.0
_MOST_CHECK_S = 60.0
_MOST_NAME = 80
_SUFFIXES = re.compile(
  r'\.(avif|bmp|gif|jp2|jpe?g|png|ppm|tiff?|webp)', re.IGNORECASE
)


class TooLargeError(errors.UserError):
  """It has more bytes than are taken."""


def too_large(most_bytes: int) -> TooLargeError:
  """What to tell of an image of more bytes than that."""
  return TooLargeError(
    f'the image has more than {most_bytes / 1e6:g} MB, which is the limit of '
    'this server; reduce it first'
  )


@dataclasses.dataclass(frozen=True)
class Limits:
  """What one person may ask for.

  Attributes:
    most_bytes: of an image.
    most_pixels: of it.
    most_frames: of a job.
    most_waiting: jobs that wait or run.
    most_jobs: jobs that are kept.
  """

  most_bytes: int
  most_pixels: int
  most_frames: int
  most_waiting: int
  most_jobs: int


def safe_name(name: str) -> str:
  """The last part of a name that somebody gave, short, letters that are seen."""
  last = re.split(r'[/\\]', name)[-1]
  letters = ''.join(letter for letter in last if letter.isprintable())
  return letters.strip().lstrip('.')[-_MOST_NAME:] or 'image'


def file_name(name: str) -> str:
  """What its file is called here, of letters that nobody else chose."""
  suffix = pathlib.PurePath(name).suffix.lower()
  return f'input{suffix if _SUFFIXES.fullmatch(suffix) else ""}'


async def receive(
  chunks: AsyncIterable[bytes], path: pathlib.Path, most_bytes: int
) -> None:
  """Writes what comes to a file.

  Raises:
    TooLargeError: it is too large; no more of it was read than that.
    errors.UserError: nothing came, or it took too long.
  """
  size = 0
  try:
    async with asyncio.timeout(_MOST_SEND_S):
      with open(path, 'wb') as file:
        async for chunk in chunks:
          size += len(chunk)
          if size > most_bytes:
            raise too_large(most_bytes)
          file.write(chunk)
  except TimeoutError as error:
    raise errors.UserError('the image took too long to come') from error
  if not size:
    raise errors.UserError('the image is empty; send a JPEG or PNG file')


async def check(
  path: pathlib.Path,
  thumbnail: pathlib.Path,
  settings: Settings,
  most_pixels: int,
) -> dict[str, Any]:
  """Facts of an image, see `odin_jax.serving.image_check`.

  Raises:
    errors.UserError: it is none that can be used.
  """
  process = await asyncio.create_subprocess_exec(
    sys.executable,
    '-P',
    '-m',
    'odin_jax.serving.image_check',
    str(path),
    str(thumbnail),
    str(most_pixels),
    json.dumps(settings.panorama),
    json.dumps(settings.fov_deg),
    cwd=config_files.REPOSITORY,
    env=config_files.environment(),
    stdin=asyncio.subprocess.DEVNULL,
    stdout=asyncio.subprocess.PIPE,
    stderr=asyncio.subprocess.PIPE,
    start_new_session=True,
  )
  try:
    async with asyncio.timeout(_MOST_CHECK_S):
      out, told = await process.communicate()
  except TimeoutError as error:
    raise errors.UserError(
      f'the image took more than {_MOST_CHECK_S:g} s to read; export it as '
      'JPEG or PNG'
    ) from error
  finally:
    with contextlib.suppress(ProcessLookupError):
      process.kill()
  if process.returncode == 0:
    return json.loads(out)
  lines = told.decode(errors='replace').strip().splitlines()
  if process.returncode == errors.UserError.exit_status and lines:
    raise errors.UserError(host_paths.cut(lines[-1], path.parent))
  raise errors.UserError(
    'the image cannot be read: it is damaged, or takes more memory than there '
    'is; export it again as JPEG or PNG, or reduce it'
  )
