"""A checksum of every array of a checkpoint, and whether it is finite.

The files of a checkpoint carry none that finds every flipped bit: of 35 bytes
flipped in files that Orbax wrote, 20 changed parameters without an error.

A checksum is two sums over the 32-bit words of an array, modulo 2^32, each word
times an odd number that is drawn from its position. A change of one word is
always seen, one of several with a chance of 1 - 2^-64. Sums of integers do not
depend on their order: arrays have the same ones on any mesh.
"""

import hashlib
import json
from typing import Any, Callable, Mapping

import jax
import jax.numpy as jnp
import numpy as np

from odin_jax import sharding

CONFIG = 'config'
# The digest of all others.
ITSELF = 'itself'
Sums = tuple[dict[str, str], bool]
_BITS = {1: np.uint8, 2: np.uint16, 4: np.uint32}
_SEEDS = (0x9E3779B9, 0x85EBCA6B)
# Words that the caches of a core hold with what is made of them.
_BLOCK = 1 << 15


def _factors(index: Any, seed: int) -> Any:
  """Odd numbers, of positions: the finaliser of MurmurHash3, and 1."""
  mixed = index ^ np.uint32(seed)
  for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35)):
    mixed = (mixed ^ (mixed >> np.uint32(shift))) * np.uint32(factor)
  return (mixed ^ (mixed >> np.uint32(16))) | np.uint32(1)


def _sums(words: Any, index: Any, xp: Any) -> Any:
  """[2] uint32, of the words of an array and their positions in it."""
  return xp.stack(
    [xp.sum(words * _factors(index, seed), dtype=np.uint32) for seed in _SEEDS]
  )


def _device_words(array: jax.Array) -> jax.Array:
  """Numbers of up to 32 bits, as uint32."""
  if array.dtype == jnp.bool_:
    return array.astype(jnp.uint32)
  bits = jax.lax.bitcast_convert_type(array, _BITS[array.dtype.itemsize])
  return bits.astype(jnp.uint32)


@jax.jit
def _inspect(leaves: list[jax.Array]) -> tuple[jax.Array, jax.Array]:
  sums, finite = [], []
  for leaf in leaves:
    # Row-major positions, made where the words are.
    index = jnp.zeros(leaf.shape, jnp.uint32)
    for axis, length in enumerate(leaf.shape):
      along = jax.lax.broadcasted_iota(jnp.uint32, leaf.shape, axis)
      index = index * np.uint32(length) + along
    sums.append(_sums(_device_words(leaf), index, jnp))
    if jnp.issubdtype(leaf.dtype, jnp.floating):
      finite.append(jnp.isfinite(leaf).all())
  return jnp.stack(sums), jnp.stack(finite or [jnp.array(True)]).all()


def inspect(tree: Any) -> Sums:
  """The checksum of every array, by its path, and whether all are finite.

  Args:
    tree: of arrays, however they are sharded.
  """
  return later(tree)()


def later(tree: Any) -> Callable[[], Sums]:
  """What `inspect` gives, to be asked for in any thread.

  Until then a donation of the arrays, as to the next step, does them no harm:
  on devices the sums are in the queue before it, and memory of the host that
  NumPy looks at is not written to again.
  """
  paths = jax.tree_util.tree_leaves_with_path(tree)
  names = [sharding.path_name(path) for path, _ in paths]
  leaves = [leaf for _, leaf in paths]
  if all(_is_on_host(leaf) for leaf in leaves):
    # Nothing is moved, and nothing compiled.
    arrays = [np.asarray(leaf) for leaf in leaves]
    return lambda: (
      dict(zip(names, (_text(_of_numpy(x)) for x in arrays), strict=True)),
      all(bool(np.isfinite(x).all()) for x in arrays),
    )
  inspected = _inspect(leaves)

  def fetch() -> Sums:
    sums, finite = jax.device_get(inspected)
    return dict(zip(names, map(_text, sums), strict=True)), bool(finite)

  return fetch


def of_lazy(tree: Any) -> dict[str, str]:
  """The checksums of lazy arrays, which are read one at a time."""
  leaves = jax.tree_util.tree_leaves_with_path(tree)
  return {
    sharding.path_name(path): _text(_of_numpy(leaf.read()))
    for path, leaf in leaves
  }


def sealed(
  config: Mapping[str, Any], sums: Mapping[str, str]
) -> dict[str, str]:
  """What is kept beside the arrays: their checksums and the config's digest."""
  kept = {CONFIG: config_sha256(config), **sums}
  return {**kept, ITSELF: config_sha256(kept)}


def is_whole(kept: Mapping[str, str]) -> bool:
  """Whether what is kept is as `sealed` had it; earlier versions do not tell."""
  others = {name: kept[name] for name in kept if name != ITSELF}
  return kept.get(ITSELF, config_sha256(others)) == config_sha256(others)


def damaged(
  kept: Mapping[str, str], sums: Mapping[str, str], config: Any = None
) -> list[str]:
  """Names of what is not as `sealed` had it."""
  found = dict(sums)
  if config is not None:
    found[CONFIG] = config_sha256(config)
  return sorted(name for name in found if found[name] != kept.get(name))


def config_sha256(config: Mapping[str, Any]) -> str:
  """Digest of a config, whatever the order of its fields."""
  text = json.dumps(config, sort_keys=True)
  return hashlib.sha256(text.encode()).hexdigest()


def _is_on_host(array: jax.Array) -> bool:
  """Whether NumPy sees it where it is; parts of devices it would copy."""
  return (
    array.is_fully_addressable
    and array.is_fully_replicated
    and all(device.platform == 'cpu' for device in array.devices())
  )


def _of_numpy(array: np.ndarray) -> np.ndarray:
  words = array.reshape(-1)
  if array.dtype != bool:
    words = words.view(_BITS[array.dtype.itemsize])
  sums = np.zeros(len(_SEEDS), np.uint32)
  for start in range(0, words.size, _BLOCK):
    block = words[start : start + _BLOCK].astype(np.uint32)
    index = np.arange(start, start + block.size, dtype=np.uint32)
    sums += _sums(block, index, np)
  return sums


def _text(sums: np.ndarray) -> str:
  return ''.join(f'{int(number):08x}' for number in sums)
