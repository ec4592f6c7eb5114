"""Pictures as they are stored in records."""

import cv2
from jaxtyping import UInt8
import numpy as np

_QUALITY = 95


def encode(image: UInt8[np.ndarray, 'h w 3']) -> bytes:
  """An RGB image as JPEG, quality 95."""
  options = [cv2.IMWRITE_JPEG_QUALITY, _QUALITY]
  _, data = cv2.imencode('.jpg', image[..., ::-1], options)
  return data.tobytes()
