"""Parts, shards, metadata, ledger: round trips, resume, damage."""

import json
import os
import signal
import subprocess
import sys

import cv2
from hypothesis import given, settings
from hypothesis import strategies as st
import numpy as np
import pytest
import tensorflow_datasets as tfds

from odin_jax.shared import errors, record_folder, schema, tfrecord
from preprocessing.writing import jpeg, merging, parts, splits
from tests.helpers import noise_records


def merge(output, names, **more):
  return merging.merge(
    output, video_ids=names, config={'fps': 1}, tool='a.tool', **more
  )


def contents(folder):
  return {
    path.name: path.read_bytes()
    for path in sorted(folder.iterdir())
    if path.is_file()
  }


@pytest.fixture
def folder(tmp_path):
  noise_records.write_part(tmp_path, 'walk')
  noise_records.write_part(tmp_path, 'ride', count=4, test=0)
  merge(tmp_path, ['walk', 'ride'])
  return tmp_path


def test_what_is_written_is_read_in_order(tmp_path):
  made = noise_records.write_part(tmp_path, 'walk') + noise_records.write_part(
    tmp_path, 'ride'
  )
  merge(tmp_path, ['walk', 'ride'], num_shards=3)
  for split in schema.SPLITS:
    written = [record for record in made if record['split'] == split]
    read = list(record_folder.RecordFolder(tmp_path, split))
    assert len(read) == len(written)
    for a, b in zip(written, read):
      assert a['video_id'] == b['video_id']
      assert a['source/image'] == b['source/image']
      assert a['median_depth'] == b['median_depth']
      assert np.allclose(a['target2source'], b['target2source'])


def test_a_jpeg_is_rgb_and_near_its_image():
  image = np.zeros((32, 32, 3), np.uint8)
  image[..., 0] = 200
  decoded = cv2.imdecode(
    np.frombuffer(jpeg.encode(image), np.uint8), cv2.IMREAD_COLOR
  )
  assert np.abs(decoded[..., ::-1].astype(int) - image).max() < 4


def test_tfds_opens_the_folder_without_tensorflow(folder):
  builder = tfds.builder_from_directory(folder)
  assert builder.name == schema.DATASET_NAME
  splits = builder.info.splits
  assert {name: splits[name].num_examples for name in splits} == {
    'train': 7,
    'test': 2,
  }
  for split in schema.SPLITS:
    for path in splits[split].filepaths:
      assert (folder / path.name).is_file()
  flat = {}

  def flatten(prefix, features):
    for name, feature in features.items():
      if isinstance(feature, tfds.features.FeaturesDict):
        flatten(f'{prefix}{name}/', feature)
      else:
        flat[prefix + name] = feature

  flatten('', builder.info.features)
  assert flat.keys() == schema.FEATURES.keys() - schema.optional_in(
    schema.FEATURES
  )
  for name, feature in flat.items():
    if schema.FEATURES[name].kind == 'float':
      assert feature.shape == schema.FEATURES[name].shape
      assert feature.np_dtype == np.float32
  # And reads what we read, pixels as OpenCV decodes them.
  ours = record_folder.RecordFolder(folder, 'train')
  (path,) = (folder / file.name for file in splits['train'].filepaths)
  texts = tfrecord.RecordFile(path)
  for text, record in zip(texts, ours, strict=True):
    theirs = builder.info.features.deserialize_example_np(text)
    pixels = np.frombuffer(record['source/image'], np.uint8)
    expected = cv2.imdecode(pixels, cv2.IMREAD_COLOR)[..., ::-1]
    np.testing.assert_array_equal(theirs['source']['image'], expected)
    assert theirs['video_id'].decode() == record['video_id']
    np.testing.assert_array_equal(
      theirs['target2source'].ravel(), record['target2source'].ravel()
    )
  assert 'tensorflow' not in sys.modules


def test_only_shards_have_tfrecord_in_their_names(folder):
  named = [path.name for path in folder.rglob('*') if 'tfrecord' in path.name]
  assert sorted(named) == [
    schema.shard_name('test', 0, 1),
    schema.shard_name('train', 0, 1),
  ]


def test_manifest_and_ledger_tell_all(folder):
  manifest = json.loads((folder / 'manifest.json').read_text())
  assert manifest['counts'] == {
    'videos': 2,
    'dropped': 2,
    'train': 7,
    'test': 2,
  }
  assert manifest['config'] == {'fps': 1}
  assert manifest['tool'] == 'a.tool'
  assert [video['video_id'] for video in manifest['videos']] == ['walk', 'ride']
  assert [video['records'] for video in manifest['videos']] == [5, 4]
  assert manifest['videos'][0]['frames'] == 7
  for name, shard in manifest['shards'].items():
    assert shard['bytes'] == (folder / name).stat().st_size
  rows = [json.loads(row) for row in (folder / 'ledger.jsonl').open()]
  assert rows[0] == {
    'video_id': 'walk',
    'stage': 'pairs',
    'reason': 'too blurred',
    'gap_s': 2,
  }


def test_videos_without_part_are_in_the_ledger(tmp_path):
  noise_records.write_part(tmp_path, 'walk')
  row = {'video_id': 'notes.txt', 'stage': 'frames', 'reason': 'no video'}
  merge(tmp_path, ['walk'], extra_dropped=[row])
  rows = [json.loads(row) for row in (tmp_path / 'ledger.jsonl').open()]
  assert rows[-1] == row


def test_a_rerun_changes_no_byte_and_rewrites_no_shard(folder):
  before = contents(folder)
  shard = folder / schema.shard_name('train', 0, 1)
  written = shard.stat().st_mtime_ns, shard.stat().st_ino
  noise_records.write_part(folder, 'walk')
  merge(folder, ['walk', 'ride'])
  assert contents(folder) == before
  assert (shard.stat().st_mtime_ns, shard.stat().st_ino) == written


def test_another_number_of_shards_leaves_nothing_behind(folder):
  whole = [
    r['median_depth'] for r in record_folder.RecordFolder(folder, 'train')
  ]
  merge(folder, ['walk', 'ride'], num_shards=3)
  folder_of_records = record_folder.RecordFolder(folder, 'train')
  assert [r['median_depth'] for r in folder_of_records] == whole
  assert len(list(folder.glob('*train.tfrecord*'))) == 3
  # Never more shards than records.
  assert len(list(folder.glob('*test.tfrecord*'))) == 2
  merge(folder, ['walk'], num_shards=1)
  assert len(list(folder.glob('*tfrecord*'))) == 2


def test_a_video_without_records_is_no_error(tmp_path):
  noise_records.write_part(tmp_path, 'empty', count=0)
  noise_records.write_part(tmp_path, 'walk')
  manifest = merge(tmp_path, ['empty', 'walk'])
  assert manifest['videos'][0]['records'] == 0
  assert manifest['counts']['train'] == 3


def test_a_part_is_done_when_whole_and_of_the_same_fingerprint(tmp_path):
  assert not parts.is_done(tmp_path, 'walk', 'a')
  noise_records.write_part(tmp_path, 'walk')
  assert parts.is_done(tmp_path, 'walk', 'a')
  assert not parts.is_done(tmp_path, 'walk', 'b')
  part = tmp_path / 'parts' / 'walk.part'
  part.write_bytes(part.read_bytes()[:-1])
  assert not parts.is_done(tmp_path, 'walk', 'a')
  with pytest.raises(tfrecord.CorruptRecordError, match='walk.part'):
    merge(tmp_path, ['walk'])


def test_a_damaged_note_is_not_done_and_is_named(tmp_path):
  noise_records.write_part(tmp_path, 'walk')
  (tmp_path / 'parts' / 'walk.json').write_text('{"fingerp')
  assert not parts.is_done(tmp_path, 'walk', 'a')
  with pytest.raises(tfrecord.CorruptRecordError, match='walk.json'):
    merge(tmp_path, ['walk'])


def test_merging_a_missing_part_names_it(tmp_path):
  with pytest.raises(errors.UserError, match='ride.part'):
    merge(tmp_path, ['ride'])


def test_a_bad_record_leaves_no_part(tmp_path):
  for change in ({'overlap': 1.5}, {'video_id': 'ride'}):
    record = {**noise_records.make_record('walk', 0, 'train'), **change}
    with pytest.raises(schema.SchemaError):
      parts.write(
        tmp_path,
        'walk',
        records=[noise_records.make_record('walk', 0, 'train'), record],
        summary={},
        dropped=[],
        fingerprint='a',
      )
    assert not parts.is_done(tmp_path, 'walk', 'a')
    assert not list((tmp_path / 'parts').iterdir())


def test_a_ledger_row_needs_stage_and_reason(tmp_path):
  with pytest.raises(ValueError, match='reason'):
    parts.write(
      tmp_path,
      'walk',
      records=[],
      summary={},
      dropped=[{'stage': 'pairs'}],
      fingerprint='a',
    )


_KILLED = """
import os, signal
from tests.helpers import noise_records
from preprocessing.writing import parts
output = {output!r}
noise_records.write_part(output, 'walk')
def then_die():
  yield noise_records.make_record('ride', 0, 'train')
  os.kill(os.getpid(), signal.SIGKILL)
parts.write(
  output, 'ride', records=then_die(), summary={{}}, dropped=[], fingerprint='a')
"""


def test_a_killed_run_goes_on_to_the_same_bytes(tmp_path, repository):
  killed, whole = tmp_path / 'killed', tmp_path / 'whole'
  program = _KILLED.format(output=str(killed))
  done = subprocess.run(
    [sys.executable, '-c', program],
    cwd=repository,
    env={**os.environ, 'PYTHONPATH': str(repository)},
  )
  assert done.returncode == -signal.SIGKILL
  assert parts.is_done(killed, 'walk', 'a')
  assert not parts.is_done(killed, 'ride', 'a')
  for folder in (killed, whole):
    for name in ('walk', 'ride'):
      if not parts.is_done(folder, name, 'a'):
        noise_records.write_part(folder, name)
    merge(folder, ['walk', 'ride'])
  assert contents(killed) == contents(whole)
  assert not list(killed.rglob('.tmp-*'))


def test_damaged_shards_are_named(folder):
  shard = folder / schema.shard_name('train', 0, 1)
  data = shard.read_bytes()
  flipped = bytearray(data)
  flipped[200] ^= 1
  for content in (b'', data[:-3], bytes(flipped), data + b'x'):
    shard.write_bytes(content)
    with pytest.raises(tfrecord.CorruptRecordError, match=shard.name):
      list(record_folder.RecordFolder(folder, 'train'))


@settings(max_examples=60, deadline=None)
@given(
  video_id=st.text(min_size=1, max_size=12),
  count=st.integers(1, 60),
  fraction=st.floats(0, 1),
)
def test_time_blocks_are_contiguous_and_of_the_right_size(
  video_id, count, fraction
):
  split_of = splits.split_frames(
    video_id, count, splits.Settings(split_by='time', test_fraction=fraction)
  )
  assert len(split_of) == count
  test = [i for i, split in enumerate(split_of) if split == 'test']
  assert -1e-8 <= len(test) - fraction * count < 1
  assert not test or test[-1] - test[0] + 1 == len(test)
  assert split_of == splits.split_frames(
    video_id, count, splits.Settings(split_by='time', test_fraction=fraction)
  )


def test_videos_fall_into_splits_by_their_name_alone():
  def split(name, fraction, count=3):
    split_of = splits.split_frames(
      name, count, splits.Settings(split_by='video', test_fraction=fraction)
    )
    assert len(set(split_of)) == 1
    return split_of[0]

  names = [f'video {i}' for i in range(1000)]
  share = np.mean([split(name, 0.2) == 'test' for name in names])
  assert 0.16 < share < 0.24
  assert all(split(name, 1.0) == 'test' for name in names)
  assert all(split(name, 0.0) == 'train' for name in names)
  # A larger share only adds test videos; length changes nothing.
  for name in names[:100]:
    if split(name, 0.2) == 'test':
      assert split(name, 0.3, count=50) == 'test'


def test_test_blocks_stand_at_different_places():
  first = [
    splits.split_frames(
      f'{i}', 40, splits.Settings(split_by='time', test_fraction=0.25)
    ).index('test')
    for i in range(200)
  ]
  assert min(first) == 0 and max(first) == 30
  assert len(set(first)) > 25


@pytest.mark.parametrize(
  ('split_by', 'fraction'), [('colour', 0.1), ('time', 1.5), ('video', -0.1)]
)
def test_an_unknown_split_is_refused(split_by, fraction):
  with pytest.raises(errors.UserError, match='split_by'):
    splits.split_frames(
      'a', 5, splits.Settings(split_by=split_by, test_fraction=fraction)
    )
