"""Why a video could not be had, and whether to ask for it again."""

import re
from typing import Any

import yt_dlp

from odin_jax.shared import errors

STAGE = 'download'
MAX_DETAIL = 300
RATE_LIMITED, TRUNCATED = 'rate-limited', 'truncated'
NOT_YET, NO_VIDEO = 'not yet published', 'not a video'
_NOW, _LATER, _NEVER = 'now', 'in the next run', 'never'
# The reason, when to ask again, and how yt-dlp or YouTube words it. The first
# that is found counts: `Video unavailable. This content isn't available, try
# again later` says that there were too many requests.
_REASONS = (
  (RATE_LIMITED, _NOW, r'error 429|try again later|not a bot|rate.?limit'),
  (TRUNCATED, _NOW, r'too short|more expected|bytes read|did not get any'),
  ('network', _NOW, r'error 5\d\d|timed? ?out|connection|addrinfo|proxy|ssl'),
  ('forbidden', _NOW, r'error 40[13]'),
  ('no such format', _NEVER, r'requested format|no video formats|drm protect'),
  (NOT_YET, _LATER, r'will begin|premieres|live event'),
  ('age-restricted', _NEVER, r'your age|age.restricted|inappropriate'),
  ('private', _NEVER, r'private video|video is private'),
  ('members-only', _NEVER, r'members.only|join this channel|channel.s members'),
  ('geo-blocked', _NEVER, r'your (country|location)|geo.?restrict'),
  ('removed', _NEVER, r'removed|terminated|no longer|copyright|error 410'),
  ('unavailable', _NEVER, r'unavailable|not available|not exist|error 404'),
  (NO_VIDEO, _LATER, r'unsupported url|unusual and will be skipped'),
  ('other', _LATER, r''),
)
_DISK = re.compile(r'unable to (write data|open for writing)|Errno 28\b')

# Reasons for which the network may be at fault.
TRANSIENT = frozenset(name for name, again, _ in _REASONS if again == _NOW)
# Reasons that will not go away.
PERMANENT = frozenset(name for name, again, _ in _REASONS if again == _NEVER)


class Failure(yt_dlp.utils.DownloadCancelled):
  """A video that could not be had; yt-dlp lets this kind of error through.

  Attributes:
    reason: one of a fixed set of words, for the ledger.
    detail: what was said.
  """

  def __init__(self, reason: str, detail: str):
    super().__init__(f'{reason}: {detail}')
    self.reason = reason
    self.detail = detail[:MAX_DETAIL]

  def row(self, video_id: str, attempts: int) -> dict[str, Any]:
    """The row of the ledger for a video that failed so in the end."""
    return {
      'video_id': video_id,
      'stage': STAGE,
      'reason': self.reason,
      'detail': self.detail,
      'attempts': attempts,
    }


class Stopped(yt_dlp.utils.DownloadCancelled):
  """The run is being stopped; yt-dlp lets this kind of error through."""


def classify(video_id: str, message: str) -> Failure:
  """The failure that a message of yt-dlp tells of.

  Raises:
    errors.UserError: it tells of the disk.
  """
  message = message.removeprefix('ERROR: ').partition('; please report')[0]
  if _DISK.search(message):
    raise errors.UserError(f'{message}; free some space and run again')
  # An id may have any word in it.
  text = message.replace(video_id, '').lower()
  reason = next(name for name, _, words in _REASONS if re.search(words, text))
  return Failure(reason, message)
