"""Files that are not what their name says, as failed downloads leave them."""

import re

# How a file starts, what it is and what to do.
_STARTS = (
  (
    rb'version https://git-lfs\.github\.com',
    'a Git LFS pointer, not the file itself; run `git lfs pull` in its folder, '
    'or download the file',
  ),
  (
    rb'(?i)(\xef\xbb\xbf)?\s*<(!doctype|html|head|body|\?xml|!--)',
    'a web page (HTML), not the file itself; download it again, signed in '
    'where the page asks for it',
  ),
  (
    rb'(?i)\s*(access to|entry not|invalid|unauthorized|repository not|not found)',
    'the message of a server, not the file itself; download it again, signed '
    'in where it asks for it',
  ),
)
# That many bytes of a file tell.
START_BYTES = 512


def recognise(start: bytes) -> str | None:
  """What a file is instead and what to do; None if it may be what it should.

  Args:
    start: the first `START_BYTES` of the file, or all of it.
  """
  if not start:
    return 'an empty file; download it again'
  for pattern, what in _STARTS:
    if re.match(pattern, start[:START_BYTES]):
      return what
  return None
