"""features.json and dataset_info.json, so that TFDS opens a record folder.

`tfds.builder_from_directory(DIR)` then works in any TensorFlow program. TFDS is
imported where it is used: the processes that do the videos need none of it.
TensorFlow is not needed to write these files: `tfds.folder_dataset.
write_metadata` counts the records with it, but here the counts are known.
"""

import json
import pathlib
from typing import Any, Collection, Mapping

from google.protobuf import json_format
import numpy as np

from odin_jax.shared import files, schema

_FILE_PATTERN = '{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}'
_CHANNELS = {'jpeg': 3, 'png': 1}
_DTYPES = {'float': np.float32, 'int': np.int64}
_PIXELS = {8: np.uint8, 16: np.uint16}


# tfds.features.FeatureConnector.
Connector = Any


def _connector(feature: schema.Feature) -> Connector:
  import tensorflow_datasets as tfds

  if feature.kind == 'bytes':
    return tfds.features.Image(
      shape=(None, None, _CHANNELS[feature.encoding]),
      dtype=_PIXELS[feature.bits],
      encoding_format=feature.encoding,
    )
  if feature.kind == 'text':
    return tfds.features.Text()
  dtype = _DTYPES[feature.kind]
  return tfds.features.Tensor(shape=feature.shape, dtype=dtype)


def features(
  optional: Collection[str] = (), schema_of: schema.Schema = schema.PAIRS
) -> Connector:
  """The schema in TFDS terms; `a/b` is feature b of the dict a, as in TFDS.

  Args:
    optional: names of the optional features that the records have.
    schema_of: the kind of the records.
  """
  import tensorflow_datasets as tfds

  nested: dict[str, Any] = {}
  for name, feature in schema_of.features.items():
    if feature.optional and name not in optional:
      continue
    *groups, leaf = name.split('/')
    place = nested
    for group in groups:
      place = place.setdefault(group, {})
    place[leaf] = _connector(feature)
  return tfds.features.FeaturesDict(nested)


def write(
  output: pathlib.Path,
  shards: Mapping[str, Mapping[str, Any]],
  optional: Collection[str] = (),
  schema_of: schema.Schema = schema.PAIRS,
) -> None:
  """Writes the two files.

  Args:
    output: the record folder.
    shards: name -> `split`, `records`, `bytes`, in the order of the shards.
    optional: names of the optional features that all records have.
    schema_of: the kind of the records.
  """
  from tensorflow_datasets.core.proto import dataset_info_pb2

  # Protocol buffers give the keys in an order of the day.
  content = json.loads(
    json.dumps(features(optional, schema_of).to_json(), sort_keys=True)
  )
  files.write_json(output / 'features.json', content)
  info = dataset_info_pb2.DatasetInfo(
    name=schema_of.name,
    version=f'{schema.SCHEMA_VERSION}.0.0',
    file_format='tfrecord',
    description=schema_of.description,
  )
  for split in schema.SPLITS:
    entries = [shard for shard in shards.values() if shard['split'] == split]
    if entries:
      info.splits.add(
        name=split,
        shard_lengths=[shard['records'] for shard in entries],
        num_bytes=sum(shard['bytes'] for shard in entries),
        filepath_template=_FILE_PATTERN,
      )
  files.write_json(
    output / 'dataset_info.json', json_format.MessageToDict(info)
  )
