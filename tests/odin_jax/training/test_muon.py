"""Muon as the recipes have it, against its definition in float64."""

import jax.numpy as jnp
import numpy as np

from odin_jax.training import step

RATE = 0.5
CONFIG = {
  'steps': 10,
  'optimizer': {
    'kind': 'muon',
    'learning_rate': RATE,
    'schedule': 'constant',
    'warmup_steps': 0,
    'conditioning_factor': 1.0,
    'weight_decay': 0.1,
    'b1': 0.9,
    'b2': 0.999,
    'max_gradient_norm': 1e9,
  },
}
# Jordan et al., https://kellerjordan.github.io/posts/muon.
COEFFICIENTS = (3.4445, -4.7750, 2.0315)


def newton_schulz(matrix):
  """Five iterations, from the matrix over its Frobenius norm."""
  x = matrix / np.linalg.norm(matrix)
  for _ in range(5):
    a, b, c = COEFFICIENTS
    gram = x @ x.T
    x = a * x + (b * gram + c * gram @ gram) @ x
  return x


def second_update(param, gradient):
  """What the second step adds to `w`; the first has no rate, so early is it."""
  tree, gradients = ({'net': {'w': jnp.asarray(x)}} for x in (param, gradient))
  optimizer = step.optimizer(CONFIG)
  _, state = optimizer.update(gradients, optimizer.init(tree), tree)
  updates, _ = optimizer.update(gradients, state, tree)
  return np.asarray(updates['net']['w'], np.float64)


def test_a_convolution_is_a_matrix_from_all_that_it_sees_to_its_outputs():
  rng = np.random.default_rng(0)
  shape = (3, 3, 5, 7)
  param, gradient = rng.normal(size=(2, *shape)).astype(np.float32)
  update = second_update(param, gradient).reshape(45, 7)
  # Momentum of equal gradients, Nesterov's too, has their direction. An update
  # has the root mean square 0.2 of 2502.16982, section 2.2.
  orthogonal = newton_schulz(gradient.reshape(45, 7).astype(np.float64).T).T
  decayed = 0.1 * param.reshape(45, 7)
  expected = -RATE * (0.2 * np.sqrt(45) * orthogonal + decayed)
  np.testing.assert_allclose(update, expected, atol=2e-3)
  # All directions learn alike, however small their gradient.
  singular = np.linalg.svd(-update / RATE - decayed, compute_uv=False)
  assert singular.max() / singular.min() < 2
  assert np.linalg.cond(gradient.reshape(45, 7)) > 1.5


def test_vectors_learn_by_nadam_and_do_not_decay():
  gradient = np.float32([3.0, -0.01, 0.5])
  update = second_update(np.full(3, 100, np.float32), gradient)
  # Dozat 2016: momentum of the step to come, and this step's own share.
  momentum = 0.9 * (1 - 0.9**2) / (1 - 0.9**3) + 0.1 / (1 - 0.9**2)
  expected = -RATE * momentum * np.sign(gradient)
  np.testing.assert_allclose(update, expected, rtol=1e-4)
