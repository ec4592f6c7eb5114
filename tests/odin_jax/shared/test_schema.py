"""Records: round trips, checks, framing, folders."""

import struct

from hypothesis import given, settings
from hypothesis import strategies as st
import numpy as np
import pytest

from odin_jax.shared import camera, errors, record_folder, schema, tfrecord
from preprocessing.keyframes import static_weights
from preprocessing.writing import tfds_metadata


def example_record(**changes) -> schema.Record:
  by_kind = {'bytes': b'jpeg', 'text': 'train', 'int': 1, 'float': 0.5}
  record = {
    name: camera.identity_pose() if feature.shape else by_kind[feature.kind]
    for name, feature in schema.FEATURES.items()
    if not feature.optional
  }
  return {**record, 'matcher': 'sphere', **changes}


def test_a_record_survives_encoding():
  record = example_record(video_id='höhle', scene_id=7)
  back = schema.decode(schema.encode(record))
  assert back.keys() == record.keys()
  for name, value in record.items():
    np.testing.assert_array_equal(back[name], value)


def test_an_optional_feature_survives_where_it_is_and_stays_out_elsewhere():
  name = 'target/static_weight'
  without = schema.decode(schema.encode(example_record()))
  assert name not in without
  assert not schema.optional_in(without)
  back = schema.decode(schema.encode(example_record(**{name: b'png'})))
  assert back[name] == b'png'
  assert schema.optional_in(back) == {name}


def test_metadata_lists_an_optional_feature_only_where_records_have_it():
  name = 'target/static_weight'
  plain, weighed = tfds_metadata.features(), tfds_metadata.features([name])
  assert set(plain['target']) | {'static_weight'} == set(weighed['target'])
  assert 'static_weight' not in plain['target']
  connector = weighed['target']['static_weight']
  assert connector.shape == (None, None, 1)
  # TFDS itself reads what the record holds.
  view = np.arange(64, dtype=np.uint8).reshape(8, 8)
  png = connector.decode_example_np(static_weights.encode_png(view))
  np.testing.assert_array_equal(png[..., 0], view)


def test_shares_of_the_scene_are_read_and_old_records_need_none():
  shares = {'source/unmasked_share': 0.75, 'target/unmasked_share': 1.0}
  back = schema.decode(schema.encode(example_record(**shares)))
  assert {name: back[name] for name in shares} == shares
  assert (
    not shares.keys() & schema.decode(schema.encode(example_record())).keys()
  )
  described = tfds_metadata.features(shares)
  for side in ('source', 'target'):
    assert described[side]['unmasked_share'].np_dtype == np.float32


def test_the_same_record_gives_the_same_bytes_in_any_order():
  record = example_record()
  turned = dict(reversed(record.items()))
  assert schema.encode(record) == schema.encode(turned)


@pytest.mark.parametrize(
  'changes,message',
  [
    ({'overlap': 1.5}, 'overlap'),
    ({'split': 'validation'}, 'split'),
    ({'matcher': ''}, 'matcher'),
    ({'hops': 0}, 'hops'),
    ({'median_depth': 0.0}, 'median_depth'),
    ({'fov_deg': float('nan')}, 'fov_deg: not finite'),
    ({'target2source': np.ones((3, 4))}, 'target2source.*no rotation'),
    ({'target2source': np.eye(3)}, r'target2source.*\(3, 4\)'),
    ({'source/image': b''}, 'source/image'),
    ({'video_id': ''}, 'video_id'),
    ({'target/static_weight': b''}, 'static_weight'),
    ({'source/unmasked_share': 1.5}, 'unmasked_share: 1.5 is outside 0..1'),
    ({'target/unmasked_share': -0.1}, 'unmasked_share: -0.1 is outside 0..1'),
    ({'extra': 1}, 'extra'),
  ],
)
def test_a_record_that_breaks_the_schema_is_refused(changes, message):
  with pytest.raises(schema.SchemaError, match=message):
    schema.encode(example_record(**changes))


def test_a_matcher_has_any_name():
  record = example_record(matcher='mast3r')
  assert schema.decode(schema.encode(record))['matcher'] == 'mast3r'


def test_a_foreign_example_is_refused():
  foreign = tfrecord.encode_example({'image': [b'x']})
  with pytest.raises(schema.SchemaError, match='source/image'):
    schema.decode(foreign)


def test_framing_follows_the_format_s_own_example():
  # Known answer: crc32c('123456789') = 0xE3069283 (RFC 3720, B.4).
  crc = 0xE3069283
  masked = (((crc >> 15) | (crc << 17)) + 0xA282EAD8) & 0xFFFFFFFF
  assert tfrecord.masked_crc(b'123456789') == masked
  frame = tfrecord.frame(b'123456789')
  assert frame[:8] == struct.pack('<Q', 9)
  assert frame[12:21] == b'123456789'
  assert frame[21:] == struct.pack('<I', masked)


@given(st.lists(st.binary(max_size=200), min_size=1, max_size=8))
@settings(max_examples=30)
def test_record_files_round_trip(tmp_path_factory, records):
  path = tmp_path_factory.mktemp('records') / 'file'
  assert tfrecord.write_file(path, records) == len(records)
  file = tfrecord.RecordFile(path)
  assert [file[i] for i in range(len(file))] == records


@given(data=st.data())
@settings(max_examples=60)
def test_any_flipped_or_missing_byte_is_found(tmp_path_factory, data):
  path = tmp_path_factory.mktemp('records') / 'file'
  records = [b'first record', b'second', b'the third one']
  tfrecord.write_file(path, records)
  content = bytearray(path.read_bytes())
  position = data.draw(st.integers(0, len(content) - 1))
  if data.draw(st.booleans()):
    content[position] ^= data.draw(st.integers(1, 255))
  else:
    del content[position:]
  path.write_bytes(content)
  boundaries = np.cumsum([0] + [len(tfrecord.frame(r)) for r in records])
  if len(content) in boundaries[1:-1]:
    return  # Cut between two records: a shorter file, not a damaged one.
  with pytest.raises(tfrecord.CorruptRecordError, match=str(path)):
    file = tfrecord.RecordFile(path)
    for index in range(len(file)):
      file[index]


def write_shards(folder, count):
  for index in range(count):
    record = example_record(scene_id=index)
    tfrecord.write_file(
      folder / schema.shard_name('train', index, count),
      [schema.encode(record)] * 2,
    )


def test_a_folder_is_one_sequence_over_its_shards(tmp_path):
  write_shards(tmp_path, 3)
  folder = record_folder.RecordFolder(tmp_path, 'train')
  assert [record['scene_id'] for record in folder] == [0, 0, 1, 1, 2, 2]
  with pytest.raises(errors.UserError, match='no test records'):
    record_folder.RecordFolder(tmp_path, 'test')


def test_a_missing_shard_is_refused(tmp_path):
  write_shards(tmp_path, 3)
  (tmp_path / schema.shard_name('train', 1, 3)).unlink()
  with pytest.raises(errors.UserError, match='2 of 3 train shards'):
    record_folder.RecordFolder(tmp_path, 'train')


def test_an_empty_shard_is_refused(tmp_path):
  write_shards(tmp_path, 2)
  (tmp_path / schema.shard_name('train', 0, 2)).write_bytes(b'')
  with pytest.raises(tfrecord.CorruptRecordError, match='zero bytes'):
    record_folder.RecordFolder(tmp_path, 'train')


def test_intact_records_of_another_schema_are_refused(tmp_path):
  foreign = tfrecord.encode_example({'image': [b'x']})
  path = tmp_path / schema.shard_name('train', 0, 1)
  tfrecord.write_file(path, [foreign])
  folder = record_folder.RecordFolder(tmp_path, 'train')
  with pytest.raises(errors.UserError, match=f'{path.name}.*schema 1'):
    folder[0]
