"""Damaged records: skipped up to a limit, the same in every process."""

import numpy as np
import pytest

from configs import train
from odin_jax import batches
from odin_jax.checkpoints import checkpoint
from odin_jax.shared import errors, schema, tfrecord
from odin_jax.sources import opening
from tests.helpers.posed_records import make_record

COUNT = 8
SHARD = schema.shard_name('train', 0, 1)


@pytest.fixture
def records():
  generator = np.random.default_rng(0)
  return [make_record(generator, 'a', 'train', 16) for _ in range(COUNT)]


def opened(folder, limit):
  config = train.get_config()
  config.image_size_px = 16
  config.cache_records = False
  config.max_corrupt_records = limit
  config = checkpoint.plain(config.to_dict())
  return opening.open_sources([str(folder)], config, depth=False, num_sources=1)


def write(folder, records):
  data = [r if isinstance(r, bytes) else schema.encode(r) for r in records]
  tfrecord.write_file(folder / SHARD, data)
  return data


def wrong_checksum(folder, records):
  data = write(folder, records)
  content = bytearray((folder / SHARD).read_bytes())
  content[sum(len(tfrecord.frame(r)) for r in data[:3]) + 50] ^= 1
  (folder / SHARD).write_bytes(bytes(content))


def no_jpeg(folder, records):
  records[3]['target/image'] = b'no picture'
  write(folder, records)


def wrong_field(folder, records):
  features = tfrecord.decode_example(schema.encode(records[3]))
  features['fov_deg'] = [700.0]
  write(folder, [*records[:3], tfrecord.encode_example(features), *records[4:]])


DAMAGES = {
  wrong_checksum: f'{SHARD}: record 3: data checksum differs',
  no_jpeg: f'{SHARD}: record 3 of a: ',
  wrong_field: f'{SHARD}: record 3 is not of schema 2 .fov_deg',
}


@pytest.mark.parametrize('damage', DAMAGES)
def test_the_next_record_comes_for_a_damaged_one(
  tmp_path, records, damage, caplog
):
  good = [record['target2source'].astype(np.float32) for record in records]
  damage(tmp_path, records)
  with pytest.raises(tfrecord.CorruptRecordError, match=DAMAGES[damage]):
    first = opened(tmp_path, 0).source
    for index in range(COUNT):
      first[index]
  source, _, allowance, *_ = opened(tmp_path, 1)
  examples = batches.examples(source, seed=0, mirror=False, swap=False)
  order = batches.order(source, 0)
  for number in range(2 * COUNT):
    index = int(order[number])
    expected = good[4 if index == 3 else index]
    np.testing.assert_array_equal(examples[number].target2source, expected)
  assert source.place(3) == f'{tmp_path / SHARD}: record 3'
  # Once, though it was read in both epochs.
  assert allowance.figures() == {'corrupt_records': 1}
  (line,) = [r.getMessage() for r in caplog.records if r.levelname == 'WARNING']
  assert line.startswith('skipped, 1 of 1: ') and SHARD in line
  # What is sound alone is looked at to tell folders apart.
  assert source.fingerprint() == opened(tmp_path, 1).source.fingerprint()


def test_one_more_than_the_limit_stops(tmp_path, records):
  for number in (3, 4):
    records[number]['source/image'] = b'no picture'
  write(tmp_path, records)
  source, _, allowance, *_ = opened(tmp_path, 2)
  assert (source[3].target == source[5].target).all()
  assert allowance.count == 2
  source = opened(tmp_path, 1).source
  with pytest.raises(
    errors.UserError, match='record 4 of a.*_records=1 were skipped before'
  ):
    source[3]


def test_a_shard_that_was_cut_since_is_damage_of_its_records(tmp_path, records):
  write(tmp_path, records)
  source, _, allowance, *_ = opened(tmp_path, COUNT - 1)
  hopeless = opened(tmp_path, COUNT).source
  with open(tmp_path / SHARD, 'r+b') as file:
    file.truncate(len(tfrecord.frame(schema.encode(records[0]))) + 10)
  for index in range(COUNT):
    assert (source[index].target == source[0].target).all()
  assert allowance.count == COUNT - 1
  with open(tmp_path / SHARD, 'r+b') as file:
    file.truncate(20)
  with pytest.raises(errors.UserError, match=': truncated data'):
    hopeless[0]
