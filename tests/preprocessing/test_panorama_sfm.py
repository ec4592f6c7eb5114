"""What the benchmark of panoramas reads and how it scores, by known values."""

import json

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from odin_jax.shared import camera, errors
from tests.helpers import sfm_scores, tartanair


@pytest.fixture
def path_poses():
  """A walk of five frames that turns, in a world with y down."""
  turns = Rotation.from_rotvec(np.outer(np.arange(5), [0.02, 0.3, -0.05]))
  places = np.arange(5)[:, None] * [0.4, -0.05, 0.7]
  return camera.make_pose(turns.as_matrix(), places)


def test_a_pose_in_ned_looks_where_its_panorama_looks():
  # The value of COLMAP's own test: an unturned camera at (1, 2, 3).
  (pose,) = tartanair.frame2world(np.array([[1.0, 2, 3, 0, 0, 0, 1]]))
  np.testing.assert_allclose(
    pose, [[1, 0, 0, 1], [0, 0, -1, 2], [0, 1, 0, 3]], atol=1e-15
  )


def test_a_scene_comes_back_as_it_was_written(tmp_path, path_poses):
  pictures = np.random.default_rng(0).integers(0, 255, (5, 8, 16, 3), np.uint8)
  tartanair.write(tmp_path / 'category' / 'place', pictures, path_poses)
  (scene,) = tartanair.read(tmp_path)
  assert scene.name == 'place'
  assert [path.name for path in scene.images][:2] == [
    '000000.png',
    '000001.png',
  ]
  # Another world's axes, the same relative poses.
  for other in range(1, 5):
    np.testing.assert_allclose(
      camera.relative(scene.frame2world[0], scene.frame2world[other]),
      camera.relative(path_poses[0], path_poses[other]),
      atol=1e-12,
    )
  # Down is the third axis of a NED world.
  np.testing.assert_allclose(
    scene.frame2world[:, 2, 3], path_poses[:, 1, 3], atol=1e-12
  )


def test_a_published_trajectory_gives_its_widest_window_without_a_leap(
  tmp_path,
):
  folder = tmp_path / 'House' / 'Data_easy' / 'P003'
  images = folder / 'image_lcam_equirect'
  images.mkdir(parents=True)
  rows = np.zeros((120, 7))
  rows[:, 6] = 1
  # A leap after frame 55; fastest from frame 60 to 109.
  steps = np.full(119, 0.125)
  steps[55], steps[60:109] = 5.0, 0.25
  rows[1:, 0] = np.cumsum(steps)
  np.savetxt(folder / 'pose_lcam_front.txt', rows)
  for number in range(120):
    (images / f'{number:06d}_lcam_equirect_image.png').touch()
  (scene,) = tartanair.read(tmp_path)
  assert scene.name == 'House-easy-P003'
  assert scene.images[0].name == '000060_lcam_equirect_image.png'
  assert scene.frame2world[0, 0, 3] == rows[60, 0]
  assert len(scene.images) == len(scene.frame2world) == 50
  scene.images[3].unlink()
  with pytest.raises(errors.UserError, match='is not there'):
    tartanair.read(tmp_path)


def test_a_folder_without_scenes_and_a_scene_without_a_pose_are_told(tmp_path):
  with pytest.raises(errors.UserError, match='no scene of TartanAir'):
    tartanair.read(tmp_path)
  frames = [{'source_frame': 7, 'image_name': '000007.jpg'}]
  (tmp_path / 'scene.json').write_text(json.dumps({'frames': frames}))
  (tmp_path / 'poses.txt').write_text('6 0 0 0 0 0 0 1\n')
  with pytest.raises(errors.UserError, match='no pose of frame 7'):
    tartanair.read(tmp_path)


def test_the_area_under_the_curve():
  def auc(*errors_deg):
    return sfm_scores.auc(np.array(errors_deg), (2.0,))[0]

  assert auc(180.0, 180.0) == 0
  assert auc(0.0, 0.0) == 100
  # The recall rises by a straight line from 0 at 0.001 to 1/4 at the first
  # error, there to 1, and stays.
  rise = 0.25 * (1 - 0.001) / 2
  assert auc(1.0, 1.0, 1.0, 1.0) == pytest.approx(100 * (rise + 1) / 2)


def test_exact_poses_score_full_and_split_ones_lose_their_pairs(path_poses):
  # In another gauge and unit.
  gauge = camera.make_pose(camera.rotation_y(1.0), np.array([3.0, 1, 2]))
  moved = path_poses.copy()
  moved[:, :, 3] *= 0.3
  whole = {number: camera.compose(gauge, moved[number]) for number in range(5)}
  row = sfm_scores.scores([whole], path_poses)
  assert row['registered'] == row['largest'] == 5
  assert min(row['auc'].values()) == pytest.approx(100, abs=0.01)
  assert row['pairs'] == 10 and row['turned_round'] == 0
  assert row['scale_error'] == 0
  halves = [{n: whole[n] for n in (0, 1)}, {n: whole[n] for n in (2, 3, 4)}]
  row = sfm_scores.scores(halves, path_poses)
  assert row['registered'] == 5 and row['models'] == 2
  # 2 + 6 of the 20 ordered pairs are in one model.
  assert row['auc']['10'] == pytest.approx(40, abs=0.01)


def test_a_frame_that_is_put_behind_counts_as_turned_round(path_poses):
  poses = dict(enumerate(path_poses))
  poses[4] = poses[4].copy()
  poses[4][:, 3] = path_poses[0, :, 3] - [0.4, -0.05, 0.7]
  row = sfm_scores.scores([poses], path_poses)
  assert row['turned_round'] == 4
