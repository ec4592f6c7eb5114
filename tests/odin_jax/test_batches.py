"""Batches: exact augmentations, addressing by example number, faults."""

import itertools

import numpy as np
import pytest

from odin_jax import batches
from odin_jax.shared import (
  camera,
  depth_png,
  errors,
  posed_pair,
  schema,
  tfrecord,
)
from tests.helpers.posed_records import make_record, write_records


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  folder = tmp_path_factory.mktemp('records')
  write_records(folder, 'train', {'a': 7, 'b': 6})
  return folder


def source(folder, **settings):
  return batches.PairSource(folder, 'train', image_size_px=16, **settings)


def dataset(folder, seed=0):
  return batches.examples(source(folder), seed=seed, mirror=True, swap=True)


def take(folder, first_step, count, **settings):
  stream = batches.batches(
    dataset(folder), first_step=first_step, batch_size=4, **settings
  )
  taken = list(itertools.islice(stream, count))
  stream.close()
  return taken


def assert_same(a, b):
  for first, second in zip(a, b, strict=True):
    np.testing.assert_array_equal(first, second)


def test_pair_is_the_record(folder):
  record = make_record(np.random.default_rng(0), 'a', 'train')
  pair = source(folder)[0]
  assert pair.source.shape == pair.target.shape == (16, 16, 3)
  np.testing.assert_allclose(
    pair.target2source, record['target2source'], atol=1e-6
  )
  # The target of these records is one colour, which its pose gives.
  colour = 255 * (0.5 + record['target2source'][:, 3])
  assert np.abs(pair.target - colour).max() < 6


def test_a_batch_follows_from_its_number_alone(folder):
  whole = take(folder, 0, 9)
  for step in (0, 4, 8):
    assert_same(take(folder, step, 1)[0], whole[step])


def test_any_number_of_threads_makes_the_same_batches(folder):
  """Of mirrored images, too, which are copied in another way."""
  endless = batches.examples(
    source(folder, num_sources=3, depth=True, cache=True),
    seed=0,
    mirror=True,
    swap=True,
  )
  # More examples than a thread takes at once.
  expected = [
    posed_pair.stack([endless[12 * step + row] for row in range(12)])
    for step in range(3, 6)
  ]
  for workers in (0, 1, 3):
    stream = batches.batches(
      endless, first_step=3, batch_size=12, num_workers=workers
    )
    # All are held: none may be written over by a later one.
    made = list(itertools.islice(stream, 3))
    stream.close()
    for batch, truth in zip(made, expected, strict=True):
      assert_same(batch.more, truth.more)
      assert_same(batch._replace(more=None), truth._replace(more=None))


@pytest.mark.parametrize('workers', [0, 3])
def test_what_a_thread_runs_into_is_told(folder, workers):
  class Broken:
    def __getitem__(self, index):
      if index == 21:
        raise errors.UserError('record 21 is damaged')
      return source(folder)[0]

  stream = batches.batches(
    Broken(), first_step=0, batch_size=16, num_workers=workers
  )
  next(stream)
  with pytest.raises(errors.UserError, match='record 21'):
    next(stream)


def test_pairs_of_several_shapes_make_no_batch(folder):
  pair = source(folder)[0]
  batch = posed_pair.empty(pair, 2)
  for other in (
    pair._replace(source=pair.source[1:]),
    pair._replace(fov_deg=np.float64(90)),
  ):
    with pytest.raises(ValueError, match='others have'):
      posed_pair.put(batch, 0, other, np.copyto)


def test_a_host_reads_the_rows_that_it_needs(folder):
  whole = take(folder, 3, 2)
  for rows in map(np.array, ([0, 1], [3], [0, 2])):
    share = take(folder, 3, 2, rows=rows)
    for part, batch in zip(share, whole, strict=True):
      assert_same(part, posed_pair.select(batch, rows))


def test_every_record_comes_once_per_epoch_in_a_new_order(folder):
  plain = batches.examples(source(folder), seed=1, mirror=False, swap=False)
  epochs = [
    [plain[13 * epoch + i].target2source.tobytes() for i in range(13)]
    for epoch in range(2)
  ]
  assert len(set(epochs[0])) == 13
  assert set(epochs[0]) == set(epochs[1])
  assert epochs[0] != epochs[1]


def test_seed_changes_the_order(folder):
  assert any(
    dataset(folder, 0)[i].target2source.tobytes()
    != dataset(folder, 1)[i].target2source.tobytes()
    for i in range(4)
  )


def test_cache_changes_nothing(folder):
  cached, read = source(folder, cache=True), source(folder)
  for index in (3, 3, 5):
    assert_same(cached[index], read[index])


def points_and_pixels(pair, points_target):
  """Pixels of scene points in source and target."""
  matrix = camera.intrinsics(float(pair.fov_deg), 16)
  pose = pair.target2source.astype(np.float64)
  source_pixels, _ = camera.project(
    camera.transform(pose, points_target), matrix
  )
  target_pixels, _ = camera.project(points_target, matrix)
  return source_pixels, target_pixels


def test_mirrored_pair_shows_the_mirrored_scene(folder):
  pair = source(folder)[2]
  mirrored = batches.mirrored(pair)
  np.testing.assert_array_equal(mirrored.source, pair.source[:, ::-1])
  points = np.array([[0.2, -0.1, 2.0], [-0.4, 0.3, 3.0]])
  before = points_and_pixels(pair, points)
  after = points_and_pixels(mirrored, points * [-1, 1, 1])
  for old, new in zip(before, after, strict=True):
    np.testing.assert_allclose(new[:, 0], 16 - old[:, 0], atol=1e-4)
    np.testing.assert_allclose(new[:, 1], old[:, 1], atol=1e-4)
  assert_same(batches.mirrored(mirrored), pair)


def test_more_views_follow_their_pair(folder):
  """Mirrored and swapped, the other sources see what they saw."""
  pair = source(folder, num_sources=3)[0]
  assert pair.more.image.shape == (2, 16, 16, 3) and pair.more.is_there.any()
  alone = source(folder)[0]
  assert alone.more is None
  assert_same(pair._replace(more=None), alone)
  points = np.array([[0.2, -0.1, 2.0], [-0.3, 0.2, 1.5]])

  def seen(pair, points):
    poses = pair.more.target2view.astype(np.float64)
    return np.stack([camera.transform(pose, points) for pose in poses])

  expected = seen(pair, points)
  mirrored = batches.mirrored(pair)
  flip = np.array([-1, 1, 1])
  np.testing.assert_allclose(
    seen(mirrored, points * flip), expected * flip, atol=1e-5
  )
  np.testing.assert_array_equal(
    mirrored.more.image, pair.more.image[:, :, ::-1]
  )
  of_source = camera.transform(pair.target2source.astype(float), points)
  np.testing.assert_allclose(
    seen(batches.swapped(pair), of_source), expected, atol=1e-5
  )
  # Training draws how many of them are given.
  endless = batches.examples(
    source(folder, num_sources=3), seed=0, mirror=True, swap=True
  )
  counts = {int(endless[i].more.is_there.sum()) for i in range(30)}
  assert counts == {0, 1, 2}
  batch = posed_pair.stack([endless[0], endless[1]])
  assert batch.more.target2view.shape == (2, 2, 3, 4)
  one = posed_pair.select(batch, slice(1, 2))
  np.testing.assert_array_equal(one.more.image[0], endless[1].more.image)


def test_swapped_pair_shows_the_same_points(folder):
  pair = source(folder)[2]
  swapped = batches.swapped(pair)
  np.testing.assert_array_equal(swapped.source, pair.target)
  points = np.array([[0.2, -0.1, 2.0], [-0.4, 0.3, 3.0]])
  before = points_and_pixels(pair, points)
  in_source = camera.transform(pair.target2source.astype(np.float64), points)
  after = points_and_pixels(swapped, in_source)
  np.testing.assert_allclose(after[0], before[1], atol=1e-3)
  np.testing.assert_allclose(after[1], before[0], atol=1e-3)


def test_times_are_given_where_they_are_asked_for(folder):
  """And change places with the views."""
  assert source(folder)[2].times_s is None
  timed = source(folder, times=True)
  record = timed.records[2]
  pair = timed[2]
  expected = [record['source/time_s'], record['target/time_s']]
  np.testing.assert_array_equal(pair.times_s, np.float32(expected))
  assert expected[0] != expected[1]
  for other, times in (
    (batches.mirrored(pair), expected),
    (batches.swapped(pair), expected[::-1]),
  ):
    np.testing.assert_array_equal(other.times_s, np.float32(times))


def test_fingerprint_tells_records_apart(folder, tmp_path):
  write_records(tmp_path, 'train', {'a': 7, 'b': 6}, seed=5)
  assert source(folder).fingerprint() == source(folder).fingerprint()
  assert source(folder).fingerprint() != source(tmp_path).fingerprint()


def test_sound_pairs_leave_out_what_is_damaged(tmp_path):
  records = [
    make_record(np.random.default_rng(i), 'a', 'train') for i in range(3)
  ]
  records[1]['source/image'] = b'no JPEG'
  tfrecord.write_file(
    tmp_path / schema.shard_name('train', 0, 1), map(schema.encode, records)
  )
  whole = source(tmp_path)
  expected = [whole[i].source for i in (0, 2)]
  found = [pair.source for pair in batches.sound_pairs(whole, 9)]
  np.testing.assert_array_equal(found, expected)
  # Not an error: what is said of none is said where they are read.
  (tmp_path / 'none').mkdir()
  tfrecord.write_file(
    tmp_path / 'none' / schema.shard_name('train', 0, 1),
    [schema.encode(records[1])],
  )
  assert not batches.sound_pairs(source(tmp_path / 'none'), 9)


def test_image_that_cannot_be_decoded_is_named(tmp_path):
  records = [
    make_record(np.random.default_rng(i), 'a', 'train') for i in range(2)
  ]
  records[1]['target/image'] = b'no picture'
  tfrecord.write_file(
    tmp_path / schema.shard_name('train', 0, 1), map(schema.encode, records)
  )
  with pytest.raises(errors.UserError, match='record 1'):
    source(tmp_path)[1]


_DEPTH_PX = 8


def depth_maps(index):
  """Of the source and of the target of record `index`; not known in places."""
  depth = np.exp2(np.random.default_rng(index).uniform(-2, 3, (2, 8, 8)))
  depth[:, 2:4, 5:] = 0
  return depth


def write_depths(folder, maps_of_records):
  """Records with maps of depth; None: a record without."""
  records = []
  for index, maps in enumerate(maps_of_records):
    record = make_record(np.random.default_rng(index), 'a', 'train')
    for side, depth in zip(('source', 'target'), () if maps is None else maps):
      is_encoded = isinstance(depth, bytes)
      record[f'{side}/depth'] = depth if is_encoded else depth_png.encode(depth)
    records.append(record)
  tfrecord.write_file(
    folder / schema.shard_name('train', 0, 1), map(schema.encode, records)
  )
  return folder


@pytest.fixture(scope='module')
def with_depth(tmp_path_factory):
  folder = tmp_path_factory.mktemp('depth')
  return write_depths(folder, [depth_maps(index) for index in range(4)])


def test_depth_is_that_of_the_records(with_depth):
  pairs = [source(with_depth, depth=True)[index] for index in range(4)]
  for index, pair in enumerate(pairs):
    maps = depth_maps(index)
    assert pair.source_depth.dtype == pair.target_depth.dtype == np.float32
    np.testing.assert_allclose(pair.source_depth, maps[0], rtol=2e-4)
    np.testing.assert_allclose(pair.target_depth, maps[1], rtol=2e-4)
  batch = posed_pair.stack(pairs)
  assert batch.target_depth.shape == (4, _DEPTH_PX, _DEPTH_PX)
  assert_same(
    posed_pair.select(batch, slice(2, 3)), posed_pair.stack(pairs[2:3])
  )


def test_depth_is_turned_with_the_views(with_depth):
  pair = source(with_depth, depth=True)[1]
  mirrored, swapped = batches.mirrored(pair), batches.swapped(pair)
  np.testing.assert_array_equal(
    mirrored.source_depth, pair.source_depth[:, ::-1]
  )
  np.testing.assert_array_equal(
    mirrored.target_depth, pair.target_depth[:, ::-1]
  )
  assert_same(batches.mirrored(mirrored), pair)
  np.testing.assert_array_equal(swapped.source_depth, pair.target_depth)
  np.testing.assert_array_equal(swapped.target_depth, pair.source_depth)


def test_median_depths_are_swapped_with_the_views(folder):
  pair = source(folder)[1]
  assert pair.target_median_depth == 0
  # Nothing tells that of the target, least of all that of the source.
  assert batches.swapped(pair).median_depth == 0
  told = pair._replace(target_median_depth=np.float32(3.0))
  swapped = batches.swapped(told)
  assert (swapped.median_depth, swapped.target_median_depth) == (
    3.0,
    pair.median_depth,
  )
  assert batches.mirrored(told).target_median_depth == 3.0


def test_depth_that_nobody_asks_for_is_not_read(folder, tmp_path):
  whole = depth_png.encode(depth_maps(0)[0])
  damaged = whole[:50] + bytes([whole[50] ^ 1]) + whole[51:]
  write_depths(tmp_path, [(whole, whole), (whole, damaged)])
  pair = source(tmp_path)[1]
  assert pair.source_depth is None and pair.target_depth is None
  for augment in (batches.mirrored, batches.swapped):
    assert augment(pair).source_depth is None
  assert posed_pair.stack([pair, pair]).target_depth is None
  with pytest.raises(
    errors.UserError, match='record 1 of a: target/depth: a damaged PNG'
  ):
    source(tmp_path, depth=True)[1]


def test_what_has_no_depth_gives_maps_of_zeros(folder, tmp_path):
  pair = source(folder, depth=True)[0]
  assert pair.source_depth.shape == pair.target_depth.shape == (32, 32)
  assert not pair.source_depth.any() and not pair.target_depth.any()
  # As large as those of the records that have some, wherever these are.
  write_depths(tmp_path, [None, depth_maps(1), (np.ones((4, 4)),) * 2])
  mixed = source(tmp_path, depth=True)
  batch = posed_pair.stack([mixed[0], mixed[1]])
  assert batch.source_depth.shape == (2, _DEPTH_PX, _DEPTH_PX)
  assert batch.source_depth.dtype == np.float32
  assert not batch.source_depth[0].any() and batch.source_depth[1].any()
  with pytest.raises(
    errors.UserError, match='source/depth: 4 px, where the first map has 8 px'
  ):
    mixed[2]
