"""The CPU cores that a process may use."""

import os


def count() -> int:
  """How many there are: those of the machine, or fewer that it is kept to."""
  if hasattr(os, 'sched_getaffinity'):
    return len(os.sched_getaffinity(0))
  return os.cpu_count() or 1


def text() -> str:
  """What a command without jax computes on, on one line."""
  return f'devices: {count()} CPU cores'
