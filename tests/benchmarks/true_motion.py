"""Procedural pairs full of things that move, and their true motion.

By rays through the target view, a pixel is

  mover      if it shows a thing that was elsewhere at the source's time: by
             more than a pixel, as seen from the target;
  uncovered  if it shows a static place that such a thing hid from the source;
  unseen     if static otherwise, and outside the source view or hidden there;
  seen       else.

The first two cannot be known from source and pose because something moved: they
are the true motion.
"""

import dataclasses
import functools
import pathlib
import subprocess
import sys
from typing import Any, Mapping

import cv2
from einops import reduce
from jaxtyping import Bool, Float, Int, UInt8
import numpy as np

from odin_jax.benchmarks import pairs
from odin_jax.shared import camera, command
from preprocessing.procedural import footage, raycaster, rendering, scenes
from preprocessing.views import alignment

KINDS = ('seen', 'unseen', 'uncovered', 'mover')
_WORLDS, _SEED, _KIND, _MOVERS = 4, 7, 'unique_outdoor', 24
_SECONDS, _PAIRS_PER_WORLD, _VIEW_PX, FOV_DEG = 24.0, 400, 64, 90.0
_RAYS_PER_PX = 2
# A hit nearer than this share of the way to a point hides it.
_NEARER = 0.98
# Grey levels between a record's view and the same view cast again.
_MAX_ERROR = 6.0


def make_records(folder: pathlib.Path) -> None:
  """Pairs of worlds with movers, those of training and those held out."""
  arguments = [
    sys.executable,
    '-m',
    'preprocessing.worlds',
    f'--output={folder}',
    f'--num_worlds={_WORLDS}',
    f'--kinds={_KIND}',
    f'--movers={_MOVERS}',
    f'--seed={_SEED}',
    f'--seconds={_SECONDS}',
    f'--pairs={_PAIRS_PER_WORLD}',
    f'--view_px={_VIEW_PX}',
    f'--fov_deg={FOV_DEG}',
    '--split_by=time',
    '--test_fraction=0.2',
  ]
  subprocess.run(arguments, check=True, cwd=command.REPOSITORY)


@functools.cache
def _world(index: int) -> scenes.World:
  """A world of the records."""
  view_px = _VIEW_PX * rendering.supersampling(_VIEW_PX)
  return footage.make_world(
    [_KIND],
    index,
    seed=_SEED,
    seconds=_SECONDS,
    px_per_rad=float(camera.intrinsics(FOV_DEG, view_px)[0, 0]),
    movers=_MOVERS,
  )


def _ray_kinds(
  facts: Mapping[str, Any], target: UInt8[np.ndarray, 's s 3']
) -> Int[np.ndarray, 'r r']:
  """Index into KINDS of every ray through the target view.

  Raises:
    ValueError: the record does not show what the world looks like.
  """
  world = _world(int(facts['video_id'].split('_')[1]))
  _check_view(world, facts, target)
  size_px = len(target)
  times_s = [facts[f'{side}_time_s'] for side in ('source', 'target')]
  shift_m = np.array(
    [
      np.linalg.norm(np.subtract(*map(body.centre_at, times_s)))
      for body in world.scene.bodies
    ]
  ).repeat(6)
  focal_px = camera.intrinsics(FOV_DEG, size_px)[0, 0]

  # -- What the target shows --------------------------------------------------
  view2world = _view2world(world, facts, 'target')
  rays = camera.view_rays(FOV_DEG, size_px * _RAYS_PER_PX)
  rays /= np.linalg.norm(rays, axis=-1, keepdims=True)
  rays = raycaster.rotate(view2world[:, :3], rays.astype(np.float32))
  hits = world.scene.cast(view2world[:, 3], rays, times_s[1])
  points = view2world[:, 3] + rays.astype(np.float64) * hits.distance[..., None]
  is_mover = shift_m[hits.surface] / hits.distance * focal_px > 1

  # -- What the source sees of it ---------------------------------------------
  view2world = _view2world(world, facts, 'source')
  local = camera.transform(camera.inverse(view2world), points)
  reach = np.tan(np.deg2rad(FOV_DEG / 2)) * local[..., 2:]
  inside = np.all(np.abs(local[..., :2]) < reach, axis=-1)
  towards = points - view2world[:, 3]
  away = np.linalg.norm(towards, axis=-1)
  towards = (towards / away[..., None]).astype(np.float32)
  between = world.scene.cast(view2world[:, 3], towards, times_s[0])
  hidden = between.distance < _NEARER * away
  by_mover = shift_m[between.surface] / away * focal_px > 1
  return np.select(
    [is_mover, inside & hidden & by_mover, ~inside | hidden],
    [3, 2, 1],
    default=0,
  )


def _view2world(
  world: scenes.World, facts: Mapping[str, Any], side: str
) -> np.ndarray:
  frame2world = world.walk.frame2world(facts[f'{side}_time_s'])
  turn = camera.view2frame_rotation(
    facts[f'{side}_yaw_deg'], facts[f'{side}_pitch_deg']
  )
  return camera.make_pose(frame2world[:, :3] @ turn, frame2world[:, 3])


def _check_view(
  world: scenes.World,
  facts: Mapping[str, Any],
  target: UInt8[np.ndarray, 's s 3'],
) -> None:
  shown = rendering.render_view(
    world,
    facts['target_time_s'],
    alignment.Angles(facts['target_yaw_deg'], facts['target_pitch_deg']),
    fov_deg=FOV_DEG,
    size_px=_VIEW_PX,
  )
  size = target.shape[:2]
  shown = cv2.resize(shown, size, interpolation=cv2.INTER_AREA)
  error = np.abs(shown.astype(float) - target).mean()
  if error > _MAX_ERROR:
    raise ValueError(f'{facts["video_id"]}: another world (error {error:.1f})')


@dataclasses.dataclass(frozen=True)
class Truth:
  """Shares of KINDS, last axis, in the pixels and cells of the target views."""

  pixels: Float[np.ndarray, 'pairs s s kinds']
  cells: Float[np.ndarray, 'pairs n n kinds']

  @property
  def moving(self) -> Bool[np.ndarray, 'pairs n n']:
    """Cells that move."""
    return self.cells[..., 2:].sum(-1) >= 0.5


def find_truth(pair_set: pairs.PairSet, size_px: int, cells: int) -> Truth:
  """What moves in the target views."""
  kinds = np.stack(
    [
      _ray_kinds(facts, target)
      for facts, target in zip(
        pair_set.facts, pair_set.pairs.target, strict=True
      )
    ]
  )
  rays = np.eye(len(KINDS))[kinds]
  pixels, grid = (
    reduce(rays, 'b (i y) (j x) k -> b i j k', 'mean', i=n, j=n)
    for n in (size_px, cells)
  )
  return Truth(pixels, grid)


def target2source_m(facts: Mapping[str, Any]) -> Float[np.ndarray, '3 4']:
  """The exact relative pose of a record, metres."""
  world = _world(int(facts['video_id'].split('_')[1]))
  source, target = (
    _view2world(world, facts, side) for side in ('source', 'target')
  )
  return camera.relative(source, target)


def target_depth_m(
  facts: Mapping[str, Any], size_px: int
) -> Float[np.ndarray, 's s']:
  """Of what the target view shows, along its axis at pixel centres."""
  world = _world(int(facts['video_id'].split('_')[1]))
  view2world = _view2world(world, facts, 'target')
  rays = camera.view_rays(FOV_DEG, size_px)
  lengths = np.linalg.norm(rays, axis=-1)
  turned = raycaster.rotate(
    view2world[:, :3], (rays / lengths[..., None]).astype(np.float32)
  )
  hits = world.scene.cast(view2world[:, 3], turned, facts['target_time_s'])
  return hits.distance / lengths


def detection(
  score: Float[np.ndarray, '*shape'],
  moving: Bool[np.ndarray, '*shape'],
  threshold: float | None,
) -> dict[str, float]:
  """How well cells with a high score are those that move."""
  order = np.argsort(-score, axis=None, kind='stable')
  truth, ranked = moving.ravel()[order], score.ravel()[order]
  hits, total = np.cumsum(truth), truth.sum()
  called = np.arange(1, len(truth) + 1)
  iou = hits / (called + total - hits)
  best = int(np.argmax(iou))
  figures = {
    'best_iou': round(float(iou[best]), 3),
    'best_threshold': round(float(ranked[best]), 3),
    'average_precision': round(float(np.sum(hits / called * truth) / total), 3),
  }
  if threshold is not None:
    fixed = int((ranked > threshold).sum())
    figures['iou'] = round(float(iou[fixed - 1]), 3) if fixed else 0.0
  return figures
