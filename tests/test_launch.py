"""The scripts: what they refuse, before any work is done."""

import json
import subprocess
import sys

import pytest


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
  (row,) = map(json.loads, open(tmp_path / 'stages.jsonl'))
  assert row['stage'] == 'good'
  assert row['seconds'] >= 0 and row['peak_rss_mb'] > 1
