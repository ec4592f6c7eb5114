"""What became of the videos: of this run and of earlier ones."""

import collections
import dataclasses
import json
import time
from typing import Any, Collection

from odin_jax.shared import errors
from preprocessing.downloading import failures, targets

NAME = 'ledger.jsonl'
_SAVE_S = 60.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Outcome:
  """What became of a video: its bytes, or its row in the ledger."""

  video_id: str
  bytes: int = 0
  row: dict[str, Any] | None = None


class Ledger:
  """The rows of this run and of earlier ones, and the figures of this one.

  Args:
    target: where the ledger is.
    names: of all files there.
    max_in_a_row: so many failures of the network end the run.

  Attributes:
    rows: by video id.
    downloaded: number of videos that came.
    bytes: of them.
    failed: number of videos that did not come, by reason.
  """

  def __init__(
    self, target: targets.Target, names: Collection[str], max_in_a_row: int
  ):
    self.rows: dict[str, dict[str, Any]] = {}
    self.downloaded = self.bytes = self._in_a_row = 0
    self.failed: collections.Counter[str] = collections.Counter()
    self._target = target
    self._max_in_a_row = max_in_a_row
    self._saved_s = time.monotonic()
    if NAME in names:
      for row in map(json.loads, target.read(NAME).splitlines()):
        if row['stage'] == failures.STAGE:
          self.rows[row['video_id']] = row

  def is_permanent(self, video_id: str) -> bool:
    """Whether it would be in vain to ask for the video again."""
    row = self.rows.get(video_id)
    return row is not None and row['reason'] in failures.PERMANENT

  def add(self, outcome: Outcome) -> None:
    """Notes what became of a video.

    Raises:
      errors.UserError: too many in a row failed by the network.
    """
    self.rows.pop(outcome.video_id, None)
    row = outcome.row
    if row is None:
      self.downloaded += 1
      self.bytes += outcome.bytes
    else:
      self.rows[outcome.video_id] = row
      self.failed[row['reason']] += 1
    is_network = row is not None and row['reason'] in failures.TRANSIENT
    self._in_a_row = self._in_a_row + 1 if is_network else 0
    if self._in_a_row >= self._max_in_a_row:
      raise errors.UserError(
        f'{self._in_a_row} videos in a row failed, the last one so: '
        f'{row["detail"]}; see to the network, --cookies, --proxy and '
        '--requests_per_minute, then run again'
      )
    if time.monotonic() - self._saved_s > _SAVE_S:
      self.save()

  def save(self) -> None:
    """Writes all rows."""
    rows = (self.rows[video_id] for video_id in sorted(self.rows))
    lines = (json.dumps(row, sort_keys=True) + '\n' for row in rows)
    self._target.write(NAME, ''.join(lines))
    self._saved_s = time.monotonic()
