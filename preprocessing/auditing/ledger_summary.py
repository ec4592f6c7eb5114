"""What was dropped and why: the ledger of a run, counted, with examples."""

import collections
from typing import Any

_EXAMPLES = 6


def by_reason(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
  """Counts per stage and reason, the most frequent first.

  Returns:
    `stage`, `reason`, `count`, and `examples`: some of the rows, those with a
    picture first.
  """
  groups: dict[tuple[str, str], list[dict[str, Any]]] = collections.defaultdict(
    list
  )
  for row in rows:
    groups[row['stage'], row['reason']].append(row)
  counted = [
    {
      'stage': stage,
      'reason': reason,
      'count': sum(row.get('count', 1) for row in group),
      'examples': sorted(group, key=lambda row: 'picture' not in row)[
        :_EXAMPLES
      ],
    }
    for (stage, reason), group in groups.items()
  ]
  return sorted(counted, key=lambda group: -group['count'])
