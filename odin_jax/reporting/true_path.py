"""The imagined views of a path beside the true ones, where there are any.

`preprocessing.true_views` renders them for procedural worlds; a real video has
none, for its frames lie elsewhere.
"""

import pathlib
from typing import Any, NamedTuple

from jaxtyping import UInt8
import numpy as np

from odin_jax.shared import digests, errors, files, psnr, user_images


class Views(NamedTuple):
  """The views of a path.

  Attributes:
    imagined: in order, the given one first.
    true: of the same poses; None from where the path runs into a surface on.
    metres_per_scene_unit: of the world.
  """

  imagined: list[UInt8[np.ndarray, 's s 3']]
  true: list[UInt8[np.ndarray, 's s 3'] | None]
  metres_per_scene_unit: float


def read(generated: pathlib.Path, truth: pathlib.Path) -> Views:
  """Both.

  Args:
    generated: what `odin_jax.generate` wrote.
    truth: what `preprocessing.true_views` wrote for it.

  Raises:
    errors.UserError: there is no truth, or it is of other views, or damaged.
  """
  content = files.read_json(
    truth / 'truth.json',
    'the truth',
    ('views_sha256', 'frames', 'metres_per_scene_unit'),
  )
  poses = files.read_json(
    generated / 'poses.json', 'the poses of the views', ('frames',)
  )
  imagined = [
    user_images.read(generated / view['file'], 'a generated view')
    for view in poses['frames']
  ]
  if digests.of_views(generated, imagined[0]) != content['views_sha256']:
    raise errors.UserError(
      f'{truth}: is the truth of other views than those in {generated}; run '
      'preprocessing.true_views again'
    )
  try:
    names = [view['file'] for view in content['frames']]
    is_whole = all(name is None or isinstance(name, str) for name in names)
    unit_m = float(content['metres_per_scene_unit'])
  except (KeyError, TypeError, ValueError):
    is_whole = False
  if not is_whole:
    raise errors.UserError(
      f'{truth / "truth.json"}: damaged; run preprocessing.true_views again'
    )
  true = [
    None if name is None else user_images.read(truth / name, 'a true view')
    for name in names
  ]
  shapes = {image.shape for image in imagined + true if image is not None}
  if len(true) != len(imagined) or len(shapes) > 1:
    raise errors.UserError(
      f'{truth}: has not the number or the size of the views in {generated}; '
      'run preprocessing.true_views again'
    )
  return Views(imagined, true, unit_m)


def likeness(views: Views) -> dict[str, Any]:
  """How near the imagined views come to the truth.

  Returns:
    per view, the given one left out, `psnr` of what was imagined and
    `psnr_of_first`, of the given image in its place, None from where the path
    runs into a surface on; their means `mean_psnr`, `mean_psnr_of_first`, None
    without any; and `metres_per_scene_unit`.
  """
  own: list[float | None] = []
  unmoved: list[float | None] = []
  for image, true in list(zip(*views[:2], strict=True))[1:]:
    is_known = true is not None
    own.append(psnr.psnr_db(image, true) if is_known else None)
    unmoved.append(psnr.psnr_db(views.imagined[0], true) if is_known else None)
  known = [place for place, value in enumerate(own) if value is not None]

  def mean(values: list[Any]) -> float | None:
    return float(np.mean([values[place] for place in known])) if known else None

  return {
    'psnr': own,
    'psnr_of_first': unmoved,
    'mean_psnr': mean(own),
    'mean_psnr_of_first': mean(unmoved),
    'metres_per_scene_unit': views.metres_per_scene_unit,
  }


def figures(generated: pathlib.Path, truth: pathlib.Path) -> dict[str, Any]:
  """That of `read`; {} where there is no truth.

  Raises:
    errors.UserError: the truth is of other views.
  """
  if not (truth / 'truth.json').is_file():
    return {}
  return likeness(read(generated, truth))
