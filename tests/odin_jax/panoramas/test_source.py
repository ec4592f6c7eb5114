"""Pairs that are drawn of panoramas, against the world that they show."""

import itertools
import shutil

import cv2
import numpy as np
import pytest

from configs import train
from odin_jax import batches
from odin_jax.benchmarks import records as benchmark
from odin_jax.checkpoints import checkpoint
from odin_jax.panoramas import choice, cutting
from odin_jax.panoramas import source as panoramas
from odin_jax.shared import (
  camera,
  errors,
  panorama_index,
  panorama_schema,
  posed_pair,
  psnr,
  record_folder,
  schema,
  tfrecord,
)
from odin_jax.sources import opening
from preprocessing.procedural import rendering
from preprocessing.writing import dropping, merging, parts
from tests.helpers import true_panoramas
from tests.helpers.posed_records import write_changed

SIZE = 64
RULES = train.get_config().panoramas.to_dict()


@pytest.fixture(scope='module')
def world():
  return true_panoramas.build_world()


@pytest.fixture(scope='module')
def folder(world, tmp_path_factory):
  return true_panoramas.write(tmp_path_factory.mktemp('run') / 'records', world)


def a_source(
  folder,
  size_px=SIZE,
  depth=False,
  cache=True,
  num_sources=1,
  times=False,
  **rules,
):
  return panoramas.PanoramaSource(
    folder,
    'train',
    image_size_px=size_px,
    rules=choice.Rules(**{**RULES, **rules}),
    cache=cache,
    depth=depth,
    num_sources=num_sources,
    times=times,
  )


def a_dataset(folder):
  # Small views are fast.
  return batches.examples(
    a_source(folder, size_px=16), seed=5, mirror=True, swap=True
  )


def assert_same(a, b):
  for first, second in zip(a, b, strict=True):
    np.testing.assert_array_equal(first, second)


def read(folder):
  return record_folder.RecordFolder(folder, 'train', panorama_schema.PANORAMAS)


@pytest.mark.parametrize('yaw_deg', [0.0, 100.0, 180.0])
def test_a_view_is_what_the_world_shows_there(folder, world, yaw_deg):
  record = read(folder)[2]
  turn = camera.view2frame_rotation(yaw_deg, 8.0)
  view = cutting.View(turn @ choice.rotation_z(np.deg2rad(15.0)), 90.0)
  shape = record['width_px'], record['height_px']
  cut = cutting.decode(record['image'], *shape, 1).cut(view, SIZE)
  frame2world = world.walk.frame2world(record['time_s'])
  rays = camera.view_rays(90.0, SIZE * rendering.supersampling(SIZE))
  rays /= np.linalg.norm(rays, axis=-1, keepdims=True)
  truth = rendering.render_rays(
    world,
    record['time_s'],
    camera.compose(frame2world, camera.make_pose(view.view2frame, np.zeros(3))),
    rays,
    fov_deg=90.0,
    size_px=SIZE,
  )
  similar = psnr.psnr_db(cut, truth)
  assert similar > 27
  # The view is sharp, and where it should be.
  for axis in (0, 1):
    assert psnr.psnr_db(np.roll(cut, 2, axis), truth) < similar - 2


def warped(pair):
  """What the source shows of each target pixel's point, where it sees it.

  Returns:
    the colours there, the relative errors of depth, and which pixels see it.
  """
  fov_deg = float(pair.fov_deg)
  points = camera.view_rays(fov_deg, SIZE) * pair.target_depth[..., None]
  points = camera.transform(
    pair.target2source.astype(np.float64), points.reshape(-1, 3)
  )
  place, depth = camera.project(points, camera.intrinsics(fov_deg, SIZE))
  inside = (depth > 0) & np.all((place > 1) & (place < SIZE - 1), axis=-1)
  inside &= pair.target_depth.ravel() > 0
  column, row = np.where(inside[:, None], place, 0).astype(int).T
  known = pair.source_depth[row, column]
  inside &= known > 0
  error = np.abs(depth / np.where(known > 0, known, 1) - 1)
  maps = place.astype(np.float32).reshape(SIZE, SIZE, 2) - np.float32(0.5)
  colours = cv2.remap(pair.source, maps, None, cv2.INTER_LINEAR)
  return colours, error.reshape(SIZE, SIZE), inside.reshape(SIZE, SIZE)


def test_points_of_the_target_lie_where_the_pose_says_in_the_source(folder):
  """Pose, unit, field of view and depth together, of pairs of both kinds."""
  source = a_source(folder, depth=True, max_gap_s=2.0, single_share=0.3)
  baselines, shares = [], []
  for pair in map(source.__getitem__, range(len(source))):
    colours, error, inside = warped(pair)
    seen = inside & (error < 0.05)
    # Median of what agrees; the rest is hidden, or at an edge.
    assert np.median(error[inside]) < 0.02
    off = np.abs(colours[seen].astype(float) - pair.target[seen]).mean(-1)
    assert np.median(off) < 10
    wrong = pair._replace(
      target2source=camera.inverse(
        pair.target2source.astype(np.float64)
      ).astype(np.float32)
    )
    other_colours, other_error, other_inside = warped(wrong)
    agrees = other_inside & (other_error < 0.05)
    assert agrees.mean() < 0.7 * seen.mean()
    baselines.append(float(np.linalg.norm(pair.target2source[:, 3])))
    shares.append(seen.mean())
    assert 0.2 < pair.median_depth < 5
  assert max(baselines) > 0.3
  assert min(shares) > 0.1 and np.mean(shares) > 0.4


def test_pairs_of_one_panorama_are_exact_rotations(folder):
  source = a_source(folder, single_share=1.0, times=True)
  for index, pair in enumerate(map(source.__getitem__, range(4))):
    time_s = read(folder)[index]['time_s']
    np.testing.assert_array_equal(pair.times_s, np.float32([time_s, time_s]))
    assert not pair.target2source[:, 3].any()
    rotation = pair.target2source[:, :3].astype(np.float64)
    assert camera.is_rotation(rotation, tolerance=1e-6)
    assert camera.rotation_angle_deg(rotation) > 1
    # Of any distance.
    pair = pair._replace(
      target_depth=np.ones((SIZE, SIZE)), source_depth=np.ones((SIZE, SIZE))
    )
    colours, _, inside = warped(pair)
    assert inside.mean() > 0.3
    error = colours[inside].astype(float) - pair.target[inside]
    assert np.sqrt(np.mean(error**2)) < 12


def test_further_sources_show_what_the_target_shows(folder):
  rules = dict(max_gap_s=4.0, single_share=0.0)
  source = a_source(folder, depth=True, num_sources=3, **rules)
  one = a_source(folder, depth=True, **rules)
  counts = []
  for index in range(3):
    pair = source.draw(index, np.random.default_rng(index))
    more = pair.more
    alone = one.draw(index, np.random.default_rng(index))
    assert alone.more is None and more.depth.shape[0] == 2
    assert_same(pair[:5], alone[:5])
    counts.append(more.is_there.sum())
    for image, pose in zip(
      more.image[more.is_there], more.target2view[more.is_there]
    ):
      # Depth of these is not given: what is hidden counts as wrong.
      there = pair._replace(
        source=image, target2source=pose, source_depth=np.ones((SIZE, SIZE))
      )
      colours, _, inside = warped(there)
      assert inside.mean() > 0.08
      error = np.abs(colours[inside].astype(float) - pair.target[inside])
      assert np.median(error) < 10
    assert not more.image[~more.is_there].any()
  assert max(counts) == 2


def test_no_pair_is_of_one_panorama_where_none_is_asked_for(folder):
  source = a_source(folder, size_px=16, single_share=0.0)
  for index in range(8):
    pair = source.draw(index % len(source), np.random.default_rng(index))
    assert np.linalg.norm(pair.target2source[:, 3]) > 0.01


def test_views_are_as_asked(folder):
  source = a_source(
    folder,
    size_px=16,
    min_fov_deg=60.0,
    max_fov_deg=70.0,
    single_share=1.0,
    single_yaw_deg=0.0,
    single_pitch_deg=0.0,
    max_roll_deg=0.0,
  )
  fovs = {float(source[index].fov_deg) for index in range(5)}
  assert len(fovs) == 5 and 60 <= min(fovs) and max(fovs) <= 70
  # Not turned, and not rolled.
  np.testing.assert_allclose(
    source[0].target2source, camera.identity_pose(), atol=1e-6
  )


def test_examples_follow_from_their_number_alone(folder):
  dataset = a_dataset(folder)
  stream = batches.batches(dataset, first_step=0, batch_size=2)
  whole = list(itertools.islice(stream, 5))
  stream.close()
  # A run that goes on at step 3, in another process.
  stream = batches.batches(a_dataset(folder), first_step=3, batch_size=2)
  for step in (3, 4):
    assert_same(next(stream)[:5], whole[step][:5])
  stream.close()
  # Every epoch has other views of the same panoramas.
  poses = {dataset[i].target2source.tobytes() for i in range(15)}
  assert len(poses) == 15


def test_what_is_masked_is_not_looked_at():
  masked = np.zeros((64, 128), bool)
  masked[:, 32:96] = True
  distance = np.ones((64, 128), np.float32)
  around = choice.Surroundings.of(distance, masked)
  rules = choice.Rules(**{**RULES, 'num_tries': 60})
  generator = np.random.default_rng(0)
  for _ in range(5):
    for view in choice.single(around, rules, generator):
      rays = view.rays(32)
      u, _ = camera.direction_to_equirect(rays, 128, 64)
      assert ((u >= 32) & (u < 96)).mean() < 0.25
  nothing = choice.Surroundings.of(distance, np.ones((64, 128), bool))
  assert choice.single(nothing, rules, generator) is None


def test_two_places_with_a_wall_between_make_no_pair():
  """A path that returns on the other side: near, and nothing in common."""
  rules = choice.Rules(**RULES)
  generator = np.random.default_rng(0)
  free = np.zeros((32, 64), bool)
  near = choice.Surroundings.of(np.full((32, 64), 1.0, np.float32), free)
  pose = camera.make_pose(np.eye(3), np.array([0.3, 0.0, 0.0]))
  away = camera.make_pose(np.eye(3), np.array([1.8, 0.0, 0.0]))
  assert choice.between(near, near, away, rules, generator) is None
  # In one room each sees the walls from its own place.
  rays = camera.equirect_to_direction(*camera.pixel_centres(64, 32), 64, 32)
  along = rays @ pose[:, 3]
  other = -along + np.sqrt(along**2 + 1 - pose[:, 3] @ pose[:, 3])
  there = choice.Surroundings.of(other.astype(np.float32), free)
  assert choice.between(near, there, pose, rules, generator) is not None


def test_depth_is_interpolated_on_surfaces_and_not_across_edges():
  rays = camera.equirect_to_direction(*camera.pixel_centres(256, 128), 256, 128)
  # A floor one below, and nothing above the horizon.
  with np.errstate(divide='ignore'):
    distance = np.where(rays[..., 1] > 0.1, 1 / rays[..., 1], 0)
  view = cutting.View(camera.view2frame_rotation(170.0, -40.0), 90.0)
  asked = view.rays(48)
  found = panoramas.interpolated(distance.astype(np.float32), asked)
  down = asked[..., 1] / np.linalg.norm(asked, axis=-1)
  below = down > 0.2
  np.testing.assert_allclose(found[below], 1 / down[below], rtol=2e-3)
  assert not found[down < 0.05].any()
  steps = np.where(rays[..., 0] > 0, 1, 3).astype(np.float32)
  assert set(np.unique(panoramas.interpolated(steps, asked))) <= {1.0, 3.0}


def test_records_of_other_kinds_are_refused(folder, tmp_path):
  pairs = folder.parent
  assert record_folder.kind(folder) is panorama_schema.PANORAMAS
  assert record_folder.kind(pairs) is schema.PAIRS
  with pytest.raises(errors.UserError, match='holds panoramas, of which'):
    batches.PairSource(folder, 'train', image_size_px=16)
  with pytest.raises(errors.UserError, match='give a folder of pairs'):
    benchmark.held_out_pairs(folder, image_size_px=16, num_pairs=1, seed=0)
  both = shutil.copytree(folder, tmp_path / 'both')
  shutil.copy(pairs / schema.shard_name('train', 0, 1), both)
  with pytest.raises(errors.UserError, match='both pairs of views and panor'):
    record_folder.kind(both)


def test_panoramas_are_mixed_with_pairs(folder, tmp_path):
  pairs = write_changed(tmp_path / 'pairs', 4, depth_px=8)

  def opened(*paths, **changes):
    config = train.get_config()
    config.update_from_flattened_dict({'image_size_px': 16, **changes})
    config = checkpoint.plain(config.to_dict())
    return opening.open_sources(paths, config, depth=True, num_sources=2)

  # Behind an address, too.
  alone = opened(f'file://{folder}')
  assert alone.made_of == '5 panoramas' and alone.read.keys() == {'panoramas'}
  mixed = opened(str(folder), pairs, **{'mixture.weights': (1, 2)})
  assert mixed.made_of == '4 pairs and 5 panoramas'
  assert mixed.read.keys() == {'mixture', 'panoramas'}
  examples = batches.examples(mixed.source, seed=0, mirror=True, swap=True)
  # Stacked, so of one shape: views are cut with depth of the records' side.
  batch = posed_pair.stack([examples[number] for number in range(6)])
  assert batch.source.shape == (6, 16, 16, 3)
  assert batch.target_depth.shape == (6, 8, 8)
  assert (batch.target_depth == 2).all((1, 2)).sum() == 4
  again = batches.examples(mixed.source, seed=0, mirror=True, swap=True)
  assert_same(again[4][:7], examples[4][:7])
  with pytest.raises(errors.UserError, match='holds panoramas, and config.fil'):
    opened(str(folder), pairs, **{'filters.min_overlap': 0.5})


def rewritten(folder, path, **changes):
  """A copy whose second record has other values."""
  records = list(read(folder))
  records[1] = {**records[1], **changes}
  copy = shutil.copytree(folder, path)
  shard = copy / panorama_schema.PANORAMAS.shard_name('train', 0, 1)
  tfrecord.write_file(shard, map(panorama_schema.PANORAMAS.encode, records))
  return a_source(copy, size_px=16)


def test_damaged_panoramas_are_refused_by_name(folder, tmp_path):
  good = read(folder)[1]
  source = rewritten(folder, tmp_path / 'a', image=good['image'][:-20] + b'x')
  with pytest.raises(errors.UserError, match='train panorama 1 of room: '):
    source[1]
  distance = good['distance'][:-30] + bytes(30)
  source = rewritten(folder, tmp_path / 'b', distance=distance)
  with pytest.raises(errors.UserError, match='panorama 1 of room: .*PNG'):
    source[1]
  source = rewritten(folder, tmp_path / 'c', time_s=77.0)
  with pytest.raises(errors.UserError, match='is not of these records'):
    source[1]
  (tmp_path / 'c' / panorama_index.FILE).write_bytes(b'PK cut')
  with pytest.raises(errors.UserError, match='index.npz: damaged'):
    a_source(tmp_path / 'c')
  with pytest.raises(errors.UserError, match='too few for views of 512 px'):
    a_source(folder, size_px=512)[0]


def test_a_video_is_taken_out_of_pairs_and_panoramas(folder, tmp_path):
  """As if it had never been in: bytes, index and all."""
  kinds = (
    ('.', schema.PAIRS),
    (panorama_schema.FOLDER, panorama_schema.PANORAMAS),
  )

  def make(output, videos):
    for below, kind in kinds:
      kept = record_folder.RecordFolder(folder.parent / below, 'train', kind)
      for video in videos:
        parts.write(
          output / below,
          video,
          records=({**record, 'video_id': video} for record in kept),
          summary={},
          dropped=[],
          fingerprint='a',
          schema_of=kind,
        )
      merging.merge(
        output / below,
        video_ids=videos,
        config={},
        tool='preprocessing.run',
        schema_of=kind,
      )
    return output

  def contents(output):
    return {
      path.relative_to(output): path.read_bytes()
      for path in output.rglob('*')
      if path.is_file() and path.suffix != '.txt'
    }

  output = make(tmp_path / 'all', ['a', 'b', 'c'])
  dropping.drop(output, ['b'])
  left = contents(output)
  expected = contents(make(tmp_path / 'without', ['a', 'c']))
  assert left.keys() == expected.keys()
  # These name what is gone.
  differ = {name.name for name in left if left[name] != expected[name]}
  assert differ == {'manifest.json', 'ledger.jsonl'}
  source = a_source(output / panorama_schema.FOLDER, size_px=16)
  assert len(source) == 10
  assert source[7].source.shape == (16, 16, 3)
  with pytest.raises(errors.UserError, match='no record would be left'):
    dropping.drop(output, ['a', 'c'])
  assert contents(output) == left


@pytest.mark.parametrize(
  'change, words',
  [
    ({'single_share': 1.5}, 'single_share'),
    ({'max_fov_deg': 170.0}, 'fov_deg'),
    ({'num_tries': 0}, 'num_tries'),
  ],
)
def test_rules_that_mean_nothing_are_refused(change, words):
  with pytest.raises(ValueError, match=words):
    choice.Rules(**{**RULES, **change})
