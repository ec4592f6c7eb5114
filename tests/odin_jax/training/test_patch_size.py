"""A model of spheres at another resolution than it learned at."""

import cv2
from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import train as recipes
from odin_jax import sharding
from odin_jax.checkpoints import checkpoint
from odin_jax.models import conditioning, encoders, odin
from odin_jax.shared import errors, posed_pair
from odin_jax.training import patch_size, step, warm_start

COUNT = 2


def get_config(image_size_px=32, patch_px=4, gain=0.5):
  config = recipes.get_config('multisphere,runlocal=True')
  config.image_size_px = image_size_px
  config.autoencoder.update(patch_px=patch_px, gain=gain)
  # It sees pixels, whatever the patches.
  config.model.spheres.refiner = 0
  return checkpoint.plain(config.to_dict() | {'init': ''})


@pytest.fixture(scope='module')
def params():
  """Of 32 px, and no zeros, which a fresh last layer has."""
  shapes = jax.eval_shape(lambda: odin.init_params(get_config()))
  rng = np.random.default_rng(0)
  return jax.tree.map(
    lambda leaf: jnp.asarray(rng.normal(0, 0.1, leaf.shape), jnp.float32),
    shapes,
  )


def outputs(config, params, picture):
  """What the networks say of a picture, but for its colours."""
  pose = np.eye(3, 4) + np.array([[0, 0, 0, 0.2]] * 3)
  pairs = posed_pair.PosedPair(
    source=picture,
    target=None,
    target2source=jnp.asarray([pose] * COUNT, jnp.float32),
    fov_deg=jnp.full(COUNT, 80.0),
    median_depth=jnp.ones(COUNT),
  )
  frozen = encoders.fit(config, picture)
  model = nnx.merge(odin.graph(config), params)

  @jax.jit
  def denoise(pairs):
    condition = odin.condition(frozen, config, pairs)
    kept = jnp.zeros(COUNT, bool)
    cond = model.cond(condition, conditioning.Drop(kept, kept))
    noisy = 0.3 * jnp.ones_like(condition['source'])
    found = model.denoise(noisy, jnp.full(COUNT, 500.0), cond)
    return (
      cond.blend.source_logits,
      cond.context,
      found.blended,
      found.mask_logit,
    )

  return denoise(jax.tree.map(jnp.asarray, pairs))


@pytest.fixture(scope='module')
def large_params(params):
  return patch_size.resized(params, get_config(), 8)


def test_it_says_the_same_of_a_picture_of_larger_pixels(params, large_params):
  small, large = get_config(), get_config(64, 8)
  assert patch_size.differs_alone(large, small)
  assert not patch_size.differs_alone(small, small)
  expected = jax.eval_shape(lambda: odin.init_params(large))
  assert jax.tree.map(np.shape, large_params) == jax.tree.map(
    np.shape, expected
  )

  rng = np.random.default_rng(1)
  picture = rng.integers(0, 256, (COUNT, 32, 32, 3), np.uint8)
  same = picture.repeat(2, 1).repeat(2, 2)
  before = outputs(small, params, picture)
  after = outputs(large, large_params, same)
  for name in ('logits', 'shift'):
    np.testing.assert_allclose(
      getattr(after[2], name), getattr(before[2], name), atol=2e-4
    )
  for index in (0, 1, 3):
    np.testing.assert_allclose(after[index], before[index], atol=2e-4)
  # The blend of one, looked at from afar, is about that of the other.
  seen = after[2].picture.reshape(COUNT, 32, 2, 32, 2, 3).mean((2, 4))
  assert np.abs(seen - before[2].picture).mean() < 0.2 * before[2].picture.std()


def test_each_pixel_makes_what_the_one_before_made(params, large_params):
  taken, before = sharding.by_path(large_params), sharding.by_path(params)
  for name in ('unet/conv_out/kernel', 'unet/conv_out/bias'):
    new, old = np.asarray(taken[name]), before[name]
    blocks = new[..., : 3 * 64].reshape(*new.shape[:-1], 4, 2, 4, 2, 3)
    for y, x in np.ndindex(2, 2):
      np.testing.assert_allclose(
        blocks[..., y, :, x, :],
        old[..., :48].reshape(*old.shape[:-1], 4, 4, 3),
        rtol=1e-6,
      )
    np.testing.assert_array_equal(new[..., 3 * 64 :], old[..., 48:])


def test_there_and_back_is_the_same_model(params, large_params):
  back = patch_size.resized(large_params, get_config(64, 8), 4)
  jax.tree.map(
    lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-6),
    back,
    params,
  )


@pytest.mark.parametrize('before, after', [(4, 8), (8, 4), (4, 6), (6, 4)])
def test_a_patch_looks_the_same_at_another_size(before, after):
  """Against OpenCV, which resizes by area."""
  rng = np.random.default_rng(0)
  patch = rng.uniform(0, 1, (before, before, 3)).astype(np.float32)
  expected = cv2.resize(patch, (after, after), interpolation=cv2.INTER_AREA)
  if before < after:
    # By area OpenCV makes pictures smaller only.
    times = np.lcm(before, after)
    finest = patch.repeat(times // before, 0).repeat(times // before, 1)
    expected = cv2.resize(finest, (after, after), interpolation=cv2.INTER_AREA)
  found = patch_size._resized(before, after) @ patch.reshape(-1)
  np.testing.assert_allclose(found, expected.reshape(-1), atol=1e-6)


@pytest.fixture(scope='module')
def workdir(params, tmp_path_factory):
  folder = tmp_path_factory.mktemp('run')
  config = get_config()
  frozen = encoders.fit(config, np.zeros((1, 32, 32, 3), np.uint8))
  saved = checkpoint.Checkpoints(folder)
  state = step.state_of(config, jax.tree.map(jnp.asarray, params))
  saved.save(1, state, frozen, config)
  saved.close()
  return folder


def test_a_training_starts_from_it(workdir, large_params):
  large = get_config(64, 8)
  start = warm_start.load(workdir, large, sharding.local_mesh())
  assert start.encoders.autoencoder.patch_px == 8
  (note,) = start.notes
  assert '4 px there, 8 px here' in note
  adopted = warm_start.adopt(odin.init_params(large), start.params, start.rows)
  jax.tree.map(np.testing.assert_array_equal, adopted, large_params)


@pytest.mark.parametrize('part', ['rays', 'sweep'])
def test_a_conditioning_that_looks_at_patches_is_refused(tmp_path, part):
  def config(size, patch):
    made = recipes.get_config(f'multisphere,runlocal=True,conditioning={part}')
    made.image_size_px = size
    made.autoencoder.patch_px = patch
    return checkpoint.plain(made.to_dict() | {'init': ''})

  small = config(32, 4)
  frozen = encoders.fit(small, np.zeros((1, 32, 32, 3), np.uint8))
  saved = checkpoint.Checkpoints(tmp_path)
  shapes = jax.eval_shape(lambda: odin.init_params(small))
  zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape), shapes)
  saved.save(1, step.state_of(small, zeros), frozen, small)
  saved.close()
  with pytest.raises(
    errors.UserError, match=f'{part} depends; give its config'
  ):
    warm_start.load(tmp_path, config(64, 8), sharding.local_mesh())


def test_another_number_of_patches_is_told(workdir):
  start = warm_start.load(workdir, get_config(64, 4), sharding.local_mesh())
  assert start.notes == ['learned at 8x8 patches, and here are 16x16']


def test_what_is_not_that_alone_is_refused(workdir):
  config = get_config(64, 8, gain=1.0)
  with pytest.raises(errors.UserError, match='autoencoder'):
    warm_start.load(workdir, config, sharding.local_mesh())
