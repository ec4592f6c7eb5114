"""Two frames: relative pose from matched rays, and what it rests on."""

import dataclasses

from jaxtyping import Bool, Float, Int
import numpy as np

from odin_jax.shared import camera

# Most pairs have far more inliers than a minimal sample needs.
_TRIALS = (50, 1000)
# Of the matches, so many make a fit: what comes of it starts the joint solution
# or is compared with it to degrees, and more matches cost as much more time.
_SAMPLE = 512


@dataclasses.dataclass(frozen=True, kw_only=True)
class PairFit:
  """A robust two-frame solution.

  Attributes:
    target2source: its translation has length 1, or is 0 for a mere rotation.
    inliers: which of the matches obey it.
    parallax_rad: median angle by which translation moved the inliers.
    depths: distances of all matches from source and target; inliers only are
      positive for sure.
  """

  target2source: Float[np.ndarray, '3 4']
  inliers: Bool[np.ndarray, 'm']
  parallax_rad: float
  depths: Float[np.ndarray, '2 m']

  @property
  def moves(self) -> bool:
    """Whether the translation has a direction."""
    return bool(np.any(self.target2source[:, 3]))


def fit_pair(
  source_rays: Float[np.ndarray, 'm 3'],
  target_rays: Float[np.ndarray, 'm 3'],
  *,
  max_error_rad: float,
  min_inliers: int,
  min_parallax_rad: float,
  seed: int,
  proposed: Float[np.ndarray, '3 4'] | None = None,
) -> PairFit | None:
  """LO-RANSAC on rays, then refinement over the inliers (pycolmap).

  Both on an even sample of the matches; all of them are judged by the fit.

  Args:
    source_rays: unit directions in the source frame.
    target_rays: the matched directions in the target frame.
    max_error_rad: largest epipolar error of an inlier.
    min_inliers: with fewer there is no fit.
    min_parallax_rad: with less the fit is a rotation and its translation 0,
      since noise alone would give it a direction.
    seed: of the sampling.
    proposed: a pose known otherwise, which is refined and taken where more
      matches obey it than the estimate.

  Returns:
    the fit, or None where too few matches agree.
  """
  import pycolmap

  if len(source_rays) < max(8, min_inliers):
    return None
  options = pycolmap.RANSACOptions()
  options.max_error = max_error_rad
  options.min_num_trials, options.max_num_trials = _TRIALS
  options.random_seed = seed
  sample = _evenly(len(source_rays))
  rays = target_rays[sample], source_rays[sample]
  estimate = pycolmap.estimate_relative_pose(*rays, options)
  starts = []
  if estimate is not None:
    starts.append((estimate['cam2_from_cam1'], estimate['inlier_mask']))
  if proposed is not None:
    obey = epipolar_error_rad(proposed, *reversed(rays))
    starts.append((pycolmap.Rigid3d(proposed), obey < max_error_rad))
  fits = []
  for pose, inliers in starts:
    if inliers.sum() * len(source_rays) < min_inliers * len(sample):
      continue
    refined = pycolmap.refine_relative_pose(pose, *rays, inliers)
    pose = (refined or {'cam2_from_cam1': pose})['cam2_from_cam1'].matrix()
    fits.append(
      _make_fit(
        pose,
        source_rays,
        target_rays,
        max_error_rad,
        min_inliers,
        min_parallax_rad,
      )
    )
  return max(
    (fit for fit in fits if fit is not None),
    key=lambda fit: fit.inliers.sum(),
    default=None,
  )


def _evenly(count: int) -> Int[np.ndarray, '_']:
  """Indices of at most `_SAMPLE` of so many."""
  size = min(count, _SAMPLE)
  return np.arange(size) * count // size


def _make_fit(
  target2source: np.ndarray,
  source_rays: np.ndarray,
  target_rays: np.ndarray,
  max_error_rad: float,
  min_inliers: int,
  min_parallax_rad: float,
) -> PairFit | None:
  depths = pair_depths(target2source, source_rays, target_rays)
  error = epipolar_error_rad(target2source, source_rays, target_rays)
  inliers = (error < max_error_rad) & np.all(depths > 0, axis=0)
  turned = target_rays @ target2source[:, :3].T
  apart = np.linalg.norm(turned - source_rays, axis=1)
  still = apart < max_error_rad
  parallax_rad = float(np.median(apart[inliers])) if inliers.any() else 0.0
  if parallax_rad < min_parallax_rad or still.sum() > inliers.sum():
    inliers = still
    target2source = camera.make_pose(target2source[:, :3], np.zeros(3))
  if inliers.sum() < min_inliers:
    return None
  return PairFit(
    target2source=target2source,
    inliers=inliers,
    parallax_rad=parallax_rad,
    depths=depths,
  )


def epipolar_error_rad(
  target2source: Float[np.ndarray, '3 4'],
  source_rays: Float[np.ndarray, 'm 3'],
  target_rays: Float[np.ndarray, 'm 3'],
) -> Float[np.ndarray, 'm']:
  """Angular Sampson error of matched rays, combined over both frames.

  Zero everywhere for a translation of 0.
  """
  essential = camera.essential_matrix(target2source)
  source_normal = target_rays @ essential.T
  target_normal = source_rays @ essential
  algebraic = np.abs(np.sum(source_rays * source_normal, axis=1))
  # The gradient of s^T E t on both spheres: the normals, less their radial
  # part.
  squared = (
    np.sum(source_normal**2, axis=1)
    + np.sum(target_normal**2, axis=1)
    - 2 * algebraic**2
  )
  return algebraic / np.sqrt(np.maximum(squared, 1e-18))


def pair_depths(
  target2source: Float[np.ndarray, '3 4'],
  source_rays: Float[np.ndarray, 'm 3'],
  target_rays: Float[np.ndarray, 'm 3'],
) -> Float[np.ndarray, '2 m']:
  """Distances along both rays to where they pass each other most closely."""
  along = target_rays @ target2source[:, :3].T
  cosine = np.sum(source_rays * along, axis=1)
  sine2 = np.maximum(1 - cosine**2, 1e-12)
  to_source = source_rays @ target2source[:, 3]
  to_target = along @ target2source[:, 3]
  return np.stack(
    [
      (to_source - cosine * to_target) / sine2,
      (cosine * to_source - to_target) / sine2,
    ]
  )
