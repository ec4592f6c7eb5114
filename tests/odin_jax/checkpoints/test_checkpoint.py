"""Tests of checkpoints that tests of training do not reach."""

import subprocess
import sys

# An asyncio future of TensorStore's that outlives its loop, as those of a save
# do of which one array failed; and something else that nobody can catch.
_ABANDONED = """
import asyncio, pathlib, sys, tempfile, time
import numpy as np, tensorstore
from odin_jax.checkpoints import checkpoint
folder = tempfile.mkdtemp()
checkpoint.Checkpoints(pathlib.Path(folder))
async def write():
  array = await tensorstore.open(
    {'driver': 'zarr', 'kvstore': {'driver': 'file', 'path': folder + '/a'}},
    create=True, dtype=tensorstore.float32, shape=[2000, 2000])
  commit = array.write(np.random.rand(2000, 2000).astype('f4')).commit
  next(commit.__await__())
  return commit
asyncio.run(write()).result()
time.sleep(0.2)
class Loud:
  def __del__(self):
    raise ValueError('something else')
Loud()
"""


def test_what_a_failed_save_leaves_behind_is_not_printed():
  done = subprocess.run(
    [sys.executable, '-c', _ABANDONED], capture_output=True, text=True
  )
  assert done.returncode == 0, done.stderr[-2000:]
  assert 'Event loop is closed' not in done.stderr
  assert 'something else' in done.stderr
