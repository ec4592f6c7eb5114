"""Gaussians as the .ply that viewers of 3DGS open.

`save_ply` in
https://github.com/graphdeco-inria/gaussian-splatting/blob/main/scene/gaussian_model.py:
float32, little-endian: x y z, nx ny nz (0), f_dc_0 f_dc_1 f_dc_2 (coefficients
of the harmonic of degree 0), f_rest_* (those above; here none, degree 0),
opacity (its logit), scale_0..2 (logarithms), rot_0..3 (w x y z).
"""

import os

import numpy as np

from odin_jax.splatting import gaussians as gaussian

PROPERTIES = (
  *('x', 'y', 'z', 'nx', 'ny', 'nz', 'f_dc_0', 'f_dc_1', 'f_dc_2', 'opacity'),
  *('scale_0', 'scale_1', 'scale_2', 'rot_0', 'rot_1', 'rot_2', 'rot_3'),
)


def write(path: str | os.PathLike[str], scene: gaussian.Gaussians) -> None:
  """Writes a binary file; quaternions have length 1 in it."""
  means, log_scales, quaternions, logits, colours = (
    np.asarray(part, np.float64) for part in scene
  )
  quaternions = quaternions / np.linalg.norm(quaternions, axis=1, keepdims=True)
  rows = np.hstack(
    [
      means,
      np.zeros_like(means),
      colours,
      logits[:, None],
      log_scales,
      quaternions,
    ]
  ).astype('<f4')
  header = [
    'ply',
    'format binary_little_endian 1.0',
    f'element vertex {len(rows)}',
    *(f'property float {name}' for name in PROPERTIES),
    'end_header\n',
  ]
  with open(path, 'wb') as file:
    file.write('\n'.join(header).encode())
    file.write(rows.tobytes())
