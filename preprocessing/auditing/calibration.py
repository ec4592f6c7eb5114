"""Are poses off by as much as their records say?

A record states one sigma per axis of the rotation of its pose and of the
direction of its translation (`odin_jax.shared.schema`). In such sigmas the
angle that a pose is off is chi distributed, with as many degrees of freedom as
there are axes, so 95 % of the angles are below 2.80 and 2.45 of them.
"""

from typing import Any, Mapping, NamedTuple, Sequence

from jaxtyping import Float
import numpy as np
from scipy import stats

from preprocessing.auditing import quality

# Quantity -> its axes; in this order in all arrays.
_AXES = {'rotation': 3, 'direction': 2}
_BOUNDS = np.sqrt([stats.chi2.ppf(0.95, axes) for axes in _AXES.values()])
# Poses that are said to be exact are so to the precision of a record.
_EXACT_DEG = 1e-3


class Stated(NamedTuple):
  """What records say of the poses of ordered pairs of frames.

  Attributes:
    sigma_deg: of rotation and direction.
    inside: 1 where the true angle is inside the stated 95 % interval, 0 where
      it is not; NaN where that is not known.
    unstated: how many further pairs there are, of whose poses nothing is said.
  """

  sigma_deg: Float[np.ndarray, 'n 2']
  inside: Float[np.ndarray, 'n 2']
  unstated: int


def of_component(
  component: quality.Component, truth: Mapping[str, np.ndarray] | None
) -> Stated:
  """What the records of a component say, against the truth where it is known.

  Args:
    component: of which `stated_deg` is used.
    truth: the contents of a `NAME.truth.npz`, or None.
  """
  pairs = sorted(component.stated_deg)
  unstated = len(component.unstated.difference(pairs))
  sigma_deg = np.array(
    [component.stated_deg[pair] for pair in pairs], np.float64
  ).reshape(-1, 2)
  if truth is None:
    return Stated(sigma_deg, np.full(sigma_deg.shape, np.nan), unstated)
  errors = quality.pose_errors(component, truth, pairs)
  off_deg = np.stack([errors['rotation_deg'], errors['direction_deg']], axis=1)
  bound_deg = np.where(sigma_deg > 0, _BOUNDS * sigma_deg, _EXACT_DEG)
  inside = np.where(np.isnan(off_deg), np.nan, off_deg <= bound_deg)
  return Stated(sigma_deg, inside, unstated)


def figures(stated: Sequence[Stated]) -> dict[str, Any]:
  """How large the stated errors are, and how many true ones they cover.

  Returns:
    medians and 90th percentiles of sigmas, over ordered pairs of frames; where
    the truth is known, shares inside the 95 % intervals; where some records
    state no errors, as those of earlier versions, `unstated_share`. Nothing
    where none does.
  """
  sigmas = np.concatenate(
    [np.zeros((0, 2)), *(item.sigma_deg for item in stated)]
  )
  inside = np.concatenate([np.zeros((0, 2)), *(item.inside for item in stated)])
  found: dict[str, Any] = {}
  for axis, name in enumerate(_AXES):
    if not len(sigmas):
      continue
    median, ninety = np.quantile(sigmas[:, axis], [0.5, 0.9]).tolist()
    found[f'{name}_sigma_deg'] = median
    found[f'{name}_sigma_90_deg'] = ninety
    known = inside[np.isfinite(inside[:, axis]), axis]
    if len(known):
      found[f'{name}_coverage'] = float(known.mean())
  unstated = sum(item.unstated for item in stated)
  if found and unstated:
    found['unstated_share'] = unstated / (unstated + len(sigmas))
  return found
