"""One forward pass of the 860 M U-Net, against diffusers.

    python -m tests.benchmarks.unet_full_size

prints one JSON line: the largest difference of the outputs for the same random
weights, none of them zero, at 256 px (latents of 32x32), float32, one example,
with a motion mask; and of each network wall and CPU seconds of a pass and the
largest memory of its process. Each runs in a process of its own, one after the
other, on one core; the weights are drawn in either.
"""

import json
import multiprocessing
import os
import time
from typing import Any, Callable

from flax import nnx
import jax
import numpy as np
import torch

from odin_jax.shared import command
from tests.benchmarks import unet

_SETTINGS = unet.SETTINGS['full']


def make_jax_run(
  params: unet.Params, batch: unet.Batch
) -> Callable[[], np.ndarray]:
  """A pass of ours; [1 h w out], the mask's logit last."""
  graph, shapes = unet.abstract(_SETTINGS)
  state = unet.with_params(shapes, params)
  # JAX may keep what numpy has allocated: no copy.
  state = jax.device_put(state)

  @jax.jit
  def forward(state: Any, batch: unet.Batch) -> tuple[jax.Array, jax.Array]:
    return nnx.merge(graph, state)(
      batch['x'], batch['timestep'], batch['context']
    )

  def run() -> np.ndarray:
    with jax.default_matmul_precision('highest'):
      output, mask_logit = forward(state, batch)
    return np.concatenate([output, mask_logit[..., None]], axis=-1)

  return run


def make_diffusers_run(
  params: unet.Params, batch: unet.Batch
) -> Callable[[], np.ndarray]:
  """A pass of diffusers'; [1 h w out]."""
  with torch.device('meta'):
    network = unet.diffusers_network(_SETTINGS)
  unet.load_params(network, _SETTINGS, params)

  @torch.no_grad()
  def run() -> np.ndarray:
    output = network(
      torch.from_numpy(np.moveaxis(batch['x'], -1, 1)),
      torch.from_numpy(batch['timestep']),
      torch.from_numpy(batch['context']),
    ).sample
    return output.permute(0, 2, 3, 1).numpy()

  return run


_WAYS = {'ours': make_jax_run, 'diffusers': make_diffusers_run}


def measure(name: str) -> tuple[dict[str, float], np.ndarray]:
  """Figures of the second pass, and what it gives."""
  os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
  torch.set_num_threads(1)
  stopwatch = command.Stopwatch()
  _, shapes = unet.abstract(_SETTINGS)
  run = _WAYS[name](
    unet.random_params(shapes), unet.make_batch(_SETTINGS, size=1)
  )
  run()
  first_s = stopwatch.figures()['seconds']
  wall, cpu = time.perf_counter(), time.process_time()
  output = run()
  return {
    'wall_s': round(time.perf_counter() - wall, 2),
    'cpu_s': round(time.process_time() - cpu, 2),
    'until_first_output_s': first_s,
    'peak_rss_mb': stopwatch.figures()['peak_rss_mb'],
  }, output


def main() -> None:
  """Measures both."""
  figures, outputs = {}, {}
  for name in _WAYS:
    # The memory of the one is not there for the other.
    with multiprocessing.get_context('spawn').Pool(1) as pool:
      figures[name], outputs[name] = pool.apply(measure, (name,))
  _, shapes = unet.abstract(_SETTINGS)
  difference = np.abs(outputs['ours'] - outputs['diffusers']).max()
  print(
    json.dumps(
      {
        'parameters': sum(leaf.size for leaf in jax.tree.leaves(shapes)),
        'largest_difference': float(difference),
        'output_std': round(float(outputs['diffusers'].std()), 3),
        **figures,
      }
    )
  )


if __name__ == '__main__':
  command.run(main)
