"""Records: round trips, checks, framing, folders."""

import json
import struct

import cv2
from hypothesis import given, settings
from hypothesis import strategies as st
import numpy as np
import pytest

from odin_jax.shared import (
  camera,
  depth_png,
  errors,
  record_folder,
  schema,
  tfrecord,
)
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


def png(values) -> bytes:
  return cv2.imencode('.png', values)[1].tobytes()


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
  weight = static_weights.encode_png(np.zeros((8, 8), np.uint8))
  back = schema.decode(schema.encode(example_record(**{name: weight})))
  assert back[name] == weight
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


def test_depth_is_read_and_old_records_need_none():
  depth = np.array([[0.5, 0.0], [1.0, 4.0]])
  pngs = {
    f'{side}/depth': depth_png.encode(depth * scale)
    for side, scale in (('source', 1), ('target', 2))
  }
  back = schema.decode(schema.encode(example_record(**pngs)))
  assert {name: back[name] for name in pngs} == pngs
  assert schema.optional_in(back) == pngs.keys()
  assert not pngs.keys() & schema.decode(schema.encode(example_record())).keys()
  described = tfds_metadata.features(pngs)
  assert 'depth' not in tfds_metadata.features()['source']
  for side, scale in (('source', 1), ('target', 2)):
    connector = described[side]['depth']
    assert connector.shape == (None, None, 1)
    # TFDS itself reads all 16 bits.
    values = connector.decode_example_np(pngs[f'{side}/depth'])[..., 0]
    known = values > 0
    np.testing.assert_array_equal(known, depth > 0)
    np.testing.assert_allclose(
      2.0 ** ((values[known] - 32768.0) / 2048), depth[known] * scale, rtol=2e-4
    )


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


def test_errors_of_poses_are_read_and_old_records_need_none():
  errors = {'rotation_error_deg': 0.0, 'direction_error_deg': 180.0}
  back = schema.decode(schema.encode(example_record(**errors)))
  assert {name: back[name] for name in errors} == errors
  assert (
    not errors.keys() & schema.decode(schema.encode(example_record())).keys()
  )
  described = tfds_metadata.features(errors)
  assert all(described[name].np_dtype == np.float32 for name in errors)
  assert not errors.keys() & set(tfds_metadata.features())


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
    (
      {'target/static_weight': depth_png.encode(np.ones((8, 8)))},
      'target/static_weight: a PNG of 16 bits, not of 8',
    ),
    ({'source/depth': b''}, 'source/depth: needs non-empty bytes'),
    ({'source/depth': b'jpeg'}, 'source/depth: no PNG'),
    (
      {'source/depth': depth_png.encode(np.ones((8, 8)))[:32]},
      'source/depth: a PNG that is cut off',
    ),
    (
      {'source/depth': static_weights.encode_png(np.zeros((8, 8), np.uint8))},
      'source/depth: a PNG of 8 bits, not of 16',
    ),
    (
      {'target/depth': png(np.ones((8, 9), np.uint16))},
      'target/depth: a PNG of 9 x 8 px, which is not square',
    ),
    (
      {'target/depth': png(np.ones((8, 8, 3), np.uint16))},
      'target/depth: a PNG with colours',
    ),
    ({'source/unmasked_share': 1.5}, 'unmasked_share: 1.5 is outside 0..1'),
    ({'target/unmasked_share': -0.1}, 'unmasked_share: -0.1 is outside 0..1'),
    (
      {'rotation_error_deg': -0.1},
      'rotation_error_deg: -0.1 is outside 0..180',
    ),
    ({'direction_error_deg': 181.0}, 'direction_error_deg: 181.0 is outside'),
    ({'direction_error_deg': float('inf')}, 'direction_error_deg: not finite'),
    ({'extra': 1}, 'extra'),
  ],
)
def test_a_record_that_breaks_the_schema_is_refused(changes, message):
  with pytest.raises(schema.SchemaError, match=message):
    schema.encode(example_record(**changes))


def encode_unchecked(changes):
  """A record as another program may have written it."""
  record = tfrecord.decode_example(schema.encode(example_record()))
  return tfrecord.encode_example({**record, **changes})


@pytest.mark.parametrize(
  'changes,message',
  [
    ({'fov_deg': [float('nan')]}, 'fov_deg: not finite'),
    ({'fov_deg': [180.0]}, 'fov_deg: 180.0 is outside'),
    ({'median_depth': [-1.0]}, 'median_depth'),
    # A mirror, which no rotation is.
    (
      {'target2source': np.diag([1.0, 1, -1, 1])[:3].ravel().tolist()},
      'target2source.*no rotation',
    ),
    ({'source/frame2scene': [float('inf')] * 12}, 'frame2scene: not finite'),
    ({'video_id': [b'\xff']}, 'video_id: no text'),
    ({'hops': [b'1x']}, 'hops: no int'),
    ({'source/image': [1]}, 'source/image'),
    ({'source/depth': [b'png']}, 'source/depth: no PNG'),
    ({'source/depth': [1.0]}, 'source/depth: needs non-empty bytes'),
  ],
)
def test_what_is_read_follows_the_schema_too(changes, message):
  with pytest.raises(schema.SchemaError, match=message):
    schema.decode(encode_unchecked(changes))


def test_what_is_no_example_is_refused():
  with pytest.raises(schema.SchemaError, match='no tf.train.Example'):
    schema.decode(b'hello world')


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


def test_records_of_the_other_split_are_refused(tmp_path):
  path = tmp_path / schema.shard_name('test', 0, 1)
  tfrecord.write_file(path, [schema.encode(example_record(split='train'))])
  with pytest.raises(errors.UserError, match='split: train, not test'):
    record_folder.RecordFolder(tmp_path, 'test')[0]


def test_a_shard_that_the_manifest_has_otherwise_is_refused(tmp_path):
  write_shards(tmp_path, 2)
  manifest = {
    'schema_version': schema.SCHEMA_VERSION,
    'shards': {
      schema.shard_name('train', index, 2): {'records': 2} for index in range(2)
    },
  }
  path = tmp_path / record_folder.MANIFEST
  path.write_text(json.dumps(manifest))
  assert len(record_folder.RecordFolder(tmp_path, 'train')) == 4
  # Cut between two records, which no checksum tells.
  shard = tmp_path / schema.shard_name('train', 1, 2)
  shard.write_bytes(shard.read_bytes()[: shard.stat().st_size // 2])
  with pytest.raises(errors.UserError, match=f'{shard.name}: 1 records.* 2'):
    record_folder.RecordFolder(tmp_path, 'train')
  path.write_text(json.dumps({**manifest, 'schema_version': 1}))
  with pytest.raises(
    errors.UserError, match='of schema 1.*make the records again'
  ):
    record_folder.RecordFolder(tmp_path, 'train')
  path.write_text('{')
  with pytest.raises(errors.UserError, match='manifest.json: '):
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
  with pytest.raises(
    errors.UserError, match=f'{path.name}.*schema {schema.SCHEMA_VERSION}'
  ):
    folder[0]
