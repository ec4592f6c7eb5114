"""The Levenberg-Marquardt loop on problems whose minimum is known."""

import numpy as np
import pytest

from preprocessing.solving import levenberg_marquardt


def minimise(residual, jacobian, start, **changes):
  """Least squares of a small dense problem."""

  def linearise(state):
    slope = jacobian(state)
    return slope.T @ slope, slope.T @ residual(state)

  def step(state, system, damping):
    normal, gradient = system
    damped = normal + damping * np.diag(np.diag(normal))
    return state - np.linalg.solve(damped, gradient)

  options = dict(
    start_damping=1e-4, min_damping=1e-9, max_iterations=200, tolerance=1e-12
  )
  return levenberg_marquardt.minimise(
    np.array(start, np.float64),
    cost=lambda state: float(np.sum(residual(state) ** 2)),
    linearise=linearise,
    step=step,
    **{**options, **changes},
  )


def rosenbrock(state):
  x, y = state
  return np.array([10 * (y - x**2), 1 - x])


def rosenbrock_jacobian(state):
  return np.array([[-20 * state[0], 10.0], [-1.0, 0.0]])


@pytest.mark.parametrize('start', [(-1.2, 1.0), (3.0, -4.0), (0.0, 10.0)])
def test_a_curved_valley_is_followed_to_its_end(start):
  end = minimise(rosenbrock, rosenbrock_jacobian, start)
  np.testing.assert_allclose(end, [1, 1], atol=1e-6)


def test_the_cost_never_rises():
  costs = []
  for iterations in range(12):
    end = minimise(
      rosenbrock,
      rosenbrock_jacobian,
      (-1.2, 1.0),
      max_iterations=iterations,
      tolerance=0.0,
    )
    costs.append(np.sum(rosenbrock(end) ** 2))
  assert np.all(np.diff(costs) <= 0) and costs[-1] < costs[0] / 10


def test_where_no_step_helps_the_state_stays():
  # The slope points the wrong way.
  end = minimise(
    rosenbrock, lambda state: -rosenbrock_jacobian(state), (-1.2, 1.0)
  )
  assert end.tolist() == [-1.2, 1.0]
  # Already there.
  assert minimise(rosenbrock, rosenbrock_jacobian, (1.0, 1.0)).tolist() == [
    1.0,
    1.0,
  ]
