"""What the look-ups of the sweep cost, against torch's `grid_sample`.

    python -m tests.benchmarks.sweep --rounds=9

Both look up the same places: the colours of 32 spheres at 64 px (`bilinear`),
and the opacities of half as fine a grid with the gradient of the volume
(`trilinear`). Rounds take turns; the figures are the medians of CPU seconds of
one batch of 16. Prints a JSON line for each.
"""

import json
import statistics
import time
from typing import Any, Callable

from absl import flags
import jax
import jax.numpy as jnp
import numpy as np
import torch

from odin_jax.models import sweep
from odin_jax.shared import command

_ROUNDS = flags.DEFINE_integer('rounds', 9, 'Rounds of each.', 1)
_BATCH, _SPHERES, _SIZE_PX = 16, 32, 64


def _cpu_s(work: Callable[[], Any]) -> float:
  start = time.process_time()
  work()
  return time.process_time() - start


def _compare(
  what: str,
  ours: Callable[[], Any],
  torchs: Callable[[], Any],
  difference: float,
) -> None:
  ours(), torchs()
  times = [(_cpu_s(ours), _cpu_s(torchs)) for _ in range(_ROUNDS.value)]
  medians = [statistics.median(column) for column in zip(*times)]
  figures = {
    'what': what,
    'ours_cpu_s': round(medians[0], 4),
    'torch_cpu_s': round(medians[1], 4),
    'ratio': round(medians[0] / medians[1], 2),
    'largest_difference': float(f'{difference:.1g}'),
  }
  print(json.dumps(figures), flush=True)


def _bilinear() -> None:
  rng = np.random.default_rng(0)
  images = rng.random((_BATCH, _SIZE_PX, _SIZE_PX, 3), np.float32)
  places = rng.random((2, _BATCH, _SPHERES, _SIZE_PX**2), np.float32)
  of_jax = jax.device_put((images, *places))
  look_up = jax.jit(sweep.bilinear)
  of_torch = torch.tensor(images).permute(0, 3, 1, 2).contiguous()
  grid = torch.tensor(np.moveaxis(places, 0, -1)) * 2 - 1

  def torchs() -> torch.Tensor:
    return torch.nn.functional.grid_sample(
      of_torch, grid, padding_mode='border', align_corners=False
    )

  found = np.asarray(look_up(*of_jax))
  difference = np.abs(found - torchs().permute(0, 2, 3, 1).numpy()).max()
  _compare(
    'bilinear',
    lambda: jax.block_until_ready(look_up(*of_jax)),
    torchs,
    float(difference),
  )


def _trilinear() -> None:
  rng = np.random.default_rng(0)
  side = _SIZE_PX // 2
  volume = rng.random((_BATCH, side, side, _SPHERES), np.float32)
  places = rng.random((3, _BATCH, _SPHERES, side**2), np.float32)
  # Ours counts the last axis from centre to centre.
  index = places[2] * _SPHERES - 0.5
  of_jax = jax.device_put((volume, places[0], places[1], index))

  def total(volume: jax.Array, *at: jax.Array) -> jax.Array:
    return jnp.square(sweep.trilinear(volume, *at)).sum()

  gradient = jax.jit(jax.grad(total))
  of_torch = torch.tensor(volume).permute(0, 3, 1, 2)[:, None].contiguous()
  of_torch.requires_grad_()
  grid = torch.tensor(np.moveaxis(places, 0, -1))[:, :, :, None] * 2 - 1

  def torchs() -> torch.Tensor:
    found = torch.nn.functional.grid_sample(
      of_torch, grid, padding_mode='border', align_corners=False
    )
    return torch.autograd.grad(found.square().sum(), of_torch)[0]

  theirs = torchs()[:, 0].permute(0, 2, 3, 1).numpy()
  difference = np.abs(np.asarray(gradient(*of_jax)) - theirs).max()
  _compare(
    'trilinear, with its gradient',
    lambda: jax.block_until_ready(gradient(*of_jax)),
    torchs,
    float(difference),
  )


def main() -> None:
  """Times both."""
  _bilinear()
  _trilinear()


if __name__ == '__main__':
  command.run(main)
