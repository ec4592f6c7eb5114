"""From costs to time and money, by hand."""

import pytest

from odin_jax.planning import costs, estimate, hardware
from odin_jax.shared import chips, errors

CHIP = chips.Chip(
  flops_per_s=100.0,
  memory_bytes=1000.0,
  memory_bytes_per_s=10.0,
  sent_bytes_per_s=5.0,
)


def of_step(flops=400, memory=20, sent=15.0):
  return costs.Costs(
    flops=flops,
    memory_bytes=memory,
    collectives={
      'all-gather': costs.Collective(1, 100, sent),
      costs.BETWEEN_SLICES + 'all-reduce': costs.Collective(1, 999, 999.0),
    },
  )


@pytest.mark.parametrize(
  'changes,seconds',
  [({}, 4.0), ({'memory': 50}, 5.0), ({'sent': 35.0}, 7.0)],
)
def test_a_step_takes_the_longest_of_three(changes, seconds):
  predicted = estimate.prediction(
    of_step(**changes),
    CHIP,
    batch_size=64,
    num_chips=9,
    price_per_chip_hour=2.0,
  )
  assert predicted['step_s'] == seconds
  assert predicted['examples_per_s'] == 64 / seconds
  hours = 100_000 * seconds / 3600 * 9
  assert predicted['chip_hours_of_100k_steps'] == pytest.approx(hours)
  assert predicted['cost_of_100k_steps'] == pytest.approx(2 * hours)


def plan(batch, peak, speed, fits=True):
  return {
    'examples_at_once': batch,
    'memory': {'peak': peak},
    'prediction': {'examples_per_s': speed},
    'fits': fits,
  }


def test_front_leaves_out_what_another_is_better_than_in_every_way():
  small, large = plan(8, 4.0, 10.0), plan(16, 6.0, 12.0)
  worse = plan(8, 5.0, 10.0)
  too_large = plan(32, 99.0, 50.0, fits=False)
  assert estimate.front([small, worse, large, too_large]) == [small, large]


@pytest.mark.parametrize(
  'name,message',
  [
    ('v5e', 'such as v5e:4x4'),
    ('v9:2x2', 'not known'),
    ('0xv5e:2x2', 'not known'),
    ('2xcpu:4', 'not known'),
    ('cpu:none', 'such as'),
    ('cpu:4096', 'unset XLA_FLAGS'),
    ('h100:8', 'GPUs'),
  ],
)
def test_hardware_that_there_is_not(name, message):
  import jax

  # JAX makes as many devices as it is told only once.
  assert jax.devices()
  with pytest.raises(errors.UserError, match=message):
    hardware.of(name)
