"""The devices of hardware that is elsewhere, by its name."""

import math
import os
import re
from typing import Any, Mapping, NamedTuple, Sequence

import jax

from odin_jax.shared import chips, errors

CPU = 'cpu'
_TPUS = tuple(name for name in chips.CHIPS if name.startswith('v'))
# What makes a device of both cores of a chip, as they are on machines.
_DESCRIPTIONS = {'v4': {'chip_config_name': 'megacore'}}
_EXAMPLES = 'v5e:4x4, v5p:2x2x2, v6e:4x4, 2xv5e:4x4 (two slices), or cpu:8'


class Hardware(NamedTuple):
  """Devices to compile for.

  Attributes:
    name: as it was given, `v5e:4x4`.
    devices: as JAX has them.
    num_chips: that are rented.
    chip: the rates of a device; None where none are published.
  """

  name: str
  devices: Sequence[jax.Device]
  num_chips: int
  chip: chips.Chip | None


def prepare() -> None:
  """Makes JAX compile for TPUs here; before it looks for devices.

  It is not to look for a TPU of this machine, nor libtpu for the network of a
  pod; and it is to compile fast: the time goes down by a third or so, and
  memory and collectives stay about as they are.
  """
  jax.config.update('jax_platforms', 'cpu')
  jax.config.update('jax_exec_time_optimization_effort', -1.0)
  for name, value in {
    # Another plan may be made at the same time.
    'ALLOW_MULTIPLE_LIBTPU_LOAD': '1',
    'TPU_SKIP_MDS_QUERY': '1',
    'TPU_WORKER_HOSTNAMES': 'localhost',
    'TPU_WORKER_ID': '0',
    # Any; the topology says what is compiled for.
    'TPU_ACCELERATOR_TYPE': 'v5litepod-4',
    # Errors only.
    'TPU_MIN_LOG_LEVEL': '2',
    'TPU_STDERR_LOG_LEVEL': '2',
  }.items():
    os.environ.setdefault(name, value)


def of(name: str) -> Hardware:
  """The devices of a name.

  Args:
    name: a TPU and its shape, as Google Cloud has it, and before it, as in
      `2xv5e:4x4`, how many slices; or `cpu:N`: N devices that are simulated
      here.

  Raises:
    errors.UserError: there is no such hardware, or it cannot be compiled for
      here.
  """
  num_slices, of_slice = re.match(r'(?s)(?:([1-9]\d*)x)?(.*)', name).groups()
  kind, _, shape = of_slice.partition(':')
  if kind == CPU and num_slices is None:
    return _simulated(name, shape)
  if kind in chips.CHIPS and kind not in _TPUS:
    raise errors.UserError(
      f'--topology={name}: JAX cannot compile for GPUs that are not here; on a '
      'machine with one, odin_jax.train says what memory its step takes'
    )
  if kind not in _TPUS or not re.fullmatch(r'[1-9]\d*(x[1-9]\d*)+', shape):
    raise errors.UserError(
      f'--topology={name}: not known; give one such as {_EXAMPLES}'
    )
  num_chips = math.prod(int(side) for side in shape.split('x'))
  arguments = dict(_DESCRIPTIONS.get(kind, {}))
  if num_slices is not None:
    num_chips *= int(num_slices)
    arguments['num_slices'] = int(num_slices)
  devices = _described(name, of_slice, arguments)
  if len(devices) != num_chips:
    raise errors.UserError(
      f'--topology={name}: has {len(devices)} devices on {num_chips} chips, of '
      'which no rates are known'
    )
  return Hardware(name, devices, num_chips, chips.CHIPS[kind])


def _simulated(name: str, shape: str) -> Hardware:
  if not shape.isdigit() or int(shape) < 1:
    raise errors.UserError(f'--topology={name}: give one such as {_EXAMPLES}')
  count = int(shape)
  try:
    jax.config.update('jax_num_cpu_devices', count)
  except RuntimeError:
    # JAX has looked for devices already: there are those that there are.
    pass
  devices = jax.devices(CPU)
  if len(devices) < count:
    raise errors.UserError(
      f'--topology={name}: JAX made {len(devices)} devices in this process '
      'already; give no more, or unset XLA_FLAGS'
    )
  return Hardware(name, devices[:count], count, None)


def _described(
  name: str, of_slice: str, arguments: Mapping[str, Any]
) -> Sequence[jax.Device]:
  from jax.experimental import topologies

  try:
    return topologies.get_topology_desc(
      platform='tpu', topology_name=of_slice, **arguments
    ).devices
  except (NotImplementedError, RuntimeError) as error:
    reason = str(error).splitlines()[0][:200]
    if 'topology' in reason.lower() and 'INVALID_ARGUMENT' in reason:
      raise errors.UserError(f'--topology={name}: {reason}') from error
    raise errors.UserError(
      f'--topology={name}: needs the compiler for TPUs ({reason}); '
      'bash launch/setup.sh --plan installs it'
    ) from error
