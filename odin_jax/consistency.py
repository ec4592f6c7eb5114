"""Whether views along a path show one scene: by epipolar lines, by returning.

  python -m odin_jax.consistency --views=runs/demo/generate \
      --output=runs/demo/consistency

`--views` is a folder as `odin_jax.generate` writes it, with `poses.json`, or
one with a `transforms.json` of nerfstudio, whose views are taken in the order
of their numbers. Features of every view are matched with those of the view
`--stride` places later; a pair is consistent if it has `--min_matches` matches
and their median distance from the epipolar lines of the poses is below
`--threshold_px`, at views of `--size_px`: TSED is the share of such pairs. The
defaults are those of the paper, see `odin_jax.geometry.consistency`. Where the
path comes back to a pose (`odin_jax.generate --trajectory=loop`), the PSNR of
both views is told.

Output: `consistency.json` with `tsed` (null where cameras only turn),
`loop_psnr` (the mean over all returns; null where the path does not return;
138.1 stands for equal pictures, whose PSNR is infinite), and a row for every
pair and return.
"""

import sys

# As a file it finds none of the packages below.
if __name__ == '__main__' and not __package__:
  sys.stderr.write('error: type: python -m odin_jax.consistency\n')
  sys.exit(2)

import dataclasses
import functools
import pathlib
import re

from absl import flags, logging
import numpy as np

from odin_jax.benchmarks import nerfstudio
from odin_jax.geometry import consistency, view_folder
from odin_jax.shared import command, errors, files, progress

_TOOL = 'odin_jax.consistency'
_RULE = consistency.Rule()
_VIEWS = command.define_path(
  'views', 'Folder with poses.json or transforms.json, and its images.'
)
_OUTPUT = command.define_output('Folder for consistency.json')
_STRIDE = flags.DEFINE_integer(
  'stride',
  1,
  'How many places later the view stands that each is compared with.',
  lower_bound=1,
)
_THRESHOLD_PX = flags.DEFINE_float(
  'threshold_px',
  _RULE.threshold_px,
  'A pair is consistent below this median distance from epipolar lines.',
  lower_bound=0.0,
)
_MIN_MATCHES = flags.DEFINE_integer(
  'min_matches',
  _RULE.min_matches,
  'A pair with fewer matches is not consistent.',
  lower_bound=1,
)
_SIZE_PX = flags.DEFINE_integer(
  'size_px',
  _RULE.size_px,
  'Shorter side of the views when they are matched.',
  lower_bound=32,
  upper_bound=4096,
)
flags.mark_flags_as_required(['views', 'output'])
# Rows that are shown; the file has all.
_MAX_ROWS = 20
# Names of files that a message shows.
_MAX_NAMES = 3
# Matches that move by less say nothing of the scene's shape.
_MIN_SHIFT_PX = 0.5


def _by_numbers(name: str) -> list[tuple[int, str]]:
  """Sorts frame_2 before frame_10."""
  return [
    (int(part), '') if part.isdigit() else (-1, part)
    for part in re.split(r'(\d+)', name)
  ]


def read(folder: pathlib.Path) -> list[consistency.View]:
  """The views of a folder along their path.

  Raises:
    errors.UserError: neither poses.json nor transforms.json is there, or what
      they name is missing or malformed.
  """
  if (folder / view_folder.POSES).is_file():
    views, names = view_folder.read(folder)
    return [
      consistency.View(
        name=name,
        read=functools.partial(np.asarray, image),
        size=(views.size_px, views.size_px),
        intrinsics=views.intrinsics,
        camera2scene=pose,
      )
      for name, image, pose in zip(names, views.images, views.camera2scene)
    ]
  if not (folder / nerfstudio.NAME).is_file():
    raise errors.UserError(
      f'{folder}: has neither {view_folder.POSES}, as odin_jax.generate writes '
      f'it, nor {nerfstudio.NAME}'
    )
  posed = nerfstudio.read(folder).views
  return [
    consistency.View(
      name=view.name,
      read=view.read,
      size=view.size,
      intrinsics=view.intrinsics,
      camera2scene=view.camera2scene,
    )
    for view in sorted(posed, key=lambda view: _by_numbers(view.name))
  ]


def _cell(value: float | None, digits: int = 2) -> str:
  return '-' if value is None else f'{value:.{digits}f}'


def _table(pairs: list[consistency.Pair]) -> list[str]:
  """The pairs as lines of text, the worst of them where there are many."""
  # Without a distance comes first.
  worst = sorted(
    pairs,
    key=lambda pair: -np.inf if pair.median_px is None else -pair.median_px,
  )[:_MAX_ROWS]
  head = f'{"views":>9}{"matches":>9}{"median px":>11}{"share":>7}'
  lines = [f'{head}{"mean px":>9}{"shift px":>10}  consistent']
  for pair in sorted(worst, key=lambda pair: pair.views):
    views = f'{pair.views[0]}-{pair.views[1]}'
    verdict = {True: 'yes', False: 'no', None: 'same place'}[pair.consistent]
    lines.append(
      f'{views:>9}{pair.matches:9}{_cell(pair.median_px):>11}'
      f'{_cell(pair.share):>7}{_cell(pair.thresholded_mean_px):>9}'
      f'{_cell(pair.shift_px):>10}  {verdict}'
    )
  if len(pairs) > len(worst):
    lines.append(f'the {len(worst)} worst of {len(pairs)} pairs')
  return lines


def _warn(
  views: list[consistency.View],
  counts: list[int],
  pairs: list[consistency.Pair],
  rule: consistency.Rule,
) -> None:
  """Tells what the figures alone do not."""
  empty = [
    view.name for view, count in zip(views, counts) if count < rule.min_matches
  ]
  if empty:
    shown = ', '.join(empty[:_MAX_NAMES])
    logging.warning(
      '%d of %d views have hardly any texture (%s%s): fewer than %d features, '
      'so that their pairs are not consistent',
      len(empty),
      len(views),
      shown,
      ', ...' if len(empty) > _MAX_NAMES else '',
      rule.min_matches,
    )
  shifts = [
    pair.shift_px
    for pair in pairs
    if pair.consistent and pair.shift_px is not None
  ]
  if shifts and np.median(shifts) < _MIN_SHIFT_PX:
    logging.warning(
      'consistent pairs hardly differ (matches move by %.2f px in the median): '
      'copies of one view are consistent, too; a larger --stride tells more',
      np.median(shifts),
    )


def _made(
  pairs: list[consistency.Pair],
  returned: list[consistency.Return],
  share: float | None,
) -> str:
  counted = [pair for pair in pairs if pair.consistent is not None]
  texts = ['cameras only turn, so there is no TSED']
  if share is not None:
    consistent = sum(bool(pair.consistent) for pair in counted)
    texts = [
      f'TSED {share:.2f} ({consistent} of {len(counted)} pairs consistent)'
    ]
  if returned:
    mean = np.mean([row.psnr for row in returned])
    texts.append(f'{len(returned)} returns to a pose: PSNR {mean:.2f} dB')
  else:
    texts.append('the path does not return')
  return ', '.join(texts)


def main() -> None:
  watch = command.Stopwatch()
  folder = files.require_folder(_VIEWS.value, 'a folder of posed views')
  rule = consistency.Rule(
    threshold_px=_THRESHOLD_PX.value,
    min_matches=_MIN_MATCHES.value,
    size_px=_SIZE_PX.value,
  )
  views = read(folder)
  if len(views) <= _STRIDE.value:
    raise errors.UserError(
      f'{folder}: {len(views)} views have no pair at --stride={_STRIDE.value}'
    )
  if stray := consistency.stray(views):
    raise errors.UserError(
      f'{folder}: the camera of {stray.name} is so far off that all others '
      'stand in one place beside it; mend its pose, or leave it out'
    )
  seen = [
    consistency.look(view, rule.size_px)
    for view in progress.each(views, 'view', desc='features')
  ]
  pairs = consistency.pairs(seen, rule, _STRIDE.value)
  returned = consistency.returns(views)
  share = consistency.tsed(pairs)
  if share is None and not returned:
    raise errors.UserError(
      f'{folder}: all pairs stand in one place and none has one pose: nothing '
      'can be told; give a path that moves, or one that returns'
    )
  output = files.claim_output(_OUTPUT.value, _TOOL)
  counts = [len(view.features.points) for view in seen]
  files.write_json(
    output / 'consistency.json',
    {
      'views': str(_VIEWS.value),
      'num_views': len(views),
      'stride': _STRIDE.value,
      'rule': dataclasses.asdict(rule),
      'tsed': share,
      'loop_psnr': float(np.mean([row.psnr for row in returned]))
      if returned
      else None,
      'pairs': [dataclasses.asdict(pair) for pair in pairs],
      'returns': [row._asdict() for row in returned],
      'per_view': [
        {'file': view.name, 'features': count}
        for view, count in zip(views, counts)
      ],
      **watch.figures(),
    },
  )
  command.say(_table(pairs))
  _warn(views, counts, pairs, rule)
  given = {'views': folder, 'output': command.beside(output, 'points')}
  command.finish(
    output,
    _made(pairs, returned, share),
    look_at='consistency.json',
    then=('make points of the views', 'odin_jax.reconstruct', given)
    if (folder / view_folder.POSES).is_file()
    else None,
  )


if __name__ == '__main__':
  command.run(main)
