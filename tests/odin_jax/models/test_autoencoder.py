"""The patch autoencoder: what it keeps, and the variance it gives latents."""

import cv2
import jax.numpy as jnp
import numpy as np
import pytest

from odin_jax.models import autoencoder


@pytest.fixture(scope='module')
def images():
  """Smooth random colours: neighbouring pixels are alike, as in pictures."""
  coarse = np.random.default_rng(0).uniform(0, 255, (40, 5, 5, 3))
  return (
    np.stack(
      [
        cv2.resize(image, (16, 16), interpolation=cv2.INTER_CUBIC)
        for image in coarse
      ]
    )
    .clip(0, 255)
    .astype(np.uint8)
  )


def fit(images, channels=8, whitening=0.5):
  return autoencoder.fit(
    images, patch_px=4, channels=channels, whitening=whitening
  )


def test_all_components_give_the_images_back(images):
  vae = fit(images, channels=48)
  truth = jnp.asarray(images / 255, jnp.float32)
  again = vae.decode(vae.encode(truth))
  np.testing.assert_allclose(again, truth, atol=1e-4)


def test_error_is_the_variance_left_out(images):
  truth = jnp.asarray(images / 255, jnp.float32)
  errors = []
  for channels in (3, 8, 16, 48):
    vae = fit(images, channels)
    errors.append(
      float(np.square(vae.decode(vae.encode(truth)) - truth).mean())
    )
  assert errors == sorted(errors, reverse=True)
  # Smooth images: a sixth of the components holds most of them.
  assert errors[1] < 0.2 * float(np.var(truth))


@pytest.mark.parametrize('whitening', [0.0, 0.5, 1.0])
def test_latents_have_unit_variance_on_average(images, whitening):
  vae = fit(images, channels=8, whitening=whitening)
  latents = np.asarray(vae.encode(jnp.asarray(images / 255, jnp.float32)))
  assert latents.shape == (40, 4, 4, 8)
  variances = latents.var(axis=(0, 1, 2))
  assert variances.mean() == pytest.approx(1, rel=0.02)
  np.testing.assert_allclose(latents.mean((0, 1, 2)), 0, atol=0.02)
  if whitening == 1.0:
    np.testing.assert_allclose(variances, 1, rtol=0.02)
  else:
    assert variances[0] > 2 * variances[-1]


def test_patches_stay_in_place(images):
  vae = fit(images)
  image = jnp.asarray(images[:1] / 255, jnp.float32)
  changed = image.at[0, 4:8, 8:12].set(0)
  difference = np.array(jnp.abs(vae.encode(image) - vae.encode(changed)))
  difference = difference.max(-1)[0]
  assert difference[1, 2] > 0
  difference[1, 2] = 0
  assert not difference.any()


def test_abstract_has_the_shapes_of_a_fitted_one(images):
  fitted, shapes = fit(images), autoencoder.abstract(patch_px=4, channels=8)
  for name in ('mean', 'encoder', 'decoder'):
    assert getattr(fitted, name).shape == getattr(shapes, name).shape
