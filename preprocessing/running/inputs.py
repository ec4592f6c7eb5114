"""The videos that a run is given: a file, or all below a folder."""

import os
import pathlib
from typing import Any, Iterator, NamedTuple

from odin_jax.shared import errors, files
from preprocessing import ids

STAGE = 'input'
NO_VIDEO = 'not a video'
_SAME_STEM = 'same stem as another video'
_LOST_LINK = 'link to a file that is not there'
_BAD_NAME = 'name that cannot be used'
_UNREADABLE = 'folder that cannot be read'
_VIDEO_SUFFIXES = frozenset(
  '.360 .avi .flv .insv .m4v .mkv .mov .mp4 .mpeg .mpg .ogv .ts .webm '
  '.wmv'.split()
)
# What preprocessing.download leaves beside its videos.
_NO_VIDEOS = frozenset(['ledger.jsonl', 'download.json'])


class Inputs(NamedTuple):
  """What lies below a path.

  Attributes:
    videos: to be tried; no two of one stem.
    unusable: ledger rows of videos that cannot be tried, with a `message`.
    others: ledger rows of what is no video.
  """

  videos: list[pathlib.Path]
  unusable: list[dict[str, Any]]
  others: list[dict[str, Any]]


def find(path: pathlib.Path, output: pathlib.Path) -> Inputs:
  """Finds the videos of a file or folder, in the order of their paths.

  Subfolders are searched, each once however many links lead to it. Passed over
  are what is hidden, and the run's own output.

  Args:
    path: of a video or a folder.
    output: the run's output folder, which may lie below `path`.

  Raises:
    errors.UserError: there is nothing, or no video in the folder, or the file
      has a name that no video may have.
  """
  if os.path.isfile(path):
    if problem := ids.problem(path.stem):
      raise errors.UserError(ids.printable(f'{path}: {problem}'))
    return Inputs([path], [], [])
  files.require_folder(path, 'a video or a folder of videos')
  videos: dict[str, pathlib.Path] = {}
  unusable, others = [], []
  for entry in _below(path, output):
    if not _claims_to_be_video(entry):
      others.append(row(entry, path, NO_VIDEO))
    elif fault := _fault(entry):
      unusable.append(row(entry, path, *fault))
    elif first := videos.get(entry.stem):
      message = (
        f'{entry}: same stem as {first}, and the stem is the id of its '
        'records; rename one of them'
      )
      unusable.append(row(entry, path, _SAME_STEM, message))
    else:
      videos[entry.stem] = entry
  if not videos and not unusable:
    raise errors.UserError(
      f'{path}: no video in this folder; give 360-degree videos '
      f'({" ".join(sorted(_VIDEO_SUFFIXES))})'
    )
  return Inputs(list(videos.values()), unusable, others)


def _claims_to_be_video(entry: pathlib.Path) -> bool:
  """Whether it is a file or a link named like a video, or a folder."""
  if os.path.isdir(entry):
    return True
  is_file = os.path.isfile(entry) or entry.is_symlink()
  return is_file and entry.suffix.lower() in _VIDEO_SUFFIXES


def _fault(entry: pathlib.Path) -> tuple[str, str] | None:
  """Why a video, or a folder of them, cannot be tried: in short, and whole."""
  if os.path.isdir(entry):
    return _UNREADABLE, f'{entry}: cannot be read; allow it, or take it away'
  if not os.path.isfile(entry):
    message = f'{entry}: {_LOST_LINK}; bring it back, or take the link away'
    return _LOST_LINK, message
  if problem := ids.problem(entry.stem):
    return _BAD_NAME, f'{entry}: {problem}'
  return None


def row(
  entry: pathlib.Path, root: pathlib.Path, reason: str, message: str = ''
) -> dict[str, Any]:
  """A ledger row of an input that is not used.

  Args:
    entry: a file, or a folder.
    root: what was given as input.
    reason: in few words, the same for all inputs alike.
    message: says it whole.
  """
  inside = entry.relative_to(root) if entry != root else entry.name
  texts = {'reason': reason, 'file': str(inside)}
  if message:
    texts['message'] = message
  return {
    'video_id': ids.printable(entry.stem),
    'stage': STAGE,
    **{name: ids.printable(text) for name, text in texts.items()},
  }


def _below(root: pathlib.Path, output: pathlib.Path) -> Iterator[pathlib.Path]:
  """All files below a folder, and the folders that cannot be read."""
  seen = {_identity(root)}
  if os.path.isdir(output):
    seen.add(_identity(output))
  # No recursion: folders may lie deeper than Python's calls.
  levels = [iter(sorted(root.iterdir()))]
  while levels:
    entry = next(levels[-1], None)
    if entry is None:
      levels.pop()
    elif entry.name.startswith('.') or entry.name in _NO_VIDEOS:
      continue
    elif not os.path.isdir(entry):
      yield entry
    elif (identity := _identity(entry)) not in seen:
      seen.add(identity)
      try:
        levels.append(iter(sorted(entry.iterdir())))
      except OSError:
        yield entry


def _identity(folder: pathlib.Path) -> tuple[int, int]:
  """What all names of a folder share."""
  stat = folder.stat()
  return stat.st_dev, stat.st_ino
