"""What a checkpoint costs the loop of training.

    python -m tests.benchmarks.checkpoint [--sizes=demo,100m] [--rounds=3]

The state of the demo's model, and one of 100 M parameters with as many averages
and twice as many moments (AdamW), go through a step of about a second: matrix
products on all cores, and a change of every number, with donated arrays. Of
each size the median over the rounds:

  step_s      of a step while nothing is saved
  held_s      that a call of save holds the loop, nothing else being written
  stall_s     by which the steps take longer from that call until all is on disk,
              the call included: on CPUs what writes takes cores from the step
  busy_held_s   of a save right after another one, which waits for it
  share       stall_s over 500 steps, the interval of the demo's recipe `world`
  bytes       of a checkpoint on disk, encoders apart

Run with PYTHONPATH on another checkout, it measures that one.
"""

import functools
import json
import pathlib
import statistics
import tempfile
import time
from typing import Any

from absl import flags
import jax
import jax.numpy as jnp
import numpy as np

from configs import train as recipes
from odin_jax.checkpoints import checkpoint
from odin_jax.models import encoders
from odin_jax.shared import command
from odin_jax.training import step

_SIZES = flags.DEFINE_list('sizes', ['demo', '100m'], 'Some of demo, 100m.')
_ROUNDS = flags.DEFINE_integer('rounds', 3, 'Saves of each kind.', 1)
_INTERVAL, _STEP_S, _MATRIX = 500, 1.0, 1024


def shapes_of(size: str, config: checkpoint.Config) -> Any:
  """The shapes of a state."""
  if size == 'demo':
    return jax.eval_shape(functools.partial(step.init, config))
  params = {
    f'layer_{i}': jax.ShapeDtypeStruct((1_000, 1_000), jnp.float32)
    for i in range(100)
  }
  return {
    'params': params,
    'ema': params,
    'optimizer': {'mu': params, 'nu': params},
    'step': jax.ShapeDtypeStruct((), jnp.int32),
  }


@functools.partial(jax.jit, donate_argnums=0)
def advance(state: Any, matrix: jax.Array, products: int) -> Any:
  """A step; of so many matrix products."""
  product = jax.lax.fori_loop(
    0, products, lambda _, x: jnp.tanh(x @ matrix), matrix
  )
  change = product[0, 0] * 1e-6
  return jax.tree.map(lambda x: x + change.astype(x.dtype), state)


class Loop:
  """Makes steps, and knows how long they took."""

  def __init__(self, state: Any):
    self.state = state
    self._matrix = jnp.full((_MATRIX, _MATRIX), 1e-3)
    self._products = 1
    self.step()
    once = min(self.step() for _ in range(3))
    self._products = 9
    nine = min(self.step() for _ in range(3))
    each = max((nine - once) / 8, 1e-4)
    self._products = max(1, round((_STEP_S - once) / each))

  def step(self) -> float:
    """Its seconds."""
    since = time.perf_counter()
    self.state = advance(self.state, self._matrix, self._products)
    jax.block_until_ready(self.state)
    return time.perf_counter() - since


def is_busy(checkpoints: checkpoint.Checkpoints) -> bool:
  """Of any version of this project."""
  return checkpoints._manager.is_saving_in_progress()


def measure(size: str) -> dict[str, Any]:
  """The figures of a size."""
  config = checkpoint.plain(recipes.get_config('multisphere').to_dict())
  shapes = shapes_of(size, config)
  rng = np.random.default_rng(0)
  loop = Loop(
    jax.tree.map(
      # What compresses well would not be written.
      lambda leaf: jnp.asarray(rng.normal(0, 1, leaf.shape), leaf.dtype),
      shapes,
    )
  )
  frozen = encoders.fit(config, np.zeros((1, 64, 64, 3), np.uint8))
  steps, held, stall, busy = [], [], [], []
  with tempfile.TemporaryDirectory() as folder:
    workdir = pathlib.Path(folder)
    checkpoints = checkpoint.Checkpoints(workdir)
    number = 0

    def save() -> float:
      nonlocal number
      number += 1
      since = time.perf_counter()
      checkpoints.save(number, loop.state, frozen, config)
      return time.perf_counter() - since

    def wait() -> None:
      while is_busy(checkpoints):
        time.sleep(0.05)

    # The first makes folders, and loads what writing needs.
    save()
    wait()
    for _ in range(_ROUNDS.value):
      usual = statistics.median(loop.step() for _ in range(5))
      steps.append(usual)
      seconds = save()
      held.append(seconds)
      while is_busy(checkpoints):
        seconds += loop.step() - usual
      stall.append(seconds)
    for _ in range(_ROUNDS.value):
      save()
      busy.append(save())
      wait()
    checkpoints.close()
    newest = workdir / checkpoint.FOLDER / str(number)
    on_disk = sum(x.stat().st_size for x in newest.rglob('*') if x.is_file())
  step_s, stall_s = statistics.median(steps), statistics.median(stall)
  return {
    'size': size,
    'parameters': sum(leaf.size for leaf in jax.tree.leaves(shapes['params'])),
    'state_mb': sum(x.nbytes for x in jax.tree.leaves(loop.state)) / 1e6,
    'step_s': round(step_s, 3),
    'held_s': round(statistics.median(held), 3),
    'stall_s': round(stall_s, 3),
    'busy_held_s': round(statistics.median(busy), 3),
    'share': round(stall_s / (_INTERVAL * step_s), 5),
    'bytes': on_disk,
  }


def main() -> None:
  for size in _SIZES.value:
    print(json.dumps(measure(size)), flush=True)


if __name__ == '__main__':
  command.run(main)
