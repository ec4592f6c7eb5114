"""What a command tells its user instead of a traceback."""


class UserError(Exception):
  """Something that the user can mend; its message is one clear line."""
