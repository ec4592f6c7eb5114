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
import functools
import itertools
import pathlib
import platform
from typing import Any

from absl import flags, logging
import cv2
import flax
import jax
from jaxtyping import Int, UInt8
import numpy as np

from odin_jax import (
  distribution_distance,
  metrics,
  predictors,
  scoring,
  sharding,
)
from odin_jax.benchmarks import (
  LAYOUTS,
  RECORDS,
  kept,
  protocols,
  records,
  request,
  scenes,
  tables,
)
from odin_jax.benchmarks.pairs import PairSet, scene_of
from odin_jax.models import lpips
from odin_jax.porting import lpips_package
from odin_jax.reporting import evaluation_page
from odin_jax.shared import (
  command,
  digests,
  errors,
  files,
  image_files,
  provenance,
)

_TOOL = 'odin_jax.evaluate'
_MODEL = predictors.Model.name
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
_FEATURES = command.define_path(
  'features',
  'FILE.py:FUNCTION, a function of uint8 pictures [n s s 3] that gives floats '
  '[n d], by which FID and KID are measured.',
)
_WORKDIR = command.define_model()
_OUTPUT = command.define_output('Folder for metrics.json and pairs/')
_SHUFFLE_POSES = flags.DEFINE_bool(
  'shuffle_poses', False, "Give each pair another pair's pose, as a control."
)
_REPLAY = command.define_path(
  'replay',
  'A metrics.json: does again what it was made by; --data, --workdir, '
  '--predictions and --features say where things are now.',
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
    features=_FEATURES.value,
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
    features=_FEATURES.value or old.features,
  )


def _load_pairs(asked: request.Request) -> tuple[PairSet, dict[str, Any]]:
  """The pairs, and by lines of the table what was done to have them."""
  config, table = asked.config, asked.table
  if table.benchmark == RECORDS:
    pair_set = records.held_out_pairs(
      asked.data,
      image_size_px=config['image_size_px'],
      num_pairs=config['num_pairs'],
      seed=config['pairs_seed'],
    )
    return pair_set, {}
  if table.benchmark not in LAYOUTS:
    raise errors.UserError(
      f'{table.name}: its benchmark {table.benchmark!r} is none of '
      f'{", ".join([RECORDS, *LAYOUTS])}'
    )
  read = LAYOUTS[table.benchmark]
  if table.benchmark == 'mipnerf360':
    read = functools.partial(read, factor=config['images_factor'])
  sizes = {
    'image_size_px': config['image_size_px'],
    'num_sources': config['num_sources'],
  }
  pair_set = scenes.posed_pairs(
    asked.data, read, table, scale=config['scale'], **sizes
  )
  return pair_set, scenes.done_here(table, pair_set, **sizes)


def _load_predictor(
  asked: request.Request,
) -> predictors.Predictor | None:
  """What predicts; None where predictions are given."""
  if asked.predictions:
    return None
  if asked.predictor != _MODEL:
    return predictors.BASELINES[asked.predictor]()
  if not asked.workdir:
    raise errors.UserError(
      '--workdir: not given; --predictor=model needs the training run'
    )
  config = asked.config
  predictor = predictors.load_model(
    files.require_folder(asked.workdir, 'a training run'),
    sampling=predictors.Sampling(
      sampler=config['sampler'],
      num_steps=config['num_steps'],
      guidance=config['guidance'],
      guidance_rescale=config['guidance_rescale'],
      spacing=config['spacing'],
    ),
    batch_size=config['batch_size'],
    ema=config['ema'],
  )
  if predictor.image_size_px != config['image_size_px']:
    raise errors.UserError(
      f'{asked.workdir}: its model makes {predictor.image_size_px} px images '
      f'and the protocol asks for {config["image_size_px"]} px; give '
      f'--config.image_size_px={predictor.image_size_px}'
    )
  logging.info(sharding.devices_text())
  return predictor


def _software() -> dict[str, str | int]:
  return {
    'python': platform.python_version(),
    'jax': jax.__version__,
    'flax': flax.__version__,
    'numpy': np.__version__,
    'opencv': cv2.__version__,
    'device': jax.devices()[0].device_kind,
    'num_devices': jax.device_count(),
  }


def _write_images(
  output: pathlib.Path, index: str, views: dict[str, np.ndarray]
) -> dict[str, str]:
  """Writes pairs/INDEX_NAME.png; returns their names under `output`."""
  names = {}
  for name, image in views.items():
    names[name] = f'pairs/{index}_{name}.png'
    image_files.write(output / names[name], image)
  return names


def _fresh_output() -> pathlib.Path:
  """The output folder without the results of an earlier run of this tool.

  Raises:
    errors.UserError: what is read lies in it, and would be removed.
  """
  target = pathlib.Path(_OUTPUT.value).resolve()
  for flag in (_REPLAY, _PREDICTIONS):
    if flag.value and target in (
      pathlib.Path(flag.value).resolve(),
      *pathlib.Path(flag.value).resolve().parents,
    ):
      raise errors.UserError(
        f'--output={_OUTPUT.value}: holds what --{flag.name} names, which '
        'would be removed; give another folder'
      )
  output = files.claim_output(_OUTPUT.value, _TOOL)
  for name in ('metrics.json', 'table.md', 'table.tex', 'index.html'):
    (output / name).unlink(missing_ok=True)
  (output / 'pairs').mkdir(exist_ok=True)
  for image in (output / 'pairs').glob('*.png'):
    image.unlink()
  return output


def _check(config: dict[str, Any]) -> None:
  counts = ('num_pairs', 'num_samples', 'batch_size')
  if min(config[name] for name in counts) < 1:
    raise errors.UserError(f'{", ".join(counts)} must be at least 1')
  if config['image_size_px'] < metrics.SSIM_WINDOW_PX:
    raise errors.UserError(
      f'image_size_px={config["image_size_px"]}: SSIM needs at least '
      f'{metrics.SSIM_WINDOW_PX} px'
    )


def _pose_order(
  asked: request.Request, count: int, seed: int
) -> Int[np.ndarray, 'n']:
  """Whose pose each pair gets."""
  if not asked.shuffle_poses:
    return np.arange(count)
  if count < 2:
    raise errors.UserError(
      f'{asked.data}: {count} held-out pair; shuffling poses needs two'
    )
  return scoring.derangement(count, seed)


# -- Files ---------------------------------------------------------------------


def _protocol(
  asked: request.Request,
  pair_set: PairSet,
  here: dict[str, Any],
  predictor: predictors.Predictor | scoring.Given,
  perceptual: lpips.Lpips | None,
  network: distribution_distance.FeatureNetwork | None,
) -> dict[str, Any]:
  """Everything that can move the figures."""
  rules = scoring.rules(asked.table)
  return {
    'benchmark': asked.table.benchmark,
    **pair_set.protocol,
    **asked.to_dict(),
    'departures': protocols.departures(asked.table, here),
    'data_sha256': digests.of_arrays(pair_set.pairs),
    'code_sha256': digests.of_code(),
    'code_commit': provenance.commit(),
    'samples_per_pair': asked.config['num_samples'],
    'model': predictor.protocol,
    'metrics': {
      **metrics.definitions(perceptual, rules['ssim']),
      **(network.protocol if network else {}),
      'images': 'scores are of the 8-bit images in pairs/'
      if rules['quantised']
      else 'scores are of predictions that were not rounded to 8 bits',
      'mean': f'over {rules["mean"]}',
      'interval_95': 'bootstrap over scenes: 10,000 draws of all their pairs, '
      'percentiles; null of one scene',
    },
    'software': _software(),
  }


def _as_pictures(samples: scoring.Images) -> UInt8[np.ndarray, 'n s s 3']:
  return np.round(samples * 255).astype(np.uint8)


def _write_pairs(
  output: pathlib.Path,
  pair_set: PairSet,
  samples: scoring.Images,
) -> list[dict[str, str]]:
  """Writes the pictures of every pair; returns their names."""
  pairs, count = pair_set.pairs, len(samples)
  digits = scoring.name_digits(count)
  images = _as_pictures(samples)
  return [
    _write_images(
      output,
      f'{index:0{digits}d}',
      {
        'source': pairs.source[index],
        'truth': pairs.target[index],
        'sample': images[index],
      },
    )
    for index in range(count)
  ]


# -- What came of it -----------------------------------------------------------


def _of_sets(
  network: distribution_distance.FeatureNetwork | None,
  samples: scoring.Images,
  true_features: distribution_distance.Features | None,
) -> dict[str, float | int]:
  """FID and KID; none where no features are given."""
  if network is None:
    return {}
  features = network(_as_pictures(samples))
  return distribution_distance.distances(features, true_features)


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
    f'{"".join(f", {text}" for text in tables.distribution(content))}'
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
  count, num_features = len(content['pairs']), content.get('num_features', 0)
  if count < num_features:
    logging.warning(
      'FID of %d pictures and %d features is biased and says mostly how many '
      'there are; KID is not',
      count,
      num_features,
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
  config, rules = asked.config, scoring.rules(asked.table)
  _check(config)
  perceptual, net = scoring.load_lpips(
    config['lpips'], asked.table, config['image_size_px']
  )
  network = asked.features and distribution_distance.FeatureNetwork(
    asked.features
  )
  predictor = _load_predictor(asked)
  pair_set, here = _load_pairs(asked)
  pairs, count = pair_set.pairs, len(pair_set.facts)
  # Before predictions, which take long.
  true_features = network and network(pairs.target)
  order = _pose_order(asked, count, config['seed'])
  if asked.predictions:
    given = scoring.Given(asked.predictions, count, config['image_size_px'])
  output = _fresh_output()
  unfinished = output / 'unfinished'
  if asked.predictor != _MODEL:
    kept.discard(unfinished)
  else:
    predictor = kept.Kept(
      predictor,
      unfinished,
      {
        'batch_size': config['batch_size'],
        'code_sha256': digests.of_code(),
        'software': _software(),
      },
    )

  # -- One sample per pair ----------------------------------------------------
  inputs = pairs._replace(target=None, target2source=pairs.target2source[order])
  seeds = np.random.default_rng(config['seed']).integers(
    2**31 - 1, size=(config['num_samples'], count)
  )
  if predictor is None:
    samples = given.images
  else:
    predict = functools.partial(
      scoring.predict_all, predictor, batch_size=config['batch_size']
    )
    samples = predict(inputs, seeds[0])

  # -- Scores -----------------------------------------------------------------
  scores = scoring.score(asked.table, samples, pairs.target, perceptual)
  over_pairs = rules['mean'] == 'pairs'
  of_pair = [scene_of(facts) for facts in pair_set.facts]
  by_scene = metrics.mean_by_scene(scores, of_pair)
  searched = None
  if predictor and asked.table.scale.get('policy') == 'searched':
    searched = scoring.search_scale(
      asked.table,
      predictor,
      pair_set,
      inputs,
      seeds[0],
      config['batch_size'],
      perceptual,
    )
  several = {}
  if predictor and config['num_samples'] > 1:
    others = (predict(inputs, row) for row in seeds[1:])
    several = scoring.score_several(
      asked.table,
      itertools.chain([samples], others),
      pairs.target,
      perceptual,
    )
  summarise = functools.partial(
    metrics.summary, scenes=of_pair, over_pairs=over_pairs
  )

  # -- Files ------------------------------------------------------------------
  here |= {'metrics.lpips': net}
  source = predictor or given
  if 'guidance' in source.protocol:
    here['sampling.guidance'] = source.protocol['guidance']
  rows = [
    {
      'index': index,
      **facts,
      'target2source': pairs.target2source[index].ravel().tolist(),
      'pose_of_pair': int(order[index]),
      'seed': int(seeds[0, index]),
      **scores[index],
      'files': names,
    }
    for index, (facts, names) in enumerate(
      zip(pair_set.facts, _write_pairs(output, pair_set, samples), strict=True)
    )
  ]
  content = {
    'protocol': _protocol(asked, pair_set, here, source, perceptual, network),
    **summarise(scores),
    **_of_sets(network, samples, true_features),
    **{name: summarise(of_name) for name, of_name in several.items()},
    'scenes': by_scene,
    **({'searched': searched} if searched else {}),
    'pairs': rows,
  }
  files.write_json(output / 'metrics.json', content)
  for name, write in (('md', tables.markdown), ('tex', tables.latex)):
    with files.atomic_path(output / f'table.{name}') as temporary:
      temporary.write_text(write(content))
  with files.atomic_path(output / 'index.html') as temporary:
    temporary.write_text(evaluation_page.render(output, content))
  files.write_json(output / 'evaluate.json', watch.figures())
  if isinstance(predictor, kept.Kept):
    predictor.forget()
  _finish(asked, content)
  if old:
    _compare(old, content)


if __name__ == '__main__':
  command.run(main)
