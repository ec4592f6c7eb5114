"""Which predictors and other systems an evaluation is asked for, by name."""

import os
import re
from typing import Sequence

from odin_jax import predictors
from odin_jax.evaluating import outputs
from odin_jax.shared import errors, files

# The model with one step, whatever the config says.
ONE_STEP = 'model_mean'
PREDICTORS = (predictors.Model.name, ONE_STEP, *predictors.BASELINES)
# What the folder of a system may be called, and what else lies beside it.
_NAME = r'[A-Za-z0-9][\w.+-]*'
_TAKEN = (*PREDICTORS, 'pairs', 'unfinished', *outputs.FILES)


def predictors_of(names: Sequence[str]) -> Sequence[str]:
  """The names of `--predictor`.

  Raises:
    errors.UserError: one is unknown or there twice, or there is none.
  """
  for name in names:
    if name not in PREDICTORS:
      raise errors.UserError(
        f'--predictor={name}: there are {", ".join(PREDICTORS)}'
      )
  if not names or len(set(names)) < len(names):
    raise errors.UserError(
      f'--predictor={",".join(names)}: name each that is wanted once'
    )
  return names


def predictions(texts: Sequence[str]) -> tuple[str | None, dict[str, str]]:
  """The one folder of `--predictions`, or folders by the names of systems.

  Args:
    texts: each is FOLDER, or NAME=FOLDER and more of them after commas.

  Raises:
    errors.UserError: several folders have no name, or a name is taken.
  """
  folder, named = None, {}
  for text in texts:
    # What is there goes before what looks like a name.
    if not re.match(f'{_NAME}=', text) or os.path.isdir(text):
      if folder is not None:
        raise errors.UserError(
          f'--predictions={text}: of several folders each needs a name, '
          'NAME=FOLDER'
        )
      folder = files.local_path(text)
      continue
    for part in re.split(f',(?={_NAME}=)', text):
      name, _, path = part.partition('=')
      if name in _TAKEN or name in named:
        raise errors.UserError(
          f'--predictions={part}: the name {name} is taken; give another one'
        )
      named[name] = files.local_path(path)
  if folder is not None and named:
    raise errors.UserError(
      f'--predictions={folder}: has no name, and others have; give NAME=FOLDER'
    )
  return folder, named
