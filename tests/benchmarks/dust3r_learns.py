"""From pixels to poses with a DUSt3R network that learned: a small proof.

    DUST3R_HOME=FOLDER python -m tests.benchmarks.dust3r_learns [--seconds=240]

Trains a tiny network of the official class, with the package's own loss, on
pairs of views of procedural rooms with exact pointmaps, for a fixed CPU time on
one thread. Then views of moments and directions between those of training, of
the same rooms, go through the adapter, and PnP on the pointmaps gives the pose
of the second view, as in the matcher. One JSON line: rotation and direction
errors against the truth, beside those of the identity pose (whose direction is
any: 90 degrees at the median) and of the same network before training. This
says that the path works and that such a network learns to use it, not how well
the official weights do on real videos.
"""

import dataclasses
import json
import time
from typing import Any

from absl import flags
import numpy as np

from odin_jax.shared import camera, command
from preprocessing.matchers import dust3r_checkout, dust3r_network, pointmaps
from preprocessing.procedural import footage, raycaster

_SECONDS = flags.DEFINE_float('seconds', 240.0, 'CPU seconds of training.', 1.0)
_ROOMS = flags.DEFINE_integer('rooms', 1, 'Worlds to know.', 1)
_VIEW_PX, _FOV_DEG = 64, 90.0
_WALK_S, _EVERY_S, _NUM_YAWS = 8.0, 0.25, 18
# Frames of a pair lie a second apart at most and see much of the same.
_MAX_STEPS, _MAX_TURNS = 4, 2
_BATCH_SIZE, _LEARNING_RATE, _WARMUP_SHARE = 8, 1e-3, 0.03
_TEST_PAIRS = 200
# What could not be posed counts as wrong by half a turn.
_LOST = (180.0, 180.0)
_NETWORK = (
  f"AsymmetricCroCo3DStereo(pos_embed='RoPE100', patch_size=16, "
  f"img_size=({_VIEW_PX}, {_VIEW_PX}), head_type='linear', "
  "output_mode='pts3d', landscape_only=False, depth_mode=('exp', -inf, inf), "
  "conf_mode=('exp', 1, inf), enc_embed_dim=128, enc_depth=4, "
  'enc_num_heads=4, dec_embed_dim=128, dec_depth=4, dec_num_heads=4)'
)


@dataclasses.dataclass(frozen=True)
class Bank:
  """Views of one room on a grid of moments and yaws, with the truth.

  Attributes:
    images: [times, yaws, s, s, 3].
    points: scene points in the axes of each view, [times, yaws, s, s, 3].
    poses: `view2world`, [times, yaws, 3, 4].
  """

  images: np.ndarray
  points: np.ndarray
  poses: np.ndarray


def make_bank(room: int, *, shift: float) -> Bank:
  """The views of a room; `shift` moves the grid by a share of its steps."""
  px_per_rad = _VIEW_PX / np.deg2rad(_FOV_DEG)
  world = footage.make_world(
    ['unique_room'], room, seed=1, seconds=_WALK_S + 1, px_per_rad=px_per_rad
  )
  times_s = np.arange(0, _WALK_S, _EVERY_S) + shift * _EVERY_S
  yaws_deg = (np.arange(_NUM_YAWS) + shift) * 360 / _NUM_YAWS
  rows = [
    [_look(world, float(time_s), float(yaw_deg)) for yaw_deg in yaws_deg]
    for time_s in times_s
  ]
  return Bank(
    *(np.stack([np.stack(c) for c in column]) for column in _columns(rows))
  )


def _columns(rows: list) -> list:
  return [[[cell[i] for cell in row] for row in rows] for i in range(3)]


def _look(world: Any, time_s: float, yaw_deg: float) -> tuple:
  frame2world = world.walk.frame2world(time_s)
  pose = camera.compose(
    frame2world,
    camera.make_pose(camera.view2frame_rotation(yaw_deg, 0.0), np.zeros(3)),
  )
  rays = camera.view_rays(_FOV_DEG, _VIEW_PX)
  rays = (rays / np.linalg.norm(rays, axis=-1, keepdims=True)).astype(
    np.float32
  )
  turned = raycaster.rotate(pose[:, :3], rays)
  hits = world.scene.cast(pose[:, 3], turned, time_s)
  image = world.scene.paint(
    pose[:, 3],
    turned,
    hits,
    time_s,
    pixel_rad=float(np.deg2rad(_FOV_DEG) / _VIEW_PX),
  )
  return image, rays * hits.distance[..., None], pose


def draw_pairs(
  banks: list[Bank], count: int, rng: np.random.Generator
) -> list[tuple]:
  """(bank, moment and yaw of view one, moment and yaw of view two)."""
  pairs = []
  for _ in range(count):
    bank = int(rng.integers(len(banks)))
    num_times, num_yaws = banks[bank].images.shape[:2]
    step = int(rng.choice([-1, 1]) * rng.integers(1, _MAX_STEPS + 1))
    first = int(rng.integers(max(0, -step), num_times - max(0, step)))
    yaw = int(rng.integers(num_yaws))
    turn = int(rng.integers(-_MAX_TURNS, _MAX_TURNS + 1))
    pairs.append((bank, (first, yaw), (first + step, (yaw + turn) % num_yaws)))
  return pairs


def make_batch(banks: list[Bank], pairs: list[tuple]) -> tuple[dict, dict]:
  """The two views as the package wants them, each pair in both orders."""
  both = [
    order
    for bank, first, second in pairs
    for order in ((bank, first, second), (bank, second, first))
  ]
  return tuple(
    _collate(
      [(banks[row[0]], row[side], f'{row[0]} {row[side]}') for row in both]
    )
    for side in (1, 2)
  )


def _collate(views: list[tuple[Bank, tuple, str]]) -> dict[str, Any]:
  import torch

  points, poses, images = (
    np.stack([getattr(bank, name)[at] for bank, at, _ in views])
    for name in ('points', 'poses', 'images')
  )
  world = np.einsum('bij,bhwj->bhwi', poses[..., :3], points)
  world += poses[:, None, None, :, 3]
  square = np.tile(np.eye(4), (len(views), 1, 1))
  square[:, :3] = poses
  pixels = torch.from_numpy(images).permute(0, 3, 1, 2)
  return {
    'img': (pixels / 255 - 0.5) / 0.5,
    'true_shape': torch.tensor([[_VIEW_PX, _VIEW_PX]]).repeat(len(views), 1),
    'instance': [name for _, _, name in views],
    'pts3d': torch.from_numpy(world.astype(np.float32)),
    'camera_pose': torch.from_numpy(square.astype(np.float32)),
    'valid_mask': torch.ones(world.shape[:3], dtype=torch.bool),
  }


def train(home: Any, model: Any, banks: list[Bank], seconds: float) -> int:
  """Trains until the CPU time is over; returns the number of steps."""
  import torch

  losses = dust3r_checkout.import_module(home, 'dust3r.losses')
  criterion = losses.ConfLoss(
    losses.Regr3D(losses.L21, norm_mode='avg_dis'), alpha=0.2
  )
  optimizer = torch.optim.AdamW(
    model.parameters(), lr=0.0, betas=(0.9, 0.95), weight_decay=0.01
  )
  rng = np.random.default_rng(0)
  model.train()
  start, steps = time.process_time(), 0
  while (done := (time.process_time() - start) / seconds) < 1:
    rate = _LEARNING_RATE * min(1.0, done / _WARMUP_SHARE)
    for group in optimizer.param_groups:
      group['lr'] = rate * 0.5 * (1 + np.cos(np.pi * done))
    first, second = make_batch(banks, draw_pairs(banks, _BATCH_SIZE, rng))
    loss, _ = criterion(first, second, *model(first, second))
    optimizer.zero_grad()
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    steps += 1
  return steps


def judge(model: Any, banks: list[Bank], pairs: list[tuple]) -> dict[str, Any]:
  """Pose errors of the network on pairs, through adapter and PnP."""
  network = dust3r_network.Network(
    model,
    device='cpu',
    precision='fp32',
    attention='stock',
    batch_size=_BATCH_SIZE,
  )
  all_errors, still = [], []
  for bank, source, target in pairs:
    views = banks[bank]
    true = camera.relative(views.poses[source], views.poses[target])
    tokens = network.encode(
      np.stack([views.images[source], views.images[target]])
    )
    (maps,) = network.decode([(tokens[0], tokens[1])])
    pose = pointmaps.pose_from_pointmap(
      maps.points_two,
      maps.confidence_two,
      fov_deg=_FOV_DEG,
      min_confidence=float(np.median(maps.confidence_two)),
      max_error_px=3.0,
    )
    still.append(_errors(camera.identity_pose(), true)[0])
    all_errors.append(
      _LOST if pose is None else _errors(pose.target2source, true)
    )
  rotation, direction = np.median(all_errors, axis=0)
  return {
    'posed': round(
      float(np.mean([errors != _LOST for errors in all_errors])), 3
    ),
    'rotation_median_deg': round(float(rotation), 2),
    'direction_median_deg': round(float(direction), 2),
    'identity_rotation_median_deg': round(float(np.median(still)), 2),
  }


def _errors(pose: np.ndarray, true: np.ndarray) -> tuple[float, float]:
  return (
    float(camera.rotation_angle_deg(pose[:, :3] @ true[:, :3].T)),
    float(camera.angle_between_deg(pose[:, 3], true[:, 3])),
  )


def main() -> None:
  """Trains and judges."""
  import torch

  torch.set_num_threads(1)
  torch.manual_seed(0)
  home = dust3r_checkout.find_home()
  module = dust3r_checkout.import_module(home, 'dust3r.model')
  model = module.AsymmetricCroCo3DStereo(
    **dust3r_checkout.parse_network(_NETWORK)
  )
  known = [make_bank(room, shift=0.0) for room in range(_ROOMS.value)]
  unseen = [make_bank(room, shift=0.5) for room in range(_ROOMS.value)]
  test = draw_pairs(unseen, _TEST_PAIRS, np.random.default_rng(1))
  before = judge(model, unseen, test)
  steps = train(home, model, known, _SECONDS.value)
  row = {
    'benchmark': 'dust3r_learns',
    'parameters': sum(item.numel() for item in model.parameters()),
    'rooms': _ROOMS.value,
    'train_cpu_s': _SECONDS.value,
    'steps': steps,
    'pairs_per_step': 2 * _BATCH_SIZE,
    'test_pairs': len(test),
    'before': before,
    'after': judge(model, unseen, test),
    'after_on_known_views': judge(model, known, test),
  }
  print(json.dumps(row), flush=True)


if __name__ == '__main__':
  command.run(main)
