"""What procedural worlds are called, and how their seed is known.

Of records without videos the `video_id` tells it, of videos the note beside
them.
"""

import json
import pathlib
import re
from typing import Sequence

# Beside the videos.
NOTE = 'worlds.json'
# No id of YouTube, which has eleven characters, is so long.
_NAME = re.compile(r'(\d+)_\d{5,}_[a-z_]+')


def name(seed: int, index: int, kind: str) -> str:
  """The `video_id` of a world of `preprocessing.worlds --pairs`.

  Args:
    seed: of all worlds.
    index: number of the world.
    kind: of the world.
  """
  return f'{seed}_{index:05d}_{kind}'


def video_name(index: int, kinds: Sequence[str]) -> str:
  """The stem of a video of `preprocessing.worlds`.

  Args:
    index: number of the world.
    kinds: of all worlds, which take turns.
  """
  return f'{index:03d}_{kinds[index % len(kinds)]}'


def seed_of_video(path: pathlib.Path) -> int | None:
  """The seed of a world that was filmed; None of other videos."""
  try:
    settings = json.loads((path.parent / NOTE).read_text())['settings']
    name = video_name(int(path.stem.partition('_')[0]), settings['kinds'])
    return int(settings['seed']) if name == path.stem else None
  # Nobody's worlds, or another one's file of that name.
  except (OSError, ValueError, LookupError, TypeError, ArithmeticError):
    return None


def seed_of(video_id: str) -> int | None:
  """The seed of a world; None of other videos, as those of worlds are."""
  match = _NAME.fullmatch(video_id)
  return int(match[1]) if match else None
