"""Jobs in their queue: what they run, how they end, and what a restart keeps."""

import asyncio
import errno
import json
import os
import pathlib
import signal
import sys

import numpy as np
import pytest

from odin_jax.generating import paths
from odin_jax.serving import jobs, running, settings
from odin_jax.shared import progress
from tests.helpers import served


def add(kept, **wanted):
  folder = kept.new_folder()
  (folder / 'input.png').write_bytes(served.image())
  (folder / 'thumbnail.jpg').write_bytes(served.image())
  facts = {'width': 30, 'height': 20, 'fov_deg': 90.0}
  facts |= {'fov_from': 'header', 'is_panorama': False}
  return kept.add(
    folder,
    name='a.png',
    image='input.png',
    facts=facts,
    settings=settings.Settings(**wanted),
  )


async def until(condition):
  async with asyncio.timeout(20):
    while not condition():
      await asyncio.sleep(0.02)


def work(tmp_path, steps, during, count=1):
  """Runs jobs until `during`, a coroutine of them all, is done."""

  async def run():
    kept = jobs.Jobs(tmp_path)
    worker = running.Worker(kept, steps)
    for _ in range(count):
      add(kept)
    working = asyncio.create_task(worker.run())
    await during(kept, worker)
    worker.close()
    await working
    return kept.all()

  return asyncio.run(run())


def stored(tmp_path):
  return [
    json.loads(path.read_text())
    for path in sorted((tmp_path / 'jobs').glob('*/job.json'))
  ]


def test_jobs_are_done_one_after_the_other_in_order(tmp_path):
  log = tmp_path / 'order.txt'
  steps = served.scripted(
    views=f'echo views $(grep -m1 number job.json) >> {log}; {served.VIEWS}'
    f'echo ${progress.EVERY_S} > every_s; '
    'echo "warning: $PWD/input.png: is unlike all it saw" >&2; '
    'echo "generate: view 3 of 3 (100 %), 00:01" >&2; '
    f'{served.WAIT_FOR_GO}'
    # Such as the run that a model was started from.
    """echo '{"model": {"started_from": "/home/me/runs/x"}}' > views/a.json""",
    scene=f'echo scene $(grep -m1 number job.json) >> {log}; {served.SCENE}',
  )
  frames = ['000.png', '001.png', '002.png']
  while_running = {'step': 'views', 'done': 'view 3 of 3', 'frames': frames}

  async def during(kept, worker):
    first, second = kept.all()
    # Views are shown as they come.
    await until(lambda: while_running.items() <= kept.public(first).items())
    assert kept.public(second)['ahead'] == 1
    for job in (first, second):
      (kept.folder(job) / 'go').touch()
    await until(lambda: first.is_over and second.is_over)
    shown = kept.public(second)
    assert shown['has_video'] and shown['has_scene'] and not shown['ahead']

  first, second = work(tmp_path, steps, during, count=2)
  assert [line.split() for line in log.read_text().splitlines()] == [
    [step, '"number":', f'{number},']
    for number in (1, 2)
    for step in ('views', 'scene')
  ]
  assert first.status == second.status == jobs.DONE
  assert first.steps_done == ['views', 'scene'] and first.process is None
  folder = tmp_path / 'jobs' / first.id
  figures = json.loads((folder / 'views' / 'a.json').read_text())
  assert figures == {'model': {'started_from': 'x'}}
  assert first.notes == ['input.png: is unlike all it saw']
  # Commands tell how far they are as often as they are looked at.
  assert float((folder / 'every_s').read_text()) < 1


@pytest.mark.parametrize(
  'script,message',
  [
    (
      'echo note >&2; echo "error: $PWD/input.png: is bad; mend /a/b" >&2; exit 2',
      'input.png: is bad; mend b',
    ),
    ('echo Traceback in /secret/place >&2; exit 1', 'ended with status 1'),
    ('kill -9 $$', 'was killed (SIGKILL)'),
  ],
)
def test_why_a_job_failed_is_one_line_without_paths(tmp_path, script, message):
  async def during(kept, worker):
    await until(lambda: kept.all()[0].is_over)

  (job,) = work(tmp_path, served.scripted(views=script), during)
  assert job.status == jobs.FAILED and message in job.message
  assert 'secret' not in job.message and str(tmp_path) not in job.message
  assert stored(tmp_path)[0]['message'] == job.message


def test_a_command_that_is_not_there_fails_the_job_and_not_the_server(tmp_path):
  def steps(job, folder):
    return [running.Step('views', ['/no/such/program'])]

  async def during(kept, worker):
    await until(lambda: all(job.is_over for job in kept.all()))

  for job in work(tmp_path, steps, during, count=2):
    assert job.message == 'the server met FileNotFoundError'


def test_what_cannot_be_kept_runs_no_further(tmp_path, monkeypatch):
  save, full = jobs.Jobs.save, []

  def save_until_full(kept, job):
    if job.process and not full:
      full.append(job.process['pid'])
      raise OSError(errno.ENOSPC, 'No space left on device')
    save(kept, job)

  monkeypatch.setattr(jobs.Jobs, 'save', save_until_full)

  async def during(kept, worker):
    await until(lambda: kept.all()[0].is_over)

  (job,) = work(tmp_path, served.scripted(views='exec sleep 60'), during)
  assert job.message == 'the server met OSError' and not is_alive(full[0])


def is_alive(pid):
  try:
    os.kill(pid, 0)
  except ProcessLookupError:
    return False
  stat = pathlib.Path(f'/proc/{pid}/stat').read_text()
  return stat.rpartition(')')[2].split()[0] != 'Z'


def test_a_job_is_cancelled_with_all_that_it_started(tmp_path):
  script = 'sleep 60 & echo $! > child; wait'
  pids = []

  async def during(kept, worker):
    first, second, third = kept.all()
    folder = kept.folder(first)
    await until((folder / 'child').is_file)
    await worker.cancel(second)
    assert second.status == jobs.CANCELLED and first.status == jobs.RUNNING
    await until(lambda: (folder / 'child').read_text().strip())
    pids.append(int((folder / 'child').read_text()))
    assert is_alive(pids[0])
    await worker.cancel(first)
    # Those behind it go on; what is over stays as it is.
    await until((kept.folder(third) / 'child').is_file)
    await worker.cancel(second)

  done = work(tmp_path, served.scripted(views=script), during, count=3)
  assert [job.status for job in done] == ['cancelled', 'cancelled', 'running']
  assert not is_alive(pids[0])


def test_a_stop_keeps_jobs_and_the_next_server_goes_on(tmp_path):
  async def during(kept, worker):
    await until(lambda: 'views' in kept.all()[0].steps_done)

  steps = served.scripted(scene='sleep 60')
  first, second = work(tmp_path, steps, during, count=2)
  assert [job['status'] for job in stored(tmp_path)].count('running') == 1
  # Of an upload that did not come to its end, and of somebody else.
  (tmp_path / 'jobs' / '.new-00').mkdir()
  (tmp_path / 'jobs' / f'{0:016x}').mkdir()
  (tmp_path / 'jobs' / 'mine').mkdir()
  ran = tmp_path / 'again.txt'

  async def all_over(kept, worker):
    await until(lambda: all(job.is_over for job in kept.all()))

  again = served.scripted(views=f'echo $PWD >> {ran}; {served.VIEWS}')
  done = work(tmp_path, again, all_over, count=0)
  assert [job.id for job in done] == [first.id, second.id]
  assert {job.status for job in done} == {jobs.DONE}
  # The views of the first one were there.
  assert ran.read_text().split() == [str(tmp_path / 'jobs' / second.id)]
  assert not (tmp_path / 'jobs' / '.new-00').exists()
  assert (tmp_path / 'jobs' / 'mine').exists()
  assert done[0].settings == first.settings


# A server that is killed while its job runs.
KILLED = """
import asyncio, os, pathlib, signal, sys
from odin_jax.serving import jobs, running
from tests.helpers import served

async def run():
  kept = jobs.Jobs(pathlib.Path(sys.argv[1]))
  steps = served.scripted(views='exec sleep 60')
  working = asyncio.create_task(running.Worker(kept, steps).run())
  while not kept.all()[0].process:
    await asyncio.sleep(0.02)
  os.kill(os.getpid(), signal.SIGKILL)

asyncio.run(run())
"""


def test_what_outlived_a_killed_server_is_ended_before_its_job_runs(
  tmp_path, repository
):
  add(jobs.Jobs(tmp_path))

  async def kill_and_go_on():
    server = await asyncio.create_subprocess_exec(
      sys.executable, '-c', KILLED, str(tmp_path), cwd=repository
    )
    assert await server.wait() == -signal.SIGKILL
    orphan = stored(tmp_path)[0]['process']['pid']
    assert is_alive(orphan)
    kept = jobs.Jobs(tmp_path)
    worker = running.Worker(kept, served.scripted())
    working = asyncio.create_task(worker.run())
    await until(lambda: kept.all()[0].is_over)
    worker.close()
    await working
    return orphan, kept.all()[0]

  orphan, job = asyncio.run(kill_and_go_on())
  assert job.status == jobs.DONE and not is_alive(orphan)


def test_a_job_is_what_a_person_would_type(tmp_path):
  kept = jobs.Jobs(tmp_path)
  model = tmp_path / 'a model'
  model.mkdir()

  def flags(**wanted):
    job = add(kept, **wanted)
    folder = kept.folder(job)
    generate, reconstruct = running.steps(model, 7, job, folder)
    assert generate.command[1:4] == ['-P', '-m', 'odin_jax.generate']
    assert reconstruct.command[1:] == [
      *('-P', '-m', 'odin_jax.reconstruct'),
      *('--views=views', '--output=scene'),
    ]
    assert (folder / 'model').resolve() == model.resolve()
    given = dict(flag.split('=') for flag in generate.command[4:])
    assert {given.pop(f'--{name}') for name in ('image', 'output')} == {
      'input.png',
      'views',
    }
    assert given.pop('--workdir') == 'model' and given.pop('--seed') == '5'
    assert given.pop('--step') == '7'
    assert given.pop('--batch_size') == '4'
    return folder, given

  _, given = flags(trajectory='orbit', num_frames=7, step_length=0.1, seed=5)
  assert given == {
    '--trajectory': 'orbit',
    '--num_frames': '7',
    '--step_length': '0.1',
  }
  _, given = flags(trajectory='turn_360', panorama=True, fov_deg=70.0, seed=5)
  assert given == {
    '--trajectory': 'turn_360',
    '--num_frames': '16',
    '--panorama': 'True',
    '--fov_deg': '70.0',
  }
  line = ((0.5, 1.0), (1.0, 1.0))
  folder, given = flags(trajectory='drawn', line=line, look='along', seed=5)
  assert given == {'--trajectory': 'line.json'}
  # The cameras that the page showed are those that are imagined.
  np.testing.assert_allclose(
    paths.read(folder / 'line.json', 1.0).camera2scene,
    settings.camera2scene(
      settings.Settings(trajectory='drawn', line=line, look='along')
    ),
    atol=1e-12,
  )
