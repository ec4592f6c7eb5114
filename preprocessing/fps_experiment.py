"""How many frames per second should correspondences be looked for at?

    python -m preprocessing.fps_experiment --input=FILE_OR_FOLDER \\
        --output=DIR [--fps=0.5,1,2] [--truth=DIR] [--override=KEY=VALUE]

The ablation of arXiv 2412.07770 over the frame rate, on your own videos: runs
the pipeline and its audit at every rate, and writes fps.json and index.html,
number and quality of the pairs as a table and a plot. Sub-steps stay a fifth of
a second apart at every rate. Each rate's records and audit are kept in
fps_RATE/records and fps_RATE/audit; records that are there are not made again.
"""

import sys

# As a file it finds none of the packages below.
if __name__ == '__main__' and not __package__:
  sys.stderr.write('error: type: python -m preprocessing.fps_experiment\n')
  sys.exit(2)

import json
import math
import pathlib
from typing import Any

from absl import flags

from odin_jax.shared import command, errors, files, page, subcommand
from preprocessing.auditing import rates_page

_TOOL = 'preprocessing.fps_experiment'
_SUBSTEPS_PER_S = 5

_INPUT = command.define_input()
_OUTPUT = command.define_output()
_FPS = flags.DEFINE_list('fps', ['0.5', '1', '2'], 'Frames per second to try.')
_TRUTH = command.define_truth()
_OVERRIDE = flags.DEFINE_multi_string(
  'override',
  [],
  'KEY=VALUE, set as --config.KEY=VALUE at every rate; paths absolute.',
)
_SAMPLE = command.define_sample()
_EXCLUDE_IDS = command.define_exclude_ids()
flags.mark_flags_as_required(['input', 'output'])


def _rates() -> list[float]:
  try:
    rates = sorted({float(text) for text in _FPS.value})
  except ValueError as error:
    raise errors.UserError(f'--fps: {error}; give numbers') from error
  if not rates or not all(0 < rate < math.inf for rate in rates):
    raise errors.UserError(f'--fps={",".join(_FPS.value)}: must be above 0')
  return rates


def _path_flag(flag: flags.FlagHolder[str | None]) -> list[str]:
  """The flag for a command that is started in another folder, if it is set."""
  if not flag.value:
    return []
  return [f'--{flag.name}={pathlib.Path(flag.value).resolve()}']


def measure(rate: float, output: pathlib.Path) -> dict[str, Any]:
  """Runs pipeline and audit at one rate; a row of the table."""
  folder = output / f'fps_{rate:g}'
  records, audit = folder / 'records', folder / 'audit'
  excluded = _path_flag(_EXCLUDE_IDS)
  subcommand.run(
    'preprocessing.run',
    f'--input={pathlib.Path(_INPUT.value).resolve()}',
    f'--output={records.resolve()}',
    f'--config.fps={rate!r}',
    f'--config.substeps={max(1, round(_SUBSTEPS_PER_S / rate))}',
    *(f'--config.{override}' for override in _OVERRIDE.value),
    *excluded,
    makes=str(records),
  )
  subcommand.run(
    'preprocessing.audit',
    f'--records={records.resolve()}',
    f'--output={audit.resolve()}',
    f'--sample={_SAMPLE.value}',
    *_path_flag(_TRUTH),
    *excluded,
    makes=str(audit),
  )
  return row(
    rate,
    json.loads((audit / 'audit.json').read_text()),
    json.loads((records / 'manifest.json').read_text()),
    json.loads((records / 'run.json').read_text()),
  )


def row(
  rate: float,
  audit: dict[str, Any],
  manifest: dict[str, Any],
  run: dict[str, Any],
) -> dict[str, Any]:
  """The row of one rate, of what its audit and its run have written."""
  videos = audit['videos']
  pairs = sum(video['frame_pairs'] for video in videos)
  calls = sum(video['matcher_calls'] for video in manifest['videos'])
  return {
    'fps': rate,
    'frames': sum(video['frames'] for video in videos),
    'frame_pairs': pairs,
    'long_frame_pairs': sum(video['long_frame_pairs'] for video in videos),
    'records': audit['records'],
    'matcher_calls_per_pair': calls / pairs if pairs else None,
    'seconds': sum(run['video_seconds'].values()),
    'consistent_share': audit['sample']['share'],
    'interval_95': audit['sample']['interval_95'],
    'sampson_px': audit['epipolar']['sampson_px'],
    'sampson_px_per_gap': audit['epipolar']['sampson_px_per_gap'],
    'pose': audit.get('pose'),
  }


def main() -> None:
  """Measures every rate and writes table and page."""
  rates = _rates()
  if not pathlib.Path(_INPUT.value).exists():
    raise errors.UserError(f'{_INPUT.value}: no such file or folder')
  output = files.claim_output(_OUTPUT.value, _TOOL)
  rows = [measure(rate, output) for rate in rates]
  title = f'Frame rates: {pathlib.Path(_INPUT.value).name}'
  html = rates_page.render(title, rows)
  for rate in rates:
    audit = output / f'fps_{rate:g}' / 'audit' / 'index.html'
    html = page.link(html, output, f'Audit at {rate:g} fps', audit)
  with files.atomic_path(output / 'index.html') as temporary:
    temporary.write_text(html)
  files.write_json(output / 'fps.json', {'rates': rows})
  given = {
    'input': _INPUT.value,
    'output': command.beside(output, 'records'),
    'config.fps': 'FPS',
  }
  counts = ', '.join(f'{row["records"]} at {row["fps"]:g}' for row in rows)
  command.finish(
    _OUTPUT.value,
    f'records by frames per second: {counts}',
    look_at='index.html',
    then=('make records at one of them', 'preprocessing.run', given),
  )


if __name__ == '__main__':
  command.run(main)
