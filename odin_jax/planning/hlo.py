"""Reads the text of a compiled program: computations and their instructions.

XLA prints a program as computations, one of which is the entry, and each of
these as instructions such as

  %y = bf16[8,64]{1,0:T(8,128)} fusion(%x, %k), kind=kOutput, calls=%fused.1

(https://openxla.org/xla/operation_semantics). Read is what costs are counted
by (odin_jax/planning/costs.py); the text is the only form in which the loops,
kernels and collectives of a program for other hardware can be had.
"""

import dataclasses
import functools
import math
import re
from typing import Iterator, Mapping

# Before compiling, a program has no parameters in its headers and no % before
# its names.
_HEADER = re.compile(r'^(ENTRY )?%?([\w.\-]+) (?:\(.*)?\{\s*$')
_INSTRUCTION = re.compile(r'^\s+(ROOT )?%?([\w.\-]+) = (.*)$')
_COMMENT = re.compile(r'/\*.*?\*/')
_ARRAY = re.compile(r'\b([a-z]\w*)\[([\d,<=]*)\](\{[^{}]*\})?')
_NAME = re.compile(r'%([\w.\-]+)')
_BARE_NAME = re.compile(r'[\w.\-]+')
_BITS = re.compile(r'(\d+)')


@dataclasses.dataclass(frozen=True)
class Shape:
  """An array of a program.

  Attributes:
    dtype: `bf16`, for example.
    sizes: of its dimensions.
    is_near: whether it lies in memory of the processor itself, not in the
      chip's main memory: the space S(1) of TPUs.
  """

  dtype: str
  sizes: tuple[int, ...]
  is_near: bool

  @property
  def num_bytes(self) -> int:
    """In memory, without what pads its tiles."""
    bits = 8 if self.dtype == 'pred' else int(_BITS.search(self.dtype)[1])
    return math.ceil(math.prod(self.sizes) * bits / 8)


@dataclasses.dataclass(frozen=True)
class Instruction:
  """One instruction.

  Attributes:
    name: of its result.
    opcode: `dot`, for example.
    shapes: of the result; several of a tuple.
    operands: names of instructions.
    attributes: the text behind the operands.
    operand_text: what stands in its brackets.
    is_root: whether its result is the computation's.
  """

  name: str
  opcode: str
  shapes: tuple[Shape, ...]
  operands: tuple[str, ...]
  attributes: str
  operand_text: str
  is_root: bool

  def attribute(self, name: str) -> str | None:
    """The text of an attribute, braces and all; None where it has none."""
    start = re.search(rf'(?:^|[ ,]){name}=', self.attributes)
    if not start:
      return None
    rest = self.attributes[start.end() :]
    if rest.startswith('{'):
      return rest[: _closing(rest, '{', '}')]
    return re.match(r'[^,\s]*', rest)[0]

  def called(self, name: str) -> str | None:
    """The computation that an attribute names."""
    value = self.attribute(name)
    return value and value.removeprefix('%')


Computation = Mapping[str, Instruction]


@dataclasses.dataclass(frozen=True)
class Program:
  """A program.

  Attributes:
    entry: name of the computation that is run.
    computations: by their names, the instructions of each by theirs.
  """

  entry: str
  computations: Mapping[str, Computation]

  def trips(self, loop: Instruction, around: Computation) -> int | None:
    """How often the body of a `while` runs; None where that is not known.

    Args:
      loop: the instruction.
      around: the computation that it stands in.
    """
    known = re.search(
      r'known_trip_count"?:\s*\{"?n"?:\s*"?(\d+)', loop.attributes
    )
    if known:
      return int(known[1])
    return self._counted(loop, around)

  def _counted(self, loop: Instruction, around: Computation) -> int | None:
    """Trips of a loop that counts: `while (i < limit) i += step`."""
    condition = self.computations[loop.called('condition')]
    body = self.computations[loop.called('body')]
    test = root(condition)
    if test.opcode != 'compare' or test.attribute('direction') != 'LT':
      return None
    index, limit = (condition.get(name) for name in test.operands)
    if index is None or index.opcode != 'get-tuple-element':
      return None
    place = int(index.attribute('index'))
    first, following = (
      _element(state, computation, place)
      for state, computation in (
        (around.get(loop.operands[0]), around),
        (root(body), body),
      )
    )
    if following is None or following.opcode != 'add':
      return None
    numbers = [constant(limit, condition), constant(first, around)]
    steps = [constant(body.get(name), body) for name in following.operands]
    steps = [step for step in steps if step]
    if None in numbers or len(steps) != 1:
      return None
    return max(0, math.ceil((numbers[0] - numbers[1]) / steps[0]))


def root(computation: Computation) -> Instruction:
  """The instruction whose result is the computation's."""
  return next(x for x in computation.values() if x.is_root)


def _source(
  instruction: Instruction | None, computation: Computation
) -> Instruction | None:
  """Where a value comes from that is only handed on."""
  while instruction and instruction.opcode in ('copy', 'bitcast', 'convert'):
    instruction = computation.get(instruction.operands[0])
  return instruction


def _element(
  state: Instruction | None, computation: Computation, place: int
) -> Instruction | None:
  """What stands at a place of a tuple; None where it is none."""
  if state is None or state.opcode != 'tuple':
    return None
  return _source(computation.get(state.operands[place]), computation)


def constant(
  instruction: Instruction | None, computation: Computation
) -> int | None:
  """The whole number that an instruction is, or None."""
  found = _source(instruction, computation)
  if found is None or found.opcode != 'constant':
    return None
  return int(found.operand_text) if found.operand_text.isdigit() else None


def _closing(text: str, opening: str, closing: str) -> int:
  """The end of the brackets that a text begins with, and of what is in them."""
  depth = 0
  for index, letter in enumerate(text):
    depth += (letter == opening) - (letter == closing)
    if depth == 0:
      return index + 1
  raise ValueError(f'no {closing} closes {text[:80]!r}')


@functools.lru_cache(maxsize=100_000)
def shapes(text: str) -> tuple[Shape, ...]:
  """The arrays of a type such as `(f32[2]{0}, u32[])`; those of a tuple all."""
  return tuple(
    Shape(
      dtype,
      tuple(int(size.lstrip('<=')) for size in sizes.split(',') if size),
      'S(1)' in (layout or ''),
    )
    for dtype, sizes, layout in _ARRAY.findall(text)
    if dtype not in ('token', 'opaque')
  )


def _instruction(name: str, text: str, is_root: bool) -> Instruction:
  text = _COMMENT.sub('', text)
  end = _closing(text, '(', ')') if text.startswith('(') else text.index(' ')
  kind, rest = text[:end], text[end:].lstrip()
  opcode, _, _ = rest.partition('(')
  operands = rest[len(opcode) :]
  end = _closing(operands, '(', ')')
  inside = operands[1 : end - 1]
  return Instruction(
    name=name,
    opcode=opcode,
    shapes=shapes(kind),
    operands=tuple((_NAME if '%' in inside else _BARE_NAME).findall(inside)),
    attributes=operands[end:],
    operand_text=inside,
    is_root=is_root,
  )


def _lines(text: str) -> Iterator[tuple[re.Match[str] | None, str]]:
  for line in text.splitlines():
    if not line.startswith('HloModule'):
      yield _HEADER.match(line), line


def parse(text: str) -> Program:
  """The program of a text, as `jax.stages.Compiled.as_text` gives it.

  Raises:
    ValueError: it has no entry, or a line that cannot be read.
  """
  computations: dict[str, dict[str, Instruction]] = {}
  entry, current = None, None
  for header, line in _lines(text):
    if header:
      current = computations.setdefault(header[2], {})
      entry = header[2] if header[1] else entry
    elif line.startswith('}'):
      current = None
    elif current is not None and (found := _INSTRUCTION.match(line)):
      current[found[2]] = _instruction(found[2], found[3], bool(found[1]))
  if entry is None:
    raise ValueError('no ENTRY computation: not the text of a program')
  return Program(entry, computations)
