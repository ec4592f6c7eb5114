"""The views along a path, each from views that exist already."""

from typing import Mapping

from jaxtyping import Float, Int, UInt8
import numpy as np

from odin_jax import predictors
from odin_jax.generating import given
from odin_jax.shared import camera, posed_pair, progress


def imagine(
  predictor: predictors.Predictor,
  start: given.Given,
  camera2scene: Float[np.ndarray, 'n 3 4'],
  sources: Mapping[int, list[int]],
  seeds: Int[np.ndarray, 'n'],
  most_sources: int,
) -> UInt8[np.ndarray, 'n s s 3']:
  """The views at all poses; the first is what is given.

  Views whose sources exist are made together, in one batch.

  Args:
    predictor: the model.
    start: what is given, which is view 0 wherever it is a source.
    camera2scene: poses of all views.
    sources: of each view after the first, see `order.sources`.
    seeds: of the noise of each view.
    most_sources: of any view; the model gets so many, some not there, so that
      one shape is compiled.
  """
  size = predictor.image_size_px
  view_of_given = start.views(size)
  frames = {0: view_of_given(camera2scene[0])[0]}

  def view(number: int, target: int) -> tuple[np.ndarray, np.ndarray]:
    if number == 0:
      return view_of_given(camera2scene[target])
    return frames[number], camera2scene[number]

  def pair(index: int) -> posed_pair.PosedPair:
    images, poses = zip(*(view(number, index) for number in sources[index]))
    poses = np.stack(poses)
    target = np.broadcast_to(camera2scene[index], poses.shape)
    poses = camera.relative(poses, target)
    return posed_pair.PosedPair(
      source=images[0],
      target=None,
      target2source=poses[0],
      fov_deg=np.float64(start.fov_deg),
      # The given image's median depth is the unit; that of others depends on
      # what was imagined.
      median_depth=np.float64(sources[index][0] == 0),
      more=posed_pair.more_views(
        images=images[1:],
        target2view=list(poses[1:]),
        fov_deg=[start.fov_deg] * (most_sources - 1),
        depths=[None] * (most_sources - 1),
        count=most_sources - 1,
        image_px=size,
        depth_px=None,
      )
      if most_sources > 1
      else None,
    )

  with progress.bar(len(sources), 'view', desc='generate') as bar:
    while waiting := [index for index in sources if index not in frames]:
      ready = [index for index in waiting if frames.keys() >= {*sources[index]}]
      pairs = posed_pair.stack([pair(index) for index in ready])
      samples = predictor.predict(pairs, seeds[ready])
      samples = np.round(np.clip(samples, 0, 1) * 255).astype(np.uint8)
      frames.update(zip(ready, samples))
      bar.update(len(ready))
  return np.stack([frames[index] for index in range(len(frames))])
