"""Scale averaging: one scale for pairs that each have their own.

A pair of frames gives a translation of unknown length; points triangulated
from it are too far or too near by the same factor. Two pairs that share a
frame see the same points from it at the same depth. With x = log of a pair's
scale and d = depth in the pair's own unit,

  x_a - x_b = median over shared points of (log d_b - log d_a),

one equation per couple of pairs, each with a standard error e. All pairs are
solved for at once, at the least sum of Cauchy losses of r / e, where r is by
how much an equation is missed:

  sum log(1 + (r / (c e))^2).

A wrong equation hardly counts, but there are many minima. So the sum of |r| / e
is made least first, which has one minimum; then the loss is narrowed by and by
to Cauchy's; then parts of the graph whose equations disagree take the scale
that most of them vote for: both sides of each edge of the spanning tree of the
best kept equations. All by iteratively reweighted least squares. P. Holland
and R. Welsch, "Robust regression using iteratively reweighted least-squares",
Communications in Statistics 6(9), 1977 (its c makes 95 % of the efficiency of
least squares); A. Blake and A. Zisserman, "Visual Reconstruction", 1987
(graduated non-convexity).

Equations missed by many standard errors are outliers: reported, not silently
outvoted. Connected pairs form one component; its first pair has x = 0.
"""

import collections
import dataclasses
import itertools
from typing import Iterator, NamedTuple, Sequence

from jaxtyping import Bool, Float, Int
import numpy as np
from scipy import sparse
from scipy.sparse import csgraph, linalg

_L1_ITERATIONS = 20
# Width of Cauchy's loss, in standard errors.
_WIDTH = 2.385
# Multiples of it, the widest first, and least squares solved at each.
_STAGES = ((64.0, 5), (16.0, 5), (4.0, 5), (1.0, 15))
_MAX_VOTES = 20
# Of the moves that equations ask of a part, about so many are weighed.
_MAX_MOVES = 100
# In log scale: no equation is better known than this.
_SMALL = 1e-3
# Outliers are missed by more standard errors than this.
_REJECTED = 4.0


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
  """One equation: x[first] - x[second] = log_ratio, give or take `error`."""

  first: int
  second: int
  log_ratio: float
  error: float


class Outlier(NamedTuple):
  """An equation that the others contradict.

  Attributes:
    first: as in the equation.
    second: as in the equation.
    residual: x[first] - x[second] - log_ratio.
    error: standard error that the equation claims.
  """

  first: int
  second: int
  residual: float
  error: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class Scales:
  """One scale per component.

  Attributes:
    log_scale: of each pair; 0 for the first pair of each component.
    component: of each pair, numbered by first appearance.
    outliers: in the order of the equations.
  """

  log_scale: Float[np.ndarray, 'p']
  component: Int[np.ndarray, 'p']
  outliers: list[Outlier]


def links(pairs: Sequence[PairDepths], *, min_shared: int) -> list[Link]:
  """The equations between pairs that share a place and enough points."""
  at_place: dict[int, list[tuple[int, int]]] = collections.defaultdict(list)
  for index, pair in enumerate(pairs):
    for side, place in enumerate(pair.places):
      at_place[place].append((index, side))
  equations = []
  for place in sorted(at_place):
    for first, second in itertools.combinations(at_place[place], 2):
      link = _link(pairs, first, second, min_shared)
      if link is not None:
        equations.append(link)
  return equations


def _link(
  pairs: Sequence[PairDepths],
  first_end: tuple[int, int],
  second_end: tuple[int, int],
  min_shared: int,
) -> Link | None:
  """The equation of two ends (pair, side) at one place, if there is one."""
  (first, first_side), (second, second_side) = first_end, second_end
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
  error = float(np.hypot(1.25 * spread / np.sqrt(len(ratios)), _SMALL))
  return Link(first=first, second=second, log_ratio=centre, error=error)


def resolve(num_pairs: int, equations: Sequence[Link]) -> Scales:
  """Solves for the log scale of every pair."""
  # In one order, whatever order they come in: of many minima it finds the same.
  ordered = sorted(map(_forward, equations), key=dataclasses.astuple)
  log_scale = _System(num_pairs, ordered).solve()
  system = _System(num_pairs, equations)
  residual = system.residuals(log_scale)
  outliers = [
    Outlier(
      first=equations[index].first,
      second=equations[index].second,
      residual=float(residual[index]),
      error=float(system.error[index]),
    )
    for index in np.flatnonzero(system.missed(log_scale))
  ]
  return Scales(
    log_scale=log_scale, component=system.component, outliers=outliers
  )


def _forward(link: Link) -> Link:
  """The same equation, from the pair of the lower number."""
  if link.first <= link.second:
    return link
  return dataclasses.replace(
    link,
    first=link.second,
    second=link.first,
    log_ratio=-link.log_ratio,
  )


class _System:
  """All equations at once; x without the first pair of each component."""

  def __init__(self, num_pairs: int, equations: Sequence[Link]):
    self._ends = np.array(
      [(link.first, link.second) for link in equations], np.int64
    ).reshape(-1, 2)
    self._ratio = np.array([link.log_ratio for link in equations], np.float64)
    self.error = np.array([link.error for link in equations], np.float64)
    graph = sparse.coo_array(
      (np.ones(len(self._ends)), tuple(self._ends.T)),
      shape=(num_pairs, num_pairs),
    )
    _, label = csgraph.connected_components(graph, directed=False)
    _, heads, label = np.unique(label, return_index=True, return_inverse=True)
    self.component = np.argsort(np.argsort(heads))[label]
    self._head = heads[label]
    self._free = self._head != np.arange(num_pairs)
    rows = np.repeat(np.arange(len(self._ends)), 2)
    signs = np.tile([1.0, -1.0], len(self._ends))
    self._design = sparse.csc_array(
      (signs, (rows, self._ends.ravel())), shape=(len(self._ends), num_pairs)
    )
    self._free_design = self._design[:, self._free]

  def residuals(self, log_scale: np.ndarray) -> Float[np.ndarray, 'e']:
    """By how much each equation is missed."""
    return self._design @ log_scale - self._ratio

  def missed(self, log_scale: np.ndarray) -> Bool[np.ndarray, 'e']:
    """Which equations are outliers."""
    return np.abs(self.residuals(log_scale)) > _REJECTED * self.error

  def solve(self) -> Float[np.ndarray, 'p']:
    """See the module docstring."""
    if not self._free.any():
      return np.zeros(len(self._free))
    weight = 1 / self.error
    for _ in range(_L1_ITERATIONS):
      log_scale = self._least_squares(weight)
      off = np.abs(self.residuals(log_scale))
      weight = 1 / (self.error * np.maximum(off, _SMALL))
    log_scale = self._narrow(log_scale, _STAGES)
    for _ in range(_MAX_VOTES):
      if not self.missed(log_scale).any():
        break
      voted = self._narrow(self._vote(log_scale), _STAGES[-1:])
      if self._cost(voted) > self._cost(log_scale) - 1e-6:
        break
      log_scale = voted
    return log_scale

  def _least_squares(self, weight: np.ndarray) -> Float[np.ndarray, 'p']:
    design = self._free_design
    weighted = design.T @ sparse.diags_array(weight)
    log_scale = np.zeros(len(self._free))
    log_scale[self._free] = linalg.spsolve(
      sparse.csc_array(weighted @ design), weighted @ self._ratio
    )
    return log_scale

  def _narrow(
    self, log_scale: np.ndarray, stages: Sequence[tuple[float, int]]
  ) -> Float[np.ndarray, 'p']:
    """Least squares reweighted for Cauchy's loss at each width in turn."""
    for width, iterations in stages:
      for _ in range(iterations):
        off = self.residuals(log_scale) / (width * _WIDTH * self.error)
        weight = 1 / (self.error**2 * (1 + off**2))
        log_scale = self._least_squares(weight)
    return log_scale

  def _cost(self, log_scale: np.ndarray) -> float:
    return float(_loss(self.residuals(log_scale) / self.error).sum())

  def _vote(self, log_scale: np.ndarray) -> Float[np.ndarray, 'p']:
    """Moves parts of the graph to where the equations that hold them agree."""
    log_scale = log_scale.copy()
    for part in self._parts(log_scale):
      inside = np.zeros(len(log_scale), bool)
      inside[part] = True
      inside = inside[self._ends]
      border = np.flatnonzero(inside[:, 0] != inside[:, 1])
      sign = np.where(inside[border, 0], 1.0, -1.0)
      off = sign * (
        np.subtract(*log_scale[self._ends[border].T]) - self._ratio[border]
      )
      # Each equation would have the part moved by this; or it stays.
      moves = np.append(0.0, -off[:: 1 + len(off) // _MAX_MOVES])
      losses = _loss((off + moves[:, None]) / self.error[border]).sum(axis=1)
      log_scale[part] += moves[losses.argmin()]
    return log_scale - log_scale[self._head]

  def _parts(self, log_scale: np.ndarray) -> Iterator[Int[np.ndarray, 'm']]:
    """What hangs on each edge of the tree of the best kept equations."""
    missed = np.abs(self.residuals(log_scale)) / self.error
    graph = sparse.csr_array(
      # No equation is kept exactly: 0 would be none at all.
      (missed + 1e-9, self._ends.T.astype(np.int32)),
      shape=(len(log_scale), len(log_scale)),
    )
    tree = csgraph.minimum_spanning_tree(graph)
    for head in np.unique(self._head):
      order, before = csgraph.depth_first_order(tree, head, directed=False)
      size = np.ones(len(log_scale), np.int64)
      for pair in order[:0:-1]:
        size[before[pair]] += size[pair]
      for place, pair in enumerate(order[1:], 1):
        yield order[place : place + size[pair]]


def _loss(off: np.ndarray) -> np.ndarray:
  """Cauchy's loss of residuals in standard errors."""
  return np.log1p((off / _WIDTH) ** 2)
