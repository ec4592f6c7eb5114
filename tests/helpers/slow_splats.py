"""Gaussians drawn one after the other in float64: what a picture must be.

Written from the papers, without tiles, in numpy, and by other means than the
code under test: image-plane covariances are inverted, and a panorama turns a
camera to every Gaussian and projects with that.
"""

from typing import NamedTuple

import numpy as np

from odin_jax.shared import camera

HARMONIC_0 = 0.28209479177387814
NEAR, WIDEST = 0.05, 1.3


class View(NamedTuple):
  """A pose in float64, and what `projection.Camera` has beside it."""

  scene2camera: np.ndarray
  width: int
  height: int
  focal_px: float | None
  # Square pixels.
  low_pass: float = 0.3


def covariance(log_scales, quaternion):
  """R S S^T R^T, with R by turning the three axes: q v q*."""
  w, *xyz = quaternion / np.linalg.norm(quaternion)
  xyz = np.array(xyz)
  axes = np.eye(3)
  turned = axes + 2 * np.cross(xyz, np.cross(xyz, axes) + w * axes)
  return turned.T @ np.diag(np.exp(2 * log_scales)) @ turned


def picture(scene, view):
  """[h w 3] of Gaussians given as arrays, and what shines through [h w]."""
  means, log_scales, quaternions, logits, coefficients = (
    np.asarray(part, np.float64) for part in scene
  )
  pose = view.scene2camera
  local = camera.transform(pose, means)
  image = np.zeros((view.height, view.width, 3))
  through = np.ones((view.height, view.width))
  u, v = camera.pixel_centres(view.width, view.height)
  if view.focal_px is None:
    depth = np.linalg.norm(local, axis=1)
  else:
    depth = local[:, 2]
  for index in np.argsort(depth):
    if depth[index] <= NEAR:
      continue
    spread = pose[:, :3] @ covariance(log_scales[index], quaternions[index])
    spread = spread @ pose[:, :3].T
    if view.focal_px is None:
      power = on_sphere(view, u, v, local[index], spread)
    else:
      power = in_image(view, u, v, local[index], spread)
    alpha = np.exp(power) / (1 + np.exp(-logits[index]))
    alpha = np.where(alpha < 1 / 255, 0, np.minimum(alpha, 0.99))
    colour = np.maximum(0.5 + HARMONIC_0 * coefficients[index], 0)
    image += (through * alpha)[..., None] * colour
    through = through * (1 - alpha)
  return image, through


def in_image(view, u, v, centre, spread):
  x, y, z = centre
  limit = WIDEST * np.array([view.width, view.height]) / 2 / view.focal_px
  slope = np.clip([x / z, y / z], -limit, limit)
  jacobian = (
    view.focal_px / z * np.array([[1, 0, -slope[0]], [0, 1, -slope[1]]])
  )
  inverse = np.linalg.inv(
    jacobian @ spread @ jacobian.T + view.low_pass * np.eye(2)
  )
  offset = np.stack(
    [
      u - view.width / 2 - view.focal_px * x / z,
      v - view.height / 2 - view.focal_px * y / z,
    ],
    -1,
  )
  return -np.einsum('...i,ij,...j->...', offset, inverse, offset) / 2


def on_sphere(view, u, v, centre, spread):
  """By a camera of focal length 1 that looks at the Gaussian."""
  yaw, pitch = camera.yaw_pitch_deg(centre)
  turn = camera.view2frame_rotation(yaw, pitch)
  pixel_rad = max(2 * np.pi / view.width, np.pi / view.height)
  plane = (turn.T @ spread @ turn)[:2, :2] / (centre @ centre)
  inverse = np.linalg.inv(plane + view.low_pass * pixel_rad**2 * np.eye(2))
  rays = camera.equirect_to_direction(u, v, view.width, view.height) @ turn
  offset = rays[..., :2] / np.where(rays[..., 2:] > 0.2, rays[..., 2:], np.inf)
  power = -np.einsum('...i,ij,...j->...', offset, inverse, offset) / 2
  return np.where(rays[..., 2] > 0.2, power, -np.inf)


def slopes(scene, view, weights, step=1e-5):
  """Central differences of sum(weights * picture) in every parameter."""
  parts = [np.array(part, np.float64) for part in scene]

  def total():
    image, through = picture(parts, view)
    return np.sum(weights[..., :3] * image) + np.sum(weights[..., 3] * through)

  found = []
  for part in parts:
    slope = np.zeros_like(part)
    for place in np.ndindex(part.shape):
      before = part[place]
      part[place] = before + step
      above = total()
      part[place] = before - step
      slope[place] = (above - total()) / (2 * step)
      part[place] = before
    found.append(slope)
  return found
