"""The record: one posed pair of perspective views, as a tf.train.Example.

This table is the only place that knows the features' names, types and
lengths; the writer, the readers, the TFDS metadata and the checks all come
from it. Conventions are those of `odin_jax.shared.camera`. What else is kept
in records has a `Schema` of its own: panoramas (`panorama_schema`).
"""

import dataclasses
import functools
import math
from typing import Any, Callable, Collection, Iterable, Mapping

import numpy as np

from odin_jax.shared import camera, png, tfrecord

# 2: `median_depth` is of what the source view shows, not of what both do.
SCHEMA_VERSION = 2
DATASET_NAME = 'odin_pairs'
SPLITS = ('train', 'test')
_POSE_SHAPE = (3, 4)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Feature:
  """One feature of a record.

  Attributes:
    kind: `bytes`, `text` (UTF-8 bytes), `float` (float32) or `int` (int64).
    shape: shape of the value; () for a scalar.
    meaning: what it is, with its unit.
    encoding: of `bytes`, `jpeg` (three channels) or `png` (one).
    bits: of a `png`, per pixel.
    aspect: of a `png`, width / height.
    optional: the records of a folder all have it, or none has, such as those
      of an earlier version.
  """

  kind: str
  shape: tuple[int, ...] = ()
  meaning: str
  encoding: str = 'jpeg'
  bits: int = 8
  aspect: int = 1
  optional: bool = False

  @functools.cached_property
  def length(self) -> int:
    """How many values there are."""
    return math.prod(self.shape)


def _views(name: str, **fields: Any) -> dict[str, Feature]:
  return {f'{side}/{name}': Feature(**fields) for side in ('source', 'target')}


FEATURES: dict[str, Feature] = {
  **_views('image', kind='bytes', meaning='JPEG, square, sRGB'),
  'target2source': Feature(
    kind='float',
    shape=_POSE_SHAPE,
    meaning='x_source = R @ x_target + t, scene units',
  ),
  'fov_deg': Feature(
    kind='float', meaning='full field of view, horizontal = vertical'
  ),
  **_views('time_s', kind='float', meaning='time in the video'),
  **_views('yaw_deg', kind='float', meaning='view in its panorama, + right'),
  **_views('pitch_deg', kind='float', meaning='view in its panorama, + up'),
  **_views(
    'frame2scene',
    kind='float',
    shape=_POSE_SHAPE,
    meaning='pose of the panorama in its component, scene units',
  ),
  'video_id': Feature(kind='text', meaning="the video file's stem"),
  'split': Feature(kind='text', meaning='train or test'),
  'scene_id': Feature(kind='int', meaning='component within the video'),
  'median_depth': Feature(
    kind='float',
    meaning='of the source view: median distance from its camera of what it '
    'shows, scene units (odin_jax.shared.median_depth)',
  ),
  'target/median_depth': Feature(
    kind='float', optional=True, meaning='likewise, of the target view'
  ),
  'overlap': Feature(
    kind='float',
    meaning="0..1, share of the source view's points inside the target view",
  ),
  'confidence': Feature(kind='float', meaning="0..1, the matcher's own"),
  'hops': Feature(kind='int', meaning='1 = matched directly'),
  'rotation_error_deg': Feature(
    kind='float',
    optional=True,
    meaning='one sigma of the rotation of target2source about one axis; '
    '0 = exact, 180 = unknown',
  ),
  'direction_error_deg': Feature(
    kind='float',
    optional=True,
    meaning='one sigma of the direction of its translation along one axis '
    'across it; 0 = exact, 180 = unknown',
  ),
  'matcher': Feature(
    kind='text', meaning='name of the matcher; procedural: true poses'
  ),
  **_views(
    'unmasked_share',
    kind='float',
    optional=True,
    meaning="0..1, share of the view's pixels that are not masked",
  ),
  'target/static_weight': Feature(
    kind='bytes',
    encoding='png',
    optional=True,
    meaning='PNG, grey, square: 0 moves, 255 stands still, 128 unknown',
  ),
  **_views(
    'depth',
    kind='bytes',
    encoding='png',
    bits=16,
    optional=True,
    meaning='PNG, grey, 16 bits, square, of a side of its own: depth along the '
    'optical axis at its pixel centres, 2 ** ((value - 32768) / 2048) scene '
    'units; 0 = not known (odin_jax.shared.depth_png)',
  ),
}

# The largest value of those that begin at 0.
_LARGEST = {
  'overlap': 1,
  'confidence': 1,
  'source/unmasked_share': 1,
  'target/unmasked_share': 1,
  'rotation_error_deg': 180,
  'direction_error_deg': 180,
}
# Of the source view, of the target view.
MEDIAN_DEPTHS = ('median_depth', 'target/median_depth')
Record = dict[str, Any]


class SchemaError(ValueError):
  """A record that does not follow the schema; the message names the feature."""


def _problem(feature: Feature, value: Any) -> str | None:
  if feature.kind == 'bytes':
    return _bytes_problem(feature, value)
  if feature.kind == 'text':
    good = isinstance(value, str) and value
    return None if good else f'needs a non-empty str, got {value!r}'
  # Every record that is read comes by: numpy would take ten times as long.
  if isinstance(value, (int, float)) and not feature.shape:
    return None if math.isfinite(value) else 'not finite'
  array = np.asarray(value)
  if array.shape != feature.shape:
    return f'needs shape {feature.shape}, got {array.shape}'
  if not all(map(math.isfinite, array.ravel().tolist())):
    return 'not finite'
  if feature.shape == _POSE_SHAPE and not camera.is_rotation(
    array[:, :3], tolerance=1e-4
  ):
    return 'its first three columns are no rotation'
  return None


def _bytes_problem(feature: Feature, value: Any) -> str | None:
  if not (isinstance(value, bytes) and value):
    return 'needs non-empty bytes'
  if feature.encoding == 'png':
    try:
      png.check_header(value, bits=feature.bits, aspect=feature.aspect)
    except ValueError as error:
      return str(error)
  return None


def _check_pair(record: Mapping[str, Any]) -> None:
  """Raises SchemaError for a value that no pair of views has."""
  for name, largest in _LARGEST.items():
    if not 0 <= record.get(name, 0) <= largest:
      raise SchemaError(f'{name}: {record[name]} is outside 0..{largest}')
  if not 0.0 < record.get('fov_deg', 90.0) < 180.0:
    raise SchemaError(f'fov_deg: {record["fov_deg"]} is outside 0..180')
  if record.get('hops', 1) < 1:
    raise SchemaError(f'hops: {record["hops"]} is less than 1')
  for name in MEDIAN_DEPTHS:
    if record.get(name, 1) <= 0:
      raise SchemaError(f'{name}: {record[name]} is not above 0')


@dataclasses.dataclass(frozen=True, kw_only=True)
class Schema:
  """What records of one kind hold; all kinds have `video_id` and `split`.

  Attributes:
    name: of the data set; the names of its shards begin with it.
    description: of the data set, a sentence.
    features: by name.
    check: raises SchemaError for a value that no such record has, though each
      is of its feature's type and shape; it may be given some of the features.
  """

  name: str
  description: str
  features: Mapping[str, Feature]
  check: Callable[[Mapping[str, Any]], None]

  def optional_in(self, names: Iterable[str]) -> frozenset[str]:
    """Those of some features' names that a record need not have."""
    return frozenset(
      name
      for name in names
      if name in self.features and self.features[name].optional
    )

  def validate(self, record: Mapping[str, Any]) -> None:
    """Raises SchemaError unless `record` follows the schema."""
    missing = self.features.keys() - record.keys()
    missing -= self.optional_in(self.features)
    unknown = record.keys() - self.features.keys()
    if missing or unknown:
      raise SchemaError(
        f'missing features {sorted(missing)}, '
        f'unknown features {sorted(unknown)}'
      )
    self._check_values(record)

  def _check_values(self, record: Mapping[str, Any]) -> None:
    """Raises SchemaError unless values, maybe not of all features, follow it."""
    for name in record:
      problem = _problem(self.features[name], record[name])
      if problem:
        raise SchemaError(f'{name}: {problem}')
    if record.get('split', SPLITS[0]) not in SPLITS:
      raise SchemaError(f'split: {record["split"]!r} is none of {SPLITS}')
    self.check(record)

  def encode(self, record: Mapping[str, Any]) -> bytes:
    """Serialised tf.train.Example of a record; the same record, the same bytes.

    Raises:
      SchemaError: the record does not follow the schema.
    """
    self.validate(record)
    values: dict[str, list[Any]] = {}
    for name, value in record.items():
      feature = self.features[name]
      if feature.kind == 'bytes':
        values[name] = [value]
      elif feature.kind == 'text':
        values[name] = [value.encode()]
      elif feature.kind == 'int':
        values[name] = [int(value)]
      else:
        values[name] = np.asarray(value, np.float32).ravel().tolist()
    return tfrecord.encode_example(values)

  def decode(
    self, serialised: bytes, names: Collection[str] | None = None
  ) -> Record:
    """The record of a serialised example.

    Args:
      serialised: the example.
      names: of the features that are wanted; None: all. Others are not looked
        at, which takes most of the time.

    Returns:
      floats as float32 arrays of the feature's shape (scalars as `float`), ints
      as `int`, text as `str`, images as their JPEG or PNG bytes. An optional
      feature that the example lacks is left out, and one that is not of this
      schema.

    Raises:
      SchemaError: the example is no record of this schema.
    """
    try:
      values = tfrecord.decode_example(serialised, names)
    except ValueError as error:
      raise SchemaError(f'no tf.train.Example: {error}') from error
    record: Record = {}
    wanted = self.features if names is None else names
    for name in wanted:
      feature = self.features[name]
      if feature.optional and name not in values:
        continue
      count = len(values.get(name, ()))
      if count != feature.length:
        raise SchemaError(f'{name}: needs {feature.length} values, got {count}')
      try:
        record[name] = _value(feature, values[name])
      except (ValueError, TypeError, AttributeError) as error:
        raise SchemaError(f'{name}: no {feature.kind} ({error})') from error
    self._check_values(record)
    return record

  def shard_name(self, split: str, index: int, count: int) -> str:
    """File name of a shard: `odin_pairs-train.tfrecord-00000-of-00016`."""
    return f'{self.name}-{split}.tfrecord-{index:05d}-of-{count:05d}'


def _value(feature: Feature, values: list[Any]) -> Any:
  """A value of a record, of what an example has of it."""
  if feature.kind == 'bytes':
    return values[0]
  if feature.kind == 'text':
    return values[0].decode()
  if feature.kind == 'int':
    return int(values[0])
  if feature.shape:
    return np.array(values, np.float32).reshape(feature.shape)
  return float(values[0])


PAIRS = Schema(
  name=DATASET_NAME,
  description='Posed pairs of perspective views cut from 360-degree videos.',
  features=FEATURES,
  check=_check_pair,
)
# For those who know of pairs alone.
optional_in = PAIRS.optional_in
validate = PAIRS.validate
encode = PAIRS.encode
decode = PAIRS.decode
shard_name = PAIRS.shard_name
