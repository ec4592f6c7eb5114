"""Makes procedural 360-degree videos with exact truth, or posed pairs of them.

    python -m preprocessing.worlds --output=DIR --num_worlds=2 --seconds=25 \\
        --seed=0

writes for every world `NAME.mp4`, an equirectangular H.264 video at 30 frames
per second in which every rendered picture is held for a fifth of a second, and
beside it `NAME.truth.npz`:

    time_s       [N]         k / 5
    frame2world  [N, 3, 4]   x_world = R @ x_frame + t, metres, y down
    depth        [N, h, w]   metres along the ray at the pixel centres
    moving       [N, h, w]   whether the surface seen there moves
    kind         ()          'unique' or 'repeated' texture

    python -m preprocessing.worlds --output=DIR --num_worlds=200 --pairs=16 \\
        --view_px=64

writes no videos but 16 records per world, with the true poses in the gauge of
the schema, ready for training. --config.views.FIELD=VALUE changes how views are
chosen (`configs/worlds.py`), and --depth_px=64 adds the true depth of both
views, in maps of that side (odin_jax/shared/depth_png.py). With --fov_deg=40
--max_fov_deg=100 both views of a pair have a field of view that is drawn from
these. --panorama_px=768 keeps the panoramas themselves as records, too, in
DIR/panoramas. World i depends on --seed and on i alone.
"""

import sys

# As a file it finds none of the packages below.
if __name__ == '__main__' and not __package__:
  sys.stderr.write('error: type: python -m preprocessing.worlds\n')
  sys.exit(2)

import dataclasses
import hashlib
import json
import pathlib
from typing import Any

from absl import flags

from odin_jax.shared import (
  command,
  cores,
  errors,
  files,
  panorama_schema,
  schema,
  world_names,
)
from preprocessing.procedural import footage, scenes, true_pairs
from preprocessing.running import pool
from preprocessing.views import alignment
from preprocessing.writing import merging, splits

TOOL = 'preprocessing.worlds'

_RULES = 'configs/worlds.py'
_CONFIG = command.define_config(_RULES)
_OUTPUT = command.define_output()
_NUM_WORLDS = flags.DEFINE_integer(
  'num_worlds', 2, 'Number of worlds; their kinds take turns.', lower_bound=1
)
_SECONDS = flags.DEFINE_float(
  'seconds', 25.0, 'Length of the walk through each world.', 1.0, 120.0
)
_SEED = flags.DEFINE_integer('seed', 0, 'Seed of all randomness.', 0)
_KINDS = flags.DEFINE_list(
  'kinds',
  list(scenes.KINDS),
  f'Kinds of worlds, taken in turn; of {", ".join(scenes.KINDS)}.',
)
_MOVERS = flags.DEFINE_integer(
  'movers',
  None,
  'Things that move in a world, as far as there is room for them; for the '
  f'kinds {", ".join(scenes.WITH_MOVERS)}; default: a few.',
  0,
)
_WIDTH = flags.DEFINE_integer('width', 768, 'Width of the videos.', 64, 4096)
_HEIGHT = flags.DEFINE_integer('height', 384, 'Height of the videos.', 32, 2048)
_NUM_WORKERS = command.define_num_workers('Worlds')
_PAIRS = flags.DEFINE_integer(
  'pairs', 0, 'Records per world to write in place of videos.', 0
)
_VIEW_PX = flags.DEFINE_integer(
  'view_px', 256, 'With --pairs: width = height of the views.', 16, 1024
)
_FOV_DEG = flags.DEFINE_float(
  'fov_deg', 90.0, 'With --pairs: field of view of the views.', 20, 140
)
_MAX_FOV_DEG = flags.DEFINE_float(
  'max_fov_deg',
  None,
  'With --pairs: each two frames draw a field of view from --fov_deg to this.',
  20,
  140,
)
_VIEWS_PER_PAIR = flags.DEFINE_integer(
  'views_per_pair', 2, 'With --pairs: views tried per frame pair.', 1
)
_MAX_GAP_S = flags.DEFINE_integer(
  'max_gap_s', 5, 'With --pairs: largest time between two frames.', 1
)
_SPLIT_BY = flags.DEFINE_enum(
  'split_by',
  'video',
  splits.SPLIT_BY,
  'With --pairs: test records are whole worlds, or blocks of time.',
)
_TEST_FRACTION = flags.DEFINE_float(
  'test_fraction', 0.1, 'With --pairs: share of the test split.', 0, 1
)

_DEPTH_PX = flags.DEFINE_integer(
  'depth_px',
  0,
  'With --pairs: width = height of the maps of true depth that records have of '
  'both views; 0: none.',
  0,
  1024,
)

_PANORAMA_PX = flags.DEFINE_integer(
  'panorama_px',
  0,
  'With --pairs: width of the panoramas that are kept as records, too, in a '
  'folder panoramas of the output; 0: none.',
  0,
  4096,
)

_OF_PAIRS = (
  _VIEW_PX,
  _FOV_DEG,
  _MAX_FOV_DEG,
  _VIEWS_PER_PAIR,
  _MAX_GAP_S,
  _SPLIT_BY,
  _TEST_FRACTION,
  _DEPTH_PX,
  _PANORAMA_PX,
)


def write_videos(output: pathlib.Path, kinds: list[str]) -> dict[str, Any]:
  """Videos and truth of all worlds; what is there already stays.

  Raises:
    errors.UserError: the folder holds videos made with other flags.
  """
  settings = {
    'seed': _SEED.value,
    'seconds': _SECONDS.value,
    'kinds': kinds,
    'width': _WIDTH.value,
    'height': _HEIGHT.value,
    'movers': _MOVERS.value,
  }
  note = output / world_names.NOTE
  if note.is_file():
    earlier = json.loads(note.read_text()).get('settings')
    if earlier != settings:
      raise errors.UserError(
        f'{output}: made with {earlier}, now {settings}; '
        'give the same flags or another output folder'
      )
  # Written before the first video, so that a run with other flags is told.
  files.write_json(note, {'settings': settings})
  settings_of_jobs = {**settings, 'kinds': tuple(kinds), 'output': output}
  jobs = [
    footage.VideoJob(index=index, **settings_of_jobs)
    for index in range(_NUM_WORLDS.value)
  ]
  pictures = len(jobs) * len(footage.picture_times_s(_SECONDS.value))
  command.say([cores.text()])
  names = pool.run(
    footage.make_video,
    jobs,
    num_workers=_NUM_WORKERS.value,
    steps=pictures,
    unit='picture',
  )
  return {'settings': settings, 'worlds': names}


def _view_rules() -> alignment.ViewRules:
  tables = _CONFIG.value.to_dict()
  try:
    rules = alignment.ViewRules(
      num_views=_VIEWS_PER_PAIR.value,
      fov_deg=_FOV_DEG.value,
      **tables.pop('views'),
    )
  except (KeyError, TypeError, ValueError) as error:
    raise errors.UserError(
      f'--config: {error}; give one with the fields of configs/worlds.py'
    ) from error
  if tables:
    # As those of configs/preprocess.py: here they would change nothing.
    raise errors.UserError(
      f'--config: has {", ".join(tables)} beside views; give one with the '
      'fields of configs/worlds.py'
    )
  return rules


def _check_used() -> None:
  """Refuses flags that would change nothing in what is made.

  Raises:
    errors.UserError: there is one.
  """
  if _PAIRS.value:
    unused, words = (_WIDTH, _HEIGHT), 'of videos only, but --pairs makes none'
  else:
    unused, words = _OF_PAIRS, 'only with --pairs=N, records in place of videos'
  for flag in unused:
    if flag.present:
      raise errors.UserError(f'--{flag.name}: {words}; leave it out')
  given = _CONFIG.value.to_dict()
  if not _PAIRS.value and given != command.load_config(_RULES).to_dict():
    raise errors.UserError(f'--config.views: {words}; leave it out')


def write_pairs(output: pathlib.Path, kinds: list[str]) -> dict[str, Any]:
  """Records of all worlds, merged; worlds that are done are not made again.

  Raises:
    errors.UserError: the folder holds videos.
  """
  if any(output.glob('*.mp4')):
    raise errors.UserError(
      f'{output}: holds videos; give another output folder with --pairs'
    )
  rules = true_pairs.PairRules(
    num_records=_PAIRS.value,
    seconds=_SECONDS.value,
    max_gap_s=_MAX_GAP_S.value,
    size_px=_VIEW_PX.value,
    views=_view_rules(),
    split_by=_SPLIT_BY.value,
    test_fraction=_TEST_FRACTION.value,
    movers=_MOVERS.value,
    depth_px=_DEPTH_PX.value,
    panorama_px=_PANORAMA_PX.value,
    max_fov_deg=_MAX_FOV_DEG.value,
  )
  settings = {**dataclasses.asdict(rules), 'seed': _SEED.value, 'kinds': kinds}
  # With the features: parts of which only some have one do not go together.
  depends_on = json.dumps(
    [
      schema.SCHEMA_VERSION,
      sorted(schema.FEATURES),
      sorted(panorama_schema.FEATURES),
      settings,
    ]
  )
  fingerprint = hashlib.sha256(depends_on.encode()).hexdigest()
  jobs = [
    true_pairs.PairsJob(
      output=output,
      kinds=tuple(kinds),
      index=index,
      seed=_SEED.value,
      rules=rules,
      fingerprint=fingerprint,
    )
    for index in range(_NUM_WORLDS.value)
  ]
  panoramas = merging.claim_panoramas(
    output, are_kept=bool(rules.panorama_px), tool=TOOL
  )
  command.say([cores.text()])
  names = pool.run(
    true_pairs.make_part,
    jobs,
    num_workers=_NUM_WORKERS.value,
    steps=len(jobs),
    unit='world',
  )
  of_run: dict[str, Any] = {
    'video_ids': names,
    'config': settings,
    'tool': TOOL,
  }
  report = {
    'settings': settings,
    'counts': merging.merge(output, **of_run)['counts'],
  }
  if rules.panorama_px:
    report['panoramas'] = merging.merge(
      panoramas, schema_of=panorama_schema.PANORAMAS, **of_run
    )['counts']
  return report


def _finish(report: dict[str, Any]) -> None:
  output = _OUTPUT.value
  if 'counts' in report:
    counts = report['counts']
    made = f'{counts["train"]} train and {counts["test"]} test records'
    if 'panoramas' in report:
      made += (
        f', {sum(report["panoramas"][s] for s in schema.SPLITS)} panoramas'
      )
    given = {
      'config': 'configs/train.py:world',
      'records': output,
      'workdir': command.beside(output, 'train'),
    }
    then = ('train on them', 'odin_jax.train', given)
  else:
    made = f'{len(report["worlds"])} videos of {_SECONDS.value:g} s and truth'
    given = {'input': output, 'output': command.beside(output, 'records')}
    then = ('make records of them', 'preprocessing.run', given)
  command.finish(output, made, then=then)


def main() -> None:
  """Reads the flags and makes what they ask for."""
  if not _OUTPUT.value:
    raise errors.UserError('--output is missing; give a folder to write')
  kinds = _KINDS.value
  if not kinds or set(kinds) - set(scenes.KINDS):
    raise errors.UserError(
      f'--kinds={",".join(kinds)}: give some of {", ".join(scenes.KINDS)}'
    )
  if _MOVERS.value is not None and set(kinds) - set(scenes.WITH_MOVERS):
    raise errors.UserError(
      f'--movers={_MOVERS.value}: only some kinds have room for movers; give '
      f'--kinds={",".join(scenes.WITH_MOVERS)}'
    )
  if _WIDTH.value % 2 or _HEIGHT.value % 2:
    raise errors.UserError('--width and --height: must be even for H.264')
  if _PANORAMA_PX.value % 2:
    raise errors.UserError('--panorama_px: must be even')
  max_fov_deg = _MAX_FOV_DEG.value
  if max_fov_deg is not None and max_fov_deg < _FOV_DEG.value:
    raise errors.UserError(
      f'--max_fov_deg={max_fov_deg:g}: less than '
      f'--fov_deg={_FOV_DEG.value:g}; give a larger one'
    )
  _view_rules()
  _check_used()
  stopwatch = command.Stopwatch()
  output = files.claim_output(_OUTPUT.value, TOOL)
  if _PAIRS.value:
    report = write_pairs(output, kinds)
  else:
    report = write_videos(output, kinds)
  files.write_json(output / world_names.NOTE, {**report, **stopwatch.figures()})
  _finish(report)


if __name__ == '__main__':
  command.run(main)
