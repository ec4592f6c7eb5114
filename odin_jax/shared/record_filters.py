"""Which records of pairs are trained on, by what they say of themselves."""

import dataclasses
from typing import Callable, Mapping

from jaxtyping import Bool, Float, Shaped
import numpy as np

from odin_jax.shared import errors

# Times are float32: three hours into a video, to about a millisecond.
_TIME_S = 2e-3


def _gap_s(rows: Shaped[np.ndarray, 'n']) -> Float[np.ndarray, 'n']:
  """Seconds between the two frames of each pair."""
  times = (
    rows[f'{side}/time_s'].astype(float) for side in ('source', 'target')
  )
  return np.abs(np.subtract(*times))


@dataclasses.dataclass(frozen=True)
class _Limit:
  """What a field of the filters is a limit of.

  Attributes:
    of: column of the index (`odin_jax.shared.record_index`).
    is_least: or the most.
    values: of the rows; None: the column.
    slack: by which a value may miss the limit.
  """

  of: str
  is_least: bool
  values: Callable[[Shaped[np.ndarray, 'n']], np.ndarray] | None = None
  slack: float = 0.0

  def passes(
    self, rows: Shaped[np.ndarray, 'n'], limit: float | int
  ) -> Bool[np.ndarray, 'n']:
    """Whether each row does; one that is not a number does, too."""
    values = self.values(rows) if self.values else rows[self.of]
    # In the precision of what is compared: 0.7 is to pass min_overlap=0.7.
    limit = np.asarray(limit, values.dtype)
    if self.is_least:
      return ~(values < limit - self.slack)
    return ~(values > limit + self.slack)


_LIMITS = {
  'min_overlap': _Limit('overlap', True),
  'min_confidence': _Limit('confidence', True),
  'max_hops': _Limit('hops', False),
  'min_gap_s': _Limit('gap', True, _gap_s, _TIME_S),
  'max_gap_s': _Limit('gap', False, _gap_s, _TIME_S),
  'max_rotation_error_deg': _Limit('rotation_error_deg', False),
  'max_direction_error_deg': _Limit('direction_error_deg', False),
}


class Filters:
  """The limits of `config.filters`.

  Args:
    limits: by field; None: no limit.

  Attributes:
    limits: those that there are.

  Raises:
    errors.UserError: there is no such field, or a limit is no number.
  """

  def __init__(self, limits: Mapping[str, float | int | None]):
    if unknown := limits.keys() - _LIMITS.keys():
      raise errors.UserError(
        f'config.filters.{min(unknown)}: there is no such filter; there are '
        f'{", ".join(_LIMITS)}'
      )
    self.limits = {
      name: limit for name, limit in limits.items() if limit is not None
    }
    for name, limit in self.limits.items():
      if not np.isfinite(limit):
        raise errors.UserError(
          f'config.filters.{name}={limit}: give a finite number, or None'
        )

  def passing(
    self, rows: Shaped[np.ndarray, 'n'], where: str
  ) -> Bool[np.ndarray, 'n']:
    """Which records pass; damaged ones do, of which whoever reads them tells.

    Args:
      rows: of the index of the records.
      where: they are, as a message says it.

    Raises:
      errors.UserError: none do, or records lack what a filter asks for.
    """
    is_read = rows['is_read']
    passing = np.ones(len(rows), bool)
    left = []
    for name, limit in self.limits.items():
      of = _LIMITS[name].of
      if of in rows.dtype.names and rows.dtype[of].kind == 'f':
        lacking = np.isnan(rows[of]) & is_read
        if lacking.any():
          raise errors.UserError(
            f'{where}: {lacking.sum()} of {len(rows)} records have no {of}, '
            f'which config.filters.{name} is a limit of; leave it out, or make '
            'the records again'
          )
      own = _LIMITS[name].passes(rows, limit) | ~is_read
      left.append(f'{own.sum()} have {name}={limit:g}')
      passing &= own
    if not (passing & is_read).any():
      raise errors.UserError(
        f'{where}: none of {len(rows)} records pass config.filters '
        f'({", ".join(left)}); change them'
      )
    return passing


NONE = Filters({})
