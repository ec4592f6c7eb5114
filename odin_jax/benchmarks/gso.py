"""Google Scanned Objects: textured meshes, seen from rings of cameras.

https://app.gazebosim.org/GoogleResearch/fuel/collections/Scanned%20Objects%20by%20Google%20Research.
An object is a folder with `meshes/model.obj`, the .mtl that it names beside it
and the picture that this one names beside it or in `materials/textures/`; or
with `model.obj` and all else in the folder itself.

z is up in these files: EscherNet's `scripts/blender_script_mvs.py` imports them
so (https://github.com/kxhit/EscherNet), and SyncDreamer's `eval_mesh.py` puts
them under cameras whose world has z up as they are. The mesh is moved into the
unit box, then turned about z as the protocol says. A camera at azimuth a and
elevation e stands at distance (cos a cos e, sin a cos e, sin e) and looks at
the origin; with SyncDreamer's ring and turn, its depth maps of the object
`chicken` are met to 1.4e-5, half a step of their 16 bits, in every pixel.

Colours are the texture's, without light, the mean of rays through a square grid
in each pixel.
"""

import dataclasses
import functools
import os
import pathlib
from typing import Iterator

from jaxtyping import Float, UInt8
import numpy as np

from odin_jax.benchmarks import posed_views, protocols
from odin_jax.geometry import meshes, obj_files
from odin_jax.shared import camera, errors, files, opengl, user_images

_MODELS = ('meshes/model.obj', 'model.obj')
_TEXTURES = 'materials/textures'
_UNIT = "longest side of the object's box"
# Rays through a pixel, along each of its sides.
_RAYS = 3
# Of the views from which it is told how far away the object is.
_DEPTH_PX = 64


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Object:
  """A textured mesh in the unit box, turned, z up.

  Attributes:
    mesh: its triangles.
    uv: [f 3 2], places of their corners on the texture, v upwards.
    texture: path of the picture.
    caster: of rays.
  """

  mesh: meshes.Mesh
  uv: Float[np.ndarray, 'f 3 2']
  texture: pathlib.Path
  caster: meshes.Caster


@functools.lru_cache(maxsize=1)
def _texels(path: pathlib.Path) -> UInt8[np.ndarray, 'h w 3']:
  """The picture of a texture; views of one object follow each other."""
  return user_images.read(path, 'the texture of a mesh')


def _colours(
  texels: UInt8[np.ndarray, 'h w 3'], uv: Float[np.ndarray, 'n 2']
) -> Float[np.ndarray, 'n 3']:
  """Of places on a texture that repeats, linear between the texels' centres."""
  height, width = texels.shape[:2]
  place = np.stack([uv[:, 0] * width, (1 - uv[:, 1]) * height], axis=-1) - 0.5
  first = np.floor(place).astype(np.int64)
  share = place - first
  columns = [(first[:, 0] + step) % width for step in (0, 1)]
  rows = [(first[:, 1] + step) % height for step in (0, 1)]
  across = [1 - share[:, :1], share[:, :1]]
  down = [1 - share[:, 1:], share[:, 1:]]
  return sum(
    texels[rows[j], columns[i]] * (across[i] * down[j])
    for i in (0, 1)
    for j in (0, 1)
  )


@dataclasses.dataclass(frozen=True, kw_only=True)
class RenderedView(posed_views.PosedView):
  """A view of an object that is rendered when it is read.

  Attributes:
    shown: the object.
    background: colour where it is not.
  """

  shown: _Object
  background: tuple[int, int, int]

  def read(self) -> UInt8[np.ndarray, 'h w 3']:
    """The picture, sRGB."""
    texels = _texels(self.shown.texture)
    image = np.empty((*self.size[::-1], 3), np.uint8)
    image[:] = self.background
    centres, rows, columns = self._box()
    total = np.zeros((len(centres), 3))
    for step in np.ndindex(_RAYS, _RAYS):
      shift = (np.array(step) + 0.5) / _RAYS - 0.5
      pixels = centres + [*shift, 0]
      hits = self._cast(pixels @ np.linalg.inv(self.intrinsics).T)
      colours = np.full(total.shape, self.background, np.float64)
      uv = (self.shown.uv[hits.faces] * hits.weights[..., None]).sum(axis=1)
      colours[hits.rays] = _colours(texels, uv)
      total += colours
    box = image[rows, columns]
    box[:] = np.rint(total / _RAYS**2).reshape(box.shape)
    return image

  def _box(self) -> tuple[Float[np.ndarray, 'n 3'], slice, slice]:
    """Homogeneous centres, rows and columns of pixels that may show it."""
    object2camera = camera.inverse(self._camera2object())
    corners, _ = camera.project(
      camera.transform(object2camera, self.shown.mesh.vertices),
      self.intrinsics,
    )
    low = np.floor(corners.min(axis=0)).clip(0, self.size).astype(int)
    high = np.ceil(corners.max(axis=0)).clip(0, self.size).astype(int)
    columns, rows = (slice(*ends) for ends in zip(low, high, strict=True))
    u, v = camera.pixel_centres(*self.size)
    centres = np.stack([u, v, np.ones_like(u)], axis=-1)[rows, columns]
    return centres.reshape(-1, 3), rows, columns

  def depths(self, fov_deg: float, size_px: int) -> Float[np.ndarray, 's s']:
    """As `PosedView.depths`: known of every pixel."""
    rays = camera.view_rays(fov_deg, size_px).reshape(-1, 3)
    hits = self._cast(rays)
    depths = np.full(len(rays), np.inf)
    depths[hits.rays] = hits.depth
    return depths.reshape(size_px, size_px)

  def _camera2object(self) -> Float[np.ndarray, '3 4']:
    return camera.compose(opengl.SCENE2WORLD, self.camera2scene)

  def _cast(self, rays: Float[np.ndarray, 'n 3']) -> meshes.Hits:
    return self.shown.caster.cast(self._camera2object(), rays)


def rings(
  protocol: protocols.Protocol,
) -> Iterator[tuple[float, float, Float[np.ndarray, '3 4']]]:
  """Elevation and azimuth in degrees, and camera2object, of every camera.

  Args:
    protocol: whose cameras.
  """
  rendering = protocol.rendering
  for elevation_deg in rendering['elevations_deg']:
    for azimuth_deg in rendering['azimuths_deg']:
      azimuth, elevation = np.deg2rad([azimuth_deg, elevation_deg])
      outwards = np.array(
        [
          np.cos(azimuth) * np.cos(elevation),
          np.sin(azimuth) * np.cos(elevation),
          np.sin(elevation),
        ]
      )
      right = np.array([-np.sin(azimuth), np.cos(azimuth), 0.0])
      turn = np.stack([right, np.cross(right, outwards), -outwards], axis=-1)
      yield (
        float(elevation_deg),
        float(azimuth_deg),
        camera.make_pose(turn, rendering['distance'] * outwards),
      )


def object_folders(folder: pathlib.Path) -> list[str]:
  """Names of the folders of objects; none where it is that of one object."""
  if _find_model(folder):
    return []
  return sorted(
    path.name
    for path in folder.iterdir()
    if path.is_dir() and not path.name.startswith('.')
  )


def read(
  folder: str | os.PathLike[str], *, protocol: protocols.Protocol
) -> posed_views.PosedViews:
  """The views of one object; numbers go round each ring, from 0.

  Args:
    folder: of the object.
    protocol: which cameras, and how the object is turned.

  Raises:
    errors.UserError: there is no model, it names a .mtl or a texture that is
      not there, it is no sound mesh or has no place on its texture, or embreex
      is not installed.
  """
  folder = files.require_folder(folder, 'an object of Google Scanned Objects')
  path, shown = _read_object(folder, protocol)
  rendering = protocol.rendering
  size_px = protocol.image['size_px'][0]
  views = []
  for number, (elevation_deg, azimuth_deg, camera2object) in enumerate(
    rings(protocol)
  ):
    hits = shown.caster.cast(
      camera2object,
      camera.view_rays(rendering['fov_deg'], _DEPTH_PX).reshape(-1, 3),
    )
    views.append(
      RenderedView(
        name=f'elevation {elevation_deg:g}, azimuth {azimuth_deg:g}',
        number=number,
        path=path,
        intrinsics=camera.intrinsics(rendering['fov_deg'], size_px),
        camera2scene=camera.compose(
          camera.inverse(opengl.SCENE2WORLD), camera2object
        ),
        size=(size_px, size_px),
        depth=float(np.median(hits.depth)) if len(hits.depth) else None,
        facts={'elevation_deg': elevation_deg, 'azimuth_deg': azimuth_deg},
        shown=shown,
        background=tuple(rendering['background']),
      )
    )
  return posed_views.PosedViews(
    layout=f'{path.relative_to(folder)}, {_RAYS**2} rays per pixel, unlit',
    unit=_UNIT,
    views=tuple(views),
  )


def read_mesh(
  folder: str | os.PathLike[str], protocol: protocols.Protocol
) -> meshes.Mesh:
  """The mesh of one object, in the unit box, turned, z up.

  Raises:
    errors.UserError: as `read`.
  """
  folder = files.require_folder(folder, 'an object of Google Scanned Objects')
  path = _model(folder)
  return _placed(obj_files.read(path), path, folder, protocol)


def _find_model(folder: pathlib.Path) -> pathlib.Path | None:
  for name in _MODELS:
    if (folder / name).is_file():
      return folder / name
  return None


def _model(folder: pathlib.Path) -> pathlib.Path:
  if path := _find_model(folder):
    return path
  inner = [
    path.name
    for path in sorted(folder.iterdir())
    if path.is_dir() and _find_model(path)
  ]
  if inner:
    raise errors.UserError(
      f'{folder}: holds objects ({inner[0]}, ...) and is none; give it as --data'
    )
  raise errors.UserError(
    f'{folder}: no object of Google Scanned Objects: needs {_MODELS[0]} or '
    f'{_MODELS[1]}; copy it again, or remove the folder'
  )


def _placed(
  content: obj_files.ObjFile,
  path: pathlib.Path,
  folder: pathlib.Path,
  protocol: protocols.Protocol,
) -> meshes.Mesh:
  """In the unit box, then turned about z as the protocol has it."""
  mesh = meshes.checked(meshes.Mesh(content.vertices, content.faces), path)
  mesh = meshes.in_unit_box(mesh)
  name, turns_deg = folder.resolve().name, protocol.rendering.get('turns_deg')
  if not turns_deg or name not in protocol.scenes:
    return mesh
  angle = np.deg2rad(turns_deg[protocol.scenes.index(name)])
  turn = np.array(
    [
      [np.cos(angle), -np.sin(angle), 0.0],
      [np.sin(angle), np.cos(angle), 0.0],
      [0.0, 0.0, 1.0],
    ]
  )
  return mesh._replace(vertices=mesh.vertices @ turn.T)


def _read_object(
  folder: pathlib.Path, protocol: protocols.Protocol
) -> tuple[pathlib.Path, _Object]:
  """The model's path, and what it is of."""
  path = _model(folder)
  content = obj_files.read(path)
  mesh = _placed(content, path, folder, protocol)
  without = np.count_nonzero((content.uv_faces < 0).any(axis=1))
  if without:
    raise errors.UserError(
      f'{path}: {without} of {len(mesh.faces)} faces have no place on the '
      'texture (vt); copy it again'
    )
  uv = content.uv[content.uv_faces]
  if not np.isfinite(uv).all():
    raise errors.UserError(
      f'{path}: has places on the texture that are no numbers; copy it again'
    )
  texture = _texture(path, content, folder)
  posed_views.picture_size(texture, f'the texture of {path}')
  return path, _Object(
    mesh=mesh, uv=uv, texture=texture, caster=meshes.Caster(mesh)
  )


def _texture(
  path: pathlib.Path, content: obj_files.ObjFile, folder: pathlib.Path
) -> pathlib.Path:
  """Path of the one picture of a model.

  Raises:
    errors.UserError: it has none, more than one, or it is not there.
  """
  if content.library is None:
    raise errors.UserError(f'{path}: names no .mtl, so it has no texture')
  library = path.parent / content.library
  textures = obj_files.read_textures(library)
  names = {textures.get(material) for material in content.materials}
  if len(names) != 1 or None in names:
    found = sorted(name for name in names if name)
    raise errors.UserError(
      f'{library}: gives the materials of {path.name} '
      f'{", ".join(found) or "no texture"} (map_Kd), where one picture for all '
      'is needed'
    )
  name = names.pop()
  for place in (path.parent / name, folder / _TEXTURES / name):
    if place.is_file():
      return place
  raise errors.UserError(
    f'{path.parent / name}: no such file, nor is it in {folder / _TEXTURES}; '
    f'{library.name} names it as the texture: copy it again'
  )
