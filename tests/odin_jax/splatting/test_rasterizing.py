"""Pictures of Gaussians and their slopes, against float64 without tiles."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from odin_jax.shared import camera, errors
from odin_jax.splatting import gaussians, projection, rasterizing
from tests.helpers import slow_splats

# Room for the pairs of the scenes below, and for hardly more.
LIMITS = rasterizing.Limits(tile_px=4, pairs=48)


def random_scene(centres):
  """Float64 parameters of Gaussians at places in the axes of the scene."""
  generator = np.random.default_rng(0)
  count = len(centres)
  logits = generator.normal(0.5, 1, count)
  # Its centre is as opaque as can be.
  logits[2] = 6
  return gaussians.Gaussians(
    centres,
    generator.normal(-1.8, 0.5, (count, 3)),
    generator.normal(size=(count, 4)),
    logits,
    generator.normal(size=(count, 3)),
  )


def perspective():
  """Gaussians before a camera, beside it, behind it, and too near."""
  centres = np.random.default_rng(1).normal(size=(8, 3)) * [0.5, 0.4, 0.3]
  centres += [0.1, 0, 1.2]
  centres[0] = [0.1, 0.1, -1.0]
  centres[1] = [1.5, 0.1, 0.9]
  centres[3] = [0.01, 0.0, 0.04]
  return centres, {'width': 14, 'height': 10, 'focal_px': 8.0}


def panorama():
  """Gaussians all around: over a pole, beside one, across the seam."""
  centres = np.random.default_rng(1).normal(size=(8, 3))
  centres[0] = [0.02, -1.0, 0.03]
  centres[1] = [0.01, 0.1, -1.0]
  centres[2] = [0.2, 1.0, -0.3]
  return centres, {'width': 18, 'height': 10, 'focal_px': None}


@pytest.mark.parametrize('place', [perspective, panorama])
def test_pictures_and_slopes_are_those_of_the_slow_oracle(place):
  """Measured: pictures within 3e-7, slopes within 2e-6 of the largest."""
  local, size = place()
  pose = camera.inverse(
    camera.make_pose(
      camera.view2frame_rotation(20.0, -10.0), np.array([0.1, 0.05, -0.1])
    )
  )
  scene = random_scene(camera.transform(camera.inverse(pose), local))
  exact = slow_splats.View(scene2camera=pose, **size)
  image, through = slow_splats.picture(scene, exact)
  weights = np.random.default_rng(2).normal(size=(*through.shape, 4))
  expected = slow_splats.slopes(scene, exact, weights)

  rounded = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), scene)
  view = projection.Camera(scene2camera=jnp.asarray(pose, jnp.float32), **size)

  def total(scene, view, limits):
    made = rasterizing.render(scene, view, limits)
    shown = jnp.concatenate([made.image, made.transmittance[..., None]], -1)
    return jnp.sum(weights.astype(np.float32) * shown), made

  slope = jax.jit(jax.grad(total, has_aux=True), static_argnums=2)
  found, made = slope(rounded, view, LIMITS)
  assert made.dropped == 0 and 32 < made.pairs <= LIMITS.pairs
  np.testing.assert_allclose(made.image, image, atol=2e-6)
  np.testing.assert_allclose(made.transmittance, through, atol=2e-6)
  # Something is seen, and the background here more and there less.
  assert image.max() > 0.5 and through.min() < 0.2 and through.max() > 0.7
  for name, ours, theirs in zip(scene._fields, found, expected, strict=True):
    np.testing.assert_allclose(
      ours, theirs, atol=1e-5 * np.abs(theirs).max(), err_msg=name
    )

  # Pairs without room are counted: larger ones meet more tiles. The farthest
  # are left out, so more shines through, and nowhere less.
  larger = scene._replace(log_scales=scene.log_scales + 1.5)
  _, whole = slow_splats.picture(larger, exact)
  larger = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), larger)
  _, cut = slope(larger, view, LIMITS)
  assert cut.dropped == cut.pairs - LIMITS.pairs > 0
  more = cut.transmittance - whole
  assert more.min() > -1e-6 and more.max() > 1e-3


def test_room_is_made_until_a_picture_is_whole(monkeypatch):
  taken = []

  def render(scene, view, limits):
    del scene, view
    taken.append(limits.pairs)
    return rasterizing.Rendering(None, None, 100, max(100 - limits.pairs, 0))

  monkeypatch.setattr(rasterizing, 'render', render)
  made, limits = rasterizing.render_whole.__wrapped__(None, None, LIMITS)
  assert taken == [48, 128] and limits.pairs == 128 and made.dropped == 0
  with pytest.raises(errors.UserError, match='smaller pictures'):
    rasterizing.grown(LIMITS, 2**29)
