"""Records behind addresses, of file systems that fsspec knows."""

import importlib.util
import pickle
import uuid

import fsspec
import numpy as np
import pytest

from odin_jax import batches
from odin_jax.shared import (
  errors,
  record_filters,
  record_folder,
  record_index,
  schema,
  storage,
  tfrecord,
)
from tests.helpers import buckets
from tests.helpers.posed_records import write_changed


class Bucket(buckets.Bucket):
  """A store that notes what is asked of it."""

  asked: list = []
  fault: Exception | None = None

  def cat_file(self, path, start=None, end=None, **more):
    self.asked.append((start, end))
    if self.fault:
      raise self.fault
    return super().cat_file(path, start, end, **more)


@pytest.fixture
def bucket(monkeypatch, tmp_path):
  """A new bucket of records; the store, and its address."""
  monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'cache'))
  # What comes for gs:// where its driver is installed.
  buckets.install(monkeypatch, Bucket, fault=None, asked=[])
  local = write_changed(
    tmp_path / 'records', 6, overlap=lambda n: 0.1 * (n + 1)
  )
  store = fsspec.filesystem('gs')
  store.put(local, '/bucket/records', recursive=True)
  return store, 'gs://bucket/records', local


def same(a, b):
  return a.keys() == b.keys() and all(
    np.array_equal(a[name], b[name]) for name in a
  )


def test_a_bucket_is_read_by_ranges(bucket):
  store, address, local = bucket
  here = record_folder.RecordFolder(local, 'train')
  there = record_folder.RecordFolder(address, 'train')
  assert there.path == address and len(there) == len(here) == 6
  assert not store.asked
  assert all(same(a, b) for a, b in zip(here, there, strict=True))
  assert pickle.loads(pickle.dumps(there))[3]['overlap'] == here[3]['overlap']
  shard, position = there.place(3)
  assert shard == f'{address}/{schema.shard_name("train", 0, 1)}'
  assert position == 3
  # The data of a record and its checksum, no more.
  frames = tfrecord.RecordFile(here.place(0)[0]).frames.tolist()
  ranges = [(start, start + length + 4) for start, length in frames]
  assert store.asked == [*ranges, ranges[3]]


def test_what_a_bucket_says_is_kept_in_the_cache(bucket, tmp_path):
  store, address, local = bucket
  filters = record_filters.Filters({'min_overlap': 0.35})
  chosen = record_folder.RecordFolder(address, 'train', filters=filters)
  assert len(chosen) == 3
  (kept,) = (tmp_path / 'cache').rglob('*.npz')
  assert record_index.FOLDER[1:] in str(kept)
  before = kept.stat().st_mtime_ns
  again = record_folder.RecordFolder(address, 'train', filters=filters)
  assert same(again[0], chosen[0]) and kept.stat().st_mtime_ns == before
  pairs = batches.PairSource(address, 'train', image_size_px=16, num_sources=2)
  expected = batches.PairSource(local, 'train', image_size_px=16, num_sources=2)
  np.testing.assert_array_equal(pairs[4].target, expected[4].target)
  np.testing.assert_array_equal(pairs[4].more.image, expected[4].more.image)
  assert pairs.fingerprint() == expected.fingerprint()
  # Another file under the same name.
  name = schema.shard_name('train', 0, 1)
  data = store.cat_file(f'/bucket/records/{name}')
  store.pipe_file(f'/bucket/records/{name}', data + data)
  assert len(record_folder.RecordFolder(address, 'train', filters=filters)) == 6


def test_other_addresses_are_folders_too(bucket):
  store, _, local = bucket
  for address in (f'file://{local}', f'memory://{uuid.uuid4()}'):
    if address.startswith('memory'):
      fsspec.filesystem('memory').put(local, address, recursive=True)
    folder = record_folder.RecordFolder(address, 'train')
    assert [record['hops'] for record in folder] == [1] * 6
    assert record_folder.kind(address) is schema.PAIRS


def test_what_cannot_be_read_of_a_bucket_is_one_line(bucket, monkeypatch):
  store, address, _ = bucket
  for missing in ('gs://nobody/records', 'gs://bucket/other'):
    with pytest.raises(errors.UserError, match=f'{missing}: no such folder'):
      record_folder.RecordFolder(missing, 'train')
  folder = record_folder.RecordFolder(address, 'train')
  # Whatever a driver raises, and it is no damage of a record.
  store.fault = type(store).fault = RuntimeError('503, come again')
  with pytest.raises(
    errors.UserError, match='00001: cannot be read .RuntimeError: 503'
  ) as caught:
    folder[0]
  assert not isinstance(caught.value, tfrecord.CorruptRecordError)
  # A record that is cut is.
  type(store).fault = store.fault = None
  name = schema.shard_name('train', 0, 1)
  path = f'/bucket/records/{name}'
  store.pipe_file(path, store.cat_file(path)[:-50])
  with pytest.raises(tfrecord.CorruptRecordError, match='record 5: truncated'):
    folder[5]
  monkeypatch.setattr(
    store, 'ls', lambda *_, **__: (_ for _ in ()).throw(PermissionError('no'))
  )
  with pytest.raises(errors.UserError, match='cannot be read .PermissionErr'):
    record_folder.RecordFolder(address, 'train')


def test_a_driver_that_is_not_installed_is_named():
  if importlib.util.find_spec('gcsfs'):
    pytest.skip('gcsfs is installed here')
  with pytest.raises(errors.UserError, match='pip install gcsfs=='):
    storage.Folder('gs://bucket/records', 'a folder of records')
  with pytest.raises(errors.UserError, match='give a folder, gs://'):
    storage.Folder('nothing://bucket', 'a folder of records')
