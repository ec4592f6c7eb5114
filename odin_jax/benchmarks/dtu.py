"""A scan of DTU in any of the layouts that code for it reads.

* IDR, NeuS: `image/`, `mask/`, `cameras_sphere.npz`; 1600x1200 px.
  https://github.com/lioryariv/idr/blob/main/DATA_CONVENTION.md
* pixelNeRF, ZeroNVS: `rs_dtu_4/DTU/scanN` with `image/`, `mask/` and
  `cameras.npz`; 400x300 px.
  https://github.com/sxyu/pixel-nerf/blob/master/src/data/DVRDataset.py
* MVSNet: `images/`, `cams/NNNNNNNN_cam.txt`; or `Rectified/scanN_train` (its
  fourth light of seven, which is the one that tests take) beside
  `Cameras/train`, whose intrinsics are of depth maps of a quarter of the size.
  https://github.com/YoYo000/MVSNet#file-formats and
  https://github.com/apchenstu/mvsnerf/blob/main/data/dtu.py

All of them shoot their rays through integer pixels. `world_mat_i` is
K [R|t], 4x4, from the world in millimetres to pixels; `scale_mat_i` maps the
sphere of radius 1 in which the object lies to the world. Poses are in units of
that sphere where there is one, in millimetres where not.
"""

import os
import pathlib
import re
from typing import Callable, Mapping

import cv2
from jaxtyping import Float
import numpy as np

from odin_jax.benchmarks import posed_views
from odin_jax.shared import camera, errors, files

Matrices = Mapping[str, Float[np.ndarray, '4 4']]
# Intrinsics and camera2scene of a view.
Camera = tuple[posed_views.Matrix, Float[np.ndarray, '3 4']]

_SPHERE = 'radius of the sphere around the object (scale_mat)'
_MILLIMETRE = 'millimetre'
_NPZ_NAMES = ('cameras_sphere.npz', 'cameras.npz')
_PICTURES = ('.png', '.jpg', '.jpeg')
# Of Rectified/: number from 1, and the light.
_RECTIFIED = re.compile(r'rect_(\d+)_3_r5000\.png')
_DEPTH_MAP_FACTOR = 4
# Of the picture's size, how far from the centre a principal point may lie: those
# of the data set do by 0.02, and cameras say no size of their own.
_OFF_CENTRE = 0.05


def read(folder: str | os.PathLike[str]) -> posed_views.PosedViews:
  """The views of one scan; numbers are those of the files, from 0.

  Args:
    folder: of the scan.

  Raises:
    errors.UserError: it is in no layout that is known, or a camera is missing,
      malformed or of pictures of another size.
  """
  folder = files.require_folder(folder, 'a scan of DTU')
  npz = [folder / name for name in _NPZ_NAMES if (folder / name).is_file()]
  if npz and (folder / 'image').is_dir():
    return _read_npz(folder, npz[0])
  if (folder / 'images').is_dir() and (folder / 'cams').is_dir():
    return _read_mvsnet(_numbered(folder / 'images'), folder / 'cams')
  rectified: dict[int, pathlib.Path] = {}
  for path in folder.iterdir():
    if match := _RECTIFIED.fullmatch(path.name):
      _add(rectified, int(match[1]) - 1, path)
  if rectified:
    cameras = folder.parent.parent / 'Cameras'
    if folder.name.endswith('_train'):
      cameras /= 'train'
    return _read_mvsnet(
      rectified, files.require_folder(cameras, 'the cameras of Rectified/')
    )
  raise errors.UserError(
    f'{folder}: no scan of DTU: needs image/ with cameras_sphere.npz or '
    'cameras.npz, or images/ with cams/, or rect_*_3_r5000.png with '
    '../../Cameras/'
  )


def _add(
  pictures: dict[int, pathlib.Path], number: int, path: pathlib.Path
) -> None:
  """Adds a picture.

  Raises:
    errors.UserError: another one has its number.
  """
  if number in pictures:
    both = ' and '.join(sorted((path.name, pictures[number].name)))
    raise errors.UserError(
      f'{path.parent}: {both} have the same number; leave one of them'
    )
  pictures[number] = path


def _numbered(folder: pathlib.Path) -> dict[int, pathlib.Path]:
  """The pictures of a folder by the number that is their name."""
  pictures = {}
  for path in folder.iterdir():
    if path.suffix.lower() in _PICTURES:
      if not path.stem.isdecimal():
        raise errors.UserError(
          f'{path}: pictures of DTU are named by their number, such as '
          '000025.png; rename or remove it'
        )
      _add(pictures, int(path.stem), path)
  if not pictures:
    raise errors.UserError(f'{folder}: holds no pictures')
  return pictures


def _views(
  pictures: Mapping[int, pathlib.Path],
  camera_of: Callable[[int, posed_views.Size], Camera],
  masks: Mapping[int, pathlib.Path],
  *,
  in_sphere: bool,
) -> tuple[posed_views.PosedView, ...]:
  views = []
  for number in sorted(pictures):
    path = pictures[number]
    size = posed_views.picture_size(path, 'a view')
    intrinsics, camera2scene = camera_of(number, size)
    views.append(
      posed_views.PosedView(
        name=path.name,
        number=number,
        path=path,
        intrinsics=posed_views.from_integer_centres(intrinsics),
        camera2scene=camera2scene,
        size=size,
        # The object is around the origin.
        depth=float(np.linalg.norm(camera2scene[:, 3])) if in_sphere else None,
        mask_path=masks.get(number),
      )
    )
  return tuple(views)


# -- IDR, NeuS, pixelNeRF ------------------------------------------------------


def _read_npz(
  folder: pathlib.Path, path: pathlib.Path
) -> posed_views.PosedViews:
  try:
    with np.load(path) as archive:
      matrices = {name: archive[name] for name in archive.files}
  # Damaged archives raise BadZipFile, ValueError, EOFError, zlib.error ...
  except Exception as error:  # noqa: BLE001
    raise errors.UserError(
      f'{path}: cannot be read ({error}); copy it again'
    ) from error
  pictures = _numbered(folder / 'image')
  masks = _numbered(folder / 'mask') if (folder / 'mask').is_dir() else {}
  scales = {f'scale_mat_{number}' for number in pictures} & set(matrices)
  sphere2world = None
  if scales:
    sphere2world = _sphere2world(matrices, pictures, path)

  def camera_of(number: int, size: posed_views.Size) -> Camera:
    name = f'world_mat_{number}'
    where = f'{path}: {name}'
    if name not in matrices:
      raise errors.UserError(
        f'{where}: not there, but {pictures[number]} is; take both from the '
        'same release'
      )
    intrinsics, camera2scene = _decomposed(matrices[name], where)
    if posed_views.off_centre(intrinsics, size) > _OFF_CENTRE:
      raise posed_views.misfit(where, size)
    if sphere2world is not None:
      scale, centre = sphere2world[0, 0], sphere2world[:3, 3]
      camera2scene[:, 3] = (camera2scene[:, 3] - centre) / scale
    return intrinsics, camera2scene

  return posed_views.PosedViews(
    layout=path.name,
    unit=_MILLIMETRE if sphere2world is None else _SPHERE,
    views=_views(
      pictures, camera_of, masks, in_sphere=sphere2world is not None
    ),
  )


def _sphere2world(
  matrices: Matrices,
  pictures: Mapping[int, pathlib.Path],
  path: pathlib.Path,
) -> Float[np.ndarray, '4 4']:
  """The one `scale_mat` of all views."""
  first = matrices.get(f'scale_mat_{min(pictures)}')
  for number in pictures:
    name = f'scale_mat_{number}'
    scale_mat = matrices.get(name)
    if (
      scale_mat is None
      or scale_mat.shape != (4, 4)
      or not np.allclose(scale_mat, first)
    ):
      raise errors.UserError(
        f'{path}: {name}: not a 4x4 matrix that all views share'
      )
  expected = first[0, 0] * np.eye(4)
  expected[:3, 3], expected[3, 3] = first[:3, 3], 1
  if not first[0, 0] > 0 or not np.allclose(first, expected):
    raise errors.UserError(
      f'{path}: scale_mat_{min(pictures)}: not one scale and a translation'
    )
  return first.astype(np.float64)


def _decomposed(world_mat: Float[np.ndarray, '4 4'], where: str) -> Camera:
  """Intrinsics and camera2world of `K [R|t]`."""
  if (
    world_mat.shape not in ((3, 4), (4, 4)) or not np.isfinite(world_mat).all()
  ):
    raise errors.UserError(f'{where}: not a 4x4 matrix of numbers')
  projection = world_mat[:3].astype(np.float64)
  # A projection has no sign of its own.
  projection *= np.sign(np.linalg.det(projection[:, :3]))
  intrinsics, rotation, centre = cv2.decomposeProjectionMatrix(projection)[:3]
  if not intrinsics[2, 2] or not centre[3, 0]:
    raise errors.UserError(f'{where}: not K [R|t]')
  intrinsics /= intrinsics[2, 2]
  camera2world = camera.make_pose(rotation.T, (centre[:3] / centre[3])[:, 0])
  again = intrinsics @ camera.inverse(camera2world)
  again *= np.linalg.norm(projection[2, :3])
  if np.diag(intrinsics).min() <= 0 or not np.allclose(
    again, projection, rtol=1e-6, atol=1e-6 * np.abs(projection).max()
  ):
    raise errors.UserError(f'{where}: not K [R|t]')
  return intrinsics, camera2world


# -- MVSNet --------------------------------------------------------------------


def _read_mvsnet(
  pictures: Mapping[int, pathlib.Path], cameras: pathlib.Path
) -> posed_views.PosedViews:
  def camera_of(number: int, size: posed_views.Size) -> Camera:
    path = cameras / f'{number:08d}_cam.txt'
    extrinsic, intrinsics = _read_cam(path)
    for factor in (1, _DEPTH_MAP_FACTOR):
      scaled = intrinsics * [[factor], [factor], [1]]
      if posed_views.off_centre(scaled, size) <= _OFF_CENTRE:
        return scaled, camera.inverse(extrinsic)
    raise posed_views.misfit(str(path), size)

  return posed_views.PosedViews(
    layout=f'{cameras.name}/*_cam.txt',
    unit=_MILLIMETRE,
    views=_views(pictures, camera_of, {}, in_sphere=False),
  )


def _read_cam(
  path: pathlib.Path,
) -> tuple[Float[np.ndarray, '3 4'], posed_views.Matrix]:
  """World to camera, and intrinsics, of a `_cam.txt`."""
  words = files.require_file(path, 'the camera of a view').read_text().split()
  try:
    numbers = np.array(words[1:17] + words[18:27], np.float64)
    is_cam = (words[0], words[17]) == ('extrinsic', 'intrinsic')
  except (ValueError, IndexError):
    is_cam = False
  if not is_cam or len(numbers) != 25:
    raise errors.UserError(
      f'{path}: no camera file of MVSNet: "extrinsic", 16 numbers, "intrinsic", '
      '9 numbers'
    )
  intrinsics = numbers[16:].reshape(3, 3)
  focal_px = np.diag(intrinsics)[:2]
  if not (np.isfinite(intrinsics).all() and focal_px.min() > 0):
    raise errors.UserError(f'{path}: its intrinsic is no camera matrix')
  return posed_views.rigid(numbers[:16].reshape(4, 4), str(path)), intrinsics
