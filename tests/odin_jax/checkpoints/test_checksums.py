"""A checkpoint that is not as it was saved is refused, whatever was damaged."""

import functools
import json
import pathlib
import random
import shutil
from unittest import mock

import hypothesis
from hypothesis import strategies
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from odin_jax import sharding
from odin_jax.checkpoints import checkpoint, checksums, fallback
from odin_jax.models import encoders, odin
from odin_jax.shared import errors, lazy_array
from odin_jax.training import step
from tests.odin_jax import test_new_part

_NUM_FLIPS = 24
# Orbax drops the reads beside one that fails.
pytestmark = pytest.mark.filterwarnings(
  'ignore::pytest.PytestUnraisableExceptionWarning'
)


def arrays():
  generator = np.random.default_rng(0)
  values = generator.normal(size=(3, 5, 7)).astype(np.float32)
  return {
    'float32': jnp.asarray(values),
    'bfloat16': jnp.asarray(values, jnp.bfloat16),
    'int32': jnp.asarray(values * 100, jnp.int32),
    'uint8': jnp.asarray(values * 10, jnp.uint8),
    'bool': jnp.asarray(values > 0),
    'scalar': jnp.float32(2.5),
    'empty': jnp.zeros((0, 3)),
  }


def test_devices_and_host_agree():
  tree = arrays()
  on_host, is_finite = checksums.inspect(tree)
  assert is_finite and len(set(on_host.values())) == len(tree)
  lazy = jax.tree.map(lambda leaf: lazy_array.of(np.asarray(leaf)), tree)
  assert checksums.of_lazy(lazy) == on_host
  # Dicts are read in the order of their keys.
  sums, is_finite = checksums._inspect([tree[name] for name in sorted(tree)])
  assert is_finite
  assert [checksums._text(row) for row in np.asarray(sums)] == [
    on_host[name] for name in sorted(tree)
  ]
  for bad in (np.nan, np.inf):
    tree['bfloat16'] = tree['bfloat16'].at[2, 4, 6].set(bad)
    assert not checksums.inspect(tree)[1]
    assert not checksums._inspect(list(tree.values()))[1]


@hypothesis.given(
  where=strategies.integers(0, 104),
  bit=strategies.integers(0, 31),
  other=strategies.integers(0, 104),
)
@hypothesis.settings(deadline=None)
def test_a_flipped_bit_and_two_words_exchanged_are_seen(where, bit, other):
  first = np.asarray(arrays()['float32'])
  before, _ = checksums.inspect({'a': jnp.asarray(first)})
  words = first.copy().reshape(-1).view(np.uint32)
  words[where] ^= np.uint32(1 << bit)
  assert checksums._text(checksums._of_numpy(words)) != before['a']
  words = first.copy().reshape(-1).view(np.uint32)
  words[[where, other]] = words[[other, where]]
  same = checksums._text(checksums._of_numpy(words)) == before['a']
  assert same == (words[where] == words[other])


@pytest.fixture(scope='module')
def saved(tmp_path_factory):
  """A workdir with one checkpoint, and its state, encoders and config."""
  config = test_new_part.make_config('se3')
  frozen = encoders.fit(config, test_new_part.make_batch().source)
  state = step.state_of(config, test_new_part.random_params(config, 1))
  workdir = tmp_path_factory.mktemp('run')
  test_new_part.save(workdir, 3, state, frozen, config)
  return workdir, state, frozen, config


def places_of(config):
  """Shapes of the state, and where its arrays go."""
  return _places_of(json.dumps(config))


@functools.cache
def _places_of(text):
  config = json.loads(text)
  mesh = sharding.make_mesh({'data': -1, 'fsdp': 1, 'tensor': 1})
  abstract = jax.eval_shape(
    lambda: step.state_of(config, odin.init_params(config))
  )
  return abstract, jax.tree.map(lambda _: sharding.replicated(mesh), abstract)


def restored(workdir):
  """All that a training restores."""
  checkpoints, newest, config = checkpoint.open_step(workdir)
  try:
    return (*checkpoints.restore(newest, *places_of(config), config), config)
  finally:
    checkpoints.close()


def equal(ours, others):
  return jax.tree.structure(ours) == jax.tree.structure(others) and all(
    np.array_equal(a, b)
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(others), strict=True)
  )


def files_of(workdir):
  return sorted(
    path for path in pathlib.Path(workdir).rglob('*') if path.is_file()
  )


def test_a_flipped_byte_is_never_silent(saved, tmp_path):
  workdir, *expected = saved
  expected[2] = checkpoint.plain(expected[2])
  assert equal(restored(workdir), tuple(expected))
  rng = random.Random(0)
  sizes = [path.stat().st_size for path in files_of(workdir)]
  refused = 0
  for number in range(_NUM_FLIPS):
    copy = tmp_path / str(number)
    shutil.copytree(workdir, copy)
    # Half of them anywhere, half in any file: most are small.
    weights = sizes if number % 2 else [size > 0 for size in sizes]
    (path,) = rng.choices(files_of(copy), weights)
    data = bytearray(path.read_bytes())
    data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    path.write_bytes(data)
    try:
      assert equal(restored(copy), tuple(expected)), path
    except errors.UserError as error:
      assert '\n' not in str(error) and str(copy) in str(error)
      refused += 1
    shutil.rmtree(copy)
  assert refused >= _NUM_FLIPS / 4


@pytest.mark.parametrize(
  'what', ['cut', 'without', 'empty folder', 'config', 'checksums']
)
def test_what_is_damaged_is_one_line_or_set_aside(saved, tmp_path, what):
  workdir, *_, config = saved
  copy = tmp_path / 'run'
  shutil.copytree(workdir, copy)
  shutil.copytree(
    copy / checkpoint.FOLDER / '3', copy / checkpoint.FOLDER / '2'
  )
  newest = copy / checkpoint.FOLDER / '3'
  largest = max(files_of(newest), key=lambda path: path.stat().st_size)
  if what == 'cut':
    largest.write_bytes(largest.read_bytes()[: largest.stat().st_size // 2])
  elif what == 'without':
    shutil.rmtree(newest / 'params')
  elif what == 'config':
    flip_a_digit(newest / 'config' / 'metadata', b'"seed": ')
  elif what == 'checksums':
    # Of what is in another file.
    flip_a_digit(newest / 'checksums' / 'metadata', b'"encoders": "')
  else:
    shutil.rmtree(newest)
    newest.mkdir()
  with pytest.raises(checkpoint.DamagedError) as caught:
    restored(copy)
  assert '\n' not in str(caught.value) and str(copy) in str(caught.value)
  assert '--allow_fallback' in str(caught.value)

  checkpoints = checkpoint.Checkpoints(copy)
  with pytest.raises(checkpoint.DamagedError):
    go_on(checkpoints, config, may_go_back=False)
  with mock.patch.object(fallback.logging, 'warning') as warning:
    step_restored, state, frozen = go_on(checkpoints, config, may_go_back=True)
  assert step_restored == 2 and equal((state, frozen), tuple(saved[1:3]))
  aside = copy / checkpoint.DAMAGED / '3'
  assert aside.is_dir() and not newest.exists()
  assert aside in warning.call_args.args and 2 in warning.call_args.args
  # The run goes on as any other.
  checkpoints.save(3, state, frozen, config)
  checkpoints.close()
  assert equal(restored(copy)[:2], (state, frozen))
  # Where none is left, none is made up.
  for name in '23':
    shutil.rmtree(copy / checkpoint.FOLDER / name / 'ema')
  with (
    mock.patch.object(fallback.logging, 'warning'),
    pytest.raises(errors.UserError, match='none before: make a new --workdir'),
  ):
    go_on(checkpoint.Checkpoints(copy), config, may_go_back=True)


def flip_a_digit(path, behind):
  content = bytearray(path.read_bytes())
  content[content.index(behind) + len(behind)] ^= 1
  path.write_bytes(content)


def go_on(checkpoints, config, *, may_go_back):
  return fallback.restore_newest(
    checkpoints, *places_of(config), config, may_go_back=may_go_back
  )


def test_a_checkpoint_of_an_earlier_version_is_warned_of_once(saved, tmp_path):
  workdir, *_ = saved
  copy = tmp_path / 'run'
  shutil.copytree(workdir, copy)
  shutil.rmtree(copy / checkpoint.FOLDER / '3' / checkpoint.CHECKSUMS)
  with mock.patch.object(checkpoint.logging, 'warning') as warning:
    # As for a table's guidance, a model, and the same with one step.
    for _ in range(3):
      checkpoints, *_ = checkpoint.open_step(copy)
      checkpoints.close()
  said = [call.args[0] for call in warning.call_args_list]
  assert sum('has no checksums' in text for text in said) == 1
