"""Where and when the panoramas of a folder were taken, in one small file.

Who looks for the frames around one would have to read all pictures for it.
`index.npz` holds, for each split and in the order of its records,

    SPLIT/video        [n] int32    row of `video_ids`
    SPLIT/scene_id     [n] int32    component within the video
    SPLIT/time_s       [n] float32  time in the video
    SPLIT/frame2scene  [n, 3, 4] float32, scene units
    video_ids          [v]          of the whole folder

Records hold the same values, and who reads one checks that they do.
"""

import io
import os
import pathlib
from typing import Iterable, Mapping, NamedTuple
import zipfile

from jaxtyping import Float32, Int32, Shaped
import numpy as np

from odin_jax.shared import errors, files, schema, storage

FILE = 'index.npz'


class Index(NamedTuple):
  """The rows of one split; see above.

  Attributes:
    video_ids: of the whole folder.
    video: row of `video_ids`, by record.
    scene_id: by record.
    time_s: by record.
    frame2scene: by record.
  """

  video_ids: Shaped[np.ndarray, 'v']
  video: Int32[np.ndarray, 'n']
  scene_id: Int32[np.ndarray, 'n']
  time_s: Float32[np.ndarray, 'n']
  frame2scene: Float32[np.ndarray, 'n 3 4']

  def is_of(self, position: int, record: schema.Record) -> bool:
    """Whether a row says what the record at its position does."""
    return bool(
      self.video_ids[self.video[position]] == record['video_id']
      and self.scene_id[position] == record['scene_id']
      and self.time_s[position] == np.float32(record['time_s'])
      and np.array_equal(self.frame2scene[position], record['frame2scene'])
    )


def write(
  path: pathlib.Path, records_of: Mapping[str, Iterable[schema.Record]]
) -> None:
  """Writes the index of the records of every split."""
  numbers: dict[str, int] = {}
  columns: dict[str, np.ndarray] = {}
  for split, records in records_of.items():
    rows = [
      (
        numbers.setdefault(record['video_id'], len(numbers)),
        record['scene_id'],
        record['time_s'],
        record['frame2scene'],
      )
      for record in records
    ]
    video, scene_id, time_s, poses = zip(*rows) if rows else ((),) * 4
    columns[f'{split}/video'] = np.array(video, np.int32)
    columns[f'{split}/scene_id'] = np.array(scene_id, np.int32)
    columns[f'{split}/time_s'] = np.array(time_s, np.float32)
    columns[f'{split}/frame2scene'] = np.array(poses, np.float32).reshape(
      -1, 3, 4
    )
  with files.atomic_path(path) as temporary:
    np.savez(temporary, video_ids=np.array(list(numbers), str), **columns)


def read(folder: str | os.PathLike[str], split: str) -> Index:
  """The rows of a split.

  Raises:
    errors.UserError: there is no index, or it is damaged.
  """
  where = storage.Folder(folder, 'a folder of panoramas')
  path = where.place(FILE)
  content = where.read(FILE)
  if content is None:
    raise errors.UserError(
      f'{path}: no such file; the index of a folder of panoramas is needed here'
    )
  try:
    with np.load(io.BytesIO(content)) as columns:
      index = Index(
        columns['video_ids'],
        *(columns[f'{split}/{name}'] for name in Index._fields[1:]),
      )
  except (ValueError, KeyError, OSError, EOFError, zipfile.BadZipFile) as error:
    raise errors.UserError(
      f'{path}: damaged ({type(error).__name__}); copy or make the folder again'
    ) from error
  return index
