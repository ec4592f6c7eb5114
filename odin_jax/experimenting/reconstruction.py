"""Reconstructions of generated views against the truth of their world.

Points of all are in the axes of the first camera and in scene units, of which
one is the median distance of what that camera sees: the poses are known, so
nothing is aligned.
"""

import pathlib
from typing import Any, Mapping, Sequence
import zipfile

from jaxtyping import Float
import numpy as np
from scipy import spatial

from odin_jax.experimenting.tables import Stage
from odin_jax.geometry import shape_metrics, stereo, view_folder
from odin_jax.shared import camera, errors

Points = Float[np.ndarray, 'n 3']
Others = Float[np.ndarray, 'm 3']

# The input and five generated views around what it looks at: a sweep needs
# cameras that move sideways.
_PATH = ('--trajectory=orbit_right', '--num_frames=6', '--step_length=0.1')
# Side of the voxels that points are thinned by, so that a surface near a camera
# counts no more than one far away; and what the F-score takes for near.
VOXEL = 0.02
THRESHOLD = 0.05
ROWS = {
  'true_views': 'true views',
  'generated_views': 'generated views',
  'one_view': 'one view, all at distance 1',
}
SCORES = (
  'chamfer',
  'accuracy',
  'completeness',
  'f_score',
  'distance_ratio',
)
# Directions that differ by less, in radians, are taken for the same.
_SAME_RAY = 0.03


def data_stages(
  root: pathlib.Path, *, num_worlds: int, seed: int, size_px: int
) -> list[Stage]:
  """Worlds, a record of each, and the pictures that paths start from."""
  return [
    Stage(
      'data',
      'preprocessing.worlds',
      (
        f'--num_worlds={num_worlds}',
        '--pairs=1',
        f'--view_px={size_px}',
        '--seconds=24',
        '--test_fraction=1',
        f'--seed={seed}',
      ),
    ),
    Stage(
      'sources',
      'odin_jax.evaluate',
      (
        f'--data={root / "data"}',
        f'--config.image_size_px={size_px}',
        f'--config.num_pairs={num_worlds}',
        '--predictor=copy',
      ),
    ),
  ]


def scene_stages(
  root: pathlib.Path,
  pair: Mapping[str, Any],
  workdir: str,
  checkpoint_step: int | None = None,
) -> list[Stage]:
  """What is generated, rendered and reconstructed of one world.

  Args:
    root: of the experiment.
    pair: whose source the path starts from, a row of an evaluation.
    workdir: of the model.
    checkpoint_step: of its checkpoint; None: the newest.
  """
  step = [] if checkpoint_step is None else [f'--step={checkpoint_step}']
  scene = f'scenes/{pair["index"]:03d}'
  generated, true = f'{scene}/generated_views', f'{scene}/true_views'
  return [
    Stage(
      generated,
      'odin_jax.generate',
      (
        f'--workdir={workdir}',
        *step,
        f'--image={root / "sources" / pair["files"]["source"]}',
        f'--fov_deg={pair["fov_deg"]}',
        # One step is about the mean of what a model imagines: such views agree.
        '--num_steps=1',
        *_PATH,
      ),
    ),
    Stage(
      true,
      'preprocessing.true_views',
      (
        f'--worlds={root / "data"}',
        f'--views={root / generated}',
        f'--evaluation={root / "sources"}',
        f'--pair={pair["index"]}',
        '--depth',
      ),
    ),
    *(
      Stage(
        f'{scene}/points_of_{pathlib.PurePath(views).name}',
        'odin_jax.reconstruct',
        (f'--views={root / views}',),
      )
      for views in (true, generated)
    ),
  ]


def true_points(folder: pathlib.Path) -> list[np.ndarray]:
  """What each view of a folder of `preprocessing.true_views --depth` sees.

  As far away as a reconstruction looks; the sky is no surface.

  Raises:
    errors.UserError: there is no depth, or it is not of these views.
  """
  views, _ = view_folder.read(folder)
  path = folder / 'depth.npz'
  try:
    with np.load(path) as content:
      depths = content['depth']
  except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
    raise errors.UserError(f'{path}: holds no true depth; {error}') from error
  if depths.shape != views.images.shape[:3]:
    raise errors.UserError(f'{path}: is not of the views of poses.json')
  rays = camera.view_rays(views.fov_deg, views.size_px)
  return [
    camera.transform(
      pose,
      (rays * depth[..., None])[depth < stereo.SWEEP.max_depth],
    )
    for pose, depth in zip(views.camera2scene, depths)
  ]


def one_view_points(fov_deg: float, size_px: int) -> Points:
  """A view alone, which has no depth: all at the median distance, which is 1.

  That distance is of the truth, as the unit of all of them is.
  """
  rays = camera.view_rays(fov_deg, size_px).reshape(-1, 3)
  return rays / np.linalg.norm(rays, axis=-1, keepdims=True)


def read_points(path: pathlib.Path) -> Points:
  """The points that `odin_jax.reconstruct` wrote."""
  # Slow to load, and for this alone.
  import trimesh

  return np.asarray(trimesh.load(path).vertices, np.float64)


def scores(predicted: Points, true: Others) -> dict[str, float]:
  """How near points are to the true ones, both thinned; scene units.

  Returns:
    accuracy: mean distance of predicted points from the nearest true one.
    completeness: of true ones from the nearest predicted one.
    chamfer: the mean of both.
    f_score: at `THRESHOLD`.
  """
  predicted, true = (
    shape_metrics.thinned(points, VOXEL) for points in (predicted, true)
  )
  of_predicted = shape_metrics.nearest(predicted, true)
  of_true = shape_metrics.nearest(true, predicted)
  accuracy, completeness = float(of_predicted.mean()), float(of_true.mean())
  return {
    'chamfer': (accuracy + completeness) / 2,
    'accuracy': accuracy,
    'completeness': completeness,
    'f_score': shape_metrics.f_score(of_predicted, of_true, THRESHOLD),
  }


def distance_ratio(predicted: Points, first_view: Others) -> float | None:
  """How far points are from the first camera, over how far the truth is there.

  Median over the points in a direction in which the first view sees a surface;
  below 1 all is too near. Stereo takes views that move too much for near ones.

  Args:
    predicted: in the axes of the first camera.
    first_view: what it truly sees.

  Returns:
    None where there is no such point.
  """
  lengths, true_lengths = (
    np.linalg.norm(points, axis=-1) for points in (predicted, first_view)
  )
  apart, ray = spatial.cKDTree(first_view / true_lengths[:, None]).query(
    predicted / lengths[:, None]
  )
  is_seen = apart < _SAME_RAY
  if not is_seen.any():
    return None
  return float(np.median(lengths[is_seen] / true_lengths[ray[is_seen]]))


def mean(scenes: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, float]]:
  """Mean scores of each row over the scenes that have points of all rows."""
  whole = [
    scene['rows']
    for scene in scenes
    if scene['rows'] and all(scene['rows'].values())
  ]
  if not whole:
    return {}
  return {
    row: {
      score: float(np.mean([rows[row][score] for rows in whole]))
      for score in SCORES
    }
    for row in ROWS
  }


def markdown(means: Mapping[str, Mapping[str, float]], num_scenes: int) -> str:
  """The table of the means."""
  lines = [
    f'| {num_scenes} scenes | Chamfer | accuracy | completeness | '
    f'F-score at {THRESHOLD} | distance / true |',
    '|---|---|---|---|---|---|',
  ]
  lines += [
    f'| {ROWS[row]} | '
    + ' | '.join(f'{values[score]:.3f}' for score in SCORES)
    + ' |'
    for row, values in means.items()
  ]
  return '\n'.join(lines) + '\n'
