"""The folders of a run -> summary.json and one self-contained page.

  python -m odin_jax.report --run=runs/demo --videos=runs/demo/worlds

Reads what the stages left in the run's folder (`records`, `audit`, `train`,
`evaluate/*`, `evaluate_unseen/*`, `generate`, `truth` if it is there,
`reconstruct`, `stages.jsonl`) and writes `summary.json` and `index.html` beside
them. The page opens from disk: images and the 3D data are inside it. The pages
of the audit and of the evaluations get a link back.

  python -m odin_jax.report --workdir=runs/t

says of a training alone, also one that is still going on, where its time went,
over all restarts (`odin_jax.training.goodput`), and writes it to `goodput.json`
there, unless the workdir is an address.
"""

import sys

# As a file it finds none of the packages below.
if __name__ == '__main__' and not __package__:
  sys.stderr.write('error: type: python -m odin_jax.report\n')
  sys.exit(2)

import pathlib
from typing import Any

from absl import flags, logging

from odin_jax.reporting import contents, summary
from odin_jax.shared import (
  command,
  errors,
  files,
  locks,
  page,
  quantities,
  storage,
)
from odin_jax.training import goodput

_RUN = command.define_path(
  'run', 'Folder that holds the folders of the stages.'
)
_WORKDIR = command.define_path(
  'workdir',
  'In its place the --workdir of odin_jax.train, of which is told '
  'where the time went; of an address, it is told alone.',
  may_be_address=True,
)
_VIDEOS = command.define_path(
  'videos', 'The video, or the folder of videos, of this run.'
)
_TITLE = flags.DEFINE_string(
  'title', 'ODIN: new views of a scene from 360° video', 'Heading of the page.'
)

_TOOL = 'odin_jax.report'
# Words and paths of what the page links to, where it is there.
_LINKS = {
  'Audit of the records': 'audit/index.html',
  'Every pair of the evaluation': f'evaluate/{summary.MODEL}/index.html',
  'All predictors side by side': 'evaluate/index.html',
  'The same of unseen worlds': f'evaluate{summary.UNSEEN}/index.html',
  'Generated views as a video': 'generate/video.mp4',
  'Fly through the reconstructed scene': 'reconstruct/index.html',
  'Points (PLY)': 'reconstruct/points.ply',
  'All figures (JSON)': 'summary.json',
}
# Folders whose pages get a link back.
_LINK_BACK = (
  'audit',
  *(
    f'evaluate{suffix}{inside}'
    for suffix in ('', summary.UNSEEN)
    for inside in ('', f'/{summary.MODEL}')
  ),
)
_GOODPUT = 'goodput.json'


def _row(name: str, *scores: str) -> str:
  """A name and scores, with room for their intervals."""
  return f'{name:28}' + ''.join(f'{score:24}' for score in scores).rstrip()


def _table(figures: dict[str, Any]) -> str:
  """The results as lines of text."""
  heads = (quantities.heading(score) for score in quantities.SCORES)
  lines = [_row('', *heads)]
  train = figures['train']
  lines.append(f'model: {summary.step_text(train["checkpoint"])}')
  for label, rows in (('held out', train), ('unseen worlds', train['unseen'])):
    for name in rows.get('psnr', {}):
      lines.append(_row(f'{label}: {name}', *summary.score_texts(rows, name)))
  if train.get('psnr'):
    lines.append(
      'model is one sample per pair, model_mean one step, about its conditional '
      'mean; in brackets 95 % intervals over scenes'
    )
  for kind, of_kind in (figures.get('pose') or {}).items():
    for name, value in of_kind.items():
      if isinstance(value, (int, float)):
        lines.append(f'{f"pose.{kind}.{name}":44}{value:9.3g}')
  for stage, seconds in figures['seconds'].items():
    peak = figures['peak_rss_mb'][stage]
    lines.append(f'{stage:44}{seconds:9.1f} s{peak:8.0f} MB')
  if 'goodput' in figures:
    lines.append(f'training: {goodput.table(figures["goodput"])}')
  return '\n'.join(lines)


def _of_training(workdir: str) -> None:
  """Says where the time of a training went."""
  figures = goodput.summary(goodput.read(workdir))
  if not storage.is_address(workdir):
    files.write_json(pathlib.Path(workdir) / _GOODPUT, figures)
  print(goodput.table(figures))  # noqa: T201 - the result of the command.


def main() -> None:
  if (_RUN.value is None) == (_WORKDIR.value is None):
    raise errors.UserError(
      'give --run, the folder of all stages, or --workdir, that of a training'
    )
  if _WORKDIR.value is not None:
    _of_training(_WORKDIR.value)
    return
  run = files.require_folder(_RUN.value, 'the folder of a run')
  videos = pathlib.Path(_VIDEOS.value) if _VIDEOS.value else None
  if videos and not videos.exists():
    raise errors.UserError(f'{videos}: no such file or folder; see --videos')
  target = run / 'index.html'
  if target.exists() and not (run / 'summary.json').exists():
    raise errors.UserError(f'{target}: not made by {_TOOL}; move it away')
  locks.acquire(run)
  figures = summary.summarise(run)
  if (run / 'train' / goodput.NAME).is_file():
    figures['goodput'] = goodput.summary(goodput.read(run / 'train'))
  if figures['missing']:
    logging.warning(
      '%s: %s: not here, so the page has neither them nor scores that take them; '
      'run what made this folder again (launch/demo.sh) for a whole page',
      run,
      ', '.join(figures['missing']),
    )
  files.write_json(run / 'summary.json', figures)
  html = page.render(
    contents.TEMPLATE, contents.gather(run, videos, figures, _TITLE.value)
  )
  html = page.links(html, run, _LINKS)
  with files.atomic_path(target) as temporary:
    temporary.write_text(html)
  for of in _LINK_BACK:
    page.add_link(run / of / 'index.html', 'The run that this is of', target)
  print(_table(figures))  # noqa: T201 - the result of the command.
  print(f'page: {target}')  # noqa: T201


if __name__ == '__main__':
  command.run(main)
