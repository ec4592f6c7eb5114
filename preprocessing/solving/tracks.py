"""Which frames are compared, and which features are one point of the scene."""

from typing import Iterator, Mapping

from jaxtyping import Int
import numpy as np

FramePair = tuple[int, int]
Matches = Mapping[FramePair, Int[np.ndarray, '_ 2']]


def window_pairs(num_frames: int, max_gap: int) -> list[FramePair]:
  """All (earlier, later) frames at most `max_gap` frames apart, by gap."""
  return [
    (first, first + gap)
    for gap in range(1, max_gap + 1)
    for first in range(num_frames - gap)
  ]


class Tracks:
  """Features of several frames that show the same point of the scene.

  Matches are joined one by one, those of the shortest gaps first; a match that
  would give a point two features in one frame is refused, so that a wrong
  match cannot tear down the points on both of its sides.

  Attributes:
    frame: frame of each observation; observations are sorted by point.
    feature: index of the observation's feature in its frame.
    point: index of the observation's point, 0 .. num_points - 1.
    num_points: number of points.
    num_refused: number of matches refused.
  """

  def __init__(self, matches: Matches, num_features: list[int]):
    """Joins matches.

    Args:
      matches: index pairs of features, by frame pair.
      num_features: number of features of each frame.
    """
    starts = np.concatenate([[0], np.cumsum(num_features)]).astype(np.int64)
    self._starts = starts
    frame_of = np.repeat(np.arange(len(num_features)), num_features)
    parent = list(range(int(starts[-1])))
    frame = frame_of.tolist()
    # Frames that show a point, by the root of its features; a root that is not
    # here is a feature by itself.
    frames: dict[int, set[int]] = {}

    def root(node: int) -> int:
      while parent[node] != node:
        parent[node] = parent[parent[node]]
        node = parent[node]
      return node

    self.num_refused = 0
    for source, target in _edges(matches, starts):
      kept, joined = root(source), root(target)
      if kept == joined:
        continue
      shown = frames.get(kept) or {frame[kept]}
      also_shown = frames.get(joined) or {frame[joined]}
      if not shown.isdisjoint(also_shown):
        self.num_refused += 1
        continue
      parent[joined] = kept
      shown |= also_shown
      frames[kept] = shown
      frames.pop(joined, None)
    roots = np.array([root(node) for node in range(len(parent))], np.int64)
    size = np.bincount(roots, minlength=len(parent))
    kept = np.flatnonzero(size[roots] > 1)
    order = kept[np.argsort(roots[kept], kind='stable')]
    self.frame = frame_of[order]
    self.feature = order - starts[self.frame]
    _, self.point = np.unique(roots[order], return_inverse=True)
    self.num_points = int(self.point.max(initial=-1)) + 1

  def point_ids(self) -> list[Int[np.ndarray, '_']]:
    """For each frame, the point of each of its features; -1 for none."""
    points = np.full(self._starts[-1], -1)
    points[self._starts[self.frame] + self.feature] = self.point
    return np.split(points, self._starts[1:-1])


def _edges(
  matches: Matches, starts: Int[np.ndarray, 'f']
) -> Iterator[tuple[int, int]]:
  for first, second in sorted(
    matches, key=lambda pair: (pair[1] - pair[0], pair)
  ):
    shifted = matches[first, second] + [[starts[first], starts[second]]]
    yield from map(tuple, shifted.tolist())
