"""Features where they are, and matches that are each other's nearest."""

import numpy as np

from odin_jax.geometry import matching
from odin_jax.shared import camera


def blobs(centres, sigmas, size_px=96):
  """Round bright spots on grey; `centres` in pixels, 0.5 the first one's."""
  u, v = camera.pixel_centres(size_px, size_px)
  image = np.full((size_px, size_px), 60.0)
  for (x, y), sigma in zip(centres, sigmas):
    image += 150 * np.exp(-((u - x) ** 2 + (v - y) ** 2) / (2 * sigma**2))
  return np.repeat(np.rint(image).astype(np.uint8)[..., None], 3, axis=-1)


def test_a_feature_is_in_the_middle_of_what_it_is_of():
  centres = np.array([[24.0, 30.5], [60.25, 70.0], [70.0, 22.75]])
  found = matching.features(blobs(centres, [2.0, 3.0, 4.0]))
  for centre in centres:
    distance = np.linalg.norm(found.points - centre, axis=1)
    # Half a pixel off where pixels are counted otherwise.
    assert distance.min() < 0.1
  np.testing.assert_allclose(np.linalg.norm(found.descriptors, axis=1), 1)


def test_what_has_no_texture_has_no_features_and_no_matches():
  blank = matching.features(np.full((40, 60, 3), 80, np.uint8))
  assert blank.points.shape == (0, 2) and blank.descriptors.shape == (0, 128)
  spots = matching.features(blobs([[40.0, 40.0], [60.0, 20.0]], [3.0, 3.0]))
  for pair in ((blank, spots), (spots, blank), (blank, blank)):
    assert [len(points) for points in matching.matches(*pair)] == [0, 0]


def unit(rows):
  rows = np.asarray(rows, np.float64)
  wide = np.zeros((len(rows), 128))
  wide[:, : rows.shape[1]] = rows
  return wide / np.linalg.norm(wide, axis=1, keepdims=True)


def test_matches_are_the_nearest_both_ways_and_by_far():
  a = matching.Features(
    np.arange(6.0).reshape(3, 2), unit([[1, 0, 0], [0, 1, 0], [0, 0, 1]])
  )
  b = matching.Features(
    10 + np.arange(8.0).reshape(4, 2),
    # Of the first; two alike of the second; further from the third.
    unit([[1, 0.1, 0], [0.1, 1, 0], [0, 1, 0.1], [0, 0.1, 0.9]]),
  )
  points_a, points_b = matching.matches(a, b)
  np.testing.assert_array_equal(points_a, a.points[[0, 2]])
  np.testing.assert_array_equal(points_b, b.points[[0, 3]])
  # The other way round they are the same.
  again_b, again_a = matching.matches(b, a)
  np.testing.assert_array_equal(again_a, points_a)
  np.testing.assert_array_equal(again_b, points_b)
