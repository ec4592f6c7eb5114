"""Tests of checkpoints that tests of training do not reach."""

import subprocess
import sys

import jax.numpy as jnp
import pytest

from odin_jax.checkpoints import checkpoint
from odin_jax.models import encoders
from odin_jax.shared import errors

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


def test_the_newest_are_kept_and_those_of_a_period(tmp_path):
  state = {
    name: {'a': jnp.ones(3)} for name in ('params', 'ema', 'optimizer', 'step')
  }
  frozen = encoders.Encoders(autoencoder=jnp.zeros(2), image=None)
  config = {'model': {'conditioning': 'se3'}}
  checkpoints = checkpoint.Checkpoints(tmp_path, max_to_keep=1, keep_period=2)
  for step in range(1, 4):
    checkpoints.save(step, state, frozen, config)
  checkpoints.close()
  for given, step in ((None, 3), (2, 2)):
    opened, found, of_step = checkpoint.open_step(tmp_path, given)
    assert (found, of_step) == (step, config) and opened.steps() == [2, 3]
    opened.close()
  with pytest.raises(errors.UserError, match='step 1 here; .* of 2, 3'):
    checkpoint.open_step(tmp_path, 1)
