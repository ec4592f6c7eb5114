"""Where the cameras of a scene look, and who looks there straight.

After https://github.com/kylesargent/ZeroNVS, threestudio/data/image.py
(`transform_poses_pca`, `look_at`, `get_scene`), which takes its first from
https://github.com/google-research/multinerf, internal/camera_utils.py, as the
focus point here.
"""

from jaxtyping import Float, Int
import numpy as np

from odin_jax.shared import camera, opengl

Poses = Float[np.ndarray, 'n 3 4']


def focus_point(camera2scene: Poses) -> Float[np.ndarray, '3']:
  """The point that is nearest to all optical axes, in least squares."""
  axes = camera2scene[:, :, 2]
  across = np.eye(3) - axes[:, :, None] * axes[:, None, :]
  return np.linalg.solve(
    across.mean(axis=0),
    np.einsum('nij,nj->i', across, camera2scene[:, :, 3]) / len(axes),
  )


def mean_distance(camera2scene: Poses) -> float:
  """Of the cameras from their focus point."""
  offsets = camera2scene[:, :, 3] - focus_point(camera2scene)
  return float(np.linalg.norm(offsets, axis=1).mean())


def look_at_order(camera2scene: Poses) -> Int[np.ndarray, 'n']:
  """Views by how much they are turned from looking at the focus point upright.

  Up is the direction in which the cameras' places vary least, on the side on
  which their pictures' tops are.
  """
  places = camera2scene[:, :, 3] - focus_point(camera2scene)
  centred = camera2scene[:, :, 3] - camera2scene[:, :, 3].mean(axis=0)
  # Ascending: the last axis of the principal ones is the first here.
  _, axes = np.linalg.eigh(centred.T @ centred)
  up = axes[:, 0]
  # Tops of pictures, on average.
  if up @ -camera2scene[:, :, 1].mean(axis=0) < 0:
    up = -up
  backward = places / np.linalg.norm(places, axis=1, keepdims=True)
  right = np.cross(up, backward)
  right /= np.linalg.norm(right, axis=1, keepdims=True)
  top = np.cross(backward, right)
  looking = np.stack([right, top, backward], axis=-1) @ opengl.OPENGL2OPENCV
  turned = np.swapaxes(camera2scene[:, :, :3], 1, 2) @ looking
  return np.argsort(camera.rotation_angle_deg(turned), kind='stable')
