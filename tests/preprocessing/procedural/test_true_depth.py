"""True depth of records: against the walk's own truth, and as a command."""

import json
import pathlib

import numpy as np
import pytest

from odin_jax import metrics
from odin_jax.benchmarks import records as records_benchmark
from odin_jax.geometry import visibility
from odin_jax.shared import (
  camera,
  depth_files,
  errors,
  files,
  record_folder,
  schema,
  tfrecord,
)
from preprocessing.procedural import footage, rendering, true_depth, true_pairs
from preprocessing.views import alignment
from tests.helpers import commands, default_rules

_SETTINGS = {
  'seed': 4,
  'seconds': 5.0,
  'kinds': ['unique_room'],
  'width': 256,
  'height': 128,
  'movers': 3,
}
_SIZE_PX = 64
# The scene of the records: turned and moved against the world, and in units of
# this many metres.
_UNIT_M = 1.7
_WORLD2SCENE = camera.make_pose(
  camera.view2frame_rotation(50.0, 20.0), np.array([3.0, -2.0, 1.0])
)


_JOB = footage.VideoJob(
  output=pathlib.Path(), index=0, **{**_SETTINGS, 'kinds': ('unique_room',)}
)


@pytest.fixture(scope='module')
def world():
  return _JOB.build_world()


@pytest.fixture(scope='module')
def records(world):
  """Records of the world as another solution of its poses would have them."""
  rules = true_pairs.PairRules(
    num_records=10,
    seconds=4.0,
    max_gap_s=3,
    size_px=_SIZE_PX,
    views=default_rules.view_rules(num_views=2, num_tries=4),
    split_by='video',
    test_fraction=1.0,
  )
  made, *_ = true_pairs.make_records(world, _JOB.name, rules, seed=0)
  for record in made:
    for side in ('source', 'target'):
      record[f'{side}/frame2scene'] = camera.rescale(
        camera.compose(
          _WORLD2SCENE, world.walk.frame2world(record[f'{side}/time_s'])
        ),
        1 / _UNIT_M,
      )
    record['target2source'] = camera.relative_view_pose(
      *(record[f'{side}/frame2scene'] for side in ('source', 'target')),
      *(
        (record[f'{side}/yaw_deg'], record[f'{side}/pitch_deg'])
        for side in ('source', 'target')
      ),
    )
  return made


def write(folder, *shards):
  folder.mkdir()
  for index, records in enumerate(shards):
    shard = folder / schema.shard_name('test', index, len(shards))
    tfrecord.write_file(shard, map(schema.encode, records))
  return folder


@pytest.fixture
def worlds(tmp_path):
  """The folder of videos, as far as it is read."""
  folder = tmp_path / 'worlds'
  folder.mkdir()
  (folder / 'worlds.json').write_text(json.dumps({'settings': _SETTINGS}))
  (folder / f'{_JOB.name}.mp4').touch()
  return folder


def test_depth_is_that_of_the_panorama_of_the_walk(world):
  """Along the axis of a view of one pixel, depth is distance."""
  truth = footage.truth(world, np.array([1.4]))
  height, width = truth['depth'].shape[1:]
  u, v = camera.pixel_centres(width, height)
  rays = camera.equirect_to_direction(u, v, width, height)
  rng = np.random.default_rng(0)
  moving = np.argwhere(truth['moving'][0])
  static = np.argwhere(~truth['moving'][0])
  assert len(moving) > 20
  for places in (moving, static):
    for row, column in rng.choice(places, 15):
      yaw, pitch = camera.yaw_pitch_deg(rays[row, column])
      angles = alignment.Angles(yaw_deg=yaw, pitch_deg=pitch)
      seen = true_depth.view(world, 1.4, angles, fov_deg=60.0, size_px=1)
      assert seen.depth_m[0, 0] == pytest.approx(
        truth['depth'][0, row, column], rel=1e-3
      )
      assert seen.moves[0, 0] == truth['moving'][0, row, column]


def test_depth_is_along_the_optical_axis(world):
  angles = alignment.Angles(yaw_deg=30.0, pitch_deg=-8.0)
  depth = true_depth.view(
    world, 0.4, angles, fov_deg=90.0, size_px=8
  ).depth_m.astype(np.float64)
  points = camera.view_rays(90.0, 8) * depth[..., None]
  view2frame = camera.make_pose(
    camera.view2frame_rotation(*angles), np.zeros(3)
  )
  frame2world = world.walk.frame2world(0.4)
  points = camera.transform(
    camera.compose(frame2world, view2frame), points.reshape(-1, 3)
  )
  # From the camera straight to each point there is nothing but the point.
  ways = points - frame2world[:, 3]
  length = np.linalg.norm(ways, axis=1)
  rays = (ways / length[:, None]).reshape(8, 8, 3).astype(np.float32)
  hits = world.scene.cast(frame2world[:, 3], rays, 0.4)
  np.testing.assert_allclose(hits.distance.ravel(), length, rtol=1e-4)


def test_units_follow_from_the_walk_though_some_frames_are_astray(
  world, records
):
  poses = {}
  for record in records:
    poses.update(true_depth.poses(record))
  assert len(poses) >= 4
  found = true_depth.metres_per_unit(world, poses)
  assert found == pytest.approx(_UNIT_M, rel=1e-5)
  poses = {
    time_s: camera.rescale(world.walk.frame2world(time_s), 1 / _UNIT_M)
    for time_s in (np.arange(20) / 5).tolist()
  }
  astray = dict(poses)
  for time_s in (0.4, 1.2, 2.6, 3.0):
    turn = camera.view2frame_rotation(100.0 * time_s, 30.0)
    astray[time_s] = camera.make_pose(turn, np.array([5.0, 3.0, -4.0 * time_s]))
  found = true_depth.metres_per_unit(world, astray)
  assert found == pytest.approx(_UNIT_M, rel=0.02)
  rng = np.random.default_rng(0)
  for change, words in (
    (lambda pose: (pose[:, :3], rng.normal(size=3)), 'not where the walk was'),
    (lambda pose: (pose[:, :3], np.ones(3)), 'all at one place'),
    # Half of them see what is behind.
    (
      lambda pose: (
        pose[:, :3] @ camera.rotation_y(rng.choice([0, np.pi])),
        pose[:, 3],
      ),
      'not turned as on the walk',
    ),
  ):
    wrong = {
      time_s: camera.make_pose(*change(pose)) for time_s, pose in poses.items()
    }
    with pytest.raises(ValueError, match=words):
      true_depth.metres_per_unit(world, wrong)


def test_a_warp_by_true_depth_gives_what_the_source_sees(world, records):
  """The picture that geometry makes is the target, where the source sees it."""
  scores = []
  for record in records:
    depths = true_depth.depths(world, record, _UNIT_M, _SIZE_PX)
    assert depths.source_depth.dtype == np.float32
    pictures = [
      rendering.render_view(
        world,
        record[f'{side}/time_s'],
        alignment.Angles(
          yaw_deg=record[f'{side}/yaw_deg'],
          pitch_deg=record[f'{side}/pitch_deg'],
        ),
        fov_deg=record['fov_deg'],
        size_px=_SIZE_PX,
      )
      / 255
      for side in ('source', 'target')
    ]
    args = record['target2source'], record['fov_deg'], *depths[:2]
    view = visibility.warp(pictures[0], *args)
    masks = visibility.masks(
      *(np.asarray(value)[None] for value in (*args, depths.target_moving))
    )
    scores += metrics.score(view[None], pictures[1][None], masks=masks)
  mean = metrics.mean_score(scores)
  assert mean['psnr_seen'] >= 27
  assert mean['psnr_unseen'] < 20
  assert 0.3 < mean['seen_share'] < 0.95
  assert mean['psnr_moving'] < mean['psnr_static']


def view2world(world, record, side):
  turn = camera.view2frame_rotation(
    record[f'{side}/yaw_deg'], record[f'{side}/pitch_deg']
  )
  return camera.compose(
    world.walk.frame2world(record[f'{side}/time_s']),
    camera.make_pose(turn, np.zeros(3)),
  )


def test_what_is_seen_is_what_rays_from_the_source_meet(world, records):
  """Depth maps decide as the caster does, but for the pixels along edges."""
  both = either = 0
  for record in records:
    depths = true_depth.depths(world, record, _UNIT_M, _SIZE_PX)
    args = record['target2source'], record['fov_deg'], *depths[:2]
    seen = visibility.project(*args).seen
    rays = camera.view_rays(record['fov_deg'], _SIZE_PX)
    points = camera.transform(
      view2world(world, record, 'target'),
      (rays * depths.target_depth[..., None] * _UNIT_M).reshape(-1, 3),
    )
    source2world = view2world(world, record, 'source')
    ways = points - source2world[:, 3]
    length = np.linalg.norm(ways, axis=1).reshape(_SIZE_PX, _SIZE_PX)
    ways = ways.reshape(_SIZE_PX, _SIZE_PX, 3) / length[..., None]
    hits = world.scene.cast(
      source2world[:, 3],
      ways.astype(np.float32),
      record['source/time_s'],
    )
    local = camera.transform(camera.inverse(source2world), points)
    pixels, z = camera.project(
      local, camera.intrinsics(record['fov_deg'], _SIZE_PX)
    )
    inside = np.all((pixels >= 0) & (pixels <= _SIZE_PX), axis=-1) & (z > 0)
    met = (hits.distance > 0.995 * length) & inside.reshape(seen.shape)
    both += (seen & met).sum()
    either += (seen | met).sum()
  assert both / either > 0.95


def lines_of(folder, worlds, output, *more):
  return [
    f'--records={folder}',
    f'--worlds={worlds}',
    '--image_size_px=16',
    f'--output={output}',
    *more,
  ]


def test_the_command_writes_what_an_evaluation_reads(
  tmp_path, world, records, worlds
):
  folder, output = write(tmp_path / 'records', records), tmp_path / 'depth'
  line = lines_of(folder, worlds, output)
  (done,) = commands.run_all('preprocessing.true_depth', [line])
  assert tuple(done) == (0, '')
  pair_set = records_benchmark.held_out_pairs(
    folder, image_size_px=16, num_pairs=4, seed=0, truth=str(output)
  )
  for row, facts in enumerate(pair_set.facts):
    expected = true_depth.depths(world, records[facts['record']], _UNIT_M, 16)
    for found, whole in zip(pair_set.truth, expected, strict=True):
      # Half precision.
      np.testing.assert_allclose(found[row], whole, rtol=6e-4)
  assert pair_set.truth.source_depth.dtype == np.float32
  # What is there stays; what is damaged is made again, to the same maps.
  shard = folder / schema.shard_name('test', 0, 1)
  place = depth_files.path(output, shard, 16)
  whole, before = place.read_bytes(), place.stat().st_mtime_ns
  commands.run_all('preprocessing.true_depth', [line])
  assert place.stat().st_mtime_ns == before
  place.write_bytes(whole[:-100])
  with pytest.raises(errors.UserError, match='cannot be read'):
    records_benchmark.held_out_pairs(
      folder, image_size_px=16, num_pairs=4, seed=0, truth=str(output)
    )
  commands.run_all('preprocessing.true_depth', [line])
  assert depth_files.is_written(output, shard, 16)


def test_records_of_other_worlds_have_no_truth(tmp_path, records, worlds):
  """One line each, and no folder is left."""
  turned = [{**record, 'source/yaw_deg': 200.0} for record in records]
  rng = np.random.default_rng(0)
  astray = [
    {
      **record,
      f'{side}/frame2scene': camera.make_pose(np.eye(3), rng.normal(size=3)),
    }
    for record in records
    for side in ('source', 'target')
  ]
  others = tmp_path / 'others'
  others.mkdir()
  settings = {**_SETTINGS, 'seed': 5}
  (others / 'worlds.json').write_text(json.dumps({'settings': settings}))
  (others / f'{_JOB.name}.mp4').touch()
  real = tmp_path / 'real'
  real.mkdir()
  good = write(tmp_path / 'good', records)
  output = tmp_path / 'depth'
  cases = [
    ((write(tmp_path / 'turned', turned), worlds), ['record 0', 'dB)']),
    ((write(tmp_path / 'astray', astray), worlds), ['not where the walk was']),
    ((good, others), ['does not show the world of 000_unique_room']),
    ((good, real), ['real', 'Real videos have no true depth']),
    ((tmp_path / 'none', worlds), ['none: no such folder']),
  ]
  lines = [lines_of(*places, output) for places, _ in cases]
  # Without --worlds, records have to be made by preprocessing.worlds itself.
  lines.append([f'--records={good}', f'--output={output}'])
  words = [words for _, words in cases] + [['good', '--worlds']]
  results = commands.run_all('preprocessing.true_depth', lines)
  commands.assert_refused(results, words)
  assert not output.exists()


def test_maps_are_of_the_very_records(tmp_path, records):
  """A folder of other records, or of another size, is refused."""
  folder = write(tmp_path / 'records', records[:2], records[2:4])
  other = write(tmp_path / 'other', records[1:3], records[:2])
  output = files.claim_output(tmp_path / 'depth', 'test')
  for index in range(2):
    maps = [np.full((2, 2), 1.0 + 2 * index + row) for row in range(2)]
    depth_files.write(
      output,
      folder / schema.shard_name('test', index, 2),
      [depth_files.Depths(x, 10 * x, x > 3) for x in maps],
    )
  read = record_folder.RecordFolder
  found = depth_files.read(output, read(folder, 'test'), [3, 0, 2], 2)
  assert found.source_depth[:, 0, 0].tolist() == [4, 1, 3]
  assert found.target_depth[:, 1, 1].tolist() == [40, 10, 30]
  assert found.target_moving[:, 1, 0].tolist() == [True, False, False]
  for place, size_px, words in (
    (other, 2, 'but of other records'),
    (folder, 3, 'no such file.*--image_size_px=3'),
  ):
    with pytest.raises(errors.UserError, match=words):
      depth_files.read(output, read(place, 'test'), [0], size_px)
  with pytest.raises(errors.UserError, match='no such folder'):
    depth_files.read(tmp_path / 'none', read(folder, 'test'), [0], 2)
  shard, one = folder / schema.shard_name('test', 0, 2), np.ones((2, 2))
  for depth, count, words in (
    (one, 1, 'is not of 2 records and 2 px'),
    (one * np.nan, 2, 'depths that are no distances'),
    (-one, 2, 'depths that are no distances'),
  ):
    maps = depth_files.Depths(one, depth, one > 2)
    depth_files.write(output, shard, [maps] * count)
    with pytest.raises(errors.UserError, match=words):
      depth_files.read(output, read(folder, 'test'), [0], 2)
    assert not depth_files.is_written(output, shard, 2)
