"""The figures of a run, from the files that its stages left."""

import pathlib
from typing import Any

import numpy as np

from odin_jax.reporting import true_path, verdict
from odin_jax.shared import errors, files, page, quantities, world_names

# Folders under `evaluate` and `evaluate_unseen` as launch/demo.sh names them:
# the model, what it has to beat, and the model with poses shuffled.
MODEL, BASELINES, SHUFFLED = 'model', ('copy', 'mean'), 'shuffled'
UNSEEN = '_unseen'
_EVALUATIONS = (MODEL, *BASELINES, SHUFFLED)
# About the model's conditional mean, that of the model that its training started
# from, and that of the same training from nothing; what pose and geometry alone
# give, also where the true depth is known: rows of the table that no gain is
# measured by.
_FURTHER = ('model_mean', 'pretrained', 'without_pretraining', 'sweep', 'warp')
# Scores that there are where the true depth of the pairs is known.
MASKED = ('psnr_seen', 'psnr_unseen')


_STAGE = 'a finished stage of the run'


def read_json(path: pathlib.Path, *keys: str) -> dict[str, Any]:
  """A JSON file with these keys.

  Raises:
    errors.UserError: there is none, or it is damaged.
  """
  return files.read_json(path, _STAGE, keys)


def read_rows(path: pathlib.Path, *keys: str) -> list[dict[str, Any]]:
  """The rows of a file with one JSON object, with these keys, per line.

  Raises:
    errors.UserError: there is none, or it is damaged.
  """
  return files.read_json_lines(path, _STAGE, keys)


def _evaluations(run: pathlib.Path) -> dict[str, dict[str, Any]]:
  """Mean metrics by evaluation: `model`, `copy`, `mean`, `shuffled`, ...

  Whatever else was evaluated there is left alone.
  """
  found = {}
  for suffix in ('', UNSEEN):
    for name in (*_EVALUATIONS, *_FURTHER):
      path = run / f'evaluate{suffix}' / name / 'metrics.json'
      if path.is_file():
        content = read_json(path, 'mean', 'pairs', 'protocol')
        found[name + suffix] = {
          **content['mean'],
          # Of an older version there is none.
          'interval_95': content.get('interval_95', {}),
          'pairs': len(content['pairs']),
          'data_sha256': content['protocol'].get('data_sha256'),
        }
  return found


def missing(run: pathlib.Path) -> list[str]:
  """Folders that a run has not and the demo makes, which the page leaves out.

  Of a video there is no truth and no unseen world; only a run that compares has
  a training from nothing.
  """
  is_of_worlds = (run / 'worlds' / world_names.NOTE).is_file()
  rows = {*_EVALUATIONS, *_FURTHER} - (set() if is_of_worlds else {'warp'})
  if not (run / 'train_without_pretraining').is_dir():
    rows -= {'without_pretraining'}
  suffixes = ('', UNSEEN) if is_of_worlds else ('',)
  sets = {f'evaluate{suffix}': rows for suffix in suffixes}
  sets['consistency'] = {'generate', 'truth'} if is_of_worlds else {'generate'}
  absent = [] if (run / 'truth').is_dir() or not is_of_worlds else ['truth']
  for folder, names in sets.items():
    there = {name for name in names if (run / folder / name).is_dir()}
    if there:
      absent += sorted(f'{folder}/{name}' for name in names - there)
    else:
      absent.append(folder)
  return absent


def _consistency(run: pathlib.Path) -> dict[str, dict[str, Any]]:
  """`tsed` and `pairs` by which views they are of: `generate`, `truth`."""
  figures = {}
  for path in sorted((run / 'consistency').glob('*/consistency.json')):
    content = read_json(path, 'tsed', 'loop_psnr', 'pairs')
    counted = [row['consistent'] is not None for row in content['pairs']]
    figures[path.parent.name] = {
      'tsed': content['tsed'],
      'loop_psnr': content['loop_psnr'],
      'pairs': sum(counted),
    }
  return figures


def _gains(
  evaluations: dict[str, dict[str, Any]], suffix: str = ''
) -> dict[str, Any]:
  """What the model wins over the trivial predictors, and what poses are worth.

  Args:
    evaluations: mean metrics by name.
    suffix: of the names, which is that of their folder, such as `_unseen`.

  Raises:
    errors.UserError: they are of different pairs.
  """
  rows = {
    name: evaluations[name + suffix]
    for name in (*_EVALUATIONS, *_FURTHER)
    if name + suffix in evaluations
  }
  if not rows.keys() >= set(_EVALUATIONS):
    return {}
  for name, row in rows.items():
    if row['data_sha256'] != rows[MODEL]['data_sha256']:
      raise errors.UserError(
        f'evaluate{suffix}/{name}: is of other pairs than '
        f'evaluate{suffix}/{MODEL}; evaluate both again on the same --data'
      )
  scores = {
    score: {name: row[score] for name, row in rows.items()}
    for score in quantities.SCORES
  }
  masked = {
    score: {name: row.get(score) for name, row in rows.items()}
    for score in MASKED
    if score in rows[MODEL]
  }
  psnr, ssim = scores['psnr'], scores['ssim']
  return {
    'pairs': rows[MODEL]['pairs'],
    **scores,
    **masked,
    'interval_95': {
      score: {name: row['interval_95'].get(score) for name, row in rows.items()}
      for score in quantities.SCORES
    },
    'gain_db': psnr[MODEL] - max(psnr[name] for name in BASELINES),
    'ssim_gain': ssim[MODEL] - max(ssim[name] for name in BASELINES),
    'shuffle_drop_db': psnr[MODEL] - psnr[SHUFFLED],
  }


def _checkpoint(
  protocol: dict[str, Any], trained_steps: int
) -> dict[str, int | None]:
  """Which checkpoint was evaluated.

  Args:
    protocol: of the evaluated model.
    trained_steps: the last step that training noted.

  Returns:
    `step`, and `steps` of a training that is finished; both None where the
    evaluation is of no training.
  """
  step, steps = protocol.get('checkpoint_step'), protocol.get('training_steps')
  if not step or not steps:
    return {'step': None, 'steps': None}
  return {'step': step, 'steps': max(steps, trained_steps)}


def score_texts(gains: dict[str, Any], name: str) -> list[str]:
  """The scores of an evaluation with their intervals, as text.

  Args:
    gains: `train` of the summary, or its `unseen`.
    name: of the evaluation, such as `model`.
  """
  return [
    quantities.with_interval(
      score, gains[score][name], gains['interval_95'][score][name]
    )
    for score in quantities.SCORES
  ]


def step_text(checkpoint: dict[str, Any]) -> str:
  """`step N of M`, and a warning where these are not the same."""
  if checkpoint['step'] is None:
    return 'step unknown'
  text = f'step {checkpoint["step"]} of {checkpoint["steps"]}'
  if checkpoint['step'] < checkpoint['steps']:
    text += ', not the last: finish the training, then evaluate again'
  return text


def summarise(run: pathlib.Path) -> dict[str, Any]:
  """The contents of summary.json.

  Raises:
    errors.UserError: a stage has left no figures, or damaged ones.
  """
  audit = read_json(run / 'audit' / 'audit.json')
  of_audit = audit.pop('verdict', [])
  rows = read_rows(run / 'train' / 'metrics.jsonl', 'step', 'loss', 'mask_mean')
  evaluation = read_json(run / 'evaluate' / MODEL / 'metrics.json', 'protocol')
  protocol = evaluation['protocol'].get('model', {})
  evaluations = _evaluations(run)
  tenth = max(1, len(rows) // 10)
  loss = np.array([row['loss'] for row in rows])
  stages = read_rows(run / 'stages.jsonl', 'stage', 'seconds', 'peak_rss_mb')
  figures = {
    **audit,
    'train': {
      'steps': rows[-1]['step'],
      'checkpoint': _checkpoint(protocol, rows[-1]['step']),
      'parameters': protocol.get('parameters'),
      'image_size_px': protocol.get('image_size_px'),
      'started_from': protocol.get('started_from'),
      'loss_first': float(loss[:tenth].mean()),
      'loss_last': float(loss[-tenth:].mean()),
      'mask_mean': rows[-1]['mask_mean'],
      **_gains(evaluations),
      'unseen': _gains(evaluations, UNSEEN),
    },
    'path': true_path.figures(run / 'generate', run / 'truth'),
    'consistency': _consistency(run),
    'reconstruct': read_json(
      run / 'reconstruct' / 'reconstruction.json', 'points', 'coverage'
    ),
    'software': evaluation['protocol'].get('software', {}),
    'seconds': {row['stage']: row['seconds'] for row in stages},
    'peak_rss_mb': {row['stage']: row['peak_rss_mb'] for row in stages},
  }
  findings = page.verdict(verdict.findings(figures))
  # The first of the audit's, which says how good the poses are.
  return {
    'verdict': findings + of_audit[:1],
    'missing': missing(run),
    **figures,
  }
