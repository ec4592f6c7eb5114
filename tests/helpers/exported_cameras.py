"""A folder cameras/VIDEO, as `preprocessing.run` exports it with pictures."""

import json

import cv2
import numpy as np


def write(folder, images, poses, masked, *, component=0, strangers=()):
  """Writes panoramas of a component; what is in path.json.

  Args:
    folder: to make.
    images: RGB, of each frame.
    poses: frame2scene of each.
    masked: bool, of the pixels of every frame that are no scene.
    component: that they are of.
    strangers: frames of path.json that come first and have no pictures.
  """
  frames = list(strangers)
  for name in ('images', 'masks'):
    (folder / name).mkdir(parents=True)
  mask = np.where(masked, np.uint8(0), np.uint8(255))
  for image, pose in zip(images, poses, strict=True):
    name = f'{len(frames):06d}.jpg'
    jpeg = [cv2.IMWRITE_JPEG_QUALITY, 98]
    cv2.imwrite(str(folder / 'images' / name), image[..., ::-1], jpeg)
    cv2.imwrite(str(folder / 'masks' / f'{name}.png'), mask)
    frames.append(
      {
        'time_s': len(frames) / 2,
        'component': component,
        'frame2scene': pose.tolist(),
      }
    )
  content = {'video_id': 'video', 'masked_share': 0.2, 'frames': frames}
  (folder / 'path.json').write_text(json.dumps(content))
  return content
