"""What the look-ups of the sweep cost, against torch's `grid_sample`.

    python -m tests.benchmarks.sweep --rounds=9

Both look up the same places: the colours of 32 spheres at 64 px (`bilinear`),
also with the gradient of the places; and the opacities of half as fine a grid
with the gradient of the volume (`trilinear`). Rounds take turns; the figures
are the medians of CPU seconds of one batch of 16, those of the system apart,
which are what fresh pages of memory cost. Prints a JSON line for each.
"""

import os

# Torch's threads would go on spinning in the time of the others.
os.environ.setdefault('OMP_WAIT_POLICY', 'passive')

import json
import resource
import statistics
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


def _cpu_s(work: Callable[[], Any]) -> tuple[float, float]:
  """Of the user, of the system."""
  before = resource.getrusage(resource.RUSAGE_SELF)
  work()
  after = resource.getrusage(resource.RUSAGE_SELF)
  return after.ru_utime - before.ru_utime, after.ru_stime - before.ru_stime


def _compare(
  what: str,
  ours: Callable[[], Any],
  torchs: Callable[[], Any],
  difference: float,
) -> None:
  ours(), torchs()
  times = [(*_cpu_s(ours), *_cpu_s(torchs)) for _ in range(_ROUNDS.value)]
  user, system, torch_user, torch_system = (
    statistics.median(column) for column in zip(*times)
  )
  figures = {
    'what': what,
    'ours_cpu_s': round(user, 4),
    'ours_system_cpu_s': round(system, 4),
    'torch_cpu_s': round(torch_user, 4),
    'torch_system_cpu_s': round(torch_system, 4),
    'ratio': round((user + system) / (torch_user + torch_system), 2),
    'ratio_without_system': round(user / torch_user, 2),
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


def _bilinear_with_gradient() -> None:
  rng = np.random.default_rng(0)
  images = rng.random((_BATCH, _SIZE_PX, _SIZE_PX, 3), np.float32)
  places = rng.random((2, _BATCH, _SPHERES, _SIZE_PX**2), np.float32)
  of_jax = jax.device_put((images, *places))

  def total(*given: jax.Array) -> jax.Array:
    return jnp.square(sweep.bilinear(*given)).sum()

  gradient = jax.jit(jax.grad(total, argnums=(1, 2)))
  of_torch = torch.tensor(images).permute(0, 3, 1, 2).contiguous()
  grid = (torch.tensor(np.moveaxis(places, 0, -1)) * 2 - 1).requires_grad_()

  def torchs() -> torch.Tensor:
    found = torch.nn.functional.grid_sample(
      of_torch, grid, padding_mode='border', align_corners=False
    )
    return torch.autograd.grad(found.square().sum(), grid)[0]

  theirs = 2 * np.moveaxis(torchs().numpy(), -1, 0)
  # At a centre, where the slope jumps, rounding decides between two slopes.
  difference = np.quantile(np.abs(gradient(*of_jax) - theirs), 0.999)
  _compare(
    'bilinear, with the gradient of its places',
    lambda: jax.block_until_ready(gradient(*of_jax)),
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
  """Times all three."""
  _bilinear()
  _bilinear_with_gradient()
  _trilinear()


if __name__ == '__main__':
  command.run(main)
