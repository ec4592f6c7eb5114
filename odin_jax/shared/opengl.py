"""The axes of OpenGL, Blender and nerfstudio beside those of `camera`.

https://docs.nerf.studio/quickstart/data_conventions.html: cameras look along
-z with y up (OpenGL), and the world has z up. Turned as nerfstudio's
`colmap_to_json` turns COLMAP's world
(https://github.com/nerfstudio-project/nerfstudio/blob/main/nerfstudio/process_data/colmap_utils.py).
"""

from jaxtyping import Float
import numpy as np

from odin_jax.shared import camera

# From x right, y up, z backwards to x right, y down, z forward.
OPENGL2OPENCV = np.diag([1.0, -1.0, -1.0])
# x stays, y (down) becomes -z (up), z becomes y.
SCENE2WORLD = camera.make_pose(
  np.array([[1.0, 0.0, 0.0], [0.0, 0.0, 1.0], [0.0, -1.0, 0.0]]), np.zeros(3)
)


def camera2scene(
  opengl2world: Float[np.ndarray, '3 4'],
) -> Float[np.ndarray, '3 4']:
  """The pose of a camera in our axes, of one whose world has z up."""
  opencv2opengl = camera.make_pose(OPENGL2OPENCV.T, np.zeros(3))
  return camera.compose(
    camera.inverse(SCENE2WORLD), camera.compose(opengl2world, opencv2opengl)
  )


def opengl2world(pose: Float[np.ndarray, '3 4']) -> Float[np.ndarray, '3 4']:
  """The inverse of `camera2scene`: a pose as these programs have it."""
  opengl2opencv = camera.make_pose(OPENGL2OPENCV, np.zeros(3))
  return camera.compose(SCENE2WORLD, camera.compose(pose, opengl2opencv))
