"""Coloured meshes in files that viewers open: PLY and GLB."""

import pathlib

import numpy as np

from odin_jax.geometry import tsdf
from odin_jax.shared import files

# glTF has y up and looks along -z; here y is down, and forward is z.
_TO_GLTF = np.array([1.0, -1.0, -1.0])
NAMES = ('mesh.ply', 'mesh.glb')


def write(folder: pathlib.Path, mesh: tsdf.Mesh) -> None:
  """Writes mesh.ply, in scene axes, and mesh.glb, in those of glTF.

  Of a mesh without faces there are none, nor those of an earlier run.
  """
  # Slow to load, and for this alone.
  import trimesh

  for name in NAMES:
    path = folder / name
    if not len(mesh.faces):
      path.unlink(missing_ok=True)
      continue
    axes = _TO_GLTF if path.suffix == '.glb' else np.ones(3)
    exported = trimesh.Trimesh(
      mesh.vertices * axes,
      mesh.faces,
      vertex_colors=mesh.colours,
      process=False,
    )
    with files.atomic_path(path) as temporary:
      temporary.write_bytes(exported.export(file_type=path.suffix[1:]))
