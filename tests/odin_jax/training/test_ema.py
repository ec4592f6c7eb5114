"""The moving average of the parameters against Zero-1-to-3's."""

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch

from odin_jax.models import encoders
from odin_jax.shared import posed_pair
from odin_jax.training import step

DECAY = 0.9999


class LitEma:
  """What `LitEma` does to one parameter after every step.

  From `forward` of
  https://github.com/cvlab-columbia/zero123/blob/main/zero123/ldm/modules/ema.py
  """

  def __init__(self, parameter, decay):
    self.decay = torch.tensor(decay, dtype=torch.float32)
    self.num_updates = torch.tensor(0, dtype=torch.int)
    self.shadow = parameter.clone()

  def update(self, parameter):
    self.num_updates += 1
    decay = min(self.decay, (1 + self.num_updates) / (10 + self.num_updates))
    one_minus_decay = 1.0 - decay
    self.shadow.sub_(one_minus_decay * (self.shadow - parameter))


class Line(nnx.Module):
  """One parameter."""

  def __init__(self):
    self.slope = nnx.Param(jnp.arange(1.0, 4.0))


def test_average_after_every_step_is_that_of_zero123(monkeypatch):
  monkeypatch.setattr(
    step,
    'batch_loss',
    lambda model, *_: (jnp.sum(model.slope[...] ** 2), {}),
  )
  monkeypatch.setattr(step, 'optimizer', lambda config: optax.sgd(0.3))
  graphdef, params = nnx.split(Line())
  params = nnx.to_pure_dict(params)
  config = {'seed': 0, 'ema_decay': DECAY}
  state = {
    'params': params,
    'ema': params,
    'optimizer': optax.sgd(0.3).init(params),
    'step': jnp.zeros((), jnp.int32),
  }
  reference = LitEma(torch.tensor(np.asarray(params['slope'])), DECAY)
  # The loss here asks for nothing.
  frozen = object.__new__(encoders.Encoders)
  batch = posed_pair.PosedPair(*[None] * 5)
  advance = jax.jit(
    lambda state: step.train_step(
      state, batch, frozen, config=config, graphdef=graphdef
    )
  )
  for _ in range(5):
    slope = np.asarray(state['params']['slope'])
    state, figures = advance(state)
    assert figures['params_finite']
    for name, vector in (
      ('gradient_norm', 2 * slope),
      ('update_norm', 0.3 * 2 * slope),
      ('params_norm', slope - 0.3 * 2 * slope),
    ):
      np.testing.assert_allclose(
        figures[name], np.linalg.norm(vector), rtol=1e-5, err_msg=name
      )
    reference.update(torch.tensor(np.asarray(state['params']['slope'])))
    np.testing.assert_allclose(
      state['ema']['slope'], reference.shadow.numpy(), rtol=1e-6
    )


# The first decays, one half-way, and the first that is capped: (1 + n) /
# (10 + n) passes 0.9999 at n = 89990.
@pytest.mark.parametrize(
  'update, decay',
  [
    (1, 2 / 11),
    (2, 3 / 12),
    (10, 11 / 20),
    (1000, 1001 / 1010),
    (89_980, 89_981 / 89_990),
    (89_991, 0.9999),
    (10**6, 0.9999),
  ],
)
def test_decay_of_an_update(update, decay):
  result = step.ema_decay({'ema_decay': DECAY}, jnp.asarray(update))
  assert float(result) == pytest.approx(decay, abs=1e-6)
