"""Exported cameras, points and pictures, read as other tools read them.

A room of known colour is filmed: whatever convention a file follows, the ray
of a pixel, cast into the room, has to hit the colour of that pixel.
"""

import dataclasses
import json
import pathlib
import struct

import cv2
import numpy as np
import pytest
from scipy.spatial.transform import Rotation
import trimesh

from odin_jax.benchmarks import mipnerf360
from odin_jax.benchmarks import nerfstudio as nerfstudio_reader
from odin_jax.geometry import equirectangular_frames
from odin_jax.shared import camera
from preprocessing.exporting import cameras, exports, sensors
from preprocessing.solving import bundle_adjustment, masks, solver
from tests.helpers import default_rules, room_views

pycolmap = pytest.importorskip('pycolmap')

ROOM = room_views.Room(waves=12, max_frequency=6.0)
# Not twice as wide as high, as real videos are.
WIDTH, HEIGHT = 320, 162
NOISE_RAD = 1e-3
RULES = default_rules.export_rules(view_size_px=48)


def settings(formats, rules=RULES):
  return exports.Settings(formats=tuple(formats), rules=rules)


# Frames of the path: two components, and one frame without a pose.
COMPONENT = np.array([0, 0, -1, 1, 0, 1])
# JPEG and interpolation, of 255.
TOLERANCE = 12


def hit(origin, rays):
  """Where rays from inside the room meet its walls."""
  with np.errstate(divide='ignore'):
    walls = (np.sign(rays) * ROOM.half - origin) / rays
  return origin + rays * walls.min(-1)[..., None]


def colour(origin, rays):
  return ROOM.colour(hit(origin, rays)) * 255


def frame2room(frame):
  rng = np.random.default_rng(frame)
  turn = Rotation.from_rotvec(rng.normal(scale=0.2, size=3)).as_matrix()
  return camera.make_pose(turn, rng.uniform(-0.3, 0.3, 3))


def room2scene(component):
  """Components have axes, origin and scale of their own."""
  rng = np.random.default_rng(100 + component)
  return (
    Rotation.from_rotvec(rng.normal(size=3)).as_matrix(),
    rng.normal(size=3),
    1.5 + component,
  )


def to_scene(component, points):
  rotation, shift, scale = room2scene(component)
  return scale * points @ rotation.T + shift


def to_room(component, points):
  rotation, shift, scale = room2scene(component)
  return (points - shift) @ rotation / scale


def rays_to_room(component, rays):
  return rays @ room2scene(component)[0]


def render(frame):
  u, v = camera.pixel_centres(WIDTH, HEIGHT)
  rays = camera.equirect_to_direction(u, v, WIDTH, HEIGHT)
  pose = frame2room(frame)
  picture = colour(pose[:, 3], rays @ pose[:, :3].T)
  return np.rint(picture).astype(np.uint8)


@pytest.fixture(scope='module')
def pictures():
  return [render(frame) for frame in range(len(COMPONENT))]


@pytest.fixture(scope='module')
def path():
  """The true path; every frame sees most points of its component."""
  rng = np.random.default_rng(0)
  per_component = 80
  in_room = hit(np.zeros(3), rng.normal(size=(2 * per_component, 3)))
  owner = np.repeat([0, 1], per_component)
  points = np.where(
    owner[:, None] == 0, to_scene(0, in_room), to_scene(1, in_room)
  )
  frame2scene = np.full((len(COMPONENT), 3, 4), np.nan)
  rows = []
  for frame, component in enumerate(COMPONENT):
    if component < 0:
      continue
    pose = frame2room(frame)
    rotation = room2scene(component)[0] @ pose[:, :3]
    frame2scene[frame] = camera.make_pose(
      rotation, to_scene(component, pose[:, 3])
    )
    shown = np.flatnonzero((owner == component) & (rng.uniform(size=160) < 0.8))
    local = camera.transform(camera.inverse(frame2scene[frame]), points[shown])
    local /= np.linalg.norm(local, axis=1, keepdims=True)
    local += rng.normal(scale=NOISE_RAD, size=local.shape)
    local /= np.linalg.norm(local, axis=1, keepdims=True)
    rows += [(frame, *row) for row in zip(shown, local)]
  return cameras.CameraPath(
    video_id='room',
    times_s=np.arange(len(COMPONENT)) * 0.5,
    component=COMPONENT,
    frame2scene=frame2scene,
    # One point more, which nothing saw.
    points=np.vstack([points, np.full((1, 3), np.nan)]),
    observations=bundle_adjustment.Observations(
      frame=np.array([row[0] for row in rows]),
      point=np.array([row[1] for row in rows]),
      ray=np.array([row[2] for row in rows]),
      noise_rad=np.full(len(rows), NOISE_RAD),
    ),
    mask=masks.below(50.0),
  )


@pytest.fixture(scope='module')
def exported(tmp_path_factory, path, pictures):
  folder = tmp_path_factory.mktemp('cameras') / 'room'
  exports.write(folder, path, pictures.__getitem__, settings(exports.FORMATS))
  return folder


def read_rgb(file):
  return cv2.imread(str(file))[..., ::-1].astype(float)


def sample(picture, pixels):
  """Bilinear, with pixel centres at + 0.5."""
  maps = (np.asarray(pixels) - 0.5).astype(np.float32)[:, None]
  border = cv2.BORDER_REPLICATE
  return cv2.remap(picture, maps, None, cv2.INTER_LINEAR, borderMode=border)[
    :, 0
  ]


def check_picture(picture, truth):
  """Of the right colours, and not shifted by any part of a pixel."""
  assert picture.shape == truth.shape
  off = picture - truth
  # Where walls meet, JPEG rounds more.
  assert np.quantile(np.abs(off), 0.99) < TOLERANCE
  down, right = np.gradient(truth, axis=(0, 1))
  gradients = np.stack([right.ravel(), down.ravel()], axis=1)
  shift_px = np.linalg.lstsq(gradients, -off.ravel(), rcond=None)[0]
  assert np.abs(shift_px).max() < 0.1


LAYOUTS = ['.', 'perspective']
# COLMAP's number of it.
PINHOLE = 1
MODELS = [(layout, number) for layout in LAYOUTS for number in (0, 1)]


def model_of(exported, layout, number):
  return pycolmap.Reconstruction(exported / layout / 'sparse' / str(number))


@pytest.mark.parametrize(('layout', 'number'), MODELS)
def test_colmap_rays_hit_the_colours_of_their_pixels(exported, layout, number):
  model = model_of(exported, layout, number)
  assert model.is_valid()
  for image in model.images.values():
    picture = read_rgb(exported / layout / 'images' / image.name)
    size = image.camera.width, image.camera.height
    pixels = np.stack(camera.pixel_centres(*size), axis=-1).reshape(-1, 2)
    rays = np.array(image.camera.cam_ray_from_img(pixels))
    rotation = image.cam_from_world().rotation.matrix()
    truth = colour(
      to_room(number, image.projection_center()),
      rays_to_room(number, rays @ rotation),
    )
    check_picture(picture, truth.reshape(*size[::-1], 3))


def read_as_splatting_does(folder):
  """Cameras and images of a binary model, by the layout that 3DGS reads.

  `read_intrinsics_binary` and `read_extrinsics_binary` in
  https://github.com/graphdeco-inria/gaussian-splatting/blob/main/scene/colmap_loader.py;
  gsplat's reader knows the same cameras.
  """
  data, place = (folder / 'cameras.bin').read_bytes(), 0

  def take(form):
    nonlocal place
    values = struct.unpack_from('<' + form, data, place)
    place += struct.calcsize('<' + form)
    return values

  found, images = {}, {}
  for _ in range(take('Q')[0]):
    number, model, width, height = take('iiQQ')
    # Others have other numbers of parameters, and what follows is misread.
    if model != PINHOLE:
      raise KeyError(model)
    found[number] = (width, height, take('4d'))
  assert place == len(data)
  data, place = (folder / 'images.bin').read_bytes(), 0
  for _ in range(take('Q')[0]):
    _, *pose, number = take('i7di')
    end = data.index(b'\0', place)
    name, place = data[place:end].decode(), end + 1
    take(f'{24 * take("Q")[0]}x')
    images[name] = np.array(pose), found[number]
  assert place == len(data)
  return images


def test_splatting_reads_the_views_and_is_told_of_the_panoramas(exported, path):
  for number in (0, 1):
    images = read_as_splatting_does(
      exported / 'perspective/sparse' / str(number)
    )
    model = model_of(exported, 'perspective', number)
    assert len(images) == len(model.images) > 0
    for image in model.images.values():
      (*quaternion, x, y, z), (width, height, parameters) = images[image.name]
      picture = exported / 'perspective/images' / image.name
      assert read_rgb(picture).shape == (height, width, 3)
      rotation = Rotation.from_quat(quaternion, scalar_first=True).as_matrix()
      expected = image.cam_from_world().matrix()
      np.testing.assert_allclose(rotation, expected[:, :3], atol=1e-12)
      np.testing.assert_allclose([x, y, z], expected[:, 3], atol=1e-12)
      np.testing.assert_allclose(parameters, image.camera.params)
    with pytest.raises(KeyError):
      read_as_splatting_does(exported / 'sparse' / str(number))
  told = (exported / 'sparse' / 'README.txt').read_text()
  assert 'perspective/sparse/N' in told and 'EQUIRECTANGULAR' in told


@pytest.mark.parametrize(('layout', 'number'), MODELS)
def test_colmap_observations_are_those_of_the_path(
  exported, path, layout, number
):
  model = model_of(exported, layout, number)
  observations = path.observations_of(number)
  truth = {
    (int(frame), int(point)): ray
    for frame, point, ray in zip(
      observations.frame, observations.point, observations.ray
    )
  }
  shown = set()
  for image in model.images.values():
    key, pose = image.frame_id - 1, path.frame2scene[image.frame_id - 1]
    camera2frame = pose[:, :3].T @ image.cam_from_world().rotation.matrix().T
    np.testing.assert_allclose(image.projection_center(), pose[:, 3], atol=1e-9)
    for observation in image.points2D:
      point = observation.point3D_id - 1
      ray = camera2frame @ image.camera.cam_ray_from_img(observation.xy)
      np.testing.assert_allclose(
        ray / np.linalg.norm(ray), truth[key, point], atol=1e-9
      )
      shown.add((key, point))
  # The views together see all that the panoramas see.
  assert shown == set(truth)


@pytest.mark.parametrize('number', [0, 1])
def test_colmap_points_project_to_their_own_colour(exported, number):
  for layout in LAYOUTS:
    model = model_of(exported, layout, number)
    for image in model.images.values():
      picture = read_rgb(exported / layout / 'images' / image.name)
      points = [
        model.points3D[observation.point3D_id].xyz
        for observation in image.points2D
      ]
      pixels = np.array([image.project_point(point) for point in points])
      truth = ROOM.colour(to_room(number, np.array(points))) * 255
      assert np.abs(sample(picture, pixels) - truth).max() < TOLERANCE
    for point in model.points3D.values():
      truth = ROOM.colour(to_room(number, point.xyz)) * 255
      assert np.abs(point.color - truth).max() < TOLERANCE


@pytest.mark.parametrize('number', [0, 1])
def test_colmap_errors_are_our_own(exported, path, number):
  model = model_of(exported, '.', number)
  observations = path.observations_of(number)
  error_px = (
    bundle_adjustment.errors_rad(path.frame2scene, path.points, observations)
    * WIDTH
    / (2 * np.pi)
  )
  for identity, point in model.points3D.items():
    own_error_px = error_px[observations.point == identity - 1]
    assert point.track.length() == len(own_error_px)
    assert point.error == pytest.approx(own_error_px.mean(), rel=1e-4)
  # Two directions of noise: the Rayleigh distribution's median is 1.18.
  assert np.median(error_px) * 2 * np.pi / WIDTH == pytest.approx(
    1.18 * NOISE_RAD, rel=0.2
  )


def test_views_of_a_panorama_are_a_rig(exported):
  model = model_of(exported, 'perspective', 0)
  assert model.num_rigs() == 1 and model.num_cameras() == 12
  cameras_of_model = [entry.todict() for entry in model.cameras.values()]
  for entry in cameras_of_model:
    assert entry['model'] == pycolmap.CameraModelId.PINHOLE
    # Of 90 degrees.
    np.testing.assert_allclose(entry['params'], [24.0, 24.0, 24.0, 24.0])
  assert model.num_frames() == 3 and model.num_images() == 36
  assert model_of(exported, '.', 0).num_images() == 3


def nerfstudio(file):
  """Origins, rays and names as nerfstudio's documentation has them.

  Written from https://docs.nerf.studio/quickstart/data_conventions.html and
  from `_generate_rays_from_coords` of nerfstudio/cameras/cameras.py.
  """
  meta = json.loads(pathlib.Path(file).read_text())
  x, y = np.meshgrid(np.arange(meta['w']) + 0.5, np.arange(meta['h']) + 0.5)
  x = (x - meta['cx']) / meta['fl_x']
  y = -(y - meta['cy']) / meta['fl_y']
  if meta['camera_model'] == 'EQUIRECTANGULAR':
    theta, phi = -np.pi * x, np.pi * (0.5 - y)
    rays = np.stack(
      [
        -np.sin(theta) * np.sin(phi),
        np.cos(phi),
        -np.cos(theta) * np.sin(phi),
      ],
      axis=-1,
    )
  else:
    assert meta['camera_model'] == 'PINHOLE'
    rays = np.stack([x, y, -np.ones_like(x)], axis=-1)
  applied = np.array(meta['applied_transform'])
  for frame in meta['frames']:
    camera2world = np.array(frame['transform_matrix'])
    assert camera2world.shape == (4, 4)
    # Back from nerfstudio's world to the one that the points came from.
    origin = (camera2world[:3, 3] - applied[:, 3]) @ applied[:, :3]
    turned = rays @ camera2world[:3, :3].T @ applied[:, :3]
    yield frame, origin, turned


@pytest.mark.parametrize(('layout', 'number'), MODELS)
def test_nerfstudio_rays_hit_the_colours_of_their_pixels(
  exported, layout, number
):
  suffix = f'_{number}' if number else ''
  count = 0
  for frame, origin, rays in nerfstudio(
    exported / layout / f'transforms{suffix}.json'
  ):
    picture = read_rgb(exported / layout / frame['file_path'])
    truth = colour(to_room(number, origin), rays_to_room(number, rays))
    check_picture(picture, truth)
    mask = cv2.imread(
      str(exported / layout / frame['mask_path']), cv2.IMREAD_UNCHANGED
    )
    assert mask.shape == picture.shape[:2]
    count += 1
  assert count == (COMPONENT == number).sum() * (1 if layout == '.' else 12)


@pytest.mark.parametrize('read', [mipnerf360.read, nerfstudio_reader.read])
def test_views_are_read_back_by_the_benchmarks(exported, path, read):
  views = read(exported / 'perspective').views
  frames = {int(view.path.name.split('_')[0]) for view in views}
  assert frames == set(path.frames(0)) and len(views) == 12 * len(frames)
  for view in views:
    frame = int(view.path.name.split('_')[0])
    # The views of a panorama share its centre.
    np.testing.assert_allclose(
      view.camera2scene[:, 3], path.frame2scene[frame][:, 3], atol=1e-9
    )
    pixels = np.stack([*camera.pixel_centres(*view.size), np.ones((48, 48))])
    rays = np.linalg.inv(view.intrinsics) @ pixels.reshape(3, -1)
    truth = colour(
      to_room(0, view.camera2scene[:, 3]),
      rays_to_room(0, (view.camera2scene[:, :3] @ rays).T),
    )
    check_picture(view.read().astype(float), truth.reshape(48, 48, 3))
  names = [view.path.name for view in views]
  assert names == sorted(names)


@pytest.mark.parametrize('number', [0, 1])
def test_panoramas_are_read_back_for_reconstruction(
  exported, path, pictures, number
):
  frames = equirectangular_frames.read(exported, component=number)
  own = path.frames(number)
  np.testing.assert_array_equal(frames.camera2scene, path.frame2scene[own])
  mask = path.mask.resized(WIDTH, HEIGHT)
  masked = mask.holds(sensors.Panorama(width=WIDTH, height=HEIGHT).directions())
  assert masked.any()
  for frame, image, counts in zip(own, frames.images, frames.counts):
    check_picture(image.astype(float), pictures[frame].astype(float))
    np.testing.assert_array_equal(counts, ~masked)


def test_the_world_of_nerfstudio_has_z_up(exported, path):
  meta = json.loads((exported / 'transforms.json').read_text())
  applied = np.array(meta['applied_transform'])
  # Ours has y down.
  np.testing.assert_array_equal(applied @ [0, 1, 0, 0], [0, 0, -1])
  assert np.linalg.det(applied[:, :3]) == pytest.approx(1.0)
  first = np.array(meta['frames'][0]['transform_matrix'])
  # The camera's own up, +y, is minus the panorama's y.
  np.testing.assert_allclose(
    first[:3, 1], applied[:, :3] @ -path.frame2scene[0][:, 1], atol=1e-12
  )


@pytest.mark.parametrize(('layout', 'number'), MODELS)
def test_nerfstudio_points_lie_on_the_walls(exported, layout, number):
  suffix = f'_{number}' if number else ''
  meta = json.loads(
    (exported / layout / f'transforms{suffix}.json').read_text()
  )
  cloud = trimesh.load(exported / layout / meta['ply_file_path'])
  applied = np.array(meta['applied_transform'])
  points = to_room(
    number, (np.asarray(cloud.vertices) - applied[:, 3]) @ applied[:, :3]
  )
  np.testing.assert_allclose(
    np.max(np.abs(points) / ROOM.half, axis=1), 1.0, atol=1e-5
  )
  assert (
    np.abs(cloud.colors[:, :3] - ROOM.colour(points) * 255).max() < TOLERANCE
  )
  assert len(points) == model_of(exported, layout, number).num_points3D()


def test_masks_hold_what_the_mask_holds(exported):
  panorama = sensors.Panorama(width=WIDTH, height=HEIGHT)
  rig = {'.': [panorama], 'perspective': views()}
  for layout, of_layout in rig.items():
    pictures = sorted((exported / layout / 'images').iterdir())
    assert len(pictures) == 5 * len(of_layout)
    for picture in pictures:
      # As COLMAP names them.
      file = exported / layout / 'masks' / f'{picture.name}.png'
      pixels = cv2.imread(str(file), cv2.IMREAD_UNCHANGED)
      assert set(np.unique(pixels)) <= {0, 255}
      number = picture.stem.partition('_')[2]
      sensor = of_layout[int(number or 0)]
      down = sensor.directions()
      down = np.rad2deg(np.arcsin(down[..., 1] / np.linalg.norm(down, axis=-1)))
      # Cells of 5 degrees; the mask grows by up to 3/4 of one.
      assert np.all(pixels[down > 50] == 0)
      assert np.all(pixels[down < 45] == 255)
    masked = list((exported / layout / 'masks').iterdir())
    assert len(masked) == len(pictures)


def views(**changes):
  rules = dataclasses.replace(RULES, **changes)
  return sensors.views(
    WIDTH,
    size_px=rules.view_size_px,
    fov_deg=rules.fov_deg,
    num_yaws=rules.num_yaws,
    pitches_deg=rules.pitches_deg,
  )


def test_the_default_views_leave_no_gap():
  rays = np.random.default_rng(0).normal(size=(20_000, 3))
  views_of_ray = sum(view.project(rays)[1].astype(int) for view in views())
  assert views_of_ray.min() >= 1


def test_a_view_is_as_fine_as_its_panorama():
  (view,) = views(view_size_px=0, num_yaws=1, pitches_deg=(0.0,), fov_deg=60.0)
  assert view.intrinsics[0, 0] == pytest.approx(WIDTH / (2 * np.pi), rel=0.01)


def test_views_of_masked_directions_are_left_out(tmp_path, path, pictures):
  behind = masks.outside(lambda rays: rays[..., 2] > 0)
  blind = dataclasses.replace(path, mask=behind)
  rules = dataclasses.replace(RULES, pitches_deg=(0.0,))
  figures = exports.write(
    tmp_path / 'room', blind, pictures.__getitem__, settings(['colmap'], rules)
  )
  # Rows begin at the front: of four views the front and half of both sides.
  model = model_of(tmp_path / 'room', 'perspective', 0)
  assert model.is_valid() and model.num_cameras() < 4
  for image in model.images.values():
    file = tmp_path / 'room' / 'perspective' / 'masks' / f'{image.name}.png'
    assert np.mean(cv2.imread(str(file), cv2.IMREAD_UNCHANGED) > 0) >= 0.5
  assert figures == {'models': 2, 'pictures': 5 * (1 + model.num_cameras())}
  for frame in model.frames.values():
    assert frame.num_data_ids() == model.num_cameras()


def test_a_mask_of_all_leaves_no_view(tmp_path, path, pictures):
  dark = dataclasses.replace(path, mask=masks.below(-90.0))
  exports.write(
    tmp_path / 'room', dark, pictures.__getitem__, settings(exports.FORMATS)
  )
  assert not (tmp_path / 'room' / 'perspective').exists()
  assert model_of(tmp_path / 'room', '.', 0).is_valid()


def contents(folder):
  return {
    str(file.relative_to(folder)): file.read_bytes()
    for file in sorted(folder.rglob('*'))
    if file.is_file()
  }


@pytest.mark.parametrize(
  ('formats', 'has', 'lacks'),
  [
    ((), [], ['images', 'masks', 'perspective', 'transforms.json']),
    (
      ('colmap',),
      ['images', 'masks', 'perspective/sparse/1'],
      ['transforms.json', 'perspective/transforms.json'],
    ),
    (
      ('nerfstudio',),
      ['images', 'masks', 'transforms_1.json', 'perspective/transforms.json'],
      ['perspective/sparse'],
    ),
  ],
)
def test_what_was_asked_for_is_written(
  tmp_path, exported, path, pictures, formats, has, lacks
):
  folder = tmp_path / 'room'
  exports.write(folder, path, pictures.__getitem__, settings(formats))
  for name in ['path.json', 'sparse/0', 'sparse/1', *has]:
    assert (folder / name).exists(), name
  for name in lacks:
    assert not (folder / name).exists(), name
  # Each is a part of the whole, byte for byte.
  assert contents(folder).items() <= contents(exported).items()


def test_the_same_path_gives_the_same_bytes(tmp_path, exported, path, pictures):
  folder = tmp_path / 'room'
  formats = exports.FORMATS[::-1]
  exports.write(folder, path, pictures.__getitem__, settings(formats))
  assert contents(folder) == contents(exported)


def test_a_rerun_replaces_and_a_failure_leaves_what_was(
  tmp_path, path, pictures
):
  folder = tmp_path / 'room'
  exports.write(folder, path, pictures.__getitem__, settings(['colmap']))
  before = contents(folder)

  def breaks(frame):
    if frame == 3:
      raise OSError(28, 'No space left on device')
    return pictures[frame]

  with pytest.raises(OSError, match='No space'):
    exports.write(folder, path, breaks, settings(['colmap']))
  assert contents(folder) == before
  # What a killed run left.
  (tmp_path / '.tmp-room' / 'images').mkdir(parents=True)
  exports.write(folder, path, pictures.__getitem__, settings(()))
  assert contents(folder).keys() < before.keys()
  assert [entry.name for entry in tmp_path.iterdir()] == ['room']


def test_the_path_lists_every_frame(exported, path):
  content = json.loads((exported / 'path.json').read_text())
  assert content['video_id'] == 'room'
  frames = content['frames']
  assert [frame['time_s'] for frame in frames] == path.times_s.tolist()
  assert [frame['component'] for frame in frames] == [0, 0, None, 1, 0, 1]
  assert frames[2]['frame2scene'] is None
  for frame, pose in zip(frames, path.frame2scene):
    if frame['component'] is not None:
      np.testing.assert_array_equal(frame['frame2scene'], pose)


def test_a_video_without_poses_has_an_empty_path(tmp_path, path, pictures):
  lost = dataclasses.replace(path, component=np.full(len(COMPONENT), -1))
  nothing = dataclasses.replace(
    lost, observations=path.observations.subset(path.observations.frame < 0)
  )
  figures = exports.write(
    tmp_path / 'room', nothing, pictures.__getitem__, settings(exports.FORMATS)
  )
  assert figures == {'models': 0, 'pictures': 0}
  assert [e.name for e in (tmp_path / 'room').iterdir()] == ['path.json']


def test_unknown_formats_and_senseless_rules_are_refused(
  tmp_path, path, pictures
):
  with pytest.raises(ValueError, match='obj'):
    exports.write(
      tmp_path / 'room', path, pictures.__getitem__, settings(['obj'])
    )
  assert not list(tmp_path.iterdir())
  for change in (
    {'fov_deg': 180.0},
    {'num_yaws': 0},
    {'pitches_deg': (91.0,)},
    {'jpeg_quality': 0},
    {'min_free_share': 1.5},
    {'view_size_px': -1},
  ):
    with pytest.raises(ValueError, match=next(iter(change))):
      dataclasses.replace(RULES, **change)


def test_a_path_is_in_the_units_of_the_records(path):
  solution = solver.Solution(
    component=path.component,
    frame2scene=np.nan_to_num(path.frame2scene),
    points=path.points,
    observations=path.observations,
    verifications={},
    mask=path.mask,
    figures={},
  )
  # Component 0 gave no records and keeps its unit.
  scaled = cameras.of_solution(
    'room', path.times_s.tolist(), solution, {1: 2.5}
  )
  for component, factor in ((0, 1.0), (1, 2.5)):
    frames = path.frames(component)
    for frame in frames:
      np.testing.assert_array_equal(
        scaled.frame2scene[frame],
        camera.rescale(path.frame2scene[frame], factor),
      )
    observed = np.unique(path.observations_of(component).point)
    np.testing.assert_array_equal(
      scaled.points[observed], path.points[observed] * factor
    )
  # A similarity changes no direction.
  np.testing.assert_allclose(
    bundle_adjustment.errors_rad(
      scaled.frame2scene, scaled.points, scaled.observations
    ),
    bundle_adjustment.errors_rad(
      path.frame2scene, path.points, path.observations
    ),
    atol=1e-12,
  )
