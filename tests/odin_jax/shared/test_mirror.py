"""Workdirs behind addresses: a stand-in store, and its faults."""

from concurrent import futures
import json
import os
import pathlib
import shutil
import signal
import threading
import time
import uuid

from fsspec.implementations import memory
import pytest

from odin_jax.shared import errors, files, locks, mirror
from tests.helpers import buckets

TOOL = 'odin_jax.train'
URL = 'gs://bucket/run'


class Bucket(buckets.Bucket):
  """A store that refuses what it is told to refuse."""

  puts: list = []
  refuses: str | None = None

  def put_file(self, lpath, rpath, **more):
    if self.refuses and self.refuses in str(rpath):
      raise ConnectionError('away')
    self.puts.append(str(rpath).removeprefix('/bucket/run/'))
    return super().put_file(lpath, rpath, **more)

  def _open(self, path, mode='rb', **more):
    file = super()._open(path, mode, **more)
    if 'w' in mode:
      # Its clock may stand still from one write to the next.
      self.store[self._strip_protocol(path)].etag = uuid.uuid4().hex
    return file

  def info(self, path, **more):
    found = super().info(path, **more)
    held = self.store.get(self._strip_protocol(path))
    return found | {'etag': getattr(held, 'etag', '')}

  def find(self, path, **more):
    found = super().find(path, **more)
    if more.get('detail'):
      return {name: self.info(name) for name in found}
    return found


@pytest.fixture
def bucket(monkeypatch, tmp_path):
  monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'cache'))
  buckets.install(monkeypatch, Bucket, puts=[], refuses=None)
  yield Bucket()
  locks.release_all()


@pytest.fixture
def on_another_machine(monkeypatch, tmp_path):
  """Goes on with another cache; what this machine keeps stays where it is."""

  def change(name):
    locks.release_all()
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / name))

  return change


def there(bucket):
  return sorted(
    path.removeprefix('/bucket/run/')
    for path in bucket.find('/bucket/run')
    if not path.endswith(locks.NAME)
  )


def save(folder, step, content=b'weights'):
  path = folder / 'checkpoints' / str(step)
  (path / 'params').mkdir(parents=True)
  (path / 'params' / 'data').write_bytes(content + str(step).encode())
  (path / '_CHECKPOINT_METADATA').write_text('{}')


def content(folder):
  return {
    path.relative_to(folder).as_posix(): path.read_bytes()
    for path in pathlib.Path(folder).rglob('*')
    if path.is_file() and path.name not in (locks.NAME, files.MARKER)
  }


def train(steps, remove=()):
  """What a run does that goes on to `steps`; what it found, what it left."""
  with mirror.Mirror(URL, TOOL) as mirrored:
    found = content(mirrored.folder)
    for step in steps:
      save(mirrored.folder, step)
    for step in remove:
      for path in sorted(
        (mirrored.folder / 'checkpoints' / str(step)).rglob('*'), reverse=True
      ):
        path.rmdir() if path.is_dir() else path.unlink()
      (mirrored.folder / 'checkpoints' / str(step)).rmdir()
    with open(mirrored.folder / 'metrics.jsonl', 'a') as file:
      file.writelines(f'{step}\n' for step in steps)
  locks.release_all()
  return found, content(mirrored.folder)


def test_a_run_is_there_and_goes_on_from_there(bucket, on_another_machine):
  found, left = train([1, 2])
  assert not found and set(there(bucket)) == {*left, files.MARKER}
  assert '/bucket/run/' + locks.NAME not in bucket.find('/bucket/run')
  on_another_machine('second')
  found, left = train([3], remove=[1])
  assert found['metrics.jsonl'] == b'1\n2\n'
  assert 'checkpoints/1/params/data' in found
  assert set(there(bucket)) == {*left, files.MARKER}
  # The first machine's copy is behind, and follows.
  on_another_machine('cache')
  found, _ = train([])
  assert found == left
  assert bucket.cat_file('/bucket/run/metrics.jsonl') == b'1\n2\n3\n'


def test_what_has_not_changed_is_not_moved_again(bucket, monkeypatch):
  train([1, 2])
  bucket.puts.clear()
  get = mirror._Store.get

  def of_locks_alone(self, name, path):
    assert name == locks.NAME
    get(self, name, path)

  monkeypatch.setattr(mirror._Store, 'get', of_locks_alone)
  train([3])
  assert {name for name in bucket.puts if name != locks.NAME} == {
    'metrics.jsonl',
    'checkpoints/3/params/data',
    'checkpoints/3/_CHECKPOINT_METADATA',
  }


def test_a_checkpoint_counts_once_all_of_it_is_there(
  bucket, on_another_machine
):
  train([1])
  bucket.puts.clear()
  Bucket.refuses = 'checkpoints/2/_CHECKPOINT'
  with pytest.raises(errors.UserError) as error:
    train([2])
  assert 'gs://bucket/run' in str(error.value) and '\n' not in str(error.value)
  assert 'away' in str(error.value)
  Bucket.refuses = None
  assert 'checkpoints/2/params/data' in there(bucket)
  assert mirror.copied(URL, None).name == 'step_1'
  # Nobody else has been there: this machine has it still.
  found, _ = train([])
  assert 'checkpoints/2/params/data' in found
  assert mirror.copied(URL, None).name == 'step_2'
  assert bucket.puts[-1] == 'checkpoints/2/_CHECKPOINT_METADATA'
  on_another_machine('second')
  found, _ = train([])
  assert 'checkpoints/2/_CHECKPOINT_METADATA' in found


@pytest.mark.parametrize('removed', ['run', 'run/checkpoints', 'run.json', '.'])
def test_what_is_removed_here_is_not_removed_there(bucket, removed):
  train([1, 2])
  before = there(bucket)
  place = mirror._cache(URL, '.') / removed
  shutil.rmtree(place) if place.is_dir() else place.unlink()
  found, _ = train([])
  assert {*found, files.MARKER} == {*before} == {*there(bucket)}


def test_part_of_a_checkpoint_is_not_brought(bucket, on_another_machine):
  train([1])
  bucket.pipe_file('/bucket/run/checkpoints/2/params/data', b'half')
  bucket.pipe_file('/bucket/run/checkpoints/3.orbax-checkpoint-tmp/x', b'half')
  on_another_machine('second')
  found, _ = train([])
  assert not any(
    name.startswith(('checkpoints/2', 'checkpoints/3')) for name in found
  )
  # And does not stay.
  assert not any('/2/' in name or 'tmp' in name for name in there(bucket))


def test_a_copy_to_read_holds_one_checkpoint(bucket):
  train([1, 2])
  bucket.pipe_file('/bucket/run/encoders/ab.safetensors', b'encoders')
  for step in (None, 1):
    folder = mirror.copied(URL, step)
    assert set(content(folder)) == {
      'metrics.jsonl',
      'encoders/ab.safetensors',
      f'checkpoints/{step or 2}/params/data',
      f'checkpoints/{step or 2}/_CHECKPOINT_METADATA',
    }
  # What has changed there does so here, and what was spoiled here is mended.
  bucket.pipe_file('/bucket/run/metrics.jsonl', b'new')
  (folder / 'encoders' / 'ab.safetensors').write_bytes(b'cut')
  copy = content(mirror.copied(URL, 1))
  assert copy['metrics.jsonl'] == b'new'
  assert copy['encoders/ab.safetensors'] == b'encoders'
  for step, words in ((7, 'those of 1, 2'), (3, 'no checkpoint of step 3')):
    with pytest.raises(errors.UserError, match=words):
      mirror.copied(URL, step)
  with pytest.raises(errors.UserError, match='no checkpoint here yet'):
    mirror.copied('gs://bucket/nothing', None)


def test_commands_may_copy_the_same_at_once(bucket):
  train([1, 2])
  with futures.ThreadPoolExecutor(8) as pool:
    folders = list(pool.map(lambda _: mirror.copied(URL, None), range(16)))
  assert len({*folders}) == 1
  assert content(folders[0])['checkpoints/2/params/data'] == b'weights2'


def _lock_of(**changes):
  me = vars(locks.holder_of(os.getpid())).copy()
  return json.dumps(me | changes).encode()


def test_one_process_at_a_time(bucket):
  train([1])
  bucket.pipe_file(
    f'/bucket/run/{locks.NAME}',
    _lock_of(host='elsewhere', boot='other', pid=1, started='1'),
  )
  before = there(bucket)
  with pytest.raises(errors.UserError) as error:
    train([2])
  assert 'elsewhere' in str(error.value) and URL in str(error.value)
  assert there(bucket) == before
  # Of a process of this machine that is gone.
  bucket.pipe_file(
    f'/bucket/run/{locks.NAME}', _lock_of(pid=2**22 + 1, started='1')
  )
  (mirror._cache(URL, 'run') / locks.NAME).unlink(missing_ok=True)
  train([2])
  assert 'checkpoints/2/params/data' in there(bucket)


def test_who_was_taken_over_leaves_it_to_the_other(bucket):
  with pytest.raises(errors.UserError, match='another process has begun'):
    with mirror.Mirror(URL, TOOL) as mirrored:
      save(mirrored.folder, 1)
      other = _lock_of(host='elsewhere', boot='other')
      bucket.pipe_file(f'/bucket/run/{locks.NAME}', other)
  assert bucket.cat_file(f'/bucket/run/{locks.NAME}') == other
  assert not any('checkpoints' in name for name in there(bucket))


def test_who_is_taken_over_ends(bucket, monkeypatch):
  """Within one round, not after days whose work nobody would find."""
  monkeypatch.setattr(mirror, '_EVERY_S', 0.01)
  ended = threading.Event()
  before = signal.signal(signal.SIGTERM, lambda *_: ended.set())
  try:
    with pytest.raises(errors.UserError, match='another process has begun'):
      with mirror.Mirror(URL, TOOL):
        other = _lock_of(host='elsewhere', boot='other')
        bucket.pipe_file(f'/bucket/run/{locks.NAME}', other)
        # A handler runs in this thread, between two waits.
        until = time.monotonic() + 60
        while not ended.wait(0.01):
          assert time.monotonic() < until
  finally:
    signal.signal(signal.SIGTERM, before)


def test_followers_have_the_newest_checkpoint_and_give_the_next(
  bucket, on_another_machine, tmp_path
):
  train([1, 2])
  temporary = 'checkpoints/3.orbax-checkpoint-tmp/params'
  with mirror.Mirror(URL, TOOL) as mirrored:
    on_another_machine('second')
    follower = mirror.Follower(URL, 1)
    assert mirrored.folder not in (follower.folder, *follower.folder.parents)
    found = content(follower.folder)
    assert found['checkpoints/2/params/data'] == b'weights2'
    assert not any('checkpoints/1' in name for name in found)
    part = follower.folder / temporary / 'ocdbt.process_1' / 'd'
    part.parent.mkdir(parents=True)
    part.write_bytes(b'part')
    follower.give()
    assert content(follower.folder) == found
    mirrored.push()
    mirrored.collect()
    at_first = mirrored.folder / temporary / 'ocdbt.process_1' / 'd'
    assert at_first.read_bytes() == b'part'
    assert not any('tmp' in name for name in there(bucket))
  # What a run left that was killed is not taken for a part of the next.
  part.write_bytes(b'old')
  assert content(mirror.Follower(URL, 1).folder) == found


@pytest.mark.parametrize(
  'name, words',
  [
    ('notes.txt', 'holds something that odin_jax.train did not make'),
    ('a/../../b', 'names that lead out of it'),
  ],
)
def test_folders_of_others_are_left_alone(bucket, name, words):
  bucket.store[f'/bucket/run/{name}'] = memory.MemoryFile(
    bucket, f'/bucket/run/{name}', b'mine'
  )
  with pytest.raises(errors.UserError, match=words):
    train([1])
  assert len(bucket.store) == 1


def test_another_command_s_folder_is_named(bucket):
  bucket.pipe_file(
    f'/bucket/run/{files.MARKER}', json.dumps({'tool': 'other'}).encode()
  )
  with pytest.raises(errors.UserError, match='made by other') as error:
    train([1])
  assert URL in str(error.value)


def test_a_start_that_fails_leaves_no_lock(bucket, on_another_machine):
  train([1])
  on_another_machine('second')
  get = bucket.get_file
  Bucket.get_file = _refusing(get, 'metrics')
  try:
    with pytest.raises(errors.UserError, match='cannot be read'):
      train([2])
  finally:
    del Bucket.get_file
  assert f'/bucket/run/{locks.NAME}' not in bucket.store


def _refusing(get, text):
  def refuse(self, rpath, lpath, **more):
    if text in rpath:
      raise ConnectionError('away')
    return get(rpath, lpath, **more)

  return refuse


def test_an_error_of_the_run_comes_first(bucket):
  Bucket.refuses = 'metrics'
  with pytest.raises(KeyError, match='mine'):
    with mirror.Mirror(URL, TOOL) as mirrored:
      (mirrored.folder / 'metrics.jsonl').write_text('x')
      raise KeyError('mine')
