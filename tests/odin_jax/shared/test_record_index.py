"""Indices of shards and filters by them."""

import multiprocessing
import os
import pathlib

import numpy as np
import pytest

from odin_jax.shared import (
  depth_png,
  errors,
  record_filters,
  record_folder,
  record_index,
  schema,
  tfrecord,
)
from tests.helpers.noise_records import make_record

OVERLAPS = (0.2, 0.7, 0.9, 0.5, 0.7)


def a_record(number, **changes):
  record = make_record('ab'[number % 2], number, 'train')
  record |= {
    'overlap': OVERLAPS[number],
    'hops': 1 + number,
    'target/time_s': number + 0.5 * number,
  }
  return {**record, **changes}


def write(folder, *shards):
  """Shards of records, given as dicts or as bytes."""
  folder.mkdir(exist_ok=True)
  for number, records in enumerate(shards):
    tfrecord.write_file(
      folder / schema.shard_name('train', number, len(shards)),
      [r if isinstance(r, bytes) else schema.encode(r) for r in records],
    )
  return folder


@pytest.fixture
def folder(tmp_path):
  records = [a_record(number) for number in range(5)]
  return write(tmp_path / 'records', records[:2], records[2:])


def opened(folder, **limits):
  return record_folder.RecordFolder(
    folder, 'train', filters=record_filters.Filters(limits)
  )


def kept(folder, **limits):
  """Numbers of the records that pass."""
  return [record['hops'] - 1 for record in opened(folder, **limits)]


def test_an_index_says_what_the_records_do(folder):
  records = opened(folder)
  index = records.index()
  assert len(index.rows) == 5 and index.rows['is_read'].all()
  for row, record in zip(index.rows, records, strict=True):
    assert index.video_ids[row['video_id']] == record['video_id']
    for name, value in record.items():
      if schema.FEATURES[name].kind in ('float', 'int'):
        np.testing.assert_array_equal(row[name], value, name)
    assert row['target/depth'] == 0 and np.isnan(row['rotation_error_deg'])


@pytest.mark.parametrize(
  'limits, expected',
  [
    # A limit is in the precision of the records: 0.7 passes 0.7.
    ({'min_overlap': 0.7}, [1, 2, 4]),
    ({'max_hops': 3.0}, [0, 1, 2]),
    ({'min_gap_s': 0.5, 'max_gap_s': 1.5}, [1, 2, 3]),
    ({'min_overlap': 0.7, 'max_hops': 4}, [1, 2]),
    ({'min_confidence': 0.5, 'max_hops': None}, [0, 1, 2, 3, 4]),
  ],
)
def test_records_are_filtered_by_what_they_say(folder, limits, expected):
  assert kept(folder, **limits) == expected


def test_a_filtered_folder_knows_the_places_of_its_records(folder):
  records = opened(folder, min_overlap=0.7)
  assert len(records) == 3 and records[-1]['hops'] == 5
  shards = sorted(folder.glob('*.tfrecord-*'))
  assert [records.place(i) for i in range(3)] == [
    (shards[0], 1),
    (shards[1], 0),
    (shards[1], 2),
  ]
  np.testing.assert_array_equal(records.index().rows['hops'], [2, 3, 5])
  with pytest.raises(IndexError):
    records[3]


@pytest.mark.parametrize(
  'limits, words',
  [
    ({'min_overlap': 0.95}, r'none of 5 records pass .*\(0 have min_over'),
    ({'max_hops': 2, 'min_gap_s': 9}, r'2 have max_hops=2, 0 have min_gap_s=9'),
    ({'max_rotation_error_deg': 1}, '5 of 5 records have no rotation_error'),
    ({'overlap': 1}, 'there is no such filter; there are min_overlap, '),
    ({'min_overlap': float('nan')}, 'give a finite number'),
  ],
)
def test_filters_that_cannot_be_are_one_line(folder, limits, words):
  with pytest.raises(errors.UserError, match=words):
    opened(folder, **limits)


def test_records_that_have_an_error_are_filtered_by_it(tmp_path):
  shard = [a_record(i, rotation_error_deg=float(i)) for i in range(3)]
  assert kept(write(tmp_path, shard), max_rotation_error_deg=1) == [0, 1]
  with pytest.raises(errors.UserError, match='1 of 4 records have no rotation'):
    opened(write(tmp_path, [*shard, a_record(3)]), max_rotation_error_deg=1)


def test_damaged_records_pass_and_are_named_by_whoever_reads_them(folder):
  shard = folder / schema.shard_name('train', 1, 2)
  content = bytearray(shard.read_bytes())
  content[100] ^= 1
  shard.write_bytes(bytes(content))
  records = opened(folder, min_overlap=0.7)
  assert list(records.index().rows['is_read']) == [True, False, True]
  assert [records[i]['hops'] for i in (0, 2)] == [2, 5]
  with pytest.raises(
    tfrecord.CorruptRecordError, match=f'{shard}: record 0: data checksum'
  ):
    records[1]
  # As are those that are sound, but of another schema.
  other = [a_record(0), tfrecord.encode_example({'overlap': [float('nan')]})]
  with pytest.raises(tfrecord.CorruptRecordError, match='record 1 is not of'):
    list(opened(write(folder.parent / 'other', other), min_overlap=0.1))


def index_file(folder, shard=1):
  name = schema.shard_name('train', shard, 2)
  return folder / record_index.FOLDER / f'{name}.npz'


def count_made(monkeypatch):
  made, make = [], record_index.make

  def counted(folder, name, *rest):
    made.append(name)
    return make(folder, name, *rest)

  monkeypatch.setattr(record_index, 'make', counted)
  return made


def test_an_index_is_made_once_and_again_of_a_shard_that_changed(
  folder, monkeypatch
):
  made = count_made(monkeypatch)
  assert kept(folder) == [0, 1, 2, 3, 4]
  assert not made and not index_file(folder).exists()
  for _ in range(2):
    kept(folder, min_overlap=0.7)
  assert made == [schema.shard_name('train', i, 2) for i in range(2)]
  write(folder, [a_record(i) for i in (0, 1)], [a_record(i) for i in (3, 4)])
  os.utime(folder / made[0], ns=(7, 7))
  assert kept(folder, min_overlap=0.7) == [1, 4]
  assert made[2:] == made[:2]
  # Any byte that matters of its own file.
  path, good = index_file(folder), index_file(folder).read_bytes()
  middle = len(good) // 2
  flipped = good[:middle] + bytes([good[middle] ^ 1]) + good[middle + 1 :]
  for damage in (good[:-30], b'', flipped):
    path.write_bytes(damage)
    assert kept(folder, min_overlap=0.7) == [1, 4]
    assert len(made) == 5 and made.pop() == made[1]
    assert path.read_bytes() == good


def test_an_index_is_kept_in_the_cache_where_the_folder_is_not_to_be_written(
  folder, tmp_path, monkeypatch
):
  monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'cache'))
  # In the way of the folder, as root may write anywhere.
  (folder / record_index.FOLDER).write_text('')
  made = count_made(monkeypatch)
  for _ in range(2):
    assert kept(folder, min_overlap=0.7) == [1, 2, 4]
  assert len(made) == 2
  assert len(list((tmp_path / 'cache').rglob('*.npz'))) == 2
  # Nowhere: each time anew.
  monkeypatch.setenv('XDG_CACHE_HOME', str(folder / record_index.FOLDER))
  assert kept(folder, min_overlap=0.7) == [1, 2, 4]


def test_processes_may_make_an_index_at_once(folder):
  context = multiprocessing.get_context('fork')
  gate = context.Barrier(3)

  def make():
    for _ in range(5):
      gate.wait(60)
      index_file(folder).unlink(missing_ok=True)
      assert kept(folder, min_overlap=0.7) == [1, 2, 4]

  processes = [context.Process(target=make) for _ in range(3)]
  for process in processes:
    process.start()
  for process in processes:
    process.join(60)
  assert [process.exitcode for process in processes] == [0, 0, 0]
  names = sorted(path.name for path in index_file(folder).parent.iterdir())
  assert names == [f'{schema.shard_name("train", i, 2)}.npz' for i in range(2)]


def test_the_side_of_depth_is_looked_for_once(tmp_path, monkeypatch):
  depth = depth_png.encode(np.ones((4, 4)))
  records = [a_record(0), a_record(1), {**a_record(2), 'target/depth': depth}]
  folder = write(tmp_path / 'some', records[:1], records[1:])
  assert opened(folder).depth_px() == 4
  none = write(tmp_path / 'none', records[:1], records[1:2])
  made = count_made(monkeypatch)
  for _ in range(2):
    assert opened(none).depth_px() is None
  assert len(made) == 2
  first = write(tmp_path / 'first', records[2:])
  assert opened(first).depth_px() == 4 and len(made) == 2
  assert pathlib.Path(first / record_index.FOLDER).exists() is False
