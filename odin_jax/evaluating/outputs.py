"""The folder that an evaluation leaves: figures, tables, page and pictures."""

import pathlib
import shutil
from typing import Any, Callable, Collection, Sequence

from absl import logging

from odin_jax import predictors, scoring
from odin_jax.benchmarks import kept, request, tables
from odin_jax.benchmarks.pairs import PairSet
from odin_jax.evaluating import inputs, single
from odin_jax.reporting import evaluation_page, joint_page
from odin_jax.shared import errors, files, image_files

# Of several predictors: which have a folder beside it.
_PREDICTORS = '.odin_predictors.json'
TOOL = 'odin_jax.evaluate'
# What lies beside the folders of several predictors.
FILES = (
  'metrics.json',
  'table.md',
  'table.tex',
  'index.html',
  'evaluate.json',
)


def check_apart(output: str, read: Sequence[tuple[str, str | None]]) -> None:
  """Refuses an output folder that holds what is read.

  Args:
    output: the folder.
    read: names of flags, and the paths that they give.

  Raises:
    errors.UserError: such a path lies in it, and would be removed.
  """
  target = pathlib.Path(output).resolve()
  for name, path in read:
    if path and target in (
      pathlib.Path(path).resolve(),
      *pathlib.Path(path).resolve().parents,
    ):
      raise errors.UserError(
        f'--output={output}: holds what --{name} names, which would be '
        'removed; give another folder'
      )


def begin(output: str | pathlib.Path) -> pathlib.Path:
  """The output folder without the results of an earlier run of this tool."""
  folder = _cleared(output, ())
  (folder / _PREDICTORS).unlink(missing_ok=True)
  (folder / 'pairs').mkdir(exist_ok=True)
  for image in (folder / 'pairs').glob('*.png'):
    image.unlink()
  return folder


def begin_joint(
  output: str | pathlib.Path, names: Collection[str]
) -> dict[str, pathlib.Path]:
  """The same for several predictors: the folder of each, in that of all.

  What predictors have left here that are not among them is removed.
  """
  folder = _cleared(output, names)
  # Of one predictor that was evaluated here before.
  shutil.rmtree(folder / 'pairs', ignore_errors=True)
  kept.discard(folder / 'unfinished')
  files.write_json(folder / _PREDICTORS, {'names': list(names)})
  return {name: begin(folder / name) for name in names}


def _cleared(
  output: str | pathlib.Path, names: Collection[str]
) -> pathlib.Path:
  """A folder without figures, and without predictors but those named."""
  folder = files.claim_output(output, TOOL)
  _remove_files(folder)
  note = folder / _PREDICTORS
  if note.is_file():
    earlier = files.read_json(note, 'names of predictors', ['names'])
    for name in sorted(set(earlier['names']) - set(names)):
      _remove(folder / name)
  return folder


def _remove(folder: pathlib.Path) -> None:
  """Removes what a predictor left that is not evaluated any more."""
  if (folder / files.MARKER).is_file():
    # Not what another process, or another command, writes there.
    shutil.rmtree(files.claim_output(folder, TOOL))
    logging.info('%s: of an earlier evaluation here; removed', folder)


def store(
  folder: pathlib.Path,
  asked: request.Request,
  source: predictors.Predictor | scoring.Given,
) -> kept.Kept | None:
  """Where the batches of a model are kept; None where nothing is worth it."""
  unfinished = folder / 'unfinished'
  if asked.predictor != inputs.MODEL:
    kept.discard(unfinished)
    return None
  return kept.Kept(unfinished, single.decisive(asked, source))


def _remove_files(folder: pathlib.Path) -> None:
  for name in FILES:
    (folder / name).unlink(missing_ok=True)


def write(
  folder: pathlib.Path, evaluation: single.Evaluation, pair_set: PairSet
) -> None:
  """Writes all but the time that it took, the pictures first."""
  content, pairs = evaluation.content, pair_set.pairs
  images = scoring.as_pictures(evaluation.samples)
  views = dict(
    zip(single.VIEWS, (pairs.source, pairs.target, images), strict=True)
  )
  for row in content['pairs']:
    for name, file in row['files'].items():
      image_files.write(folder / file, views[name][row['index']])
  _write_figures(folder, content, evaluation_page.render)


def write_joint(folder: pathlib.Path, content: dict[str, Any]) -> None:
  """Writes the figures of several predictors, whose folders are written."""
  _write_figures(folder, content, joint_page.render)


def _write_figures(
  folder: pathlib.Path,
  content: dict[str, Any],
  render: Callable[[pathlib.Path, dict[str, Any]], str],
) -> None:
  files.write_json(folder / 'metrics.json', content)
  for name, text in (('md', tables.markdown), ('tex', tables.latex)):
    with files.atomic_path(folder / f'table.{name}') as temporary:
      temporary.write_text(text(content))
  with files.atomic_path(folder / 'index.html') as temporary:
    temporary.write_text(render(folder, content))
