"""The scripts: what they refuse, before any work is done."""

import json
import os
import shutil
import subprocess
import sys

import fsspec
import pytest
import yaml

from odin_jax.shared import errors, locks
from tests import test_readme


def call(repository, *command):
  return subprocess.run(
    command, cwd=repository, capture_output=True, text=True, check=False
  )


@pytest.mark.parametrize(
  'arguments,says',
  [
    (['--nothing'], 'unknown argument --nothing'),
    (['--video'], '--video needs a file'),
    (['--video', 'no/such.mp4'], 'no/such.mp4: no such file'),
    (['gs://bucket/run'], 'gs://bucket/run: is an address'),
    (['s3:/bucket/run'], 's3:/bucket/run: is an address'),
  ],
)
def test_demo_refuses_bad_arguments(repository, arguments, says):
  done = call(repository, 'bash', 'launch/demo.sh', *arguments)
  assert done.returncode == 2
  assert done.stderr.startswith('error: ') and says in done.stderr
  assert done.stderr.count('\n') == 1


def test_demo_tells_its_usage(repository):
  done = call(repository, 'bash', 'launch/demo.sh', '--help')
  assert done.returncode == 0 and '--video FILE' in done.stdout


_FAKE_DEMO_PYTHON = """#!/usr/bin/env bash
case "$*" in
  *launch.claim*) echo '{}' > "$3/.odin_lock.json" ;;
  *stage.py*" train "*) echo "$*" >> "%s"; exit %d ;;
  *) echo "$*" >> "%s" ;;
esac
"""


def run_demo(repository, folder, *arguments, status=0):
  """The demo whose stages do nothing, training with a status; their words."""
  (folder / 'launch').mkdir(exist_ok=True)
  for name in ('demo.sh', 'memory.sh'):
    shutil.copy(repository / 'launch' / name, folder / 'launch')
  (folder / 'launch' / 'setup.sh').write_text('')
  calls = folder / 'calls.txt'
  _script(
    folder / '.venv/bin/python', _FAKE_DEMO_PYTHON % (calls, status, calls)
  )
  (folder / 'run').mkdir()
  done = call(folder, 'bash', 'launch/demo.sh', str(folder / 'run'), *arguments)
  assert done.returncode == status, done.stderr
  # The folder is free.
  assert not (folder / 'run' / '.odin_lock.json').exists()
  return done, [line.split() for line in calls.read_text().splitlines()]


@pytest.mark.parametrize('status', [75, 2])
def test_demo_stops_where_a_stage_is_unfinished(repository, tmp_path, status):
  done, calls = run_demo(repository, tmp_path, status=status)
  line = 'stopped in stage train, which is not finished; the same command goes'
  assert (line in done.stderr) == (status == 75)
  assert calls[-1][2] == 'train'


_OF_EACH = ('', '/shuffled', '/pretrained')
_OF_ALL = [f'{x}{y}' for x in ('evaluate', 'evaluate_unseen') for y in _OF_EACH]
_ALONE = '/without_pretraining'


@pytest.mark.parametrize(
  'arguments, evaluations, has_truth',
  [
    ([], _OF_ALL, True),
    (['--video', 'mine.mp4'], _OF_ALL[:3], False),
    (
      ['--without_pretraining'],
      [*_OF_ALL[:3], f'evaluate{_ALONE}', *_OF_ALL[3:], _OF_ALL[3] + _ALONE],
      True,
    ),
  ],
)
def test_demo_goes_through_all_stages(
  repository, tmp_path, arguments, evaluations, has_truth
):
  (tmp_path / 'mine.mp4').touch()
  _, calls = run_demo(repository, tmp_path, *arguments)
  stages = {words[2]: words[4:] for words in calls if 'stage.py' in words[0]}
  assert [x for x in stages if x.startswith('evaluate')] == evaluations
  for name in evaluations:
    words = stages[name]
    assert f'--output={tmp_path}/run/{name}' in words
    assert any(word.startswith('--truth=') for word in words) == has_truth
    of_unseen = f'--data={tmp_path}/run/unseen' in words
    assert of_unseen == name.startswith('evaluate_unseen')
  (predictors,) = (x for x in stages['evaluate'] if 'predictor=' in x)
  assert ('warp' in predictors) == has_truth
  assert ('truth' in stages) == ('orbit_truth' in stages) == has_truth
  # The last words of a command count.
  assert stages['evaluate/pretrained'][-1] == '--workdir=pretrained'
  assert 'odin_jax.report' in calls[-1]


def test_a_stage_passes_signals_on(repository, tmp_path):
  code = (
    'import signal, sys, time;'
    'signal.signal(signal.SIGTERM, lambda *_: sys.exit(75));'
    'print(1, flush=True); time.sleep(60)'
  )
  process = subprocess.Popen(
    [
      *(sys.executable, 'launch/stage.py', tmp_path, 'train', '--'),
      *(sys.executable, '-c', code),
    ],
    cwd=repository,
    stdout=subprocess.PIPE,
  )
  assert process.stdout.readline() == b'1\n'
  process.terminate()
  assert process.wait(60) == 75
  row = json.loads((tmp_path / 'stages.jsonl').read_text())
  assert row['stage'] == 'train' and row['status'] == 75


def test_a_run_folder_belongs_to_one_input(repository, tmp_path):
  def claim(source):
    return call(
      repository, sys.executable, '-m', 'launch.claim', tmp_path / 'run', source
    )

  assert claim('procedural videos').returncode == 0
  assert claim('procedural videos').returncode == 0
  done = claim('other.mp4')
  assert done.returncode == 2
  assert 'procedural videos, not by' in done.stderr


def test_a_stage_notes_what_it_cost_and_passes_its_status_on(
  repository, tmp_path
):
  def stage(name, code):
    return call(
      repository,
      *(sys.executable, 'launch/stage.py', tmp_path, name, '--'),
      *(sys.executable, '-c', code),
    )

  assert stage('good', 'print(1)').returncode == 0
  assert stage('bad', 'raise SystemExit(2)').returncode == 2
  rows = list(map(json.loads, open(tmp_path / 'stages.jsonl')))
  assert [(row['stage'], row['status']) for row in rows] == [
    ('good', 0),
    ('bad', 2),
  ]
  for row in rows:
    assert row['seconds'] >= 0 and row['peak_rss_mb'] > 1


_PYTHON = """#!/usr/bin/env bash
echo "$*" >> calls.txt
case "$*" in *launch.devices*) echo "devices: 1 x card";; esac
"""
_GPU = '#!/bin/sh\necho "{gpu}"\n'


def _script(path, text):
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_text(text)
  path.chmod(0o755)


@pytest.fixture
def checkout(repository, tmp_path):
  """setup.sh beside a Python that notes what it is asked for."""
  for name in ('launch/setup.sh', 'requirements.txt'):
    (tmp_path / name).parent.mkdir(exist_ok=True)
    shutil.copy(repository / name, tmp_path / name)
  _script(tmp_path / '.venv/bin/python', _PYTHON)
  return tmp_path


def _setup(checkout, *arguments, gpu=None, **environment):
  if gpu is not None:
    _script(checkout / 'bin/nvidia-smi', _GPU.format(gpu=gpu))
  (checkout / 'calls.txt').write_text('')
  path = f'{checkout / "bin"}:{os.environ["PATH"]}'
  done = subprocess.run(
    ['bash', 'launch/setup.sh', *arguments],
    cwd=checkout,
    env={**os.environ, 'PATH': path, **environment},
    capture_output=True,
    text=True,
    check=False,
  )
  calls = (checkout / 'calls.txt').read_text().splitlines()
  return done, [call for call in calls if ' pip ' in call]


@pytest.mark.parametrize(
  'gpu,extra',
  [
    ('580.65.06, 9.0', 'cuda13'),
    ('595.1, 12.0', 'cuda13'),
    ('570.86.15, 9.0', 'cuda12'),
    ('580.65.06, 7.0', 'cuda12'),
    ('580.65.06, 7.5\n580.65.06, 6.1', 'cuda12'),
  ],
)
def test_setup_takes_the_cuda_that_driver_and_gpus_run(checkout, gpu, extra):
  done, installs = _setup(checkout, '--cuda', gpu=gpu)
  assert done.returncode == 0
  assert done.stdout == 'devices: 1 x card\n'
  assert installs[-1].endswith(f'--constraint requirements.txt jax[{extra}]')


@pytest.mark.parametrize('script', ['setup.sh', 'test.sh', 'pretrain.sh'])
@pytest.mark.parametrize('ask', ['-h', '--help'])
def test_help_of_a_script_is_all_that_it_does(
  repository, checkout, script, ask
):
  shutil.copy(repository / 'launch' / script, checkout / 'launch')
  before = sorted(checkout.rglob('*'))
  done = call(checkout, 'bash', f'launch/{script}', ask)
  assert done.returncode == 0 and not done.stderr
  assert f'bash launch/{script}' in done.stdout
  assert sorted(checkout.rglob('*')) == before


def test_a_share_of_pretraining_is_never_taken_for_another(
  repository, checkout, tmp_path
):
  shutil.copy(repository / 'launch' / 'pretrain.sh', checkout / 'launch')

  def refused(share):
    script = ('bash', 'launch/pretrain.sh', str(tmp_path / 'out'))
    done = call(checkout, *script, f'--share={share}')
    assert done.returncode == 2 and len(done.stderr.splitlines()) == 1
    return done.stderr

  for share in ('abc', '', '2', '1.5', '-1', '1e-3'):
    assert f'--share={share}: give a number' in refused(share)
  assert not (tmp_path / 'out').exists()
  (tmp_path / 'out').mkdir()
  (tmp_path / 'out' / 'share').write_text('0.005\n')
  assert 'was begun with --share=0.005' in refused('1')


def test_setup_tells_what_it_installs_and_then_nothing(checkout):
  done, installs = _setup(checkout)
  before, after = done.stderr.splitlines()
  assert before.startswith('Installing requirements.txt into .venv: ')
  assert 'MB to download' in before and before.endswith('B free here')
  assert after.startswith('Installed requirements.txt: .venv takes ')
  assert not done.stdout and len(installs) == 1
  done, installs = _setup(checkout)
  assert not (done.stdout + done.stderr) and not installs


def test_commands_are_found_from_any_folder_also_in_a_copy(
  repository, tmp_path
):
  def found(checkout):
    return subprocess.run(
      [checkout / '.venv/bin/python', '-c', 'import odin_jax as p; print(p)'],
      cwd='/',
      env={'PATH': os.environ['PATH']},
      capture_output=True,
      text=True,
    ).stdout

  first, copy, clone = (tmp_path / name for name in ('first', 'copy', 'clone'))
  for folder in (first, clone):
    for name in (
      'launch/setup.sh',
      'launch/memory.sh',
      'requirements.txt',
      'odin_jax/__init__.py',
    ):
      (folder / name).parent.mkdir(parents=True, exist_ok=True)
      shutil.copy(repository / name, folder / name)
  environment = first / '.venv'
  subprocess.run([sys.executable, '-m', 'venv', '--without-pip', environment])
  with open(environment / 'requirements.txt.sha256', 'w') as stamp:
    subprocess.run(['sha256sum', 'requirements.txt'], cwd=first, stdout=stamp)
  assert not found(first)
  shutil.copytree(first, copy, symlinks=True)
  (clone / '.venv').symlink_to(environment)
  for folder in (first, copy, clone):
    done = call(folder, 'bash', 'launch/setup.sh')
    assert done.returncode == 0 and not (done.stdout + done.stderr)
    assert str(folder / 'odin_jax') in found(folder)
    # A link stays what it is; a copy does not start the first one.
    active = (folder / '.venv/bin/activate').read_text()
    assert str(copy if folder == copy else first) in active
    assert active.count('export GLIBC_TUNABLES=') == 1


def test_setup_for_an_accelerator_installs_once_and_lists_devices_always(
  checkout,
):
  done, installs = _setup(checkout, '--tpu')
  assert done.stdout == 'devices: 1 x card\n' and len(installs) == 2
  done, installs = _setup(checkout, '--tpu')
  assert done.stdout == 'devices: 1 x card\n' and not installs
  assert not done.stderr


def test_setup_for_plans_looks_for_no_device(checkout):
  done, installs = _setup(checkout, '--plan')
  assert done.returncode == 0 and not done.stdout
  assert installs[-1].endswith('jax[tpu]')


def test_another_cuda_takes_the_place_of_the_first(checkout):
  _setup(checkout, '--cuda', JAX_CUDA='12')
  done, installs = _setup(checkout, '--cuda', JAX_CUDA='13')
  assert done.returncode == 0
  removal, install = installs
  assert 'uninstall' in removal and 'jax-cuda12-plugin' in removal
  assert install.endswith('jax[cuda13]')


@pytest.mark.parametrize(
  'arguments,environment,says',
  [
    (['--gpu'], {}, 'unknown argument --gpu'),
    (['--tests', 'more'], {}, 'unknown argument more'),
    (['--cuda'], {'gpu': ''}, 'nvidia-smi finds no GPU'),
    (['--cuda'], {'JAX_CUDA': '11'}, 'JAX_CUDA=11: give 12 or 13'),
  ],
)
def test_setup_refuses_before_any_work(checkout, arguments, environment, says):
  done, installs = _setup(checkout, *arguments, **environment)
  assert done.returncode == 2 and not installs and not done.stdout
  assert done.stderr.startswith('error: ') and says in done.stderr
  assert done.stderr.count('\n') == 1


def test_setup_fails_where_jax_finds_no_device(checkout):
  _script(
    checkout / '.venv/bin/python',
    _PYTHON.replace('"devices: 1 x card"', '"no TPU"; exit 2'),
  )
  done, _ = _setup(checkout, '--tpu')
  assert done.returncode == 2 and not done.stdout
  assert done.stderr.splitlines()[-1] == 'error: setup.sh: no TPU'


def test_devices_of_a_platform_are_one_line(repository):
  def devices(platform, **environment):
    return subprocess.run(
      [sys.executable, '-m', 'launch.devices', platform],
      cwd=repository,
      env={**os.environ, 'JAX_PLATFORMS': '', **environment},
      capture_output=True,
      text=True,
      check=False,
    )

  eight = '--xla_force_host_platform_device_count=8'
  assert devices('cpu', XLA_FLAGS=eight).stdout.startswith('devices: 8 x cpu (')
  done = devices('tpu', JAX_PLATFORMS='cpu')
  assert done.returncode == 2 and done.stdout.count('\n') == 1
  assert 'JAX_PLATFORMS=cpu is set' in done.stdout


def _noting(name, calls, status=0):
  return f'#!/bin/sh\necho {name} "$@" >> "{calls}"\nexit {status}\n'


@pytest.mark.parametrize(
  'status,restarts,is_queued',
  [(75, '', True), (75, '99', True), (75, '100', False), (2, '', False)],
)
def test_a_job_is_queued_again_where_it_is_unfinished(
  repository, tmp_path, status, restarts, is_queued
):
  calls = tmp_path / 'calls'
  _script(tmp_path / 'srun', _noting('srun', calls, status))
  _script(tmp_path / 'scontrol', _noting('scontrol', calls))
  environment = {
    'PATH': f'{tmp_path}:{os.environ["PATH"]}',
    'SLURM_JOB_ID': '7',
    **({'SLURM_RESTART_COUNT': restarts} if restarts else {}),
  }
  done = subprocess.run(
    ['bash', 'launch/train_slurm.sbatch', '--workdir=a b'],
    cwd=repository,
    env=environment,
  )
  assert done.returncode == status
  first, *others = calls.read_text().splitlines()
  assert first.startswith('srun --kill-on-bad-exit=0 ')
  assert first.endswith('.venv/bin/python -m odin_jax.train --workdir=a b')
  assert others == (['scontrol requeue 7'] if is_queued else [])


def test_a_slice_gets_this_checkout_and_the_flags(repository, tmp_path):
  calls = tmp_path / 'calls'
  (tmp_path / 'launch').mkdir()
  shutil.copy(repository / 'launch/train_tpu_pod.sh', tmp_path / 'launch')
  for name in ('gcloud', 'git'):
    _script(tmp_path / 'bin' / name, _noting(name, calls))
  environment = {'PATH': f'{tmp_path / "bin"}:{os.environ["PATH"]}'}
  script = ['bash', 'launch/train_tpu_pod.sh']
  done = subprocess.run(
    [*script, 'slice', 'zone', '--records=/mnt/a b', '--workdir=/mnt/c'],
    cwd=tmp_path,
    env=environment,
  )
  assert done.returncode == 0
  archive, copy, install, train = calls.read_text().splitlines()
  file = archive.partition('--output=')[2].split()[0]
  assert archive.startswith('git archive ') and not os.path.exists(file)
  on_all = 'slice --zone=zone --worker=all --command='
  to_all = f'{file} slice:odin.tar.gz --zone=zone --worker=all'
  assert copy == f'gcloud compute tpus tpu-vm scp {to_all}'
  assert install.startswith(f'gcloud compute tpus tpu-vm ssh {on_all}mkdir ')
  assert install.endswith(' bash odin/launch/setup.sh --tpu')
  assert train == (
    f'gcloud compute tpus tpu-vm ssh {on_all}cd odin && exec .venv/bin/python '
    r'-m odin_jax.train --records=/mnt/a\ b --workdir=/mnt/c'
  )
  # What reads buckets is installed where one is given.
  calls.unlink()
  given = ['--records=/mnt/a', '--workdir=gs://bucket/run']
  subprocess.run(
    [*script, 'slice', 'zone', *given],
    cwd=tmp_path,
    env=environment,
    check=True,
  )
  _, _, install, _ = calls.read_text().splitlines()
  setup, and_driver = install.split(' && odin/.venv/bin/python -m pip install ')
  assert setup.endswith(' bash odin/launch/setup.sh --tpu')
  (tmp_path / 'odin').mkdir()
  shutil.copy(repository / 'requirements.txt', tmp_path / 'odin')
  driver = subprocess.run(
    ['bash', '-c', f'echo {and_driver}'],
    cwd=tmp_path,
    capture_output=True,
    text=True,
  ).stdout
  assert driver == f'--quiet gcsfs=={fsspec.__version__}\n'
  for wrong in ([], ['slice', 'zone'], ['slice', '--records=a', '--workdir=b']):
    done = subprocess.run(
      [*script, *wrong],
      cwd=tmp_path,
      env=environment,
      capture_output=True,
      text=True,
    )
    assert done.returncode == 2 and done.stderr.count('\n') == 1
    assert 'give NAME and ZONE' in done.stderr


def test_a_jobset_starts_a_training_on_every_host(repository):
  job_set = yaml.safe_load((repository / 'launch/train_gke.yaml').read_text())
  assert job_set['kind'] == 'JobSet'
  (workers,) = job_set['spec']['replicatedJobs']
  job = workers['template']['spec']
  assert job['completionMode'] == 'Indexed'
  assert job['parallelism'] == job['completions'] > 1
  # Of an end that is final the job set starts nothing again.
  (rule,) = job['podFailurePolicy']['rules']
  assert rule['onExitCodes']['values'] == [errors.UserError.exit_status]
  (final,) = job_set['spec']['failurePolicy']['rules']
  assert final['action'] == 'FailJobSet'
  (container,) = job['template']['spec']['containers']
  assert container['name'] == rule['onExitCodes']['containerName']
  # A lock of the start before is known to be over.
  told = tuple(variable['name'] for variable in container['env'])
  assert told in locks._JOBS
  python, dash, module, *arguments = container['command']
  assert (python, dash, module) == ('.venv/bin/python', '-m', 'odin_jax.train')
  known = test_readme.flag_names(repository / 'odin_jax/train.py', repository)
  for argument in arguments:
    name = argument.partition('=')[0].removeprefix('--')
    assert name in known or name.startswith('config.'), argument
