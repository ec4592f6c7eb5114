"""From what a step costs to time and money, and the choice between plans.

The time of a step is the longest of three, each at the chip's published rate:
its arithmetic, its way through memory, what it sends to other chips (Williams
et al. 2009, "Roofline"). They overlap at best and rates are never reached: it
is the least that a step can take, and real ones take longer.
"""

from typing import Any, Mapping, NamedTuple, Sequence

from odin_jax.planning import costs
from odin_jax.shared import chips

PRICED_STEPS = 100_000


class Seconds(NamedTuple):
  """The least time of a step, by what takes it.

  Attributes:
    compute: of its arithmetic.
    memory: of its way through memory.
    collectives: of what is sent between chips of a slice.
  """

  compute: float
  memory: float
  collectives: float


def seconds(of_step: costs.Costs, chip: chips.Chip) -> Seconds:
  """The least time of a step on one device.

  That of what goes between slices, at a rate of machines and not of chips, is
  not counted.
  """
  sent = sum(
    part.sent_bytes
    for kind, part in of_step.collectives.items()
    if not kind.startswith(costs.BETWEEN_SLICES)
  )
  return Seconds(
    compute=of_step.flops / chip.flops_per_s,
    memory=of_step.memory_bytes / chip.memory_bytes_per_s,
    collectives=sent / chip.sent_bytes_per_s,
  )


def prediction(
  of_step: costs.Costs,
  chip: chips.Chip,
  *,
  batch_size: int,
  num_chips: int,
  price_per_chip_hour: float | None,
) -> dict[str, Any]:
  """Time and money of training.

  Args:
    of_step: on one device.
    chip: the rates of that device.
    batch_size: examples of a step on all devices.
    num_chips: that are rented.
    price_per_chip_hour: in any currency; None: not known.
  """
  parts = seconds(of_step, chip)
  step_s = max(parts)
  chip_hours = PRICED_STEPS * step_s * num_chips / 3600
  return {
    'step_s': step_s,
    'step_parts_s': parts._asdict(),
    'examples_per_s': batch_size / step_s,
    'chip_hours_of_100k_steps': chip_hours,
    'cost_of_100k_steps': None
    if price_per_chip_hour is None
    else price_per_chip_hour * chip_hours,
  }


def front(plans: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
  """The plans that fit and that no other is better than in every way.

  Better is more examples at once, less memory, and more examples a second
  where that is predicted.
  """

  def merits(plan: Mapping[str, Any]) -> tuple[float, ...]:
    speed = (plan['prediction'] or {}).get('examples_per_s', 0.0)
    values = plan['examples_at_once'], -plan['memory']['peak'], speed
    return tuple(float(value) for value in values)

  fitting = [plan for plan in plans if plan['fits']]
  return [
    plan
    for plan in fitting
    if not any(
      merits(other) != merits(plan)
      and all(a >= b for a, b in zip(merits(other), merits(plan)))
      for other in fitting
    )
  ]
