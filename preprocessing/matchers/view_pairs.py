"""Which views of two panoramas are worth comparing with each other."""

from jaxtyping import Bool
import numpy as np


def yaw_candidates(
  in_source: Bool[np.ndarray, 'n v'],
  in_target: Bool[np.ndarray, 'n v'] | None = None,
  *,
  max_pairs: int,
  min_gain: int = 1,
) -> list[tuple[int, int]]:
  """Which views of a source frame to compare with which of a target frame.

  The views of both are evenly spaced in yaw.

  Where each point should be in the target is known: pairs of views that show
  the same points, the one that adds most first. Where nothing is known: all
  relative yaws, one after the other, each time from another source view, and
  then again from the next.

  Args:
    in_source: whether each source view shows each point of the source frame.
    in_target: whether each target view should show it; None: unknown.
    max_pairs: at most so many.
    min_gain: a pair that shows fewer points not shown by the pairs before it
      is not worth its cost.

  Returns:
    (source view, target view), most useful first.
  """
  if in_target is None:
    num_views = in_source.shape[1]
    all_pairs = [
      ((turn + start) % num_views, (2 * turn + start) % num_views)
      for start in range(num_views)
      for turn in range(num_views)
    ]
    return all_pairs[:max_pairs]
  not_shown = np.ones(len(in_source), bool)
  chosen: list[tuple[int, int]] = []
  while len(chosen) < max_pairs:
    gain = in_source[not_shown].T.astype(np.int64) @ in_target[not_shown]
    best = np.unravel_index(gain.argmax(), gain.shape)
    if gain[best] < min_gain:
      break
    chosen.append((int(best[0]), int(best[1])))
    not_shown &= ~(in_source[:, best[0]] & in_target[:, best[1]])
  return chosen
