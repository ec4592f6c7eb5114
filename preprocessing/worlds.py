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
the schema, ready for training. World i depends on --seed and on i alone.
"""

import dataclasses
import hashlib
import json
import pathlib
from typing import Any

from absl import flags
import numpy as np
from tqdm import tqdm

from odin_jax.shared import binary, camera
from preprocessing import (
  alignment,
  footage,
  records,
  scenes,
  true_pairs,
)

TOOL = 'preprocessing.worlds'

_OUTPUT = flags.DEFINE_string(
  'output', None, 'Folder to write; new, or made by this command.'
)
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
_WIDTH = flags.DEFINE_integer('width', 768, 'Width of the videos.', 64, 4096)
_HEIGHT = flags.DEFINE_integer('height', 384, 'Their height.', 32, 2048)
_PAIRS = flags.DEFINE_integer(
  'pairs', 0, 'Records per world to write in place of videos.', 0
)
_VIEW_PX = flags.DEFINE_integer(
  'view_px', 256, 'With --pairs: width = height of the views.', 16, 1024
)
_FOV_DEG = flags.DEFINE_float(
  'fov_deg', 90.0, 'With --pairs: field of view of the views.', 20, 140
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
  records.SPLIT_BY,
  'With --pairs: test records are whole worlds, or blocks of time.',
)
_TEST_FRACTION = flags.DEFINE_float(
  'test_fraction', 0.1, 'With --pairs: share of the test split.', 0, 1
)


def make_video(output: pathlib.Path, index: int, kinds: list[str]) -> str:
  """Writes video and truth of one world, unless both are there already.

  Returns:
    the video's stem.
  """
  name = f'{index:03d}_{kinds[index % len(kinds)]}'
  video, truth_path = output / f'{name}.mp4', output / f'{name}.truth.npz'
  if video.is_file() and truth_path.is_file():
    return name
  size = {'width': _WIDTH.value, 'height': _HEIGHT.value}
  world = footage.make_world(
    kinds,
    index,
    seed=_SEED.value,
    seconds=_SECONDS.value,
    px_per_rad=_HEIGHT.value / np.pi,
  )
  times_s = footage.picture_times_s(_SECONDS.value)
  with binary.atomic_path(truth_path) as temporary:
    np.savez_compressed(temporary, **footage.truth(world, times_s))
  bar = tqdm(times_s, desc=name, unit='frame')
  pictures = (footage.render_panorama(world, t, **size) for t in bar)
  footage.write_video(video, pictures)
  return name


def write_videos(output: pathlib.Path, kinds: list[str]) -> dict[str, Any]:
  """Videos and truth of all worlds; what is there already stays.

  Raises:
    binary.UserError: the folder holds videos made with other flags.
  """
  settings = {
    'seed': _SEED.value,
    'seconds': _SECONDS.value,
    'kinds': kinds,
    'width': _WIDTH.value,
    'height': _HEIGHT.value,
  }
  note = output / 'worlds.json'
  if note.is_file():
    earlier = json.loads(note.read_text()).get('settings')
    if earlier != settings:
      raise binary.UserError(
        f'{output}: made with {earlier}, now {settings}; '
        'give the same flags or another output folder'
      )
  # Written before the first video, so that a run with other flags is told.
  binary.write_json(note, {'settings': settings})
  names = [make_video(output, i, kinds) for i in range(_NUM_WORLDS.value)]
  return {'settings': settings, 'worlds': names}


def write_pairs(output: pathlib.Path, kinds: list[str]) -> dict[str, Any]:
  """Records of all worlds, merged; worlds that are done are not made again."""
  rules = true_pairs.PairRules(
    num_records=_PAIRS.value,
    seconds=_SECONDS.value,
    max_gap_s=_MAX_GAP_S.value,
    size_px=_VIEW_PX.value,
    views=alignment.ViewRules(
      num_views=_VIEWS_PER_PAIR.value, fov_deg=_FOV_DEG.value
    ),
    split_by=_SPLIT_BY.value,
    test_fraction=_TEST_FRACTION.value,
  )
  settings = {**dataclasses.asdict(rules), 'seed': _SEED.value, 'kinds': kinds}
  fingerprint = hashlib.sha256(json.dumps(settings).encode()).hexdigest()
  names = []
  for index in tqdm(range(_NUM_WORLDS.value), desc='worlds', unit='world'):
    name = f'{_SEED.value}_{index:05d}_{kinds[index % len(kinds)]}'
    names.append(name)
    if not records.part_is_done(output, name, fingerprint):
      _write_world_part(output, name, index, kinds, rules, fingerprint)
  manifest = records.merge_parts(
    output, video_ids=names, config=settings, tool=TOOL
  )
  return {'settings': settings, 'counts': manifest['counts']}


def _write_world_part(
  output: pathlib.Path,
  name: str,
  index: int,
  kinds: list[str],
  rules: true_pairs.PairRules,
  fingerprint: str,
) -> None:
  size_px = rules.size_px * true_pairs.supersampling(rules.size_px)
  world = footage.make_world(
    kinds,
    index,
    seed=_SEED.value,
    seconds=rules.seconds,
    px_per_rad=camera.intrinsics(rules.views.fov_deg, size_px)[0, 0],
  )
  made, summary, dropped = true_pairs.make_records(
    world, name, rules, seed=_SEED.value * 1_000_003 + index
  )
  records.write_part(
    output,
    name,
    records=made,
    summary={'kind': world.kind, **summary},
    dropped=dropped,
    fingerprint=fingerprint,
  )


def main() -> None:
  """Reads the flags and makes what they ask for."""
  if not _OUTPUT.value:
    raise binary.UserError('--output is missing; give a folder to write')
  kinds = _KINDS.value
  if not kinds or set(kinds) - set(scenes.KINDS):
    raise binary.UserError(
      f'--kinds={",".join(kinds)}: give some of {", ".join(scenes.KINDS)}'
    )
  if _WIDTH.value % 2 or _HEIGHT.value % 2:
    raise binary.UserError('--width and --height: must be even for H.264')
  stopwatch = binary.Stopwatch()
  output = binary.claim_output(_OUTPUT.value, TOOL)
  write = write_pairs if _PAIRS.value else write_videos
  report = write(output, kinds)
  binary.write_json(output / 'worlds.json', {**report, **stopwatch.figures()})


if __name__ == '__main__':
  binary.run(main)
