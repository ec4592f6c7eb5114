"""The rules that every command follows: flags, exit status, output folders.

A command is a module with absl flags and
`if __name__ == '__main__': command.run(main)`. Exit status 0 means that the
work was done, and stdout ends with what was made, where it is and what to type
next. Bad input is an `errors.UserError`: one line on stderr that
names the file, what is wrong and what to do, and exit status 2. Work that
SIGTERM or Ctrl-C stopped has exit status 75 (EX_TEMPFAIL), after which a
scheduler starts it again. Anything else is a bug and keeps its traceback.
"""

import errno
import logging as python_logging
import math
import os
import pathlib
import resource
import shlex
import signal
import sys
import threading
import time
from typing import Any, Callable, Iterable, Mapping, NoReturn

from absl import app, flags, logging
import ml_collections
from ml_collections import config_flags

from odin_jax.shared import config_files, errors, files, locks, storage

# The flags that are defined here belong to the command that asks for them, so
# that its --help shows them.
flags.disclaim_key_flags()

REPOSITORY = config_files.REPOSITORY
_default_config: str | None = None
# The flag that the first word is, where it is none itself.
_first_word: str | None = None
_DISK_ERRORS = (
  errno.ENOSPC,
  errno.EDQUOT,
  errno.EFBIG,
  errno.EROFS,
  errno.EACCES,
  errno.EPERM,
)
_PACKAGES = [str(REPOSITORY / name) for name in ('odin_jax', 'preprocessing')]
# Ask a process to end.
STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT)
# After a callback that a signal came in, which takes less.
_RAISE_AGAIN_S = 0.01


def _stop(message: object) -> NoReturn:
  print(f'error: {" ".join(str(message).split())}', file=sys.stderr)
  sys.exit(errors.UserError.exit_status)


def _given_config(argv: list[str]) -> tuple[str | None, list[str]]:
  """The value of `--config`, and the arguments without it."""
  given, rest, arguments = None, argv[:1], iter(argv[1:])
  for argument in arguments:
    name, equals, value = argument.partition('=')
    if name in ('--config', '-config'):
      given = value if equals else next(arguments, '')
    else:
      rest.append(argument)
  return given, rest


def _with_config(argv: list[str]) -> list[str]:
  """The arguments with a config that was checked, and is of this command."""
  if _default_config is None:
    return argv
  given, rest = _given_config(argv)
  config = _default_config
  if given is not None:
    config = config_files.checked(given, _default_config)
  # Its fields are flags once it is read, so it comes first.
  return [rest[0], f'--config={config}', *rest[1:]]


def _with_first_word(argv: list[str]) -> list[str]:
  """The arguments with `train` as `--action=train`, where that is defined."""
  if _first_word is None or len(argv) < 2 or argv[1].startswith('-'):
    return argv
  return [argv[0], f'--{_first_word}={argv[1]}', *argv[2:]]


def _explain_config(argv: list[str]) -> None:
  """After --help: the fields of the config."""
  is_asked = any(
    argument.lstrip('-') in ('help', 'helpshort', 'helpfull')
    for argument in argv[1:]
  )
  if _default_config is not None and is_asked:
    config = _with_config(argv)[1].partition('=')[2]
    print(f'\n{config_files.explain(config)}')


def _parse_flags(argv: list[str]) -> list[str]:
  try:
    rest = flags.FLAGS(_with_config(_with_first_word(argv)))
    if len(rest) > 1:
      raise flags.Error(f'unexpected arguments {rest[1:]}')
    if _default_config is not None:
      # A file that cannot be loaded is reported on the first use only.
      flags.FLAGS['config'].value.keys()
    _check_finite()
    return rest
  except SystemExit:
    _explain_config(argv)
    sys.exit(0)  # After --help, which absl ends with status 1.
  except errors.UserError as error:
    _stop(error)
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


def _check_finite() -> None:
  """Refuses NaN and infinity, which every bound of a flag lets through."""
  for name in flags.FLAGS:
    value = flags.FLAGS[name].value
    if isinstance(value, float) and not math.isfinite(value):
      raise errors.UserError(f'--{name}={value}: give a finite number')


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
      stop_on_signals()
      main()
    except BaseException as error:
      end = ending(error)
      if end is None:
        raise
      status, line = end
      is_stopped = status == errors.Unfinished.exit_status
      (_leave_unfinished if is_stopped else _stop)(line)
    finally:
      # Nothing is left to do for which a signal should wait.
      signal.setitimer(signal.ITIMER_REAL, 0)
      end_at_once()
      locks.release_all()

  handler = logging.get_absl_handler()
  handler.addFilter(_is_for_the_user)
  handler.setFormatter(_PlainFormatter())
  app.run(guarded, flags_parser=_parse_flags)


def ending(error: BaseException) -> tuple[int, str] | None:
  """Exit status and line that an exception deserves; None: it is a bug."""
  if isinstance(error, (errors.UserError, errors.Unfinished)):
    return error.exit_status, str(error)
  if isinstance(error, KeyboardInterrupt):
    name = str(error) or signal.SIGINT.name
    return (
      errors.Unfinished.exit_status,
      f'stopped by {name}: what is whole stays; the same command goes on',
    )
  if isinstance(error, OSError) and error.errno in _DISK_ERRORS:
    return (
      errors.UserError.exit_status,
      f'{error.filename or "output"}: {error.strerror}',
    )
  return None


class _PlainFormatter(python_logging.Formatter):
  """Messages as they are, what is not as it should be named a warning."""

  def format(self, record: python_logging.LogRecord) -> str:
    """See `logging.Formatter`."""
    text = super().format(record)
    return (
      f'warning: {text}' if record.levelno >= python_logging.WARNING else text
    )


def _is_for_the_user(record: python_logging.LogRecord) -> bool:
  """Whether a message is of this project, or a warning of another one.

  Jax tells which backends it tried, and Orbax every step of saving.
  """
  if record.pathname.startswith(tuple(_PACKAGES)):
    return True
  return (
    record.levelno >= python_logging.WARNING and 'orbax' not in record.pathname
  )


def _leave_unfinished(message: object) -> NoReturn:
  # Where the signal came while a text was run as code, as in namedtuple(),
  # Python would remember it and end by SIGINT; unless another text runs well.
  exec('')
  print(' '.join(str(message).split()), file=sys.stderr)
  sys.exit(errors.Unfinished.exit_status)


def stop_on_signals(*, second_ends: bool = True) -> None:
  """Makes signals end what is going on with its cleaning up; once.

  Args:
    second_ends: a second one ends this process, whatever it is at.
  """

  def stop(number: int, frame: object) -> NoReturn:
    del frame
    end_at_once()
    raise KeyboardInterrupt(signal.Signals(number).name)

  for number in STOP_SIGNALS:
    signal.signal(number, stop)
  sys.unraisablehook = _raise_again
  if not second_ends:
    # Of the process that forked this one.
    signal.set_wakeup_fd(-1)
    return
  reader, writer = os.pipe()
  os.set_blocking(writer, False)
  signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
  threading.Thread(
    target=_end_at_second_signal, args=(reader,), daemon=True
  ).start()


def _raise_again(unraisable: Any) -> None:
  """Stops what a signal did not, since Python passed over its exception.

  It does so where the signal comes in a callback of the garbage collector, such
  as jax has, or in a `__del__`; the work would go on to its end.
  """
  if not isinstance(unraisable.exc_value, KeyboardInterrupt):
    sys.__unraisablehook__(unraisable)
    return
  reason = unraisable.exc_value.args

  def stop(number: int, frame: object) -> NoReturn:
    del number, frame
    raise KeyboardInterrupt(*reason)

  signal.signal(signal.SIGALRM, stop)
  signal.setitimer(signal.ITIMER_REAL, _RAISE_AGAIN_S)


def _end_at_second_signal(reader: int) -> None:
  """Ends a process that is busy outside of Python, where handlers wait.

  Args:
    reader: gives a byte for each signal, when it comes.
  """
  numbers: list[int] = []
  while len(numbers) < 2:
    (number,) = os.read(reader, 1)
    # Others are not of a person.
    numbers += [number] if number in STOP_SIGNALS else []
  locks.release_all()
  os._exit(128 + number)


def end_at_once() -> None:
  """Lets the next signal end this process on the spot."""
  for number in STOP_SIGNALS:
    signal.signal(number, signal.SIG_DFL)


def define_config(default: str) -> flags.FlagHolder[Any]:
  """Defines `--config=FILE:NAME,key=value` and `--config.field=value`.

  Args:
    default: path of the config file in this repository.
  """
  # Not given to absl as the default: it would be loaded at once, and fields
  # that only another config has would be refused.
  global _default_config
  _default_config = str(config_files.REPOSITORY / default)
  config_files.import_package()
  return config_flags.DEFINE_config_file(
    'config',
    None,
    'Config file, then optionally ":" and its argument (a recipe and '
    'key=value pairs); --config.FIELD=VALUE sets single fields. '
    f'(default: {default})',
  )


def load_config(
  path: str, argument: str | None = None
) -> ml_collections.ConfigDict:
  """A config as its file has it, for commands that have no `--config` of it.

  Args:
    path: of the config file in this repository.
    argument: what `--config=FILE:ARGUMENT` would give.
  """
  return config_files.load(path, argument)


def given_fields(config: ml_collections.ConfigDict) -> set[str]:
  """The fields of the command's config that the user gave, as a flag or a file.

  Args:
    config: as it was read; of a file of the user's own, what is otherwise than
      in the command's counts as given.
  """
  prefix = 'config.'
  names = {
    name.removeprefix(prefix)
    for name in flags.FLAGS
    if name.startswith(prefix) and flags.FLAGS[name].present
  }
  given, _ = _given_config(sys.argv)
  _, _, argument = (given or '').partition(':')
  names |= {
    pair.partition('=')[0] for pair in argument.split(',') if '=' in pair
  }
  usual = config_files.load(_default_config)
  return names | {name for name in config if config[name] != usual.get(name)}


# -- What a command says at its end ---------------------------------------------


def finish(
  output: str | os.PathLike[str],
  made: str,
  *,
  look_at: str | None = None,
  then: tuple[str, str, Mapping[str, Any]] | None = None,
) -> None:
  """Says on stdout what was made, where it is, and what to type next.

  Args:
    output: folder or address, as the user gave it.
    made: counts of what is in it.
    look_at: name of a file in it to open, such as its page.
    then: what to do with it, the command that does it, and its flags.
  """
  lines = [f'{output}: {made}']
  if look_at:
    lines.append(f'open: {pathlib.Path(output) / look_at}')
  if then:
    lines.append(next_step(*then))
  say(lines)


def next_step(words: str, module: str, given: Mapping[str, Any]) -> str:
  """A line that tells what to type.

  Args:
    words: what it does.
    module: of the command.
    given: its flags.
  """
  typed = [f'--{name}={value}' for name, value in given.items()]
  return f'{words}: python -m {module} {shlex.join(typed)}'


def say(lines: Iterable[str]) -> None:
  """Writes lines to stdout, whatever is in them: the work is done by then.

  Names of files need not be text, nor need a terminal know all letters.
  """
  text = ''.join(f'{line}\n' for line in lines)
  encoding = sys.stdout.encoding or 'utf-8'
  print(text.encode(encoding, 'backslashreplace').decode(encoding), end='')


def beside(path: str | os.PathLike[str], name: str) -> pathlib.Path:
  """A folder beside another one, or here, for what comes next."""
  return pathlib.Path('' if storage.is_address(path) else path).parent / name


# -- Flags that several commands have ------------------------------------------


def define_first_word(
  name: str, values: Iterable[str], help: str
) -> flags.FlagHolder[str]:
  """Defines a flag whose value may be given as the first word alone."""
  global _first_word
  _first_word = name
  return flags.DEFINE_enum(name, None, list(values), help)


class _PathParser(flags.ArgumentParser):
  """A path, checked and expanded."""

  def __init__(self, check: Callable[[str], str]):
    super().__init__()
    self._check = check

  def parse(self, argument: str) -> str:
    try:
      return self._check(argument)
    except errors.UserError as error:
      # What absl catches and names the flag of.
      raise ValueError(str(error)) from error

  def flag_type(self) -> str:
    return 'path'


class _PathListParser(_PathParser):
  """Paths separated by commas."""

  def parse(self, argument: str | list[str]) -> list[str]:
    if isinstance(argument, list):
      return argument
    return [super(_PathListParser, self).parse(p) for p in argument.split(',')]


def define_path(
  name: str, help: str, *, required: bool = False, may_be_address: bool = False
) -> flags.FlagHolder[str]:
  """Defines a flag that is a path, by default None; `~` is expanded.

  Args:
    name: of the flag.
    help: what it is.
    required: whether it has to be given.
    may_be_address: whether gs://bucket and the like work, too.
  """
  check = files.path_or_address if may_be_address else files.local_path
  return flags.DEFINE(
    _PathParser(check),
    name,
    None,
    help,
    serializer=flags.ArgumentSerializer(),
    required=required,
  )


def define_paths(name: str, help: str) -> flags.FlagHolder[list[str]]:
  """Defines a flag of paths that are separated by commas."""
  return flags.DEFINE(
    _PathListParser(files.local_path),
    name,
    None,
    help,
    serializer=flags.ListSerializer(','),
  )


def define_paths_of_many(
  name: str, help: str, *, may_be_address: bool = False
) -> flags.FlagHolder[list[str]]:
  """Defines a flag that may be given several times, a path each.

  Paths may hold any letter, commas too.

  Args:
    name: of the flag.
    help: what they are.
    may_be_address: whether gs://bucket and the like work, too.
  """
  check = files.path_or_address if may_be_address else files.local_path
  return flags.DEFINE_multi(
    _PathParser(check),
    flags.ArgumentSerializer(),
    name,
    None,
    help,
  )


def define_output(
  what: str = 'Folder to write', *, may_be_address: bool = False
) -> flags.FlagHolder[str]:
  """Defines `--output`, what `files.claim_output` takes."""
  return define_path(
    'output',
    f'{what}; new, or made by this command.',
    may_be_address=may_be_address,
  )


def define_model() -> flags.FlagHolder[str]:
  """Defines `--workdir`, of a model to sample from."""
  return define_path(
    'workdir',
    'Folder of a training run, its address (gs://bucket/folder), or output of '
    'odin_jax.port_weights; or the word pretrained: the checkpoint that comes '
    'with the project (./pretrained is a folder of that name; where there is '
    'one, the word alone is refused).',
    may_be_address=True,
  )


class _CheckpointStepParser(flags.IntegerParser):
  """A whole number, or what else may have been meant."""

  def __init__(self, otherwise: str):
    super().__init__(lower_bound=0)
    self._otherwise = otherwise

  def convert(self, argument: str) -> int:
    try:
      return super().convert(argument)
    except ValueError as error:
      raise ValueError(
        'is no whole number, as the step of a checkpoint is' + self._otherwise
      ) from error


def define_checkpoint_step(
  place: str = 'workdir', otherwise: str = ''
) -> flags.FlagHolder[int]:
  """Defines `--step`, of the checkpoint that is read.

  Args:
    place: the flag that names its folder.
    otherwise: what to give in its place, where a number that is not whole may
      mean something else.
  """
  return flags.DEFINE(
    _CheckpointStepParser(otherwise and f'; {otherwise}'),
    'step',
    None,
    f'Step of the checkpoint in --{place}; not given: the newest.',
    serializer=flags.ArgumentSerializer(),
  )


def define_records(purpose: str) -> flags.FlagHolder[str]:
  """Defines `--records`, a folder that is read; 'to train on' is a purpose."""
  return define_path('records', f'Folder of records {purpose}.')


def define_input() -> flags.FlagHolder[str]:
  """Defines `--input`, of footage."""
  return define_path('input', 'A 360-degree video, or a folder of them.')


def define_exclude_ids() -> flags.FlagHolder[str]:
  """Defines `--exclude_ids`, a list of ids or None."""
  return define_path('exclude_ids', 'List of video ids that are passed over.')


def define_truth() -> flags.FlagHolder[str]:
  """Defines `--truth`, of the poses of rendered videos, or None."""
  return define_path(
    'truth', 'Folder with VIDEO_ID.truth.npz (preprocessing.worlds).'
  )


def define_sample() -> flags.FlagHolder[int]:
  """Defines `--sample`, how many records an audit looks at."""
  return flags.DEFINE_integer(
    'sample', 100, 'Records to draw at random and to judge one by one.', 1
  )


def define_num_workers(items: str) -> flags.FlagHolder[int]:
  """Defines `--num_workers` of what is computed here, 'Videos' for example."""
  return flags.DEFINE_integer(
    'num_workers',
    0,
    f'{items} at a time; 0: as many as there are cores.',
    lower_bound=0,
  )


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
