"""Ids of videos -> video files, with yt-dlp.

    python -m preprocessing.download --ids=FILE --output=DIR_OR_URL

FILE is the metadata of 360-1M (parquet with a column `id`) or a text file with
one id per line. Writes into the output

    ID.mp4 or ID.webm  the videos, without sound
    ledger.jsonl       one row for each that could not be had, with the reason
    download.json      figures

The output is a folder or any address that fsspec knows, such as gs://BUCKET/DIR
or s3://BUCKET/DIR. A file gets its name only when it is whole: as long as was
announced, and with its last packet in it. What is there is not asked for
again; what failed is, unless its reason will not go away. Partial files stay in
the staging folder when a run is stopped, and the next run goes on with them.
One run at a time per output; of an address, one of each machine.

YouTube offers few formats to a client without a JavaScript runtime: yt-dlp
uses deno where it is installed.
"""

import sys

# As a file it finds none of the packages below.
if __name__ == '__main__' and not __package__:
  sys.stderr.write('error: type: python -m preprocessing.download\n')
  sys.exit(2)

from concurrent import futures
import contextlib
import io
import itertools
import json
import os
import pathlib
import shutil
import threading
from typing import Any, Callable, Iterator, Sequence

from absl import flags, logging
from yt_dlp.cookies import YoutubeDLCookieJar

from odin_jax.shared import command, errors, files, progress
from preprocessing import ids
from preprocessing.downloading import (
  failures,
  fetching,
  ledger,
  pacing,
  targets,
)

_IDS = command.define_path(
  'ids', 'List of ids: parquet with a column id, or a text file.'
)
_OUTPUT = command.define_output(
  'Folder or address to write', may_be_address=True
)
_EXCLUDE_IDS = command.define_exclude_ids()
_URL = flags.DEFINE_string(
  'url',
  'https://www.youtube.com/watch?v={id}',
  'Where the videos are; {id} stands for the id.',
)
_STAGING = command.define_path(
  'staging',
  'Folder for files that are not whole; by default OUTPUT/.staging, or for '
  "an address a folder in the system's temporary folder.",
)
_MAX_HEIGHT = flags.DEFINE_integer(
  'max_height', 2048, 'Largest height of a video, in pixels.', 1
)
_NUM_WORKERS = flags.DEFINE_integer(
  'num_workers', 4, 'Videos at a time; so many files are staged at most.', 1
)
_RATE_LIMIT_MB_S = flags.DEFINE_float(
  'rate_limit_mb_s', 0.0, 'Bandwidth of all together, in 1e6 B/s; 0: any.', 0
)
# https://github.com/yt-dlp/yt-dlp-wiki/pull/52: YouTube answers about 300
# videos per hour and session.
_REQUESTS_PER_MINUTE = flags.DEFINE_float(
  'requests_per_minute', 5.0, 'Videos begun per minute; 0: any number.', 0
)
_COOKIES = command.define_path(
  'cookies', "Cookies in Netscape's format; the file is only read."
)
_PROXY = flags.DEFINE_string('proxy', None, 'Address of a proxy.')
_RETRIES = flags.DEFINE_integer(
  'retries', 5, 'Further attempts where the network may be at fault.', 0
)
_BACKOFF_S = flags.DEFINE_float(
  'backoff_s', 5.0, 'Wait before the first of them; it then doubles.', 0
)
_TIMEOUT_S = flags.DEFINE_float(
  'timeout_s', 30.0, 'Longest silence of a connection.', 0.1
)
_RETRY_PERMANENT = flags.DEFINE_bool(
  'retry_permanent', False, 'Ask again for videos that are gone or private.'
)
_MAX_IN_A_ROW = flags.DEFINE_integer(
  'max_in_a_row', 50, 'Stop after so many failures of the network.', 1
)
_LIMIT = flags.DEFINE_integer(
  'limit', 0, 'Only the first so many ids; 0: all.', 0
)


def get_all(
  video_ids: Sequence[str],
  fetch: Callable[[str], ledger.Outcome],
  num_workers: int,
  stop: threading.Event,
) -> Iterator[ledger.Outcome]:
  """Gets all videos, some at a time; yields what became of each, as it ends."""
  waiting = iter(video_ids)
  running: set[futures.Future[ledger.Outcome]] = set()
  with (
    futures.ThreadPoolExecutor(num_workers) as pool,
    progress.bar(len(video_ids), 'video', disable=not video_ids) as bar,
  ):
    try:
      # No more are handed out than can run: there may be millions.
      while True:
        for video_id in itertools.islice(waiting, num_workers - len(running)):
          running.add(pool.submit(fetch, video_id))
        if not running:
          return
        done, running = futures.wait(
          running, return_when=futures.FIRST_COMPLETED
        )
        for future in done:
          bar.update()
          yield future.result()
    finally:
      stop.set()


def _read_settings() -> fetching.Settings:
  url = _URL.value
  if '{id}' not in url or not url.startswith(('https://', 'http://')):
    raise errors.UserError(
      f'--url={url}: give an address of http or https with {{id}} in it'
    )
  rate = _RATE_LIMIT_MB_S.value * 1e6 / _NUM_WORKERS.value
  return fetching.Settings(
    url=url,
    max_height=_MAX_HEIGHT.value,
    bytes_per_s=rate or None,
    cookies=_COOKIES.value and _read_cookies(_COOKIES.value),
    proxy=_PROXY.value,
    retries=_RETRIES.value,
    backoff_s=_BACKOFF_S.value,
    timeout_s=_TIMEOUT_S.value,
  )


def _read_cookies(path: str) -> str:
  try:
    text = files.require_file(path, 'cookies').read_text()
    YoutubeDLCookieJar(io.StringIO(text)).load()
  except (OSError, UnicodeDecodeError) as error:
    raise errors.UserError(
      f"{path}: no cookies in Netscape's format; export them again"
    ) from error
  return text


def _resume_first(pending: Sequence[str], staging: pathlib.Path) -> list[str]:
  """The videos in their order, but those first of which a part is here.

  So there are never more files staged than there are workers. Parts of videos
  that are not wanted any more are removed.
  """
  begun = {
    entry.name for entry in staging.iterdir() if not entry.name.startswith('.')
  }
  for name in begun.difference(pending):
    shutil.rmtree(staging / name)
  return sorted(pending, key=lambda video_id: video_id not in begun)


def _plan(
  listed: ids.IdList,
  excluded: frozenset[str],
  present: set[str],
  book: ledger.Ledger,
) -> tuple[list[str], dict[str, int]]:
  """Which videos to ask for, in order, and figures of all others.

  Rows of what is in the list but not to be asked for go to the ledger.
  """
  unusable = failures.Failure('invalid id', 'no YouTube id')
  for text in listed.invalid:
    name = text[: failures.MAX_DETAIL]
    book.rows[name] = unusable.row(name, 0)
  for video_id in excluded.intersection(listed.valid):
    book.rows[video_id] = {
      'video_id': video_id,
      'stage': 'request',
      'reason': 'excluded',
    }
  for video_id in present - excluded:
    book.rows.pop(video_id, None)
  selected = [name for name in listed.valid if name not in excluded]
  selected = selected[: _LIMIT.value or None]
  missing = [name for name in selected if name not in present]
  pending = [
    name
    for name in missing
    if _RETRY_PERMANENT.value or not book.is_permanent(name)
  ]
  return pending, {
    'listed': len(listed.valid),
    'invalid': len(listed.invalid),
    'excluded': len(excluded.intersection(listed.valid)),
    'wanted': len(selected),
    'there_before': len(selected) - len(missing),
    'given_up_before': len(missing) - len(pending),
  }


def _finish(figures: dict[str, Any]) -> None:
  made = (
    f'{figures["downloaded"]} videos ({figures["bytes"] / 1e6:.1f} MB) came '
    f'to {figures["there_before"]} that were there'
  )
  if failed := sum(figures['failed'].values()):
    made += f'; {failed} failed, see {_OUTPUT.value}/{ledger.NAME}'
  given = {
    'input': _OUTPUT.value,
    'output': command.beside(_OUTPUT.value, 'records'),
  }
  then = None
  if '://' not in _OUTPUT.value:
    then = ('make records of them', 'preprocessing.run', given)
  command.finish(_OUTPUT.value, made, then=then)


def main() -> None:
  """Reads the flags and gets the videos."""
  for name, flag in (('ids', _IDS), ('output', _OUTPUT)):
    if not flag.value:
      raise errors.UserError(f'--{name} is missing; see --help')
  stopwatch = command.Stopwatch()
  settings = _read_settings()
  listed = ids.read_ids(_IDS.value)
  excluded = ids.read_excluded(_EXCLUDE_IDS.value)
  target = targets.open_target(_OUTPUT.value)
  staging = targets.claim_staging(target, _STAGING.value)
  names = target.names()
  present = {
    stem
    for stem, suffix in map(os.path.splitext, names)
    if suffix[1:] in fetching.EXTENSIONS
  }
  for video_id in sorted(present & excluded):
    logging.warning('%s is excluded, but is here already', video_id)
  book = ledger.Ledger(target, names, _MAX_IN_A_ROW.value)
  pending, figures = _plan(listed, excluded, present, book)
  stop = threading.Event()
  fetcher = fetching.Fetcher(
    settings,
    staging=staging,
    target=target,
    pacer=pacing.Pacer(_REQUESTS_PER_MINUTE.value, stop),
  )
  pending = _resume_first(pending, staging)
  outcomes = get_all(pending, fetcher, _NUM_WORKERS.value, stop)
  try:
    with contextlib.closing(outcomes):
      for outcome in outcomes:
        book.add(outcome)
  finally:
    book.save()
  figures |= {
    'downloaded': book.downloaded,
    'failed': dict(sorted(book.failed.items())),
    'bytes': book.bytes,
    **stopwatch.figures(),
  }
  target.write('download.json', json.dumps(figures, indent=2) + '\n')
  if not (figures['there_before'] or book.downloaded):
    raise errors.UserError(
      f'{_IDS.value}: none of its videos could be had ({figures}); '
      f'the reasons are in {_OUTPUT.value}/{ledger.NAME}'
    )
  _finish(figures)


if __name__ == '__main__':
  command.run(main)
