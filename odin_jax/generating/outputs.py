"""What is written of generated views: pictures, a video, and their cameras.

The cameras in three layouts, so that whoever reads posed views reads these:
`poses.json` (our axes), `transforms.json` (nerfstudio; both of
`odin_jax.geometry.view_folder`) and `sparse/0` (COLMAP as text,
https://colmap.github.io/format.html, its pictures those of `frames/`).
"""

import pathlib

import av
import cv2
from jaxtyping import Float, UInt8
import numpy as np
from scipy.spatial import transform

from odin_jax.geometry import view_folder
from odin_jax.shared import camera, files, image_files

FRAMES = 'frames'
VIDEO = 'video.mp4'
_SPARSE = tuple(
  f'sparse/0/{name}.txt' for name in ('cameras', 'images', 'points3D')
)
# Small views are enlarged in the video (not in frames/) for people to see.
_MIN_VIDEO_PX = 256

Frames = UInt8[np.ndarray, 'n s s 3']
Path = Float[np.ndarray, 'n 3 4']


class FrameFolder:
  """frames/000.png ..., each written as soon as it is there.

  Args:
    output: of the run; frames of an earlier one are removed.
    count: how many there will be.

  Attributes:
    names: under `output`.
  """

  def __init__(self, output: pathlib.Path, count: int):
    folder = output / FRAMES
    folder.mkdir(exist_ok=True)
    for old in folder.glob('*.png'):
      old.unlink()
    digits = max(3, len(str(count - 1)))
    self._output = output
    self.names = [f'{FRAMES}/{index:0{digits}d}.png' for index in range(count)]

  def write(self, index: int, frame: UInt8[np.ndarray, 's s 3']) -> None:
    """Writes the frame of a number."""
    image_files.write(self._output / self.names[index], frame)


def write_video(
  output: pathlib.Path, frames: Frames, frames_per_s: int
) -> None:
  """H.264 in yuv420p, which every browser plays; even sides, enlarged whole."""
  size = frames.shape[1]
  scale = -(-_MIN_VIDEO_PX // size)
  side = size * scale + size * scale % 2
  options = {'movflags': '+faststart'}
  with (
    files.atomic_path(output / VIDEO) as path,
    av.open(str(path), 'w', options=options) as container,
  ):
    stream = container.add_stream(
      'libx264', rate=frames_per_s, options={'crf': '16'}
    )
    stream.width = stream.height = side
    stream.pix_fmt = 'yuv420p'
    for frame in frames:
      if side != size:
        frame = cv2.resize(
          frame, (side, side), interpolation=cv2.INTER_LANCZOS4
        )
      picture = av.VideoFrame.from_ndarray(frame, format='rgb24')
      container.mux(stream.encode(picture))
    container.mux(stream.encode())


def forget_cameras(output: pathlib.Path) -> None:
  """Removes those of an earlier run, which are not of the pictures to come.

  Readers take poses.json for a finished run.
  """
  for name in (view_folder.POSES, view_folder.TRANSFORMS, *_SPARSE):
    (output / name).unlink(missing_ok=True)


def write_cameras(
  output: pathlib.Path,
  names: list[str],
  camera2scene: Path,
  fov_deg: float,
  size_px: int,
) -> None:
  """Writes transforms.json, sparse/0, and last poses.json.

  Args:
    output: folder of the run.
    names: of the pictures under it.
    camera2scene: of each.
    fov_deg: of all.
    size_px: side of all.
  """
  files.write_json(
    output / view_folder.TRANSFORMS,
    view_folder.nerfstudio(names, camera2scene, fov_deg, size_px),
  )
  sparse = output / 'sparse' / '0'
  sparse.mkdir(parents=True, exist_ok=True)
  for name, text in _colmap(names, camera2scene, fov_deg, size_px).items():
    with files.atomic_path(sparse / name) as temporary:
      temporary.write_text(text)
  files.write_json(
    output / view_folder.POSES,
    {
      'fov_deg': fov_deg,
      'width': size_px,
      'height': size_px,
      'frames': [
        {'file': name, 'camera2scene': pose.ravel().tolist()}
        for name, pose in zip(names, camera2scene)
      ],
    },
  )


def _colmap(
  names: list[str], camera2scene: Path, fov_deg: float, size_px: int
) -> dict[str, str]:
  """Files of a model without points, by their names."""
  focal_px = float(camera.intrinsics(fov_deg, size_px)[0, 0])
  centre = size_px / 2
  lens = (
    f'1 PINHOLE {size_px} {size_px} {focal_px!r} {focal_px!r} {centre} {centre}'
  )
  lines = []
  for number, (name, pose) in enumerate(zip(names, camera2scene), start=1):
    scene2camera = camera.inverse(pose)
    x, y, z, w = transform.Rotation.from_matrix(scene2camera[:, :3]).as_quat()
    values = (w, x, y, z, *scene2camera[:, 3])
    numbers = ' '.join(repr(float(value)) for value in values)
    # The second line is for the points that it sees.
    lines += [f'{number} {numbers} 1 {pathlib.PurePath(name).name}', '']
  return {
    'cameras.txt': f'{lens}\n',
    'images.txt': '\n'.join(lines) + '\n',
    'points3D.txt': '',
  }
