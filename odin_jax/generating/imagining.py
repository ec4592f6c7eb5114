"""The views along paths, each from views that exist already."""

import dataclasses
from typing import Callable, Mapping, Sequence

from jaxtyping import Float, Int, UInt8
import numpy as np

from odin_jax import predictors
from odin_jax.generating import given
from odin_jax.shared import camera, posed_pair, progress

View = UInt8[np.ndarray, 's s 3']


@dataclasses.dataclass(frozen=True, kw_only=True)
class Walk:
  """One image and one path from it.

  Attributes:
    start: what is given, which is view 0 wherever it is a source.
    camera2scene: poses of all views.
    sources: of each view after the first, see `order.sources`.
    seeds: of the noise of each view.
  """

  start: given.Given
  camera2scene: Float[np.ndarray, 'n 3 4']
  sources: Mapping[int, list[int]]
  seeds: Int[np.ndarray, 'n']


class _Views:
  """The views of a walk that exist by now.

  Args:
    walk: of them.
    size_px: their side.
    most_sources: of any view.
  """

  def __init__(self, walk: Walk, size_px: int, most_sources: int):
    self._walk = walk
    self._size_px = size_px
    self._num_more = most_sources - 1
    self._view_of_given = walk.start.views(size_px)
    self.frames = {0: self._view_of_given(walk.camera2scene[0])[0]}

  def ready(self) -> list[int]:
    """The views that do not exist, but all their sources do."""
    return [
      index
      for index, sources in self._walk.sources.items()
      if index not in self.frames and self.frames.keys() >= {*sources}
    ]

  def _view(self, number: int, target: int) -> tuple[View, given.Pose]:
    poses = self._walk.camera2scene
    if number == 0:
      return self._view_of_given(poses[target])
    return self.frames[number], poses[number]

  def pair(self, index: int) -> posed_pair.PosedPair:
    """What view `index` is made from."""
    sources, fov_deg = self._walk.sources[index], self._walk.start.fov_deg
    images, poses = zip(*(self._view(number, index) for number in sources))
    poses = np.stack(poses)
    target = np.broadcast_to(self._walk.camera2scene[index], poses.shape)
    poses = camera.relative(poses, target)
    return posed_pair.PosedPair(
      source=images[0],
      target=None,
      target2source=poses[0],
      fov_deg=np.float64(fov_deg),
      # The given image's median depth is the unit; that of others depends on
      # what was imagined.
      median_depth=np.float64(sources[0] == 0),
      more=posed_pair.more_views(
        images=images[1:],
        target2view=list(poses[1:]),
        fov_deg=[fov_deg] * self._num_more,
        depths=[None] * self._num_more,
        count=self._num_more,
        image_px=self._size_px,
        depth_px=None,
      )
      if self._num_more
      else None,
    )


def _nobody(number: int, index: int, view: View) -> None:
  """Looks at no view."""


def imagine(
  predictor: predictors.Predictor,
  walks: Sequence[Walk],
  most_sources: int,
  *,
  at_once: int | None = None,
  show: Callable[[int, int, View], None] = _nobody,
) -> list[UInt8[np.ndarray, 'n s s 3']]:
  """The views at all poses of each walk; the first is what is given.

  Views whose sources exist are made together, those of all walks in one batch,
  which the devices share.

  Args:
    predictor: the model.
    walks: images and the paths from them; none makes a difference to another.
    most_sources: of any view; the model gets so many, some not there, so that
      one shape is compiled.
    at_once: most views of one request; None: all whose sources exist.
    show: is given each view as soon as it exists: the number of its walk, that
      of the view, and the view.
  """
  of_walks = [
    _Views(walk, predictor.image_size_px, most_sources) for walk in walks
  ]
  for number, views in enumerate(of_walks):
    show(number, 0, views.frames[0])
  total = sum(len(walk.sources) for walk in walks)
  with progress.bar(total, 'view', desc='generate') as bar:
    while ready := [
      (number, index)
      for number, views in enumerate(of_walks)
      for index in views.ready()
    ][:at_once]:
      samples = predictor.predict(
        posed_pair.stack(
          [of_walks[number].pair(index) for number, index in ready]
        ),
        np.array([walks[number].seeds[index] for number, index in ready]),
      )
      samples = np.round(np.clip(samples, 0, 1) * 255).astype(np.uint8)
      for (number, index), sample in zip(ready, samples, strict=True):
        of_walks[number].frames[index] = sample
        show(number, index, sample)
      bar.update(len(ready))
  return [
    np.stack([views.frames[index] for index in range(len(views.frames))])
    for views in of_walks
  ]
