"""Points from posed views, against views whose depth is known exactly."""

import dataclasses
import json
import shutil

import cv2
import numpy as np
import pytest
from scipy.spatial import cKDTree
import trimesh

from odin_jax.benchmarks import gso, protocols
from odin_jax.geometry import (
  depth_maps,
  fusion,
  meshes,
  shape_metrics,
  stereo,
  trajectory,
  tsdf,
)
from odin_jax.shared import camera, digests, psnr
from tests.helpers import commands, scanned_objects
from tests.helpers.room_views import Room

FOV_DEG = 80.0
SIZE_PX = 96
# Of few views, fewer have to agree.
TWO_AGREE = dataclasses.replace(fusion.AGREEMENT, num_views=2)


def make_views(name='right', count=6, step=0.1, size_px=SIZE_PX):
  path = trajectory.camera_path(name, count, step)
  images, depths = Room().views(path, FOV_DEG, size_px)
  return stereo.Views(images=images, camera2scene=path, fov_deg=FOV_DEG), depths


@pytest.fixture(scope='module')
def sideways():
  views, depths = make_views()
  result = fusion.reconstruct(views, stereo.SWEEP, TWO_AGREE)
  return views, depths, result


def surface_points(views, depths):
  """Where every pixel of every view truly lies."""
  rays = camera.view_rays(views.fov_deg, views.size_px)
  local = (rays * depths[..., None]).reshape(len(depths), -1, 3)
  return camera.transform(views.camera2scene, local).reshape(-1, 3)


def test_believed_depths_are_true_and_cover_most_of_the_views(sideways):
  _, depths, result = sideways
  believed = result.inverse_depths > 0
  errors = np.abs(1 / result.inverse_depths[believed] / depths[believed] - 1)
  # Measured: median 0.0087, 4 % off by more than 5 %, coverage 0.83.
  assert np.median(errors) < 0.012
  assert np.mean(errors > 0.05) < 0.06
  assert believed.mean() > 0.78


def test_points_lie_on_the_surfaces_and_leave_few_holes(sideways):
  views, depths, result = sideways
  truth = surface_points(views, depths)
  accuracy = cKDTree(truth).query(result.cloud.points)[0]
  completeness = cKDTree(result.cloud.points).query(truth[::20])[0]
  assert np.median(accuracy) < 0.02
  assert np.mean(completeness < 0.08) > 0.85


def test_colours_and_normals_are_those_of_the_surface(sideways):
  _, _, result = sideways
  cloud, room = result.cloud, Room()
  expected = room.colour(cloud.points.astype(np.float64)) * 255
  assert np.median(np.abs(cloud.colours - expected)) < 12
  np.testing.assert_allclose(
    np.linalg.norm(cloud.normals, axis=1), 1, atol=1e-5
  )
  back_wall = np.abs(cloud.points[:, 2] - room.half[2]) < 0.03
  assert back_wall.sum() > 500
  # The wall faces the cameras, so its normal points to -z.
  assert np.median(-cloud.normals[back_wall, 2]) > 0.95


@pytest.mark.parametrize('name', ['forward', 'orbit_left'])
def test_other_paths_find_the_surfaces_too(name):
  views, depths = make_views(name, count=5, step=0.1, size_px=80)
  result = fusion.reconstruct(views, stereo.SWEEP, TWO_AGREE)
  believed = result.inverse_depths > 0
  errors = np.abs(1 / result.inverse_depths[believed] / depths[believed] - 1)
  assert np.median(errors) < 0.03
  assert believed.mean() > 0.4


def test_the_homography_takes_a_pixel_to_where_its_point_is_seen():
  generator = np.random.default_rng(0)
  pose = camera.make_pose(
    camera.view2frame_rotation(11.0, -7.0), generator.normal(size=3) / 5
  )
  views = stereo.Views(
    images=np.zeros((2, 64, 64, 3), np.uint8),
    camera2scene=np.stack([camera.identity_pose(), pose]),
    fov_deg=70.0,
  )
  pixels = generator.uniform(0, 64, (20, 2))
  for depth in (0.7, 3.0):
    rays = np.c_[pixels, np.ones(20)] @ np.linalg.inv(views.intrinsics).T
    expected, _ = camera.project(
      camera.transform(camera.inverse(pose), rays * depth), views.intrinsics
    )
    # OpenCV counts from the centre of the first pixel.
    matrix = stereo._homography(views, 0, 1, depth)
    mapped = np.c_[pixels - 0.5, np.ones(20)] @ matrix.T
    np.testing.assert_allclose(mapped[:, :2] / mapped[:, 2:] + 0.5, expected)


def slow_smoothing(costs, small, large):
  """The recursion of semi-global matching, pixel by pixel, downwards."""
  smooth = costs.astype(np.float64).copy()
  for y in range(1, costs.shape[0]):
    for x in range(costs.shape[1]):
      above = smooth[y - 1, x]
      for d in range(costs.shape[2]):
        candidates = [above[d], above.min() + large]
        candidates += [
          above[n] + small for n in (d - 1, d + 1) if 0 <= n < len(above)
        ]
        smooth[y, x, d] = costs[y, x, d] + min(candidates) - above.min()
  return smooth


def test_smoothing_is_that_of_the_slow_oracle():
  costs = np.random.default_rng(0).uniform(size=(5, 7, 6)).astype(np.float32)
  flipped = np.swapaxes(costs, 0, 1)
  expected = (
    slow_smoothing(costs, 0.1, 0.4)
    + slow_smoothing(costs[::-1], 0.1, 0.4)[::-1]
    + np.swapaxes(slow_smoothing(flipped, 0.1, 0.4), 0, 1)
    + np.swapaxes(slow_smoothing(flipped[::-1], 0.1, 0.4)[::-1], 0, 1)
  ) / 4
  np.testing.assert_allclose(
    stereo.smooth_costs(costs, 0.1, 0.4), expected, rtol=1e-5
  )


def test_matching_forgives_brightness_and_contrast():
  views, _ = make_views(count=2, size_px=48)
  changed = views.images.copy()
  changed[1] = changed[1] // 2 + 60
  depths = np.array([1.0, 1.6])
  costs = [
    stereo.matching_costs(
      stereo.Views(
        images=images, camera2scene=views.camera2scene, fov_deg=FOV_DEG
      ),
      0,
      [1],
      depths,
      9,
    )
    for images in (views.images, changed)
  ]
  assert np.median(np.abs(costs[0] - costs[1])) < 0.03


def test_a_view_that_looks_elsewhere_takes_no_part_in_the_costs():
  views, _ = make_views(count=4, size_px=32)
  away = camera.make_pose(camera.view2frame_rotation(180.0, 0.0), np.zeros(3))
  # Two of three neighbours look the other way.
  poses = np.concatenate([views.camera2scene[:2], [away, away]])
  views = dataclasses.replace(views, camera2scene=poses)
  depths = np.array([0.8, 1.6])
  alone, among, unseen = (
    stereo.matching_costs(views, 0, neighbours, depths, 5)
    for neighbours in ([1], [2, 1, 3], [2, 3])
  )
  assert np.median(alone[..., 1]) < 0.5
  np.testing.assert_allclose(among, alone, atol=1e-5)
  assert (unseen == 1).all()


def test_of_those_that_see_a_pixel_the_better_half_counts():
  costs = np.float32([[0.2, 0.9, 4, 4], [0.6, 4, 4, 0.3], [0.1, 4, 4, 0.5]])
  found = stereo._mean_of_better_half(costs[:, None])
  np.testing.assert_allclose(found, [[0.15, 0.9, 1, 0.3]], rtol=1e-6)


def test_nothing_is_found_beyond_the_range(sideways):
  views, depths, _ = sideways
  # The wall at 1.6 lies just behind.
  near = dataclasses.replace(stereo.SWEEP, max_depth=1.55)
  found = stereo.depth_map(views, 2, near)
  beyond = found.depth > near.max_depth
  assert beyond.mean() > 0.05
  assert (found.correlation[beyond] == -1).all()
  within = (found.correlation > 0.5) & (depths[2] < 1.4)
  assert within.mean() > 0.3


def test_wrong_poses_are_not_believed(sideways):
  views, _, right = sideways
  # The same images in another order along the path agree on nothing.
  shuffled = dataclasses.replace(views, images=views.images[[3, 0, 5, 2, 4, 1]])
  wrong = fusion.reconstruct(shuffled, stereo.SWEEP, TWO_AGREE)
  coverage = [
    np.mean([view.coverage for view in result.figures])
    for result in (right, wrong)
  ]
  assert coverage[1] < 0.35 * coverage[0]


def test_images_that_stand_still_are_no_far_wall(sideways):
  views, _, _ = sideways
  still = dataclasses.replace(views, images=views.images[[0] * 6])
  result = fusion.reconstruct(still, stereo.SWEEP, TWO_AGREE)
  assert np.mean([view.coverage for view in result.figures]) < 0.02


def test_a_turn_on_the_spot_gives_no_points():
  views, _ = make_views('pan_right', count=3, size_px=32)
  result = fusion.reconstruct(views, stereo.SWEEP, TWO_AGREE)
  assert len(result.cloud.points) == 0
  assert [view.correlation for view in result.figures] == [None] * 3


def test_voxels_merge_to_their_means():
  cloud = fusion.PointCloud(
    points=np.float32([[0.1, 0.1, 0.1], [0.3, 0.1, 0.1], [-0.1, 0.1, 0.1]]),
    normals=np.float32([[1, 0, 0], [0, 1, 0], [0, 0, 1]]),
    colours=np.uint8([[10, 0, 0], [20, 0, 0], [30, 0, 0]]),
  )
  merged = fusion.merge_in_voxels(cloud, 1.0)
  order = np.argsort(merged.points[:, 0])
  np.testing.assert_allclose(
    merged.points[order], [[-0.1, 0.1, 0.1], [0.2, 0.1, 0.1]], rtol=1e-6
  )
  np.testing.assert_array_equal(merged.colours[order][:, 0], [30, 15])
  np.testing.assert_allclose(
    merged.normals[order][1], [2**-0.5, 2**-0.5, 0], rtol=1e-6
  )


@pytest.mark.parametrize('count', [0, 1, 500])
def test_a_ply_file_reads_back_in_trimesh(tmp_path, count):
  generator = np.random.default_rng(count)
  cloud = fusion.PointCloud(
    points=generator.normal(size=(count, 3)).astype(np.float32),
    normals=generator.normal(size=(count, 3)).astype(np.float32),
    colours=generator.integers(0, 256, (count, 3), np.uint8),
  )
  fusion.write_ply(tmp_path / 'points.ply', cloud)
  loaded = trimesh.load(tmp_path / 'points.ply', process=False)
  if not count:
    assert loaded.is_empty
    return
  np.testing.assert_array_equal(
    np.asarray(loaded.vertices, np.float32), cloud.points
  )
  np.testing.assert_array_equal(loaded.colors[:, :3], cloud.colours)


def test_depth_maps_read_back_as_depths_and_who_agrees(tmp_path, sideways):
  _, depths, result = sideways
  (tmp_path / 'depth_maps').mkdir()
  (tmp_path / 'depth_maps' / '006.png').write_bytes(b'of an earlier run')
  scale = depth_maps.scale_factor(stereo.SWEEP.max_depth)
  assert scale == 0.001
  written = depth_maps.write(tmp_path, result, scale)
  found = read_maps(tmp_path, written, 'depth_map_file') * scale
  believed = result.inverse_depths > 0
  np.testing.assert_array_equal(found > 0, believed)
  np.testing.assert_allclose(
    found[believed], 1 / result.inverse_depths[believed], atol=0.501 * scale
  )
  # As of the depths themselves, above.
  assert np.median(np.abs(found / depths - 1)[believed]) < 0.012
  agreeing = read_maps(tmp_path, written, 'agreeing_views_file')
  assert agreeing[~believed].max() == 0
  assert agreeing[believed].min() == TWO_AGREE.num_views
  assert agreeing.max() == len(depths) - 1
  assert not (tmp_path / 'depth_maps' / '006.png').exists()


def test_a_depth_map_says_unknown_of_what_16_bits_do_not_hold():
  depth = np.float32([[0.0004, 0.0006, 65.535, 65.536, 1e6]])
  encoded = depth_maps.encode(1 / depth, 0.001)
  np.testing.assert_array_equal(encoded, [[0, 1, 65535, 0, 0]])
  unknown = np.zeros((1, 2), np.float32)
  np.testing.assert_array_equal(depth_maps.encode(unknown, 0.001), [[0, 0]])


def read_maps(folder, rows, key):
  """Maps of all views, as any program reads PNGs of 16 bits."""
  maps = [
    cv2.imread(str(folder / row[key]), cv2.IMREAD_UNCHANGED) for row in rows
  ]
  assert all(each.dtype == np.uint16 and each.ndim == 2 for each in maps)
  return np.stack(maps).astype(np.float64)


def read_in_nerfstudio(folder, unit):
  """What nerfstudio makes of `transforms.json`.

  As its nerfstudio_dataparser.py does with --downscale-factor=1 (the paths, the
  order, the cameras), its cameras.py (the rays) and its data_utils.py (depth).

  Args:
    folder: that `ns-train --data` names.
    unit: of --depth-unit-scale-factor.

  Returns:
    pictures, depths, and where in our axes that puts every pixel, of each view.
  """
  meta = json.loads((folder / 'transforms.json').read_text())
  assert meta['camera_model'] == 'PINHOLE'
  width, height = int(meta['w']), int(meta['h'])
  x, y = np.meshgrid(np.arange(width) + 0.5, np.arange(height) + 0.5)
  rays = np.stack(
    [
      (x - meta['cx']) / meta['fl_x'],
      -(y - meta['cy']) / meta['fl_y'],
      -np.ones_like(x),
    ],
    axis=-1,
  )
  world2ours = np.linalg.inv([*meta['applied_transform'], [0, 0, 0, 1]])
  pictures, depths, places = [], [], []
  for frame in sorted(
    meta['frames'], key=lambda each: folder / each['file_path']
  ):
    assert not frame['file_path'].startswith('/')
    picture = cv2.imread(str(folder / frame['file_path']))[..., ::-1]
    assert picture.shape == (height, width, 3)
    path = folder / frame['depth_file_path']
    depth = cv2.imread(str(path), cv2.IMREAD_ANYDEPTH).astype(np.float64) * unit
    depth = cv2.resize(depth, (width, height), interpolation=cv2.INTER_NEAREST)
    pose = world2ours @ np.array(frame['transform_matrix'])
    pictures.append(picture)
    depths.append(depth)
    places.append(rays * depth[..., None] @ pose[:3, :3].T + pose[:3, 3])
  return np.stack(pictures), np.stack(depths), np.stack(places)


def write_folder(folder, views):
  (folder / 'frames').mkdir(parents=True)
  frames = []
  for index, image in enumerate(views.images):
    name = f'frames/{index:03d}.png'
    cv2.imwrite(str(folder / name), image[..., ::-1])
    pose = views.camera2scene[index].ravel().tolist()
    frames.append({'file': name, 'camera2scene': pose})
  size = views.size_px
  content = {
    'fov_deg': views.fov_deg,
    'width': size,
    'height': size,
    'frames': frames,
  }
  (folder / 'poses.json').write_text(json.dumps(content))
  return content


def write_truth(folder, of_views, images):
  """Of all views but the last, whose path has run into a surface."""
  (folder / 'frames').mkdir(parents=True)
  frames = []
  for index, image in enumerate(images):
    name = f'frames/{index:03d}.png'
    cv2.imwrite(str(folder / name), image[..., ::-1])
    frames.append({'file': name if index < len(images) - 1 else None})
  first = cv2.imread(str(of_views / 'frames/000.png'))[..., ::-1]
  content = {
    'views_sha256': digests.of_views(of_views, np.ascontiguousarray(first)),
    'frames': frames,
    'metres_per_scene_unit': 2.0,
  }
  (folder / 'truth.json').write_text(json.dumps(content))
  return content


def reconstruct(folder, output, *flags):
  """Runs the command, which has to succeed; returns its figures."""
  line = [f'--views={folder}', f'--output={output}', *flags]
  ((status, stderr),) = commands.run_all('odin_jax.reconstruct', [line])
  assert status == 0, stderr
  return json.loads((output / 'reconstruction.json').read_text())


def test_the_command_makes_points_of_small_blurred_noisy_views(tmp_path):
  """What a small model gives: 32 px, blurred, each frame with its own noise."""
  views, depths = make_views('right', count=8, step=0.05)
  generator = np.random.default_rng(0)
  small, true = [], []
  for image in views.images:
    image = cv2.resize(image, (32, 32), interpolation=cv2.INTER_AREA)
    true.append(image)
    image = cv2.GaussianBlur(image, (0, 0), 0.7)
    noisy = image + generator.normal(0, 8, image.shape)
    small.append(np.clip(noisy, 0, 255).astype(np.uint8))
  write_folder(
    tmp_path / 'views',
    stereo.Views(
      images=np.stack(small), camera2scene=views.camera2scene, fov_deg=FOV_DEG
    ),
  )
  write_truth(tmp_path / 'truth', tmp_path / 'views', true)
  figures = reconstruct(
    tmp_path / 'views', tmp_path / 'out', f'--truth={tmp_path / "truth"}'
  )
  assert figures['truth']['psnr'][-1] is None
  np.testing.assert_allclose(
    figures['truth']['psnr'][:-1],
    [psnr.psnr_db(*both) for both in zip(small[1:-1], true[1:-1], strict=True)],
  )
  page = (tmp_path / 'out' / 'index.html').read_text()
  assert page.count('"truth": "data:image') == 7
  cloud = trimesh.load(tmp_path / 'out' / 'points.ply', process=False)
  assert figures['points'] == len(cloud.vertices) > 3000
  assert figures['num_views'] == len(figures['per_view']) == 8
  distances = cKDTree(surface_points(views, depths)).query(cloud.vertices)[0]
  assert np.median(distances) < 0.1
  for row in figures['per_view']:
    assert (tmp_path / 'views' / row['file']).is_file()
    depth = cv2.imread(str(tmp_path / 'out' / row['depth_file']))
    shown = np.mean(depth.any(axis=-1))
    assert shown == pytest.approx(row['coverage'], abs=1e-6)
  # Matched at 128 px, and read at the 32 that they have.
  assert figures['working_px'] == 128
  unit = figures['depth_unit_scale_factor']
  pictures, found, _ = read_in_nerfstudio(tmp_path / 'out', unit)
  np.testing.assert_array_equal(pictures, small)
  ratio = (found / depths[:, 1::3, 1::3])[found > 0]
  # Measured: 0.055.
  assert np.median(np.abs(ratio - 1)) < 0.07
  assert np.mean(found > 0) == pytest.approx(figures['coverage'], abs=0.02)


def object_views(folder):
  """Of a box full of texture, from all around, above and below.

  Returns:
    the views in the axes of the box, their depths, and its mesh.
  """
  texture = np.random.default_rng(0).integers(0, 256, (64, 384, 3), np.uint8)
  scanned_objects.write(
    folder, content=scanned_objects.text((1.0, 0.5, 0.7)), picture=texture
  )
  table = protocols.parse(
    {
      'name': 'around',
      'benchmark': 'gso',
      'scenes': [],
      'views': {'sources': [[0]], 'count': 40},
      'rendering': {
        **protocols.load('syncdreamer_gso').rendering,
        'azimuths_deg': [18.0 * number for number in range(20)],
        'elevations_deg': [-35.0, 35.0],
        'turns_deg': [],
      },
      'image': {'size_px': [48, 48]},
    }
  )
  found = gso.read(folder, protocol=table).views
  fov_deg = table.rendering['fov_deg']
  views = stereo.Views(
    images=np.stack([view.read() for view in found]),
    camera2scene=np.stack([view.camera2object() for view in found]),
    fov_deg=fov_deg,
  )
  depths = np.stack([view.depths(fov_deg, 48) for view in found])
  return views, depths, found[0].mesh


def test_an_object_seen_from_all_around_has_its_volume(tmp_path):
  pytest.importorskip(
    'embreex', reason='embreex, which casts rays, is not here'
  )
  views, depths, true = object_views(tmp_path / 'box')
  write_folder(tmp_path / 'views', views)
  reconstruct(
    tmp_path / 'views',
    tmp_path / 'out',
    *('--min_size_px=48', '--mesh_voxels=48'),
    *('--min_depth=0.75', '--max_depth=2.25'),
  )
  exact = tsdf.fuse(views, (1 / depths).astype(np.float32), voxels=48)
  found = {
    'exact': meshes.Mesh(exact.vertices.astype(np.float64), exact.faces),
    'swept': meshes.read(tmp_path / 'out' / 'mesh.ply'),
  }
  cameras = shape_metrics.Cameras(views.camera2scene, views.fov_deg, 128)
  scores = {
    name: shape_metrics.scores(
      mesh, true, cameras, voxel=0.01, grid=64, threshold=0.02
    )
    for name, mesh in found.items()
  }
  # Measured: IoU 0.92 and 0.74, Chamfer 0.006 and 0.020, F 0.98 and 0.75. Its
  # bounding cube in its place has an IoU of 0.35.
  assert scores['exact']['volume_iou'] > 0.9
  assert scores['exact']['chamfer'] < 0.008
  assert scores['exact']['f_score'] > 0.96
  assert scores['swept']['volume_iou'] > 0.7
  assert scores['swept']['chamfer'] < 0.023
  assert scores['swept']['f_score'] > 0.7


_NETWORK_THAT_KNOWS = """
import types
import numpy as np
from odin_jax import reconstruct
from preprocessing.matchers import dust3r, dust3r_network
from tests.helpers import fake_dust3r

known = np.load({path!r})
oracle = fake_dust3r.OracleNetwork()
oracle.add_views(known['images'], known['poses'], known['depths'], {fov_deg})
reconstruct.matchers.checked = lambda *_: types.SimpleNamespace(
  options={{'checkpoint': 'known'}})
dust3r.make_network = lambda _: dust3r_network.Network(
  oracle, device='cpu', precision='fp32', attention='stock', batch_size=2)
"""


def test_the_command_takes_depth_of_a_network(tmp_path):
  path = trajectory.camera_path('right', 4, 0.1)
  images, depths = Room(waves=8).views(path, FOV_DEG, 512)
  views = stereo.Views(images=images, camera2scene=path, fov_deg=FOV_DEG)
  write_folder(tmp_path / 'views', views)
  # The rows that the network looks at.
  rows = slice(64, 448)
  known = tmp_path / 'known.npz'
  np.savez(known, images=images[:, rows], poses=path, depths=depths[:, rows])
  output = tmp_path / 'out'
  line = [
    f'--views={tmp_path / "views"}',
    '--method=dust3r',
    '--mesh_voxels=32',
    f'--output={output}',
  ]
  ((status, stderr),) = commands.run_all(
    'odin_jax.reconstruct',
    [line],
    _NETWORK_THAT_KNOWS.format(path=str(known), fov_deg=FOV_DEG),
  )
  assert status == 0, stderr
  figures = json.loads((output / 'reconstruction.json').read_text())
  assert figures['method'] == 'dust3r' and figures['sweep'] is None
  assert figures['dust3r']['checkpoint'] == 'known'
  assert figures['dust3r']['num_pairs'] == [3] * 4
  assert 0.4 < figures['coverage'] < 0.75
  cloud = trimesh.load(output / 'points.ply', process=False)
  truth = surface_points(views, depths)[::7]
  assert np.quantile(cKDTree(truth).query(cloud.vertices)[0], 0.95) < 0.02
  # The network knows them to 1e-4, and they are rounded.
  scale = figures['depth_unit_scale_factor']
  found = read_maps(output, figures['per_view'], 'depth_map_file') * scale
  known = found > 0
  assert known.mean() == pytest.approx(figures['coverage'])
  assert np.abs(found - depths)[known].max() < 0.5 * scale + 1e-4
  agreeing = read_maps(output, figures['per_view'], 'agreeing_views_file')
  np.testing.assert_array_equal(
    agreeing >= figures['agreement']['num_views'], known
  )
  pictures, read, places = read_in_nerfstudio(output, scale)
  np.testing.assert_array_equal(pictures, images)
  np.testing.assert_array_equal(read, found)
  truth = surface_points(views, depths).reshape(*depths.shape, 3)
  assert np.abs(places - truth)[known].max() < 2 * (0.5 * scale + 1e-4)


def test_the_command_ends_well_without_a_single_point(tmp_path):
  generator = np.random.default_rng(0)
  views = stereo.Views(
    images=generator.integers(0, 256, (3, 32, 32, 3), np.uint8),
    camera2scene=trajectory.camera_path('forward', 3, 0.1),
    fov_deg=90.0,
  )
  write_folder(tmp_path / 'views', views)
  figures = reconstruct(
    tmp_path / 'views', tmp_path / 'out', '--min_size_px=32'
  )
  assert figures['points'] < 100
  assert (tmp_path / 'out' / 'points.ply').is_file()


def spoil_nothing_there(folder, content):
  for path in folder.rglob('*.*'):
    path.unlink()


def spoil_json(folder, content):
  (folder / 'poses.json').write_text('{"fov_deg": 90')


def spoil_no_frames(folder, content):
  content['frames'] = []
  (folder / 'poses.json').write_text(json.dumps(content))


def spoil_missing_key(folder, content):
  del content['fov_deg']
  (folder / 'poses.json').write_text(json.dumps(content))


def spoil_rotation(folder, content):
  content['frames'][1]['camera2scene'][0] = 3.0
  (folder / 'poses.json').write_text(json.dumps(content))


def spoil_handedness(folder, content):
  mirror = np.diag([1.0, 1.0, -1.0, 1.0])[:3]
  content['frames'][1]['camera2scene'] = mirror.ravel().tolist()
  (folder / 'poses.json').write_text(json.dumps(content))


def spoil_place(folder, content):
  content['frames'][1]['camera2scene'][3] = float('nan')
  (folder / 'poses.json').write_text(json.dumps(content))


def spoil_count(folder, content):
  del content['frames'][1:]
  (folder / 'poses.json').write_text(json.dumps(content))


def spoil_image(folder, content):
  (folder / 'frames' / '001.png').write_bytes(b'no image')


def spoil_last_rows(folder, content):
  path = folder / 'frames' / '001.png'
  jpeg = cv2.imencode('.jpg', cv2.imread(str(path)))[1].tobytes()
  path.write_bytes(jpeg[: len(jpeg) * 3 // 4] + b'\xff\xd9')


def spoil_size(folder, content):
  content['width'] = content['height'] = 64
  (folder / 'poses.json').write_text(json.dumps(content))


FAULTS = {
  spoil_nothing_there: 'poses.json',
  spoil_json: 'poses.json',
  spoil_no_frames: 'names 0 views',
  spoil_count: 'names 1 views',
  spoil_handedness: '001.png',
  spoil_place: '001.png',
  spoil_missing_key: 'fov_deg',
  spoil_rotation: '001.png',
  spoil_image: '001.png',
  spoil_last_rows: 'rows are missing',
  spoil_size: '64x64',
}


def test_bad_views_get_one_line_and_status_2(tmp_path):
  views, _ = make_views(count=2, size_px=16)
  lines = [[f'--views={tmp_path / "absent"}', f'--output={tmp_path / "out"}']]
  for spoil in FAULTS:
    folder = tmp_path / spoil.__name__
    spoil(folder, write_folder(folder, views))
    lines.append([f'--views={folder}', f'--output={tmp_path / "out"}'])
  words = [['absent'], *([message] for message in FAULTS.values())]
  folder, truth = tmp_path / 'good', tmp_path / 'truth'
  write_folder(folder, views)
  content = write_truth(truth, folder, views.images)
  for changed, message in (
    ({'frames': content['frames'][:1]}, 'the number or the size'),
    ({'views_sha256': '0'}, 'the truth of other views'),
    ({'frames': [1, 2]}, 'damaged'),
    ({'metres_per_scene_unit': 'x'}, 'truth.json: damaged'),
  ):
    other = tmp_path / message.replace(' ', '_')
    shutil.copytree(truth, other)
    (other / 'truth.json').write_text(json.dumps(content | changed))
    lines.append(
      [f'--views={folder}', f'--truth={other}', f'--output={tmp_path / "out"}']
    )
    words.append([message])
  lines += [
    [f'--views={folder}', f'--truth={folder}', f'--output={tmp_path / "out"}'],
    [
      f'--cameras={folder}',
      f'--truth={truth}',
      f'--output={tmp_path / "out"}',
    ],
  ]
  words += [['truth.json'], ['--truth: is of --views alone']]
  out = f'--output={tmp_path / "out"}'
  lines += [
    [f'--cameras={folder}', '--method=dust3r', out],
    [f'--views={folder}', '--method=dust3r', '--max_size_px=256', out],
    [f'--views={folder}', '--dust3r_checkpoint=x.pth', out],
    [
      f'--views={folder}',
      '--method=dust3r',
      '--dust3r_checkpoint=x.pth',
      out,
    ],
    [f'--views={folder}', '--method=dust3r', out],
  ]
  words += [
    ['--method=dust3r: takes --views alone'],
    ['--max_size_px', '512 px'],
    ['--dust3r_checkpoint: is of --method=dust3r'],
    ['x.pth', 'the --dust3r_checkpoint'],
    ['DUST3R_HOME', 'launch/setup_dust3r.sh'],
  ]
  commands.assert_refused(
    commands.run_all('odin_jax.reconstruct', lines), words
  )
  assert not (tmp_path / 'out').exists()


def test_real_photographs_agree_on_the_object(shared_data):
  """DTU scan 24, in the cameras of the data set."""
  folder = shared_data / 'dtu_scan24'
  if not folder.is_dir():
    pytest.skip(f'{folder}: absent')
  views, (centre, radius) = dtu_views(folder, size_px=96)
  result = fusion.reconstruct(
    views,
    dataclasses.replace(
      stereo.SWEEP, min_depth=0.6, max_depth=1.8, num_neighbours=3
    ),
    TWO_AGREE,
  )
  coverage = [view.coverage for view in result.figures]
  # Measured: coverage 0.63, agreeing depths differ by 0.0024.
  assert np.mean(coverage) > 0.5
  assert np.median(result.depth_differences) < 0.004
  # The data's gauge puts what was scanned into the unit sphere.
  from_centre = np.linalg.norm(result.cloud.points - centre, axis=1)
  assert np.mean(from_centre < 1.2 * radius) > 0.95


def dtu_views(folder, size_px):
  """Square crops around the principal point, median camera distance 1.

  Returns:
    the views, and (centre, radius) of the unit sphere in their scene axes.
  """
  cameras = np.load(folder / 'cameras_sphere.npz')
  images, poses = [], []
  for path in sorted((folder / 'image').glob('*.png')):
    index = int(path.stem)

    matrix = (cameras[f'world_mat_{index}'] @ cameras[f'scale_mat_{index}'])[:3]
    intrinsics, rotation, centre = cv2.decomposeProjectionMatrix(matrix)[:3]
    intrinsics = intrinsics / intrinsics[2, 2]
    images.append(
      square_crop(cv2.imread(str(path))[..., ::-1], intrinsics, size_px)
    )
    poses.append(camera.make_pose(rotation.T, (centre[:3] / centre[3])[:, 0]))
  poses = np.stack(poses)
  distance = np.median(np.linalg.norm(poses[:, :, 3], axis=1))
  poses[:, :, 3] /= distance
  views = stereo.Views(
    images=np.stack(images), camera2scene=poses, fov_deg=CROP_FOV_DEG
  )
  return views, (np.zeros(3), 1 / distance)


CROP_FOV_DEG = 22.0


def square_crop(image, intrinsics, size_px):
  """A square view of `CROP_FOV_DEG` with the same centre and orientation."""
  target = camera.intrinsics(CROP_FOV_DEG, size_px * 2)
  half = np.array([[0, 0, 0.5], [0, 0, 0.5], [0, 0, 0]])
  # DTU counts from the centre of the first pixel, as OpenCV does.
  matrix = intrinsics @ np.linalg.inv(target - half)
  view = cv2.warpPerspective(
    np.ascontiguousarray(image),
    matrix,
    (size_px * 2, size_px * 2),
    flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP,
  )
  return cv2.resize(view, (size_px, size_px), interpolation=cv2.INTER_AREA)
