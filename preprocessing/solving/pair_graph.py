"""The graph of frame pairs: cycles, components, long-range pairs.

Nodes are frames, edges are frame pairs. Around a cycle relative poses compose
to the identity; where they do not, one of the edges is wrong, and which one is
put to the vote of all short cycles. Frames that no edge joins but a path does
have a composed pose; where they still see the same things they are a long-range
pair. C. Zach et al., "Disambiguating visual relations using loop constraints",
CVPR 2010.
"""

import collections
import dataclasses
import itertools
import math
from typing import Iterable, Mapping, Protocol, runtime_checkable

from jaxtyping import Float, Int
import networkx as nx
import numpy as np
from scipy import sparse, spatial

from odin_jax.shared import camera
from preprocessing.solving import (
  bundle_adjustment,
  relative_pose,
  tracks,
  verification,
)

# Frames no further apart than this many depths see about the same points.
_NEAR = 0.5
# Frames whose surroundings are gathered at a time: what a slow camera has
# around it at each frame is nearly all of the scene.
_BLOCK = 32
# So that of two faultless paths the one with fewer edges is the better one.
_MAX_CONFIDENCE = 0.999


@dataclasses.dataclass(frozen=True, kw_only=True)
class GraphRules:
  """Which edges, closures and long-range pairs hold; `config.graph`.

  Depths are median distances of what a frame sees. Drift is what composed
  poses may be wrong by; it grows with the length of the path between frames.

  Attributes:
    max_cycle_turn_deg: rotations around a cycle of three pairs compose to the
      identity to within this.
    max_cycle_direction_deg: and a pair's translation lies between those of the
      two pairs that it bridges to within this.
    max_long_pairs_per_frame: a video of n frames has at most n times as many
      long-range pairs; 0: none.
    max_baseline: of a long-range pair, in depths.
    min_shared: least share of the points of either frame that are also seen
      around the other.
    min_path_confidence: least product of confidences along its path.
    tries_per_frame: a frame is compared with at most so many frames beyond the
      window to find where the path returns; 0: none.
    max_tries: comparisons of a video.
    min_similarity: two frames may show the same place where their global
      descriptors are at least so alike, with neighbouring frames as 1.
    max_ratio: largest ratio of the descriptor distances of a match and of the
      best other point around either frame; stricter than within one frame.
    min_distinct: least share of matches that pass; with less the place looks
      like others.
    drift_share: how far composed poses may be off, as a share of the path,
    drift_turn_deg: by how much they may have turned per ten depths of path,
    drift_log_scale: and by how much their scale may have changed per ten.
    min_agreeing: so many frames on both sides must agree on a closure,
    min_agreeing_beyond: and so many where it contradicts the composed pose by
      more than drift explains, or joins two components.
  """

  max_cycle_turn_deg: float
  max_cycle_direction_deg: float
  max_long_pairs_per_frame: int
  max_baseline: float
  min_shared: float
  min_path_confidence: float
  tries_per_frame: int
  max_tries: int
  min_similarity: float
  max_ratio: float
  min_distinct: float
  drift_share: float
  drift_turn_deg: float
  drift_log_scale: float
  min_agreeing: int
  min_agreeing_beyond: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class LongPair:
  """Two frames that were not matched but see the same things.

  Attributes:
    source: the earlier frame.
    target: the later frame.
    hops: edges of the most reliable path between them.
    confidence: the product of the confidences of these edges, each the share
      of a pair's matches that obey the joint solution, and at most 0.999.
  """

  source: int
  target: int
  hops: int
  confidence: float


@runtime_checkable
class Solved(Protocol):
  """What long-range pairs are made from: a `solver.Solution`."""

  component: Int[np.ndarray, 'f']
  frame2scene: Float[np.ndarray, 'f 3 4']
  points: Float[np.ndarray, 'p 3']
  observations: bundle_adjustment.Observations
  verifications: Mapping[tracks.FramePair, verification.Verification]


def inconsistent(
  fits: Mapping[tracks.FramePair, relative_pose.PairFit], rules: GraphRules
) -> list[tracks.FramePair]:
  """The edges that cycles of three vote out.

  As long as some cycle does not close, the edge goes that has the largest
  share of broken cycles; among equals that with the most of them, then that
  with the fewest inliers. So the outcome does not depend on the order of the
  edges, and an edge in no cycle stays.

  Args:
    fits: by (source, target), source < target.
    rules: how well a cycle must close.
  """
  cycles = {
    edges: _closes(*(fits[edge] for edge in edges), rules)
    for edges in _triangles(fits)
  }
  cut = []
  while not all(cycles.values()):
    through = collections.Counter(itertools.chain.from_iterable(cycles))
    broken = collections.Counter(
      itertools.chain.from_iterable(
        edges for edges, closes in cycles.items() if not closes
      )
    )
    worst = max(
      broken,
      key=lambda edge: (
        broken[edge] / through[edge],
        broken[edge],
        -fits[edge].inliers.sum(),
        edge,
      ),
    )
    cut.append(worst)
    cycles = {
      edges: closes for edges, closes in cycles.items() if worst not in edges
    }
  return sorted(cut)


def _triangles(
  edges: Iterable[tracks.FramePair],
) -> list[tuple[tracks.FramePair, tracks.FramePair, tracks.FramePair]]:
  """All (a, b), (b, c), (a, c) with a < b < c."""
  graph = nx.Graph(sorted(edges))
  return [
    ((a, b), (b, c), (a, c))
    for a, b in sorted(graph.edges)
    for c in sorted(nx.common_neighbors(graph, a, b))
    if a < b < c
  ]


def _closes(
  first: relative_pose.PairFit,
  second: relative_pose.PairFit,
  bridge: relative_pose.PairFit,
  rules: GraphRules,
) -> bool:
  """Whether two pairs compose to the one that bridges them.

  Translations have no length here, so along a straight path a bridge that goes
  the wrong way shows, and a step that does may not.
  """
  composed = first.target2source[:, :3] @ second.target2source[:, :3]
  off = bridge.target2source[:, :3].T @ composed
  if camera.rotation_angle_deg(off) > rules.max_cycle_turn_deg:
    return False
  step = first.target2source[:, 3]
  next_step = first.target2source[:, :3] @ second.target2source[:, 3]
  whole = bridge.target2source[:, 3]
  off_deg = _off_the_steps_deg(step, next_step, whole)
  return off_deg <= rules.max_cycle_direction_deg


def _off_the_steps_deg(
  step: np.ndarray, next_step: np.ndarray, whole: np.ndarray
) -> float:
  """Angle by which `whole` is no sum of two steps of unknown lengths.

  Vectors are unit vectors, or 0 where nothing moved.
  """
  moving = [vector for vector in (step, next_step) if vector.any()]
  if not whole.any():
    # Back where it began: the second step undoes the first.
    whole, moving = step, [-next_step] if len(moving) == 2 else []
  if not moving:
    return 0.0
  off = [camera.angle_between_deg(whole, vector) for vector in moving]
  if len(moving) == 2:
    lengths, *_ = np.linalg.lstsq(np.stack(moving, axis=1), whole)
    if np.all(lengths > 0):
      between = np.stack(moving, axis=1) @ lengths
      off.append(camera.angle_between_deg(whole, between))
  return float(min(off))


def components(
  num_frames: int, edges: Iterable[tracks.FramePair]
) -> Int[np.ndarray, 'f']:
  """The component of each frame, numbered by first frame; -1 where alone."""
  label = np.full(num_frames, -1)
  graph = nx.Graph(sorted(edges))
  for index, frames in enumerate(
    sorted(nx.connected_components(graph), key=min)
  ):
    label[list(frames)] = index
  return label


def frame_depths(
  frame2scene: Float[np.ndarray, 'f 3 4'],
  points: Float[np.ndarray, 'p 3'],
  observations: bundle_adjustment.Observations,
) -> Float[np.ndarray, 'f']:
  """Median distance of the points that each frame sees; NaN without any."""
  away = np.linalg.norm(
    points[observations.point] - frame2scene[observations.frame, :, 3], axis=1
  )
  order = np.lexsort((away, observations.frame))
  away = away[order]
  counts = np.bincount(observations.frame, minlength=len(frame2scene))
  depths = np.full(len(frame2scene), np.nan)
  middle = np.cumsum(counts) - counts + counts // 2
  depths[counts > 0] = away[middle[counts > 0]]
  return depths


def long_range_pairs(solution: Solved, rules: GraphRules) -> list[LongPair]:
  """Frame pairs with a composed pose that was never matched directly.

  Of those whose frames lie near enough and share enough points, gaps take
  turns; each gives the pair that shares most. So all gaps are as alike in
  number as the video allows. No frame is the earlier one of more than
  `max_long_pairs_per_frame` pairs.

  Args:
    solution: poses, points and verified pairs of a video.
    rules: limits.

  Returns:
    the pairs, sorted by frames.
  """
  shares = _shares(solution, rules)
  paths = _paths(solution, shares, rules)
  by_gap = collections.defaultdict(list)
  for pair in sorted(shares, key=lambda pair: (-shares[pair], pair)):
    if pair in paths:
      by_gap[pair[1] - pair[0]].append(pair)
  # In its turn a gap gives its best pair whose earlier frame has room left.
  left = {gap: iter(by_gap[gap]) for gap in sorted(by_gap)}
  taken = collections.Counter()
  chosen = []
  while left:
    for gap, rest in list(left.items()):
      for pair in rest:
        if taken[pair[0]] < rules.max_long_pairs_per_frame:
          taken[pair[0]] += 1
          chosen.append(pair)
          break
      else:
        del left[gap]
  return [paths[pair] for pair in sorted(chosen)]


def _shares(
  solution: Solved, rules: GraphRules
) -> dict[tracks.FramePair, float]:
  """Expected overlap of the frame pairs that lie near each other.

  The least share of either frame's points that is also seen around the other:
  tracks are short, and a point that is not found again is not out of sight.
  """
  centres = solution.frame2scene[:, :, 3]
  depths = frame_depths(
    solution.frame2scene, solution.points, solution.observations
  )
  apart = spatial.distance.cdist(centres, centres)
  together = (solution.component[:, None] == solution.component) & (
    solution.component >= 0
  )
  visible = sparse.csr_array(
    (
      np.ones(len(solution.observations.frame)),
      (solution.observations.frame, solution.observations.point),
    ),
    shape=(len(centres), len(solution.points)),
  )
  near = sparse.csr_array((together & (apart <= _NEAR * depths)).astype(float))
  counts = np.maximum(visible.sum(axis=1), 1)[:, None]
  share = np.zeros(apart.shape)
  for start in range(0, len(share), _BLOCK):
    block = slice(start, start + _BLOCK)
    around = ((near[block] @ visible) > 0).astype(float)
    share[:, block] = (visible @ around.T).toarray() / counts
  share = np.minimum(share, share.T)
  reach = rules.max_baseline * np.fmin(depths[:, None], depths)
  good = np.triu(together & (apart <= reach) & (share >= rules.min_shared), 1)
  return {
    (first, second): float(share[first, second])
    for first, second in np.argwhere(good).tolist()
    if (first, second) not in solution.verifications
  }


def _paths(
  solution: Solved, pairs: Iterable[tracks.FramePair], rules: GraphRules
) -> dict[tracks.FramePair, LongPair]:
  """The most reliable path of each of these pairs that has one."""
  graph = nx.Graph()
  for (first, second), check in sorted(solution.verifications.items()):
    if check.is_kept:
      confidence = min(check.confidence, _MAX_CONFIDENCE)
      graph.add_edge(first, second, cost=-math.log(confidence))
  cutoff = -math.log(rules.min_path_confidence)
  targets = collections.defaultdict(list)
  for first, second in sorted(pairs):
    targets[first].append(second)
  long_pairs = {}
  for source in targets.keys() & set(graph):
    costs, paths = nx.single_source_dijkstra(
      graph, source, cutoff=cutoff, weight='cost'
    )
    for target in set(targets[source]) & set(paths):
      long_pairs[source, target] = LongPair(
        source=source,
        target=target,
        hops=len(paths[target]) - 1,
        confidence=math.exp(-costs[target]),
      )
  return long_pairs
