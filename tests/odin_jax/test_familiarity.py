"""Images that are unlike those of training are told apart from their kind."""

import json

import cv2
import numpy as np
import pytest

from odin_jax import familiarity
from odin_jax.checkpoints import pretrained
from odin_jax.shared import errors

SIZE = 32


def pictures(count, seed):
  """Rectangles of many sizes and colours, one over the other."""
  generator = np.random.default_rng(seed)
  images = np.empty((count, SIZE, SIZE, 3), np.uint8)
  for image in images:
    image[:] = generator.integers(60, 200, 3)
    for _ in range(20):
      (x, y), size = (
        generator.integers(0, SIZE, 2),
        generator.integers(2, 14, 2),
      )
      colour = generator.integers(0, 256, 3)
      image[y : y + size[1], x : x + size[0]] = colour
  return images


def unlike(size):
  """White, a ramp, and noise."""
  ramp = np.linspace(0, 255, size).astype(np.uint8)[:, None, None]
  noise = np.random.default_rng(0).integers(0, 256, (size, size, 3), np.uint8)
  return [np.full_like(noise, 255), np.broadcast_to(ramp, noise.shape), noise]


def test_few_of_its_kind_are_beyond_the_limit_and_what_is_unlike_is():
  known = familiarity.of_images(pictures(300, 0))
  new = pictures(200, 1)
  distances = np.array([known.distance(image) for image in new])
  assert 0.8 < np.median(distances) < 1.2
  assert (distances > known.limit).mean() < 0.08
  blurred = [cv2.GaussianBlur(image, (0, 0), 2) for image in new[:20]]
  for image in (*unlike(SIZE), *blurred):
    assert known.distance(image) > known.limit


def test_the_distance_is_that_of_mahalanobis():
  images = pictures(familiarity.FEWEST_IMAGES, 2)
  known = familiarity.of_images(images)
  rows = np.stack([familiarity.features(image) for image in images[::2]])
  correlations = np.corrcoef(rows.T)
  shrunk = 0.95 * correlations + 0.05 * np.eye(len(correlations))
  z = (familiarity.features(images[1]) - rows.mean(0)) / rows.std(0)
  expected = np.sqrt(z @ np.linalg.solve(shrunk, z) / len(z))
  # A thousandth is added to every deviation.
  assert known.distance(images[1]) == pytest.approx(expected, rel=0.05)
  # Two of a hundred are beyond the limit, of what it was not fitted to.
  others = [known.distance(image) for image in images[1::2]]
  expected = np.quantile(others, familiarity.QUANTILE)
  assert known.limit == max(familiarity.LEAST_LIMIT, expected)
  # Images that are nearly one say little of how much their kind varies.
  same = np.repeat(images[:1], len(images), axis=0)
  assert familiarity.of_images(same).limit == familiarity.LEAST_LIMIT


def test_it_is_read_as_it_was_written_and_damage_is_refused(tmp_path):
  assert familiarity.read(tmp_path) is None
  familiarity.write(tmp_path, pictures(familiarity.FEWEST_IMAGES - 1, 0))
  assert familiarity.read(tmp_path) is None
  images = pictures(familiarity.FEWEST_IMAGES, 0)
  familiarity.write(tmp_path, images)
  expected = familiarity.of_images(images)
  for image in images[:3]:
    distance = familiarity.read(tmp_path).distance(image)
    assert distance == expected.distance(image)
  assert familiarity.read(tmp_path).is_of_lens(20.0)
  familiarity.write(tmp_path, images, (60.0, 90.0))
  known = familiarity.read(tmp_path)
  asked = [30.0, 45.0, 55.0, 75.0, 95.0, 110.0, 130.0]
  assert [known.is_of_lens(fov_deg) for fov_deg in asked] == [
    *(False, False, True, True, True, False, False)
  ]
  path = tmp_path / familiarity.NAME
  content = json.loads(path.read_text())
  for changed in (
    {'limit': content['limit'] + 1},
    {'mean': content['mean'][1:]},
    {'inverse': None},
    {'fov_deg': [60, 80]},
    {'fov_deg': [60]},
  ):
    path.write_text(json.dumps(content | changed))
    with pytest.raises(errors.UserError, match='damaged'):
      familiarity.read(tmp_path)
  path.write_text('{')
  with pytest.raises(errors.UserError, match='no whole JSON'):
    familiarity.read(tmp_path)


def test_the_checkpoint_of_the_project_knows_what_is_unlike_its_worlds(
  tmp_path, monkeypatch
):
  monkeypatch.chdir(tmp_path)  # no folder of that name is here
  known = familiarity.read('pretrained')
  size = pretrained.read_note()['config']['image_size_px']
  path = pretrained.FOLDER / familiarity.NAME
  assert json.loads(path.read_text())['image_size_px'] == size
  for image in unlike(size):
    assert known.distance(image) > 2 * known.limit


def test_it_takes_photographs_of_small_things_for_unlike_worlds(shared_data):
  known = familiarity.read(pretrained.FOLDER)
  for path in sorted((shared_data / 'dtu_scan24' / 'image').iterdir())[:3]:
    image = cv2.imread(str(path))[:, 200:1400, ::-1]
    image = cv2.resize(image, (64, 64), interpolation=cv2.INTER_AREA)
    assert known.distance(image) > known.limit
