"""Records -> latents of records, shard by shard; see `odin_jax.latents`."""

from concurrent import futures
import itertools
import pathlib
from typing import Any, Callable, Iterator, Mapping

from jaxtyping import UInt8
import numpy as np

from odin_jax import batches, latents
from odin_jax.shared import errors, files, posed_pair, progress, tfrecord

# What the encoders make of images [n s s 3], sRGB; arrays of n rows.
Encode = Callable[[UInt8[np.ndarray, 'n s s 3']], posed_pair.Encoded]


def _images(pair: posed_pair.PosedPair, *, mirror: bool) -> list[np.ndarray]:
  """Of `latents.view_names`."""
  images = [pair.source, pair.target]
  if mirror:
    turned = batches.mirrored(pair)
    images += [turned.source, turned.target]
  return images


def _rows(encoded: posed_pair.Encoded) -> Iterator[posed_pair.Encoded]:
  """Of every image; waits for a device that works at them."""
  moments = np.asarray(encoded.moments)
  if encoded.embedding is None:
    return (posed_pair.Encoded(row) for row in moments)
  embedding = np.asarray(encoded.embedding)
  return itertools.starmap(posed_pair.Encoded, zip(moments, embedding))


def _encoded(
  source: batches.PairSource,
  indices: range,
  encode: Encode,
  *,
  batch_size: int,
  mirror: bool,
) -> Iterator[bytes]:
  """The latents of some records, one by one."""
  names = latents.view_names(mirror=mirror)

  def load(start: int) -> tuple[int, UInt8[np.ndarray, 'n s s 3']]:
    pairs = [source[index] for index in indices[start : start + batch_size]]
    views = [view for pair in pairs for view in _images(pair, mirror=mirror)]
    # Batches are all alike, so that they are compiled once.
    filling = [views[0]] * ((batch_size - len(pairs)) * len(names))
    return len(pairs), np.stack(views + filling)

  with futures.ThreadPoolExecutor(1) as pool:
    starts = range(0, len(indices), batch_size)
    ahead = pool.submit(load, starts[0])
    for start in starts:
      count, images = ahead.result()
      if start != starts[-1]:
        ahead = pool.submit(load, start + batch_size)
      rows = _rows(encode(images))
      for _ in range(count):
        yield latents.encode_record(dict(zip(names, rows)))


def encode_folder(
  source: batches.PairSource,
  output: pathlib.Path,
  encode: Encode,
  about: Mapping[str, Any],
  *,
  shapes: Mapping[str, tuple[int, ...]],
  batch_size: int,
  mirror: bool,
) -> int:
  """Makes the latents of all records, or of those that are left.

  Args:
    source: the training records.
    output: folder of the latents.
    encode: the encoders.
    about: `made_with` and `encoders_sha256` of the manifest.
    shapes: of `moments` and `embedding` of one image.
    batch_size: records at once.
    mirror: of the mirrored views, too.

  Returns:
    the number of shards that were there already.

  Raises:
    errors.UserError: what is in the folder is of something else.
  """
  path = output / latents.MANIFEST
  manifest: dict[str, Any] = {
    **about,
    'mirror': mirror,
    'shapes': {name: list(shape) for name, shape in shapes.items()},
    'shards': {},
  }
  if path.exists():
    old = files.read_json(path, 'latents of records', tuple(manifest))
    for name in manifest.keys() - {'shards'}:
      if old[name] != manifest[name]:
        raise errors.UserError(
          f'{output}: {name} of the latents here is {old[name]}, not '
          f'{manifest[name]}; give that, or a new --output'
        )
    manifest['shards'] = old['shards']
  done, first = 0, 0
  shards = source.records.shards
  with progress.bar(len(source), 'record', desc='latents') as bar:
    for name, shard in shards.items():
      indices = range(first, first + len(shard))
      first += len(shard)
      target = output / latents.shard_name(name)
      entry = {'records': len(shard), 'records_sha256': shard.digest()}
      if manifest['shards'].get(name) == entry and target.exists():
        done += 1
      else:
        made = _encoded(
          source, indices, encode, batch_size=batch_size, mirror=mirror
        )
        with files.atomic_path(target) as temporary:
          tfrecord.write_file(temporary, made)
        # After the shard: one that the manifest names is whole.
        manifest['shards'][name] = entry
        files.write_json(path, manifest)
      bar.update(len(shard))
  return done
