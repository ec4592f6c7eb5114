"""The imagined views of a path beside the true ones, where there are any.

`preprocessing.true_views` renders them for procedural worlds; a real video has
none, for its frames lie elsewhere.
"""

import pathlib
from typing import Any

import numpy as np

from odin_jax.shared import digests, errors, files, psnr, user_images


def figures(generated: pathlib.Path, truth: pathlib.Path) -> dict[str, Any]:
  """How near the imagined views come to the truth.

  Args:
    generated: what `odin_jax.generate` wrote.
    truth: what `preprocessing.true_views` wrote for it; may be absent.

  Returns:
    {} without a truth; else per view, the given one left out, `psnr` of what
    was imagined and `psnr_of_first`, of the given image in its place, None
    from where the path runs into a surface on; their means `mean_psnr`,
    `mean_psnr_of_first`, None without any; and `metres_per_scene_unit`.

  Raises:
    errors.UserError: the truth is of other views.
  """
  note = truth / 'truth.json'
  if not note.is_file():
    return {}
  content = files.read_json(
    note, 'the truth', ('views_sha256', 'frames', 'metres_per_scene_unit')
  )
  poses = files.read_json(
    generated / 'poses.json', 'the poses of the views', ('frames',)
  )
  names = [view['file'] for view in poses['frames']]
  first = user_images.read(generated / names[0], 'a generated view')
  own: list[float | None] = []
  unmoved: list[float | None] = []
  if digests.of_views(generated, first) != content['views_sha256']:
    raise errors.UserError(
      f'{truth}: is the truth of other views than those in {generated}; run '
      'preprocessing.true_views again'
    )
  for name, view in list(zip(names, content['frames'], strict=True))[1:]:
    if view['file'] is None:
      own.append(None)
      unmoved.append(None)
    else:
      true = user_images.read(truth / view['file'], 'a true view')
      image = user_images.read(generated / name, 'a generated view')
      own.append(psnr.psnr_db(image, true))
      unmoved.append(psnr.psnr_db(first, true))
  known = [place for place, value in enumerate(own) if value is not None]

  def mean(values: list[Any]) -> float | None:
    return float(np.mean([values[place] for place in known])) if known else None

  return {
    'psnr': own,
    'psnr_of_first': unmoved,
    'mean_psnr': mean(own),
    'mean_psnr_of_first': mean(unmoved),
    'metres_per_scene_unit': content['metres_per_scene_unit'],
  }
