"""Tests of checkpoints that tests of training do not reach."""

import errno
import hashlib
import os
import resource
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest

from odin_jax import sharding
from odin_jax.checkpoints import checkpoint, checksums, encoder_files
from odin_jax.models import encoders
from odin_jax.shared import errors

STATE = {
  name: {'a': jnp.ones(3)} for name in ('params', 'ema', 'optimizer', 'step')
}
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
  frozen = encoders.Encoders(autoencoder=jnp.zeros(2), image=None)
  config = {'model': {'conditioning': 'se3'}}
  checkpoints = checkpoint.Checkpoints(tmp_path, max_to_keep=1, keep_period=2)
  for step in range(1, 4):
    checkpoints.save(step, STATE, frozen, config)
  checkpoints.close()
  for given, step in ((None, 3), (2, 2)):
    opened, found, of_step = checkpoint.open_step(tmp_path, given)
    assert (found, of_step) == (step, config) and opened.steps() == [2, 3]
    opened.close()
  with pytest.raises(errors.UserError, match='step 1 here; .* of 2, 3'):
    checkpoint.open_step(tmp_path, 1)


def test_a_full_disk_leaves_the_checkpoint_before_whole(tmp_path):
  frozen = encoders.Encoders(autoencoder=jnp.zeros(2), image=None)
  checkpoints = checkpoint.Checkpoints(tmp_path)
  checkpoints.save(1, STATE, frozen, CONFIG)
  while checkpoints.is_busy():
    time.sleep(0.01)
  noise = jnp.asarray(np.random.default_rng(0).normal(size=200_000))
  limits = resource.getrlimit(resource.RLIMIT_FSIZE)
  resource.setrlimit(resource.RLIMIT_FSIZE, (40_000, limits[1]))
  try:
    checkpoints.save(2, {**STATE, 'ema': {'a': noise}}, frozen, CONFIG)
    with pytest.raises(errors.UserError) as caught:
      checkpoints.close()
  finally:
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)
  assert (
    f'written ({os.strerror(errno.EFBIG)}); the one before is whole'
    in str(caught.value)
  )
  opened, step, _ = checkpoint.open_step(tmp_path)
  assert step == 1 and opened.steps() == [1]
  shapes = jax.eval_shape(lambda: STATE['ema'])
  where = jax.tree.map(lambda _: everywhere(), shapes)
  assert equal(opened.restore_params(1, 'ema', shapes, where), STATE['ema'])
  opened.close()


# -- Encoders ------------------------------------------------------------------

CONFIG = {
  'autoencoder': {'kind': 'pixels', 'patch_px': 2, 'gain': 0.5},
  'image_encoder': {'kind': 'none'},
  'dtype': 'float32',
  'model': {'conditioning': 'se3'},
}


def everywhere():
  return sharding.replicated(sharding.local_mesh())


def encoders_of(workdir, step):
  opened, _, _ = checkpoint.open_step(workdir, step)
  try:
    return opened.restore_encoders(step, CONFIG, everywhere())
  finally:
    opened.close()


def equal(tree, other):
  leaves = jax.tree.leaves(tree), jax.tree.leaves(other)
  return jax.tree.structure(tree) == jax.tree.structure(other) and all(
    a.dtype == b.dtype and np.array_equal(a, b)
    for a, b in zip(*leaves, strict=True)
  )


def test_encoders_are_one_file_for_all_checkpoints(tmp_path):
  frozen = encoders.fit(CONFIG, np.zeros((1, 4, 4, 3), np.uint8))
  folder = tmp_path / encoder_files.FOLDER
  # As a kill leaves it.
  folder.mkdir()
  (folder / encoder_files._TEMPORARY).write_bytes(b'half')
  checkpoints = checkpoint.Checkpoints(tmp_path)
  for step in (1, 2):
    checkpoints.save(step, STATE, frozen, CONFIG)
  checkpoints.close()
  (file,) = folder.iterdir()
  content = file.read_bytes()
  assert file.stem == hashlib.sha256(content).hexdigest()
  saved = tmp_path / checkpoint.FOLDER / '2'
  assert not (saved / checkpoint.ENCODERS).exists()
  for step in (1, 2):
    assert equal(encoders_of(tmp_path, step), frozen)

  file.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
  with pytest.raises(errors.UserError, match=f'{file.name}: is not as it was'):
    encoders_of(tmp_path, 2)
  file.unlink()
  with pytest.raises(errors.UserError, match=f'{file.name}: no such file'):
    encoders_of(tmp_path, 2)
  # A start from nothing makes it again.
  file.write_bytes(content[:9])
  assert encoder_files.write(tmp_path, frozen) == file.stem
  assert equal(encoders_of(tmp_path, 2), frozen)


def test_encoders_inside_a_checkpoint_of_an_earlier_version_are_read(tmp_path):
  frozen = encoders.fit(CONFIG, np.zeros((1, 4, 4, 3), np.uint8))
  trees = {
    'params': {'params': STATE['params']},
    'ema': {'ema': STATE['ema']},
    'progress': {name: STATE[name] for name in ('optimizer', 'step')},
    'encoders': frozen,
  }
  sums, _ = checksums.inspect(trees)
  manager = ocp.CheckpointManager(tmp_path / checkpoint.FOLDER)
  manager.save(
    3,
    args=ocp.args.Composite(
      **{item: ocp.args.StandardSave(tree) for item, tree in trees.items()},
      config=ocp.args.JsonSave(CONFIG),
      checksums=ocp.args.JsonSave(checksums.sealed(CONFIG, sums)),
    ),
  )
  manager.close()
  assert equal(encoders_of(tmp_path, 3), frozen)
  # The next one of that run has them outside.
  checkpoints = checkpoint.Checkpoints(tmp_path)
  restored = checkpoints.restore_encoders(3, CONFIG, everywhere())
  checkpoints.save(4, STATE, restored, CONFIG)
  checkpoints.close()
  assert equal(encoders_of(tmp_path, 4), frozen)
  assert len(list((tmp_path / encoder_files.FOLDER).iterdir())) == 1
  kept = checkpoints.seal(4)
  assert {name: kept[name] for name in sums if 'encoders' not in name} == {
    name: value for name, value in sums.items() if 'encoders' not in name
  }
