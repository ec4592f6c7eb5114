"""Arrays that are on disk, or still to be computed, until they are read.

A checkpoint of several gigabytes passes from one format to another tensor by
tensor: what is held in memory is one of them.
"""

import dataclasses
import math
from typing import Any, Callable, Mapping

import numpy as np

Function = Callable[[np.ndarray], np.ndarray]


@dataclasses.dataclass(frozen=True, eq=False)
class LazyArray:
  """An array of known shape; a leaf for jax.tree.

  Attributes:
    shape: of the array.
    dtype: of the array.
    read: makes the array; nothing is kept.
  """

  shape: tuple[int, ...]
  dtype: np.dtype
  read: Callable[[], np.ndarray]

  @property
  def size(self) -> int:
    """Number of elements."""
    return math.prod(self.shape)

  def map(self, function: Function) -> 'LazyArray':
    """The function's value, whose shape depends on the array's alone."""
    # A view of one number: the shape is found without the array's memory.
    example = np.broadcast_to(np.zeros((), self.dtype), self.shape)
    result = function(example)
    return LazyArray(result.shape, result.dtype, lambda: function(self.read()))


def of(array: np.ndarray) -> LazyArray:
  """An array in memory in the guise of a lazy one."""
  return LazyArray(array.shape, array.dtype, lambda: array)


def nested(flat: Mapping[str, Any]) -> dict[Any, Any]:
  """Nested dicts of values by slash-separated path.

  Numbers in a path become integer keys, as `nnx.to_pure_dict` has them for
  the items of a list.
  """
  tree: dict[Any, Any] = {}
  for path, value in flat.items():
    *parents, last = [
      int(part) if part.isdecimal() else part for part in path.split('/')
    ]
    node = tree
    for part in parents:
      node = node.setdefault(part, {})
    node[last] = value
  return tree


def flattened(tree: Mapping[Any, Any], prefix: str = '') -> dict[str, Any]:
  """The inverse of `nested`."""
  flat = {}
  for key, value in tree.items():
    if isinstance(value, Mapping):
      flat |= flattened(value, f'{prefix}{key}/')
    else:
      flat[f'{prefix}{key}'] = value
  return flat
