"""Triangle meshes: read, put into the unit box, and seen by cameras."""

import os
import pathlib
from typing import NamedTuple

from jaxtyping import Float, Int
import numpy as np

from odin_jax.geometry import obj_files, ply_files
from odin_jax.shared import errors, files

_INSTALL = (
  'rays are cast by the package embreex, which is not here: '
  'pip install embreex==4.4.0.post1'
)


class Mesh(NamedTuple):
  """Triangles in space.

  Attributes:
    vertices: [v 3] float64.
    faces: [f 3], of vertices.
  """

  vertices: Float[np.ndarray, 'v 3']
  faces: Int[np.ndarray, 'f 3']


class Hits(NamedTuple):
  """Where rays meet a mesh first, of those that do.

  Attributes:
    rays: [m], which ones.
    faces: [m], of the mesh.
    depth: [m], z along the optical axis.
    weights: [m 3], of the corners of each face, with the sum 1.
  """

  rays: Int[np.ndarray, 'm']
  faces: Int[np.ndarray, 'm']
  depth: Float[np.ndarray, 'm']
  weights: Float[np.ndarray, 'm 3']


def checked(mesh: Mesh, where: str | os.PathLike[str]) -> Mesh:
  """A mesh that has faces and whose vertices are numbers.

  Args:
    mesh: as a file has it.
    where: the file, for messages.

  Raises:
    errors.UserError: it is not such a mesh.
  """
  fault = None
  if not len(mesh.faces):
    fault = 'has no faces; a mesh of triangles is needed'
  elif not np.isfinite(mesh.vertices).all():
    fault = 'has vertices that are no numbers; export it again'
  elif mesh.faces.min() < 0 or mesh.faces.max() >= len(mesh.vertices):
    fault = 'has faces of vertices that are not there; copy it again'
  elif not np.ptp(mesh.vertices, axis=0).max() > 0:
    fault = 'is one point'
  if fault:
    raise errors.UserError(f'{where}: {fault}')
  return mesh


def read(path: str | os.PathLike[str]) -> Mesh:
  """The mesh of a .ply or .obj file, its faces as triangles.

  Raises:
    errors.UserError: there is no such file, it cannot be read, or it holds no
      sound mesh.
  """
  import trimesh

  path = files.require_file(pathlib.Path(path), 'a mesh')
  if path.suffix.lower() == '.obj':
    content = obj_files.read(path)
    return checked(Mesh(content.vertices, content.faces), path)
  ply_files.check_whole(path)
  try:
    loaded = trimesh.load(path, file_type='ply', process=False)
    # Of a cloud of points there are no faces.
    faces = getattr(loaded, 'faces', np.zeros((0, 3)))
    mesh = Mesh(
      np.array(loaded.vertices, np.float64), np.array(faces, np.int64)
    )
  # trimesh raises whatever a damaged file makes it trip over.
  except Exception as error:  # noqa: BLE001
    raise errors.UserError(
      f'{path}: no mesh that can be read ({" ".join(str(error).split())}); '
      'export it again'
    ) from error
  return checked(mesh, path)


def in_unit_box(mesh: Mesh) -> Mesh:
  """The mesh with the longest side of its box 1 and the box's centre 0."""
  low, high = mesh.vertices.min(axis=0), mesh.vertices.max(axis=0)
  vertices = (mesh.vertices - (low + high) / 2) / (high - low).max()
  return mesh._replace(vertices=vertices)


def is_closed(mesh: Mesh) -> bool:
  """Whether every edge has an even number of faces, so there is an inside.

  Vertices at the same place are one: files split them where textures meet. Two
  faces on the same vertices are none: a ray that crosses both is where it was.
  Nor is a face that is a line.
  """
  # The sum makes 0 of -0, which are of one place.
  _, places = np.unique(mesh.vertices + 0.0, axis=0, return_inverse=True)
  corners = np.sort(places.reshape(-1)[mesh.faces], axis=1)
  corners, counts = np.unique(corners, axis=0, return_counts=True)
  is_line = (np.diff(corners, axis=1) == 0).any(axis=1)
  corners = corners[(counts % 2 == 1) & ~is_line]
  edges = np.concatenate(
    [corners[:, [0, 1]], corners[:, [1, 2]], corners[:, [0, 2]]]
  )
  _, counts = np.unique(edges, axis=0, return_counts=True)
  return bool(len(counts) and np.all(counts % 2 == 0))


class Caster:
  """Casts rays at a mesh, from both sides of its faces.

  Embree finds the face in float32; where on it stands in float64.

  Args:
    mesh: that is seen.

  Raises:
    errors.UserError: embreex is not installed.
  """

  def __init__(self, mesh: Mesh):
    try:
      from embreex import mesh_construction, rtcore_scene
    except ImportError as error:
      raise errors.UserError(_INSTALL) from error
    self._mesh = mesh
    self._scene = rtcore_scene.EmbreeScene()
    mesh_construction.TriangleMesh(
      self._scene,
      np.ascontiguousarray(mesh.vertices, np.float32),
      np.ascontiguousarray(mesh.faces, np.int32),
    )

  def cast(
    self,
    camera2mesh: Float[np.ndarray, '3 4'],
    rays: Float[np.ndarray, 'n 3'],
  ) -> Hits:
    """What a camera sees along rays.

    Args:
      camera2mesh: its pose.
      rays: in its axes, with z = 1.
    """
    turn, origin = camera2mesh[:, :3], camera2mesh[:, 3]
    directions = rays @ turn.T
    face = self._scene.run(
      np.tile(origin, (len(rays), 1)).astype(np.float32),
      directions.astype(np.float32),
    )
    hit = np.flatnonzero(face >= 0)
    face, directions = face[hit], directions[hit]
    corners = self._mesh.vertices[self._mesh.faces[face]] - origin
    first, second = corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]
    normal = np.cross(first, second)
    with np.errstate(divide='ignore', invalid='ignore'):
      depth = (corners[:, 0] * normal).sum(-1) / (directions * normal).sum(-1)
    # A face that is seen edge-on has no one depth, but none beyond its corners.
    of_corners = corners @ turn[:, 2]
    depth = np.fmin(
      np.fmax(depth, of_corners.min(axis=1)), of_corners.max(axis=1)
    )
    offset = depth[:, None] * directions - corners[:, 0]
    area = np.maximum((normal * normal).sum(-1), np.finfo(float).tiny)
    second_weight = (np.cross(offset, second) * normal).sum(-1) / area
    third_weight = (np.cross(first, offset) * normal).sum(-1) / area
    weights = np.stack(
      [1 - second_weight - third_weight, second_weight, third_weight], axis=-1
    ).clip(0, 1)
    return Hits(hit, face, depth, weights / weights.sum(axis=-1, keepdims=True))
