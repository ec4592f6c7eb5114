"""Config files of commands: found, checked to be the right one, explained."""

import ast
import importlib
import importlib.util
import os
import pathlib
import sys

import ml_collections

from odin_jax.shared import errors, files

REPOSITORY = pathlib.Path(__file__).resolve().parents[2]
_FOLDER = 'configs'
# How many fields a message names.
_NAMED = 3


def import_package() -> None:
  """Imports this repository's `configs`, not one of the current folder."""
  sys.path.insert(0, str(REPOSITORY))
  try:
    importlib.import_module(_FOLDER)
  finally:
    sys.path.remove(str(REPOSITORY))


def environment() -> dict[str, str]:
  """That of a process which finds this project's packages from any folder."""
  path = [str(REPOSITORY), os.environ.get('PYTHONPATH', '')]
  return {**os.environ, 'PYTHONPATH': os.pathsep.join(filter(None, path))}


def load(path: str, argument: str | None = None) -> ml_collections.ConfigDict:
  """A config as its file has it.

  Args:
    path: of the config file, from the repository's root unless absolute.
    argument: what `--config=FILE:ARGUMENT` would give.
  """
  spec = importlib.util.spec_from_file_location('config', REPOSITORY / path)
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module.get_config(argument)


def checked(given: str, default: str) -> str:
  """What `--config` gives, its file found, and of the kind that is needed.

  Args:
    given: file, then optionally ':' and an argument.
    default: the config file of this command.

  Returns:
    `given` with the path that opens from this folder: what is not here is
    looked for in the repository.

  Raises:
    errors.UserError: there is no such file, it is no config, it refuses the
      argument, or it is the config of another command; says what to type.
  """
  file, colon, argument = given.partition(':')
  advice = f'this command takes --config={_shown(default)}'
  path = _find(file, advice)
  try:
    config = load(str(path), argument or None)
    fields = set(config)
  # A config is a program, and may be any file by mistake.
  except Exception as error:  # noqa: BLE001
    what = (
      f'{type(error).__name__}: ' if not isinstance(error, ValueError) else ''
    )
    raise errors.UserError(
      f'--config={given}: {what}{error}; {advice}'
    ) from error
  expected = set(load(default))
  if fields != expected:
    lacks, more = sorted(expected - fields), sorted(fields - expected)
    faults = [f'lacks {_listed(lacks)}'] if lacks else []
    faults += [f'has {_listed(more)}, which nothing reads'] if more else []
    is_like = 2 * len(expected & fields) >= len(expected | fields)
    kind = 'it' if is_like else 'it is of another command:'
    raise errors.UserError(
      f'--config={given}: {kind} {" and ".join(faults)}; {advice}'
    )
  return f'{path}{colon}{argument}'


def _find(file: str, advice: str) -> pathlib.Path:
  path = pathlib.Path(files.local_path(file)).absolute()
  if not path.exists() and (REPOSITORY / file).is_file():
    path = REPOSITORY / file
  if not path.exists():
    raise errors.UserError(f'--config={file}: no such config file; {advice}')
  # What is no config is not run.
  is_config = path.is_file() and b'get_config' in path.read_bytes()
  if path.suffix != '.py' or not is_config:
    raise errors.UserError(
      f'--config={file}: is no config file (a .py with get_config); {advice}'
    )
  return path


def _shown(default: str) -> str:
  path = pathlib.Path(default)
  if path.is_relative_to(REPOSITORY):
    return str(path.relative_to(REPOSITORY))
  return default


def _listed(names: list[str]) -> str:
  more = ', ...' if len(names) > _NAMED else ''
  return ', '.join(names[:_NAMED]) + more


# -- What --help says of the fields --------------------------------------------


def explain(given: str) -> str:
  """Every field of a config as a flag, with its default and its comment.

  Args:
    given: file that is there, then optionally ':' and an argument.
  """
  file, _, argument = given.partition(':')
  config = load(file, argument or None)
  comments = _comments(pathlib.Path(file))
  places = {name: index for index, name in enumerate(comments)}
  lines = [f'Fields of {_shown(given)}, with their defaults:', '']
  values = dict(_flat(config, ''))
  for name in sorted(values, key=lambda name: places.get(name, len(places))):
    for comment in comments.get(name, ()):
      lines.append(f'  # {comment}')
    # Tables have a comment only.
    if not isinstance(values[name], ml_collections.ConfigDict):
      lines.append(f'  --config.{name}={values[name]!r}')
  return '\n'.join(lines)


def _flat(config: ml_collections.ConfigDict, prefix: str):
  for name, value in config.items():
    yield prefix + name, value
    if isinstance(value, ml_collections.ConfigDict):
      yield from _flat(value, f'{prefix}{name}.')


def _comments(path: pathlib.Path) -> dict[str, list[str]]:
  """Names of fields in the order of the source -> comments above them.

  Those of configs that this one imports follow: it may take tables from them.
  """
  source = path.read_text()
  tree, lines = ast.parse(source), source.splitlines()
  fields: list[tuple[str, int]] = []
  for node in ast.walk(tree):
    if isinstance(node, ast.Assign):
      name = _assigned(node.targets[0])
      if name is not None:
        if name:
          fields.append((name, node.lineno))
        fields += _keywords(node.value, f'{name}.' if name else '')
  comments: dict[str, list[str]] = {}
  for name, line in sorted(fields, key=lambda field: field[1]):
    comments.setdefault(name, _above(lines, line))
  for node in ast.walk(tree):
    if isinstance(node, ast.ImportFrom) and node.module == _FOLDER:
      for alias in node.names:
        imported = REPOSITORY / _FOLDER / f'{alias.name}.py'
        comments = {**_comments(imported), **comments}
  return comments


def _assigned(target: ast.expr) -> str | None:
  """`config.a.b` -> 'a.b', `fields` -> '', anything else -> None."""
  names = []
  while isinstance(target, ast.Attribute):
    names.append(target.attr)
    target = target.value
  root = target.id if isinstance(target, ast.Name) else None
  if root == 'fields' and not names:
    return ''
  return '.'.join(reversed(names)) if root == 'config' and names else None


def _keywords(value: ast.expr, prefix: str) -> list[tuple[str, int]]:
  """Names and lines of what `dict(a=..., b=dict(...))` sets."""
  if not isinstance(value, ast.Call):
    return []
  fields = []
  for argument in value.args:
    fields += _keywords(argument, prefix)
  for keyword in value.keywords:
    if keyword.arg:
      fields.append((prefix + keyword.arg, keyword.lineno))
      fields += _keywords(keyword.value, f'{prefix}{keyword.arg}.')
  return fields


def _above(lines: list[str], line: int) -> list[str]:
  """The comment right above a line, counted from 1, and at its end."""
  comment = []
  index = line - 2
  while index >= 0 and lines[index].lstrip().startswith('#'):
    comment.insert(0, lines[index].strip().lstrip('# '))
    index -= 1
  return comment
