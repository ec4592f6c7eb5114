"""The READMEs: what they name exists."""

import ast
import functools
import importlib
import pathlib
import re
import shlex

import pytest

READMES = (
  'README.md',
  'preprocessing/README.md',
  'odin_jax/README.md',
  'tests/benchmarks/README.md',
)
_COMMAND = re.compile(r'python -m ([\w.]+)')
# A file of this project, named in the text.
_FILE = re.compile(
  r'`((?:configs|launch|odin_jax|preprocessing|tests)/[\w/]+\.\w+)[`:]'
)


def anchors(path: pathlib.Path) -> set[str]:
  """The anchors that GitHub gives to the headings of a page."""
  headings = re.findall(r'^#+ (.*)$', path.read_text(), re.MULTILINE)
  return {
    re.sub(r'[^\w\- ]', '', heading.lower()).replace(' ', '-')
    for heading in headings
  }


def code(path: pathlib.Path) -> str:
  """Fenced and indented blocks of a page, and code within its lines."""
  text = path.read_text()
  fenced = re.findall(r'^```\w*\n(.*?)^```', text, re.MULTILINE | re.DOTALL)
  prose = re.sub(r'^```.*?^```', '', text, flags=re.MULTILINE | re.DOTALL)
  indented = re.findall(r'^    .*$', prose, re.MULTILINE)
  spans = [' '.join(span.split()) for span in re.findall(r'`([^`]+)`', prose)]
  return '\n'.join(fenced + indented + spans)


def commands(path: pathlib.Path) -> list[tuple[str, list[str]]]:
  """(module, arguments) of every `python -m` in the code of a page."""
  listed = []
  for line in code(path).splitlines():
    if _COMMAND.search(line):
      words = shlex.split(line, comments=True)
      start = words.index('-m')
      listed.append((words[start + 1], words[start + 2 :]))
  return listed


def module_path(repository: pathlib.Path, module: str) -> pathlib.Path:
  return repository / (module.replace('.', '/') + '.py')


@functools.cache
def flag_names(path: pathlib.Path, repository: pathlib.Path) -> set[str]:
  """Flags that a module defines, or a module of this project it imports."""
  tree = ast.parse(path.read_text())
  names = set()
  for node in ast.walk(tree):
    if isinstance(node, ast.Call):
      function = getattr(node.func, 'attr', getattr(node.func, 'id', ''))
      if function == 'define_config':
        names.add('config')
      elif function.lower().startswith('define') and node.args:
        # Behind the parser of a flag of its own kind.
        name = node.args[function == 'DEFINE']
        if isinstance(name, ast.Constant):
          names.add(name.value)
    elif isinstance(node, ast.ImportFrom):
      for alias in node.names:
        imported = module_path(repository, f'{node.module}.{alias.name}')
        if imported.is_file() and imported != path:
          names |= flag_names(imported, repository)
  return names


def config_of(module: str, arguments: list[str]):
  """The config that a command line names, or the default of its command."""
  defaults = {
    'preprocessing.run': 'configs/preprocess.py',
    'odin_jax.train': 'configs/train.py',
    'odin_jax.evaluate': 'configs/evaluate.py',
  }
  named = [a.partition('=')[2] for a in arguments if a.startswith('--config=')]
  file, _, argument = (named[0] if named else defaults[module]).partition(':')
  config = importlib.import_module(file.removesuffix('.py').replace('/', '.'))
  return config.get_config(argument or None)


@pytest.mark.parametrize('readme', READMES)
def test_links_lead_to_files_and_headings(repository, readme):
  path = repository / readme
  for target in re.findall(r'\]\(([^)]+)\)', path.read_text()):
    if not target.startswith('https://'):
      name, _, anchor = target.partition('#')
      file = path.parent / name if name else path
      assert file.is_file(), target
      assert not anchor or anchor in anchors(file), target


@pytest.mark.parametrize('readme', READMES)
def test_files_that_are_named_exist(repository, readme):
  for name in _FILE.findall((repository / readme).read_text()):
    assert (repository / name).is_file(), name


@pytest.mark.parametrize('readme', READMES)
def test_commands_that_are_named_exist(repository, readme):
  modules = _COMMAND.findall((repository / readme).read_text())
  assert modules
  for module in modules:
    assert module_path(repository, module).is_file(), module


@pytest.mark.parametrize('readme', READMES)
def test_flags_of_commands_exist(repository, readme):
  for module, arguments in commands(repository / readme):
    flags = flag_names(module_path(repository, module), repository)
    for argument in arguments:
      if argument.startswith('--'):
        name = argument[2:].partition('=')[0]
        if name.startswith('config.'):
          field = name.partition('.')[2]
          config = config_of(module, arguments)
          for key in field.split('.'):
            assert key in config, f'{module}: no config field {field}'
            config = config[key]
        else:
          assert name in flags, f'{module}: no flag --{name}'


@pytest.mark.parametrize('readme', READMES)
def test_arguments_of_scripts_exist(repository, readme):
  for script, arguments in re.findall(
    r'bash (launch/\w+\.sh)([^\n#;]*)', code(repository / readme)
  ):
    source = (repository / script).read_text()
    for argument in re.findall(r'--\w[\w-]*', arguments):
      assert argument in source, f'{script} {argument}'


def test_every_command_has_its_example(repository):
  modules = {name for name, _ in commands(repository / 'README.md')}
  for package in ('preprocessing', 'odin_jax'):
    for path in (repository / package).glob('*.py'):
      if 'command.run(main)' in path.read_text():
        assert f'{package}.{path.stem}' in modules


def test_every_benchmark_has_its_row(repository):
  text = (repository / 'tests/benchmarks/README.md').read_text()
  for path in (repository / 'tests/benchmarks').glob('*.py'):
    assert f'`{path.stem}`' in text, path.stem


def test_the_first_page_stays_short(repository):
  lines = (repository / 'README.md').read_text().splitlines()
  assert len(lines) <= 125
  assert max(len(line) for line in lines) <= 130
