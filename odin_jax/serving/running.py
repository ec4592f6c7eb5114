"""Runs jobs, one at a time, as the commands that people type.

Each step of a job is a process in the job's folder, with relative paths alone,
so that what it writes tells nothing of this machine. What it says goes to a
file, and this module looks at that and at the views that appear. A process that
outlived its server is ended before its job runs again.
"""

import asyncio
import dataclasses
import os
import pathlib
import re
import signal
import sys
import time
from typing import Any, Awaitable, Callable, NamedTuple

from absl import logging

from odin_jax.geometry import trajectory
from odin_jax.serving import host_paths, settings
from odin_jax.serving.jobs import (
  CANCELLED,
  DONE,
  FAILED,
  RUNNING,
  SCENE,
  VIEWS,
  Job,
  Jobs,
)
from odin_jax.shared import config_files, errors, files, locks, progress

LOG = 'log.txt'
_LINE = 'line.json'
_MODEL = 'model'
_LOOK_EVERY_S = 0.2
# A process that is asked to end has so long; one that compiles does not listen.
_PATIENCE_S = 3.0
_LOG_BYTES = 1 << 16
_PROGRESS = re.compile(r'^\w+: (\w+ [\d.]+ of \d+) \(', re.MULTILINE)
_ERROR, _WARNING = 'error: ', 'warning: '
_MOST_NOTES = 5


class Step(NamedTuple):
  """One command of a job.

  Attributes:
    name: of the folder that it makes.
    command: line, run in the job's folder.
  """

  name: str
  command: list[str]


# A job, its folder -> its steps.
# Of those that are imagined.
_VIEWS_AT_ONCE = 4
Steps = Callable[[Job, pathlib.Path], list[Step]]


def steps(
  workdir: pathlib.Path,
  checkpoint_step: int | None,
  job: Job,
  folder: pathlib.Path,
) -> list[Step]:
  """The commands of a job; writes what they read beside its image.

  Args:
    workdir: of the model, absolute, or the word `pretrained`.
    checkpoint_step: of its checkpoint; None: the newest.
    job: to run.
    folder: of it.
  """
  wanted = job.settings
  model = str(workdir)
  if workdir.is_absolute():
    # By a name that tells nothing.
    model = _MODEL
    (folder / model).unlink(missing_ok=True)
    (folder / model).symlink_to(workdir)
  generate = [
    f'--workdir={model}',
    f'--image={job.image}',
    f'--output={VIEWS}',
    f'--seed={wanted.seed}',
    # They are written as they are made, and somebody waits.
    f'--batch_size={_VIEWS_AT_ONCE}',
  ]
  if checkpoint_step is not None:
    generate += [f'--step={checkpoint_step}']
  if wanted.panorama is not None:
    generate += [f'--panorama={wanted.panorama}']
  if wanted.fov_deg is not None:
    generate += [f'--fov_deg={wanted.fov_deg!r}']
  if wanted.trajectory == settings.DRAWN:
    frames = settings.camera2scene(wanted)
    poses = [{'camera2scene': pose.ravel().tolist()} for pose in frames]
    files.write_json(folder / _LINE, {'frames': poses})
    generate += [f'--trajectory={_LINE}']
  else:
    generate += [
      f'--trajectory={wanted.trajectory}',
      f'--num_frames={wanted.num_frames}',
    ]
    if wanted.trajectory not in trajectory.STEPLESS:
      generate += [f'--step_length={wanted.step_length!r}']
  return [
    Step(VIEWS, _python('odin_jax.generate', *generate)),
    Step(
      SCENE,
      _python('odin_jax.reconstruct', f'--views={VIEWS}', f'--output={SCENE}'),
    ),
  ]


def _python(module: str, *arguments: str) -> list[str]:
  # -P: nothing is imported from the job's folder.
  return [sys.executable, '-P', '-m', module, *arguments]


class Worker:
  """Takes jobs from the queue.

  Args:
    jobs: with the queue.
    steps_of: their commands.
  """

  def __init__(self, jobs: Jobs, steps_of: Steps):
    self._jobs, self._steps_of = jobs, steps_of
    self._is_closing = False
    self._cancelled: set[str] = set()

  async def run(self) -> None:
    """Works until `close`."""
    while not self._is_closing:
      job = self._jobs.next_queued()
      if job:
        try:
          await self._work(job)
        except OSError:
          # The disk is full: what could not be kept is in memory still.
          logging.exception('job %d', job.number)
      else:
        await self._jobs.changed(self._jobs.revision, _LOOK_EVERY_S)

  def close(self) -> None:
    """Lets `run` end; the job that runs is stopped, and kept to go on."""
    self._is_closing = True

  async def cancel(self, job: Job) -> None:
    """Ends a job that waits or runs; returns when it has ended."""
    if job.status == RUNNING:
      self._cancelled.add(job.id)
      while job.status == RUNNING and not self._is_closing:
        await self._jobs.changed(self._jobs.revision, _LOOK_EVERY_S)
    elif not job.is_over:
      job.status = CANCELLED
      self._jobs.save(job)

  async def _work(self, job: Job) -> None:
    logging.info(
      'job %d: %s, %s', job.number, job.name, job.settings.trajectory
    )
    job.status, job.message = RUNNING, None
    try:
      await _end_orphan(job)
      self._jobs.save(job)
      status, message = await self._do_steps(job)
    except errors.UserError as error:
      status, message = FAILED, host_paths.cut(str(error))
    except Exception as error:  # noqa: BLE001
      # One job must not end the server; what went wrong is told there.
      logging.exception('job %d', job.number)
      status, message = FAILED, f'the server met {type(error).__name__}'
    self._cancelled.discard(job.id)
    job.process = None
    if self._is_closing and status == RUNNING:
      # It goes on when the server starts again.
      self._jobs.save(job)
      return
    job.status, job.message = status, message
    self._jobs.show(job, None, None)
    self._jobs.save(job)
    logging.info('job %d: %s', job.number, message or status)

  async def _do_steps(self, job: Job) -> tuple[str, str | None]:
    """The status that the job ends with, and why."""
    folder = self._jobs.folder(job)
    for step in self._steps_of(job, folder):
      if step.name in job.steps_done:
        continue
      start = time.monotonic()
      ended = await self._run(job, folder, step)
      if job.id in self._cancelled:
        return CANCELLED, None
      if ended is None:
        return RUNNING, None
      if ended:
        return FAILED, _reason(folder, step, ended)
      await asyncio.to_thread(_cut_host_paths, folder / step.name)
      job.notes = [*job.notes, *_notes(folder)][:_MOST_NOTES]
      job.seconds[step.name] = round(time.monotonic() - start, 1)
      job.steps_done.append(step.name)
      self._jobs.save(job)
    return DONE, None

  async def _run(
    self, job: Job, folder: pathlib.Path, step: Step
  ) -> int | None:
    """Status of a step; None where it was stopped."""
    self._jobs.show(job, step.name, None)
    with open(folder / LOG, 'wb') as log:
      process = await asyncio.create_subprocess_exec(
        *step.command,
        cwd=folder,
        env={**config_files.environment(), progress.EVERY_S: '0.5'},
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.DEVNULL,
        stderr=log,
        # A terminal's interrupt comes to the server alone.
        start_new_session=True,
      )
    ending = asyncio.create_task(process.wait())
    try:
      job.process = dataclasses.asdict(locks.holder_of(process.pid))
      self._jobs.save(job)
      while not ending.done():
        if self._is_closing or job.id in self._cancelled:
          return None
        await asyncio.wait({ending}, timeout=_LOOK_EVERY_S)
        self._jobs.show(job, step.name, _progress(folder))
      return ending.result()
    finally:
      # Also where the disk is full: nothing runs that nobody looks at.
      if not ending.done():
        await _end(process.pid, ending)


async def _end(pid: int, ending: Awaitable[Any]) -> None:
  """Ends a process and all that it started."""
  for number in (signal.SIGTERM, signal.SIGKILL):
    _signal_group(pid, number)
    done, _ = await asyncio.wait({ending}, timeout=_PATIENCE_S)
    if done:
      return


def _signal_group(pid: int, number: int) -> None:
  try:
    os.killpg(pid, number)
  except ProcessLookupError:
    return


async def _end_orphan(job: Job) -> None:
  """Ends the process of a job whose server was killed."""
  if not job.process:
    return
  orphan = locks.Holder(**job.process)
  for number in (signal.SIGTERM, signal.SIGKILL):
    end = time.monotonic() + _PATIENCE_S
    if orphan.is_here() and not orphan.is_dead():
      _signal_group(orphan.pid, number)
      while not orphan.is_dead() and time.monotonic() < end:
        await asyncio.sleep(0.05)


def _log(folder: pathlib.Path) -> str:
  """The end of what the last command said."""
  with open(folder / LOG, 'rb') as file:
    size = file.seek(0, os.SEEK_END)
    file.seek(max(0, size - _LOG_BYTES))
    return file.read().decode(errors='replace')


def _progress(folder: pathlib.Path) -> str | None:
  found = _PROGRESS.findall(_log(folder))
  return found[-1] if found else None


def _notes(folder: pathlib.Path) -> list[str]:
  """What the last command warned of."""
  return [
    host_paths.cut(line.removeprefix(_WARNING), folder)[:500]
    for line in _log(folder).splitlines()
    if line.startswith(_WARNING)
  ]


def _reason(folder: pathlib.Path, step: Step, status: int) -> str:
  """One line that says why a step failed."""
  lines = [line for line in _log(folder).splitlines() if line.strip()]
  if lines and lines[-1].startswith(_ERROR):
    return host_paths.cut(lines[-1].removeprefix(_ERROR), folder)[:500]
  if status in (-signal.SIGKILL, -signal.SIGSEGV, -signal.SIGABRT):
    return (
      f'{step.name}: the command was killed ({signal.Signals(-status).name}), as '
      'the system does where memory ends; try fewer views or a smaller image'
    )
  return (
    f'{step.name}: the command ended with status {status}; {LOG} in the folder '
    'of the job, at the server, has what it said'
  )


def _cut_host_paths(folder: pathlib.Path) -> None:
  """Rewrites the figures of a step without paths of this machine.

  A model may say which other one it was trained from.
  """
  for path in folder.glob('*.json'):
    if not path.name.startswith('.'):
      content = files.read_json(path, 'figures')
      without = host_paths.cut_all(content)
      if without != content:
        files.write_json(path, without)
