"""The checkpoint that a run goes on from: the newest, or one before it."""

from typing import Any

from absl import logging

from odin_jax.checkpoints import checkpoint
from odin_jax.models import encoders
from odin_jax.shared import errors


def restore_newest(
  checkpoints: checkpoint.Checkpoints,
  abstract_state: Any,
  state_shardings: Any,
  config: checkpoint.Config,
  *,
  may_go_back: bool,
) -> tuple[int, dict[str, Any], encoders.Encoders]:
  """The step of a checkpoint, its state and its encoders.

  Args:
    checkpoints: of a workdir, at least one.
    abstract_state: see `Checkpoints.restore`.
    state_shardings: see there.
    config: of the run that goes on.
    may_go_back: set damaged ones aside, and take the one before.

  Raises:
    errors.UserError: this config cannot go on from it; its subclass
      `checkpoint.DamagedError`: it is damaged, and none before may be taken.
  """
  while True:
    step = checkpoints.latest()
    try:
      checkpoints.check(step, config)
      restored = checkpoints.restore(
        step, abstract_state, state_shardings, config
      )
      return step, *restored
    except checkpoint.DamagedError as error:
      earlier = [found for found in checkpoints.steps() if found != step]
      if not earlier:
        raise errors.UserError(
          f'{error}; here is none before: make a new --workdir'
        ) from error
      if not may_go_back:
        raise
      logging.warning(
        '%s; it is set aside as %s, and step %d is gone on from',
        error.what,
        checkpoints.set_aside(step),
        earlier[-1],
      )
