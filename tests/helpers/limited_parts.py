"""Parts of a long benchmark: each in processes and time limits of its own."""

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

from odin_jax.shared import files


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
