"""Scale resolver: one gauge for pairs that each have their own.

A pair of frames gives a translation of unknown length; points triangulated
from it are too far or too near by the same factor. Two pairs that share a
frame see the same points from it at the same depth. With x = log of a pair's
scale and d = depth in the pair's own gauge,

  x_a - x_b = median over shared points of (log d_b - log d_a),

one equation per couple of pairs, solved for all pairs at once by iteratively
reweighted least squares (the L1 norm: a wrong equation costs what it is off,
not its square). Connected pairs form one component; its first pair has x = 0.
"""

import collections
import dataclasses
import itertools
from typing import Sequence

from jaxtyping import Float, Int
import numpy as np
from scipy import sparse
from scipy.sparse import csgraph, linalg

_ITERATIONS = 20
# In log scale; below it residuals count as squares.
_SMALL = 1e-3
# Log scale is fixed up to one constant per component; this holds it.
_ANCHOR = 1e-6


@dataclasses.dataclass(frozen=True, kw_only=True)
class PairDepths:
  """What one pair says of depth, with its translation taken as 1.

  Attributes:
    places: the two places (frames, or frames that did not move taken as one)
      where the pair was seen from.
    points: ids of the points, the same in all pairs.
    depths: distances of the points from the first and from the second place.
  """

  places: tuple[int, int]
  points: Int[np.ndarray, 'm']
  depths: Float[np.ndarray, '2 m']


@dataclasses.dataclass(frozen=True, kw_only=True)
class Link:
  """One equation: x[first] - x[second] = log_ratio."""

  first: int
  second: int
  log_ratio: float
  weight: float


def links(pairs: Sequence[PairDepths], *, min_shared: int) -> list[Link]:
  """The equations between pairs that share a place and enough points."""
  at_place: dict[int, list[tuple[int, int]]] = collections.defaultdict(list)
  for index, pair in enumerate(pairs):
    for side, place in enumerate(pair.places):
      at_place[place].append((index, side))
  found = []
  for place in sorted(at_place):
    for one, other in itertools.combinations(at_place[place], 2):
      link = _link(pairs, one, other, min_shared)
      if link is not None:
        found.append(link)
  return found


def _link(
  pairs: Sequence[PairDepths],
  one: tuple[int, int],
  other: tuple[int, int],
  min_shared: int,
) -> Link | None:
  (first, first_side), (second, second_side) = one, other
  if first == second:
    return None
  a, b = pairs[first], pairs[second]
  _, in_a, in_b = np.intersect1d(a.points, b.points, return_indices=True)
  if len(in_a) < min_shared:
    return None
  ratios = np.log(b.depths[second_side, in_b] / a.depths[first_side, in_a])
  centre = float(np.median(ratios))
  spread = 1.4826 * np.median(np.abs(ratios - centre))
  # Standard error of a median, 1.25 sigma / sqrt(n).
  error = 1.25 * (spread + _SMALL) / np.sqrt(len(ratios))
  return Link(
    first=first, second=second, log_ratio=centre, weight=1 / float(error)
  )


def resolve(
  num_pairs: int, equations: Sequence[Link]
) -> tuple[Float[np.ndarray, 'p'], Int[np.ndarray, 'p']]:
  """Solves for the log scale of every pair.

  Returns:
    log scales, 0 for the first pair of each component; and the component of
    each pair, numbered by first appearance.
  """
  first = np.array([link.first for link in equations], np.int64)
  second = np.array([link.second for link in equations], np.int64)
  ratio = np.array([link.log_ratio for link in equations])
  weight = np.array([link.weight for link in equations])
  rows = np.arange(len(equations))
  graph = sparse.coo_array(
    (np.ones(len(rows)), (first, second)), shape=(num_pairs, num_pairs)
  )
  _, labels = csgraph.connected_components(graph, directed=False)
  _, heads, labels = np.unique(labels, return_index=True, return_inverse=True)
  order = np.argsort(np.argsort(heads))
  labels = order[labels]
  if not len(rows):
    return np.zeros(num_pairs), labels
  design = sparse.csr_array(
    (
      np.concatenate([np.ones(len(rows)), -np.ones(len(rows))]),
      (np.concatenate([rows, rows]), np.concatenate([first, second])),
    ),
    shape=(len(rows), num_pairs),
  )
  scales = np.zeros(num_pairs)
  robust = np.ones(len(rows))
  for _ in range(_ITERATIONS):
    weighted = design.T @ sparse.diags_array(weight * robust)
    normal = weighted @ design + _ANCHOR * sparse.eye_array(num_pairs)
    scales = linalg.spsolve(sparse.csc_array(normal), weighted @ ratio)
    robust = 1 / np.maximum(np.abs(design @ scales - ratio), _SMALL)
  return scales - scales[np.sort(heads)][labels], labels
