"""Google Scanned Objects: textured meshes, seen from rings of cameras.

https://app.gazebosim.org/GoogleResearch/fuel/collections/Scanned%20Objects%20by%20Google%20Research.
An object is a folder with `meshes/model.obj`, the .mtl that it names beside it
and the picture that this one names beside it or in `materials/textures/`; or
with `model.obj` and all else in the folder itself. Where it has the pictures of
all cameras too, `000.png`, `001.png`, ..., as SyncDreamer publishes them, those
are the views, and no texture is needed.

z is up in these files: EscherNet's `scripts/blender_script_mvs.py` imports them
so (https://github.com/kxhit/EscherNet), and SyncDreamer's `eval_mesh.py` puts
them under cameras whose world has z up as they are. The mesh is moved into the
unit box, then turned about z as the protocol says. A camera at azimuth a and
elevation e stands at distance (cos a cos e, sin a cos e, sin e) and looks at
the origin. With SyncDreamer's ring and turn, the sixteen depth maps that it
publishes of `chicken` have the outlines of the mesh to the pixel and its depths
to 1.4e-5 (median; half a step of their 16 bits) and 3.3e-5 (most).

Colours of views that are rendered are the texture's, without light, the mean of
rays through a square grid in each pixel.
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
# Of the outlines of a picture and of the mesh: those of SyncDreamer's `chicken`
# have all in common, and at most 0.94 where it is turned by 90 degrees more.
_MIN_OVERLAP = 0.98


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Texture:
  """What the faces of a mesh look like.

  Attributes:
    uv: [f 3 2], places of their corners on the picture, v upwards.
    path: of the picture.
  """

  uv: Float[np.ndarray, 'f 3 2']
  path: pathlib.Path


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
class ObjectView(posed_views.PosedView):
  """A picture of an object, whose mesh tells the depth.

  Attributes:
    mesh: of the object, in the unit box, turned, z up.
    caster: of rays at it.
  """

  mesh: meshes.Mesh
  caster: meshes.Caster

  def depths(self, fov_deg: float, size_px: int) -> Float[np.ndarray, 's s']:
    """As `PosedView.depths`: known of every pixel."""
    rays = camera.view_rays(fov_deg, size_px).reshape(-1, 3)
    hits = self.cast(rays)
    depths = np.full(len(rays), np.inf)
    depths[hits.rays] = hits.depth
    return depths.reshape(size_px, size_px)

  def camera2object(self) -> Float[np.ndarray, '3 4']:
    """The pose beside the mesh."""
    return camera.compose(opengl.SCENE2WORLD, self.camera2scene)

  def cast(self, rays: Float[np.ndarray, 'n 3']) -> meshes.Hits:
    """What is seen along rays in the axes of the camera, with z = 1."""
    return self.caster.cast(self.camera2object(), rays)


@dataclasses.dataclass(frozen=True, kw_only=True)
class RenderedView(ObjectView):
  """A view of an object that is rendered when it is read.

  Attributes:
    texture: of the object.
  """

  texture: _Texture

  def read(self) -> UInt8[np.ndarray, 'h w 3']:
    """The picture, sRGB."""
    texels = _texels(self.texture.path)
    image = np.empty((*self.size[::-1], 3), np.uint8)
    image[:] = self.background
    centres, rows, columns = self._box()
    total = np.zeros((len(centres), 3))
    for step in np.ndindex(_RAYS, _RAYS):
      shift = (np.array(step) + 0.5) / _RAYS - 0.5
      pixels = centres + [*shift, 0]
      hits = self.cast(pixels @ np.linalg.inv(self.intrinsics).T)
      colours = np.full(total.shape, self.background, np.float64)
      uv = (self.texture.uv[hits.faces] * hits.weights[..., None]).sum(axis=1)
      colours[hits.rays] = _colours(texels, uv)
      total += colours
    box = image[rows, columns]
    box[:] = np.rint(total / _RAYS**2).reshape(box.shape)
    return image

  def _box(self) -> tuple[Float[np.ndarray, 'n 3'], slice, slice]:
    """Homogeneous centres, rows and columns of pixels that may show it."""
    corners, _ = camera.project(
      camera.transform(
        camera.inverse(self.camera2object()), self.mesh.vertices
      ),
      self.intrinsics,
    )
    low = np.floor(corners.min(axis=0)).clip(0, self.size).astype(int)
    high = np.ceil(corners.max(axis=0)).clip(0, self.size).astype(int)
    columns, rows = (slice(*ends) for ends in zip(low, high, strict=True))
    u, v = camera.pixel_centres(*self.size)
    centres = np.stack([u, v, np.ones_like(u)], axis=-1)[rows, columns]
    return centres.reshape(-1, 3), rows, columns


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
      not there, it is no sound mesh or has no place on its texture, some of its
      pictures are missing or do not show it, or embreex is not installed.
  """
  folder = files.require_folder(folder, 'an object of Google Scanned Objects')
  path = _model(folder)
  content = obj_files.read(path)
  mesh = _placed(content, path, folder, protocol)
  caster = meshes.Caster(mesh)
  cameras = list(rings(protocol))
  pictures = _pictures(folder, len(cameras))
  texture = None if pictures else _texture(content, path, folder)
  fov_deg, size_px = protocol.rendering['fov_deg'], protocol.image['size_px'][0]
  views = []
  for number, (elevation_deg, azimuth_deg, camera2object) in enumerate(cameras):
    rays = camera.view_rays(fov_deg, _DEPTH_PX).reshape(-1, 3)
    hits = caster.cast(camera2object, rays)
    along_axis = (rays[:, 2] / np.linalg.norm(rays, axis=1))[hits.rays]
    distance = hits.depth / along_axis
    known = {
      'name': f'elevation {elevation_deg:g}, azimuth {azimuth_deg:g}',
      'number': number,
      'intrinsics': camera.intrinsics(fov_deg, size_px),
      'camera2scene': camera.compose(
        camera.inverse(opengl.SCENE2WORLD), camera2object
      ),
      'size': (size_px, size_px),
      'depth': float(np.median(distance)) if len(distance) else None,
      'background': tuple(protocol.rendering['background']),
      'facts': {'elevation_deg': elevation_deg, 'azimuth_deg': azimuth_deg},
      'mesh': mesh,
      'caster': caster,
    }
    if texture is None:
      view = ObjectView(path=pictures[number], **known)
      _check_picture(view, fov_deg)
    else:
      view = RenderedView(path=path, texture=texture, **known)
    views.append(view)
  name = path.relative_to(folder)
  return posed_views.PosedViews(
    layout=f'{name}, {pictures[0].name}, ...'
    if pictures
    else f'{name}, {_RAYS**2} rays per pixel',
    unit=_UNIT,
    views=tuple(views),
    here={} if pictures else {'rendering.shading': 'unlit'},
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
    f'{_MODELS[1]}; unzip or copy it again, or remove the folder'
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


def _pictures(folder: pathlib.Path, count: int) -> list[pathlib.Path]:
  """Those of all cameras, or none.

  Raises:
    errors.UserError: some are missing.
  """
  paths = [folder / f'{number:03}.png' for number in range(count)]
  missing = [path.name for path in paths if not path.is_file()]
  if missing and len(missing) < count:
    raise errors.UserError(
      f'{folder}: has pictures, but lacks {", ".join(missing)}; copy all '
      f'{count}, or remove them to render the mesh'
    )
  return [] if missing else paths


def _check_picture(view: ObjectView, fov_deg: float) -> None:
  """Raises where a picture is not of the mesh, as seen by its camera."""
  size = posed_views.picture_size(view.path, 'a view')
  if size != view.size:
    raise errors.UserError(
      f'{view.path}: has {size[0]}x{size[1]} pixels, the table '
      f'{view.size[0]}x{view.size[1]}; take the pictures of the table'
    )
  stored = user_images.read_stored(view.path, 'a view', upright=False)
  if stored.shape[2] < 4:
    return
  shown = stored[..., 3] > np.iinfo(stored.dtype).max / 2
  mesh = np.isfinite(view.depths(fov_deg, size[0]))
  overlap = np.count_nonzero(shown & mesh) / max(
    np.count_nonzero(shown | mesh), 1
  )
  if overlap < _MIN_OVERLAP:
    raise errors.UserError(
      f'{view.path}: shows another shape than the mesh does there (of both '
      f'outlines {100 * overlap:.0f} % are common); take mesh and pictures from '
      'the same release, and the name that the table has for the object'
    )


def _texture(
  content: obj_files.ObjFile, path: pathlib.Path, folder: pathlib.Path
) -> _Texture:
  """That of a model.

  Raises:
    errors.UserError: a face has no place on it, or it is not there.
  """
  without = np.count_nonzero((content.uv_faces < 0).any(axis=1))
  if without:
    raise errors.UserError(
      f'{path}: {without} of {len(content.faces)} faces have no place on the '
      'texture (vt); copy it again'
    )
  uv = content.uv[content.uv_faces]
  if not np.isfinite(uv).all():
    raise errors.UserError(
      f'{path}: has places on the texture that are no numbers; copy it again'
    )
  picture = _texture_path(content, path, folder)
  posed_views.picture_size(picture, f'the texture of {path}')
  return _Texture(uv=uv, path=picture)


def _texture_path(
  content: obj_files.ObjFile, path: pathlib.Path, folder: pathlib.Path
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
