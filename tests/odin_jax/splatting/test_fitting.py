"""What fitting is made of, and the command on views of a room."""

import json
import struct

import jax.numpy as jnp
import numpy as np
import pytest
import trimesh

from odin_jax import metrics
from odin_jax.geometry import trajectory
from odin_jax.shared import camera, image_files, user_images
from odin_jax.splatting import (
  fitting,
  gaussians,
  initial,
  inputs,
  ply_files,
  rasterizing,
  relocation,
)
from tests.helpers import commands, exported_cameras
from tests.helpers.room_views import Room

FOV_DEG = 80.0


def some_gaussians(count=5):
  generator = np.random.default_rng(0)
  return gaussians.Gaussians(
    *(
      jnp.asarray(generator.normal(size=shape), jnp.float32)
      for shape in ((count, 3), (count, 3), (count, 4), (count,), (count, 3))
    )
  )


def read_ply(path):
  """Rows by name, by a reader that knows the format alone."""
  header, _, body = path.read_bytes().partition(b'end_header\n')
  words = [line.split() for line in header.decode().splitlines()]
  assert words[:2] == [['ply'], ['format', 'binary_little_endian', '1.0']]
  assert words[2][:2] == ['element', 'vertex']
  assert all(line[:2] == ['property', 'float'] for line in words[3:])
  names = [line[2] for line in words[3:]]
  rows = list(struct.iter_unpack(f'<{len(names)}f', body))
  assert len(rows) == int(words[2][2])
  return [dict(zip(names, row)) for row in rows]


def test_a_ply_file_has_what_viewers_of_3dgs_read(tmp_path):
  scene = some_gaussians()
  ply_files.write(tmp_path / 'splats.ply', scene)
  rows = read_ply(tmp_path / 'splats.ply')
  assert list(rows[0])[:6] == ['x', 'y', 'z', 'nx', 'ny', 'nz']
  assert len(rows[0]) == 17
  for index, row in enumerate(rows):
    names = (('x', 'y', 'z'), *([f'{n}_{i}' for i in range(k)] for n, k in (
      ('scale', 3), ('rot', 4), ('f_dc', 3))))  # fmt: skip
    place, scale, turn, colour = ([row[n] for n in part] for part in names)
    np.testing.assert_array_equal(place, scene.means[index])
    np.testing.assert_array_equal(scale, scene.log_scales[index])
    np.testing.assert_array_equal(colour, scene.colour_coefficients[index])
    assert row['opacity'] == scene.opacity_logits[index]
    quaternion = np.asarray(scene.quaternions[index])
    np.testing.assert_allclose(
      turn, quaternion / np.linalg.norm(quaternion), rtol=1e-6
    )


def as_3dgs_loads(path):
  """What the loader of 3DGS makes of a file, at degree 0.

  `load_ply` and the activations of `GaussianModel` in
  https://github.com/graphdeco-inria/gaussian-splatting/blob/main/scene/gaussian_model.py,
  `build_rotation` of its utils/general_utils.py and `SH2RGB` of its
  utils/sh_utils.py, by trimesh in the place of plyfile.
  """
  cloud = trimesh.load(path, process=False)
  vertex = cloud.metadata['_ply_raw']['vertex']
  rows = vertex['data']
  order = ('x y z nx ny nz f_dc_0 f_dc_1 f_dc_2 opacity '
           'scale_0 scale_1 scale_2 rot_0 rot_1 rot_2 rot_3').split()  # fmt: skip
  assert list(vertex['properties']) == order
  assert set(vertex['properties'].values()) == {'<f4'}

  def columns(prefix):
    names = [name for name in order if name.startswith(prefix)]
    # The loader sorts them by their numbers, as they are.
    return np.stack([rows[name] for name in names], -1).astype(np.float64)

  q = columns('rot')
  r, x, y, z = (q / np.linalg.norm(q, axis=1, keepdims=True)).T
  turn = np.array(
    [
      [1 - 2 * (y * y + z * z), 2 * (x * y - r * z), 2 * (x * z + r * y)],
      [2 * (x * y + r * z), 1 - 2 * (x * x + z * z), 2 * (y * z - r * x)],
      [2 * (x * z - r * y), 2 * (y * z + r * x), 1 - 2 * (x * x + y * y)],
    ]
  )
  spread = np.moveaxis(turn, -1, 0) * np.exp(columns('scale_'))[:, None]
  return {
    'places': np.asarray(cloud.vertices),
    'covariances': spread @ np.swapaxes(spread, 1, 2),
    'opacities': 1 / (1 + np.exp(-columns('opacity')[:, 0])),
    'colours': np.maximum(0.28209479177387814 * columns('f_dc_') + 0.5, 0),
  }


def test_the_loader_of_3dgs_makes_of_a_file_what_was_rendered(tmp_path):
  scene = some_gaussians()
  ply_files.write(tmp_path / 'splats.ply', scene)
  loaded = as_3dgs_loads(tmp_path / 'splats.ply')
  ours = {
    'places': scene.means,
    'covariances': gaussians.covariances(scene),
    'opacities': gaussians.opacities(scene),
    'colours': gaussians.colours(scene),
  }
  for name, values in ours.items():
    np.testing.assert_allclose(loaded[name], values, rtol=2e-5, atol=1e-6)


def test_parameters_mean_what_they_mean_in_3dgs():
  scene = some_gaussians()
  grey = scene._replace(colour_coefficients=jnp.zeros((5, 3)))
  np.testing.assert_array_equal(gaussians.colours(grey), 0.5)
  values = np.random.default_rng(0).uniform(size=(5, 3)).astype(np.float32)
  coefficients = gaussians.coefficients_of_colours(values)
  # (RGB - 0.5) / 0.28209479177387814 in its sh_utils.py.
  np.testing.assert_allclose(
    coefficients, (values - 0.5) / 0.28209479177387814, rtol=1e-6
  )
  np.testing.assert_allclose(
    gaussians.colours(scene._replace(colour_coefficients=coefficients)),
    values,
    atol=1e-6,
  )
  # A quarter turn about z takes x to y.
  turn = gaussians.rotations(jnp.array([[2.0, 0.0, 0.0, 2.0]]))[0]
  np.testing.assert_allclose(turn[:, 0], [0, 1, 0], atol=1e-6)


@pytest.mark.parametrize('opacity', [0.02, 0.5, 0.98])
def test_copies_hide_and_hold_as_much_as_the_one_did(opacity):
  offset = np.linspace(-60, 60, 20001)
  for copies in (1, 2, 7, 51):
    of_each, shrink = relocation.shared(np.array([opacity]), np.array([copies]))
    before = opacity * np.exp(-(offset**2) / 2)
    after = of_each * np.exp(-((offset / shrink) ** 2) / 2)
    together = 1 - (1 - after) ** copies
    assert together.max() == pytest.approx(opacity)
    assert together.sum() == pytest.approx(before.sum(), rel=1e-6)


def test_dead_gaussians_go_where_live_ones_are():
  scene = some_gaussians()._replace(
    opacity_logits=jnp.array([-9.0, 1.0, -9.0, -9.0, -5.0])
  )
  moments = (jnp.array(3), scene)
  moved, (count, kept), number = relocation.relocate(
    scene, moments, np.random.default_rng(0)
  )
  assert number == 3 and count == 3
  # The fifth is hardly ever chosen: its opacity is a hundredth.
  np.testing.assert_array_equal(
    moved.means, scene.means[jnp.array([1, 1, 1, 1, 4])]
  )
  live = gaussians.opacities(moved)
  np.testing.assert_allclose(
    1 - (1 - live[1]) ** 4, gaussians.opacities(scene)[1], rtol=1e-5
  )
  assert not np.any(kept.means[:4]) and np.any(kept.means[4])
  nothing = relocation.relocate(moved, moments, np.random.default_rng(0))
  assert nothing == (moved, moments, 0)


def test_ssim_is_that_of_the_metrics():
  x, y = np.random.default_rng(0).uniform(size=(2, 1, 13, 17, 3))
  y = 0.7 * x + 0.3 * y
  found = fitting.ssim(
    jnp.asarray(x[0], jnp.float32), jnp.asarray(y[0], jnp.float32)
  )
  assert float(found) == pytest.approx(float(metrics.ssim(x, y)[0]), abs=1e-5)


def write_panoramas(folder):
  """A folder cameras/VIDEO of three panoramas; the floor is masked."""
  generator = np.random.default_rng(0)
  poses = trajectory.camera_path('weave', 3, 0.1)
  images = generator.integers(0, 256, (3, 12, 24, 3), np.uint8)
  masked = np.zeros((12, 24), bool)
  masked[9:] = True
  exported_cameras.write(folder, images, poses, masked)
  return poses


def test_panoramas_are_read_with_their_masks_and_made_smaller(tmp_path):
  poses = write_panoramas(tmp_path)
  given = inputs.of_cameras(tmp_path, None, 12)
  assert given.component == 0 and given.points is None
  np.testing.assert_allclose(
    camera.inverse(given.views.scene2camera), poses, atol=1e-9
  )
  assert given.views.counts[:, :9].all() and not given.views.counts[:, 9:].any()
  smaller = inputs.of_cameras(tmp_path, 0, 6).views
  assert smaller.images.shape == (3, 6, 12, 3)
  # The row of which half is masked does not count.
  assert smaller.counts[:, :4].all() and not smaller.counts[:, 4:].any()
  none = given.views.subset([])
  limits = rasterizing.Limits(tile_px=4, pairs=8)
  assert fitting.pictures(some_gaussians(), none, limits).shape == (
    0,
    12,
    24,
    3,
  )
  # Points start in the direction of the pixel that gave their colour.
  points, colours = initial.in_frusta(
    given.views, 50, 0.5, 4.0, np.random.default_rng(0)
  )
  distances = []
  for index, pose in enumerate(given.views.scene2camera):
    local = camera.transform(pose, points)
    u, v = camera.direction_to_equirect(local, 24, 12)
    seen = given.views.images[index, v.astype(int), u.astype(int) % 24] / 255
    distances.append(np.abs(seen - colours).max(axis=1))
    own = distances[-1] == 0
    assert np.all(v[own] < 9) and own.any()
    reach = np.linalg.norm(local[own], axis=1)
    assert np.all((reach > 0.49) & (reach < 4.01))
  assert np.all(np.min(distances, axis=0) == 0)


@pytest.fixture(scope='module')
def ran(tmp_path_factory):
  """The command on views of a room, and on what it has to refuse."""
  folder = tmp_path_factory.mktemp('splat')
  room = folder / 'room'
  (room / 'frames').mkdir(parents=True)
  path = trajectory.camera_path('weave', 9, 0.1)
  images, _ = Room(max_frequency=6.0).views(path, FOV_DEG, 16)
  frames = []
  for index, (image, pose) in enumerate(zip(images, path)):
    name = f'frames/{index:03d}.png'
    image_files.write(room / name, image)
    frames.append({'file': name, 'camera2scene': pose.ravel().tolist()})
  content = {'fov_deg': FOV_DEG, 'width': 16, 'height': 16, 'frames': frames}
  (room / 'poses.json').write_text(json.dumps(content))
  write_panoramas(folder / 'video')
  (folder / 'points.ply').write_text('ply')
  views = f'--views={room}'
  out = f'--output={folder / "out"}'
  cameras = f'--cameras={folder / "video"}'
  lines = {
    'good': [views, out, '--steps=120', '--num_gaussians=120'],
    'either --views or --cameras': [views, cameras, out],
    'give either': [out],
    'poses.json: no such file': [f'--views={folder / "video"}', out],
    'has no component 2': [cameras, '--component=2', out],
    'no points in PLY': [views, f'--points={folder / "points.ply"}', out],
    '--component goes with': [views, '--component=1', out],
    'leaves none': [views, '--holdout_every=1', out],
    'smaller than --max_depth': [views, '--min_depth=20', out],
  }
  results = commands.run_all('odin_jax.splat', list(lines.values()))
  return folder / 'out', images, dict(zip(lines, results))


def test_the_command_knows_views_that_it_did_not_see(ran):
  output, images, results = ran
  status, stderr = results['good']
  assert status == 0, stderr
  figures = json.loads((output / 'splats.json').read_text())
  assert len(read_ply(output / 'splats.ply')) == figures['num_gaussians'] == 120
  (row,) = figures['held_out']
  assert row['file'] == 'frames/004.png'
  shown = user_images.read(output / row['picture'], 'a picture')
  np.testing.assert_array_equal(shown[:, :16], images[4])
  error = np.mean((shown[:, 16:] / 255 - images[4] / 255) ** 2)
  assert row['psnr'] == pytest.approx(-10 * np.log10(error), abs=1e-6)
  # Measured: 24.6 dB; the mean colour of the view has 15.
  assert row['psnr'] > 22
  assert figures['last_loss'] < figures['first_loss'] / 3


def test_bad_input_is_one_line_and_status_2(ran):
  _, _, results = ran
  refused = {words: r for words, r in results.items() if words != 'good'}
  commands.assert_refused(refused.values(), [[words] for words in refused])
