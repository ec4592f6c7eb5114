"""Scores of meshes, against shapes whose scores are known in closed form."""

import numpy as np
import pytest
import trimesh

from odin_jax.benchmarks import gso, protocols
from odin_jax.geometry import meshes, obj_files, shape_metrics
from odin_jax.shared import errors
from tests.helpers import scanned_objects

PROTOCOL = protocols.load('syncdreamer_gso')
GRID = PROTOCOL.geometry['grid']


def sphere(radius, offset=(0.0, 0.0, 0.0)):
  loaded = trimesh.creation.icosphere(4, radius)
  return meshes.Mesh(np.array(loaded.vertices) + offset, np.array(loaded.faces))


def moved(mesh, offset):
  return mesh._replace(vertices=mesh.vertices + offset)


@pytest.fixture(scope='module')
def cameras():
  """The cameras of the table, each fourth of them, with fewer pixels."""
  pytest.importorskip(
    'embreex', reason='embreex, which casts rays, is not here'
  )
  poses = [pose for _, _, pose in gso.rings(PROTOCOL)][::4]
  return shape_metrics.Cameras(
    np.stack(poses), PROTOCOL.rendering['fov_deg'], 128
  )


def scores(predicted, true, cameras):
  return shape_metrics.scores(
    predicted, true, cameras, voxel=0.01, grid=GRID, threshold=0.02
  )


def test_of_one_sphere_in_another_all_points_are_as_far_as_their_radii(cameras):
  found = scores(sphere(0.45), sphere(0.4), cameras)
  # The nearest of points that are a voxel apart lies up to 0.007 aside, which
  # makes 0.05 into 0.0505, and 0.015 into 0.0166.
  assert 0.05 < found['chamfer'] < 0.0505
  assert found['volume_iou'] == pytest.approx((0.4 / 0.45) ** 3, abs=0.01)
  assert found['f_score'] == 0.0
  near = scores(sphere(0.415), sphere(0.4), cameras)
  assert 0.015 < near['chamfer'] < 0.0166
  assert near['f_score'] > 0.95


def test_a_mesh_is_equal_to_itself(cameras):
  box = scanned_objects.box((1.0, 0.5, 0.7))
  assert scores(box, box, cameras) == {
    'chamfer': 0.0,
    'volume_iou': 1.0,
    'f_score': 1.0,
  }


def test_points_are_on_the_side_that_cameras_see(cameras):
  box = scanned_objects.box((1.0, 0.5, 0.7))
  points = shape_metrics.surface_points(box, cameras, 0.01)
  # On the faces, but for voxels in which two of them meet.
  off = np.abs(np.abs(points) - [0.5, 0.25, 0.35]).min(axis=1)
  assert np.median(off) < 1e-9 and off.max() < 0.01
  # From above: the top is there, the bottom is not.
  assert points[:, 2].max() == pytest.approx(0.35)
  assert np.mean(points[:, 2] < -0.345) < 0.01
  # One in each voxel.
  _, counts = np.unique(np.floor(points / 0.03), axis=0, return_counts=True)
  assert counts.max() <= 4 * 4 * 4


def test_who_is_not_seen_is_refused(cameras):
  with pytest.raises(shape_metrics.UnseenError, match='no camera sees it'):
    shape_metrics.surface_points(
      moved(sphere(0.1), [0.0, 0.0, 9.0]), cameras, 0.01
    )


@pytest.mark.parametrize('axis', range(3))
def test_volumes_of_shifted_boxes(axis):
  sides, shift = np.array([0.71, 0.53, 0.87]), 0.22
  box = scanned_objects.box(sides)
  inside = shape_metrics.inside(box, GRID)
  # A node for each cell of its own; the surface takes part of a layer.
  assert inside.mean() * 8 == pytest.approx(sides.prod(), rel=0.06)
  # Along each axis, where the box is.
  nodes = -1 + 2 * np.arange(GRID) / GRID
  others = tuple(other for other in range(3) if other != axis)
  np.testing.assert_array_equal(
    inside.any(axis=others), np.abs(nodes) < sides[axis] / 2
  )
  offset = shift * np.eye(3)[axis]
  found = shape_metrics.volume_iou(moved(box, offset), box, GRID)
  expected = (sides[axis] - shift) / (sides[axis] + shift)
  assert found == pytest.approx(expected, abs=0.04)


def test_lines_through_edges_and_corners_cross_a_surface_once():
  """A box whose faces and whose diagonals hold nodes of the grid."""
  box = scanned_objects.box((1.0, 1.0, 1.0))
  assert shape_metrics.inside(box, GRID).sum() == (GRID // 2) ** 3
  # Faces in another order, and turned round, are the same surface.
  order = np.random.default_rng(0).permutation(len(box.faces))
  other = box._replace(faces=box.faces[order][:, [2, 1, 0]])
  assert shape_metrics.volume_iou(other, box, GRID) == 1.0


def test_what_lies_beyond_the_grid_has_no_nodes():
  far = moved(sphere(0.2), [3.0, 0.0, 0.0])
  assert not shape_metrics.inside(far, GRID).any()
  assert shape_metrics.inside(moved(far, [-4.0, 0.0, 0.0]), GRID).any()
  assert shape_metrics.volume_iou(far, far, GRID) is None
  assert shape_metrics.volume_iou(far, sphere(0.2), GRID) == 0.0


def test_thinned_points_are_the_means_of_their_voxels():
  points = np.array([[0.0, 0, 0], [0.04, 0, 0], [0.06, 0, 0], [1.0, 1, 1]])
  # The first voxel's centre is the lowest point.
  np.testing.assert_allclose(
    shape_metrics.thinned(points, 0.1), [[0.02, 0, 0], [0.06, 0, 0], [1, 1, 1]]
  )


def test_f_score_is_the_harmonic_mean_of_both_shares():
  near, far = np.array([0.0, 0.1]), np.array([0.1, 0.1])
  assert shape_metrics.f_score(near, near, 0.05) == 0.5
  assert shape_metrics.f_score(near, np.zeros(3), 0.05) == pytest.approx(2 / 3)
  assert shape_metrics.f_score(far, far, 0.05) == 0.0


def test_open_meshes_are_told_from_closed_ones(tmp_path):
  box = scanned_objects.box()
  ball = trimesh.creation.icosphere(1)
  for mesh in (box, meshes.Mesh(np.array(ball.vertices), np.array(ball.faces))):
    assert meshes.is_closed(mesh)
    assert not meshes.is_closed(mesh._replace(faces=mesh.faces[1:]))
  # Corners that a file has three times, and a face that is a line.
  split = meshes.Mesh(
    box.vertices[box.faces].reshape(-1, 3), np.arange(36).reshape(-1, 3)
  )
  assert meshes.is_closed(split)
  line = np.append(box.faces, [[0, 0, 1]], axis=0)
  assert meshes.is_closed(box._replace(faces=line))
  # Of walls with two sides, and of what is flat, nothing is inside.
  twice = box._replace(faces=np.concatenate([box.faces, box.faces[:, ::-1]]))
  flat = box._replace(vertices=box.vertices * [1, 1, 0])
  for mesh in (twice, flat):
    assert (
      not meshes.is_closed(mesh) and not shape_metrics.inside(mesh, 8).any()
    )


def test_meshes_are_read_as_they_are_written(tmp_path):
  box = scanned_objects.box((1.0, 0.5, 0.7))
  trimesh.Trimesh(*box, process=False).export(tmp_path / 'a.ply')
  (tmp_path / 'b.obj').write_text(scanned_objects.text((1.0, 0.5, 0.7)))
  for name in ('a.ply', 'b.obj'):
    mesh = meshes.read(tmp_path / name)
    np.testing.assert_allclose(mesh.vertices, box.vertices, atol=1e-7)
    assert shape_metrics.volume_iou(mesh, box, GRID) == 1.0


def test_corners_may_count_from_the_end_and_share_vertices(tmp_path):
  path = tmp_path / 'a.obj'
  path.write_text(
    'v 0 0 0 1\nv 1 0 0\nv 1 1 0\nvn 0 0 1\nvt 0 0\nvt 1 0 0\n'
    'f -3//1 2//1 \\\n 3//1\nf 1/1 2/2 3/-1\nv 0 1 0\nf 1/2 2/1 3/2 4/1\n'
  )
  content = obj_files.read(path)
  assert content.faces.tolist() == [[0, 1, 2], [0, 1, 2], [0, 1, 2], [0, 2, 3]]
  # One vertex has another place on the texture in each face.
  assert content.uv_faces.tolist() == [
    [-1, -1, -1],
    [0, 1, 1],
    [1, 0, 1],
    [1, 1, 0],
  ]


def test_meshes_that_are_cut_are_refused(tmp_path):
  path = tmp_path / 'a.ply'
  whole = trimesh.Trimesh(*scanned_objects.box(), process=False)
  for encoding in ('ascii', 'binary'):
    data = whole.export(file_type='ply', encoding=encoding)
    data = data if isinstance(data, bytes) else data.encode()
    path.write_bytes(data)
    assert len(meshes.read(path).faces) == 12
    # The last: in the last line.
    for length in (*(int(x * len(data)) for x in (0.3, 0.6, 0.9)), -2):
      path.write_bytes(data[:length])
      with pytest.raises(errors.UserError, match='is cut|cannot|can be read'):
        meshes.read(path)


VERTICES = 'v 0 0 0\nv 1 0 0\nv 0 1 0\n'


@pytest.mark.parametrize(
  'name, text, words',
  [
    ('a.obj', '', 'a.obj: has no faces'),
    ('a.obj', VERTICES, 'has no faces'),
    ('a.obj', VERTICES + 'f 1 2 4\n', 'faces of vertices that are not there'),
    ('a.obj', VERTICES + 'f 1/1 2/1 3/1\n', 'faces of vt that are not there'),
    ('a.obj', VERTICES + 'f 1 2 0\n', "line 4 is no line .* 'f 1 2 0'"),
    ('a.obj', VERTICES + 'f 1 2 -4\n', 'line 4 is no line'),
    ('a.obj', VERTICES + 'f 1 2\n', 'line 4 is no line'),
    ('a.obj', VERTICES + 'f 1 2 3x\n', 'line 4 is no line'),
    ('a.obj', VERTICES + 'v 1 2\nf 1 2 3\n', 'line 4 is no line'),
    ('a.obj', '# Faces: 2\n' + VERTICES + 'f 1 2 3\n', 'says .* 2 .* has 1'),
    (
      'a.obj',
      VERTICES + 'v nan 0 0\nf 1 2 3\n',
      'vertices that are no numbers',
    ),
    ('a.obj', 'v 1 1 1\nf 1 1 1\n', 'is one point'),
    ('a.ply', 'ply\n', 'a.ply: no mesh that can be read'),
    (
      'a.ply',
      'ply\nformat ascii 1.0\nelement vertex 1\nproperty float x\nproperty '
      'float y\nproperty float z\nend_header\n0 0 0\n',
      'has no faces',
    ),
  ],
)
def test_what_is_no_mesh_is_named(tmp_path, name, text, words):
  (tmp_path / name).write_text(text)
  with pytest.raises(errors.UserError, match=words) as error:
    meshes.read(tmp_path / name)
  assert '\n' not in str(error.value)
