"""The convolutions over a picture that was blended."""

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from odin_jax.models import multisphere, refiner

SIZE = 16


def blended():
  rng = np.random.default_rng(0)
  picture, made_up, spread = (
    jnp.asarray(rng.random((2, SIZE, SIZE, count)), jnp.float32)
    for count in (3, 1, 1)
  )
  return multisphere.Blended(picture, None, None, made_up, spread)


@pytest.fixture(scope='module')
def refine():
  """A function of what is blended and of t, of parameters that are not zero."""
  model = refiner.Refiner(8, 1000, rngs=nnx.Rngs(0))
  # As it starts it changes nothing.
  first = blended()
  found = model(first, jnp.array([10.0, 900.0]))
  np.testing.assert_array_equal(found, first.picture)
  shape = model.conv3.kernel[...].shape
  model.conv3.kernel[...] = jax.random.normal(jax.random.key(1), shape)
  return jax.jit(lambda given, timestep: model(given, timestep))


@pytest.mark.parametrize('name', ['picture', 'made_up', 'spread'])
def test_a_pixel_is_told_of_its_neighbours_alone(refine, name):
  given, t = blended(), jnp.full(2, 500.0)
  value = getattr(given, name)
  moved = given._replace(**{name: value.at[0, 8, 8].add(1.0)})
  changed = np.abs(refine(moved, t) - refine(given, t)).max(-1)
  assert changed[1].max() == 0
  rows, columns = np.nonzero(changed[0])
  # Three convolutions of three blocks of two pixels each.
  assert set(rows) == set(columns) == set(range(2, 16))
  assert changed[0, 8, 8] > 1e-3


def test_it_knows_how_much_of_a_sample_is_noise(refine):
  given = blended()
  few, most = (refine(given, jnp.full(2, t)) for t in (10.0, 999.0))
  assert np.abs(few - most).max() > 1e-2
