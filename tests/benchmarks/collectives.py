"""What chips send each other in a step of the model of the paper's size.

    python -m tests.benchmarks.collectives --output=DIR [--topologies=v5e:2x2,v5e:4x4]

Compiles the step of the recipe `odin` (860 M parameters, 256 px, remat `full`,
16 examples a chip, parameters split over all chips) for TPUs that are not here,
which takes `bash launch/setup.sh --plan` and ten minutes of a core for each, and
counts its collectives, loops by their trips. One JSON line per topology, in
units of the bytes of the parameters in bfloat16:

  gathers     all-gathers, and parts of arrays that are passed around (permutes)
  reductions  sums of gradients, all-reduces among them

Fails where there is an all-to-all, gathers are more than 3 or reductions more
than 1 (a gather for each pass of three, a sum of gradients), and a hundredth for
what computes in float32: biases, norms, conditioning. Programs stay in DIR and
are not compiled again.
"""

import functools
import json
import math
import subprocess
import sys

from absl import flags
import jax

from odin_jax.checkpoints import checkpoint
from odin_jax.planning import costs
from odin_jax.shared import command, errors, files
from odin_jax.training import step

_OUTPUT = command.define_output()
_TOPOLOGIES = flags.DEFINE_list(
  'topologies', ['v5e:2x2', 'v5e:4x4'], 'Hardware, as odin_jax.plan has it.'
)
_EXAMPLES = 16
_MOST_GATHERS = 3.0
_MOST_REDUCTIONS = 1.01
_RECIPE = 'configs/train.py:odin'


def _parameter_bytes() -> int:
  """Of the parameters in bfloat16."""
  config = command.load_config('configs/train.py', 'odin')
  state = jax.eval_shape(
    functools.partial(step.init, checkpoint.plain(config.to_dict()))
  )
  return 2 * sum(leaf.size for leaf in jax.tree.leaves(state['params']))


def _shares(plan: dict, parameter_bytes: int) -> dict[str, float]:
  found = costs.from_dict(plan['costs'])
  sizes = {kind: part.num_bytes for kind, part in found.collectives.items()}
  return {
    'gathers': (sizes.get('all-gather', 0) + sizes.get('collective-permute', 0))
    / parameter_bytes,
    'reductions': (sizes.get('all-reduce', 0) + sizes.get('reduce-scatter', 0))
    / parameter_bytes,
    'all_to_alls': found.collectives.get(
      'all-to-all', costs.Collective()
    ).count,
  }


def main() -> None:
  """Plans for every topology and asserts the shares."""
  parameter_bytes = _parameter_bytes()
  too_many = []
  for name in _TOPOLOGIES.value:
    chips = math.prod(int(side) for side in name.partition(':')[2].split('x'))
    output = f'{_OUTPUT.value}/{name.replace(":", "_")}'
    subprocess.run(
      [
        sys.executable, '-m', 'odin_jax.plan', f'--topology={name}',
        f'--config={_RECIPE}', f'--config.batch_size={_EXAMPLES * chips}',
        f'--config.mesh.fsdp={chips}', f'--output={output}',
      ],
      check=True,
    )  # fmt: skip
    (plan,) = files.read_json(f'{output}/plan.json', 'a plan', ('plans',))[
      'plans'
    ]
    shares = _shares(plan, parameter_bytes)
    print(json.dumps({'topology': name, **shares, 'memory': plan['memory']}))
    if (
      shares['gathers'] > _MOST_GATHERS
      or shares['reductions'] > _MOST_REDUCTIONS
      or shares['all_to_alls']
    ):
      too_many.append(name)
  if too_many:
    raise errors.UserError(f'too much is sent on {", ".join(too_many)}')


if __name__ == '__main__':
  command.run(main)
