"""The parts of `tests.benchmarks.gpu` that no other benchmark measures.

Each prints a line of JSON as soon as it knows it; see there.
"""

import functools
import itertools
import json
import pathlib
import statistics
import time
from typing import Any, Callable

from absl import flags
import jax
import jax.numpy as jnp
import numpy as np

from configs import train as recipes
from odin_jax.checkpoints import checkpoint
from odin_jax.models import encoders, odin, ops
from odin_jax.shared import command, posed_pair
from odin_jax.training import step

_PART = flags.DEFINE_enum(
  'part',
  None,
  ['devices', 'attention', 'train', 'sampling', 'scores'],
  'What to measure.',
  required=True,
)
_SCALE = flags.DEFINE_enum('scale', 'full', ['full', 'tiny'], 'Of networks.')
_EXAMPLES = flags.DEFINE_integer('examples', 32, 'In a batch.', 1)
_INPUT = flags.DEFINE_enum(
  'input', 'latents', ['latents', 'images'], 'What `train` is given.'
)
_SCORES = command.define_path('scores', 'Output of odin_jax.evaluate.')
_WORKDIR = command.define_path('workdir', 'Of the training.')
_REPEATS = 5
_DDIM_STEPS = {'full': 50, 'tiny': 3}


def tell(**figures: Any) -> None:
  """Prints a row."""
  print(json.dumps(figures, default=float), flush=True)


def seconds_of(call: Callable[[], Any], calls: int) -> float:
  """Median seconds of a call, after one that compiles."""
  jax.block_until_ready(call())
  spent = []
  for _ in range(_REPEATS):
    start = time.perf_counter()
    for _ in range(calls):
      result = call()
    jax.block_until_ready(result)
    spent.append((time.perf_counter() - start) / calls)
  return statistics.median(spent)


def memory_gib() -> dict[str, float | None]:
  """The most that was in use on the first device; null where it is not told."""
  stats = jax.local_devices()[0].memory_stats() or {}
  return {
    name: round(stats[key] / 2**30, 2) if key in stats else None
    for name, key in (
      ('peak_gib', 'peak_bytes_in_use'),
      ('limit_gib', 'bytes_limit'),
    )
  }


def devices() -> None:
  """Names of the devices, and the rate of matrix products."""
  tell(
    devices=[device.device_kind for device in jax.devices()],
    platform=jax.default_backend(),
    jax=jax.__version__,
    **memory_gib(),
  )
  side = {'full': 8192, 'tiny': 512}[_SCALE.value]
  x = jnp.ones((side, side), jnp.bfloat16)
  product = jax.jit(lambda x: x @ x)
  seconds = seconds_of(lambda: product(x), 10)
  tell(side=side, matrix_tflops=round(2 * side**3 / seconds / 1e12, 3))


def attention() -> None:
  """Every shape of the U-Net and the encoders, against plain float32."""
  # Rows, queries, keys, heads, width of a head.
  shapes = {
    'full': [
      (16, 1024, 1024, 8, 40),
      (16, 1024, 1, 8, 40),
      (16, 256, 256, 8, 80),
      (16, 64, 64, 8, 160),
      (16, 257, 257, 16, 64),
      (2, 1024, 1024, 1, 512),
    ],
    'tiny': [(2, 16, 16, 2, 8), (2, 16, 1, 2, 8)],
  }[_SCALE.value]

  def plain(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
    logits = jnp.einsum('bnhd,bmhd->bhnm', q, k, precision='highest')
    weights = jax.nn.softmax(logits * q.shape[-1] ** -0.5, axis=-1)
    return jnp.einsum('bhnm,bmhd->bnhd', weights, v, precision='highest')

  for batch, queries, keys, heads, width in shapes:
    rng = np.random.default_rng(0)
    q, k, v = (
      jnp.asarray(rng.normal(size=(batch, n, heads, width)), jnp.bfloat16)
      for n in (queries, keys, keys)
    )
    fast = jax.jit(ops.attention)
    wide = (x.astype(jnp.float32) for x in (q, k, v))
    expected = jax.jit(plain)(*wide)
    error = jnp.abs(fast(q, k, v).astype(jnp.float32) - expected).max()
    slope = jax.jit(
      jax.grad(lambda q, k, v: ops.attention(q, k, v).sum(), argnums=(0, 1, 2))
    )
    tell(
      shape=[batch, queries, keys, heads, width],
      way=ops.implementation(jax.default_backend(), q, k),
      largest_error=round(float(error), 5),
      milliseconds=round(1e3 * seconds_of(lambda: fast(q, k, v), 10), 3),
      with_gradient_ms=round(1e3 * seconds_of(lambda: slope(q, k, v), 10), 3),
    )


def _filled(shapes: Any) -> Any:
  """Arrays of one number: how long a step takes does not depend on it."""
  return jax.tree.map(lambda x: jnp.full(x.shape, 0.01, x.dtype), shapes)


def _batch(config: checkpoint.Config, count: int) -> posed_pair.PosedPair:
  size = config['image_size_px']
  pair = {
    'target2source': np.tile(np.eye(3, 4, dtype=np.float32), (count, 1, 1)),
    'fov_deg': np.full(count, 90.0, np.float32),
    'median_depth': np.ones(count, np.float32),
  }
  if _INPUT.value == 'images':
    image = np.zeros((count, size, size, 3), np.uint8)
    return posed_pair.PosedPair(source=image, target=image, **pair)
  encoded = posed_pair.Encoded(
    **{
      name: jnp.zeros((count, *shape), config['dtype'])
      for name, shape in encoders.encoded_shapes(config).items()
    }
  )
  return posed_pair.PosedPair(
    source=None,
    target=None,
    source_encoded=encoded,
    target_encoded=encoded,
    **pair,
  )


def train() -> None:
  """The training step of `odin`, without and with gradients made anew."""
  small = ',runlocal=True' if _SCALE.value == 'tiny' else ''
  config = checkpoint.plain(recipes.get_config(f'odin{small}').to_dict())
  count = _EXAMPLES.value
  batch = jax.device_put(_batch(config, count))
  for remat in ('full', 'none'):
    config['model']['unet']['remat'] = remat
    state = _filled(jax.eval_shape(functools.partial(step.init, config)))
    frozen = _filled(encoders.abstract(config))
    one_step = jax.jit(
      functools.partial(
        step.train_step, config=config, graphdef=odin.graph(config)
      ),
      donate_argnums=0,
    )
    start = time.perf_counter()
    state, values = one_step(state, batch, frozen)
    jax.block_until_ready(values)
    compiling_s = time.perf_counter() - start
    spent = []
    for _ in range(_REPEATS):
      start = time.perf_counter()
      for _ in range(2):
        state, values = one_step(state, batch, frozen)
      jax.block_until_ready(values)
      spent.append((time.perf_counter() - start) / 2)
    tell(
      batch=count,
      given=_INPUT.value,
      remat=remat,
      images_per_s=round(count / statistics.median(spent), 2),
      first_step_s=round(compiling_s, 1),
      **memory_gib(),
    )
    # The next one must not find its place taken.
    del state, values, frozen


def _ddim(alpha_bars: np.ndarray) -> list[tuple[float, float, float]]:
  """Timestep, and what x and the noise are multiplied by, of every step."""
  count = _DDIM_STEPS[_SCALE.value]
  timesteps = np.linspace(len(alpha_bars) - 1, 0, count).astype(int)
  rows = []
  for t, to in itertools.pairwise([*timesteps, -1]):
    now, then = alpha_bars[t], alpha_bars[to] if to >= 0 else 1.0
    of_x = (then / now) ** 0.5
    rows.append((float(t), of_x, (1 - then) ** 0.5 - of_x * (1 - now) ** 0.5))
  return rows


def sampling() -> None:
  """DDIM with the U-Net alone, without guidance, ours and that of torch."""
  # Its flags have the names of others.
  import torch

  from tests.benchmarks import unet

  count = 16 if _SCALE.value == 'full' else 2
  settings = unet.SETTINGS[_SCALE.value]
  graph, shapes = unet.abstract(settings | {'dtype': 'bfloat16'})
  params = unet.random_params(shapes)
  batch = unet.make_batch(settings, count)
  betas = np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2
  schedule = _ddim(np.cumprod(1 - betas))
  channels = settings['out_channels']

  def torch_way() -> Callable[[], Any]:
    device = 'cuda' if torch.cuda.is_available() else 'cpu'
    network = unet.diffusers_network(settings)
    unet.load_params(network, settings, params)
    network = network.to(device, memory_format=torch.channels_last)
    # As in `unet`: Inductor's code for CPUs is not to be trusted.
    backend = 'inductor' if device == 'cuda' else 'aot_eager'
    fast = torch.compile(network, backend=backend)
    first = torch.from_numpy(np.moveaxis(batch['x'], -1, 1)).to(device)
    context = torch.from_numpy(batch['context']).to(device)

    @torch.no_grad()
    def sample() -> Any:
      x = first
      with torch.autocast(device, torch.bfloat16):
        for t, of_x, of_noise in schedule:
          time_step = torch.full((count,), t, device=device)
          noise = fast(x, time_step, context).sample[:, :channels].float()
          known = x[:, :channels] * of_x + noise * of_noise
          x = torch.cat([known, x[:, channels:]], dim=1)
      return x.cpu().numpy()

    return sample

  def jax_way() -> Callable[[], Any]:
    from flax import nnx

    state = jax.tree.map(jnp.array, unet.with_params(shapes, params))

    @jax.jit
    def sample_with(state: Any, x: jax.Array, context: jax.Array) -> jax.Array:
      network = nnx.merge(graph, state)

      def update(x: jax.Array, row: jax.Array) -> tuple[jax.Array, None]:
        t, of_x, of_noise = row
        noise, _ = network(x, jnp.full((count,), t), context)
        known = x[..., :channels] * of_x + noise * of_noise
        return jnp.concatenate([known, x[..., channels:]], axis=-1), None

      return jax.lax.scan(update, x, jnp.asarray(schedule))[0]

    x, context = jnp.asarray(batch['x']), jnp.asarray(batch['context'])
    return lambda: np.asarray(sample_with(state, x, context))

  made = {}
  for name, way in (('torch', torch_way), ('ours', jax_way)):
    sample = way()
    made[name] = np.asarray(sample())
    start = time.perf_counter()
    sample()
    seconds = time.perf_counter() - start
    tell(way=name, steps=len(schedule), images_per_s=round(count / seconds, 3))
    # Its memory is the other's now.
    del sample
  made['torch'] = np.moveaxis(made['torch'], 1, -1)
  difference = np.abs(made['ours'] - made['torch']).mean()
  tell(mean_difference=round(float(difference / made['torch'].std()), 4))


def scores() -> None:
  """Figures of an evaluation and of its training."""
  metrics = json.loads(
    (pathlib.Path(_SCORES.value) / 'metrics.json').read_text()
  )
  rows = (pathlib.Path(_WORKDIR.value) / 'metrics.jsonl').read_text()
  rates = [json.loads(row)['examples_per_s'] for row in rows.splitlines()]
  tell(
    psnr=metrics['mean']['psnr'],
    examples_per_s=round(statistics.median(rates), 1),
  )


def main() -> None:
  """Measures the part that is asked for."""
  globals()[_PART.value]()


if __name__ == '__main__':
  command.run(main)
