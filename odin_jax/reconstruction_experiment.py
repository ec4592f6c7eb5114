"""The paper's third experiment: 3D of generated views against the truth.

    python -m odin_jax.reconstruction_experiment --workdir=pretrained \\
        --output=runs/reconstruction

Of each of some procedural worlds that the model has not seen (another --seed
than that of its training): a view, five generated ones around what it looks at,
points of the six by `odin_jax.reconstruct`, and their Chamfer distance and
F-score against the points that the true views see; beside them the points of
the true views at the same poses, and those of the first view alone, all at the
median distance, since one view tells no depth. Poses and unit are known:
nothing is aligned. Distances are in scene units, of which one is that median
distance. A scene whose path runs into a surface is counted, not scored; so is
one whose views give no points.

Output: `metrics.json`, with the scores of each scene, `table.md`, and in
`scenes/000/` the views and the points. A run that was stopped goes on.
"""

import sys

# As a file it finds none of the packages below.
if __name__ == '__main__' and not __package__:
  sys.stderr.write(
    'error: type: python -m odin_jax.reconstruction_experiment\n'
  )
  sys.exit(2)

import pathlib
from typing import Any

from absl import flags
import numpy as np

from odin_jax.experimenting import reconstruction, running
from odin_jax.shared import command, errors, files, provenance, workdirs

_TOOL = 'odin_jax.reconstruction_experiment'
_WORKDIR = command.define_model()
_CHECKPOINT_STEP = command.define_checkpoint_step()
_OUTPUT = command.define_output('Folder for metrics.json, table.md and scenes/')
_NUM_WORLDS = flags.DEFINE_integer(
  'num_worlds', 4, 'Worlds, of each a scene; their kinds take turns.', 1
)
_SEED = flags.DEFINE_integer(
  'seed', 1000, 'Of the worlds; of none that the model was trained on.', 0
)
_IMAGE_SIZE_PX = flags.DEFINE_integer(
  'image_size_px', 128, 'Of the views that paths start from.', 32, 1024
)
flags.mark_flags_as_required(['workdir', 'output'])


def _rows(scene: pathlib.Path) -> dict[str, dict[str, float] | None] | None:
  """Scores of each row; None of a row without points.

  None of a scene of which the truth does not show every view.
  """
  truth = files.read_json(scene / 'true_views/truth.json', 'truth', ('frames',))
  if not all(frame['file'] for frame in truth['frames']):
    return None
  of_views = reconstruction.true_points(scene / 'true_views')

  def scored(points: reconstruction.Points) -> dict[str, float] | None:
    ratio = reconstruction.distance_ratio(points, of_views[0])
    if ratio is None:
      return None
    return {
      **reconstruction.scores(points, np.concatenate(of_views)),
      'distance_ratio': ratio,
    }

  poses = files.read_json(
    scene / 'true_views/poses.json', 'poses', ('fov_deg', 'width')
  )
  rows: dict[str, dict[str, float] | None] = {}
  for name in ('true_views', 'generated_views'):
    folder = scene / f'points_of_{name}'
    made = files.read_json(
      folder / 'reconstruction.json', 'a reconstruction', ('points',)
    )
    rows[name] = None
    if made['points']:
      points = reconstruction.read_points(folder / 'points.ply')
      rows[name] = scored(points)
  alone = reconstruction.one_view_points(poses['fov_deg'], poses['width'])
  rows['one_view'] = scored(alone)
  return rows


def _check_seed(folder: pathlib.Path) -> None:
  """Refuses worlds that the model is known to have been trained on.

  Raises:
    errors.UserError: they are, or there is no such checkpoint.
  """
  # Here, for a command reads its flags before what is slow to load.
  import jax

  from odin_jax.checkpoints import checkpoint, pretrained

  # The stages need the accelerator, which one process at a time can have.
  jax.config.update('jax_platforms', 'cpu')
  checkpoints, _, config = checkpoint.open_step(folder, _CHECKPOINT_STEP.value)
  checkpoints.close()
  if _SEED.value in pretrained.seeds(folder, config):
    raise errors.UserError(
      f'--seed={_SEED.value}: the checkpoint that comes with the project, which '
      f'{_WORKDIR.value} is or started from, was trained on worlds of this '
      'seed; give another one'
    )


def main() -> None:
  """Makes worlds and views, and scores what is reconstructed of them."""
  workdir = _WORKDIR.value
  asked = _CHECKPOINT_STEP.value
  folder = workdirs.require(workdir, 'a training run', asked)
  _check_seed(folder)
  if not workdirs.is_pretrained(workdir):
    # The stages run in the repository.
    workdir = str(folder.resolve())
  output = files.claim_output(_OUTPUT.value, _TOOL).resolve()
  for stage in reconstruction.data_stages(
    output,
    num_worlds=_NUM_WORLDS.value,
    seed=_SEED.value,
    size_px=_IMAGE_SIZE_PX.value,
  ):
    running.run(stage, output)
  pairs = files.read_json(
    output / 'sources' / 'metrics.json', 'an evaluation', ('pairs',)
  )['pairs']
  scenes: list[dict[str, Any]] = []
  for pair in pairs:
    for stage in reconstruction.scene_stages(output, pair, workdir, asked):
      running.run(stage, output)
    rows = _rows(output / 'scenes' / f'{pair["index"]:03d}')
    scenes.append({'video_id': pair['video_id'], 'rows': rows})
  means = reconstruction.mean(scenes)
  scored = sum(
    bool(scene['rows']) and all(scene['rows'].values()) for scene in scenes
  )
  files.write_json(
    output / 'metrics.json',
    {
      'workdir': workdir,
      'checkpoint_step': asked,
      'unit': 'median distance of what the first view sees',
      'alignment': 'none: the poses are known',
      'voxel': reconstruction.VOXEL,
      'threshold': reconstruction.THRESHOLD,
      'mean': means,
      'num_scored': scored,
      'scenes': scenes,
      'code_commit': provenance.commit(),
    },
  )
  if not scored:
    raise errors.UserError(
      f'{output}: none of {len(scenes)} scenes has points of all views along a '
      'free path; give more --num_worlds or another --seed, and another --output'
    )
  with files.atomic_path(output / 'table.md') as temporary:
    temporary.write_text(reconstruction.markdown(means, scored))
  command.finish(
    _OUTPUT.value,
    f'{scored} of {len(scenes)} scenes scored; Chamfer distance '
    + ', '.join(
      f'{means[row]["chamfer"]:.3f} of {words}'
      for row, words in reconstruction.ROWS.items()
    ),
    look_at='table.md',
  )


if __name__ == '__main__':
  command.run(main)
