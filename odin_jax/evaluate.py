"""Scores predictors on the held-out pairs of a benchmark.

  python -m odin_jax.evaluate --data=runs/demo/records --predictor=model \
      --workdir=runs/demo/train --output=runs/demo/evaluate/model
  python -m odin_jax.evaluate --protocol=zeronvs_dtu --data=rs_dtu_4/DTU \
      --predictor=copy --output=runs/dtu/copy
  python -m odin_jax.evaluate --replay=runs/dtu/copy/metrics.json \
      --output=runs/dtu/again
  python -m odin_jax.evaluate --data=runs/demo/records --workdir=runs/demo/train \
      --predictor=model,model_mean,copy,mean,sweep --predictions=OTHER=DIR \
      --output=runs/demo/all

Every pair gets one prediction, never the best of several (those stand apart).
`--predictor=copy`, `mean` and `sweep` need no `--workdir`: they are what a
model has to beat. `model_mean` is the model with one step, about its
conditional mean (not of one that predicts eps). `--truth` is what `preprocessing.true_depth` wrote of the
records: then PSNR is also measured on what the source sees and on what it does
not, on what stands still and on what moves; and `--predictor=warp` is what pure
geometry gives. `--predictions=DIR` scores the pictures of another system:
`pairs/` and `metrics.json` of any run say what it is to be given. Several of
them, and `--predictions=NAME=DIR`, are scored side by side on the same pairs.
`--shuffle_poses` gives each pair the pose of another one and leaves all else
as it was: a model that uses the pose gets worse. `--protocol` is a table of
`odin_jax.benchmarks.protocols`, or a file of that kind; what is done otherwise
is listed. `--replay` does again what another run did, and fails where the
figures are not the same.

Output: `metrics.json` (the whole protocol, mean scores, one row per pair),
`table.md` and `table.tex` (with what was published of the table's systems),
`index.html` (the same, and the pairs with their errors), and
`pairs/000_source.png`, `000_truth.png`, `000_sample.png`, ... Of several, each
has all that in a folder of its name, and beside these folders the same files
have all rows, each predictor's difference from the first of them, and the views
of all side by side.

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
from typing import Any, Mapping, NamedTuple

from absl import flags, logging
from jaxtyping import Int
import numpy as np

from odin_jax import distribution_distance, hosts, predictors, scoring
from odin_jax.benchmarks import LAYOUTS, RECORDS, protocols, request, tables
from odin_jax.evaluating import (
  inputs,
  joint,
  naming,
  outputs,
  single,
  words,
)
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
_PREDICTOR = flags.DEFINE_list(
  'predictor',
  [_MODEL],
  'model: samples of a trained model; model_mean: the same with one step; copy: '
  'the source view itself; mean: its mean colour; sweep: the mean of the source '
  'seen at eight distances; warp: the source warped by --truth; or several of '
  'them.',
)
_TRUTH = command.define_path(
  'truth', 'Folder that preprocessing.true_depth wrote, of these records.'
)
_PREDICTIONS = flags.DEFINE_multi_string(
  'predictions',
  None,
  'Folder of predicted views, 000.png and so on, which are scored in place of '
  "a predictor's; or NAME=FOLDER, also several, beside the predictors.",
)
_FEATURES = command.define_path(
  'features',
  'FILE.py:FUNCTION, a function of uint8 pictures [n s s 3] that gives floats '
  '[n d], by which FID and KID are measured.',
)
_WORKDIR = command.define_model()
_CHECKPOINT_STEP = command.define_checkpoint_step()
_OUTPUT = command.define_output('Folder for metrics.json and pairs/')
_SHUFFLE_POSES = flags.DEFINE_bool(
  'shuffle_poses', False, "Give each pair another pair's pose, as a control."
)
_REPLAY = command.define_path(
  'replay',
  'A metrics.json: does again what it was made by; --data, --workdir, '
  '--predictions, --truth and --features say where things are now.',
)
_HOSTS = hosts.define()
flags.mark_flags_as_required(['output'])

# What a field of the config may be besides the type of its default.
_KINDS = {float: (float, int)}
# What else an evaluation is told by, which --replay has of its own.
_REPLAYED = (
  'benchmark',
  'protocol',
  'predictor',
  'shuffle_poses',
  'step',
)


# -- What is asked for ---------------------------------------------------------


def _table() -> protocols.Protocol:
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
  return table


def _check_predictions(is_alone: bool) -> None:
  """Refuses what pictures that are made already cannot be asked for."""
  is_one = _CONFIG.value.num_samples == 1 or not is_alone
  if (
    _SHUFFLE_POSES.value
    or not is_one
    or (is_alone and flags.FLAGS['predictor'].present)
  ):
    raise errors.UserError(
      '--predictions: are one per pair, and go with neither --shuffle_poses '
      'nor, without a name, --predictor or --config.num_samples'
    )


def _asked() -> dict[str, request.Request]:
  """What is asked for, by the name of each predictor."""
  if _DATA.value is None:
    raise errors.UserError('--data: not given; it is the folder to evaluate on')
  table = _table()
  folder, named = naming.predictions(_PREDICTIONS.value or [])
  names = naming.predictors_of(_PREDICTOR.value)
  if folder or named:
    _check_predictions(is_alone=bool(folder))
    if not flags.FLAGS['predictor'].present:
      names = []
  given = command.given_fields(_CONFIG.value)
  config = request.follow(_CONFIG.value.to_dict(), table, given)
  if (
    'guidance' not in given
    and config['guidance'] != _CONFIG.value.guidance
    and not inputs.is_guided(_WORKDIR.value, _CHECKPOINT_STEP.value)
  ):
    # Told by the departures.
    config['guidance'] = _CONFIG.value.guidance

  def ask(predictor: str, **changes: Any) -> request.Request:
    return request.Request(
      table=table,
      data=_DATA.value,
      predictor=predictor,
      workdir=_WORKDIR.value if predictor == _MODEL else None,
      predictions=changes.pop('predictions', None),
      shuffle_poses=_SHUFFLE_POSES.value,
      config={**config, **changes},
      truth=_TRUTH.value,
      features=_FEATURES.value,
      checkpoint_step=_CHECKPOINT_STEP.value if predictor == _MODEL else None,
    )

  if folder:
    return {scoring.Given.name: ask(scoring.Given.name, predictions=folder)}
  # Side by side, only what draws samples has several of them.
  one = {'num_samples': 1} if len(names) + len(named) > 1 or named else {}
  asked = {}
  for name in names:
    if name == naming.ONE_STEP:
      asked[name] = ask(_MODEL, num_steps=1, **one)
    else:
      asked[name] = ask(name, **({} if name == _MODEL else one))
  for name, path in named.items():
    asked[name] = ask(scoring.Given.name, predictions=path, **one)
  return asked


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
  folder, named = naming.predictions(_PREDICTIONS.value or [])
  if named:
    raise errors.UserError(
      f'--predictions={next(iter(named))}=...: --replay repeats one predictor; '
      'give the folder alone'
    )
  for flag in (_WORKDIR, _TRUTH, _FEATURES, _PREDICTIONS):
    if flag.value and getattr(old, flag.name) is None:
      raise errors.UserError(
        f'--{flag.name}: {_REPLAY.value} was made without; leave it out'
      )
  return dataclasses.replace(
    old,
    data=_DATA.value or old.data,
    workdir=_WORKDIR.value or old.workdir,
    predictions=folder or old.predictions,
    truth=_TRUTH.value or old.truth,
    features=_FEATURES.value or old.features,
  )


# -- What came of it -----------------------------------------------------------


def _warn(
  table: protocols.Protocol,
  content: dict[str, Any],
  of_each: Mapping[str, dict[str, Any]],
) -> None:
  """Says what the figures alone do not.

  Args:
    table: whose protocol it is.
    content: of the `metrics.json` of all.
    of_each: of that of each predictor, by name.
  """
  protocol = content['protocol']
  if protocol['departures']:
    logging.info(
      'not the table of %s; it differs in %s: see departures in metrics.json',
      table.name,
      ', '.join(tables.departing_lines(content)),
    )
  if protocol['config']['lpips'] and 'lpips_sha256' not in protocol['metrics']:
    logging.warning(
      'LPIPS is null: its weights are not here; %s', lpips_package.INSTALL
    )
  for name, of_one in of_each.items():
    model = of_one['protocol']['model']
    if model.get('num_steps') == 1 and model.get('prediction') == 'eps':
      logging.warning(
        '%s: one step of a model that predicts eps is not its conditional mean',
        name,
      )
  num_features = max(x.get('num_features', 0) for x in of_each.values())
  count = len(content['pairs'])
  if count < num_features:
    logging.warning(
      'FID of %d pictures and %d features is biased and says mostly how many '
      'there are; KID is not',
      count,
      num_features,
    )


def _next_step(
  asked: request.Request, folder: pathlib.Path, content: dict[str, Any]
) -> tuple[str, str, dict[str, Any]] | None:
  if asked.predictor != _MODEL:
    return None
  given = {
    'workdir': asked.workdir,
    'image': folder / content['pairs'][0]['files']['source'],
    'output': command.beside(_OUTPUT.value, 'views'),
  }
  return 'imagine more views', 'odin_jax.generate', given


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


# -- The work ------------------------------------------------------------------


class _Loaded(NamedTuple):
  """What is read, and refused where it is wrong, before anything is written.

  Attributes:
    sources: what predicts, by name.
    data: the pairs.
    order: whose pose each pair gets.
    perceptual: LPIPS.
    distribution: FID and KID, in the first process; None where no features are
      given.
  """

  sources: dict[str, predictors.Predictor | scoring.Given]
  data: inputs.Data
  order: Int[np.ndarray, 'n']
  perceptual: single.Perceptual
  distribution: single.Distribution | None


def _distribution(
  text: str | None, data: inputs.Data
) -> single.Distribution | None:
  """FID and KID by what --features names, before predictions, which take long."""
  if text is None:
    return None
  network = distribution_distance.FeatureNetwork(text)
  return single.Distribution(network, network(data.pair_set.pairs.target))


def _load(asked: dict[str, request.Request], group: hosts.Group) -> _Loaded:
  first = next(iter(asked.values()))
  config = first.config
  inputs.check(config)
  perceptual = single.Perceptual(
    *scoring.load_lpips(config['lpips'], first.table, config['image_size_px'])
  )
  sources = inputs.load_predictors(asked)
  data = inputs.load_pairs(first)
  for of_one in asked.values():
    inputs.require_truth(of_one, data)
  # The first process scores; of the others none sees these features.
  distribution = _distribution(first.features, data) if group.is_first else None
  count = len(data.pair_set.facts)
  order = inputs.pose_order(first, count)
  for name, source in sources.items():
    if source is None:
      sources[name] = scoring.Given(
        asked[name].predictions, data.pair_set.pairs
      )
  read = [(_PREDICTIONS.name, x.predictions) for x in asked.values()]
  read += [(_WORKDIR.name, x.workdir) for x in asked.values()]
  read += [
    (flag.name, getattr(first, flag.name))
    for flag in (_DATA, _TRUTH, _FEATURES)
  ]
  outputs.check_apart(_OUTPUT.value, [(_REPLAY.name, _REPLAY.value), *read])
  return _Loaded(sources, data, order, perceptual, distribution)


def _require_same(
  group: hosts.Group, asked: dict[str, request.Request], loaded: _Loaded
) -> None:
  """Refuses processes that would do different work."""
  truth = loaded.data.pair_set.truth
  group.require_same(
    {
      'flags': {name: request.without_places(x) for name, x in asked.items()},
      'pairs': digests.of_arrays(loaded.data.pair_set.pairs),
      # What the warp is made by.
      'true depth': truth and digests.of_arrays(truth),
      'weights, code or devices': [
        single.decisive(asked[name], source)
        for name, source in loaded.sources.items()
      ],
    }
  )


def _evaluate(group: hosts.Group) -> None:
  watch = command.Stopwatch()
  old = request.read_metrics(_REPLAY.value) if _REPLAY.value else None
  asked = {_REPLAY.name: _asked_again(old)} if old else _asked()
  # Two, or one that has a name: each has a folder.
  is_joint = (
    len(asked) > 1
    or not old
    and next(iter(asked))
    not in (
      *naming.PREDICTORS,
      scoring.Given.name,
    )
  )
  loaded = _load(asked, group)
  _require_same(group, asked, loaded)
  if not group.is_first:
    for name, source in loaded.sources.items():
      single.evaluate(asked[name], source, *loaded[1:], group=group)
    return
  inputs.warn_of_training_seeds(loaded.sources, loaded.data)

  # -- Each predictor, in a folder of its own where there are several ----------
  output = pathlib.Path(_OUTPUT.value)
  if is_joint:
    folders = outputs.begin_joint(output, asked)
  else:
    folders = {name: outputs.begin(output) for name in asked}
  stores, evaluations = [], {}
  for name, source in loaded.sources.items():
    of_one, folder = command.Stopwatch(), folders[name]
    store = outputs.store(folder, asked[name], source)
    stores += [store] if store else []
    evaluations[name] = single.evaluate(
      asked[name], source, *loaded[1:], group=group, store=store
    )
    outputs.write(folder, evaluations[name], loaded.data.pair_set)
    files.write_json(folder / 'evaluate.json', of_one.figures())

  # -- All of them -------------------------------------------------------------
  first = next(iter(asked))
  table, content = asked[first].table, evaluations[first].content
  if is_joint:
    content = joint.content(evaluations, table)
    outputs.write_joint(output, content)
  files.write_json(output / 'evaluate.json', watch.figures())
  for store in stores:
    store.forget()
  _warn(table, content, {name: x.content for name, x in evaluations.items()})
  command.finish(
    _OUTPUT.value,
    words.of_several(content) if is_joint else words.of_one(content),
    look_at='index.html',
    then=_next_step(
      asked[first],
      folders[first],
      evaluations[first].content,
    ),
  )
  if old:
    _compare(old, content)


def main() -> None:
  _HOSTS.run(_evaluate)


if __name__ == '__main__':
  command.run(main)
