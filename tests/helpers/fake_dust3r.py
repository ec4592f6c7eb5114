"""A stand-in for a DUSt3R network that knows the truth.

It has the three methods that the adapter calls. A view is recognised by its
pixels; the pointmaps come from ray casting in a procedural world, with noise,
a scale that changes from pair to pair, and confidence 1 where the surface
moves.
"""

import numpy as np
import torch

from odin_jax.shared import camera
from preprocessing import panorama
from preprocessing.matchers import pointmaps
from preprocessing.procedural import raycaster


def view_pose(frame2world, yaw_deg):
  """`view2world` of a level view of a frame."""
  view2frame = camera.make_pose(
    camera.view2frame_rotation(yaw_deg, 0.0), np.zeros(3)
  )
  return camera.compose(frame2world, view2frame)


def cast_view(world, time_s, view2world, *, fov_deg, width, height):
  """Scene points of a view's pixels in the view's axes, and what moves."""
  u, v = camera.pixel_centres(width, height)
  matrix = pointmaps.intrinsics(fov_deg, width, height)
  rays = np.stack([u, v, np.ones_like(u)], axis=-1) @ np.linalg.inv(matrix).T
  rays = (rays / np.linalg.norm(rays, axis=-1, keepdims=True)).astype(
    np.float32
  )
  hits = world.scene.cast(
    view2world[:, 3], raycaster.rotate(view2world[:, :3], rays), time_s
  )
  return (
    rays * hits.distance[..., None],
    world.scene.surface_moves[hits.surface],
  )


class OracleNetwork(torch.nn.Module):
  """Exact pointmaps of the views it was shown, made worse on purpose.

  Args:
    noise: of every point, as a share of its distance.
    lies: pairs of views (as numbers in the order they were added) for which
      the second pointmap is nonsense, with full confidence.
  """

  def __init__(self, *, noise=0.0, lies=()):
    super().__init__()
    self.noise, self.lies = noise, set(lies)
    self.views, self.numbers = [], {}
    self.encoded, self.decoded = 0, []

  def add(self, picture, world, time_s, rules):
    """Makes the views of a panorama known, as the matcher will cut them."""
    size = dict(width=rules.view_width_px, height=rules.view_height_px)
    margin = (rules.view_width_px - rules.view_height_px) // 2
    frame2world = world.walk.frame2world(time_s)
    for view in range(rules.num_views):
      yaw_deg = 360 * view / rules.num_views
      image = panorama.cut_view(
        picture,
        yaw_deg=yaw_deg,
        pitch_deg=0.0,
        fov_deg=rules.fov_deg,
        size_px=rules.view_width_px,
      )[margin : margin + rules.view_height_px]
      pose = view_pose(frame2world, yaw_deg)
      self.numbers[image.tobytes()] = len(self.views)
      self.views.append(
        (pose, *cast_view(world, time_s, pose, fov_deg=rules.fov_deg, **size))
      )

  def add_views(self, images, camera2scene, depths, fov_deg):
    """Makes posed views known whose depth is."""
    height, width = images.shape[1:3]
    u, v = camera.pixel_centres(width, height)
    matrix = pointmaps.intrinsics(fov_deg, width, height)
    rays = np.stack([u, v, np.ones_like(u)], axis=-1) @ np.linalg.inv(matrix).T
    for image, pose, depth in zip(images, camera2scene, depths, strict=True):
      self.numbers[image.tobytes()] = len(self.views)
      points = rays * depth[..., None]
      self.views.append((pose, points, np.zeros(depth.shape, bool)))

  def _encode_image(self, image, true_shape):
    assert len(image) == len(true_shape)
    assert image.shape[2:] == tuple(true_shape[0].tolist())
    pixels = torch.round((image * 0.5 + 0.5) * 255).to(torch.uint8)
    rows = pixels.permute(0, 2, 3, 1).contiguous().numpy()
    numbers = [self.numbers[row.tobytes()] for row in rows]
    self.encoded += len(numbers)
    tokens = torch.tensor(numbers, dtype=torch.float32)[:, None, None]
    return tokens, torch.zeros(len(numbers), 1, 2, dtype=torch.int64), None

  def _decoder(self, one, positions_one, two, positions_two):
    self.decoded += [(int(a), int(b)) for a, b in zip(one.ravel(), two.ravel())]
    return iter([[torch.cat([one, two], -1)], [torch.cat([two, one], -1)]])

  def _downstream_head(self, number, layers, shapes):
    maps = [
      self._map(number, *map(int, row)) for row in layers[-1][:, 0].tolist()
    ]
    points, confidence = map(np.stack, zip(*maps))
    assert points.shape[1:3] == tuple(shapes[0].tolist())
    return {
      'pts3d': torch.from_numpy(points.astype(np.float32)),
      'conf': torch.from_numpy(confidence.astype(np.float32)),
    }

  def _map(self, number, own, other):
    pose, points, moves = self.views[own]
    pair = (own, other) if number == 1 else (other, own)
    rng = np.random.default_rng([number, *pair])
    points = points * (1 + self.noise * rng.normal(size=(*points.shape[:2], 1)))
    if number == 2:
      if pair in self.lies:
        points = rng.normal(size=points.shape)
      own2other = camera.relative(self.views[other][0], pose)
      points = points @ own2other[:, :3].T + own2other[:, 3]
    scale = np.random.default_rng(pair).uniform(0.3, 3.0)
    return points * scale, np.where(moves, 1.0, 5.0)
