"""Runs an experiment of the paper on procedural worlds, small enough for here.

    python -m odin_jax.experiments data_scale --output=runs/data_scale
    python -m odin_jax.experiments prediction --values=v,eps --seeds=0,1 \\
        --output=runs/prediction

fps, lambda, data_scale, conditioning or prediction: what each one varies, on
which worlds, stands in `odin_jax/experimenting/tables.py`. All models of one
are trained for equally many steps and scored on the same pairs, by one sample,
by the conditional mean (one step) and with shuffled poses, beside the
predictors that learn nothing.

Output: `cells/NAME.json` per model, `experiment.json`, `table.md`, and
`index.html` with a plot and what differs by more than its interval. All are
written anew after every cell. What is done is not done again: a run that was
stopped goes on, and more --values or --seeds add cells.
"""

import sys

# As a file it finds none of the packages below.
if __name__ == '__main__' and not __package__:
  sys.stderr.write('error: type: python -m odin_jax.experiments\n')
  sys.exit(2)

import itertools
import pathlib
from typing import Any

from absl import flags

from odin_jax.experimenting import comparison, experiment_page, running, tables
from odin_jax.shared import command, errors, files, provenance, quantities

_TOOL = 'odin_jax.experiments'

_EXPERIMENT = command.define_first_word(
  'experiment', tables.EXPERIMENTS, 'What to vary; may be given as first word.'
)
_OUTPUT = command.define_output()
_VALUES = flags.DEFINE_list(
  'values', [], "Values to try; default: the table's."
)
_SEEDS = flags.DEFINE_list('seeds', ['0'], 'Seeds of training, each a cell.')
_STEPS = flags.DEFINE_integer('steps', 300, 'Of training, for every cell.', 1)
_IMAGE_SIZE_PX = flags.DEFINE_integer('image_size_px', 32, 'Of views.', 32)
_NUM_WORLDS = flags.DEFINE_integer(
  'num_worlds', 4, 'Worlds to train on, but for data_scale.', 1
)
_PAIRS = flags.DEFINE_integer(
  'pairs', 200, 'Records of each world, but for fps; of data_scale 24.', 8
)
_NUM_PAIRS = flags.DEFINE_integer('num_pairs', 128, 'Pairs to score on.', 2)


# Not those of the flag: 256 worlds of 200 records take hours.
_PAIRS_OF_MANY_WORLDS = 24


def _size(name: str) -> tables.Size:
  """How large the experiment is.

  Raises:
    errors.UserError: a flag was given that would change nothing.
  """
  for flag, other in ((_NUM_WORLDS, 'data_scale'), (_PAIRS, 'fps')):
    if name == other and flag.present:
      raise errors.UserError(
        f'--{flag.name}: changes nothing in {name}; leave it out'
      )
  pairs = _PAIRS.value
  if name == 'data_scale' and not _PAIRS.present:
    pairs = _PAIRS_OF_MANY_WORLDS
  return tables.Size(
    steps=_STEPS.value,
    image_size_px=_IMAGE_SIZE_PX.value,
    num_worlds=_NUM_WORLDS.value,
    pairs=pairs,
    num_pairs=_NUM_PAIRS.value,
  )


def _seeds() -> list[int]:
  if not _SEEDS.value or not all(text.isdecimal() for text in _SEEDS.value):
    raise errors.UserError(
      f'--seeds={",".join(_SEEDS.value)}: give whole numbers'
    )
  return sorted({int(text) for text in _SEEDS.value})


def _metrics(folder: pathlib.Path) -> dict[str, Any]:
  """What an evaluation that is done has written."""
  try:
    return files.read_json(
      folder / 'metrics.json', 'an evaluation', ['protocol', 'pairs']
    )
  except errors.UserError as error:
    raise errors.UserError(
      f'{error}: remove {folder}, and the same command makes it again'
    ) from error


def _check_experiment(output: pathlib.Path, name: str) -> None:
  """Refuses the folder of another experiment, whose cells would be mixed."""
  earlier = running.earlier_run(output / 'experiment.json', ['experiment'])
  if earlier and earlier['experiment'] != name:
    raise errors.UserError(
      f'{output}: holds the experiment {earlier["experiment"]}; give another '
      '--output'
    )


def _scores(
  experiment: tables.Experiment,
  size: tables.Size,
  name: str,
  output: pathlib.Path,
  value: str | None = None,
) -> dict[str, Any]:
  """The evaluations of a model or a baseline, and its number of parameters."""
  stages = tables.evaluation_stages(
    experiment, size, name, str(output), value=value
  )
  evaluations, parameters = {}, None
  for key, stage in stages.items():
    running.run(stage, output)
    metrics = _metrics(output / stage.folder)
    parameters = metrics['protocol']['model'].get('parameters')
    evaluations[key] = {
      'data_sha256': metrics['protocol']['data_sha256'],
      'scenes': [
        f'{pair["video_id"]}/{pair["scene_id"]}' for pair in metrics['pairs']
      ],
      **{
        score: [pair[score] for pair in metrics['pairs']]
        for score in quantities.SCORES
      },
    }
  return {'parameters': parameters, 'evaluations': evaluations}


def _cell(
  experiment: tables.Experiment,
  size: tables.Size,
  output: pathlib.Path,
  *,
  value: str,
  width: int,
  seed: int,
) -> dict[str, Any]:
  """Trains and scores a model; what its file holds."""
  name = tables.cell_name(value, width, seed)
  stage = tables.training_stage(
    experiment, size, value=value, width=width, seed=seed, root=str(output)
  )
  note = running.run(stage, output)
  return _written(
    output,
    name,
    {
      'value': value,
      'width': width,
      'seed': seed,
      'training': note,
      **_scores(experiment, size, name, output, value),
    },
  )


def _written(
  output: pathlib.Path, name: str, cell: dict[str, Any]
) -> dict[str, Any]:
  """Writes a cell's file, unless the same figures are there already."""
  path = output / 'cells' / f'{name}.json'
  if earlier := running.earlier_run(path, ['code_commit']):
    if {**earlier, 'code_commit': None} == {**cell, 'code_commit': None}:
      return earlier
  cell = {**cell, 'code_commit': provenance.commit()}
  files.write_json(path, cell)
  return cell


def _write(
  name: str, output: pathlib.Path, cells: list[dict[str, Any]], num_cells: int
) -> None:
  """Writes what is known so far."""
  experiment = tables.EXPERIMENTS[name]
  found = comparison.findings(experiment.axis, cells, num_cells)
  with files.atomic_path(output / 'index.html') as temporary:
    temporary.write_text(experiment_page.render(experiment, cells, found))
  with files.atomic_path(output / 'table.md') as temporary:
    temporary.write_text(experiment_page.markdown(experiment, cells, found))
  files.write_json(
    output / 'experiment.json',
    {
      'experiment': name,
      'models': num_cells,
      'rows': comparison.rows(cells),
      'findings': [finding.text for finding in found],
    },
  )


def main() -> None:
  """Makes the data, then cell by cell."""
  name = _EXPERIMENT.value
  if not name:
    raise errors.UserError(
      f'which experiment? give one of {", ".join(tables.EXPERIMENTS)}'
    )
  if not _OUTPUT.value:
    raise errors.UserError('--output is missing; give a folder to write')
  experiment = tables.EXPERIMENTS[name]
  size, seeds = _size(name), _seeds()
  values = tables.values_of(experiment, _VALUES.value)
  output = files.claim_output(_OUTPUT.value, _TOOL).resolve()
  _check_experiment(output, name)
  (output / 'cells').mkdir(exist_ok=True)
  for stage in tables.data_stages(experiment, size, values, str(output)):
    running.run(stage, output)
  planned = list(itertools.product(seeds, experiment.widths, values))
  baselines = [
    _written(
      output,
      baseline,
      {
        'value': baseline,
        'width': None,
        'seed': None,
        **_scores(experiment, size, baseline, output),
      },
    )
    for baseline in tables.BASELINES
  ]
  models: list[dict[str, Any]] = []
  for seed, width, value in planned:
    models.append(
      _cell(experiment, size, output, value=value, width=width, seed=seed)
    )
    _write(name, output, [*models, *baselines], len(planned))
  given = {
    'workdir': output / 'training' / tables.cell_name(*planned[-1][::-1]),
    'image': 'photo.jpg',
    'output': command.beside(output, 'views'),
  }
  command.finish(
    _OUTPUT.value,
    f'{len(models)} models of {len(values)} values',
    look_at='index.html',
    then=('look through the last one', 'odin_jax.generate', given),
  )


if __name__ == '__main__':
  command.run(main)
