"""Records -> batches, addressed by the global number of an example.

Example i of the run is a function of (records, seed, i) alone: the records in
an order that is reshuffled every epoch, each with its own random augmentation;
of several folders in turns (`odin_jax.sources.mixture`), of panoramas
(`odin_jax.panoramas`) each with views of its own, too.
Batch k holds the examples k * batch_size ... (k + 1) * batch_size - 1, of
which every host reads the rows that its devices hold. So the step is the whole
state of the input: a resume is exact, on any number of hosts.
"""

import collections
from concurrent import futures
import contextlib
import hashlib
import itertools
import os
import threading
from typing import (
  Any,
  Callable,
  Iterable,
  Iterator,
  Protocol,
  runtime_checkable,
)

import cv2
from jaxtyping import Float32, Int, Shaped, UInt8
import numpy as np

from odin_jax import latents
from odin_jax.shared import (
  camera,
  depth_png,
  errors,
  image_files,
  more_views,
  posed_pair,
  record_filters,
  record_folder,
  recycling,
  schema,
  tfrecord,
)


def _median_depths(record: schema.Record) -> dict[str, np.float32]:
  """Those of both views; 0 for the target's where it is not known."""
  source, target = schema.MEDIAN_DEPTHS
  return {
    'median_depth': np.float32(record.get(source, 0)),
    'target_median_depth': np.float32(record.get(target, 0)),
  }


def _stored_px(record: schema.Record) -> int:
  """Side of a record's images; 1, which no decoder reduces, if unreadable."""
  encoded = np.frombuffer(record['source/image'], np.uint8)
  image = cv2.imdecode(encoded, cv2.IMREAD_COLOR)
  return 1 if image is None else image.shape[0]


# What a pair is made of.
_FEATURES = (
  *(f'{side}/image' for side in more_views.SIDES),
  'target2source',
  'fov_deg',
  *schema.MEDIAN_DEPTHS,
  'split',
)
_TIMES = tuple(f'{side}/time_s' for side in more_views.SIDES)
_DEPTHS = tuple(f'{side}/depth' for side in more_views.SIDES)


class PairSource:
  """Random access to the posed pairs of a record folder, at one image size.

  Args:
    path: a folder of records.
    split: `train` or `test`.
    image_size_px: side of the images.
    cache: keep decoded pairs in memory; 6 KiB each at 32 px, and 32 KiB more
      with depth at 64 px.
    depth: read the depth of the views; maps of zeros, which say that nothing
      is known, where records have none. All maps have the side of the first.
    num_sources: views given of each scene; those beside the pair's source are
      its `more`.
    filters: records that do not pass are left out.
    empty_depth_px: side of the maps where no record has any.
    encoded: latents of the records, which are read in place of images.
    times: give the times of the views.

  Attributes:
    known_depth_px: side of the maps; None where nobody asks for them, or no
      record has any.
    records: the records.
    latents: of them, or None.

  Raises:
    errors.UserError: see `RecordFolder`; maps of depth of several sides; its
      subclass `CorruptRecordError`: an image or a map of depth that cannot be
      decoded.
  """

  def __init__(
    self,
    path: str | os.PathLike[str],
    split: str,
    *,
    image_size_px: int,
    cache: bool = False,
    depth: bool = False,
    num_sources: int = 1,
    filters: record_filters.Filters = record_filters.NONE,
    empty_depth_px: int = posed_pair.EMPTY_DEPTH_PX,
    encoded: Callable[[record_folder.RecordFolder], latents.LatentFolder]
    | None = None,
    times: bool = False,
  ):
    self.records = self._records = record_folder.RecordFolder(
      path, split, filters=filters
    )
    self.latents = None if encoded is None else encoded(self._records)
    self._size_px = image_size_px
    self._stored_px = _stored_px(self._records.first())
    self.known_depth_px = self._depth_px = None
    if depth:
      self.known_depth_px = self._records.depth_px()
      self._depth_px = self.known_depth_px or empty_depth_px
    self._has_times = times
    self._own = _FEATURES + (_TIMES if times else ())
    self._features = self._own + (_DEPTHS if depth else ())
    self._num_more = num_sources - 1
    self._neighbours = (
      more_views.Neighbours(self._records) if self._num_more else None
    )
    self._cache: dict[int, posed_pair.PosedPair] | None = {} if cache else None

  def __len__(self) -> int:
    return len(self._records)

  def __getitem__(self, index: int) -> posed_pair.PosedPair:
    if self._cache is None:
      return self._read(index)
    if index not in self._cache:
      self._cache[index] = self._read(index)
    return self._cache[index]

  def draw(self, index: int, rng: np.random.Generator) -> posed_pair.PosedPair:
    """The pair of the record itself: nothing is drawn."""
    del rng
    return self[index]

  def _read(self, index: int) -> posed_pair.PosedPair:
    if self.latents is not None:
      return self._read_encoded(index)
    record = self._records.read(index, self._features)
    try:
      source, target = (self._view(record, side) for side in more_views.SIDES)
      more = self._more(index)
    except image_files.TooSmallError as error:
      raise errors.UserError(
        f'{self._records.path}: its views have {error.side_px} px, less than '
        f'the {self._size_px} px asked for; lower the image size'
      ) from error
    except ValueError as error:
      video_id = self._records.read(index, ('video_id', 'split'))['video_id']
      raise tfrecord.CorruptRecordError(
        f'{self.place(index)} of {video_id}: {error}; make the records again'
      ) from error
    return posed_pair.PosedPair(
      source=source[0],
      target=target[0],
      target2source=record['target2source'],
      fov_deg=np.float32(record['fov_deg']),
      **_median_depths(record),
      source_depth=source[1],
      target_depth=target[1],
      more=more,
      times_s=self._times(record),
    )

  def _times(self, record: schema.Record) -> Float32[np.ndarray, '2'] | None:
    if not self._has_times:
      return None
    return np.array([record[name] for name in _TIMES], np.float32)

  def _read_encoded(self, index: int) -> posed_pair.PosedPair:
    """A pair whose views are encoded."""
    record = self._records.read(index, self._own)
    views = self.latents.read(*self._records.place(index))
    return posed_pair.PosedPair(
      source=None,
      target=None,
      target2source=record['target2source'],
      fov_deg=np.float32(record['fov_deg']),
      **_median_depths(record),
      source_encoded=views['source'],
      target_encoded=views['target'],
      times_s=self._times(record),
    )

  def _view(
    self, record: schema.Record, side: str
  ) -> tuple[UInt8[np.ndarray, 's s 3'], Float32[np.ndarray, 'd d'] | None]:
    image = self._image(record[f'{side}/image'])
    if self._depth_px is None:
      return image, None
    return image, self._depth(record, f'{side}/depth')

  def _more(self, index: int) -> posed_pair.MoreViews | None:
    """Views beside the source; zeros where there are not so many."""
    if self._neighbours is None:
      return None
    places, target2view, fov_deg = self._neighbours.find(index, self._num_more)
    views = [
      self._view(self._records.read(record, self._features), side)
      for record, side in places
    ]
    return posed_pair.more_views(
      images=[image for image, _ in views],
      target2view=list(target2view),
      fov_deg=fov_deg.tolist(),
      depths=[depth for _, depth in views],
      count=self._num_more,
      image_px=self._size_px,
      depth_px=self._depth_px,
    )

  def has_more(self) -> bool:
    """Whether any pair has a view beside its source to be given."""
    return self._neighbours is not None and self._neighbours.are_there()

  def _depth(
    self, record: schema.Record, name: str
  ) -> Float32[np.ndarray, 'd d']:
    side_px = self._depth_px
    if name not in record:
      return np.zeros((side_px, side_px), np.float32)
    try:
      depth = depth_png.decode(record[name])
    except ValueError as error:
      raise ValueError(f'{name}: {error}') from error
    if len(depth) != side_px:
      raise ValueError(
        f'{name}: {len(depth)} px, where the first map has {side_px} px'
      )
    return depth

  def _image(self, jpeg: bytes) -> np.ndarray:
    return image_files.decode_square_jpeg(
      jpeg, self._size_px, stored_px=self._stored_px
    )

  def place(self, index: int) -> str:
    """Where a record is, for people."""
    shard, position = self._records.place(index)
    return f'{shard}: record {position}'

  def fingerprint(self) -> str:
    """Digest of the number and the poses of the records' first hundred."""
    digest = hashlib.sha256(str(len(self)).encode())
    for index in range(min(len(self), 100)):
      # Whoever reads a damaged record says so.
      with contextlib.suppress(tfrecord.CorruptRecordError):
        digest.update(self._records[index]['target2source'].tobytes())
    return digest.hexdigest()[:16]


# Of the elements of a pose, where x turns to -x in both cameras.
_MIRROR_SIGNS = np.array(
  [[1, -1, -1, -1], [-1, 1, 1, 1], [-1, 1, 1, 1]], np.float32
)
_BACKWARDS = (slice(None, None, -1),)


def _mirrored_pose(
  pose: Float32[np.ndarray, '*b 3 4'],
) -> Float32[np.ndarray, '*b 3 4']:
  """The same motion as a mirror shows it: x -> -x in both cameras."""
  return pose * _MIRROR_SIGNS


def _flipped(x: np.ndarray | None, axis: int) -> np.ndarray | None:
  # A slice takes a tenth of the time of np.flip.
  return None if x is None else x[(slice(None),) * axis + _BACKWARDS]


def _mirror_of(x: posed_pair.Encoded | None) -> posed_pair.Encoded | None:
  return x and x.mirrored._replace(mirrored=x._replace(mirrored=None))


def _alone(x: posed_pair.Encoded | None) -> posed_pair.Encoded | None:
  return x and x._replace(mirrored=None)


def mirrored(pair: posed_pair.PosedPair) -> posed_pair.PosedPair:
  """The pair as a mirror shows it: x -> -x in all cameras; exact."""
  more = pair.more and pair.more._replace(
    image=_flipped(pair.more.image, 2),
    target2view=_mirrored_pose(pair.more.target2view),
    depth=_flipped(pair.more.depth, 2),
  )
  return posed_pair.PosedPair(
    source=_flipped(pair.source, 1),
    target=_flipped(pair.target, 1),
    target2source=_mirrored_pose(pair.target2source),
    fov_deg=pair.fov_deg,
    median_depth=pair.median_depth,
    target_median_depth=pair.target_median_depth,
    source_depth=_flipped(pair.source_depth, 1),
    target_depth=_flipped(pair.target_depth, 1),
    more=more,
    source_encoded=_mirror_of(pair.source_encoded),
    target_encoded=_mirror_of(pair.target_encoded),
    times_s=pair.times_s,
  )


def swapped(pair: posed_pair.PosedPair) -> posed_pair.PosedPair:
  """The pair with source and target exchanged.

  Exact, but that the median depth of the target view may not be known.
  """
  pose = camera.inverse(pair.target2source.astype(np.float64))
  more = pair.more and posed_pair.as_float32(posed_pair.moved(pair.more, pose))
  return posed_pair.PosedPair(
    source=pair.target,
    target=pair.source,
    target2source=pose.astype(np.float32),
    fov_deg=pair.fov_deg,
    median_depth=np.float32(0)
    if pair.target_median_depth is None
    else pair.target_median_depth,
    target_median_depth=pair.median_depth,
    source_depth=pair.target_depth,
    target_depth=pair.source_depth,
    more=more,
    source_encoded=pair.target_encoded,
    target_encoded=pair.source_encoded,
    times_s=_flipped(pair.times_s, 0),
  )


def thinned(pair: posed_pair.PosedPair, count: int) -> posed_pair.PosedPair:
  """The pair with `count` views beside its source, or what there are."""
  more = pair.more
  is_there = more.is_there & (np.arange(len(more.is_there)) < count)
  return pair._replace(more=more._replace(is_there=is_there))


@runtime_checkable
class Source(Protocol):
  """What examples are made of."""

  def __len__(self) -> int:
    """How many make an epoch."""

  def __getitem__(self, index: int) -> posed_pair.PosedPair:
    """A pair, the same each time."""

  def draw(self, index: int, rng: np.random.Generator) -> posed_pair.PosedPair:
    """A pair for the example that takes this index in its epoch."""

  def place(self, index: int) -> str:
    """Where what an index names is, for people."""

  def fingerprint(self) -> str:
    """Digest that tells other records from these."""


@runtime_checkable
class Mixed(Source, Protocol):
  """A source that has an order of its own."""

  def order(self, seed: int) -> Any:
    """The index that each example takes, as a grain.MapDataset without end."""


@runtime_checkable
class Examples(Protocol):
  """A sequence without end."""

  def __getitem__(self, index: int) -> posed_pair.PosedPair:
    """Example `index`, the same each time."""


def examples(
  source: Source, *, seed: int, mirror: bool, swap: bool
) -> Examples:
  """The endless sequence of examples: `examples[i]` for any i.

  Of pairs with more than one source a random number is given, all alike.

  Args:
    source: the pairs, or what they are drawn from.
    seed: of order, drawing and augmentation.
    mirror: mirror half of the examples.
    swap: exchange source and target of half of the examples.
  """

  def example(index: int, rng: np.random.Generator) -> posed_pair.PosedPair:
    pair = source.draw(index, rng)
    for_mirror, for_swap = rng.random(2).tolist()
    if mirror and for_mirror < 0.5:
      pair = mirrored(pair)
    if swap and for_swap < 0.5:
      pair = swapped(pair)
    # What could have been drawn goes into no batch.
    pair = pair._replace(
      target_median_depth=None,
      source_encoded=_alone(pair.source_encoded),
      target_encoded=_alone(pair.target_encoded),
    )
    if pair.more is None:
      return pair
    return thinned(pair, int(rng.integers(len(pair.more.is_there) + 1)))

  return order(source, seed).random_map(example)


def order(source: Source, seed: int) -> Any:
  """The index that each example takes, as a grain.MapDataset without end."""
  if isinstance(source, Mixed):
    return source.order(seed)
  return shuffled(len(source), seed)


def shuffled(count: int, seed: int) -> Any:
  """An endless grain.MapDataset of numbers below `count`, each once an epoch."""
  # Here, for a command reads its flags before what is slow to load.
  import grain

  return grain.MapDataset.range(count).seed(seed).shuffle().repeat()


def places(source: Source, seed: int, numbers: Iterable[int]) -> list[str]:
  """Where the records of examples are, see `Source.place`.

  Args:
    source: see `examples`.
    seed: see there.
    numbers: of the examples.
  """
  indices = order(source, seed)
  return [source.place(int(indices[number])) for number in numbers]


# Batches that are being made while one is used: two, so that no thread waits
# for the last example of the first.
_BATCHES_AHEAD = 2
# Examples that a thread takes at once.
_PART = 8


def _copy(to: Shaped[np.ndarray, '...'], x: Shaped[np.ndarray, '...']) -> None:
  """Copies an array into one of the same shape and type, which is contiguous.

  Mirrored images are views, whose columns go from right to left: NumPy copies
  these byte by byte, OpenCV forty times as fast.
  """
  if x.ndim > 3:
    for to_row, row in zip(to, x, strict=True):
      _copy(to_row, row)
  elif x.ndim > 1 and x.strides[1] < 0:
    cv2.flip(x[:, ::-1], 1, dst=to)
  else:
    to[...] = x


class _Batch:
  """A batch that several threads fill, each example in its place at once.

  Examples that lie together until all are there would each take fresh memory,
  and be copied when no cache has them any more.

  Args:
    dataset: from `examples`.
    numbers: of the examples.
    memory: of its arrays.
  """

  def __init__(
    self, dataset: Examples, numbers: list[int], memory: recycling.Memory
  ):
    self._dataset = dataset
    self._numbers = numbers
    self._memory = memory
    self._arrays: posed_pair.PosedPair | None = None
    self._lock = threading.Lock()

  def parts(self) -> list[range]:
    """The rows, in parts for `fill`."""
    rows = range(len(self._numbers))
    return [rows[start : start + _PART] for start in rows[::_PART]]

  def fill(self, rows: range) -> None:
    """Makes the examples of some rows."""
    for row in rows:
      pair = self._dataset[self._numbers[row]]
      with self._lock:
        if self._arrays is None:
          self._arrays = posed_pair.empty(
            pair, len(self._numbers), self._memory.empty
          )
      posed_pair.put(self._arrays, row, pair, _copy)

  def whole(self) -> posed_pair.PosedPair:
    """The batch, once all rows are filled."""
    return self._arrays


def batches(
  dataset: Examples,
  *,
  first_step: int,
  batch_size: int,
  rows: Int[np.ndarray, 'n'] | None = None,
  num_workers: int = 1,
) -> Iterator[posed_pair.PosedPair]:
  """Every batch from `first_step` on, or the rows of it that a host needs.

  Batches are prepared ahead by threads, which take turns for little but what
  Python itself does: reading, decoding and copying go on side by side.

  Args:
    dataset: from `examples`.
    first_step: number of the first batch.
    batch_size: of the batch over all hosts.
    rows: of it; None: all.
    num_workers: threads; 0: each batch is made when it is asked for. Batches
      are the same for any number.
  """
  wanted = np.arange(batch_size) if rows is None else rows
  steps = itertools.count(first_step)

  memory = recycling.Memory()

  def begin() -> _Batch:
    numbers = next(steps) * batch_size + wanted
    return _Batch(dataset, numbers.tolist(), memory)

  if not num_workers:
    while True:
      batch = begin()
      for part in batch.parts():
        batch.fill(part)
      yield batch.whole()
      del batch

  pool = futures.ThreadPoolExecutor(num_workers)
  ahead: collections.deque[tuple[_Batch, list[futures.Future[None]]]] = (
    collections.deque()
  )
  try:
    while True:
      while len(ahead) < _BATCHES_AHEAD:
        batch = begin()
        ahead.append(
          (batch, [pool.submit(batch.fill, x) for x in batch.parts()])
        )
      batch, parts = ahead.popleft()
      for part in parts:
        part.result()
      yield batch.whole()
      # Nothing here holds what the caller is done with.
      del batch
  finally:
    for _, parts in ahead:
      for part in parts:
        part.cancel()
    pool.shutdown()


def _spread(source: Source, count: int) -> list[int]:
  """Up to `count` indices, spread evenly over the records."""
  chosen = np.linspace(0, len(source) - 1, min(count, len(source)))
  return chosen.astype(int).tolist()


def sound_pairs(source: Source, count: int) -> list[posed_pair.PosedPair]:
  """Up to `count` of them, spread evenly, without those that can't be read."""
  pairs = []
  for index in _spread(source, count):
    # Training has said what is wrong with those that it needed.
    with contextlib.suppress(errors.UserError):
      pairs.append(source[index])
  return pairs


def sample_images(source: Source, count: int) -> UInt8[np.ndarray, 'n s s 3']:
  """Up to `count` images, spread evenly over the records."""
  return np.stack([source[index].source for index in _spread(source, count)])
