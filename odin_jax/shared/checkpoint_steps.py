"""Which of the checkpoints that there are is asked for."""

from typing import Sequence

from odin_jax.shared import errors


def choose(place: object, steps: Sequence[int], step: int | None) -> int:
  """The step that is asked for.

  Args:
    place: where the checkpoints are, for people.
    steps: of them, in order.
    step: None: the newest.

  Raises:
    errors.UserError: there is none of it.
  """
  if not steps:
    raise errors.UserError(f'{place}: no checkpoint here yet; train first')
  step = steps[-1] if step is None else step
  if step not in steps:
    raise errors.UserError(
      f'{place}: no checkpoint of step {step} here; there are those of '
      f'{", ".join(map(str, steps))}'
    )
  return step
