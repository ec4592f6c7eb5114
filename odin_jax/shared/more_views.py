"""What else of a record folder shows the scene of a pair.

A record knows the poses of its two panoramas in their component, and where in
them its views look. So all views of a component, of whatever pairs, can be
sources of one target. Those of the target's own panorama are not given: they
would show it.
"""

import collections
from typing import Any, NamedTuple

from jaxtyping import Bool, Float
import numpy as np

from odin_jax.shared import camera, record_folder

SIDES = ('source', 'target')
# Distances at which what a target may show is looked for, scene units, and
# rays along each axis of its picture.
_DISTANCES = (0.5, 1.0, 2.0, 4.0)
_RAYS = 5
# How much less it is worth to show a point once more.
_AGAIN = 0.5
# Of a point's worth, what is lost per radian between the rays that show it:
# nearer views tell apart what is nearer, and show it from the side needed.
_PER_RADIAN = 0.5


class Place(NamedTuple):
  """Where a view stands in its record folder."""

  record: int
  side: str


class _Views(NamedTuple):
  """The views of a component, m of them.

  Attributes:
    places: in the folder.
    view2scene: [m 3 4], scene units.
    fov_deg: [m].
    time_s: [m], of their panoramas.
  """

  places: list[Place]
  view2scene: Float[np.ndarray, 'm 3 4']
  fov_deg: Float[np.ndarray, 'm']
  time_s: Float[np.ndarray, 'm']


class Neighbours:
  """Finds, for a record, views that show what its target shows.

  Args:
    records: their index is made, should there be none.
  """

  def __init__(self, records: record_folder.RecordFolder):
    rows = collections.defaultdict(list)
    self._component: list[tuple[int, int]] = []
    for index, row in enumerate(records.index().rows):
      component = int(row['video_id']), int(row['scene_id'])
      self._component.append(component)
      if row['is_read']:
        rows[component].extend(
          (Place(index, side), *_pose(row, side)) for side in SIDES
        )
    self._views = {
      component: _Views(
        [row[0] for row in of_one], *map(np.array, list(zip(*of_one))[1:])
      )
      for component, of_one in rows.items()
    }

  def are_there(self) -> bool:
    """Whether any record has a view beside its source."""
    return any(
      self.find(place.record, 1)[0]
      for views in self._views.values()
      if len(np.unique(views.time_s)) > len(SIDES)
      for place in views.places[:: len(SIDES)]
    )

  def find(
    self, index: int, count: int
  ) -> tuple[list[Place], Float[np.ndarray, 'v 3 4'], Float[np.ndarray, 'v']]:
    """Up to `count` views beside the source of a record.

    One after the other is taken that adds most to what is shown of the target:
    points on its rays at a few distances, each worth less the more views show
    it already, and the more from the side. None is of the panoramas of the
    record itself, so that source and target can be exchanged.

    Args:
      index: of the record.
      count: how many.

    Returns:
      where they are; `target2view` of each, scene units; their fields of view.
    """
    views = self._views[self._component[index]]
    own = [
      row for row, place in enumerate(views.places) if place.record == index
    ]
    source, target = own
    candidates = np.flatnonzero(~np.isin(views.time_s, views.time_s[own]))
    target2views = camera.relative(
      views.view2scene,
      np.broadcast_to(views.view2scene[target], views.view2scene.shape),
    )
    worth = _worth(target2views, views.fov_deg, views.fov_deg[target])
    covered = worth[source]
    chosen: list[int] = []
    while len(chosen) < count and len(candidates):
      gains = (worth[candidates] * _AGAIN**covered).mean(axis=-1)
      if not gains.max() > 0:
        break
      best = candidates[gains.argmax()]
      covered = covered + worth[best]
      chosen.append(best)
      # Another cut of a panorama may be the same view again.
      candidates = candidates[views.time_s[candidates] != views.time_s[best]]
    return (
      [views.places[row] for row in chosen],
      target2views[chosen],
      views.fov_deg[chosen],
    )


def _pose(
  record: Any, side: str
) -> tuple[Float[np.ndarray, '3 4'], float, float]:
  """`view2scene`, field of view and time of one view of a row of the index."""
  rotation = camera.view2frame_rotation(
    float(record[f'{side}/yaw_deg']), float(record[f'{side}/pitch_deg'])
  )
  view2scene = camera.compose(
    record[f'{side}/frame2scene'].astype(np.float64),
    camera.make_pose(rotation, np.zeros(3)),
  )
  return view2scene, float(record['fov_deg']), float(record[f'{side}/time_s'])


def _worth(
  target2views: Float[np.ndarray, 'm 3 4'],
  fov_deg: Float[np.ndarray, 'm'],
  target_fov_deg: float,
) -> Float[np.ndarray, 'm n']:
  """Of every point on the target's rays: 0 where a view does not show it."""
  rays = camera.view_rays(target_fov_deg, _RAYS).reshape(-1, 3)
  rays = rays / np.linalg.norm(rays, axis=-1, keepdims=True)
  points = np.concatenate([rays * distance for distance in _DISTANCES])
  seen = camera.transform(
    target2views, np.broadcast_to(points, (len(target2views), *points.shape))
  )
  half = np.tan(np.deg2rad(fov_deg) / 2)[:, None, None]
  shown: Bool[np.ndarray, 'm n'] = (seen[..., 2] > 0) & (
    np.abs(seen[..., :2]) <= half * seen[..., 2:]
  ).all(axis=-1)
  # Between the rays of target and view through the point.
  turned = np.tile(rays, (len(_DISTANCES), 1)) @ np.swapaxes(
    target2views[..., :3], -1, -2
  )
  angle = np.deg2rad(camera.angle_between_deg(turned, seen))
  return shown * np.maximum(1 - _PER_RADIAN * angle, 0)
