"""True views along a path: against the walk's own views, and as a command."""

import json
import os
import subprocess
import sys

import cv2
import numpy as np
import pytest

from odin_jax.geometry import view_folder
from odin_jax.shared import camera, errors
from preprocessing.procedural import footage, rendering, true_path
from preprocessing.views import alignment

_SIZE = {'fov_deg': 90.0, 'size_px': 32}
_SETTINGS = {
  'seed': 3,
  'seconds': 6.0,
  'kinds': ['unique_corridor'],
  'width': 128,
  'height': 64,
  'movers': None,
}
_ANGLES = alignment.Angles(yaw_deg=20.0, pitch_deg=-5.0)


def job(output):
  kinds = tuple(_SETTINGS['kinds'])
  return footage.VideoJob(
    output=output, index=0, **{**_SETTINGS, 'kinds': kinds}
  )


@pytest.fixture(scope='module')
def world(tmp_path_factory):
  return job(tmp_path_factory.mktemp('world')).build_world()


def view2world(world, time_s):
  turn = camera.view2frame_rotation(*_ANGLES)
  return camera.compose(
    world.walk.frame2world(time_s), camera.make_pose(turn, np.zeros(3))
  )


def render(world, *poses):
  return true_path.render(
    world, 1.0, view2world(world, 1.0), np.stack(poses), **_SIZE
  )


def test_a_path_through_the_walk_shows_its_views(world):
  # In a world where nothing moves, the poses of the walk show its views.
  first = view2world(world, 1.0)
  unit_m = render(world, camera.identity_pose()).unit_m
  times_s = (1.0, 1.6, 2.0)
  poses = [
    camera.rescale(
      camera.relative(first, view2world(world, time_s)), 1 / unit_m
    )
    for time_s in times_s
  ]
  path = render(world, *poses)
  for time_s, image in zip(times_s, path.images):
    view = rendering.render_view(world, time_s, _ANGLES, **_SIZE)
    assert np.abs(image.astype(int) - view).mean() < 0.2
  # And no others.
  other = np.abs(path.images[0].astype(int) - path.images[2]).mean()
  assert other > 5


def test_the_unit_is_the_median_distance(world):
  rays = rendering.unit_rays(_ANGLES, 90.0, 64)
  frame2world = world.walk.frame2world(1.0)
  turned = (rays @ frame2world[:, :3].T).astype(np.float32)
  hits = world.scene.cast(frame2world[:, 3], turned, 1.0)
  unit_m = render(world, camera.identity_pose()).unit_m
  assert unit_m == pytest.approx(np.median(hits.distance), rel=0.01)


def test_the_depth_of_a_view_is_where_its_rays_end(world):
  # A step towards what is straight ahead is missing in its depth.
  step = camera.make_pose(np.eye(3), np.array([0.0, 0.0, 0.05]))
  path = render(world, camera.identity_pose(), step)
  first = view2world(world, 1.0)
  rays = camera.view_rays(90.0, 32)
  for pose, depth in zip((camera.identity_pose(), step), path.depths):
    camera2world = camera.compose(first, camera.rescale(pose, path.unit_m))
    turned = rays @ camera2world[:, :3].T
    lengths = np.linalg.norm(turned, axis=-1)
    hits = world.scene.cast(
      camera2world[:, 3],
      (turned / lengths[..., None]).astype(np.float32),
      1.0,
    )
    seen = np.isfinite(depth)
    assert seen.any()
    np.testing.assert_allclose(
      (depth * lengths * path.unit_m)[seen], hits.distance[seen], rtol=1e-4
    )
  middle = np.s_[15:17, 15:17]
  closer = np.median(path.depths[0][middle] - path.depths[1][middle])
  assert closer == pytest.approx(0.05, rel=0.2)


def test_the_way_ends_at_a_surface(world):
  ahead = [
    camera.make_pose(np.eye(3), np.array([0.0, 0.0, step]))
    for step in (0.0, 0.05, 50.0)
  ]
  path = render(world, *ahead, ahead[0])
  images = path.images
  # And does not begin again behind it.
  assert [image is None for image in images] == [False, False, True, True]
  assert [depth is None for depth in path.depths] == [False, False, True, True]


def test_only_a_video_that_is_there_has_its_world(world, tmp_path):
  (tmp_path / 'worlds.json').write_text(json.dumps({'settings': _SETTINGS}))
  for video_id in ('000_unique_corridor', '000_other', 'walk'):
    with pytest.raises(errors.UserError, match=f'no video {video_id}'):
      footage.rebuild_world(tmp_path, video_id)
  # A folder that was made with --pairs has other settings.
  (tmp_path / 'worlds.json').write_text(json.dumps({'settings': {'seed': 0}}))
  with pytest.raises(errors.UserError, match='no video 000_unique_corridor'):
    footage.rebuild_world(tmp_path, '000_unique_corridor')
  (tmp_path / 'worlds.json').write_text(json.dumps({'settings': _SETTINGS}))
  (tmp_path / '000_unique_corridor.mp4').touch()
  again = footage.rebuild_world(tmp_path, '000_unique_corridor')
  assert np.array_equal(
    again.walk.frame2world(2.0), world.walk.frame2world(2.0)
  )


def call(repository, folder, *arguments):
  return subprocess.run(
    [
      sys.executable,
      '-m',
      'preprocessing.true_views',
      f'--worlds={folder / "worlds"}',
      f'--views={folder / "views"}',
      f'--evaluation={folder / "scores"}',
      f'--output={folder / "truth"}',
      *arguments,
    ],
    capture_output=True,
    text=True,
    cwd=repository,
    env={**os.environ, 'OMP_NUM_THREADS': '1'},
  )


def test_the_command_starts_at_the_view_that_was_given(
  world, repository, tmp_path
):
  for name in ('worlds', 'views/frames', 'scores'):
    (tmp_path / name).mkdir(parents=True)
  video_id = job(tmp_path).name
  (tmp_path / 'worlds' / f'{video_id}.mp4').touch()
  (tmp_path / 'worlds' / 'worlds.json').write_text(
    json.dumps({'settings': _SETTINGS})
  )
  pair = {
    'video_id': video_id,
    # The picture of 1.0 s is shown until 1.2 s.
    'source_time_s': 1.1,
    'source_yaw_deg': _ANGLES.yaw_deg,
    'source_pitch_deg': _ANGLES.pitch_deg,
  }
  turned = {**pair, 'source_yaw_deg': 200.0}
  (tmp_path / 'scores' / 'metrics.json').write_text(
    json.dumps({'pairs': [turned, pair]})
  )
  poses = [
    camera.make_pose(np.eye(3), np.array([0.0, 0.0, 0.1 * step]))
    for step in range(3)
  ]
  names = [f'frames/{index:03d}.png' for index in range(3)]
  view = rendering.render_view(world, 1.0, _ANGLES, **_SIZE)
  cv2.imwrite(str(tmp_path / 'views' / names[0]), view[..., ::-1])
  (tmp_path / 'views' / 'poses.json').write_text(
    json.dumps(
      {
        'fov_deg': 90.0,
        'width': 32,
        'height': 32,
        'frames': [
          {'file': name, 'camera2scene': pose.ravel().tolist()}
          for name, pose in zip(names, poses)
        ],
      }
    )
  )
  done = call(repository, tmp_path)
  assert done.returncode == 2
  assert 'does not start at' in done.stderr and done.stderr.count('\n') == 1
  assert not (tmp_path / 'truth').exists()
  done = call(repository, tmp_path, '--pair=1', '--depth')
  assert done.returncode == 0, done.stderr
  truth = json.loads((tmp_path / 'truth' / 'truth.json').read_text())
  assert truth['time_s'] == 1.0 and truth['first_view_psnr_db'] > 40
  path = render(world, *poses)
  expected = path.images
  with np.load(tmp_path / 'truth' / 'depth.npz') as content:
    np.testing.assert_array_equal(content['depth'], path.depths)
  for frame, image in zip(truth['frames'], expected):
    written = cv2.imread(str(tmp_path / 'truth' / frame['file']))[..., ::-1]
    assert np.array_equal(written, image)
  # They are posed views themselves.
  views, _ = view_folder.read(tmp_path / 'truth')
  np.testing.assert_array_equal(views.images, expected)
  np.testing.assert_array_equal(views.camera2scene, poses)
  # Records of --pairs have a manifest; then the note has to be of their kind.
  (tmp_path / 'worlds' / 'manifest.json').touch()
  done = call(repository, tmp_path, '--pair=1')
  assert done.returncode == 2 and '--pairs' in done.stderr
