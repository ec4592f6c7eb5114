"""The harness of the GPU benchmark: limits, faults, and what is written."""

import json
import time

from tests.helpers import gpu_parts_list, limited_parts

_PRINTS = 'print(\'{"rate": 3}\', flush=True)'


def part(folder, name, *programs, limit_s=60.0, wheels=()):
  """A part whose commands are modules with such programs."""
  lines = []
  for index, program in enumerate(programs):
    module = f'part_{name}_{index}'
    (folder / f'{module}.py').write_text(program)
    lines.append((module,))
  return limited_parts.Part(
    name=name, commands=tuple(lines), limit_s=limit_s, wheels=wheels
  )


def test_parts_end_by_themselves_and_what_they_printed_stays(
  tmp_path, monkeypatch
):
  monkeypatch.setenv('PYTHONPATH', str(tmp_path))
  hangs = f'import time\n{_PRINTS}\nprint("noise")\ntime.sleep(600)'
  fails = f'{_PRINTS}\nprint(\'{{"half": \', flush=True)\nraise MemoryError'
  told = []
  start = time.monotonic()
  results = limited_parts.run_all(
    [
      part(tmp_path, 'slow', hangs, limit_s=3.0),
      part(tmp_path, 'poor', fails, _PRINTS),
      part(tmp_path, 'other', _PRINTS, wheels=('no_such_wheel',)),
      part(tmp_path, 'good', _PRINTS, _PRINTS),
    ],
    tmp_path,
    5.0,
    told.append,
  )
  assert time.monotonic() - start < 120
  status = {name: result['status'] for name, result in results.items()}
  assert status == {
    'slow': 'stopped after 3 s',
    'poor': 'part_poor_0 failed (exit 1)',
    'other': 'left out: pip install no_such_wheel',
    'good': 'done',
  }
  assert results['slow']['rows'] == results['poor']['rows'] == [{'rate': 3}]
  assert results['good']['rows'] == [{'rate': 3}] * 2
  assert len(told) == 4
  assert json.loads((tmp_path / 'results.json').read_text()) == results
  assert '| `slow` | stopped after 3 s |' in (tmp_path / 'table.md').read_text()


def test_parts_beyond_all_the_time_are_not_started(tmp_path):
  results = limited_parts.run_all(
    [part(tmp_path, 'late', _PRINTS)], tmp_path, 0.0, lambda line: None
  )
  assert results['late']['status'] == 'no time left'


def test_the_parts_of_both_sizes_have_names_of_their_own(tmp_path):
  for size in ('tiny', 'full'):
    names = [part.name for part in gpu_parts_list.parts(size, tmp_path)]
    assert len({*names}) == len(names)
    assert {name.split('_')[0] for name in names} == {
      'devices',
      'attention',
      'step',
      'train',
      'sampling',
      'world',
    }
