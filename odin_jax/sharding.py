"""The device mesh, and where every array of the state lives on it.

Axes: `data` and `fsdp` split the batch; `fsdp` and `tensor` split parameters.
Of several slices of TPUs, or machines of GPUs, parameters are split within each
alone: `data` is what goes over the slower network between them. The model's
rules say how, by the end of a parameter's path; moving averages and optimiser
moments have the same ends and follow. An axis that does not divide its
dimension is left out. That a parameter is on every device has to be said by a
rule too: one that no rule names is an error.

`traced_for` says for which mesh a function is traced: what its kernels are
(`platform`) and how its activations are split (`by_example`) follow from that,
so that a program can be made here for hardware that is elsewhere.
"""

import collections
import contextlib
import contextvars
import functools
import math
import re
from typing import Any, Callable, Iterator, Mapping, Sequence

import jax
from jax.sharding import (
  AbstractMesh,
  AxisType,
  Mesh,
  NamedSharding,
  PartitionSpec,
)
from jaxtyping import Array, Int, Shaped
import numpy as np

from odin_jax.shared import cores, errors

AXES = ('data', 'fsdp', 'tensor')
BATCH = PartitionSpec(('data', 'fsdp'))
# As far as parameters are split where the mesh leaves that open: by then what
# is left of the state on a device is less than what a step needs beside it.
_MOST_FSDP = 16
# What is smaller is not worth splitting.
LARGE_BYTES = 2**20

# One of devices, or of numbers alone.
AnyMesh = Mesh | AbstractMesh
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


def _slices(devices: Sequence[jax.Device]) -> list[list[jax.Device]]:
  """Devices by their slice of TPUs, or machine of GPUs.

  Raises:
    errors.UserError: one has more than another.
  """
  slices = collections.defaultdict(list)
  for device in devices:
    slices[getattr(device, 'slice_index', 0)].append(device)
  counts = {len(of_slice) for of_slice in slices.values()}
  if len(counts) > 1:
    raise errors.UserError(
      f'slices of {" and ".join(map(str, sorted(counts)))} devices; take '
      'slices, or machines, of as many devices each'
    )
  return [slices[index] for index in sorted(slices)]


def _sizes(axes: Mapping[str, int], count: int, num_slices: int) -> list[int]:
  """Devices along each of `AXES`, see `make_mesh`."""
  sizes = [axes[name] for name in AXES]
  known = math.prod(size for size in sizes if size != -1)
  if known > 0 and count % known == 0:
    rest = count // known
    if sizes[:2] == [-1, -1]:
      sizes[1] = math.gcd(rest, rest // num_slices, _MOST_FSDP)
      rest //= sizes[1]
    if -1 in sizes:
      sizes[sizes.index(-1)] = rest
  if min(sizes) < 1 or math.prod(sizes) != count:
    raise errors.UserError(
      f'config.mesh={dict(axes)} does not fit {count} devices; '
      'their product must be the number of devices'
    )
  return sizes


def make_mesh(
  axes: Mapping[str, int], devices: Sequence[jax.Device] | None = None
) -> Mesh:
  """The mesh over devices, of one slice or of several.

  Args:
    axes: devices along each of `AXES`. One that is -1 takes what the others
      leave. Where `data` and `fsdp` both are, `fsdp` takes as many as divide
      16 and what `tensor` leaves of a slice.
    devices: None: all that are here.

  Raises:
    errors.UserError: the product is not the number of devices, or parameters
      would be split over slices.
  """
  slices = _slices(jax.devices() if devices is None else devices)
  of_slice = len(slices[0])
  sizes = _sizes(axes, of_slice * len(slices), len(slices))
  types = (AxisType.Auto,) * len(AXES)
  if len(slices) == 1:
    return jax.make_mesh(sizes, AXES, axis_types=types, devices=devices)
  data, fsdp, tensor = sizes
  if of_slice % (fsdp * tensor):
    raise errors.UserError(
      f'config.mesh={dict(axes)} would split parameters over slices of '
      f'{of_slice} devices, between which the network is slow; give data=-1, '
      f'and fsdp and tensor whose product divides {of_slice}'
    )
  # Each as it would be alone: the chips of a ring are next to each other.
  alone = [
    jax.make_mesh((data // len(slices), fsdp, tensor), AXES, devices=chips)
    for chips in slices
  ]
  together = np.concatenate([mesh.devices for mesh in alone])
  return Mesh(together, AXES, axis_types=types)


def local_mesh() -> Mesh:
  """The mesh over the devices of this process, all along the batch."""
  devices = np.reshape(jax.local_devices(), (-1, 1, 1))
  return Mesh(devices, AXES, axis_types=(AxisType.Auto,) * len(AXES))


# -- The mesh that a function is traced for ------------------------------------

_TRACED_FOR: contextvars.ContextVar[Mesh | None] = contextvars.ContextVar(
  'traced_for', default=None
)


@contextlib.contextmanager
def _tracing_for(mesh: Mesh) -> Iterator[None]:
  token = _TRACED_FOR.set(mesh)
  try:
    yield
  finally:
    _TRACED_FOR.reset(token)


def traced_for(mesh: Mesh, function: Callable[..., Any]) -> Callable[..., Any]:
  """The function, of which `jax.jit` makes a program for this mesh."""

  @functools.wraps(function)
  def on_mesh(*args: Any, **kwargs: Any) -> Any:
    with _tracing_for(mesh):
      return function(*args, **kwargs)

  return on_mesh


def target() -> Mesh | None:
  """The mesh that is traced for; None: JAX's default device."""
  return _TRACED_FOR.get()


def platform() -> str:
  """What is traced for: cpu, gpu or tpu."""
  mesh = target()
  if mesh is None:
    return jax.default_backend()
  return mesh.devices.flat[0].platform


def by_example(x: Shaped[Array, 'b ...']) -> Shaped[Array, 'b ...']:
  """The same array, of which each device has whole examples.

  Without being told, XLA may split activations and their gradients by channels
  as the parameters are, and move them between chips for that.
  """
  mesh = target()
  if mesh is None or mesh.size == 1:
    return x
  if x.shape[0] % (mesh.shape['data'] * mesh.shape['fsdp']):
    return x
  # The other dimensions stay as they come: `tensor` may split them.
  rest = (PartitionSpec.UNCONSTRAINED,) * (x.ndim - 1)
  return jax.lax.with_sharding_constraint(
    x, NamedSharding(mesh, PartitionSpec(*BATCH, *rest))
  )


def heads_spec(shape: tuple[int, int, int, int]) -> PartitionSpec:
  """How [b n h d] of attention are split: examples, and heads by `tensor`."""
  mesh = target()
  examples, heads = shape[0], shape[2]
  return PartitionSpec(
    None if examples % (mesh.shape['data'] * mesh.shape['fsdp']) else BATCH[0],
    None,
    None if heads % mesh.shape['tensor'] else 'tensor',
    None,
  )


def batch_sharding(
  mesh: Mesh, batch_size: int, accumulate_steps: int = 1
) -> NamedSharding:
  """Sharding of a batch.

  Args:
    mesh: the mesh.
    batch_size: of the whole batch.
    accumulate_steps: into how many parts it is cut, one after the other.

  Raises:
    errors.UserError: the batch cannot be split evenly.
  """
  parts = mesh.shape['data'] * mesh.shape['fsdp']
  if batch_size % (parts * accumulate_steps):
    after = (
      f' times config.accumulate_steps={accumulate_steps}'
      if accumulate_steps > 1
      else ''
    )
    raise errors.UserError(
      f'config.batch_size={batch_size} is not divisible by the {parts} '
      f'devices that share a batch{after}'
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


def _fitting(
  axes: Sequence[str | None], shape: tuple[int, ...], mesh: AnyMesh
) -> PartitionSpec:
  """The axes, but for those that do not divide their dimension."""
  return PartitionSpec(
    *(
      axis if axis and size % mesh.shape[axis] == 0 else None
      for axis, size in zip(axes, shape)
    )
  )


def _spec(
  name: str, shape: tuple[int, ...], mesh: AnyMesh, rules: Rules
) -> PartitionSpec:
  """How a leaf is split.

  A scalar, such as a count of steps, never is, nor are Muon's coefficients, nor
  what stands for an array that an optimiser does not keep.
  """
  if shape in ((), (1,)) or name.endswith('/ns_coeffs'):
    return PartitionSpec()
  for pattern, axes in rules.items():
    if re.search(rf'(^|/)(?:{pattern})$', name) and len(axes) <= len(shape):
      return _fitting(axes, shape, mesh)
  raise ValueError(
    f'no rule says how {name} of shape {shape} is sharded; its part of the '
    'conditioning, or the table of the U-Net, has to'
  )


def _factored_spec(
  name: str, shapes: Mapping[str, tuple[int, ...]], mesh: AnyMesh, rules: Rules
) -> PartitionSpec | None:
  """How Adafactor's mean over a dimension of a parameter is split.

  As the parameter is, without that dimension: the longest one for `v_row`, the
  second longest for `v_col` (optax/_src/factorized.py). None for what is none.
  """
  found = re.search('/(v_row|v_col)/(.+)$', name)
  if not found or found[2] not in shapes:
    return None
  shape = shapes[found[2]]
  axis = int(np.argsort(shape)[-1 if found[1] == 'v_row' else -2])
  whole = _spec(found[2], shape, mesh, rules)
  axes = [*whole, *(None,) * (len(shape) - len(whole))]
  return PartitionSpec(*axes[:axis], *axes[axis + 1 :])


def shardings(abstract_state: Any, mesh: AnyMesh, rules: Rules) -> Any:
  """A `NamedSharding` for every leaf of the state.

  Args:
    abstract_state: the state or a part of it, such as the parameters.
    mesh: the mesh.
    rules: of the model; `odin_jax.models.odin.sharding_rules` gives them. Of
      those that name a leaf the first is taken.

  Raises:
    ValueError: no rule names a leaf.
  """
  params = abstract_state.get('params', {}) if abstract_state else {}
  shapes = {name: leaf.shape for name, leaf in by_path(params).items()}

  def where(path: tuple[Any, ...], leaf: Any) -> NamedSharding:
    name = path_name(path)
    spec = None
    if leaf.shape != (1,):
      spec = _factored_spec(name, shapes, mesh, rules)
    if spec is None:
      spec = _spec(name, leaf.shape, mesh, rules)
    return NamedSharding(mesh, spec)

  return jax.tree_util.tree_map_with_path(where, abstract_state)


def frozen_shardings(abstract: Any, mesh: AnyMesh) -> Any:
  """A `NamedSharding` for every leaf of networks that are not trained.

  What is large is split over `fsdp` along the longest dimension that allows it.
  """

  def where(leaf: Any) -> NamedSharding:
    axes: list[str | None] = [None] * len(leaf.shape)
    fits = [size % mesh.shape['fsdp'] == 0 for size in leaf.shape]
    num_bytes = math.prod(leaf.shape) * np.dtype(leaf.dtype).itemsize
    if num_bytes > LARGE_BYTES and any(fits):
      sizes = np.where(fits, leaf.shape, 0)
      axes[int(np.argmax(sizes))] = 'fsdp'
    return NamedSharding(mesh, PartitionSpec(*axes))

  return jax.tree.map(where, abstract)


def replicated(mesh: AnyMesh) -> NamedSharding:
  """Every device holds all of it."""
  return NamedSharding(mesh, PartitionSpec())
