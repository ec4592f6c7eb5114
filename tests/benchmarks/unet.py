"""A training step of the U-Net, against diffusers and torch.

    python -m tests.benchmarks.unet [--size=narrow,wide] [--batch=4]
    python -m tests.benchmarks.unet --device=gpu

The step is forward, backward and AdamW. Both networks have the same weights,
batch and optimiser, and their losses must agree, at first and after the steps
of the warm-up; the motion mask's channel is a fifth output of diffusers'. One
JSON line per size.

On `cpu`: float32, one core, one thread each; the two take turns, and medians of
CPU seconds are printed. On `gpu`: bfloat16 with float32 parameters, the 860 M
network at 256 px (latents of 32x32), batch 64; torch runs channels-last under
autocast and torch.compile, its attention is `scaled_dot_product_attention`;
torch has all its rounds first, so that either has the memory. Beside images/s
there are the achieved TFLOP/s, by the operations that
`torch.utils.flop_counter` finds in the step, and their share of the rate of
large bfloat16 matrix products on that card. `--size=tiny` goes the same way on
any machine, to see that the way is open.
"""

import gc
import json
import os
import statistics
import time
from typing import Any, Callable, Mapping

from absl import flags
import diffusers
from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import torch
from torch.utils import flop_counter

from odin_jax import sharding
from odin_jax.models import unet
from odin_jax.porting import tensors
from odin_jax.porting import unet as naming
from odin_jax.shared import command, errors
from tests.helpers import stable_diffusion

_DEVICE = flags.DEFINE_enum('device', 'cpu', ['cpu', 'gpu'], 'How to run.')
_SIZES = flags.DEFINE_list(
  'size', None, 'Some of tiny, narrow, wide, full; narrow on cpu, full on gpu.'
)
_BATCH = flags.DEFINE_integer(
  'batch', None, 'Examples per step; 4 on cpu, 64 on gpu.', 1
)
_ROUNDS = flags.DEFINE_integer('rounds', 9, 'Measurements of each.', 1)

_LATENT_PX, _CONTEXT_TOKENS = 32, 77
_LEARNING_RATE, _WEIGHT_DECAY = 1e-4, 0.01
# Steps of the warm-up, and per measurement on a GPU.
_WARM_UP, _GPU_STEPS = 3, 10
# Side of the matrices by which a device's rate is measured.
_MATRIX = {'gpu': 8192, 'cpu': 512}
_TOLERANCE = {'float32': 1e-4, 'bfloat16': 3e-2}
_FULL = stable_diffusion.UNET
SETTINGS = {
  'tiny': _FULL
  | dict(model_channels=32, channel_mult=(1, 2), attention_levels=(1,)),
  'narrow': _FULL | dict(model_channels=64),
  'wide': _FULL | dict(model_channels=96),
  'full': _FULL,
}

Settings = Mapping[str, Any]
# By path.
Params = dict[str, np.ndarray]
Batch = dict[str, np.ndarray]
# Makes some steps and returns the last loss when it is there.
Run = Callable[[int], float]


def abstract(settings: Settings) -> tuple[nnx.GraphDef, Any]:
  """Graph of our network, and the shapes of its parameters."""
  graph, state = nnx.split(
    nnx.eval_shape(lambda: unet.UNet(**settings, rngs=nnx.Rngs(0)))
  )
  return graph, nnx.to_pure_dict(state)


def by_path(tree: Any) -> dict[str, Any]:
  """The leaves of a tree under their slash-separated paths."""
  leaves = jax.tree_util.tree_leaves_with_path(tree)
  return {sharding.path_name(path): leaf for path, leaf in leaves}


def random_params(shapes: Any) -> Params:
  """Random parameters, none zero, of a network that keeps its variance."""
  generator = np.random.default_rng(0)
  params = {}
  for path, leaf in by_path(shapes).items():
    value = generator.standard_normal(leaf.shape, np.float32)
    value /= np.sqrt(max(10, np.prod(leaf.shape[:-1])))
    params[path] = value + path.endswith('scale')
  return params


def with_params(shapes: Any, params: Params) -> Any:
  """The tree of `shapes` with `params` in it."""
  return jax.tree_util.tree_map_with_path(
    lambda path, _: params[sharding.path_name(path)], shapes
  )


def diffusers_network(settings: Settings) -> torch.nn.Module:
  """The same network there, the mask's channel included."""
  config = naming.diffusers_config(
    settings | dict(out_channels=settings['out_channels'] + 1),
    sample_size=_LATENT_PX,
  )
  return diffusers.UNet2DConditionModel.from_config(config)


def load_params(
  network: torch.nn.Module, settings: Settings, params: Params
) -> None:
  """Gives `network` our parameters; strict."""
  state = {
    entry.name: torch.from_numpy(
      np.ascontiguousarray(tensors.to_torch([entry], [params[entry.path]]))
    )
    for entry in naming.entries(settings, 'diffusers')
  }
  network.load_state_dict(state, assign=True)


def make_batch(settings: Settings, size: int) -> Batch:
  """Random inputs and the target of a step, NHWC."""
  generator = np.random.default_rng(1)
  side = _LATENT_PX
  shapes = {
    'x': (size, side, side, settings['in_channels']),
    'context': (size, _CONTEXT_TOKENS, settings['context_dim']),
    'target': (size, side, side, settings['out_channels'] + 1),
  }
  batch = {
    name: generator.standard_normal(shape, np.float32)
    for name, shape in shapes.items()
  }
  return batch | dict(timestep=generator.integers(1000, size=size).astype('f'))


def make_jax_run(
  settings: Settings, batch: Batch, params: Params, dtype: str
) -> Run:
  """Our step."""
  graph, shapes = abstract(settings | dict(dtype=dtype))
  optimizer = optax.adamw(_LEARNING_RATE, weight_decay=_WEIGHT_DECAY)

  def loss_of(state: Any, batch: Batch) -> jax.Array:
    output, mask_logit = nnx.merge(graph, state)(
      batch['x'], batch['timestep'], batch['context']
    )
    output = jnp.concatenate([output, mask_logit[..., None]], axis=-1)
    return jnp.mean(jnp.square(output.astype(jnp.float32) - batch['target']))

  def step(state: Any, moments: Any, batch: Batch) -> Any:
    loss, gradients = jax.value_and_grad(loss_of)(state, batch)
    updates, moments = optimizer.update(gradients, moments, state)
    return optax.apply_updates(state, updates), moments, loss

  compiled = jax.jit(step, donate_argnums=(0, 1))
  state = jax.tree.map(jnp.array, with_params(shapes, params))
  moments = optimizer.init(state)
  batch = jax.tree.map(jnp.array, batch)

  def run(steps: int) -> float:
    nonlocal state, moments
    for _ in range(steps):
      state, moments, loss = compiled(state, moments, batch)
    return float(loss)

  return run


def torch_loss(network: torch.nn.Module, batch: Mapping[str, Any]) -> Any:
  """The loss of a batch of NCHW tensors."""
  output = network(batch['x'], batch['timestep'], batch['context']).sample
  return torch.mean((output.float() - batch['target']) ** 2)


def make_torch_run(
  settings: Settings, batch: Batch, params: Params, device: str | None
) -> Run:
  """The step of torch, float32 as it is or, on a device, tuned bfloat16."""
  network = diffusers_network(settings)
  load_params(network, settings, params)
  tensor_batch = {
    name: torch.from_numpy(
      np.moveaxis(value, -1, 1) if value.ndim == 4 else value
    )
    for name, value in batch.items()
  }
  loss_of = torch_loss
  if device is not None:
    network = network.to(device, memory_format=torch.channels_last)
    tensor_batch = {name: x.to(device) for name, x in tensor_batch.items()}
    # Inductor's code for CPUs (torch 2.13) loses the gradients of the way down.
    backend = 'inductor' if device == 'cuda' else 'aot_eager'
    loss_of = torch.compile(torch_loss, backend=backend)
  optimizer = torch.optim.AdamW(
    network.parameters(),
    lr=_LEARNING_RATE,
    weight_decay=_WEIGHT_DECAY,
    fused=True,
  )

  def run(steps: int) -> float:
    for _ in range(steps):
      with torch.autocast(
        device or 'cpu', torch.bfloat16, enabled=device is not None
      ):
        loss = loss_of(network, tensor_batch)
      optimizer.zero_grad()
      loss.backward()
      optimizer.step()
    return loss.item()

  return run


def step_flops(settings: Settings, batch: Batch) -> int:
  """Multiplications and additions of forward and backward."""
  with torch.device('meta'):
    network = diffusers_network(settings)
  tensor_batch = {
    name: torch.empty_like(
      torch.from_numpy(np.moveaxis(value, -1, 1) if value.ndim == 4 else value),
      device='meta',
    )
    for name, value in batch.items()
  }
  with flop_counter.FlopCounterMode(display=False) as counter:
    torch_loss(network, tensor_batch).backward()
  return counter.get_total_flops()


def matrix_rate() -> float:
  """Operations per second of large bfloat16 matrix products."""
  side = _MATRIX[jax.default_backend()]
  x = jnp.ones((side, side), jnp.bfloat16)
  product = jax.jit(lambda x: x @ x)
  product(x).block_until_ready()
  seconds = []
  for _ in range(_ROUNDS.value):
    start = time.perf_counter()
    products = [product(x) for _ in range(_GPU_STEPS)]
    products[-1].block_until_ready()
    seconds.append(time.perf_counter() - start)
  return 2 * side**3 * _GPU_STEPS / statistics.median(seconds)


def timed(run: Run, steps: int, clock: Callable[[], float]) -> float:
  """Seconds per step."""
  start = clock()
  run(steps)
  return (clock() - start) / steps


def first_losses(run: Run) -> list[float]:
  """Losses of the first step and of the last of the warm-up."""
  return [run(1), run(_WARM_UP - 1)]


def require_equal(losses: dict[str, list[float]], tolerance: float) -> None:
  """Raises ValueError where the networks do not compute the same."""
  if not np.allclose(losses['ours'], losses['torch'], rtol=tolerance):
    raise ValueError(f'the losses differ: {losses}')


def compare_on_cpu(settings: Settings, batch: Batch) -> dict[str, Any]:
  """Medians of CPU seconds per step, in turns."""
  _, shapes = abstract(settings)
  params = random_params(shapes)
  runs = {
    'ours': make_jax_run(settings, batch, params, 'float32'),
    'torch': make_torch_run(settings, batch, params, None),
  }
  losses = {name: first_losses(run) for name, run in runs.items()}
  spent: dict[str, list[float]] = {name: [] for name in runs}
  for _ in range(_ROUNDS.value):
    for name, run in runs.items():
      spent[name].append(timed(run, 1, time.process_time))
  seconds = {name: statistics.median(times) for name, times in spent.items()}
  return {
    'cpu_s': {name: round(value, 3) for name, value in seconds.items()},
    'ratio': round(seconds['ours'] / seconds['torch'], 3),
    'losses': losses,
  }


def measure_on_gpu(make: Callable[[], Run]) -> tuple[float, list[float]]:
  """Seconds per step, and the losses; what `make` made is freed."""
  run = make()
  losses = first_losses(run)
  seconds = statistics.median(
    timed(run, _GPU_STEPS, time.perf_counter) for _ in range(_ROUNDS.value)
  )
  return seconds, losses


def compare_on_gpu(settings: Settings, batch: Batch) -> dict[str, Any]:
  """Images per second of both, and the share of the card's matrix rate."""
  device = 'cuda' if torch.cuda.is_available() else 'cpu'
  _, shapes = abstract(settings)
  params = random_params(shapes)
  seconds, losses = {}, {}
  seconds['torch'], losses['torch'] = measure_on_gpu(
    lambda: make_torch_run(settings, batch, params, device)
  )
  gc.collect()
  torch.cuda.empty_cache()
  seconds['ours'], losses['ours'] = measure_on_gpu(
    lambda: make_jax_run(settings, batch, params, 'bfloat16')
  )
  rate = step_flops(settings, batch) / seconds['ours']
  peak = matrix_rate()
  return {
    'device': jax.devices()[0].device_kind,
    'images_per_s': {
      name: round(len(batch['x']) / value, 2) for name, value in seconds.items()
    },
    'ratio': round(seconds['torch'] / seconds['ours'], 3),
    'tflops': round(rate / 1e12, 3),
    'matrix_tflops': round(peak / 1e12, 3),
    'share_of_matrix_rate': round(rate / peak, 3),
    'losses': losses,
  }


def main() -> None:
  """Measures every size that is asked for."""
  on_gpu = _DEVICE.value == 'gpu'
  sizes = _SIZES.value or (['full'] if on_gpu else ['narrow'])
  if unknown := set(sizes) - set(SETTINGS):
    raise errors.UserError(
      f'--size={",".join(sorted(unknown))} is unknown; '
      f'give some of {", ".join(SETTINGS)}'
    )
  if on_gpu:
    # What torch has freed is there for ours, and the other way round.
    os.environ['XLA_PYTHON_CLIENT_PREALLOCATE'] = 'false'
    if sizes != ['tiny'] and not torch.cuda.is_available():
      raise errors.UserError(
        '--device=gpu needs one; only --size=tiny goes without'
      )
  else:
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    torch.set_num_threads(1)
  compare = compare_on_gpu if on_gpu else compare_on_cpu
  tolerance = _TOLERANCE['bfloat16' if on_gpu else 'float32']
  for size in sizes:
    batch = make_batch(SETTINGS[size], _BATCH.value or (64 if on_gpu else 4))
    figures = compare(SETTINGS[size], batch)
    print(
      json.dumps(
        {'size': size, 'batch': len(batch['x']), **figures}, default=float
      ),
      flush=True,
    )
    require_equal(figures['losses'], tolerance)


if __name__ == '__main__':
  command.run(main)
