"""One joint solution: bundle adjustment of components, without outliers."""

import dataclasses
from typing import Sequence

from jaxtyping import Float, Int
import numpy as np

from preprocessing import matchers
from preprocessing.solving import bundle_adjustment, reconstruction, tracks

# An observation is kept within so many standard errors; before the first
# refinement within more.
INLIER_SIGMA = 4.0
_START_SIGMA = 10.0
# Points seen under less parallax have no useful depth.
_MIN_PARALLAX_DEG = 0.3


def refine(
  component: Int[np.ndarray, 'f'],
  frame2scene: Float[np.ndarray, 'f 3 4'],
  features: Sequence[matchers.Features],
  point_tracks: tracks.Tracks,
  *,
  max_iterations: int,
) -> reconstruction.Reconstruction:
  """Bundle adjustment of every component, twice, with outliers left out.

  The first one only has to tell what is an outlier.

  Args:
    component: of each frame; -1 for none.
    frame2scene: starting poses of the frames in their component.
    features: of each frame.
    point_tracks: which of them show the same point.
    max_iterations: of the second adjustment; the first has half as many.
  """
  frame2scene = frame2scene.copy()
  observations = _observations(features, point_tracks)
  for sigma, iterations in (
    (_START_SIGMA, (max_iterations + 1) // 2),
    (INLIER_SIGMA, max_iterations),
  ):
    points = np.full((point_tracks.num_points, 3), np.nan)
    used = []
    for index in range(component.max(initial=-1) + 1):
      frames = np.flatnonzero(component == index)
      inliers, start = _inliers(
        frame2scene,
        observations.subset(component[observations.frame] == index),
        point_tracks.num_points,
        sigma,
      )
      if not len(inliers.frame):
        continue
      point_ids, point = np.unique(inliers.point, return_inverse=True)
      frame2scene[frames], points[point_ids] = bundle_adjustment.adjust(
        frame2scene[frames],
        start[point_ids],
        dataclasses.replace(
          inliers, frame=np.searchsorted(frames, inliers.frame), point=point
        ),
        max_iterations=iterations,
      )
      used.append(inliers)
  return reconstruction.Reconstruction(
    component=component,
    frame2scene=frame2scene,
    points=points,
    observations=_concatenate(used),
    point_ids=point_tracks.point_ids(),
  )


def _observations(
  features: Sequence[matchers.Features], point_tracks: tracks.Tracks
) -> bundle_adjustment.Observations:
  """All that the frames show of the points."""
  starts = np.concatenate([[0], np.cumsum([len(frame) for frame in features])])
  index = starts[point_tracks.frame] + point_tracks.feature
  return bundle_adjustment.Observations(
    frame=point_tracks.frame,
    point=point_tracks.point,
    ray=np.concatenate([frame.rays for frame in features])[index],
    noise_rad=np.concatenate([frame.noise_rad for frame in features])[index],
  )


def _inliers(
  poses: np.ndarray,
  observations: bundle_adjustment.Observations,
  num_points: int,
  sigma: float,
) -> tuple[bundle_adjustment.Observations, np.ndarray]:
  """Observations that agree on a point, and the points."""
  for _ in range(2):
    points = bundle_adjustment.triangulate(poses, observations, num_points)
    errors = bundle_adjustment.errors_rad(poses, points, observations)
    observations = observations.subset(errors < sigma * observations.noise_rad)
    observations = _well_observed(poses, points, observations)
  points = bundle_adjustment.triangulate(poses, observations, num_points)
  finite = np.isfinite(points[observations.point, 0])
  return observations.subset(finite), points


def _well_observed(
  poses: np.ndarray,
  points: np.ndarray,
  observations: bundle_adjustment.Observations,
) -> bundle_adjustment.Observations:
  parallax = bundle_adjustment.parallax_rad(poses, points, observations)
  counts = np.bincount(observations.point, minlength=len(points))
  good = (counts >= 2) & (parallax > np.deg2rad(_MIN_PARALLAX_DEG))
  return observations.subset(good[observations.point])


def _concatenate(
  parts: Sequence[bundle_adjustment.Observations],
) -> bundle_adjustment.Observations:
  empty = bundle_adjustment.Observations(
    frame=np.zeros(0, np.int64),
    point=np.zeros(0, np.int64),
    ray=np.zeros((0, 3)),
    noise_rad=np.zeros(0),
  )
  return bundle_adjustment.Observations(
    **{
      field.name: np.concatenate(
        [getattr(part, field.name) for part in [empty, *parts]]
      )
      for field in dataclasses.fields(bundle_adjustment.Observations)
    }
  )
