"""The rules that every command follows: flags, exit status, output folders.

A command is a module with absl flags and
`if __name__ == '__main__': binary.run(main)`. Exit status 0 means that the
work was done. Bad input is a `UserError`: one line on stderr that names the
file, what is wrong and what to do, and exit status 2. Anything else is a bug
and keeps its traceback.
"""

import contextlib
import errno
import json
import os
import pathlib
import resource
import sys
import time
from typing import Any, Callable, Iterator, NoReturn

from absl import app, flags, logging
from ml_collections import config_flags

# The flags that `define_config` makes belong to the command that calls it, so
# that its --help shows them.
flags.disclaim_key_flags()

REPOSITORY = pathlib.Path(__file__).resolve().parents[2]
_MARKER = '.odin_output.json'
_TEMPORARY = '.tmp-'
_default_config: str | None = None
_DISK_ERRORS = (
  errno.ENOSPC,
  errno.EDQUOT,
  errno.EROFS,
  errno.EACCES,
  errno.EPERM,
)


class UserError(Exception):
  """Something that the user can mend; its message is one clear line."""


def _stop(message: object) -> NoReturn:
  print(f'error: {" ".join(str(message).split())}', file=sys.stderr)
  sys.exit(2)


def _with_default_config(argv: list[str]) -> list[str]:
  given = any(arg.lstrip('-').split('=')[0] == 'config' for arg in argv[1:])
  if given or _default_config is None:
    return argv
  return [argv[0], f'--config={_default_config}', *argv[1:]]


def _parse_flags(argv: list[str]) -> list[str]:
  try:
    rest = flags.FLAGS(_with_default_config(argv))
    if len(rest) > 1:
      raise flags.Error(f'unexpected arguments {rest[1:]}')
    if _default_config is not None:
      # A file that cannot be loaded is reported on the first use only.
      flags.FLAGS['config'].value.keys()
    return rest
  except SystemExit:
    sys.exit(0)  # After --help, which absl ends with status 1.
  # The config file is loaded and the values given as --config.key=value are set
  # in it while flags are parsed, so its errors surface here.
  except (
    flags.Error,
    AttributeError,
    KeyError,
    TypeError,
    ValueError,
    OSError,
  ) as error:
    _stop(f'{_message(error)}; see --help')


def _message(error: BaseException) -> str:
  # ml_collections raises AttributeError(KeyError(message)) for an unknown
  # field, and quotes the whole traceback of a config file that raised.
  while error.args and isinstance(error.args[0], BaseException):
    error = error.args[0]
  text = str(error.args[0] if len(error.args) == 1 else error).strip()
  if isinstance(error, KeyError):
    text = f'unknown config field {text}'
  if 'Traceback' in text:
    text = f'{text.partition(": Error")[0]}: {text.splitlines()[-1]}'
  return text


def run(main: Callable[[], None]) -> NoReturn:
  """Parses the flags, runs `main` and exits with the status it deserves."""

  def guarded(argv: list[str]) -> None:
    del argv
    try:
      main()
    except UserError as error:
      _stop(error)
    except OSError as error:
      if error.errno not in _DISK_ERRORS:
        raise
      _stop(f'{error.filename or "output"}: {error.strerror}')

  # Orbax tells every step of saving and loading.
  logging.get_absl_handler().addFilter(
    lambda record: 'orbax' not in record.pathname
  )
  app.run(guarded, flags_parser=_parse_flags)


def define_config(default: str) -> flags.FlagHolder[Any]:
  """Defines `--config=FILE:NAME,key=value` and `--config.field=value`.

  Args:
    default: path of the config file in this repository.
  """
  # Not given to absl as the default: it would be loaded at once, and fields
  # that only another config has would be refused.
  global _default_config
  _default_config = str(REPOSITORY / default)
  return config_flags.DEFINE_config_file(
    'config',
    None,
    'Config file, then optionally ":" and its argument (a recipe and '
    'key=value pairs); --config.FIELD=VALUE sets single fields. '
    f'(default: {default})',
  )


def require_file(path: str | os.PathLike[str], what: str) -> pathlib.Path:
  """`path`, or a UserError when there is no such file."""
  path = pathlib.Path(path)
  if not path.is_file():
    raise UserError(f'{path}: no such file; {what} is needed here')
  return path


def require_folder(path: str | os.PathLike[str], what: str) -> pathlib.Path:
  """`path`, or a UserError when there is no such folder."""
  path = pathlib.Path(path)
  if not path.is_dir():
    raise UserError(f'{path}: no such folder; {what} is needed here')
  return path


def claim_output(path: str | os.PathLike[str], tool: str) -> pathlib.Path:
  """Makes the output folder of `tool`, or continues one that it made.

  Args:
    path: the folder; made with its parents where it is absent.
    tool: name of the command, such as `preprocessing.run`.

  Raises:
    UserError: the folder holds something that `tool` did not make, or it
      cannot be written.
  """
  path = pathlib.Path(path)
  marker = path / _MARKER
  try:
    path.mkdir(parents=True, exist_ok=True)
    if marker.is_file():
      owner = json.loads(marker.read_text()).get('tool')
      if owner != tool:
        raise UserError(
          f'{path}: this folder was made by {owner}, not by {tool}; '
          'give another output folder'
        )
      return path
    strangers = [
      entry.name
      for entry in path.iterdir()
      if entry.name != _TEMPORARY + _MARKER
    ]
    if strangers:
      raise UserError(
        f'{path}: not made by {tool} (holds {sorted(strangers)[0]!r}); '
        'give an empty or a new output folder'
      )
    write_json(marker, {'tool': tool})
  except (OSError, ValueError) as error:
    raise UserError(
      f'{path}: cannot be used as output: {error}; give another folder'
    ) from error
  return path


@contextlib.contextmanager
def atomic_path(path: str | os.PathLike[str]) -> Iterator[pathlib.Path]:
  """A temporary path beside `path`, renamed onto it when the block succeeds.

  The temporary name ends like the final one, so that writers which look at
  the extension work, and is always the same, so that a rerun after a kill
  leaves no orphan.
  """
  path = pathlib.Path(path)
  temporary = path.with_name(_TEMPORARY + path.name)
  try:
    yield temporary
    os.replace(temporary, path)
  finally:
    temporary.unlink(missing_ok=True)


def write_json(path: str | os.PathLike[str], content: Any) -> None:
  """Writes indented JSON in one piece; NaN and infinity are errors."""
  text = json.dumps(content, indent=2, allow_nan=False) + '\n'
  with atomic_path(path) as temporary, open(temporary, 'w') as file:
    file.write(text)
    file.flush()
    os.fsync(file.fileno())


class Stopwatch:
  """Wall-clock seconds and peak memory of this process, for figures."""

  def __init__(self) -> None:
    self._start = time.monotonic()

  def figures(self) -> dict[str, float]:
    """`seconds` since construction and `peak_rss_mb` of the process."""
    peak_kb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {
      'seconds': round(time.monotonic() - self._start, 2),
      'peak_rss_mb': round(peak_kb / 1024, 1),
    }
