"""Memory that is used again: never while anybody looks at it."""

import jax
import numpy as np

from odin_jax.shared import recycling


def test_memory_is_used_again_once_all_views_are_gone():
  memory = recycling.Memory()
  first = memory.empty((4, 8), np.float32)
  place = first.ctypes.data
  first[...] = 1
  part = first.reshape(-1)[3:5]
  del first
  other = memory.empty((4, 8), np.float32)
  assert other.ctypes.data != place
  other[...] = 2
  assert part.tolist() == [1, 1]
  del part
  # As many bytes, another shape.
  again = memory.empty((16, 4), np.int16)
  assert again.ctypes.data == place and other.sum() == 64
  assert memory.empty((0, 3), np.uint8).shape == (0, 3)


def test_what_jax_was_given_stays():
  memory = recycling.Memory()
  given = []
  for value in range(4):
    array = memory.empty((32, 64), np.float32)
    array[...] = value
    given.append(jax.device_put(array))
  assert [float(x.mean()) for x in given] == [0, 1, 2, 3]
