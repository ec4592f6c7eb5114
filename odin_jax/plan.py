"""What training would take on hardware, before any of it is rented.

  python -m odin_jax.plan --topology=v5e:4x4 --config=configs/train.py:odin \
    --output=DIR [--price_per_chip_hour=1.2] [--search]

Compiles the very step that odin_jax.train would run, for that hardware, on this
machine, and reads from the program what one chip holds, computes, moves and
sends; from that and the chip's published rates comes the least time of a step
(odin_jax/planning). TPUs need their compiler: `bash launch/setup.sh --plan`.
`--topology=2xv5e:4x4` are two slices. `--topology=cpu:8` stands for eight
devices simulated here, which always works and predicts no time.

The model of the paper's size takes ten minutes of a core per program. Programs
are kept in DIR/programs, and the same one is not compiled again: a search that
was stopped goes on. DIR/plan.json has all figures.
"""

import sys

# As a file it finds none of the packages below.
if __name__ == '__main__' and not __package__:
  sys.stderr.write('error: type: python -m odin_jax.plan\n')
  sys.exit(2)

from absl import flags

from odin_jax.checkpoints import checkpoint
from odin_jax.models import unet
from odin_jax.planning import estimate, hardware, plans
from odin_jax.shared import command, errors, files
from odin_jax.training import settings

_TOOL = 'odin_jax.plan'
_CONFIG = command.define_config('configs/train.py')
_TOPOLOGY = flags.DEFINE_string(
  'topology',
  None,
  'Hardware: v5e:4x4 (v4, v5e, v5p, v6e and their shapes), 2xv5e:4x4, two '
  'slices of it, or cpu:8, eight devices simulated here.',
  required=True,
)
_OUTPUT = command.define_output('Folder for plan.json and programs')
_PRICE = flags.DEFINE_float(
  'price_per_chip_hour', None, 'What an hour of a chip costs.', 0.0
)
_SEARCH = flags.DEFINE_bool(
  'search', False, 'Plan for many batches, rematerialisations and meshes.'
)
_BATCHES = flags.DEFINE_list(
  'batches',
  ['4', '8', '16', '32', '64', '128'],
  'Of --search: examples of a device at once, up to the first that does not '
  'fit.',
)
_REMATS = flags.DEFINE_list(
  'remats', list(unet.REMAT), 'Of --search: values of config.model.unet.remat.'
)
_FSDPS = flags.DEFINE_list(
  'fsdps',
  [],
  'Of --search: values of config.mesh.fsdp; not given: that of the config.',
)
flags.mark_flags_as_required(['output'])


def _numbers(flag: flags.FlagHolder[list[str]]) -> list[int]:
  try:
    numbers = [int(value) for value in flag.value]
  except ValueError:
    numbers = [0]
  if min(numbers, default=1) < 1:
    raise errors.UserError(
      f'--{flag.name}={",".join(flag.value)}: give whole numbers from 1 on'
    )
  return sorted(numbers)


def _remats() -> list[str]:
  for remat in _REMATS.value:
    if remat not in unet.REMAT:
      raise errors.UserError(
        f'--{_REMATS.name}={remat}: none of {", ".join(unet.REMAT)}'
      )
  return _REMATS.value


def main() -> None:
  """Reads the flags and plans."""
  hardware.prepare()
  config = checkpoint.plain(_CONFIG.value.to_dict())
  settings.check(config)
  place = hardware.of(_TOPOLOGY.value)
  output = files.claim_output(_OUTPUT.value, _TOOL)
  folder = output / 'programs'
  folder.mkdir(exist_ok=True)
  if _SEARCH.value:
    found = list(
      plans.searched(
        config,
        place,
        folder,
        _PRICE.value,
        fsdps=_numbers(_FSDPS) or [config['mesh']['fsdp']],
        remats=_remats(),
        batches=_numbers(_BATCHES),
      )
    )
    best = estimate.front(found)
  else:
    found = best = [plans.plan(config, place, folder, _PRICE.value)]
  files.write_json(output / 'plan.json', {'plans': found, 'best': best})
  for plan in best:
    command.say(plans.lines(plan))
  made = f'{len(found)} plans'
  if _SEARCH.value:
    most = max((plan['examples_at_once'] for plan in best), default=0)
    made += (
      f', {len(best)} of which no other beats; the largest batch that fits: '
      f'{most}'
    )
  given = {
    'records': 'DIR',
    'workdir': 'DIR',
    'config.batch_size': config['batch_size'],
  }
  command.finish(
    _OUTPUT.value,
    made,
    look_at='plan.json',
    then=('train there', 'odin_jax.train', given),
  )


if __name__ == '__main__':
  command.run(main)
