"""Latents of records: what frozen encoders make of views, kept in files.

A folder of latents has a shard for every shard of training records, with a
record for every record, in the same place: a tf.train.Example of bytes with,
for each view (`source`, `target` and, where training mirrors, both with
`_mirrored`),

    VIEW/moments    mean and log variance of the autoencoder's latent
    VIEW/embedding  of the image encoder, where there is one

as they lie in memory, little-endian, in the type that the encoders compute in,
so that no bit is lost. `latents.json` says what they were made of: by digests of
the encoders' parameters and of the records, which are compared before training.
"""

import os
import pathlib
from typing import Any, Mapping

from jaxtyping import Shaped
import ml_dtypes
import numpy as np

from odin_jax.shared import (
  errors,
  files,
  more_views,
  posed_pair,
  record_folder,
  tfrecord,
)

MANIFEST = 'latents.json'
# Of the training records alone.
SPLIT = 'train'
_TYPES = {
  'float32': np.dtype(np.float32),
  'bfloat16': np.dtype(ml_dtypes.bfloat16),
}
_AGAIN = 'make the latents again with odin_jax.cache_latents'


def shard_name(of_records: str) -> str:
  """Name of the latents of a shard."""
  return f'latents-{of_records}'


def view_names(*, mirror: bool) -> tuple[str, ...]:
  """The views that each record has."""
  sides = more_views.SIDES
  return (*sides, *(f'{side}_mirrored' for side in sides if mirror))


def of_config(config: Mapping[str, Any]) -> dict[str, Any]:
  """What of a training config latents depend on."""
  return {
    'image_size_px': config['image_size_px'],
    'dtype': config['dtype'],
    'autoencoder': config['autoencoder'],
    'image_encoder': config['image_encoder'],
  }


def encode_record(views: Mapping[str, posed_pair.Encoded]) -> bytes:
  """The record of some views, each by its name."""
  values = {}
  for name, encoded in views.items():
    for field in ('moments', 'embedding'):
      array = getattr(encoded, field)
      if array is not None:
        values[f'{name}/{field}'] = [np.ascontiguousarray(array).tobytes()]
  return tfrecord.encode_example(values)


class LatentFolder:
  """Latents of the training records of a folder, by shard and position.

  Args:
    path: output of `odin_jax.cache_latents`.
    records: that they are to be of.
    config: of the training.

  Attributes:
    encoders_sha256: digest of the encoders that made them.

  Raises:
    errors.UserError: no such folder, one that is not finished, or of other
      records or another config.
  """

  def __init__(
    self,
    path: str | os.PathLike[str],
    records: record_folder.RecordFolder,
    config: Mapping[str, Any],
  ):
    self.path = files.require_folder(path, 'the output of cache_latents')
    manifest = files.read_json(
      self.path / MANIFEST,
      'latents of records',
      ('made_with', 'encoders_sha256', 'mirror', 'shapes', 'shards'),
    )
    for name, value in of_config(config).items():
      made_with = manifest['made_with'].get(name)
      if made_with != value:
        raise errors.UserError(
          f'{path}: latents of config.{name}={made_with}, and this is {value}; '
          f'{_AGAIN}, or give that config'
        )
    mirror = config['augment']['mirror']
    if mirror and not manifest['mirror']:
      raise errors.UserError(
        f'{path}: has no latents of mirrored views, which differ from mirrored '
        'latents; give --config.augment.mirror=False, or make the latents '
        'again with it set to True'
      )
    self.encoders_sha256 = manifest['encoders_sha256']
    self._shapes = manifest['shapes']
    self._dtype = _TYPES[config['dtype']]
    # Those of mirrored views are not even looked at where nothing is mirrored.
    self._views = view_names(mirror=mirror)
    self._shards = self._open(records, manifest['shards'])

  def _open(
    self,
    records: record_folder.RecordFolder,
    made_of: Mapping[str, Mapping[str, Any]],
  ) -> dict[str, tfrecord.RecordFile]:
    shards = {}
    for name, shard in records.shards.items():
      entry = made_of.get(name)
      if entry is None:
        raise errors.UserError(
          f'{self.path}: has no latents of {name}; the same command of '
          'odin_jax.cache_latents goes on'
        )
      if entry['records_sha256'] != shard.digest():
        raise errors.UserError(
          f'{self.path}: the latents of {name} are of other records than those '
          f'in {records.path}; {_AGAIN}'
        )
      file = self.path / shard_name(name)
      shards[name] = tfrecord.RecordFile(files.require_file(file, 'a shard'))
      if len(shards[name]) != len(shard):
        raise errors.UserError(
          f'{file}: {len(shards[name])} latents of {len(shard)} records; copy '
          'it again, or make the latents again'
        )
    return shards

  def require_made_by(self, encoders_sha256: str) -> None:
    """Raises errors.UserError unless these encoders made the latents.

    Args:
      encoders_sha256: digest of their parameters.
    """
    if encoders_sha256 != self.encoders_sha256:
      raise errors.UserError(
        f'{self.path}: latents of other encoders '
        f'({self.encoders_sha256[:12]}) than those of this training '
        f'({encoders_sha256[:12]}); {_AGAIN} with the --init of this training as its --workdir'
      )

  def read(
    self, shard: pathlib.Path | str, position: int
  ) -> dict[str, posed_pair.Encoded]:
    """Of source and target, as a record's place (`RecordFolder.place`)."""
    names = [
      f'{view}/{field}' for view in self._views for field in self._shapes
    ]
    file = self._shards[pathlib.PurePath(shard).name]
    values = tfrecord.decode_example(file[position], names)
    try:
      views = {view: self._view(values, view) for view in self._views}
    except (KeyError, ValueError) as error:
      raise errors.UserError(
        f'{file.path}: record {position} is no record of latents ({error}); '
        f'{_AGAIN}'
      ) from error
    return {
      side: views[side]._replace(mirrored=views.get(f'{side}_mirrored'))
      for side in more_views.SIDES
    }

  def _view(
    self, values: Mapping[str, list[bytes]], view: str
  ) -> posed_pair.Encoded:
    def array(field: str) -> Shaped[np.ndarray, '...'] | None:
      if field not in self._shapes:
        return None
      (content,) = values[f'{view}/{field}']
      return np.frombuffer(content, self._dtype).reshape(self._shapes[field])

    return posed_pair.Encoded(array('moments'), array('embedding'))
