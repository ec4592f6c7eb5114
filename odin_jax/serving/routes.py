"""What the server answers to which address.

  GET    /                       the page
  GET    /events                 all jobs, then every change (server-sent events)
  GET    /path?FIELDS            cameras of a path (`odin_jax.serving.settings`)
  POST   /jobs?name=N&FIELDS     a new job; the body is the image
  POST   /jobs/ID/cancel         ends it
  DELETE /jobs/ID                deletes it, when it is over
  GET    /jobs/ID/files/NAME     a file of it
  GET    /jobs/ID/download       all of them, as a ZIP

What is wrong is answered as `{"error": LINE}`.
"""

import asyncio
import contextlib
import json
import pathlib
import re
import shutil
from typing import Any, AsyncIterator

from absl import logging
from starlette import applications, exceptions, requests, responses, routing

from odin_jax.serving import (
  access,
  archives,
  host_paths,
  jobs,
  running,
  settings,
  uploads,
)
from odin_jax.shared import errors

# Names of files in folders of jobs, as the commands choose them.
_NAME = re.compile(r'[A-Za-z0-9][A-Za-z0-9_.-]{0,99}')
_FOLDERS = (jobs.VIEWS, jobs.SCENE)
# Between events, so that a view that is gone is noticed.
_BEAT_S = 15.0
# At most so often.
_EVENTS_EVERY_S = 0.1
_MEDIA = {
  '.glb': 'model/gltf-binary',
  '.html': 'text/html; charset=utf-8',
  '.jpg': 'image/jpeg',
  '.json': 'application/json',
  '.mp4': 'video/mp4',
  '.ply': 'application/octet-stream',
  '.png': 'image/png',
  '.txt': 'text/plain; charset=utf-8',
}
# The page of a scene, which has all that it needs inside.
_SCENE_POLICY = (
  "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; "
  "img-src data: blob:; frame-ancestors 'self'; base-uri 'none'; "
  "form-action 'none'"
)


class Site:
  """The routes, and what they work on.

  Args:
    kept: the jobs.
    worker: that runs them.
    limits: of what is asked for.
    page: HTML and its content security policy.
    check: of images that are sent.
  """

  def __init__(
    self,
    kept: jobs.Jobs,
    worker: running.Worker,
    limits: uploads.Limits,
    page: tuple[str, str],
    check: uploads.Check = uploads.check,
  ):
    self._jobs, self._worker, self._limits = kept, worker, limits
    self._page, self._check = page, check
    self._is_closing = False
    # One image is decoded at a time, whoever sends them.
    self._checking = asyncio.Lock()
    self._num_coming = 0

  def app(self, *, is_local: bool, token: str | None) -> access.App:
    """The application; see `access.Guard` for what it asks for."""
    route = routing.Route
    site = applications.Starlette(
      routes=[
        route('/', self._show_page),
        route('/events', self._events),
        route('/path', self._path),
        route('/jobs', self._new_job, methods=['POST']),
        route('/jobs/{id}', self._delete, methods=['DELETE']),
        route('/jobs/{id}/cancel', self._cancel, methods=['POST']),
        route('/jobs/{id}/files/{name:path}', self._file),
        route('/jobs/{id}/download', self._download),
      ],
      exception_handlers={
        errors.UserError: _user_error,
        OSError: _os_error,
        exceptions.HTTPException: _http_error,
      },
      lifespan=self._lifespan,
    )
    return access.Guard(site, is_local=is_local, token=token)

  @contextlib.asynccontextmanager
  async def _lifespan(self, app: Any) -> AsyncIterator[None]:
    del app
    working = asyncio.create_task(self._worker.run())
    try:
      yield
    finally:
      self.close()
      await working

  def close(self) -> None:
    """Ends the streams of events and the job that runs."""
    self._is_closing = True
    self._worker.close()
    self._jobs.wake()

  # -- Looking ---------------------------------------------------------------------

  async def _show_page(self, request: requests.Request) -> responses.Response:
    del request
    text, policy = self._page
    return responses.HTMLResponse(
      text, headers={'content-security-policy': policy}
    )

  async def _events(self, request: requests.Request) -> responses.Response:
    del request
    return responses.StreamingResponse(
      self._changes(),
      media_type='text/event-stream',
      # For proxies that would collect them.
      headers={'x-accel-buffering': 'no'},
    )

  async def _changes(self) -> AsyncIterator[str]:
    told: dict[str, int] = {}
    while not self._is_closing:
      revision = self._jobs.revision
      now = {
        job.id: (job, self._jobs.progress(job).revision)
        for job in self._jobs.all()
      }
      events = [('gone', gone) for gone in told if gone not in now]
      events += [
        ('job', self._jobs.public(job))
        for job, of_job in now.values()
        if told.get(job.id) != of_job
      ]
      told = {job_id: of_job for job_id, (_, of_job) in now.items()}
      for kind, content in events:
        yield f'event: {kind}\ndata: {json.dumps(content)}\n\n'
      if not events:
        yield ': still here\n\n'
      await self._jobs.changed(revision, _BEAT_S)
      await asyncio.sleep(_EVENTS_EVERY_S)

  async def _path(self, request: requests.Request) -> responses.Response:
    wanted = settings.parse(_fields(request), self._limits.most_frames)
    camera2scene = settings.camera2scene(wanted)
    return responses.JSONResponse(
      {'camera2scene': camera2scene.reshape(-1, 12).round(6).tolist()}
    )

  async def _file(self, request: requests.Request) -> responses.Response:
    job = self._job(request)
    parts = request.path_params['name'].split('/')
    if parts != [jobs.THUMBNAIL] and (
      parts[0] not in _FOLDERS
      or not all(_NAME.fullmatch(part) for part in parts)
    ):
      raise _not_found()
    folder = self._jobs.folder(job)
    path = folder.joinpath(*parts)
    if not path.is_file() or path.resolve() != folder.resolve().joinpath(
      *parts
    ):
      raise _not_found()
    headers = {}
    if path.suffix == '.html':
      headers['content-security-policy'] = _SCENE_POLICY
    return _File(
      path,
      media_type=_MEDIA.get(path.suffix, 'application/octet-stream'),
      headers=headers,
      stat_result=path.stat(),
    )

  async def _download(self, request: requests.Request) -> responses.Response:
    job = self._job(request)
    if not job.is_over:
      raise exceptions.HTTPException(409, 'it is not finished yet')
    folder, name = self._jobs.folder(job), f'scene_{job.number}'
    found = archives.names(folder, [job.image, *_FOLDERS])
    return responses.StreamingResponse(
      archives.stream(folder, found, name),
      media_type='application/zip',
      headers={'content-disposition': f'attachment; filename="{name}.zip"'},
    )

  # -- Doing -----------------------------------------------------------------------

  async def _new_job(self, request: requests.Request) -> responses.Response:
    fields = _fields(request)
    name = uploads.safe_name(fields.pop('name', ''))
    wanted = settings.parse(fields, self._limits.most_frames)
    self._refuse_when_full()
    # Before any of it is read, where it is said.
    length = request.headers.get('content-length', '')
    if length.isdecimal() and int(length[:20]) > self._limits.most_bytes:
      raise uploads.too_large(self._limits.most_bytes)
    folder = self._jobs.new_folder()
    self._num_coming += 1
    try:
      image = uploads.file_name(name)
      await uploads.receive(
        request.stream(), folder / image, self._limits.most_bytes
      )
      async with self._checking:
        facts = await self._checked(folder / image, name, wanted)
      job = self._jobs.add(
        folder, name=name, image=image, facts=facts, settings=wanted
      )
    except requests.ClientDisconnect:
      return responses.Response(status_code=400)
    finally:
      self._num_coming -= 1
      # What became a job has another name by now.
      await asyncio.to_thread(shutil.rmtree, folder, ignore_errors=True)
    return responses.JSONResponse(self._jobs.public(job), 201)

  def _refuse_when_full(self) -> None:
    limits = self._limits
    if self._jobs.num_waiting() + self._num_coming >= limits.most_waiting:
      raise exceptions.HTTPException(
        429, f'{limits.most_waiting} jobs wait already; try again later'
      )
    if len(self._jobs) + self._num_coming >= limits.most_jobs:
      raise exceptions.HTTPException(
        429,
        f'{limits.most_jobs} scenes are kept here, which is the limit; delete '
        'some first',
      )

  async def _checked(
    self, path: pathlib.Path, name: str, wanted: settings.Settings
  ) -> dict[str, Any]:
    try:
      return await self._check(
        path, path.with_name(jobs.THUMBNAIL), wanted, self._limits.most_pixels
      )
    except errors.UserError as error:
      # By the name that its owner knows.
      text = str(error).replace(path.name, name)
      raise errors.UserError(text) from error

  async def _cancel(self, request: requests.Request) -> responses.Response:
    job = self._job(request)
    await self._worker.cancel(job)
    return responses.JSONResponse(self._jobs.public(job))

  async def _delete(self, request: requests.Request) -> responses.Response:
    job = self._job(request)
    if not job.is_over:
      raise exceptions.HTTPException(409, 'cancel it first')
    self._jobs.remove(job)
    return responses.Response(status_code=204)

  def _job(self, request: requests.Request) -> jobs.Job:
    job = self._jobs.get(request.path_params['id'])
    if job is None:
      raise _not_found()
    return job


class _File(responses.FileResponse):
  """A file that may be deleted while it is sent: the answer ends there."""

  async def __call__(
    self, scope: access.Scope, receive: access.Receive, send: access.Send
  ) -> None:
    """See `starlette.responses.FileResponse`."""
    with contextlib.suppress(FileNotFoundError):
      await super().__call__(scope, receive, send)


def _fields(request: requests.Request) -> dict[str, str]:
  """The fields of an address.

  Raises:
    errors.UserError: one is given twice.
  """
  pairs = request.query_params.multi_items()
  fields = dict(pairs)
  if len(fields) < len(pairs):
    raise errors.UserError('a field is given twice')
  return fields


def _not_found() -> exceptions.HTTPException:
  return exceptions.HTTPException(404, 'there is nothing of that name')


def _error(status: int, text: str) -> responses.Response:
  return responses.JSONResponse({'error': text}, status)


async def _user_error(
  request: requests.Request, error: Exception
) -> responses.Response:
  del request
  status = 413 if isinstance(error, uploads.TooLargeError) else 400
  return _error(status, host_paths.cut(str(error)))


async def _http_error(
  request: requests.Request, error: exceptions.HTTPException
) -> responses.Response:
  del request
  return responses.JSONResponse(
    {'error': error.detail}, error.status_code, headers=error.headers
  )


async def _os_error(
  request: requests.Request, error: OSError
) -> responses.Response:
  """A full disk, most likely; its owner reads which at the server."""
  logging.error('%s %s: %s', request.method, request.scope['path'], error)
  return _error(507, f'the server cannot write: {error.strerror or "unknown"}')
