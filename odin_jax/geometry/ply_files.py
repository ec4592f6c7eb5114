"""Whether a .ply of text is whole, which its reader does not ask.

http://paulbourke.net/dataformats/ply. trimesh takes the lines that there are,
and of a list the numbers that there are; of binary files it checks the length.
"""

import pathlib
from typing import Sequence

from odin_jax.shared import errors


def check_whole(path: pathlib.Path) -> None:
  """Checks each line of a .ply of text; passes over other files.

  Raises:
    errors.UserError: it has fewer or more lines, or a line has fewer or more
      words, than its header says.
  """
  header, _, body = path.read_bytes().partition(b'end_header')
  elements = _elements(header)
  if elements is None:
    return
  # The first is the end of the line of end_header.
  lines = [line.split() for line in body.splitlines()[1:] if line.strip()]
  total = sum(count for count, _ in elements)
  if len(lines) != total:
    raise errors.UserError(
      f'{path}: says that it has {total} lines, and has {len(lines)}: it is '
      'cut; copy it again'
    )
  place = 0
  for count, is_list in elements:
    for line in lines[place : place + count]:
      if not _is_whole(line, is_list):
        raise errors.UserError(
          f'{path}: has a line of {len(line)} words, '
          f'{b" ".join(line[:8]).decode(errors="replace")!r}, which is not '
          'what its header says: it is cut; copy it again'
        )
    place += count


def _elements(header: bytes) -> list[tuple[int, list[bool]]] | None:
  """How many lines of each kind, and which of their properties are lists.

  None of a file that is not text.
  """
  words = [line.split() for line in header.splitlines()]
  if [b'format', b'ascii', b'1.0'] not in words:
    return None
  elements: list[tuple[int, list[bool]]] = []
  for line in words:
    if line[:1] == [b'element'] and len(line) == 3 and line[2].isdigit():
      elements.append((int(line[2]), []))
    elif line[:1] == [b'property'] and elements:
      elements[-1][1].append(line[1:2] == [b'list'])
  return elements


def _is_whole(line: Sequence[bytes], is_list: Sequence[bool]) -> bool:
  place = 0
  for has_count in is_list:
    if has_count and place < len(line):
      word = line[place]
      place += int(word) if word.isdigit() else 0
    place += 1
  return place == len(line)
