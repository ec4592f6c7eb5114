"""The DUSt3R matcher: against truth with a stand-in network, and against the
official package, with random weights, where a checkout is at DUST3R_HOME."""

import argparse
import copy
import dataclasses
import functools
import hashlib
import math
import os
import pathlib
import pickle
import subprocess
import sys

import numpy as np
import pytest
import torch

from odin_jax.shared import camera, errors
from preprocessing import matchers
from preprocessing.matchers import (
  dust3r,
  dust3r_checkout,
  dust3r_network,
  pointmaps,
)
from preprocessing.procedural import footage, raycaster
from preprocessing.solving import relative_pose, solver
from tests.helpers import default_rules, fake_dust3r

_WIDTH, _HEIGHT = 1024, 512
_PIXEL_RAD = 2 * np.pi / _WIDTH
_TIMES_S = (0.0, 1.0, 2.0, 3.0)
_RULES = dust3r.Rules(
  num_views=8,
  view_width_px=192,
  view_height_px=144,
  fov_deg=90.0,
  features_per_face=400,
  contrast_threshold=0.015,
  max_calls_per_pair=8,
  min_gain=20,
  min_confidence=2.0,
  min_agreement=0.5,
  max_error_px=2.0,
  max_distance=0.02,
  min_similarity=0.5,
  cached_frames=3,
  cached_pairs=100,
)


def stock_network(model, **options):
  """The network as the package runs it, but for what is changed."""
  stock = dict(device='cpu', precision='fp32', attention='stock', batch_size=16)
  return dust3r_network.Network(model, **stock | options)


@dataclasses.dataclass
class Filmed:
  """Four keyframes of a world, and the truth."""

  world: object
  pictures: list
  frame2world: np.ndarray

  def true_pose(self, pair):
    return camera.relative(self.frame2world[pair[0]], self.frame2world[pair[1]])

  def true_rays(self, pair, rays):
    """Where the points of one frame truly are in the other."""
    origin = self.frame2world[pair[0]]
    cast = raycaster.rotate(origin[:, :3], rays.astype(np.float32)[None])
    hits = self.world.scene.cast(origin[:, 3], cast, _TIMES_S[pair[0]])
    points = origin[:, 3] + cast[0].astype(float) * hits.distance[0][:, None]
    local = camera.transform(camera.inverse(self.frame2world[pair[1]]), points)
    return local / np.linalg.norm(local, axis=1, keepdims=True)

  def matcher(self, rules=_RULES, **faults):
    """A new matcher whose network knows this world."""
    oracle = fake_dust3r.OracleNetwork(**faults)
    for picture, time_s in zip(self.pictures, _TIMES_S):
      oracle.add(picture, self.world, time_s, rules)
    network = stock_network(oracle, batch_size=3)
    return dust3r.Dust3rMatcher(network, rules), oracle


@pytest.fixture(scope='module')
def filmed():
  world = footage.make_world(
    ['unique_room'], 0, seed=3, seconds=6.0, px_per_rad=_HEIGHT / np.pi
  )
  pictures = [
    footage.render_panorama(world, time_s, width=_WIDTH, height=_HEIGHT)
    for time_s in _TIMES_S
  ]
  truth = np.stack([world.walk.frame2world(time_s) for time_s in _TIMES_S])
  return Filmed(world, pictures, truth)


@pytest.fixture(scope='module')
def described(filmed):
  """A matcher with noise, its network, features and where their points go."""
  matcher, oracle = filmed.matcher(noise=0.005)
  features = [matcher.describe(picture) for picture in filmed.pictures]
  tracked_rays = [
    filmed.true_rays((frame, frame + 1), features[frame].rays)
    for frame in range(len(features) - 1)
  ]
  return matcher, oracle, features, tracked_rays


def off_degrees(pose, true):
  """Rotation and direction error of a pose."""
  return (
    camera.rotation_angle_deg(pose[:, :3] @ true[:, :3].T),
    camera.angle_between_deg(pose[:, 3], true[:, 3]),
  )


# From pixels to poses with a network that knows the truth.


@pytest.mark.parametrize('pair', [(0, 1), (0, 3)])
def test_matches_are_one_to_one_and_true(filmed, described, pair):
  matcher, _, features, _ = described
  source, target = features[pair[0]], features[pair[1]]
  expected = filmed.true_rays(pair, source.rays)
  matches = matcher.match(
    source, target, expected=expected, gate_rad=np.deg2rad(2)
  )
  assert len(matches) > 100
  for side in matches.T:
    assert len(np.unique(side)) == len(side)
  error = relative_pose.epipolar_error_rad(
    filmed.true_pose(pair),
    source.rays[matches[:, 0]],
    target.rays[matches[:, 1]],
  )
  assert np.mean(error < 1.5 * _PIXEL_RAD) > 0.95
  apart = camera.angle_between_deg(
    expected[matches[:, 0]], target.rays[matches[:, 1]]
  )
  assert apart.max() <= 2.0 and np.median(apart) < 0.3


def test_the_solver_finds_the_path_at_a_bounded_cost(filmed, described):
  matcher, oracle, features, tracked_rays = described
  rules = default_rules.pose_rules()
  before, encoded = matcher.calls, oracle.encoded

  def solve():
    return solver.Solver(
      features,
      tracked_rays,
      matcher,
      rules=rules,
      max_gap=3,
      pixel_rad=_PIXEL_RAD,
    ).solve()

  solution = solve()
  spent = matcher.calls - before
  assert isinstance(matcher, matchers.CountsCalls)
  assert 0 < spent <= matcher.calls_bound(len(solution.verifications), 100)
  assert matcher.calls == len(oracle.decoded)
  ratios = []
  for pair, verified in solution.verifications.items():
    assert verified.is_kept
    target2source = camera.relative(
      solution.frame2scene[pair[0]], solution.frame2scene[pair[1]]
    )
    true = filmed.true_pose(pair)
    rotation_deg, direction_deg = off_degrees(target2source, true)
    assert rotation_deg < 0.15 and direction_deg < 0.3
    ratios.append(
      np.linalg.norm(target2source[:, 3]) / np.linalg.norm(true[:, 3])
    )
  assert np.ptp(ratios) < 0.01 * np.mean(ratios)
  # Asked again it pays nothing, and gives the same.
  spent, encoded = matcher.calls, oracle.encoded
  np.testing.assert_array_equal(solve().frame2scene, solution.frame2scene)
  assert (matcher.calls, oracle.encoded) == (spent, encoded)


@pytest.mark.parametrize('pair', [(0, 1), (1, 3)])
def test_pose_and_depths_are_those_of_the_frames(filmed, described, pair):
  matcher, _, features, _ = described
  matched, pose = matcher.match_and_pose(features[pair[0]], features[pair[1]])
  assert isinstance(matcher, matchers.GivesPoses)
  true = filmed.true_pose(pair)
  rotation_deg, direction_deg = off_degrees(pose.target2source, true)
  assert rotation_deg < 0.05 and direction_deg < 0.1
  assert pose.confidence > 0.95
  assert pose.depths.shape == (2, len(matched)) and len(matched) > 50
  true_depths = relative_pose.pair_depths(
    camera.make_pose(true[:, :3], true[:, 3] / np.linalg.norm(true[:, 3])),
    features[pair[0]].rays[matched[:, 0]],
    features[pair[1]].rays[matched[:, 1]],
  )
  off = np.log(pose.depths) - np.log(np.maximum(true_depths, 1e-6))
  assert np.median(np.abs(off)) < 0.02


def test_the_solver_uses_what_the_matcher_says(filmed, described):
  """A matcher whose own word is wrong is outvoted; its confidence shows."""
  matcher, _, features, tracked_rays = described
  rules = default_rules.pose_rules()

  class Doubting:
    name = matcher.name
    match = staticmethod(matcher.match)
    describe = staticmethod(matcher.describe)
    asked = 0

    def match_and_pose(self, source, target, **how):
      matched, pose = matcher.match_and_pose(source, target, **how)
      Doubting.asked += 1
      return matched, dataclasses.replace(
        pose, confidence=0.25, target2source=camera.inverse(pose.target2source)
      )

  solution = solver.Solver(
    features,
    tracked_rays,
    Doubting(),
    rules=rules,
    max_gap=3,
    pixel_rad=_PIXEL_RAD,
  ).solve()
  assert Doubting.asked == 3 + rules.rounds * 6
  for pair, verified in solution.verifications.items():
    assert verified.is_kept and verified.confidence == 0.25
    pose = camera.relative(
      solution.frame2scene[pair[0]], solution.frame2scene[pair[1]]
    )
    rotation_deg, direction_deg = off_degrees(pose, filmed.true_pose(pair))
    assert rotation_deg < 0.15 and direction_deg < 0.3


def test_subsets_share_one_answer(described):
  matcher, _, features, tracked_rays = described
  whole = matcher.match(
    features[0], features[1], expected=tracked_rays[0], gate_rad=0.03
  )
  calls = matcher.calls
  rng = np.random.default_rng(0)
  keep = [rng.uniform(size=len(frame)) < 0.6 for frame in features[:2]]
  part = matcher.match(
    features[0].subset(keep[0]),
    features[1].subset(np.flatnonzero(keep[1])),
    expected=tracked_rays[0][keep[0]],
    gate_rad=0.03,
  )
  assert matcher.calls == calls
  old = np.stack(
    [np.flatnonzero(mask)[part[:, side]] for side, mask in enumerate(keep)], 1
  )
  expected_matches = whole[keep[0][whole[:, 0]] & keep[1][whole[:, 1]]]
  assert (
    set(map(tuple, old)) == set(map(tuple, expected_matches)) and len(old) > 30
  )


def test_unknown_places_cost_nothing_and_match_nothing(filmed, described):
  matcher, oracle = filmed.matcher()
  source, target = described[2][:2]
  lost = np.full((len(source), 3), np.nan)
  assert matcher.match(source, target, expected=lost, gate_rad=1.0).shape == (
    0,
    2,
  )
  assert matcher.calls == 0 and not oracle.decoded
  # Nor is that kept as an answer.
  assert len(matcher.match(source, target)) > 20
  blank = matcher.describe(np.full((64, 128, 3), 90, np.uint8))
  assert len(blank) == 0
  assert matcher.match(blank, blank, expected=blank.rays).shape == (0, 2)


def test_view_pairs_that_contradict_themselves_are_not_believed(
  filmed, described
):
  every = {(a, b + 8) for a in range(8) for b in range(8)}
  matcher, oracle = filmed.matcher(lies=every)
  source, target = described[2][:2]
  matches, pose = matcher.match_and_pose(source, target)
  assert matches.shape == (0, 2) and pose is None
  assert 0 < len(oracle.decoded) <= 8


def test_what_is_cached_is_bounded(filmed, described):
  rules = dataclasses.replace(
    _RULES, cached_frames=2, cached_pairs=2, max_calls_per_pair=2
  )
  matcher, oracle = filmed.matcher(rules)
  features = described[2]
  matcher.match(features[0], features[1])
  matcher.match(features[1], features[2])
  # Frame 1 was still there, frame 0 has to make room.
  assert (oracle.encoded, matcher.calls) == (3 * 8, 4)
  matcher.match(features[0], features[1])
  assert (oracle.encoded, matcher.calls) == (3 * 8, 4)
  matcher.match(features[0], features[2])
  assert (oracle.encoded, matcher.calls) == (4 * 8, 6)
  # Three answers do not fit: the one that was used longest ago is gone.
  matcher.match(features[0], features[1])
  assert matcher.calls == 6
  matcher.match(features[1], features[2])
  assert matcher.calls == 8


def test_copies_of_features_share_the_answer(filmed, described):
  matcher, oracle = filmed.matcher()
  source, target = described[2][:2]
  matches = matcher.match(source, target)
  calls = matcher.calls
  copied = [pickle.loads(pickle.dumps(item)) for item in (source, target)]
  np.testing.assert_array_equal(matcher.match(*copied), matches)
  assert matcher.calls == calls and oracle.encoded == 16


def test_matching_is_deterministic(filmed, described):
  _, _, features, _ = described
  again = filmed.matcher()[0].describe(filmed.pictures[1])
  assert again.panorama.key == features[1].panorama.key
  np.testing.assert_array_equal(again.rays, features[1].rays)
  matches = [
    filmed.matcher(noise=0.005)[0].match(features[0], target)
    for target in (features[1], again)
  ]
  np.testing.assert_array_equal(*matches)
  assert len(matches[0]) > 20


# Pose and scale from pointmaps.


@pytest.fixture(scope='module')
def two_views(filmed):
  """The pointmap of a view in the axes of another, and where it stands."""
  maps, stands = [], []
  for frame, yaw_deg in ((0, 20.0), (1, 40.0)):
    pose = fake_dust3r.view_pose(filmed.frame2world[frame], yaw_deg)
    size = dict(fov_deg=80.0, width=160, height=120)
    maps.append(
      fake_dust3r.cast_view(filmed.world, _TIMES_S[frame], pose, **size)[0]
    )
    stands.append(pose)
  target2source = camera.relative(stands[0], stands[1])
  in_source = maps[1] @ target2source[:, :3].T + target2source[:, 3]
  return in_source.astype(np.float32), target2source


def find_pose(points, confidence=None, **changes):
  if confidence is None:
    confidence = np.full(points.shape[:2], 5.0, np.float32)
  options = dict(fov_deg=80.0, min_confidence=2.0, max_error_px=2.0) | changes
  return pointmaps.pose_from_pointmap(points, confidence, **options)


def test_pose_is_exact_on_exact_pointmaps(two_views):
  points, true = two_views
  pose = find_pose(points)
  np.testing.assert_allclose(pose.target2source, true, atol=1e-5)
  assert pose.confidence == 1.0 and pose.num_inliers == 2000
  # The unit is that of the pointmap.
  double = find_pose(2 * points).target2source
  np.testing.assert_allclose(double, camera.rescale(true, 2.0), atol=1e-4)


@pytest.mark.parametrize('seed', range(3))
def test_pose_survives_noise_and_outliers(two_views, seed):
  points, true = two_views
  rng = np.random.default_rng(seed)
  depth = np.linalg.norm(points - true[:, 3], axis=-1, keepdims=True)
  # One per cent of noise in all directions: about a pixel.
  noisy = points + 0.01 * depth * rng.normal(size=points.shape)
  wrong = rng.uniform(size=points.shape[:2]) < 0.3
  noisy[wrong] = rng.normal(size=(wrong.sum(), 3)) * 4
  pose = find_pose(noisy.astype(np.float32), max_error_px=4.0)
  rotation_deg, direction_deg = off_degrees(pose.target2source, true)
  assert rotation_deg < 0.3 and direction_deg < 1.0
  length = np.linalg.norm(true[:, 3])
  assert np.linalg.norm(pose.target2source[:, 3] - true[:, 3]) < 0.02 * length
  # The share of points that were not spoilt.
  assert 0.6 < pose.confidence < 0.72


def test_unconfident_points_are_not_used(two_views):
  points, true = two_views
  rng = np.random.default_rng(4)
  spoilt, confidence = points.copy(), np.full(points.shape[:2], 5, np.float32)
  spoilt[:70] = rng.normal(size=(70, 160, 3))
  spoilt[80] = np.nan
  confidence[:70] = 1.5
  pose = find_pose(spoilt, confidence)
  np.testing.assert_allclose(pose.target2source, true, atol=1e-5)
  assert pose.confidence == 1.0
  assert find_pose(points, np.ones_like(confidence)) is None
  assert find_pose(rng.normal(size=points.shape).astype(np.float32)) is None


def test_read_is_bilinear_about_pixel_centres():
  u, v = camera.pixel_centres(7, 5)
  ramp = np.stack([u, v, 2 * u - v], axis=-1).astype(np.float32)
  pixels = np.array([[0.5, 0.5], [3.25, 2.0], [6.5, 4.5], [7.0, 5.0]])
  values = pointmaps.read(ramp, pixels)
  inside = np.clip(pixels, 0.5, [6.5, 4.5])
  np.testing.assert_allclose(values[:, :2], inside, atol=1e-5)
  many = np.tile(pixels, (9000, 1))
  np.testing.assert_array_equal(
    pointmaps.read(ramp, many), np.tile(values, (9000, 1))
  )
  assert pointmaps.read(ramp, np.zeros((0, 2))).shape == (0, 3)


def test_batches_halve_when_memory_is_full_and_remember():
  batches = dust3r_network.Batches(16)
  tried = []

  def double(items):
    tried.append(len(items))
    if len(items) > 3:
      raise torch.cuda.OutOfMemoryError('full')
    return [2 * item for item in items]

  assert list(batches.run(double, range(7))) == [2 * x for x in range(7)]
  assert tried == [7, 3, 3, 1] and batches.size == 3
  tried.clear()
  assert len(list(batches.run(double, range(4)))) == 4
  assert tried == [3, 1]


def test_one_item_that_does_not_fit_is_an_error():
  def refuse(items):
    raise torch.cuda.OutOfMemoryError(f'{len(items)} do not fit')

  with pytest.raises(torch.cuda.OutOfMemoryError, match='1 do not fit'):
    list(dust3r_network.Batches(4).run(refuse, range(4)))


@pytest.mark.parametrize(
  'option', [dict(device='tpu'), dict(precision='fp8'), dict(attention='no')]
)
def test_unknown_options_are_named(option):
  with pytest.raises(errors.UserError, match=next(iter(option.values()))):
    stock_network(fake_dust3r.OracleNetwork(), **option)


def test_cuda_without_a_gpu_is_refused(monkeypatch):
  monkeypatch.setattr(torch.cuda, 'is_available', lambda: False)
  with pytest.raises(errors.UserError, match='finds no GPU'):
    stock_network(fake_dust3r.OracleNetwork(), device='cuda')


@pytest.fixture
def options(tmp_path):
  """Options of a checkout and a checkpoint that only look like ones."""
  for part in ('dust3r/model.py', 'croco/models/croco.py', 'net.pth'):
    (tmp_path / part).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / part).touch()
  return {
    **dust3r.OPTIONS,
    'home': str(tmp_path),
    'checkpoint': str(tmp_path / 'net.pth'),
  }


def test_checked_options_have_absolute_paths(options, tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  usable = dust3r.check({**options, 'home': '.', 'checkpoint': 'net.pth'})
  assert usable.options == options and usable.files == ('checkpoint',)


@pytest.mark.parametrize(
  'change',
  [
    {'precision': 'fp8'},
    {'attention': 'no'},
    {'device': 'tpu'},
    {'checkpoint': 'nowhere.pth'},
  ],
)
def test_options_are_refused_before_any_work(options, change):
  with pytest.raises(errors.UserError, match=next(iter(change.values()))):
    dust3r.check({**options, **change})


# The checkout and the checkpoint.

_OFFICIAL = (
  "AsymmetricCroCo3DStereo(pos_embed='RoPE100', "
  "patch_embed_cls='ManyAR_PatchEmbed', img_size=(512, 512), head_type='dpt', "
  "output_mode='pts3d', depth_mode=('exp', -inf, inf), conf_mode=('exp', 1, "
  'inf), enc_embed_dim=1024, enc_depth=24, enc_num_heads=16, '
  'dec_embed_dim=768, dec_depth=12, dec_num_heads=12)'
)


def test_the_official_description_is_parsed():
  arguments = dust3r_checkout.parse_network(_OFFICIAL)
  assert arguments['depth_mode'] == ('exp', -math.inf, math.inf)
  assert arguments['img_size'] == (512, 512) and arguments['enc_depth'] == 24
  assert len(arguments) == 13


@pytest.mark.parametrize(
  'description',
  [
    '',
    'import os',
    'print("x")',
    'AsymmetricCroCo3DStereo',
    'AsymmetricCroCo3DStereo(1)',
    'AsymmetricCroCo3DStereo(**{})',
    'AsymmetricCroCo3DStereo(enc_depth=__import__("os").getpid())',
    'AsymmetricCroCo3DStereo(enc_depth=True)',
    'AsymmetricCroCo3DStereo(enc_depth=-[1])',
    'AsymmetricCroCo3DStereo(depth_mode=("exp", -nan, 1))',
    'AsymmetricCroCo3DStereo(norm_layer=1)',
    'AsymmetricCroCo3DStereo(enc_depth=1).eval()',
  ],
)
def test_other_descriptions_are_refused(description):
  with pytest.raises(ValueError):
    dust3r_checkout.parse_network(description)


def test_no_checkout_is_one_clear_line(monkeypatch, tmp_path):
  monkeypatch.delenv('DUST3R_HOME', raising=False)
  with pytest.raises(errors.UserError, match='DUST3R_HOME is not set'):
    dust3r_checkout.find_home()
  with pytest.raises(errors.UserError, match='dust3r/model.py is missing'):
    dust3r_checkout.find_home(str(tmp_path))
  (tmp_path / 'dust3r').mkdir()
  (tmp_path / 'dust3r/model.py').write_text('import no_such_package')
  monkeypatch.setenv('DUST3R_HOME', str(tmp_path))
  with pytest.raises(errors.UserError, match='croco.*submodule'):
    dust3r_checkout.find_home()
  (tmp_path / 'croco/models').mkdir(parents=True)
  (tmp_path / 'croco/models/croco.py').touch()
  home = dust3r_checkout.find_home()
  path = list(sys.path)
  with pytest.raises(errors.UserError, match='no_such_package'):
    dust3r_checkout.import_module(home, 'dust3r.model')
  assert sys.path == path and 'dust3r' not in sys.modules


class Evil:
  """Runs code when it is unpickled."""

  def __reduce__(self):
    return (pytest.fail, ('code of a checkpoint was run',))


@pytest.mark.parametrize(
  'contents',
  [
    b'no checkpoint',
    b'',
    {'model': {}},
    {'args': argparse.Namespace(), 'model': {}},
    {'args': argparse.Namespace(model='f(x)'), 'model': {}},
    {'args': argparse.Namespace(model=_OFFICIAL), 'model': Evil()},
    [1, 2],
  ],
)
def test_bad_checkpoints_are_one_clear_line(tmp_path, contents):
  path = tmp_path / 'net.pth'
  if isinstance(contents, bytes):
    path.write_bytes(contents)
  else:
    torch.save(contents, path)
  with pytest.raises(errors.UserError, match='net.pth'):
    dust3r_checkout.load_model(tmp_path, path)


def test_an_absent_checkpoint_is_named(tmp_path):
  with pytest.raises(errors.UserError, match='no such checkpoint'):
    dust3r_checkout.load_model(tmp_path, tmp_path / 'absent.pth')


# The script that makes the checkout.


class Setup:
  """Runs the script on a stand-in for upstream, in local repositories."""

  def __init__(self, repository, folder):
    self._script = repository / 'launch/setup_dust3r.sh'
    self.upstream, croco = folder / 'upstream', folder / 'croco'
    self.home, self.weights = folder / 'made here', folder / 'net.pth'
    self.noted = self.home / 'checkpoints/net.pth.sha256'
    self.weights.write_bytes(bytes(range(256)) * 40)
    self.digest = hashlib.sha256(self.weights.read_bytes()).hexdigest()
    self._env = {
      name: value
      for name, value in os.environ.items()
      if not name.startswith(('GIT_', 'DUST3R_'))
    } | {
      'GIT_CONFIG_GLOBAL': os.devnull,
      'GIT_CONFIG_COUNT': '1',
      # Git takes submodules from local folders only when told to.
      'GIT_CONFIG_KEY_0': 'protocol.file.allow',
      'GIT_CONFIG_VALUE_0': 'always',
    }
    self._commit(croco, {'models/croco.py': '', 'models/blocks.py': ''})
    self._git(folder, 'init', '--quiet', self.upstream)
    self._git(self.upstream, 'submodule', '--quiet', 'add', croco, 'croco')
    self.commit = self._commit(self.upstream, {'dust3r/model.py': ''})

  def _git(self, folder, *arguments):
    name = ('-c', 'user.name=x', '-c', 'user.email=x@example.org')
    return subprocess.run(
      ('git', *name, *arguments),
      cwd=folder,
      env=self._env,
      capture_output=True,
      text=True,
      check=True,
    ).stdout.strip()

  def _commit(self, folder, files):
    for name, text in files.items():
      (folder / name).parent.mkdir(parents=True, exist_ok=True)
      (folder / name).write_text(text)
    self._git(folder, 'init', '--quiet')
    self._git(folder, 'add', '--all')
    self._git(folder, 'commit', '--quiet', '--message=x')
    return self._git(folder, 'rev-parse', 'HEAD')

  def __call__(self, *arguments, **env):
    sources = {
      'DUST3R_REPOSITORY': self.upstream.as_uri(),
      'DUST3R_COMMIT': self.commit,
      'DUST3R_CHECKPOINT_URL': self.weights.as_uri(),
    }
    return subprocess.run(
      ('bash', self._script, *arguments),
      env=self._env | sources | env,
      capture_output=True,
      text=True,
      check=False,
    )

  def refuses(self, says, *arguments, **env):
    done = self(*arguments, **env)
    assert done.returncode == 2 and not done.stdout
    assert done.stderr.splitlines()[-1].startswith('error: setup_dust3r.sh: ')
    assert says in done.stderr.splitlines()[-1]


@pytest.fixture
def setup(repository, tmp_path):
  return Setup(repository, tmp_path)


def test_setup_makes_a_checkout_once(setup):
  done = setup(setup.home)
  assert done.returncode == 0, done.stderr
  name, value = done.stdout.strip().split('=')
  assert name == 'export DUST3R_HOME'
  assert value.replace('\\', '') == str(setup.home)
  assert dust3r_checkout.find_home(str(setup.home)) == setup.home.resolve()
  copy_of_weights = setup.home / 'checkpoints/net.pth'
  assert copy_of_weights.read_bytes() == setup.weights.read_bytes()
  assert setup.digest in setup.noted.read_text()
  assert 'not checked against any source' in done.stderr
  # Again: no source is needed, and nothing is touched.
  before = copy_of_weights.stat().st_mtime_ns
  setup.upstream.rename(setup.upstream.with_name('gone'))
  setup.weights.unlink()
  again = setup(setup.home)
  assert again.returncode == 0 and again.stdout == done.stdout
  assert not again.stderr
  assert copy_of_weights.stat().st_mtime_ns == before


def test_setup_follows_a_new_pinned_commit(setup):
  assert setup(setup.home, '--no-checkpoint').returncode == 0
  assert not (setup.home / 'checkpoints').exists()
  setup.commit = setup._commit(setup.upstream, {'dust3r/model.py': 'new'})
  assert setup(setup.home, '--no-checkpoint').returncode == 0
  assert (setup.home / 'dust3r/model.py').read_text() == 'new'
  (setup.home / 'dust3r/model.py').write_text('mine')
  setup.commit = setup._commit(setup.upstream, {'dust3r/model.py': 'newer'})
  setup.refuses('has changes of its own', setup.home, '--no-checkpoint')


def test_setup_checks_the_digest(setup):
  wrong = '0' * 64
  setup.refuses(f'not {wrong}', setup.home, DUST3R_SHA256=wrong)
  partial = setup.home / 'checkpoints/net.pth.part'
  # What came is not taken for the checkpoint, and an interrupted download goes
  # on where it was.
  assert not setup.noted.exists() and partial.is_file()
  partial.write_bytes(setup.weights.read_bytes()[:1000])
  done = setup(setup.home, DUST3R_SHA256=setup.digest)
  assert done.returncode == 0 and 'not checked' not in done.stderr
  damaged = setup.home / 'checkpoints/net.pth'
  damaged.write_bytes(b'damaged')
  setup.refuses(f'not {setup.digest}', setup.home)
  damaged.unlink()
  setup.weights.write_bytes(b'replaced upstream')
  setup.refuses(f'not {setup.digest}', setup.home)


def test_setup_refuses_what_it_cannot_use(setup, repository, tmp_path):
  setup.refuses('give a folder')
  setup.refuses('give a folder', '--no-checkpoint')
  setup.refuses('unknown argument --fast', setup.home, '--fast')
  setup.refuses('unknown argument x', setup.home, '--no-checkpoint', 'x')
  setup.refuses('64 lower-case', setup.home, DUST3R_SHA256='abc')
  setup.refuses('lies in this project', repository / 'runs/dust3r')
  (tmp_path / 'full').mkdir()
  (tmp_path / 'full/notes.txt').touch()
  setup.refuses('holds something else', tmp_path / 'full')
  setup.refuses('cannot fetch', tmp_path / 'a', DUST3R_REPOSITORY='file:///no')
  setup.refuses(
    'cannot download', setup.home, DUST3R_CHECKPOINT_URL='file:///no/net.pth'
  )
  assert 'DUST3R_HOME' in setup('--help').stdout


# The official package.


@pytest.fixture(scope='module')
def home():
  """The checkout; the test is skipped where there is none."""
  if not os.environ.get('DUST3R_HOME'):
    pytest.skip('no DUSt3R checkout; set DUST3R_HOME')
  return dust3r_checkout.find_home()


def describe_network(head, size=(64, 64), depth=4):
  return (
    f"AsymmetricCroCo3DStereo(pos_embed='RoPE100', img_size={size}, "
    f"patch_embed_cls='ManyAR_PatchEmbed', head_type='{head}', "
    "output_mode='pts3d', depth_mode=('exp', -inf, inf), conf_mode=('exp', 1, "
    f'inf), enc_embed_dim=64, enc_depth={depth}, enc_num_heads=4, '
    f'dec_embed_dim=48, dec_depth={12 if head == "dpt" else depth}, '
    'dec_num_heads=4)'
  )


def make_checkpoint(home, path, head):
  """Random weights of a small network, as the official files hold them."""
  module = dust3r_checkout.import_module(home, 'dust3r.model')
  description = describe_network(head)
  torch.manual_seed(0)
  model = module.AsymmetricCroCo3DStereo(
    **dust3r_checkout.parse_network(description)
  )
  arguments = argparse.Namespace(model=description, lr=1e-4)
  torch.save({'args': arguments, 'model': model.state_dict()}, path)
  return path


@pytest.fixture(scope='module')
def official(home, tmp_path_factory):
  """Loads a new copy of the small network with a head: `official('dpt')`."""
  folder = tmp_path_factory.mktemp('networks')

  @functools.cache
  def load(head):
    path = make_checkpoint(home, folder / f'{head}.pth', head)
    return dust3r_checkout.load_model(home, path)

  return lambda head='linear': copy.deepcopy(load(head))


def random_views(count, height, width, seed=0):
  rng = np.random.default_rng(seed)
  return rng.integers(0, 256, (count, height, width, 3), dtype=np.uint8)


def stock_answers(home, model, views, chosen, batch_size):
  """The package's own `inference` on the same views."""
  inference = dust3r_checkout.import_module(home, 'dust3r.inference')
  images = [
    dict(
      img=(torch.from_numpy(view).permute(2, 0, 1)[None] / 255 - 0.5) / 0.5,
      true_shape=np.int32([view.shape[:2]]),
      idx=index,
      instance=str(index),
    )
    for index, view in enumerate(views)
  ]
  answers = inference.inference(
    [(images[a], images[b]) for a, b in chosen],
    model,
    'cpu',
    batch_size=batch_size,
    verbose=False,
  )
  return (
    answers['pred1']['pts3d'],
    answers['pred1']['conf'],
    answers['pred2']['pts3d_in_other_view'],
    answers['pred2']['conf'],
  )


def own_answers(network, views, chosen):
  tokens = network.encode(views)
  maps = list(network.decode([(tokens[a], tokens[b]) for a, b in chosen]))
  return [
    np.stack([getattr(item, field.name) for item in maps])
    for field in dataclasses.fields(dust3r_network.PairMaps)
  ]


_CHOSEN = [(0, 1), (2, 0), (1, 2), (3, 1), (3, 3)]


@pytest.mark.filterwarnings('ignore::FutureWarning')
@pytest.mark.parametrize(
  'head,shape,batch_size',
  [
    ('linear', (64, 64), 1),
    ('linear', (48, 96), 2),
    ('linear', (96, 64), 8),
    ('dpt', (64, 32), 8),
  ],
)
def test_pointmaps_equal_the_stock_ones_bit_by_bit(
  home, official, head, shape, batch_size
):
  views = random_views(4, *shape)
  stock = stock_answers(home, official(head), views, _CHOSEN, batch_size)
  network = stock_network(official(head), batch_size=batch_size)
  for adapter_map, stock_map in zip(
    own_answers(network, views, _CHOSEN), stock
  ):
    np.testing.assert_array_equal(adapter_map, stock_map.numpy())


@pytest.mark.parametrize(
  'options,tolerance',
  [
    (dict(attention='sdpa'), 1e-4),
    (dict(precision='bf16'), 0.1),
    (dict(precision='bf16', attention='sdpa'), 0.1),
  ],
)
def test_faster_modes_are_close(official, options, tolerance):
  views = random_views(4, 64, 96)
  stock = own_answers(stock_network(official()), views, _CHOSEN)
  fast = own_answers(stock_network(official(), **options), views, _CHOSEN)
  changed = False
  for fast_map, stock_map in zip(fast, stock):
    assert fast_map.dtype == np.float32
    # Errors against the size of the answer, since random ones pass zero.
    error = np.abs(fast_map - stock_map).mean() / np.abs(stock_map).mean()
    assert error < tolerance
    changed |= error > 0
  assert changed


def test_fused_attention_is_of_one_model_only(official):
  views = random_views(4, 64, 64)
  before = own_answers(stock_network(official()), views, _CHOSEN)
  stock_network(official(), attention='sdpa')
  after = own_answers(stock_network(official()), views, _CHOSEN)
  for map_before, map_after in zip(before, after):
    np.testing.assert_array_equal(map_before, map_after)


def test_importing_leaves_no_trace_and_works_again(home, monkeypatch):
  own_module = type(sys)('models')
  monkeypatch.setitem(sys.modules, 'models', own_module)
  path, settings_before = list(sys.path), torch.backends.cuda.matmul.allow_tf32
  for _ in range(2):
    dust3r_checkout.import_module.cache_clear()
    module = dust3r_checkout.import_module(home, 'dust3r.model')
    assert pathlib.Path(module.__file__) == home / 'dust3r/model.py'
    assert sys.path == path and sys.modules['models'] is own_module
    assert 'dust3r' not in sys.modules and 'dust3r.model' not in sys.modules
    assert torch.backends.cuda.matmul.allow_tf32 == settings_before


def test_a_damaged_official_checkpoint_is_named(home, tmp_path):
  path = make_checkpoint(home, tmp_path / 'net.pth', 'linear')
  contents = torch.load(path, weights_only=False)
  whole = dict(contents['model'])
  del contents['model']['enc_norm.weight']
  torch.save(contents, path)
  with pytest.raises(errors.UserError, match='enc_norm.weight'):
    dust3r_checkout.load_model(home, path)
  torch.save(contents | {'model': whole | {'mask_token': torch.ones(3)}}, path)
  with pytest.raises(errors.UserError, match='mask_token'):
    dust3r_checkout.load_model(home, path)


def test_the_named_matcher_runs_in_the_official_package(home, filmed, tmp_path):
  path = make_checkpoint(home, tmp_path / 'net.pth', 'linear')
  rules = dataclasses.replace(
    _RULES, view_width_px=64, view_height_px=48, max_calls_per_pair=3
  )
  options = dict(
    home=str(home),
    checkpoint=str(path),
    device='cpu',
    precision='fp32',
    attention='sdpa',
    batch_size=4,
  )
  matcher = dust3r.make(options | dataclasses.asdict(rules))
  assert isinstance(matcher, matchers.Matcher)
  source, target = (
    matcher.describe(picture) for picture in filmed.pictures[:2]
  )
  matches, pose = matcher.match_and_pose(source, target)
  assert matcher.calls == 3 and matches.shape[1] == 2
  # Random weights know nothing, and that shows.
  assert pose is None and not len(matches)
