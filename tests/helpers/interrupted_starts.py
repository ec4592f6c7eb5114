"""A program whose processes are told to end from the keyboard as they start."""

import multiprocessing
import os
import signal

from preprocessing.running import pool


def double(number, tell=None):
  del tell
  return 2 * number


if multiprocessing.current_process().name != 'MainProcess':
  os.kill(os.getpid(), signal.SIGINT)

if __name__ == '__main__':
  doubled = pool.run(double, [1, 2], num_workers=2, steps=2, unit='number')
  assert doubled == [2, 4], doubled
  doubled = pool.each(
    double,
    [3],
    num_workers=1,
    max_attempts=1,
    lost=lambda number, reason: f'{number}: {reason}',
  )
  assert [*doubled] == [6]
