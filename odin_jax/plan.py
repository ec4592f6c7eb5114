"""What training would take on hardware, before any of it is rented.

  python -m odin_jax.plan --topology=v5e:4x4 --config=configs/train.py:odin \
    --output=DIR [--price_per_chip_hour=1.2] [--search]

Compiles the very step that odin_jax.train would run, for that hardware, on this
machine, and reads from the program what one chip holds, computes, moves and
sends; from that and the chip's published rates comes the least time of a step
(odin_jax/planning). TPUs need their compiler: `bash launch/setup.sh --plan`.
`--topology=cpu:8` stands for eight devices simulated here, which always works
and predicts no time.

The model of the paper's size takes ten minutes of a core per program. Programs
are kept in DIR/programs, and the same one is not compiled again: a search that
was stopped goes on. DIR/plan.json has all figures.
"""

import sys

# As a file it finds none of the packages below.
if __name__ == '__main__' and not __package__:
  sys.stderr.write('error: type: python -m odin_jax.plan\n')
  sys.exit(2)

import functools
import gzip
import hashlib
import pathlib
import re
from typing import Any, Iterator

from absl import flags, logging
import jax

from odin_jax import sharding
from odin_jax.checkpoints import checkpoint
from odin_jax.models import encoders, unet
from odin_jax.planning import costs, estimate, hardware
from odin_jax.porting import lpips_package
from odin_jax.shared import command, errors, files
from odin_jax.training import program, settings, step

_TOOL = 'odin_jax.plan'
_CONFIG = command.define_config('configs/train.py')
_TOPOLOGY = flags.DEFINE_string(
  'topology',
  None,
  'Hardware: v5e:4x4 (v4, v5e, v5p, v6e and their shapes), or cpu:8, eight '
  'devices simulated here.',
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
_GIB = 2**30


# -- One plan ------------------------------------------------------------------


def _lowered(
  config: checkpoint.Config, mesh: jax.sharding.Mesh
) -> jax.stages.Lowered:
  try:
    state = jax.eval_shape(functools.partial(step.init, config))
  except (KeyError, ValueError) as error:
    raise errors.UserError(f'--config: {error}') from error
  where = program.placement(config, mesh, state)
  return program.jitted(config, mesh, where).lower(
    state,
    program.abstract_batch(config),
    encoders.abstract(config),
    jax.eval_shape(lambda: lpips_package.for_training(config)),
  )


def _compiled(
  lowered: jax.stages.Lowered, name: str, folder: pathlib.Path
) -> dict[str, Any]:
  """Memory and costs of a program, compiled or as they were kept.

  Args:
    lowered: the program.
    name: of the hardware.
    folder: where programs are kept.
  """
  text = f'{name} {jax.__version__} {_compiler()}\n{lowered.as_text()}'
  key = hashlib.sha256(text.encode()).hexdigest()[:20]
  path = folder / f'{key}.json'
  if path.exists():
    return files.read_json(path, 'a compiled program', ('memory', 'costs'))
  try:
    compiled = lowered.compile()
  except jax.errors.JaxRuntimeError as error:
    if 'RESOURCE_EXHAUSTED' not in str(error):
      raise
    found = {'memory': None, 'costs': None, 'reason': _reason(str(error))}
  else:
    program_text = compiled.as_text()
    with gzip.open(folder / f'{key}.hlo.gz', 'wt') as file:
      file.write(program_text)
    found = {
      'memory': program.memory(compiled)._asdict(),
      'costs': costs.of(program_text).as_dict(),
    }
  files.write_json(path, found)
  return found


def _compiler() -> str:
  """The version of the compiler for TPUs; '' without one."""
  import importlib.metadata

  try:
    return importlib.metadata.version('libtpu')
  except importlib.metadata.PackageNotFoundError:
    return ''


def _reason(message: str) -> str:
  """Of a program that does not fit: how much it wants."""
  found = re.search(r'Used [\d.]+\w? of [\d.]+\w? hbm', message)
  return found[0] if found else message.splitlines()[0][:200]


def _plan(
  config: checkpoint.Config, place: hardware.Hardware, folder: pathlib.Path
) -> dict[str, Any]:
  """What training with a config takes."""
  mesh = sharding.make_mesh(config['mesh'], place.devices)
  found = _compiled(_lowered(config, mesh), place.name, folder)
  memory = found['memory']
  capacity = place.chip and place.chip.memory_bytes
  fits = memory is not None and (not capacity or memory['peak'] <= capacity)
  predicted = None
  if memory is not None and place.chip is not None:
    predicted = estimate.prediction(
      costs.from_dict(found['costs']),
      place.chip,
      batch_size=config['batch_size'],
      num_chips=place.num_chips,
      price_per_chip_hour=_PRICE.value,
    )
  return {
    'topology': place.name,
    'num_chips': place.num_chips,
    'num_devices': len(place.devices),
    'mesh': dict(mesh.shape),
    'batch_size': config['batch_size'],
    'accumulate_steps': config['accumulate_steps'],
    'examples_at_once': config['batch_size'] // config['accumulate_steps'],
    'remat': config['model']['unet']['remat'],
    'capacity_bytes': capacity,
    'fits': fits,
    'reason': found.get('reason'),
    'memory': memory,
    'costs': found['costs'],
    'prediction': predicted,
  }


# -- Several -------------------------------------------------------------------


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


def _searched(
  config: checkpoint.Config, place: hardware.Hardware, folder: pathlib.Path
) -> Iterator[dict[str, Any]]:
  """A plan for every batch, rematerialisation and mesh, small batches first."""
  for remat in _REMATS.value:
    if remat not in unet.REMAT:
      raise errors.UserError(
        f'--{_REMATS.name}={remat}: none of {", ".join(unet.REMAT)}'
      )
  for fsdp in _numbers(_FSDPS) or [config['mesh']['fsdp']]:
    for remat in _REMATS.value:
      for batch in _numbers(_BATCHES):
        changed = checkpoint.plain(config)
        changed['mesh']['fsdp'] = fsdp
        changed['model']['unet']['remat'] = remat
        mesh = sharding.make_mesh(changed['mesh'], place.devices)
        shared = mesh.shape['data'] * mesh.shape['fsdp']
        changed['batch_size'], changed['accumulate_steps'] = batch * shared, 1
        plan = _plan(changed, place, folder)
        logging.info('%s', _heading(plan))
        yield plan
        if not plan['fits']:
          break


# -- What is said --------------------------------------------------------------


def _heading(plan: dict[str, Any]) -> str:
  mesh = ', '.join(f'{name} {size}' for name, size in plan['mesh'].items())
  parts = plan['accumulate_steps']
  fit = '' if plan['fits'] else '; does not fit'
  return (
    f'{plan["topology"]}: {plan["num_devices"]} devices, mesh {mesh}; '
    f'{plan["batch_size"]} examples a step'
    + (f' in {parts} parts' if parts > 1 else '')
    + f', remat {plan["remat"]}{fit}'
  )


def _memory_text(plan: dict[str, Any]) -> str:
  memory, capacity = plan['memory'], plan['capacity_bytes']
  if memory is None:
    return f'memory of a device: {plan["reason"]}'
  of = f' of {capacity / _GIB:.1f}' if capacity else ''
  return (
    f'memory of a device, GiB: arguments {memory["arguments"] / _GIB:.2f}, '
    f'temporaries {memory["temporaries"] / _GIB:.2f}, program '
    f'{memory["code"] / _GIB:.2f}, peak {memory["peak"] / _GIB:.2f}{of}'
  )


def _cost_lines(found: costs.Costs) -> Iterator[str]:
  yield (
    f'a step of a device: {found.flops / 1e12:.4g} TFLOP, '
    f'{found.memory_bytes / 1e9:.4g} GB through memory'
  )
  for kind, part in sorted(found.collectives.items()):
    yield (
      f'  {kind}: {part.count} of {part.num_bytes / 1e9:.4g} GB, of which it '
      f'sends {part.sent_bytes / 1e9:.4g} GB'
    )
  if found.unknown_loops:
    yield f'  {found.unknown_loops} loops of unknown length are counted once'
  if found.silent_kernels:
    yield (
      f'  {found.silent_kernels} kernels do not say what they compute, which is '
      'not counted'
    )


def _time_lines(plan: dict[str, Any]) -> Iterator[str]:
  predicted = plan['prediction']
  parts = predicted['step_parts_s']
  yield (
    f'a step takes at least {predicted["step_s"]:.4g} s (arithmetic '
    f'{parts["compute"]:.3g}, memory {parts["memory"]:.3g}, collectives '
    f'{parts["collectives"]:.3g}): at most {predicted["examples_per_s"]:.4g} '
    'examples/s'
  )
  cost = predicted['cost_of_100k_steps']
  price = '' if cost is None else f', which cost {cost:.5g}'
  yield (
    f'{estimate.PRICED_STEPS} steps: at least '
    f'{predicted["chip_hours_of_100k_steps"]:.4g} chip hours{price}'
  )


def _lines(plan: dict[str, Any]) -> Iterator[str]:
  yield _heading(plan)
  yield _memory_text(plan)
  if plan['costs'] is not None:
    yield from _cost_lines(costs.from_dict(plan['costs']))
  if plan['prediction'] is not None:
    yield from _time_lines(plan)


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
    plans = list(_searched(config, place, folder))
    best = estimate.front(plans)
  else:
    plans = best = [_plan(config, place, folder)]
  files.write_json(output / 'plan.json', {'plans': plans, 'best': best})
  for plan in best:
    command.say(_lines(plan))
  made = f'{len(plans)} plans'
  if _SEARCH.value:
    most = max((plan['examples_at_once'] for plan in best), default=0)
    made += f', {len(best)} of which no other beats; the largest batch that fits: {most}'
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
