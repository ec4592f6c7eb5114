"""Videos taken out of finished records: as if they had never been in."""

import json
import os
import pathlib
import shutil
import signal
import sys

import pytest

from odin_jax.shared import errors, files, record_folder, schema, tfrecord
from preprocessing import ids
from preprocessing.writing import dropping, merging, parts, shards
from tests.helpers import commands, posed_records

NAMES = ['walk', 'ride', 'boat', 'Walk #3', 'empty']
GONE = ['ride', 'Walk #3']
ASKED = frozenset([*GONE, 'never here', '..', '../walk', '/', ''])
UNUSABLE = {'video_id': 'flat', 'stage': 'input', 'reason': 'not a video'}


def make_part(output, index, name):
  generator = posed_records.np.random.default_rng(index)
  count = 0 if name == 'empty' else 4 + index
  parts.write(
    output,
    name,
    records=[
      posed_records.make_record(
        generator, name, 'test' if i % 3 == 0 else 'train', size_px=16
      )
      for i in range(count)
    ],
    summary={'frames': index},
    dropped=[{'stage': 'pairs', 'reason': 'too blurred', 'frames': [0, index]}],
    fingerprint='a',
  )


def merge(output, names):
  return merging.merge(
    output,
    video_ids=names,
    config={'fps': 1},
    tool='preprocessing.run',
    extra_dropped=[UNUSABLE],
  )


def make(output, names, monkeypatch, shard_bytes=6000):
  """A finished folder with several shards per split."""
  monkeypatch.setattr(shards, '_SHARD_BYTES', shard_bytes)
  files.claim_output(output, 'preprocessing.run')
  for index, name in enumerate(NAMES):
    if name in names:
      make_part(output, index, name)
      for folder in ('cameras', 'rejected'):
        (output / folder / name).mkdir(parents=True)
        (output / folder / name / 'file').write_text(name)
  merge(output, names)
  return output


def contents(folder):
  return {
    str(path.relative_to(folder)): path.read_bytes()
    for path in sorted(folder.rglob('*'))
    if path.is_file()
  }


def public(folder):
  """What describes the records, and they themselves."""
  return {
    name: data
    for name, data in contents(folder).items()
    if '/' not in name and not name.startswith('.')
  }


def records(folder):
  """The encoded records of both splits; raises where shards are missing."""
  return [
    schema.encode(record)
    for split in schema.SPLITS
    for record in record_folder.RecordFolder(folder, split)
  ]


@pytest.fixture
def folder(tmp_path, monkeypatch):
  made = make(tmp_path / 'records', NAMES, monkeypatch)
  assert len(list(made.glob('*train*'))) > 2
  return made


@pytest.fixture
def without(tmp_path, monkeypatch):
  """The folder of a run that never had these videos."""
  stay = [name for name in NAMES if name not in GONE]
  return make(tmp_path / 'without', stay, monkeypatch)


@pytest.mark.parametrize('with_parts', [True, False])
def test_nothing_of_the_videos_is_left(folder, without, with_parts):
  if not with_parts:
    shutil.rmtree(folder / 'parts')
  old = json.loads((folder / 'manifest.json').read_text())
  record_folder.RecordFolder(folder, 'train').index()
  manifest = dropping.drop(folder, ASKED)
  describing = {'manifest.json', 'ledger.jsonl', 'dropped_ids.txt'}
  left, expected = contents(folder), contents(without)
  if not with_parts:
    expected = {n: d for n, d in expected.items() if not n.startswith('parts/')}
  assert left.keys() - describing == expected.keys() - describing
  for name in expected.keys() - describing:
    assert left[name] == expected[name], name
  assert manifest == json.loads(left['manifest.json'])
  clean = json.loads(expected['manifest.json'])
  for key in ('videos', 'shards', 'tool', 'config', 'versions'):
    assert manifest[key] == clean[key]
  for split in schema.SPLITS:
    assert manifest['counts'][split] == clean['counts'][split]
    assert manifest['counts'][split] < old['counts'][split]
  assert manifest['counts']['videos'] == len(NAMES) - len(GONE)
  assert manifest['dropped_on_request'] == sorted(GONE)
  assert manifest['absent_on_request'] == len(ASKED) - len(GONE)
  assert not list(folder.rglob('.tmp-*')) and not (folder / '.drop').exists()


def test_the_ledger_keeps_one_row_for_each(folder):
  dropping.drop(folder, ASKED | {'flat'})
  rows = [json.loads(row) for row in (folder / 'ledger.jsonl').open()]
  assert [row['video_id'] for row in rows] == [
    'walk',
    'boat',
    'empty',
    'Walk #3',
    'flat',
    'ride',
  ]
  for row in rows[3:]:
    assert row == {
      'video_id': row['video_id'],
      'stage': 'request',
      'reason': 'dropped on request',
    }
  manifest = json.loads((folder / 'manifest.json').read_text())
  assert manifest['counts']['dropped'] == len(rows)


def test_one_by_one_is_as_all_at_once(folder, tmp_path, monkeypatch):
  other = make(tmp_path / 'other', NAMES, monkeypatch)
  for name in sorted(ASKED):
    dropping.drop(folder, [name])
  dropping.drop(other, ASKED)
  dropping.drop(other, [])
  assert contents(folder) == contents(other)


def test_a_later_merge_brings_nothing_back(folder):
  dropping.drop(folder, ASKED)
  before = contents(folder)
  make_part(folder, NAMES.index('ride'), 'ride')
  make_part(folder, NAMES.index('Walk #3'), 'Walk #3')
  merge(folder, NAMES)
  assert contents(folder) == before
  # So does one that was told to leave them out.
  rows = [{**UNUSABLE, 'video_id': name} for name in GONE]
  merging.merge(
    folder,
    video_ids=[name for name in NAMES if name not in GONE],
    config={'fps': 1},
    tool='preprocessing.run',
    extra_dropped=[UNUSABLE, *rows],
  )
  assert contents(folder) == before


def test_ids_that_are_not_there_rewrite_no_shard(folder):
  before = public(folder)
  inodes = {path.name: path.stat().st_ino for path in folder.glob('*tfrecord*')}
  dropping.drop(folder, {'never here', '..'})
  after = public(folder)
  assert after.pop('dropped_ids.txt') == b'..\nnever here\n'
  manifest = json.loads(after.pop('manifest.json'))
  assert manifest.pop('absent_on_request') == 2
  old = json.loads(before.pop('manifest.json'))
  assert old.pop('absent_on_request') == 0
  assert manifest == old and after == before
  for name, inode in inodes.items():
    assert (folder / name).stat().st_ino == inode


def test_nothing_is_touched_when_nothing_would_be_left(folder):
  before = contents(folder)
  with pytest.raises(errors.UserError, match='no record would be left'):
    dropping.drop(folder, NAMES[:4])
  assert contents(folder) == before


@pytest.mark.parametrize('damage', ['cut', 'flip', 'remove', 'ledger'])
def test_nothing_is_touched_where_the_folder_is_damaged(folder, damage):
  path = sorted(folder.glob('*test*'))[-1]
  data = bytearray(path.read_bytes())
  if damage == 'cut':
    path.write_bytes(data[: len(data) // 2])
  elif damage == 'flip':
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
  elif damage == 'remove':
    path.unlink()
  else:
    path = folder / 'ledger.jsonl'
    path.write_text('{"video')
  before = contents(folder)
  with pytest.raises(errors.UserError, match=path.name):
    dropping.drop(folder, ASKED)
  assert contents(folder) == before


_CHANGES = ('os.rename', 'os.remove', 'os.rmdir', 'os.mkdir', 'os.truncate')


def _is_change(event, arguments):
  if event == 'open':
    return isinstance(arguments[1], str) and arguments[1][0] in 'wax'
  return event in _CHANGES


def killed_at(change, work):
  """Does the work in a child that dies before its n-th change of a file.

  Returns:
    whether it died.
  """
  child = os.fork()
  if not child:
    left = [change]

    def hook(event, arguments):
      if _is_change(event, arguments):
        left[0] -= 1
        if left[0] < 0:
          os.kill(os.getpid(), signal.SIGKILL)

    sys.stderr = open(os.devnull, 'w')
    sys.addaudithook(hook)
    work()
    os._exit(0)
  status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
  assert status in (0, -signal.SIGKILL)
  return status != 0


def test_a_kill_at_any_moment_is_mended_by_a_rerun(tmp_path, monkeypatch):
  folder = make(tmp_path / 'records', NAMES, monkeypatch, shard_bytes=10500)
  asked = {'walk', '..'}
  old = records(folder)
  before = public(folder)
  done = tmp_path / 'done'
  shutil.copytree(folder, done)
  dropping.drop(done, asked)
  new, expected = records(done), contents(done)
  # Old and new shards have the same names, so they could be mixed up.
  shard_names = [path.name for path in sorted(folder.glob('*tfrecord*'))]
  assert shard_names == sorted(path.name for path in done.glob('*tfrecord*'))
  assert len(shard_names) > 2
  stages, change, died = set(), 0, True
  while died:
    copy = tmp_path / 'copy'
    shutil.copytree(folder, copy)
    died = killed_at(change, lambda: dropping.drop(copy, asked))
    begun = (copy / '.drop').is_dir() or public(copy) != before
    stages.add((died, begun))
    if not begun:
      assert public(copy) == before and records(copy) == old
    else:
      try:
        # Never a mixture of old and new.
        assert records(copy) in (old, new)
      except errors.UserError as error:
        assert died, error
    if change % 2 and died:
      # A run into the same folder in place of the same command.
      merge(copy, NAMES)
      if begun:
        assert contents(copy) == expected
      else:
        assert public(copy) == before
    dropping.drop(copy, asked)
    assert contents(copy) == expected, change
    shutil.rmtree(copy)
    # Before the new files replace the old ones, some moments will do.
    change += 1 if begun else 8
  assert stages == {(True, False), (True, True), (False, True)}
  assert change > 40


def test_the_command(folder, tmp_path, monkeypatch):
  asked = tmp_path / 'asked.txt'
  asked.write_text('# these\nride\nWalk #3\nnever here\n')
  nothing = tmp_path / 'nothing.txt'
  nothing.write_text('# none\n')
  everything = tmp_path / 'everything.txt'
  everything.write_text('\n'.join(NAMES))
  stranger = tmp_path / 'stranger'
  shutil.copytree(folder, stranger)
  (stranger / '.odin_output.json').unlink()
  audit = tmp_path / 'audit'
  shutil.copytree(folder, audit)
  manifest = json.loads((audit / 'manifest.json').read_text())
  (audit / 'manifest.json').write_text(
    json.dumps({**manifest, 'tool': 'preprocessing.audit'})
  )
  before = contents(folder)
  lines = [
    ([], ['--records']),
    ([f'--records={folder}'], ['--drop_ids']),
    ([f'--records={folder}', f'--drop_ids={nothing}'], ['no id']),
    ([f'--records={folder}', '--drop_ids=absent'], ['absent', 'no such file']),
    ([f'--records={folder}', f'--drop_ids={everything}'], ['no record']),
    ([f'--records={tmp_path}/no', f'--drop_ids={asked}'], ['no such folder']),
    ([f'--records={tmp_path}', f'--drop_ids={asked}'], ['manifest.json']),
    ([f'--records={stranger}', f'--drop_ids={asked}'], ['not made by']),
    ([f'--records={audit}', f'--drop_ids={asked}'], ['preprocessing.audit']),
  ]
  good = [f'--records={folder}', f'--drop_ids={asked}']
  *refused, done = commands.run_all(
    'preprocessing.records', [*(line for line, _ in lines), good]
  )
  commands.assert_refused(refused, [words for _, words in lines])
  assert done[0] == 0, done[1]
  assert '1 of the ids' in done[1]
  assert contents(folder) != before
  assert ids.read_dropped(folder) == {'ride', 'Walk #3', 'never here'}
  left = records(folder)
  assert {tfrecord.decode_example(r)['video_id'][0] for r in left} == {
    b'walk',
    b'boat',
  }
  assert pathlib.Path(folder, 'cameras', 'walk', 'file').is_file()
