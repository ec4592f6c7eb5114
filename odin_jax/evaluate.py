"""Scores a predictor on the held-out pairs of a benchmark.

  python -m odin_jax.evaluate --data=runs/demo/records --predictor=model \
      --workdir=runs/demo/train --output=runs/demo/evaluate/model
  python -m odin_jax.evaluate --protocol=zeronvs_dtu --data=rs_dtu_4/DTU \
      --predictor=copy --output=runs/dtu/copy
  python -m odin_jax.evaluate --replay=runs/dtu/copy/metrics.json \
      --output=runs/dtu/again

Every pair gets one prediction, never the best of several (those stand apart). `--predictor=copy`,
`mean` and `sweep` need no `--workdir`: they are what a model has to beat.
`--predictions=DIR` scores the pictures of another system: `pairs/` and
`metrics.json` of any run say what it is to be given.
`--shuffle_poses` gives each pair the pose of another one and leaves all else
as it was: a model that uses the pose gets worse. `--protocol` is a table of
`odin_jax.benchmarks.protocols`, or a file of that kind; what is done otherwise
is listed. `--replay` does again what another run did, and fails where the
figures are not the same.

Output: `metrics.json` (the whole protocol, mean scores, one row per pair),
`table.md` and `table.tex` (with what was published of the table's systems),
`index.html` (the same, and the pairs with their errors), and
`pairs/000_source.png`, `000_truth.png`, `000_sample.png`, ...

SIGTERM and Ctrl-C end it with status 75, and the same command goes on: what a
model has predicted is kept in `unfinished/` until the figures are written. What
another evaluation, other weights or other code left there is not taken; it is
removed, and the command says so.
"""

import sys

# As a file it finds none of the packages below.
if __name__ == '__main__' and not __package__:
  sys.stderr.write('error: type: python -m odin_jax.evaluate\n')
  sys.exit(2)

import dataclasses
import pathlib
from typing import Any

from absl import flags, logging

from odin_jax import predictors, scoring
from odin_jax.benchmarks import LAYOUTS, RECORDS, kept, protocols, request
from odin_jax.evaluating import inputs, outputs, single
from odin_jax.porting import lpips_package
from odin_jax.shared import command, digests, errors, files

_MODEL = inputs.MODEL
_CONFIG = command.define_config('configs/evaluate.py')
_BENCHMARK = flags.DEFINE_enum(
  'benchmark',
  None,
  [RECORDS, *LAYOUTS],
  f'Layout of --data; not given: that of --protocol, or {RECORDS}.',
)
_PROTOCOL = command.define_path(
  'protocol',
  f'Whose table: {", ".join(protocols.NAMES)}, or a file of that kind.',
)
_DATA = command.define_path(
  'data', 'Folder of the benchmark, e.g. the output of preprocessing.'
)
_PREDICTOR = flags.DEFINE_enum(
  'predictor',
  _MODEL,
  [_MODEL, *predictors.BASELINES],
  'model: samples of a trained model; copy: the source view itself; mean: its '
  'mean colour; sweep: the mean of the source seen at eight distances.',
)
_PREDICTIONS = command.define_path(
  'predictions',
  'Folder of predicted views, 000.png and so on, which are scored in place of '
  "a predictor's.",
)
_WORKDIR = command.define_model()
_OUTPUT = command.define_output('Folder for metrics.json and pairs/')
_SHUFFLE_POSES = flags.DEFINE_bool(
  'shuffle_poses', False, "Give each pair another pair's pose, as a control."
)
_REPLAY = command.define_path(
  'replay',
  'A metrics.json: does again what it was made by; --data, --workdir and '
  '--predictions say where things are now.',
)
flags.mark_flags_as_required(['output'])

# What a field of the config may be besides the type of its default.
_KINDS = {float: (float, int)}
# What else an evaluation is told by, which --replay has of its own.
_REPLAYED = ('benchmark', 'protocol', 'predictor', 'shuffle_poses')


# -- What is asked for ---------------------------------------------------------


def _asked() -> request.Request:
  if _DATA.value is None:
    raise errors.UserError('--data: not given; it is the folder to evaluate on')
  name = _PROTOCOL.value
  if name is None and _BENCHMARK.value in (None, RECORDS):
    name = RECORDS
  if name is None:
    raise errors.UserError(
      f'--protocol: not given; --benchmark={_BENCHMARK.value} needs one of '
      f'{", ".join(protocols.NAMES)}, or a file'
    )
  table = protocols.load(name)
  if _BENCHMARK.value not in (None, table.benchmark):
    raise errors.UserError(
      f'--benchmark={_BENCHMARK.value}: {name} is a protocol for '
      f'{table.benchmark}'
    )
  predictor = _PREDICTOR.value
  if _PREDICTIONS.value:
    is_one = _CONFIG.value.num_samples == 1
    if _SHUFFLE_POSES.value or flags.FLAGS['predictor'].present or not is_one:
      raise errors.UserError(
        '--predictions: are one per pair, and go with neither --predictor, '
        '--shuffle_poses nor --config.num_samples'
      )
    predictor = scoring.Given.name
  return request.Request(
    table=table,
    data=_DATA.value,
    predictor=predictor,
    workdir=_WORKDIR.value if predictor == _MODEL else None,
    predictions=_PREDICTIONS.value,
    shuffle_poses=_SHUFFLE_POSES.value,
    config=_CONFIG.value.to_dict(),
  )


def _asked_again(content: dict[str, Any]) -> request.Request:
  for name in flags.FLAGS:
    is_told = name in _REPLAYED or name.startswith('config.')
    if is_told and flags.FLAGS[name].present:
      raise errors.UserError(
        f'--{name}: does not go with --replay, which takes all but the folders '
        'from its file'
      )
  old = request.of_json(content['protocol'])
  # As a config has it, a whole number is a float, too.
  unlike = set(old.config) ^ set(_CONFIG.value) or {
    name
    for name, default in _CONFIG.value.items()
    if type(old.config[name]) not in _KINDS.get(type(default), (type(default),))
  }
  if unlike:
    raise errors.UserError(
      f'{_REPLAY.value}: is of another version: config.{sorted(unlike)[0]}; '
      'evaluate with the code of that time'
    )
  if old.predictor not in (_MODEL, scoring.Given.name, *predictors.BASELINES):
    raise errors.UserError(
      f'{_REPLAY.value}: is of another version: no predictor {old.predictor!r} '
      'is here; evaluate with the code of that time'
    )
  return dataclasses.replace(
    old,
    data=_DATA.value or old.data,
    workdir=_WORKDIR.value or old.workdir,
    predictions=_PREDICTIONS.value or old.predictions,
  )


# -- What came of it -----------------------------------------------------------


def _step_of(protocol: dict[str, Any]) -> str:
  """Which checkpoint it was; '' for a baseline or a ported model."""
  if not protocol.get('training_steps'):
    return ''
  return (
    f' (step {protocol["checkpoint_step"]} of {protocol["training_steps"]})'
  )


def _made(asked: request.Request, content: dict[str, Any]) -> str:
  """What was scored, and the figures."""
  mean, protocol = content['mean'], content['protocol']
  distance = 'none' if mean['lpips'] is None else f'{mean["lpips"]:.3f}'
  bounds = content['interval_95']['psnr']
  interval = '' if bounds is None else ' ({:.2f} to {:.2f})'.format(*bounds)
  return (
    f'{asked.predictor}{_step_of(protocol["model"])}'
    f'{" with shuffled poses" if asked.shuffle_poses else ""}, '
    f'{len(content["pairs"])} pairs: PSNR {mean["psnr"]:.2f} dB{interval}, '
    f'SSIM {mean["ssim"]:.3f}, LPIPS {distance}'
  )


def _finish(asked: request.Request, content: dict[str, Any]) -> None:
  protocol = content['protocol']
  if protocol['departures']:
    logging.info(
      'not the table of %s; it differs in %s: see departures in metrics.json',
      asked.table.name,
      ', '.join(row['line'] for row in protocol['departures']),
    )
  if asked.config['lpips'] and content['mean']['lpips'] is None:
    logging.warning(
      'LPIPS is null: its weights are not here; %s', lpips_package.INSTALL
    )
  then = None
  if asked.predictor == _MODEL:
    source = content['pairs'][0]['files']['source']
    given = {
      'workdir': asked.workdir,
      'image': pathlib.Path(_OUTPUT.value) / source,
      'output': command.beside(_OUTPUT.value, 'views'),
    }
    then = ('imagine more views', 'odin_jax.generate', given)
  command.finish(
    _OUTPUT.value, _made(asked, content), look_at='index.html', then=then
  )


def _compare(old: dict[str, Any], new: dict[str, Any]) -> None:
  """Says whether figures are those of another run.

  Raises:
    errors.UserError: they are not; names what is different in the protocol.
  """
  lines = request.differing_lines(old['protocol'], new['protocol'])
  protocol = f'the protocol differs in {"; ".join(lines) or "no line"}'
  figures = request.differing_figures(old, new)
  if figures:
    raise errors.UserError(
      f'{_REPLAY.value}: {len(figures)} figures are not equal, first '
      f'{figures[0]}; {protocol}'
    )
  logging.info('all figures equal those of %s; %s', _REPLAY.value, protocol)


def main() -> None:
  watch = command.Stopwatch()
  old = request.read_metrics(_REPLAY.value) if _REPLAY.value else None
  asked = _asked_again(old) if old else _asked()
  config = asked.config
  inputs.check(config)
  perceptual = single.Perceptual(
    *scoring.load_lpips(config['lpips'], asked.table, config['image_size_px'])
  )
  source = inputs.load_predictor(asked)
  data = inputs.load_pairs(asked)
  count = len(data.pair_set.facts)
  order = inputs.pose_order(asked, count)
  if source is None:
    source = scoring.Given(asked.predictions, count, config['image_size_px'])
  outputs.check_apart(
    _OUTPUT.value,
    [(flag.name, flag.value) for flag in (_REPLAY, _PREDICTIONS)],
  )
  output = outputs.begin(_OUTPUT.value)
  unfinished = output / 'unfinished'
  if asked.predictor != _MODEL:
    kept.discard(unfinished)
  else:
    source = kept.Kept(
      source,
      unfinished,
      {
        'batch_size': config['batch_size'],
        'code_sha256': digests.of_code(),
        'software': single.software(),
      },
    )
  evaluation = single.evaluate(asked, source, data, order, perceptual)
  outputs.write(output, evaluation, data.pair_set)
  files.write_json(output / 'evaluate.json', watch.figures())
  if isinstance(source, kept.Kept):
    source.forget()
  content = evaluation.content
  _finish(asked, content)
  if old:
    _compare(old, content)


if __name__ == '__main__':
  command.run(main)
