"""Pictures as they are stored in records and shown on pages."""

import cv2
from jaxtyping import UInt8
import numpy as np

# Of the pictures of records.
_QUALITY = 95


def encode(image: UInt8[np.ndarray, 'h w 3'], quality: int = _QUALITY) -> bytes:
  """An RGB image as JPEG; `quality` is OpenCV's, 1..100."""
  options = [cv2.IMWRITE_JPEG_QUALITY, quality]
  _, data = cv2.imencode('.jpg', image[..., ::-1], options)
  return data.tobytes()


def decode(data: bytes) -> UInt8[np.ndarray, 'h w 3']:
  """The RGB image of a JPEG."""
  return _decode(data, cv2.IMREAD_COLOR)[..., ::-1]


def decode_grey(data: bytes) -> UInt8[np.ndarray, 'h w']:
  """The brightness of a JPEG."""
  return _decode(data, cv2.IMREAD_GRAYSCALE)


def _decode(data: bytes, mode: int) -> np.ndarray:
  return cv2.imdecode(np.frombuffer(data, np.uint8), mode)
