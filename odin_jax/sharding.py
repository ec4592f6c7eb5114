"""The device mesh, and where every array of the state lives on it.

Axes: `data` and `fsdp` split the batch; `fsdp` and `tensor` split parameters.
The model's rules say how, by the end of a parameter's path; moving averages and
optimiser moments have the same ends and follow. An axis that does not divide
its dimension is left out. That a parameter is on every device has to be said by
a rule too: one that no rule names is an error.
"""

import collections
import re
from typing import Any, Mapping, Sequence

import jax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Int, Shaped
import numpy as np

from odin_jax.shared import cores, errors

AXES = ('data', 'fsdp', 'tensor')
BATCH = PartitionSpec(('data', 'fsdp'))

# End of a parameter's path, as a regular expression, and the axis that splits
# each of its dimensions or None; (): every device holds all of it.
Rules = Mapping[str, tuple[str | None, ...]]


def devices_text(devices: Sequence[jax.Device] | None = None) -> str:
  """Devices on one line, such as `devices: 8 x TPU v5 lite`.

  Args:
    devices: None: all of them.
  """
  found = jax.devices() if devices is None else devices
  kinds = collections.Counter(device.device_kind for device in found)
  text = ', '.join(f'{count} x {kind}' for kind, count in kinds.items())
  if found[0].platform == 'cpu':
    text += f' ({cores.count()} cores)'
  return f'devices: {text}'


def make_mesh(axes: Mapping[str, int]) -> Mesh:
  """The mesh over all devices.

  Args:
    axes: devices along each of `AXES`; at most one is -1 and takes the rest.

  Raises:
    errors.UserError: the product is not the number of devices.
  """
  sizes = [axes[name] for name in AXES]
  count = jax.device_count()
  known = int(np.prod([size for size in sizes if size != -1]))
  if -1 in sizes and known > 0 and count % known == 0:
    sizes[sizes.index(-1)] = count // known
  if min(sizes) < 1 or int(np.prod(sizes)) != count:
    raise errors.UserError(
      f'config.mesh={dict(axes)} does not fit {count} devices; '
      'their product must be the number of devices'
    )
  return jax.make_mesh(sizes, AXES, axis_types=(AxisType.Auto,) * len(AXES))


def local_mesh() -> Mesh:
  """The mesh over the devices of this process, all along the batch."""
  devices = np.reshape(jax.local_devices(), (-1, 1, 1))
  return Mesh(devices, AXES, axis_types=(AxisType.Auto,) * len(AXES))


def batch_sharding(mesh: Mesh, batch_size: int) -> NamedSharding:
  """Sharding of a batch.

  Raises:
    errors.UserError: the batch cannot be split evenly.
  """
  parts = mesh.shape['data'] * mesh.shape['fsdp']
  if batch_size % parts:
    raise errors.UserError(
      f'config.batch_size={batch_size} is not divisible by the {parts} '
      'devices that share a batch'
    )
  return NamedSharding(mesh, BATCH)


def own_rows(where: NamedSharding, batch_size: int) -> Int[np.ndarray, 'n']:
  """The rows of a batch that devices of this process hold, in order.

  Of a mesh whose axis `tensor` goes over several processes, several have the
  same ones.
  """
  indices = where.addressable_devices_indices_map((batch_size,)).values()
  return np.unique(
    np.concatenate([np.arange(batch_size)[index] for index in indices])
  )


def of_rows(
  where: NamedSharding,
  batch_size: int,
  rows: Int[np.ndarray, 'n'],
  values: Shaped[np.ndarray, 'n ...'],
) -> Shaped[Array, 'b ...']:
  """An array of the whole batch, of which each process gives its rows.

  Args:
    where: of `batch_sharding`.
    batch_size: of the batch over all processes.
    rows: of `own_rows`.
    values: of these rows.
  """

  def part(index: tuple[slice, ...]) -> Shaped[np.ndarray, 'm ...']:
    of_device = np.arange(batch_size)[index[0]]
    return values[np.searchsorted(rows, of_device)]

  shape = (batch_size, *values.shape[1:])
  return jax.make_array_from_callback(shape, where, part)


def path_name(path: tuple[Any, ...]) -> str:
  """Slash-separated name of a leaf of the state."""
  return jax.tree_util.keystr(path, simple=True, separator='/')


def by_path(tree: Any) -> dict[str, Any]:
  """The leaves of a tree by their names."""
  leaves = jax.tree_util.tree_leaves_with_path(tree)
  return {path_name(path): leaf for path, leaf in leaves}


def _spec(
  name: str, shape: tuple[int, ...], mesh: Mesh, rules: Rules
) -> PartitionSpec:
  """How a leaf is split.

  A scalar, such as a count of steps, never is, nor are Muon's coefficients.
  """
  if not shape or name.endswith('/ns_coeffs'):
    return PartitionSpec()
  for pattern, axes in rules.items():
    if re.search(rf'(^|/)(?:{pattern})$', name) and len(axes) <= len(shape):
      return PartitionSpec(
        *(
          axis if axis and size % mesh.shape[axis] == 0 else None
          for axis, size in zip(axes, shape)
        )
      )
  raise ValueError(
    f'no rule says how {name} of shape {shape} is sharded; its part of the '
    'conditioning, or the table of the U-Net, has to'
  )


def shardings(abstract_state: Any, mesh: Mesh, rules: Rules) -> Any:
  """A `NamedSharding` for every leaf of the state.

  Args:
    abstract_state: the state or a part of it, such as the parameters.
    mesh: the mesh.
    rules: of the model; `odin_jax.models.odin.sharding_rules` gives them. Of
      those that name a leaf the first is taken.

  Raises:
    ValueError: no rule names a leaf.
  """
  return jax.tree_util.tree_map_with_path(
    lambda path, leaf: NamedSharding(
      mesh, _spec(path_name(path), leaf.shape, mesh, rules)
    ),
    abstract_state,
  )


def replicated(mesh: Mesh) -> NamedSharding:
  """Every device holds all of it."""
  return NamedSharding(mesh, PartitionSpec())
