"""Views are made from those that exist, and shown as soon as they do."""

import numpy as np

from odin_jax.generating import given, imagining

SIZE = 8


class Model:
  """Each view is the source's, one level brighter."""

  image_size_px = SIZE
  protocol: dict[str, int] = {}

  def __init__(self):
    self.counts = []

  def predict(self, pairs, seeds):
    self.counts.append(len(seeds))
    return pairs.source / np.float32(255) + np.float32(1 / 255)


def walk(sources):
  poses = np.tile(np.eye(3, 4), (len(sources) + 1, 1, 1))
  start = given.Given(
    image=np.full((SIZE, SIZE, 3), 100, np.uint8),
    fov_deg=90.0,
    fov_from='flag',
    is_panorama=False,
  )
  return imagining.Walk(
    start=start,
    camera2scene=poses,
    sources=sources,
    seeds=np.arange(len(poses)),
  )


def test_views_are_shown_as_they_are_made():
  model, shown = Model(), []
  # Of the first walk 4 is made from 1; of the second all from what is given.
  walks = [walk({1: [0], 2: [0], 3: [0], 4: [1]}), walk({1: [0], 2: [0]})]

  def show(number, index, view):
    # What was asked for before it exists, and what it looks like.
    shown.append((len(model.counts), number, index, int(view[0, 0, 0])))

  made = imagining.imagine(model, walks, 1, at_once=3, show=show)
  assert model.counts == [3, 3]
  assert shown == [
    (0, 0, 0, 100),
    (0, 1, 0, 100),
    (1, 0, 1, 101),
    (1, 0, 2, 101),
    (1, 0, 3, 101),
    (2, 0, 4, 102),
    (2, 1, 1, 101),
    (2, 1, 2, 101),
  ]
  assert [views[:, 0, 0, 0].tolist() for views in made] == [
    [100, 101, 101, 101, 102],
    [100, 101, 101],
  ]
  (alone,) = imagining.imagine(Model(), walks[:1], 1)
  np.testing.assert_array_equal(alone, made[0])
