"""Memory of arrays that is used again once nobody has the array.

The system hands out fresh memory page by page, each cleared first: of large
arrays that are filled once that takes a good part of the time.
"""

import collections
import math
import weakref

from jaxtyping import Shaped
import numpy as np
from numpy.typing import DTypeLike


class Memory:
  """Makes arrays, of memory of arrays of the same size that are gone.

  An array is gone when nothing refers to it, nor to a view of it: those that
  JAX reads, or copies to a device, are not. Safe to use from threads.
  """

  def __init__(self) -> None:
    self._free: dict[int, list[np.ndarray]] = collections.defaultdict(list)

  def empty(
    self, shape: tuple[int, ...], dtype: DTypeLike
  ) -> Shaped[np.ndarray, '...']:
    """An array whose values mean nothing yet."""
    size = math.prod(shape) * np.dtype(dtype).itemsize
    if not size:
      return np.empty(shape, dtype)
    free = self._free[size]
    try:
      memory = free.pop()
    except IndexError:
      memory = np.empty(size, np.uint8)
    # Views of this array refer to it, not to the memory: it lies behind a
    # buffer, through which NumPy does not look.
    array = np.frombuffer(memoryview(memory), dtype)
    weakref.finalize(array, free.append, memory).atexit = False
    return array.reshape(shape)
