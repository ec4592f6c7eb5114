"""Which views are made when, and from which others."""

from typing import Mapping, Sequence

from jaxtyping import Float, Int
import numpy as np

from odin_jax.shared import camera

Path = Float[np.ndarray, 'n 3 4']
KINDS = ('input', 'previous', 'random', 'nearest', 'all', 'in_turn')
# Those of which a view has several.
OF_SEVERAL = ('all', 'in_turn')
MOST_IN_TURN = 4
ORDERS = ('path', 'anchors')


def order(kind: str, num_frames: int) -> dict[int, list[int]]:
  """Of each view after the first, those that exist when it is made.

  Args:
    kind: `path`: all before it. `anchors`: some are made first, spread over the
      path up to its last view; the others lie between, and see only these, so
      that mistakes do not pile up.
    num_frames: the first one included.
  """
  views = range(1, num_frames)
  if kind == 'path':
    return {view: list(range(view)) for view in views}
  # As many as lie between two of them.
  count = max(1, round(np.sqrt(num_frames - 1)))
  spread = np.round(np.linspace(0, num_frames - 1, count + 1)).astype(int)
  anchors = np.unique(spread).tolist()
  return {
    view: [anchor for anchor in anchors if anchor < view]
    if view in anchors
    else anchors
    for view in views
  }


def distances(
  camera2scene: Path, index: int, others: Sequence[int], turns_along: bool
) -> Float[np.ndarray, 'm']:
  """How far cameras are from another: a length plus an angle in radians.

  So what lies at depth 1 moves by about as much in the picture.

  Args:
    camera2scene: poses of all views.
    index: of the one.
    others: of those that are compared with it.
    turns_along: what is given (view 0) looks where that one looks, as of a
      panorama.
  """
  poses = camera2scene[list(others)]
  here = np.broadcast_to(camera2scene[index], poses.shape)
  angle = camera.rotation_angle_deg(camera.relative(poses, here)[..., :3])
  if turns_along:
    angle = np.where(np.array(others) == 0, 0.0, angle)
  return np.linalg.norm(poses[:, :, 3] - here[:, :, 3], axis=-1) + np.deg2rad(
    angle
  )


def sources(
  kind: str,
  camera2scene: Path,
  existing: Mapping[int, list[int]],
  *,
  seed: int,
  num_sources: int,
  turns_along: bool,
) -> dict[int, list[int]]:
  """Which views each view after the first is made from, by its number.

  Args:
    kind: one of `KINDS`.
    camera2scene: poses of all views.
    existing: from `order`.
    seed: of `random`.
    num_sources: the most views of `all` and `in_turn`.
    turns_along: see `distances`.
  """
  generator = np.random.default_rng(seed)

  def nearest(index: int, others: list[int], count: int) -> list[int]:
    if not others:
      return []
    away = distances(camera2scene, index, others, turns_along)
    return np.array(others)[np.argsort(away, kind='stable')[:count]].tolist()

  def several(index: int, there: list[int]) -> list[int]:
    return [0, *nearest(index, there[1:], num_sources - 1)]

  choices = {
    'input': lambda index, there: [0],
    'previous': lambda index, there: [max(x for x in there if x < index)],
    'random': lambda index, there: [there[int(generator.integers(len(there)))]],
    'nearest': lambda index, there: nearest(index, there, 1),
    **dict.fromkeys(OF_SEVERAL, several),
  }
  return {
    index: choices[kind](index, there) for index, there in existing.items()
  }


def noise_seeds(kind: str, num_frames: int, seed: int) -> Int[np.ndarray, 'n']:
  """Seed of the noise of every view; the first one's is not used.

  Args:
    kind: `own`, or `shared`: the same for all.
    num_frames: the first one included.
    seed: of all of them.
  """
  if kind == 'shared':
    return np.full(num_frames, seed)
  return np.random.default_rng(seed).integers(2**31 - 1, size=num_frames)
