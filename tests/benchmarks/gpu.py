"""All that a GPU is wanted for, in one command of half an hour.

    python -m tests.benchmarks.gpu --output=DIR
    python -m tests.benchmarks.gpu --output=DIR --size=tiny     # any machine

Parts run one after the other, each in a process and under a time limit of its
own; what fails, or needs more memory than there is, costs its own rows alone.
After every part `results.json` and `table.md` in DIR are written anew; what a
part printed lies beside them. No network is needed; wheels that are not here are
named, and their parts left out. Parts, with what they measure:

  devices    what JAX finds, the rate of bfloat16 matrix products of 8192^2
  attention  `odin_jax.models.ops` in bfloat16 against plain float32: error, time
  step       the U-Net's training step at batch 8 to 256, 860 M at 256 px, against
             diffusers with torch.compile; share of the matrix rate (MFU)
  train      the whole training step of `odin` from images, with the encoders,
             and from latents of records; memory
  sampling   50 DDIM steps of the U-Net against the same of diffusers
  world      videos, records, training and scores of the `world` recipe: PSNR

Floor for `train` from latents: 137.5 images/s on one A100 (MosaicML's Stable
Diffusion 2 U-Net at 256 px); goals: 2.5 times that on an H100, 1.3 times torch,
half of the matrix rate.
"""

import dataclasses
import importlib.util
import json
import os
import pathlib
import signal
import subprocess
import sys
import time
from typing import Any, Callable

from absl import flags

from odin_jax.shared import command, files

_OUTPUT = command.define_output('Folder for results.json and table.md')
_SIZE = flags.DEFINE_enum('size', 'full', ['full', 'tiny'], 'Of the networks.')
_MINUTES = flags.DEFINE_float('minutes', 30.0, 'For all parts together.', 0.0)
_PARTS = flags.DEFINE_list('parts', None, 'Names of some parts; all.')
flags.mark_flags_as_required(['output'])
_TOOL = 'tests.benchmarks.gpu'
_BATCHES = {'full': (8, 32, 128, 256), 'tiny': (2,)}
# Wheels beside those of the project, and what they are for.
_WHEELS = ('torch', 'diffusers')


@dataclasses.dataclass(frozen=True, kw_only=True)
class Part:
  """A part of the benchmark.

  Attributes:
    name: of its rows.
    commands: modules of Python and their flags, one after the other; each line
      of JSON that they print is a row.
    limit_s: seconds for all of them.
    wheels: that it does not go without.
  """

  name: str
  commands: tuple[tuple[str, ...], ...]
  limit_s: float
  wheels: tuple[str, ...] = ()


def parts(size: str, folder: pathlib.Path) -> list[Part]:
  """All parts, in the order of what is worth knowing first."""
  is_full = size == 'full'
  own = 'tests.benchmarks.gpu_parts'
  batches = _BATCHES[size]

  def measure(name: str, limit_s: float, *arguments: str, **rest: Any) -> Part:
    line = (own, f'--part={name.split("_")[0]}', f'--scale={size}', *arguments)
    return Part(name=name, commands=(line,), limit_s=limit_s, **rest)

  return [
    measure('devices', 90),
    measure('attention', 120),
    *(
      Part(
        name=f'step_{count}',
        commands=(
          (
            'tests.benchmarks.unet',
            '--device=gpu',
            f'--size={size}',
            f'--batch={count}',
            f'--rounds={3 if is_full else 1}',
          ),
        ),
        limit_s=240,
        wheels=_WHEELS,
      )
      for count in batches[::-1]
    ),
    *(
      measure(f'train_latents_{count}', 180, f'--examples={count}')
      for count in batches[::-1]
    ),
    measure(
      f'train_images_{batches[-2:][0]}',
      240,
      f'--examples={batches[-2:][0]}',
      '--input=images',
    ),
    measure('sampling', 240, wheels=_WHEELS),
    Part(name='world', commands=_world(folder, is_full), limit_s=900),
  ]


def _world(folder: pathlib.Path, is_full: bool) -> tuple[tuple[str, ...], ...]:
  """Commands of the recipe `world`, to its scores."""
  videos, records, workdir, scores = (
    f'{folder / name}' for name in ('videos', 'records', 'workdir', 'scores')
  )
  recipe = 'world' if is_full else 'world,runlocal=True'
  steps = () if is_full else ('--config.steps=20',)
  return (
    (
      'preprocessing.worlds',
      f'--output={videos}',
      f'--num_worlds={6 if is_full else 1}',
      f'--seconds={24 if is_full else 12}',
    ),
    (
      'preprocessing.run',
      f'--input={videos}',
      f'--output={records}',
      '--config.split_by=time',
    ),
    (
      'odin_jax.train',
      f'--config=configs/train.py:{recipe}',
      f'--records={records}',
      f'--workdir={workdir}',
      *steps,
    ),
    (
      'odin_jax.evaluate',
      f'--data={records}',
      f'--workdir={workdir}',
      f'--output={scores}',
      '--config.image_size_px=32',
    ),
    (
      'tests.benchmarks.gpu_parts',
      '--part=scores',
      f'--scores={scores}',
      f'--workdir={workdir}',
    ),
  )


def _end(process: subprocess.Popen[bytes]) -> None:
  """Ends a command and all that it started."""
  try:
    os.killpg(process.pid, signal.SIGKILL)
  except ProcessLookupError:
    pass
  process.wait()


def run_command(
  line: tuple[str, ...], log: pathlib.Path, limit_s: float
) -> str:
  """Runs a module of Python; what it prints is added to a file.

  Returns:
    `done`, or what became of it.
  """
  # What torch has freed must be there for JAX, and the other way round.
  environment = os.environ | {'XLA_PYTHON_CLIENT_PREALLOCATE': 'false'}
  with open(log, 'ab') as file:
    process = subprocess.Popen(
      [sys.executable, '-m', *line],
      stdout=file,
      stderr=subprocess.STDOUT,
      env=environment,
      start_new_session=True,
    )
    try:
      status = process.wait(max(limit_s, 0.0))
    except subprocess.TimeoutExpired:
      return f'stopped after {limit_s:.0f} s'
    finally:
      # A command that was stopped, or this one, leaves nothing behind.
      _end(process)
  return 'done' if status == 0 else f'{line[0]} failed (exit {status})'


def rows_of(log: pathlib.Path) -> list[dict[str, Any]]:
  """The lines of JSON in what commands have printed."""
  rows = []
  for line in log.read_text(errors='replace').splitlines():
    if line.startswith('{'):
      try:
        rows.append(json.loads(line))
      except ValueError:
        # Cut by the end of its time.
        continue
  return rows


def run_part(part: Part, folder: pathlib.Path, left_s: float) -> dict[str, Any]:
  """Runs a part.

  Args:
    part: to run.
    folder: for what it prints.
    left_s: seconds until all has to end.

  Returns:
    `status`, `seconds` and `rows`; what a part had printed when it failed counts.
  """
  missing = [x for x in part.wheels if importlib.util.find_spec(x) is None]
  if missing:
    status = f'left out: pip install {" ".join(missing)}'
    return {'status': status, 'seconds': 0.0, 'rows': []}
  log = folder / f'{part.name}.log'
  log.unlink(missing_ok=True)
  start = time.monotonic()
  limit_s = min(part.limit_s, left_s)
  status = 'no time left'
  for line in part.commands:
    left = limit_s - (time.monotonic() - start)
    if left <= 0:
      break
    status = run_command(line, log, left)
    if status != 'done':
      break
  return {
    'status': status,
    'seconds': round(time.monotonic() - start, 1),
    'rows': rows_of(log) if log.exists() else [],
  }


def table(results: dict[str, Any]) -> str:
  """The results as Markdown."""
  lines = ['| part | status | seconds | figures |', '|---|---|---|---|']
  for name, result in results.items():
    figures = '<br>'.join(
      ', '.join(f'{key}: {value}' for key, value in row.items())
      for row in result['rows']
    )
    lines.append(
      f'| `{name}` | {result["status"]} | {result["seconds"]} | {figures} |'
    )
  return '\n'.join(lines) + '\n'


def run_all(
  wanted: list[Part],
  folder: pathlib.Path,
  minutes: float,
  tell: Callable[[str], None],
) -> dict[str, Any]:
  """Runs parts, and writes what is known after each.

  Args:
    wanted: the parts.
    folder: for the results.
    minutes: for all of them.
    tell: is given a line per part.
  """
  end = time.monotonic() + 60 * minutes
  path = folder / 'results.json'
  # Those of other parts stay.
  results = json.loads(path.read_text()) if path.exists() else {}
  for part in wanted:
    results[part.name] = run_part(part, folder, end - time.monotonic())
    files.write_json(path, results)
    with files.atomic_path(folder / 'table.md') as temporary:
      temporary.write_text(table(results))
    tell(f'{part.name}: {results[part.name]["status"]}')
  return results


def main() -> None:
  """Runs the parts that are asked for."""
  folder = files.claim_output(_OUTPUT.value, _TOOL)
  every = parts(_SIZE.value, folder)
  chosen = [
    part
    for part in every
    if not _PARTS.value or part.name.split('_')[0] in _PARTS.value
  ]
  results = run_all(
    chosen, folder, _MINUTES.value, lambda x: print(x, flush=True)
  )
  done = sum(result['status'] == 'done' for result in results.values())
  command.finish(
    _OUTPUT.value, f'{done} of {len(results)} parts done', look_at='table.md'
  )


if __name__ == '__main__':
  command.run(main)
