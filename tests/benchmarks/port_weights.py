"""A checkpoint of full size in and out: seconds, memory, equal tensors.

    python -m tests.benchmarks.port_weights --folder=runs/port

Writes a random checkpoint of 4.99 GB in Zero-1-to-3's layout (no public one is
at hand), imports it, exports it in both layouts, and compares the tensors of
the ldm export with the first. Needs 20 GB of disk; a JSON line per command.
"""

import itertools
import json
import pathlib
import subprocess
import sys

from absl import flags
import jax
import numpy as np
import torch
import tqdm

from configs import train
from odin_jax.checkpoints import checkpoint
from odin_jax.models import encoders, odin
from odin_jax.porting import formats, source_config, tensors, torch_files
from odin_jax.shared import command, lazy_array
from odin_jax.shared.lazy_array import LazyArray

_FOLDER = flags.DEFINE_string(
  'folder', None, 'Where to write; kept.', required=True
)


def _shapes() -> dict[str, tuple[int, ...]]:
  """Shape of every tensor of the checkpoint, by the recipe `odin`."""
  config = checkpoint.plain(train.get_config('odin').to_dict())
  frozen = encoders.abstract(config)
  networks = {
    'unet': (
      jax.eval_shape(lambda: odin.init_params(config))['unet'],
      {**config['model']['unet'], 'in_channels': 8, 'out_channels': 4},
    ),
    'autoencoder': (frozen.autoencoder.params, config['autoencoder']),
    'image': (frozen.image.params, config['image_encoder']),
  }
  width = config['model']['unet']['context_dim']
  image = config['image_encoder']['projection']
  shapes = {
    'cc_projection.weight': (width, image + formats.WIDTHS['zero123']),
    'cc_projection.bias': (width,),
  }
  for network, (tree, settings) in networks.items():
    params = lazy_array.flattened(tree)
    prefix, layout = formats.FORMATS['zero123'].networks[network]
    rows = source_config.NAMING[network].entries(settings, layout)
    rows = sorted(rows, key=lambda row: row.name)
    for name, group in itertools.groupby(rows, lambda row: row.name):
      group = list(group)
      # Views of one number: shapes without their memory.
      parts = [
        np.broadcast_to(np.float32(0), params[row.path].shape) for row in group
      ]
      if name.startswith('out.2.'):  # Without the row of the motion mask.
        parts = [part[..., :4] for part in parts]
      shapes[prefix + name] = tensors.to_torch(group, parts).shape
  return shapes


def _random(seed: int, shape: tuple[int, ...]) -> LazyArray:
  def read() -> np.ndarray:
    generator = np.random.default_rng(seed)
    return generator.standard_normal(shape, np.float32) * np.float32(0.02)

  return LazyArray(shape, np.dtype(np.float32), read)


def _run(output: pathlib.Path, *arguments: str) -> None:
  """One command; prints what it took."""
  subprocess.run(
    [
      sys.executable,
      '-m',
      'odin_jax.port_weights',
      f'--output={output}',
      *arguments,
    ],
    check=True,
  )
  report = json.loads((output / 'port_weights.json').read_text())
  figures = {name: report[name] for name in ('seconds', 'peak_rss_mb')}
  tqdm.tqdm.write(json.dumps({'command': arguments[-1], **figures}))


def _tensors(path: pathlib.Path) -> dict[str, torch.Tensor]:
  file = torch.load(path, weights_only=True, mmap=True)
  return file.get('state_dict', file)


def main() -> None:
  folder = pathlib.Path(_FOLDER.value)
  folder.mkdir(parents=True, exist_ok=True)
  first = folder / 'random.ckpt'
  lazies = {
    name: _random(seed, shape)
    for seed, (name, shape) in enumerate(_shapes().items())
  }
  torch_files.write(first, lazies.items())
  workdir = folder / 'workdir'
  _run(workdir, f'--source={first}', '--format=zero123')
  for export in ('diffusers', 'ldm'):
    _run(folder / export, f'--source={workdir}', f'--export={export}')
  before, after = _tensors(first), _tensors(folder / 'ldm' / 'model.ckpt')
  equal = sum(torch.equal(before[name], after[name]) for name in before)
  tqdm.tqdm.write(
    json.dumps(
      {
        'checkpoint_mb': round(first.stat().st_size / 2**20),
        'tensors': len(before),
        'equal_after_ldm': equal,
        'added': sorted(after.keys() - before.keys()),
      }
    )
  )


if __name__ == '__main__':
  command.run(main)
