"""Procedural worlds: the caster against an oracle, truth against pictures."""

import functools
import json
import os
import subprocess
import sys

import av
import cv2
from hypothesis import given, settings
from hypothesis import strategies as st
import numpy as np
import pytest

from configs import preprocess, worlds
from odin_jax.shared import (
  camera,
  depth_png,
  errors,
  panorama_schema,
  record_folder,
  schema,
)
from preprocessing import panorama
from preprocessing.auditing import quality
from preprocessing.procedural import (
  footage,
  raycaster,
  rendering,
  scenes,
  textures,
  true_depth,
  true_pairs,
  walks,
)
from preprocessing.running import pool
from preprocessing.views import alignment
from tests.helpers import commands

_WIDTH, _HEIGHT = 256, 128


@functools.lru_cache
def world(name, seed=3):
  return scenes.build_world(
    name, np.random.default_rng(seed), seconds=6.0, texel_per_m=30.0
  )


def look(place, frame2world, time_s=0.0, width=_WIDTH, height=_HEIGHT):
  """Panorama, distance and surface from any pose."""
  rays = raycaster.rotate(
    frame2world[:, :3], raycaster.panorama_rays(width, height)
  )
  hits = place.scene.cast(frame2world[:, 3], rays, time_s)
  image = place.scene.paint(
    frame2world[:, 3], rays, hits, time_s, pixel_rad=np.pi / height
  )
  return image, hits


def psnr(a, b):
  return 10 * np.log10(255**2 / np.mean((a.astype(float) - b) ** 2))


def oracle(bodies, origin, ray, time_s):
  """Distance to the first surface, ray by ray and plane by plane."""
  best = np.inf
  for body in bodies:
    start = origin - body.centre_at(time_s)
    if body.is_sphere:
      roots = np.roots(
        [1, 2 * start @ ray, start @ start - body.half_m[0] ** 2]
      )
      crossings = [root.real for root in roots if abs(root.imag) < 1e-12]
    else:
      turn = camera.rotation_y(-body.yaw_rad)
      local, along = turn @ start, turn @ ray
      crossings = []
      for axis in range(3):
        for sign in (-1, 1):
          t = (sign * body.half_m[axis] - local[axis]) / along[axis]
          point = np.delete(local + t * along, axis)
          if np.all(np.abs(point) <= np.delete(body.half_m, axis)):
            crossings.append(t)
    best = min([best, *(t for t in crossings if t > 0)])
  return best


def random_bodies(rng):
  """A room with boxes and spheres, some of them moving, none at the origin."""
  face = raycaster.Face(0)
  bodies = [
    raycaster.Body(
      centre=rng.uniform(-0.5, 0.5, 3),
      half_m=rng.uniform(5, 8, 3),
      faces=(face,) * 6,
      inside=True,
      yaw_rad=rng.uniform(0, 1),
    )
  ]
  for _ in range(6):
    away = rng.normal(size=3)
    half = rng.uniform(0.1, 0.7, 3)
    sphere = rng.uniform() < 0.5
    bodies.append(
      raycaster.Body(
        centre=away / np.linalg.norm(away) * rng.uniform(2.2, 4),
        half_m=np.full(3, half[0]) if sphere else half,
        faces=(face,) if sphere else (face,) * 6,
        yaw_rad=rng.uniform(0, 6),
        sway_m=rng.uniform(-0.5, 0.5, 3),
        sway_rad_per_s=rng.uniform(0, 2),
      )
    )
  return bodies


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 2**31))
def test_distances_equal_those_of_a_slow_oracle(seed):
  rng = np.random.default_rng(seed)
  bodies = random_bodies(rng)
  atlas = textures.build_atlas([np.zeros((8, 8, 3), np.uint8)])
  scene = raycaster.Scene(
    bodies, atlas, light=np.array([0.1, -1.0, 0.2]), ambient=0.5
  )
  rays = rng.normal(size=(17, 19, 3))
  rays = (rays / np.linalg.norm(rays, axis=-1, keepdims=True)).astype(
    np.float32
  )
  origin, time_s = rng.uniform(-0.5, 0.5, 3), rng.uniform(0, 5)
  hits = scene.cast(origin, rays, time_s)
  chosen = rng.integers((17, 19), size=(40, 2))
  wrong = 0
  for row, column in chosen:
    ray = rays[row, column].astype(np.float64)
    truth = oracle(bodies, origin, ray, time_s)
    wrong += abs(hits.distance[row, column] - truth) > 1e-4 * truth
  # A ray that grazes an edge may fall on either side of it.
  assert wrong <= 1


@pytest.mark.parametrize('inside', [False, True])
@pytest.mark.parametrize('face', range(6))
def test_every_face_shows_its_own_texture_the_right_way_round(face, inside):
  # Texture i: blue tells i, red grows to the right and green downwards.
  ramp = np.linspace(20, 235, 64)
  pictures = [
    np.stack(np.broadcast_arrays(ramp, ramp[:, None], 40 * i), -1)
    for i in range(6)
  ]
  atlas = textures.build_atlas([p.astype(np.uint8) for p in pictures])
  faces = tuple(raycaster.Face(i) for i in range(6))
  cube = raycaster.Body(
    centre=np.zeros(3), half_m=np.ones(3), faces=faces, inside=inside
  )
  far = raycaster.Body(
    centre=np.zeros(3), half_m=np.full(3, 50.0), faces=faces, inside=True
  )
  scene = raycaster.Scene(
    [cube, far], atlas, light=np.array([0.0, -1.0, 0.0]), ambient=1.1
  )
  outward = np.zeros(3)
  outward[face // 2] = 1 if face % 2 else -1
  looking = outward if inside else -outward
  origin = np.zeros(3) if inside else 3 * outward
  yaw, pitch = camera.yaw_pitch_deg(looking)
  rays = panorama.view_directions(
    yaw_deg=yaw, pitch_deg=pitch, fov_deg=20.0, size_px=32
  )
  rays /= np.linalg.norm(rays, axis=-1, keepdims=True)
  rays = rays.astype(np.float32)
  hits = scene.cast(origin, rays, 0.0)
  image = scene.paint(origin, rays, hits, 0.0, pixel_rad=0.01).astype(float)
  assert np.all(hits.surface == face)
  brightness = 1.1
  assert abs(image[..., 2].mean() - min(brightness * 40 * face, 255)) < 3
  if face // 2 != 1:
    assert np.all(np.diff(image[..., 0].mean(0)) > 0)
    assert np.all(np.diff(image[..., 1].mean(1)) > 0)


def test_what_faces_straight_away_from_the_light_has_the_ambient_shade():
  # Float32 normals are longer than 1 by rounding in about half of the pixels.
  light = np.array([0.3, -0.9, 0.2]) / np.linalg.norm([0.3, -0.9, 0.2])
  face = raycaster.Face(0)
  bodies = [
    raycaster.Body(centre=3 * light, half_m=np.ones(3), faces=(face,)),
    raycaster.Body(
      centre=np.zeros(3), half_m=np.full(3, 9.0), faces=(face,) * 6, inside=True
    ),
  ]
  atlas = textures.build_atlas([np.full((8, 8, 3), 200, np.uint8)])
  scene = raycaster.Scene(bodies, atlas, light=light, ambient=0.5)
  rays = light + 1e-4 * np.random.default_rng(0).normal(size=(32, 32, 3))
  rays /= np.linalg.norm(rays, axis=-1, keepdims=True)
  rays = rays.astype(np.float32)
  hits = scene.cast(np.zeros(3), rays, 0.0)
  with np.errstate(invalid='raise'):
    image = scene.paint(np.zeros(3), rays, hits, 0.0, pixel_rad=0.01)
  assert np.all(hits.surface == 0) and np.all(image == 100)


def test_tiles_outside_a_body_cone_lose_nothing():
  place = world('unique_outdoor')
  pose = place.walk.frame2world(1.0)
  _, hits = look(place, pose, 1.0, 64, 32)
  rays = raycaster.rotate(pose[:, :3], raycaster.panorama_rays(64, 32))
  # One ray at a time: every tile is one direction, every cone is a line.
  for row, column in np.random.default_rng(0).integers((32, 64), size=(60, 2)):
    alone = place.scene.cast(
      pose[:, 3], rays[row : row + 1, column : column + 1], 1.0
    )
    assert alone.surface[0, 0] == hits.surface[row, column]


@pytest.mark.parametrize('name', scenes.KINDS)
def test_colours_follow_depth_and_pose_into_another_frame(name):
  place = world(name)
  poses = [place.walk.frame2world(t) for t in (2.0, 2.6)]
  images, hits = zip(
    *(look(place, pose, t) for pose, t in zip(poses, (2.0, 2.6)))
  )
  rays = raycaster.panorama_rays(_WIDTH, _HEIGHT).astype(np.float64)
  points = rays * hits[0].distance[..., None]
  a2b = camera.relative(poses[1], poses[0])
  moved = camera.transform(a2b, points.reshape(-1, 3))
  u, v = camera.direction_to_equirect(moved, _WIDTH, _HEIGHT)
  column, row = u.astype(int) % _WIDTH, np.minimum(v.astype(int), _HEIGHT - 1)
  moves = place.scene.surface_moves
  surface = hits[0].surface.ravel(), hits[1].surface[row, column]
  distance = hits[1].distance[row, column]
  away = np.linalg.norm(moved, axis=1)
  static = ~moves[surface[0]] & ~moves[surface[1]]
  static &= np.abs(distance - away) < 0.02 * away
  # Nearest pixels: compare with what half a pixel of texture can change.
  colours = images[0].reshape(-1, 3), images[1][row, column]
  error = np.abs(colours[0].astype(float) - colours[1]).mean(-1)
  assert static.mean() > 0.6
  assert np.median(error[static]) < 8
  wrong = np.abs(colours[0].astype(float) - np.roll(colours[1], 7, 0)).mean(-1)
  assert np.median(wrong[static]) > 2 * np.median(error[static])


def test_what_moves_is_marked_and_nothing_else():
  place = world('unique_outdoor')
  pose = place.walk.frame2world(0.0)
  # The camera stands still while time goes on.
  first, before = look(place, pose, 0.0)
  second, after = look(place, pose, 1.5)
  moves = place.scene.surface_moves
  marked = moves[before.surface] | moves[after.surface]
  changed = (first != second).any(-1)
  assert moves[before.surface].any()
  assert not (changed & ~marked).any()
  # What moved by a metre and more looks different almost everywhere.
  assert changed[marked].mean() > 0.5


def test_bays_of_the_repeated_corridor_are_identical():
  place = world('repeated_corridor')
  doors = [body for body in place.scene.bodies if body.half_m[1] == 1.05]
  period = doors[2].centre[2] - doors[0].centre[2]
  assert 2.0 < period < 3.1
  here = place.walk.frame2world(2.0)
  there = here + np.array([[0, 0, 0, 0], [0, 0, 0, 0], [0, 0, 0, period]])
  between = here + np.array(
    [[0, 0, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0.4 * period]]
  )
  image, hits = look(place, here)
  again, _ = look(place, there)
  other, _ = look(place, between)
  near = hits.distance < 6
  assert psnr(image[near], again[near]) > 40
  assert psnr(image[near], other[near]) < 20


def test_unique_corridors_have_no_period():
  place = world('unique_corridor')
  here = place.walk.frame2world(1.0)
  image, _ = look(place, here, width=128, height=64)
  for shift in np.arange(1.0, 5.0, 0.5):
    there = here.copy()
    there[2, 3] += shift
    assert psnr(image, look(place, there, width=128, height=64)[0]) < 22


@pytest.mark.parametrize('angles', [(0.0, 0.0), (180.0, 5.0), (70.0, -80.0)])
def test_a_cut_view_equals_a_view_that_is_cast(angles):
  place = world('unique_room')
  pose = place.walk.frame2world(1.0)
  image, _ = look(place, pose, 1.0, 1024, 512)
  cut = panorama.cut_view(
    image, yaw_deg=angles[0], pitch_deg=angles[1], fov_deg=80.0, size_px=96
  )
  cast = rendering.render_view(
    place, 1.0, alignment.Angles(*angles), fov_deg=80.0, size_px=96
  )
  assert psnr(cut, cast) > 29


@pytest.mark.parametrize('name', scenes.KINDS)
def test_the_walk_is_a_walk(name):
  place = world(name)
  times = np.arange(0, 6, 0.2)
  poses = np.stack([place.walk.frame2world(t) for t in times])
  centres = poses[..., 3]
  speed = np.linalg.norm(np.diff(centres[::5], axis=0), axis=1)
  assert 0.85 < speed.min() and speed.max() < 1.55
  assert np.all((-centres[:, 1] > 1.4) & (-centres[:, 1] < 1.8))
  turn = camera.rotation_angle_deg(
    np.swapaxes(poses[:-1, :, :3], -1, -2) @ poses[1:, :, :3]
  )
  assert 0 < turn.max() < 15
  # Down stays down within the shake.
  assert np.rad2deg(np.arccos(poses[:, 1, 1])).max() < 6
  for time_s, pose in zip(times[::3], poses[::3]):
    _, hits = look(place, pose, time_s, 64, 32)
    assert hits.distance.min() > 0.2


def test_shake_is_small_and_smooth():
  shake = walks.random_shake(np.random.default_rng(0))
  values = np.stack([shake.at(t) for t in np.arange(0, 60, 0.02)])
  assert np.all(np.abs(values[:, :3]) < 0.08)
  assert 0.3 < np.rad2deg(values[:, 3:].std(0)).min()
  assert np.rad2deg(np.abs(values[:, 3:])).max() < 3.5


@functools.lru_cache
def atlas_of_gradients():
  ramp = np.linspace(0, 255, 64).astype(np.uint8)
  gradient = np.stack(np.broadcast_arrays(ramp, ramp[:, None], 128), -1)
  return textures.build_atlas([gradient.astype(np.uint8)] * 2)


def test_every_level_of_the_atlas_holds_the_same_picture():
  atlas = atlas_of_gradients()
  for index in range(2):
    for level in range(atlas.num_levels):
      x, y = atlas.origin[index, level].astype(int)
      width, height = atlas.size[index, level].astype(int)
      cell = atlas.image[y : y + height, x : x + width].astype(float)
      middle = (np.arange(width) + 0.5) / width * 255
      assert np.abs(cell[:, :, 0].mean(0) - middle).max() < 6
      assert np.abs(cell[:, :, 1].mean(1) - middle).max() < 6


def test_textures_are_periodic():
  noise = textures.fractal_noise(
    np.random.default_rng(0), 64, 96, coarsest_px=32.0
  )
  inner = np.abs(np.diff(noise, axis=1)).mean()
  assert np.abs(noise[:, 0] - noise[:, -1]).mean() < 1.5 * inner
  assert np.abs(noise[0] - noise[-1]).mean() < 1.5 * inner


def test_jobs_keep_their_order_and_their_errors():
  more = {'num_workers': 2, 'steps': 3, 'unit': 'job'}
  assert pool.run(int, ['3', '1', '2'], **more) == [3, 1, 2]
  with pytest.raises(ValueError, match='one'):
    pool.run(int, ['one', *'23456'], **more)


@pytest.fixture(scope='module')
def command(tmp_path_factory, repository):
  folder = tmp_path_factory.mktemp('worlds')

  def run(name, *arguments):
    done = subprocess.run(
      [
        sys.executable,
        '-m',
        'preprocessing.worlds',
        f'--output={folder / name}',
      ]
      + list(arguments),
      capture_output=True,
      text=True,
      cwd=repository,
      env={**os.environ, 'OMP_NUM_THREADS': '1'},
    )
    return folder / name, done

  return run


_SMALL = ('--seconds=1', '--width=128', '--height=64', '--seed=5')


@pytest.fixture(scope='module')
def videos(command):
  folder, done = command('videos', '--num_worlds=2', *_SMALL)
  assert done.returncode == 0, done.stderr
  return folder


def test_videos_show_what_the_truth_says(videos):
  names = sorted(path.stem for path in videos.glob('*.mp4'))
  assert names == ['000_unique_room', '001_repeated_corridor']
  for index, name in enumerate(names):
    truth = np.load(videos / f'{name}.truth.npz')
    assert str(truth['kind']) == name.split('_')[1]
    assert truth['time_s'].tolist() == [0.0, 0.2, 0.4, 0.6, 0.8]
    assert truth['frame2world'].shape == (5, 3, 4)
    assert truth['depth'].shape == truth['moving'].shape == (5, 96, 192)
    assert truth['depth'].dtype == np.float32
    assert truth['moving'].dtype == bool
    place = footage.make_world(
      list(scenes.KINDS), index, seed=5, seconds=1.0, px_per_rad=64 / np.pi
    )
    with av.open(str(videos / f'{name}.mp4')) as file:
      assert file.streams.video[0].average_rate == 30
      frames = [f.to_ndarray(format='rgb24') for f in file.decode(video=0)]
    assert len(frames) == 30
    for k, frame in enumerate(frames):
      # Each picture is held from k / 5 on, for a fifth of a second.
      image, hits = look(
        place, truth['frame2world'][k // 6], truth['time_s'][k // 6], 128, 64
      )
      assert psnr(image, frame) > 28
    # The distances of the last picture, where both have pixel centres.
    _, hits = look(
      place, truth['frame2world'][-1], truth['time_s'][-1], 192, 96
    )
    assert np.array_equal(hits.distance, truth['depth'][-1])


def test_same_seed_same_bytes_whatever_the_number_of_worlds(videos, command):
  again, done = command('again', '--num_worlds=1', '--num_workers=1', *_SMALL)
  assert done.returncode == 0, done.stderr
  for name in ('000_unique_room.mp4', '000_unique_room.truth.npz'):
    assert (again / name).read_bytes() == (videos / name).read_bytes()


def test_a_finished_world_stays_and_other_flags_are_refused(videos, command):
  before = (videos / '000_unique_room.mp4').stat().st_mtime_ns
  (videos / '001_repeated_corridor.mp4').unlink()
  _, done = command('videos', '--num_worlds=2', *_SMALL)
  assert done.returncode == 0, done.stderr
  assert (videos / '000_unique_room.mp4').stat().st_mtime_ns == before
  assert (videos / '001_repeated_corridor.mp4').is_file()
  _, done = command('videos', '--num_worlds=2', *_SMALL[:-1], '--seed=6')
  assert done.returncode == 2
  assert len(done.stderr.splitlines()) == 1


def test_pairs_do_not_go_among_videos(videos, command):
  _, done = command('videos', '--num_worlds=1', '--pairs=2', '--seconds=1')
  assert done.returncode == 2
  assert 'holds videos' in done.stderr


def test_views_of_worlds_are_chosen_as_those_of_videos_with_fewer_tries():
  rules = preprocess.get_config().views
  rules.num_tries = 8
  assert worlds.get_config().views == rules


def test_how_views_are_chosen_can_be_set(command):
  pairs = ('--num_worlds=1', '--seconds=2', '--pairs=2', '--view_px=32')
  folder, done = command('rules', *pairs, '--config.views.min_points=999999')
  assert done.returncode == 0, done.stderr
  rows = (folder / 'ledger.jsonl').read_text().splitlines()
  assert [json.loads(row)['reason'] for row in rows] == [
    'too few points in the source view'
  ]


def test_flags_that_would_change_nothing_are_refused(tmp_path):
  output = tmp_path / 'worlds'
  refused = [
    (['--pairs=2', '--config.views.min_point=1'], 'min_point'),
    (['--pairs=2', '--config=configs/evaluate.py'], 'configs/worlds.py'),
    (['--pairs=2', '--config=configs/preprocess.py'], 'configs/worlds.py'),
    (['--pairs=2', '--config.views.max_masked_share=2.0'], 'max_masked_share'),
    (['--pairs=2', '--width=128'], '--width'),
    (['--config.views.max_turn_deg=45.0'], '--config.views: only with --pairs'),
    (['--view_px=64'], '--view_px: only with --pairs'),
    (['--panorama_px=64'], '--panorama_px: only with --pairs'),
    (['--pairs=2', '--panorama_px=63'], '--panorama_px: must be even'),
    (['--test_fraction=0.5'], '--test_fraction: only with --pairs'),
  ]
  lines = [[f'--output={output}', *arguments] for arguments, _ in refused]
  results = commands.run_all('preprocessing.worlds', lines)
  commands.assert_refused(results, [[words] for _, words in refused])
  assert not output.exists()


def crowded(kind, movers, *, seconds=1.0, px_per_rad=64 / np.pi):
  return footage.make_world(
    [kind],
    0,
    seed=5,
    seconds=seconds,
    px_per_rad=px_per_rad,
    movers=movers,
  )


def count_movers(place):
  return sum(body.moves for body in place.scene.bodies)


def test_as_many_things_move_as_were_asked_for():
  assert count_movers(crowded('unique_room', 0)) == 0
  assert count_movers(crowded('unique_outdoor', 5)) == 5
  # As far as there is room for them.
  assert 3 < count_movers(crowded('unique_room', 200)) < 200
  with pytest.raises(ValueError, match='unique_room, unique_outdoor'):
    crowded('repeated_corridor', 1)


_CROWDED = ('--num_worlds=1', '--kinds=unique_room', '--movers=20', '--seed=5')


def test_videos_have_the_movers(command):
  folder, done = command('crowd', *_CROWDED, *_SMALL)
  assert done.returncode == 0, done.stderr
  moving = np.load(folder / '000_unique_room.truth.npz')['moving']
  times_s = footage.picture_times_s(1.0)
  few, true = (
    footage.truth(crowded('unique_room', movers), times_s)['moving']
    for movers in (None, 20)
  )
  assert np.array_equal(moving, true)
  assert not np.array_equal(few, true)


def test_pairs_have_the_movers(command):
  folder, done = command(
    'crowded_pairs',
    *(*_CROWDED, '--seconds=4', '--pairs=1'),
    *('--view_px=48', '--test_fraction=1', '--depth_px=48'),
    '--panorama_px=128',
  )
  assert done.returncode == 0, done.stderr
  record = record_folder.RecordFolder(folder, 'test')[0]
  panoramas = record_folder.RecordFolder(
    folder / panorama_schema.FOLDER, 'test', panorama_schema.PANORAMAS
  )
  assert f'{len(panoramas)} panoramas' in done.stdout and len(panoramas) == 5
  pose_at = {kept['time_s']: kept['frame2scene'] for kept in panoramas}
  for side in ('source', 'target'):
    np.testing.assert_array_equal(
      pose_at[record[f'{side}/time_s']], record[f'{side}/frame2scene']
    )
  jpeg = np.frombuffer(record['target/image'], np.uint8)
  shown = cv2.imdecode(jpeg, cv2.IMREAD_COLOR)[..., ::-1]
  of_target = {
    'time_s': record['target/time_s'],
    'angles': alignment.Angles(
      record['target/yaw_deg'], record['target/pitch_deg']
    ),
    'fov_deg': 90.0,
    'size_px': 48,
  }
  few, true = (
    crowded('unique_room', movers, seconds=4.0, px_per_rad=48.0)
    for movers in (None, 20)
  )
  assert psnr(shown, rendering.render_view(true, **of_target)) > 28
  assert psnr(shown, rendering.render_view(few, **of_target)) < 28
  # Depth has them too, where they are at that time.
  depth = depth_png.decode(record['target/depth'])
  few_m, true_m = (
    true_depth.view(place, **of_target).depth_m for place in (few, true)
  )
  unit_m = np.median(true_m / depth)
  np.testing.assert_allclose(true_m, depth * unit_m, rtol=_DEPTH_STEP)
  assert np.mean(np.abs(few_m / (depth * unit_m) - 1) > 0.1) > 0.02


def test_movers_in_a_corridor_are_refused(command):
  _, done = command('corridor', '--movers=3', *_SMALL)
  assert done.returncode == 2
  assert '--kinds=unique_room,unique_outdoor' in done.stderr
  assert len(done.stderr.splitlines()) == 1


def test_a_stranger_folder_is_refused(command, tmp_path):
  (tmp_path / 'thesis.txt').write_text('mine')
  _, done = command(tmp_path, *_SMALL)
  assert done.returncode == 2
  assert 'thesis.txt' in done.stderr
  assert (tmp_path / 'thesis.txt').read_text() == 'mine'


_PAIRS = ('--pairs=6', '--view_px=48', '--seconds=8', '--seed=2')
_PAIRS += ('--depth_px=24',)
# Between two values that a map of depth in a record can have.
_DEPTH_STEP = 2 ** (1 / 2048) - 1


@pytest.fixture(scope='module')
def pairs(command):
  folder, done = command(
    'pairs', '--num_worlds=4', *_PAIRS, '--test_fraction=1'
  )
  assert done.returncode == 0, done.stderr
  return folder


def test_pairs_are_records_with_true_poses(pairs):
  folder = record_folder.RecordFolder(pairs, 'test')
  assert len(folder) == 24
  assert not list(pairs.glob('*train*'))
  for record in folder:
    assert record['matcher'] == 'procedural'
    assert 1 <= abs(record['source/time_s'] - record['target/time_s']) <= 5
    assert record['overlap'] >= 0.2
    rotation, translation = quality.pose_inconsistency(record)
    assert rotation < 1e-4 and translation < 1e-5
  manifest = json.loads((pairs / 'manifest.json').read_text())
  assert manifest['counts']['test'] == 24
  place = footage.make_world(
    list(scenes.KINDS), 0, seed=2, seconds=8.0, px_per_rad=48.0
  )
  of_place = [r for r in folder if r['video_id'] == folder[0]['video_id']]
  depths = [record['median_depth'] for record in of_place]
  assert np.isclose(np.median(depths), 1.0, rtol=1e-5)
  units_per_m = []
  for record in of_place:
    component = quality.gather_components([record])[0]
    errors = quality.pose_errors(
      component, footage.truth(place, np.arange(9.0), width=16, height=8)
    )
    assert errors['rotation_deg'].max() < 1e-4
    assert errors['direction_deg'].max() < 1e-3
    units_per_m += errors['units_per_m'].tolist()
  assert np.allclose(units_per_m, units_per_m[0], rtol=1e-4)


def check_median_depth(place, record, side, median_depth_m):
  """Half of what stands still in a view is nearer, as the view itself says."""
  rays = camera.view_rays(record['fov_deg'], 40)
  along_axis = rays[..., 2] / np.linalg.norm(rays, axis=-1)
  view = true_depth.view(
    place,
    record[f'{side}/time_s'],
    alignment.Angles(record[f'{side}/yaw_deg'], record[f'{side}/pitch_deg']),
    fov_deg=record['fov_deg'],
    size_px=40,
  )
  distance = view.depth_m / along_axis
  # The sky is farther away than all else.
  counts = ~view.moves & (distance < 100)
  nearer = (distance < median_depth_m)[counts].mean()
  assert abs(nearer - 0.5) < 0.05


def check_depth_in_records(place, records):
  """It is what `preprocessing.true_depth` renders, in the units of the poses."""
  poses = {}
  for record in records:
    poses.update(true_depth.poses(record))
  unit_m = true_depth.metres_per_unit(place, poses)
  for record in records:
    source, target = (
      depth_png.decode(record[f'{side}/depth']) for side in ('source', 'target')
    )
    truth = true_depth.depths(place, record, unit_m, 24)
    for side, name in zip(true_depth.SIDES, schema.MEDIAN_DEPTHS, strict=True):
      check_median_depth(place, record, side, record[name] * unit_m)
    np.testing.assert_allclose(source, truth.source_depth, rtol=_DEPTH_STEP)
    np.testing.assert_allclose(target, truth.target_depth, rtol=_DEPTH_STEP)


def test_worlds_of_pairs_are_built_again(pairs):
  of_world = {}
  for record in record_folder.RecordFolder(pairs, 'test'):
    of_world.setdefault(record['video_id'], []).append(record)
  assert len(of_world) == 4
  for video_id, records in of_world.items():
    again = true_pairs.rebuild_world(pairs, video_id)
    assert true_depth.likeness_db(again, records[0]) > 30
    check_depth_in_records(again, records)
  for video_id in ('3_00000_unique_room', '2_00001_unique_room', 'walk'):
    with pytest.raises(errors.UserError, match=video_id):
      true_pairs.rebuild_world(pairs, video_id)


def test_pairs_draw_their_field_of_view(command):
  lenses = ('--fov_deg=40', '--max_fov_deg=100')
  folder, done = command(
    'lenses', '--num_worlds=1', *_PAIRS, *lenses, '--test_fraction=1'
  )
  assert done.returncode == 0, done.stderr
  records = list(record_folder.RecordFolder(folder, 'test'))
  drawn = [record['fov_deg'] for record in records]
  assert len(records) == 6 and len(set(drawn)) >= 3
  assert min(drawn) >= 40 and max(drawn) <= 100
  assert max(drawn) - min(drawn) > 15
  # Views, depths and what they overlap by are of that field of view.
  place = true_pairs.rebuild_world(folder, records[0]['video_id'])
  check_depth_in_records(place, records)
  for record in records:
    # JPEG alone; 15 where they are of another.
    assert true_depth.likeness_db(place, record) > 27
    assert quality.pose_inconsistency(record)[0] < 1e-4


def test_the_widest_view_is_not_narrower_than_the_narrowest(command):
  _, done = command('lens', *_PAIRS, '--max_fov_deg=60')
  assert done.returncode == 2
  assert '--max_fov_deg=60: less than --fov_deg=90' in done.stderr
  _, done = command('lens', '--max_fov_deg=95')
  assert done.returncode == 2
  assert '--max_fov_deg: only with --pairs=N' in done.stderr


def test_a_world_does_not_depend_on_how_many_there_are(pairs, command):
  few, done = command('few', '--num_worlds=1', *_PAIRS, '--test_fraction=1')
  assert done.returncode == 0, done.stderr
  name = 'parts/2_00000_unique_room.part'
  assert (few / name).read_bytes() == (pairs / name).read_bytes()


def test_the_gauge_makes_the_median_distance_one():
  place = world('unique_room')
  frames = [true_pairs.observe(place, float(t)) for t in range(4)]
  unit_m = true_pairs.gauge_m(frames)
  distance, weight = [], []
  for frame in frames:
    _, hits = look(place, frame.frame2world, frame.time_s, 192, 96)
    static = ~place.scene.surface_moves[hits.surface]
    rays = raycaster.panorama_rays(192, 96)
    distance.append(hits.distance[static] / unit_m)
    weight.append(np.hypot(rays[..., 0], rays[..., 2])[static])
  distance, weight = np.concatenate(distance), np.concatenate(weight)
  # Sampled evenly over the sphere, half of the points are nearer than one.
  assert abs(weight[distance < 1].sum() / weight.sum() - 0.5) < 0.02
