"""Which frames are compared, and which features are one point of the scene."""

from typing import Mapping

from jaxtyping import Int
import numpy as np
from scipy import sparse
from scipy.sparse import csgraph

FramePair = tuple[int, int]


def candidates(num_frames: int, max_gap: int) -> list[FramePair]:
  """All (earlier, later) frames at most `max_gap` frames apart, by gap."""
  return [
    (first, first + gap)
    for gap in range(1, max_gap + 1)
    for first in range(num_frames - gap)
  ]


class Tracks:
  """Features of several frames that show the same point.

  Attributes:
    frame: frame of each observation.
    feature: index of the observation's feature in its frame.
    point: index of the observation's point, 0 .. num_points - 1.
    num_points: number of points.
    num_dropped: chains of matches that reached one frame twice, so that they
      cannot be one point.
  """

  def __init__(
    self,
    matches: Mapping[FramePair, Int[np.ndarray, 'm 2']],
    num_features: list[int],
  ):
    """Joins pairwise matches into points.

    Args:
      matches: index pairs of features, by frame pair.
      num_features: number of features of each frame.
    """
    starts = np.concatenate([[0], np.cumsum(num_features)])
    pairs = [
      matched + [[starts[first], starts[second]]]
      for (first, second), matched in sorted(matches.items())
    ]
    edges = np.concatenate([*pairs, np.zeros((0, 2), np.int64)])
    graph = sparse.coo_array(
      (np.ones(len(edges)), (edges[:, 0], edges[:, 1])),
      shape=(starts[-1], starts[-1]),
    )
    count, label = csgraph.connected_components(graph, directed=False)
    frame = np.repeat(np.arange(len(num_features)), num_features)
    feature = np.arange(starts[-1]) - starts[frame]
    size = np.bincount(label, minlength=count)
    twice = np.zeros(count, bool)
    order = np.lexsort((frame, label))
    again = (np.diff(label[order]) == 0) & (np.diff(frame[order]) == 0)
    twice[label[order][1:][again]] = True
    good = (size > 1) & ~twice
    kept = good[label]
    self.num_dropped = int(twice.sum())
    self.num_points = int(good.sum())
    self.frame = frame[kept]
    self.feature = feature[kept]
    self.point = (np.cumsum(good) - 1)[label[kept]]

  def by_feature(
    self, frame: int, num_features: int
  ) -> Int[np.ndarray, 'n']:
    """The point of each feature of a frame, -1 where it has none."""
    points = np.full(num_features, -1)
    here = self.frame == frame
    points[self.feature[here]] = self.point[here]
    return points
