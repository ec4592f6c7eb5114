"""Scenes of points with descriptors, seen from a path: no pictures needed."""

import dataclasses

import numpy as np

from odin_jax.shared import camera
from preprocessing import matchers

NOISE_RAD = 1e-3


@dataclasses.dataclass
class PointWorld:
  """Frames of a scene of points, and the truth.

  Attributes:
    features: per frame.
    tracked_rays: where the points of each frame but the last are in the next.
    frame2world: true poses.
    point: the point that each feature shows, per frame; -1 for clutter.
  """

  features: list
  tracked_rays: list
  frame2world: np.ndarray
  point: list


def walk(num_frames, rng, step=0.9):
  """A path along z that sways, and a camera that shakes."""
  poses = []
  for index in range(num_frames):
    turn = camera.view2frame_rotation(*rng.normal(scale=4.0, size=2))
    place = [0.3 * np.sin(index / 2), 0.05 * np.cos(index), step * index]
    poses.append(camera.make_pose(turn, np.array(place)))
  return np.stack(poses)


def corridor(rng, length, per_metre=60):
  """Points on the walls, floor and ceiling of a corridor along z."""
  count = int(length * per_metre)
  side = rng.integers(0, 4, count)
  along = rng.uniform(-4, length - 4, count)
  across = rng.uniform(-1, 1, count)
  x = np.where(side == 0, -1.6, np.where(side == 1, 1.6, across * 1.6))
  y = np.where(side == 2, -1.4, np.where(side == 3, 1.3, across * 1.3))
  return np.stack([x, y, along], axis=1)


def descriptors(rng, count, dimension=32):
  values = rng.uniform(size=(count, dimension)) ** 3
  return values / np.linalg.norm(values, axis=1, keepdims=True)


def repeated_corridor(rng, length, bay_m, per_bay=120):
  """A corridor of identical bays: points and descriptors repeat along z."""
  bay = corridor(rng, bay_m, per_bay / bay_m)
  bay[:, 2] -= bay[:, 2].min()
  looks = descriptors(rng, len(bay))
  bays = int(np.ceil(length / bay_m))
  points = [bay + [0, 0, index * bay_m - 6] for index in range(bays)]
  return np.concatenate(points), np.tile(looks, (bays, 1))


def observe(
  rng, frame2world, points, looks, *, clutter=0.1, visible=0.8, reach_m=7.0
):
  """Features and tracked rays of a scene from a path.

  Args:
    rng: of noise and of what is missed.
    frame2world: [f, 3, 4].
    points: [p, 3], or [f, p, 3] where they move.
    looks: their descriptors.
    clutter: share of features that show nothing.
    visible: share of the points in reach that each frame finds.
    reach_m: farther points are not found.
  """
  count = len(frame2world)
  points = np.broadcast_to(points, (count, *points.shape[-2:]))
  rays, shown = [], []
  for frame, pose in enumerate(frame2world):
    local = camera.transform(camera.inverse(pose), points[frame])
    distance = np.linalg.norm(local, axis=1)
    near = (distance < reach_m) & (rng.uniform(size=len(local)) < visible)
    ids = rng.permutation(np.flatnonzero(near))
    rays.append(shaken(rng, local[ids] / distance[ids, None]))
    shown.append(ids)
  features, tracked_rays, labels = [], [], []
  for frame in range(count):
    extra = int(clutter * len(rays[frame]))
    stray = rng.normal(size=(extra, 3))
    stray /= np.linalg.norm(stray, axis=1, keepdims=True)
    look = looks[shown[frame]] + 0.01 * rng.normal(
      size=(len(shown[frame]), looks.shape[1])
    )
    look = np.concatenate([look, descriptors(rng, extra, looks.shape[1])])
    look /= np.linalg.norm(look, axis=1, keepdims=True)
    features.append(
      matchers.Features(
        rays=np.concatenate([rays[frame], stray]),
        noise_rad=np.full(len(look), NOISE_RAD),
        descriptors=look.astype(np.float32),
      )
    )
    labels.append(np.concatenate([shown[frame], np.full(extra, -1)]))
    if frame + 1 < count:
      local = camera.transform(
        camera.inverse(frame2world[frame + 1]), points[frame + 1][shown[frame]]
      )
      local /= np.linalg.norm(local, axis=1, keepdims=True)
      tracked = np.concatenate([shaken(rng, local, 5e-3), stray])
      tracked[rng.uniform(size=len(tracked)) < 0.2] = np.nan
      tracked_rays.append(tracked)
  return PointWorld(features, tracked_rays, frame2world, labels)


def shaken(rng, rays, noise_rad=NOISE_RAD):
  rays = rays + noise_rad * rng.normal(size=rays.shape)
  return rays / np.linalg.norm(rays, axis=1, keepdims=True)


def ring(
  rng,
  num_frames,
  *,
  laps=1.1,
  step=0.9,
  per_metre=60,
  turn_share=0.0,
  growth=0.0,
):
  """A walk round and round a ring-shaped corridor, with drift built in.

  What is observed is a scene that is bent into a spiral: the path turns by
  more and grows, lap by lap, and all that a frame sees goes with it. Every
  neighbourhood is rigid, so nothing but the return to the same things tells
  that the truth is a ring.

  Args:
    rng: of all.
    num_frames: of the walk.
    laps: how often it goes round.
    step: length of a step in metres.
    per_metre: points of the corridor.
    turn_share: by how much more the path turns than it should.
    growth: logarithm of what scale grows by per lap.

  Returns:
    what is seen, with the true `frame2world`.
  """
  length = num_frames * step / laps
  radius = length / (2 * np.pi)
  x, y, z = corridor(rng, length, per_metre).T
  around = z / radius
  straight = walk(num_frames, rng, step)
  angle = straight[:, 2, 3] / radius

  def bent(angle, x, y, turn_share, growth):
    scale = np.exp(growth * angle / (2 * np.pi))
    turned = (1 + turn_share) * angle
    return np.stack(
      [
        scale * (radius + x) * np.cos(turned),
        scale * y,
        scale * (radius + x) * np.sin(turned),
      ],
      axis=-1,
    )

  def poses(turn_share, growth):
    places = bent(
      angle, straight[:, 0, 3], straight[:, 1, 3], turn_share, growth
    )
    turns = [
      camera.rotation_y(-(1 + turn_share) * turn) @ pose[:, :3]
      for turn, pose in zip(angle, straight)
    ]
    return camera.make_pose(np.stack(turns), places)

  # Where each frame finds each point: on the lap that is nearest to it.
  off = (around - angle[:, None] + np.pi) % (2 * np.pi) - np.pi
  points = bent(angle[:, None] + off, x, y, turn_share, growth)
  looks = descriptors(rng, len(x))
  bent_world = observe(rng, poses(turn_share, growth), points, looks)
  return dataclasses.replace(bent_world, frame2world=poses(0.0, 0.0))


def drift(frame2scene, frame2world):
  """How far a path is off, as a share of its length.

  Returns:
    RMS distance from the truth after the best similarity; and what the last
    frame's place as the first one sees it is off, with the same scale.
  """
  places, true = frame2scene[:, :, 3], frame2world[:, :, 3]
  rotation, scale = _similarity(places, true)
  length = np.linalg.norm(np.diff(true, axis=0), axis=1).sum()
  off = scale * (places - places.mean(axis=0)) @ rotation.T
  off -= true - true.mean(axis=0)
  ends = [
    camera.relative(poses[0], poses[-1])[:, 3]
    for poses in (frame2scene, frame2world)
  ]
  return (
    np.sqrt(np.mean(np.sum(off**2, axis=1))) / length,
    np.linalg.norm(scale * ends[0] - ends[1]) / length,
  )


def _similarity(places, true):
  """Rotation and scale that bring one set of places to another.

  S. Umeyama, "Least-squares estimation of transformation parameters between
  two point patterns", PAMI 1991.
  """
  places, true = places - places.mean(axis=0), true - true.mean(axis=0)
  u, size, v = np.linalg.svd(true.T @ places)
  size[2] *= np.sign(np.linalg.det(u) * np.linalg.det(v))
  u[:, 2] *= np.sign(np.linalg.det(u) * np.linalg.det(v))
  return u @ v, size.sum() / np.sum(places**2)
