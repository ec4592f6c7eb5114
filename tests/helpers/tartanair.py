"""Panoramas with poses, in the layouts of TartanAir-V2.

Packaged, as COLMAP's benchmark of panoramas has it (colmap/colmap,
benchmark/reconstruction/evaluation/tartanair; pull request 4590):

    CATEGORY/SCENE/images/NNNNNN.jpg
    CATEGORY/SCENE/poses.txt     lines `frame x y z qx qy qz qw`
    CATEGORY/SCENE/scene.json    frames: source_frame, image_name of each

As published (https://tartanair.org), of which the window of 50 frames is taken
that COLMAP's packages take:

    ENVIRONMENT/Data_{easy,hard}/PNNN/pose_lcam_front.txt   `x y z qx qy qz qw`
    ENVIRONMENT/Data_{easy,hard}/PNNN/image_lcam_equirect/
        NNNNNN_lcam_equirect_image.png

A pose maps from the camera to the world, in metres; both have the axes north,
east, down (NED): the camera looks north. In the panorama, whose own axes are x
right, y down, z forward at its middle column, x is the camera's north, y its
down and z its west.
"""

import dataclasses
import json
import pathlib
from typing import Iterable

import cv2
from jaxtyping import Float, UInt8
import numpy as np
from scipy.spatial.transform import Rotation

from odin_jax.shared import camera, errors

# Axes of the panorama in those of the camera, and of our worlds (x right, y
# down, z forward) in those of the world.
_NED_FROM_PANORAMA = np.array([[1.0, 0, 0], [0, 0, -1], [0, 1, 0]])
_NED_FROM_WORLD = np.array([[0.0, 0, 1], [1, 0, 0], [0, 1, 0]])
_NAME, _SUFFIX = 'image_lcam_equirect', '_lcam_equirect_image.png'
_POSES = 'pose_lcam_front.txt'
# Of the window that is taken of a published trajectory.
_WINDOW, _MAX_STEP_M, _MAX_TURN_DEG = 50, 1.0, 30.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Scene:
  """One trajectory.

  Attributes:
    name: of the scene.
    images: files of the panoramas, in order.
    frame2world: their poses, in metres; frames x right, y down, z forward.
  """

  name: str
  images: list[pathlib.Path]
  frame2world: Float[np.ndarray, 'n 3 4']


def frame2world(values: Float[np.ndarray, 'n 7']) -> Float[np.ndarray, 'n 3 4']:
  """Poses of panoramas from rows `x y z qx qy qz qw`."""
  rotation = Rotation.from_quat(values[:, 3:]).as_matrix() @ _NED_FROM_PANORAMA
  return camera.make_pose(rotation, values[:, :3])


def row(
  frame2world_y_down: Float[np.ndarray, '3 4'],
) -> Float[np.ndarray, '7']:
  """`x y z qx qy qz qw` of a pose in a world with y down, z forward."""
  ned = _NED_FROM_WORLD @ frame2world_y_down
  rotation = Rotation.from_matrix(ned[:, :3] @ _NED_FROM_PANORAMA.T)
  return np.concatenate([ned[:, 3], rotation.as_quat()])


def write(
  folder: pathlib.Path,
  pictures: Iterable[UInt8[np.ndarray, 'h w 3']],
  poses: Float[np.ndarray, 'n 3 4'],
) -> None:
  """Writes a scene as COLMAP's packages have it, without loss.

  Args:
    folder: CATEGORY/SCENE.
    pictures: panoramas, RGB.
    poses: frame2world, in metres, y down.
  """
  (folder / 'images').mkdir(parents=True, exist_ok=True)
  rows, frames = [], []
  for number, (picture, pose) in enumerate(zip(pictures, poses, strict=True)):
    name = f'{number:06d}.png'
    cv2.imwrite(str(folder / 'images' / name), picture[..., ::-1])
    frames.append({'source_frame': number, 'image_name': name})
    rows.append(' '.join([str(number), *map(repr, row(pose).tolist())]))
  (folder / 'poses.txt').write_text('\n'.join(rows) + '\n')
  # Last: a scene that has it is whole.
  (folder / 'scene.json').write_text(json.dumps({'frames': frames}))


def read(folder: pathlib.Path) -> list[Scene]:
  """All scenes under a folder, in either layout.

  Raises:
    errors.UserError: there is none, or one of them is not whole.
  """
  scenes = [
    _packaged(path.parent) for path in sorted(folder.rglob('scene.json'))
  ]
  scenes += [_published(path.parent) for path in sorted(folder.rglob(_POSES))]
  if not scenes:
    raise errors.UserError(
      f'{folder}: no scene of TartanAir-V2 in it: neither scene.json with '
      f'poses.txt and images/, nor {_POSES} with {_NAME}/'
    )
  for scene in scenes:
    if absent := [path for path in scene.images if not path.is_file()]:
      raise errors.UserError(
        f'{absent[0]}: is not there; get {scene.name} again'
      )
  return scenes


def _table(path: pathlib.Path, columns: int) -> Float[np.ndarray, 'n c']:
  try:
    table = np.loadtxt(path, ndmin=2)
  except (OSError, ValueError) as error:
    raise errors.UserError(f'{path}: no poses in it ({error})') from error
  if table.shape[1] != columns:
    raise errors.UserError(
      f'{path}: {table.shape[1]} numbers in a line; a pose has {columns}'
    )
  return table


def _packaged(folder: pathlib.Path) -> Scene:
  frames = json.loads((folder / 'scene.json').read_text())['frames']
  table = _table(folder / 'poses.txt', 8)
  pose_of = dict(zip(table[:, 0].astype(int).tolist(), table[:, 1:]))
  if absent := [f for f in frames if f['source_frame'] not in pose_of]:
    raise errors.UserError(
      f'{folder / "poses.txt"}: no pose of frame {absent[0]["source_frame"]}'
    )
  return Scene(
    name=folder.name,
    images=[folder / 'images' / frame['image_name'] for frame in frames],
    frame2world=frame2world(
      np.array([pose_of[frame['source_frame']] for frame in frames])
    ),
  )


def _published(folder: pathlib.Path) -> Scene:
  poses = _table(folder / _POSES, 7)
  window = _widest_window(poses, folder)
  environment, difficulty = folder.parts[-3:-1]
  difficulty = difficulty.removeprefix('Data_')
  return Scene(
    name=f'{environment}-{difficulty}-{folder.name}',
    images=[folder / _NAME / f'{number:06d}{_SUFFIX}' for number in window],
    frame2world=frame2world(poses[window.start : window.stop]),
  )


def _widest_window(
  poses: Float[np.ndarray, 'n 7'], folder: pathlib.Path
) -> range:
  """The frames in a row that span the most, without a leap."""
  steps = np.linalg.norm(np.diff(poses[:, :3], axis=0), axis=1)
  cosines = np.abs(np.sum(poses[1:, 3:] * poses[:-1, 3:], axis=1))
  turns_deg = 2 * np.rad2deg(np.arccos(np.clip(cosines, 0, 1)))
  leaps = (steps > _MAX_STEP_M) | (turns_deg > _MAX_TURN_DEG)
  best, chosen = (-1.0, -1.0), None
  for first in range(len(poses) - _WINDOW + 1):
    inside = slice(first, first + _WINDOW - 1)
    if leaps[inside].any():
      continue
    places = poses[first : first + _WINDOW, :3]
    score = np.linalg.norm(np.ptp(places, axis=0)), steps[inside].sum()
    # Of windows as wide, the first.
    if score > best:
      best, chosen = score, range(first, first + _WINDOW)
  if chosen is None:
    raise errors.UserError(
      f'{folder / _POSES}: no {_WINDOW} frames in a row without a step of more '
      f'than {_MAX_STEP_M:g} m or {_MAX_TURN_DEG:g} degrees'
    )
  return chosen
