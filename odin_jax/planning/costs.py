"""What a compiled program does on one device, counted from its text.

Loops count by their trips and branches by the dearest, so that a figure is of
one run of the program. Counted are

  FLOPs     of dots and convolutions, two per multiplication and addition, zeros
            of the padding left out (as XLA's own HloCostAnalysis does, but for
            the loops), and what Pallas kernels say of themselves;
  bytes     between the processor and the device's main memory: what each
            instruction outside of a fusion reads and writes;
  collectives  of each kind the bytes of the arrays, whole, that are gathered,
            summed or moved, and the bytes that one device sends for them; those
            between slices are kinds of their own.
"""

import collections
import dataclasses
import functools
import math
import re
from typing import Any, Iterator, Mapping

from odin_jax.planning import hlo

# What is only a name for what is there already, or done in passing.
_FREE = frozenset(
  {
    'after-all',
    'add-dependency',
    'async-done',
    'async-update',
    'bitcast',
    'constant',
    'get-tuple-element',
    'iota',
    'opt-barrier',
    'parameter',
    'partition-id',
    'replica-id',
    'tuple',
  }
)
_COLLECTIVES = (
  'all-gather',
  'all-reduce',
  'reduce-scatter',
  'all-to-all',
  'ragged-all-to-all',
  'collective-permute',
  'collective-broadcast',
)
# Of what goes from slice to slice, over the data-centre network.
BETWEEN_SLICES = 'between slices: '
# A fusion of TPUs that sums and gives each device its part only; its text has
# an all-reduce inside.
_REDUCE_SCATTER_FUSION = 'all-reduce-scatter'


@dataclasses.dataclass
class Collective:
  """Collectives of one kind.

  Attributes:
    count: how many.
    num_bytes: of the whole arrays that are gathered, summed or moved.
    sent_bytes: that one device sends for them, in rings.
  """

  count: int = 0
  num_bytes: int = 0
  sent_bytes: float = 0.0


@dataclasses.dataclass
class Costs:
  """Of one run of a program, on one device.

  Attributes:
    flops: of dots, convolutions and kernels.
    memory_bytes: to and from the device's main memory.
    collectives: by kind.
    unknown_loops: loops whose trips are not known, counted once.
    silent_kernels: kernels that do not say what they cost, counted as nothing.
  """

  flops: int = 0
  memory_bytes: int = 0
  collectives: dict[str, Collective] = dataclasses.field(default_factory=dict)
  unknown_loops: int = 0
  silent_kernels: int = 0

  def add(self, other: 'Costs', times: int) -> None:
    """Adds another's, so many times."""
    self.flops += times * other.flops
    self.memory_bytes += times * other.memory_bytes
    self.unknown_loops += other.unknown_loops
    self.silent_kernels += times * other.silent_kernels
    for kind, part in other.collectives.items():
      whole = self.collectives.setdefault(kind, Collective())
      whole.count += times * part.count
      whole.num_bytes += times * part.num_bytes
      whole.sent_bytes += times * part.sent_bytes

  def as_dict(self) -> dict[str, Any]:
    """For JSON; `from_dict` takes it back."""
    return dataclasses.asdict(self)


def from_dict(values: Mapping[str, Any]) -> Costs:
  """What `Costs.as_dict` gave."""
  kinds = {
    kind: Collective(**part) for kind, part in values['collectives'].items()
  }
  return Costs(**(dict(values) | {'collectives': kinds}))


# -- FLOPs of one instruction --------------------------------------------------


@functools.cache
def _valid_positions(
  size: int, window: int, stride: int, low: int, dilation: int, spread: int,
  outputs: int,
) -> int:  # fmt: skip
  """Pairs of output and window positions along an axis that meet a pixel.

  Args:
    size: of the image.
    window: of the kernel.
    stride: of the window.
    low: padding before the image.
    dilation: of the window.
    spread: of the image: zeros stand between its pixels.
    outputs: positions of the window.
  """
  last = (size - 1) * spread
  count = 0
  for position in range(window):
    for output in range(outputs):
      at = output * stride + position * dilation - low
      count += 0 <= at <= last and at % spread == 0
  return count


def _window(instruction: hlo.Instruction, rank: int) -> dict[str, list[str]]:
  text = (instruction.attribute('window') or '{}').strip('{}')
  usual = {
    'size': '1', 'stride': '1', 'pad': '0_0', 'lhs_dilate': '1',
    'rhs_dilate': '1',
  }  # fmt: skip
  given = dict(part.split('=') for part in text.split() if '=' in part)
  return {
    name: given[name].split('x') if name in given else [value] * rank
    for name, value in usual.items()
  }


def _convolution(
  instruction: hlo.Instruction, image: hlo.Shape, kernel: hlo.Shape
) -> int:
  labels = instruction.attribute('dim_labels')
  image_labels, kernel_labels, output_labels = re.split('_|->', labels)
  (output,) = instruction.shapes
  window = _window(instruction, len(image_labels) - 2)
  positions = 1
  for axis, label in enumerate(
    sorted(set(kernel_labels) - {'i', 'o'}, key=int)
  ):
    positions *= _valid_positions(
      image.sizes[image_labels.index(label)],
      int(window['size'][axis]),
      int(window['stride'][axis]),
      int(window['pad'][axis].partition('_')[0]),
      int(window['rhs_dilate'][axis]),
      int(window['lhs_dilate'][axis]),
      output.sizes[output_labels.index(label)],
    )
  groups = int(instruction.attribute('batch_group_count') or 1)
  examples = image.sizes[image_labels.index('b')] // groups
  inputs = kernel.sizes[kernel_labels.index('i')]
  outputs = output.sizes[output_labels.index('f')]
  return 2 * positions * examples * inputs * outputs


def _dot(instruction: hlo.Instruction, left: hlo.Shape) -> int:
  text = instruction.attribute('lhs_contracting_dims') or '{}'
  axes = [int(axis) for axis in re.findall(r'\d+', text)]
  (output,) = instruction.shapes
  return 2 * math.prod(output.sizes) * math.prod(left.sizes[a] for a in axes)


def _stated(instruction: hlo.Instruction) -> int | None:
  """What a kernel says that it computes."""
  found = re.search(
    r'"cost_estimate":\{"flops":"?(\d+)', instruction.attributes
  )
  return int(found[1]) if found else None


# -- Collectives ---------------------------------------------------------------


def _group_size(instruction: hlo.Instruction) -> int:
  """Devices that take part with this one."""
  text = instruction.attributes
  if found := re.search(r'replica_groups=\[\d+,(\d+)\]', text):
    return int(found[1])
  if found := re.search(r'replica_groups=\{\{([\d,]*)\}', text):
    return len(found[1].split(','))
  # replica_groups=mesh['a'=4,'b'=2] {'a'}, or with device_ids=([2,4]T(1,0))
  # before the axes.
  if found := re.search(
    r'replica_groups=mesh\[([^\]]*)\][^{]*\{([^}]*)\}', text
  ):
    sizes = dict(re.findall(r"'(\w+)'=(\d+)", found[1]))
    axes = re.findall(r"'(\w+)'(?::\(\d+\)(\d+))?", found[2])
    return math.prod(int(part or sizes[name]) for name, part in axes)
  raise ValueError(f'{instruction.name}: its groups cannot be read')


def _num_slices(instruction: hlo.Instruction) -> int:
  """Slices that take part with this one."""
  found = re.search(
    r'_xla_megascale_target="\{([\d,]+)\}', instruction.attributes
  )
  if not found:
    raise ValueError(f'{instruction.name}: its slices cannot be read')
  return len(found[1].split(','))


def _collective(
  kind: str, instruction: hlo.Instruction, given: list[hlo.Shape]
) -> Collective:
  read = sum(shape.num_bytes for shape in given)
  of_slices = kind.startswith(BETWEEN_SLICES)
  kind = kind.removeprefix(BETWEEN_SLICES)
  if kind == 'collective-permute':
    return Collective(1, read, float(read))
  count = (_num_slices if of_slices else _group_size)(instruction)
  share = (count - 1) / count
  if kind == 'all-gather':
    return Collective(1, read * count, read * count * share)
  # A sum of all is a sum of each device's part, which is then gathered.
  factor = 2 if kind == 'all-reduce' else 1
  return Collective(1, read, factor * read * share)


def _collective_kind(instruction: hlo.Instruction) -> str | None:
  # Machines do it for their chips, which send them what it is done with.
  of_slices = re.search(
    r'_xla_megascale_transfer_type="(\w+)"', instruction.attributes
  )
  if of_slices and instruction.opcode == 'send':
    return BETWEEN_SLICES + of_slices[1].lower().replace('_', '-')
  kind = instruction.opcode.removesuffix('-start')
  return kind if kind in _COLLECTIVES else None


# -- A program -----------------------------------------------------------------


def _memory_bytes(
  instruction: hlo.Instruction,
  given: list[hlo.Shape],
  inside: hlo.Computation | None,
) -> int:
  """What an instruction reads of main memory, and writes to it."""
  sliced = _sliced(inside) if inside else {}
  read = sum(
    sliced.get(index, shape.num_bytes)
    for index, shape in enumerate(given)
    if not shape.is_near
  )
  results = instruction.shapes
  if instruction.opcode == 'send' or instruction.opcode.endswith('-start'):
    # The operand, the result and what the hardware notes of it.
    results = results[:1] if instruction.opcode == 'copy-start' else ()
  if instruction.opcode in ('dynamic-slice', 'slice', 'gather'):
    read = sum(shape.num_bytes for shape in results)
  if instruction.opcode == 'dynamic-update-slice':
    # In place: the update alone is read, and written.
    return 2 * given[1].num_bytes
  return read + sum(shape.num_bytes for shape in results if not shape.is_near)


def _sliced(inside: hlo.Computation) -> dict[int, int]:
  """Of a fusion's parameters that it reads parts of only, the bytes of these."""
  users = collections.defaultdict(list)
  for instruction in inside.values():
    for operand in instruction.operands:
      users[operand].append(instruction)
  return {
    int(parameter.operand_text): sum(
      shape.num_bytes for user in users[name] for shape in user.shapes
    )
    for name, parameter in inside.items()
    if parameter.opcode == 'parameter'
    and users[name]
    and all(
      user.opcode in ('dynamic-slice', 'slice', 'gather')
      and user.operands[0] == name
      for user in users[name]
    )
  }


class _Counter:
  """Counts the costs of the computations of a program, each once."""

  def __init__(self, program: hlo.Program):
    self._program = program
    self._known: dict[tuple[str, bool], Costs] = {}

  def of(self, name: str, *, is_fused: bool = False) -> Costs:
    """Costs of a computation; what is fused reads and writes no memory."""
    key = name, is_fused
    if key not in self._known:
      costs = Costs()
      for instruction in self._program.computations[name].values():
        if instruction.opcode not in _FREE:
          self._add(costs, instruction, name, is_fused)
      self._known[key] = costs
    return self._known[key]

  def _given(
    self, instruction: hlo.Instruction, computation: str
  ) -> list[hlo.Shape]:
    inside = self._program.computations[computation]
    return [
      shape
      for operand in instruction.operands
      if operand in inside
      for shape in inside[operand].shapes
    ]

  def _add(
    self,
    costs: Costs,
    instruction: hlo.Instruction,
    computation: str,
    is_fused: bool,
  ) -> None:
    if self._add_called(costs, instruction, computation, is_fused):
      return
    given = self._given(instruction, computation)
    kind = _collective_kind(instruction)
    if kind:
      if kind == 'all-reduce' and computation.startswith(
        _REDUCE_SCATTER_FUSION
      ):
        kind = 'reduce-scatter'
      part = Costs(collectives={kind: _collective(kind, instruction, given)})
      costs.add(part, 1)
    elif instruction.opcode.endswith('-done'):
      return
    elif instruction.opcode == 'dot':
      costs.flops += _dot(instruction, given[0])
    elif instruction.opcode == 'convolution':
      costs.flops += _convolution(instruction, *given[:2])
    elif instruction.opcode == 'custom-call':
      self._add_kernel(costs, instruction)
    if not is_fused:
      called = instruction.called('calls')
      inside = self._program.computations.get(called) if called else None
      costs.memory_bytes += _memory_bytes(instruction, given, inside)

  def _add_kernel(self, costs: Costs, instruction: hlo.Instruction) -> None:
    stated = _stated(instruction)
    costs.flops += stated or 0
    if stated is None and 'tpu_custom_call' in instruction.attributes:
      costs.silent_kernels += 1

  def _add_called(
    self,
    costs: Costs,
    instruction: hlo.Instruction,
    computation: str,
    is_fused: bool,
  ) -> bool:
    """Adds what an instruction calls; whether that is all there is to it."""
    opcode = instruction.opcode
    if opcode == 'while':
      around = self._program.computations[computation]
      trips = self._program.trips(instruction, around)
      costs.unknown_loops += trips is None
      times = 1 if trips is None else trips
      costs.add(self.of(instruction.called('body')), times)
      costs.add(self.of(instruction.called('condition')), times)
      return True
    if opcode == 'conditional':
      branches = [self.of(name) for name in _branches(instruction)]
      costs.add(max(branches, key=lambda x: (x.flops, x.memory_bytes)), 1)
      return True
    if opcode in ('call', 'async-start'):
      called = instruction.called('to_apply') or instruction.called('calls')
      costs.add(self.of(called, is_fused=is_fused), 1)
      return True
    if opcode == 'fusion':
      costs.add(self.of(instruction.called('calls'), is_fused=True), 1)
    return False


def _branches(instruction: hlo.Instruction) -> Iterator[str]:
  several = instruction.attribute('branch_computations')
  if several:
    yield from re.findall(r'%([\w.\-]+)', several)
    return
  for name in ('true_computation', 'false_computation'):
    yield instruction.called(name)


def of(text: str) -> Costs:
  """The costs of a program, from its text.

  Raises:
    ValueError: it cannot be read.
  """
  program = hlo.parse(text)
  return _Counter(program).of(program.entry)
