"""The device mesh, and where every array of the state lives on it.

Axes: `data` and `fsdp` split the batch; `fsdp` and `tensor` split parameters.
One table says how, by the end of a parameter's path; moving averages and
optimiser moments have the same ends and follow. An axis that does not divide
its dimension is left out, and what the table does not name is replicated.
"""

import re
from typing import Any, Mapping

import jax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
import numpy as np

from odin_jax.shared import errors

AXES = ('data', 'fsdp', 'tensor')
BATCH = PartitionSpec(('data', 'fsdp'))

# Pairs of layers split the hidden dimension between them over `tensor`: the
# first its outputs, the second its inputs, so one reduction serves both.
RULES: tuple[tuple[str, PartitionSpec], ...] = (
  (r'(to_q|to_k|to_v|project)/kernel', PartitionSpec('fsdp', 'tensor')),
  (r'(to_out|out)/kernel', PartitionSpec('tensor', 'fsdp')),
  (r'(time1|pose1|source1)/kernel', PartitionSpec('fsdp', 'tensor')),
  (r'(time2|pose2|source2)/kernel', PartitionSpec('tensor', 'fsdp')),
  (r'(project_in|projection|embed)/kernel', PartitionSpec('fsdp', 'tensor')),
  (r'project_out/kernel', PartitionSpec('tensor', 'fsdp')),
  (r'conv1/kernel', PartitionSpec(None, None, 'fsdp', 'tensor')),
  (r'conv2/kernel', PartitionSpec(None, None, 'tensor', 'fsdp')),
  (r'skip/kernel', PartitionSpec(None, None, 'fsdp', 'tensor')),
  (r'(downsample|upsample)/\d+/kernel', PartitionSpec(None, None, 'fsdp')),
)


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


def batch_sharding(mesh: Mesh, batch_size: int) -> NamedSharding:
  """Sharding of a batch.

  Raises:
    errors.UserError: the batch cannot be split evenly.
  """
  parts = mesh.shape['data'] * mesh.shape['fsdp']
  parts = int(np.lcm(parts, jax.process_count()))
  if batch_size % parts:
    raise errors.UserError(
      f'config.batch_size={batch_size} is not divisible by the {parts} '
      'devices and hosts that share a batch'
    )
  return NamedSharding(mesh, BATCH)


def path_name(path: tuple[Any, ...]) -> str:
  """Slash-separated name of a leaf of the state."""
  return jax.tree_util.keystr(path, simple=True, separator='/')


def _spec(name: str, shape: tuple[int, ...], mesh: Mesh) -> PartitionSpec:
  for pattern, spec in RULES:
    if re.search(rf'(^|/){pattern}$', name) and len(spec) <= len(shape):
      return PartitionSpec(
        *(
          axis if axis and size % mesh.shape[axis] == 0 else None
          for axis, size in zip(spec, shape)
        )
      )
  return PartitionSpec()


def shardings(abstract_state: Any, mesh: Mesh) -> Any:
  """A `NamedSharding` for every leaf of the state, by `RULES`."""
  return jax.tree_util.tree_map_with_path(
    lambda path, leaf: NamedSharding(
      mesh, _spec(path_name(path), leaf.shape, mesh)
    ),
    abstract_state,
  )


def replicated(mesh: Mesh) -> NamedSharding:
  """Every device holds all of it."""
  return NamedSharding(mesh, PartitionSpec())
