"""Many command lines of one command, with one import of its packages."""

import json
import os
import subprocess
import sys

# Importing jax takes seconds: it is done once, and every command line runs in a
# fork with its own exit status, without the slow tear-down of the interpreter.
_DRIVER = """
import importlib, json, os, sys, tempfile, traceback
from odin_jax.shared import command

module = importlib.import_module(sys.argv[1])


def start(arguments):
  stderr = tempfile.TemporaryFile()
  pid = os.fork()
  if not pid:
    os.dup2(stderr.fileno(), 2)
    # What the driver itself prints is the result.
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    sys.argv = [module.__file__, *arguments]
    try:
      command.run(module.main)
    except SystemExit as stop:
      os._exit(stop.code or 0)
    except BaseException:
      traceback.print_exc()
      sys.stderr.flush()
      os._exit(1)
  return pid, stderr


def end(pid, stderr):
  status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
  stderr.seek(0)
  return status, stderr.read().decode()


results = []
for group in json.load(sys.stdin):
  started = [start(arguments) for arguments in group]
  results.append([end(*of_one) for of_one in started])
print(json.dumps(results))
"""


def with_devices(count):
  """The value of XLA_FLAGS for a process that is to see so many CPUs."""
  flag = f'--xla_force_host_platform_device_count={count}'
  return f'{os.environ["XLA_FLAGS"]} {flag}'


def run_all(module, command_lines, setup=''):
  """Runs `python -m module ARGUMENTS` for every list of arguments.

  Args:
    module: name of the command, such as `odin_jax.evaluate`.
    command_lines: lists of arguments.
    setup: Python code that runs first, such as one that puts a fake model in
      the place of a real one.

  Returns:
    (exit status, stderr) of each.
  """
  groups = [[line] for line in command_lines]
  return [result for (result,) in run_together(module, groups, setup)]


def run_together(module, groups, setup='', **environment):
  """The same for groups of command lines, those of each at the same time.

  Args:
    module: name of the command.
    groups: lists of command lines.
    setup: see `run_all`.
    **environment: further variables.

  Returns:
    of each group, (exit status, stderr) of each of its command lines.
  """
  done = subprocess.run(
    [sys.executable, '-c', setup + _DRIVER, module],
    input=json.dumps([[list(map(str, x)) for x in group] for group in groups]),
    capture_output=True,
    text=True,
    env=os.environ | environment,
  )
  assert done.returncode == 0, done.stderr
  return json.loads(done.stdout)


def assert_refused(results, expected):
  """One clear line with the expected words, and exit status 2, for each."""
  for (status, stderr), words in zip(results, expected, strict=True):
    line = stderr.strip()
    assert status == 2, line
    assert line.startswith('error: ') and '\n' not in line, line
    assert all(word in line for word in words), (line, words)
