"""What a run says at its end: what was used, what not and why, what is next."""

import collections
import pathlib
import re
from typing import Any, Mapping, Sequence

from odin_jax.shared import command
from preprocessing import ids
from preprocessing.writing import shards

# So many reasons are listed, the most frequent ones; the ledger has them all.
_MAX_REASONS = 5
# And so many videos to look at; the manifest has them all.
_MAX_VIDEOS = 5
# Figures; not the one of a name.
_NUMBER = re.compile(r'(?<![\d.])(?!360-degree)\d+(\.\d+)?')


def short_reason(message: str, path: pathlib.Path) -> str:
  """The words of a message that messages on other videos share.

  `runs/a.mp4: truncated: ends at 3.00 s of 7.00 s; get the file again` becomes
  `truncated`: neither the file nor figures, details or advice.
  """
  text = message.removeprefix(f'{path}: ')
  text = re.split(r'[:;(]', text, maxsplit=1)[0]
  return _NUMBER.sub('...', ids.printable(text)).strip()


def reasons(rows: Sequence[Mapping[str, Any]]) -> str:
  """How often each reason was given, the most frequent first."""
  counted = collections.Counter(row['reason'] for row in rows).most_common()
  texts = [f'{reason} ({count})' for reason, count in counted[:_MAX_REASONS]]
  if rest := sum(count for _, count in counted[_MAX_REASONS:]):
    texts.append(f'other reasons ({rest})')
  return ', '.join(texts)


def used(
  output: str,
  *,
  num_videos: int,
  dropped: Sequence[Mapping[str, Any]],
  num_excluded: int,
) -> str:
  """How many videos were used, and why the others were not.

  Args:
    output: the folder, as the user gave it.
    num_videos: without those that were excluded.
    dropped: ledger rows of the videos that gave no records.
    num_excluded: videos that were not to be used.
  """
  text = f'{num_videos - len(dropped)} of {num_videos} videos used'
  if dropped:
    text += f', {len(dropped)} dropped: {reasons(dropped)}'
  if num_excluded:
    text += f'; {num_excluded} excluded'
  if dropped or num_excluded:
    text += f'; see {pathlib.Path(output) / shards.LEDGER}'
  return ids.printable(text)


def unconfirmed(videos: Sequence[Mapping[str, Any]]) -> list[str]:
  """Which layouts the pictures are too dull to confirm; [] for none.

  Args:
    videos: as the manifest has them; those without records do not count.
  """
  names = [
    video['video_id']
    for video in videos
    if video['records'] and not video['projection']['confirmed']
  ]
  if not names:
    return []
  text = (
    f'layout of {len(names)} videos rests on their tag or the flag alone: '
    f'{_first(names)} (look at them)'
  )
  return [ids.printable(text)]


def copies(digests: Mapping[str, str]) -> list[str]:
  """Which videos are byte for byte another one; [] for none.

  Args:
    digests: by id of a video, what tells its content.
  """
  first_of: dict[str, str] = {}
  names = [
    f'{video_id} of {first}'
    for video_id, digest in digests.items()
    if (first := first_of.setdefault(digest, video_id)) != video_id
  ]
  if not names:
    return []
  text = (
    f'{len(names)} videos are copies: {_first(names)}; one that is tested on '
    'may be trained on as the other: preprocessing.records takes videos out'
  )
  return [ids.printable(text)]


def _first(names: Sequence[str]) -> str:
  shown = ', '.join(names[:_MAX_VIDEOS])
  return f'{shown}, ...' if len(names) > _MAX_VIDEOS else shown


def written(output: str, counts: Mapping[str, int]) -> list[str]:
  """What the folder holds, and what to type next.

  Args:
    output: the folder, as the user gave it.
    counts: records per split.
  """
  lines = [
    f'{output}: {counts["train"]} train and {counts["test"]} test records',
    command.next_step(
      'judge them',
      'preprocessing.audit',
      {'records': output, 'output': _beside(output, 'audit')},
    ),
  ]
  if counts['train']:
    given = {
      'config': 'configs/train.py:world',
      'records': output,
      'workdir': _beside(output, 'train'),
    }
    lines.append(command.next_step('train on them', 'odin_jax.train', given))
  return [ids.printable(line) for line in lines]


def panoramas(folder: pathlib.Path, counts: Mapping[str, int]) -> list[str]:
  """What the folder of panoramas holds.

  Args:
    folder: below the output.
    counts: panoramas per split.
  """
  text = (
    f'{folder}: {counts["train"]} train and {counts["test"]} test panoramas; '
    'odin_jax.train --records takes this folder, too'
  )
  return [ids.printable(text)]


def _beside(output: str, what: str) -> str:
  """A folder beside the output, of a name that no other records have."""
  return f'{output.rstrip("/")}_{what}'
