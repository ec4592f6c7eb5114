"""The keyframes of a video, kept on disk while the video is worked on."""

import tempfile
from typing import Sequence

import cv2
from jaxtyping import UInt8
import numpy as np

from odin_jax.shared import errors

_PNG = [cv2.IMWRITE_PNG_COMPRESSION, 1]


class PanoramaStore(Sequence[np.ndarray]):
  """Images in order, stored without loss in one file that has no name.

  An hour of video has more keyframes than memory holds. The file lies in the
  system's temporary folder (TMPDIR) and is gone with this object or process.
  """

  def __init__(self) -> None:
    self._file = tempfile.TemporaryFile()
    self._places: list[tuple[int, int]] = []

  def append(self, image: UInt8[np.ndarray, 'h w 3']) -> None:
    """Stores an RGB image.

    Raises:
      errors.UserError: there is no room for it.
    """
    data = cv2.imencode('.png', image[..., ::-1], _PNG)[1].tobytes()
    start = self._file.seek(0, 2)
    try:
      self._file.write(data)
      self._file.flush()
    except OSError as error:
      raise errors.UserError(
        f'{tempfile.gettempdir()}: {error.strerror}; keyframes are kept here '
        'while a video is worked on: make room, or set TMPDIR'
      ) from error
    self._places.append((start, len(data)))

  def __len__(self) -> int:
    return len(self._places)

  def __getitem__(self, index: int) -> UInt8[np.ndarray, 'h w 3']:
    start, length = self._places[index]
    self._file.seek(start)
    data = np.frombuffer(self._file.read(length), np.uint8)
    return cv2.imdecode(data, cv2.IMREAD_COLOR)[..., ::-1].copy()
