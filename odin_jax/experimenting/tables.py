"""The experiments of the paper, as data.

Arguments are templates: `{value}` is the value that a cell tries, `{first}` the
first of all, `{root}` the output folder; the others are fields of `Size`.
"""

import dataclasses
import math
from typing import Callable, Mapping, NamedTuple

from odin_jax.shared import errors


@dataclasses.dataclass(frozen=True, kw_only=True)
class Size:
  """How large an experiment is.

  Attributes:
    steps: of training, the same for every cell.
    image_size_px: of all views.
    num_worlds: to train on, where their number is not what is tried.
    pairs: records of each of them.
    num_pairs: of every set that is evaluated on, at most.
  """

  steps: int
  image_size_px: int
  num_worlds: int
  pairs: int
  num_pairs: int


class Stage(NamedTuple):
  """One run of a command of this project.

  Attributes:
    folder: what it writes, below the output folder.
    module: the command.
    arguments: all but --output.
  """

  folder: str
  module: str
  arguments: tuple[str, ...]


class Experiment(NamedTuple):
  """What is varied, and by what data.

  Attributes:
    title: heading of the page.
    question: in a sentence.
    axis: what the values are.
    values: to try, unless others are given.
    read: checks a value, and gives it its one spelling.
    data: folders that are made once.
    records: the folder to train on.
    data_of_value: a folder for every value.
    sets: what every cell is evaluated on; folders of `data`.
    recipe: what is added to the recipe of training.
    training: flags of training.
    training_of: those of values that are words, in place of `training`.
    widths: channels of the model's first level; the recipe has 96.
    without_mean: values whose models give no conditional mean in one step.
  """

  title: str
  question: str
  axis: str
  values: tuple[str, ...]
  read: Callable[[str], str]
  data: tuple[Stage, ...]
  records: str
  sets: tuple[str, ...] = ('held_out', 'unseen')
  data_of_value: Stage | None = None
  recipe: str = ''
  training: tuple[str, ...] = ()
  training_of: Mapping[str, tuple[str, ...]] = {}
  widths: tuple[int, ...] = (96,)
  without_mean: tuple[str, ...] = ()


# -- Values --------------------------------------------------------------------


def _count(text: str) -> str:
  if not text.isdecimal() or int(text) < 1:
    raise errors.UserError(f'--values: {text!r} is no whole number above 0')
  return str(int(text))


def _positive(text: str) -> str:
  try:
    value = float(text)
  except ValueError:
    value = math.nan
  if not 0 < value < math.inf:
    raise errors.UserError(f'--values: {text!r} is no number above 0')
  return f'{value:g}'


def _weight(text: str) -> str:
  return text if text == 'none' else '0' if text == '0' else _positive(text)


def _prediction(text: str) -> str:
  if text not in ('v', 'eps', 'x0'):
    raise errors.UserError(f'--values: {text!r} is none of v, eps, x0')
  return text


def _parts(text: str) -> str:
  if not all(part.isidentifier() for part in text.split('+')):
    raise errors.UserError(
      f'--values: {text!r} is no conditioning; give parts joined by +, such as '
      'se3+plucker'
    )
  return text


# -- Data ----------------------------------------------------------------------

_WALK = ('--seconds=24', '--view_px={image_size_px}')
_TIME = ('--split_by=time', '--test_fraction=0.25', '--seed=0')
_WORLDS = 'preprocessing.worlds'


def _records(folder: str, worlds: str, *more: str) -> Stage:
  return Stage(
    folder,
    _WORLDS,
    (f'--num_worlds={worlds}', '--pairs={pairs}', *_WALK, *_TIME, *more),
  )


def _held_out(worlds: str, *more: str) -> Stage:
  """The same worlds with more pairs, of which the split `test` is read.

  What is held out of a world depends on its name alone, so that no frame of
  that split is in what training reads.
  """
  return Stage(
    'data/held_out',
    _WORLDS,
    (f'--num_worlds={worlds}', '--pairs=240', *_WALK, *_TIME, *more),
  )


def _unseen(*more: str) -> Stage:
  """Worlds of another seed."""
  return Stage(
    'data/unseen',
    _WORLDS,
    (
      '--num_worlds=16',
      '--pairs=8',
      *_WALK,
      '--test_fraction=1',
      '--seed=1000',
      *more,
    ),
  )


def _same_worlds(*more: str) -> tuple[Stage, ...]:
  return (
    _records('data/worlds', '{num_worlds}', *more),
    _held_out('{num_worlds}', *more),
    _unseen(*more),
  )


_MOVERS = ('--kinds=unique_room,unique_outdoor', '--movers=24')

EXPERIMENTS = {
  'fps': Experiment(
    title='Frames per second',
    question='Do records made at a higher frame rate make a better model?',
    axis='frames per second',
    values=('0.5', '1', '2'),
    read=_positive,
    data=(
      Stage(
        'data/videos',
        _WORLDS,
        ('--num_worlds={num_worlds}', '--seconds=24', '--seed=0'),
      ),
      _unseen(),
    ),
    # One of each value, so that more of them can be added.
    data_of_value=Stage(
      'data/fps_{value}',
      'preprocessing.fps_experiment',
      (
        '--input={root}/data/videos',
        '--truth={root}/data/videos',
        '--fps={value}',
        '--override=test_fraction=0.0',
      ),
    ),
    records='data/fps_{value}/fps_{value}/records',
    # A rate moves the blocks of time that are held out, so that no pair of
    # these worlds is held out at all rates.
    sets=('unseen',),
  ),
  'lambda': Experiment(
    title='Weight of the motion mask',
    question='Does a motion mask help where things move?',
    axis='lambda',
    values=('none', '0', '0.5', '1'),
    read=_weight,
    data=_same_worlds(*_MOVERS),
    records='data/worlds',
    training=('--config.diffusion.mask_lambda={value}',),
    training_of={'none': ('--config.diffusion.mask_auxiliary=none',)},
  ),
  'data_scale': Experiment(
    title='More worlds',
    question='Do more worlds make a better model, for equal steps?',
    axis='worlds',
    values=('4', '16', '64', '256'),
    read=_count,
    # All models have been trained on the first worlds, too.
    data=(_held_out('{first}'), _unseen()),
    data_of_value=_records('data/worlds_{value}', '{value}'),
    records='data/worlds_{value}',
    widths=(48, 96),
  ),
  'conditioning': Experiment(
    title='Pose conditioning',
    question='How is the pose best told to the model?',
    axis='conditioning',
    values=('se3', 'se3+plucker', 'se3+rays+sweep'),
    read=_parts,
    data=_same_worlds(),
    records='data/worlds',
    recipe=',conditioning={value}',
  ),
  'prediction': Experiment(
    title='What the network predicts',
    question='Which prediction learns fastest?',
    axis='prediction',
    values=('v', 'eps', 'x0'),
    read=_prediction,
    data=_same_worlds(),
    records='data/worlds',
    recipe=',prediction={value}',
    # Some signal is left at the noisiest step of its schedule.
    without_mean=('eps',),
  ),
}

# What is evaluated of every model, and of none.
OF_MODELS = {
  'sample': (),
  'one_step': ('--config.num_steps=1',),
  'shuffled': ('--shuffle_poses',),
}
BASELINES = ('copy', 'mean', 'sweep')


# -- Stages --------------------------------------------------------------------


def values_of(experiment: Experiment, given: list[str]) -> list[str]:
  """The values to try; numbers ascend.

  Raises:
    errors.UserError: one is bad, or comes twice.
  """
  values = [experiment.read(text) for text in given or experiment.values]
  if len(set(values)) < len(values):
    raise errors.UserError(f'--values: {",".join(values)}: one comes twice')
  if experiment.read in (_count, _positive):
    values.sort(key=float)
  return values


def _filled(stage: Stage, words: Mapping[str, object]) -> Stage:
  return Stage(
    stage.folder.format(**words),
    stage.module,
    tuple(argument.format(**words) for argument in stage.arguments),
  )


def data_stages(
  experiment: Experiment, size: Size, values: list[str], root: str
) -> list[Stage]:
  """What makes all data, in order."""
  words = {
    **dataclasses.asdict(size),
    'root': root,
    'first': values[0],
  }
  stages = [_filled(stage, words) for stage in experiment.data]
  if experiment.data_of_value:
    stages += [
      _filled(experiment.data_of_value, {**words, 'value': value})
      for value in values
    ]
  return stages


def training_stage(
  experiment: Experiment,
  size: Size,
  *,
  value: str,
  width: int,
  seed: int,
  root: str,
) -> Stage:
  """What trains a cell's model."""
  stage = Stage(
    f'training/{cell_name(value, width, seed)}',
    'odin_jax.train',
    (
      '--config=configs/train.py:world,image_size_px={image_size_px}'
      + experiment.recipe,
      '--config.steps={steps}',
      f'--config.seed={seed}',
      f'--config.model.unet.model_channels={width}',
      f'--config.model.unet.context_dim={width}',
      f'--records={{root}}/{experiment.records}',
      *experiment.training_of.get(value, experiment.training),
    ),
  )
  return _filled(
    stage, {**dataclasses.asdict(size), 'root': root, 'value': value}
  )


def evaluation_stages(
  experiment: Experiment,
  size: Size,
  name: str,
  root: str,
  *,
  value: str | None = None,
) -> dict[str, Stage]:
  """What scores a cell's model, or a baseline, by `SET/WHAT`.

  Args:
    experiment: that it is of.
    size: of the experiment.
    name: of the cell, or the baseline.
    root: the output folder.
    value: what the cell tries; None of a baseline.
  """
  if name in BASELINES:
    kinds = {name: (f'--predictor={name}',)}
  else:
    model = ('--predictor=model', f'--workdir={root}/training/{name}')
    kinds = {what: (*model, *more) for what, more in OF_MODELS.items()}
    if value in experiment.without_mean:
      del kinds['one_step']
  return {
    f'{part}/{what}': Stage(
      f'evaluation/{name}/{part}_{what}',
      'odin_jax.evaluate',
      (
        f'--data={root}/data/{part}',
        f'--config.image_size_px={size.image_size_px}',
        f'--config.num_pairs={size.num_pairs}',
        *arguments,
      ),
    )
    for part in experiment.sets
    for what, arguments in kinds.items()
  }


def cell_name(value: str, width: int, seed: int) -> str:
  """A name for files."""
  return f'{value}_width_{width}_seed_{seed}'
