"""Prints the devices of a platform that jax finds, on one line.

python -m launch.devices cuda|tpu|cpu

Exit status 2 where it finds none; the line then says why and what to do.
"""

import os
import sys

import jax

from odin_jax import sharding

_REMEDIES = {
  'cuda': 'see that nvidia-smi lists it and that LD_LIBRARY_PATH is not set',
  'tpu': 'run it on a TPU VM whose TPU no other process uses; elsewhere remove '
  '.venv, for libtpu without a TPU makes jax talk',
}


def main() -> int:
  platform = sys.argv[1]
  chosen = os.environ.get('JAX_PLATFORMS')
  if not chosen:
    # Named, so that jax says why it cannot be used instead of going without.
    jax.config.update('jax_platforms', f'{platform},cpu')
  try:
    devices = jax.devices(platform)
  except RuntimeError as error:
    reason = ' '.join(str(error).partition(' (set JAX')[0].split())
    remedy = _REMEDIES[platform]
    if chosen and platform not in chosen:
      remedy = f'JAX_PLATFORMS={chosen} is set, unset it'
    print(f'jax finds no {platform} device ({reason}); {remedy}')
    return 2
  print(sharding.devices_text(devices))
  return 0


if __name__ == '__main__':
  sys.exit(main())
