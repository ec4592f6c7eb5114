"""How views are chosen in procedural worlds, where all poses are known.

python -m preprocessing.worlds --output=runs/w --pairs=16 \
    --config.views.max_turn_deg=45

The rules are those of videos (`configs/preprocess.py`) but for what is said
here; nothing is masked in a world, so `max_masked_share` changes nothing. What
else records of worlds are made by are flags of the command.
"""

import ml_collections

from configs import common, preprocess


def get_config(argument: str | None = None) -> ml_collections.ConfigDict:
  """The rules; the only recipe is `default`."""
  common.parse_argument(argument, recipes=['default'], defaults={})
  config = ml_collections.ConfigDict({'views': preprocess.get_config().views})
  # A world has frame pairs in plenty: where few directions have views that
  # overlap, the next pair costs less than more tries.
  config.views.num_tries = 8
  return config
