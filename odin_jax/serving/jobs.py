"""Jobs and their files: what a person asked for, and what came of it.

Every job has a folder, `jobs/ID`, and all that is known of it stands in its
`job.json`, written in one piece at every change, so that a server that starts
again knows what there is to do:

  image       what was given, checked to be an image
  thumbnail   of it, a small JPEG
  views/      output of odin_jax.generate
  scene/      output of odin_jax.reconstruct
  log.txt     what the command that ran last wrote to stderr
"""

import asyncio
import dataclasses
import json
import pathlib
import re
import secrets
import shutil
from typing import Any

from absl import logging

from odin_jax.serving.settings import Settings
from odin_jax.shared import files

JOB = 'job.json'
THUMBNAIL = 'thumbnail.jpg'
VIEWS, SCENE = 'views', 'scene'
FRAMES = f'{VIEWS}/frames'
QUEUED, RUNNING = 'queued', 'running'
DONE, FAILED, CANCELLED = 'done', 'failed', 'cancelled'
_STATUSES = (QUEUED, RUNNING, DONE, FAILED, CANCELLED)
# How names of folders begin that are not jobs yet.
_NEW = '.new-'
_ID = re.compile('[0-9a-f]{16}')


@dataclasses.dataclass(kw_only=True)
class Job:
  """One image and a path, on the way to a scene.

  Attributes:
    id: names its folder and its address; not to be guessed.
    number: counts the jobs of this output, in the order of the queue.
    name: of the file that was given, for people.
    image: name of the file that it is here.
    facts: of the image: `width`, `height`, `fov_deg`, `fov_from`,
      `is_panorama`.
    settings: what is asked for.
    status: one of `queued`, `running`, `done`, `failed`, `cancelled`.
    steps_done: of `views` and `scene`.
    message: why it failed; None unless it did.
    notes: what its steps warned of.
    seconds: that its steps took, those that are done.
    process: that runs for it (`odin_jax.shared.locks.Holder`); None: none does.
  """

  id: str
  number: int
  name: str
  image: str
  facts: dict[str, Any]
  settings: Settings
  status: str = QUEUED
  steps_done: list[str] = dataclasses.field(default_factory=list)
  message: str | None = None
  notes: list[str] = dataclasses.field(default_factory=list)
  seconds: dict[str, float] = dataclasses.field(default_factory=dict)
  process: dict[str, Any] | None = None

  @property
  def is_over(self) -> bool:
    """Whether nothing more is to happen to it."""
    return self.status not in (QUEUED, RUNNING)


@dataclasses.dataclass
class Progress:
  """Of a job, as people see it; not kept.

  Attributes:
    step: that is running, such as `views`.
    done: units of it, such as `view 5 of 16`.
    frames: names of the views that there are.
    revision: grows with every change of the job.
  """

  step: str | None = None
  done: str | None = None
  frames: list[str] = dataclasses.field(default_factory=list)
  revision: int = 0


class Jobs:
  """All jobs of an output folder, in the event loop of one process.

  Those that ran when the server ended are queued again.

  Args:
    output: the folder, which this process holds.

  Attributes:
    revision: grows with every change.
  """

  def __init__(self, output: pathlib.Path):
    self._folder = output / 'jobs'
    self._folder.mkdir(exist_ok=True)
    self._jobs: dict[str, Job] = {}
    self._progress: dict[str, Progress] = {}
    self.revision = 0
    self._changed = asyncio.Event()
    for folder in sorted(self._folder.iterdir()):
      if folder.name.startswith(_NEW):
        # An upload that did not come to its end.
        shutil.rmtree(folder)
      elif _ID.fullmatch(folder.name) and folder.is_dir():
        self._load(folder)

  def _load(self, folder: pathlib.Path) -> None:
    try:
      job = _from_json(files.read_json(folder / JOB, 'a job'))
      if job.id != folder.name:
        raise ValueError(f'is of job {job.id}')
    except Exception as error:  # noqa: BLE001
      # Of a person's own making: all others go on, this one is left alone.
      logging.warning('%s: is no job, and passed over: %s', folder, error)
      return
    if job.status == RUNNING:
      job.status = QUEUED
    self._jobs[job.id] = job
    self._progress[job.id] = Progress(frames=self._frames(job))
    self._revised(job)

  def __len__(self) -> int:
    return len(self._jobs)

  def all(self) -> list[Job]:
    """All jobs, the oldest first."""
    return sorted(self._jobs.values(), key=lambda job: job.number)

  def get(self, job_id: str) -> Job | None:
    """The job of that id."""
    return self._jobs.get(job_id)

  def folder(self, job: Job) -> pathlib.Path:
    """Where its files are."""
    return self._folder / job.id

  def progress(self, job: Job) -> Progress:
    """How far it is; for reading alone."""
    return self._progress[job.id]

  def num_waiting(self) -> int:
    """How many have not ended."""
    return sum(not job.is_over for job in self._jobs.values())

  def next_queued(self) -> Job | None:
    """The one that is first in the queue."""
    return next((job for job in self.all() if job.status == QUEUED), None)

  # -- Changes -----------------------------------------------------------------

  def new_folder(self) -> pathlib.Path:
    """A folder for what may become a job; whoever asks for it removes it."""
    folder = self._folder / f'{_NEW}{secrets.token_hex(8)}'
    folder.mkdir()
    return folder

  def add(
    self,
    folder: pathlib.Path,
    *,
    name: str,
    image: str,
    facts: dict[str, Any],
    settings: Settings,
  ) -> Job:
    """Makes a job of a folder from `new_folder`, and queues it."""
    job = Job(
      id=folder.name.removeprefix(_NEW),
      number=1 + max((job.number for job in self._jobs.values()), default=0),
      name=name,
      image=image,
      facts=facts,
      settings=settings,
    )
    _write(folder, job)
    folder.rename(self._folder / job.id)
    self._jobs[job.id] = job
    self._progress[job.id] = Progress()
    self._revised(job)
    return job

  def save(self, job: Job) -> None:
    """Keeps what was changed of a job, and tells those who watch."""
    _write(self.folder(job), job)
    self._revised(job)

  def show(self, job: Job, step: str | None, done: str | None) -> None:
    """Sets how far a job is; those who watch are told where that is new."""
    progress = self._progress[job.id]
    now = Progress(step, done, self._frames(job), progress.revision)
    if now != progress:
      self._progress[job.id] = now
      self._revised(job)

  def remove(self, job: Job) -> None:
    """Deletes a job that is over, with all of its files."""
    # First what makes it one, so that half of it is none.
    (self.folder(job) / JOB).unlink(missing_ok=True)
    del self._jobs[job.id], self._progress[job.id]
    self._tell()
    shutil.rmtree(self.folder(job), ignore_errors=True)

  def _revised(self, job: Job) -> None:
    self._tell()
    self._progress[job.id].revision = self.revision

  def _tell(self) -> None:
    self.revision += 1
    self.wake()

  def wake(self) -> None:
    """Lets all go on that wait for a change."""
    self._changed.set()
    self._changed = asyncio.Event()

  async def changed(self, since: int, timeout_s: float) -> None:
    """Waits until any job has changed, or so long.

    Args:
      since: the revision that is known.
      timeout_s: seconds.
    """
    if self.revision != since:
      return
    try:
      await asyncio.wait_for(self._changed.wait(), timeout_s)
    except TimeoutError:
      return

  # -- What people see -----------------------------------------------------------

  def _frames(self, job: Job) -> list[str]:
    found = (self.folder(job) / FRAMES).glob('[0-9]*.png')
    return sorted(path.name for path in found)

  def public(self, job: Job) -> dict[str, Any]:
    """What the page shows of a job."""
    progress, folder = self._progress[job.id], self.folder(job)
    return {
      'id': job.id,
      'number': job.number,
      'name': job.name,
      'facts': job.facts,
      'settings': dataclasses.asdict(job.settings),
      'status': job.status,
      'ahead': sum(
        not other.is_over and other.number < job.number
        for other in self._jobs.values()
      ),
      'message': job.message,
      'notes': job.notes,
      'seconds': job.seconds,
      'step': progress.step,
      'done': progress.done,
      'frames': progress.frames,
      'has_video': VIEWS in job.steps_done
      and (folder / VIEWS / 'video.mp4').is_file(),
      'has_scene': SCENE in job.steps_done
      and (folder / SCENE / 'index.html').is_file(),
    }


def _write(folder: pathlib.Path, job: Job) -> None:
  files.write_json(folder / JOB, dataclasses.asdict(job))


def _from_json(content: dict[str, Any]) -> Job:
  settings = content['settings']
  line = tuple(tuple(corner) for corner in settings['line'])
  job = Job(**{**content, 'settings': Settings(**{**settings, 'line': line})})
  if job.status not in _STATUSES or not isinstance(job.number, int):
    raise ValueError(f'status {job.status!r}, number {job.number!r}')
  # It has to be told to others.
  json.dumps(dataclasses.asdict(job), allow_nan=False)
  return job
