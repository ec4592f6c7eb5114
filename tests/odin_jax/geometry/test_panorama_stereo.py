"""Points from posed panoramas, whose distances are known exactly."""

import dataclasses
import json

import cv2
import numpy as np
import pytest
from scipy.spatial import cKDTree
import trimesh

from odin_jax.geometry import (
  equirectangular_frames,
  fusion,
  lenses,
  record_views,
  stereo,
  tsdf,
)
from odin_jax.shared import camera, errors, files
from tests.helpers import commands, exported_cameras, true_panoramas
from tests.helpers.room_views import Room

ROOM = Room(max_frequency=25.0)
HEIGHT_PX = 48
LENSES = [lenses.Perspective(80.0, 64), lenses.Equirectangular(96, 40)]
# What goes with the camera: the lowest rows, as a tripod, and a patch.
MASKED = np.zeros((HEIGHT_PX, 2 * HEIGHT_PX), bool)
MASKED[40:] = MASKED[16:24, 76:84] = True


def poses(count):
  """A crooked walk through the room, each panorama turned in its own way."""
  generator = np.random.default_rng(0)
  # Not along a line, on which no point ahead has a parallax.
  places = generator.uniform(-0.25, 0.25, (count, 3))
  turns = [
    camera.view2frame_rotation(*generator.uniform(-40, 40, 2))
    for _ in range(count)
  ]
  return camera.make_pose(np.stack(turns), places)


@pytest.fixture(scope='module')
def walk():
  """Views with what moves along painted in, distances, the reconstruction."""
  camera2scene = poses(5)
  images, distances = ROOM.panoramas(camera2scene, HEIGHT_PX)
  noise = np.random.default_rng(1).integers(0, 256, (*MASKED.shape, 3))
  images = np.where(MASKED[..., None], noise.astype(np.uint8), images)
  views = stereo.Views(
    images=images,
    camera2scene=camera2scene,
    fov_deg=None,
    counts=np.broadcast_to(~MASKED, images.shape[:3]),
  )
  rule = dataclasses.replace(fusion.AGREEMENT, num_views=2)
  sweep = dataclasses.replace(
    stereo.SWEEP, min_depth=0.4, max_depth=4.0, num_neighbours=4
  )
  return views, distances, fusion.reconstruct(views, sweep, rule)


@pytest.mark.parametrize('lens', LENSES)
def test_the_pixel_of_a_pixels_ray_is_that_pixel(lens):
  pixels = lenses.grid(lens, 3)
  expected = lenses.grid(lens)
  if lens.goes_on:
    # Beyond the edges, too, rays are those of what is seen there.
    shown = lens.continued(expected, 3)
    apart = lens.apart_px(pixels, shown)
    np.testing.assert_allclose(apart, 0, atol=1e-9)
    pixels = pixels[3:-3, 3:-3]
  np.testing.assert_allclose(pixels, expected)
  back, depth = lens.project(lens.rays(pixels) * 1.7)
  np.testing.assert_allclose(back, pixels, atol=1e-9)
  np.testing.assert_allclose(depth, 1.7)
  assert lens.is_inside(back).all()


def test_pixels_at_both_sides_of_the_seam_are_neighbours():
  lens = LENSES[1]
  a, b = np.array([[0.25, 20.0]]), np.array([[95.75, 20.0]])
  assert lens.apart_px(a, b) == pytest.approx(0.5)
  picture = np.arange(40 * 96, dtype=np.float32).reshape(40, 96)
  between = stereo.sampled(picture, lens, np.array([[[0.0, 10.5]]]))
  assert between == (picture[10, 0] + picture[10, 95]) / 2


def test_distances_are_true_and_cover_most_of_the_sphere(walk):
  _, distances, result = walk
  believed = result.inverse_depths > 0
  off = np.abs(1 / result.inverse_depths[believed] / distances[believed] - 1)
  # Measured: 0.011 at this size; 0.006 to 0.009 in the benchmark scene_stereo.
  assert np.median(off) < 0.02
  assert np.mean(off > 0.05) < 0.06
  assert believed[:, ~MASKED].mean() > 0.7
  # The seam is no edge.
  seam = ~MASKED[:, :3]
  assert believed[:, :, :3][:, seam].mean() > 0.7


def test_what_is_masked_is_never_scene(walk):
  views, distances, result = walk
  assert not result.inverse_depths[:, MASKED].any()
  # Nor does it spoil what others see behind it.
  rays = views.lens.rays(lenses.grid(views.lens))
  truth = camera.transform(
    views.camera2scene, (rays * distances[..., None]).reshape(5, -1, 3)
  ).reshape(-1, 3)
  away = cKDTree(truth).query(result.cloud.points)[0]
  assert np.median(away) < 0.03
  assert np.quantile(away, 0.98) < 0.1


def test_the_mesh_of_panoramas_lies_on_the_walls():
  views, distances = ROOM.panoramas(poses(3), HEIGHT_PX)
  mesh = tsdf.fuse(
    stereo.Views(images=views, camera2scene=poses(3), fov_deg=None),
    (1 / distances).astype(np.float32),
    voxels=48,
  )
  away = np.abs(np.asarray(ROOM.half) - np.abs(mesh.vertices)).min(axis=1)
  # Of voxels of 0.067; the ball is no wall.
  assert np.median(away) < 0.01
  # All six walls.
  for sign in (-1, 1):
    on = np.abs(sign * mesh.vertices - np.asarray(ROOM.half)) < 0.05
    assert (on.sum(axis=0) > 100).all()


def write_cameras(folder, views, *, component=1):
  """A folder as `preprocessing.run` exports it, with strangers in it."""
  return exported_cameras.write(
    folder,
    views.images,
    views.camera2scene,
    MASKED,
    component=component,
    strangers=[
      {'time_s': 0.0, 'component': None, 'frame2scene': None},
      {'time_s': 0.5, 'component': 0, 'frame2scene': np.eye(3, 4).tolist()},
    ],
  )


def test_the_command_makes_a_scene_of_an_exported_video(tmp_path, walk):
  views, distances, _ = walk
  write_cameras(tmp_path / 'video', views)
  # Of an earlier run, of --views.
  (tmp_path / 'out').mkdir()
  files.write_json(
    tmp_path / 'out' / files.MARKER, {'tool': 'odin_jax.reconstruct'}
  )
  (tmp_path / 'out' / 'transforms.json').write_text('{}')
  line = [f'--cameras={tmp_path / "video"}', f'--output={tmp_path / "out"}']
  line += ['--max_size_px=32', '--min_size_px=32', '--max_views=3']
  line += ['--min_depth=0.4', '--max_depth=4', '--mesh_voxels=32']
  ((status, stderr),) = commands.run_all('odin_jax.reconstruct', [line])
  assert status == 0, stderr
  figures = json.loads((tmp_path / 'out' / 'reconstruction.json').read_text())
  assert figures['camera'] == 'equirectangular'
  assert figures['component'] == 1 and figures['num_views'] == 3
  assert not (tmp_path / 'out' / 'transforms.json').exists()
  assert 'median depth' in figures['scene_unit']
  scale = figures['depth_unit_scale_factor']
  assert scale == pytest.approx(4e-4)
  _, distances = ROOM.panoramas(views.camera2scene[[0, 2, 4]], 32)
  found = [
    cv2.imread(
      str(tmp_path / 'out' / row['depth_map_file']), cv2.IMREAD_UNCHANGED
    )
    for row in figures['per_view']
  ]
  known = np.stack(found) > 0
  assert known.mean() == pytest.approx(figures['coverage'])
  off = np.abs(np.stack(found) * scale / distances - 1)[known]
  # Measured: 0.017 of panoramas of 64x32.
  assert np.median(off) < 0.025
  cloud = trimesh.load(tmp_path / 'out' / 'points.ply', process=False)
  assert figures['points'] == len(cloud.vertices) > 300
  on_walls = np.abs(np.asarray(ROOM.half) - np.abs(cloud.vertices)).min(axis=1)
  to_ball = np.linalg.norm(
    cloud.vertices - np.asarray(ROOM.ball_centre), axis=1
  )
  away = np.minimum(on_walls, np.abs(to_ball - ROOM.ball_radius))
  assert np.median(away) < 0.03
  assert (tmp_path / 'out' / 'mesh.glb').is_file()
  page = (tmp_path / 'out' / 'index.html').read_text()
  assert 'images/000002.jpg' in page and 'scene units' in page


def spoil_pictures(folder, content):
  for path in (folder / 'images').iterdir():
    path.unlink()
  (folder / 'images').rmdir()


def spoil_mask(folder, content):
  (folder / 'masks' / '000003.jpg.png').unlink()


def spoil_mask_size(folder, content):
  small = np.zeros((8, 8), np.uint8)
  cv2.imwrite(str(folder / 'masks' / '000003.jpg.png'), small)


def spoil_pose(folder, content):
  content['frames'][2]['frame2scene'][0][0] = 5.0
  (folder / 'path.json').write_text(json.dumps(content))


def spoil_key(folder, content):
  del content['frames'][1]['component']
  (folder / 'path.json').write_text(json.dumps(content))


FAULTS = {
  spoil_pictures: '--export=nerfstudio',
  spoil_mask: '000003.jpg.png',
  spoil_mask_size: '8x8',
  spoil_pose: 'frame 2',
  spoil_key: 'export again',
}


def test_a_damaged_export_is_refused_with_one_line(tmp_path, walk):
  views = walk[0]
  two = dataclasses.replace(
    views,
    images=views.images[:2],
    camera2scene=views.camera2scene[:2],
    counts=None,
  )
  for spoil, message in FAULTS.items():
    folder = tmp_path / spoil.__name__
    spoil(folder, write_cameras(folder, two))
    with pytest.raises(errors.UserError, match=message):
      equirectangular_frames.read(folder)
  folder = tmp_path / 'whole'
  write_cameras(folder, two)
  with pytest.raises(errors.UserError, match='no component 7; there are 0, 1'):
    equirectangular_frames.read(folder, component=7)
  with pytest.raises(errors.UserError, match='component 0 has 1 frame'):
    equirectangular_frames.read(folder, component=0)


def test_frames_are_those_of_the_largest_component_spread_and_reduced(
  tmp_path, walk
):
  views = walk[0]
  write_cameras(tmp_path / 'video', views)
  frames = equirectangular_frames.read(
    tmp_path / 'video', most=3, max_height_px=24
  )
  assert (frames.component, frames.available) == (1, 5)
  assert frames.images.shape == (3, 24, 48, 3)
  assert [name[-6:-4] for name in frames.names] == ['02', '04', '06']
  np.testing.assert_allclose(frames.camera2scene, views.camera2scene[[0, 2, 4]])
  # A pixel counts where all that it was made of does.
  expected = ~MASKED.reshape(24, 2, 48, 2).any(axis=(1, 3))
  np.testing.assert_array_equal(frames.counts, np.stack([expected] * 3))


def test_records_give_their_panoramas_or_the_views_of_their_pairs(tmp_path):
  world = true_panoramas.build_world()
  below = true_panoramas.write(tmp_path, world)
  found = record_views.read(below, most=2, max_height_px=64)
  assert found.video_id == true_panoramas.VIDEO and found.available >= 2
  assert found.views.images.shape == (2, 64, 128, 3)
  assert found.views.counts.all()
  pairs = record_views.read(tmp_path)
  assert pairs.views.fov_deg and pairs.views.images.shape[1:] == (32, 32, 3)
  assert len(pairs.names) == len(set(pairs.names)) == pairs.available
  # Of one component: cameras of pairs stand where panoramas were taken.
  places = record_views.read(below).views.camera2scene[:, :, 3]
  apart = cKDTree(places).query(pairs.views.camera2scene[:, :, 3])[0]
  assert apart.max() < 1e-5
  with pytest.raises(errors.UserError, match='no video other; there are room'):
    record_views.read(below, video_id='other')
  with pytest.raises(errors.UserError, match='no component 3'):
    record_views.read(below, component=3)


def test_one_input_is_needed_and_flags_that_change_nothing_are_refused(
  tmp_path,
):
  output = f'--output={tmp_path / "out"}'
  commands.assert_refused(
    commands.run_all(
      'odin_jax.reconstruct',
      [
        [output],
        [output, '--views=a', '--cameras=b'],
        [output, '--views=a', '--component=0'],
        [output, '--cameras=a', '--video=b'],
      ],
    ),
    [['--cameras'], ['give one'], ['--component'], ['--video']],
  )
