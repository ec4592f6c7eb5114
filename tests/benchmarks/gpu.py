"""All that a GPU is wanted for, in one command of half an hour.

    python -m tests.benchmarks.gpu --output=DIR
    python -m tests.benchmarks.gpu --output=DIR --size=tiny     # any machine

Parts run one after the other, each in a process and under a time limit of its
own; what fails, or needs more memory than there is, costs its own rows alone.
After every part `results.json` and `table.md` in DIR are written anew; what a
part printed lies beside them. No network is needed; wheels that are not here are
named, and their parts left out. Parts, with what they measure:

  devices    what JAX finds, the rate of bfloat16 matrix products of 8192^2
  attention  `odin_jax.models.ops` in bfloat16 against plain float32: error, time
  step       the U-Net's training step at batch 8 to 256, 860 M at 256 px, against
             diffusers with torch.compile; share of the matrix rate (MFU)
  train      the whole training step of `odin` from images, with the encoders,
             and from latents of records; memory
  sampling   50 DDIM steps of the U-Net against the same of diffusers
  world      videos, records, training and scores of the `world` recipe: PSNR

Floor for `train` from latents: 137.5 images/s on one A100 (MosaicML's Stable
Diffusion 2 U-Net at 256 px); goals: 2.5 times that on an H100, 1.3 times torch,
half of the matrix rate.
"""

from absl import flags

from odin_jax.shared import command, files
from tests.helpers import gpu_parts_list, limited_parts

_OUTPUT = command.define_output('Folder for results.json and table.md')
_SIZE = flags.DEFINE_enum('size', 'full', ['full', 'tiny'], 'Of the networks.')
_MINUTES = flags.DEFINE_float('minutes', 30.0, 'For all parts together.', 0.0)
_PARTS = flags.DEFINE_list('parts', None, 'Names of some parts; all.')
flags.mark_flags_as_required(['output'])
_TOOL = 'tests.benchmarks.gpu'


def main() -> None:
  """Runs the parts that are asked for."""
  folder = files.claim_output(_OUTPUT.value, _TOOL)
  every = gpu_parts_list.parts(_SIZE.value, folder)
  chosen = [
    part
    for part in every
    if not _PARTS.value or part.name.split('_')[0] in _PARTS.value
  ]
  results = limited_parts.run_all(
    chosen, folder, _MINUTES.value, lambda x: print(x, flush=True)
  )
  done = sum(result['status'] == 'done' for result in results.values())
  command.finish(
    _OUTPUT.value, f'{done} of {len(results)} parts done', look_at='table.md'
  )


if __name__ == '__main__':
  command.run(main)
