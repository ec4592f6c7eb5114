"""3D of generated views against the truth: stages, points and scores."""

import pathlib

import numpy as np
import pytest

from odin_jax.checkpoints import pretrained
from odin_jax.experimenting import reconstruction
from odin_jax.geometry import fusion
from odin_jax.shared import camera, errors, files, image_files
from tests import test_readme
from tests.helpers import commands

PAIR = {'index': 2, 'fov_deg': 90.0, 'files': {'source': 'pairs/002.png'}}


def test_stages_have_flags_that_there_are_and_read_what_others_write(
  repository,
):
  root = pathlib.Path('/root')
  stages = [
    *reconstruction.data_stages(root, num_worlds=3, seed=7, size_px=64),
    *reconstruction.scene_stages(root, PAIR, 'runs/t', 7),
  ]
  written: list[str] = []
  for stage in stages:
    path = repository / f'{stage.module.replace(".", "/")}.py'
    known = test_readme.flag_names(path, repository)
    for argument in stage.arguments:
      flag, _, value = argument.removeprefix('--').partition('=')
      assert flag.partition('.')[0] in known
      if value.startswith('/root/'):
        below = value.removeprefix('/root/')
        assert any(below.startswith(folder) for folder in written), argument
    written.append(stage.folder)


def test_worlds_that_the_model_was_trained_on_are_refused_before_any_work(
  tmp_path,
):
  seed = pretrained.read_note()['data']['seed']
  lines = [
    ['--workdir=pretrained', f'--seed={x}', f'--output={tmp_path / str(x)}']
    for x in (seed, seed + 1)
  ]
  (refused, why), (_, begun) = commands.run_all(
    'odin_jax.reconstruction_experiment',
    lines,
    setup="""
from odin_jax.experimenting import running
from odin_jax.shared import errors

def run(stage, root):
  raise errors.UserError(f'{stage.folder} would begin')

running.run = run
""",
  )
  assert refused == 2 and f'--seed={seed}: the checkpoint that comes' in why
  assert not (tmp_path / str(seed)).exists()
  assert 'data would begin' in begun


@pytest.fixture
def wall(tmp_path):
  """Two views of a wall at depth 1, the second half a unit to the right."""
  right = camera.make_pose(np.eye(3), np.array([0.5, 0.0, 0.0]))
  frames = []
  for index, pose in enumerate((camera.identity_pose(), right)):
    image_files.write(
      tmp_path / f'{index}.png', np.zeros((16, 16, 3), np.uint8)
    )
    frames.append(
      {'file': f'{index}.png', 'camera2scene': pose.ravel().tolist()}
    )
  files.write_json(
    tmp_path / 'poses.json',
    {'fov_deg': 90.0, 'width': 16, 'height': 16, 'frames': frames},
  )
  return tmp_path


def write_depth(folder, depth):
  np.savez_compressed(folder / 'depth.npz', depth=depth)


def test_true_points_lie_where_the_views_see_them(wall):
  depth = np.ones((2, 16, 16), np.float32)
  # The sky, and what is too far for a reconstruction.
  depth[0, 0], depth[1, 0] = np.inf, 50.0
  write_depth(wall, depth)
  points = np.concatenate(reconstruction.true_points(wall))
  assert len(points) == 2 * 15 * 16
  np.testing.assert_allclose(points[:, 2], 1.0)
  # From the leftmost pixel of the first view to the rightmost of the second.
  edge = 1 - 1 / 16
  assert points[:, 0].min() == pytest.approx(-edge)
  assert points[:, 0].max() == pytest.approx(0.5 + edge)


def test_depth_of_other_views_or_none_is_refused(wall):
  with pytest.raises(errors.UserError, match='no true depth'):
    reconstruction.true_points(wall)
  write_depth(wall, np.ones((3, 16, 16)))
  with pytest.raises(errors.UserError, match='not of the views'):
    reconstruction.true_points(wall)
  (wall / 'depth.npz').write_bytes(b'PK\x03\x04 cut')
  with pytest.raises(errors.UserError, match='no true depth'):
    reconstruction.true_points(wall)


def test_scores_are_distances_in_scene_units():
  # Further apart than the voxels that points are thinned by.
  grid = np.stack(np.meshgrid(*[np.arange(8.0)] * 2, [1.0]), -1).reshape(-1, 3)
  same = reconstruction.scores(grid, grid)
  assert same == {
    'chamfer': 0.0,
    'accuracy': 0.0,
    'completeness': 0.0,
    'f_score': 1.0,
  }
  moved = reconstruction.scores(grid + [0.0, 0.0, 0.25], grid)
  assert moved['chamfer'] == pytest.approx(0.25) and moved['f_score'] == 0
  # Half of the truth: all of it is right, and what is missing costs.
  half = reconstruction.scores(grid[grid[:, 0] < 4], grid)
  assert half['accuracy'] == 0 and half['completeness'] == pytest.approx(
    np.mean([1, 2, 3, 4]) / 2
  )
  assert half['f_score'] == pytest.approx(2 / 3)


def test_distances_are_compared_along_the_rays_of_the_first_view():
  true = 2 * reconstruction.one_view_points(90.0, 16)
  true[:128] *= 3
  # What the first view does not see has nothing to be compared with.
  behind = -true
  points = np.concatenate([0.75 * true, behind])
  assert reconstruction.distance_ratio(points, true) == pytest.approx(0.75)
  assert reconstruction.distance_ratio(behind, true) is None


def test_one_view_is_all_at_the_unit():
  points = reconstruction.one_view_points(90.0, 16)
  assert len(points) == 256 and (points[:, 2] > 0).all()
  np.testing.assert_allclose(np.linalg.norm(points, axis=-1), 1.0)


def test_points_are_read_as_they_were_written(tmp_path):
  points = np.arange(12, dtype=np.float32).reshape(4, 3)
  colours = np.zeros((4, 3), np.uint8)
  fusion.write_ply(
    tmp_path / 'points.ply',
    fusion.PointCloud(points=points, normals=points, colours=colours),
  )
  read = reconstruction.read_points(tmp_path / 'points.ply')
  np.testing.assert_array_equal(read, points)


def test_means_are_of_the_scenes_that_have_all_rows():
  def rows(value):
    return {
      row: dict.fromkeys(reconstruction.SCORES, value)
      for row in reconstruction.ROWS
    }

  scenes = [
    {'rows': rows(1.0)},
    {'rows': rows(3.0)},
    # Into a surface, and without points.
    {'rows': None},
    {'rows': {**rows(9.0), 'generated_views': None}},
  ]
  means = reconstruction.mean(scenes)
  assert means == rows(2.0)
  assert reconstruction.mean(scenes[2:]) == {}
  table = reconstruction.markdown(means, 2)
  assert table.startswith('| 2 scenes |') and table.count('2.000') == 15
