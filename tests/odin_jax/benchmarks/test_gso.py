"""Views of boxes whose colours and depths are known at every point."""

import json
import pathlib

import numpy as np
from PIL import Image
import pytest
import trimesh

from odin_jax.benchmarks import gso, protocols, scenes
from odin_jax.shared import camera, errors
from tests.helpers import commands, scanned_objects

pytest.importorskip('embreex', reason='embreex, which casts rays, is not here')

SIDES = np.array([1.0, 0.5, 0.7])
TABLE = protocols.load('syncdreamer_gso')
SIZE_PX = 48


def protocol(**tables):
  """The cameras of the table, each fourth of them, with fewer pixels."""
  content = {
    'name': 'mine',
    'benchmark': 'gso',
    'scenes': [],
    'views': {'sources': [[0]], 'count': 4},
    'rendering': {
      **TABLE.rendering,
      'azimuths_deg': [0.0, 90.0, 180.0, 247.5],
      'turns_deg': [],
    },
    'image': {'size_px': [SIZE_PX, SIZE_PX]},
  }
  return protocols.parse(content | tables)


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  """A cube in GSO's layout, and a box, elsewhere and larger, in a flat one."""
  folder = tmp_path_factory.mktemp('objects')
  scanned_objects.write(folder / 'cube')
  scanned_objects.write(
    folder / 'box',
    content=scanned_objects.text(7 * SIDES, (3.0, -2.0, 1.0)),
    is_flat=True,
  )
  (folder / '.cache').mkdir()
  return folder


def camera_at(azimuth_deg, elevation_deg, distance):
  """camera2object, said in another way: it looks at 0 with z up."""
  a, e = np.deg2rad([azimuth_deg, elevation_deg])
  outwards = np.array([np.cos(a) * np.cos(e), np.sin(a) * np.cos(e), np.sin(e)])
  right = np.cross([0, 0, 1.0], outwards)
  right /= np.linalg.norm(right)
  turn = np.stack([right, -np.cross(outwards, right), -outwards], axis=-1)
  return camera.make_pose(turn, distance * outwards)


def first_hits(camera2object, rays, sides):
  """Of rays [*b 3] on a box: depth, axis and point of what is hit first."""
  origin, directions = camera2object[:, 3], rays @ camera2object[:, :3].T
  with np.errstate(divide='ignore'):
    near = (-np.sign(directions) * np.divide(sides, 2) - origin) / directions
    far = (np.sign(directions) * np.divide(sides, 2) - origin) / directions
  depth, axis = near.max(axis=-1), near.argmax(axis=-1)
  depth = np.where(depth <= far.min(axis=-1), depth, np.inf)
  with np.errstate(invalid='ignore'):
    return depth, axis, origin + depth[..., None] * directions


def colours(points, axis, sides):
  """Of points [n 3] on the faces across axes [n]."""
  found = np.zeros((len(points), 3))
  places = points / sides + 0.5
  for face, (of_face, side) in enumerate(scanned_objects.FACES):
    mine = (axis == of_face) & ((points[:, of_face] > 0) == side)
    s, t = np.delete(places[mine], of_face, axis=1).T
    found[mine] = scanned_objects.colour(face, s, t)
  return found


@pytest.mark.parametrize('name, sides', [('cube', np.ones(3)), ('box', SIDES)])
def test_known_points_are_seen_where_they_are_in_their_colours(
  folder, name, sides
):
  table = protocol()
  views = gso.read(folder / name, protocol=table).views
  assert [view.number for view in views] == [0, 1, 2, 3]
  fov_deg, distance = table.rendering['fov_deg'], table.rendering['distance']
  rays = camera.view_rays(fov_deg, SIZE_PX)
  for view in views:
    pose = camera_at(
      view.facts['azimuth_deg'], view.facts['elevation_deg'], distance
    )
    depth, axis, points = first_hits(pose, rays, sides)
    np.testing.assert_allclose(view.depths(fov_deg, SIZE_PX), depth, atol=1e-6)
    seen = np.isfinite(depth)
    assert 0.1 < seen.mean() < 0.95
    away = np.linalg.norm((rays / rays[..., 2:]) * depth[..., None], axis=-1)
    assert view.depth == pytest.approx(np.median(away[seen]), abs=0.02)
    image = view.read()
    # Pixels that show one square alone: those around them have its colour too.
    truth = np.full((SIZE_PX, SIZE_PX, 3), 255.0)
    truth[seen] = colours(points[seen], axis[seen], sides)
    flat = np.ones(seen.shape, bool)
    for step in (-1, 1):
      for along in (0, 1):
        flat &= (np.roll(truth, step, along) == truth).all(axis=-1)
    assert flat[seen].mean() > 0.2
    np.testing.assert_allclose(image[flat], truth[flat], atol=1)
    # Points of the object in the axes of scenes: y is down.
    scene = points[seen] @ np.array([[1, 0, 0], [0, 0, -1], [0, 1, 0.0]]).T
    pixels, z = camera.project(
      camera.transform(camera.inverse(view.camera2scene), scene),
      view.intrinsics,
    )
    np.testing.assert_allclose(z, depth[seen])
    v, u = np.nonzero(seen)
    np.testing.assert_allclose(pixels, np.stack([u, v], axis=-1) + 0.5)


def test_edges_are_smooth_and_the_same_each_time(folder):
  view = gso.read(folder / 'cube', protocol=protocol()).views[0]
  image = view.read()
  np.testing.assert_array_equal(image, view.read())
  # The mean of nine rays: the left edge of the cube takes part of its pixels.
  row = image[SIZE_PX // 2].astype(int)
  change = np.flatnonzero((row != 255).any(axis=-1))[0]
  edge, after = row[change], row[change + 1]
  shares = (255 - edge) / (255 - after)
  np.testing.assert_allclose(shares * 9, np.rint(shares * 9), atol=0.1)


def test_an_object_is_turned_as_the_table_says(folder):
  """Its front is where a camera at the azimuth of its turn sees it."""
  turned = protocol(
    scenes=['cube'],
    rendering=protocol().rendering | {'turns_deg': [90.0]},
  )
  views = gso.read(folder / 'cube', protocol=turned).views
  others = gso.read(folder / 'cube', protocol=protocol()).views
  np.testing.assert_array_equal(views[1].read(), others[0].read())
  assert np.any(views[0].read() != others[0].read())


def test_pairs_have_the_depth_of_what_they_show(folder):
  table = protocol(scale={'policy': 'resolved'})
  pair_set = scenes.posed_pairs(
    folder, gso.read, table, image_size_px=24, scale='', num_sources=0
  )
  pairs, truth = pair_set.pairs, pair_set.truth
  assert [row['scene'] for row in pair_set.facts] == ['box'] * 3 + ['cube'] * 3
  assert pair_set.facts[1]['source_azimuth_deg'] == 0
  assert pair_set.facts[1]['target_azimuth_deg'] == 180
  assert pair_set.facts[1]['target_elevation_deg'] == 30
  assert truth.target_depth.shape == truth.target_moving.shape == (6, 24, 24)
  assert not truth.target_moving.any()
  np.testing.assert_allclose(pairs.median_depth, 1)
  for index, sides in enumerate([SIDES] * 3 + [np.ones(3)] * 3):
    unit, fov_deg = pair_set.facts[index]['unit'], float(pairs.fov_deg[index])
    # What the target sees, in the source's axes: on its surface, or hidden.
    rays = camera.view_rays(fov_deg, 24)
    depth = truth.target_depth[index].astype(float)
    seen = np.isfinite(depth)
    points = camera.transform(
      pairs.target2source[index], rays[seen] * depth[seen][:, None]
    )
    pose = camera.rescale(camera_at(0.0, 30.0, 1.5), 1 / unit)
    surface, _, _ = first_hits(pose, points / points[:, 2:], sides / unit)
    behind = points[:, 2] - surface
    assert behind.min() > -1e-4
    if pair_set.facts[index]['target_azimuth_deg'] == 180:
      # Both see the top.
      assert 0.05 < np.mean(np.abs(behind) < 1e-4) < 0.5
    # The source's own, by the same rule.
    expected, _, _ = first_hits(pose, rays, sides / unit)
    np.testing.assert_allclose(truth.source_depth[index], expected, rtol=1e-6)
  here = scenes.done_here(TABLE, pair_set, image_size_px=24, num_sources=0)
  assert {row['line'] for row in protocols.departures(TABLE, here)} == {
    'scenes',
    'image.size_px',
    'rendering.shading',
    'views.source_is_scored',
  }


def write_pictures(folder, views, level=90):
  """RGBA pictures as SyncDreamer has them: clear where there is no object."""
  fov_deg = TABLE.rendering['fov_deg']
  for view in views:
    seen = np.isfinite(view.depths(fov_deg, SIZE_PX))
    picture = np.full((SIZE_PX, SIZE_PX, 4), level, np.uint8)
    picture[..., 3] = np.where(seen, 255, 0)
    Image.fromarray(picture).save(folder / f'{view.number:03}.png')


def test_pictures_of_all_cameras_are_the_views(folder, tmp_path):
  models = scanned_objects.write(tmp_path / 'box', is_flat=True)
  (models / 'model.obj').write_text(scanned_objects.text(SIDES))
  # They need no texture.
  (models / 'model.mtl').unlink()
  table = protocol()
  rendered = gso.read(folder / 'box', protocol=table)
  assert rendered.here == {'rendering.shading': 'unlit'}
  write_pictures(models, rendered.views)
  found = gso.read(models, protocol=table)
  assert found.here == {}
  for view, other in zip(found.views, rendered.views, strict=True):
    depths, of_other = (
      x.depths(table.rendering['fov_deg'], 16) for x in (view, other)
    )
    np.testing.assert_allclose(depths, of_other, atol=1e-9)
    np.testing.assert_array_equal(view.camera2scene, other.camera2scene)
    image = view.read()
    assert set(image[..., 0].ravel()) == {90, 255}

  def refused(words):
    with pytest.raises(errors.UserError, match=words) as error:
      gso.read(models, protocol=table)
    assert '\n' not in str(error.value)

  (models / '002.png').rename(tmp_path / '002.png')
  refused('has pictures, but lacks 002.png; copy all 4')
  Image.new('RGB', (SIZE_PX, SIZE_PX + 1)).save(models / '002.png')
  refused(f'002.png: has {SIZE_PX}x{SIZE_PX + 1} pixels, the table 48x48')
  (tmp_path / '002.png').rename(models / '002.png')
  (models / 'model.obj').write_text(scanned_objects.text(SIDES[::-1]))
  refused('000.png: shows another shape than the mesh')


def test_one_object_alone_is_one_scene(folder):
  assert scenes.scene_folders(folder, TABLE) == [
    folder / 'box',
    folder / 'cube',
  ]
  assert scenes.scene_folders(folder / 'cube', TABLE) == [folder / 'cube']


def without(part):
  """The cube's model.obj without the lines of a kind."""
  lines = scanned_objects.text().splitlines()
  return '\n'.join(line for line in lines if not line.startswith(part))


MODEL = scanned_objects.text()


@pytest.mark.parametrize(
  'content, words',
  [
    ('', 'model.obj: has no faces'),
    (without('f '), 'model.obj: has no faces'),
    (MODEL.replace('v -0.5', 'v nan', 1), 'vertices that are no numbers'),
    (
      MODEL.replace('vt 0.0', 'vt nan', 1),
      'on the texture that are no numbers',
    ),
    (MODEL + 'f 1 2 3\n', '1 of 13 faces have no place on the texture'),
    (MODEL.replace('mtllib', '#'), 'model.obj: names no .mtl'),
    (MODEL.replace('model.mtl', 'other.mtl'), 'other.mtl: no such file'),
    (MODEL.replace('material_0', 'other'), 'model.mtl: .* no texture'),
    (without('usemtl'), 'model.mtl: .* no texture'),
    ('# Faces: 7\n' + MODEL, 'says that it has 7 faces, and has 6'),
    (MODEL[:-9], '1 of 11 faces have no place on the texture'),
    (MODEL[:-11], 'line .* is no line of an .obj file'),
  ],
  ids=lambda value: value[-20:],
)
def test_what_is_malformed_is_named(tmp_path, content, words):
  scanned_objects.write(tmp_path, content=content)
  with pytest.raises(errors.UserError, match=words) as error:
    gso.read(tmp_path, protocol=protocol())
  assert '\n' not in str(error.value)


def refused(folder, words):
  with pytest.raises(errors.UserError, match=words) as error:
    gso.read(folder, protocol=protocol())
  assert '\n' not in str(error.value)


def test_what_is_missing_is_named(tmp_path, monkeypatch):
  refused(tmp_path / 'none', 'no such folder')
  refused(tmp_path, 'no object .* needs meshes/model.obj or model.obj')
  scanned_objects.write(tmp_path / 'a')
  refused(tmp_path, r'holds objects \(a, ...\) and is none; give it as --data')
  texture = tmp_path / 'a' / 'materials' / 'textures' / 'texture.png'
  data = texture.read_bytes()
  texture.write_bytes(b'<html>')
  refused(tmp_path / 'a', 'texture.png: is no picture')
  texture.write_bytes(data[: len(data) // 2])
  views = gso.read(tmp_path / 'a', protocol=protocol()).views
  with pytest.raises(errors.UserError, match='texture.png: '):
    views[0].read()
  texture.unlink()
  refused(
    tmp_path / 'a', 'meshes/texture.png: no such file, nor is it in .*/mat'
  )
  with (tmp_path / 'a' / 'meshes' / 'model.mtl').open('a') as file:
    file.write('newmtl second\nmap_Kd second.png\n')
  path = tmp_path / 'a' / 'meshes' / 'model.obj'
  path.write_text(path.read_text() + 'usemtl second\n')
  refused(tmp_path / 'a', 'second.png, texture.png .* one picture for all')
  # As where the package is not installed.
  monkeypatch.setitem(__import__('sys').modules, 'embreex', None)
  refused(scanned_objects.write(tmp_path / 'b'), 'pip install embreex==')


def test_meshes_are_scored_by_their_command(folder, tmp_path):
  """A cube is right, half of a box is missing."""
  meshes = tmp_path / 'meshes'
  meshes.mkdir()
  half = scanned_objects.box(SIDES * [0.5, 1, 1])
  moved = half.vertices - [0.25, 0, 0]
  trimesh.Trimesh(moved, half.faces, process=False).export(meshes / 'box.ply')
  (meshes / 'cube.obj').write_text(MODEL)
  others = {}
  for name in ('open', 'lacking', 'both', 'more', 'far'):
    others[name] = tmp_path / name
    others[name].mkdir()
    for path in meshes.iterdir():
      (others[name] / path.name).write_bytes(path.read_bytes())
  (others['lacking'] / 'box.ply').rename(others['lacking'] / 'box.stl')
  (others['both'] / 'cube.ply').write_text('')
  (others['more'] / 'ball.ply').write_text('')
  (others['far'] / 'cube.obj').write_text(scanned_objects.text((3, 3, 3)))
  lines = MODEL.splitlines()
  (others['open'] / 'cube.obj').write_text('\n'.join(lines[:-1]) + '\n')
  small = scanned_objects.box(0.1 * SIDES)
  trimesh.Trimesh(*small, process=False).export(others['open'] / 'box.ply')
  table = tmp_path / 'small.toml'
  text = (protocols.__file__.rpartition('/')[0], 'syncdreamer_gso.toml')
  content = pathlib.Path(*text).read_text()
  table.write_text(content.replace('\nsize_px = 256\n', '\nsize_px = 64\n'))
  common = [f'--data={folder}', f'--protocol={table}']
  results = commands.run_all(
    'odin_jax.evaluate_meshes',
    [
      [*common, f'--meshes={place}', f'--output={tmp_path / "out" / name}']
      for name, place in {'all': meshes, **others}.items()
    ]
    + [
      [
        f'--data={folder}',
        '--protocol=zeronvs_dtu',
        f'--meshes={meshes}',
        f'--output={tmp_path / "out" / "dtu"}',
      ]
    ],
    # Once for all command lines.
    setup='from odin_jax import metrics',
  )
  assert [status for status, _ in results[:2]] == [0, 0], results
  content = json.loads((tmp_path / 'out' / 'all' / 'metrics.json').read_text())
  assert content['scenes']['cube'] == {
    'chamfer': 0,
    'volume_iou': 1,
    'f_score': 1,
  }
  assert content['scenes']['box']['volume_iou'] == pytest.approx(0.5, abs=0.02)
  assert content['scenes']['box']['chamfer'] > 0.05
  assert content['not_closed'] == []
  assert content['mean']['volume_iou'] == pytest.approx(0.75, abs=0.01)
  low, high = content['interval_95']['volume_iou']
  assert low < 0.55 and high == 1
  assert [row['line'] for row in content['protocol']['departures']] == [
    'scenes'
  ]
  table = (tmp_path / 'out' / 'all' / 'table.md').read_text()
  assert '| cube | 0.0000 | 1.0000 | 1.000 |' in table
  opened = json.loads((tmp_path / 'out' / 'open' / 'metrics.json').read_text())
  assert opened['not_closed'] == ['cube']
  assert 'not sure where meshes are not closed: cube' in results[1][1]
  assert 'those of the objects: box; were they given in' in results[1][1]
  commands.assert_refused(
    results[2:],
    [
      'lacks box, as .ply or .obj',
      'has both cube.obj and cube.ply',
      'ball.ply: is of no object',
      'cube.obj: reaches 1.5 from the origin',
      'zeronvs_dtu: says nothing of meshes',
    ],
  )


def test_the_table_is_that_of_its_source():
  # HarmonyView, gso_evaluation.sh; eval_mesh.py, get_gt_rotate_angle.
  names = (
    'alarm backpack bell blocks chicken cream elephant grandfather grandmother '
    'hat leather lion lunch_bag mario oil school_bus1 school_bus2 shoe shoe1 '
    'shoe2 shoe3 soap sofa sorter sorting_board stucking_cups teapot toaster '
    'train turtle'
  )
  assert TABLE.scenes == names.split() and len(TABLE.scenes) == 30
  angles = {'sofa': -90.0, 'elephant': 180.0, 'school_bus1': 180.0}
  angles |= dict.fromkeys(('school_bus2', 'shoe', 'train', 'turtle'), 225.0)
  angles |= {'sorter': 112.5}
  three_quarters = (
    'blocks alarm backpack chicken soap grandfather grandmother lion lunch_bag '
    'mario oil'
  )
  angles |= dict.fromkeys(three_quarters.split(), 270.0)
  assert TABLE.rendering['turns_deg'] == [
    -angles.get(name, 0.0) for name in TABLE.scenes
  ]
  # meta_info/camera-16.pkl: K, and the first and fifth of world to camera.
  k = camera.intrinsics(TABLE.rendering['fov_deg'], TABLE.image['size_px'][0])
  np.testing.assert_allclose(k, [[280, 0, 128], [0, 280, 128], [0, 0, 1]])
  poses = [camera.inverse(pose) for _, _, pose in gso.rings(TABLE)]
  root = np.sqrt(3) / 2
  expected = {
    0: [[0, 1, 0, 0], [0.5, 0, -root, 0], [-root, 0, -0.5, 1.5]],
    4: [[-1, 0, 0, 0], [0, 0.5, -root, 0], [0, -root, -0.5, 1.5]],
  }
  for number, pose in expected.items():
    np.testing.assert_allclose(poses[number], pose, atol=1e-12)
  assert len(poses) == TABLE.views['count'] == 16
  assert TABLE.geometry['voxel'] == 0.01 and TABLE.geometry['grid'] == 64


@pytest.mark.parametrize(
  'tables, words',
  [
    ({'rendering': {}}, 'rendering.elevations_deg: a list .* is needed'),
    ({'rendering': TABLE.rendering}, 'rendering.turns_deg: 30 for 0 scenes'),
    ({'image': {}}, 'image.size_px: a list .* is needed'),
    ({'image': {'size_px': [8, 9]}}, 'image.size_px: .* are square'),
    ({'geometry': {'grid': 8}}, 'geometry.size_px: a number .* is needed'),
    ({'geometry': {'grid': 0}}, 'geometry.grid: 0 is no number'),
    ({'benchmark': 'dtu'}, 'rendering, geometry: are of gso alone'),
    ({'rendering': {'distance': 0.8}}, 'rendering.distance: 0.8 is no number'),
    ({'rendering': {'fov_deg': 180}}, 'rendering.fov_deg'),
    ({'rendering': {'background': [0, 0, 256]}}, 'rendering.background'),
    ({'rendering': {'azimuths_deg': []}}, 'rendering.azimuths_deg'),
    ({'rendering': {'azimuths_deg': [1, 1]}}, 'rendering.azimuths_deg'),
    ({'rendering': {'shading': 'lit'}}, "rendering.shading: 'lit' is none of"),
  ],
)
def test_what_no_protocol_of_meshes_may_say_is_named(tables, words):
  with pytest.raises(ValueError, match=words):
    protocol(**tables)
