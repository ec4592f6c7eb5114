"""Runs one stage of the demo and notes what it cost and how it ended.

  python launch/stage.py RUN_FOLDER NAME -- COMMAND ...

Appends {"stage", "status", "seconds", "peak_rss_mb", "command"} to
RUN_FOLDER/stages.jsonl and ends with the command's exit status. The command
ends with this process and with the one that called it.
"""

import json
import os
import pathlib
import resource
import shlex
import signal
import subprocess
import sys
import time

_POLL_S = 1.0


def _run(command: list[str]) -> int:
  """The exit status of a command, which gets the signals of this process."""
  parent = os.getppid()
  # A terminal sends its interrupt to the command itself. Not ignored: the
  # command would ignore it, too.
  signal.signal(signal.SIGINT, lambda *_: None)
  process = subprocess.Popen(command)
  signal.signal(signal.SIGTERM, lambda *_: process.terminate())
  is_orphan = False
  while True:
    try:
      status = process.wait(_POLL_S)
    except subprocess.TimeoutExpired:
      if not is_orphan and os.getppid() != parent:
        is_orphan = True
        process.terminate()
    else:
      # As a shell has it for a process that a signal ended.
      return 128 - status if status < 0 else status


def main() -> int:
  run_folder, name, _, *command = sys.argv[1:]
  print(f'\n=== {name}: {shlex.join(command)}', file=sys.stderr, flush=True)
  start = time.monotonic()
  status = _run(command)
  seconds = time.monotonic() - start
  # Of the largest process among the command and its children.
  peak_kb = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
  row = {
    'stage': name,
    'status': status,
    'seconds': round(seconds, 1),
    'peak_rss_mb': round(peak_kb / 1024),
    'command': shlex.join(command),
  }
  with open(pathlib.Path(run_folder) / 'stages.jsonl', 'a') as file:
    file.write(json.dumps(row) + '\n')
  ending = f', exit status {status}' if status else ''
  print(f'=== {name}: {seconds:.1f} s{ending}', file=sys.stderr, flush=True)
  return status


if __name__ == '__main__':
  sys.exit(main())
