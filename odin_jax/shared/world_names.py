"""What records call procedural worlds, whose `video_id` tells their seed."""

import re

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


def seed_of(video_id: str) -> int | None:
  """The seed of a world; None of other videos, as those of worlds are."""
  match = _NAME.fullmatch(video_id)
  return int(match[1]) if match else None
