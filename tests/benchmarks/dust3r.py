"""The DUSt3R adapter against the package's own `inference(...)`.

    DUST3R_HOME=FOLDER python -m tests.benchmarks.dust3r [--networks=small,base]

28 pairs of 8 views through the same random weights, in one process, with the
same batch size; outputs must be equal to the bit. One JSON line per network:
seconds and the ratio, of wall time and of CPU time. Networks have the official
proportions (the decoders' width 3/4 and depth 1/2 of the encoder's); `large` is
the official one for 224 pixels, and takes minutes.
"""

import itertools
import json
import time
from typing import Any, Callable

from absl import flags
import numpy as np

from odin_jax.shared import command
from preprocessing.matchers import dust3r_checkout, dust3r_network

_NUM_VIEWS = 8
_BATCH_SIZE = 8
# Size of the views, width, depth and heads of the encoder, and the head.
_NETWORKS = {
  'small': (128, 256, 8, 8, 'linear'),
  'base': (224, 768, 12, 12, 'linear'),
  'large': (224, 1024, 24, 16, 'linear'),
}

_NAMES = flags.DEFINE_list(
  'networks', ['small', 'base'], f'Some of {", ".join(_NETWORKS)}.'
)


def make_model(home: Any, name: str) -> tuple[Any, int]:
  """A network with random weights, and the size of its views."""
  import torch

  size, width, depth, heads, head = _NETWORKS[name]
  arguments = dust3r_checkout.parse_network(
    f"AsymmetricCroCo3DStereo(pos_embed='RoPE100', img_size=({size}, {size}), "
    f"head_type='{head}', output_mode='pts3d', landscape_only=False, "
    "depth_mode=('exp', -inf, inf), conf_mode=('exp', 1, inf), "
    f'enc_embed_dim={width}, enc_depth={depth}, enc_num_heads={heads}, '
    f'dec_embed_dim={width * 3 // 4}, dec_depth={depth // 2}, '
    f'dec_num_heads={heads * 3 // 4})'
  )
  torch.manual_seed(0)
  module = dust3r_checkout.import_module(home, 'dust3r.model')
  return module.AsymmetricCroCo3DStereo(**arguments).eval(), size


def stock(home: Any, model: Any, views: np.ndarray, chosen: list) -> Callable:
  """The package's way, from normalised images on."""
  import torch

  module = dust3r_checkout.import_module(home, 'dust3r.inference')
  images = [
    dict(
      img=(torch.from_numpy(view).permute(2, 0, 1)[None] / 255 - 0.5) / 0.5,
      true_shape=np.int32([view.shape[:2]]),
      idx=index,
      instance=str(index),
    )
    for index, view in enumerate(views)
  ]
  two_of = [(images[a], images[b]) for a, b in chosen]

  def run() -> list[np.ndarray]:
    output = module.inference(
      two_of, model, 'cpu', batch_size=_BATCH_SIZE, verbose=False
    )
    pred1, pred2 = output['pred1'], output['pred2']
    maps = (
      pred1['pts3d'],
      pred1['conf'],
      pred2['pts3d_in_other_view'],
      pred2['conf'],
    )
    return [item.numpy() for item in maps]

  return run


def adapter(model: Any, views: np.ndarray, chosen: list) -> Callable:
  """Every view once, from 8-bit images on."""
  network = dust3r_network.Network(
    model,
    device='cpu',
    precision='fp32',
    attention='stock',
    batch_size=_BATCH_SIZE,
  )

  def run() -> list[np.ndarray]:
    tokens = network.encode(views)
    maps = list(network.decode([(tokens[a], tokens[b]) for a, b in chosen]))
    return [
      np.stack(column)
      for column in zip(
        *(
          (m.points_one, m.confidence_one, m.points_two, m.confidence_two)
          for m in maps
        )
      )
    ]

  return run


def timed(run: Callable) -> tuple[list[np.ndarray], float, float]:
  """Results, wall seconds and CPU seconds."""
  wall, cpu = time.perf_counter(), time.process_time()
  maps = run()
  return maps, time.perf_counter() - wall, time.process_time() - cpu


def compare(home: Any, name: str) -> dict[str, Any]:
  """One network, both ways.

  Raises:
    ValueError: the outputs differ.
  """
  import torch

  model, size = make_model(home, name)
  views = np.random.default_rng(0).integers(
    0, 256, (_NUM_VIEWS, size, size, 3), dtype=np.uint8
  )
  chosen = list(itertools.combinations(range(_NUM_VIEWS), 2))
  # Buffers and caches of positions are made outside of the measurement.
  stock(home, model, views, chosen[:2])()
  stock_maps, stock_s, stock_cpu_s = timed(stock(home, model, views, chosen))
  adapter_maps, own_s, own_cpu_s = timed(adapter(model, views, chosen))
  if not all(map(np.array_equal, adapter_maps, stock_maps)):
    raise ValueError(f'{name}: outputs differ')
  return {
    'benchmark': 'dust3r',
    'network': name,
    'parameters': sum(item.numel() for item in model.parameters()),
    'view_px': size,
    'views': _NUM_VIEWS,
    'pairs': len(chosen),
    'threads': torch.get_num_threads(),
    'stock_s': round(stock_s, 2),
    'adapter_s': round(own_s, 2),
    'ratio': round(stock_s / own_s, 3),
    'cpu_ratio': round(stock_cpu_s / own_cpu_s, 3),
    'outputs_equal': True,
  }


def main() -> None:
  """Measures the networks that are named."""
  home = dust3r_checkout.find_home()
  for name in _NAMES.value:
    print(json.dumps(compare(home, name)), flush=True)


if __name__ == '__main__':
  command.run(main)
