"""What a command tells its user instead of a traceback."""

import os


class UserError(Exception):
  """Something that the user can mend; its message is one clear line."""

  exit_status = 2


class Unfinished(Exception):
  """Work that a signal stopped and that can go on; its message says from where.

  It ends with another status than bad input: starting again is all it takes.
  """

  exit_status = os.EX_TEMPFAIL
