"""Wavefront .obj files, line by line, and no line that is not understood.

http://www.martinreddy.net/gfx/3d/OBJ.spec. Of what a file may hold, these are
read: `v`, `vt`, `f` (polygons become fans of triangles), `mtllib`, `usemtl`;
and of a .mtl, `newmtl` and `map_Kd`.
"""

import os
import pathlib
import re
from typing import NamedTuple, Sequence

from jaxtyping import Float, Int
import numpy as np

from odin_jax.shared import errors, files

# What the files of Google Scanned Objects say of themselves.
_COUNT = re.compile(r'^#\s*Faces:\s*(\d+)\s*$', re.MULTILINE)


class ObjFile(NamedTuple):
  """What a file holds.

  Attributes:
    vertices: [v 3].
    faces: [f 3], of vertices.
    uv: [t 2], places on the texture, (0, 0) its lower left corner.
    uv_faces: [f 3], of `uv`; -1 where a corner has none.
    library: name of the .mtl; None without.
    materials: names that faces use.
  """

  vertices: Float[np.ndarray, 'v 3']
  faces: Int[np.ndarray, 'f 3']
  uv: Float[np.ndarray, 't 2']
  uv_faces: Int[np.ndarray, 'f 3']
  library: str | None
  materials: tuple[str, ...]


def _place(name: str, count: int) -> int:
  """Place from 0 of a number from 1, or of one back from the last so far."""
  number = int(name)
  if not -count <= number or number == 0:
    raise ValueError(f'{name}: not there')
  return number - 1 if number > 0 else count + number


class _Lines:
  """What was read so far."""

  def __init__(self):
    self.vertices: list[list[float]] = []
    self.uv: list[list[float]] = []
    # Of each corner of each triangle, the places of its vertex and texture.
    self.corners: list[list[tuple[int, int]]] = []
    self.num_polygons = 0
    self.library: str | None = None
    self.materials: dict[str, None] = {}

  def v(self, words: Sequence[str]) -> None:
    x, y, z = words[:3]
    self.vertices.append([float(x), float(y), float(z)])

  def vt(self, words: Sequence[str]) -> None:
    u, v = words[:2]
    self.uv.append([float(u), float(v)])

  def f(self, words: Sequence[str]) -> None:
    polygon = []
    for word in words:
      vertex, uv, *_ = [*word.split('/'), '']
      polygon.append(
        (
          _place(vertex, len(self.vertices)),
          _place(uv, len(self.uv)) if uv else -1,
        )
      )
    if len(polygon) < 3:
      raise ValueError('a face of fewer than three corners')
    self.num_polygons += 1
    for second, third in zip(polygon[1:], polygon[2:]):
      self.corners.append([polygon[0], second, third])

  def mtllib(self, words: Sequence[str]) -> None:
    self.library = ' '.join(words)

  def usemtl(self, words: Sequence[str]) -> None:
    self.materials[' '.join(words)] = None


_KINDS = ('v', 'vt', 'f', 'mtllib', 'usemtl')


def read(path: str | os.PathLike[str]) -> ObjFile:
  """The triangles of a file.

  Raises:
    errors.UserError: there is no such file, or a line of it is cut, malformed
      or names what is not there.
  """
  path = files.require_file(pathlib.Path(path), 'a mesh')
  text = path.read_text(errors='replace').replace('\\\n', ' ')
  lines = _Lines()
  for number, line in enumerate(text.splitlines(), 1):
    kind, *words = line.split() or ['']
    try:
      if kind in _KINDS:
        getattr(lines, kind)(words)
    except ValueError as error:
      raise errors.UserError(
        f'{path}: line {number} is no line of an .obj file: {line[:40]!r}; '
        'copy it again'
      ) from error
  counts = _COUNT.findall(text)
  if counts and int(counts[0]) != lines.num_polygons:
    raise errors.UserError(
      f'{path}: says that it has {counts[0]} faces, and has '
      f'{lines.num_polygons}: it is cut; copy it again'
    )
  corners = np.array(lines.corners, np.int64).reshape(-1, 3, 2)
  content = ObjFile(
    vertices=np.array(lines.vertices, np.float64).reshape(-1, 3),
    faces=corners[..., 0],
    uv=np.array(lines.uv, np.float64).reshape(-1, 2),
    uv_faces=corners[..., 1],
    library=lines.library,
    materials=tuple(lines.materials),
  )
  for what, names, places in (
    ('vertices', content.faces, content.vertices),
    ('vt', content.uv_faces, content.uv),
  ):
    if names.max(initial=-1) >= len(places):
      raise errors.UserError(
        f'{path}: has faces of {what} that are not there: it is cut; copy it '
        'again'
      )
  return content


def read_textures(path: str | os.PathLike[str]) -> dict[str, str | None]:
  """The picture of each material of a .mtl (`map_Kd`); None without.

  Raises:
    errors.UserError: there is no such file.
  """
  path = files.require_file(pathlib.Path(path), 'the materials of a mesh')
  textures: dict[str, str | None] = {}
  material = None
  for line in path.read_text(errors='replace').splitlines():
    kind, *words = line.split() or ['']
    if kind == 'newmtl':
      material = ' '.join(words)
      textures[material] = None
    elif kind == 'map_Kd' and words and material is not None:
      # Options come before the name.
      textures[material] = words[-1] if words[0][0] == '-' else ' '.join(words)
  return textures
