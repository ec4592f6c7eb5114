"""A trace of some steps, for XProf, TensorBoard or Perfetto."""

import contextlib
import pathlib
import re
from typing import Any, NamedTuple

import jax

from odin_jax.shared import errors

FOLDER = 'profile'


class Steps(NamedTuple):
  """Steps to trace, numbered from 1.

  Attributes:
    first: of them.
    last: of them.
  """

  first: int
  last: int


def parse(text: str) -> Steps:
  """`100:110` as the steps from 100 to 110.

  Raises:
    errors.UserError: it is something else.
  """
  match = re.fullmatch(r'(\d+):(\d+)', text)
  steps = Steps(*map(int, match.groups())) if match else None
  if steps is None or not 1 <= steps.first <= steps.last:
    raise errors.UserError(
      f'--profile_steps={text}: is no FIRST:LAST, such as 100:110'
    )
  return steps


class Profile:
  """Traces its steps into a folder.

  Args:
    workdir: of the run; None: nothing is traced.
    steps: None: none.
  """

  def __init__(self, workdir: pathlib.Path | None, steps: Steps | None):
    self._steps = steps if workdir is not None else None
    self._workdir = workdir
    self._is_on = False

  def before(self, step: int) -> contextlib.AbstractContextManager[Any]:
    """A step is about to be made: within what is returned."""
    if self._steps and step == self._steps.first:
      jax.profiler.start_trace(str(self._workdir / FOLDER))
      self._is_on = True
    if not self._is_on:
      return contextlib.nullcontext()
    # By these XProf tells the steps apart, and how long each took.
    return jax.profiler.StepTraceAnnotation('train', step_num=step)

  def after(self, step: int, figures: Any) -> None:
    """A step was given to the devices, which will have its figures."""
    if self._is_on and step == self._steps.last:
      jax.block_until_ready(figures)
      self.close()

  def close(self) -> None:
    """Writes what there is."""
    if self._is_on:
      self._is_on = False
      jax.profiler.stop_trace()
