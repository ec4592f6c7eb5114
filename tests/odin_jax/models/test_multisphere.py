"""The multisphere image against exact scenes and slow oracles."""

import functools

from flax import nnx
import hypothesis
from hypothesis import strategies
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import ndimage

from configs import train
from odin_jax.checkpoints import checkpoint
from odin_jax.diffusion import schedule
from odin_jax.models import (
  conditioning,
  encoders,
  lpips,
  multisphere,
  odin,
  sweep,
  views,
)
from odin_jax.shared import camera, errors, posed_pair
from odin_jax.training import settings, step

RADII = tuple(np.geomspace(0.5, 8.0, 24).tolist())
FOV_DEG = 80.0
GRID = 12


def config_of(**changes):
  config = train.get_config('multisphere,runlocal=True')
  config.update(changes)
  return checkpoint.plain(config.to_dict())


def make_batch(size=32, count=2, seed=0, depth_px=16):
  rng = np.random.default_rng(seed)
  pose = camera.make_pose(
    camera.view2frame_rotation(12.0, -5.0), np.array([0.2, -0.1, 0.3])
  )
  return posed_pair.PosedPair(
    source=rng.integers(0, 256, (count, size, size, 3), np.uint8),
    target=rng.integers(0, 256, (count, size, size, 3), np.uint8),
    target2source=np.stack([pose] * count).astype(np.float32),
    fov_deg=np.full(count, FOV_DEG, np.float32),
    median_depth=np.ones(count, np.float32),
    source_depth=rng.uniform(0.6, 5, (count, depth_px, depth_px)),
    target_depth=rng.uniform(0.6, 5, (count, depth_px, depth_px)),
  )


# -- Look-ups ------------------------------------------------------------------

bilinear = jax.jit(sweep.bilinear)
trilinear = jax.jit(sweep.trilinear)


@pytest.mark.parametrize('size', [1, 2, 7])
def test_bilinear_is_that_of_scipy(size):
  rng = np.random.default_rng(size)
  image = rng.random((2, size, size, 3), np.float32)
  u, v = rng.random((2, 2, 40), np.float32)
  found = bilinear(image, u, v)
  for row in range(2):
    places = np.stack([v[row], u[row]]) * size - 0.5
    for colour in range(3):
      expected = ndimage.map_coordinates(
        image[row, ..., colour], places, order=1, mode='nearest'
      )
      np.testing.assert_allclose(found[row, :, colour], expected, atol=1e-5)


def test_trilinear_is_that_of_scipy_and_so_is_its_gradient():
  rng = np.random.default_rng(0)
  volume = rng.random((2, 5, 5, 4), np.float32)
  u, v = rng.random((2, 2, 30), np.float32)
  w = rng.uniform(-1, 5, (2, 30)).astype(np.float32)

  found = trilinear(volume, u, v, w)
  for row in range(2):
    places = np.stack([v[row] * 5 - 0.5, u[row] * 5 - 0.5, w[row]])
    expected = ndimage.map_coordinates(
      volume[row], places, order=1, mode='nearest'
    )
    np.testing.assert_allclose(found[row], expected, atol=1e-5)
  # Linear in the volume: the gradient's product with it is the value.
  gradient = jax.jit(jax.grad(lambda *given: sweep.trilinear(*given).sum()))(
    volume, u, v, w
  )
  assert float((gradient * volume).sum()) == pytest.approx(
    float(found.sum()), rel=1e-5
  )


@pytest.mark.parametrize('size', [1, 7])
def test_the_gradient_of_a_look_up_is_that_of_what_it_gives(size):
  rng = np.random.default_rng(size)
  images = rng.random((2, size, size, 3), np.float32)
  # Between centres, where the slope does not jump.
  cells = rng.integers(0, max(size - 1, 1), (2, 2, 8))
  u, v = ((cells + rng.uniform(0.7, 1.3, cells.shape)) / size).astype('f')
  weights = rng.random((2, 8, 3), np.float32)

  def total(images, u, v):
    return (sweep.bilinear(images, u, v) * weights).sum()

  given = (images, u, v)
  of_images, *of_places = jax.jit(jax.grad(total, argnums=(0, 1, 2)))(*given)
  assert float((of_images * images).sum()) == pytest.approx(
    float((bilinear(*given) * weights).sum()), rel=1e-5
  )
  step = 0.02 / size
  for k, found in enumerate(of_places):
    moved = np.array([np.zeros_like(u), np.zeros_like(v)])
    moved[k] = step
    ahead = bilinear(images, u + moved[0], v + moved[1])
    behind = bilinear(images, u - moved[0], v - moved[1])
    slope = ((ahead - behind) * weights).sum(-1) / (2 * step)
    np.testing.assert_allclose(found, slope, atol=2e-3 * size)


# -- Weights -------------------------------------------------------------------


@jax.jit
def _seen_from(pose, logits):
  places = sweep.project_spheres(
    pose, jnp.array([FOV_DEG]), logits.shape[1], jnp.asarray(RADII)
  )
  return multisphere.composite(multisphere.opacity(logits, places, RADII))


def seen_from(pose, logits):
  """Weights and rest of a camera, given distances along the source's rays."""
  return _seen_from(
    jnp.asarray(pose[None], jnp.float32), jnp.asarray(logits, jnp.float32)
  )


def test_composite_is_the_loop_from_front_to_back():
  opacity = np.random.default_rng(0).random((2, 6, 5)).astype(np.float32)
  weights, rest = multisphere.composite(jnp.asarray(opacity))
  passed = np.ones((2, 5))
  for k in range(6):
    np.testing.assert_allclose(weights[:, k], passed * opacity[:, k], atol=1e-6)
    passed = passed * (1 - opacity[:, k])
  np.testing.assert_allclose(rest, passed, atol=1e-6)
  np.testing.assert_allclose(weights.sum(1) + rest, 1, atol=1e-6)


@hypothesis.given(strategies.integers(0, 1000))
@hypothesis.settings(deadline=None, max_examples=10)
def test_from_where_the_source_stands_weights_are_its_probabilities(seed):
  logits = 2 * np.random.default_rng(seed).normal(
    size=(1, GRID, GRID, len(RADII))
  )
  weights, rest = seen_from(camera.identity_pose(), logits)
  expected = np.asarray(jax.nn.softmax(jnp.asarray(logits, jnp.float32)))
  np.testing.assert_allclose(
    weights, expected.reshape(1, GRID**2, -1).swapaxes(1, 2), atol=5e-3
  )
  # What passes all spheres is what opacity short of 1 lets through.
  assert float(rest.max()) < 2e-3


def wall(pose, depth):
  """Distances along rays to a wall at z = depth of the source's camera.

  Args:
    pose: target2source; the identity for the source's own rays.
    depth: of the wall.
  """
  rays = camera.view_rays(FOV_DEG, GRID)
  rays = rays / np.linalg.norm(rays, axis=-1, keepdims=True)
  turned = rays @ pose[:, :3].T
  return (depth - pose[2, 3]) / turned[..., 2], rays, turned


def test_a_wall_is_where_it_is_from_elsewhere_too():
  pose = camera.make_pose(
    camera.view2frame_rotation(8.0, 4.0), np.array([0.3, 0.1, 0.4])
  )
  depth = 2.0
  along, _, _ = wall(camera.identity_pose(), depth)
  logits = 40 * multisphere._two_hot(jnp.asarray(along[None]), RADII)
  weights, rest = seen_from(pose, logits)
  distance, rays, turned = wall(pose, depth)
  points = turned * distance[..., None] + pose[:, 3]
  half = depth * np.tan(np.deg2rad(FOV_DEG / 2))
  inside = np.all(np.abs(points[..., :2]) < 0.85 * half, axis=-1).ravel()
  outside = np.any(np.abs(points[..., :2]) > 1.1 * half, axis=-1).ravel()
  assert inside.sum() > 40 and outside.sum() > 5
  weights, rest = np.asarray(weights[0]), np.asarray(rest[0])
  mean = np.exp(
    (weights * np.log(RADII)[:, None]).sum(0) / np.maximum(weights.sum(0), 1e-6)
  )
  error = np.abs(np.log(mean / distance.ravel()))[inside]
  step = np.log(RADII[1] / RADII[0])
  assert np.median(error) < 0.5 * step and error.max() < 1.5 * step
  assert rest[inside].max() < 0.3 and rest[outside].min() > 0.9


# -- Blend ---------------------------------------------------------------------


def parts_of(log_weights, seed=0, size=8):
  """Of a source that sees all spheres alike, from a step to the side."""
  rng = np.random.default_rng(seed)
  batch, grid, _, count = log_weights.shape
  pose = camera.make_pose(np.eye(3), np.array([0.05, 0.0, 0.02]))
  return multisphere.Blend(
    jnp.asarray(log_weights, jnp.float32),
    views.Views(
      jnp.asarray(rng.random((batch, 1, size, size, 3)), jnp.float32),
      jnp.asarray(np.tile(pose, (batch, 1, 1, 1)), jnp.float32),
      jnp.full((batch, 1), FOV_DEG),
      jnp.ones((batch, 1)),
      jnp.ones((batch, 1), bool),
    ),
    jnp.full(batch, FOV_DEG),
    jnp.ones((batch, 1, grid, grid, count - 1)),
    jnp.zeros((batch, 1, grid, grid, count - 1)),
  )


blend = jax.jit(multisphere.blend, static_argnums=(2, 3))
THREE = (0.5, 1.0, 2.0)
# Of two by two latent pixels of four pixels each: colours, corrections, shift.
OUTPUTS = 3 * 16 + 4 * 5


def only(index):
  weights = np.full((1, 4, 4, 4), -30.0)
  weights[..., index] = 0
  return weights


@pytest.mark.parametrize('shift', [0.0, 0.4, -0.3])
def test_a_picture_of_one_sphere_is_the_sweep_to_its_distance(shift):
  parts = parts_of(only(1))
  output = np.zeros((1, 2, 2, OUTPUTS), np.float32)
  output[..., 48 + 4 :: 5] = np.arctanh(2 * shift)
  found = blend(jnp.asarray(output), parts, THREE, 4)
  np.testing.assert_array_equal(found.logits, only(1).astype(np.float32))
  np.testing.assert_allclose(found.shift, shift, atol=1e-6)
  given = parts.given
  swept, _ = sweep.sweep(
    given.image[:, 0], given.target2view[:, 0], parts.fov_deg, [2.0**shift]
  )
  np.testing.assert_allclose(found.picture, swept[:, 0], atol=1e-5)


def test_the_rest_is_made_up():
  parts = parts_of(only(3))
  colour = np.random.default_rng(1).normal(size=(1, 2, 2, 48))
  output = np.zeros((1, 2, 2, OUTPUTS), np.float32)
  output[..., :48] = colour
  picture = blend(jnp.asarray(output), parts, THREE, 4).picture
  mean = np.asarray(parts.given.image)[0].mean((1, 2))[0]
  for i, j, y, x in ((0, 0, 0, 0), (0, 1, 3, 2), (1, 0, 1, 3)):
    expected = colour[0, i, j].reshape(4, 4, 3)[y, x] + mean
    np.testing.assert_allclose(
      picture[0, 4 * i + y, 4 * j + x], expected, atol=1e-5
    )


def test_a_blend_says_how_sure_it_is():
  rng = np.random.default_rng(3)
  one, two = (np.full((4, 4, 4), -30.0) for _ in range(2))
  one[..., 2] = 0
  # As much of the first sphere, of the third, and of the rest.
  two[..., [0, 2, 3]] = 0
  found = blend(
    jnp.asarray(np.zeros((2, 2, 2, OUTPUTS), np.float32)),
    parts_of(np.stack([one, two])),
    THREE,
    4,
  )
  assert found.spread.shape == found.made_up.shape == (2, 8, 8, 1)
  np.testing.assert_allclose(found.made_up[0], 0, atol=1e-6)
  np.testing.assert_allclose(found.made_up[1], 1 / 3, atol=1e-5)
  # The deviation of a half at 0 and a half at 2, and of none.
  np.testing.assert_allclose(found.spread[1], 1, atol=3e-3)
  np.testing.assert_allclose(found.spread[0], 0, atol=0.08)

  def sure(output):
    return blend(output, parts_of(one[None]), THREE, 4).spread.sum()

  output = rng.normal(size=(1, 2, 2, OUTPUTS)).astype(np.float32)
  assert np.isfinite(jax.grad(sure)(jnp.asarray(output))).all()


def test_corrections_are_of_their_rays():
  output = np.zeros((1, 2, 2, OUTPUTS), np.float32)
  # Ray (row 1, column 0) of the latent pixel (0, 1): the grid's (1, 2).
  output[0, 0, 1, 48 + 2 * 5 + 3] = 1.0
  output[0, 0, 1, 48 + 2 * 5 + 4] = 1.0
  found = blend(jnp.asarray(output), parts_of(np.zeros((1, 4, 4, 4))), THREE, 4)
  assert np.argwhere(np.asarray(found.logits)).tolist() == [[0, 1, 2, 3]]
  assert np.argwhere(np.asarray(found.shift)).tolist() == [[0, 1, 2]]


# -- Depth ---------------------------------------------------------------------


def test_depth_is_learned_where_it_is_known():
  config = config_of()
  radii, grid = multisphere.distances(config), multisphere.grid_size(config)
  pose = np.stack([camera.identity_pose()] * 2).astype(np.float32)
  # Powers of the spheres' ratio, straight ahead: one of them is right.
  depth = np.full((2, grid, grid), radii[1], np.float32)
  directions = camera.view_rays(FOV_DEG, grid)
  along = np.linalg.norm(directions, axis=-1)
  depth = depth / along
  depth[1] = 0
  batch = jax.tree.map(
    jnp.asarray,
    make_batch()._replace(
      target2source=pose, source_depth=depth, target_depth=depth
    ),
  )
  right = jnp.zeros((2, grid, grid, len(radii))).at[..., 1].set(30)
  wrong = jnp.zeros((2, grid, grid, len(radii))).at[..., 2].set(30)

  def losses(source, target, batch=batch):
    target = jnp.pad(target, ((0, 0),) * 3 + ((0, 1),))
    shift = jnp.zeros(target.shape[:3])
    blended = multisphere.Blended(None, target, shift, None, None)
    parts = parts_of(np.zeros((2, grid, grid, len(radii) + 1)))._replace(
      given=views.given(batch), source_logits=source[:, None]
    )
    values = multisphere.depth_losses(config, batch, parts, blended)
    return np.stack(values)

  np.testing.assert_allclose(losses(right, right), 0, atol=1e-5)
  found = losses(wrong, wrong)
  np.testing.assert_allclose(found[:, 0], 30, atol=1e-3)
  np.testing.assert_array_equal(found[:, 1], 0)
  # Something nearer hides it from the source: then it belongs to the rest.
  hidden = batch._replace(source_depth=batch.source_depth / 2)
  np.testing.assert_allclose(losses(right, right, hidden)[1, 0], 30, atol=1e-3)


# -- The model -----------------------------------------------------------------


@pytest.fixture(scope='module')
def small():
  config = config_of()
  batch = jax.tree.map(jnp.asarray, make_batch())
  frozen = encoders.fit(config, np.asarray(batch.source))
  return (
    config,
    batch,
    frozen,
    jax.jit(functools.partial(odin.init_params, config))(),
  )


def denoiser(config, frozen, params):
  """Of a batch of two: what the denoiser is told, and what it says."""
  model = nnx.merge(odin.graph(config), params)

  @jax.jit
  def denoise(batch):
    condition = odin.condition(frozen, config, batch)
    kept = jnp.zeros(2, bool)
    cond = model.cond(condition, conditioning.Drop(kept, kept))
    noisy = jnp.ones_like(condition['source'])
    return cond, model.denoise(noisy, jnp.full(2, 999.0), cond)

  return denoise


def test_it_starts_as_the_blend_of_what_is_swept(small):
  """Before training: the sweep, near things in front, the mean where unseen."""
  config, batch, frozen, params = small
  cond, found = denoiser(config, frozen, params)(batch)
  names = odin.input_channels(config)
  noisy = multisphere.noisy_channels(config)
  assert cond.channels.shape[-1] + noisy == len(names)
  radii = multisphere.distances(config)
  weights = jax.nn.softmax(
    jax.image.resize(
      cond.blend.log_weights, (2, 32, 32, len(radii) + 1), 'linear'
    )
  )
  image = batch.source / 255.0
  colours, _ = sweep.sweep(image, batch.target2source, batch.fov_deg, radii)
  expected = jnp.einsum('byxk,bkyxc->byxc', weights[..., :-1], colours)
  expected += weights[..., -1:] * image.mean((1, 2), keepdims=True)
  picture = frozen.autoencoder.decode(found.output)
  np.testing.assert_allclose(picture, expected, atol=1e-4)


# -- Several sources -----------------------------------------------------------


def with_more(batch, images, poses, is_there):
  """The batch with views beside its source."""
  count = len(batch.source)
  return batch._replace(
    more=posed_pair.MoreViews(
      image=jnp.asarray(images),
      target2view=jnp.asarray(poses, jnp.float32),
      fov_deg=jnp.full((count, images.shape[1]), FOV_DEG),
      is_there=jnp.asarray(is_there),
      depth=jnp.asarray(batch.source_depth)[:, None],
    )
  )


def pair_of_sources(batch, is_there):
  """A second source of other colours, somewhere else."""
  poses = np.array(batch.target2source)[:, None]
  poses[..., 3] += [0.3, 0.1, -0.2]
  return with_more(batch, 255 - batch.source[:, None], poses, is_there)


@pytest.fixture(scope='module')
def seen_by(small):
  """What the denoiser is told, of a model that takes two sources."""
  config, batch, frozen, _ = small
  config = {**config, 'model': {**config['model'], 'sources': 2}}
  params = jax.jit(functools.partial(odin.init_params, config))()
  # The last layers start at zero.
  keys = iter(jax.random.split(jax.random.key(1), 1000))
  params = jax.tree.map(
    lambda p: p + 0.02 * jax.random.normal(next(keys), p.shape), params
  )
  return denoiser(config, frozen, params), config


def test_a_source_that_is_not_there_changes_nothing(small, seen_by):
  _, batch, _, _ = small
  see, config = seen_by
  cond, found = see(pair_of_sources(batch, np.zeros((2, 1), bool)))
  alone, expected = see(batch)
  np.testing.assert_allclose(cond.channels, alone.channels, atol=1e-5)
  # Two sums in another order, through a network of random weights.
  np.testing.assert_allclose(found.output, expected.output, atol=2e-3)
  # And what is not there may be anything.
  junk = with_more(
    batch,
    batch.source[:, None] * 0,
    np.tile(camera.identity_pose(), (2, 1, 1, 1)),
    np.zeros((2, 1), bool),
  )
  np.testing.assert_allclose(see(junk)[1].output, found.output, atol=2e-3)
  _, there = see(pair_of_sources(batch, np.ones((2, 1), bool)))
  assert np.abs(np.asarray(there.output - found.output)).max() > 0.05
  names = odin.input_channels(config)
  assert cond.channels.shape[-1] + 3 == len(names)
  agreements = [name for name in names if 'agreement' in name]
  assert names[-len(agreements) :] == tuple(agreements)
  # Nothing to compare.
  np.testing.assert_array_equal(alone.channels[..., -len(agreements) :], 0)


def test_the_same_view_twice_is_the_view_and_agrees(small, seen_by):
  _, batch, _, _ = small
  see, config = seen_by
  twice = with_more(
    batch,
    batch.source[:, None],
    batch.target2source[:, None],
    np.ones((2, 1), bool),
  )
  twice = twice._replace(median_depth=jnp.zeros(2))
  once = batch._replace(median_depth=jnp.zeros(2))
  parts, found = see(twice)
  alone, expected = see(once)
  np.testing.assert_allclose(
    parts.blend.log_weights, alone.blend.log_weights, atol=1e-4
  )
  agreed = parts.channels[..., -4 * 4 :]
  assert set(np.unique(np.round(agreed, 4))) == {0.0, 1.0}
  # Blended by the same weights, pictures are the same.
  radii, output = multisphere.distances(config), jnp.zeros((2, 8, 8, 48 + 24))
  np.testing.assert_allclose(
    blend(output, parts.blend, radii, 4).picture,
    blend(output, alone.blend, radii, 4).picture,
    atol=1e-4,
  )


def test_agreement_is_that_of_the_loop():
  rng = np.random.default_rng(0)
  colours = rng.random((1, 3, 2, 4, 3)).astype(np.float32) / 4
  shown = rng.random((1, 3, 2, 4)) < 0.6
  found = sweep.agreement(jnp.asarray(colours), jnp.asarray(shown))
  for k in range(2):
    for n in range(4):
      values = colours[0, shown[0, :, k, n], k, n]
      expected = 0.0
      if len(values) >= 2:
        variance = values.var(axis=0).mean()
        expected = 2 * np.exp(-variance / 0.01) - 1
      assert float(found[0, k, n]) == pytest.approx(expected, abs=1e-5)


def test_two_sources_show_what_one_of_them_does():
  """A red view to the left and a green one to the right, all around one."""
  target2view = [
    camera.inverse(
      camera.make_pose(camera.view2frame_rotation(yaw, 0.0), np.zeros(3))
    )
    for yaw in (-45.0, 45.0)
  ]
  images = np.zeros((1, 2, 16, 16, 3), np.float32)
  images[0, 0, ..., 0] = images[0, 1, ..., 1] = 1
  parts = parts_of(only(1))._replace(
    given=views.Views(
      image=jnp.asarray(images),
      target2view=jnp.asarray(target2view, jnp.float32)[None],
      fov_deg=jnp.full((1, 2), FOV_DEG),
      median_depth=jnp.zeros((1, 2)),
      is_there=jnp.ones((1, 2), bool),
    ),
    shares=jnp.ones((1, 2, 4, 4, 3)),
  )
  output = jnp.zeros((1, 2, 2, 3 * 64 + 4 * 5))
  picture = np.asarray(blend(output, parts, THREE, 8).picture)[0]
  np.testing.assert_allclose(picture[:, 0], [[1, 0, 0]] * 16, atol=1e-5)
  np.testing.assert_allclose(picture[:, -1], [[0, 1, 0]] * 16, atol=1e-5)
  # Neither sees the middle above and below: the first one's mean.
  assert picture[0, 8, 0] == pytest.approx(1)


def random_lpips():
  rng = np.random.default_rng(0)
  params = {
    name: jnp.asarray(np.abs(rng.normal(0, 0.05, shape)), jnp.float32)
    if 'heads' in name
    else jnp.asarray(rng.normal(0, 0.05, shape), jnp.float32)
    for name, shape in lpips.shapes('alex').items()
  }
  return lpips.Lpips(params, 'alex')


@pytest.mark.parametrize('patch_px, places', [(2, 4), (4, 4), (8, 8)])
def test_lpips_sees_patches_in_all_places(patch_px, places):
  picture = jnp.arange(32.0)[:, None] + 100 * jnp.arange(32.0)
  picture = jnp.broadcast_to(picture[None, ..., None], (1, 32, 32, 3))
  found = set()
  for seed in range(8 * places):
    first, second = step._shifted_alike(
      jax.random.key(seed), patch_px, picture, picture
    )
    np.testing.assert_array_equal(first, second)
    # By how much the last pixel moved.
    right, down = divmod(int(picture[0, -1, -1, 0] - first[0, -1, -1, 0]), 100)
    found |= {('down', down), ('right', right)}
  assert found == {(way, i) for way in ('down', 'right') for i in range(places)}


def test_gradients_reach_every_parameter(small):
  config, batch, frozen, params = small
  config = {
    **config,
    'diffusion': {**config['diffusion'], 'terminal_share': 0.0},
  }
  config['model'] = {**config['model']}
  config['model']['spheres'] = {
    **config['model']['spheres'],
    'perceptual_weight': 0.5,
  }
  perceptual = random_lpips()
  # The last layers start at zero, which keeps gradients from those before.
  keys = iter(jax.random.split(jax.random.key(0), 1000))
  params = jax.tree.map(
    lambda p: p + 0.02 * jax.random.normal(next(keys), p.shape), params
  )
  graph = odin.graph(config)

  @jax.jit
  def gradients(params):
    def loss(params):
      model = nnx.merge(graph, params)
      key = jax.random.key(0)
      return step.batch_loss(model, config, frozen, batch, key, perceptual)

    return jax.value_and_grad(loss, has_aux=True)(params)

  (loss, figures), found = gradients(params)
  assert np.isfinite(loss)
  assert {'source_depth_loss', 'target_depth_loss'} <= figures.keys()
  assert figures['perceptual_loss'] > 0
  depths = figures['source_depth_loss'] + figures['target_depth_loss']
  weighted = 0.5 * figures['perceptual_loss'] + 0.005 * depths
  assert loss > weighted
  unreached = [
    jax.tree_util.keystr(path)
    for path, value in jax.tree_util.tree_leaves_with_path(found)
    if not np.abs(value).max() > 0
  ]
  # The network that looks at the source has no context.
  without = ('cross_attention', 'norm2')
  assert all(
    'spheres' in name and any(word in name for word in without)
    for name in unreached
  ), unreached


@pytest.mark.parametrize(
  'field, value, words',
  [
    ('autoencoder', {'kind': 'pca', 'patch_px': 4}, 'kind=pixels, not pca'),
    ('diffusion.prediction', 'v', 'prediction=x0, not v'),
    ('model.spheres.near', 0, 'near=0: must be at least'),
    ('model.spheres.count', 1, 'count=1: must be at least 2'),
    ('model.spheres.far', 0.1, 'far=0.1: must be finite and more'),
    ('diffusion.condition_dropout', 0.05, 'cannot be dropped'),
    ('diffusion.terminal_share', 1.5, 'terminal_share=1.5: must be'),
    ('model.spheres.noisy_cells', 3, 'noisy_cells=3: must divide'),
    ('model.sources', 0, 'sources=0: must be at least 1'),
  ],
)
def test_what_cannot_be_blended_is_refused(field, value, words):
  config = config_of()
  settings.check(config)
  section = config
  *parents, name = field.split('.')
  for parent in parents:
    section = section[parent]
  section[name] = value
  with pytest.raises(errors.UserError, match=words):
    settings.check(config)


def test_a_weight_of_x0_is_of_nothing_else():
  config = checkpoint.plain(train.get_config('world').to_dict())
  settings.check(config)
  config['diffusion']['max_v_weight'] = 5.0
  with pytest.raises(errors.UserError, match='not of v'):
    settings.check(config)


def test_a_share_of_timesteps_is_the_last_one():
  draw = functools.partial(
    schedule.sample_timesteps, jax.random.key(0), 200, 1000, power=1.0
  )
  np.testing.assert_array_equal(
    draw(terminal_share=0.0),
    schedule.sample_timesteps(jax.random.key(0), 200, 1000, power=1.0),
  )
  timesteps = np.asarray(draw(terminal_share=0.5))
  assert abs((timesteps == 999).mean() - 0.5) < 0.02
  # The others are spread evenly over all.
  others = np.sort(timesteps)[:100]
  np.testing.assert_allclose(others, 10 * np.arange(100), atol=11)
  assert (np.asarray(draw(terminal_share=1.0))[1:] == 999).all()


def test_errors_of_x0_weigh_as_those_of_v():
  alpha_bar = jnp.array([0.0, 0.3, 0.75, 0.99])
  rng = np.random.default_rng(0)
  x0, noise, found = jnp.asarray(rng.normal(size=(3, 4, 2, 2, 1)), jnp.float32)
  noisy = schedule.diffuse(x0, noise, alpha_bar)

  def v_of(x0):
    a = alpha_bar[:, None, None, None]
    return (jnp.sqrt(a) * noisy - x0) / jnp.sqrt(1 - a)

  np.testing.assert_allclose(
    v_of(x0), schedule.target('v', x0, noise, alpha_bar), atol=1e-5
  )
  error = jnp.square(v_of(found) - v_of(x0)).mean((1, 2, 3))
  weight = schedule.v_weight(alpha_bar, 1e9)
  of_x0 = np.square(found - x0).mean((1, 2, 3))
  np.testing.assert_allclose(weight * of_x0, error, rtol=1e-4)
  np.testing.assert_allclose(
    schedule.v_weight(alpha_bar, 4.0), np.minimum(weight, 4), rtol=1e-6
  )
