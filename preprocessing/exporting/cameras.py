"""The camera path of a solved video: what is exported of it."""

import dataclasses
from typing import Any, Mapping, Sequence

from jaxtyping import Float, Int
import numpy as np

from preprocessing.solving import bundle_adjustment, masks, solver


@dataclasses.dataclass(frozen=True, kw_only=True)
class CameraPath:
  """Where the panoramas of a video were taken, and what they saw.

  Lengths are in the units of the video's records: the median depth of a
  component's source views is 1. Components have no common place or scale.

  Attributes:
    video_id: the video's stem.
    times_s: of the keyframes.
    component: of each keyframe; -1 where it has no pose.
    frame2scene: pose of each keyframe in its component.
    points: in scene coordinates of the component that sees them; a point that
      no observation names means nothing.
    observations: which keyframe sees which point; their points are finite.
    mask: what is never scene.
  """

  video_id: str
  times_s: Float[np.ndarray, 'f']
  component: Int[np.ndarray, 'f']
  frame2scene: Float[np.ndarray, 'f 3 4']
  points: Float[np.ndarray, 'p 3']
  observations: bundle_adjustment.Observations
  mask: masks.Mask

  @property
  def components(self) -> list[int]:
    """Their numbers."""
    return np.unique(self.component[self.component >= 0]).tolist()

  def frames(self, component: int) -> list[int]:
    """The keyframes of a component."""
    return np.flatnonzero(self.component == component).tolist()

  def observations_of(self, component: int) -> bundle_adjustment.Observations:
    """The observations of a component."""
    observations = self.observations
    return observations.subset(self.component[observations.frame] == component)

  def summary(self) -> dict[str, Any]:
    """The path as JSON; a keyframe without a pose has `null` for one."""
    return {
      'video_id': self.video_id,
      'masked_share': round(self.mask.share, 4),
      'frames': [
        {
          'time_s': time_s,
          'component': component if component >= 0 else None,
          'frame2scene': pose.tolist() if component >= 0 else None,
        }
        for time_s, component, pose in zip(
          self.times_s.tolist(), self.component.tolist(), self.frame2scene
        )
      ],
    }


def of_solution(
  video_id: str,
  times_s: Sequence[float],
  solution: solver.Solution,
  units: Mapping[int, float],
) -> CameraPath:
  """The path of a solved video, in the units of its records.

  Args:
    video_id: the video's stem.
    times_s: of the keyframes.
    solution: its poses and points.
    units: of each component that gave records, the length in the
      units of the records of what is 1 long in the solution. The other
      components keep the unit of the solution.
  """
  count = int(solution.component.max(initial=-1)) + 1
  factors = np.array([units.get(component, 1.0) for component in range(count)])
  # Frames without a pose and points that nothing saw keep what they have.
  of_frame = np.append(factors, 1.0)[solution.component]
  frame2scene = solution.frame2scene.copy()
  frame2scene[:, :, 3] *= of_frame[:, None]
  of_point = np.ones(len(solution.points))
  observations = solution.observations
  of_point[observations.point] = of_frame[observations.frame]
  return CameraPath(
    video_id=video_id,
    times_s=np.asarray(times_s, np.float64),
    component=solution.component,
    frame2scene=frame2scene,
    points=solution.points * of_point[:, None],
    observations=observations,
    mask=solution.mask,
  )
