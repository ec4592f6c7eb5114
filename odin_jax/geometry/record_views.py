"""Posed views of a folder of records: its panoramas, or the views of its pairs.

Those of one component of one video, which share axes and unit; of a pair both
views, each once however many pairs it is part of.
"""

import dataclasses
import pathlib
from typing import Iterator, NamedTuple

import cv2
from jaxtyping import Bool, Float, UInt8
import numpy as np

from odin_jax.geometry import equirectangular_frames, stereo
from odin_jax.shared import (
  camera,
  errors,
  image_files,
  panorama_schema,
  png,
  record_folder,
  schema,
)

_SPLITS = ('train', 'test')
_SIDES = ('source', 'target')


@dataclasses.dataclass(frozen=True, kw_only=True)
class RecordViews:
  """Views of one component.

  Attributes:
    views: of it.
    names: what each is: its moment, and its angles in its panorama.
    video_id: whose.
    component: number of the component.
    available: how many it has; more than these where they were too many.
  """

  views: stereo.Views
  names: list[str]
  video_id: str
  component: int
  available: int


class _Row(NamedTuple):
  """A view before it is read.

  Attributes:
    video_id: of its record.
    component: of its record.
    angles: when, yaw and pitch.
    side: of a pair; '' of a panorama.
    records: of its split.
    index: of its record.
  """

  video_id: str
  component: int
  angles: tuple[float, ...]
  side: str
  records: record_folder.RecordFolder
  index: int


def read(
  folder: pathlib.Path,
  *,
  video_id: str | None = None,
  component: int | None = None,
  most: int = 1_000_000,
  max_height_px: int = 1_000_000,
) -> RecordViews:
  """The views of a component.

  Args:
    folder: of records.
    video_id: None for that of the largest component.
    component: None for the largest of the video.
    most: views to read, evenly spread in time.
    max_height_px: larger pictures are made smaller.

  Raises:
    errors.UserError: no records, no such video or component, fewer than two
      views, of different fields of view, or damaged ones.
  """
  kind = record_folder.kind(folder)
  rows = list(_rows(folder, kind))
  videos = sorted({row.video_id for row in rows})
  if video_id is not None and video_id not in videos:
    raise errors.UserError(
      f'{folder}: has no video {video_id}; there are {", ".join(videos[:9])}'
      f'{", ..." if len(videos) > 9 else ""}'
    )
  if video_id is None:
    video_id = max(videos, key=lambda name: _largest(rows, name, component))
  rows = [row for row in rows if row.video_id == video_id]
  component = equirectangular_frames.chosen_component(
    [row.component for row in rows], component, f'{folder}: {video_id}'
  )
  # The views of pairs come again and again.
  distinct = {
    row.angles: row for row in reversed(rows) if row.component == component
  }
  if len(distinct) < 2:
    raise errors.UserError(
      f'{folder}: component {component} of {video_id} has {len(distinct)} '
      'view; two or more are needed'
    )
  ordered = [distinct[key] for key in sorted(distinct)]
  chosen = [
    ordered[index]
    for index in equirectangular_frames.spread(len(ordered), most)
  ]
  try:
    if kind is schema.PAIRS:
      views = _of_pairs(folder, chosen, max_height_px)
    else:
      views = _of_panoramas(folder, chosen, max_height_px)
  except ValueError as error:
    raise errors.UserError(
      f'{folder}: {error}; make the records again'
    ) from error
  names = ['{:.3f} s'.format(row.angles[0]) for row in chosen]
  if kind is schema.PAIRS:
    names = [
      '{:.3f} s, yaw {:.1f}, pitch {:.1f}'.format(*row.angles) for row in chosen
    ]
  return RecordViews(
    views=views,
    names=names,
    video_id=video_id,
    component=component,
    available=len(ordered),
  )


def _rows(folder: pathlib.Path, kind: schema.Schema) -> Iterator[_Row]:
  """All views of the folder, in the order of its records."""
  splits = []
  for split in _SPLITS:
    try:
      splits.append(record_folder.RecordFolder(folder, split, kind))
    except errors.UserError:
      # A folder may lack one split, not both.
      if split == _SPLITS[-1] and not splits:
        raise
  sides = _SIDES if kind is schema.PAIRS else ('',)
  for records in splits:
    index = records.index()
    for number, row in enumerate(index.rows):
      if not row['is_read']:
        records[number]  # Says what is damaged.
      for side in sides:
        fields = ('time_s', 'yaw_deg', 'pitch_deg') if side else ('time_s',)
        prefix = f'{side}/' if side else ''
        yield _Row(
          str(index.video_ids[row['video_id']]),
          int(row['scene_id']),
          tuple(float(row[prefix + field]) for field in fields),
          side,
          records,
          number,
        )


def _largest(rows: list[_Row], video_id: str, component: int | None) -> int:
  """Views of the largest component of a video, or of the given one."""
  views = {row[:3] for row in rows if row.video_id == video_id}
  numbers = [view[1] for view in views]
  if component is not None:
    return numbers.count(component)
  return int(np.unique(numbers, return_counts=True)[1].max())


def _decoded(data: bytes) -> UInt8[np.ndarray, 'h w 3']:
  image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR_RGB)
  if image is None:
    raise ValueError('a panorama is no JPEG')
  return image


def _counts(data: bytes, shape: tuple[int, int]) -> Bool[np.ndarray, 'h w']:
  """Pixels of a panorama to which no masked cell of its map adds."""
  png.check(data, bits=8, aspect=panorama_schema.MAP_ASPECT)
  mask = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_GRAYSCALE)
  if mask is None:
    raise ValueError('a mask is no PNG')
  return cv2.resize(mask, shape[::-1], interpolation=cv2.INTER_LINEAR) == 0


def _of_panoramas(
  folder: pathlib.Path, rows: list[_Row], max_height_px: int
) -> stereo.Views:
  images, counts, poses = [], [], []
  for row in rows:
    record = row.records[row.index]
    image = equirectangular_frames.smaller(
      _decoded(record['image']), max_height_px
    )
    images.append(image)
    counts.append(_counts(record['mask'], image.shape[:2]))
    poses.append(record['frame2scene'].astype(np.float64))
  if len({image.shape for image in images}) > 1:
    raise errors.UserError(
      f'{folder}: its panoramas are of different sizes; make the records again'
    )
  return stereo.Views(
    images=np.stack(images),
    camera2scene=np.stack(poses),
    fov_deg=None,
    counts=np.stack(counts),
  )


def _of_pairs(
  folder: pathlib.Path, rows: list[_Row], max_height_px: int
) -> stereo.Views:
  records = [row.records[row.index] for row in rows]
  fields = sorted({round(record['fov_deg'], 4) for record in records})
  if len(fields) > 1:
    raise errors.UserError(
      f'{folder}: its views have fields of view of {fields[0]} to {fields[-1]} '
      'degrees; give its panoramas (FOLDER/panoramas), or the folder cameras/VIDEO'
    )
  images, poses = [], []
  for row, record in zip(rows, records):
    data = record[f'{row.side}/image']
    images.append(
      image_files.decode_square_jpeg(data, min(max_height_px, _side_px(data)))
    )
    poses.append(_pose(record, row.side))
  size_px = min(len(image) for image in images)
  images = [
    image
    if len(image) == size_px
    else cv2.resize(image, (size_px, size_px), interpolation=cv2.INTER_AREA)
    for image in images
  ]
  return stereo.Views(
    images=np.stack(images),
    camera2scene=np.stack(poses),
    fov_deg=float(records[0]['fov_deg']),
  )


def _side_px(data: bytes) -> int:
  return len(_decoded(data))


def _pose(record: schema.Record, side: str) -> Float[np.ndarray, '3 4']:
  turn = camera.view2frame_rotation(
    record[f'{side}/yaw_deg'], record[f'{side}/pitch_deg']
  )
  frame2scene = record[f'{side}/frame2scene'].astype(np.float64)
  return camera.compose(frame2scene, camera.make_pose(turn, np.zeros(3)))
