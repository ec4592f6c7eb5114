"""Videos to parts of the output folder, each video in one process."""

import dataclasses
import errno
import hashlib
import json
import pathlib
import time
import traceback
from typing import Callable, Iterable, Iterator

from absl import logging

from odin_jax.shared import errors, panorama_schema, schema
from preprocessing import matchers, settings, video
from preprocessing.keyframes import keyframes
from preprocessing.reading import frames
from preprocessing.running import pool
from preprocessing.writing import parts

# Where a phase begins and how much of a video's time it takes, for the bar.
_SHARES = {
  'frames': (0.0, 0.6),
  'initialization': (0.6, 0.0),
  'pairs': (0.7, 0.0),
  'loops': (0.72, 0.0),
  'refinement': (0.75, 0.0),
  'records': (0.8, 0.2),
}
_REPORT_S = 0.5
# The output folder takes no more; the next video would meet the same.
_OUTPUT_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)
MAX_ATTEMPTS = 3


@dataclasses.dataclass(frozen=True, kw_only=True)
class Job:
  """One video to turn into a part of the output folder."""

  path: pathlib.Path
  output: pathlib.Path
  settings: settings.Settings

  @property
  def video_id(self) -> str:
    """The file's stem."""
    return self.path.stem

  def fingerprint(self) -> str:
    """Digest of all that the part depends on: schema, config and file."""
    # With the features: parts of which only some have one do not go together.
    schema_of_part = [schema.SCHEMA_VERSION, sorted(schema.FEATURES)]
    if self.settings.panorama_records:
      schema_of_part.append(sorted(panorama_schema.FEATURES))
    values = self.settings.part_values()
    text = json.dumps([schema_of_part, values], sort_keys=True)
    digest = hashlib.sha256(text.encode())
    with open(self.path, 'rb') as file:
      digest.update(hashlib.file_digest(file, 'sha256').digest())
    return digest.hexdigest()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Outcome:
  """What became of a job.

  Attributes:
    video_id: of the job.
    error: why there are no records of the video; '' where it was done.
    seconds: that it took; 0 where it had been done before.
  """

  video_id: str
  error: str = ''
  seconds: float = 0.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Report:
  """How far a video is."""

  video_id: str
  phase: str
  share: float


class Fault(Exception):
  """The machinery failed, not the video: another attempt may succeed."""


def run(
  jobs: Iterable[Job], num_workers: int, max_attempts: int = MAX_ATTEMPTS
) -> Iterator[Report | Outcome]:
  """Does all jobs; yields reports as they come and one outcome per job.

  Args:
    jobs: taken as there are processes for them.
    num_workers: videos at a time, each in a process; 0: as many as cores.
    max_attempts: how often a video may take its process down with it.

  Raises:
    errors.UserError: no video can be done, such as when the disk is full.
  """
  return pool.each(
    make_part,
    jobs,
    num_workers=num_workers,
    max_attempts=max_attempts,
    lost=give_up,
  )


def give_up(job: Job, reason: str) -> Outcome:
  """The outcome of a job that no attempt could finish."""
  parts.remove(job.output, {job.video_id})
  return Outcome(video_id=job.video_id, error=f'{job.path}: {reason}')


def make_part(
  job: Job,
  tell: Callable[[Report], None],
  *,
  matcher: matchers.Matcher | None = None,
  folder: pathlib.Path | None = None,
) -> Outcome:
  """Does a job, unless its part is there already.

  Args:
    job: the video and where its part belongs.
    tell: called with reports.
    matcher: in place of the one that the config names.
    folder: written to in place of the job's output folder.

  Raises:
    errors.UserError: the output folder takes no more, or the config asks for
      what is not there.
    Fault: the machinery around the job failed.
  """
  start = time.monotonic()
  try:
    is_new = _make_part(job, _Progress(job.video_id, tell), matcher, folder)
  except frames.VideoError as error:
    return Outcome(video_id=job.video_id, error=str(error))
  except (errors.UserError, Fault):
    raise
  except Exception as error:
    if pool.is_ending():
      raise SystemExit(1) from error
    # What one video of many meets must not cost the others their records.
    if isinstance(error, OSError) and error.errno in _OUTPUT_ERRORS:
      raise errors.UserError(
        f'{job.output}: {error.strerror}; make room, then run again'
      ) from error
    if isinstance(error, OSError) and error.errno == errno.ENAMETOOLONG:
      # File systems differ in what they take.
      message = f'{job.path}: its name is too long for {job.output}; shorten it'
      return Outcome(video_id=job.video_id, error=message)
    logging.exception('%s', job.path)
    reason = traceback.format_exception_only(error)[-1].strip()
    return Outcome(video_id=job.video_id, error=f'{job.path}: {reason}')
  seconds = round(time.monotonic() - start, 2) if is_new else 0.0
  return Outcome(video_id=job.video_id, seconds=seconds)


def _make_part(
  job: Job,
  progress: keyframes.Progress,
  matcher: matchers.Matcher | None,
  folder: pathlib.Path | None,
) -> bool:
  """Whether the part had to be made."""
  try:
    fingerprint = job.fingerprint()
  except OSError as error:
    raise frames.VideoError(
      f'{job.path}: cannot be read ({error.strerror})'
    ) from error
  path = job.output / 'cameras' / job.video_id / 'path.json'
  folders = [job.output]
  if job.settings.panorama_records:
    folders.append(job.output / panorama_schema.FOLDER)
  if path.is_file() and all(
    parts.is_done(folder, job.video_id, fingerprint) for folder in folders
  ):
    return False
  # Nothing of another config stays beside what this one makes.
  parts.remove(job.output, {job.video_id})
  result = video.process(job.path, job.settings, progress, matcher)
  result.write(folder or job.output, fingerprint)
  return True


class _Progress:
  """Tells how far a video is, now and then."""

  def __init__(self, video_id: str, tell: Callable[[Report], None]):
    self._video_id = video_id
    self._tell = tell
    self._last = 0.0

  def __call__(self, phase: str, share: float) -> None:
    begin, length = _SHARES[phase]
    now = time.monotonic()
    if now - self._last > _REPORT_S:
      self._last = now
      self._tell(
        Report(
          video_id=self._video_id, phase=phase, share=begin + share * length
        )
      )
