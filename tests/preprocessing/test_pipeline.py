"""From video files to records, through the command line, against truth."""

import collections
import json
import os
import pathlib
import shutil
import subprocess
import sys

import av
import cv2
import numpy as np
import pytest

from odin_jax.shared import (
  camera,
  cores,
  depth_png,
  median_depth,
  record_folder,
  schema,
  world_names,
)
from preprocessing import panorama
from preprocessing.procedural import footage, true_depth
from tests.helpers import layouts

_SECONDS = 7.0
_KINDS = ('unique_room', 'repeated_corridor')
_SIZE = {'width': 768, 'height': 384}
# Small pictures: the poses are what is judged.
_ARGUMENTS = (
  '--config.view_size_px=64',
  '--config.views_per_pair=2',
  # Most of the videos are there to be refused.
  '--config.max_bad_share=0.9',
)


def write_world(folder, index):
  name = f'{index:03d}_{_KINDS[index]}'
  world = footage.make_world(
    _KINDS, index, seed=11, seconds=_SECONDS, px_per_rad=384 / np.pi
  )
  times_s = footage.picture_times_s(_SECONDS)
  footage.write_video(
    folder / f'{name}.mp4',
    (footage.render_panorama(world, t, **_SIZE) for t in times_s),
  )
  return name, footage.truth(world, times_s)


@pytest.fixture(scope='module')
def worlds(tmp_path_factory):
  """A folder with two good videos and much that is none; the truths."""
  folder = tmp_path_factory.mktemp('worlds')
  truths = dict(write_world(folder, index) for index in range(2))
  whole = (folder / f'{next(iter(truths))}.mp4').read_bytes()
  (folder / 'broken.mp4').write_bytes(whole[: len(whole) // 2])
  (folder / 'note.txt').write_text('no video')
  note = {'settings': {'seed': 11, 'kinds': list(_KINDS)}}
  (folder / 'worlds.json').write_text(json.dumps(note))
  add_strange_names(folder, f'{next(iter(truths))}.mp4')
  return folder, truths


def add_strange_names(folder, of_another):
  """Files that are found in a subfolder, or not, and then no one can use."""
  below = folder / 'more' / 'deeper'
  below.mkdir(parents=True)
  names = [b'caf\xe9', b'x' * 246, b'two\nlines', b'blank ']
  for name in names:
    pathlib.Path(
      os.fsdecode(os.fsencode(below) + b'/' + name + b'.mp4')
    ).touch()
  (below / of_another).write_bytes(b'another video of the same name')
  (folder / '.hidden').mkdir()
  (folder / '.hidden' / 'film.mp4').touch()
  (below / 'back').symlink_to(folder)
  (folder / 'also_deeper').symlink_to(below)


def command(source, output, *arguments, num_workers=1):
  return [
    sys.executable,
    '-m',
    'preprocessing.run',
    '--config=configs/preprocess.py',
    f'--input={source}',
    f'--output={output}',
    f'--num_workers={num_workers}',
    *arguments,
  ]


def run(repository, *arguments, **options):
  return subprocess.run(
    command(*arguments, **options),
    cwd=repository,
    capture_output=True,
    text=True,
    check=False,
  )


@pytest.fixture(scope='module')
def first_run(worlds, repository, tmp_path_factory):
  output = tmp_path_factory.mktemp('run') / 'records'
  done = run(repository, worlds[0], output, *_ARGUMENTS, num_workers=2)
  assert done.returncode == 0, done.stderr
  return output, done


@pytest.fixture(scope='module')
def finished(first_run):
  return first_run[0]


def read_records(output):
  counts = json.loads((output / 'manifest.json').read_text())['counts']
  return [
    record
    for split in schema.SPLITS
    if counts[split]
    for record in record_folder.RecordFolder(output, split)
  ]


def summaries(output):
  manifest = json.loads((output / 'manifest.json').read_text())
  return {video['video_id']: video for video in manifest['videos']}


def ledger(output):
  lines = (output / 'ledger.jsonl').read_text().splitlines()
  return [json.loads(line) for line in lines]


def frame_pairs(records):
  """target2source of the panoramas, by (time of source, time of target)."""
  target2source_of = {}
  for record in records:
    source, target = (
      record[f'{side}/frame2scene'].astype(np.float64)
      for side in ('source', 'target')
    )
    key = record['source/time_s'], record['target/time_s']
    target2source_of[key] = camera.relative(source, target)
  return target2source_of


@pytest.mark.parametrize('kind', _KINDS)
def test_poses_against_truth(finished, worlds, kind):
  name, truth = next(
    item for item in worlds[1].items() if item[0].endswith(kind)
  )
  records = [r for r in read_records(finished) if r['video_id'] == name]
  rotation_deg, direction_deg, ratio = errors_against_truth(records, truth)
  assert np.median(rotation_deg) <= 0.1
  assert np.median(direction_deg) <= 0.5
  assert np.max(direction_deg) < 90
  assert np.median(np.abs(ratio / np.median(ratio) - 1)) <= 0.01
  # The gauge: what the views look at is 1 away, and in truth about that far.
  depths = [record['median_depth'] for record in records]
  assert np.median(depths) == pytest.approx(1.0, rel=1e-5)
  static = ~truth['moving'] & np.isfinite(truth['depth'])
  static[:, :24], static[:, -24:] = False, False  # Steeper than 45 degrees.
  assert 0.6 < np.median(truth['depth'][static]) * np.median(ratio) < 1.6


def true_median_depth_m(record, side, truth):
  """Of what the view shows that stands still."""
  index = np.argmin(np.abs(truth['time_s'] - record[f'{side}/time_s']))
  distance, moves = truth['depth'][index], truth['moving'][index]
  height, width = distance.shape
  column, row = np.meshgrid(np.arange(width) + 0.5, np.arange(height) + 0.5)
  rays = camera.equirect_to_direction(column, row, width, height)
  points = (rays * distance[..., None])[~moves & np.isfinite(distance)]
  angles = record[f'{side}/yaw_deg'], record[f'{side}/pitch_deg']
  return median_depth.of_points(
    points @ camera.view2frame_rotation(*angles), record['fov_deg']
  )


@pytest.mark.parametrize('index', range(2))
def test_median_depths_against_truth(finished, worlds, index):
  name, truth = list(worlds[1].items())[index]
  records = [r for r in read_records(finished) if r['video_id'] == name]
  _, _, units_per_m = errors_against_truth(records, truth)
  for side, field in (
    ('source', 'median_depth'),
    ('target', 'target/median_depth'),
  ):
    found = [record[field] for record in records]
    true_m = [true_median_depth_m(record, side, truth) for record in records]
    ratio = np.array(found) / true_m / np.median(units_per_m)
    assert abs(np.median(ratio) - 1) < 0.1
    assert np.std(np.log(ratio)) < 0.1


@pytest.mark.parametrize('index', range(2))
def test_almost_all_frame_pairs_are_kept(finished, worlds, index):
  name = list(worlds[1])[index]
  summary = summaries(finished)[name]
  assert summary['frames'] == summary['frames_with_pose'] == 7
  assert summary['components'] == 1
  candidates = summary['frame_pairs']['candidates']
  assert candidates == {'1': 6, '2': 5, '3': 4, '4': 3, '5': 2}
  for gap, count in candidates.items():
    assert summary['frame_pairs']['kept'][gap] >= 0.7 * count
  assert 0.05 < summary['masked_share'] < 0.3
  assert 20 <= summary['matcher_calls'] <= summary['matcher_calls_bound']
  pairs = sum(summary['frame_pairs']['kept'].values())
  assert summary['matcher_calls_per_kept_pair'] == pytest.approx(
    summary['matcher_calls'] / pairs, abs=1e-3
  )
  long = summary['long_frame_pairs']['candidates']
  assert long.keys() <= {'6'} and (index or long)


def errors_against_truth(records, truth):
  """Of all frame pairs: rotation and direction in degrees; lengths' ratio."""
  rotation_deg, direction_deg, ratio = [], [], []
  for times_s, target2source in frame_pairs(records).items():
    source, target = (
      truth['frame2world'][np.argmin(np.abs(truth['time_s'] - time_s))]
      for time_s in times_s
    )
    true = camera.relative(source, target)
    rotation_deg.append(
      camera.rotation_angle_deg(target2source[:, :3] @ true[:, :3].T)
    )
    direction_deg.append(
      camera.angle_between_deg(target2source[:, 3], true[:, 3])
    )
    ratio.append(
      np.linalg.norm(target2source[:, 3]) / np.linalg.norm(true[:, 3])
    )
  return np.array(rotation_deg), np.array(direction_deg), np.array(ratio)


def world_of_cubemap():
  return footage.make_world(
    _KINDS, 0, seed=11, seconds=4.0, px_per_rad=384 / np.pi
  )


@pytest.fixture(scope='module')
def with_everything(repository, tmp_path_factory):
  """A cubemap video with a mask; weights, depth, both exports asked for."""
  folder = tmp_path_factory.mktemp('cubemap')
  world = world_of_cubemap()
  times_s = footage.picture_times_s(4.0)
  layouts.write_video(
    folder / 'cube.mp4',
    [
      layouts.eac(footage.render_panorama(world, t, **_SIZE), 960, 640)
      for t in times_s
    ],
    rate=footage.RENDERED_FPS,
    options={'crf': '12'},
  )
  mask = np.full((64, 128), 255, np.uint8)
  mask[40:44, 30:60] = 0
  # Somebody behind the camera, over the seam.
  mask[20:, :12] = mask[20:, -12:] = 0
  cv2.imwrite(str(folder / 'mask.png'), mask)
  output = folder / 'records'
  done = run(
    repository,
    folder / 'cube.mp4',
    output,
    *_ARGUMENTS,
    '--config.static_weights=True',
    '--config.depth_px=64',
    f'--mask={folder / "mask.png"}',
    '--export=nerfstudio,colmap',
  )
  assert done.returncode == 0, done.stderr
  return output, footage.truth(world, times_s)


def test_a_cubemap_video_is_recognised_and_posed(with_everything):
  output, truth = with_everything
  summary = summaries(output)['cube']
  assert summary['projection']['layout']['name'] == 'eac'
  assert summary['projection']['source'] == 'content'
  assert summary['colours']['conversion'] == 'none'
  rotation_deg, direction_deg, _ = errors_against_truth(
    read_records(output), truth
  )
  assert np.median(rotation_deg) <= 0.2
  assert np.median(direction_deg) <= 0.5


def test_weights_lie_beside_the_pairs(with_everything):
  for record in read_records(with_everything[0]):
    weight = cv2.imdecode(
      np.frombuffer(record['target/static_weight'], np.uint8),
      cv2.IMREAD_UNCHANGED,
    )
    assert weight.shape == (64, 64) and weight.dtype == np.uint8
  features = json.loads((with_everything[0] / 'features.json').read_text())
  assert 'static_weight' in json.dumps(features)


def test_depth_of_solved_points_lies_beside_the_pairs(with_everything):
  records = read_records(with_everything[0])
  world, poses = world_of_cubemap(), {}
  for record in records:
    poses.update(true_depth.poses(record))
  unit_m = true_depth.metres_per_unit(world, poses)
  counts, errors = [], []
  for record in records:
    truth = true_depth.depths(world, record, unit_m, 64)
    for side, true in zip(('source', 'target'), truth[:2], strict=True):
      depth = depth_png.decode(record[f'{side}/depth'])
      known = depth > 0
      counts.append(known.sum())
      errors.append(np.abs(depth[known] / true[known] - 1))
  assert np.median(counts) >= 50 and np.min(counts) >= 12
  # Of each view, so that none is in other units or turned.
  assert max(np.median(of_view) for of_view in errors) < 0.03
  assert np.median(np.concatenate(errors)) < 0.02
  features = json.loads((with_everything[0] / 'features.json').read_text())
  assert json.dumps(features).count('uint16') == 2


def test_the_camera_path_leaves_for_other_tools(with_everything):
  output, _ = with_everything
  cameras = output / 'cameras' / 'cube'
  path = json.loads((cameras / 'path.json').read_text())
  import pycolmap

  model = pycolmap.Reconstruction(str(cameras / 'sparse' / '0'))
  assert model.num_reg_images() == 4 and model.num_points3D() > 100
  assert {c.model.name for c in model.cameras.values()} == {'EQUIRECTANGULAR'}
  assert (cameras / 'transforms.json').is_file()
  assert len(list((cameras / 'masks').iterdir())) == 4
  # The same numbers as in the records.
  poses = {
    round(record['source/time_s'], 3): record['source/frame2scene']
    for record in read_records(output)
  }
  assert len(path['frames']) == 4
  for frame in path['frames']:
    expected = poses[round(frame['time_s'], 3)]
    np.testing.assert_allclose(frame['frame2scene'], expected, atol=1e-6)
  masked = cv2.imread(
    str(sorted((cameras / 'masks').iterdir())[0]), cv2.IMREAD_GRAYSCALE
  )
  height, width = masked.shape
  # Where the user's mask is black.
  assert not masked[42 * height // 64, 45 * width // 128]


def test_shares_of_the_scene_are_those_of_the_exported_mask(with_everything):
  output, _ = with_everything
  file = next((output / 'cameras' / 'cube' / 'masks').iterdir())
  mask = np.repeat(cv2.imread(str(file), 0)[..., None], 3, axis=2)
  shares = []
  for record in read_records(output):
    for side in ('source', 'target'):
      view = panorama.cut_view(
        mask,
        yaw_deg=record[f'{side}/yaw_deg'],
        pitch_deg=record[f'{side}/pitch_deg'],
        fov_deg=record['fov_deg'],
        size_px=128,
      )
      shares.append((record[f'{side}/unmasked_share'], view.mean() / 255))
  told, measured = np.array(shares).T
  np.testing.assert_allclose(told, measured, atol=0.01)
  # What is painted is in some of the views, and in none too much of it, though
  # views in a third of all directions would show more.
  assert 0.8 <= told.min() < 0.95


def test_the_manifest_tells_the_seed_of_worlds(finished, worlds):
  found = summaries(finished)
  assert {name: found[name]['world_seed'] for name in worlds[1]} == (
    dict.fromkeys(worlds[1], 11)
  )
  folder = worlds[0]
  # A video of another name beside them is none of them.
  for name in ('broken', '000_my_walk', '001_unique_room', '000'):
    assert world_names.seed_of_video(folder / f'{name}.mp4') is None
  assert world_names.seed_of_video(folder / 'more/000_unique_room.mp4') is None


def test_records_are_consistent(finished):
  poses = collections.defaultdict(set)
  for record in read_records(finished):
    schema.validate(record)
    assert record['matcher'] == 'sphere'
    # Poses from pictures are never exact, and of these never unknown.
    for name in ('rotation_error_deg', 'direction_error_deg'):
      assert 0 < record[name] < 2
    gap_s = abs(record['source/time_s'] - record['target/time_s'])
    assert (record['hops'] > 1) == (gap_s > 5.5)
    target2source = camera.relative_view_pose(
      *(
        record[f'{side}/frame2scene'].astype(np.float64)
        for side in ('source', 'target')
      ),
      *(
        (record[f'{side}/yaw_deg'], record[f'{side}/pitch_deg'])
        for side in ('source', 'target')
      ),
    )
    np.testing.assert_allclose(
      record['target2source'], target2source, atol=1e-5
    )
    for side in ('source', 'target'):
      key = record['video_id'], record[f'{side}/time_s']
      poses[key].add(record[f'{side}/frame2scene'].tobytes())
  assert all(len(of_frame) == 1 for of_frame in poses.values())
  assert len(poses) == 14


def test_ledger_names_what_was_passed_over(finished, worlds):
  rows = {row['file']: row for row in ledger(finished) if 'file' in row}
  assert all(row['stage'] == 'input' for row in rows.values())
  same = f'also_deeper/{next(iter(worlds[1]))}.mp4'
  assert {name: row['reason'] for name, row in rows.items()} == {
    'note.txt': 'not a video',
    'worlds.json': 'not a video',
    'broken.mp4': 'not a video, or truncated',
    same: 'same stem as another video',
    'also_deeper/caf\\xe9.mp4': 'name that cannot be used',
    f'also_deeper/{"x" * 246}.mp4': 'name that cannot be used',
    'also_deeper/two\nlines.mp4': 'name that cannot be used',
    'also_deeper/blank .mp4': 'name that cannot be used',
  }
  words = {name: row.get('message', '') for name, row in rows.items()}
  assert 'is not UTF-8; rename it' in words['also_deeper/caf\\xe9.mp4']
  assert 'at most 245 bytes' in words[f'also_deeper/{"x" * 246}.mp4']
  # Both of the files that have one name.
  assert f'{worlds[0] / same}: same stem as' in words[same]
  assert f'{worlds[0] / pathlib.Path(same).name},' in words[same]
  assert words['broken.mp4'].startswith(f'{worlds[0] / "broken.mp4"}: ')


def test_a_run_ends_with_what_it_used_and_what_is_next(first_run):
  output, done = first_run
  devices, used, holds, audit, train = done.stdout.splitlines()
  assert devices == cores.text()
  assert used == (
    '2 of 8 videos used, 6 dropped: name that cannot be used (4), same stem as '
    f'another video (1), not a video, or truncated (1); see {output}/'
    'ledger.jsonl'
  )
  counts = json.loads((output / 'manifest.json').read_text())['counts']
  assert holds == (
    f'{output}: {counts["train"]} train and {counts["test"]} test records'
  )
  assert f'preprocessing.audit --records={output} ' in audit
  assert (
    f'odin_jax.train --config=configs/train.py:world --records={output}'
    in (train)
  )
  # No bar where there is no terminal, and no traceback for any video.
  assert '\r' not in done.stderr and 'Traceback' not in done.stderr


def test_too_many_bad_videos_fail_the_run_after_the_good_ones_are_written(
  finished, worlds, repository, tmp_path
):
  output = tmp_path / 'records'
  shutil.copytree(finished / 'parts', output / 'parts')
  shutil.copytree(finished / 'cameras', output / 'cameras')
  shutil.copy(finished / '.odin_output.json', output)
  arguments = [*_ARGUMENTS, '--config.max_bad_share=0.7']
  done = run(repository, worlds[0], output, *arguments)
  assert done.returncode == 2
  assert done.stderr.startswith('error: 6 of 8 videos were dropped, more than')
  assert done.stderr.count('\n') == 1 and str(output) in done.stderr
  assert '\n2 of 8 videos used, 6 dropped: ' in done.stdout
  assert {
    name: data
    for name, data in contents(output).items()
    if name != 'manifest.json'
  } == {
    name: data
    for name, data in contents(finished).items()
    if name != 'manifest.json'
  }


def contents(output):
  """Everything that must not depend on how the run went."""
  return {
    path.name: path.read_bytes()
    for path in output.iterdir()
    if path.is_file() and path.name != 'run.json'
  }


def test_another_config_makes_its_own_records(finished, worlds, repository):
  """Parts of an earlier config are not taken for those of the new one."""
  before = contents(finished)
  name = next(iter(worlds[1]))
  try:
    done = run(
      repository,
      worlds[0] / f'{name}.mp4',
      finished,
      '--config.view_size_px=32',
      '--config.views_per_pair=1',
      '--config.split_by=time',
      '--config.test_fraction=0.3',
    )
    assert done.returncode == 0, done.stderr
    splits = {r['split'] for r in read_records(finished)}
    assert splits == {'train', 'test'}
    times = collections.defaultdict(set)
    for record in read_records(finished):
      for side in ('source', 'target'):
        times[record['split']].add(record[f'{side}/time_s'])
    assert not times['train'] & times['test']
    summary = summaries(finished)[name]['frame_pairs']
    assert sum(summary['split_apart'].values()) > 0
    assert sum(summary['candidates'].values()) < 20
  finally:
    for file, data in before.items():
      (finished / file).write_bytes(data)


def write_flat_film(path):
  """A picture that does not go on across its left-right seam."""
  rng = np.random.default_rng(0)
  with av.open(str(path), 'w') as container:
    stream = container.add_stream('libx264', rate=10)
    stream.width, stream.height, stream.pix_fmt = 256, 128, 'yuv420p'
    ramp = np.linspace(0, 255, 256)[None, :, None]
    image = ramp * np.linspace(0.3, 1, 128)[:, None, None] * np.ones(3)
    for _ in range(12):
      noisy = np.clip(image + rng.normal(size=image.shape) * 9, 0, 255)
      frame = av.VideoFrame.from_ndarray(noisy.astype(np.uint8))
      container.mux(stream.encode(frame))
    container.mux(stream.encode())


def make_bad_input(tmp_path, fault):
  path = tmp_path / 'input'
  path.mkdir()
  if fault == 'empty folder':
    return path
  if fault == 'folder without a video':
    (path / 'note.txt').write_text('no video')
    return path
  if fault == 'missing':
    return path / 'absent.mp4'
  if fault == 'only a bad name':
    (path / f'{"x" * 246}.mp4').touch()
    return path
  file = path / 'film.mp4'
  if fault == 'flat film':
    write_flat_film(file)
  else:
    file.write_bytes(b'no video at all' * 50)
  if fault == 'only bad videos':
    return path
  return file


@pytest.mark.parametrize(
  'fault,says',
  [
    ('empty folder', 'no video in this folder'),
    ('folder without a video', 'no video in this folder'),
    ('missing', 'no such'),
    ('flat film', 'film.mp4'),
    ('not a video', 'film.mp4'),
    ('only bad videos', 'no usable video'),
    ('only a bad name', 'no usable video'),
  ],
)
def test_bad_input_is_one_line_and_status_2(repository, tmp_path, fault, says):
  source = make_bad_input(tmp_path, fault)
  output = tmp_path / 'records'
  done = run(repository, source, output)
  errors = [
    line
    for line in done.stderr.replace('\r', '\n').splitlines()
    if line.startswith('error: ')
  ]
  assert done.returncode == 2
  assert len(errors) == 1 and says in errors[0]
  assert 'Traceback' not in done.stderr


def test_a_mask_of_another_shape_is_told_the_size(repository, worlds, tmp_path):
  cv2.imwrite(str(tmp_path / 'm.png'), np.zeros((64, 64), np.uint8))
  output = tmp_path / 'records'
  done = run(repository, worlds[0], output, f'--mask={tmp_path / "m.png"}')
  assert done.returncode == 2 and done.stderr.count('\n') == 1
  assert 'm.png: is 64 x 64' in done.stderr and '768 x 384' in done.stderr
  assert not output.exists()


def test_foreign_output_and_unknown_key_are_refused(repository, tmp_path):
  video = make_bad_input(tmp_path, 'not a video')
  (tmp_path / 'mine').mkdir()
  (tmp_path / 'mine' / 'thesis.txt').write_text('precious')
  done = run(repository, video, tmp_path / 'mine')
  assert done.returncode == 2 and 'thesis.txt' in done.stderr
  assert os.listdir(tmp_path / 'mine') == ['thesis.txt']
  done = run(repository, video, tmp_path / 'new', '--config.poses.gate=1')
  assert done.returncode == 2 and 'gate' in done.stderr


def test_real_video(shared_data, repository, tmp_path):
  """A hand-held walk along cells: people walk, a hand fills the bottom."""
  output = tmp_path / 'records'
  done = run(
    repository,
    shared_data / 'real_360_alcatraz.mp4',
    output,
    '--config.views_per_pair=2',
    '--config.view_size_px=64',
  )
  assert done.returncode == 0, done.stderr
  summary = summaries(output)['real_360_alcatraz']
  assert summary['frames'] == 41 and summary['components'] == 1
  posed = frame_pairs(read_records(output))
  gaps = collections.Counter(
    round(abs(target - source))
    for source, target in {tuple(sorted(times)) for times in posed}
  )
  assert gaps.total() >= 100
  assert all(gaps[gap] >= 10 for gap in (1, 2, 3, 4))
  places = {}
  for record in read_records(output):
    for side in ('source', 'target'):
      place = record[f'{side}/frame2scene'][:, 3]
      places[record[f'{side}/time_s']] = place.astype(np.float64)
  path = np.stack([places[time_s] for time_s in sorted(places)])
  assert len(path) == 41
  forward = path[-1] - path[0]
  assert np.all(np.diff(path @ forward) > 0)
  # Nearly straight.
  length = np.linalg.norm(np.diff(path, axis=0), axis=1).sum()
  assert np.linalg.norm(forward) > 0.9 * length
  # The hand is masked, and not much else.
  assert 0.08 < summary['masked_share'] < 0.35


def test_bad_input_leaves_finished_records_as_they_are(
  finished, worlds, repository, tmp_path
):
  output = tmp_path / 'records'
  shutil.copytree(finished, output)
  folder = tmp_path / 'bad'
  folder.mkdir()
  shutil.copy(worlds[0] / 'broken.mp4', folder)
  done = run(repository, folder, output, *_ARGUMENTS)
  assert done.returncode == 2 and 'broken.mp4' in done.stderr
  for path in finished.iterdir():
    if path.is_file():
      assert (output / path.name).read_bytes() == path.read_bytes(), path.name


@pytest.mark.parametrize(
  'argument',
  [
    '--config.fps=0.0',
    '--config.view_size_px=0',
    '--config.fov_deg=180.0',
    '--config.matcher=poses',
    '--config.fps=inf',
    '--config.window_s=0.5',
    '--config.max_panorama_width_px=0',
    '--config.test_fraction=2.0',
    '--config.export.num_yaws=0',
    '--config.matcher=dust3r',
    '--ray_address=auto',
    '--gpus_per_actor=0.5',
  ],
)
def test_config_values_that_cannot_work_are_refused(
  repository, worlds, tmp_path, argument
):
  done = run(repository, worlds[0], tmp_path / 'records', argument)
  assert done.returncode == 2
  name = argument.split('=')[0].removeprefix('--')
  # A table is refused as a whole; a matcher says what it lacks.
  named = name.rpartition('.')[0] if name.count('.') > 1 else name
  assert named in done.stderr or 'DUST3R_HOME' in done.stderr
  assert done.stderr.count('\n') == 1
  assert not (tmp_path / 'records').exists()
