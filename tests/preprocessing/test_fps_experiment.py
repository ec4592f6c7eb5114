"""The frame-rate experiment, as a user runs it."""

import json
import subprocess
import sys

import pytest

from tests.helpers import tiny_videos


def run(repository, *arguments):
  return subprocess.run(
    [sys.executable, '-m', 'preprocessing.fps_experiment', *arguments],
    cwd=repository,
    capture_output=True,
    text=True,
    check=False,
  )


def test_every_rate_has_its_row_and_its_records(repository, tmp_path):
  (video,) = tiny_videos.write(tmp_path, 1)
  output = tmp_path / 'fps'
  overrides = [
    argument.replace('--config.', '--override=')
    for argument in tiny_videos.ARGUMENTS
  ]
  done = run(
    repository,
    f'--input={video}',
    f'--output={output}',
    '--fps=2,1',
    *overrides,
  )
  assert done.returncode == 0, done.stderr
  slow, fast = json.loads((output / 'fps.json').read_text())['rates']
  assert (slow['fps'], fast['fps']) == (1.0, 2.0)
  assert (slow['frames'], fast['frames']) == (3, 6)
  assert slow['frame_pairs'] == 3 < fast['frame_pairs'] <= 15
  assert 0 <= slow['interval_95'][0] <= slow['interval_95'][1] <= 1
  manifest = json.loads((output / 'fps_2/records/manifest.json').read_text())
  # Sub-steps stay about a fifth of a second.
  assert manifest['config']['substeps'] == 2
  assert manifest['config']['views_per_pair'] == 2
  page = (output / 'index.html').read_text()
  assert '/*DATA*/' not in page and '"fps": 2.0' in page
  # Nothing that is finished is done again.
  written = (output / 'fps_1/records/parts/000.json').stat().st_mtime_ns
  done = run(
    repository, f'--input={video}', f'--output={output}', '--fps=1', *overrides
  )
  assert done.returncode == 0, done.stderr
  after = (output / 'fps_1/records/parts/000.json').stat().st_mtime_ns
  assert after == written


@pytest.mark.parametrize(
  'flag, says', [('--fps=fast', 'fast'), ('--fps=0', 'above 0')]
)
def test_bad_rates_are_one_line(repository, tmp_path, flag, says):
  done = run(repository, '--input=x', f'--output={tmp_path / "o"}', flag)
  assert done.returncode == 2
  assert done.stderr.startswith('error: ') and says in done.stderr
  assert not (tmp_path / 'o').exists()
