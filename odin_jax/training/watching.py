"""The rows of the journal: what steps gave, and whether all is well.

A row is a mean over the steps since the row before, with

  loss, mask_mean     and other parts of the loss, see `step.train_step`
  loss_quarter_1..4   of the examples whose timestep is in that quarter, from
                      little noise to all; null where there was none
  gradient_norm       before it is clipped
  update_ratio        norm of the change of the parameters over their norm
  learning_rate       of the last of these steps
  examples_per_s      of the steps; saves and samples are no part of it
  input_wait_share    of that time, without a batch
  mfu                 operations of the step over what the chips could do at
                      most (bfloat16); XLA counts the bodies of loops once, so
                      it is a lower bound. null where no rate is known (CPUs)
  device_peak_mb      most memory of the first device; null where none is told
"""

import collections
import statistics
import time
from typing import Any, Mapping

import jax
import numpy as np

from odin_jax.shared import chips
from odin_jax.training import step

Config = Mapping[str, Any]
Row = dict[str, float | None]
# Steps whose losses say what is usual, and how many do so at least.
_WINDOW, _LEAST = 100, 20
_SUMS, _COUNTS = 'loss_sums', 'loss_counts'


class BadStepError(ValueError):
  """A step after which the state is not worth keeping.

  Attributes:
    what: is wrong, such as `loss is not finite`.
    step: the number of steps done with it.
  """

  def __init__(self, what: str, step: int):
    super().__init__(f'{what} at step {step}')
    self.what = what
    self.step = step


class Watch:
  """Gathers the figures of steps until they become a row.

  Args:
    config: of the training.
  """

  def __init__(self, config: Config):
    self._config = config
    self._flops = None
    self._losses = collections.deque(maxlen=_WINDOW)
    self.restart()

  def restart(self) -> None:
    """The next step is the first of a row, and begins now."""
    self._figures: list[dict[str, Any]] = []
    self._input_wait_s = 0.0
    self._since = time.monotonic()

  @property
  def has_steps(self) -> bool:
    """Whether there are steps that are in no row yet."""
    return bool(self._figures)

  def compiled(self, flops: float | None) -> None:
    """Tells of the operations of a step on one device, where XLA does."""
    self._flops = flops

  def add(self, figures: dict[str, Any], input_wait_s: float) -> None:
    """The figures of a step, which devices may still be at."""
    self._figures.append(figures)
    self._input_wait_s += input_wait_s

  @property
  def input_wait_s(self) -> float:
    """Seconds without a batch since the last row."""
    return self._input_wait_s

  def row(self, done: int) -> Row:
    """The row of the steps gathered, the last of which is the `done`-th.

    Raises:
      BadStepError: the loss or the parameters are not finite after one of them,
        or its loss is far from what is usual.
    """
    # Steps are dispatched ahead of the device: fetching waits for them, so the
    # clock is read afterwards.
    fetched = jax.device_get(self._figures)
    seconds = time.monotonic() - self._since
    for index, figures in enumerate(fetched, done - len(fetched) + 1):
      self._check(figures, index)
    means = {
      name: np.mean([figures[name] for figures in fetched], axis=0)
      for name in fetched[0]
    }
    sums, counts = (means.pop(name) for name in (_SUMS, _COUNTS))
    norm, of_params = (means.pop(n) for n in ('update_norm', 'params_norm'))
    del means['params_finite']
    means['update_ratio'] = norm / of_params
    return {
      # Of a norm that is more than a float32 can hold there is none.
      **{
        name: float(value) if np.isfinite(value) else None
        for name, value in means.items()
      },
      **{
        f'loss_quarter_{quarter}': float(total / count) if count else None
        for quarter, (total, count) in enumerate(zip(sums, counts), 1)
      },
      'learning_rate': float(step.learning_rate(self._config)(done - 1)),
      'examples_per_s': len(fetched) * self._config['batch_size'] / seconds,
      'input_wait_share': min(1.0, self._input_wait_s / seconds),
      'mfu': self._mfu(seconds / len(fetched)),
      'device_peak_mb': _device_peak_mb(),
    }

  def _check(self, figures: Mapping[str, Any], index: int) -> None:
    loss = float(figures['loss'])
    if not np.isfinite(loss):
      raise BadStepError('loss is not finite', index)
    if not figures['params_finite']:
      raise BadStepError('parameters are not finite', index)
    most = self._config['max_loss_spike']
    if most and len(self._losses) >= _LEAST:
      usual = statistics.median(self._losses)
      if loss > most * usual > 0:
        raise BadStepError(
          f'loss is {loss:.4g}, {loss / usual:.3g} times its median '
          f'(config.max_loss_spike={most:g}),',
          index,
        )
    self._losses.append(loss)

  def _mfu(self, seconds_per_step: float) -> float | None:
    peak = chips.peak_flops_per_s(jax.local_devices()[0].device_kind)
    if not peak or not self._flops:
      return None
    return self._flops / seconds_per_step / peak


def _device_peak_mb() -> float | None:
  told = jax.local_devices()[0].memory_stats() or {}
  peak = told.get('peak_bytes_in_use')
  return None if peak is None else peak / 1e6
