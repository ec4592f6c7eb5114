"""Videos to parts of the output folder, each video in one process."""

from concurrent import futures
import contextlib
import dataclasses
import hashlib
import json
import pathlib
import queue
import time
from typing import Any, Iterator, Mapping, Sequence

import ml_collections

from preprocessing import frames, parts, pool, video

# Where a stage begins and how much of a video's time it takes, for the bar.
_SHARES = {
  'frames': (0.0, 0.6),
  'chain': (0.6, 0.0),
  'pairs': (0.7, 0.0),
  'refinement': (0.75, 0.0),
  'records': (0.8, 0.2),
}
_REPORT_S = 0.5
_POLL_S = 0.2

_reports: Any = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Job:
  """One video to turn into a part of the output folder."""

  path: pathlib.Path
  output: pathlib.Path
  config: Mapping[str, Any]

  @property
  def video_id(self) -> str:
    """The file's stem."""
    return self.path.stem

  def fingerprint(self) -> str:
    """Digest of all that the part depends on: the config and the file."""
    digest = hashlib.sha256(json.dumps(self.config, sort_keys=True).encode())
    with open(self.path, 'rb') as file:
      digest.update(hashlib.file_digest(file, 'sha256').digest())
    return digest.hexdigest()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Outcome:
  """What became of a job.

  Attributes:
    video_id: of the job.
    error: why the video is unusable; '' where it was done.
    seconds: that it took; 0 where it had been done before.
  """

  video_id: str
  error: str
  seconds: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class Report:
  """How far a video is."""

  video_id: str
  stage: str
  share: float


def make_part(job: Job) -> Outcome:
  """Does a job, unless its part is there already."""
  start = time.monotonic()
  last = [0.0]

  def report(stage: str, share: float) -> None:
    now = time.monotonic()
    if _reports is not None and now - last[0] > _REPORT_S:
      last[0] = now
      begin, length = _SHARES[stage]
      _reports.put(
        Report(video_id=job.video_id, stage=stage, share=begin + share * length)
      )

  try:
    fingerprint = job.fingerprint()
  except OSError as error:
    return Outcome(
      video_id=job.video_id,
      error=f'{job.path}: cannot be read ({error.strerror})',
      seconds=0.0,
    )
  if parts.is_done(job.output, job.video_id, fingerprint):
    return Outcome(video_id=job.video_id, error='', seconds=0.0)
  try:
    result = video.process(
      job.path, ml_collections.ConfigDict(dict(job.config)), report
    )
    parts.write(
      job.output,
      job.video_id,
      records=result.records,
      summary=result.summary,
      dropped=result.dropped,
      fingerprint=fingerprint,
    )
  except frames.VideoError as error:
    return Outcome(video_id=job.video_id, error=str(error), seconds=0.0)
  return Outcome(
    video_id=job.video_id,
    error='',
    seconds=round(time.monotonic() - start, 2),
  )


def run(jobs: Sequence[Job], num_workers: int) -> Iterator[Report | Outcome]:
  """Does all jobs; yields reports as they come and one outcome per job."""
  reports = pool.CONTEXT.Queue()
  with pool.executor(
    min(num_workers or pool.num_cores(), len(jobs)), _report_to, reports
  ) as processes:
    waiting = {processes.submit(make_part, job) for job in jobs}
    try:
      while waiting:
        done, waiting = futures.wait(waiting, timeout=_POLL_S)
        with contextlib.suppress(queue.Empty):
          while True:
            yield reports.get_nowait()
        for future in done:
          yield future.result()
    finally:
      for future in waiting:
        future.cancel()


def _report_to(reports: Any) -> None:
  global _reports
  _reports = reports
