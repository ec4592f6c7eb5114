"""Surfaces of exact depths: where they are, their front, their colours."""

import dataclasses

import numpy as np
import pytest
from scipy.spatial import cKDTree
import trimesh

from odin_jax.geometry import mesh_files, stereo, trajectory, tsdf
from odin_jax.shared import camera
from tests.helpers.room_views import Room

ROOM = Room(max_frequency=6.0)
FOV_DEG, SIZE_PX, VOXELS = 80.0, 96, 80
# Of the longest side, the depth of the room.
VOXEL = 2 * ROOM.half[2] / VOXELS


def distance(points):
  """From the surfaces of the room, and the direction towards its inside."""
  to_walls = np.asarray(ROOM.half) - np.abs(points)
  from_ball = points - np.asarray(ROOM.ball_centre)
  to_ball = np.linalg.norm(from_ball, axis=1) - ROOM.ball_radius
  is_ball = np.abs(to_ball) < np.abs(to_walls).min(1)
  wall = np.abs(to_walls).argmin(1)
  inside = np.zeros_like(points)
  inside[np.arange(len(points)), wall] = -np.sign(
    points[np.arange(len(points)), wall]
  )
  inside[is_ball] = (from_ball / np.linalg.norm(from_ball, axis=1)[:, None])[
    is_ball
  ]
  nearest = np.abs(to_walls).min(1)
  return np.where(is_ball, np.abs(to_ball), nearest), inside, is_ball


@pytest.fixture(scope='module')
def views():
  path = trajectory.camera_path('orbit', 9, 0.12)
  start = camera.make_pose(np.eye(3), np.array([-0.2, 0.0, -0.5]))
  camera2scene = camera.compose(np.broadcast_to(start, path.shape), path)
  images, depths = ROOM.views(camera2scene, FOV_DEG, SIZE_PX)
  return (
    stereo.Views(images=images, camera2scene=camera2scene, fov_deg=FOV_DEG),
    (1 / depths).astype(np.float32),
  )


@pytest.fixture(scope='module')
def mesh(views):
  return tsdf.fuse(*views, voxels=VOXELS)


def test_nothing_that_the_views_see_is_missing(views, mesh):
  views, inverse_depths = views
  rays = camera.view_rays(FOV_DEG, SIZE_PX)
  seen = camera.transform(
    views.camera2scene, (rays / inverse_depths[..., None]).reshape(9, -1, 3)
  )
  away = cKDTree(mesh.vertices).query(seen.reshape(-1, 3)[::7])[0]
  # Measured: 0.24 and 0.42 voxels; holes are left at edges that hide something.
  assert np.median(away) < 0.4 * VOXEL
  assert np.quantile(away, 0.95) < 0.7 * VOXEL


def test_vertices_lie_on_the_surfaces(mesh):
  away, _, is_ball = distance(mesh.vertices.astype(np.float64))
  assert np.median(away) < 0.1 * VOXEL
  assert np.quantile(away, 0.98) < VOXEL
  # All walls in sight, and the ball.
  assert is_ball.sum() > 100
  seen = np.abs(mesh.vertices) > np.asarray(ROOM.half) - VOXEL
  assert (seen.sum(0) > 200).all()


def test_fronts_face_the_cameras(mesh):
  corners = mesh.vertices[mesh.faces].astype(np.float64)
  normal = np.cross(
    corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]
  )
  area = np.linalg.norm(normal, axis=1)
  _, inside, _ = distance(corners.mean(1))
  facing = (normal * inside).sum(1) / np.maximum(area, 1e-12)
  large = area > np.median(area) / 2
  assert np.mean(facing[large] > 0.7) > 0.95


def test_colours_are_those_of_the_surfaces(mesh):
  expected = ROOM.colour(mesh.vertices.astype(np.float64)) * 255
  away = np.abs(mesh.colours - expected).max(1)
  assert np.median(away) < 1 and np.quantile(away, 0.95) < 2


def test_holes_stay_open(views):
  known, inverse = views
  cut = inverse.copy()
  cut[:, :, : SIZE_PX // 2] = 0
  half = tsdf.fuse(known, cut, voxels=VOXELS)
  local = camera.transform(
    camera.inverse(known.camera2scene),
    np.broadcast_to(
      half.vertices.astype(np.float64), (9, *half.vertices.shape)
    ),
  )
  # Nothing where no view knows a depth.
  right = (local[..., 0] > -2 * VOXEL) & (local[..., 2] > 0)
  assert right.any(0).all() and len(half.faces) > 1000


def test_what_has_no_depth_colours_nothing(views):
  known, inverse = views
  half = SIZE_PX // 2
  cut, images = inverse.copy(), np.zeros_like(known.images)
  cut[:, :, :half] = 0
  images[:, :, :half] = 255
  mesh = tsdf.fuse(
    dataclasses.replace(known, images=images), cut, voxels=VOXELS
  )
  assert len(mesh.faces) > 1000 and mesh.colours.max() == 0


def test_nothing_known_is_no_surface(views):
  known, inverse = views
  empty = tsdf.fuse(known, np.zeros_like(inverse), voxels=VOXELS)
  assert len(empty.vertices) == len(empty.faces) == 0


def test_files_hold_the_mesh_in_the_axes_of_their_viewers(mesh, tmp_path):
  mesh_files.write(tmp_path, mesh)
  for name, axes in (('mesh.ply', [1, 1, 1]), ('mesh.glb', [1, -1, -1])):
    read = trimesh.load(tmp_path / name, force='mesh', process=False)
    np.testing.assert_allclose(read.vertices * axes, mesh.vertices, atol=1e-6)
    np.testing.assert_array_equal(read.faces, mesh.faces)
    np.testing.assert_array_equal(
      read.visual.vertex_colors[:, :3], mesh.colours
    )
  # A run without a surface leaves no mesh of another one.
  mesh_files.write(tmp_path, tsdf.NO_MESH)
  assert not list(tmp_path.iterdir())
