"""A solved video's cameras, points and pictures for other tools.

    path.json                          every keyframe's time and pose
    sparse/N/                          COLMAP model of component N: panoramas
    sparse/README.txt                  who cannot read it, and what they can

Always written; small. Asked for with `--export`, in COLMAP's or nerfstudio's
layout or both, which share the pictures:

    images/, masks/                    panoramas, and 0 where never scene
    transforms.json, points.ply        nerfstudio: panoramas
    perspective/images/, masks/        views cut from them
    perspective/sparse/N/              COLMAP model of the views
    perspective/transforms.json, ...   nerfstudio: views

What others have asked for: nerfstudio #1252 (equirectangular images as input),
#2484 (poses of all views of a panorama follow from one; hours of COLMAP for
200 frames), #1918 and #3445 (masks of the operator); COLMAP #2529 and #4406
(match on perspective faces, map as one equirectangular image), #4346.
"""

import contextlib
import dataclasses
import itertools
import os
import pathlib
import shutil
from typing import Callable, Iterator, Sequence

import cv2
from jaxtyping import Float, UInt8
import numpy as np

from odin_jax.shared import camera, files
from preprocessing.exporting import (
  cameras,
  export_colmap,
  export_nerfstudio,
  sensors,
)
from preprocessing.solving import masks

_WRITERS = {
  'colmap': export_colmap.write,
  'nerfstudio': export_nerfstudio.write,
}
FORMATS = tuple(_WRITERS)

# Beside the models of panoramas: readers that lack their camera stop with a
# number that says nothing, or take it for another one.
_README = """\
N/ is a COLMAP model of component N: the panoramas, camera EQUIRECTANGULAR.

3D Gaussian Splatting (graphdeco-inria), gsplat and a COLMAP without this camera
cannot read it. They read perspective/sparse/N, pinhole views cut from the same
panoramas, with the pictures in perspective/images. Where there is no folder
perspective, preprocessing.run --export=colmap writes it.
"""

PanoramaOf = Callable[[int], UInt8[np.ndarray, 'h w 3']]
# Folder -> its sensors, and the mask that each sees.
Layouts = dict[pathlib.Path, dict[sensors.Sensor, UInt8[np.ndarray, 'h w']]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rules:
  """How views are cut; the fields of `config.export`.

  Raises ValueError for a value that means nothing.

  Attributes:
    view_size_px: width = height of a view; 0 for as fine as the panorama.
    fov_deg: full field of view.
    num_yaws: views in a row, evenly all around.
    pitches_deg: of the rows. Four views of 90 degrees in rows at -45, 0 and
      45 degrees cover the sphere twice.
    min_free_share: a view of which more is masked is left out.
    jpeg_quality: of all pictures.
  """

  view_size_px: int
  fov_deg: float
  num_yaws: int
  pitches_deg: tuple[float, ...]
  min_free_share: float
  jpeg_quality: int

  def __post_init__(self) -> None:
    allowed = {
      'view_size_px': self.view_size_px >= 0,
      'fov_deg': 0 < self.fov_deg < 180,
      'num_yaws': self.num_yaws > 0,
      'pitches_deg': all(-90 <= pitch <= 90 for pitch in self.pitches_deg),
      'min_free_share': 0 <= self.min_free_share <= 1,
      'jpeg_quality': 1 <= self.jpeg_quality <= 100,
    }
    wrong = [name for name, holds in allowed.items() if not holds]
    if wrong:
      raise ValueError(f'export.{wrong[0]}: {getattr(self, wrong[0])}')


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
  """What leaves beside the camera path.

  Attributes:
    formats: of `FORMATS`; none for cameras and points alone.
    rules: how views are cut.
  """

  formats: tuple[str, ...]
  rules: Rules


def write(
  folder: str | os.PathLike[str],
  path: cameras.CameraPath,
  panorama: PanoramaOf,
  settings: Settings,
) -> dict[str, int]:
  """Writes all that is exported of a video, in one piece.

  What the folder held before is replaced. The same path and pictures give the
  same bytes.

  Args:
    folder: of this video.
    path: its cameras and points.
    panorama: the picture of a keyframe; all of one size.
    settings: see there.

  Returns:
    figures for the manifest: `models`, one for each component, and `pictures`,
    panoramas and views.

  Raises:
    ValueError: an unknown format.
  """
  formats, rules = settings.formats, settings.rules
  unknown = sorted(set(formats) - set(FORMATS))
  if unknown:
    raise ValueError(f'unknown export {unknown}; there are {list(FORMATS)}')
  frames = np.flatnonzero(path.component >= 0).tolist()
  with _atomic_folder(pathlib.Path(folder)) as temporary:
    files.write_json(temporary / 'path.json', path.summary())
    if not frames:
      return {'models': 0, 'pictures': 0}
    height, width = panorama(frames[0]).shape[:2]
    path = dataclasses.replace(path, mask=path.mask.resized(width, height))
    whole = sensors.Panorama(width=width, height=height)
    shown = _layouts(temporary, whole, path.mask, rules) if formats else {}
    colours = _write_pictures(shown, path, panorama, rules.jpeg_quality)
    rigs = {temporary: [whole]}
    rigs |= {target: list(rig) for target, rig in shown.items()}
    models = {('colmap', temporary), *itertools.product(formats, shown)}
    for form, target in sorted(models):
      for component in path.components:
        _WRITERS[form](target, path, component, rigs[target], colours)
    (temporary / 'sparse' / 'README.txt').write_text(_README)
  return {
    'models': len(path.components),
    'pictures': len(frames) * sum(len(rig) for rig in shown.values()),
  }


@contextlib.contextmanager
def _atomic_folder(folder: pathlib.Path) -> Iterator[pathlib.Path]:
  """A new folder that takes the place of `folder` when the block succeeds."""
  temporary = folder.with_name(f'.tmp-{folder.name}')
  _remove(temporary)
  temporary.mkdir(parents=True)
  try:
    yield temporary
    _remove(folder)
    os.replace(temporary, folder)
  finally:
    _remove(temporary)


def _remove(folder: pathlib.Path) -> None:
  if folder.exists():
    shutil.rmtree(folder)


def _layouts(
  folder: pathlib.Path,
  whole: sensors.Panorama,
  mask: masks.Mask,
  rules: Rules,
) -> Layouts:
  """The panoramas, and the views that see enough of what may be scene."""
  views = sensors.views(
    whole.width,
    size_px=rules.view_size_px,
    fov_deg=rules.fov_deg,
    num_yaws=rules.num_yaws,
    pitches_deg=rules.pitches_deg,
  )
  masked = {view: sensors.mask_picture(view, mask) for view in views}
  free = {
    view: picture
    for view, picture in masked.items()
    if np.mean(picture > 0) >= rules.min_free_share
  }
  layouts = {folder: {whole: sensors.mask_picture(whole, mask)}}
  return layouts | ({folder / 'perspective': free} if free else {})


def _write_pictures(
  layouts: Layouts,
  path: cameras.CameraPath,
  panorama: PanoramaOf,
  jpeg_quality: int,
) -> UInt8[np.ndarray, 'p 3']:
  """Writes pictures and masks; returns the mean colour of every point."""
  masked = {}
  for folder, rig in layouts.items():
    (folder / 'images').mkdir(parents=True)
    (folder / 'masks').mkdir()
    for sensor, picture in rig.items():
      masked[sensor] = _encoded('.png', picture)
  sums = np.zeros((len(path.points), 3))
  counts = np.zeros(len(path.points))
  quality = [cv2.IMWRITE_JPEG_QUALITY, jpeg_quality]
  for frame in np.flatnonzero(path.component >= 0).tolist():
    image = panorama(frame)
    of_frame = path.observations.subset(path.observations.frame == frame)
    # A frame sees a point once at most.
    sums[of_frame.point] += _colours(image, of_frame.ray)
    counts[of_frame.point] += 1
    for folder, rig in layouts.items():
      for sensor in rig:
        name = export_colmap.image_name(frame, sensor)
        picture = sensor.picture(image)[..., ::-1]
        data = _encoded('.jpg', picture, quality)
        (folder / 'images' / name).write_bytes(data)
        (folder / 'masks' / f'{name}.png').write_bytes(masked[sensor])
  return np.rint(sums / np.maximum(counts, 1)[:, None]).astype(np.uint8)


def _colours(
  image: UInt8[np.ndarray, 'h w 3'], rays: Float[np.ndarray, 'n 3']
) -> UInt8[np.ndarray, 'n 3']:
  """Colours of a panorama in some directions, of the nearest pixels."""
  height, width = image.shape[:2]
  u, v = camera.direction_to_equirect(rays, width, height)
  row = np.minimum(v.astype(int), height - 1)
  return image[row, u.astype(int) % width]


def _encoded(
  extension: str, picture: np.ndarray, options: Sequence[int] = ()
) -> bytes:
  return cv2.imencode(extension, picture, options)[1].tobytes()
