"""Plans: the step of a config compiled for hardware, and what that says."""

import functools
import gzip
import hashlib
import importlib.metadata
import pathlib
import re
from typing import Any, Iterator, Sequence

from absl import logging
import jax

from odin_jax import sharding
from odin_jax.checkpoints import checkpoint
from odin_jax.models import encoders
from odin_jax.planning import costs, estimate, hardware
from odin_jax.porting import lpips_package
from odin_jax.shared import errors, files
from odin_jax.training import program, step

_GIB = 2**30


# -- One plan ------------------------------------------------------------------


def lowered(
  config: checkpoint.Config, mesh: jax.sharding.Mesh
) -> jax.stages.Lowered:
  """The step of a config for a mesh, as training has it."""
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


def compiled(
  step_program: jax.stages.Lowered, name: str, folder: pathlib.Path
) -> dict[str, Any]:
  """Memory and costs of a program, compiled or as they were kept.

  Args:
    step_program: of `lowered`.
    name: of the hardware.
    folder: where programs are kept.
  """
  text = f'{name} {jax.__version__} {_compiler()}\n{step_program.as_text()}'
  key = hashlib.sha256(text.encode()).hexdigest()[:20]
  path = folder / f'{key}.json'
  if path.exists():
    return files.read_json(path, 'a compiled program', ('memory', 'costs'))
  try:
    made = step_program.compile()
  except jax.errors.JaxRuntimeError as error:
    if 'RESOURCE_EXHAUSTED' not in str(error):
      raise
    found = {'memory': None, 'costs': None, 'reason': _reason(str(error))}
  else:
    program_text = made.as_text()
    with gzip.open(folder / f'{key}.hlo.gz', 'wt') as file:
      file.write(program_text)
    found = {
      'memory': program.memory(made)._asdict(),
      'costs': costs.of(program_text).as_dict(),
    }
  files.write_json(path, found)
  return found


def _compiler() -> str:
  """The version of the compiler for TPUs; '' without one."""
  try:
    return importlib.metadata.version('libtpu')
  except importlib.metadata.PackageNotFoundError:
    return ''


def _reason(message: str) -> str:
  """Of a program that does not fit: how much it wants."""
  found = re.search(r'Used [\d.]+\w? of [\d.]+\w? hbm', message)
  return found[0] if found else message.splitlines()[0][:200]


def plan(
  config: checkpoint.Config,
  place: hardware.Hardware,
  folder: pathlib.Path,
  price_per_chip_hour: float | None,
) -> dict[str, Any]:
  """What training with a config takes.

  Args:
    config: of the training.
    place: the hardware.
    folder: where programs are kept.
    price_per_chip_hour: None: not known.

  Raises:
    errors.UserError: the config and the hardware do not fit each other.
  """
  mesh = sharding.make_mesh(config['mesh'], place.devices)
  found = compiled(lowered(config, mesh), place.name, folder)
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
      price_per_chip_hour=price_per_chip_hour,
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


def searched(
  config: checkpoint.Config,
  place: hardware.Hardware,
  folder: pathlib.Path,
  price_per_chip_hour: float | None,
  *,
  fsdps: Sequence[int],
  remats: Sequence[str],
  batches: Sequence[int],
) -> Iterator[dict[str, Any]]:
  """A plan for every mesh, rematerialisation and batch.

  Args:
    config: as `plan` has it, and the next three.
    place: the hardware.
    folder: where programs are kept.
    price_per_chip_hour: None: not known.
    fsdps: values of `config.mesh.fsdp`.
    remats: values of `config.model.unet.remat`.
    batches: examples of a device at once; those after the first that does not
      fit are left out.
  """
  for fsdp in fsdps:
    for remat in remats:
      for batch in sorted(batches):
        changed = checkpoint.plain(config)
        changed['mesh']['fsdp'] = fsdp
        changed['model']['unet']['remat'] = remat
        mesh = sharding.make_mesh(changed['mesh'], place.devices)
        shared = mesh.shape['data'] * mesh.shape['fsdp']
        changed['batch_size'], changed['accumulate_steps'] = batch * shared, 1
        found = plan(changed, place, folder, price_per_chip_hour)
        logging.info('%s', heading(found))
        yield found
        if not found['fits']:
          break


# -- What is said --------------------------------------------------------------


def heading(found: dict[str, Any]) -> str:
  """Of what a plan is."""
  mesh = ', '.join(f'{name} {size}' for name, size in found['mesh'].items())
  parts = found['accumulate_steps']
  fit = '' if found['fits'] else '; does not fit'
  return (
    f'{found["topology"]}: {found["num_devices"]} devices, mesh {mesh}; '
    f'{found["batch_size"]} examples a step'
    + (f' in {parts} parts' if parts > 1 else '')
    + f', remat {found["remat"]}{fit}'
  )


def _memory_text(found: dict[str, Any]) -> str:
  memory, capacity = found['memory'], found['capacity_bytes']
  if memory is None:
    return f'memory of a device: {found["reason"]}'
  of = f' of {capacity / _GIB:.1f}' if capacity else ''
  return (
    f'memory of a device, GiB: arguments {memory["arguments"] / _GIB:.2f}, '
    f'temporaries {memory["temporaries"] / _GIB:.2f}, program '
    f'{memory["code"] / _GIB:.2f}, peak {memory["peak"] / _GIB:.2f}{of}'
  )


def _cost_lines(of_step: costs.Costs) -> Iterator[str]:
  yield (
    f'a step of a device: {of_step.flops / 1e12:.4g} TFLOP, '
    f'{of_step.memory_bytes / 1e9:.4g} GB through memory'
  )
  for kind, part in sorted(of_step.collectives.items()):
    is_timed = not kind.startswith(costs.BETWEEN_SLICES)
    yield (
      f'  {kind}: {part.count} of {part.num_bytes / 1e9:.4g} GB, of which it '
      f'sends {part.sent_bytes / 1e9:.4g} GB'
      + ('' if is_timed else ', whose time is not counted')
    )
  if of_step.unknown_loops:
    yield f'  {of_step.unknown_loops} loops of unknown length are counted once'
  if of_step.silent_kernels:
    yield (
      f'  {of_step.silent_kernels} kernels do not say what they compute, which is '
      'not counted'
    )


def _time_lines(found: dict[str, Any]) -> Iterator[str]:
  predicted = found['prediction']
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


def lines(found: dict[str, Any]) -> Iterator[str]:
  """A plan, to be read."""
  yield heading(found)
  yield _memory_text(found)
  if found['costs'] is not None:
    yield from _cost_lines(costs.from_dict(found['costs']))
  if found['prediction'] is not None:
    yield from _time_lines(found)
