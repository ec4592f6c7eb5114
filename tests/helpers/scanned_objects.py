"""Boxes with coloured squares, in the layout of Google Scanned Objects.

Each face has its own colour and its own squares, so a picture shows which face
is seen, where, and which way up.
"""

import numpy as np
from PIL import Image

from odin_jax.geometry import meshes

# Squares along each side of a face, and texels along each side of a square.
SQUARES = 4
TEXELS = 16
# Axis and side of each face; (s, t) are its other two axes, in their order.
FACES = [(axis, side) for axis in range(3) for side in (0, 1)]
_TILE = SQUARES * TEXELS


def colour(face, s, t):
  """Of a place on a face, s and t in [0, 1]; [*b 3] of 0 to 255."""
  column, row = np.floor(s * SQUARES), np.floor(t * SQUARES)
  shade = (column * SQUARES + row) * 12.0
  return np.stack(
    [40.0 * face + 0 * shade, 30 + shade, 220 - 30.0 * (column + row)], axis=-1
  )


def box(sides=(1.0, 1.0, 1.0)):
  """The mesh of a box around the origin."""
  corners = np.array(
    [[x, y, z] for x in (0, 1) for y in (0, 1) for z in (0, 1)], float
  )
  faces = []
  for axis, side in FACES:
    others = [other for other in range(3) if other != axis]
    quad = []
    for s, t in ((0, 0), (1, 0), (1, 1), (0, 1)):
      place = np.zeros(3, int)
      place[axis], place[others[0]], place[others[1]] = side, s, t
      quad.append(int(place @ [4, 2, 1]))
    faces += [[quad[0], quad[1], quad[2]], [quad[0], quad[2], quad[3]]]
  return meshes.Mesh((corners - 0.5) * sides, np.array(faces))


def texture():
  """The picture of all faces, side by side."""
  places = (np.arange(_TILE) + 0.5) / _TILE
  # Rows of a picture go down, and t up.
  s, t = np.meshgrid(places, places[::-1])
  tiles = [colour(face, s, t) for face in range(len(FACES))]
  return np.concatenate(tiles, axis=1).astype(np.uint8)


def text(sides=(1.0, 1.0, 1.0), offset=(0.0, 0.0, 0.0)):
  """The model.obj of a box, a square a face."""
  lines = ['mtllib model.mtl', 'usemtl material_0']
  lines += [f'v {x} {y} {z}' for x, y, z in box(sides).vertices + offset]
  for face, (axis, side) in enumerate(FACES):
    names = []
    others = [other for other in range(3) if other != axis]
    for s, t in ((0, 0), (1, 0), (1, 1), (0, 1)):
      place = np.zeros(3, int)
      place[axis], place[others[0]], place[others[1]] = side, s, t
      lines.append(f'vt {(face + s) / len(FACES)} {t}')
      names.append(f'{place @ [4, 2, 1] + 1}/{4 * face + len(names) + 1}')
    lines.append(f'f {" ".join(names)}')
  return '\n'.join([*lines, ''])


def write(folder, *, content=None, is_flat=False, picture=None):
  """Writes an object; returns its folder.

  Args:
    folder: of the object.
    content: of its model.obj; that of a cube without.
    is_flat: put everything into the folder itself.
    picture: its texture; `texture()` without.
  """
  models = folder if is_flat else folder / 'meshes'
  textures = folder if is_flat else folder / 'materials' / 'textures'
  for place in (models, textures):
    place.mkdir(parents=True, exist_ok=True)
  (models / 'model.obj').write_text(text() if content is None else content)
  (models / 'model.mtl').write_text(
    'newmtl material_0\nKd 1 1 1\nmap_Kd texture.png\n'
  )
  image = Image.fromarray(texture() if picture is None else picture)
  image.save(textures / 'texture.png')
  return folder
