"""Scenes in the layout of nerfstudio, of a world that is far away.

Its colour depends on the direction alone, so a picture shows where its camera
looked and what its lens was.
"""

import json

import cv2
import numpy as np

from odin_jax.shared import camera, opengl

SIZE = (72, 54)


def colour(directions):
  """Of directions [*b 3] of any length in scene axes, 0 to 255."""
  unit = directions / np.linalg.norm(directions, axis=-1, keepdims=True)
  waves = np.stack(
    [np.sin(5 * unit[..., 0]), np.sin(6 * unit[..., 1]), unit[..., 2]], -1
  )
  return 128 + 100 * waves


def intrinsics(number):
  """Every picture has a lens of its own, not centred."""
  return np.array(
    [[60.0 + number, 0, 34.5], [0, 58 + number, 28.25 - number], [0, 0, 1]]
  )


def camera2scene(number):
  """The camera of a picture."""
  return camera.make_pose(
    camera.rotation_y(0.1 * number) @ camera.rotation_x(-0.05 * number),
    np.array([0.5 * number, 0.1, -0.2 * number]),
  )


def write(folder, numbers=(0, 1, 2, 3), points=None, split=None):
  """Writes a scene.

  Args:
    folder: of the scene.
    numbers: of the pictures.
    points: [n 3] in scene axes, for `points.ply`; none without.
    split: sources and targets, for `train_test_split_1.json`.
  """
  (folder / 'images').mkdir(parents=True)
  opencv2opengl = camera.make_pose(opengl.OPENGL2OPENCV, np.zeros(3))
  frames = []
  for number in numbers:
    k, pose = intrinsics(number), camera2scene(number)
    u, v = camera.pixel_centres(*SIZE)
    rays = np.stack([u, v, np.ones_like(u)], -1) @ np.linalg.inv(k).T
    image = np.rint(colour(rays @ pose[:, :3].T)).astype(np.uint8)
    name = f'images/{number:02d}.png'
    assert cv2.imwrite(str(folder / name), image[..., ::-1])
    opengl2world = camera.compose(
      opengl.SCENE2WORLD, camera.compose(pose, opencv2opengl)
    )
    frames.append(
      {
        'file_path': name,
        'transform_matrix': [*opengl2world.tolist(), [0, 0, 0, 1]],
        'fl_x': k[0, 0],
        'fl_y': k[1, 1],
        'cx': k[0, 2],
        'cy': k[1, 2],
      }
    )
  content = {'frames': frames}
  if points is not None:
    content['ply_file_path'] = 'points.ply'
    world = camera.transform(opengl.SCENE2WORLD, np.asarray(points, float))
    header = (
      f'ply\nformat ascii 1.0\nelement vertex {len(world)}\n'
      'property float x\nproperty float y\nproperty float z\nend_header\n'
    )
    rows = '\n'.join(' '.join(map(str, point)) for point in world.tolist())
    (folder / 'points.ply').write_text(header + rows + '\n')
  (folder / 'transforms.json').write_text(json.dumps(content))
  if split is not None:
    sources, targets = split
    (folder / 'train_test_split_1.json').write_text(
      json.dumps({'train_ids': sources, 'test_ids': targets})
    )
  return folder
