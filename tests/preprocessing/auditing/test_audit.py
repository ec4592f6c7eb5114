"""The audit against poses and matches whose errors are known."""

import json
import os
import re
import shutil
import subprocess
import sys

import cv2
import numpy as np
import pytest

from odin_jax.reporting import contents
from odin_jax.shared import camera, files
from preprocessing.auditing import (
  calibration,
  epipolar,
  figures,
  held_out,
  ledger_summary,
  quality,
  records,
  sample,
  verdict,
)
from preprocessing.procedural import footage, true_pairs
from preprocessing.writing import merging, parts
from tests.helpers import default_rules


def turn(degrees):
  return camera.rotation_y(np.deg2rad(degrees))


def make_truth(count=8):
  """A walk along +z with a little sway, at five pictures per second."""
  time_s = np.arange(5 * count) / 5
  poses = [
    camera.make_pose(turn(3 * t), np.array([0.2 * np.sin(t), -1.6, 1.2 * t]))
    for t in time_s
  ]
  return {'time_s': time_s, 'frame2world': np.stack(poses)}


def make_component(truth, count=8, units_per_m=0.4, change=None):
  """True poses in another gauge and other axes, changed frame by frame."""
  world2scene = camera.make_pose(turn(77.0), np.array([3.0, 1.0, -2.0]))
  component = quality.Component('walk', 0)
  for index in range(count):
    pose = truth['frame2world'][5 * index].copy()
    pose[:, 3] *= units_per_m
    pose = camera.compose(world2scene, pose)
    if change:
      pose = change(index, pose)
    component.poses[float(index)] = pose
  component.frame_pairs = {(float(i), float(i + 1)) for i in range(count - 1)}
  component.frame_pairs.add((0.0, 5.0))
  return component


def test_true_poses_in_any_gauge_have_no_error():
  truth = make_truth()
  errors = quality.pose_errors(make_component(truth), truth)
  assert sorted(errors['gap_s'].tolist()) == [1.0] * 7 + [5.0]
  assert errors['rotation_deg'].max() < 1e-6
  assert errors['direction_deg'].max() < 1e-6
  assert np.abs(errors['scale']).max() < 1e-9
  assert np.allclose(errors['units_per_m'], 0.4)


def test_errors_are_those_that_were_put_in():
  truth = make_truth()
  exact = make_component(truth)

  def change(index, pose):
    if index != 7:
      return pose
    # The last frame: turned by 2 degrees, and too far away by a tenth.
    before = exact.poses[6.0][:, 3]
    moved = before + 1.1 * (pose[:, 3] - before)
    return camera.make_pose(pose[:, :3] @ turn(2.0), moved)

  errors = quality.pose_errors(make_component(truth, change=change), truth)
  assert np.count_nonzero(errors['rotation_deg'] > 1e-6) == 1
  assert errors['rotation_deg'].max() == pytest.approx(2.0)
  assert errors['scale'].max() == pytest.approx(0.1, abs=1e-6)
  assert errors['direction_deg'].max() < 1e-5


def test_a_backward_step_is_a_flip():
  truth = make_truth()

  def change(index, pose):
    if index != 7:
      return pose
    before = make_component(truth).poses[6.0][:, 3]
    return camera.make_pose(pose[:, :3], 2 * before - pose[:, 3])

  component = make_component(truth, change=change)
  summary = figures.pose_figures([quality.pose_errors(component, truth)])
  assert summary['flips'] == 1
  assert summary['direction_deg'] < 1e-5
  order = quality.frames_behind(component)
  assert (order['frames'], order['behind']) == (8, 1)
  assert order['straightness'] > 0.9
  assert quality.frames_behind(make_component(truth))['behind'] == 0


def test_truth_holds_for_a_fifth_of_a_second():
  truth = make_truth()
  for time_s, index in ((1.0, 5), (1.0333, 5), (1.1666, 5), (1.2, 6)):
    pose = quality.pose_at(truth, float(np.float32(time_s)))
    assert np.array_equal(pose, truth['frame2world'][index])
  for time_s in (-1.0, 100.0):
    with pytest.raises(ValueError, match='no truth'):
      quality.pose_at(truth, time_s)


def row(source_s, target_s, pose=None, scene_id=0, hops=1):
  pose = camera.identity_pose() if pose is None else pose
  return {
    'video_id': 'walk',
    'scene_id': scene_id,
    'hops': hops,
    'source/time_s': source_s,
    'target/time_s': target_s,
    'source/frame2scene': pose.astype(np.float32),
    'target/frame2scene': camera.identity_pose().astype(np.float32),
  }


def test_frame_pairs_and_their_poses_are_counted_once():
  rows = [row(0.0, 1.0), row(1.0, 0.0), row(0.0, 2.0), row(0.0, 1.0, None, 1)]
  first, second = quality.gather_components(rows)
  assert first.frame_pairs == {(0.0, 1.0), (0.0, 2.0)}
  assert second.frame_pairs == {(0.0, 1.0)}
  assert first.poses_per_frame == 1
  other = camera.make_pose(turn(1.0), np.zeros(3))
  (component,) = quality.gather_components([*rows[:3], row(0.0, 2.0, other)])
  assert component.poses_per_frame == 2


def test_long_pairs_are_kept_apart():
  rows = [row(0.0, 1.0), row(0.0, 9.0, hops=3), row(9.0, 0.0, hops=3)]
  (component,) = quality.gather_components(rows)
  assert component.frame_pairs == {(0.0, 1.0)}
  assert component.long_pairs == {(0.0, 9.0)}


def test_what_records_state_is_kept_for_each_direction_of_a_pair():
  there = {'rotation_error_deg': 0.1, 'direction_error_deg': 0.2}
  back = {'rotation_error_deg': 0.1, 'direction_error_deg': 0.3}
  rows = [{**row(0.0, 1.0), **there}, {**row(1.0, 0.0), **back}, row(1.0, 2.0)]
  rows.append({**row(2.0, 1.0), 'rotation_error_deg': 0.1})
  (component,) = quality.gather_components(rows)
  assert component.stated_deg == {
    (0.0, 1.0): (0.1, 0.2),
    (1.0, 0.0): (0.1, 0.3),
  }
  assert component.unstated == {(1.0, 2.0), (2.0, 1.0)}
  found = calibration.figures([calibration.of_component(component, None)])
  assert found['unstated_share'] == 0.5
  text = verdict.on_stated(found).text
  assert text.endswith(
    '50.0 % of the pairs of frames state nothing, and are not counted.'
  )


def calibrated(sigma_deg, noise_deg=0.3, count=500):
  """Figures of a walk whose frames are turned by noise about every axis."""
  rng = np.random.default_rng(6)
  truth = make_truth(count)

  def change(_, pose):
    axis = rng.normal(size=3) * np.deg2rad(noise_deg)
    return camera.make_pose(pose[:, :3] @ cv2.Rodrigues(axis)[0], pose[:, 3])

  component = make_component(truth, count, change=change)
  # Two frames turn relative to each other; only the source turns a direction.
  component.stated_deg = {
    (float(i), float(i + 1)): (np.sqrt(2) * sigma_deg, sigma_deg)
    for i in range(0, count - 1, 2)
  }
  return calibration.figures([calibration.of_component(component, truth)])


def test_coverage_is_95_percent_where_the_stated_error_is_the_true_one():
  found = calibrated(0.3)
  assert found['rotation_sigma_deg'] == pytest.approx(0.3 * np.sqrt(2))
  assert found['direction_sigma_90_deg'] == pytest.approx(0.3)
  small, large = calibrated(0.15), calibrated(0.9)
  for name in ('rotation_coverage', 'direction_coverage'):
    assert 0.91 < found[name] < 0.99
    assert small[name] < 0.75
    assert large[name] == 1.0


def test_exact_records_are_covered_and_old_ones_state_nothing():
  truth = make_truth()
  component = make_component(truth)
  assert not calibration.figures([calibration.of_component(component, truth)])
  component.stated_deg = {(0.0, 1.0): (0.0, 0.0), (1.0, 0.0): (0.0, 0.0)}
  unknown = calibration.figures([calibration.of_component(component, None)])
  assert (
    unknown['rotation_sigma_deg'] == 0 and 'rotation_coverage' not in unknown
  )
  exact = calibration.figures([calibration.of_component(component, truth)])
  assert exact['rotation_coverage'] == exact['direction_coverage'] == 1.0


def measured(rng, worse, scenes=12):
  """Errors in train and test of scenes that are unlike each other."""
  return [
    held_out.Measured(
      split, ('walk', scene), 1.0, rng.normal(scene + shift, 0.1)
    )
    for scene in range(scenes)
    for split, shift in (('train', 0.0), ('test', worse))
    for _ in range(20)
  ]


def test_splits_are_compared_within_scenes_and_the_interval_is_over_scenes():
  rng = np.random.default_rng(0)
  compared = held_out.compare(
    {'rotation_deg': measured(rng, 0.0), 'direction_deg': measured(rng, 3.0)}
  )
  same, worse = compared['rotation_deg'], compared['direction_deg']
  assert same['train']['count'] == 240 and same['test']['scenes'] == 12
  assert same['interval_95'][0] <= 0 <= same['interval_95'][1]
  assert worse['difference'] == pytest.approx(3.0, abs=0.5)
  assert worse['interval_95'][0] > 1.0
  # Twice the values of a scene tell no more: the interval stays.
  twice = held_out.compare({'rotation_deg': 2 * measured(rng, 0.0)})
  width, double = (
    np.diff(found['interval_95'])[0] for found in (same, twice['rotation_deg'])
  )
  assert double > 0.6 * width


def test_only_pairs_as_far_apart_are_compared():
  rng = np.random.default_rng(0)

  def at(split, gap_s, count, value):
    return [
      held_out.Measured(
        split, ('walk', scene), gap_s, value + rng.normal() / 99
      )
      for scene in range(6)
      for _ in range(count)
    ]

  # Errors depend on the gap alone, and a held-out block has no wide one.
  compared = held_out.compare(
    {
      'direction_deg': [
        *at('train', 1.0, 5, 9.0),
        *at('train', 2.0, 20, 3.0),
        *at('train', 5.0, 20, 1.0),
        *at('test', 1.0, 8, 9.0),
        *at('test', 2.0, 4, 3.0),
      ]
    }
  )['direction_deg']
  assert compared['difference'] == pytest.approx(0.0, abs=0.02)
  assert compared['train']['value'] == pytest.approx(7.0, abs=0.02)
  assert compared['train']['count'] == 150
  low, high = compared['interval_95']
  assert -0.05 < low <= 0 <= high < 0.05


def test_a_split_alone_is_compared_with_nothing():
  rng = np.random.default_rng(0)
  trained = [item for item in measured(rng, 0.0) if item.split == 'train']
  assert held_out.compare({'rotation_deg': trained, 'sampson_px': []}) == {}
  alone = held_out.compare({'rotation_deg': measured(rng, 0.0, scenes=1)})
  assert alone['rotation_deg']['interval_95'] is None
  assert alone['rotation_deg']['test']['scenes'] == 1
  # Five values that happen to be alike are no proof.
  few = [*trained, *(trained[0]._replace(split='test') for _ in range(5))]
  assert (
    held_out.compare({'sampson_px': few})['sampson_px']['interval_95'] is None
  )


def test_sampson_distance_is_zero_on_the_line_and_half_the_way_off_it():
  rng = np.random.default_rng(0)
  matrix = camera.intrinsics(90.0, 256)
  pose = camera.make_pose(turn(8.0), np.array([0.6, 0.05, 0.2]))
  points = rng.uniform((-1, -1, 3), (1, 1, 6), size=(50, 3))
  source, _ = camera.project(camera.transform(pose, points), matrix)
  target, _ = camera.project(points, matrix)
  assert epipolar.sampson_px(source, target, pose, matrix).max() < 1e-9
  lines = (
    np.concatenate([target, np.ones((50, 1))], 1)
    @ epipolar.fundamental_matrix(pose, matrix).T
  )
  across = lines[:, :2] / np.linalg.norm(lines[:, :2], axis=1, keepdims=True)
  off = epipolar.sampson_px(source + across, target, pose, matrix)
  # A pixel across the line is shared between the two views.
  assert np.all((off > 0.5) & (off < 0.9))


def test_matches_are_mutual_and_exact_on_a_shifted_picture():
  rng = np.random.default_rng(0)
  noise = rng.integers(0, 255, (40, 40), dtype=np.uint8)
  big = cv2.resize(noise, (320, 320), interpolation=cv2.INTER_CUBIC)
  source, target = big[:256, :256], big[20:276, 12:268]
  a, b = epipolar.mutual_matches(source, target)
  assert len(a) > 50
  assert np.abs(np.median(a - b, axis=0) - (12, 20)).max() < 0.05
  flat = np.zeros((64, 64), np.uint8)
  assert len(epipolar.mutual_matches(flat, flat)[0]) == 0


@pytest.fixture(scope='module')
def run(tmp_path_factory):
  """True records of two worlds, with their truth beside them."""
  folder = tmp_path_factory.mktemp('run')
  output = files.claim_output(folder / 'records', 'preprocessing.worlds')
  (folder / 'truth').mkdir()
  rules = true_pairs.PairRules(
    num_records=10,
    seconds=8.0,
    max_gap_s=2,
    size_px=192,
    views=default_rules.view_rules(),
    split_by='time',
    test_fraction=0.4,
  )
  names = ['unique_room', 'repeated_corridor']
  for index, name in enumerate(names):
    world = footage.make_world(
      names, index, seed=1, seconds=8.0, px_per_rad=96.0
    )
    made, summary, dropped, _ = true_pairs.make_records(
      world, name, rules, seed=index
    )
    parts.write(
      output,
      name,
      records=made,
      summary=summary,
      dropped=dropped,
      fingerprint='a',
    )
    truth = footage.truth(world, np.arange(0, 9, 0.2), width=16, height=8)
    np.savez(folder / 'truth' / f'{name}.truth.npz', **truth)
  merging.merge(output, video_ids=names, config={}, tool='t')
  return folder


def test_true_records_pass_the_audit(run):
  report, rows, measures = figures.compute(
    records.Records(run / 'records'), str(run / 'truth'), 100
  )
  assert report['records'] == len(rows) == 20
  for kind in ('unique', 'repeated'):
    pose = report['pose'][kind]
    assert pose['rotation_deg'] < 1e-3
    assert pose['direction_deg'] < 1e-3
    assert pose['scale_error'] < 1e-5
    assert pose['flips'] == 0
    # True poses are said to be exact, and are.
    assert pose['rotation_sigma_deg'] == pose['direction_sigma_90_deg'] == 0
    assert pose['rotation_coverage'] == pose['direction_coverage'] == 1
    assert pose['max_poses_per_frame'] == pose['max_components'] == 1
    assert 0 < pose['kept_share'] <= 1
    assert pose['kept_share_per_gap'].keys() == {'1', '2'}
  assert report['epipolar']['matched'] >= 10
  assert report['epipolar']['sampson_px'] < 0.4
  # Nothing is masked where nobody holds the camera.
  assert report['unmasked_share'] == report['min_unmasked_share'] == 1.0
  assert report['consistency']['max_rotation_deg'] < 1e-4
  assert report['consistency']['max_translation'] < 1e-5
  json.dumps(report, allow_nan=False)
  assert measures.keys() == {'sampson_px', 'rotation_deg', 'direction_deg'}
  for measured in measures.values():
    assert {item.split for item in measured} == {'train', 'test'}
  # Every figure has its words on the page of a run.
  by_kind, fresh = contents.pose_tables(report)
  assert by_kind[0] == ['', 'repeated texture', 'unique texture']
  assert len(by_kind) > len(report['pose']['unique']) and len(fresh) > 4


def test_wrong_poses_are_caught(run):
  rng = np.random.default_rng(0)
  clean, noisy = [], []
  for record in records.Records(run / 'records'):
    error = epipolar.median_error_px(record)
    axis = rng.normal(size=3)
    rotation, _ = cv2.Rodrigues(axis / np.linalg.norm(axis) * np.deg2rad(2.0))
    wrong = record['target2source'].copy()
    wrong[:, :3] = rotation @ wrong[:, :3]
    changed = {**record, 'target2source': wrong}
    assert quality.pose_inconsistency(changed)[0] == pytest.approx(2.0, abs=0.1)
    if error is not None:
      clean.append(error)
      noisy.append(epipolar.median_error_px(changed))
  assert np.median(noisy) > 4 * np.median(clean)
  assert np.median(noisy) > 1


@pytest.mark.parametrize(
  'successes, trials, expected',
  # R. G. Newcombe, Statistics in Medicine 17, 1998, table I, method 3.
  [
    (81, 263, (0.2553, 0.3662)),
    (15, 148, (0.0624, 0.1605)),
    (0, 20, (0.0, 0.1611)),
    (1, 29, (0.0061, 0.1718)),
    (0, 0, (0.0, 1.0)),
    (20, 20, (1 - 0.1611, 1.0)),
  ],
)
def test_wilson_interval_against_published_values(successes, trials, expected):
  interval = sample.wilson_interval(successes, trials)
  assert interval == pytest.approx(expected, abs=6e-5)


def test_a_sample_has_no_record_twice_and_repeats():
  rows = [{'index': index} for index in range(1000)]
  chosen = [row['index'] for row in sample.draw(rows, 100, 0)]
  assert len(set(chosen)) == 100 and chosen == sorted(chosen)
  assert chosen == [row['index'] for row in sample.draw(rows, 100, 0)]
  assert chosen != [row['index'] for row in sample.draw(rows, 100, 1)]
  assert sample.draw(rows[:7], 100, 0) == rows[:7]


def test_consistent_share_tells_true_poses_from_turned_ones(run):
  audited = list(records.Records(run / 'records'))
  summary = sample.figures([sample.assess(example) for example in audited])
  assert summary['size'] == 20 and summary['decided'] >= 10
  assert summary['share'] > 0.9
  low, high = summary['interval_95']
  assert low < summary['share'] <= high + 1e-9
  assert summary['chance_share'] < 0.5
  wrong = []
  for record in audited:
    pose = record['target2source'].copy()
    # A turn about the axis across the view moves points off their lines.
    tilt = camera.rotation_x(np.deg2rad(8.0)).astype(np.float32)
    pose[:, :3] = tilt @ pose[:, :3]
    wrong.append(sample.assess({**record, 'target2source': pose}))
  assert sample.figures(wrong)['share'] < 0.5


def test_rejections_are_counted_with_examples():
  rows = [
    {'stage': 'views', 'reason': 'a', 'count': 3, 'video_id': 'x'},
    {'stage': 'views', 'reason': 'a', 'video_id': 'y', 'picture': 'p.jpg'},
    {'stage': 'poses', 'reason': 'b', 'video_id': 'x'},
  ]
  first, second = ledger_summary.by_reason(rows)
  assert (first['stage'], first['reason'], first['count']) == ('views', 'a', 4)
  assert first['examples'][0]['picture'] == 'p.jpg'
  assert second['count'] == 1


def test_shares_of_the_scene_are_told_where_records_have_them():
  rows = [
    {'source/unmasked_share': 0.9, 'target/unmasked_share': 1.0},
    {'source/unmasked_share': 0.8, 'target/unmasked_share': 0.7},
  ]
  shares = figures.unmasked_shares(rows)
  assert shares == pytest.approx(
    {'unmasked_share': 0.85, 'min_unmasked_share': 0.7}
  )
  unknown = figures.unmasked_shares([{'overlap': 1.0}])
  assert list(unknown.values()) == [None, None]


def test_histograms_count_every_record(run):
  rows, _ = figures.scan(records.Records(run / 'records'))
  for histogram in figures.histograms(rows).values():
    assert sum(histogram['counts']) == len(rows)
    assert len(histogram['edges']) == len(histogram['counts']) + 1
  assert figures.histograms([])['gap_s']['counts'] == [0]


def call(repository, *arguments):
  return subprocess.run(
    [sys.executable, '-m', 'preprocessing.audit', *arguments],
    capture_output=True,
    text=True,
    cwd=repository,
    env={**os.environ, 'OMP_NUM_THREADS': '1'},
  )


def test_the_command_writes_figures_and_drawings(run, repository, tmp_path):
  done = call(
    repository, f'--records={run / "records"}', f'--output={tmp_path / "a"}'
  )
  assert done.returncode == 0, done.stderr
  report = json.loads((tmp_path / 'a' / 'audit.json').read_text())
  assert 'pose' not in report
  assert [video['video_id'] for video in report['real']] == [
    'unique_room',
    'repeated_corridor',
  ]
  assert report['real'][0]['frame_pairs_per_gap'].keys() <= {'1', '2'}
  ((head, *rows), _) = contents.pose_tables(report)
  assert head == ['', 'unique_room', 'repeated_corridor'] and len(rows) > 9
  says = [finding['text'] for finding in report['verdict']]
  assert re.search(r'% of \d+ records drawn at random obey their pose', says[0])
  assert re.search(r'\d+ of \d+ pairs of frames were kept', says[1])
  drawings = sorted((tmp_path / 'a' / 'pairs').iterdir())
  assert len(drawings) == report['drawings'] > 4
  assert cv2.imread(str(drawings[0])).shape == (192, 384, 3)
  assert report['sample']['size'] == 20
  assert report['calibration']['direction_sigma_deg'] == 0
  assert report['held_out'].keys() <= {'sampson_px', 'consistent_share'}
  assert report['rejected'][0]['count'] > 0
  page = (tmp_path / 'a' / 'index.html').read_text()
  assert page.count('data:image/jpeg;base64,') == 20
  # Self-contained: nothing is fetched.
  assert 'http' not in page.replace('http://www.w3.org', '')
  assert '/*' not in page.partition('<script>')[0]


def test_excluded_videos_are_passed_over(run, repository, tmp_path):
  (tmp_path / 'ids.txt').write_text('unique_room\n')
  done = call(
    repository,
    f'--records={run / "records"}',
    f'--output={tmp_path / "a"}',
    f'--exclude_ids={tmp_path / "ids.txt"}',
  )
  assert done.returncode == 0, done.stderr
  report = json.loads((tmp_path / 'a' / 'audit.json').read_text())
  assert report['records'] == report['sample']['size'] == 10
  assert [v['video_id'] for v in report['videos']] == ['repeated_corridor']
  assert 'unique_room' not in (tmp_path / 'a' / 'index.html').read_text()


def test_bad_input_is_one_line(run, repository, tmp_path):
  broken = tmp_path / 'broken'
  shutil.copytree(run / 'records', broken)
  (shard,) = broken.glob('*train.tfrecord*')
  shard.write_bytes(b'')
  (tmp_path / 'full').mkdir()
  (tmp_path / 'full' / 'mine').write_text('')
  good, out = f'--records={run / "records"}', f'--output={tmp_path / "b"}'
  for arguments, named in (
    ([out], '--records'),
    ([f'--records={tmp_path / "none"}', out], 'none'),
    ([f'--records={tmp_path / "full"}', out], 'manifest.json'),
    ([good, f'--output={tmp_path / "full"}'], 'full'),
    ([good, out, f'--truth={tmp_path / "full"}'], 'unique_room.truth.npz'),
    ([f'--records={broken}', out], shard.name),
  ):
    done = call(repository, *arguments)
    last = done.stderr.splitlines()[-1]
    assert done.returncode == 2, done.stderr
    assert last.startswith('error:') and named in last
    assert 'Traceback' not in done.stderr


def sample_figures(share):
  return {
    'share': share,
    'decided': 20,
    'interval_95': [0.9, 1.0],
    'chance_share': 0.02,
  }


@pytest.mark.parametrize(
  'rotation_deg, flips, share, good, says',
  [
    (0.026, 0, 0.95, [True, True], 'wrong by 0.026° in rotation'),
    (0.026, 3, 0.6, [False, None], '3 of 80 pairs of frames move the wrong'),
    (1.5, 0, 0.3, [False, False], 'wrong by 1.500° in rotation'),
    (0.01, 0, None, [True, False], 'wrong by 0.010° in rotation'),
  ],
)
def test_the_verdict_follows_the_figures(
  rotation_deg, flips, share, good, says
):
  pose = {
    'frame_pairs': 80,
    'rotation_deg': rotation_deg,
    'direction_deg': 0.02,
    'flips': flips,
  }
  video = {'frame_pair_candidates': 65, 'kept_share': 62 / 65, 'components': 2}
  report = {
    'pose': {'unique': pose, 'repeated': {'frame_pairs': 0}},
    'sample': sample_figures(share),
    'videos': [video],
    'records': 496,
    'rejected': [{'reason': 'blurred', 'count': 7}],
  }
  truth, sampled, pairs, pieces, rejected = verdict.findings(report)
  assert says in truth.text and [truth.good, sampled.good] == good
  assert pairs.text.startswith('62 of 65 pairs of frames were kept (95.4 %)')
  assert '1 of 1 videos fell into pieces' in pieces.text
  assert 'blurred (7 times)' in rejected.text
  next_step = verdict.next_step(report, 'my records')
  assert ('--drop_ids' in next_step) == (False in good)
  # As it can be typed.
  assert "'--records=my records'" in next_step


def stated(rotation, direction):
  return {
    'rotation_sigma_deg': 0.01,
    'direction_sigma_deg': 0.02,
    'rotation_coverage': rotation,
    'direction_coverage': direction,
  }


@pytest.mark.parametrize(
  'coverages, good',
  [
    ((0.94, 0.97), True),
    ((0.88, 0.95), None),
    # Errors that are stated too large.
    ((0.95, 1.0), None),
    ((0.6, 0.95), False),
  ],
)
def test_the_verdict_tells_whether_stated_errors_hold(coverages, good):
  found = verdict.on_stated(stated(*coverages))
  assert found.good is good
  assert f'{100 * coverages[0]:.1f} % in rotation' in found.text
  known = {key: value for key, value in stated(0, 0).items() if 'sigma' in key}
  assert '0.010° in rotation and 0.020°' in verdict.on_stated(known).text
  assert verdict.on_stated({}) is None


def test_the_verdict_tells_whether_held_out_pairs_are_as_true():
  row = {
    'train': {'value': 0.01},
    'test': {'value': 0.05},
    'difference': 0.04,
    'interval_95': [-0.01, 0.09],
  }
  same = verdict.on_held_out({'rotation_deg': row})
  assert same.good and 'as true as the trained ones' in same.text
  apart = verdict.on_held_out(
    {'rotation_deg': {**row, 'interval_95': [0.01, 0.09]}}
  )
  assert not apart.good and '0.050° held out, 0.010° trained' in apart.text
  assert (
    verdict.on_held_out({'rotation_deg': {**row, 'interval_95': None}}) is None
  )
