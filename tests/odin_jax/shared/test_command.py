"""What every command does with flags, errors and files."""

import ast
import io
import logging
import os
import pathlib
import subprocess
import sys

import pytest

from configs import common
from odin_jax.shared import command, config_files, errors, files
from tests import test_readme

_REPOSITORY = pathlib.Path(__file__).resolve().parents[3]
COMMANDS = [
  f'{folder}.{path.stem}'
  for folder in ('preprocessing', 'odin_jax')
  for path in sorted((_REPOSITORY / folder).glob('*.py'))
  if 'command.run(main)' in path.read_text()
]
PROGRAM = '''
"""A command."""
import logging
from absl import flags
from odin_jax.shared import command, errors

CONFIG = command.define_config({config!r})
OUTPUT = command.define_output()
SOURCE = command.define_paths('source', 'Files.')
ANYWHERE = command.define_path('anywhere', 'A place.', may_be_address=True)
STOP = flags.DEFINE_string('stop', '', 'How to stop.')


def main():
  if STOP.value == 'user':
    raise errors.UserError('file.mp4: is bad;\\n mend it')
  if STOP.value == 'disk':
    raise OSError(28, 'No space left on device', 'out.bin')
  if STOP.value == 'bug':
    raise ValueError('a bug')
  if STOP.value == 'end':
    command.finish(
      OUTPUT.value,
      '3 views',
      look_at='index.html',
      then=('go on', 'odin_jax.train', {{'records': OUTPUT.value}}),
    )
  elif STOP.value == 'noise':
    for line in ('information', 'warning'):
      level = getattr(logging, line.upper().replace('INFORMATION', 'INFO'))
      logging.getLogger('jax').log(level, line)
  elif STOP.value == 'path':
    print(OUTPUT.value, SOURCE.value)
  else:
    print(CONFIG.value.to_dict())


if __name__ == '__main__':
  command.run(main)
'''
CONFIG = """
import ml_collections
from configs import common


def get_config(argument=None):
  recipe, values = common.parse_argument(
    argument, recipes=('world', 'other'), defaults={'size_px': 32}
  )
  config = ml_collections.ConfigDict({'recipe': recipe, **values})
  # How long it is,
  # in steps.
  config.steps = 3
  return config
"""


@pytest.fixture
def call(tmp_path, repository):
  config = tmp_path / 'config.py'
  config.write_text(CONFIG)
  (tmp_path / 'other.py').write_text(CONFIG.replace('steps', 'runs'))
  more = CONFIG.replace('config.steps', 'config.width = config.steps')
  (tmp_path / 'more.py').write_text(more)
  program = tmp_path / 'program.py'
  program.write_text(PROGRAM.format(config=str(config)))

  def run(*arguments):
    places = {'FILE': config, 'FOLDER': tmp_path}
    for name, path in places.items():
      arguments = [a.replace(name, str(path)) for a in arguments]
    return subprocess.run(
      [sys.executable, str(program), *arguments],
      capture_output=True,
      text=True,
      env={**os.environ, 'PYTHONPATH': str(repository)},
    )

  return run


def test_config_arguments_and_fields(call):
  assert call().stdout == "{'recipe': 'world', 'size_px': 32, 'steps': 3}\n"
  done = call('--config=FILE:other,size_px=64', '--config.steps=5')
  assert done.stdout == "{'recipe': 'other', 'size_px': 64, 'steps': 5}\n"


def test_a_config_is_loaded_for_a_command_without_the_flag(tmp_path):
  path = tmp_path / 'config.py'
  path.write_text(CONFIG)
  # An absolute path replaces the repository's.
  config = command.load_config(str(path), 'other,size_px=64')
  assert config.to_dict() == {'recipe': 'other', 'steps': 3, 'size_px': 64}
  assert command.load_config(str(path)).recipe == 'world'


def test_home_is_expanded_and_variables_are_not(call, monkeypatch, tmp_path):
  monkeypatch.setenv('HOME', str(tmp_path / 'home'))
  home, root = tmp_path / 'home', os.path.expanduser('~root')
  done = call(
    '--stop=path', '--output=~/a b', '--source=~/x,./~y,~root/z,$HOME'
  )
  sources = [f'{home}/x', './~y', f'{root}/z', '$HOME']
  assert done.stdout == f'{home}/a b {sources}\n'
  for address in ('gs://bucket/run', 's3://bucket/~/run'):
    assert call(f'--anywhere={address}').returncode == 0


def test_every_flag_that_is_a_path_is_defined_as_one(repository):
  no_paths = {'title', 'url', 'proxy', 'ray_address', 'background'}
  no_paths |= {'coordinator', 'profile_steps', 'topology', 'host', 'token'}
  no_paths |= {'video'}
  for folder in ('odin_jax', 'preprocessing'):
    for path in (repository / folder).glob('*.py'):
      for call in ast.walk(ast.parse(path.read_text())):
        if isinstance(call, ast.Call):
          function = getattr(call.func, 'attr', '')
          if function == 'DEFINE_string':
            assert call.args[0].value in no_paths, path


@pytest.mark.parametrize(
  'arguments,message',
  [
    (['--config.stepz=5'], 'steps'),
    (['--config.steps=many'], 'many'),
    (['--config=configs/nothing.py'], 'takes --config='),
    (['--config=README.md'], 'is no config file'),
    (['--config=odin_jax/train.py'], 'is no config file'),
    (['--config=configs/train.py'], 'of another command: lacks'),
    (['--config=configs/train.py', '--config.stepz=2'], 'another command'),
    (['--config', 'configs/worlds.py'], 'of another command: lacks'),
    (['--config=FILE:nothing'], "recipe 'nothing' is none of"),
    (['--config=FILE:world,width=3'], 'width=3'),
    (['--config=FILE:world,size_px=wide'], 'expected a int'),
    (['--config=FOLDER/other.py'], 'it lacks steps and has runs, which'),
    (['--config=FOLDER/more.py'], ': it has width, which nothing reads;'),
    (['--config=/no/such/file.py'], '/no/such/file.py'),
    (['--nothing=1'], 'nothing'),
    (['stray'], 'stray'),
    (['--output=gs://bucket/run'], 'only local paths work here'),
    (['--output=s3:/bucket/run'], 'only local paths work here'),
    (['--output='], 'the path is empty'),
    (['--output=~no_such_user/run'], "no user 'no_such_user'"),
    (['--source=a.bin,gs://bucket/b.bin'], 'only local paths work here'),
    (['--anywhere=gs:/bucket/run'], 'gs://bucket/run'),
    (['--anywhere=~no_such_user/run'], "no user 'no_such_user'"),
    (['--stop=user'], 'file.mp4: is bad; mend it'),
    (['--stop=disk'], 'out.bin: No space left on device'),
  ],
)
def test_bad_input_is_one_line_and_status_2(call, arguments, message):
  done = call(*arguments)
  assert done.returncode == 2
  assert message in done.stderr
  assert done.stderr.count('\n') == 1 and not done.stdout


def test_a_command_ends_with_what_it_made_and_what_to_type(call):
  done = call('--stop=end', '--output=runs/a b')
  assert done.stdout.splitlines() == [
    'runs/a b: 3 views',
    'open: runs/a b/index.html',
    "go on: python -m odin_jax.train '--records=runs/a b'",
  ]
  assert not done.stderr


@pytest.mark.parametrize('encoding', ['ascii', 'latin-1', 'utf-8'])
def test_what_was_made_is_told_on_any_terminal(monkeypatch, encoding):
  buffer = io.BytesIO()
  stream = io.TextIOWrapper(buffer, encoding=encoding)
  monkeypatch.setattr(sys, 'stdout', stream)
  command.finish(os.fsdecode(b'caf\xe9/\xc3\xa4\xe2\x80\xa6'), 'one')
  stream.flush()
  assert buffer.getvalue().startswith(b'caf\\udce9/')
  assert buffer.getvalue().endswith(b': one\n')


# The others have lines of their own.
_OF_THEIR_OWN = {'odin_jax.report', 'odin_jax.serve', 'preprocessing.run'}


@pytest.mark.parametrize('name', sorted({*COMMANDS} - _OF_THEIR_OWN))
def test_every_command_names_a_next_one_that_there_is(repository, name):
  source = (repository / f'{name.replace(".", "/")}.py').read_text()
  assert 'command.finish(' in source
  given: set[str] = set()
  for node in ast.walk(ast.parse(source)):
    if isinstance(node, ast.FunctionDef):
      # In the order of the lines: the flags, then whose they are.
      for part in sorted(
        (n for n in ast.walk(node) if isinstance(n, (ast.Dict, ast.Tuple))),
        key=lambda part: part.lineno,
      ):
        if isinstance(part, ast.Dict):
          keys = [getattr(key, 'value', None) for key in part.keys]
          given = {key for key in keys if isinstance(key, str)}
        elif part.elts and getattr(part.elts[-1], 'id', None) == 'given':
          _, module, _ = part.elts
          path = repository / f'{module.value.replace(".", "/")}.py'
          known = test_readme.flag_names(path, repository)
          assert {key.partition('.')[0] for key in given} <= known, given


def test_what_other_packages_tell_is_not_shown(call):
  done = call('--stop=noise')
  assert done.stderr == 'warning: warning\n'


def test_messages_of_this_project_are_plain_lines(repository):
  def record(path, level):
    return logging.LogRecord('absl', level, path, 1, 'a %s', ('line',), None)

  formatter = command._PlainFormatter()
  for path, level, shown in (
    ('odin_jax/train.py', logging.INFO, 'a line'),
    ('preprocessing/ids.py', logging.WARNING, 'warning: a line'),
    ('.venv/jax/xla_bridge.py', logging.INFO, None),
    ('.venv/jax/xla_bridge.py', logging.WARNING, 'warning: a line'),
    ('.venv/orbax/checkpoint.py', logging.WARNING, None),
  ):
    message = record(str(repository / path), level)
    assert command._is_for_the_user(message) == (shown is not None)
    assert shown is None or formatter.format(message) == shown


def test_a_bug_keeps_its_traceback(call):
  done = call('--stop=bug')
  assert done.returncode == 1
  assert 'Traceback' in done.stderr


def test_help_is_no_failure(call):
  done = call('--help')
  assert done.returncode == 0
  assert '--stop: How to stop.' in done.stdout
  assert '--config:' in done.stdout
  assert '--output: Folder to write;' in done.stdout


def test_help_lists_the_fields_of_the_config_that_is_given(call):
  shown = call('--help', '--config=FILE:other,size_px=64').stdout
  assert "\n  --config.recipe='other'\n" in shown
  assert '\n  # How long it is,\n  # in steps.\n  --config.steps=3\n' in shown
  assert '\n  --config.size_px=64' in shown


@pytest.mark.parametrize(
  ('name', 'field', 'comment'),
  [
    ('preprocess', '--config.fps=1.0', 'Keyframes per second'),
    ('preprocess', '--config.views.num_tries=48', 'Explained in'),
    ('worlds', '--config.views.num_tries=8', 'the next pair costs less'),
    ('train:odin', '--config.optimizer.conditioning_factor=10.0', 'as fast'),
    ('train', '--config.model.unet.model_channels=96', 'In scene units'),
    ('evaluate', '--config.num_pairs=128', 'Size of the fixed subset'),
  ],
)
def test_every_field_is_explained_as_its_source_has_it(
  repository, name, field, comment
):
  file, _, recipe = name.partition(':')
  path = str(repository / 'configs' / f'{file}.py')
  text = config_files.explain(f'{path}:{recipe}')
  assert f'\n  {field}\n' in text
  before = text[: text.index(f'\n  {field}\n')]
  assert comment in before
  config = config_files.load(path, recipe or None)
  # Every leaf once.
  fields = [line for line in text.splitlines() if '--config.' in line]
  assert len(fields) == len(set(fields))
  assert all(f'--config.{key}' in text for key in config)


def test_a_config_is_found_from_any_folder(call, tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  done = call('--config=configs/train.py')
  assert 'it is of another command' in done.stderr
  # A folder of that name is not taken for the repository's.
  (tmp_path / 'configs').mkdir()
  (tmp_path / 'configs/__init__.py').write_text('')
  monkeypatch.setenv('HOME', str(tmp_path))
  assert call('--config=~/config.py:other').stdout.startswith("{'recipe'")


def test_a_file_that_is_run_as_a_script_says_what_to_type(repository):
  # From another folder, and without what tests have on their path.
  environment = {k: v for k, v in os.environ.items() if k != 'PYTHONPATH'}
  for name in COMMANDS:
    path = repository / f'{name.replace(".", "/")}.py'
    done = subprocess.run(
      [sys.executable, '-S', str(path), '--help'],
      capture_output=True,
      text=True,
      cwd='/',
      env=environment,
    )
    assert done.returncode == 2
    assert done.stderr == f'error: type: python -m {name}\n'
  assert len(COMMANDS) >= 12


# Every command in a fork of one process, so that what they share is loaded
# once.
_REFUSE = """
import os, runpy, sys
import av, cv2, pyarrow, scipy.spatial, scipy.stats, tensorflow_datasets

def refuse(command):
  if not os.fork():
    sys.argv = [command, '--nothing=1']
    try:
      runpy.run_module(command, run_name='__main__', alter_sys=True)
    except SystemExit as stop:
      print(command, stop.code, *sys.modules, flush=True)
    os._exit(0)
  os.wait()

light, using_jax = (names.split() for names in sys.argv[1:])
for name in light:
  refuse(name)
import flax.nnx
for name in using_jax:
  refuse(name)
"""


def test_flags_are_read_before_what_is_slow_to_load(repository):
  using_jax = {'train', 'cache_latents', 'plan', 'evaluate', 'generate'}
  using_jax |= {'port_weights', 'serve', 'splat'}
  using_jax = {f'odin_jax.{name}' for name in using_jax}
  light = set(COMMANDS) - using_jax
  done = subprocess.run(
    [sys.executable, '-c', _REFUSE, ' '.join(light), ' '.join(using_jax)],
    capture_output=True,
    text=True,
    cwd=repository,
  )
  assert done.stderr == len(COMMANDS) * (
    "error: Unknown command line flag 'nothing'; see --help\n"
  )
  slow = {'torch', 'pycolmap', 'ray', 'orbax', 'grain', 'tensorflow'}
  for line in done.stdout.splitlines():
    command, status, *loaded = line.split()
    assert status == '2'
    # Jax is needed to know what some flags may be.
    others = slow if command in using_jax else slow | {'jax', 'flax'}
    assert not others & set(loaded), command
  assert done.stdout.count('\n') == len(COMMANDS)


def test_an_output_folder_is_made_and_continued(tmp_path):
  folder = tmp_path / 'a' / 'b'
  for _ in range(2):
    assert files.claim_output(folder, 'tool') == folder
    (folder / 'result').write_text('x')


def test_a_folder_of_someone_else_is_refused(tmp_path):
  (tmp_path / 'precious.txt').write_text('x')
  with pytest.raises(errors.UserError, match='precious.txt'):
    files.claim_output(tmp_path, 'tool')
  claimed = files.claim_output(tmp_path / 'claimed', 'tool')
  with pytest.raises(errors.UserError, match='made by tool, not by other'):
    files.claim_output(claimed, 'other')


def test_an_output_that_cannot_be_written_is_refused(tmp_path):
  (tmp_path / 'file').write_text('x')
  with pytest.raises(errors.UserError, match='cannot be used as output'):
    files.claim_output(tmp_path / 'file' / 'below', 'tool')


def test_a_failed_write_leaves_the_old_file_and_no_orphan(tmp_path):
  path = tmp_path / 'result.json'
  files.write_json(path, {'a': 1})
  before = path.read_bytes()
  with pytest.raises(ValueError):
    files.write_json(path, {'a': float('nan')})
  with pytest.raises(RuntimeError), files.atomic_path(path) as temporary:
    temporary.write_text('half')
    raise RuntimeError
  assert path.read_bytes() == before
  assert list(tmp_path.iterdir()) == [path]


def test_config_values_keep_their_type():
  def parse(argument):
    return common.parse_argument(
      argument,
      recipes=('a', 'b'),
      defaults={'x': 1.5, 'n': 2, 'on': False, 's': 'text'},
    )

  assert parse(None) == ('a', {'x': 1.5, 'n': 2, 'on': False, 's': 'text'})
  assert parse('b,x=2,on=True,s=1')[1] == {
    'x': 2.0,
    'n': 2,
    'on': True,
    's': '1',
  }
  for bad in ('b,n=1.5', 'b,on=1', 'b,n=True', 'b,x'):
    with pytest.raises(ValueError):
      parse(bad)
