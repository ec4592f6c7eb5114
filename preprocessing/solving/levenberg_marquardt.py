"""Levenberg-Marquardt: Gauss-Newton steps, damped until the cost falls.

K. Levenberg, "A method for the solution of certain non-linear problems in least
squares", 1944; D. Marquardt, "An algorithm for least-squares estimation of
nonlinear parameters", 1963.
"""

from typing import Callable, TypeVar

State = TypeVar('State')
System = TypeVar('System')

# The damping grows by this factor after a step that fails, and shrinks by it
# after one that does not.
_FACTOR = 8
# Where even steps that are damped so much fail, the state stays.
_MAX_DAMPING = 1e6


def minimise(
  state: State,
  *,
  cost: Callable[[State], float],
  linearise: Callable[[State], System],
  step: Callable[[State, System, float], State],
  start_damping: float,
  min_damping: float,
  max_iterations: int,
  tolerance: float,
) -> State:
  """The state at which the cost falls no more.

  Args:
    state: to start from.
    cost: what is to be least.
    linearise: the normal equations at a state.
    step: the state that a step leads to: from a state, by its normal
      equations, under a damping.
    start_damping: of the first step.
    min_damping: it never shrinks below this.
    max_iterations: steps at most.
    tolerance: stops when the cost falls by less than this share.
  """
  damping, current = start_damping, cost(state)
  for _ in range(max_iterations):
    system = linearise(state)
    while damping < _MAX_DAMPING:
      trial = step(state, system, damping)
      trial_cost = cost(trial)
      if trial_cost < current:
        break
      damping *= _FACTOR
    else:
      break
    gain = (current - trial_cost) / current
    state, current = trial, trial_cost
    damping = max(damping / _FACTOR, min_damping)
    if gain < tolerance:
      break
  return state
