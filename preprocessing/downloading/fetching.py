"""One video with yt-dlp: attempts until it is whole, or why it is not."""

import dataclasses
import io
import itertools
import pathlib
import shutil
from typing import Any

from absl import logging
import av
import yt_dlp
from yt_dlp.extractor.generic import GenericIE
from yt_dlp.extractor.youtube import YoutubeIE

from preprocessing import ids
from preprocessing.downloading import failures, ledger, pacing, targets
from preprocessing.reading import decoding

EXTENSIONS = ('mp4', 'webm')
_MAX_BACKOFF_S = 600.0
_MAX_MISSING_S = 1.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
  """How to ask for a video.

  Attributes:
    url: address with {id} in it.
    max_height: in pixels.
    bytes_per_s: bandwidth of one connection; None: any.
    cookies: content of a file of cookies, or None.
    proxy: address, or None.
    retries: attempts after the first.
    backoff_s: wait before the second attempt; doubles with each.
    timeout_s: longest silence.
  """

  url: str
  max_height: int
  bytes_per_s: float | None
  cookies: str | None
  proxy: str | None
  retries: int
  backoff_s: float
  timeout_s: float


def options(settings: Settings) -> dict[str, Any]:
  """The options of yt-dlp that all videos have in common.

  The best stream of pictures alone that is not above `max_height`, else the
  best with sound; of several of one size, one that is no HDR. Retries are ours,
  so that all requests are paced.
  """
  kind = (
    f'[height<=?{settings.max_height}][protocol^=http]'
    f"[ext~='^({'|'.join(EXTENSIONS)})$']"
  )
  return {
    'format': f'bv{kind}/b{kind}',
    # As yt-dlp sorts by itself, but that it takes HDR before SDR; + turns that.
    'format_sort': ['lang', 'quality', 'res', '+hdr'],
    'noplaylist': True,
    'continuedl': True,
    'retries': 0,
    'extractor_retries': 0,
    'fragment_retries': 3,
    'skip_unavailable_fragments': False,
    'socket_timeout': settings.timeout_s,
    'ratelimit': settings.bytes_per_s,
    'proxy': settings.proxy,
    # A stream: yt-dlp writes the cookies back.
    'cookiefile': settings.cookies and io.StringIO(settings.cookies),
    'updatetime': False,
    'fixup': 'never',
    # Errors of any kind go to the log, and so to the ledger.
    'ignoreerrors': True,
    'quiet': True,
    'noprogress': True,
    'color': 'never',
  }


class Fetcher:
  """Gets videos, one per call, from several threads.

  Args:
    settings: how.
    staging: local folder; each video has a folder of its own in it.
    target: where whole files go.
    pacer: says when a request may begin, and when the run is to end.
  """

  def __init__(
    self,
    settings: Settings,
    *,
    staging: pathlib.Path,
    target: targets.Target,
    pacer: pacing.Pacer,
  ):
    self._settings = settings
    self._staging = staging
    self._target = target
    self._pacer = pacer

  def __call__(self, video_id: str) -> ledger.Outcome:
    """Gets one video, in as many attempts as it takes.

    Raises:
      errors.UserError: the disk or the target cannot be written.
      failures.Stopped: the run is being stopped.
    """
    folder = self._staging / ids.check(video_id)
    for attempt in itertools.count(1):
      self._pacer.wait()
      try:
        path = self._download(video_id, folder)
      except failures.Failure as failure:
        if self._is_last(attempt, failure):
          shutil.rmtree(folder, ignore_errors=True)
          row = failure.row(video_id, attempt)
          return ledger.Outcome(video_id=video_id, row=row)
        self._back_off(video_id, attempt, failure)
      else:
        size = path.stat().st_size
        self._target.move_in(path, path.name)
        shutil.rmtree(folder)
        return ledger.Outcome(video_id=video_id, bytes=size)

  def _is_last(self, attempt: int, failure: failures.Failure) -> bool:
    is_transient = failure.reason in failures.TRANSIENT
    return not is_transient or attempt > self._settings.retries

  def _back_off(
    self, video_id: str, attempt: int, failure: failures.Failure
  ) -> None:
    delay_s = self._settings.backoff_s * 2 ** (attempt - 1)
    delay_s = min(delay_s, _MAX_BACKOFF_S)
    logging.info('%s: %s; again in %g s', video_id, failure, delay_s)
    if failure.reason == failures.RATE_LIMITED:
      self._pacer.hold(delay_s)
    self._pacer.sleep(delay_s)

  def _download(self, video_id: str, folder: pathlib.Path) -> pathlib.Path:
    """One attempt; goes on with what an earlier one left in the folder."""
    listener = _Listener(video_id, self._pacer)
    params = {
      **options(self._settings),
      'paths': {'home': str(folder)},
      'outtmpl': {'default': f'{video_id}.%(ext)s'},
      'cachedir': str(self._staging / '.cache'),
      'logger': listener,
      'match_filter': listener.refuse,
      'progress_hooks': [listener.progress],
    }
    # Only these two: no page leads to any other site's code.
    with yt_dlp.YoutubeDL(params, auto_init=False) as client:
      client.add_info_extractor(YoutubeIE())
      client.add_info_extractor(GenericIE())
      info = client.extract_info(self._settings.url.replace('{id}', video_id))
    # None for an error, and without downloads for a page with no video.
    files = (info or {}).get('requested_downloads')
    if listener.refusal:
      raise listener.refusal
    if listener.errors or not files:
      message = ' '.join(listener.errors) or 'nothing came'
      raise failures.classify(video_id, message)
    path = pathlib.Path(files[0]['filepath'])
    try:
      _check_whole(path, listener.announced)
    except failures.Failure:
      # Nothing to go on with.
      path.unlink()
      raise
    return path


class _Listener:
  """Takes what yt-dlp says of one attempt, and refuses what is not wanted.

  Attributes:
    errors: its messages.
    refusal: why the video was refused, or None.
    announced: length in bytes, as the server said; 0 where it did not.
  """

  def __init__(self, video_id: str, pacer: pacing.Pacer):
    self._video_id = video_id
    self._pacer = pacer
    self.errors: list[str] = []
    self.refusal: failures.Failure | None = None
    self.announced = 0

  def debug(self, message: str) -> None:
    logging.debug('%s: %s', self._video_id, message)

  info = warning = debug

  def error(self, message: str) -> None:
    self.errors.append(message)

  def progress(self, status: dict[str, Any]) -> None:
    self._pacer.sleep(0)
    if status['status'] == 'downloading':
      self.announced = status.get('total_bytes') or 0

  def refuse(
    self, info: dict[str, Any], *, incomplete: bool = False
  ) -> str | None:
    """A word against what is not the video asked for, or not yet one."""
    live = info.get('live_status')
    if incomplete:
      return None
    if not info.get('direct') and info.get('id') != self._video_id:
      page = info.get('webpage_url')
      self.refusal = failures.Failure(failures.NO_VIDEO, f'leads to {page}')
    elif live in ('is_live', 'is_upcoming', 'post_live'):
      self.refusal = failures.Failure(failures.NOT_YET, live)
    return self.refusal and self.refusal.detail


def _check_whole(path: pathlib.Path, announced: int) -> None:
  """Raises Failure unless a file is a video with all its packets.

  Args:
    path: the file.
    announced: its length, as the server said; 0 where it did not.
  """
  size = path.stat().st_size
  if announced and size != announced:
    raise failures.Failure(failures.TRUNCATED, f'{size} of {announced} bytes')
  try:
    duration_s = decoding.probe(path).duration_s
    end_s = _end_s(path)
  except decoding.VideoError as error:
    detail = str(error).removeprefix(f'{path}: ')
    raise failures.Failure(failures.NO_VIDEO, detail) from error
  except av.error.FFmpegError as error:
    detail = f'{size} bytes; {error.strerror}'
    raise failures.Failure(failures.TRUNCATED, detail) from error
  if not end_s or end_s < duration_s - _MAX_MISSING_S:
    detail = f'ends at {end_s:.2f} s of {duration_s:.2f} s'
    raise failures.Failure(failures.TRUNCATED, detail)


def _end_s(path: pathlib.Path) -> float:
  """Where the last packet that is whole ends, from the first one on."""
  with decoding.open_video(path) as container:
    stream = decoding.video_stream(container)
    spans = [
      (packet.pts, packet.pts + (packet.duration or 0))
      for packet in container.demux(stream)
      if packet.pts is not None and not packet.is_corrupt
    ]
    if not spans:
      return 0.0
    first, last = min(spans)[0], max(end for _, end in spans)
    return float((last - first) * stream.time_base)
