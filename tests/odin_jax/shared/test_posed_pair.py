"""Pairs with several sources keep them where they are to each other."""

import numpy as np

from odin_jax.shared import camera, posed_pair


def poses(rng, *shape):
  rotation = np.linalg.qr(rng.normal(size=(*shape, 3, 3)))[0]
  rotation *= np.linalg.det(rotation)[..., None, None]
  return camera.make_pose(rotation, rng.normal(size=(*shape, 3)))


def a_batch(rng, count=3, num_more=2):
  size = 4
  return posed_pair.PosedPair(
    source=np.zeros((count, size, size, 3), np.uint8),
    target=np.zeros((count, size, size, 3), np.uint8),
    target2source=poses(rng, count),
    fov_deg=np.full(count, 90.0),
    median_depth=np.ones(count),
    more=posed_pair.MoreViews(
      image=np.zeros((count, num_more, size, size, 3), np.uint8),
      target2view=poses(rng, count, num_more),
      fov_deg=np.full((count, num_more), 90.0),
      is_there=np.ones((count, num_more), bool),
    ),
  )


def source2views(pairs):
  """Poses of the source in every further view, which no target changes."""
  source2target = camera.inverse(pairs.target2source)[:, None]
  views = pairs.more.target2view
  return camera.compose(views, np.broadcast_to(source2target, views.shape))


def test_another_target_moves_no_view():
  """As of poses that are shuffled: nothing tells of the true one."""
  pairs = a_batch(np.random.default_rng(0))
  order = np.array([1, 2, 0])
  given = posed_pair.aimed(pairs, pairs.target2source[order])
  assert given.target is None
  np.testing.assert_array_equal(given.target2source, pairs.target2source[order])
  np.testing.assert_allclose(
    source2views(given), source2views(pairs), atol=1e-12
  )
  moved = given.more.target2view - pairs.more.target2view
  assert (np.abs(moved).max(axis=(2, 3)) > 0.1).all()
  alone = posed_pair.aimed(pairs._replace(more=None), pairs.target2source)
  assert alone.more is None


def test_another_unit_is_that_of_all_views():
  pairs = a_batch(np.random.default_rng(1))
  given = posed_pair.rescaled(pairs, 2.5)
  expected = source2views(pairs)
  expected[..., 3] *= 2.5
  np.testing.assert_allclose(source2views(given), expected, atol=1e-12)
  np.testing.assert_array_equal(
    given.target2source, camera.rescale(pairs.target2source, 2.5)
  )
  assert posed_pair.rescaled(pairs._replace(more=None), 2.0).more is None
