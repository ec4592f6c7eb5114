"""Runs one stage of the demo and notes what it cost.

  python launch/stage.py RUN_FOLDER NAME -- COMMAND ...

Appends {"stage", "seconds", "peak_rss_mb", "command"} to
RUN_FOLDER/stages.jsonl and ends with the command's exit status.
"""

import json
import pathlib
import resource
import shlex
import subprocess
import sys
import time


def main() -> int:
  run_folder, name, _, *command = sys.argv[1:]
  print(f'\n=== {name}: {shlex.join(command)}', file=sys.stderr, flush=True)
  start = time.monotonic()
  status = subprocess.run(command, check=False).returncode
  seconds = time.monotonic() - start
  # Of the largest process among the command and its children.
  peak_kb = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
  row = {
    'stage': name,
    'seconds': round(seconds, 1),
    'peak_rss_mb': round(peak_kb / 1024),
    'command': shlex.join(command),
  }
  print(f'=== {name}: {seconds:.1f} s', file=sys.stderr, flush=True)
  if status == 0:
    with open(pathlib.Path(run_folder) / 'stages.jsonl', 'a') as file:
      file.write(json.dumps(row) + '\n')
  return status


if __name__ == '__main__':
  sys.exit(main())
