"""Posed views of the scenes of a protocol -> posed pairs to score.

Predictors take one square view of a centred pinhole camera and give another.
So the largest such view that all pictures of a scene contain is cut, around
each principal point, with square pixels; and of several sources, the source of
each target is the one whose camera is nearest. The others are given, too, to
those who can use them.
"""

import dataclasses
import functools
import json
import os
import pathlib
from typing import Any, Callable, Mapping

from jaxtyping import Float, UInt8
import numpy as np
from PIL import Image

from odin_jax.benchmarks import focus, gso, pairs, posed_views, protocols
from odin_jax.shared import camera, errors, files, posed_pair

Read = Callable[[str | os.PathLike[str]], posed_views.PosedViews]
Depths = Float[np.ndarray, 's s']

_FILTERS = {
  'area': Image.Resampling.BOX,
  'lanczos': Image.Resampling.LANCZOS,
}
POLICIES = ('fixed', 'resolved')
_NEAREST = 'the one whose camera is nearest to the target'


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Scene:
  """A scene and what the protocol says of it.

  Attributes:
    name: of its folder.
    place: of its name in the protocol; None where it is not listed.
    views: all of them.
    folder: where they are.
  """

  name: str
  place: int | None
  views: posed_views.PosedViews
  folder: pathlib.Path


def posed_pairs(
  folder: str | os.PathLike[str],
  read: Read,
  protocol: protocols.Protocol,
  *,
  image_size_px: int,
  scale: str,
  num_sources: int,
) -> pairs.PairSet:
  """The pairs of a protocol, cut from the scenes of a folder.

  Args:
    folder: of one scene, or of all scenes of the protocol by their names.
    read: of a scene's folder, and of `protocol` where views are rendered.
    protocol: which pairs.
    image_size_px: side of the views.
    scale: unit of translations: 'fixed' as the protocol has it; 'resolved':
      the source's `median_depth` is 1; '' as the protocol says, where
      'searched' starts from 'resolved'.
    num_sources: of a target; 0: the fewest that the protocol has.

  Raises:
    errors.UserError: a scene or a source is missing, a folder is malformed, or
      a scale is asked for that is not known.
  """
  policy = scale or protocol.scale.get('policy', 'resolved')
  policy = 'resolved' if policy == 'searched' else policy
  if policy not in POLICIES:
    raise errors.UserError(
      f'scale={scale}: there are {", ".join(POLICIES)}, or nothing for the '
      "protocol's"
    )
  if protocol.rendering:
    # The cameras stand in the protocol.
    read = functools.partial(read, protocol=protocol)
  resample = _FILTERS[_filter(protocol)]
  scenes = _scenes(pathlib.Path(folder), read, protocol)
  chosen, facts, absent = [], [], {}
  surfaces: list[tuple[Depths | None, Depths | None, float]] = []
  for scene in scenes:
    sources, targets, missing = _choose(scene, protocol, num_sources)
    if missing:
      absent[scene.name] = missing
    fov_deg = min(view.square_fov_deg for view in scene.views.views)
    pictures: dict[int, UInt8[np.ndarray, 's s 3']] = {}
    depths: dict[int, Depths | None] = {}
    for target in targets:
      source, *others = sorted(
        sources,
        key=lambda view: np.linalg.norm(
          view.camera2scene[:, 3] - target.camera2scene[:, 3]
        ),
      )
      for view in (source, *others, target):
        if view.number not in pictures:
          pictures[view.number] = _cut(view, fov_deg, image_size_px, resample)
          depths[view.number] = view.depths(fov_deg, image_size_px)
      unit = _unit(scene, source, protocol, policy, fov_deg)
      target2source = camera.relative(source.camera2scene, target.camera2scene)
      target2source[:, 3] /= unit
      chosen.append(
        posed_pair.PosedPair(
          source=pictures[source.number],
          target=pictures[target.number],
          target2source=target2source,
          fov_deg=np.float64(fov_deg),
          median_depth=np.float64((source.median_depth(fov_deg) or 0) / unit),
          more=_more(others, target, pictures, unit, fov_deg),
        )
      )
      surfaces.append((depths[source.number], depths[target.number], unit))
      facts.append(
        {
          'scene': scene.name,
          'source_view': source.name,
          'target_view': target.name,
          'unit': float(unit),
          'fov_deg': fov_deg,
          'rotation_deg': float(
            camera.rotation_angle_deg(target2source[:, :3])
          ),
          'translation': float(np.linalg.norm(target2source[:, 3])),
          **{f'source_{name}': x for name, x in source.facts.items()},
          **{f'target_{name}': x for name, x in target.facts.items()},
        }
      )
  most = max(
    1 + len(pair.more.is_there if pair.more else ()) for pair in chosen
  )
  return pairs.PairSet(
    pairs=posed_pair.stack(posed_pair.alike(chosen)),
    facts=facts,
    protocol={
      'scenes': [scene.name for scene in scenes],
      'layouts': sorted({scene.views.layout for scene in scenes}),
      'num_pairs': len(chosen),
      'absent_views': absent,
      'views': {
        line: value
        for scene in scenes
        for line, value in scene.views.here.items()
      },
      'scale': policy,
      'filter': _filter(protocol),
      'crop': 'the largest square around the principal point that all views of '
      'a scene have',
      'source': f'of several, {_NEAREST}; the others are given beside it',
      'num_sources': most,
    },
    truth=_truth(surfaces),
  )


def _more(
  others: list[posed_views.PosedView],
  target: posed_views.PosedView,
  pictures: Mapping[int, UInt8[np.ndarray, 's s 3']],
  unit: float,
  fov_deg: float,
) -> posed_pair.MoreViews | None:
  """The sources beside the first; None where there are none."""
  if not others:
    return None
  poses = [
    camera.relative(view.camera2scene, target.camera2scene) for view in others
  ]
  return posed_pair.MoreViews(
    image=np.stack([pictures[view.number] for view in others]),
    target2view=np.stack([camera.rescale(pose, 1 / unit) for pose in poses]),
    fov_deg=np.full(len(others), fov_deg),
    is_there=np.ones(len(others), bool),
  )


def _truth(
  surfaces: list[tuple[Depths | None, Depths | None, float]],
) -> pairs.PairTruth | None:
  """Of the depths of each pair's source and target, and its unit.

  None where one of them is not known. Scenes stand still.
  """
  of_source, of_target, units = zip(*surfaces)
  if any(depths is None for depths in of_source + of_target):
    return None
  source, target = (
    (np.stack(views) / np.reshape(units, (-1, 1, 1))).astype(np.float32)
    for views in (of_source, of_target)
  )
  return pairs.PairTruth(source, target, np.zeros(target.shape, bool))


def done_here(
  protocol: protocols.Protocol,
  pair_set: pairs.PairSet,
  *,
  image_size_px: int,
  num_sources: int,
) -> dict[str, Any]:
  """What was done, by lines of a protocol, for `protocols.departures`."""
  here = {
    'scenes': pair_set.protocol['scenes'],
    'image.size_px': [image_size_px, image_size_px],
    'image.crop': 'square',
    'scale.policy': pair_set.protocol['scale'],
  }
  here['image.filter'] = pair_set.protocol['filter']
  if pair_set.protocol['absent_views']:
    line = 'views.targets' if 'targets' in protocol.views else 'views.count'
    here[line] = {'absent': pair_set.protocol['absent_views']}
  here |= pair_set.protocol['views']
  if 'source_is_scored' in protocol.views:
    here['views.source_is_scored'] = False
  sources = protocol.views.get('sources')
  if sources and len(sources[_row(protocol, num_sources)]) > 1:
    here['views.sources'] = f'of each target, {_NEAREST}'
  if 'look_at_order' in protocol.views:
    if not set(here['scenes']) <= set(protocol.scenes):
      here['views.look_at_order'] = [0] * len(here['scenes'])
  return here


def _filter(protocol: protocols.Protocol) -> str:
  """How pictures are made smaller: as the table does, if it does."""
  name = protocol.image.get('filter')
  return name if name in _FILTERS else 'area'


def scene_folders(
  folder: str | os.PathLike[str], protocol: protocols.Protocol
) -> list[pathlib.Path]:
  """Of the scenes of the protocol, or the one scene that the folder is.

  Raises:
    errors.UserError: there is no such folder, or some of the scenes are missing.
  """
  folder = pathlib.Path(folder)
  files.require_folder(folder, f'the scenes of {protocol.name}')
  names = list(protocol.scenes)
  there = [name for name in names if (folder / name).is_dir()]
  if there and len(there) < len(names):
    missing = ', '.join(name for name in names if name not in there)
    raise errors.UserError(
      f'{folder}: lacks {missing}, of {protocol.name}; copy them, or give one '
      'scene alone'
    )
  if not there and protocol.benchmark == 'gso':
    # Any objects will do, which is then told as a departure.
    there = gso.object_folders(folder)
  elif not there and not names:
    there = sorted(
      path.parent.name for path in folder.glob('*/transforms.json')
    )
  return [folder / name for name in there] or [folder]


def _scenes(
  folder: pathlib.Path, read: Read, protocol: protocols.Protocol
) -> list[_Scene]:
  """The scenes of the protocol, or the one that the folder is."""
  names = list(protocol.scenes)
  scenes = [
    _Scene(
      name=path.resolve().name,
      place=names.index(path.name) if path.name in names else None,
      views=read(path),
      folder=path,
    )
    for path in scene_folders(folder, protocol)
  ]
  for scene in scenes:
    _check_poses(scene)
  return scenes


def _check_poses(scene: _Scene) -> None:
  """Raises where all poses are the same, as of a scene that was not solved."""
  poses = np.stack([view.camera2scene for view in scene.views.views])
  if len(poses) > 1 and np.ptp(poses, axis=0).max() == 0:
    raise errors.UserError(
      f'{scene.folder}: all {len(poses)} views have the same pose; solve for '
      'their poses first'
    )


def _row(protocol: protocols.Protocol, num_sources: int) -> int:
  """Which set of sources."""
  counts = [len(numbers) for numbers in protocol.views['sources']]
  if num_sources and num_sources not in counts:
    raise errors.UserError(
      f'num_sources={num_sources}: {protocol.name} has '
      f'{", ".join(map(str, counts))}'
    )
  return counts.index(num_sources) if num_sources else 0


def _choose(
  scene: _Scene, protocol: protocols.Protocol, num_sources: int
) -> tuple[list[posed_views.PosedView], list[posed_views.PosedView], list[int]]:
  """Sources, targets, and the numbers of targets that are not there."""
  views = scene.views
  numbers = [view.number for view in views.views]
  if 'split' in protocol.views:
    split = _split(scene.folder / protocol.views['split'], len(numbers))
    sources, wanted = split['train_ids'], split['test_ids']
  elif 'look_at_order' in protocol.views:
    order = focus.look_at_order(
      np.stack([view.camera2scene for view in views.views])
    )
    place = 0
    if scene.place is not None:
      place = protocol.views['look_at_order'][scene.place]
    if place >= len(order):
      raise errors.UserError(
        f'{scene.folder}: has {len(order)} views, and the source is that of '
        f'place {place}; copy all of them'
      )
    sources, wanted = [numbers[order[place]]], numbers
  else:
    sources = protocol.views['sources'][_row(protocol, num_sources)]
    wanted = protocol.views.get('targets')
    wanted = wanted or range(protocol.views.get('count', len(numbers)))
  out = {*sources, *protocol.views.get('excluded', ())}
  targets = [number for number in wanted if number not in out]
  present = [number for number in targets if number in numbers]
  if not present:
    raise errors.UserError(f'{scene.folder}: has no target of {protocol.name}')
  return (
    [views.numbered(number) for number in sources],
    [views.numbered(number) for number in present],
    [number for number in targets if number not in numbers],
  )


def _split(path: pathlib.Path, count: int) -> Mapping[str, list[int]]:
  files.require_file(path, 'the split into sources and targets')
  try:
    split = json.loads(path.read_text())
    places = [*split['train_ids'], *split['test_ids']]
    is_split = (
      split['train_ids']
      and all(type(i) is int and 0 <= i < count for i in places)
      and len(set(places)) == len(places)
    )
  except (ValueError, KeyError, TypeError):
    is_split = False
  if not is_split:
    raise errors.UserError(
      f'{path}: needs "train_ids" and "test_ids", different places among '
      f'{count} views'
    )
  return split


def _unit(
  scene: _Scene,
  source: posed_views.PosedView,
  protocol: protocols.Protocol,
  policy: str,
  fov_deg: float,
) -> float:
  """What translations of the scene are divided by."""
  if policy == 'resolved':
    depth = source.median_depth(fov_deg)
    if depth is None or not depth > 0:
      raise errors.UserError(
        f'{scene.folder}: nothing tells how far away what {source.name} sees '
        'is, so no scale can be resolved'
      )
    return depth
  if scene.place is None or 'divisors' not in protocol.scale:
    raise errors.UserError(
      f'{scene.folder}: {protocol.name} fixes no scale for it; '
      '--config.scale=resolved takes the depth of what the source sees'
    )
  unit = protocol.scale['divisors'][scene.place]
  if protocol.scale.get('unit') == 'focus':
    poses = np.stack([view.camera2scene for view in scene.views.views])
    unit *= focus.mean_distance(poses)
  return unit


def _cut(
  view: posed_views.PosedView,
  fov_deg: float,
  size_px: int,
  resample: Image.Resampling,
) -> UInt8[np.ndarray, 's s 3']:
  """The square view around the principal point."""
  k = view.intrinsics
  half = np.diag(k)[:2] * np.tan(np.deg2rad(fov_deg) / 2)
  # Rounding may lead a hair out of the picture.
  low = np.maximum(k[:2, 2] - half, 0)
  high = np.minimum(k[:2, 2] + half, view.size)
  if (high - low).min() < size_px:
    raise errors.UserError(
      f'{view.path}: its square has {int((high - low).min())} px, less than the '
      f'{size_px} px asked for; lower the image size'
    )
  image = Image.fromarray(view.read())
  return np.asarray(
    image.resize((size_px, size_px), resample, box=(*low, *high))
  )
