"""Matches the frame pairs of a video, near where their points are expected."""

import dataclasses
from typing import Mapping, Sequence

from jaxtyping import Float, Int
import numpy as np

from odin_jax.shared import camera
from preprocessing import matchers
from preprocessing.solving import reconstruction, tracks


@dataclasses.dataclass(frozen=True, kw_only=True)
class PairMatches:
  """What a matcher says of frame pairs.

  Attributes:
    matches: index pairs of features, by frame pair.
    matcher_poses: of the pairs of which the matcher says a pose, too.
  """

  matches: tracks.Matches
  matcher_poses: Mapping[tracks.FramePair, matchers.PairPose]


class PairMatcher:
  """Asks a matcher about the frame pairs of one video, and counts its work.

  Args:
    matcher: what made the features.
    features: of each keyframe.
    tracked_rays: for each keyframe but the last, where its points are in the
      next one; NaN for those that were lost.
    gate_rad: a match lies at most so far from where it is expected.
  """

  def __init__(
    self,
    matcher: matchers.Matcher,
    features: Sequence[matchers.Features],
    tracked_rays: Sequence[Float[np.ndarray, '_ 3']],
    *,
    gate_rad: float,
  ):
    self._matcher = matcher
    self._features = features
    self._tracked_rays = tracked_rays
    self._gate_rad = gate_rad
    self._requests = 0
    self._calls_before = _calls(matcher)

  def match(
    self,
    source: matchers.Features,
    target: matchers.Features,
    expected: Float[np.ndarray, 'n 3'] | None = None,
  ) -> Int[np.ndarray, 'm 2']:
    """Index pairs of the same points in two frames; see `matchers.Matcher`."""
    self._requests += 1
    matches = self._matcher.match(
      source, target, expected=expected, gate_rad=self._gate_rad
    )
    matchers.check_matches(self._matcher.name, matches, source, target)
    return matches

  def match_neighbours(self) -> PairMatches:
    """Matches each frame with the next, near where its points were tracked."""
    matches, matcher_poses = {}, {}
    for frame, expected in enumerate(self._tracked_rays):
      pair = frame, frame + 1
      matches[pair], pose = self._match_and_pose(pair, expected)
      if pose is not None:
        matcher_poses[pair] = pose
    return PairMatches(matches=matches, matcher_poses=matcher_poses)

  def match_near_poses(
    self,
    pairs: Sequence[tracks.FramePair],
    scene: reconstruction.Reconstruction,
  ) -> PairMatches:
    """Matches pairs near where the poses put each point.

    Args:
      pairs: those whose frames have no common component are left out.
      scene: what is solved so far.
    """
    component = scene.component
    # The last row stands for features that show no point.
    points = np.concatenate([scene.points, np.full((1, 3), np.nan)])
    matches, matcher_poses = {}, {}
    for pair in pairs:
      source, target = pair
      if not component[source] == component[target] >= 0:
        continue
      expected = self._expected(
        pair, scene.frame2scene[target], points[scene.point_ids[source]]
      )
      matched, pose = self._match_and_pose(pair, expected)
      matches[pair] = np.unique(
        np.concatenate([matched, self._by_tracks(pair, scene, expected)]),
        axis=0,
      )
      if pose is not None:
        matcher_poses[pair] = pose
    return PairMatches(matches=matches, matcher_poses=matcher_poses)

  def cost(self, num_pairs: int, num_requests: int) -> dict[str, int]:
    """Calls of the matcher so far, and the most that they could have been.

    Args:
      num_pairs: frame pairs that may be asked about.
      num_requests: how often, in all, any of them may be.
    """
    if not isinstance(self._matcher, matchers.CountsCalls):
      return {
        'matcher_calls': self._requests,
        'matcher_calls_bound': num_requests,
      }
    return {
      'matcher_calls': self._matcher.calls - self._calls_before,
      'matcher_calls_bound': self._matcher.calls_bound(num_pairs, num_requests),
    }

  def _match_and_pose(
    self, pair: tracks.FramePair, expected: Float[np.ndarray, 'n 3']
  ) -> tuple[Int[np.ndarray, 'm 2'], matchers.PairPose | None]:
    source, target = (self._features[frame] for frame in pair)
    if not isinstance(self._matcher, matchers.GivesPoses):
      return self.match(source, target, expected), None
    self._requests += 1
    matches, pose = self._matcher.match_and_pose(
      source, target, expected=expected, gate_rad=self._gate_rad
    )
    matchers.check_matches(self._matcher.name, matches, source, target)
    return matches, pose

  def _expected(
    self,
    pair: tracks.FramePair,
    target2scene: Float[np.ndarray, '3 4'],
    points: Float[np.ndarray, 'n 3'],
  ) -> Float[np.ndarray, 'n 3']:
    """Where the source's features, which show `points`, lie in the target."""
    source, target = pair
    local = camera.transform(camera.inverse(target2scene), points)
    expected = local / np.linalg.norm(local, axis=1, keepdims=True)
    if target == source + 1:
      unknown = np.isnan(expected)
      expected = np.where(unknown, self._tracked_rays[source], expected)
    return expected

  def _by_tracks(
    self,
    pair: tracks.FramePair,
    scene: reconstruction.Reconstruction,
    expected: Float[np.ndarray, 'n 3'],
  ) -> Int[np.ndarray, 'm 2']:
    """Matches by way of the frames between: points that both frames show.

    A wide pair changes the look of a point more than a row of narrow ones.
    """
    source, target = pair
    _, in_source, in_target = reconstruction.shared_points(
      scene.point_ids[source], scene.point_ids[target]
    )
    off = np.linalg.norm(
      expected[in_source] - self._features[target].rays[in_target], axis=1
    )
    near = off < self._gate_rad / 4
    return np.stack([in_source[near], in_target[near]], axis=1)


def depths_of_points(
  pair_matches: PairMatches, point_ids: Sequence[np.ndarray]
) -> dict[
  tracks.FramePair, tuple[Int[np.ndarray, '_'], Float[np.ndarray, '2 _']]
]:
  """Distances as the matcher says them, of matches that show a point.

  Args:
    pair_matches: matches, and poses with depths.
    point_ids: for each frame, the point of each feature; -1 for none.

  Returns:
    by pair, ids of points [m], and their distances from both frames [2, m].
  """
  of_pairs = {}
  for pair, pose in pair_matches.matcher_poses.items():
    in_source, in_target = pair_matches.matches[pair].T
    points = point_ids[pair[0]][in_source]
    good = (points >= 0) & (points == point_ids[pair[1]][in_target])
    good &= np.all(np.isfinite(pose.depths) & (pose.depths > 0), axis=0)
    of_pairs[pair] = points[good], pose.depths[:, good]
  return of_pairs


def _calls(matcher: matchers.Matcher) -> int:
  return matcher.calls if isinstance(matcher, matchers.CountsCalls) else 0
