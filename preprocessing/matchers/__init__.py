"""What a matcher is, and which there are.

A matcher describes a panorama by points on the sphere and says which points of
two panoramas show the same thing. Poses, scale and records are made from its
answers alone and know no matcher by name.
"""

import dataclasses
import importlib
from typing import Any, Protocol, runtime_checkable

from jaxtyping import Float, Float32, Int
import numpy as np

_MODULES = {'sphere': 'preprocessing.matchers.sphere'}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Features:
  """Points of one panorama.

  Attributes:
    rays: unit bearing vectors in the axes of the frame.
    noise_rad: how well each point is located.
    descriptors: unit vectors; alike where the points look alike.
  """

  rays: Float[np.ndarray, 'n 3']
  noise_rad: Float[np.ndarray, 'n']
  descriptors: Float32[np.ndarray, 'n d']

  def __len__(self) -> int:
    return len(self.rays)

  def subset(self, keep: np.ndarray) -> 'Features':
    """The features that `keep` (a mask or indices) selects."""
    return Features(
      rays=self.rays[keep],
      noise_rad=self.noise_rad[keep],
      descriptors=self.descriptors[keep],
    )


@runtime_checkable
class Matcher(Protocol):
  """A source of features and matches; `name` goes into the records."""

  name: str

  def describe(self, panorama: np.ndarray) -> Features:
    """Features of a panorama, uint8 [h, w, 3]."""

  def match(
    self,
    source: Features,
    target: Features,
    *,
    expected: Float[np.ndarray, 'n 3'] | None = None,
    gate_rad: float = 0.0,
  ) -> Int[np.ndarray, 'm 2']:
    """Index pairs (source, target) of the same points.

    Args:
      source: features of the source panorama.
      target: features of the target panorama.
      expected: where each source point should lie in the target frame, NaN
        where that is unknown (such a point is not matched); None: anywhere.
      gate_rad: largest distance from the expected place.
    """


NAMES = tuple(sorted(_MODULES))


def make(name: str, options: dict[str, Any]) -> Matcher:
  """The matcher of that name.

  Raises:
    ValueError: there is no such matcher.
  """
  if name not in _MODULES:
    raise ValueError(f'matcher {name!r} is none of {NAMES}')
  return importlib.import_module(_MODULES[name]).make(options)
